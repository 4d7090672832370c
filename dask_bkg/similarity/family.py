"""The archive's family of shapes, and its member that fits a run best: the prior of the shape of the run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_bkg.binning import FLOOR
from dask_bkg.similarity.settings import ShapeSettings

SPARSE = 1e-4
"""Share of the events below which a bin has little weight in the principal components."""

STEPS = 20
"""Most Newton steps of the fit of a run's prior; eight are enough for the H.E.S.S. runs, twenty for extreme ones."""


class Prior(NamedTuple):
    """The archive's family of shapes, ``shape x exp(coefficients @ directions)``; by default the mean shape alone.

    Attributes
    ----------
    shape
        Mean shape at full exposure, sum 1 and nowhere zero, shape ``(bins,)``.
    directions, variance
        Changes of the logarithm, shape ``(components, bins)``; variances of their coefficients in the archive, shape
        ``(components,)``.
    """

    shape: NDArray
    directions: NDArray = np.zeros((0, 0))
    variance: NDArray = np.zeros(0)


def prior_sums(counts: NDArray, fraction: NDArray) -> tuple[NDArray, NDArray]:
    """Sums over a block of runs for `prior_shape`: of events, and of exposed fraction x the run's events.

    Shapes ``(runs, bins)`` to ``(bins,)``; sums of blocks are added up (`add_sums`).
    """
    return counts.sum(axis=0, dtype=float), counts.sum(axis=1, dtype=float) @ fraction


def prior_shape(counts: NDArray, exposed: NDArray) -> NDArray:
    """Mean shape at full exposure of an archive (sums of `prior_sums`): sum 1, nowhere zero; ``(bins,)``."""
    # half an event keeps the logarithm finite in bins without events
    shape = (counts + 0.5) / np.maximum(exposed, exposed.max(initial=0.0) * 1e-3 + FLOOR)
    return shape / shape.sum()


def family_sums(counts: NDArray, fraction: NDArray, shape: NDArray, settings: ShapeSettings) -> tuple[NDArray, ...]:
    """Sums over a block of runs for `prior_family`; sums of blocks are added up (`add_sums`).

    Parameters
    ----------
    counts, fraction
        Events and exposed fraction (0 to 1), shape ``(runs, bins)``.
    shape
        Mean shape of the archive (`prior_shape`), shape ``(bins,)``.
    settings
        How shapes are compared.

    Returns
    -------
    counts, exposed, products, expected, noise
        `prior_sums`, here weighted by the events at full exposure, shape ``(bins,)``; products of the deviations from
        the mean less their noise, and of the expected counts, shape ``(bins, bins)``; three sums for the noise.
    """
    events = full_events(counts, fraction, shape)
    mean = events[:, None] * fraction * shape
    # weight of a run N/(N + a), in units of its expected counts squared
    weight = np.divide(1.0, events * (events + settings.prior), out=np.zeros_like(events), where=events > 0)
    deviation = counts - mean
    products = (weight[:, None] * deviation).T @ deviation
    products[np.diag_indices_from(products)] -= weight @ counts
    noise = weight * events
    noises = np.array([(noise * events).sum(), noise.sum(), (noise**2).sum()])
    return counts.sum(axis=0, dtype=float), events @ fraction, products, (weight[:, None] * mean).T @ mean, noises


def add_sums(parts: Iterable[tuple[NDArray, ...]]) -> tuple[NDArray, ...]:
    """Sums of several blocks of runs, element by element."""
    return tuple(sum(values[1:], start=values[0]) for values in zip(*parts, strict=True))


def prior_family(sums: tuple[NDArray, ...], settings: ShapeSettings) -> Prior:
    """The archive's family of shapes, of `family_sums`: principal components of the runs' relative deviations.

    Components that noise alone could give, with variances below ``(2 sqrt(bins / runs) + bins / runs) / events``
    (Marchenko and Pastur 1967), are left out: a small archive, or one of equal runs, has only its mean shape.
    """
    counts, exposed, products, expected, (total, inverse, squares) = sums
    shape = prior_shape(counts, exposed)
    if inverse == 0 or settings.components == 0 or settings.method == "document":
        return Prior(shape)
    scale = np.sqrt(shape + SPARSE)
    relative = np.divide(products, expected, out=np.zeros_like(products), where=expected > 0)
    values, vectors = np.linalg.eigh(relative * np.outer(shape / scale, shape / scale))
    ratio = shape.size * squares / inverse**2
    index = np.argsort(values)[::-1][: settings.components]
    index = index[values[index] > inverse / total * (2 * np.sqrt(ratio) + ratio)]
    directions = (vectors[:, index] / scale[:, None]).T
    return Prior(shape, directions - (directions @ shape)[:, None], values[index])


def fit_prior(counts: NDArray, fraction: NDArray, settings: ShapeSettings | None = None) -> Prior:
    """Prior of an archive that fits into memory, of events and exposed fraction (0 to 1), shape ``(runs, bins)``.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> shapes = np.array([0.6, 0.3, 0.1]) * np.exp(rng.normal(0, 0.1, (200, 1)) * [1, 0, -1])
    >>> fit_prior(rng.poisson(5000 * shapes), np.ones((200, 3))).directions.shape
    (1, 3)
    """
    settings = settings or ShapeSettings()
    shape = prior_shape(*prior_sums(counts, fraction))
    return prior_family(family_sums(counts, fraction, shape, settings), settings)


def family_shapes(counts: NDArray, fraction: NDArray, prior: Prior) -> NDArray:
    """Prior of each run: the member of the archive's family that fits it best, shape ``(runs, bins)``, sum 1.

    Maximum of the multinomial likelihood times a Gaussian of the coefficients, by Newton steps, shortened where the
    likelihood would fall.
    """
    if prior.variance.size == 0:
        return np.broadcast_to(prior.shape, counts.shape)
    coefficients, step = np.zeros((len(counts), prior.variance.size)), np.ones(len(counts))
    best, seen = _likelihood(coefficients, counts, fraction, prior)
    # near the maximum the change of the likelihood is smaller than the rounding of the sums over all events
    rounding = 1e-12 * np.maximum(counts.sum(axis=1, dtype=float), 1.0)
    for _ in range(STEPS):
        move = step[:, None] * _newton(coefficients, seen, counts, prior)
        trial = coefficients + move
        value, seen_there = _likelihood(trial, counts, fraction, prior)
        higher = value >= best - rounding
        coefficients[higher], best[higher], seen[higher] = trial[higher], value[higher], seen_there[higher]
        if (np.abs(move) <= 1e-9 * np.sqrt(prior.variance)).all():
            break
        step = np.where(higher, np.minimum(1.0, 2 * step), step / 4)
    exponent = coefficients @ prior.directions
    fitted = prior.shape * np.exp(exponent - exponent.max(axis=1, keepdims=True))
    return fitted / fitted.sum(axis=1, keepdims=True)


def _likelihood(coefficients: NDArray, counts: NDArray, fraction: NDArray, prior: Prior) -> tuple[NDArray, NDArray]:
    """Logarithm of the function that `family_shapes` maximises, and the expected shape of each exposed run."""
    exponent = coefficients @ prior.directions
    top = exponent.max(axis=1)
    seen = prior.shape * fraction * np.exp(exponent - top[:, None])
    norm = np.maximum(seen.sum(axis=1), np.finfo(float).tiny)
    likelihood = (counts * exponent).sum(axis=1) - counts.sum(axis=1) * (np.log(norm) + top)
    return likelihood - 0.5 * (coefficients**2 / prior.variance).sum(axis=1), seen / norm[:, None]


def _newton(coefficients: NDArray, seen: NDArray, counts: NDArray, prior: Prior) -> NDArray:
    """Newton step of the coefficients, shape ``(runs, components)``."""
    u, events = prior.directions, counts.sum(axis=1, dtype=float)
    gradient = (counts - events[:, None] * seen) @ u.T - coefficients / prior.variance
    mean, pairs = seen @ u.T, (u[:, None] * u[None, :]).reshape(-1, u.shape[1])
    covariance = (seen @ pairs.T).reshape(-1, len(u), len(u)) - mean[:, :, None] * mean[:, None, :]
    curvature = events[:, None, None] * covariance + np.diag(1 / prior.variance)
    return np.linalg.solve(curvature, gradient[:, :, None])[:, :, 0]


def full_events(counts: NDArray, fraction: NDArray, shape: NDArray) -> NDArray:
    """Events that runs of this shape would have at full exposure, shape ``(runs,)``; 0 without exposure."""
    seen, total = (fraction * shape).sum(axis=1), counts.sum(axis=1, dtype=float)
    return np.divide(total, seen, out=np.zeros_like(total), where=seen > 0)
