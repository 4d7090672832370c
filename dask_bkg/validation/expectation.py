"""What Poisson statistics alone make of significances and deviances: tabulated over the expected counts.

The significance of n counts where mu are expected is sign(n - mu) times the root of the Cash ratio
``2 (mu - n + n ln(n / mu))``, which is the deviance of the bin.  For few counts it is no unit normal: its mean is
below 0, its width above 1, and that is what a perfect background has to be compared with.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

LN_MU = np.linspace(np.log(1e-6), np.log(1e4), 461)
"""Expected counts of the table, evenly in their logarithm; beyond it the last values hold."""

S_EDGES = np.linspace(-8.0, 8.0, 81)
"""Edges of the histogram of significances; what is beyond goes into the outermost bins."""

TAILS = (3.0, 5.0)


class Expected(NamedTuple):
    """Expectations, arrays of the shape of the expected counts.

    Attributes
    ----------
    mean, square
        Of the significance, and of its square, the deviance.
    variance
        Of the deviance.
    tails
        Probability of a significance beyond 3 and beyond 5 in either direction, shape ``(..., 2)``.
    """

    mean: NDArray
    square: NDArray
    variance: NDArray
    tails: NDArray


def significance(counts: ArrayLike, mu: ArrayLike) -> NDArray:
    """Sign times root of the Cash ratio; ``mu`` > 0.

    Examples
    --------
    >>> significance([0, 10, 40], [2.0, 10.0, 20.0]).round(3).tolist()
    [-2.0, 0.0, 3.931]
    """
    n, mu = np.asarray(counts, dtype=float), np.asarray(mu, dtype=float)
    term = n * np.log(np.where(n > 0, n, 1.0) / mu)
    return np.sign(n - mu) * np.sqrt(np.maximum(2 * (mu - n + term), 0.0))


def expected(mu: ArrayLike) -> Expected:
    """Expectations under Poisson statistics.

    Parameters
    ----------
    mu
        Expected counts, any shape.

    Examples
    --------
    >>> told = expected([8.0, 1000.0])
    >>> np.sqrt(told.square - told.mean**2).round(3).tolist()
    [1.01, 1.0]
    """
    at = _places(mu)
    left = np.minimum(at.astype(int), LN_MU.size - 2)
    share = (at - left)[..., None]
    values = _table()[0]
    told = values[left] * (1 - share) + values[left + 1] * share
    return Expected(told[..., 0], told[..., 1], told[..., 2], told[..., 3:])


def spread(mu: NDArray) -> NDArray:
    """How many bins there are of each expectation of the table, shape ``(461,)``; for `expected_histogram`."""
    at = _places(mu).ravel()
    left = np.minimum(at.astype(int), LN_MU.size - 2)
    share = at - left
    n = LN_MU.size
    return np.bincount(left, 1 - share, minlength=n) + np.bincount(left + 1, share, minlength=n)


def expected_histogram(bins: NDArray) -> NDArray:
    """Histogram of significances (`S_EDGES`) that is expected of bins with the expectations that `spread` gives."""
    return bins @ _table()[1]


def histogram(s: NDArray) -> NDArray:
    """Histogram of significances, shape ``(80,)``."""
    return np.histogram(np.clip(s, S_EDGES[0] + 1e-9, S_EDGES[-1] - 1e-9), S_EDGES)[0].astype(float)


def _places(mu: ArrayLike) -> NDArray:
    """Where expected counts are in the table, in steps of it."""
    with np.errstate(divide="ignore"):
        ln_mu = np.clip(np.log(np.asarray(mu, dtype=float)), LN_MU[0], LN_MU[-1])
    return (ln_mu - LN_MU[0]) / (LN_MU[1] - LN_MU[0])


@lru_cache(maxsize=1)
def _table() -> tuple[NDArray, NDArray]:
    """Mean, square, variance of the square and tails, shape ``(461, 5)``; and histograms, shape ``(461, 80)``."""
    from scipy.special import gammaln

    values, histograms = [], []
    for mu in np.exp(LN_MU).tolist():
        reach = 12 * np.sqrt(mu) + 40
        n = np.arange(max(0, int(mu - reach)), int(mu + reach) + 1)
        p = np.exp(n * np.log(mu) - mu - gammaln(n + 1))
        s = significance(n, mu)
        square = p @ s**2
        tails = [p @ (np.abs(s) > limit) for limit in TAILS]
        values.append([p @ s, square, p @ s**4 - square**2, *tails])
        inside = np.clip(s, S_EDGES[0] + 1e-9, S_EDGES[-1] - 1e-9)
        histograms.append(np.histogram(inside, S_EDGES, weights=p)[0])
    return np.array(values), np.array(histograms)
