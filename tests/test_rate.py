"""From counts and exposure to a rate: counts conserved, no holes, node values that give the counts back."""

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
from scipy.ndimage import gaussian_filter

from dask_bkg import rate as rates

ENERGY = np.geomspace(0.1, 100, 13)
RINGS = np.linspace(0, 2.5, 6)


def solid_angle(rings):
    return -2 * np.pi * np.diff(np.cos(np.deg2rad(rings)))


def full_exposure(energy=ENERGY, rings=RINGS, ontime=1e5):
    return ontime * np.outer(np.diff(energy), solid_angle(rings))


def separable(energy=ENERGY, rings=RINGS, index=2.7, width=1.5):
    """A power law times a Gaussian in offset, at the bin centres."""
    center = (rings[1:] + rings[:-1]) / 2
    return np.outer((energy[1:] * energy[:-1]) ** (-index / 2), np.exp(-0.5 * (center / width) ** 2))


def truth_of(total, exposure, **shape):
    rate = separable(**shape)
    return rate * total / (rate * exposure).sum()


# --- fill_rate ------------------------------------------------------------------------------------------------------


@st.composite
def sparse_histograms(draw):
    """Poisson counts of few to many events, with closed rings, thresholds and empty energies at both ends."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    energy = np.geomspace(0.1, 100, draw(st.integers(1, 14)) + 1)
    rings = np.linspace(0, 2.5, draw(st.integers(1, 7)) + 1)
    exposure = full_exposure(energy, rings) * rng.uniform(0.05, 1, (len(energy) - 1, len(rings) - 1))
    if draw(st.booleans()):
        exposure[:, rng.random(len(rings) - 1) < 0.4] = 0  # rings closed by a star or a source
    if draw(st.booleans()):
        exposure[: rng.integers(0, len(energy))] = 0  # below the threshold of all runs
    mean = (
        truth_of(10.0 ** draw(st.integers(-1, 6)), full_exposure(energy, rings), energy=energy, rings=rings)
        * exposure
    )
    mean[: rng.integers(0, len(energy))] *= draw(st.sampled_from([0.0, 1.0]))
    counts = rng.poisson(mean).astype(float)
    if not counts.any():  # nothing at all is another test
        exposure[-1, -1] = max(exposure[-1, -1], 1.0)
        counts[-1, -1] = 1.0
    return counts, exposure, energy


@settings(max_examples=80, deadline=None)
@given(sparse_histograms())
def test_no_bin_is_zero_nan_or_infinite(histograms):
    value = rates.fill_rate(*histograms).value
    assert np.isfinite(value).all()
    assert (value > 0).all()


@settings(max_examples=80, deadline=None)
@given(sparse_histograms())
def test_the_total_is_conserved_from_the_first_energy_with_counts(histograms):
    counts, exposure, _ = histograms
    predicted = (rates.fill_rate(*histograms).value * exposure).sum(axis=1)
    seen = counts.sum(axis=1)
    first = np.flatnonzero(seen)[0]
    assert predicted[first:].sum() == pytest.approx(seen.sum(), rel=1e-9)
    assert (predicted[:first] < 1).all()  # extrapolated: less than one event where none was seen


@settings(max_examples=80, deadline=None)
@given(sparse_histograms())
def test_an_energy_that_is_neither_pooled_nor_extrapolated_keeps_its_own_counts(histograms):
    counts, exposure, _ = histograms
    rate = rates.fill_rate(*histograms)
    alone = ~(rate.flag & (rates.ENERGY_POOLED | rates.EXTRAPOLATED)).any(axis=1)
    assert_allclose((rate.value * exposure).sum(axis=1)[alone], counts.sum(axis=1)[alone], rtol=1e-9, atol=1e-9)


@settings(max_examples=80, deadline=None)
@given(sparse_histograms())
def test_energies_without_a_flag_stand_on_their_own_counts(histograms):
    counts, exposure, _ = histograms
    rate = rates.fill_rate(*histograms)
    alone = (rate.flag == rates.MEASURED).all(axis=1)
    # To the ring's counts it is scaled by less than its error.
    assert (np.abs(rate.value * exposure - counts)[alone] <= 0.5 * np.sqrt(counts[alone]) + 1e-9).all()
    assert (rate.flag[exposure == 0] != rates.MEASURED).all()
    assert (rate.flag[counts.sum(axis=1) == 0] != rates.MEASURED).all()


def dense(total=3e5):
    exposure = full_exposure()
    return np.round(truth_of(total, exposure) * exposure + 200), exposure


def test_dense_counts_are_not_touched():
    counts, exposure = dense()
    rate = rates.fill_rate(counts, exposure, ENERGY)
    assert_allclose(rate.value, counts / exposure, rtol=1e-12)
    assert_array_equal(rate.flag, rates.MEASURED)


def test_counts_above_min_counts_only_are_not_touched():
    counts, exposure = dense()
    per_energy = counts.sum(axis=1).min()
    kept = rates.fill_rate(counts, exposure, ENERGY, min_counts=per_energy)
    pooled = rates.fill_rate(counts, exposure, ENERGY, min_counts=per_energy * 2)
    assert_array_equal(kept.flag, rates.MEASURED)
    assert (pooled.flag & rates.SHAPE_POOLED).any()
    assert_allclose((pooled.value * exposure).sum(axis=1), counts.sum(axis=1))


def test_a_ring_without_exposure_lies_between_its_neighbours_and_is_flagged():
    counts, exposure = dense()
    counts[:, 2] = exposure[:, 2] = 0
    rate = rates.fill_rate(counts, exposure, ENERGY)
    assert_array_equal((rate.flag & rates.RING_FILLED) > 0, np.arange(5) == np.full((12, 1), 2))
    low, high = np.sort(rate.value[:, [1, 3]], axis=1).T
    assert ((rate.value[:, 2] >= low) & (rate.value[:, 2] <= high)).all()
    others = [0, 1, 3, 4]
    assert_allclose(rate.value[:, others], (counts / np.where(exposure, exposure, 1))[:, others])


@pytest.mark.parametrize(("closed", "neighbour"), [(0, 1), (4, 3)])
def test_a_ring_without_exposure_at_an_end_takes_its_neighbour(closed, neighbour):
    counts, exposure = dense()
    counts[:, closed] = exposure[:, closed] = 0
    rate = rates.fill_rate(counts, exposure, ENERGY)
    assert_allclose(rate.value[:, closed], rate.value[:, neighbour], rtol=1e-9)
    assert ((rate.flag[:, closed] & rates.RING_FILLED) > 0).all()


def test_a_ring_with_exposure_but_never_an_event_is_low_but_not_zero():
    counts, exposure = dense()
    counts[:, 4] = 0
    rate = rates.fill_rate(counts, exposure, ENERGY)
    assert ((rate.value[:, 4] > 0) & (rate.value[:, 4] < rate.value[:, 3])).all()
    assert ((rate.flag[:, 4] & rates.RING_FILLED) > 0).all()
    assert_allclose((rate.value * exposure).sum(axis=1), counts.sum(axis=1))


def test_empty_energies_at_both_ends_are_flagged_and_fall_off():
    counts, exposure = dense()
    counts[:2] = counts[-3:] = 0
    rate = rates.fill_rate(counts, exposure, ENERGY)
    extrapolated = (rate.flag & rates.EXTRAPOLATED) > 0
    assert_array_equal(extrapolated.all(axis=1), np.isin(np.arange(12), [0, 1, 9, 10, 11]))
    assert (np.diff(rate.value[-4:], axis=0) < 0).all()
    assert (rate.value[:2] < rate.value[2]).all()


def test_a_gap_between_filled_energies_is_bridged():
    counts, exposure = dense()
    counts[6] = 0
    rate = rates.fill_rate(counts, exposure, ENERGY)
    assert (rate.flag[6] != rates.MEASURED).all()
    assert ((rate.value[6] < rate.value[5]) & (rate.value[6] > rate.value[7] / 10)).all()
    assert (rate.value * exposure).sum() == pytest.approx(counts.sum())


def below_every_threshold():
    counts, exposure = dense()
    counts[:3] = exposure[:3] = 0
    return counts, exposure, ENERGY


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_energies_below_every_threshold_are_filled():
    rate = rates.fill_rate(*below_every_threshold())
    assert (np.isfinite(rate.value) & (rate.value > 0)).all()
    assert ((rate.flag[:3] & rates.EXTRAPOLATED) > 0).all()


@pytest.mark.filterwarnings("error")
def test_energies_below_every_threshold_are_no_reason_for_a_warning():
    rates.fill_rate(*below_every_threshold())


def test_rings_and_energies_both_keep_their_counts():
    counts, _, exposure = toys(3000, 1)
    counts, exposure = counts[0], exposure
    predicted = rates.fill_rate(counts, exposure, ENERGY).value * exposure
    assert_allclose(predicted.sum(axis=0), counts.sum(axis=0), rtol=0.002)
    single = counts.sum(axis=1) >= 10
    assert_allclose(predicted.sum(axis=1)[single], counts.sum(axis=1)[single], rtol=1e-9)


@pytest.mark.parametrize(("counts", "exposure"), [(0.0, 1.0), (0.0, 0.0)])
def test_without_counts_or_exposure_at_all_there_is_no_rate(counts, exposure):
    with pytest.raises(ValueError, match=r"counts|exposure"):
        rates.fill_rate(np.full((3, 2), counts), np.full((3, 2), exposure), [1, 2, 4, 8])


def toys(total, n, seed=1):
    """Rates of ``n`` Poisson toys of a separable truth with a closed ring; truth, exposure."""
    rng = np.random.default_rng(seed)
    exposure = full_exposure()
    truth = truth_of(total, exposure)
    exposure[:, 1] *= 0.4
    counts = rng.poisson(truth * exposure, (n, *truth.shape)).astype(float)
    return counts, truth, exposure


@pytest.mark.parametrize("total", [3000, 30000])
def test_a_separable_truth_is_recovered_without_bias(total):
    counts, truth, exposure = toys(total, 200)
    ratio = np.array([rates.fill_rate(one, exposure, ENERGY).value for one in counts]) / truth
    solid = (truth * exposure).sum(axis=1) > 30  # beyond, the levels are pooled
    pull = (ratio.mean(axis=0) - 1) / (ratio.std(axis=0) / np.sqrt(len(ratio)))
    assert solid.sum() >= 4
    assert (np.abs(pull[solid]) < 5).all()
    assert (np.abs(ratio.mean(axis=0) - 1)[solid] < 0.03).all()


@pytest.mark.parametrize("total", [3000, 30000])
def test_the_scatter_of_the_rate_is_that_of_poisson_or_less(total):
    counts, truth, exposure = toys(total, 200, seed=2)
    value = np.array([rates.fill_rate(one, exposure, ENERGY).value for one in counts])
    pull = (value - truth) * exposure / np.sqrt(truth * exposure)
    solid = (truth * exposure).sum(axis=1) > 30
    assert (pull[:, solid].std(axis=0) < 1.25).all()
    # Pooling the shape is worth it where an energy has few events: the error of the level alone is left.
    few = solid & ((truth * exposure).sum(axis=1) < 200)
    assert (pull[:, few].std(axis=0) < 0.8).all()


def test_plain_rate_is_counts_over_exposure():
    plain = rates.plain_rate(np.array([[4.0, 0.0, 0.0]]), np.array([[2.0, 5.0, 0.0]]))
    assert_array_equal(plain, [[2.0, 0.0, np.nan]])


# --- smooth_rings ---------------------------------------------------------------------------------------------------


def smooth_maps(rate, exposure, rings, sigma, step=0.02):
    """The same by brute force: maps of counts and exposure per pixel, SciPy's filter, ring averages, rescaled."""
    half = rings[-1] + 5 * sigma
    center = np.arange(-half + step / 2, half, step)
    offset = np.hypot(center[:, None], center[None, :])
    ring = np.digitize(offset, rings) - 1
    inside = (ring >= 0) & (ring < len(rings) - 1)
    pixels = np.bincount(ring[inside], minlength=len(rings) - 1)

    def ring_sums(histogram):
        image = np.where(inside, (histogram / pixels)[np.clip(ring, 0, len(pixels) - 1)], 0.0)
        spread = gaussian_filter(image, sigma / step, mode="constant")
        return np.bincount(ring[inside], weights=spread[inside], minlength=len(pixels))

    out = np.array([ring_sums(r * x) / ring_sums(x) for r, x in zip(rate, exposure, strict=True)])
    return out * ((rate * exposure).sum(axis=1) / (out * exposure).sum(axis=1))[:, None]


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.8])
@pytest.mark.parametrize(
    "rings", [np.linspace(0, 2.5, 11), np.array([0, 0.3, 1.0, 1.4, 2.5]), np.array([0.5, 1, 2])], ids=len
)
def test_smoothing_is_that_of_a_two_dimensional_filter(rings, sigma):
    rng = np.random.default_rng(3)
    rate = separable(rings=rings)[[0, 5]] * rng.uniform(0.7, 1.4, (2, len(rings) - 1))
    exposure = full_exposure(rings=rings)[[0, 5]] * rng.uniform(0.3, 1, (2, len(rings) - 1))
    smoothed = rates.smooth_rings(rate, exposure, rings, sigma)
    assert_allclose(smoothed, smooth_maps(rate, exposure, rings, sigma), rtol=0.01)


@pytest.mark.parametrize("sigma", [0.05, 0.25, 1.0, 5.0])
def test_a_flat_rate_stays_flat_up_to_the_edge_whatever_the_exposure(sigma):
    exposure = full_exposure() * np.random.default_rng(4).uniform(0.1, 1, (12, 5))
    assert_allclose(rates.smooth_rings(np.full((12, 5), 7.0), exposure, RINGS, sigma), 7.0, rtol=1e-9)


@pytest.mark.parametrize("sigma", [0.1, 0.25, 1.0, 5.0])
def test_smoothing_conserves_counts_changes_the_rate_and_keeps_it_positive(sigma):
    rng = np.random.default_rng(5)
    rate, exposure = rng.lognormal(0, 1.5, (12, 5)), full_exposure() * rng.uniform(0.1, 1, (12, 5))
    smoothed = rates.smooth_rings(rate, exposure, RINGS, sigma)
    assert_allclose((smoothed * exposure).sum(axis=1), (rate * exposure).sum(axis=1), rtol=1e-9)
    assert (smoothed > 0).all()
    assert (np.ptp(np.log(smoothed), axis=1) < np.ptp(np.log(rate), axis=1)).all()


def test_more_smoothing_is_flatter():
    rate, exposure = separable(), full_exposure()
    spread = [np.ptp(np.log(rates.smooth_rings(rate, exposure, RINGS, sigma)), axis=1) for sigma in (0.1, 0.4, 1.0)]
    assert (np.diff(spread, axis=0) < 0).all()


def test_a_ring_without_exposure_does_not_pull_its_neighbours_down():
    rate, exposure = np.full((1, 5), 3.0), full_exposure()[:1].copy()
    exposure[:, [0, 2]] = 0
    assert_allclose(rates.smooth_rings(rate, exposure, RINGS, 0.3), 3.0, rtol=1e-9)


def test_an_energy_without_exposure_stays_finite():
    rate, exposure = separable(), full_exposure()
    exposure[:3] = 0
    smoothed = rates.smooth_rings(rate, exposure, RINGS, 0.3)
    assert np.isfinite(smoothed).all()
    assert (smoothed > 0).all()


def test_sigma_zero_changes_nothing():
    rate = separable()
    assert_array_equal(rates.smooth_rings(rate, full_exposure(), RINGS, 0.0), rate)


def test_a_negative_sigma_is_refused():
    with pytest.raises(ValueError, match="sigma"):
        rates.smooth_rings(separable(), full_exposure(), RINGS, -0.1)


def test_ring_mixing_is_symmetric_and_loses_only_what_leaves_the_field():
    mixing = rates.ring_mixing(tuple(np.linspace(0, 2.5, 6)), 0.1)
    assert_allclose(mixing, mixing.T, rtol=1e-12)
    assert (mixing >= 0).all()
    area = mixing.sum(axis=1)
    assert_allclose(area[:4] / area[0], [1, 3, 5, 7], rtol=0.03)  # areas of rings of the same width
    assert area[4] < 9 * area[0]


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
        nodes = rates.node_values(nodes, exposure, energy, rings)
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
    filled = rates.fill_rate(counts, exposure, energy).value
    nodes = rates.node_values(filled, exposure, energy, rings)
    error = 1 / np.sqrt(np.maximum(counts.sum(axis=1), 1))
    assert (np.abs(np.log(nodes / filled)).mean(axis=1) < 0.03 + 1.5 * error).all()
    predicted = integrate(gammapys(nodes, energy, rings), energy, rings) / np.outer(
        np.diff(energy), solid_angle(rings)
    )
    assert (predicted * exposure).sum() == pytest.approx(counts.sum(), rel=0.01)


@settings(max_examples=40, deadline=None)
@given(sparse_histograms())
def test_nodes_of_any_filled_rate_are_finite_and_positive(histograms):
    counts, exposure, energy = histograms
    rings = np.linspace(0, 2.5, counts.shape[1] + 1)
    nodes = rates.node_values(rates.fill_rate(counts, exposure, energy).value, exposure, energy, rings)
    assert np.isfinite(nodes).all()
    assert (nodes > 0).all()


@pytest.mark.parametrize("counts", [1e7, 1e4])
def test_fit_nodes_finds_the_nodes_behind_the_averages(counts):
    edges = np.geomspace(0.3, 10, 7)
    center = np.sqrt(edges[1:] * edges[:-1])
    nodes = center ** (-2.7 - 0.3 * np.log(center))
    fitted = rates.fit_nodes(
        rates.mean_loglog(nodes, edges), np.full(6, counts), lambda v: rates.mean_loglog(v, edges)
    )
    assert_allclose(fitted, nodes, rtol=0.002)


def test_fit_nodes_returns_the_counts_where_there_are_many_and_does_not_swing_where_there_are_few():
    edges = np.geomspace(0.1, 100, 13)
    counts = np.array([3.0, 40, 9000, 5000, 2500, 1200, 500, 100, 30, 4, 7, 0.1])
    mean = counts / np.diff(edges)
    fitted = rates.fit_nodes(mean, counts, lambda v: rates.mean_loglog(v, edges))
    assert_allclose((rates.mean_loglog(fitted, edges) / mean)[2:8], 1, atol=0.02)
    # One peak, as the counts have it, however steep the turn-on; no more than the noise at the sparse end.
    assert_array_equal(np.sign(np.diff(fitted[:9])), [1, 1, -1, -1, -1, -1, -1, -1])
    assert (np.abs(np.log(fitted / mean))[8:] < 0.5).all()


def test_fit_nodes_of_empty_bins_is_the_smooth_curve():
    edges = np.geomspace(1, 100, 9)
    mean = rates.mean_loglog((edges[1:] * edges[:-1]) ** -1.35, edges)
    fitted = rates.fit_nodes(mean, np.zeros(8), lambda v: rates.mean_loglog(v, edges))
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
    assert_allclose(rates.mean_loglog(nodes, edges), expected, rtol=1e-8)


@pytest.mark.parametrize("index", [0.0, 1.0, 1.0 + 1e-9, 1.0 - 1e-6, 2.7])
def test_mean_loglog_of_a_power_law_also_where_the_integral_is_a_logarithm(index):
    edges = np.geomspace(1, 1000, 7)
    center = np.sqrt(edges[1:] * edges[:-1])
    expected = [quad(lambda x: x**-index, a, b)[0] / (b - a) for a, b in pairwise(edges)]
    assert_allclose(rates.mean_loglog(center**-index, edges), expected, rtol=1e-7)


@pytest.mark.parametrize(
    "rings",
    [np.linspace(0, 2.5, 6), np.array([0.0, 0.2, 1.0, 3.0]), np.array([0.5, 1, 2]), np.array([0.0, 2.0])],
    ids=len,
)
def test_mean_log_ring_is_the_solid_angle_average(rings):
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
    assert_allclose(rates.mean_log_ring(nodes, rings), expected, rtol=2e-3)


# --- estimate_rate --------------------------------------------------------------------------------------------------


def test_estimate_rate_is_its_steps_in_their_order():
    counts, _, exposure = toys(30000, 1)
    setting = rates.RateSettings(smooth_sigma=0.3)
    filled = rates.fill_rate(counts[0], exposure, ENERGY)
    smoothed = rates.smooth_rings(filled.value, exposure, RINGS, 0.3)
    result = rates.estimate_rate(counts[0], exposure, (ENERGY, RINGS), setting)
    assert_allclose(result.value, rates.node_values(smoothed, exposure, ENERGY, RINGS), rtol=1e-12)
    assert_array_equal(result.flag, filled.flag)


def test_estimate_rate_can_be_the_plain_one():
    counts, _, exposure = toys(3000, 1)
    plain = rates.RateSettings(fill=False, node_values="plain")
    result = rates.estimate_rate(counts[0], exposure, (ENERGY, RINGS), plain)
    assert_array_equal(result.value, counts[0] / exposure)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_without_filling_a_closed_bin_does_not_spoil_the_others():
    counts, exposure = dense()
    counts[0] = exposure[0] = 0
    setting = rates.RateSettings(fill=False, node_values="plain")
    value = rates.estimate_rate(counts, exposure, (ENERGY, RINGS), setting).value
    assert_allclose(value[1:], (counts[1:] / exposure[1:]), rtol=1e-12)


def test_conserving_nodes_of_unfilled_bins_are_refused():
    counts, exposure = dense()
    with pytest.raises(ValueError, match="fill"):
        rates.estimate_rate(counts, exposure, (ENERGY, RINGS), rates.RateSettings(fill=False))


def test_smoothing_through_gammapy_is_not_done_here():
    counts, _, exposure = toys(30000, 1)
    through_3d = rates.RateSettings(smooth_sigma=0.5, smooth_method="to_3d", smooth_bins=1.0)
    without = rates.estimate_rate(counts[0], exposure, (ENERGY, RINGS))
    assert_array_equal(rates.estimate_rate(counts[0], exposure, (ENERGY, RINGS), through_3d).value, without.value)


@pytest.mark.parametrize(
    "change",
    [{"fill": False, "node_values": "plain"}, {"min_counts": 20000}, {"smooth_sigma": 0.4}, {"node_values": "plain"}],
    ids=lambda change: next(iter(change)),
)
def test_each_setting_has_an_effect(change):
    counts, _, exposure = toys(30000, 1)
    edges = (ENERGY, RINGS)
    base = rates.estimate_rate(counts[0], exposure, edges, rates.RateSettings()).value
    other = rates.estimate_rate(counts[0], exposure, edges, rates.RateSettings(**change)).value
    assert not np.allclose(base, other, rtol=1e-4, equal_nan=True)
