"""A run's own counts, outside of the exclusion and above its threshold: how its background differs from its stack.

Not held out, and hence off by default.  The stack's rate is the mean of a gamma distribution, the prior of the run's,
of the width that ``prior`` counts would measure it with; the run's own counts make it the posterior (empirical Bayes:
the prior is made of the other runs).  Its mean is ``(n + m) / (mu + m)`` times the stack's rate, for ``n`` counts,
``mu`` expected ones and a prior of ``m``, its relative error ``1 / sqrt(n + m)``.  Pure arrays.
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
    """What a run's own counts make of the rate of its stack.

    Attributes
    ----------
    level
        Factor that its level asks for.
    energies
        Factor for each energy, the level included, shape ``(energy,)``.
    level_error
        Relative error of the level of each energy then, shape ``(energy,)``.
    counts
        How many there were.
    """

    level: Factor
    energies: NDArray
    level_error: NDArray
    counts: float


def own_factors(
    counts: NDArray, expected: NDArray, level_error: NDArray, seen: NDArray, kind: str, prior: float
) -> Own:
    """Factors on the rate of a stack by a run's own counts.

    First one for its level, by the counts of all energies; for ``spectrum`` then one for each energy, with the
    expectation at that level.  Energies that are not ``seen`` follow the level.

    Parameters
    ----------
    counts, expected
        The run's counts, and those that its stack's rate expects under its exposed fraction, shape ``(energy,)``.
    level_error
        Relative error of the level of the stack, shape ``(energy,)``.
    seen
        Energies that count: those above the run's threshold, shape ``(energy,)``.
    kind
        ``level`` or ``spectrum``.
    prior
        Counts that the stack's rate is worth: one over the squared scatter of runs about their stacks.

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
        raise ValueError(f"model.own_counts: a prior is worth more than 0 counts, got {prior:g}")
    seen = seen & (expected > 0)
    counts, expected = np.where(seen, counts, 0.0), np.where(seen, expected, 0.0)
    total = float(counts.sum())
    level = Factor((total + prior) / (float(expected.sum()) + prior), float(1 / np.sqrt(total + prior)))
    # of the stack's own error as much is left as its word counts for
    left = prior / (expected.sum() + prior) if kind == "level" else 1.0
    variance = (left * level_error) ** 2 + level.error**2
    factor = np.full(counts.shape, level.value)
    if kind == "spectrum":
        hoped = level.value * expected
        factor = level.value * (counts + prior) / (hoped + prior)
        variance = (prior / (hoped + prior)) ** 2 * variance + 1 / (counts + prior)
    return Own(level, factor, np.sqrt(variance), total)
