"""What every job below a directory made: one xarray dataset along ``obs_id``, on zarr (``backgrounds.zarr``).

Tasks write what they know of their targets as parts of a `dask_bkg.store.rows.Rows`, when the files of these targets
are written; the driver folds them.  A store has one set of bins: a job with other ones begins a new store, and the
old one becomes ``backgrounds-<digest>.zarr``, until all of its runs have results in the new one.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dask_bkg.background.target import Target
from dask_bkg.binning import Edges, FieldEdges
from dask_bkg.errors import ArchiveError
from dask_bkg.files import locked
from dask_bkg.output.write import ROLES, Mark, Place, Result
from dask_bkg.schema import axis_coords
from dask_bkg.store.layout import clear_leftovers
from dask_bkg.store.rows import SHARD, Column, Layout, Rows, attributes_of, change_attributes

log = logging.getLogger(__name__)

NAME = "backgrounds.zarr"
"""Name of the store below ``results_dir``."""

PARTS = ".backgrounds-parts"
"""Directory next to it of what tasks have written and the driver has not folded."""

FILES = ("source", "output")
"""Files of a target: that which is copied, and that which is written."""

FOLD = 500
"""Backgrounds after which the driver folds: a shard of the store."""

LAZY_CHUNK = 100
"""Backgrounds of a chunk of the dataset: 7.5 MB of rates in 3D."""

RATE_UNIT, EXPOSURE_UNIT = "s-1 TeV-1 sr-1", "s TeV sr"

SCALARS = {
    "hours": ("h", "weight x livetime of the contributing runs"),
    "n_runs": ("", "number of contributing runs"),
    "widened": ("", "factor on the widths of the kernel"),
    "livetime": ("s", "livetime of the runs of the spectrum, not weighted"),
    "n_events": ("", "events of the runs of the spectrum, weighted"),
    "threshold": ("TeV", "energy threshold of the run"),
    "night_factor": ("", "normalisation of the nights around over that of the stack"),
    "night_error": ("", "its relative error"),
    "own_factor": ("", "normalisation of the run's own counts over that of the stack"),
    "own_error": ("", "its relative error"),
    "file_size": ("byte", "size of source and output when the background was written"),
    "file_time": ("", "last change of source and output when the background was written"),
    "written": ("", "when the background was written (UTC)"),
    "status": ("", "done, unchanged or failed: what the latest job did"),
    "reason": ("", "why the run failed, or what is worth knowing of its background"),
    "output": ("", "file that was written"),
    "hdu": ("", "name of the background in it"),
    "digest": ("", "equal for backgrounds of the same runs, weights and settings"),
    "job": ("", "job that made the background, see the attribute jobs"),
    "failed_since": ("", "job and reason, if a later job could not make the background again (JSON)"),
    "notes": ("", "what was remarkable about contributing runs (JSON)"),
    "failed_runs": ("", "runs that should have contributed and could not, and why (JSON)"),
}
"""Units and meaning of variables that are not arrays of bins."""

INTEGERS = (
    "obs_id", "written", "n_events", "tail_size", "tail_digest", *(f"n_runs.{role}" for role in ROLES),
    *(f"{what}.{file}" for what in ("file_size", "file_time") for file in FILES),
)  # fmt: skip
NUMBERS = (
    "livetime", "threshold", "night_factor", "night_error", "own_factor", "own_error",
    *(f"{what}.{role}" for what in ("hours", "widened") for role in ROLES),
)  # fmt: skip
TIMES = ("file_time", "written")
"""Those of the integers that are times [ns since 1970]."""

EXPORTED = ("contributing", "weight", "score", "flag")
"""Arrays that the provenance of all backgrounds is made of."""

TEXTS = ("status", "reason", "output", "hdu", "digest", "job", "failed_since", "notes", "failed_runs")


def layout_of(edges: Edges, field: FieldEdges | None) -> Layout:
    """What the store has of each background, in rings of these edges, or in pixels of the field."""
    of = edges if field is None else field
    bins = (of.dims, of.shape)
    rings, energies, runs = (
        (("role", *edges.dims), (len(ROLES), *edges.shape)),
        (("energy",), edges.shape[:1]),
        (("role", "slot"), (len(ROLES), 0)),
    )
    arrays = {
        "rate": Column("float32", *bins, RATE_UNIT, "node values, as they are written"),
        "error": Column("float32", *bins, "", "relative statistical error of the rate; infinite: no counts"),
        "flag": Column("int16", *bins, "", "sum of the bits of dask_bkg.background.field.FIELD_FLAGS"),
        "resolution": Column("float32", *bins, "deg", "effective resolution of the smoothing"),
        "counts": Column("float32", *rings, "", "counts of the contributing runs, weighted"),
        "effective_counts": Column("float32", *rings, "", "events of weight 1 with the same relative error"),
        "exposure": Column("float32", *rings, EXPOSURE_UNIT, "exposure of the contributing runs, weighted"),
        "level_error": Column("float32", *energies, "", "part of the error that is common to all bins of an energy"),
        "own_spectrum": Column("float32", *energies, "", "factor by the run's own counts, normalisation included"),
        "contributing": Column("int64", *runs, "", "contributing runs, nearest first; -1: no more", True),
        "weight": Column("float32", *runs, "", "their weights in the stack", True),
        "score": Column("float64", *runs, "", "what they were ranked by; 0: not ranked", True),
    }
    axes = {"energy": edges.energy.tolist(), "offset": edges.offset.tolist()}
    return Layout(arrays, INTEGERS, NUMBERS, TEXTS, axes | {"fov": None if field is None else field.fov.tolist()})


def _edges_of(layout: Layout) -> tuple[Edges, FieldEdges | None]:
    energy, offset, fov = (layout.axes[name] for name in ("energy", "offset", "fov"))
    edges = Edges(np.array(energy), np.array(offset))
    return edges, None if fov is None else FieldEdges(edges.energy, np.array(fov))


# -- opening ---------------------------------------------------------------------------------------------------------


def open_backgrounds(results_dir: str | os.PathLike[str], obs_ids: Iterable[int] | None = None) -> xr.Dataset:
    """Rates that jobs have made with their errors, and what they were made of.

    Parameters
    ----------
    results_dir
        Where a job has left its results (``io.results_dir``).
    obs_ids
        Run numbers; None: all that have a background.

    Returns
    -------
    dataset
        In the order of ``obs_id``, lazy (Dask) but for scalars and texts.  ``rate``, ``error``, ``flag`` and
        ``resolution`` have the dimensions ``(obs_id, energy, offset)``, for 3D backgrounds ``(obs_id, energy,
        fov_lat, fov_lon)``; ``counts``, ``effective_counts`` and ``exposure`` are in rings, of the runs that
        contribute to each ``role`` (spectrum, shape, night); ``contributing``, ``weight`` and ``score`` are
        ``(obs_id, role, slot)``.  Units and meanings are attributes.  What a job writes afterwards is seen after
        opening again.

    Raises
    ------
    ArchiveError
        If there are no results, or none of some of the runs.

    Examples
    --------
    >>> import dask_bkg
    >>> made = dask_bkg.open_backgrounds("out/results")           # doctest: +SKIP
    >>> made.rate.sel(obs_id=64001).isel(energy=3).plot()         # doctest: +SKIP
    >>> made.contributing.sel(obs_id=64001, role="spectrum")      # doctest: +SKIP
    """
    directory = Path(results_dir)
    advice = "give the io.results_dir of a job that has made them"
    if not (directory / NAME / "zarr.json").is_file():
        raise ArchiveError(f"{directory} has no {NAME}, where the backgrounds of jobs are: {advice}")
    store = Rows(directory / NAME)
    rows = store.latest()
    rows = rows[store.table["digest"][rows] != ""]
    numbers = store.table["obs_id"][rows]
    wanted = numbers if obs_ids is None else np.unique(np.fromiter(obs_ids, dtype=np.int64))
    absent = np.setdiff1d(wanted, numbers)
    if absent.size or not wanted.size:
        of = f"of the runs {absent[:10].tolist()}" if absent.size else "of any run yet"
        raise ArchiveError(f"{store.path} has no background {of}: {advice}")
    return _dataset(store, rows[np.isin(numbers, wanted)])


def contributing_runs(
    results_dir: str | os.PathLike[str], obs_ids: Iterable[int] | None = None
) -> dict[int, list[int]]:
    """Runs that contribute to the spectrum of backgrounds, nearest first, by the number of the target.

    Parameters and errors are those of `open_backgrounds`.
    """
    runs = open_backgrounds(results_dir, obs_ids).contributing.sel(role="spectrum")
    return {int(obs_id): row[row >= 0].tolist() for obs_id, row in zip(runs.obs_id.values, runs.values, strict=True)}


def _dataset(store: Rows, rows: NDArray) -> xr.Dataset:
    dataset = xr.open_zarr(
        store.path, consolidated=True, chunks={"row": LAZY_CHUNK}, drop_variables=["integers", "numbers", "texts"]
    )
    if not np.array_equal(rows, np.arange(dataset.sizes["row"])):
        dataset = dataset.isel(row=rows)
    edges, field = _edges_of(store.layout)
    coords: dict[str, Any] = axis_coords(edges) | ({} if field is None else axis_coords(field))
    coords |= {"obs_id": store.table["obs_id"][rows], "role": list(ROLES), "file": list(FILES)}
    # how it is packed here is no matter to a copy of it
    dataset = dataset.drop_encoding().rename(row="obs_id").assign(_scalars(store.table, rows)).assign_coords(coords)
    dataset.attrs = {"title": dataset.attrs["title"], "jobs": attributes_of(store.path)["jobs"]}
    return dataset


def _scalars(table: Mapping[str, NDArray], rows: NDArray) -> dict[str, tuple]:
    """Variables of the scalars; those of roles and of files have a dimension more."""
    found: dict[str, tuple] = {}
    for name, (unit, meaning) in SCALARS.items():
        parts = [key for key in table if key.startswith(f"{name}.")]
        values = np.stack([table[key][rows] for key in parts or [name]], axis=1)
        attrs = {"units": unit, "long_name": meaning}
        if name in TIMES:  # xarray gives them their unit
            values, attrs = values.astype("datetime64[ns]"), {"long_name": meaning}
        if parts:
            found[name] = (("obs_id", "role" if parts[0].endswith(ROLES[0]) else "file"), values, attrs)
        else:
            found[name] = ("obs_id", values[:, 0], attrs)
    return found


# -- the driver ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A target in a store of results: the store, and its row."""

    store: Rows
    row: int

    def __getitem__(self, name: str) -> Any:
        """A scalar of it."""
        return self.store.table[name][self.row]


class Backgrounds:
    """Results below a directory, as the driver of a job sees them; other jobs may write there at the same time.

    Parameters
    ----------
    directory
        ``results_dir``.
    edges, field
        Bins of the job.
    job
        Name of the job, and what is recorded of it.
    obs_ids
        Its targets, of which all that is there is looked at: what is damaged is made again.
    """

    def __init__(
        self,
        directory: Path,
        edges: Edges,
        field: FieldEdges | None,
        job: tuple[str, dict],
        obs_ids: Iterable[int] = (),
    ) -> None:
        self.directory, self._layout, self._job = Path(os.path.abspath(directory)), layout_of(edges, field), job
        self._unfolded = 0
        with locked(self.directory):
            self._store = self._fold()
            targets = np.fromiter(obs_ids, dtype=np.int64)
            for store in self._stores():
                self._drop_damaged(store, targets)
        self._earlier = self._rows()

    @property
    def place(self) -> Place:
        """Where the tasks of this job write their parts."""
        return Place(str(self.directory / PARTS), self._layout, self._job[0])

    def marks(self, targets: Iterable[Target]) -> dict[int, Mark]:
        """Digest and files of the backgrounds that earlier jobs have made of targets, at the same place."""
        table, found = self._store.table, {}
        for target in targets:
            row = self._earlier.get(target.obs_id)
            if row is not None and table["digest"][row] and table["output"][row] == target.output:
                sizes, times = ([int(table[f"{what}.{file}"][row]) for file in FILES] for what in _STATE)
                tail = int(table["tail_size"][row]), int(table["tail_digest"][row])
                found[target.obs_id] = (str(table["digest"][row]), tuple(zip(sizes, times, strict=True)), tail)
        return found

    def result(self, obs_id: int) -> Result:
        """What is recorded of a background that would come out unchanged."""
        entry = Entry(self._store, self._earlier[obs_id])
        return Result(
            obs_id,
            "unchanged",
            entry["reason"],
            int(entry["n_runs.spectrum"]),
            float(entry["livetime"]) / 3600,
            int(entry["n_events"]),
            entry["output"],
            entry["hdu"],
            float(entry["threshold"]),
            {int(run): reason for run, reason in json.loads(entry["failed_runs"] or "{}").items()},
        )

    def _rows(self) -> dict[int, int]:
        """Rows of the store that count, by run number."""
        rows = self._store.latest()
        return dict(zip(self._store.table["obs_id"][rows].tolist(), rows.tolist(), strict=True))

    def written(self, n: int) -> None:
        """Tasks have written ``n`` backgrounds more: they are folded when there are enough."""
        self._unfolded += n
        if self._unfolded >= FOLD:
            self._unfolded = 0
            try:
                with locked(self.directory):
                    self._fold()
            except ArchiveError as error:  # the parts are kept, and folded at the end
                log.warning("%s", error)

    def _fold(self) -> Rows:
        """Parts into the store of this job, which is the one of the directory from now on; within the lock."""
        store = _store_at(self.directory, self._layout)
        store.fold(self.directory / PARTS)
        name, about = self._job
        change_attributes(store.path, jobs={**attributes_of(store.path).get("jobs", {}), name: about})
        return store

    def _drop_damaged(self, store: Rows, obs_ids: NDArray) -> None:
        """Forget backgrounds of which something is damaged or lost: they are not unchanged, but written again.

        Looked at is what this job will read or write to: all of its targets, and of the others what goes into the
        provenance.
        """
        clear_leftovers(store.path)
        last = store.last()
        rows = last[np.isin(store.table["obs_id"][last], obs_ids) | (last // SHARD == last.max(initial=0) // SHARD)]
        for file, lost in store.drop_damaged(self.directory / PARTS, rows, EXPORTED).items():
            log.warning(
                "%s is damaged or lost: what it had of the backgrounds of %d runs (%s%s) is made again by the jobs "
                "that ask for them",
                file,
                lost.size,
                ", ".join(map(str, lost[:10])),
                ", ..." * (lost.size > 10),
            )

    def record(self, results: Sequence[Result]) -> None:
        """Record what became of all targets of the job; the caller holds the lock of the directory.

        The background of an earlier job stays what it is if this job could not make it again.
        """
        self._store, left = self._fold(), list(results)
        for store in self._stores():
            rows = store.latest()
            rows = rows[store.table["digest"][rows] != ""]
            place = dict(zip(store.table["obs_id"][rows].tolist(), rows.tolist(), strict=True))
            here = [r for r in left if r.obs_id in place]
            since = [{"job": self._job[0], "reason": r.reason} if r.status == "failed" else None for r in here]
            columns = {
                "status": [r.status for r in here],
                "failed_since": ["" if failure is None else json.dumps(failure) for failure in since],
            }
            store.update(np.array([place[r.obs_id] for r in here], dtype=np.int64), columns)
            left = [r for r in left if r.obs_id not in place]
        if left:
            self._store.append([self._failures(left)])
        self._forget_files_that_are_gone()
        self._remove_replaced_stores()
        self._store.tidy()
        self._forget_jobs()

    def _failures(self, results: Sequence[Result]) -> dict[str, NDArray]:
        """Items of targets that never had a background."""
        n = len(results)
        return {
            "obs_id": np.array([r.obs_id for r in results]),
            "written": np.full(n, time.time_ns()),
            "status": np.array([r.status for r in results]),
            "reason": np.array([r.reason for r in results], dtype=object),
            "job": np.full(n, self._job[0]),
            "failed_runs": np.array([json.dumps(r.failed_runs) for r in results], dtype=object),
        }

    def _forget_files_that_are_gone(self) -> None:
        """What was written and is not there any more is no background."""
        table, rows = self._store.table, self._store.latest()
        gone = [row for row in rows.tolist() if table["digest"][row] and not os.path.exists(table["output"][row])]
        self._store.update(np.array(gone, dtype=np.int64), {"digest": ""})

    def _remove_replaced_stores(self) -> None:
        current = self._rows()
        for store in self._stores()[1:]:
            if current.keys() >= set(store.table["obs_id"][store.latest()].tolist()):
                log.info("%s is removed: all of its runs have other backgrounds by now", store.path)
                shutil.rmtree(store.path)

    def _forget_jobs(self) -> None:
        used = {self._job[0]}
        for store in self._stores():
            table, rows = store.table, store.latest()
            used |= {*table["job"][rows], *(json.loads(text)["job"] for text in table["failed_since"][rows] if text)}
        change_attributes(self._store.path, jobs={name: job for name, job in self.jobs().items() if name in used})

    def _stores(self) -> list[Rows]:
        """The store of the job, and those of other bins, without those of other versions."""
        found = [self._store]
        for path in sorted(self.directory.glob(f"{Path(NAME).stem}-*.zarr")):
            try:
                found.append(Rows(path))
            except (ArchiveError, OSError, ValueError) as error:
                log.info("%s", error)
        return found

    # -- what is exported --------------------------------------------------------------------------------------

    def entries(self) -> dict[int, Entry]:
        """The latest of each target in all stores of the directory, by run number."""
        latest: dict[int, Entry] = {}
        for store in self._stores():
            rows = store.latest()
            for obs_id, row in zip(store.table["obs_id"][rows].tolist(), rows.tolist(), strict=True):
                entry = Entry(store, row)
                if obs_id not in latest or latest[obs_id]["written"] < entry["written"]:
                    latest[obs_id] = entry
        return dict(sorted(latest.items()))

    def jobs(self) -> dict[str, dict]:
        """What is recorded of jobs, by their names."""
        return {
            name: job for store in self._stores() for name, job in attributes_of(store.path).get("jobs", {}).items()
        }


_STATE = ("file_size", "file_time")


def arrays_of(entries: Iterable[Entry], names: Sequence[str]) -> Iterator[tuple[Entry, dict[str, NDArray]]]:
    """Large arrays of entries, some hundreds at a time."""
    by_store: dict[Path, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: entry.row):
        by_store.setdefault(entry.store.path, []).append(entry)
    for group in by_store.values():
        for first in range(0, len(group), FOLD):
            some = group[first : first + FOLD]
            rows = np.array([entry.row for entry in some])
            values = {name: some[0].store.values(name, rows) for name in names}
            for i, entry in enumerate(some):
                yield entry, {name: value[i] for name, value in values.items()}


def _store_at(directory: Path, layout: Layout) -> Rows:
    """The store of a directory with this layout; one with another layout makes room for it."""
    path = directory / NAME
    if path.exists():
        try:
            store = Rows(path)
        except (ArchiveError, OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error.__cause__ or error, OSError) and not isinstance(error, FileNotFoundError):
                raise  # nothing is damaged: it cannot be read now
            aside = directory / f"unreadable-{NAME}"
            shutil.rmtree(aside, ignore_errors=True)
            log.warning("%s cannot be read (%s): it is %s now", path, error, aside.name)
            os.rename(path, aside)
        else:
            if store.layout.digest == layout.digest:
                return store
            store.fold(directory / PARTS)
            aside = _aside(path, store.layout)
            what = "bins than this job" if store.layout.axes != layout.axes else "columns than this program writes"
            log.warning("%s has other %s: its results are kept in %s", store.path, what, aside.name)
            os.rename(path, aside)
    aside = _aside(path, layout)
    if aside.exists():
        os.rename(aside, path)
        return Rows(path)
    return Rows.create(path, layout, "Background models of a gamma-ray archive, and what they were made of")


def _aside(path: Path, layout: Layout) -> Path:
    return path.with_name(f"{path.stem}-{layout.digest}.zarr")
