"""Bins without counts and bins with few: what is taken from which neighbours, flags, and what is known then.

The parts of `dask_bkg.background.estimate.fill_rate`.  Pure arrays: energies TeV, angles deg, exposure s TeV sr; axes
``energy``, then ``ring`` (of offset).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dask_bkg.background.variance import INDEX_ERROR

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


class Pool(NamedTuple):
    """Shape over the rings of each energy, from the events of its neighbours.

    ``shape`` is relative to a flat one, which would have had the counts ``expected``; ``weights`` are those of the
    energies in each pool, ``counts`` what it has; ``empty`` and ``blind`` are rings without counts and exposure.
    """

    shape: NDArray
    flag: NDArray
    weights: NDArray
    counts: NDArray
    expected: NDArray
    empty: NDArray
    blind: NDArray


def pooled_shape(counts: NDArray, exposure: NDArray, energy_edges: ArrayLike, min_counts: float) -> Pool:
    """Relative rate of the rings at each energy, from its pool."""
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
    return Pool(_fill_blind_rings(shape, blind), flag, g, pooled, expected, empty, blind)


def ring_variance(pool: Pool, squares: NDArray, held: NDArray | None = None) -> NDArray:
    """Variance of ln(counts) behind each ring of a shape, shape ``(energy, ring)``.

    Parameters
    ----------
    squares
        Sum of the squares of the weights of events, shape ``(energy, ring)``.
    held
        How the rings were scaled afterwards, see `held_rings`.
    """
    known = np.where(pool.empty | pool.blind, 1.0, pool.counts)
    change = pool.weights[:, :, None] / known[:, None, :]
    if held is not None:
        change = change + held
    variance = np.einsum("kjo,jo->ko", change**2, squares)
    variance = np.where(pool.empty, 1 / UNSEEN, variance)
    # a blind ring was filled from its neighbours
    rings = np.arange(variance.shape[1])
    for row, blind in zip(variance, pool.blind, strict=True):
        if blind.any():
            row[blind] = np.interp(rings[blind], rings[~blind], row[~blind])
    return variance


def held_rings(pool: Pool, expected: NDArray, counts: NDArray, pooled: NDArray) -> NDArray | None:
    """What `conserve` adds to the change of ln(rate) with counts, shape ``(energy, energy, ring)``.

    The rings of all pooled energies together have their own counts, whatever the shape of each.
    """
    per_ring = counts[pooled].sum(axis=0)
    known = per_ring >= UNSEEN
    if not known.any():
        return None
    share = np.where(pooled[:, None], expected, 0.0)
    share = np.divide(share, share.sum(axis=0), out=np.zeros_like(share), where=share.sum(axis=0) > 0)
    behind = np.where(pool.empty | pool.blind, np.inf, pool.counts)
    moved = pool.weights.T @ (share / behind)
    change = pooled[:, None] / np.where(known, per_ring, 1.0) - moved
    return np.where(pooled[:, None, None] & known, change[None], 0.0)


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


def conserve(value: NDArray, counts: NDArray, exposure: NDArray, pooled: NDArray, rounds: int = 4) -> NDArray:
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


class Level(NamedTuple):
    """Level of each energy, flags, and variance of its logarithm, shape ``(energy,)``."""

    value: NDArray
    flag: NDArray
    variance: NDArray


def level_of(per_energy: NDArray, unit_exposure: NDArray, energy_edges: ArrayLike, weight: ArrayLike = 1.0) -> Level:
    """Level of each energy from its counts; pooled above the peak, extrapolated where there are none."""
    energy = np.sqrt(np.asarray(energy_edges)[1:] * np.asarray(energy_edges)[:-1])
    level, flag, variance = np.zeros(energy.size), np.zeros(energy.size, dtype=int), np.zeros(energy.size)
    squares = per_energy * weight
    for group in _groups(per_energy):
        power, counts = (energy[group] / energy[group[0]]) ** -INDEX, per_energy[group]
        level[group] = power * counts.sum() / (unit_exposure[group] * power).sum()
        variance[group] = squares[group].sum() / counts.sum() ** 2
        if len(group) > 1:
            flag[group] = ENERGY_POOLED | np.where(counts == 0, EXTRAPOLATED, 0)
            middle = np.average(np.log(energy[group]), weights=counts)
            variance[group] += (INDEX_ERROR * (np.log(energy[group]) - middle)) ** 2
    first = int(np.flatnonzero(per_energy)[0])
    if first:
        below = slice(0, first)
        # without exposure "unseen" says nothing, and the level of the first energy is the upper limit
        unseen = UNSEEN / np.maximum(unit_exposure[below], np.finfo(float).tiny)
        level[below] = np.minimum(unseen, level[first])
        flag[below], variance[below] = EXTRAPOLATED, 1 / UNSEEN + variance[first]
    return Level(level, flag, variance)


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
