"""Correction of a background by the run's own counts, outside of the exclusion and above its threshold.

Off by default, because the counts that such a background is compared with contributed to it.  The prior of the run's
rate is a gamma distribution about the rate of the stack, as wide as if ``m`` counts had measured it (empirical Bayes:
the prior comes from the other runs).  With ``n`` counts where ``mu`` are expected, the posterior has the mean
``(n + m) / (mu + m)`` times the rate of the stack, and the relative error ``1 / sqrt(n + m)``.  Pure arrays.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

KINDS = ("off", "level", "spectrum")


class Factor(NamedTuple):
    """A factor on a rate, and its relative error."""

    value: float = 1.0
    error: float = 0.0


class Own(NamedTuple):
    """Correction of the rate of a stack by the run's own counts.

    Attributes
    ----------
    level
        Factor on the normalisation, the same for all energies.
    energies
        Factor for each energy, ``level`` included, shape ``(energy,)``.
    level_error
        Relative error of the corrected normalisation of each energy, shape ``(energy,)``.
    counts
        Number of counts that were used.
    """

    level: Factor
    energies: NDArray
    level_error: NDArray
    counts: float


def own_factors(
    counts: NDArray, expected: NDArray, level_error: NDArray, seen: NDArray, kind: str, prior: float
) -> Own:
    """Factors on the rate of a stack by a run's own counts.

    First one for the normalisation, by the counts of all energies; for ``spectrum`` then one for each energy, with
    the expectation corrected by the first.  Energies that are not ``seen`` get the first factor alone.

    Parameters
    ----------
    counts, expected
        The run's counts, and those that the rate of its stack expects for its exposure, shape ``(energy,)``.
    level_error
        Relative error of the normalisation of the stack, shape ``(energy,)``.
    seen
        Energies that are used, those above the run's threshold: boolean, shape ``(energy,)``.
    kind
        ``level`` or ``spectrum``.
    prior
        Counts that the rate of the stack is worth: one over the squared scatter of runs about their stacks.

    Raises
    ------
    ValueError
        If there is no such kind, or the prior is not positive.

    Examples
    --------
    >>> seen = np.array([False, True, True])
    >>> own = own_factors(np.array([5.0, 220, 30]), np.array([50.0, 180, 20]), np.zeros(3), seen, "level", 100.0)
    >>> round(own.level.value, 4), round(float(own.level.error), 4), own.energies.round(4).tolist()
    (1.1667, 0.0535, [1.1667, 1.1667, 1.1667])
    """
    if kind not in KINDS[1:]:
        raise ValueError(f"model.own {kind!r}: accepted are {', '.join(KINDS)}")
    if not prior > 0:
        raise ValueError(f"model.own_counts: the prior must be more than 0 counts, got {prior:g}")
    seen = seen & (expected > 0)
    counts, expected = np.where(seen, counts, 0.0), np.where(seen, expected, 0.0)
    total = float(counts.sum())
    level = Factor((total + prior) / (float(expected.sum()) + prior), float(1 / np.sqrt(total + prior)))
    # the error of the stack is reduced as its weight in the posterior is
    left = prior / (expected.sum() + prior) if kind == "level" else 1.0
    variance = (left * level_error) ** 2 + level.error**2
    factor = np.full(counts.shape, level.value)
    if kind == "spectrum":
        corrected = level.value * expected
        factor = level.value * (counts + prior) / (corrected + prior)
        variance = (prior / (corrected + prior)) ** 2 * variance + 1 / (counts + prior)
    return Own(level, factor, np.sqrt(variance), total)
