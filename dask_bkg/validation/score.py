"""How well one run is predicted: likelihoods, significances, residuals, from counts and expected counts. Pure arrays.

Three forms of a prediction are scored: ``raw`` without a factor, ``norm`` with one factor for the run (the scale of
gammapy's ``FoVBackgroundMaker``), ``enorm`` with a factor for the run and each energy, so that only the shape in the
field of view is compared.  All scores of a run are sums over its bins, so that those of an archive are sums over
runs.
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
expected; variance of the latter; number beyond 3 and 5, observed and expected.  The expected square takes into
account that the factors of a form reduce the scatter."""

FLOOR = 1e-3
"""Smallest expected counts, in units of an even share of the events: so the likelihood is finite if a model has 0."""

UNEXPOSED = 1e-3
"""Exposure of a pixel, in units of the largest, below which it counts as excluded: that of rotated fields is accurate
to 1e-4."""

CELL_MIN = 5.0
"""Expected counts above which a cell is used."""

AXES = ("zenithward", "sideward")


class RunScore(NamedTuple):
    """Scores of one run; see the module for the forms.

    Attributes
    ----------
    first
        First energy bin that is compared.
    loglike
        ``sum(n ln mu - mu)`` in each form, shape ``(form,)``.
    counts, predicted
        Counts, and predicted counts (raw), by energy, shape ``(energy,)``.
    deviance
        Deviance of all bins of energy and pixel (norm), its expectation, and its variance, shape ``(3,)``.
    cells
        `SUMS` in each form, shape ``(form, 10)``.
    profile
        Counts and predicted counts (norm) by band and offset bin, shape ``(2, band, ring)``.
    slope
        By band and direction (`AXES`) the sum of ``(n - mu) t`` and of ``mu t^2`` (norm), where t [deg] counts from
        the mean over the prediction; shape ``(band, 2, 2)``.
    hottest
        Largest excess of a field pixel or cell over all energies (norm): its significance, and its position
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
    """Sums over runs that are not stored for each run.

    Attributes
    ----------
    counts, predicted
        By band and field pixel (norm), shape ``(band, fov_lat, fov_lon)``.
    histogram, expected
        Histogram of the significances of the cells (norm, `dask_bkg.validation.expectation.S_EDGES`), and number of
        cells with each expectation (`dask_bkg.validation.expectation.spread`).
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
        Exposure of the pixels, in any unit, shape ``(pixels,)``; pixels without exposure are not compared.
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
    exposed = exposure > UNEXPOSED * exposure.max()
    n = np.where(exposed, counts, 0.0)
    n[:first] = 0.0
    used = np.zeros(n.shape, dtype=bool)
    used[first:] = exposed
    mu = np.where(used, mu, 0.0)
    share = exposure / exposure[exposed].sum() / max(len(n) - first, 1)
    forms = _forms(n, np.where(used, np.maximum(mu, FLOOR * n.sum() * share), 0.0))
    log_mu = [np.log(form, out=np.zeros_like(form), where=form > 0) for form in forms]
    loglike = np.array([(n * log).sum() - form.sum() for form, log in zip(forms, log_mu, strict=True)])
    cells, s, cell_mu = _cells(n, forms, bins)
    norm = forms[1]
    there = used & (norm > 0)
    poisson = expected(norm[there])
    square = (significance(n[there], norm[there]) ** 2).sum()
    # the factor of the run takes one degree of freedom
    deviance = np.array([square, max(poisson.square.sum() - 1, 0.0), poisson.variance.sum()])
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
    """The prediction without a factor, with one for the run, and with one for each energy."""
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
        reduced = _reduction_by_factors(name, form, mu, bins)
        enough = mu > CELL_MIN
        mu = mu[enough]
        s, poisson = significance(counts[enough], mu), expected(mu)
        square = poisson.square.sum() - reduced[enough].sum()
        beyond = [(np.abs(s) > limit).sum() for limit in (3, 5)]
        sums.append([
            s.size, s.sum(), (s**2).sum(), poisson.mean.sum(), square, poisson.variance.sum(), *beyond,
            *poisson.tails.sum(axis=0),
        ])  # fmt: skip
        kept.append((s, mu))
    return np.array(sums, dtype=float), *kept[1]


def _reduction_by_factors(name: str, mu: NDArray, in_cells: NDArray, bins: Bins) -> NDArray:
    """Reduction of the expected square of a cell's significance by the factors of a form, shape ``(band, cell)``.

    n - mu f has the variance mu - mu^2 / M if f scales the sum M, which contains the cell, to the counts.
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
    """Largest excess of a field pixel or cell over all energies: significance and position [deg]."""
    best = np.array([0.0, np.nan, np.nan])
    pixels = n.sum(axis=0), mu.sum(axis=0), bins.lon, bins.lat
    size = bins.in_cell.sum(axis=0)
    n_cell, mu_cell, lon_sum, lat_sum = (values @ bins.in_cell for values in pixels)
    for counts, expectation, lon, lat in (pixels, (n_cell, mu_cell, lon_sum / size, lat_sum / size)):
        s = np.where(expectation > 0, significance(counts, np.where(expectation > 0, expectation, 1.0)), 0.0)
        if s.max() > best[0]:
            best = np.array([s.max(), lon[s.argmax()], lat[s.argmax()]])
    return best


def _slopes(n: NDArray, mu: NDArray, bins: Bins, up: tuple[float, float]) -> NDArray:
    """Sums for the residual slopes towards the zenith and perpendicular to it, by band."""
    towards = bins.lon * up[0] + bins.lat * up[1]
    # perpendicular: 90 deg from up, from fov_lat towards fov_lon
    sideways = bins.lon * up[1] - bins.lat * up[0]
    total = mu.sum(axis=1, keepdims=True)
    # scaled to the counts of each band: only their distribution in the field is compared
    mu = mu * np.divide(n.sum(axis=1, keepdims=True), total, out=np.zeros_like(total), where=total > 0)
    found = []
    for t in (towards, sideways):
        mean = np.divide(mu @ t, mu.sum(axis=1), out=np.zeros(len(mu)), where=mu.sum(axis=1) > 0)
        centred = t - mean[:, None]
        found.append([((n - mu) * centred).sum(axis=1), (mu * centred**2).sum(axis=1)])
    return np.moveaxis(np.array(found), -1, 0)
