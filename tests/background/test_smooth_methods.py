"""Ways of smoothing: by formula or SciPy, counts conserved, noise as the effective resolution says, bumps kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.interpolate import BSpline
from scipy.optimize import brentq, minimize

from dask_bkg.background.estimate import RateSettings, estimate_rate
from dask_bkg.background.smooth import METHODS, Smoothing, resolution, ring_mixing, smooth, smooth_rings
from dask_bkg.background.spline import fit_spline
from dask_bkg.sky.fov import ring_grid

RINGS = np.linspace(0, 2.5, 11)
FINE = np.linspace(0, 2.5, 26)
WAYS = {
    "field": Smoothing("field", 0.3),
    "adaptive": Smoothing("adaptive", 0.05, counts=3000),
    "spline": Smoothing("spline", dof=4),
}


def area(rings=RINGS):
    return ring_grid(tuple(rings.tolist())).bin_solid_angle


def profile(rings=RINGS, width=1.4):
    return np.exp(-0.5 * (((rings[1:] + rings[:-1]) / 2) / width) ** 2)


def expected(total, rings=RINGS):
    counts = profile(rings) * area(rings)
    return counts * total / counts.sum()


# --- by formula and by SciPy ----------------------------------------------------------------------------------------


def by_scipy(counts, dof):
    """The same spline, fitted by a general minimizer, its penalty found by a general root finder."""
    knots = np.linspace(-2.5, 2.5, 17)
    knots = np.concatenate([knots[0] - 0.3125 * np.array([3, 2, 1]), knots, knots[-1] + 0.3125 * np.array([1, 2, 3])])
    center = (RINGS[1:] + RINGS[:-1]) / 2
    left, right = (BSpline.design_matrix(x, knots, 3).toarray() for x in (-center, center))
    # 19 splines, the tenth in the middle
    basis = np.array([left[:, 9 + i] + right[:, 9 + i] if i else right[:, 9] for i in range(10)]).T
    mirror = np.array([[float(abs(j - 9) == i) for i in range(10)] for j in range(19)])
    bend = np.diff(mirror, 3, axis=0)
    flat = counts.sum() * area() / area().sum()

    def fit(strength):
        def cost(beta):
            eta = basis @ beta
            mu = flat * np.exp(eta)
            slope = basis.T @ (mu - counts) + strength * bend.T @ (bend @ beta)
            return (mu - counts * eta).sum() + strength / 2 * ((bend @ beta) ** 2).sum(), slope

        mu = flat * np.exp(basis @ minimize(cost, np.zeros(10), jac=True, method="BFGS", options={"gtol": 1e-7}).x)
        fisher = basis.T @ (mu[:, None] * basis)
        return mu, np.trace(np.linalg.pinv(fisher + strength * bend.T @ bend) @ fisher) - dof

    return fit(np.exp(brentq(lambda s: fit(np.exp(s))[1], -4, 14, xtol=1e-6)))[0]


@pytest.mark.parametrize("dof", [3, 4.5, 6])
def test_the_spline_is_that_of_a_general_minimizer(dof):
    counts = np.random.default_rng(1).poisson(expected(5000)).astype(float)
    assert_allclose(fit_spline(counts[None], area()[None], RINGS, dof).value[0], by_scipy(counts, dof), rtol=2e-3)


@pytest.mark.parametrize("dof", [2.5, 4, 7])
def test_the_degrees_of_freedom_are_the_trace_of_the_response(dof):
    counts = expected(5000)[None]
    assert np.trace(fit_spline(counts, area()[None], RINGS, dof).response[0]) == pytest.approx(dof, abs=0.05)


def test_a_gaussian_profile_is_left_alone_whatever_its_width():
    for width in (0.8, 1.4, 5.0):
        rate = profile(width=width)[None]
        assert_allclose(smooth(rate, area()[None], RINGS, Smoothing("spline", dof=2)).value, rate, rtol=1e-5)


def test_a_spline_has_two_degrees_of_freedom_at_least():
    with pytest.raises(ValueError, match="at least 2 degrees"):
        fit_spline(np.ones((1, 3)), np.ones((1, 3)), [0, 1, 2, 3], 1.0)


def test_with_counts_enough_the_adaptive_one_is_the_gaussian_that_is_asked_for():
    rate = np.random.default_rng(2).lognormal(5, 0.1, (2, 10))
    much = smooth(rate, np.ones((2, 10)), RINGS, Smoothing("adaptive", 0.3, counts=1)).value
    assert_allclose(much, smooth_rings(rate, np.ones((2, 10)), RINGS, 0.3), rtol=3e-3)


@pytest.mark.slow
def test_the_adaptive_one_is_just_wide_enough():
    """Of rings that are all alike but for their counts: counts under a Gaussian by its definition."""
    counts, edges = expected(2e4), tuple(RINGS.tolist())
    widths = 0.05 * 1.2 ** np.arange(24)
    under = []
    for width in widths:
        share = ring_mixing(edges, float(width)) / area() * counts
        under.append(1 / ((share / share.sum(axis=1, keepdims=True)) ** 2 / counts).sum(axis=1))
    need = np.argmax(np.array(under) >= 3000, axis=0)
    rate, fluctuation = counts / area(), np.random.default_rng(3).normal(1, 0.05, 10)
    got = smooth((rate * fluctuation)[None], area()[None], RINGS, WAYS["adaptive"], 1 / counts[None]).value[0]
    each = [smooth_rings((rate * fluctuation)[None], area()[None], RINGS, float(widths[n]))[0] for n in need]
    picked = np.array([row[ring] for ring, row in enumerate(each)])
    assert len(set(need.tolist())) > 2
    assert_allclose(got / got.sum(), picked / picked.sum(), rtol=0.01)


def test_a_way_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="accepted are field, adaptive, spline"):
        smooth(np.ones((1, 2)), np.ones((1, 2)), [0, 1, 2], Smoothing("median"))


# --- what each conserves --------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(list(WAYS)), st.integers(0, 6), st.booleans())
def test_counts_of_each_energy_are_conserved_and_all_stays_positive(seed, way, power, closed):
    rng = np.random.default_rng(seed)
    exposure = area() * rng.uniform(0.1, 1, (4, 10))
    rate = rng.lognormal(0, 1, (4, 10)) * 10.0**power
    if closed:
        exposure[:, rng.integers(10)] = 0
        exposure[0] = 0
    value, response = smooth(rate, exposure, RINGS, WAYS[way])
    assert_allclose((value * exposure).sum(axis=1), (rate * exposure).sum(axis=1), rtol=1e-9)
    assert (np.isfinite(value) & (value > 0)).all()
    assert np.isfinite(response).all()


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_energy_stays_empty(method):
    rate = np.vstack([np.zeros(10), profile()])
    value = smooth(rate, np.ones((2, 10)), RINGS, Smoothing(method, 0.2)).value
    assert_array_equal(value[0], 0)


# --- the effective resolution ---------------------------------------------------------------------------------------


def skies(total, rings, n=1000, shape=1.0):
    mu = expected(total, rings) * shape
    return np.random.default_rng(4).poisson(mu, (n, mu.size)).astype(float), mu


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.slow
def test_the_noise_is_that_of_a_gaussian_of_the_effective_resolution(way):
    rings = RINGS
    counts, mu = skies(2e4, rings)
    exposure = np.broadcast_to(area(rings), counts.shape)
    scatter = np.log(smooth(counts / exposure, exposure, rings, WAYS[way]).value).std(axis=0)
    width = resolution(
        smooth((mu / area(rings))[None], area(rings)[None], rings, WAYS[way]).response, mu[None], rings
    )
    promised = []
    for ring, sigma in enumerate(width[0]):
        share = np.eye(mu.size)[ring]
        if sigma > 0:
            share = (ring_mixing(tuple(rings.tolist()), float(sigma)) / area(rings) * mu)[ring]
        promised.append(np.sqrt(((share / share.sum()) ** 2 / mu).sum()))
    assert (width > 0).all()
    # the level of each sky goes along: 1 / sqrt(N) is small beside them
    assert_allclose(scatter, promised, rtol=0.15)


def test_a_gaussian_alone_has_its_own_width_where_the_field_does_not_end():
    rate = np.full((1, 25), 1.0) * profile(FINE)
    width = resolution(smooth(rate, area(FINE)[None], FINE, Smoothing(sigma=0.2)).response, rate * area(FINE), FINE)
    assert_allclose(width[0, 2:18], 0.2, rtol=0.1)


def test_more_degrees_of_freedom_resolve_more():
    counts = expected(1e4)[None]
    widths = [
        resolution(fit_spline(counts, area()[None], RINGS, dof).response, counts, RINGS) for dof in (2, 4, 6, 8)
    ]
    means = np.mean(widths, axis=(1, 2))
    assert (np.diff(means) < 0).all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.slow
def test_a_bump_as_wide_as_the_resolution_survives_and_a_narrow_one_is_spread(way):
    center, left, exposure = (FINE[1:] + FINE[:-1]) / 2, {}, expected(2e4, FINE)[None] / profile(FINE)
    plain = smooth(profile(FINE)[None], exposure, FINE, WAYS[way])
    at = resolution(plain.response, expected(2e4, FINE)[None], FINE)[0, 12]
    for name, width in (("wide", 2 * at), ("narrow", at / 4)):
        bump = 1 + 0.2 * np.exp(-0.5 * ((center - 1.25) / width) ** 2)
        got = smooth((profile(FINE) * bump)[None], exposure, FINE, WAYS[way]).value / plain.value
        left[name] = (got[0, 12] / np.delete(got[0], range(6, 19)).mean() - 1) / (bump[12] - 1)
    assert left["wide"] > 0.5
    assert left["narrow"] < 0.7 * left["wide"]


@pytest.mark.parametrize("way", WAYS)
def test_a_rate_tells_its_resolution(way):
    edges = np.geomspace(0.1, 10, 3), RINGS
    counts = np.round(np.vstack([expected(3e4), expected(1e4)]))
    how = WAYS[way]
    setting = RateSettings(
        smooth=True, smooth_method=way, smooth_sigma=how.sigma, smooth_counts=how.counts, smooth_dof=how.dof
    )
    smoothed, plain = (estimate_rate(counts, np.vstack([area()] * 2), edges, s) for s in (setting, RateSettings()))
    assert (smoothed.resolution > 0).all()
    assert_array_equal(plain.resolution, 0)
    assert (smoothed.error[:, :9] < plain.error[:, :9]).mean() > 0.9
