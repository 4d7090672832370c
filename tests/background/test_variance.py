"""The error of a rate: by formula where there is one, and by many skies of a known truth."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from dask_bkg.background import variance as uncertainty
from dask_bkg.background.estimate import Histogram, RateSettings, Weights, estimate_rate, fill_rate, rate_of_shape
from dask_bkg.background.field import FieldSettings, estimate_field
from dask_bkg.background.field_shapes import fit_tilt, upwards
from dask_bkg.background.fill import EXTRAPOLATED, MEASURED, RING_FILLED
from dask_bkg.sky.fov import ring_grid

pytestmark = pytest.mark.slow  # whole jobs, or simulations of many skies

ENERGY = np.geomspace(0.3, 10, 9)
RINGS = np.linspace(0, 2.5, 11)
CENTER = (RINGS[1:] + RINGS[:-1]) / 2
FULL = 1e5 * np.outer(np.diff(ENERGY), ring_grid(tuple(RINGS)).bin_solid_angle)
SKIES = 150


def truth_of(total):
    middle = np.sqrt(ENERGY[1:] * ENERGY[:-1])
    rate = np.outer(middle**-2.7, np.exp(-0.5 * (CENTER / 1.5) ** 2))
    return rate * total / (rate * FULL).sum()


# --- formula --------------------------------------------------------------------------------------------------------


def test_of_one_run_that_is_not_pooled_it_is_one_over_the_root_of_its_counts():
    counts = np.array([[900.0, 600, 100], [600, 300, 50]])
    rate = fill_rate(counts, np.full((2, 3), 7.0), [1.0, 2, 4])
    assert_array_equal(rate.flag, MEASURED)
    assert_allclose(rate.error, counts**-0.5, rtol=1e-12)
    assert_allclose(rate.level_error, counts.sum(axis=1) ** -0.5)


def test_the_level_of_some_runs_and_the_shape_of_others_add_up():
    few, many = np.array([[40.0, 20, 10]]), np.array([[4000.0, 2000, 1000]])
    rate = rate_of_shape(
        Histogram(few, np.ones((1, 3))), Histogram(many, np.ones((1, 3))), ([1.0, 2], [0.0, 1, 2, 3])
    )
    assert_allclose(rate.error**2, 1 / 70 + 1 / many - 1 / 7000, rtol=1e-12)


def test_weights_make_fewer_events_of_many():
    counts = np.full((1, 2), 1000.0)
    weighted = fill_rate(counts, np.ones((1, 2)), [1.0, 2], weights=Weights(0.25, 0.25)).error
    assert_allclose(weighted, np.sqrt(0.25) * fill_rate(counts, np.ones((1, 2)), [1.0, 2]).error)
    assert_allclose(uncertainty.effective_counts(counts, 0.25), 4000)


def test_the_mean_weight_is_that_of_the_sum_of_squares():
    n, w = np.array([[3.0, 5.0], [20.0, 0.0]]), np.array([0.5, 0.1])
    weight = uncertainty.mean_weight(w @ n[:, :, None].swapaxes(0, 1), w**2 @ n)
    assert_allclose(weight, [(0.25 * 3 + 0.01 * 20) / (1.5 + 2), 0.5])


def test_pooled_energies_share_their_error_but_for_the_level():
    counts = np.array([[300.0, 200], [30, 20], [3, 2]])
    rate = fill_rate(counts, np.ones((3, 2)), [1.0, 2, 4, 8], min_counts=500)
    assert_allclose(rate.level_error, counts.sum(axis=1) ** -0.5)
    assert (rate.error > rate.level_error[:, None]).all()
    assert (rate.error[2] < 0.8 * counts[2] ** -0.5).all()


def test_what_was_filled_or_extrapolated_is_known_worse_than_its_neighbours():
    counts, exposure = np.round(truth_of(3e4) * FULL), FULL.copy()
    counts[:, 4] = exposure[:, 4] = counts[:, 9] = exposure[:, 9] = 0
    counts[0] = counts[7] = 0
    rate = fill_rate(counts, exposure, ENERGY)
    assert ((rate.flag[:, [4, 9]] & RING_FILLED) > 0).all()
    assert (rate.error[:, 4] > rate.error[:, [3, 5]].max(axis=1)).all()
    assert (rate.error[:, 9] > rate.error[:, 8]).all()
    assert ((rate.flag[[0, 7]] & EXTRAPOLATED) > 0).all()
    assert (rate.error[0] > 1).all()
    assert (rate.error[7] > rate.error[6]).all()
    assert np.isfinite(rate.error).all()


def test_a_plain_rate_does_not_know_its_empty_bins():
    counts = np.array([[4.0, 0.0], [9.0, 25.0]])
    rate = estimate_rate(
        counts, np.ones((2, 2)), ([1.0, 2, 4], [0.0, 1, 2]), RateSettings(False, node_values="plain")
    )
    assert_allclose(rate.error, [[1 / 2, np.inf], [1 / 3, 1 / 5]], rtol=1e-9)


def test_the_error_of_node_values_is_that_of_the_means():
    counts = np.round(truth_of(1e5) * FULL)
    nodes, plain = (
        estimate_rate(counts, FULL, (ENERGY, RINGS), RateSettings(node_values=kind))
        for kind in ("conserving", "plain")
    )
    assert_array_equal(nodes.error, plain.error)
    assert not (nodes.value == plain.value).all()


# --- many skies -----------------------------------------------------------------------------------------------------


def pulls_of(rates, truth):
    """Pulls of ln(rate) of the bins without a flag, and of the others."""
    value, error, flag = (np.array([getattr(rate, name) for rate in rates]) for name in ("value", "error", "flag"))
    pull = np.log(value / truth) / error
    return pull[flag == MEASURED], pull[flag != MEASURED]


def check_pulls(rates, truth):
    alone, _ = pulls_of(rates, truth)
    assert alone.size > 10 * SKIES
    assert abs(alone.mean()) < 0.1
    assert alone.std() == pytest.approx(1, abs=0.1)


WAYS = {
    "as it is": {},
    "field": {"smooth_sigma": 0.3},
    "adaptive": {"smooth_sigma": 0.05, "smooth_method": "adaptive", "smooth_counts": 900.0},
    "spline": {"smooth": True, "smooth_method": "spline"},
    "spline of 6": {"smooth": True, "smooth_method": "spline", "smooth_dof": 6.0},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("total", [2e5, 2e4])
def test_pulls_of_one_run(way, total):
    rng, truth, exposure = np.random.default_rng(1), truth_of(total), FULL.copy()
    exposure[:, 1] *= 0.4
    setting = RateSettings(node_values="plain", **WAYS[way])
    skies = rng.poisson(truth * exposure, (SKIES, *truth.shape)).astype(float)
    check_pulls([estimate_rate(sky, exposure, (ENERGY, RINGS), setting) for sky in skies], truth)


def stacked(counts, weights):
    return np.einsum("j,jko->ko", weights, counts)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("total", [2e5, 2e4])
def test_pulls_of_a_weighted_stack_with_a_shape_of_other_runs(way, total):
    rng, truth = np.random.default_rng(2), truth_of(total)
    spectrum, shape = rng.uniform(0.05, 1, 12), rng.uniform(0.3, 1, 12)
    spectrum[8:] = 0
    exposure = FULL / 10 * rng.uniform(0.3, 1, (12, 1, 10))
    setting, rates = RateSettings(node_values="plain", **WAYS[way]), []
    for counts in rng.poisson(truth * exposure, (SKIES, *exposure.shape)).astype(float):
        first, second = (Histogram(stacked(counts, w), stacked(exposure, w)) for w in (spectrum, shape))
        squares = (stacked(counts, w**2).sum(axis=1) for w in (spectrum, shape))
        weights = (uncertainty.mean_weight(h.counts, s) for h, s in zip((first, second), squares, strict=True))
        rates.append(estimate_rate(*first, (ENERGY, RINGS), setting, second, Weights(*weights)))
    check_pulls(rates, truth)


def test_pulls_of_pooled_bins():
    rng, truth = np.random.default_rng(3), truth_of(3e3)
    skies = rng.poisson(truth * FULL, (SKIES, *truth.shape)).astype(float)
    pulls = pulls_of([fill_rate(sky, FULL, ENERGY, 500) for sky in skies], truth)[1]
    assert abs(pulls.mean()) < 0.15
    assert 0.85 < pulls.std() < 1.15


# --- 3D -------------------------------------------------------------------------------------------------------------


def field_sky(rng, tilt, pixels, total):
    center = (pixels[1:] + pixels[:-1]) / 2
    up, offset = upwards(pixels), np.hypot(center[:, None], center)
    exposure = np.broadcast_to(np.diff(ENERGY)[:, None, None], (8, *up.shape)) * 1.0
    truth = np.sqrt(ENERGY[1:] * ENERGY[:-1])[:, None, None] ** -2.7 * np.exp(-0.5 * (offset / 1.5) ** 2 + tilt * up)
    truth *= total / (truth * exposure).sum()
    field = Histogram(rng.poisson(truth * exposure).astype(float), exposure)
    ring = np.clip((offset / 0.25).astype(int), 0, 99)
    rings = Histogram(*(np.stack([a[:, ring == r].sum(axis=1) for r in range(10)], axis=1) for a in field))
    return rings, field, truth, up


def test_the_error_of_a_pixel_is_that_of_its_ring_and_of_the_gradient():
    pixels = np.linspace(-2.5, 2.5, 21)
    rings, field, _, up = field_sky(np.random.default_rng(4), 0.1, pixels, 1e5)
    edges, plain = (ENERGY, RINGS, pixels), RateSettings(node_values="plain")
    rate = estimate_field(rings, field, edges, (0.6, 0.6), plain)
    upright = estimate_field(rings, field, edges, (0.6, 0.0), plain)
    tilt = fit_tilt(field.counts, field.exposure, edges, 0.6, up).error
    added = np.sqrt(rate.error**2 - upright.error**2)
    assert_allclose(added, np.abs(0.6 * tilt[:, None, None] * up), rtol=0.05)
    radial = estimate_rate(*rings, edges[:2], plain)
    assert_allclose(upright.error[:, 10, 10], radial.error[:, 0], rtol=0.02)


@pytest.mark.parametrize("shape", ["gradient", "free", "both"])
def test_the_scatter_of_pixels_is_no_more_than_their_error(shape):
    rng, pixels, pulls = np.random.default_rng(5), np.linspace(-2.5, 2.5, 11), []
    settings = FieldSettings(shape, prior=1.0, min_counts=500)
    for _ in range(40):
        rings, field, truth, _ = field_sky(rng, 0.0, pixels, 1e5)
        rate = estimate_field(
            rings, field, (ENERGY, RINGS, pixels), (1.0, 1.0), RateSettings(node_values="plain"), settings
        )
        pulls.append((np.log(rate.value / truth) / rate.error)[:4, 2:8, 2:8])
    # these pixels are wide, and their means are not what the truth has at their centres: the scatter alone
    assert 0.7 < np.std(pulls, axis=0).mean() < 1.15
