"""Statistical error of a rate, by propagation: of the normalisation of each energy, and of the shape over offset.

The number of events of an energy and their distribution over offset are independent, whether they come from the same
runs or from others; for a single run that is not pooled the two variances add up to 1 / n again.  All variances are
relative, those of logarithms.  Pure arrays; axes ``energy``, then ``offset``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

INDEX_ERROR = 0.5
"""Error of the spectral index where energies are pooled or extrapolated by a power law."""

BLIND_ERROR = 0.3
"""Relative error of an offset bin that no run exposes, per offset bin of distance to the next exposed one."""


class Weights(NamedTuple):
    """Mean weight of the events in the stacks of spectrum and shape, sum(w^2 n) / sum(w n).

    A number, or one for each energy, shape ``(energy,)``.
    """

    spectrum: ArrayLike = 1.0
    shape: ArrayLike = 1.0


class Variance(NamedTuple):
    """Variance of ln(rate), in parts.

    Attributes
    ----------
    normalisation
        Of the normalisation of each energy, shape ``(energy,)``.
    shape
        Of the counts from which each offset bin of the shape is estimated, shape ``(energy, offset)``.
    response
        How ln(shape) of each offset bin changes with ln of the counts of each, shape ``(energy, offset, offset)``
        (`dask_bkg.background.smooth.Smoothed`).
    blind
        What is added in offset bins that no run exposes, shape ``(energy, offset)``.
    """

    normalisation: NDArray
    shape: NDArray
    response: NDArray
    blind: NDArray

    def errors(self, expected: NDArray) -> NDArray:
        """Relative error of each bin, shape ``(energy, offset)``.

        Parameters
        ----------
        expected
            Counts that the rate expects of the runs of the spectrum, shape ``(energy, offset)``: a change of the
            shape leaves their sum as it is.
        """
        total = expected.sum(axis=1, keepdims=True)
        share = np.where(total > 0, expected / np.where(total > 0, total, 1.0), 1 / expected.shape[1])
        change = self.response - (share[:, None, :] @ self.response)
        shape = (change**2 * self.shape[:, None, :]).sum(axis=2)
        return np.asarray(np.sqrt(self.normalisation[:, None] + shape + self.blind))


def effective_counts(counts: NDArray, weight: ArrayLike) -> NDArray:
    """Number of events of weight 1 with the same relative error: (sum w n)^2 / sum(w^2 n), shape of ``counts``.

    Parameters
    ----------
    counts
        Sum of the weights of events, shape ``(energy, ...)``.
    weight
        Their mean weight (`mean_weight`), of each energy or of all.

    Examples
    --------
    >>> effective_counts(np.array([[60.0, 40.0]]), 0.5).tolist()
    [[120.0, 80.0]]
    """
    return np.asarray(counts / column(weight))


def column(weight: ArrayLike) -> NDArray:
    """A number for each energy, or one for all, as a column that multiplies arrays of shape ``(energy, offset)``."""
    return np.asarray(weight, dtype=float).reshape(-1, 1)


def mean_weight(counts: NDArray, squares: NDArray) -> NDArray:
    """Mean weight of the events of each energy, shape ``(energy,)``; where there are none, that of all.

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
    # an event of a run with a negligible weight may be lost in rounding
    return np.divide(squares, total, out=np.full(squares.size, common), where=(total > 0) & (squares > 0))


def blind_errors(blind: NDArray) -> NDArray:
    """Variance of offset bins that no run exposes (``blind``), by their distance from exposed ones; same shape.

    Examples
    --------
    >>> blind_errors(np.array([[False, True, True]])).round(2).tolist()
    [[0.0, 0.09, 0.36]]
    """
    index = np.arange(blind.shape[1])
    distance = np.abs(index[:, None] - index)[None] + np.where(blind, np.inf, 0.0)[:, None, :]
    nearest = distance.min(axis=2)
    return (BLIND_ERROR * np.where(np.isfinite(nearest), nearest, blind.shape[1])) ** 2
