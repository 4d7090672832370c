"""Run histograms out of the store: as plain arrays for a task, as a lazy dataset for people."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from dask_bkg import schema
from dask_bkg.binning import AXES, Edges, FieldEdges, sum_bins
from dask_bkg.errors import ArchiveError
from dask_bkg.reduction.reduce import solid_angles
from dask_bkg.schema import RUN_NUMBERS, RUN_TEXTS, UNITS
from dask_bkg.store import layout
from dask_bkg.store.changes import group_blocks
from dask_bkg.store.table import Table
from dask_bkg.store.update import read_block


def load_histograms(
    path: str, view_name: str, rows: ArrayLike, edges: Edges, keys: ArrayLike | None = None
) -> tuple[NDArray, NDArray]:
    """Counts and exposure of runs on given axes, from the rings of a view; eager and picklable, the task of a graph.

    Reads the chunks that hold the rows, nothing else.

    Parameters
    ----------
    path
        The store.
    view_name
        Name of the view, from `dask_bkg.store.store.RunStore.view_for`.
    rows
        Rows from `dask_bkg.store.store.RunStore.find`, shape ``(runs,)``.
    edges
        Axes that are wanted, of which the view's bins are a part.
    keys
        What the rows must hold (`dask_bkg.store.store.RunStore.keys`), shape ``(runs,)``; None: whatever they do.

    Returns
    -------
    counts, exposure
        Events, and exposure [s TeV sr], float64, shape ``(runs, energy, offset)``.

    Raises
    ------
    ArchiveError
        If a chunk is damaged or lost, or another job is replacing one of the rows, or has done so since ``keys``.
    ValueError
        If the bins that are wanted are no sums of those of the view.
    """
    rows = np.asarray(rows, dtype=np.int64)
    view = layout.view_of(Path(path), view_name)
    with _steady(path, view_name, rows, keys):
        ontime = _ontime(path, rows)
        counts, fraction = (_rows_of(path, view_name, name, rows) for name in ("counts", "exposed_fraction"))
    counts = sum_bins(counts.astype(float), view.edges.energy, edges.energy, 1)
    counts = sum_bins(counts, view.edges.offset, edges.offset, 2)
    solid_angle = sum_bins(solid_angles(view)["solid_angle"] * fraction, view.edges.offset, edges.offset, 1)
    width = ontime[:, None] * np.diff(edges.energy)
    return counts, width[:, :, None] * solid_angle[:, None, :]


def load_field(
    path: str, view_name: str, rows: ArrayLike, edges: FieldEdges, keys: ArrayLike | None = None
) -> tuple[NDArray, NDArray]:
    """Counts and exposure of runs on given axes, from the field pixels of a view; eager and picklable.

    Parameters are those of `load_histograms`, with a view of `dask_bkg.store.store.RunStore.field_view_for`.

    Returns
    -------
    counts
        Events, float64, shape ``(runs, energy, fov_lat, fov_lon)``.
    exposure
        Ontime x solid angle x exposed fraction [s sr], the same for all energies, shape ``(runs, fov_lat, fov_lon)``.

    Raises
    ------
    ArchiveError, ValueError
        As `load_histograms`.
    """
    rows = np.asarray(rows, dtype=np.int64)
    view = layout.view_of(Path(path), view_name)
    pixels = np.asarray(view.pixels)
    with _steady(path, view_name, rows, keys):
        ontime = _ontime(path, rows)
        names = "field_counts", "field_exposed_fraction"
        counts, fraction = (_rows_of(path, view_name, name, rows) for name in names)
    # energies first, as there are more of them than are wanted: what comes after has less to do
    counts = sum_bins(counts, view.edges.energy, edges.energy, 1).astype(float)
    solid_angle = solid_angles(view)["field_solid_angle"] * fraction
    for axis in (-2, -1):
        counts = sum_bins(counts, pixels, edges.fov, counts.ndim + axis)
        solid_angle = sum_bins(solid_angle, pixels, edges.fov, solid_angle.ndim + axis)
    return counts, ontime[:, None, None] * solid_angle


def _ontime(path: str, rows: NDArray) -> NDArray:
    ontime = _column(path, "", "ontime", rows)
    if not np.isfinite(ontime).all():
        raise layout.damaged(path, "", "ontime", 0, "the file is lost")
    return ontime


@contextmanager
def _steady(path: str, view: str, rows: NDArray, keys: ArrayLike | None = None) -> Iterator[None]:
    """`ArchiveError` if rows are void or hold something else, or become so while they are read."""
    if rows.size and rows.min() < 0:
        raise ValueError("a row of -1: only runs that `RunStore.find` has found can be loaded")
    before = _column(path, view, "key", rows)
    if keys is not None:
        _check_keys(path, before, np.asarray(keys, dtype=np.uint64))
    if (before == 0).any():
        raise ArchiveError(
            f"another job is replacing runs in the store of run histograms {path}: start again when it has ended."
        )
    yield
    _check_keys(path, _column(path, view, "key", rows), before)


def _check_keys(path: str, found: NDArray, planned: NDArray) -> None:
    if found.shape != planned.shape:
        raise ValueError(f"{planned.size} keys for {found.size} rows: one for each, from `RunStore.keys`")
    if changed := int((found != planned).sum()):
        raise ArchiveError(
            f"another job has changed runs of the store of run histograms {path} meanwhile, {changed} of the "
            f"{found.size} that are needed here: run it again, when that job has ended."
        )


def _column(path: str, view: str, name: str, rows: NDArray) -> NDArray:
    """Values of a column of the table at some rows."""
    if not rows.size:
        return np.empty(0)
    first, last, array = int(rows.min()), int(rows.max()), layout.open_array(path, view, name)
    if last >= array.shape[0]:
        raise ArchiveError(
            f"another job has replaced the store of run histograms {path} meanwhile, by one of fewer runs: run it "
            "again, when that job has ended."
        )
    return np.asarray(array[first : last + 1])[rows - first]


def _rows_of(path: str, view: str, name: str, rows: NDArray) -> NDArray:
    """Histograms of some rows, in their order; each block is read once."""
    array = layout.open_array(path, view, name)
    values = np.empty((rows.size, *array.shape[1:]), array.dtype)
    size = array.chunks[0]
    for block, places in group_blocks(rows, size).items():
        values[places] = read_block(path, view, name, block)[rows[places] - block * size]
        first = values[places].reshape(len(places), -1)[:, 0]
        if (np.isnan(first) if array.dtype.kind == "f" else first == layout.NEVER_WRITTEN["uint32"]).any():
            raise layout.damaged(path, view, name, block, "the file is lost")
    return values


def open_runs(path: str | os.PathLike[str], view: str = "") -> xr.Dataset:
    """Run histograms of a store, lazily: what an archive of runs looks like, in a notebook.

    Parameters
    ----------
    path
        The store.
    view
        Name of one of its views (``dask-bkg info`` lists them); the empty name is the fine one.

    Returns
    -------
    runs
        ``counts`` and ``exposure`` [s TeV sr] (``obs_id, energy, offset``), in the fine view ``field_counts``
        (``obs_id, energy, fov_lat, fov_lon``) and ``field_exposed_fraction``, all of them dask arrays in the blocks
        of the store; edges and solid angles of the bins, and of each run what is known of it, as coordinates.  Runs
        in the order of ``obs_id``, only those that can be used.  What an update changes is seen after opening again.

    Raises
    ------
    ArchiveError
        If there is no store, or it has no such view.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from dask_bkg.store.store import RunStore
    >>> from dask_bkg.store.update import update_block
    >>> from dask_bkg.binning import fine_view
    >>> from dask_bkg.dl3.read import RunFile
    >>> from dask_bkg.simulate import simulate_archive
    >>> directory = Path(tempfile.mkdtemp())
    >>> truth = simulate_archive(directory, runs=3, events=1000)
    >>> files = [RunFile(run.obs_id, str(directory / "data" / f"run_{run.obs_id:06d}.fits.gz")) for run in truth.runs]
    >>> store = RunStore.open_or_create(directory / "runs.zarr", fine_view())
    >>> with store.writing():   # what `dask-bkg reduce` does, with tasks on a cluster
    ...     for work in store.plan_update(files, [store.fine], None):
    ...         store.record(update_block(str(store.path), work, None, [store.fine]))
    >>> runs = open_runs(directory / "runs.zarr")
    >>> runs.counts.dims, runs.obs_id.values.tolist()
    (('obs_id', 'energy', 'offset'), [64001, 64002, 64003])
    >>> rate = runs.counts.sum("obs_id") / runs.exposure.sum("obs_id")   # of all runs; .compute() reads them
    """
    path = Path(os.path.abspath(path))
    layout.attributes_of(path)
    views = layout.views_of(path)
    if view not in views:
        raise ArchiveError(f"{path} has no view {view!r}; it has {', '.join(map(repr, views))}")
    table = Table.read(path, [view])
    dataset = xr.open_zarr(path, group=view or None, chunks={})
    of_runs = ("obs_id", *table.columns, *layout.VIEW_TEXTS)
    dataset = dataset.drop_vars(["key", *(name for name in of_runs if name in dataset.variables)])
    rows = np.flatnonzero(table.usable(view)[: dataset.sizes["obs_id"]])
    rows = rows[np.argsort(table.obs_id[rows])]
    texts = [name for name in RUN_TEXTS if name != "error"]
    known: dict[str, Any] = {
        name: ("obs_id", table.columns[name][rows], {"units": UNITS[name]} if name in UNITS else {})
        for name in (*RUN_NUMBERS, *texts, "fingerprint")
    }
    known["exclusion"] = ("obs_id", table.exclusions[view]["exclusion"][rows])
    axes = layout.coordinates(views[view])
    dataset = _take(dataset, rows).assign_coords(axes).assign_coords(obs_id=table.obs_id[rows], **known)
    return schema.check(_with_exposure(dataset))


def _take(dataset: xr.Dataset, rows: NDArray) -> xr.Dataset:
    """Some rows of a dataset; of all, in their order, nothing is rearranged."""
    return dataset if np.array_equal(rows, np.arange(dataset.sizes["obs_id"])) else dataset.isel(obs_id=rows)


def _with_exposure(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset with its exposure [s TeV sr] in place of the exposed fraction of the rings."""
    width = dataset.energy_max - dataset.energy_min
    exposure = (dataset.ontime * width) * (dataset.solid_angle * dataset.exposed_fraction)
    dataset["exposure"] = exposure.transpose("obs_id", *AXES).assign_attrs(units=UNITS["exposure"])
    return dataset
