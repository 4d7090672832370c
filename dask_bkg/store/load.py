"""Run histograms out of the store: as plain arrays for a task, as a lazy dataset for people."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from dask_bkg import schema
from dask_bkg.binning import AXES, Edges, FieldEdges, sum_bins
from dask_bkg.errors import ArchiveError
from dask_bkg.reduction.reduce import solid_angles
from dask_bkg.schema import RUN_NUMBERS, UNITS
from dask_bkg.store import layout
from dask_bkg.store.rows import CHUNK, DTYPES, SHARD, Rows
from dask_bkg.store.table import Table


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
        If a file is damaged or lost, or a row is not there any more or does not hold what ``keys`` say.
    ValueError
        If the bins that are wanted are no sums of those of the view.
    """
    view, names = layout.view_of(Path(path), view_name), ("counts", "exposed_fraction")
    ontime, counts, fraction = _read(path, view_name, np.asarray(rows, dtype=np.int64), names, keys)
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
    view, names = layout.view_of(Path(path), view_name), ("field_counts", "field_exposed_fraction")
    pixels = np.asarray(view.pixels)
    ontime, counts, fraction = _read(path, view_name, np.asarray(rows, dtype=np.int64), names, keys)
    # energies first, as there are more of them than are wanted: what comes after has less to do
    counts = sum_bins(counts, view.edges.energy, edges.energy, 1).astype(float)
    solid_angle = solid_angles(view)["field_solid_angle"] * fraction
    for axis in (-2, -1):
        counts = sum_bins(counts, pixels, edges.fov, counts.ndim + axis)
        solid_angle = sum_bins(solid_angle, pixels, edges.fov, solid_angle.ndim + axis)
    return counts, ontime[:, None, None] * solid_angle


def _read(path: str, view: str, rows: NDArray, names: Sequence[str], keys: ArrayLike | None) -> list[NDArray]:
    """Ontime and some histograms of rows; `ArchiveError` if a row does not hold what it should."""
    if rows.size and rows.min() < 0:
        raise ValueError("a row of -1: only runs that `RunStore.find` has found can be loaded")
    if keys is not None and np.shape(keys) != rows.shape:
        raise ValueError(f"{np.size(keys)} keys for {rows.size} rows: one for each, from `RunStore.keys`")
    with layout.disk_errors(path):
        store = Rows(layout.place_of(path, view), kinds=("integers", "numbers"))
        _check_keys(path, store, rows, keys)
        found = [store.table["ontime"][rows], *(store.values(name, rows) for name in names)]
        lost = [name for name, values in zip(("numbers", *names), found, strict=True) if _any_fill(values)]
        if lost:
            # another job may have moved the rows meanwhile
            store.read()
            _check_keys(path, store, rows, keys)
            shards = sorted({int(row) // SHARD for row in rows})
            raise ArchiveError(
                f"a file of {layout.place_of(path, view) / lost[0]} is lost, of one of the shards {shards}: start "
                "again; the next job reads the runs in it again."
            )
    return found


def _any_fill(values: NDArray) -> bool:
    """Whether some row has the fill value, and so was never written."""
    first = values.reshape(len(values), -1)[:, :1] if values.size else values
    return bool((np.isnan(first) if values.dtype.kind == "f" else first == np.iinfo(values.dtype).max).any())


def _check_keys(path: str, store: Rows, rows: NDArray, keys: ArrayLike | None) -> None:
    there = rows < store.table["obs_id"].size
    there[there] = store.table["obs_id"][rows[there]] >= 0
    same = there.copy()
    if keys is not None:
        same[there] = store.table["key"][rows[there]].astype(np.uint64) == np.asarray(keys, dtype=np.uint64)[there]
    if changed := int((~same).sum()):
        raise ArchiveError(
            f"another job has changed runs of the store of run histograms {path} meanwhile, {changed} of the "
            f"{rows.size} that are needed here: run it again, when that job has ended."
        )


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
        (``obs_id, energy, fov_lat, fov_lon``) and ``field_exposed_fraction``, which are all that a view of pixels
        (``field-...``) has; all of them dask arrays in the chunks of the store; edges and solid angles of the bins,
        and of each run what is known of it, as coordinates.  Runs in the order of ``obs_id``, only those that can be
        used.  What an update changes is seen after opening again.

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
    ...         store.record(update_block(work, None, [store.fine]))
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
    table = Table(path, ["", view])
    rows = {obs_id: row for obs_id in sorted(table.run_row) if (row := table.find(view, obs_id)) >= 0}
    columns = table.columns()
    chosen = np.isin(columns["obs_id"], list(rows))
    known: dict[str, Any] = {
        name: ("obs_id", columns[name][chosen], {"units": UNITS[name]} if name in UNITS else {})
        for name in ("obs_id", *RUN_NUMBERS, *(name for name in layout.TEXTS if name != "error"))
    }
    order = np.array(list(rows.values()), dtype=np.int64)
    known["exclusion"] = ("obs_id", table.views[view].table["exclusion"][order])
    dataset = xr.open_zarr(layout.place_of(path, view), chunks={"row": CHUNK}, drop_variables=[*DTYPES])
    # rows at the beginning, in their order: nothing is rearranged
    first = np.array_equal(order, np.arange(order.size))
    dataset = dataset.isel(row=slice(order.size) if first else order)
    dataset = dataset.drop_encoding().rename(row="obs_id").assign_attrs(layout.attributes_of(path))
    dataset = dataset.assign_coords(layout.coordinates(views[view])).assign_coords(known)
    return schema.check(_with_exposure(dataset)) if "counts" in dataset else dataset


def _with_exposure(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset with its exposure [s TeV sr] in place of the exposed fraction of the rings."""
    width = dataset.energy_max - dataset.energy_min
    exposure = (dataset.ontime * width) * (dataset.solid_angle * dataset.exposed_fraction)
    dataset["exposure"] = exposure.transpose("obs_id", *AXES).assign_attrs(units=UNITS["exposure"])
    return dataset
