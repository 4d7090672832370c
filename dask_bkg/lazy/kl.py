"""The Kullback-Leibler divergences of an archive as a matrix of blocks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from dask.base import is_dask_collection
from numpy.typing import NDArray

from dask_bkg import schema, similarity
from dask_bkg.binning import AXES
from dask_bkg.lazy.layers import Blocks, Each, Layers, Shared, block_size
from dask_bkg.similarity import FlatBins, Prior, ShapeSettings, flat_bins


class Shapes(NamedTuple):
    """The shapes of targets (P) and of runs (Q), a block a task."""

    targets: Blocks
    runs: Blocks


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
    layers = Layers()
    shapes = add_shapes(layers, targets, refs, settings)
    pairs = layers.pairs(
        "kl-divergence", similarity.kl_block, {"targets": shapes.targets}, {"references": shapes.runs}
    )
    kl = layers.matrix(pairs, (targets["counts"].data.chunks[0], refs["counts"].data.chunks[0]))
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
    of_runs = _add_bins(layers, "flat-bins", runs, settings)
    of_targets = of_runs if targets is runs else _add_bins(layers, "flat-bins-of-targets", targets, settings)
    prior = _add_prior(layers, of_runs, settings)
    about = {"prior": prior, "settings": settings}
    return Shapes(
        layers.map("shape-of-targets", _of_bins, bins=of_targets, function=similarity.as_targets, mask=None, **about),
        layers.map("shape-of-runs", _of_bins, bins=of_runs, function=similarity.as_references, **about),
    )


def _add_prior(layers: Layers, bins: Blocks, settings: ShapeSettings) -> Shared:
    """Add the layers of the archive's family of shapes: the mean of all runs, then how they scatter about it."""
    sums = layers.map("mean-sums", _of_bins, bins=bins, function=similarity.prior_sums)
    mean = layers.join("mean-shape", _mean_shape, sums)
    family = {"function": similarity.family_sums, "shape": mean, "settings": settings}
    return layers.join("family", _family, layers.map("family-sums", _of_bins, bins=bins, **family), settings=settings)


def _add_bins(layers: Layers, what: str, runs: xr.Dataset, settings: ShapeSettings) -> Blocks:
    """Counts and exposed fraction, flat: one task a block of runs."""
    arrays = {name: runs[name].data for name in schema.HISTOGRAMS}
    ontime = runs["ontime"].data
    if not is_dask_collection(ontime):
        ontime = Each([ontime[a:b] for a, b in bounds(runs)])
    return layers.map(what, flat_bins, **arrays, ontime=ontime, edges=schema.edges_of(runs), settings=settings)


def bounds(runs: xr.Dataset) -> list[tuple[int, int]]:
    """First and last (not included) run of each block."""
    return list(pairwise(np.cumsum([0, *runs["counts"].data.chunks[0]]).tolist()))


def _of_bins(function: Callable, bins: FlatBins, **others: Any) -> Any:
    return function(bins.counts, bins.fraction, **others)


def _mean_shape(parts: list) -> NDArray:
    return similarity.prior_shape(*similarity.add_sums(parts))


def _family(parts: list, settings: ShapeSettings) -> Prior:
    return similarity.prior_family(similarity.add_sums(parts), settings)
