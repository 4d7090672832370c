"""Smoothing of a rate in the plane of the field of view: the fluctuations, not the profile.

Pure arrays: angles deg, exposure s TeV sr, rates s-1 TeV-1 sr-1; axes ``energy``, then ``ring`` (of offset).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dask_bkg import fov

DEGREE = 2
"""Degree in offset^2 of the logarithm of the reference profile: a Gaussian and how it bends."""

PROFILE_PRIOR = 3.0
"""Weight that holds the profile of an energy of few counts at the one common to all energies."""

BLIND_SHARE = 0.01
"""Exposure, in units of that of the mean ring, that a ring without exposure counts for: it has a filled rate."""

MAX_ITERATIONS = 30


@lru_cache(maxsize=8)
def ring_mixing(offset_edges: tuple[float, ...], sigma: float) -> NDArray:
    """How much a two-dimensional Gaussian in the field of view mixes rings.

    Parameters
    ----------
    offset_edges
        Ring edges [deg].
    sigma
        Width of the Gaussian [deg].

    Returns
    -------
    mixing
        Shape ``(ring, ring)``, symmetric: integral over both rings of the Gaussian of their distance [pixels].
    """
    from scipy.ndimage import gaussian_filter

    grid = fov.ring_grid(offset_edges)
    inside = grid.bin >= 0
    mixing = np.empty((grid.n_bins, grid.n_bins))
    for ring in range(grid.n_bins):
        indicator = (grid.bin == ring).astype(float).reshape(grid.shape)
        spread = gaussian_filter(indicator, sigma / grid.step, mode="constant", truncate=5).ravel()
        mixing[ring] = np.bincount(grid.bin[inside], weights=spread[inside], minlength=grid.n_bins)
    return (mixing + mixing.T) / 2


def smooth_rings(rate: NDArray, exposure: NDArray, offset_edges: ArrayLike, sigma: float) -> NDArray:
    """Smooth the deviations from a falling profile in the field of view; counts conserved.

    A Gaussian filter flattens a falling profile, most at the edge of the field, outside of which there is nothing
    (by +30 % in the outermost ring of H.E.S.S. runs, for a sigma of one ring of 0.25 deg).  So only the ratio to a
    smooth `reference_profile` is smoothed: the counts (rate x exposure) and those that the reference expects are
    spread by the same Gaussian over the plane of the field and summed over each ring; the ratio of the two, times
    the reference, is the smoothed rate.  A rate equal to its reference is unchanged; a ring weighs by its expected
    counts, which is what its Poisson error asks for.  Each energy is scaled to keep its counts; those of a ring are
    kept but for what its neighbours say about its fluctuation.

    Parameters
    ----------
    rate, exposure
        Rate [s-1 TeV-1 sr-1] and exposure [s TeV sr], shape ``(energy, ring)``.
    offset_edges
        Ring edges [deg].
    sigma
        Width of the Gaussian [deg]; 0 changes nothing.

    Returns
    -------
    smoothed
        Shape ``(energy, ring)``; an energy without exposure is left as it is.

    Examples
    --------
    >>> edges = np.array([0.0, 0.5, 1.0, 1.5, 2.0])
    >>> falling = np.exp(-(edges[1:] ** 2 + edges[:-1] ** 2) / 4)[None, :]
    >>> bool(np.allclose(smooth_rings(falling, np.full((1, 4), 1e6), edges, sigma=0.5), falling, rtol=1e-3))
    True
    """
    if sigma < 0:
        raise ValueError(f"smooth_sigma: a width is not negative, got {sigma}")
    if sigma == 0:
        return rate.copy()
    edges = tuple(float(e) for e in np.asarray(offset_edges))
    weight = np.maximum(exposure, BLIND_SHARE * exposure.mean(axis=1, keepdims=True))
    # the plain rate of a bin without exposure is NaN
    weight = np.where(np.isfinite(rate), weight, 0.0)
    counts = np.where(weight > 0, rate, 0.0) * weight
    reference = reference_profile(counts, weight, edges)
    per_area = ring_mixing(edges, float(sigma)) / fov.ring_grid(edges).bin_solid_angle
    expected = (reference * weight) @ per_area.T
    ratio = np.divide(counts @ per_area.T, expected, out=np.zeros_like(counts), where=expected > 0)
    smoothed = np.where((expected > 0) & (counts.sum(axis=1, keepdims=True) > 0), ratio * reference, rate)
    before, after = (_total(value, exposure) for value in (rate, smoothed))
    return smoothed * np.divide(before, after, out=np.ones_like(after), where=(before > 0) & (after > 0))[:, None]


def _total(rate: NDArray, exposure: NDArray) -> NDArray:
    """Counts of each energy."""
    return np.where(exposure > 0, rate * exposure, 0.0).sum(axis=1)


def reference_profile(counts: NDArray, exposure: NDArray, offset_edges: ArrayLike) -> NDArray:
    """Smooth radial profile of each energy: its logarithm is a polynomial in offset^2, fitted to the counts.

    First one profile for all energies together, then for each energy its deviation, with a prior of none: the profile
    of the background widens or narrows with energy, and by a common one the high energies would be off by 20 % at
    the edge (measured on H.E.S.S. runs).

    Parameters
    ----------
    counts, exposure
        Counts and exposure, shape ``(energy, ring)``.
    offset_edges
        Ring edges [deg].

    Returns
    -------
    profile
        Rate, in counts per exposure, shape ``(energy, ring)``; 1 for an energy without counts.
    """
    edges = np.asarray(offset_edges, dtype=float)
    squared = (edges[1:] ** 2 + edges[:-1] ** 2) / 2  # mean over the ring
    x = 2 * (squared - edges[0] ** 2) / (edges[-1] ** 2 - edges[0] ** 2) - 1
    basis = np.polynomial.legendre.legvander(x, min(DEGREE, x.size - 1))
    total = counts.sum(axis=1, keepdims=True)
    level = np.divide(total, exposure.sum(axis=1, keepdims=True), out=np.ones_like(total), where=total > 0)
    flat = np.where(total > 0, level * exposure, 0.0)
    common = _fit_profile(counts.sum(axis=0)[None], flat.sum(axis=0)[None], basis)
    return level * common * _fit_profile(counts, flat * common, basis)


def _fit_profile(counts: NDArray, expected: NDArray, basis: NDArray) -> NDArray:
    """Factor on the expected counts, exp(polynomial), by Poisson likelihood and the prior; row by row."""
    beta = np.zeros((counts.shape[0], basis.shape[1]))
    for _ in range(MAX_ITERATIONS):
        mu = expected * np.exp(beta @ basis.T)
        gradient = (counts - mu) @ basis - PROFILE_PRIOR * beta
        fisher = np.einsum("er,ri,rj->eij", mu, basis, basis) + PROFILE_PRIOR * np.eye(basis.shape[1])
        # a step of Newton's from far away overshoots
        step = np.clip(np.linalg.solve(fisher, gradient[..., None])[..., 0], -1, 1)
        beta += step
        if np.abs(step).max() < 1e-6:
            break
    return np.exp(beta @ basis.T)
