"""How well one run is predicted: likelihoods, significances, residuals, from counts and expected counts. Pure arrays.

Three forms of a prediction are scored: ``raw`` as it stands, ``norm`` with one factor for the run (what gammapy's
``FoVBackgroundMaker`` calls scale), ``enorm`` with a factor for the run and each energy, which leaves the shape in
the field of view alone.  Everything that is told of a run is a sum over its bins, so that sums over runs are the same
for an archive.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_bkg.validation.bins import Bins
from dask_bkg.validation.expectation import expected, histogram, significance, spread

FORMS = ("raw", "norm", "enorm")

SUMS = ("n", "s", "s2", "expected_s", "expected_s2", "variance", "over_3", "over_5", "expected_3", "expected_5")
"""Sums over the cells of a run with enough expected counts: their number; significance and its square, observed and
expected; variance of the latter; how many are beyond 3 and 5, observed and expected.  The expected square allows for
the factors of a form, which take some of the scatter away."""

FLOOR = 1e-3
"""Least expected counts, in units of an even share of the events: a model that says zero is wrong, not infinitely."""

CLOSED = 1e-3
"""Exposure of a pixel, in units of the largest, that counts for none: fields that turn have it to 1e-4."""

CELL_MIN = 5.0
"""Expected counts that a cell must have for its significance to be looked at."""

AXES = ("zenithward", "sideward")


class RunScore(NamedTuple):
    """What is told of one run; see the module for the forms.

    Attributes
    ----------
    first
        First energy bin that is compared.
    loglike
        ``sum(n ln mu - mu)`` in each form, shape ``(form,)``.
    counts, predicted
        Counts, and those that were predicted (raw), by energy, shape ``(energy,)``.
    deviance
        Of all bins of energy and pixel (norm), with its expectation and the variance of that, shape ``(3,)``.
    cells
        `SUMS` in each form, shape ``(form, 10)``.
    profile
        Counts and predicted counts (norm) by band and ring, shape ``(2, band, ring)``.
    slope
        By band and direction (`AXES`) the sum of ``(n - mu) t`` and of ``mu t^2`` (norm), where t [deg] counts from
        the mean over the prediction; shape ``(band, 2, 2)``.
    hottest
        Largest excess of a field pixel or cell over all energies (norm): its significance, and where it is along
        ``fov_lon`` and ``fov_lat`` [deg], shape ``(3,)``.
    """

    first: int
    loglike: NDArray
    counts: NDArray
    predicted: NDArray
    deviance: NDArray
    cells: NDArray
    profile: NDArray
    slope: NDArray
    hottest: NDArray


class FieldSums(NamedTuple):
    """What is added up over runs and told of none of them.

    Attributes
    ----------
    counts, predicted
        By band and field pixel (norm), shape ``(band, fov_lat, fov_lon)``.
    histogram, expected
        Significances of the cells (norm, `dask_bkg.validation.expectation.S_EDGES`), and how many cells there are of
        each expectation (`dask_bkg.validation.expectation.spread`).
    """

    counts: NDArray
    predicted: NDArray
    histogram: NDArray
    expected: NDArray

    def __add__(self, other: FieldSums) -> FieldSums:  # type: ignore[override]
        """Sums over both."""
        return FieldSums(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def score_run(
    counts: NDArray, mu: NDArray, exposure: NDArray, first: int, bins: Bins, up: tuple[float, float] = (0.0, 1.0)
) -> tuple[RunScore, FieldSums]:
    """Compare counts and prediction of one run.

    Parameters
    ----------
    counts, mu
        Counts and expected counts, shape ``(energy, pixels)``.
    exposure
        Of the pixels, in any unit, shape ``(pixels,)``; where there is none nothing is compared.
    first
        First energy bin above the threshold; those below are left out.
    bins
        The bins.
    up
        Direction of the zenith, a unit vector ``(fov_lon, fov_lat)``.

    Examples
    --------
    >>> from dask_bkg.validation.bins import make_bins
    >>> bins = make_bins(np.geomspace(0.1, 100, 31), np.round(np.arange(-12.5, 13) * 0.2, 12))
    >>> mu = np.full((30, bins.pixel.size), 3.0)
    >>> counts = np.random.default_rng(1).poisson(mu)
    >>> run, field = score_run(counts, 1.1 * mu, np.ones(bins.pixel.size, bool), 0, bins)
    >>> round(float(run.predicted.sum() / run.counts.sum()), 2)
    1.1
    >>> bool(run.loglike[1] > run.loglike[0])
    True
    """
    exposure = np.asarray(exposure, dtype=float)
    open_ = exposure > CLOSED * exposure.max()
    n = np.where(open_, counts, 0.0)
    n[:first] = 0.0
    used = np.zeros(n.shape, dtype=bool)
    used[first:] = open_
    mu = np.where(used, mu, 0.0)
    share = exposure / exposure[open_].sum() / max(len(n) - first, 1)
    forms = _forms(n, np.where(used, np.maximum(mu, FLOOR * n.sum() * share), 0.0))
    log_mu = [np.log(form, out=np.zeros_like(form), where=form > 0) for form in forms]
    loglike = np.array([(n * log).sum() - form.sum() for form, log in zip(forms, log_mu, strict=True)])
    cells, s, cell_mu = _cells(n, forms, bins)
    norm = forms[1]
    there = used & (norm > 0)
    told = expected(norm[there])
    square = (significance(n[there], norm[there]) ** 2).sum()
    # the factor of the run takes one degree of freedom
    deviance = np.array([square, max(told.square.sum() - 1, 0.0), told.variance.sum()])
    n_band, mu_band = (bins.in_band.T @ part for part in (n, norm))
    run = RunScore(
        first,
        loglike,
        n.sum(axis=1),
        mu.sum(axis=1),
        deviance,
        cells,
        np.stack([n_band @ bins.in_ring, mu_band @ bins.in_ring]),
        _slopes(n_band, mu_band, bins, up),
        _hottest(n, norm, bins),
    )
    return run, FieldSums(bins.square(n_band), bins.square(mu_band), histogram(s), spread(cell_mu))


def _forms(n: NDArray, mu: NDArray) -> list[NDArray]:
    """The prediction as it stands, with a factor for the run, with a factor for each energy."""
    total = mu.sum()
    per_energy = mu.sum(axis=1, keepdims=True)
    own = np.divide(n.sum(axis=1, keepdims=True), per_energy, out=np.zeros_like(per_energy), where=per_energy > 0)
    return [mu, mu * (n.sum() / total if total > 0 else 0.0), mu * own]


def _cells(n: NDArray, forms: list[NDArray], bins: Bins) -> tuple[NDArray, NDArray, NDArray]:
    """`SUMS` of each form; significances and expected counts of the cells (norm)."""
    counts = bins.in_band.T @ n @ bins.in_cell
    sums, kept = [], []
    for name, form in zip(FORMS, forms, strict=True):
        mu = bins.in_band.T @ form @ bins.in_cell
        taken = _taken_by_factors(name, form, mu, bins)
        enough = mu > CELL_MIN
        mu = mu[enough]
        s, told = significance(counts[enough], mu), expected(mu)
        square = told.square.sum() - taken[enough].sum()
        beyond = [(np.abs(s) > limit).sum() for limit in (3, 5)]
        sums.append([
            s.size, s.sum(), (s**2).sum(), told.mean.sum(), square, told.variance.sum(), *beyond,
            *told.tails.sum(axis=0),
        ])  # fmt: skip
        kept.append((s, mu))
    return np.array(sums, dtype=float), *kept[1]


def _taken_by_factors(name: str, mu: NDArray, in_cells: NDArray, bins: Bins) -> NDArray:
    """By how much the factors of a form lower the expected square of a cell's significance, shape ``(band, cell)``.

    n - mu f has the variance mu - mu^2 / M where f makes up for the sum M that the cell is a part of.
    """
    if name == "raw" or not mu.any():
        return np.zeros(in_cells.shape)
    if name == "norm":
        return in_cells / mu.sum()
    total = mu.sum(axis=1, keepdims=True)
    per_energy = mu @ bins.in_cell
    part = np.divide(per_energy**2, total, out=np.zeros_like(per_energy), where=total > 0)
    return np.divide(bins.in_band.T @ part, in_cells, out=np.zeros_like(in_cells), where=in_cells > 0)


def _hottest(n: NDArray, mu: NDArray, bins: Bins) -> NDArray:
    """Largest excess of a field pixel or cell over all energies: significance, and where it is [deg]."""
    best = np.array([0.0, np.nan, np.nan])
    for members in (None, bins.in_cell):
        counts, hoped, lon, lat = n.sum(axis=0), mu.sum(axis=0), bins.lon, bins.lat
        if members is not None:
            size = members.sum(axis=0)
            counts, hoped, lon, lat = counts @ members, hoped @ members, lon @ members / size, lat @ members / size
        s = np.where(hoped > 0, significance(counts, np.where(hoped > 0, hoped, 1.0)), 0.0)
        if s.max() > best[0]:
            best = np.array([s.max(), lon[s.argmax()], lat[s.argmax()]])
    return best


def _slopes(n: NDArray, mu: NDArray, bins: Bins, up: tuple[float, float]) -> NDArray:
    """Sums of a residual slope towards the zenith and to the side of it, by band."""
    towards = bins.lon * up[0] + bins.lat * up[1]
    # to the side is 90 deg from up, from fov_lat towards fov_lon
    sideways = bins.lon * up[1] - bins.lat * up[0]
    total = mu.sum(axis=1, keepdims=True)
    # each band has its counts: what is asked is how they lie in the field
    mu = mu * np.divide(n.sum(axis=1, keepdims=True), total, out=np.zeros_like(total), where=total > 0)
    found = []
    for t in (towards, sideways):
        mean = np.divide(mu @ t, mu.sum(axis=1), out=np.zeros(len(mu)), where=mu.sum(axis=1) > 0)
        centred = t - mean[:, None]
        found.append([((n - mu) * centred).sum(axis=1), (mu * centred**2).sum(axis=1)])
    return np.moveaxis(np.array(found), -1, 0)
