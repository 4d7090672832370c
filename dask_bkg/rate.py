"""From stacked counts and exposure to a background rate that an interpolation can live with.

The steps, in their order: `fill_rate` (no empty bin is left), `smooth_rings`, `node_values` (gammapy interpolates
between bin centres; the values are set such that this interpolation gives the counts back).  Pure arrays: energies
TeV, angles deg, exposure s TeV sr, rates s-1 TeV-1 sr-1; axes ``energy``, then ``ring`` (of offset).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dask_bkg import fov

INDEX = 2.7
"""Spectral index of the cosmic-ray background, for the energies where the counts say nothing."""

UNSEEN = 0.3
"""Number of events that an empty bin stands for: a zero among 20 such bins would be no surprise."""

GROUP_COUNTS = 10
"""Counts below which an energy above the peak is pooled with its neighbour."""

NODE_PRIOR = 3.0
"""Counts that the smooth curve through the neighbours is worth in the fit of the node values."""

TINY_COUNTS = 1e-9
MAX_ITERATIONS = 50

MEASURED, SHAPE_POOLED, ENERGY_POOLED, RING_FILLED, EXTRAPOLATED = 0, 1, 2, 4, 8
FLAGS = {
    SHAPE_POOLED: "radial shape pooled over energies",
    ENERGY_POOLED: "spectrum pooled over neighbouring energies",
    RING_FILLED: "ring without counts or exposure, filled from its neighbours",
    EXTRAPOLATED: "energy without counts, extrapolated",
}


class Rate(NamedTuple):
    """A background rate and how each bin of it came about.

    Attributes
    ----------
    value
        Rate [s-1 TeV-1 sr-1], shape ``(energy, ring)``.
    flag
        Sum of the bits in `FLAGS`, 0 for a bin that stands on its own counts, shape ``(energy, ring)``.
    """

    value: NDArray
    flag: NDArray


class RateSettings(NamedTuple):
    """How a rate is made of counts and exposure; the defaults are those of the configuration.

    Attributes
    ----------
    fill
        Leave no bin empty (`fill_rate`); False: plain counts / exposure.
    min_counts
        Events that a pool of energies needs for a radial shape of its own.
    smooth_sigma
        Width of the smoothing [deg]; 0: none.
    smooth_method
        ``field`` (`smooth_rings`) or ``to_3d`` (the procedure's way, `dask_bkg.irf.smooth`).
    smooth_bins
        The width in offset bins, which is what ``to_3d`` takes.
    node_values
        ``conserving`` (`node_values`) or ``plain``: the bin averages themselves.
    """

    fill: bool = True
    min_counts: float = 500
    smooth_sigma: float = 0.0
    smooth_method: str = "field"
    smooth_bins: float = 0.0
    node_values: str = "conserving"


def estimate_rate(
    counts: NDArray, exposure: NDArray, edges: tuple[NDArray, NDArray], settings: RateSettings | None = None
) -> Rate:
    """All steps of this module, in their order; see there.

    Parameters
    ----------
    counts, exposure
        Events and exposure [s TeV sr], shape ``(energy, ring)``.
    edges
        Bin edges of energy [TeV] and offset [deg].
    settings
        What is done; smoothing through ``to_3d`` is not done here, as it is gammapy's.

    Examples
    --------
    >>> edges = np.geomspace(0.5, 10, 5), np.linspace(0, 2, 3)
    >>> rate = estimate_rate(np.full((4, 2), 100.0), np.full((4, 2), 50.0), edges)
    >>> rate.value.shape, bool((rate.value > 0).all())
    ((4, 2), True)
    """
    settings = settings or RateSettings()
    if settings.node_values == "conserving" and not settings.fill:
        raise ValueError("conserving node values cannot go through empty bins: set fill, or node_values to 'plain'")
    if settings.fill:
        rate = fill_rate(counts, exposure, edges[0], settings.min_counts)
    else:
        rate = Rate(plain_rate(counts, exposure), np.zeros(counts.shape, dtype=int))
    value = rate.value
    if settings.smooth_method == "field":
        value = smooth_rings(value, exposure, edges[1], settings.smooth_sigma)
    if settings.node_values == "conserving":
        value = node_values(value, exposure, *edges)
    return Rate(value, rate.flag)


def plain_rate(counts: NDArray, exposure: NDArray) -> NDArray:
    """Counts / exposure, as the procedure has it: NaN in a bin without exposure, 0 in one without counts."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return counts / exposure


def fill_rate(counts: NDArray, exposure: NDArray, energy_edges: ArrayLike, min_counts: float = 500) -> Rate:
    """Rate without empty bins, counts conserved.

    The radial shape of an energy is pooled with that of its neighbours in ln E, just wide enough for ``min_counts``;
    the level of each energy follows from its own counts, those above the peak pooled to ten; then rings and energies
    are scaled in turn until both have their counts.

    Parameters
    ----------
    counts, exposure
        Events and exposure [s TeV sr], shape ``(energy, ring)``.
    energy_edges
        Bin edges [TeV], shape ``(energy + 1,)``.
    min_counts
        Events that a pool needs for a radial shape of its own.

    Raises
    ------
    ValueError
        If there are no counts, or no exposure, at all.

    Examples
    --------
    >>> rate = fill_rate(np.array([[600.0, 300.0], [6.0, 3.0]]), np.ones((2, 2)), [1.0, 2.0, 4.0])
    >>> rate.value.round(3).tolist()
    [[600.0, 300.0], [6.0, 3.0]]
    """
    if not counts.sum() > 0 or not (exposure > 0).any():
        raise ValueError("no counts in the binning, or no exposure: nothing to make a rate of")
    shape, shape_flag = _pooled_shape(counts, exposure, energy_edges, min_counts)
    level, level_flag = _level(counts.sum(axis=1), (exposure * shape).sum(axis=1), energy_edges)
    flag = shape_flag | level_flag[:, None]
    return Rate(_conserve(level[:, None] * shape, counts, exposure, (flag & SHAPE_POOLED).any(axis=1)), flag)


def _pooled_shape(counts, exposure, energy_edges, min_counts) -> tuple[NDArray, NDArray]:
    """Relative rate of the rings at each energy, and flags."""
    per_energy = counts.sum(axis=1)
    spectrum = np.divide(per_energy, exposure.sum(axis=1), out=np.zeros_like(per_energy), where=per_energy > 0)
    g = _pooling_weights(per_energy, energy_edges, min_counts)
    pooled, expected = g @ counts, g @ (spectrum[:, None] * exposure)
    flag = np.where((g > 0).sum(axis=1) > 1, SHAPE_POOLED, MEASURED)[:, None] | np.zeros(counts.shape, int)
    with np.errstate(divide="ignore", invalid="ignore"):
        shape = pooled / expected
        unseen = UNSEEN / expected
    empty = (pooled == 0) & (expected > 0)
    smallest = np.where(pooled > 0, shape, np.inf).min(axis=1, keepdims=True)
    shape = np.where(empty, np.minimum(unseen, smallest), shape)
    blind = ~(expected > 0)
    flag[empty | blind] |= RING_FILLED
    return _fill_blind_rings(shape, blind), flag


def _pooling_weights(per_energy: NDArray, energy_edges: ArrayLike, min_counts: float) -> NDArray:
    """Weights in ln E, row by row just wide enough for ``min_counts``; a unit row where none is needed.

    A Gaussian, tilted such that the mean ln E of the pooled events is that of the row: the spectrum falls steeply,
    and an upright one would give every energy the radial shape of a lower one.
    """
    ln_e = np.log(np.sqrt(np.asarray(energy_edges)[1:] * np.asarray(energy_edges)[:-1]))
    distance = ln_e[None, :] - ln_e[:, None]
    bin_width = np.diff(np.log(energy_edges)).min()
    g, effective = np.eye(ln_e.size), per_energy.copy()
    for width in bin_width * 0.4 * 1.15 ** np.arange(48):
        short = effective < min_counts
        if not short.any():
            break
        g[short] = _balanced(distance[short], per_energy, width, bin_width)
        effective[short] = (g[short] @ per_energy) ** 2 / (g[short] ** 2 @ per_energy)
    g[g < 1e-6] = 0.0
    return g


def _balanced(distance: NDArray, per_energy: NDArray, width: float, bin_width: float) -> NDArray:
    """Gaussian of ``distance``, tilted to a mean distance of zero as far as there are events on both sides."""
    tilt = np.zeros((distance.shape[0], 1))
    base = -0.5 * (distance / width) ** 2
    seen = np.where(per_energy > 0, 0.0, -np.inf)
    for _ in range(8):
        exponent = base + tilt * distance
        exponent -= (exponent + seen).max(axis=1, keepdims=True)
        weight = np.exp(exponent) * per_energy
        mean = (weight * distance).sum(axis=1, keepdims=True) / weight.sum(axis=1, keepdims=True)
        spread = (weight * distance**2).sum(axis=1, keepdims=True) / weight.sum(axis=1, keepdims=True) - mean**2
        tilt = np.clip(tilt - mean / np.maximum(spread, 1e-3 * bin_width**2), -2 / width, 2 / width)
    return np.where(per_energy > 0, np.exp(exponent), 0.0)


def _conserve(value: NDArray, counts: NDArray, exposure: NDArray, pooled: NDArray, rounds: int = 4) -> NDArray:
    """Scale rings and energies in turn to the counts of each ring and the level of each energy.

    Only energies with a pooled shape are touched; together they get the counts that they have in each ring.
    """
    per_energy, per_ring = (value * exposure).sum(axis=1), counts[pooled].sum(axis=0)
    value = value.copy()
    for _ in range(rounds):
        expected = (value * exposure)[pooled].sum(axis=0)
        known = (expected > 0) & (per_ring > 0)
        value[pooled] *= np.where(known, per_ring / np.where(known, expected, 1.0), 1.0)
        expected = (value * exposure).sum(axis=1)
        seen = pooled & (expected > 0)
        value[seen] *= (per_energy[seen] / expected[seen])[:, None]
    return value


def _fill_blind_rings(shape: NDArray, blind: NDArray) -> NDArray:
    """Rings without exposure from their neighbours, linear in ln(rate); the last seen value beyond them."""
    filled = shape.copy()
    rings = np.arange(shape.shape[1])
    for row, unseen in zip(filled, blind, strict=True):
        if unseen.any():
            row[unseen] = np.exp(np.interp(rings[unseen], rings[~unseen], np.log(row[~unseen])))
    return filled


def _level(per_energy: NDArray, unit_exposure: NDArray, energy_edges: ArrayLike) -> tuple[NDArray, NDArray]:
    """Level of each energy from its counts; pooled above the peak, extrapolated where there are none."""
    energy = np.sqrt(np.asarray(energy_edges)[1:] * np.asarray(energy_edges)[:-1])
    level, flag = np.zeros(energy.size), np.zeros(energy.size, dtype=int)
    for group in _groups(per_energy):
        power = (energy[group] / energy[group[0]]) ** -INDEX
        level[group] = power * per_energy[group].sum() / (unit_exposure[group] * power).sum()
        if len(group) > 1:
            flag[group] = ENERGY_POOLED | np.where(per_energy[group] == 0, EXTRAPOLATED, 0)
    first = int(np.flatnonzero(per_energy)[0])
    if first:
        below = slice(0, first)
        # without exposure "unseen" says nothing, and the level of the first energy is the upper limit
        unseen = UNSEEN / np.maximum(unit_exposure[below], np.finfo(float).tiny)
        level[below] = np.minimum(unseen, level[first])
        flag[below] = EXTRAPOLATED
    return level, flag


def _groups(per_energy: NDArray) -> list[list[int]]:
    """Runs of neighbouring energies that are pooled, from the first energy that has counts.

    Below the peak a pool only bridges empty energies (the spectrum rises steeply there, and a power law would
    carry counts below the threshold); above the peak it grows to `GROUP_COUNTS`.
    """
    first, peak = int(np.flatnonzero(per_energy)[0]), int(per_energy.argmax())
    groups: list[list[int]] = []
    current: list[int] = []
    for k in range(first, per_energy.size):
        current.append(k)
        if per_energy[current].sum() >= (GROUP_COUNTS if k > peak else 1):
            groups.append(current)
            current = []
    if current and per_energy[current].sum() > 0:
        groups.append(current)
    elif current:
        # an empty end joins the last pool: it has no level of its own
        groups[-1] = groups[-1] + current
    return groups


# -- smoothing -----------------------------------------------------------------------------------------------


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
    """Smooth in the field of view, exposure-weighted, counts conserved.

    Counts (rate x exposure) and exposure are spread by the same Gaussian over the plane of the field and averaged
    over each ring; their ratio has no dark edge.  Each energy is scaled to keep its counts.

    Parameters
    ----------
    rate, exposure
        Rate [s-1 TeV-1 sr-1] and exposure [s TeV sr], shape ``(energy, ring)``.
    offset_edges
        Ring edges [deg].
    sigma
        Width of the Gaussian [deg]; 0 changes nothing.

    Examples
    --------
    >>> flat = smooth_rings(np.ones((1, 4)), np.ones((1, 4)), [0.0, 0.5, 1.0, 1.5, 2.0], sigma=0.4)
    >>> bool(np.allclose(flat, 1))
    True
    """
    if sigma < 0:
        raise ValueError(f"smooth_sigma: a width is not negative, got {sigma}")
    if sigma == 0:
        return rate.copy()
    edges = tuple(float(e) for e in np.asarray(offset_edges))
    per_area = ring_mixing(edges, float(sigma)) / fov.ring_grid(edges).bin_solid_angle
    weight = exposure @ per_area.T
    with np.errstate(divide="ignore", invalid="ignore"):
        smoothed = (rate * exposure) @ per_area.T / weight
    smoothed = np.where(weight > 0, smoothed, rate)
    before, after = (rate * exposure).sum(axis=1), (smoothed * exposure).sum(axis=1)
    return smoothed * np.divide(before, after, out=np.ones_like(after), where=after > 0)[:, None]


# -- node values ---------------------------------------------------------------------------------------------


def node_values(rate: NDArray, exposure: NDArray, energy_edges: ArrayLike, offset_edges: ArrayLike) -> NDArray:
    """Values at the bin centres whose interpolation, as gammapy does it, gives the counts back.

    gammapy interpolates ln(rate) linearly in ln E and in offset.  A bin average at the node of a steep spectrum
    predicts too much (9 % with 4 energy bins over 0.3-10 TeV, 1 % with 12).  One factor for each energy and one for
    each ring undo it, by `fit_nodes` to the spectrum and to the radial profile: not a factor for each bin, which
    would follow the noise.

    Parameters
    ----------
    rate, exposure
        Bin averages [s-1 TeV-1 sr-1] and exposure [s TeV sr], shape ``(energy, ring)``.
    energy_edges, offset_edges
        Bin edges [TeV], [deg].

    Returns
    -------
    nodes
        Shape ``(energy, ring)``.
    """
    counts = rate * exposure
    solid_angle = 2 * np.pi * -np.diff(np.cos(np.deg2rad(offset_edges)))
    spectrum, profile = rate @ solid_angle, np.diff(energy_edges) @ rate
    by_energy = fit_nodes(spectrum, counts.sum(axis=1), lambda v: mean_loglog(v, energy_edges)) / spectrum
    by_ring = fit_nodes(profile, counts.sum(axis=0), lambda v: mean_log_ring(v, offset_edges)) / profile
    return rate * by_energy[:, None] * by_ring[None, :]


def fit_nodes(mean: NDArray, counts: NDArray, interpolate: Callable[[NDArray], NDArray]) -> NDArray:
    """Node values whose interpolation is nearest to bin averages, by Poisson likelihood.

    Demanding the average of every bin exactly would be a deconvolution: where a spectrum turns on within a bin, the
    nodes beside it would swing up and down.  The fit returns the counts wherever a smooth curve can, and a prior
    worth `NODE_PRIOR` counts holds the nodes of empty bins at the smooth curve through their neighbours.

    Parameters
    ----------
    mean
        Bin averages, positive, shape ``(n,)``.
    counts
        Events behind each of them.
    interpolate
        Bin averages of nodes; each bin may depend on its own node and its two neighbours (`mean_loglog`).

    Returns
    -------
    nodes
        Shape ``(n,)``.

    Examples
    --------
    >>> edges = np.geomspace(1, 100, 5)
    >>> mean = mean_loglog(np.array([9.0, 3.0, 1.0, 0.3]), edges)
    >>> fit_nodes(mean, np.full(4, 1e6), lambda v: mean_loglog(v, edges)).round(3).tolist()
    [9.0, 3.0, 1.0, 0.3]
    """
    prior = np.log(mean * _smooth_factor(mean, interpolate))
    x = prior.copy()
    for _ in range(MAX_ITERATIONS):
        expected, slope = _expected(x, mean, counts, interpolate)
        # Fisher scoring of the Poisson likelihood in ln(node)
        gradient = slope.T @ (1 - counts / expected) + NODE_PRIOR * (x - prior)
        fisher = slope.T @ (slope / expected[:, None]) + NODE_PRIOR * np.eye(x.size)
        step = np.clip(-np.linalg.solve(fisher, gradient), -0.5, 0.5)
        x += step
        if np.abs(step).max() < 1e-7:
            break
    return np.exp(x)


def _smooth_factor(mean: NDArray, interpolate: Callable[[NDArray], NDArray]) -> NDArray:
    """Node over bin average of the smooth curve through the averages: a first step, itself smoothed."""
    factor = np.log(mean / interpolate(mean))
    return np.exp(np.convolve(np.pad(factor, 1, mode="edge"), [0.25, 0.5, 0.25], mode="valid"))


def _expected(
    x: NDArray, mean: NDArray, counts: NDArray, interpolate: Callable[[NDArray], NDArray]
) -> tuple[NDArray, NDArray]:
    """Expected counts of ln(nodes), and their derivatives, shape ``(bins, nodes)``."""
    scale = np.maximum(counts, TINY_COUNTS) / mean
    expected, slope, step = scale * interpolate(np.exp(x)), np.zeros((x.size, x.size)), 1e-6
    for color in range(3):
        # a bin depends on three nodes at most, so every third node can be moved at once
        moved = np.arange(x.size) % 3 == color
        change = (scale * interpolate(np.exp(x + step * moved)) - expected) / step
        for node in np.flatnonzero(moved):
            near = slice(max(node - 1, 0), node + 2)
            slope[near, node] = change[near]
    return expected, slope


def mean_loglog(nodes: NDArray, edges: ArrayLike) -> NDArray:
    """Bin averages of a curve that is a power law between the (geometric) bin centres.

    Parameters
    ----------
    nodes
        Values at the bin centres, positive, shape ``(n,)``.
    edges
        Bin edges, shape ``(n + 1,)``; the first and last power law go on to the edges.

    Examples
    --------
    >>> edges = np.geomspace(1, 100, 5)
    >>> nodes = (edges[1:] * edges[:-1]) ** -0.5          # 1/E at the centres
    >>> bool(np.allclose(mean_loglog(nodes, edges) * np.diff(edges), np.log(edges[1:] / edges[:-1])))
    True
    """
    edges = np.asarray(edges, dtype=float)
    if nodes.size == 1:
        return nodes.copy()
    center = np.sqrt(edges[1:] * edges[:-1])
    slope = np.diff(np.log(nodes)) / np.diff(np.log(center))
    left, right = np.append(slope[:1], slope), np.append(slope, slope[-1:])
    area = _power_integral(edges[:-1] / center, 1.0, left) + _power_integral(1.0, edges[1:] / center, right)
    return nodes * center * area / np.diff(edges)


def _power_integral(low, high, slope: NDArray) -> NDArray:
    """Integral of x**slope from low to high, also for slope = -1."""
    a, b, p = np.log(low), np.log(high), slope + 1
    middle, half = (a + b) / 2, (b - a) / 2
    # sinh(p h) / p is smooth through p = 0, where it is h
    x = p * half
    sinhc = np.where(np.abs(x) < 1e-6, 1.0, np.sinh(x) / np.where(np.abs(x) < 1e-6, 1.0, x))
    return 2 * half * np.exp(p * middle) * sinhc


def mean_log_ring(nodes: NDArray, offset_edges: ArrayLike, points: int = 8) -> NDArray:
    """Solid-angle averages over rings of a curve whose logarithm is linear between the ring centres.

    Beyond the first and the last centre it is constant, as gammapy's ``MapDatasetMaker`` pads it.

    Parameters
    ----------
    nodes
        Values at the ring centres, positive, shape ``(n,)``.
    offset_edges
        Ring edges [deg], shape ``(n + 1,)``.
    points
        Points of the quadrature in each ring.
    """
    edges = np.asarray(offset_edges, dtype=float)
    center = (edges[1:] + edges[:-1]) / 2
    x = edges[:-1, None] + np.diff(edges)[:, None] * (np.arange(points) + 0.5) / points
    weight = np.sin(np.deg2rad(x))
    value = np.exp(np.interp(x, center, np.log(nodes)))
    return (value * weight).sum(axis=1) / weight.sum(axis=1)
