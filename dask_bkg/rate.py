"""From stacked counts and exposure to a background rate that an interpolation can live with.

The steps, in their order: `fill_rate` (no empty bin is left; the shape may come from more runs than the spectrum),
`dask_bkg.smoothing.smooth_rings`,
`dask_bkg.nodes.node_values` (gammapy interpolates between bin centres; the values are set such that this
interpolation gives the counts back).  Pure arrays: energies TeV, angles deg, exposure s TeV sr, rates
s-1 TeV-1 sr-1; axes ``energy``, then ``ring`` (of offset).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dask_bkg.nodes import node_values
from dask_bkg.smoothing import smooth_rings

INDEX = 2.7
"""Spectral index of the cosmic-ray background, for the energies where the counts say nothing."""

UNSEEN = 0.3
"""Number of events that an empty bin stands for: a zero among 20 such bins would be no surprise."""

GROUP_COUNTS = 10
"""Counts below which an energy above the peak is pooled with its neighbour."""

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
    mean
        Averages over the bins, of which ``value`` are the nodes, shape ``(energy, ring)``; None: they are the same.
    """

    value: NDArray
    flag: NDArray
    mean: NDArray | None = None

    @property
    def average(self) -> NDArray:
        """Averages over the bins."""
        return self.value if self.mean is None else self.mean


class Histogram(NamedTuple):
    """Events and exposure [s TeV sr] of the same bins, shape ``(energy, ring)`` or ``(energy, fov_lat, fov_lon)``."""

    counts: NDArray
    exposure: NDArray


class RateSettings(NamedTuple):
    """How a rate is made of counts and exposure; the defaults are those of the configuration.

    Attributes
    ----------
    fill
        Leave no bin empty (`fill_rate`); False: plain counts / exposure.
    min_counts
        Events that a pool of energies needs for a radial shape of its own.
    shape_sigma
        Width of the smoothing of a shape that has runs of its own [deg], where no other is asked for.
    smooth_sigma
        Width of the smoothing [deg]; 0: none.
    smooth_method
        ``field`` (`dask_bkg.smoothing.smooth_rings`) or ``to_3d`` (the procedure's way, `dask_bkg.irf.smooth`).
    smooth_bins
        The width in offset bins, which is what ``to_3d`` takes.
    node_values
        ``conserving`` (`dask_bkg.nodes.node_values`) or ``plain``: the bin averages themselves.
    """

    fill: bool = True
    min_counts: float = 500
    shape_sigma: float = 0.2
    smooth_sigma: float = 0.0
    smooth_method: str = "field"
    smooth_bins: float = 0.0
    node_values: str = "conserving"

    @property
    def through_gammapy(self) -> bool:
        """Whether the procedure's smoothing follows, which is gammapy's and not done here."""
        return self.smooth_method == "to_3d" and self.smooth_bins > 0


def estimate_rate(
    counts: NDArray,
    exposure: NDArray,
    edges: tuple[NDArray, NDArray],
    settings: RateSettings | None = None,
    shape: Histogram | None = None,
) -> Rate:
    """All steps of this module, in their order; see there.

    Parameters
    ----------
    counts, exposure
        Events and exposure [s TeV sr], shape ``(energy, ring)``.
    edges
        Bin edges of energy [TeV] and offset [deg].
    settings
        What is done; smoothing through ``to_3d`` is not done here, as it is gammapy's. Where ``fill`` is False, a bin
        without exposure has the rate 0.
    shape
        Counts and exposure of the runs that the shape over the rings comes from, on the same axes or on some rings
        more (then the rate has these as well); None: the same as the spectrum.

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
    if settings.fill and shape is not None and shape.counts.any():
        sigma = 0.0 if settings.smooth_sigma else settings.shape_sigma
        rate = rate_of_shape(Histogram(counts, exposure), shape, edges, settings.min_counts, sigma)
        exposure = continue_rings(exposure, shape.exposure)
    elif settings.fill:
        rate = fill_rate(counts, exposure, edges[0], settings.min_counts)
    else:
        # a file has no place for "not known"; a NaN of a filled rate would be a fault, and is not to be hidden
        plain = np.nan_to_num(plain_rate(counts, exposure), posinf=0.0)
        rate = Rate(plain, np.zeros(counts.shape, dtype=int))
    value = rate.value
    if settings.smooth_method == "field":
        value = smooth_rings(value, exposure, edges[1], settings.smooth_sigma)
    if settings.node_values == "plain":
        return Rate(value, rate.flag)
    return Rate(node_values(value, exposure, *edges), rate.flag, value)


def plain_rate(counts: NDArray, exposure: NDArray) -> NDArray:
    """Counts / exposure, as the procedure has it: NaN in a bin without exposure, 0 in one without counts."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return counts / exposure


def fill_rate(counts: NDArray, exposure: NDArray, energy_edges: ArrayLike, min_counts: float = 500) -> Rate:
    """Rate without empty bins; counts conserved from the first energy that has any.

    The radial shape of an energy is pooled with that of its neighbours in ln E, just wide enough for ``min_counts``;
    the level of each energy follows from its own counts, those above the peak pooled to ten; then rings and energies
    are scaled in turn until both have their counts.

    What is added to the counts: each energy below the first one that has any gets a rate worth at most `UNSEEN`
    events, spread over its rings (for four empty energies, as in the default binning: 4 % of the counts of a run of
    30 events, 1 % of 100, nothing to speak of above; more for more of them).  An empty bin, ring or energy from there
    on takes its share from the counts of its neighbours.  Events of bins without exposure are left out, as no rate
    can account for them.

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
    counts = np.where(exposure > 0, counts, 0.0)
    if not counts.sum() > 0:
        raise ValueError("no counts in the binning, or no exposure: nothing to make a rate of")
    shape, shape_flag, _ = _pooled_shape(counts, exposure, energy_edges, min_counts)
    level, level_flag = _level(counts.sum(axis=1), (exposure * shape).sum(axis=1), energy_edges)
    flag = shape_flag | level_flag[:, None]
    return Rate(_conserve(level[:, None] * shape, counts, exposure, (flag & SHAPE_POOLED).any(axis=1)), flag)


def rate_of_shape(
    spectrum: Histogram, shape: Histogram, edges: tuple[NDArray, NDArray], min_counts: float = 500, sigma: float = 0.0
) -> Rate:
    """Rate with the shape over the rings of some runs, and the level of each energy of others.

    Steps 3 and 4 of the recipe of ``science.md``: the shape of an energy is that of the pooled events of its
    neighbours (`fill_rate`), smoothed; its level is what the counts of the spectrum ask for, given that shape.  The
    counts of each energy are conserved, not those of the rings: the spectrum's runs are few, and do not know better.

    Parameters
    ----------
    spectrum, shape
        Counts and exposure [s TeV sr] of both; the shape may have some rings more.
    edges
        Bin edges of energy [TeV] and offset [deg], of all the rings of the shape.
    min_counts
        Events that a pool of energies needs for a radial shape of its own.
    sigma
        Width of the smoothing of the shape [deg] (`dask_bkg.smoothing.smooth_rings`).

    Raises
    ------
    ValueError
        If there are no counts, or no exposure, at all.

    Examples
    --------
    >>> edges = np.array([1.0, 2.0, 4.0]), np.array([0.0, 1.0, 2.0])
    >>> few, many = (Histogram(n * np.array([[20.0, 10], [2, 1]]), np.ones((2, 2))) for n in (1, 100))
    >>> rate_of_shape(few, many, edges).value.round(3).tolist()
    [[20.0, 10.0], [2.0, 1.0]]
    """
    counts = np.where(spectrum.exposure > 0, spectrum.counts, 0.0)
    many = np.where(shape.exposure > 0, shape.counts, 0.0)
    if not (counts.sum() > 0 and many.sum() > 0):
        raise ValueError("no counts in the binning, or no exposure: nothing to make a rate of")
    relative, flag, expected = _pooled_shape(many, shape.exposure, edges[0], min_counts)
    relative = smooth_rings(relative, expected, edges[1], sigma)
    seen = (spectrum.exposure * relative[:, : counts.shape[1]]).sum(axis=1)
    level, level_flag = _level(counts.sum(axis=1), seen, edges[0])
    return Rate(level[:, None] * relative, flag | level_flag[:, None])


def continue_rings(rings: NDArray, more: NDArray) -> NDArray:
    """Rings, shape ``(energy, ring)``, and behind them what another array has of those beyond."""
    return np.concatenate([rings, more[:, rings.shape[1] :]], axis=1)


def _pooled_shape(counts, exposure, energy_edges, min_counts) -> tuple[NDArray, NDArray, NDArray]:
    """Relative rate of the rings at each energy, flags, and the counts that a flat one would have had."""
    per_energy = counts.sum(axis=1)
    spectrum = np.divide(per_energy, exposure.sum(axis=1), out=np.zeros_like(per_energy), where=per_energy > 0)
    g = pooling_weights(per_energy, energy_edges, min_counts)
    pooled, expected = g @ counts, g @ (spectrum[:, None] * exposure)
    flag = np.where((g > 0).sum(axis=1) > 1, SHAPE_POOLED, MEASURED)[:, None] | np.zeros(counts.shape, int)
    with np.errstate(divide="ignore", invalid="ignore"):
        shape = pooled / expected
        unseen = UNSEEN / expected
    # of a run that weighs next to nothing an event is next to nothing too: no more than none at all
    empty = (pooled < UNSEEN) & (expected > 0)
    smallest = np.where(pooled >= UNSEEN, shape, np.inf).min(axis=1, keepdims=True)
    shape = np.where(empty, np.minimum(unseen, smallest), shape)
    blind = ~(expected > 0)
    flag[empty | blind] |= RING_FILLED
    return _fill_blind_rings(shape, blind), flag, expected


def pooling_weights(per_energy: NDArray, energy_edges: ArrayLike, min_counts: float) -> NDArray:
    """Weights in ln E, row by row just wide enough for ``min_counts``; a unit row where none is needed.

    A Gaussian, tilted such that the mean ln E of the pooled events is that of the row: the spectrum falls steeply,
    and an upright one would give every energy the radial shape of a lower one.
    """
    ln_e = np.log(np.sqrt(np.asarray(energy_edges)[1:] * np.asarray(energy_edges)[:-1]))
    distance = ln_e[None, :] - ln_e[:, None]
    bin_width = np.diff(np.log(energy_edges)).min()
    # an empty energy has nothing to pool below the distance to the nearest one with counts
    nearest = np.abs(distance[:, per_energy > 0]).min(axis=1, keepdims=True)
    g, effective = np.eye(ln_e.size), per_energy.copy()
    short = (effective < min_counts) | (per_energy == 0)
    for width in bin_width * 0.4 * 1.15 ** np.arange(48):
        if not short.any():
            break
        g[short] = _balanced(distance[short], per_energy, np.maximum(width, nearest[short]), bin_width)
        effective[short] = (g[short] @ per_energy) ** 2 / (g[short] ** 2 @ per_energy)
        short = effective < min_counts
    g[g < 1e-6] = 0.0
    return g


def _balanced(distance: NDArray, per_energy: NDArray, width: NDArray, bin_width: float) -> NDArray:
    """Gaussian of ``distance``, tilted to a mean distance of zero as far as there are events on both sides.

    Empty energies weigh nothing; the largest weight of a row is 1, and that of an energy with counts.
    """
    seen = per_energy > 0
    # without the empty energies: on the far side of a tilt their exponents have no bound
    distance, counts = distance[:, seen], per_energy[seen]
    tilt, base = np.zeros_like(width), -0.5 * (distance / width) ** 2
    for _ in range(8):
        exponent = base + tilt * distance
        weight = np.exp(exponent - exponent.max(axis=1, keepdims=True))
        share = weight * counts / (weight @ counts)[:, None]
        mean = (share * distance).sum(axis=1, keepdims=True)
        spread = (share * distance**2).sum(axis=1, keepdims=True) - mean**2
        tilt = np.clip(tilt - mean / np.maximum(spread, 1e-3 * bin_width**2), -2 / width, 2 / width)
    balanced = np.zeros((distance.shape[0], per_energy.size))
    balanced[:, seen] = weight
    return balanced


def _conserve(value: NDArray, counts: NDArray, exposure: NDArray, pooled: NDArray, rounds: int = 4) -> NDArray:
    """Scale rings and energies in turn to the counts of each ring and the level of each energy.

    Only energies with a pooled shape are touched; together they get the counts that they have in each ring.
    """
    per_energy, per_ring = (value * exposure).sum(axis=1), counts[pooled].sum(axis=0)
    value = value.copy()
    for _ in range(rounds):
        expected = (value * exposure)[pooled].sum(axis=0)
        known = (expected > 0) & (per_ring >= UNSEEN)
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
