"""Smoothing of a rate in the plane of the field of view: of the fluctuations, not of the profile."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dask_bkg.background.spline import fit_spline
from dask_bkg.sky import fov

DEGREE = 2
"""Degree in offset^2 of the logarithm of the reference profile: a Gaussian and its curvature."""

PROFILE_PRIOR = 3.0
"""Weight of the prior that draws the profile of an energy of few counts to the one common to all energies."""

BLIND_SHARE = 0.01
"""Exposure given to an offset bin without exposure (it has a filled rate), in units of that of the mean bin."""

MAX_ITERATIONS = 30

METHODS = ("field", "adaptive", "spline")

WIDER = 1.2
"""Factor by which the Gaussian of ``adaptive`` grows at each step, until it is as wide as the field."""

NARROWEST = 0.1
"""Smallest width of the Gaussian of ``adaptive``, in units of the first offset bin."""

RESOLUTIONS = 16
"""Widths of a Gaussian between which an effective resolution is interpolated."""


class Smoothing(NamedTuple):
    """How a rate is smoothed.

    Attributes
    ----------
    method
        ``field``, a Gaussian; ``adaptive``, one that widens until there are enough counts under it; ``spline``
        (`dask_bkg.background.spline.fit_spline`).
    sigma
        Width of the Gaussian [deg], for ``adaptive`` the smallest one.
    counts
        Effective counts that ``adaptive`` collects under it.
    dof
        Effective degrees of freedom of ``spline``.
    """

    method: str = "field"
    sigma: float = 0.0
    counts: float = 400.0
    dof: float = 4.0

    @property
    def idle(self) -> bool:
        """Whether nothing is smoothed."""
        return self.method == "field" and self.sigma == 0


class Smoothed(NamedTuple):
    """A smoothed rate [s-1 TeV-1 sr-1], shape ``(energy, offset)``, and its response.

    That is how ln(value) of each offset bin changes with ln(rate) of each, but for the normalisation of the energy,
    shape ``(energy, offset, offset)``.
    """

    value: NDArray
    response: NDArray


@lru_cache(maxsize=64)
def ring_mixing(offset_edges: tuple[float, ...], sigma: float) -> NDArray:
    """How much a two-dimensional Gaussian in the field of view mixes offset bins.

    Parameters
    ----------
    offset_edges
        Ring edges [deg].
    sigma
        Width of the Gaussian [deg].

    Returns
    -------
    mixing
        Shape ``(offset, offset)``, symmetric: integral over both bins of the Gaussian of their distance [pixels].
    """
    from scipy.ndimage import gaussian_filter

    grid = fov.ring_grid(offset_edges)
    inside = grid.bin >= 0
    mixing = np.empty((grid.n_bins, grid.n_bins))
    for i in range(grid.n_bins):
        indicator = (grid.bin == i).astype(float).reshape(grid.shape)
        spread = gaussian_filter(indicator, sigma / grid.step, mode="constant", truncate=5).ravel()
        mixing[i] = np.bincount(grid.bin[inside], weights=spread[inside], minlength=grid.n_bins)
    return (mixing + mixing.T) / 2


def smooth_rings(rate: NDArray, exposure: NDArray, offset_edges: ArrayLike, sigma: float) -> NDArray:
    """Smooth the deviations from a falling profile in the field of view; counts conserved.

    A Gaussian filter flattens a falling profile, most at the edge of the field, outside of which there is nothing
    (by +30 % in the outermost offset bin of H.E.S.S. runs, for a sigma of one bin of 0.25 deg).  So only the ratio to
    a smooth `reference_profile` is smoothed: the counts (rate x exposure) and those that the reference expects are
    spread by the same Gaussian over the plane of the field and summed over each offset bin; the ratio of the two,
    times the reference, is the smoothed rate.  A rate equal to its reference is unchanged.  Offset bins are weighted
    by their expected counts, which is optimal for Poisson errors.  Each energy is scaled to keep its counts; those of
    an offset bin change only by the smoothing of its fluctuation.

    Parameters
    ----------
    rate, exposure, offset_edges
        As for `smooth`.
    sigma
        Width of the Gaussian [deg]; 0 changes nothing.

    Returns
    -------
    smoothed
        Rate [s-1 TeV-1 sr-1], shape ``(energy, offset)``; an energy without exposure is unchanged.

    Examples
    --------
    >>> edges = np.array([0.0, 0.5, 1.0, 1.5, 2.0])
    >>> falling = np.exp(-(edges[1:] ** 2 + edges[:-1] ** 2) / 4)[None, :]
    >>> bool(np.allclose(smooth_rings(falling, np.full((1, 4), 1e6), edges, sigma=0.5), falling, rtol=1e-3))
    True
    """
    return smooth(rate, exposure, offset_edges, Smoothing(sigma=sigma)).value


def smooth(
    rate: NDArray, exposure: NDArray, offset_edges: ArrayLike, how: Smoothing, variance: NDArray | None = None
) -> Smoothed:
    """Smooth a rate by one of the `METHODS`; each conserves the counts of each energy.

    Parameters
    ----------
    rate, exposure
        Rate [s-1 TeV-1 sr-1] and exposure [s TeV sr], shape ``(energy, offset)``.
    offset_edges
        Edges of the offset bins [deg].
    how
        Method and its parameters.
    variance
        Of ln(rate), from which ``adaptive`` finds the effective counts, shape ``(energy, offset)``; None: rate x
        exposure are counts.

    Raises
    ------
    ValueError
        If there is no such method, or a width is negative.

    Examples
    --------
    >>> edges = np.linspace(0, 2.5, 11)
    >>> rate = np.random.default_rng(1).poisson(50, (1, 10)) * 1.0
    >>> [round(float(smooth(rate, np.ones((1, 10)), edges, Smoothing(m, 0.3)).value.sum() / rate.sum()), 9)
    ...  for m in METHODS]
    [1.0, 1.0, 1.0]
    """
    if how.method not in METHODS:
        raise ValueError(f"smooth_method {how.method!r}: accepted are {', '.join(METHODS)}")
    if how.sigma < 0:
        raise ValueError(f"smooth_sigma: a width is not negative, got {how.sigma}")
    if how.idle:
        return Smoothed(rate.copy(), np.broadcast_to(np.eye(rate.shape[1]), (*rate.shape, rate.shape[1])))
    edges = tuple(float(e) for e in np.asarray(offset_edges))
    weight = np.maximum(exposure, BLIND_SHARE * exposure.mean(axis=1, keepdims=True))
    # the plain rate of a bin without exposure is NaN
    weight = np.where(np.isfinite(rate), weight, 0.0)
    counts = np.where(weight > 0, rate, 0.0) * weight
    if how.method == "spline":
        expected, response = fit_spline(counts, weight, edges, how.dof)
        value = np.divide(expected, weight, out=np.ones_like(expected), where=weight > 0)
    else:
        per_area = _per_area(edges, how.sigma) if how.method == "field" else _grown(counts, edges, how, variance)
        value, response = _spread(counts, weight, edges, per_area)
    smoothed = np.where((value > 0) & (counts.sum(axis=1, keepdims=True) > 0), value, rate)
    before, after = (np.where(exposure > 0, v * exposure, 0.0).sum(axis=1) for v in (rate, smoothed))
    smoothed *= np.divide(before, after, out=np.ones_like(after), where=(before > 0) & (after > 0))[:, None]
    return Smoothed(smoothed, response)


def _per_area(edges: tuple[float, ...], sigma: float) -> NDArray:
    """What each offset bin gets of the counts in a pixel of each, shape ``(offset, offset)``."""
    return ring_mixing(edges, float(sigma)) / fov.ring_grid(edges).bin_solid_angle


@lru_cache(maxsize=64)
def _on_circles(edges: tuple[float, ...], sigma: float) -> NDArray:
    """`_per_area` up to a factor, by quadrature over circles: a wide Gaussian on a fine grid takes seconds."""
    from scipy.special import i0e

    bounds = np.array(edges)
    n = int(np.ceil(max(4.0, 2.5 * np.diff(bounds).max() / sigma)))
    inside = (np.arange(n) + 0.5) / n
    radius = bounds[:-1, None] + np.diff(bounds)[:, None] * inside
    weight = (radius * np.diff(bounds)[:, None]).ravel()
    radius = radius.ravel()
    gaussian = np.exp(-0.5 * (np.subtract.outer(radius, radius) / sigma) ** 2)
    gaussian *= i0e(np.multiply.outer(radius, radius) / sigma**2) * weight[:, None] * weight
    rings = bounds.size - 1
    mixing = gaussian.reshape(rings, n, rings, n).sum(axis=(1, 3))
    return mixing / (bounds[1:] ** 2 - bounds[:-1] ** 2)


def _spread(counts: NDArray, weight: NDArray, edges: tuple[float, ...], per_area: NDArray) -> tuple[NDArray, NDArray]:
    """Reference times the ratio of spread counts to the spread reference, and the response of its logarithm.

    The reference is fitted to the same counts, which the response takes into account.
    """
    reference = reference_profile(counts, weight, edges)
    expected = _sums(reference * weight, per_area)
    value = np.divide(_sums(counts, per_area), expected, out=np.zeros_like(counts), where=expected > 0) * reference
    follows = _response_of_profile(counts, reference * weight, edges)
    response = follows + _shares(counts, per_area) - _shares(reference * weight, per_area) @ follows
    return value, response


def _sums(counts: NDArray, per_area: NDArray) -> NDArray:
    return counts @ per_area.T if per_area.ndim == 2 else np.einsum("kor,kr->ko", per_area, counts)


def _shares(counts: NDArray, per_area: NDArray) -> NDArray:
    """Share of each offset bin in what is spread to each, shape ``(energy, offset, offset)``; 1 if it is 0."""
    parts = per_area * counts[:, None, :]
    sums = parts.sum(axis=2, keepdims=True)
    return np.where(sums > 0, parts / np.where(sums > 0, sums, 1.0), np.eye(counts.shape[1]))


def _grown(counts: NDArray, edges: tuple[float, ...], how: Smoothing, variance: NDArray | None) -> NDArray:
    """`_per_area` of a Gaussian for each bin, just wide enough, shape ``(energy, offset, offset)``."""
    if variance is None:
        variance = np.divide(1.0, counts, out=np.zeros_like(counts), where=counts > 0)
    least = max(how.sigma, NARROWEST * (edges[1] - edges[0]))
    steps = max(0, int(np.ceil(np.log(edges[-1] / least) / np.log(WIDER))))
    found = np.zeros((*counts.shape, counts.shape[1]))
    short = np.ones(counts.shape, dtype=bool)
    for sigma in least * WIDER ** np.arange(steps + 1):
        per_area = _on_circles(edges, float(sigma))
        found[short] = np.broadcast_to(per_area, found.shape)[short]
        noise = (_shares(counts, per_area) ** 2 * variance[:, None, :]).sum(axis=2)
        short &= noise * how.counts > 1
        if not short.any():
            break
    return found


def resolution(response: NDArray, counts: NDArray, offset_edges: ArrayLike) -> NDArray:
    """Effective resolution [deg]: the width of a Gaussian in the field that leaves the same noise in each offset bin.

    Parameters
    ----------
    response
        Of ln(smoothed rate) to ln(rate), as in `Smoothed`, shape ``(energy, offset, offset)``.
    counts
        Counts before the smoothing, shape ``(energy, offset)``.
    offset_edges
        Edges of the offset bins [deg].

    Returns
    -------
    width
        Shape ``(energy, offset)``; 0 where the noise is unchanged, at most the radius of the field.

    Examples
    --------
    >>> edges, rate = np.linspace(0, 2.5, 11), np.full((1, 10), 100.0)
    >>> wide = smooth(rate, np.ones((1, 10)), edges, Smoothing("spline", dof=2))
    >>> narrow = smooth(rate, np.ones((1, 10)), edges, Smoothing("spline", dof=7))
    >>> bool((resolution(wide.response, rate, edges) > resolution(narrow.response, rate, edges)).all())
    True
    """
    edges = tuple(float(e) for e in np.asarray(offset_edges))
    counts = np.maximum(counts, np.finfo(float).tiny ** 0.25)
    widths = edges[-1] * np.geomspace(0.01, 1, RESOLUTIONS)
    noise = [np.ones(counts.shape), *(_noise(_shares(counts, _on_circles(edges, float(w))), counts) for w in widths)]
    table = np.log(np.minimum.accumulate(noise, axis=0))
    left = np.clip(np.log(np.maximum(_noise(response, counts), 1e-300)), table[-1], table[0])
    widths = np.concatenate([[0.0], widths])
    place = np.clip((table > left).sum(axis=0), 1, RESOLUTIONS)
    above, below = (np.take_along_axis(table, at[None], axis=0)[0] for at in (place - 1, place))
    share = np.divide(above - left, above - below, out=np.zeros_like(left), where=above > below)
    return widths[place - 1] + share * (widths[place] - widths[place - 1])


def _noise(response: NDArray, counts: NDArray) -> NDArray:
    """Variance of each offset bin over that without smoothing, for Poisson counts."""
    return (response**2 / counts[:, None, :]).sum(axis=2) * counts


def blur_response(rate: NDArray, offset_edges: ArrayLike, sigma: float) -> NDArray:
    """Response of a plain Gaussian over the rate, without profile, shape ``(energy, offset, offset)``."""
    return _shares(rate, _on_circles(tuple(float(e) for e in np.asarray(offset_edges)), sigma))


def reference_profile(counts: NDArray, exposure: NDArray, offset_edges: ArrayLike) -> NDArray:
    """Smooth radial profile of each energy: its logarithm is a polynomial in offset^2, fitted to the counts.

    First one profile for all energies together, then the deviation of each energy from it, with a prior about zero:
    the profile of the background widens or narrows with energy, and a common one would be wrong by 20 % at the edge
    at high energies (measured on H.E.S.S. runs).

    Parameters
    ----------
    counts, exposure
        Counts and exposure, shape ``(energy, offset)``.
    offset_edges
        Edges of the offset bins [deg].

    Returns
    -------
    profile
        Rate, in counts per exposure, shape ``(energy, offset)``; 1 for an energy without counts.
    """
    basis = _polynomials(offset_edges)
    total = counts.sum(axis=1, keepdims=True)
    norm = np.divide(total, exposure.sum(axis=1, keepdims=True), out=np.ones_like(total), where=total > 0)
    flat = np.where(total > 0, norm * exposure, 0.0)
    common = _fit_profile(counts.sum(axis=0)[None], flat.sum(axis=0)[None], basis)
    return norm * common * _fit_profile(counts, flat * common, basis)


def _polynomials(offset_edges: ArrayLike) -> NDArray:
    """Legendre polynomials in offset^2, shape ``(offset, degree + 1)``."""
    edges = np.asarray(offset_edges, dtype=float)
    squared = (edges[1:] ** 2 + edges[:-1] ** 2) / 2  # mean over the bin
    x = 2 * (squared - edges[0] ** 2) / (edges[-1] ** 2 - edges[0] ** 2) - 1
    return np.polynomial.legendre.legvander(x, min(DEGREE, x.size - 1))


def _response_of_profile(counts: NDArray, expected: NDArray, offset_edges: ArrayLike) -> NDArray:
    """How ln of the reference changes with ln(rate) of each offset bin, shape ``(energy, offset, offset)``.

    The part through the common profile is left out: one energy changes it little.
    """
    basis = _polynomials(offset_edges)
    prior = PROFILE_PRIOR * np.eye(basis.shape[1])
    # the prior does not apply to the normalisation
    prior[0, 0] = np.finfo(float).tiny ** 0.25
    fisher = np.einsum("er,ri,rj->eij", expected, basis, basis) + prior
    return np.asarray(basis @ np.linalg.solve(fisher, basis.T[None] * counts[:, None, :]))


def _fit_profile(counts: NDArray, expected: NDArray, basis: NDArray) -> NDArray:
    """Factor on the expected counts, exp(polynomial), by Poisson likelihood and the prior; row by row."""
    beta = np.zeros((counts.shape[0], basis.shape[1]))
    for _ in range(MAX_ITERATIONS):
        mu = expected * np.exp(beta @ basis.T)
        gradient = (counts - mu) @ basis - PROFILE_PRIOR * beta
        fisher = np.einsum("er,ri,rj->eij", mu, basis, basis) + PROFILE_PRIOR * np.eye(basis.shape[1])
        # a Newton step from far away overshoots
        step = np.clip(np.linalg.solve(fisher, gradient[..., None])[..., 0], -1, 1)
        beta += step
        if np.abs(step).max() < 1e-6:
            break
    return np.exp(beta @ basis.T)
