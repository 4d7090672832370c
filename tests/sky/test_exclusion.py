"""Regions on the sky: which pixels, positions and pointings they touch, on the sphere."""

from __future__ import annotations

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from numpy.testing import assert_allclose, assert_array_equal

from dask_bkg.sky import exclusion, fov

RINGS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5)
# The declinations at which a flat (dRA, dDec) fails, and a disc on the other side of RA 0 (CTA 1 is at 1.65).
PLACES = [
    pytest.param((83.6, 0.0), (84.3, 0.6), id="dec 0"),
    pytest.param((83.6, 45.0), (84.7, 44.4), id="dec 45"),
    pytest.param((83.6, 70.0), (86.0, 70.7), id="dec 70"),
    pytest.param((83.6, 89.0), (230.0, 89.6), id="dec 89, across the pole"),
    pytest.param((83.6, -89.9), (300.0, -89.0), id="dec -89.9"),
    pytest.param((359.6, 72.8), (1.65, 72.8), id="RA 359.6 and 1.65"),
    pytest.param((0.4, -10.0), (359.5, -10.2), id="RA 0.4 and 359.5"),
]


@pytest.fixture(scope="module")
def grid():
    return fov.ring_grid(RINGS)


def discs(ra, dec, radius, **columns):
    ra, dec, radius = np.atleast_1d(ra), np.atleast_1d(dec), np.atleast_1d(radius)
    names = [f"disc {number}" for number in range(len(ra))]
    return exclusion.make_regions(ra, dec, radius, names, "own", **columns)


def field_positions(pointing, radius=2.5, n=20000, seed=0):
    """Uniform random positions in the field of view, made by astropy; and their offsets."""
    rng = np.random.default_rng(seed)
    offset = np.arccos(1 - rng.uniform(size=n) * (1 - np.cos(np.deg2rad(radius))))
    sky = SkyCoord(*pointing, unit="deg").directional_offset_by(rng.uniform(0, 360, n) * u.deg, offset * u.rad)
    return sky, np.rad2deg(offset)


@pytest.mark.parametrize(("pointing", "disc"), PLACES)
def test_positions_are_excluded_by_astropys_separation(pointing, disc):
    sky, _ = field_positions(pointing)
    inside = exclusion.excluded_positions(discs(*disc, 0.8), sky.ra.deg, sky.dec.deg)
    assert_array_equal(inside, sky.separation(SkyCoord(*disc, unit="deg")).deg < 0.8)
    assert inside.any()


@pytest.mark.parametrize(("pointing", "disc"), PLACES)
def test_the_pixels_leave_the_share_that_a_monte_carlo_leaves(grid, pointing, disc):
    excluded = exclusion.excluded_pixels(grid, discs(*disc, 0.8), *pointing)
    sky, offset = field_positions(pointing)
    hit = sky.separation(SkyCoord(*disc, unit="deg")).deg < 0.8
    all_, _ = np.histogram(offset, RINGS)
    expected = 1 - np.histogram(offset[hit], RINGS)[0] / all_
    error = np.sqrt(np.maximum(expected * (1 - expected), 1e-4) / all_)
    assert (np.abs(fov.exposed_fraction(grid, excluded) - expected) < 5 * error + 0.01).all()


@pytest.mark.parametrize(("pointing", "disc"), PLACES)
def test_a_whole_disc_takes_its_solid_angle_at_every_declination(grid, pointing, disc):
    excluded = exclusion.excluded_pixels(grid, discs(*disc, 0.8), *pointing)
    taken = grid.solid_angle[excluded].sum()
    assert taken == pytest.approx(2 * np.pi * (1 - np.cos(np.deg2rad(0.8))), rel=0.005)


@pytest.mark.parametrize(("pointing", "disc"), PLACES)
def test_pixels_and_positions_agree_away_from_the_rim(grid, pointing, disc):
    regions = discs(*disc, 0.8)
    sky, _ = field_positions(pointing, radius=2.4, n=3000)
    pixel = fov.pixel_index(grid, *fov.to_fov(sky.ra.deg, sky.dec.deg, *pointing))
    by_pixel = exclusion.excluded_pixels(grid, regions, *pointing)[pixel]
    by_position = exclusion.excluded_positions(regions, sky.ra.deg, sky.dec.deg)
    clear = np.abs(sky.separation(SkyCoord(*disc, unit="deg")).deg - 0.8) > grid.step
    assert_array_equal(by_pixel[clear], by_position[clear])


def test_no_regions_exclude_nothing(grid):
    none = exclusion.concat_regions([])
    assert len(none.ra) == 0
    assert not exclusion.excluded_pixels(grid, none, 83.6, 22.0).any()
    assert not exclusion.excluded_positions(none, [83.6, 10.0], [22.0, 10.0]).any()
    assert len(none.near(83.6, 22.0, 2.5).ra) == 0


def test_excluded_positions_keep_the_shape():
    assert exclusion.excluded_positions(discs(10, 10, 1), np.full((2, 3), 10.0), np.full((2, 3), 10.0)).shape == (
        2,
        3,
    )


def test_several_discs_are_a_union(grid):
    ra, dec, radius = [83.0, 84.0, 84.2], [22.0, 21.5, 21.6], [0.3, 0.4, 0.4]
    both = exclusion.excluded_pixels(grid, discs(ra, dec, radius), 83.6, 22.0)
    single = [exclusion.excluded_pixels(grid, discs(*one), 83.6, 22.0) for one in zip(ra, dec, radius, strict=True)]
    assert_array_equal(both, np.logical_or.reduce(single))


@pytest.mark.parametrize(
    ("distance", "radius", "reach", "kept"),
    [
        (2.4, 0.35, "disc", True),
        (2.8, 0.35, "disc", True),  # centred outside of the field, reaches in
        (2.9, 0.35, "disc", False),
        (3.6, 1.2, "disc", True),
        (3.6, 1.2, "centre", False),
        (2.6, 0.35, "centre", False),
        (2.4, 0.01, "centre", True),
    ],
)
@pytest.mark.parametrize(("ra", "dec"), [(83.6, 22.0), (359.9, 70.0), (120.0, 89.0)])
def test_near_keeps_what_reaches_into_the_field(ra, dec, distance, radius, reach, kept):
    pointing = SkyCoord(ra, dec, unit="deg")
    where = pointing.directional_offset_by(np.array([10, 100, 190, 280]) * u.deg, distance * u.deg)
    regions = discs(where.ra.deg, where.dec.deg, np.full(4, radius))
    assert len(regions.near(ra, dec, 2.5, reach).ra) == 4 * kept


@pytest.mark.parametrize(("offset_max", "kept"), [(1.0, 0), (2.0, 1), (3.0, 1)])
def test_near_depends_on_the_radius_of_the_field(offset_max, kept):
    assert len(discs(83.6, 24.0, 0.35).near(83.6, 22.0, offset_max).ra) == kept


def test_near_by_centre_is_2_5_deg_whatever_the_field():
    regions = discs([83.6, 83.6], [24.4, 24.6], [0.35, 0.35])
    assert_allclose(regions.near(83.6, 22.0, 1.0, "centre").dec, [24.4])
    assert_allclose(regions.near(83.6, 22.0, 4.0, "centre").dec, [24.4])


def test_near_finds_wide_discs_among_thousands_of_small_ones():
    rng = np.random.default_rng(1)
    n = 5000
    ra, dec = rng.uniform(0, 360, n), np.rad2deg(np.arcsin(rng.uniform(-1, 1, n)))
    radius = np.where(rng.random(n) < 0.01, 8.0, 0.3)
    near = discs(ra, dec, radius).near(359.0, -60.0, 2.5)
    distance = SkyCoord(ra, dec, unit="deg").separation(SkyCoord(359.0, -60.0, unit="deg")).deg
    expected = np.flatnonzero(distance < 2.5 + radius)
    assert sorted(near.name) == sorted(f"disc {number}" for number in expected)
    assert (near.radius > 1).any()


def test_near_carries_all_columns():
    regions = discs([83.6, 200.0], [22.0, 0.0], [0.35, 0.3], note=["large", "-"])
    near = regions.near(83.0, 22.0, 2.5)
    assert (near.name[0], near.kind[0], near.note[0], near.shape[0]) == ("disc 0", "own", "large", "")


def test_leaving_out_far_discs_changes_no_pixel(grid):
    rng = np.random.default_rng(2)
    n = 300
    regions = discs(rng.uniform(75, 92, n), rng.uniform(64, 76, n), np.full(n, 0.2))
    near = regions.near(83.6, 70.0, RINGS[-1])
    inside = grid.bin >= 0
    everything = exclusion.excluded_pixels(grid, regions, 83.6, 70.0)[inside]
    assert len(near.ra) < n
    assert_array_equal(exclusion.excluded_pixels(grid, near, 83.6, 70.0)[inside], everything)


def test_concat_keeps_order_and_columns():
    stars = exclusion.make_regions([1.0], [2.0], [0.3], ["HIP 1"], "star", note=["bright"])
    both = exclusion.concat_regions([discs([10, 20], [0, 5], [0.1, 0.2]), stars])
    assert_array_equal(both.name, ["disc 0", "disc 1", "HIP 1"])
    assert_array_equal(both.kind, ["own", "own", "star"])
    assert_array_equal(both.note, ["", "", "bright"])
    assert_allclose(both.radius, [0.1, 0.2, 0.3])


def test_digest_tells_exclusions_apart_and_ignores_names():
    one = discs([10, 20], [0, 5], [0.1, 0.2])
    assert one.digest() == discs([10, 20], [0, 5], [0.1, 0.2], note=["x", "y"]).digest()
    assert one.digest() == exclusion.make_regions([10, 20], [0, 5], [0.1, 0.2], ["a", "b"], "star").digest()
    others = [
        discs([10, 21], [0, 5], [0.1, 0.2]),
        discs([10, 20], [0, 6], [0.1, 0.2]),
        discs([10, 20], [0, 5], [0.1, 0.25]),
        discs([10], [0], [0.1]),
        discs([10, 20], [0, 5], [0.1, 0.2], shape=["", "ellipse"]),
    ]
    assert len({one.digest(), *(other.digest() for other in others)}) == 6


def test_the_digest_of_a_field_knows_what_touches_it_and_nothing_else():
    pointing, radius = (83.6, 22.0), 3.5
    inside, far = discs([84.0, 85.0], [22.5, 21.0], 0.35), discs([200.0], [-40.0], 2.0)
    digest = exclusion.exclusion_digest(inside, *pointing, radius)
    assert exclusion.exclusion_digest(exclusion.concat_regions([far, inside]), *pointing, radius) == digest
    assert (
        exclusion.exclusion_digest(exclusion.concat_regions([inside]).near(*pointing, radius), *pointing, radius)
        == digest
    )
    assert exclusion.exclusion_digest(inside[np.array([1, 0])], *pointing, radius) == digest
    others = [
        None,
        discs([84.0], [22.5], 0.35),
        discs([84.0, 85.0], [22.5, 21.0], 0.36),
        discs([84.0, 85.0], [22.5, 21.001], 0.35),
        exclusion.concat_regions([inside, discs([87.5], [22.0], 0.3)]),  # its rim reaches in
    ]
    assert len({digest, *(exclusion.exclusion_digest(other, *pointing, radius) for other in others)}) == 6


def test_no_exclusion_and_an_empty_one_have_the_same_digest():
    nothing = exclusion.exclusion_digest(None, 83.6, 22.0, 3.5)
    assert exclusion.exclusion_digest(exclusion.concat_regions([]), 83.6, 22.0, 3.5) == nothing
    assert exclusion.exclusion_digest(discs([200.0], [-40.0], 2.0), 83.6, 22.0, 3.5) == nothing
