"""The bins in which shapes are compared: flattened, and narrow ones joined."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dask_bkg.binning import Edges
from dask_bkg.similarity.settings import ShapeSettings

BINS_PER_DECADE, OFFSET_WIDTH = 5.0, 0.5
"""Most bins per decade of energy, and narrowest offset bin [deg], in which shapes are compared; the last bin of an
axis may be wider."""


class FlatBins(NamedTuple):
    """Events, and exposed fraction of each bin (under ``document``: exposure), shape ``(runs, bins)``."""

    counts: NDArray
    fraction: NDArray


def flat_bins(counts: NDArray, exposure: NDArray, ontime: NDArray, edges: Edges, settings: ShapeSettings) -> FlatBins:
    """Flat bins of a block of runs.

    Under ``shape`` narrow bins are joined (`coarse_edges`), and the exposed fraction is the exposure over that of a
    bin without exclusion; under ``document`` the bins stay as they are.

    Parameters
    ----------
    counts, exposure
        Events and exposure [s TeV sr], shape ``(runs, energy, offset)``.
    ontime
        Ontime of the runs [s], shape ``(runs,)``.
    edges
        Bin edges.
    settings
        How shapes are compared.

    Returns
    -------
    flat
        Events and exposed fractions, shape ``(runs, bins)``.
    """
    n_runs = len(counts)
    if settings.method == "document":
        return FlatBins(counts.reshape(n_runs, -1), exposure.reshape(n_runs, -1))
    axes = edges.energy, edges.offset
    coarse = coarse_edges(axes)
    solid_angle = -2 * np.pi * np.diff(np.cos(np.deg2rad(coarse[1])))
    full = ontime[:, None, None] * np.diff(coarse[0])[:, None] * solid_angle
    fraction = np.clip(join(exposure, axes, coarse) / full, 0.0, 1.0)
    # bins made of pixels have their solid angle to a thousandth
    fraction[fraction > 0.995] = 1.0
    return FlatBins(join(counts, axes, coarse).reshape(n_runs, -1), fraction.reshape(n_runs, -1))


def coarse_edges(edges: tuple[ArrayLike, ArrayLike]) -> tuple[NDArray, NDArray]:
    """Edges of the bins in which shapes are compared, a subset of those of energy [TeV] and offset [deg].

    Examples
    --------
    >>> energy, offset = coarse_edges((np.geomspace(0.1, 100, 31), np.linspace(0, 2.5, 11)))
    >>> energy.size - 1, offset.tolist()
    (15, [0.0, 0.5, 1.0, 1.5, 2.0, 2.5])
    """
    energy, offset = (np.asarray(e, dtype=float) for e in edges)
    return energy[_apart(np.log10(energy), 1 / BINS_PER_DECADE)], offset[_apart(offset, OFFSET_WIDTH)]


def _apart(edges: NDArray, width: float) -> list[int]:
    """Indices of edges that are at least ``width`` apart, the first and the last among them."""
    chosen = [0]
    for i in range(1, edges.size):
        if edges[i] - edges[chosen[-1]] > width - 1e-9:
            chosen.append(i)
    return [*chosen[: max(len(chosen) - 1, 1)], edges.size - 1]


def join(values: NDArray, edges: tuple[ArrayLike, ArrayLike], coarse: tuple[ArrayLike, ArrayLike]) -> NDArray:
    """Sums of counts or exposure, shape ``(..., energy, offset)``, over coarser bins.

    Raises
    ------
    ValueError
        If an edge of the ``coarse`` bins is none of the ``edges``.

    Examples
    --------
    >>> join(np.arange(4).reshape(2, 2), ([1, 2, 4], [0, 1, 2]), ([1, 4], [0, 1, 2])).tolist()
    [[2, 4]]
    """
    for axis, fine, wide in zip((-2, -1), edges, coarse, strict=True):
        fine, wide = np.asarray(fine, dtype=float), np.asarray(wide, dtype=float)
        index = np.abs(fine[:, None] - wide).argmin(axis=0)
        if not np.allclose(fine[index], wide, rtol=1e-9, atol=1e-12):
            raise ValueError(f"join: the coarse edges must be among the others, got {wide} and {fine}")
        inside = np.take(values, range(index[0], index[-1]), axis=axis)
        values = np.add.reduceat(inside, index[:-1] - index[0], axis=axis, dtype=values.dtype)
    return values
