"""From histograms of a field of view to a rate over it: a truth that is known is found, and the counts are kept."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.interpolate import RegularGridInterpolator
from scipy.ndimage import gaussian_filter
from scipy.special import i0

from dask_bkg.background.estimate import Histogram, RateSettings, estimate_rate
from dask_bkg.background.field import FIELD_FLAGS, FIELD_POOLED, PIXEL_UNSEEN, FieldSettings, estimate_field
from dask_bkg.background.field_rotation import turn, turn_to_radec
from dask_bkg.background.field_shapes import fit_tilt, free_modulation, upwards
from dask_bkg.background.fill import RING_FILLED
from dask_bkg.background.nodes import mean_log_offset
from dask_bkg.sky.fov import separation

RINGS = np.linspace(0, 2.5, 11)
PIXELS = np.linspace(-2.5, 2.5, 26)
CENTER = (PIXELS[1:] + PIXELS[:-1]) / 2
OFFSET = np.hypot(CENTER[:, None], CENTER[None, :])
ONTIME = 1e5
PLAIN = RateSettings(node_values="plain")
MODELS = ("gradient", "free", "both")
CELLS = 125
"""Cells of a simulation along each side of the field, of 0.04 deg."""


def energies(n, low=0.3, high=30.0):
    return np.geomspace(low, high, n + 1)


# --- truths ---------------------------------------------------------------------------------------------------------


def slope(energy):
    """A gradient over sin z that changes its sign [1/deg]."""
    return -0.2 + 0.1 * np.log(energy)


def round_(energy, lon, lat):
    width = 1.2 + 0.1 * np.log(energy)
    return energy**-2.7 * np.exp(-0.5 * (lon**2 + lat**2) / width**2)


def tilted(energy, lon, lat, sin_z=0.6):
    g = sin_z * slope(energy)
    return round_(energy, lon, lat) * np.exp(g * lat) / i0(g * np.hypot(lon, lat))


def sideways(energy, lon, lat):
    """The zenith is at (-0.6, 0.8)."""
    return tilted(energy, 0.8 * lon + 0.6 * lat, 0.8 * lat - 0.6 * lon)


def threshold_slope(energy):
    return np.where(energy < energies(12)[3], 0.4, -0.2)


def turning_on(energy, lon, lat):
    return round_(energy, lon, lat) / (1 + (0.9 / energy) ** 8) * np.exp(0.6 * threshold_slope(energy) * lat)


def steep(energy, lon, lat):
    return round_(energy, lon, lat) * np.exp(-0.8 * lat)


def stretched(energy, lon, lat, q=0.05):
    return round_(energy, lon, lat) * np.exp(q * (lon**2 - lat**2))


def middles(edges, parts, log=False):
    """Centres and widths of equal parts of bins."""
    space = np.geomspace if log else np.linspace
    fine = space(edges[0], edges[-1], (edges.size - 1) * parts + 1)
    return np.sqrt(fine[1:] * fine[:-1]) if log else (fine[1:] + fine[:-1]) / 2, np.diff(fine)


@lru_cache(maxsize=32)
def fine_counts(truth, n_energy, n_pixels):
    """Expected counts of small cells, up to a factor, and their solid angles, shape ``(energy, cell, cell)``."""
    pixels = np.linspace(-2.5, 2.5, n_pixels + 1)
    e, width = middles(energies(n_energy), 96 // n_energy, log=True)
    x, step = middles(pixels, CELLS // n_pixels)
    area = np.deg2rad(step[0]) ** 2 * np.cos(np.deg2rad(x))[:, None] * np.ones(x.size)
    number = truth(e[:, None, None], x[None, None, :], x[None, :, None]) * width[:, None, None] * area
    return number.reshape(n_energy, -1, x.size, x.size).sum(axis=1), area, pixels


def histograms(number, area, energy, pixels):
    """Rings and pixels of small cells, which are all exposed but for those without area."""
    n, cells, spans = pixels.size - 1, area.shape[0], np.diff(energy)
    x, _ = middles(pixels, cells // n)
    ring = np.searchsorted(RINGS, np.hypot(x[:, None], x[None, :]).ravel(), side="right") - 1
    inside = ring < RINGS.size - 1
    *counts, angle = (np.bincount(ring[inside], values.ravel()[inside], RINGS.size - 1) for values in (*number, area))
    *pixel_counts, pixel_angle = (values.reshape(n, cells // n, n, -1).sum(axis=(1, 3)) for values in (*number, area))
    rings = Histogram(np.array(counts), ONTIME * np.outer(spans, angle))
    return rings, Histogram(np.array(pixel_counts), ONTIME * spans[:, None, None] * pixel_angle)


@lru_cache(maxsize=32)
def expectation(truth, n_energy=12, total=1e6, n_pixels=25):
    """Histograms of rings and pixels, and edges, without fluctuations, for one of the truths."""
    number, area, pixels = fine_counts(truth, n_energy, n_pixels)
    energy = energies(n_energy)
    return *histograms(number * total / number.sum(), area, energy, pixels), (energy, RINGS, pixels)


def fluctuate(truth, total, seed, closed=None, n_energy=12):
    """The same with Poisson fluctuations; ``closed`` pixels have neither counts nor exposure."""
    number, area, pixels = fine_counts(truth, n_energy, 25)
    is_open = 1.0 if closed is None else np.kron(~closed, np.ones((CELLS // 25,) * 2))
    number = np.random.default_rng(seed).poisson(number * total / number.sum()) * is_open
    energy = energies(n_energy)
    return *histograms(number, area * is_open, energy, pixels), (energy, RINGS, pixels)


def disc(lon, lat, radius):
    """Pixels whose centre lies in a circle."""
    return np.hypot(CENTER[None, :] - lon, CENTER[:, None] - lat) < radius


def integrate(nodes, energy, pixels):
    """Counts of bins by gammapy's interpolation: ln(rate) linear in ln E and along the field."""
    at = np.log(np.sqrt(energy[1:] * energy[:-1])), *((pixels[1:] + pixels[:-1]) / 2,) * 2
    interpolate = RegularGridInterpolator(at, np.log(nodes), bounds_error=False, fill_value=None)
    parts = 4 * 25 // (pixels.size - 1)
    e, width = middles(energy, 96 // (energy.size - 1), log=True)
    x, step = middles(pixels, parts)
    grid = np.stack(np.meshgrid(np.log(e), x, x, indexing="ij"), axis=-1)
    value = np.exp(interpolate(grid)) * width[:, None, None] * np.deg2rad(step[0]) ** 2 * ONTIME
    n = pixels.size - 1
    value *= np.cos(np.deg2rad(x))[None, :, None]
    return value.reshape(energy.size - 1, -1, n, parts, n, parts).sum(axis=(1, 3, 5))


def ring_means(nodes, pixels):
    """Means over rings of interpolated values, shape ``(energy, ring)``."""
    center, angle = (pixels[1:] + pixels[:-1]) / 2, 2 * np.pi * np.arange(120) / 120
    offset, _ = middles(RINGS, 8)
    interpolate = RegularGridInterpolator(
        (center, center), np.log(nodes).transpose(1, 2, 0), bounds_error=False, fill_value=None
    )
    places = np.stack([np.outer(offset, np.sin(angle)), np.outer(offset, np.cos(angle))], axis=-1)
    value = np.exp(interpolate(places)).mean(axis=1).T * offset
    return value.reshape(-1, RINGS.size - 1, 8).sum(axis=2) / offset.reshape(-1, 8).sum(axis=1)


# --- what is planted is found ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", [None, disc(0.6, 1.0, 0.7)], ids=["open", "hole above"])
def test_a_planted_gradient_is_found_within_its_error(closed):
    energy = energies(12)
    true, pulls, errors = slope(np.sqrt(energy[1:] * energy[:-1])), [], []
    for seed in range(30):
        _, field, edges = fluctuate(tilted, 3e4, seed, closed)
        expected = round_(np.sqrt(energy[1:] * energy[:-1])[:, None, None], CENTER[None, :], CENTER[:, None])
        tilt = fit_tilt(field.counts, expected * field.exposure, edges, 0.6, upwards(PIXELS))
        pulls.append((tilt.value - true) / tilt.error)
        errors.append(tilt.error)
    pulls, errors = np.array(pulls), np.array(errors)
    assert np.abs(pulls).max() < 4.5
    # above, the prior has more to say
    assert abs(pulls[:, :6].mean()) < 0.3
    assert 0.8 < pulls[:, :4].std() < 1.2
    # the error by hand: in a round field half of the mean square of the offset is upwards
    share = field.counts[1] / field.counts[1].sum()
    by_hand = 1 / np.sqrt(0.6**2 * field.counts[1].sum() * (share * OFFSET**2).sum() / 2)
    assert 0.8 * by_hand < errors[:, 1].mean() < 1.05 * by_hand


def test_a_strong_gradient_is_found_as_well():
    _, field, edges = expectation(steep)
    center = np.sqrt(edges[0][1:] * edges[0][:-1])[:, None, None]
    expected = field.exposure * round_(center, CENTER[None, :], CENTER[:, None])
    tilt = fit_tilt(field.counts, expected, edges, 0.5, upwards(PIXELS))
    assert_allclose(tilt.value[:6], -1.6, atol=0.02)
    # the events crowd at one side of their ring, and tell less
    none = fit_tilt(expectation(round_)[1].counts, expected, edges, 0.5, upwards(PIXELS))
    assert (tilt.error[:4] > 1.1 * none.error[:4]).all()


def test_the_error_of_the_gradient_shrinks_with_the_counts():
    errors = []
    for total in (1e3, 1e5):
        _, field, edges = fluctuate(tilted, total, 0)
        errors.append(fit_tilt(field.counts, field.exposure, edges, 0.6, upwards(PIXELS)).error[2])
    assert errors[1] < errors[0] / 3


def test_the_gradient_turns_with_the_threshold_and_hardly_above():
    """Where the spectrum turns on the zenith is brighter, above it the horizon (measured: from +0.6 to -0.25)."""
    energy = energies(12)
    center, found = np.sqrt(energy[1:] * energy[:-1]), []
    for seed in range(10):
        _, field, edges = fluctuate(turning_on, 2e4, seed)
        assert field.counts.sum(axis=(1, 2)).argmax() in (2, 3)
        expected = field.exposure * round_(center[:, None, None], CENTER[None, :], CENTER[:, None])
        found.append(fit_tilt(field.counts, expected, edges, 0.6, upwards(PIXELS)).value)
    found = np.array(found)
    assert_allclose(found[:, 2:5].mean(axis=0), threshold_slope(center)[2:5], atol=0.08)
    # among the few events of high energy it follows a line, not the noise
    assert np.diff(found[:, 6:], axis=1).std() < 0.03


def test_the_gradient_does_not_care_for_a_wrong_radial_rate():
    _, field, edges = fluctuate(tilted, 1e5, 1)
    flat, steep = field.exposure, field.exposure * np.exp(-(OFFSET**2))
    tilts = [fit_tilt(field.counts, base, edges, 0.6, upwards(PIXELS)).value[2] for base in (flat, steep)]
    assert abs(tilts[0] - tilts[1]) < 0.02


def test_the_gradient_of_the_target_goes_with_its_own_zenith_angle():
    rings, field, edges = expectation(tilted)
    slopes = []
    for target in (0.0, 0.3, 0.6):
        value = estimate_field(rings, field, edges, (0.6, target), PLAIN).value[4]
        slopes.append(np.log(value[18, 12] / value[6, 12]) / (CENTER[18] - CENTER[6]))
    center = np.sqrt(edges[0][4] * edges[0][5])
    assert_allclose(slopes, np.array([0.0, 0.3, 0.6]) * slope(center), atol=0.003)


def test_in_a_field_aligned_with_north_the_gradient_lies_where_the_zenith_is():
    rings, field, edges = expectation(sideways)
    value = estimate_field(rings, field, edges, (0.6, 0.6), PLAIN, zenith=(-0.6, 0.8)).value[4]
    lat, lon = (
        np.log(pair[0] / pair[1]) / 2.4 for pair in ((value[18, 12], value[6, 12]), (value[12, 18], value[12, 6]))
    )
    g = 0.6 * slope(np.sqrt(edges[0][4] * edges[0][5]))
    assert_allclose([lat, lon], [0.8 * g, -0.6 * g], atol=0.004)


@pytest.mark.parametrize("shape", MODELS)
def test_a_round_truth_stays_round(shape):
    rings, field, edges = fluctuate(round_, 1e5, 2)
    base = estimate_field(rings, field, edges, (0.0, 0.0), PLAIN, FieldSettings("gradient")).value
    ratio = estimate_field(rings, field, edges, (0.6, 0.6), PLAIN, FieldSettings(shape)).value / base
    near = (ratio - 1)[:5][:, OFFSET < 1.5]
    # 2000 events and more in a pool, of which a seventh is under a Gaussian of 0.5 deg: 6 %
    assert near.std() < (0.03 if shape == "gradient" else 0.08)
    assert abs(near.mean()) < 0.005


def stretch_of(value, base):
    """Coefficient of lon^2 - lat^2 in the logarithm of a ratio [1/deg2]."""
    pattern = (CENTER[None, :] ** 2 - CENTER[:, None] ** 2) * np.ones((25, 25))
    inside = OFFSET < 2
    return (np.log(value / base)[:, inside] @ pattern[inside]) / (pattern[inside] ** 2).sum()


@pytest.mark.parametrize(("shape", "found"), [("gradient", 0.0), ("free", 1.0), ("both", 1.0)])
def test_two_telescopes_stretch_the_acceptance_and_only_a_free_shape_sees_it(shape, found):
    rings, field, edges = fluctuate(stretched, 3e5, 3)
    base = estimate_field(rings, field, edges, (0.0, 0.0), PLAIN, FieldSettings("gradient")).value
    fine, default = (
        stretch_of(estimate_field(rings, field, edges, (0.6, 0.6), PLAIN, how).value, base)[:5].mean()
        for how in (FieldSettings(shape, smooth_sigma=0.2, prior=0.0), FieldSettings(shape))
    )
    assert fine == pytest.approx(0.05 * found, abs=0.006)
    # a Gaussian over a falling profile sees too much of what is further in, and the prior holds at none
    assert 0.03 * found - 0.001 < default < 0.05 * found + 0.001


def test_the_shape_of_an_energy_is_its_own_where_it_has_the_counts():
    _, field, edges = expectation(stretched)
    counts = field.counts.copy()
    counts[1] = expectation(round_)[1].counts[1]
    how = {"sigma": 0.5, "min_counts": 100, "prior": 0}
    among = free_modulation(counts, field.exposure, edges[0], PIXELS, **how)[0]
    alone = free_modulation(counts[1:2], field.exposure[1:2], edges[0][1:3], PIXELS, **how)[0]
    assert_allclose(among[1], alone[0], rtol=1e-9)


def test_counts_without_exposure_say_nothing():
    rings, field, edges = fluctuate(round_, 1e4, 13, disc(1.0, 0.0, 0.4))
    wrong = np.where(disc(1.0, 0.0, 0.4), 1e3, field.counts)
    for shape in MODELS:
        right, got = (
            estimate_field(rings, Histogram(counts, field.exposure), edges, field_settings=FieldSettings(shape)).value
            for counts in (field.counts, wrong)
        )
        assert_array_equal(got, right)


def test_a_wider_gaussian_leaves_less_of_the_noise():
    rings, field, edges = fluctuate(round_, 1e5, 4)
    base = estimate_field(rings, field, edges, (0.0, 0.0), PLAIN).value
    bumps = []
    for sigma in (0.2, 0.4, 0.8):
        value = estimate_field(rings, field, edges, (0.0, 0.0), PLAIN, FieldSettings("free", sigma, prior=0.0)).value
        bumps.append(np.log(value / base)[:4, OFFSET < 1.5].std())
    # as 1 / sigma
    assert bumps[0] > 1.5 * bumps[1] > 2.2 * bumps[2]


def test_a_strong_prior_leaves_the_radial_rate():
    rings, field, edges = fluctuate(stretched, 1e4, 5)
    strong, none = (
        estimate_field(rings, field, edges, settings=PLAIN, field_settings=FieldSettings("free", prior=prior)).value
        for prior in (1e9, 0.0)
    )
    base = estimate_field(rings, field, edges, (0.0, 0.0), PLAIN).value
    assert_allclose(strong, base, rtol=1e-3)
    assert np.abs(none / base - 1).max() > 0.1


# --- what is conserved ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", MODELS)
def test_each_energy_has_its_counts(shape):
    closed = disc(-0.5, 0.8, 0.5)
    rings, field, edges = fluctuate(tilted, 1e5, 6, closed)
    value = estimate_field(rings, field, edges, (0.6, 0.6), field_settings=FieldSettings(shape)).value
    predicted = integrate(value, edges[0], PIXELS)[:, ~closed].sum(axis=1)
    seen = field.counts.sum(axis=(1, 2))
    assert predicted.sum() / seen.sum() == pytest.approx(1, abs=0.003)
    # the pixels at the last ring are shared by it and those behind it, and so are their fluctuations
    assert_allclose(predicted[seen > 1000] / seen[seen > 1000], 1, atol=0.01)
    assert_allclose((predicted - seen) / np.sqrt(seen), 0, atol=0.7)


@pytest.mark.parametrize("shape", MODELS)
@pytest.mark.parametrize("n_energy", [4, 6, 12, 24])
@pytest.mark.slow
def test_the_interpolation_of_gammapy_returns_the_counts(shape, n_energy):
    rings, field, edges = expectation(tilted, n_energy)
    value = estimate_field(rings, field, edges, (0.6, 0.6), field_settings=FieldSettings(shape)).value
    predicted = integrate(value, edges[0], edges[2])
    assert_allclose(predicted.sum(axis=(1, 2)) / field.counts.sum(axis=(1, 2)), 1, atol=0.01)
    for inner, outer in ((0, 1), (1, 2), (2, 2.5)):
        ring = (inner <= OFFSET) & (outer > OFFSET)
        # within a wide bin the acceptance widens, and a product of two factors cannot know
        assert predicted[:, ring].sum() / field.counts[:, ring].sum() == pytest.approx(1, abs=0.1 / n_energy)


def test_bin_means_at_the_centres_would_not():
    rings, field, edges = expectation(tilted, 4)
    value = estimate_field(rings, field, edges, (0.6, 0.6), PLAIN).value
    assert integrate(value, edges[0], edges[2]).sum() / field.counts.sum() > 1.05


@pytest.mark.parametrize("n_pixels", [25, 5])
def test_pixels_may_be_wide(n_pixels):
    rings, field, edges = expectation(tilted, 12, n_pixels=n_pixels)
    predicted = integrate(estimate_field(rings, field, edges, (0.6, 0.6)).value, edges[0], edges[2])
    assert predicted.sum() / field.counts.sum() == pytest.approx(1, abs=0.005)
    center = (edges[2][1:] + edges[2][:-1]) / 2
    inner = np.hypot(center[:, None], center[None, :]) < 1.2
    assert predicted[:, inner].sum() / field.counts[:, inner].sum() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("shape", MODELS)
def test_the_mean_over_angle_is_the_radial_rate(shape):
    rings, field, edges = expectation(tilted)
    three = estimate_field(rings, field, edges, (0.6, 0.6), field_settings=FieldSettings(shape)).value
    two = np.array([mean_log_offset(row, RINGS) for row in estimate_rate(*rings, edges[:2]).value])
    # at its outer edge the radial rate stays as it is, that of pixels goes on falling
    assert_allclose((ring_means(three, PIXELS) / two)[:, :9], 1, atol=0.005)
    assert_allclose((ring_means(three, PIXELS) / two)[:, 9], 1, atol=0.025)


@pytest.mark.parametrize("shape", MODELS)
def test_the_mean_over_angle_is_the_radial_rate_with_fluctuations(shape):
    rings, field, edges = fluctuate(tilted, 1e5, 12)
    three = estimate_field(rings, field, edges, (0.6, 0.6), field_settings=FieldSettings(shape)).value
    two = np.array([mean_log_offset(row, RINGS) for row in estimate_rate(*rings, edges[:2]).value])
    ratio, many = (ring_means(three, PIXELS) / two)[:, :9], rings.counts[:, :9] > 500
    assert many.sum() > 25
    # pixels of 0.2 deg, to the statistics of rings of 0.25 deg
    assert ratio[many].mean() == pytest.approx(1, abs=0.003)
    assert ratio[many].std() < 0.01


def test_a_hole_on_the_bright_side_darkens_nothing():
    """The counts of a ring without its brighter part are those of its darker part, not of its mean."""
    hole = disc(0.0, -1.0, 0.9)  # below 1 TeV the lower side is brighter
    number, area, pixels = fine_counts(tilted, 12, 25)
    is_open = np.kron(~hole, np.ones((CELLS // 25,) * 2))
    number, edges = number * 1e6 / number.sum(), (energies(12), RINGS, pixels)
    whole = estimate_field(*histograms(number, area, *edges[::2]), edges, (0.6, 0.6), PLAIN).value
    partial = histograms(number * is_open, area * is_open, *edges[::2])
    with_hole = estimate_field(*partial, edges, (0.6, 0.6), PLAIN).value
    without_tilt = estimate_field(*partial, edges, (0.0, 0.0), PLAIN).value
    ring = (OFFSET > 0.7) & (OFFSET < 1.4)
    assert_allclose(with_hole[1, ring].mean() / whole[1, ring].mean(), 1, atol=0.005)
    assert_allclose(with_hole[1, hole] / whole[1, hole], 1, atol=0.02)
    assert without_tilt[1, ring].mean() / whole[1, ring].mean() < 0.95


def test_the_rate_reaches_to_the_corners():
    rings, field, edges = expectation(round_)
    value = estimate_field(rings, field, edges, (0.6, 0.6), PLAIN).value
    seen = field.counts / field.exposure
    corner = OFFSET > 2.6
    assert (value * field.exposure)[:, corner].sum() / field.counts[:, corner].sum() == pytest.approx(1, abs=0.02)
    assert_allclose(value[5, 0, 0] / seen[5, 0, 0], 1, atol=0.3)


# --- sparse and closed ----------------------------------------------------------------------------------------------


@st.composite
def sparse_fields(draw):
    """Some 1 to 300 events, closed rings and pixels, any number of bins."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    energy = np.geomspace(0.1, 100, draw(st.integers(1, 30)) + 1)
    rings = np.linspace(0, draw(st.sampled_from([1.5, 2.5, 3.5])), draw(st.integers(1, 12)) + 1)
    pixels = np.linspace(-2.5, 2.5, draw(st.integers(2, 31)) + 1)
    center = (pixels[1:] + pixels[:-1]) / 2
    e, n = np.sqrt(energy[1:] * energy[:-1]), center.size
    mean = round_(e[:, None, None], center[None, :], center[:, None]) * np.diff(energy)[:, None, None]
    counts = rng.poisson(mean * draw(st.sampled_from([1, 30, 300])) / mean.sum()).astype(float)
    counts[rng.integers(e.size), rng.integers(n), rng.integers(n)] += 1
    exposure = np.diff(energy)[:, None, None] * np.ones((n, n))
    if draw(st.booleans()):
        closed = rng.random((n, n)) < 0.5
        exposure[:, closed & (counts.sum(axis=0) == 0)] = 0
    ring = np.searchsorted(rings, np.hypot(center[:, None], center).ravel(), side="right") - 1
    member = (ring[:, None] == np.arange(rings.size - 1)).astype(float)
    by_ring = Histogram(*(array.reshape(e.size, -1) @ member for array in (counts, exposure)))
    if not by_ring.counts.any():
        by_ring.counts[0, 0], by_ring.exposure[0, 0] = 1.0, max(by_ring.exposure[0, 0], 1.0)
    return by_ring, Histogram(counts, exposure), (energy, rings, pixels)


@settings(max_examples=40, deadline=None)
@given(sparse_fields(), st.sampled_from(MODELS), st.sampled_from([0.0, 0.5]), st.floats(0, 1))
@pytest.mark.slow
def test_no_pixel_is_zero_nan_or_infinite(histograms, shape, sigma, sin_z):
    rate = estimate_field(
        *histograms, (sin_z, 0.5), RateSettings(smooth_sigma=sigma), FieldSettings(shape, smooth_sigma=sigma)
    )
    assert np.isfinite(rate.value).all()
    assert (rate.value > 0).all()
    assert rate.flag.shape == rate.value.shape


def test_a_gradient_from_thirty_events_is_a_small_one():
    slopes = []
    for seed in range(20):
        _, field, edges = fluctuate(round_, 30, seed)
        tilt = fit_tilt(field.counts, field.exposure * np.exp(-(OFFSET**2) / 3), edges, 0.6, upwards(PIXELS))
        slopes.append(0.6 * tilt.value[0])
    assert np.std(slopes) < 0.15


def test_a_closed_ring_and_closed_pixels_are_filled_and_flagged():
    closed = ((OFFSET > 0.6) & (OFFSET < 1.15)) | disc(1.5, 1.5, 0.4)
    rings, field, edges = fluctuate(tilted, 1e6, 7, closed)
    assert (rings.exposure[:, 3] == 0).all()
    rate = estimate_field(rings, field, edges, (0.6, 0.6), PLAIN)
    e = np.sqrt(edges[0][1:] * edges[0][:-1])
    true = tilted(e[:, None, None], CENTER[None, :], CENTER[:, None])
    ratio = rate.value[4] / true[4]
    assert_allclose(ratio[closed].mean() / ratio[~closed & (OFFSET < 2)].mean(), 1, atol=0.05)
    assert ((rate.flag & PIXEL_UNSEEN > 0) == closed).all()
    assert (rate.flag[:, 12, 16] & RING_FILLED).all()
    assert not (rate.flag[:, 12, 22] & RING_FILLED).any()


def test_pooled_energies_are_flagged():
    rings, field, edges = fluctuate(round_, 1e5, 8)
    flag = estimate_field(rings, field, edges, field_settings=FieldSettings("free", min_counts=2000)).flag
    pooled = (flag & FIELD_POOLED).any(axis=(1, 2))
    assert_array_equal(pooled, field.counts.sum(axis=(1, 2)) < 2000)
    assert set(FIELD_FLAGS) >= {FIELD_POOLED, PIXEL_UNSEEN, RING_FILLED}


def test_fewer_rings_or_a_smaller_field_are_no_matter():
    _, field, (energy, _, pixels) = expectation(round_)
    rings = expectation(round_)[0]
    wide = estimate_field(rings, field, (energy, RINGS, pixels), (0.6, 0.6), PLAIN).value
    few = Histogram(*(array[:, :4] for array in rings))
    inner = Histogram(*(array[:, 5:20, 5:20] for array in field))
    narrow = estimate_field(few, field, (energy, RINGS[:5], pixels), (0.6, 0.6), PLAIN).value
    small = estimate_field(rings, inner, (energy, RINGS, pixels[5:21]), (0.6, 0.6), PLAIN).value
    assert_allclose(small, wide[:, 5:20, 5:20], rtol=0.002)
    assert_allclose(narrow[:, OFFSET < 2] / wide[:, OFFSET < 2], 1, atol=0.04)


# --- the procedure's own way, and settings --------------------------------------------------------------------------


def test_plain_is_counts_over_exposure():
    rings, field, edges = fluctuate(round_, 1e3, 9, disc(0, 0, 0.5))
    rate = estimate_field(rings, field, edges, (np.nan, np.nan), PLAIN._replace(fill=False), FieldSettings("plain"))
    seen = field.exposure > 0
    assert_array_equal(rate.value[seen], field.counts[seen] / field.exposure[seen])
    assert (rate.value[~seen] == 0).all()
    assert (rate.value == 0).sum() > 1000
    assert_array_equal(rate.flag > 0, ~seen)


def test_plain_is_smoothed_by_a_plain_gaussian():
    rings, field, edges = fluctuate(round_, 1e4, 10)
    plain = field.counts / field.exposure
    how = PLAIN._replace(fill=False, smooth_method="to_3d", smooth_bins=1.0)
    rate = estimate_field(rings, field, edges, settings=how, field_settings=FieldSettings("plain"))
    assert_allclose(rate.value, [gaussian_filter(plane, 1.0) for plane in plain])


def test_plain_smoothed_in_the_field_keeps_the_counts_and_the_edge():
    rings, field, edges = expectation(lambda e, lon, lat: e**-2.7 + 0 * lon * lat)
    how = PLAIN._replace(fill=False, smooth_sigma=0.4)
    smooth = estimate_field(rings, field, edges, settings=how, field_settings=FieldSettings("plain")).value
    assert_allclose(smooth, field.counts / field.exposure, rtol=1e-9)
    rings, field, edges = fluctuate(round_, 1e4, 11, disc(1, 0, 0.5))
    smooth = estimate_field(rings, field, edges, settings=how, field_settings=FieldSettings("plain")).value
    assert_allclose((smooth * field.exposure).sum(axis=(1, 2)), field.counts.sum(axis=(1, 2)))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"field_settings": FieldSettings("round")}, "accepted are gradient, free"),
        ({"settings": PLAIN._replace(fill=False)}, "set fill"),
        ({"field_settings": FieldSettings("free", -1.0)}, "not negative"),
        ({"field_settings": FieldSettings("free", prior=np.nan)}, "not negative"),
        ({"sin_zenith": (0.5, np.nan)}, "set shape 'free'"),
    ],
)
def test_what_cannot_be_is_refused(wrong, words):
    rings, field, edges = expectation(round_)
    with pytest.raises(ValueError, match=words):
        estimate_field(rings, field, edges, **wrong)


def test_without_counts_there_is_no_rate():
    rings, field, edges = expectation(round_)
    with pytest.raises(ValueError, match="no counts"):
        estimate_field(rings._replace(counts=0 * rings.counts), field._replace(counts=0 * field.counts), edges)


# --- from the horizon to the sky ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ra", "dec", "hour"), [(83.6, 22.0, 22), (83.6, 22.0, 1), (83.6, -60.0, 20), (0.1, 5.0, 17)]
)
def test_the_turn_is_that_of_gammapys_frames(ra, dec, hour):
    """Northern and southern pointing, before and after the meridian, right ascension near 0."""
    import astropy.units as u
    from astropy.coordinates import AltAz, EarthLocation, SkyCoord
    from astropy.time import Time
    from astropy.utils import iers
    from gammapy.utils.coordinates import FoVAltAzFrame, FoVICRSFrame

    lon, lat = np.array([1.5, 0.0, -2.0, 0.3, -1.0]), np.array([0.0, 1.5, 0.4, -2.2, -1.0])
    with iers.conf.set_temp("auto_download", False):
        time = Time(f"2005-01-15T{hour:02d}:00:00")
        place = EarthLocation(lon=16.5 * u.deg, lat=-23.27 * u.deg, height=1835 * u.m)
        horizon = AltAz(obstime=time, location=place)
        pointing = SkyCoord(ra, dec, unit="deg")
        zenith = SkyCoord(alt=90 * u.deg, az=0 * u.deg, frame=horizon).icrs
        sky = SkyCoord(lon, lat, unit="deg", frame=FoVICRSFrame(origin=pointing.icrs)).icrs
        frame = FoVAltAzFrame(origin=pointing.transform_to(horizon), obstime=time, location=place)
        seen = sky.transform_to(horizon).transform_to(frame)
        wanted = seen.fov_lon.wrap_at(180 * u.deg).deg, seen.fov_lat.deg
    got = turn(lon, lat, pointing.position_angle(zenith).deg)
    # refraction is none, aberration and the poles of date are 0.001 deg
    assert_allclose(got, wanted, atol=0.005)


def test_the_turn_is_its_own_inverse_and_keeps_the_offset():
    rng = np.random.default_rng(0)
    lon, lat, angle = rng.uniform(-3, 3, 50), rng.uniform(-3, 3, 50), rng.uniform(-180, 180, 50)
    there = turn(lon, lat, angle)
    assert_allclose(turn(*there, angle), (lon, lat), atol=1e-12)
    assert_allclose(separation(*there, 0, 0), separation(lon, lat, 0, 0), atol=1e-12)
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    assert_allclose(there, (-lon * cos - lat * sin, lat * cos - lon * sin), atol=0.01)  # on the plane


def smooth_rate():
    energy = np.array([0.5, 2.0])
    return tilted(energy[:, None, None], CENTER[None, :], CENTER[:, None]) * np.exp(0.1 * CENTER)[None, None, :]


def test_a_model_is_turned_to_where_the_zenith_is():
    for q in (0.0, 37.0, 90.0, -150.0):
        turned = turn_to_radec(smooth_rate(), PIXELS, [q])
        lon, lat = turn(CENTER[None, :], CENTER[:, None], q)
        energy = np.array([0.5, 2.0])[:, None, None]
        true = tilted(energy, lon, lat) * np.exp(0.1 * lon)
        inside = OFFSET < 2.3
        assert_allclose(turned[:, inside], true[:, inside], rtol=0.01)


def test_a_model_turned_and_turned_back_is_the_same():
    rate = smooth_rate()
    inside = OFFSET < 2.2
    back = turn_to_radec(turn_to_radec(rate, PIXELS, [33.0]), PIXELS, [33.0])
    assert_allclose(back[:, inside], rate[:, inside], rtol=0.01)
    # by right angles pixels fall on pixels
    assert_allclose(turn_to_radec(rate, PIXELS, [0.0]), rate[:, :, ::-1], rtol=0.005)
    assert_allclose(turn_to_radec(rate, PIXELS, [180.0])[:, 5:20, 5:20], rate[:, 19:4:-1, 5:20], rtol=0.005)


def test_a_model_is_averaged_over_the_angles_with_their_weights():
    rate, q = smooth_rate(), [10.0, 40.0, 70.0]
    singly = [turn_to_radec(rate, PIXELS, [angle]) for angle in q]
    assert_allclose(
        turn_to_radec(rate, PIXELS, q, [1, 2, 5]), np.average(singly, axis=0, weights=[1, 2, 5]), rtol=2e-3
    )
    assert_allclose(turn_to_radec(rate, PIXELS, q), np.mean(singly, axis=0), rtol=2e-3)
    around_the_clock = turn_to_radec(rate, PIXELS, np.arange(0, 360, 5.0))
    assert_allclose(around_the_clock[0, 12, 17], around_the_clock[0, 7, 12], rtol=1e-3)


def test_turning_keeps_the_sum_over_the_circle_of_each_energy():
    rng = np.random.default_rng(1)
    rate = rng.exponential(size=(3, 25, 25)) * np.exp(-(OFFSET**2) / 3)
    turned = turn_to_radec(rate, PIXELS, rng.uniform(0, 60, 7))
    assert_allclose(turned[:, OFFSET <= 2.5].sum(axis=1), rate[:, OFFSET <= 2.5].sum(axis=1))
    assert (turned > 0).all()


def test_a_plane_with_zeros_is_turned_all_the_same():
    rate = smooth_rate()
    rate[0, 3:9] = 0
    turned = turn_to_radec(rate, PIXELS, [90.0])
    assert (turned[0] == 0).any()
    assert (turned[0] >= 0).all()
    assert_allclose(turned[1], turn_to_radec(rate[1:], PIXELS, [90.0])[0])
    assert not turn_to_radec(0 * rate, PIXELS, [20.0]).any()


@pytest.mark.parametrize(("angles", "weights"), [([np.nan], None), ([10.0], [0.0]), ([], None)])
def test_angles_that_are_none_are_refused(angles, weights):
    with pytest.raises(ValueError, match="parallactic angles"):
        turn_to_radec(smooth_rate(), PIXELS, angles, weights)


BITS = """
import numpy as np
from dask_bkg.background.estimate import Histogram
from dask_bkg.background.field import estimate_field
rng = np.random.default_rng(3)
edges = np.geomspace(0.1, 100, 31), np.linspace(0, 2.5, 11), np.linspace(-2.5, 2.5, 26)
rings, shape = (Histogram(n * rng.poisson(20, (30, 10)), n * rng.uniform(1, 2, (30, 10))) for n in (0.3, 0.7))
field = Histogram(0.7 * rng.poisson(3, (30, 25, 25)), rng.uniform(1, 2, (30, 25, 25)))
print(estimate_field(rings, field, edges, (0.5, 0.4), shape=shape).value.tobytes().hex())
"""


@pytest.mark.slow
def test_the_bits_do_not_depend_on_the_threads_of_blas():
    """Workers have one, a notebook as many as cores: what is made must not show where."""
    found = set()
    for threads in ("1", "2"):
        environment = os.environ | {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        done = subprocess.run([sys.executable, "-c", BITS], env=environment, capture_output=True, check=True)
        found.add(done.stdout)
    assert len(found) == 1
