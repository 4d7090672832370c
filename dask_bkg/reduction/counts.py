"""Counts and exposure on plain arrays.

Axes are named in the docstrings: ``energy`` first, then the ``bins`` of the field of view (offset bins, or pixels).
Energies are TeV, solid angles sr, times s.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dask_bkg.binning import FLOOR


def digitize(values: ArrayLike, edges: ArrayLike) -> NDArray:
    """Bin of each value, -1 outside; the last bin holds its upper edge, as in `numpy.histogram`.

    Parameters
    ----------
    values
        Any shape; values that are not finite are outside.
    edges
        Ascending, shape ``(n + 1,)``.

    Returns
    -------
    index
        Shape of ``values``, -1 to n - 1.

    Examples
    --------
    >>> digitize([0.5, 1.0, 2.0, 3.0], [0.5, 1.0, 2.0]).tolist()
    [0, 1, 1, -1]
    """
    values, edges = np.asarray(values, dtype=float), np.asarray(edges, dtype=float)
    index = np.searchsorted(edges, values, side="right") - 1
    index[values == edges[-1]] = edges.size - 2
    # a NaN is sorted after everything, hence beyond the last edge
    index[index >= edges.size - 1] = -1
    return index


def count_events(energy_bin: NDArray, field_bin: NDArray, n_energy: int, n_bins: int) -> NDArray:
    """Events in each bin of energy and field of view.

    Parameters
    ----------
    energy_bin, field_bin
        Bin of each event, -1 where it is outside, shape ``(events,)``.
    n_energy, n_bins
        Number of bins.

    Returns
    -------
    counts
        Shape ``(energy, bins)``, float.
    """
    inside = (energy_bin >= 0) & (field_bin >= 0)
    flat = energy_bin[inside] * n_bins + field_bin[inside]
    return np.bincount(flat, minlength=n_energy * n_bins).reshape(n_energy, n_bins).astype(float)


def exposure(ontime: float, energy_edges: ArrayLike, solid_angle: ArrayLike, fraction: ArrayLike) -> NDArray:
    """Exposure of each bin [s TeV sr]: ontime x energy width x solid angle x exposed fraction.

    Per *ontime*, without dead-time correction, as GADF defines the background rate.

    Parameters
    ----------
    ontime
        Sum of the good time intervals [s].
    energy_edges
        Bin edges [TeV], shape ``(energy + 1,)``.
    solid_angle, fraction
        Solid angle [sr] and share of it that is not excluded, shape ``(bins,)``.

    Returns
    -------
    exposure
        Shape ``(energy, bins)``.

    Examples
    --------
    >>> exposure(100.0, [1.0, 3.0], [0.5], [0.25]).tolist()
    [[25.0]]
    """
    return ontime * np.diff(energy_edges)[:, None] * (np.asarray(solid_angle) * np.asarray(fraction))[None, :]


def event_ratio(offset_bin: NDArray, kept: NDArray, n_bins: int) -> NDArray:
    """The procedure's exposed fraction: kept over all events of each offset bin, both plus 1e-9.

    It cancels the exclusion in the rate of the bin (counts kept / (kept / all) = all counts), but is the original
    formula, see `dask_bkg.config.presets.gammapy_tools`.

    Parameters
    ----------
    offset_bin
        Offset bin of each event of any energy, -1 outside, shape ``(events,)``.
    kept
        Whether the event is outside of the exclusion, shape ``(events,)``.
    n_bins
        Number of offset bins.

    Returns
    -------
    fraction
        Shape ``(bins,)``.
    """
    inside = offset_bin >= 0
    every = np.bincount(offset_bin[inside], minlength=n_bins)
    outside = np.bincount(offset_bin[inside & kept], minlength=n_bins)
    return (outside + FLOOR) / (every + FLOOR)


def flat_solid_angle(offset_edges: ArrayLike) -> NDArray:
    """The procedure's solid angle of an offset bin, ``2 pi offset d_offset`` [sr], from edges [deg]; ``(bins,)``."""
    edges = np.deg2rad(np.asarray(offset_edges, dtype=float))
    return np.pi * (edges[1:] + edges[:-1]) * np.diff(edges)
