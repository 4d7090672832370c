"""The store as the driver of a job sees it: opened, brought up to date, asked.

Tasks write what they find as parts (`dask_bkg.store.update`), each job into a directory of its own; the driver folds
them into the store, some hundred runs at a time.  Rows are only added, and those of a view become valid by the row of
their run in the table: a job that is killed leaves rows that are right and parts, which the next job folds before it
continues.  What a job writes after another one has taken over its lock is folded by a third one, before this plans.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dask_bkg.binning import Edges, FieldEdges, View, field_view, is_sum_of, ring_view
from dask_bkg.dl3.read import RunFile
from dask_bkg.errors import ArchiveError
from dask_bkg.files import MISSING, Lock, StatCache, state_of
from dask_bkg.sky.exclusion import SkyRegions
from dask_bkg.store import layout
from dask_bkg.store.changes import Asked, Needed, digest_of, exclusions_used, warn_of_replaced
from dask_bkg.store.rows import SHARD
from dask_bkg.store.run_files import by_fingerprint
from dask_bkg.store.table import Table
from dask_bkg.store.update import BlockWork, RunDone

log = logging.getLogger(__name__)


class RunStore:
    """A store of run histograms; `open` or `open_or_create` gives one.

    Attributes
    ----------
    path
        Its directory.
    views
        Its views by name, the fine one has the empty name.
    block
        Runs that one task reads.
    """

    def __init__(self, path: Path):
        self.path = path
        self.block = int(layout.attributes_of(path)["block"])
        self.views = layout.views_of(path)
        self._table = Table(path, self.views)
        self._hints = StatCache(path.with_name(f"{path.name}.hints.json"))
        self._marks: dict[str, set[str]] | None = None
        self._lock: Lock | None = None
        self._touched: dict[str, set[int]] = {}
        self._unfolded = 0
        # of this job alone, never on disk: runs that were planned and are not in the store yet; runs out of reach
        self._unseen: set[int] = set()
        self._recorded: set[int] = set()
        self._absent: dict[int, str] = {}

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
            Runs that one task reads into a new store.

        Raises
        ------
        ArchiveError
            If there is something else, or a store of another version.
        """
        path = Path(os.path.abspath(path))
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
        """The view from which histograms on some axes can be had: the fine one, or one of these offset bins.

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
            The fine one, or a further one, fine where the axes are sums of the fine ones.
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
        if view.name not in self.views:
            self.views[view.name] = view
            if self._lock is not None:
                layout.create_view(self.path, view)
                self._table = Table(self.path, self.views)
        return self.views[view.name]

    def mend(self) -> None:
        """Write what is damaged of its tables again; a store that cannot be written now is used as it is."""
        if any(rows.damaged for rows in (*self._table.views.values(), self._table.runs)):
            try:
                with self.writing():
                    pass
            except ArchiveError as error:
                log.info("%s", error)

    # -- writing -----------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the one job that writes, until the block ends.

        Raises
        ------
        ArchiveError
            If another job writes: which, and what to do.
        """
        if self._lock is not None:
            raise RuntimeError("this store is being written already")
        lock = Lock(self.path.with_name(f"{self.path.name}.lock"), f"writes into {self.path}")
        with layout.disk_errors(self.path):
            lock.acquire()
        self._lock = lock
        try:
            with lock.kept_alive():
                self._take_over()
                yield
                self.flush()
                for rows in (*self._table.views.values(), self._table.runs):
                    rows.tidy()
                self._table.index()
                with suppress(OSError):  # another job, which was taken over, may have written there meanwhile
                    os.rmdir(self.path / layout.PARTS)
        finally:
            self._close(lock)

    def _take_over(self) -> None:
        """The store as other jobs have left it: with all of their parts, and the views that are new for this one."""
        layout.check_there(self.path)
        layout.clear_leftovers(self.path)
        wanted, self.views = self.views, layout.views_of(self.path)
        for name in wanted.keys() - self.views.keys():
            layout.create_view(self.path, wanted[name])
        self.views = layout.views_of(self.path)
        self._table = Table(self.path, self.views)
        for rows in (*self._table.views.values(), self._table.runs):
            rows.mend()
        for directory in sorted(self.path.glob(f"{layout.PARTS}/*")):
            self._fold(directory)
        # parts of views that were removed
        shutil.rmtree(self.path / layout.PARTS, ignore_errors=True)
        self._hints.refresh()
        self._marks = None
        self._touched, self._unseen, self._recorded, self._unfolded = {}, set(), set(), 0

    def _fold(self, directory: Path) -> None:
        """Parts into the store: rows of the views, and then those of the runs, by which they become valid."""
        for rows in (*self._table.views.values(), self._table.runs):
            rows.fold(directory)
        self._table.index()

    def _close(self, lock: Lock) -> None:
        """Keep what was recorded, whatever ended the work, and give the lock back."""
        try:
            self.flush()
        except Exception as error:  # what ended the work is reported, and not what came of it
            log.warning("%s", error)
        finally:
            self._lock = None
            lock.release()

    @property
    def _parts(self) -> Path:
        """Where the tasks of this job write: another one that has taken over does not look there."""
        assert self._lock is not None
        return self.path / layout.PARTS / self._lock.token

    def plan_update(
        self,
        runs: Sequence[RunFile],
        views: Sequence[View],
        regions: SkyRegions | None,
        catalogs: Mapping[str, str] | None = None,
    ) -> list[BlockWork]:
        """What must be read so that the store has runs as they are: one piece of work a task; within `writing`.

        Opens no event file.  To be read are runs that are new, whose files changed as far as their size and time
        say, whose exclusion near the pointing changed, or which lack a view; and runs that failed, unless their
        files and the exclusion are the same.  This job cannot use them until they are recorded; others find what the
        store has of them.  Runs of which something is known and whose files are out of reach are only reported in
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
        work, whole = self._find_work(runs, views, regions), digest_of(regions)
        before = layout.attributes_of(self.path)
        warn_of_replaced(work, len({run.obs_id for run in runs}), before)
        self._unseen |= {needed.run.obs_id for needed in work}
        exclusions = exclusions_used(self._table, before["exclusions"], whole, bool(work))
        attributes = {"exclusion": whole, "catalogs": dict(catalogs or {}), "program": layout.PROGRAM}
        layout.change_attributes(self.path, exclusions=exclusions, **attributes)
        wanted = [needed.run for needed in work]
        return [
            self._work(wanted[first : first + self.block], views, whole)
            for first in range(0, len(wanted), self.block)
        ]

    def _work(self, runs: Sequence[RunFile], views: Sequence[View], whole: str) -> BlockWork:
        fingerprints = tuple(self._table.text("fingerprint", run.obs_id) for run in runs)
        keys = tuple(tuple(self._table.key(view.name, run.obs_id) for view in views) for run in runs)
        return BlockWork(tuple(runs), fingerprints, keys, whole, str(self.path), str(self._parts))

    def outdated(self, runs: Sequence[RunFile], views: Sequence[View], regions: SkyRegions | None) -> list[RunFile]:
        """Runs that `plan_update` would have read, to be asked without being the one who writes.

        Parameters are those of `plan_update`.  A store that lacks nothing can be used while another job writes, or
        where one may only read.
        """
        return [needed.run for needed in self._find_work(runs, views, regions)]

    def _find_work(self, runs: Sequence[RunFile], views: Sequence[View], regions: SkyRegions | None) -> list[Needed]:
        layout.check_there(self.path)
        views, first = [self._known(view) for view in views], dict[int, RunFile]()
        for run in runs:
            first.setdefault(run.obs_id, run)
        # some disks clear away what was not read for long
        self._table.index()
        asked = Asked(self._table, self._hints, views, regions)
        found = asked.find_work(list(first.values()))
        # an exclusion that changes nothing here is kept too: the next job need not look at each pointing
        for view, rows in asked.touched.items():
            self._touched[view] = self._touched.get(view, set()) | rows
        self._absent = {k: v for k, v in self._absent.items() if k not in first} | asked.absent
        return found

    def _known(self, view: View) -> View:
        if view.name not in self.views or not layout.same_axes(view, self.views[view.name]):
            raise ValueError(f"view {view.name!r} is none of {self.path}: take those that `view_for` gives")
        return self.views[view.name]

    def record(self, done: Sequence[RunDone]) -> None:
        """Take note of what a task did; its parts are folded when there are enough of them.

        Raises
        ------
        ArchiveError
            If another job has taken over, or the store cannot be written.
        """
        if self._lock is None:
            raise RuntimeError("record: only within `with store.writing():`")
        for run in done:
            if run.status == "absent":
                self._absent[run.obs_id] = run.error
            for hint in run.hints:
                self._hints.add(*hint)
        self._marks = None
        self._recorded |= {run.obs_id for run in done}
        self._unfolded += len(done)
        if self._unfolded >= SHARD:
            self.flush()

    def saw(self, path: str | os.PathLike[str], fingerprint: str) -> None:
        """A file as it is now holds the run of this fingerprint: it need not be opened to find that out.

        For files that the job itself has changed or made, such as by a background that it attached; `flush` keeps it.
        """
        name = os.path.abspath(path)
        if (state := state_of(name)) == MISSING:
            return
        if self._marks is None:
            self._marks = by_fingerprint(self._hints.facts())
        for mark in self._marks.get(fingerprint, (fingerprint,)):
            self._hints.add(name, state, mark)

    def flush(self) -> None:
        """Fold what was recorded, and write the hints.

        Raises
        ------
        ArchiveError
            If another job has taken over, or the store cannot be written.
        """
        layout.check_there(self.path)
        with layout.disk_errors(self.path):
            if self._lock is not None and (self._recorded or self._touched):
                self._lock.beat()
                for view, touched in self._touched.items():
                    rows, store = np.array(sorted(touched)), self._table.views[view]
                    store.update(rows, {"whole_exclusion": store.table["whole_exclusion"][rows]})
                self._touched = {}
                self._fold(self._parts)
                self._unseen -= self._recorded
                self._recorded, self._unfolded = set(), 0
                layout.change_attributes(self.path, written=layout.timestamp())
            self._save_hints()

    def _save_hints(self) -> None:
        try:
            self._hints.save()
        except (ArchiveError, OSError) as error:
            if self._lock is not None:
                raise
            # a store that one may only read is used without; the next job opens some files more
            log.info("the hints of %s are not kept: %s", self.path, error)

    # -- what there is -----------------------------------------------------------------------------------------

    def find(self, obs_ids: ArrayLike, view: str = "") -> NDArray:
        """Rows of a view with the histograms of runs.

        Parameters
        ----------
        obs_ids
            Run numbers, shape ``(runs,)``.
        view
            Name of the view; each has rows of its own.

        Returns
        -------
        rows
            Shape ``(runs,)``; -1 for runs that are not there or cannot be used.
        """
        without = self._unseen | self._absent.keys()
        numbers = np.asarray(obs_ids, dtype=np.int64)
        rows = [-1 if obs_id in without else self._table.find(view, obs_id) for obs_id in numbers.ravel().tolist()]
        return np.array(rows, dtype=np.int64).reshape(numbers.shape)

    def table(self) -> dict[str, NDArray]:
        """``obs_id``, `dask_bkg.schema.RUN_NUMBERS` and texts of all runs in the order of ``obs_id``.

        Arrays of shape ``(runs,)``; the exclusion is that of the fine view.
        """
        return self._table.columns()

    def usable(self, view: str = "") -> NDArray:
        """Which runs of `table` have valid histograms in a view, boolean of shape ``(runs,)``."""
        return self.find(sorted(self._table.run_row), view) >= 0

    def keys(self, rows: ArrayLike, view: str = "") -> NDArray:
        """What rows of a view hold, as a number: events, exclusion and how they are counted; uint64, ``(rows,)``."""
        rows = np.asarray(rows, dtype=np.int64)
        if not rows.size:
            return np.empty(0, np.uint64)
        return self._table.views[view].table["key"][rows].astype(np.uint64)

    def errors(self, obs_ids: ArrayLike) -> dict[int, str]:
        """Why runs cannot be used, those that have a reason."""
        numbers = np.asarray(obs_ids, dtype=np.int64).tolist()
        known = {obs_id: error for obs_id in numbers if (error := self._table.text("error", obs_id))}
        return known | {obs_id: self._absent[obs_id] for obs_id in numbers if obs_id in self._absent}
