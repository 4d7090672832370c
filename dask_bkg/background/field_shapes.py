"""Shapes of the modulation over the field: a gradient towards the zenith, and a free one.

Both compare the counts of the pixels with those that the radial rate expects there.  Widths and priors were optimised
on the 72 runs of H.E.S.S. DL3 DR1, each predicted by the others (and by a part of its own events); all optima are
broad.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from dask_bkg.background.field_geometry import continued, flat, members, middle, pixel_offsets, ring_of
from dask_bkg.background.fill import pooling_weights

TILT_PRIOR = 0.2
"""Width of the prior of the gradient [1 / deg], of its mean over the energies; its mean is no gradient."""

TILT_WALK = (0.4, 0.1)
"""Prior change of the gradient over one unit of ln E [1 / deg], at the threshold and above it.

At the threshold the gradient falls from +0.6 to -0.25 within a factor of two in energy, because the threshold changes
with altitude within the field of view.  Above it rises to +0.15 over two decades.
"""

THRESHOLD_REACH = 1.3
"""Upper end of the threshold region, in units of the energy with the most counts."""

MAX_ITERATIONS = 30


class Tilt(NamedTuple):
    """Gradient of ln(rate) towards the zenith over sin z, and its error [1 / deg], shape ``(energy,)``."""

    value: NDArray
    error: NDArray


def upwards(pixel_edges: NDArray, zenith: tuple[float, float] = (0.0, 1.0)) -> NDArray:
    """Coordinate of the pixel centres towards the zenith [deg], shape ``(fov_lat, fov_lon)``.

    Parameters
    ----------
    pixel_edges
        Edges of the pixels [deg].
    zenith
        Direction of the zenith, a unit vector ``(fov_lon, fov_lat)``.
    """
    center = middle(pixel_edges)
    return zenith[1] * center[:, None] + zenith[0] * center[None, :]


def fit_tilt(
    counts: NDArray, expected: NDArray, edges: tuple[NDArray, NDArray, NDArray], sin_zenith: float, up: NDArray
) -> Tilt:
    """Gradient towards the zenith, by Poisson likelihood conditional on the counts of each energy and offset bin.

    The rate is the radial one times exp(sin z b(E) t), t the coordinate towards the zenith (step 7 of
    `dask_bkg.background`); b is a random walk from energy to energy.  Given the counts of an offset bin, neither the
    mean of that factor over the bin nor an error of the radial rate matters.

    Parameters
    ----------
    counts, expected
        Counts, and those that the radial rate expects, up to a factor for each energy and offset bin; shape
        ``(energy, fov_lat, fov_lon)``; pixels where nothing is expected are left out.
    edges
        Bin edges of energy [TeV], offset [deg] and pixels [deg].
    sin_zenith
        Sine of the zenith angle of the runs.
    up
        Coordinate of the pixels towards the zenith [deg] (`upwards`), shape ``(fov_lat, fov_lon)``.

    Returns
    -------
    tilt
        Gradient and error [1 / deg], shape ``(energy,)``.
    """
    counts, expected, up = flat(np.where(expected > 0, counts, 0.0)), flat(expected), up.ravel()
    ring = ring_of(pixel_offsets(edges[2]), continued(*edges[1:]))
    member = members(ring, np.unique(ring))
    per_ring, moment, prior = counts @ member, (counts * up).sum(axis=1), _tilt_prior(counts.sum(axis=1), edges[0])
    b = np.zeros(counts.shape[0])
    for _ in range(MAX_ITERATIONS):
        mean, variance = _moments(expected * np.exp(sin_zenith * b[:, None] * up), up, member)
        gradient = sin_zenith * (moment - (per_ring * mean).sum(axis=1)) - prior @ b
        fisher = sin_zenith**2 * np.diag((per_ring * variance).sum(axis=1)) + prior
        # a Newton step from far away overshoots
        step = np.clip(np.linalg.solve(fisher, gradient), -0.5, 0.5)
        b = b + step
        if np.abs(step).max() < 1e-6:
            break
    return Tilt(b, np.sqrt(np.diag(np.linalg.inv(fisher))))


def _moments(weight: NDArray, up: NDArray, member: csr_array) -> tuple[NDArray, NDArray]:
    """Mean and variance of the coordinate towards the zenith in each offset bin, shape ``(energy, offset)``."""
    total = np.maximum(weight @ member, np.finfo(float).tiny)
    mean = (weight * up) @ member / total
    return mean, (weight * up**2) @ member / total - mean**2


def _tilt_prior(per_energy: NDArray, energy_edges: NDArray) -> NDArray:
    """Inverse covariance of the gradient's prior, shape ``(energy, energy)``."""
    center, n = np.sqrt(energy_edges[1:] * energy_edges[:-1]), per_energy.size
    step = np.sqrt(center[1:] * center[:-1])
    # the step above the energy of the most counts belongs to the threshold, however wide the bins are
    low = np.minimum(center[: n - 1], step / THRESHOLD_REACH) <= center[per_energy.argmax()] * (1 + 1e-9)
    variance = np.where(low, *TILT_WALK) ** 2 * np.diff(np.log(center))
    change = np.diff(np.eye(n), axis=0)
    return np.eye(n) / (n * TILT_PRIOR**2) + change.T @ (change / variance[:, None])


def free_modulation(
    counts: NDArray,
    expected: NDArray,
    energy_edges: ArrayLike,
    pixel_edges: NDArray,
    sigma: float,
    min_counts: float,
    prior: float,
) -> tuple[NDArray, NDArray, NDArray]:
    """Ratio of smoothed counts to smoothed expectation, of any form.

    Both are smoothed by the same Gaussian, so that the edge of the field and the exclusion cancel.  Energies are
    pooled with their neighbours as for the radial shape, just wide enough for ``min_counts``.

    Parameters
    ----------
    counts, expected
        Counts, and expected counts up to a factor for each energy, shape ``(energy, fov_lat, fov_lon)``.
    energy_edges, pixel_edges
        Bin edges [TeV], [deg].
    sigma
        Width of the Gaussian [deg].
    min_counts
        Events that a pool of energies needs.
    prior
        Events that the expectation of no modulation is worth, under the Gaussian (4 pi sigma^2).

    Returns
    -------
    modulation, pooled, error
        Shape ``(energy, fov_lat, fov_lon)``; whether an energy is pooled with others, shape ``(energy,)``; and the
        relative error of the modulation, by the counts under the Gaussian and those of the prior.
    """
    from scipy.ndimage import gaussian_filter

    counts = np.where(expected > 0, counts, 0.0)
    seen, total = counts.sum(axis=(1, 2)), expected.sum(axis=(1, 2))
    norm = np.divide(seen, total, out=np.zeros_like(total), where=total > 0)[:, None, None]
    g, width = pooling_weights(seen, energy_edges, min_counts), sigma / (pixel_edges[1] - pixel_edges[0])
    above, below = (
        gaussian_filter(np.einsum("ij,jkl->ikl", g, array), (0, width, width), mode="constant")
        for array in (counts, norm * expected)
    )
    # where nothing is expected, the prior alone is left
    pixels = max(1.0, 4 * np.pi * width**2)
    density = max(prior, 1e-6) / pixels
    error = np.sqrt(above / pixels) / (above + density)
    return (above + density) / (below + density), (g > 0).sum(axis=1) > 1, error
