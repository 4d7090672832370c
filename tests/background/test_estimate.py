"""From counts and exposure to a rate: counts conserved, no holes, node values that give the counts back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from dask_bkg.background import estimate as rates
from dask_bkg.background import fill as filling
from dask_bkg.background.nodes import node_values
from dask_bkg.background.smooth import smooth_rings

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
    energy = np.geomspace(0.1, 100, draw(st.integers(1, 40)) + 1)
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
    if draw(st.booleans()):
        counts[:] = 0
    if not counts.any():  # nothing at all is another test: a single event somewhere
        at = rng.integers(counts.shape[0]), rng.integers(counts.shape[1])
        exposure[at] = max(exposure[at], 1.0)
        counts[at] = 1.0
    return counts, exposure, energy


@settings(max_examples=80, deadline=None)
@given(sparse_histograms())
@pytest.mark.slow
def test_no_bin_is_zero_nan_or_infinite(histograms):
    value = rates.fill_rate(*histograms).value
    assert np.isfinite(value).all()
    assert (value > 0).all()


@settings(max_examples=80, deadline=None)
@given(sparse_histograms())
@pytest.mark.slow
def test_the_total_is_conserved_from_the_first_energy_with_counts(histograms):
    counts, exposure, _ = histograms
    predicted = (rates.fill_rate(*histograms).value * exposure).sum(axis=1)
    seen = counts.sum(axis=1)
    first = np.flatnonzero(seen)[0]
    assert predicted[first:].sum() == pytest.approx(seen.sum(), rel=1e-9)
    assert (predicted[:first] < 1).all()  # extrapolated: less than one event where none was seen


@settings(max_examples=80, deadline=None)
@given(sparse_histograms())
@pytest.mark.slow
def test_an_energy_that_is_neither_pooled_nor_extrapolated_keeps_its_own_counts(histograms):
    counts, exposure, _ = histograms
    rate = rates.fill_rate(*histograms)
    alone = ~(rate.flag & (filling.ENERGY_POOLED | filling.EXTRAPOLATED)).any(axis=1)
    assert_allclose((rate.value * exposure).sum(axis=1)[alone], counts.sum(axis=1)[alone], rtol=1e-9, atol=1e-9)


@settings(max_examples=80, deadline=None)
@given(sparse_histograms())
@pytest.mark.slow
def test_energies_without_a_flag_stand_on_their_own_counts(histograms):
    counts, exposure, _ = histograms
    rate = rates.fill_rate(*histograms)
    alone = (rate.flag == filling.MEASURED).all(axis=1)
    # To the ring's counts it is scaled by less than its error.
    assert (np.abs(rate.value * exposure - counts)[alone] <= 0.5 * np.sqrt(counts[alone]) + 1e-9).all()
    assert (rate.flag[exposure == 0] != filling.MEASURED).all()
    assert (rate.flag[counts.sum(axis=1) == 0] != filling.MEASURED).all()


@pytest.mark.filterwarnings("error")
@settings(max_examples=80, deadline=None)
@given(sparse_histograms(), st.sampled_from([0.0, 0.025, 0.25, 5.0]))
@pytest.mark.slow
def test_the_whole_way_is_finite_and_positive(histograms, sigma):
    counts, exposure, energy = histograms
    rings = np.linspace(0, 2.5, counts.shape[1] + 1)
    value = rates.estimate_rate(counts, exposure, (energy, rings), rates.RateSettings(smooth_sigma=sigma)).value
    assert (np.isfinite(value) & (value > 0)).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("e_min", "bins"), [(0.1, 30), (0.001, 50)])
@pytest.mark.parametrize("total", [3, 30, 300])
def test_a_run_of_few_events_with_many_empty_energies_has_a_rate(e_min, bins, total):
    """More than fifteen empty energies on one side of the events, which once overflowed."""
    energy, rings = np.geomspace(e_min, 100, bins + 1), np.linspace(0, 2.5, 11)
    exposure = full_exposure(energy, rings)
    mean = separable(energy, rings) * exposure * (energy[1:, None] > 0.3)
    counts = np.random.default_rng(9).multinomial(total, (mean / mean.sum()).ravel()).reshape(mean.shape) * 1.0
    rate = rates.fill_rate(counts, exposure, energy)
    assert (np.isfinite(rate.value) & (rate.value > 0)).all()
    predicted, first = (rate.value * exposure).sum(axis=1), np.flatnonzero(counts.sum(axis=1))[0]
    assert predicted[first:].sum() == pytest.approx(total, rel=1e-9)
    assert predicted[:first].max() <= filling.UNSEEN * (1 + 1e-9)  # what is added, and no more


@settings(max_examples=80, deadline=None)
@given(sparse_histograms(), st.sampled_from([1.0, 30, 500, 1e6]))
def test_each_energy_pools_with_some_that_have_counts(histograms, min_counts):
    counts, _, energy = histograms
    per_energy = counts.sum(axis=1)
    weights = filling.pooling_weights(per_energy, energy, min_counts)
    assert np.isfinite(weights).all()
    assert (weights @ per_energy > 0).all()
    assert (weights[:, per_energy == 0] == 0).all()


def test_events_of_bins_without_exposure_are_left_out():
    counts, exposure = dense()
    stray = counts.copy()
    exposure[2, :] = exposure[:, 1] = counts[2, :] = counts[:, 1] = 0
    with_stray, without = (rates.fill_rate(c, exposure, ENERGY) for c in (stray, counts))
    assert_array_equal(with_stray.value, without.value)


def dense(total=3e5):
    exposure = full_exposure()
    return np.round(truth_of(total, exposure) * exposure + 200), exposure


def test_dense_counts_are_not_touched():
    counts, exposure = dense()
    rate = rates.fill_rate(counts, exposure, ENERGY)
    assert_allclose(rate.value, counts / exposure, rtol=1e-12)
    assert_array_equal(rate.flag, filling.MEASURED)


def test_counts_above_min_counts_only_are_not_touched():
    counts, exposure = dense()
    per_energy = counts.sum(axis=1).min()
    kept = rates.fill_rate(counts, exposure, ENERGY, min_counts=per_energy)
    pooled = rates.fill_rate(counts, exposure, ENERGY, min_counts=per_energy * 2)
    assert_array_equal(kept.flag, filling.MEASURED)
    assert (pooled.flag & filling.SHAPE_POOLED).any()
    assert_allclose((pooled.value * exposure).sum(axis=1), counts.sum(axis=1))


def test_a_ring_without_exposure_lies_between_its_neighbours_and_is_flagged():
    counts, exposure = dense()
    counts[:, 2] = exposure[:, 2] = 0
    rate = rates.fill_rate(counts, exposure, ENERGY)
    assert_array_equal((rate.flag & filling.RING_FILLED) > 0, np.arange(5) == np.full((12, 1), 2))
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
    assert ((rate.flag[:, closed] & filling.RING_FILLED) > 0).all()


def test_a_ring_with_exposure_but_never_an_event_is_low_but_not_zero():
    counts, exposure = dense()
    counts[:, 4] = 0
    rate = rates.fill_rate(counts, exposure, ENERGY)
    assert ((rate.value[:, 4] > 0) & (rate.value[:, 4] < rate.value[:, 3])).all()
    assert ((rate.flag[:, 4] & filling.RING_FILLED) > 0).all()
    assert_allclose((rate.value * exposure).sum(axis=1), counts.sum(axis=1))


def test_empty_energies_at_both_ends_are_flagged_and_fall_off():
    counts, exposure = dense()
    counts[:2] = counts[-3:] = 0
    rate = rates.fill_rate(counts, exposure, ENERGY)
    extrapolated = (rate.flag & filling.EXTRAPOLATED) > 0
    assert_array_equal(extrapolated.all(axis=1), np.isin(np.arange(12), [0, 1, 9, 10, 11]))
    assert (np.diff(rate.value[-4:], axis=0) < 0).all()
    assert (rate.value[:2] < rate.value[2]).all()


def test_a_gap_between_filled_energies_is_bridged():
    counts, exposure = dense()
    counts[6] = 0
    rate = rates.fill_rate(counts, exposure, ENERGY)
    assert (rate.flag[6] != filling.MEASURED).all()
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
    assert ((rate.flag[:3] & filling.EXTRAPOLATED) > 0).all()


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
@pytest.mark.slow
def test_a_separable_truth_is_recovered_without_bias(total):
    counts, truth, exposure = toys(total, 200)
    ratio = np.array([rates.fill_rate(one, exposure, ENERGY).value for one in counts]) / truth
    solid = (truth * exposure).sum(axis=1) > 30  # beyond, the levels are pooled
    pull = (ratio.mean(axis=0) - 1) / (ratio.std(axis=0) / np.sqrt(len(ratio)))
    assert solid.sum() >= 4
    assert (np.abs(pull[solid]) < 5).all()
    assert (np.abs(ratio.mean(axis=0) - 1)[solid] < 0.03).all()


@pytest.mark.parametrize("total", [3000, 30000])
@pytest.mark.slow
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


# --- estimate_rate --------------------------------------------------------------------------------------------------


def test_estimate_rate_is_its_steps_in_their_order():
    counts, _, exposure = toys(30000, 1)
    setting = rates.RateSettings(smooth_sigma=0.3)
    filled = rates.fill_rate(counts[0], exposure, ENERGY)
    smoothed = smooth_rings(filled.value, exposure, RINGS, 0.3)
    result = rates.estimate_rate(counts[0], exposure, (ENERGY, RINGS), setting)
    assert_allclose(result.value, node_values(smoothed, exposure, ENERGY, RINGS), rtol=1e-12)
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


def test_events_that_weigh_nothing_are_no_more_than_none():
    """A stack of weighted runs: one event of a run of weight 1e-5 must not make a hole of five decades."""
    energy = np.geomspace(1, 100, 5)
    counts = np.array([[900.0, 800, 700], [600, 500, 400], [300, 250, 0], [3, 0, 2]])
    exposure = np.ones((4, 3)) * np.array([10.0, 8, 6])
    none = rates.fill_rate(counts, exposure, energy).value
    few = rates.fill_rate(np.where(counts == 0, 1e-5, counts), exposure, energy).value
    np.testing.assert_allclose(few, none, rtol=1e-3)
    assert (none[3] > none[3].max() / 10).all()
