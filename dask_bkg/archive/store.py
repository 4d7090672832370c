"""The store as the driver of a job sees it: opened, brought up to date, asked.

The driver alone writes the table, in checkpoints; tasks write histograms (`dask_bkg.archive.update`).  A row that
will be replaced is void on disk before a task may touch its histograms, and valid again when all of them are written:
a job that is killed leaves rows that are right and rows that are void, and the next one continues.
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

from dask_bkg import schema
from dask_bkg.archive import layout
from dask_bkg.archive.hints import Hints, state_of
from dask_bkg.archive.lock import WriteLock
from dask_bkg.archive.plan import digest_of, find_work, make_blocks
from dask_bkg.archive.table import Table
from dask_bkg.archive.update import BlockDone, BlockWork
from dask_bkg.dl3.read import RunFile
from dask_bkg.exclusion import SkyRegions
from dask_bkg.schema import RUN_NUMBERS, Edges, View

log = logging.getLogger(__name__)

FLUSH_EVERY = 3.0
"""Seconds of work that a killed job may lose; more where a checkpoint takes long (a tenth of the time at most)."""

BEAT_EVERY = 20.0


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
        self._hints = Hints(path.with_name(f"{path.name}.hints.json"))
        self._lock: WriteLock | None = None
        self._guard = threading.RLock()
        self._new: set[int] = set()
        self._flushed, self._took = time.monotonic(), 0.0

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunStore:
        """The store at a path.

        Raises
        ------
        ArchiveError
            If there is none, or one of another version.
        """
        return cls(_absolute(path))

    @classmethod
    def open_or_create(cls, path: str | os.PathLike[str], fine: View, block: int = layout.BLOCK) -> RunStore:
        """The store at a path, made if there is nothing.

        Parameters
        ----------
        path
            Its directory.
        fine
            View of a new store (`dask_bkg.schema.fine_view`); one that is there keeps its own.
        block
            Runs of a chunk of a new store.

        Raises
        ------
        ArchiveError
            If there is something else, or a store of another version.
        """
        path = _absolute(path)
        if fine.name:
            raise ValueError(f"the fine view has the empty name, got {fine.name!r}")
        if not layout.is_store(path):
            layout.create(path, fine, block)
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
            Added to the store if it is new; `plan_update` then says that all runs lack it.
        """
        fine = self.fine
        if (method, reach) == (fine.method, fine.reach) and schema.is_sum_of(fine.edges, edges):
            return fine
        view = schema.ring_view(edges, method, reach)
        if view.name not in self.views:
            if not (self.path / view.name / "zarr.json").is_file():
                layout.create_view(self.path, view, len(self._table), self.block)
            self.views[view.name] = view
            self._table.keys[view.name] = np.zeros(len(self._table), np.uint64)
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
        lock = WriteLock(self.path)
        with layout.told(self.path):
            lock.acquire()
        self._lock, stop = lock, threading.Event()
        beat = threading.Thread(target=self._beat, args=(lock, stop), daemon=True, name="run-store")
        try:
            # another job may have written since this one was opened
            layout.clear_leftovers(self.path)
            self.views = layout.views_of(self.path)
            self._table = Table.read(self.path, self.views)
            self._hints.refresh()
            self._new = set()
            beat.start()
            yield
            self.flush()
        finally:
            stop.set()
            if beat.is_alive():
                beat.join()
            self._close(lock)

    def _close(self, lock: WriteLock) -> None:
        """Keep what was recorded, whatever ended the work, and give the lock back."""
        try:
            self.flush()
        except Exception as error:  # what ended the work is told, and not what came of it
            log.warning("%s", error)
        finally:
            self._lock = None
            lock.release()

    def _beat(self, lock: WriteLock, stop: threading.Event) -> None:
        """Show that this job is alive, and make checkpoints while the driver waits."""
        beaten = time.monotonic()
        while not stop.wait(1.0):
            try:
                if time.monotonic() - beaten > BEAT_EVERY:
                    lock.beat()
                    beaten = time.monotonic()
                self._flush_if_due()
            except Exception as error:  # the driver meets it again when it records or flushes
                log.debug("checkpoint of %s: %s", self.path, error)

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
        files and the exclusion are the same.  They count as void from now on, until `record`.

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
            work = self.outdated(runs, views, regions)
            rows = self._rows_for(work)
            about = {
                "views": tuple(names),
                "whole_exclusion": whole,
                "radius": self._radius,
                "lock": str(self._lock.path),
                "token": self._lock.token,
            }
            blocks = make_blocks(work, rows, self._table, names, self.block, about)
            self._prepare(rows, names)
            attributes = {"exclusion": whole, "catalogs": dict(catalogs or {}), "program": layout.PROGRAM}
            layout.change_attributes(self.path, **attributes)
        return blocks

    def outdated(self, runs: Sequence[RunFile], views: Sequence[View], regions: SkyRegions | None) -> list[RunFile]:
        """Runs that `plan_update` would have read, to be asked without being the one who writes.

        Parameters are those of `plan_update`.  A store that lacks nothing can be used while another job writes, or
        where one may only read.
        """
        names, first = [self._known(view).name for view in views], dict[int, RunFile]()
        for run in runs:
            first.setdefault(run.obs_id, run)
        with self._guard:
            self._void_lost(names)
            column = self._table.columns["whole_exclusion"]
            before = column.copy()
            found = find_work(self._table, names, self._hints, list(first.values()), regions, self._radius)
            # an exclusion that changes nothing here is kept too: the next job need not look at each pointing
            self._new |= set(np.flatnonzero(column != before).tolist())
        return found

    @property
    def _radius(self) -> float:
        """Distance from a pointing within which regions matter to any of the views [deg]."""
        return max(view.radius for view in self.views.values())

    def _known(self, view: View) -> View:
        if view.name not in self.views or not layout.same_axes(view, self.views[view.name]):
            raise ValueError(f"view {view.name!r} is none of {self.path}: take those that `view_for` gives")
        return self.views[view.name]

    def _void_lost(self, views: Sequence[str]) -> None:
        """Rows whose chunks are no more on disk know nothing: some disks clear away what nobody has read for long."""
        blocks = np.arange(len(self._table)) // self.block
        for view in views:
            keys = self._table.keys[view]
            gone = (keys != 0) & ~np.isin(blocks, list(layout.blocks_on_disk(self.path, self.views[view])))
            failed = self._table.columns["error"] != ""
            keys[gone & ~failed] = 0
            self._new |= set(np.flatnonzero(gone & ~failed).tolist())

    def _rows_for(self, work: Sequence[RunFile]) -> NDArray:
        """Rows of runs; those that are new get some, so far in memory."""
        rows = self._table.rows([run.obs_id for run in work])
        new = np.flatnonzero(rows < 0)
        if new.size:
            rows[new] = self._table.add([work[int(i)].obs_id for i in new])
        return rows

    def _prepare(self, rows: NDArray, views: Sequence[str]) -> None:
        """Room for all rows on disk, and those that will be replaced void, before a task begins."""
        table = self._table
        for view in views:
            table.keys[view][rows] = 0
        with layout.told(self.path):
            grown = not layout.is_consolidated(self.path, self.views, len(table))
            if grown:
                layout.grow(self.path, self.views, len(table))
            if changed := {*rows.tolist(), *self._new}:
                table.write_keys(self.path, changed)
                table.write_ids(self.path)
            if grown:
                layout.consolidate(self.path)

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
            columns = self._table.columns
            for run in done.runs:
                for name in RUN_NUMBERS:
                    columns[name][run.row] = run.numbers.get(name, np.nan)
                for name in layout.TEXTS:
                    columns[name][run.row] = run.texts.get(name, "")
                for view, key in zip(done.views, run.keys, strict=True):
                    self._table.keys[view][run.row] = key
                for hint in run.hints:
                    self._hints.add(hint)
                self._new.add(run.row)
        self._flush_if_due()

    def saw(self, path: str | os.PathLike[str], fingerprint: str) -> None:
        """A file as it is now holds the run of this fingerprint: it need not be opened to find that out.

        For files that the job itself has changed or made, such as by a background that it attached; `flush` keeps it.
        """
        name = os.path.abspath(path)
        if (state := state_of(name)) is not None:
            with self._guard:
                self._hints.add((name, *state, fingerprint))

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
            self._hints.save()
            if self._new and self._lock is not None:
                self._lock.beat()
                self._table.write_columns(self.path, self._new)
                self._table.write_keys(self.path, self._new)
                layout.change_attributes(self.path, written=layout.timestamp())
                self._new = set()
            self._flushed = time.monotonic()
            self._took = self._flushed - start

    def find(self, obs_ids: ArrayLike, view: str = "") -> NDArray:
        """Rows of runs that have valid histograms in a view.

        Parameters
        ----------
        obs_ids
            Run numbers, shape ``(runs,)``.
        view
            Name of the view.

        Returns
        -------
        rows
            Shape ``(runs,)``; -1 for runs that are not there or cannot be used.
        """
        rows = self._table.rows(obs_ids)
        if not len(self._table):
            return rows
        return np.where(self._table.usable(view)[rows], rows, -1)

    def table(self) -> dict[str, NDArray]:
        """``obs_id``, `dask_bkg.schema.RUN_NUMBERS` and texts of all rows, each of shape ``(rows,)``."""
        return {"obs_id": self._table.obs_id.copy(), **{k: v.copy() for k, v in self._table.columns.items()}}

    def usable(self, view: str = "") -> NDArray:
        """Which rows have valid histograms in a view, boolean of shape ``(rows,)``."""
        return self._table.usable(view)

    def keys(self, rows: ArrayLike, view: str = "") -> NDArray:
        """What rows hold, as a number: events, exclusion and how they are counted; uint64, shape ``(rows,)``."""
        return self._table.keys[view][np.asarray(rows, dtype=np.int64)]

    def errors(self, obs_ids: ArrayLike) -> dict[int, str]:
        """Why runs cannot be used, those that have a reason."""
        rows = self._table.rows(obs_ids)
        found = zip(np.asarray(obs_ids).tolist(), rows.tolist(), strict=True)
        texts = self._table.columns["error"]
        return {int(obs_id): str(texts[row]) for obs_id, row in found if row >= 0 and texts[row]}


def _absolute(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.abspath(path))
