"""Statistical error of a rate, by propagation: of the level of each energy, and of the shape over the rings.

Given the events of an energy, how they are spread over the rings says nothing about how many there are.  So the two
are independent, whether they come from the same runs or from others; for a single run that is not pooled they add up
to 1 / n again.  All variances are relative, those of logarithms.  Pure arrays; axes ``energy``, then ``ring``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

INDEX_ERROR = 0.5
"""How far the index of the spectrum may be off where energies are pooled or extrapolated by a power law."""

BLIND_ERROR = 0.3
"""Relative error of a ring that no run exposes, for each ring to the next one that some do."""


class Weights(NamedTuple):
    """Mean weight of the events in stacks, sum(w^2 n) / sum(w n), of each energy or of all.

    Attributes
    ----------
    spectrum, shape
        Of the runs of each.
    """

    spectrum: ArrayLike = 1.0
    shape: ArrayLike = 1.0


class Variance(NamedTuple):
    """Variance of ln(rate), in parts.

    Attributes
    ----------
    level
        Of the level of each energy, shape ``(energy,)``.
    ring
        Of the counts behind each ring of the shape, shape ``(energy, ring)``.
    response
        How the shape of each ring changes with them, shape ``(energy, ring, ring)``
        (`dask_bkg.background.smooth.Smoothed`).
    guess
        What is added where nobody looked, shape ``(energy, ring)``.
    """

    level: NDArray
    ring: NDArray
    response: NDArray
    guess: NDArray

    def errors(self, expected: NDArray) -> NDArray:
        """Relative error of each bin.

        Parameters
        ----------
        expected
            Counts that the rate expects where the level was found, shape ``(energy, ring)``: their sum is held.
        """
        total = expected.sum(axis=1, keepdims=True)
        share = np.where(total > 0, expected / np.where(total > 0, total, 1.0), 1 / expected.shape[1])
        change = self.response - (share[:, None, :] @ self.response)
        shape = (change**2 * self.ring[:, None, :]).sum(axis=2)
        return np.asarray(np.sqrt(self.level[:, None] + shape + self.guess))


def effective_counts(counts: NDArray, weight: ArrayLike) -> NDArray:
    """Number of events of weight 1 that would tell as much: (sum w n)^2 / sum(w^2 n).

    Examples
    --------
    >>> effective_counts(np.array([[60.0, 40.0]]), 0.5).tolist()
    [[120.0, 80.0]]
    """
    return np.asarray(counts / column(weight))


def column(weight: ArrayLike) -> NDArray:
    """A number for each energy, or one for all, beside an array of shape ``(energy, ring)``."""
    return np.asarray(weight, dtype=float).reshape(-1, 1)


def mean_weight(counts: NDArray, squares: NDArray) -> NDArray:
    """Mean weight of the events of each energy; where there are none, that of all.

    Parameters
    ----------
    counts
        Sum of the weights of events, shape ``(energy, ...)``.
    squares
        Sum of their squares, shape ``(energy,)``.

    Examples
    --------
    >>> mean_weight(np.array([[2.0, 1.0], [0.0, 0.0]]), np.array([1.5, 0.0])).tolist()
    [0.5, 0.5]
    """
    total = counts.reshape(squares.size, -1).sum(axis=1)
    common = squares.sum() / total.sum() if total.sum() > 0 else 1.0
    # an event of a run that weighs next to nothing may be lost in rounding
    return np.divide(squares, total, out=np.full(squares.size, common), where=(total > 0) & (squares > 0))


def blind_errors(blind: NDArray) -> NDArray:
    """Variance for the rings that no run exposes, by their distance from those that some do.

    Examples
    --------
    >>> blind_errors(np.array([[False, True, True]])).round(2).tolist()
    [[0.0, 0.09, 0.36]]
    """
    rings = np.arange(blind.shape[1])
    distance = np.abs(rings[:, None] - rings)[None] + np.where(blind, np.inf, 0.0)[:, None, :]
    nearest = distance.min(axis=2)
    return (BLIND_ERROR * np.where(np.isfinite(nearest), nearest, blind.shape[1])) ** 2
