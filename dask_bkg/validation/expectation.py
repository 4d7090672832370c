"""Expectation of significances and deviances under Poisson statistics, tabulated over the expected counts.

The significance of n counts where mu are expected is sign(n - mu) times the root of the Cash ratio ``2 (mu - n + n
ln(n / mu))``, which is the deviance of the bin.  For few counts it is not normally distributed: its mean is below 0
and its width above 1, even for a perfect background.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

LN_MU = np.linspace(np.log(1e-6), np.log(1e4), 461)
"""ln of the expected counts of the table, evenly spaced; beyond it the last values are used."""

LN_MU_CELLS = np.linspace(np.log(2.0), np.log(1e4), 1001)
"""The same for histograms of cells: fine enough to resolve the steps between integer counts."""

S_EDGES = np.linspace(-8.0, 8.0, 81)
"""Edges of the histogram of significances; the outermost bins contain all values beyond."""

TAILS = (3.0, 5.0)


class Expected(NamedTuple):
    """Expectations, arrays of the shape of the expected counts.

    Attributes
    ----------
    mean, square
        Expectation of the significance, and of its square, the deviance.
    variance
        Variance of the deviance.
    tails
        Probability of a significance beyond 3 and beyond 5, either sign, shape ``(..., 2)``.
    """

    mean: NDArray
    square: NDArray
    variance: NDArray
    tails: NDArray


def significance(counts: ArrayLike, mu: ArrayLike) -> NDArray:
    """Significance, sign times root of the Cash ratio, of counts where ``mu`` > 0 are expected; any shape.

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

    Returns
    -------
    expected
        Arrays of the same shape.

    Examples
    --------
    >>> poisson = expected([8.0, 1000.0])
    >>> np.sqrt(poisson.square - poisson.mean**2).round(3).tolist()
    [1.01, 1.0]
    """
    left, share = _places(mu, LN_MU)
    values, share = _table(), share[..., None]
    value = values[left] * (1 - share) + values[left + 1] * share
    return Expected(value[..., 0], value[..., 1], value[..., 2], value[..., 3:])


def spread(mu: NDArray) -> NDArray:
    """Number of bins with each expectation of `LN_MU_CELLS`, shape ``(1001,)``, for `expected_histogram`."""
    left, share = _places(mu.ravel(), LN_MU_CELLS)
    n = LN_MU_CELLS.size
    return np.bincount(left, 1 - share, minlength=n) + np.bincount(left + 1, share, minlength=n)


def expected_histogram(bins: NDArray) -> NDArray:
    """Expected histogram of significances (`S_EDGES`), shape ``(80,)``, of bins counted by `spread`."""
    return bins @ _histograms()


def histogram(s: NDArray) -> NDArray:
    """Histogram of significances, shape ``(80,)``."""
    return np.histogram(_inside(s), S_EDGES)[0].astype(float)


def _places(mu: ArrayLike, axis: NDArray) -> tuple[NDArray, NDArray]:
    """Position of expected counts in a table: the row below, and the weight of the next one."""
    with np.errstate(divide="ignore"):
        ln_mu = np.clip(np.log(np.asarray(mu, dtype=float)), axis[0], axis[-1])
    at = (ln_mu - axis[0]) / (axis[1] - axis[0])
    left = np.minimum(at.astype(int), axis.size - 2)
    return left, at - left


def _distribution(mu: float) -> tuple[NDArray, NDArray]:
    """Possible significances and their probabilities."""
    from scipy.special import gammaln

    reach = 12 * np.sqrt(mu) + 40
    n = np.arange(max(0, int(mu - reach)), int(mu + reach) + 1)
    return significance(n, mu), np.exp(n * np.log(mu) - mu - gammaln(n + 1))


@lru_cache(maxsize=1)
def _table() -> NDArray:
    """Mean, square, variance of the square and tails for each of `LN_MU`, shape ``(461, 5)``."""
    values = []
    for mu in np.exp(LN_MU).tolist():
        s, p = _distribution(mu)
        square = p @ s**2
        tails = [p @ (np.abs(s) > limit) for limit in TAILS]
        values.append([p @ s, square, p @ s**4 - square**2, *tails])
    return np.array(values)


@lru_cache(maxsize=1)
def _histograms() -> NDArray:
    """Probabilities of the bins of `S_EDGES` for each of `LN_MU_CELLS`, shape ``(1001, 80)``."""
    found = []
    for mu in np.exp(LN_MU_CELLS).tolist():
        s, p = _distribution(mu)
        found.append(np.histogram(_inside(s), S_EDGES, weights=p)[0])
    return np.array(found)


def _inside(s: NDArray) -> NDArray:
    """Significances, those beyond the histogram in its outermost bins."""
    return np.clip(s, S_EDGES[0] + 1e-9, S_EDGES[-1] - 1e-9)
