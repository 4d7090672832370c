"""Sky to field of view, the pixels of the field, and how much of each ring a circle leaves open."""

from __future__ import annotations

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord, angular_separation
from gammapy.utils.coordinates import FoVICRSFrame
from numpy.testing import assert_allclose, assert_array_equal

from dask_bkg.sky import fov

# Equator, mid latitudes, close to both poles, and pointings either side of RA 0.
POINTINGS = [(83.6, 0.0), (83.6, 45.0), (10.0, -70.0), (200.0, 89.0), (200.0, -89.9), (359.6, 22.0), (0.2, -30.0)]
RINGS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 2.5)


@pytest.fixture(scope="module")
def grid():
    return fov.ring_grid(RINGS)


def sky_around(ra, dec, radius=3.0, n=300, seed=0):
    """Random sky positions within ``radius`` of a pointing, made by astropy."""
    rng = np.random.default_rng(seed)
    offset = radius * np.sqrt(rng.uniform(size=n))
    position = SkyCoord(ra, dec, unit="deg").directional_offset_by(rng.uniform(0, 360, n) * u.deg, offset * u.deg)
    return position.ra.deg, position.dec.deg


def cap(radius):
    """Solid angle [sr] of a spherical cap."""
    return 2 * np.pi * (1 - np.cos(np.deg2rad(radius)))


@pytest.mark.parametrize(("ra", "dec"), POINTINGS)
def test_to_fov_is_gammapys_frame(ra, dec):
    lon, lat = sky_around(ra, dec)
    frame = FoVICRSFrame(origin=SkyCoord(ra, dec, unit="deg").icrs)
    expected = SkyCoord(lon, lat, unit="deg").icrs.transform_to(frame)
    fov_lon, fov_lat = fov.to_fov(lon, lat, ra, dec)
    assert_allclose(fov_lon, expected.fov_lon.wrap_at(180 * u.deg).deg, atol=1e-6)
    assert_allclose(fov_lat, expected.fov_lat.deg, atol=1e-6)


@pytest.mark.parametrize(("ra", "dec"), POINTINGS)
def test_from_fov_undoes_to_fov(ra, dec):
    lon, lat = sky_around(ra, dec)
    back_lon, back_lat = fov.from_fov(*fov.to_fov(lon, lat, ra, dec), ra, dec)
    assert ((back_lon >= 0) & (back_lon < 360)).all()
    assert_allclose(fov.separation(lon, lat, back_lon, back_lat), 0, atol=1e-9)


def test_to_fov_undoes_from_fov_far_off_axis():
    lon, lat = np.meshgrid(np.linspace(-170, 170, 18), np.linspace(-80, 80, 9))
    again_lon, again_lat = fov.to_fov(*fov.from_fov(lon, lat, 30.0, -25.0), 30.0, -25.0)
    assert_allclose(again_lon, lon, atol=1e-9)
    assert_allclose(again_lat, lat, atol=1e-9)


@pytest.mark.parametrize(("ra", "east"), [(83.6, 84.4), (359.6, 0.4)])
def test_fov_lon_grows_with_decreasing_right_ascension(ra, east):
    fov_lon, fov_lat = fov.to_fov([east, ra], [22.0, 22.8], ra, 22.0)
    assert fov_lon[0] == pytest.approx(-0.8 * np.cos(np.deg2rad(22)), rel=1e-3)
    assert_allclose([fov_lon[1], fov_lat[1]], [0, 0.8], atol=1e-9)


def test_fov_lon_is_in_plus_minus_180_and_keeps_the_shape():
    lon, lat = np.meshgrid(np.arange(0, 360, 15), np.arange(-75, 76, 15))
    fov_lon, fov_lat = fov.to_fov(lon, lat, 123.0, 45.0)
    assert fov_lon.shape == fov_lat.shape == lon.shape
    assert (np.abs(fov_lon) <= 180).all()
    assert fov_lon.min() < -90  # it is no [0, 360) either


def test_distance_from_the_pointing_is_kept_by_the_projection():
    lon, lat = sky_around(359.9, 80.0)
    offset = angular_separation(0, 0, *np.deg2rad(fov.to_fov(lon, lat, 359.9, 80.0)))
    assert_allclose(np.rad2deg(offset), fov.separation(lon, lat, 359.9, 80.0), atol=1e-9)


def test_separation_is_astropys_on_the_whole_sphere():
    rng = np.random.default_rng(1)
    lon, lat = rng.uniform(0, 360, (2, 1000)), np.rad2deg(np.arcsin(rng.uniform(-1, 1, (2, 1000))))
    expected = SkyCoord(lon[0], lat[0], unit="deg").separation(SkyCoord(lon[1], lat[1], unit="deg")).deg
    assert_allclose(fov.separation(lon[0], lat[0], lon[1], lat[1]), expected, atol=1e-7)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((83.0, 22.0), (83.0, 22.0), 0.0),
        ((83.0, 22.0), (83.0, 22.0 + 1e-7), 1e-7),
        ((359.9, 0.0), (0.1, 0.0), 0.2),
        ((0.0, 90.0), (250.0, 89.0), 1.0),
        ((0.0, 0.0), (180.0, 0.0), 180.0),
        ((0.0, 70.0), (1.0, 70.0), 0.342016),
    ],
)
def test_separation_of_special_pairs(first, second, expected):
    assert float(fov.separation(*first, *second)) == pytest.approx(expected, rel=1e-5, abs=1e-13)


def test_separation_broadcasts():
    assert fov.separation(np.zeros((3, 1)), np.zeros((3, 1)), np.arange(4.0), np.zeros(4)).shape == (3, 4)


def test_ring_grid_solid_angles_are_those_of_spherical_rings(grid):
    expected = np.diff(cap(np.array(RINGS)))
    assert_allclose(grid.bin_solid_angle, expected, rtol=0.02)
    assert grid.bin_solid_angle.sum() == pytest.approx(expected.sum(), rel=0.001)


def test_ring_grid_with_a_hole_in_the_middle():
    grid = fov.ring_grid((0.5, 1.0, 2.0))
    assert_allclose(grid.bin_solid_angle, np.diff(cap(np.array([0.5, 1.0, 2.0]))), rtol=0.01)
    assert grid.bin[fov.pixel_index(grid, 0.1, 0.1)] == -1


def test_bin_solid_angle_is_the_sum_over_the_bins_pixels(grid):
    inside = grid.bin >= 0
    assert grid.n_bins == len(RINGS) - 1
    assert_allclose(
        grid.bin_solid_angle, [grid.solid_angle[grid.bin == number].sum() for number in range(grid.n_bins)]
    )
    assert grid.solid_angle[inside].sum() == pytest.approx(grid.bin_solid_angle.sum())


def test_pixels_are_in_the_ring_of_their_distance(grid):
    fov_lat, fov_lon = np.meshgrid(grid.center, grid.center, indexing="ij")
    offset = fov.separation(0, 0, fov_lon, fov_lat).ravel()
    expected = np.where(offset < RINGS[-1], np.digitize(offset, RINGS) - 1, -1)
    assert_array_equal(grid.bin, expected)


def test_pixels_resolve_the_smallest_exclusion(grid):
    assert grid.step <= fov.MAX_PIXEL
    fine = fov.ring_grid((0.0, 0.1, 0.2))
    assert fine.step <= 0.1 / fov.PIXELS_PER_BIN + 1e-12


@pytest.mark.parametrize("at", ["first", "middle", "last"])
def test_pixel_index_finds_the_pixel_of_its_own_centre(grid, at):
    number = {"first": 0, "middle": len(grid.center) // 2 + 7, "last": len(grid.center) - 1}[at]
    index = fov.pixel_index(grid, grid.center[number], grid.center[0])
    assert int(index) == number  # fov_lat is the slow axis
    assert int(fov.pixel_index(grid, grid.center[0], grid.center[number])) == number * len(grid.center)


def test_pixel_index_inside_and_outside_of_the_edge(grid):
    edge = grid.center[-1] + grid.step / 2
    positions = [edge - 1e-6, edge + 1e-6, -edge + 1e-6, -edge - 1e-6, 40.0, -170.0]
    index = fov.pixel_index(grid, positions, np.zeros(6))
    assert_array_equal(index >= 0, [True, False, True, False, False, False])
    assert_array_equal(fov.pixel_index(grid, np.zeros(6), positions) >= 0, index >= 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_pixel_index_of_what_is_not_finite_is_minus_one(grid, bad):
    assert_array_equal(fov.pixel_index(grid, [bad, 0.0, 0.1], [0.0, bad, 0.1])[:2], [-1, -1])


def test_every_event_inside_the_last_ring_has_a_bin_within_half_a_pixel_of_its_own(grid):
    rng = np.random.default_rng(2)
    fov_lon, fov_lat = rng.uniform(-2.4, 2.4, (2, 5000))
    offset = fov.separation(0, 0, fov_lon, fov_lat)
    ring = grid.bin[fov.pixel_index(grid, fov_lon, fov_lat)]
    away = np.min(np.abs(offset[:, None] - np.array(RINGS)), axis=1) > grid.step
    assert_array_equal(ring[away], np.where(offset < RINGS[-1], np.digitize(offset, RINGS) - 1, -1)[away])


def test_nothing_excluded_leaves_everything_open(grid):
    excluded = fov.excluded_pixels(grid, [], [], [])
    assert excluded.shape == grid.bin.shape
    assert not excluded.any()
    assert_array_equal(fov.exposed_fraction(grid, excluded), np.ones(grid.n_bins))


def test_everything_excluded_leaves_nothing_open(grid):
    excluded = fov.excluded_pixels(grid, [0.0], [0.0], [5.0])
    assert_array_equal(fov.exposed_fraction(grid, excluded), np.zeros(grid.n_bins))


@pytest.mark.parametrize("radius", [0.35, 0.7, 1.2])
def test_circle_at_the_centre_takes_whole_rings_and_the_share_of_one(grid, radius):
    fraction = fov.exposed_fraction(grid, fov.excluded_pixels(grid, [0.0], [0.0], [radius]))
    edges = np.array(RINGS)
    closed = np.clip((cap(radius) - cap(edges[:-1])) / np.diff(cap(edges)), 0, 1)
    assert_allclose(fraction, 1 - closed, atol=0.02)


@pytest.mark.parametrize("angle", [0, 37, 90, 200, 315])
def test_circle_inside_one_ring_takes_the_ratio_of_the_areas(angle):
    grid = fov.ring_grid((0.0, 0.6, 1.8, 2.5))
    lon, lat = 1.2 * np.cos(np.deg2rad(angle)), 1.2 * np.sin(np.deg2rad(angle))
    closed = 1 - fov.exposed_fraction(grid, fov.excluded_pixels(grid, [lon], [lat], [0.5]))
    assert closed[1] == pytest.approx(0.5**2 / (1.8**2 - 0.6**2), rel=0.01)
    assert_array_equal(closed[[0, 2]], 0)


def test_pixels_are_excluded_by_spherical_distance(grid):
    """Far from the axis a flat distance in the field coordinates is wrong: 8 deg up, cos is 0.99."""
    wide = fov.ring_grid((0.0, 5.0, 10.0))
    for grid_, center, radius in [(grid, (0.7, -0.4), 0.35), (wide, (3.0, 8.0), 2.0)]:
        lat, lon = np.meshgrid(grid_.center, grid_.center, indexing="ij")
        distance = np.rad2deg(
            angular_separation(*np.deg2rad([lon, lat, np.full_like(lon, center[0])]), np.deg2rad(center[1]))
        )
        excluded = fov.excluded_pixels(grid_, [center[0]], [center[1]], [radius]).reshape(lat.shape)
        clear = np.abs(distance - radius) > 1e-9
        assert_array_equal(excluded[clear], (distance < radius)[clear])


def test_a_circle_centred_outside_of_the_field_reaches_in(grid):
    excluded = fov.excluded_pixels(grid, [3.0], [0.0], [0.8])
    fraction = fov.exposed_fraction(grid, excluded)
    # Area of the lens of two circles, radii 2.5 and 0.8, centres 3 deg apart; all of it lies beyond 2 deg.
    r1, r2, d = 2.5, 0.8, 3.0
    a1 = np.arccos((d * d + r1 * r1 - r2 * r2) / (2 * d * r1))
    a2 = np.arccos((d * d + r2 * r2 - r1 * r1) / (2 * d * r2))
    lens = r1**2 * (a1 - np.sin(2 * a1) / 2) + r2**2 * (a2 - np.sin(2 * a2) / 2)
    assert 1 - fraction[-1] == pytest.approx(lens / (np.pi * (2.5**2 - 2.0**2)), rel=0.03)
    assert_array_equal(fraction[:-1], 1)


def test_a_circle_that_does_not_reach_the_field_excludes_none_of_the_bins(grid):
    excluded = fov.excluded_pixels(grid, [4.0, 0.0], [0.0, -3.2], [1.4, 0.6])
    assert_array_equal(fov.exposed_fraction(grid, excluded), 1)


def test_overlapping_circles_count_once(grid):
    one = fov.excluded_pixels(grid, [1.0], [0.5], [0.4])
    assert_array_equal(fov.excluded_pixels(grid, [1.0, 1.0, 1.1], [0.5, 0.5, 0.5], [0.4, 0.4, 0.2]), one)


def test_excluded_solid_angle_adds_up_over_the_bins(grid):
    excluded = fov.excluded_pixels(grid, [0.3, -1.5], [0.2, 0.8], [0.5, 0.35])
    open_ = (fov.exposed_fraction(grid, excluded) * grid.bin_solid_angle).sum()
    assert open_ == pytest.approx(grid.bin_solid_angle.sum() - cap(0.5) - cap(0.35), rel=1e-3)


# --- several binnings on one grid --------------------------------------------------------------------------


@pytest.mark.parametrize(("rings", "pixels", "step"), [
    ((0, 0.25, 0.5), None, 0.02),
    ((0, 0.125, 0.25), None, 0.0125),
    ((0, 0.05, 0.1), (-0.3, -0.1, 0.1, 0.3), 0.02),
    ((0, 0.05, 0.1), (-0.25, 0, 0.25), 0.25 / 14),
])  # fmt: skip
def test_pixel_width_of_rings_and_of_field_pixels(rings, pixels, step):
    assert fov.grid_step(rings, pixels) == pytest.approx(step, rel=1e-12)


def test_the_same_place_is_the_same_pixel_on_a_larger_grid(grid):
    large = fov.ring_grid(RINGS, grid.step, grid.center.size // 2 + 25)
    rng = np.random.default_rng(4)
    place = rng.uniform(-2.5, 2.5, (2, 20000))
    small_pixel, large_pixel = fov.pixel_index(grid, *place), fov.pixel_index(large, *place)
    assert_array_equal(grid.bin[small_pixel], large.bin[large_pixel])
    assert_array_equal(grid.solid_angle[small_pixel], large.solid_angle[large_pixel])
    assert_array_equal(grid.bin_solid_angle, large.bin_solid_angle)
    circles = rng.uniform(-2.5, 2.5, (2, 5))
    excluded = [fov.excluded_pixels(each, *circles, np.full(5, 0.4)) for each in (grid, large)]
    assert_array_equal(excluded[0][small_pixel], excluded[1][large_pixel])


def test_field_pixels_hold_the_places_between_their_edges():
    edges = np.round(np.arange(-0.5, 0.51, 0.2), 12)
    grid = fov.pixel_grid(tuple(edges), 0.02, 40)
    rng = np.random.default_rng(5)
    lon, lat = rng.uniform(-0.8, 0.8, (2, 5000))
    found = grid.bin[fov.pixel_index(grid, lon, lat)]
    column, row = np.digitize(lon, edges) - 1, np.digitize(lat, edges) - 1
    inside = (np.abs(lon) < 0.5) & (np.abs(lat) < 0.5)
    assert_array_equal(found, np.where(inside, row * 5 + column, -1))


def test_field_pixels_have_the_solid_angle_of_spherical_rectangles():
    edges = np.round(np.arange(-2.5, 2.51, 0.2), 12)
    grid = fov.pixel_grid(tuple(edges), 0.02, 125)
    expected = np.deg2rad(0.2) * np.diff(np.sin(np.deg2rad(edges)))
    assert_allclose(grid.bin_solid_angle.reshape(25, 25), np.repeat(expected[:, None], 25, axis=1), rtol=1e-10)
