"""The store as the driver of a job sees it: opened, brought up to date, asked.

The driver alone writes the table, in checkpoints; tasks write histograms (`dask_bkg.store.update`).  A row that
is replaced is void on disk before anyone touches its histograms, and valid again when all of them are written: a job
that is killed leaves rows that are right and rows that are void, and the next one continues.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dask_bkg.binning import Edges, FieldEdges, View, field_view, is_sum_of, ring_view
from dask_bkg.dl3.read import RunFile
from dask_bkg.errors import ArchiveError
from dask_bkg.files import MISSING, Lock, StatCache, state_of
from dask_bkg.sky.exclusion import SkyRegions
from dask_bkg.store import layout
from dask_bkg.store.changes import Asked, Needed, digest_of, exclusions_used, make_blocks, void_lost, warn_of_replaced
from dask_bkg.store.create import create, create_view
from dask_bkg.store.run_files import by_fingerprint
from dask_bkg.store.table import Table
from dask_bkg.store.update import BlockDone, BlockWork, RunDone, put_histograms

log = logging.getLogger(__name__)

FLUSH_EVERY = 3.0
"""Seconds of work that a killed job may lose; more where a checkpoint takes long (a tenth of the time at most)."""


class RunStore:
    """A store of run histograms; `open` or `open_or_create` gives one.

    Attributes
    ----------
    path
        Its directory.
    views
        Its views by name, the fine one has the empty name.
    block
        Runs of a block, that is of a chunk of histograms.
    """

    def __init__(self, path: Path):
        self.path = path
        self.block = int(layout.attributes_of(path)["block"])
        self.views = layout.views_of(path)
        self._table = Table.read(path, self.views)
        self._hints = StatCache(path.with_name(f"{path.name}.hints.json"))
        self._marks: dict[str, set[str]] | None = None
        self._lock: Lock | None = None
        self._guard = threading.RLock()
        self._new: set[int] = set()
        # of this job alone, never on disk: rows that were planned and not looked at yet, and runs out of reach
        self._unseen: set[int] = set()
        self._absent: dict[int, str] = {}
        self._flushed, self._took = time.monotonic(), 0.0

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunStore:
        """The store at a path.

        Raises
        ------
        ArchiveError
            If there is none, or one of another version.
        """
        return cls(Path(os.path.abspath(path)))

    @classmethod
    def open_or_create(cls, path: str | os.PathLike[str], fine: View, block: int = layout.BLOCK) -> RunStore:
        """The store at a path, made if there is nothing.

        Parameters
        ----------
        path
            Its directory.
        fine
            View of a new store (`dask_bkg.binning.fine_view`); one that is there keeps its own.
        block
            Runs of a chunk of a new store.

        Raises
        ------
        ArchiveError
            If there is something else, or a store of another version.
        """
        path = Path(os.path.abspath(path))
        if fine.name:
            raise ValueError(f"the fine view has the empty name, got {fine.name!r}")
        if not layout.is_store(path):
            create(path, fine, block)
        store = cls(path)
        if not layout.same_axes(store.fine, fine):
            log.info("%s keeps its own fine axes: %s", path, layout.axes_text(store.fine))
        return store

    @property
    def fine(self) -> View:
        """The view of which other binnings are sums."""
        return self.views[""]

    def view_for(self, edges: Edges, method: str, reach: str) -> View:
        """The view from which histograms on some axes can be had: the fine one, or exact rings beside it.

        Parameters
        ----------
        edges
            Axes that are wanted.
        method, reach
            See `dask_bkg.reduce_run`; the fine view has ``geometry`` and ``disc``.

        Returns
        -------
        view
            Of all runs lacking if it is new; it comes into the store with `writing`.
        """
        fine = self.fine
        if (method, reach) == (fine.method, fine.reach) and is_sum_of(fine.edges, edges):
            return fine
        return self._with_view(ring_view(edges, method, reach))

    def field_view_for(self, edges: FieldEdges, alignment: str, reach: str) -> View:
        """The view from whose field pixels histograms on some axes can be had.

        Parameters
        ----------
        edges
            Axes that are wanted.
        alignment
            Frame of the field, ``radec`` or ``altaz``.
        reach
            See `dask_bkg.reduce_run`.

        Returns
        -------
        view
            The fine one, or one beside it, fine where the axes are sums of the fine ones.
        """
        fine = self.fine
        assert fine.pixels is not None
        pixels = fine.pixels if is_sum_of(fine.pixels, edges.fov) else tuple(edges.fov.tolist())
        energy = fine.edges.energy if is_sum_of(fine.edges.energy, edges.energy) else edges.energy
        axes = fine._replace(edges=Edges(energy, fine.edges.offset), reach=reach)
        if energy is fine.edges.energy and (pixels, alignment, reach) == (fine.pixels, fine.alignment, fine.reach):
            return fine
        return self._with_view(field_view(axes, alignment, pixels))

    def _with_view(self, view: View) -> View:
        """A view of the store, made if it is not there."""
        with self._guard:
            if view.name not in self.views:
                self.views[view.name] = view
                self._table.add_view(view.name)
                if self._lock is not None:
                    create_view(self.path, view, len(self._table), self.block)
        return self.views[view.name]

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the one job that writes, until the block ends; checkpoints are made meanwhile.

        Raises
        ------
        ArchiveError
            If another job writes: which, and what to do.
        """
        if self._lock is not None:
            raise RuntimeError("this store is being written already")
        lock = Lock(self.path.with_name(f"{self.path.name}.lock"), f"writes into {self.path}")
        with layout.told(self.path):
            lock.acquire()
        self._lock = lock
        try:
            # another job may have written since this one was opened
            layout.clear_leftovers(self.path)
            self._read_again()
            with lock.kept_alive(self._flush_if_due):
                yield
                self.flush()
        finally:
            self._close(lock)

    def _read_again(self) -> None:
        """Views, table and hints as they are by now; views that are new come into the store."""
        wanted, self.views = self.views, layout.views_of(self.path)
        if missing := wanted.keys() - self.views.keys():
            n_runs = layout.open_array(self.path, "", "obs_id").shape[0]
            for name in missing:
                create_view(self.path, wanted[name], n_runs, self.block)
            self.views = layout.views_of(self.path)
        self._table = Table.read(self.path, self.views)
        self._hints.refresh()
        self._marks = None
        self._new, self._unseen = set(), set()

    def _close(self, lock: Lock) -> None:
        """Keep what was recorded, whatever ended the work, and give the lock back."""
        try:
            self.flush()
        except Exception as error:  # what ended the work is told, and not what came of it
            log.warning("%s", error)
        finally:
            self._lock = None
            lock.release()

    def plan_update(
        self,
        runs: Sequence[RunFile],
        views: Sequence[View],
        regions: SkyRegions | None,
        catalogs: Mapping[str, str] | None = None,
    ) -> list[BlockWork]:
        """What must be read so that the store knows runs as they are: one piece of work a task; within `writing`.

        Opens no event file.  To be read are runs that are new, whose files changed as far as their size and time
        tell, whose exclusion near the pointing changed, or which lack a view; and runs that failed, unless their
        files and the exclusion are the same.  They count as void from now on, until `record`; on disk only those that
        are known to change.  Runs of which something is known and whose files are out of reach are only told of in
        `errors`: they are back, unread, when their files are.

        Parameters
        ----------
        runs
            Runs that are asked for; of a number that comes more than once the first is taken.
        views
            What is needed of them, from `view_for`.
        regions
            What is excluded, over the whole sky.
        catalogs
            Hashes of the catalogues that the regions come from, for the record.

        Raises
        ------
        ArchiveError
            If the store cannot be written.
        """
        if self._lock is None:
            raise RuntimeError("plan_update: only within `with store.writing():`")
        names, whole = [view.name for view in views], digest_of(regions)
        with self._guard:
            work = self._find_work(runs, views, regions)
            before = layout.attributes_of(self.path)
            warn_of_replaced(work, len({run.obs_id for run in runs}), before)
            rows = self._table.rows_for([needed.run.obs_id for needed in work])
            about = {"views": tuple(names), "whole_exclusion": whole, "lock": self._lock}
            blocks = make_blocks(work, rows, self._table, self.block, about)
            self._prepare(rows, names, np.array([needed.held for needed in work], dtype=bool).reshape(-1, len(names)))
            exclusions = exclusions_used(self._table, before["exclusions"], whole, bool(work))
            attributes = {"exclusion": whole, "catalogs": dict(catalogs or {}), "program": layout.PROGRAM}
            layout.change_attributes(self.path, exclusions=exclusions, **attributes)
        return blocks

    def outdated(self, runs: Sequence[RunFile], views: Sequence[View], regions: SkyRegions | None) -> list[RunFile]:
        """Runs that `plan_update` would have read, to be asked without being the one who writes.

        Parameters are those of `plan_update`.  A store that lacks nothing can be used while another job writes, or
        where one may only read.
        """
        with self._guard:
            return [needed.run for needed in self._find_work(runs, views, regions)]

    def _find_work(self, runs: Sequence[RunFile], views: Sequence[View], regions: SkyRegions | None) -> list[Needed]:
        views, first = [self._known(view) for view in views], dict[int, RunFile]()
        for run in runs:
            first.setdefault(run.obs_id, run)
        self._new |= void_lost(self._table, self.path, views, self.block)
        asked = Asked(self._table, self._hints, views, regions)
        found = asked.find_work(list(first.values()))
        # an exclusion that changes nothing here is kept too: the next job need not look at each pointing
        self._new |= asked.touched
        self._absent = {k: v for k, v in self._absent.items() if k not in first} | asked.absent
        return found

    def _known(self, view: View) -> View:
        if view.name not in self.views or not layout.same_axes(view, self.views[view.name]):
            raise ValueError(f"view {view.name!r} is none of {self.path}: take those that `view_for` gives")
        return self.views[view.name]

    def _prepare(self, rows: NDArray, views: Sequence[str], held: NDArray) -> None:
        """Room for all rows on disk, and those that will be replaced void, before a task begins."""
        for i, view in enumerate(views):
            self._table.keys[view][rows[~held[:, i]]] = 0
        self._unseen |= set(rows.tolist())
        with layout.told(self.path):
            self._table.make_room(self.path, self.views, {*rows.tolist(), *self._new})

    def record(self, done: BlockDone) -> None:
        """Take what a task did into the table; a checkpoint is made every few seconds.

        Raises
        ------
        ArchiveError
            If another job has taken over, or the store cannot be written.
        """
        if self._lock is None:
            raise RuntimeError("record: only within `with store.writing():`")
        with self._guard:
            if any(done.unwritten):
                self._write_for(done)
            for run in done.runs:
                self._take(run, done.views)
        self._flush_if_due()

    def _take(self, run: RunDone, views: Sequence[str]) -> None:
        """What became of one run into the table."""
        if run.status == "absent":
            self._absent[run.obs_id] = run.texts["error"]
        else:
            self._table.tell(run.row, run.numbers, run.texts, dict(zip(views, run.exclusions, strict=False)))
        for view, key in zip(views, run.keys, strict=True):
            self._table.keys[view][run.row] = key
        for hint in run.hints:
            self._hints.add(*hint)
        self._marks = None
        self._new.add(run.row)
        self._unseen.discard(run.row)

    def _write_for(self, done: BlockDone) -> None:
        """Write what a task has left to the driver; the rows are void on disk before."""
        assert self._lock is not None
        rows = {row for part in done.unwritten for row in part}
        for view in done.views:
            self._table.keys[view][list(rows)] = 0
        self._new |= rows
        # numbers and texts too: the keys of other rows, which go with these, must not come before them
        self.flush()
        for name, part in zip(done.views, done.unwritten, strict=True):
            if part:
                put_histograms(str(self.path), self.views[name], done.block, part, self._lock)

    def saw(self, path: str | os.PathLike[str], fingerprint: str) -> None:
        """A file as it is now holds the run of this fingerprint: it need not be opened to find that out.

        For files that the job itself has changed or made, such as by a background that it attached; `flush` keeps it.
        """
        name = os.path.abspath(path)
        if (state := state_of(name)) == MISSING:
            return
        with self._guard:
            if self._marks is None:
                self._marks = by_fingerprint(self._hints.facts())
            for mark in self._marks.get(fingerprint, (fingerprint,)):
                self._hints.add(name, state, mark)

    def _flush_if_due(self) -> None:
        if self._new and time.monotonic() - self._flushed > max(FLUSH_EVERY, 10 * self._took):
            self.flush()

    def flush(self) -> None:
        """Make a checkpoint: hints, numbers and texts, and after them the keys that make rows valid.

        Raises
        ------
        ArchiveError
            If another job has taken over, or the store cannot be written.
        """
        with self._guard, layout.told(self.path):
            start = time.monotonic()
            self._save_hints()
            if self._new and self._lock is not None:
                self._lock.beat()
                self._table.write_columns(self.path, self._new)
                self._table.write_keys(self.path, self._new)
                layout.change_attributes(self.path, written=layout.timestamp())
                self._new = set()
            self._flushed = time.monotonic()
            self._took = self._flushed - start

    def _save_hints(self) -> None:
        try:
            self._hints.save()
        except (ArchiveError, OSError) as error:
            if self._lock is not None:
                raise
            # a store that one may only read is used without; the next job opens some files more
            log.info("the hints of %s are not kept: %s", self.path, error)

    def find(self, obs_ids: ArrayLike, view: str = "") -> NDArray:
        """Rows of runs that have valid histograms in a view.

        Parameters
        ----------
        obs_ids
            Run numbers, shape ``(runs,)``.

        Returns
        -------
        rows
            Shape ``(runs,)``; -1 for runs that are not there or cannot be used.
        """
        rows = self._table.rows(obs_ids)
        return np.where(self.usable(view)[rows], rows, -1) if len(self._table) else rows

    def table(self) -> dict[str, NDArray]:
        """``obs_id``, `dask_bkg.schema.RUN_NUMBERS` and texts of all rows, each of shape ``(rows,)``.

        The exclusion is that of the fine view.
        """
        columns = {**self._table.columns, **self._table.exclusions[""]}
        return {"obs_id": self._table.obs_id.copy(), **{name: column.copy() for name, column in columns.items()}}

    def usable(self, view: str = "") -> NDArray:
        """Which rows have valid histograms in a view, boolean of shape ``(rows,)``."""
        valid, absent = self._table.usable(view), self._table.rows(list(self._absent))
        valid[[*self._unseen, *absent[absent >= 0].tolist()]] = False
        return valid

    def keys(self, rows: ArrayLike, view: str = "") -> NDArray:
        """What rows hold, as a number: events, exclusion and how they are counted; uint64, shape ``(rows,)``."""
        return self._table.keys[view][np.asarray(rows, dtype=np.int64)]

    def errors(self, obs_ids: ArrayLike) -> dict[int, str]:
        """Why runs cannot be used, those that have a reason."""
        rows = self._table.rows(obs_ids)
        found = zip(np.asarray(obs_ids).tolist(), rows.tolist(), strict=True)
        texts = self._table.columns["error"]
        known = {int(obs_id): str(texts[row]) for obs_id, row in found if row >= 0 and texts[row]}
        return known | {int(k): self._absent[k] for k in np.asarray(obs_ids).tolist() if k in self._absent}
