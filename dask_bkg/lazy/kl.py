"""The Kullback-Leibler divergences of an archive as a matrix of blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import xarray as xr
from dask.base import is_dask_collection

from dask_bkg import schema, similarity
from dask_bkg.binning import AXES
from dask_bkg.lazy.layers import Layers, block_size, each
from dask_bkg.similarity import ShapeSettings, flat_bins


class Shapes(NamedTuple):
    """Layers with the shapes of targets and of runs, and the sizes of their blocks."""

    targets: str
    runs: str
    rows: tuple[int, ...]
    columns: tuple[int, ...]


def kl_matrix(
    runs: xr.Dataset,
    runs_ref: xr.Dataset | None = None,
    *,
    settings: ShapeSettings | None = None,
    block: int | None = None,
) -> xr.DataArray:
    """Kullback-Leibler divergence of every run from every other, lazily.

    Parameters
    ----------
    runs
        Run histograms (of `dask_bkg.open_runs` or `dask_bkg.reduce_runs`): the runs P that are to be described.
    runs_ref
        The runs Q that may contribute; the same ones by default.
    settings
        How shapes are compared, see `dask_bkg.similarity`; the default measures shape, not statistics.
    block
        Runs a block in both directions; by default `dask_bkg.lazy.layers.block_size`, or the chunks of ``runs`` where
        they are larger.

    Returns
    -------
    kl
        Dimensions ``(obs_id, obs_id_ref)``, chunked in both; ``kl[i, j]`` is KL(i || j), and not symmetric.

    Examples
    --------
    >>> edges = schema.Edges(np.geomspace(0.5, 8, 5), np.linspace(0, 2, 3))
    >>> counts = np.random.default_rng(1).poisson(50, (3, 4, 2))
    >>> axes = ("obs_id", "energy", "offset")
    >>> coords = {"obs_id": [1, 2, 3], "ontime": ("obs_id", [1.0, 1.0, 1.0]), **schema.axis_coords(edges)}
    >>> runs = xr.Dataset({"counts": (axes, counts), "exposure": (axes, np.ones(counts.shape))}, coords)
    >>> kl_matrix(runs).compute().shape
    (3, 3)
    """
    settings = settings or ShapeSettings()
    targets = _chunked(runs, block)
    refs = targets if runs_ref is None else _chunked(runs_ref, block)
    layers = Layers(*(part[name].data for part in (targets, refs) for name in (*schema.HISTOGRAMS, "ontime")))
    shapes = add_shapes(layers, targets, refs, settings)
    name = layers.add("kl-divergence", pairs(similarity.kl_block, shapes), shapes.targets, shapes.runs)
    kl = layers.array(name, (shapes.rows, shapes.columns), float)
    return xr.DataArray(
        kl,
        dims=("obs_id", "obs_id_ref"),
        coords={"obs_id": targets["obs_id"].values, "obs_id_ref": refs["obs_id"].values},
        name="kl",
        attrs={"long_name": "Kullback-Leibler divergence", "method": settings.method},
    )


def _chunked(runs: xr.Dataset, block: int | None) -> xr.Dataset:
    """Histograms and ontime as dask arrays, chunked along ``obs_id`` alone; nothing else, and edges in memory."""
    chunks, n_runs = schema.check(runs)["counts"].chunks, runs.sizes["obs_id"]
    # the chunks of a store are made for reading: as blocks of a matrix they would be too many
    size = block or max(block_size(n_runs), *(chunks[0] if chunks else (1,)))
    names = (*schema.HISTOGRAMS, "ontime")
    # the variables themselves: a whole dataset would be chunked with its edges
    lazy = {name: runs[name].variable.chunk({"obs_id": size, **dict.fromkeys(AXES, -1)}) for name in names}
    edges = {name: runs[name].variable for name in schema.axis_coords(schema.edges_of(runs))}
    return xr.Dataset(lazy, coords={"obs_id": runs["obs_id"].values, **edges})


def add_shapes(layers: Layers, targets: xr.Dataset, runs: xr.Dataset, settings: ShapeSettings) -> Shapes:
    """Add the layers of the shapes of targets and runs, on the family of shapes of the runs."""
    rows, columns = targets["counts"].data.chunks[0], runs["counts"].data.chunks[0]
    of_runs = _add_bins(layers, runs, settings)
    of_targets = of_runs if targets is runs else _add_bins(layers, targets, settings, "-of-targets")
    prior = _add_prior(layers, of_runs, len(columns), settings)
    as_targets, as_runs = partial(_as_targets, settings=settings), partial(_as_references, settings=settings)
    return Shapes(
        layers.add("shape-of-targets", each(as_targets, of_targets, len(rows), prior), of_targets, prior),
        layers.add("shape-of-runs", each(as_runs, of_runs, len(columns), prior), of_runs, prior),
        rows,
        columns,
    )


def _add_prior(layers: Layers, bins: str, n_blocks: int, settings: ShapeSettings) -> str:
    """Add the layers of the archive's family of shapes: the mean of all runs, then how they scatter about it."""
    sums = layers.add("mean-sums", each(_mean_sums, bins, n_blocks), bins)
    sums_keys = [(sums, j) for j in range(n_blocks)]
    mean = layers.add("mean-shape", lambda name: {name: (_mean_shape, *sums_keys)}, sums)
    scatter = layers.add(
        "family-sums", each(partial(_family_sums, settings=settings), bins, n_blocks, mean), bins, mean
    )
    keys = [(scatter, j) for j in range(n_blocks)]
    return layers.add("family", lambda name: {name: (partial(_family, settings=settings), *keys)}, scatter)


def pairs(function: Callable, shapes: Shapes) -> Callable[[str], dict]:
    """Tasks of a layer: the function of each pair of blocks of shapes."""
    return lambda name: {
        (name, i, j): (function, (shapes.targets, i), (shapes.runs, j))
        for i in range(len(shapes.rows))
        for j in range(len(shapes.columns))
    }


def bounds(runs: xr.Dataset) -> list[tuple[int, int]]:
    """First and last (not included) run of each block."""
    return list(pairwise(np.cumsum([0, *runs["counts"].data.chunks[0]]).tolist()))


def _add_bins(layers: Layers, runs: xr.Dataset, settings: ShapeSettings, suffix: str = "") -> str:
    """Counts and exposed fraction, flat: one task a block of runs."""
    counts, exposure = (runs[name].data.name for name in schema.HISTOGRAMS)
    ontime = runs["ontime"].data
    lazy = is_dask_collection(ontime)
    bins = partial(flat_bins, edges=schema.edges_of(runs), settings=settings)
    return layers.add(
        f"flat-bins{suffix}",
        lambda name: {
            (name, i): (bins, (counts, i, 0, 0), (exposure, i, 0, 0), (ontime.name, i) if lazy else ontime[a:b])
            for i, (a, b) in enumerate(bounds(runs))
        },
        counts,
        exposure,
        *([ontime.name] if lazy else []),
    )


def _mean_sums(bins):
    return similarity.prior_sums(bins.counts, bins.fraction)


def _mean_shape(*sums):
    return similarity.prior_shape(*similarity.add_sums(sums))


def _family_sums(bins, mean, settings: ShapeSettings):
    return similarity.family_sums(bins.counts, bins.fraction, mean, settings)


def _family(*sums, settings: ShapeSettings):
    return similarity.prior_family(similarity.add_sums(sums), settings)


def _as_targets(bins, prior, settings: ShapeSettings):
    return similarity.as_targets(bins.counts, bins.fraction, None, prior, settings)


def _as_references(bins, prior, settings: ShapeSettings):
    return similarity.as_references(bins.counts, bins.fraction, prior, settings)
