"""Targets, references, and the divergence of each pair: matrix products alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dask_bkg.binning import FLOOR
from dask_bkg.similarity.family import Prior, family_shapes, open_events
from dask_bkg.similarity.settings import METHODS, ShapeSettings

SEEN = 0.5
"""Exposed fraction from which a bin counts as seen; below it, in proportion."""


class Targets(NamedTuple):
    """A block of runs as P.

    Attributes
    ----------
    p, weight
        Share of the run's events in each bin, and exposed fraction of its own bins (zero in the others),
        ``(runs, bins)``; weight is None where Q is normalised already.
    entropy, empty
        What depends on P alone, ``sum p log(p / weight)``, and whether the run cannot be compared, ``(runs,)``.
    """

    p: NDArray
    weight: NDArray | None
    entropy: NDArray
    empty: NDArray


class References(NamedTuple):
    """A block of runs as Q.

    Attributes
    ----------
    q, log_q
        Shape at full exposure (sum 1), and its logarithm less what noise and closed bins do to it, ``(runs, bins)``.
    seen, empty
        How far each bin was seen, 0 to 1, ``(runs, bins)``; whether the run cannot be compared, ``(runs,)``.
    """

    q: NDArray
    log_q: NDArray
    seen: NDArray | None
    empty: NDArray


def as_targets(
    counts: NDArray, fraction: NDArray, mask: NDArray | None, prior: Prior | None, settings: ShapeSettings
) -> Targets:
    """A block of runs as P.

    Parameters
    ----------
    counts
        Events, shape ``(runs, bins)``.
    fraction
        Exposed fraction of each bin, 0 to 1, same shape; under ``document`` the exposure, in whatever unit.
    mask
        The target's own bins, boolean, same shape or ``(bins,)``; None: those in which it was exposed.  Bins below
        the energy threshold are better left in: how a run turns on tells where its threshold is.
    prior
        The archive's (see `fit_prior`): what a run without events is taken for.  None under ``document``.
    """
    if _is_document(settings, prior) or prior is None:
        p, total = _floored(counts, fraction)
        return Targets(p, None, (p * np.log(p)).sum(axis=1), total == 0)
    weight = np.where(True if mask is None else mask, fraction, 0.0)
    p = np.where(weight > 0, counts, 0.0)
    none = p.sum(axis=1) == 0
    p[none] = prior.shape * weight[none]
    empty = p.sum(axis=1) == 0
    weight[empty], p[empty] = 1.0, 1.0
    p /= p.sum(axis=1, keepdims=True)
    ratio = np.divide(p, weight, out=np.ones_like(p), where=p > 0)
    return Targets(p, weight, (p * np.log(ratio)).sum(axis=1), empty)


def as_references(counts: NDArray, fraction: NDArray, prior: Prior | None, settings: ShapeSettings) -> References:
    """A block of runs as Q; arguments as in `as_targets`.

    Under ``shape``, with ``b = a s`` the events of the prior, two terms are added to log q:

    * `log_bias` less ``N / (2 (N + a)^2)`` (which is that of the sum): the logarithm of what fluctuates is too low on
      average.  Summed with p it is (bins - 1)/2 N/(N + a)^2 for a run that saw everything and a target of the same
      shape; bins that the run did not see, or the target does not fill, or hardly anything fills, have no part in it.
    * ``- (g^2 - g_f^2) / (2 (1 + b))`` with ``g = N / (N + a)``, ``g_f = N f / (N f + a)``: runs scatter about their
      family like 1/a, and ``g_f^2`` of it shows.  Else a closed bin would hide what an open one shows: of a run of
      10k events and itself half closed the latter was nearer in 66 to 83 % of the cases, now in 37 to 55 %.
    """
    if _is_document(settings, prior) or prior is None:
        q, total = _floored(counts, fraction)
        return References(q, np.log(q), None, total == 0)
    shape, a = family_shapes(counts, fraction, prior), settings.prior
    n, b = open_events(counts, fraction, shape)[:, None], a * shape
    q = (counts + b) / (n * fraction + a)
    q /= q.sum(axis=1, keepdims=True)
    noise = log_bias(n * fraction * q, b) - n / (2 * (n + a) ** 2)
    hidden = (n / (n + a)) ** 2 - (n * fraction / (n * fraction + a)) ** 2
    log_q = np.log(q) + noise - hidden / (2 * (1 + b))
    return References(q, log_q, np.minimum(fraction / SEEN, 1.0), counts.sum(axis=1) == 0)


def log_bias(mean: NDArray, added: NDArray) -> NDArray:
    """How much lower the mean of log(n + added) is than log(mean + added), for Poisson numbers n.

    Harmonic sum of the limits for many events, ``mean / (2 (mean + added)^2)``, and none, ``log(1 + mean / added)``:
    right to 12 % if at least the mean is added, if a tenth of it still to 50 % (worst at one event).
    """
    many, none = mean / (2 * (mean + added) ** 2), np.log1p(mean / added)
    return many * none / (many + none + np.finfo(float).tiny)


def kl_block(targets: Targets, references: References) -> NDArray:
    """Divergence of each target from each reference, ``KL(target || reference)``, shape ``(targets, references)``.

    Never NaN: what cannot be compared is infinitely far (a reference without events; a target that is closed, or
    under ``document`` without events).  Under ``shape`` the target's own noise, about (bins - 1)/(2 N), is in all
    values of a row alike, and values near zero may be negative.

    Examples
    --------
    >>> settings = ShapeSettings("document")
    >>> runs = np.array([[5.0, 5.0], [9.0, 1.0]]), np.ones((2, 2))
    >>> kl_block(as_targets(*runs, None, None, settings), as_references(*runs, None, settings)).round(4).tolist()
    [[0.0, 0.5108], [0.3681, 0.0]]
    """
    kl = targets.p @ references.log_q.T
    np.subtract(targets.entropy[:, None], kl, out=kl)
    if targets.weight is not None:
        norm = targets.weight @ references.q.T
        kl += np.log(norm, out=norm)
    kl[targets.empty] = np.inf
    kl[:, references.empty] = np.inf
    return kl


def coverage_block(targets: Targets, references: References) -> NDArray:
    """Share of each target's events that lie in bins which the reference saw, shape ``(targets, references)``.

    A bin is seen if half of it was exposed, else in proportion: a ring of which a third is behind a star was seen.
    """
    if references.seen is None:
        return np.ones((len(targets.p), len(references.q)))
    return np.minimum(targets.p @ references.seen.T, 1.0)


def _is_document(settings: ShapeSettings, prior: Prior | None) -> bool:
    """Whether the method is the document's; the settings are checked."""
    if settings.method not in METHODS:
        raise ValueError(f"method {settings.method!r} of the divergence: accepted are {' and '.join(METHODS)}")
    if not settings.prior > 0:
        raise ValueError(f"the prior of the divergence must be a positive number of events, got {settings.prior}")
    if settings.method == "shape" and prior is None:
        raise ValueError("the method 'shape' of the divergence needs the archive's prior: see fit_prior")
    return settings.method == "document"


def _floored(counts: NDArray, exposure: NDArray) -> tuple[NDArray, NDArray]:
    """The procedure's distribution: rates, NaN as 0, normalised, plus 1e-9; and the sums of the rates."""
    rates = np.divide(counts, exposure, out=np.zeros(counts.shape), where=exposure > 0)
    total = rates.sum(axis=1)
    p = np.divide(rates, total[:, None], out=np.zeros_like(rates), where=total[:, None] > 0) + FLOOR
    return p / p.sum(axis=1, keepdims=True), total


def kl_divergence(data1: ArrayLike, data2: ArrayLike) -> float:
    """Kullback-Leibler divergence ``sum(p log(p / q))``, as the procedure writes it.

    The arrays are taken as they are: normalise them first, and make sure that ``data2`` has no zeros where
    ``data1`` has none (the result is infinite there).  A bin in which ``data1`` is zero adds nothing.

    Parameters
    ----------
    data1
        The distribution P to compare against, any shape.
    data2
        The distribution Q, of the same shape.

    Examples
    --------
    >>> round(kl_divergence([0.5, 0.5], [0.9, 0.1]), 6)
    0.510826
    >>> bool(kl_divergence([0.0, 1.0], [0.5, 0.5]) == np.log(2))
    True
    """
    p, q = np.asarray(data1, dtype=float), np.asarray(data2, dtype=float)
    if p.shape != q.shape:
        raise ValueError(f"kl_divergence: the shapes differ, {p.shape} and {q.shape}")
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = p * np.log(p / q)
    return float(np.where(p == 0, 0.0, terms).sum())
