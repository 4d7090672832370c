"""Bins without counts and bins with few: what they take from their neighbours, their flags and variances.

The parts of `dask_bkg.background.estimate.fill_rate`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dask_bkg.background.variance import INDEX_ERROR

INDEX = 2.7
"""Spectral index of the cosmic-ray background, for energies without counts."""

UNSEEN = 0.3
"""Number of events that an empty bin stands for: a zero among 20 such bins would be no surprise."""

GROUP_COUNTS = 10
"""Counts below which an energy above the peak is pooled with its neighbour."""

MEASURED, SHAPE_POOLED, ENERGY_POOLED, RING_FILLED, EXTRAPOLATED = 0, 1, 2, 4, 8
FLAGS = {
    SHAPE_POOLED: "radial shape pooled over energies",
    ENERGY_POOLED: "spectrum pooled over neighbouring energies",
    RING_FILLED: "offset bin without counts or exposure, filled from its neighbours",
    EXTRAPOLATED: "energy without counts, extrapolated",
}


class Pool(NamedTuple):
    """Shape over offset of each energy, from the events of its neighbours.

    Attributes
    ----------
    shape
        Rate relative to a flat one, shape ``(energy, offset)``.
    flag
        Sum of the bits in `FLAGS`, shape ``(energy, offset)``.
    weights
        Weight of each energy in each pool, shape ``(energy, energy)``.
    counts, expected
        Counts of the pools, and those that a flat rate expects, shape ``(energy, offset)``.
    empty, blind
        Offset bins without counts, and those without exposure, shape ``(energy, offset)``.
    """

    shape: NDArray
    flag: NDArray
    weights: NDArray
    counts: NDArray
    expected: NDArray
    empty: NDArray
    blind: NDArray


def pooled_shape(counts: NDArray, exposure: NDArray, energy_edges: ArrayLike, min_counts: float) -> Pool:
    """Relative rate of the offset bins at each energy, from its pool: arguments as for `estimate.fill_rate`."""
    per_energy = counts.sum(axis=1)
    spectrum = np.divide(per_energy, exposure.sum(axis=1), out=np.zeros_like(per_energy), where=per_energy > 0)
    g = pooling_weights(per_energy, energy_edges, min_counts)
    pooled, expected = g @ counts, g @ (spectrum[:, None] * exposure)
    flag = np.where((g > 0).sum(axis=1) > 1, SHAPE_POOLED, MEASURED)[:, None] | np.zeros(counts.shape, int)
    with np.errstate(divide="ignore", invalid="ignore"):
        shape = pooled / expected
        unseen = UNSEEN / expected
    # an event of a run with a negligible weight counts as no event
    empty = (pooled < UNSEEN) & (expected > 0)
    smallest = np.where(pooled >= UNSEEN, shape, np.inf).min(axis=1, keepdims=True)
    shape = np.where(empty, np.minimum(unseen, smallest), shape)
    blind = ~(expected > 0)
    flag[empty | blind] |= RING_FILLED
    # linear in ln(rate)
    shape = np.where(blind, np.exp(_interpolate_blind(np.log(shape), blind)), shape)
    return Pool(shape, flag, g, pooled, expected, empty, blind)


def shape_variance(pool: Pool, squares: NDArray, conserved: NDArray | None = None) -> NDArray:
    """Variance of ln(counts) from which each offset bin of a shape is estimated, shape ``(energy, offset)``.

    Parameters
    ----------
    pool
        The shape.
    squares
        Sum of the squares of the weights of events, shape ``(energy, offset)``.
    conserved
        How the offset bins were scaled afterwards, see `conserved_response`.
    """
    counts = np.where(pool.empty | pool.blind, 1.0, pool.counts)
    change = pool.weights[:, :, None] / counts[:, None, :]
    if conserved is not None:
        change = change + conserved
    variance = np.einsum("kjo,jo->ko", change**2, squares)
    variance = np.where(pool.empty, 1 / UNSEEN, variance)
    return _interpolate_blind(variance, pool.blind)


def conserved_response(pool: Pool, expected: NDArray, counts: NDArray, pooled: NDArray) -> NDArray | None:
    """What `conserve` adds to the change of ln(rate) with counts, shape ``(energy, energy, offset)``; None: nothing.

    All pooled energies together keep the counts of each offset bin, whatever the shape of each.

    Parameters
    ----------
    pool
        The shape.
    expected, counts
        Counts that the rate expects, and the observed ones, shape ``(energy, offset)``.
    pooled
        Energies with a pooled shape, shape ``(energy,)``.
    """
    per_offset = counts[pooled].sum(axis=0)
    scaled = per_offset >= UNSEEN
    if not scaled.any():
        return None
    share = np.where(pooled[:, None], expected, 0.0)
    share = np.divide(share, share.sum(axis=0), out=np.zeros_like(share), where=share.sum(axis=0) > 0)
    moved = pool.weights.T @ (share / np.where(pool.empty | pool.blind, np.inf, pool.counts))
    change = pooled[:, None] / np.where(scaled, per_offset, 1.0) - moved
    return np.where(pooled[:, None, None] & scaled, change[None], 0.0)


def pooling_weights(per_energy: NDArray, energy_edges: ArrayLike, min_counts: float) -> NDArray:
    """Weights in ln E, row by row just wide enough for ``min_counts``; a unit row where none is needed.

    A Gaussian, tilted such that the mean ln E of the pooled events is that of the row: the spectrum falls steeply,
    and without the tilt every energy would have the radial shape of a lower one.

    Parameters
    ----------
    per_energy
        Events, shape ``(energy,)``.
    energy_edges
        Bin edges [TeV], shape ``(energy + 1,)``.
    min_counts
        Effective events that a pool needs.

    Returns
    -------
    weights
        Shape ``(energy, energy)``; a row for each pool.
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
    """Scale offset bins and energies in turn to the counts of each offset bin and the normalisation of each energy.

    Only ``pooled`` energies, those with a pooled shape, are scaled; together they get the counts that they have in
    each offset bin.  Rates, counts and exposure have the shape ``(energy, offset)``.
    """
    per_energy, per_offset = (value * exposure).sum(axis=1), counts[pooled].sum(axis=0)
    value = value.copy()
    for _ in range(rounds):
        expected = (value * exposure)[pooled].sum(axis=0)
        seen = (expected > 0) & (per_offset >= UNSEEN)
        value[pooled] *= np.where(seen, per_offset / np.where(seen, expected, 1.0), 1.0)
        expected = (value * exposure).sum(axis=1)
        scaled = pooled & (expected > 0)
        value[scaled] *= (per_energy[scaled] / expected[scaled])[:, None]
    return value


def _interpolate_blind(values: NDArray, blind: NDArray) -> NDArray:
    """Offset bins without exposure interpolated between their neighbours; the last exposed value beyond them."""
    filled = values.copy()
    index = np.arange(values.shape[1])
    for row, unseen in zip(filled, blind, strict=True):
        if unseen.any():
            row[unseen] = np.interp(index[unseen], index[~unseen], row[~unseen])
    return filled


class Normalisation(NamedTuple):
    """Normalisation of each energy, flags, and variance of its logarithm, shape ``(energy,)``."""

    value: NDArray
    flag: NDArray
    variance: NDArray


def normalisations(
    per_energy: NDArray, unit_exposure: NDArray, energy_edges: ArrayLike, weight: ArrayLike = 1.0
) -> Normalisation:
    """Normalisation of each energy from its counts; pooled above the peak, extrapolated where there are none.

    Parameters
    ----------
    per_energy, unit_exposure
        Events, and those that a normalisation of 1 expects, shape ``(energy,)``.
    energy_edges
        Bin edges [TeV], shape ``(energy + 1,)``.
    weight
        Mean weight of the events of each energy, or of all.
    """
    energy = np.sqrt(np.asarray(energy_edges)[1:] * np.asarray(energy_edges)[:-1])
    norm, flag, variance = np.zeros(energy.size), np.zeros(energy.size, dtype=int), np.zeros(energy.size)
    squares = per_energy * weight
    for group in _groups(per_energy):
        power, counts = (energy[group] / energy[group[0]]) ** -INDEX, per_energy[group]
        norm[group] = power * counts.sum() / (unit_exposure[group] * power).sum()
        variance[group] = squares[group].sum() / counts.sum() ** 2
        if len(group) > 1:
            flag[group] = ENERGY_POOLED | np.where(counts == 0, EXTRAPOLATED, 0)
            middle = np.average(np.log(energy[group]), weights=counts)
            variance[group] += (INDEX_ERROR * (np.log(energy[group]) - middle)) ** 2
    first = int(np.flatnonzero(per_energy)[0])
    if first:
        below = slice(0, first)
        # without exposure the normalisation of the first energy is the upper limit
        unseen = UNSEEN / np.maximum(unit_exposure[below], np.finfo(float).tiny)
        norm[below] = np.minimum(unseen, norm[first])
        flag[below], variance[below] = EXTRAPOLATED, 1 / UNSEEN + variance[first]
    return Normalisation(norm, flag, variance)


def _groups(per_energy: NDArray) -> list[list[int]]:
    """Groups of neighbouring energies that are pooled, from the first energy that has counts.

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
        # empty energies at the end join the last pool
        groups[-1] = groups[-1] + current
    return groups
