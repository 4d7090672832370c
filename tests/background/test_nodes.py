"""Node values: what gammapy's interpolation makes of them are the counts."""

from __future__ import annotations

from itertools import pairwise

import astropy.units as u
import numpy as np
import pytest
from gammapy.irf import Background2D
from gammapy.maps import MapAxis
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.integrate import quad

from dask_bkg.background import nodes as nodes_
from dask_bkg.background.estimate import fill_rate


def solid_angle(rings):
    return -2 * np.pi * np.diff(np.cos(np.deg2rad(rings)))


# --- node_values ----------------------------------------------------------------------------------------------------

POINTS, WEIGHTS = np.polynomial.legendre.leggauss(6)


def power_law(index):
    return lambda energy, offset: (energy / 1.0) ** -index * np.exp(-0.5 * (offset / 1.6) ** 2)


def log_parabola(energy, offset):
    return energy ** (-3.0 - 0.25 * np.log(energy)) * np.exp(-0.5 * (offset / 1.6) ** 2)


def tilted(energy, offset):
    """The profile widens with energy: no product of a spectrum and a profile."""
    return energy**-2.7 * np.exp(-0.5 * (offset / (1.4 + 0.2 * np.log(energy))) ** 2)


def nodes_of(edges):
    """Points and weights that integrate over each half bin (the interpolation has its kinks at the bin centres)."""
    halves = np.sort(np.concatenate([edges, (edges[1:] + edges[:-1]) / 2]))
    low, width = halves[:-1, None], np.diff(halves)[:, None]
    return (low + (POINTS + 1) / 2 * width).ravel(), (WEIGHTS / 2 * width).ravel()


def integrate(function, energy, rings):
    """Integral of a rate over each bin of energy and solid angle."""
    log_e, weight_e = nodes_of(np.log(energy))
    theta, weight_t = nodes_of(rings)
    values = function(np.exp(log_e)[:, None], theta[None, :])
    ring_weight = weight_t * np.deg2rad(1) * 2 * np.pi * np.sin(np.deg2rad(theta))
    values = values * (weight_e * np.exp(log_e))[:, None] * ring_weight
    shape = (len(energy) - 1, 2 * len(POINTS), len(rings) - 1, 2 * len(POINTS))
    return values.reshape(shape).sum(axis=(1, 3))


def gammapys(nodes, energy, rings):
    """The rate that gammapy's own interpolation makes of node values, padded as MapDatasetMaker does it."""
    axes = [
        MapAxis.from_energy_edges(energy * u.TeV, name="energy"),
        MapAxis.from_edges(rings, unit="deg", name="offset"),
    ]
    background = Background2D(axes=axes, data=nodes, unit="s-1 TeV-1 sr-1").pad(1, mode="edge", axis_name="offset")
    return lambda e, o: background.evaluate(energy=e * u.TeV, offset=o * u.deg).to_value("s-1 TeV-1 sr-1")


def prediction(function, n_energy, n_rings=10, conserving=True, counts=1e9):
    """Predicted over true counts of each bin."""
    energy, rings = np.geomspace(0.3, 10, n_energy + 1), np.linspace(0, 2.5, n_rings + 1)
    true = integrate(function, energy, rings)
    volume = np.outer(np.diff(energy), solid_angle(rings))
    exposure = volume * counts / true.sum()
    nodes = true / volume
    if conserving:
        nodes = nodes_.node_values(nodes, exposure, energy, rings)
    return integrate(gammapys(nodes, energy, rings), energy, rings) / true


@pytest.mark.parametrize("n_energy", [4, 6, 12, 24])
@pytest.mark.parametrize("function", [power_law(2.7), power_law(3.5), log_parabola], ids=["2.7", "3.5", "curved"])
def test_gammapys_interpolation_of_the_nodes_returns_the_counts_of_each_bin(function, n_energy):
    assert_allclose(prediction(function, n_energy), 1, atol=0.01)


@pytest.mark.parametrize("n_rings", [2, 4, 10, 25])
def test_the_nodes_return_the_counts_of_each_ring_whatever_their_width(n_rings):
    assert_allclose(prediction(power_law(2.7), 8, n_rings), 1, atol=0.01)


@pytest.mark.parametrize(("n_energy", "ring"), [(4, 0.03), (6, 0.015), (12, 0.006), (24, 0.006)])
def test_the_nodes_of_a_profile_that_changes_with_energy_return_the_sums(n_energy, ring):
    """One factor for each energy and one for each ring cannot give each bin back, but nearly so."""
    true = integrate(tilted, np.geomspace(0.3, 10, n_energy + 1), np.linspace(0, 2.5, 11))
    ratio = prediction(tilted, n_energy)
    assert_allclose((ratio * true).sum(axis=1) / true.sum(axis=1), 1, atol=0.003)
    assert_allclose((ratio * true).sum(axis=0) / true.sum(axis=0), 1, atol=ring)
    assert_allclose(ratio, 1, atol=0.04)


@pytest.mark.parametrize(("n_energy", "least"), [(4, 0.09), (6, 0.05), (12, 0.012)])
def test_plain_bin_averages_predict_too_much(n_energy, least):
    """The interpolation of B times a power law is itself: the excess is that of the average over the centre."""
    index, width = 3.2, np.log(10 / 0.3) / n_energy
    excess = np.sinh((index - 1) * width / 2) / (index - 1) / np.sinh(width / 2)
    assert excess - 1 > least
    assert_allclose(prediction(power_law(index), n_energy, 25, conserving=False).mean(), excess, rtol=0.005)


def test_the_noise_of_sparse_energies_is_not_amplified():
    rng = np.random.default_rng(6)
    energy, rings = np.geomspace(0.1, 100, 31), np.linspace(0, 2.5, 11)
    true = integrate(power_law(2.7), energy, rings)
    exposure = np.outer(np.diff(energy), solid_angle(rings)) * 1e5 / true.sum()
    counts = rng.poisson(true / true.sum() * 1e5).astype(float)
    filled = fill_rate(counts, exposure, energy).value
    nodes = nodes_.node_values(filled, exposure, energy, rings)
    error = 1 / np.sqrt(np.maximum(counts.sum(axis=1), 1))
    assert (np.abs(np.log(nodes / filled)).mean(axis=1) < 0.03 + 1.5 * error).all()
    predicted = integrate(gammapys(nodes, energy, rings), energy, rings) / np.outer(
        np.diff(energy), solid_angle(rings)
    )
    assert (predicted * exposure).sum() == pytest.approx(counts.sum(), rel=0.01)


@pytest.mark.parametrize("counts", [1e7, 1e4])
def test_fit_nodes_finds_the_nodes_behind_the_averages(counts):
    edges = np.geomspace(0.3, 10, 7)
    center = np.sqrt(edges[1:] * edges[:-1])
    nodes = center ** (-2.7 - 0.3 * np.log(center))
    fitted = nodes_.fit_nodes(
        nodes_.mean_loglog(nodes, edges), np.full(6, counts), lambda v: nodes_.mean_loglog(v, edges)
    )
    assert_allclose(fitted, nodes, rtol=0.002)


def test_fit_nodes_returns_the_counts_where_there_are_many_and_does_not_swing_where_there_are_few():
    edges = np.geomspace(0.1, 100, 13)
    counts = np.array([3.0, 40, 9000, 5000, 2500, 1200, 500, 100, 30, 4, 7, 0.1])
    mean = counts / np.diff(edges)
    fitted = nodes_.fit_nodes(mean, counts, lambda v: nodes_.mean_loglog(v, edges))
    assert_allclose((nodes_.mean_loglog(fitted, edges) / mean)[2:8], 1, atol=0.02)
    # One peak, as the counts have it, however steep the turn-on; no more than the noise at the sparse end.
    assert_array_equal(np.sign(np.diff(fitted[:9])), [1, 1, -1, -1, -1, -1, -1, -1])
    assert (np.abs(np.log(fitted / mean))[8:] < 0.5).all()


def test_fit_nodes_of_empty_bins_is_the_smooth_curve():
    edges = np.geomspace(1, 100, 9)
    mean = nodes_.mean_loglog((edges[1:] * edges[:-1]) ** -1.35, edges)
    fitted = nodes_.fit_nodes(mean, np.zeros(8), lambda v: nodes_.mean_loglog(v, edges))
    assert_allclose(fitted, (edges[1:] * edges[:-1]) ** -1.35, rtol=1e-3)


# --- the interpolation's averages -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "edges", [np.geomspace(0.3, 10, 5), np.array([0.1, 0.2, 1.0, 1.5, 40.0]), np.array([1.0, 9.0])], ids=len
)
def test_mean_loglog_is_the_integral_of_the_power_laws(edges):
    rng = np.random.default_rng(7)
    center = np.sqrt(edges[1:] * edges[:-1])
    nodes = rng.lognormal(0, 2, len(center))

    def curve(x):
        if len(center) == 1:
            return nodes[0]
        i = np.clip(np.searchsorted(center, x) - 1, 0, len(center) - 2)
        slope = np.log(nodes[i + 1] / nodes[i]) / np.log(center[i + 1] / center[i])
        return nodes[i] * (x / center[i]) ** slope

    expected = [
        (quad(curve, low, mid, epsrel=1e-10)[0] + quad(curve, mid, high, epsrel=1e-10)[0]) / (high - low)
        for low, mid, high in zip(edges[:-1], center, edges[1:], strict=True)
    ]
    assert_allclose(nodes_.mean_loglog(nodes, edges), expected, rtol=1e-8)


@pytest.mark.parametrize("index", [0.0, 1.0, 1.0 + 1e-9, 1.0 - 1e-6, 2.7])
def test_mean_loglog_of_a_power_law_also_where_the_integral_is_a_logarithm(index):
    edges = np.geomspace(1, 1000, 7)
    center = np.sqrt(edges[1:] * edges[:-1])
    expected = [quad(lambda x: x**-index, a, b)[0] / (b - a) for a, b in pairwise(edges)]
    assert_allclose(nodes_.mean_loglog(center**-index, edges), expected, rtol=1e-7)


@pytest.mark.parametrize(
    "rings",
    [np.linspace(0, 2.5, 6), np.array([0.0, 0.2, 1.0, 3.0]), np.array([0.5, 1, 2]), np.array([0.0, 2.0])],
    ids=len,
)
def test_mean_log_offset_is_the_solid_angle_average(rings):
    rng = np.random.default_rng(8)
    center = (rings[1:] + rings[:-1]) / 2
    nodes = rng.lognormal(0, 0.7, len(center))

    def curve(theta):  # np.interp is constant beyond the ends
        return np.exp(np.interp(theta, center, np.log(nodes)))

    expected = []
    for low, mid, high in zip(rings[:-1], center, rings[1:], strict=True):
        total = sum(
            quad(lambda t: curve(t) * np.sin(np.deg2rad(t)), a, b, epsrel=1e-10)[0]
            for a, b in ((low, mid), (mid, high))
        )
        expected.append(total / quad(lambda t: np.sin(np.deg2rad(t)), low, high)[0])
    assert_allclose(nodes_.mean_log_offset(nodes, rings), expected, rtol=2e-3)


# --- steep and small ------------------------------------------------------------------------------------------------


@st.composite
def steep_rates(draw):
    """Rates that jump by many powers of ten, counts from none to very many, down to a single energy or ring."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    energy = np.geomspace(0.001, 100, draw(st.integers(1, 40)) + 1)
    rings = np.linspace(0, 2.5, draw(st.integers(1, 12)) + 1)
    shape = len(energy) - 1, len(rings) - 1
    rate = np.exp(rng.normal(0, draw(st.sampled_from([0.1, 3.0, 30.0])), shape))
    exposure = 10 ** rng.uniform(-12, 12, shape) * (rng.random(shape) < draw(st.sampled_from([0.0, 0.5, 1.0])))
    return rate, exposure, energy, rings


@settings(max_examples=100, deadline=None)
@given(steep_rates())
def test_nodes_of_any_positive_rate_are_finite_and_positive(histograms):
    nodes = nodes_.node_values(*histograms)
    assert (np.isfinite(nodes) & (nodes > 0)).all()


@settings(max_examples=100, deadline=None)
@given(steep_rates(), st.sampled_from([0.0, 1.0, 1e9]))
def test_fit_nodes_stays_finite_however_steep(histograms, counts):
    rate, _, energy, _ = histograms
    mean = rate[:, 0]
    fitted = nodes_.fit_nodes(mean, np.full(mean.size, counts), lambda v: nodes_.mean_loglog(v, energy))
    assert (np.isfinite(fitted) & (fitted > 0)).all()


def test_mean_loglog_of_a_cliff_is_finite():
    """Carried on to the edges, falls by 10^400 from node to node would overflow."""
    mean = nodes_.mean_loglog(np.array([1e200, 1e-200, 1.0]), np.array([1.0, 1.1, 1.21, 1.331]))
    assert (np.isfinite(mean) & (mean > 0)).all()


def test_a_single_bin_is_its_own_node():
    energy, rings = np.array([1.0, 10.0]), np.array([0.0, 2.5])
    nodes = nodes_.node_values(np.full((1, 1), 3.0), np.full((1, 1), 100.0), energy, rings)
    assert_allclose(nodes, 3.0, rtol=1e-9)
