"""What gammapy makes of the node values are the counts again; and stacks of any kind have a rate."""

from __future__ import annotations

from itertools import pairwise

import astropy.units as u
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_bkg.background.estimate import Histogram, RateSettings, estimate_rate
from dask_bkg.background.field import estimate_field
from dask_bkg.background.irf import background_2d, background_3d
from dask_bkg.background.model import Model, RunMetadata, stacked_rate
from dask_bkg.background.stack import Stack
from dask_bkg.background.target import Target
from dask_bkg.binning import Edges, FieldEdges
from dask_bkg.selection import by_hand
from dask_bkg.sky.fov import ring_grid

pytestmark = pytest.mark.slow  # whole jobs, or simulations of many skies

RINGS = np.linspace(0, 2.5, 11)
PIXELS = np.linspace(-2.5, 2.5, 26)
INDEX, WIDTH = 2.7, 1.5
BINS = (4, 5, 7, 10, 15, 24)


def parts(edges, n, log=False):
    """Centres of the parts of bins and their widths, shape ``(bins, n)``."""
    places = np.geomspace if log else np.linspace
    fine = np.array([places(a, b, n + 1) for a, b in pairwise(edges)])
    middle = np.sqrt(fine[:, 1:] * fine[:, :-1]) if log else (fine[:, 1:] + fine[:, :-1]) / 2
    return middle, np.diff(fine, axis=1)


def spectrum(edges):
    """Integral of the power law over each bin."""
    return -np.diff(edges ** (1 - INDEX)) / (INDEX - 1)


def of_energies(background, at, total, **places):
    """Counts of each energy that gammapy's evaluation integrates to; ``at`` weighs the places."""
    axes = {name: place.ravel()[None] * u.deg for name, place in places.items()}

    def integral(energy, width):
        # one energy at a time: gammapy takes 30 numbers for each value
        values = background.evaluate(energy=energy[:, None] * u.TeV, **axes).to_value("s-1 TeV-1 sr-1")
        return (values @ at.ravel()) @ width

    edges = background.axes["energy"].edges.to_value("TeV")
    return np.array([integral(*row) for row in zip(*parts(edges, 60, log=True), strict=True)]) * total


@pytest.mark.parametrize("bins", BINS)
@pytest.mark.parametrize("own_runs", [False, True], ids=["one stack", "shape of its own"])
def test_closure_in_2d(bins, own_runs):
    energy = np.geomspace(0.3, 30, bins + 1)
    offset, width = parts(RINGS, 12)
    weight = np.sin(np.deg2rad(offset)) * width
    profile = (np.exp(-0.5 * (offset / WIDTH) ** 2) * weight).sum(axis=1)
    counts = np.outer(spectrum(energy), profile)
    scale = 1e7 / counts.sum()
    exposure = np.outer(np.diff(energy), weight.sum(axis=1)) * scale
    shape = Histogram(counts * scale, exposure) if own_runs else None
    rate = estimate_rate(counts * scale, exposure, (energy, RINGS), RateSettings(), shape)
    # gammapy's maker pads the outermost half rings with what is there
    place = np.clip(offset, 0.125, 2.375)
    got = of_energies(background_2d(rate.value, Edges(energy, RINGS)), weight, scale, offset=place)
    np.testing.assert_allclose(got, counts.sum(axis=1) * scale, rtol=0.01)


@pytest.mark.parametrize("bins", BINS)
def test_closure_in_3d(bins):
    energy = np.geomspace(0.3, 30, bins + 1)
    place, width = parts(PIXELS, 6)
    lat, lon = np.meshgrid(place.ravel(), place.ravel(), indexing="ij")
    weight = np.outer(width.ravel(), width.ravel())
    bright = np.exp(-0.5 * (lat**2 + lon**2) / WIDTH**2) * weight
    pixels, area = (a.reshape(25, 6, 25, 6).sum(axis=(1, 3)) for a in (bright, weight))
    counts = spectrum(energy)[:, None, None] * pixels
    scale = 1e7 / counts.sum()
    field = Histogram(counts * scale, np.diff(energy)[:, None, None] * area * scale)
    # rings by the same small parts
    ring = np.minimum((np.hypot(lat, lon) / 0.25).astype(int), 10).ravel()
    of_rings = [np.bincount(ring, a.ravel(), 11)[:10] for a in (bright, weight)]
    rings = Histogram(np.outer(spectrum(energy), of_rings[0]) * scale, np.outer(np.diff(energy), of_rings[1]) * scale)
    rate = estimate_field(rings, field, (energy, RINGS, PIXELS), (0.5, 0.5))
    background = background_3d(rate.value, FieldEdges(energy, PIXELS), "altaz")
    got = of_energies(background, weight, scale, fov_lon=lon, fov_lat=lat)
    np.testing.assert_allclose(got, counts.sum(axis=(1, 2)) * scale, rtol=0.01)


# --- any stack ------------------------------------------------------------------------------------------------------


def hostile(rng, energies, few):
    """Counts and exposure with closed rings, thresholds, empty energies, a tiny weight."""
    energy = np.geomspace(0.1, 100, energies + 1)
    exposure = np.outer(np.diff(energy), ring_grid(tuple(RINGS.tolist())).bin_solid_angle)
    truth = np.sqrt(energy[1:] * energy[:-1])[:, None] ** -INDEX * np.exp(-0.5 * (RINGS[1:] / WIDTH) ** 2)
    total = 10.0 ** rng.uniform(0, 2 if few else 6)
    exposure = exposure * rng.uniform(0.05, 1, exposure.shape) * total / (truth * exposure).sum()
    exposure[:, rng.random(10) < rng.choice([0, 0.4])] = 0
    exposure[: rng.integers(0, energies)] *= rng.choice([0.0, 1.0])
    weight = 10.0 ** -rng.choice([0, 3])
    counts = rng.poisson(truth * exposure) * weight
    return counts, exposure * weight, weight * counts.sum(axis=1)


@pytest.mark.filterwarnings("error")
@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 40),
    st.booleans(),
    st.sampled_from(["field", "adaptive", "spline", None]),
    st.sampled_from(["off", "level", "spectrum"]),
)
def test_with_a_shape_a_night_and_own_counts_no_bin_is_zero_nan_or_infinite(seed, energies, few, way, own):
    rng = np.random.default_rng(seed)
    counts, exposure, squares = hostile(rng, energies, few)
    if not counts.any():
        counts[-1, 0], exposure[-1, 0] = 1.0, max(exposure[-1, 0], 1.0)
    shape, night, mine = (hostile(rng, energies, rng.random() < 0.5) for _ in range(3))
    found = {"spectrum": (counts, exposure, squares), "shape": shape, "night": night, "own": mine}
    stacks = {role: Stack(n, x, np.array(1.0), variance) for role, (n, x, variance) in found.items()}
    runs = {"obs_id": np.array([1, 2]), "livetime": np.full(2, 1800.0)}
    role = by_hand(1, [1], runs)
    how = RateSettings(smooth=way is not None, smooth_sigma=0.2, smooth_method=way or "field", own=own)
    model = Model(Edges(np.geomspace(0.1, 100, energies + 1), RINGS), how)
    metadata = RunMetadata(np.zeros(2), np.full(2, 20.0), np.ones(2))
    made = stacked_rate(
        Target(1, "", "", 0.3), dict.fromkeys(("spectrum", "shape", "night"), role), stacks, metadata, model
    )
    for values in (made.rate.value, made.rate.average, made.rate.error):
        assert (np.isfinite(values) & (values > 0)).all()
    assert np.isfinite(made.rate.resolution).all()
