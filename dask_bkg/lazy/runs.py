"""Histograms of many runs, lazily: from their event files, or from the run store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dask_bkg import schema
from dask_bkg.binning import Edges, FieldEdges, dims_of
from dask_bkg.dl3.read import RunFile
from dask_bkg.lazy.layers import Blocks, Each, Layers, batch_size, batches, block_size
from dask_bkg.reduction.reduce import reduce_block
from dask_bkg.sky.exclusion import SkyRegions
from dask_bkg.store.load import load_field, load_histograms


def reduce_runs(
    runs: Sequence[RunFile],
    edges: Edges,
    regions: SkyRegions | None = None,
    *,
    method: str = "geometry",
    reach: str = "disc",
    batch: int | None = None,
) -> xr.Dataset:
    """Counts and exposure of many runs from their event files, lazily; nothing is kept.

    Parameters
    ----------
    runs
        Where their events are.
    edges, regions, method, reach
        As for `dask_bkg.reduce_run`.
    batch
        Runs a task; by default `dask_bkg.lazy.layers.batch_size`.

    Returns
    -------
    dataset
        ``counts`` and ``exposure`` [s TeV sr] with dimensions ``(obs_id, energy, offset)``, dask arrays of one chunk
        a batch; the per-run numbers, and ``error`` (why a run could not be used), as lazy coordinates.
    """
    parts, layers = batches(list(runs), batch or batch_size(len(runs))), Layers()
    shared = layers.share("exclusion", regions)
    work = layers.map(
        "reduce-runs", reduce_block, runs=Each(parts), edges=edges, regions=shared, method=method, reach=reach
    )
    sizes = tuple(len(part) for part in parts)
    numbers = {**dict.fromkeys(schema.RUN_NUMBERS, float), **dict.fromkeys(schema.RUN_TEXTS, object)}
    coords = {name: ("obs_id", layers.variable(work, name, (sizes,), dtype)) for name, dtype in numbers.items()}
    obs_id = np.array([run.obs_id for run in runs], dtype=np.int64)
    return _dataset(layers, work, sizes, edges, {"obs_id": obs_id, **coords})


def load_runs(
    path: str,
    view: str,
    rows: NDArray,
    table: Mapping[str, NDArray],
    edges: Edges | FieldEdges,
    *,
    keys: NDArray | None = None,
    block: int | None = None,
) -> xr.Dataset:
    """Counts and exposure of many runs from a run store, lazily, in rings or in pixels of the field.

    Parameters
    ----------
    path, view, rows
        The store, which of its views, and the rows of the runs, shape ``(runs,)``.
    table
        Per-run numbers and texts, arrays of shape ``(runs,)``, with ``obs_id``; they become coordinates.
    edges
        Bin edges; those of the view, or sums of them.
    keys
        What the rows hold, of `dask_bkg.store.store.RunStore.keys`: a row that another job changes meanwhile is an
        error then.
    block
        Runs a task; by default `dask_bkg.lazy.layers.block_size`.

    Returns
    -------
    dataset
        As of `reduce_runs`, with the per-run coordinates in memory.  In field pixels ``counts`` have the dimensions
        ``(obs_id, energy, fov_lat, fov_lon)``, and the exposure, which is the same for all energies but for their
        width, has ``(obs_id, fov_lat, fov_lon)`` [s sr].
    """
    size, layers = block or block_size(len(rows)), Layers()
    parts = batches(np.asarray(rows), size)
    held = [None] * len(parts) if keys is None else batches(np.asarray(keys), size)
    work = layers.map("load-runs", _load, rows=Each(parts), keys=Each(held), path=str(path), view=view, edges=edges)
    coords = {name: ("obs_id", np.asarray(column)) for name, column in table.items()}
    return _dataset(layers, work, tuple(len(part) for part in parts), edges, coords)


class _Histograms(NamedTuple):
    counts: NDArray
    exposure: NDArray


def _load(path: str, view: str, rows: NDArray, edges: Edges | FieldEdges, keys: NDArray | None) -> _Histograms:
    if isinstance(edges, Edges):
        return _Histograms(*load_histograms(path, view, rows, edges, keys))
    counts, exposure = load_field(path, view, rows, edges, keys)
    # few events a pixel: an eighth of the memory, for as long as stacks are made of them
    return _Histograms(counts.astype(np.min_scalar_type(int(counts.max(initial=0)))), exposure)


def _dataset(
    layers: Layers, work: Blocks, sizes: tuple[int, ...], edges: Edges | FieldEdges, coords: Mapping
) -> xr.Dataset:
    """The histograms of the blocks of a layer, with coordinates."""
    length, histograms = dict(zip(edges.dims, edges.shape, strict=True)), {}
    for name, dims in dims_of(edges).items():
        chunks = (sizes, *((length[dim],) for dim in dims))
        dtype = np.uint32 if name == "counts" and isinstance(edges, FieldEdges) else float
        histograms[name] = ("obs_id", *dims), layers.variable(work, name, chunks, dtype)
    return schema.with_units(xr.Dataset(histograms, coords={**coords, **schema.axis_coords(edges)}))
