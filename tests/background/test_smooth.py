"""Smoothing in the field of view: fluctuations go, the profile and the counts stay."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.ndimage import gaussian_filter

from dask_bkg.background import smooth as smoothing

RINGS = np.linspace(0, 2.5, 11)
WIDTH = 0.25


def solid_angle(rings):
    return -2 * np.pi * np.diff(np.cos(np.deg2rad(rings)))


def exposures(total, rings=RINGS, ratio=(1.0, 0.1)):
    """Exposure of rates near 1, of so many counts in all at the first energy; fewer at the next."""
    return total * np.outer(ratio, solid_angle(rings) / solid_angle(rings).sum())


def gaussian(width, rings=RINGS):
    """Ring averages of a Gaussian in offset: the integral over offset^2 (small angles)."""
    cumulative = -2 * width**2 * np.exp(-0.5 * (rings / width) ** 2)
    return np.diff(cumulative) / np.diff(rings**2)


def smooth_maps(rate, exposure, reference, rings, sigma, step=0.02):
    """The same by brute force: maps of counts and expected counts, SciPy's filter, ring sums, rescaled."""
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

    rows = zip(rate, exposure, reference, strict=True)
    out = np.array([ring_sums(r * x) / ring_sums(f * x) * f for r, x, f in rows])
    return out * ((rate * exposure).sum(axis=1) / (out * exposure).sum(axis=1))[:, None]


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.8])
@pytest.mark.parametrize(
    "rings", [np.linspace(0, 2.5, 11), np.array([0, 0.3, 1.0, 1.4, 2.5]), np.array([0.5, 1, 2])], ids=len
)
@pytest.mark.slow
def test_smoothing_is_that_of_a_two_dimensional_filter(rings, sigma):
    rng = np.random.default_rng(3)
    rate = gaussian(1.5, rings) * rng.uniform(0.7, 1.4, (2, len(rings) - 1))
    exposure = exposures(1e4, rings) * rng.uniform(0.3, 1, (2, len(rings) - 1))
    reference = smoothing.reference_profile(rate * exposure, exposure, rings)
    smoothed = smoothing.smooth_rings(rate, exposure, rings, sigma)
    assert_allclose(smoothed, smooth_maps(rate, exposure, reference, rings, sigma), rtol=0.01)


@pytest.mark.parametrize("sigma", [0.025, 0.25, 1.0, 5.0])
@pytest.mark.slow
def test_a_flat_rate_stays_flat_up_to_the_edge_whatever_the_exposure(sigma):
    exposure = exposures(1e5) * np.random.default_rng(4).uniform(0.1, 1, (2, 10))
    assert_allclose(smoothing.smooth_rings(np.full((2, 10), 7.0), exposure, RINGS, sigma), 7.0, rtol=1e-5)


@pytest.mark.parametrize(("bins", "change"), [(1, 0.01), (2, 0.03)])
@pytest.mark.parametrize("width", [1.2, 1.6])
def test_a_falling_profile_is_not_flattened(width, bins, change):
    rate = np.outer([1.0, 0.5], gaussian(width))
    smoothed = smoothing.smooth_rings(rate, exposures(1e5), RINGS, bins * WIDTH)
    assert_allclose(smoothed, rate, rtol=change)


@pytest.mark.parametrize(("bins", "change"), [(1, 0.01), (2, 0.03)])
def test_nor_is_one_that_widens_with_energy(bins, change):
    """A profile common to all energies would be off by 20 % at the edge."""
    rate = np.array([gaussian(1.2), gaussian(1.4), gaussian(1.8)])
    smoothed = smoothing.smooth_rings(rate, exposures(1e5, ratio=(1, 1, 1)), RINGS, bins * WIDTH)
    assert_allclose(smoothed, rate, rtol=change)


def test_a_plain_filter_would_flatten_it():
    """What the reference is for: the same filter with a flat reference."""
    rate, exposure = gaussian(1.2)[None], exposures(1e5)[:1]
    plain = smooth_maps(rate, exposure, np.ones((1, 10)), RINGS, WIDTH)
    assert plain[0, -1] / rate[0, -1] > 1.15


@pytest.mark.parametrize("sigma", [0.1, 0.25, 1.0, 5.0])
def test_smoothing_conserves_counts_changes_the_rate_and_keeps_it_positive(sigma):
    rng = np.random.default_rng(5)
    rate, exposure = rng.lognormal(0, 1.5, (2, 10)), exposures(1e4) * rng.uniform(0.1, 1, (2, 10))
    smoothed = smoothing.smooth_rings(rate, exposure, RINGS, sigma)
    assert_allclose((smoothed * exposure).sum(axis=1), (rate * exposure).sum(axis=1), rtol=1e-9)
    assert (np.isfinite(smoothed) & (smoothed > 0)).all()
    assert not np.allclose(smoothed, rate, rtol=0.01)


def toys(n=300):
    """Toys of a falling profile; smoothed by one bin and by two, over the truth."""
    rng = np.random.default_rng(6)
    truth, exposure = gaussian(1.2)[None], exposures(3000)[:1]
    rate = rng.poisson(truth * exposure, (n, 1, 10)) / exposure
    smoothed = [np.array([smoothing.smooth_rings(r, exposure, RINGS, s) for r in rate]) for s in (WIDTH, 2 * WIDTH)]
    return [(value / truth)[:, 0] for value in (rate, *smoothed)], truth * exposure


def test_the_noise_goes_down_by_what_the_filter_averages_and_nothing_is_biased():
    (before, one, two), counts = toys()
    # The filter of the deviations alone: weights of the rings in each ring's ratio.
    share = smoothing.ring_mixing(tuple(RINGS), WIDTH) / solid_angle(RINGS)
    share = share * counts / (share * counts).sum(axis=1, keepdims=True)
    filtered = np.sqrt(share**2 @ (1 / counts[0])) * np.sqrt(counts[0])
    reduction = one.std(axis=0) / before.std(axis=0)
    # The reference follows a part of the noise, most at the ends: never less noise than the filter leaves, and of
    # the rings' ten degrees of freedom half are gone.
    assert (reduction > filtered * 0.93).all()
    assert (reduction[:-1] < np.maximum(filtered[:-1] * 1.45, 0.7)).all()
    assert reduction[-1] < 1.02
    assert np.sqrt(np.mean(reduction**2)) < 0.72
    assert (two.std(axis=0) / before.std(axis=0))[:-1].mean() < reduction[:-1].mean()
    for value in (one, two):
        assert (np.abs(value.mean(axis=0) - 1) < 4 * before.std(axis=0) / np.sqrt(len(before)) + 0.005).all()


def test_a_tenth_of_a_bin_is_nearly_nothing():
    rng = np.random.default_rng(7)
    rate, exposure = gaussian(1.2) * rng.uniform(0.9, 1.1, (2, 10)), exposures(1e5)
    changes = [
        np.abs(smoothing.smooth_rings(rate, exposure, RINGS, sigma) / rate - 1).mean() for sigma in (0.025, 0.25)
    ]
    assert changes[0] < 0.01 < changes[1]


@pytest.mark.parametrize("closed", [[0, 2], [9], [0], [3, 4, 5]], ids=str)
def test_rings_without_exposure_are_finite_and_do_not_pull_their_neighbours(closed):
    rate, exposure = np.outer([1.0, 0.5], gaussian(1.2)), exposures(1e5)
    exposure[:, closed] = 0
    smoothed = smoothing.smooth_rings(rate, exposure, RINGS, WIDTH)
    assert_allclose(smoothed, rate, rtol=0.02)


def test_a_filled_ring_keeps_near_to_its_filling():
    """Flat beyond the last ring with exposure, as `fill_rate` has it: the polynomial may not run away."""
    rate, exposure = gaussian(1.2)[None].copy(), exposures(1e4)[:1]
    rate[:, 7:], exposure[:, 7:] = rate[:, 6:7], 0
    smoothed = smoothing.smooth_rings(rate, exposure, RINGS, WIDTH)
    assert (smoothed[:, 7:] < 1.3 * rate[:, 7:]).all()
    assert (smoothed[:, 7:] > 0.1 * rate[:, 7:]).all()


def test_bins_without_a_rate_are_filled_by_their_neighbours_and_spoil_none():
    """A plain rate is NaN where there is no exposure."""
    rate, exposure = gaussian(1.2)[None].copy(), exposures(1e5)[:1]
    rate[:, 3], exposure[:, 3] = np.nan, 0
    smoothed = smoothing.smooth_rings(rate, exposure, RINGS, WIDTH)
    assert_allclose(smoothed, gaussian(1.2)[None], rtol=0.01)


def test_an_energy_without_exposure_or_counts_is_left_alone():
    rate, exposure = np.outer([1.0, 0.5, 0.0], gaussian(1.2)), exposures(1e5, ratio=(1, 0, 1))
    smoothed = smoothing.smooth_rings(rate, exposure, RINGS, WIDTH)
    assert_array_equal(smoothed[1:], rate[1:])


def test_a_single_ring_stays():
    rate = np.array([[3.0], [2.0]])
    assert_allclose(smoothing.smooth_rings(rate, np.ones((2, 1)), [0.0, 1.0], 0.3), rate, rtol=1e-9)


def test_sigma_zero_changes_nothing():
    rate = np.outer([1.0, 0.5], gaussian(1.2))
    assert_array_equal(smoothing.smooth_rings(rate, exposures(1e5), RINGS, 0.0), rate)


def test_a_negative_sigma_is_refused():
    with pytest.raises(ValueError, match="sigma"):
        smoothing.smooth_rings(np.ones((2, 10)), exposures(1e5), RINGS, -0.1)


# --- the reference, the mixing --------------------------------------------------------------------------------------


def test_the_reference_of_many_counts_is_the_profile():
    rate, exposure = np.outer([1.0, 0.5], gaussian(1.2)), exposures(1e6)
    assert_allclose(smoothing.reference_profile(rate * exposure, exposure, RINGS), rate, rtol=0.01)


def test_the_reference_of_few_counts_is_the_common_profile():
    exposure = exposures(1e6, ratio=(1, 3e-6))
    counts = np.outer([1.0, 1.0], gaussian(1.2)) * exposure
    counts[1] = 0
    counts[1, 9] = 1.0  # one event, in the outermost ring
    reference = smoothing.reference_profile(counts, exposure, RINGS)
    common = reference[0] / reference[0].mean()
    assert_allclose(reference[1] / reference[1].mean(), common, rtol=0.8)
    assert reference[1, 9] < reference[1, 0] / 2


def test_ring_mixing_is_symmetric_and_loses_only_what_leaves_the_field():
    mixing = smoothing.ring_mixing(tuple(np.linspace(0, 2.5, 6)), 0.1)
    assert_allclose(mixing, mixing.T, rtol=1e-12)
    assert (mixing >= 0).all()
    area = mixing.sum(axis=1)
    assert_allclose(area[:4] / area[0], [1, 3, 5, 7], rtol=0.03)  # areas of rings of the same width
    assert area[4] < 9 * area[0]
