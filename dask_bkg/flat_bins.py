"""Run histograms as flat bins, on which shapes are compared."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_bkg import similarity
from dask_bkg.schema import Edges
from dask_bkg.similarity import ShapeSettings


class FlatBins(NamedTuple):
    """Events, and exposed fraction of each bin (under ``document``: exposure), shape ``(runs, bins)``."""

    counts: NDArray
    fraction: NDArray


def flat_bins(counts: NDArray, exposure: NDArray, ontime: NDArray, edges: Edges, settings: ShapeSettings) -> FlatBins:
    """Flat bins of a block of runs.

    Under ``shape`` narrow bins are joined (`dask_bkg.similarity.coarse_edges`), and the exposed fraction is the
    exposure over that of an open bin; under ``document`` the bins stay as they are.

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
    """
    n_runs = len(counts)
    if settings.method == "document":
        return FlatBins(counts.reshape(n_runs, -1), exposure.reshape(n_runs, -1))
    axes = edges.energy, edges.offset
    coarse = similarity.coarse_edges(axes)
    solid_angle = -2 * np.pi * np.diff(np.cos(np.deg2rad(coarse[1])))
    full = ontime[:, None, None] * np.diff(coarse[0])[:, None] * solid_angle
    fraction = np.clip(similarity.join(exposure, axes, coarse) / full, 0.0, 1.0)
    # rings of pixels are open to a thousandth
    fraction[fraction > 0.995] = 1.0
    return FlatBins(similarity.join(counts, axes, coarse).reshape(n_runs, -1), fraction.reshape(n_runs, -1))
