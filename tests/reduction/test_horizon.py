"""The field aligned with the horizon: against gammapy's frames, and exposed fractions against brute force."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import AltAz, EarthLocation, SkyCoord
from astropy.utils import iers
from gammapy.utils.coordinates import FoVAltAzFrame, FoVICRSFrame
from gammapy.utils.time import time_ref_from_dict
from numpy.testing import assert_allclose

from dask_bkg.errors import RunError
from dask_bkg.reduction.turning import turned_fraction, turning_steps
from dask_bkg.sky import fov, horizon
from dask_bkg.sky.horizon import HorizonField, Times

NORTH, SOUTH = (-110.952, 31.675, 1268.0), (16.5002, -23.2718, 1835.0)
HALF_HOUR = 1680.0


@pytest.fixture
def offline():
    """astropy's own transformations with the tables that come with it, however old they are."""
    with iers.conf.set_temp("auto_download", False), iers.conf.set_temp("auto_max_age", None):
        yield


class Run:
    """Half an hour of a pointing, seen from a site; its middle at an hour angle [deg]."""

    def __init__(self, site, ra, dec, hour_angle, day=59000.0, system="TT", gti=((0.0, HALF_HOUR),)):
        middle = day + ((ra + hour_angle - horizon.zenith_position(day, *site[:2])[0]) % 360) / 360.98565
        self.site, self.ra, self.dec, self.system = site, ra, dec, system
        self.reference = (51910, 0.000742870370370241)
        # UTC of the middle and the scale of the mission time are a minute apart, which matters to no test
        self.begin = (middle - sum(self.reference)) * 86400 - HALF_HOUR / 2
        self.start, self.stop = (self.begin + np.array(gti)).T
        self.location = EarthLocation.from_geodetic(*(site * np.array([u.deg, u.deg, u.m])))

    @property
    def field(self) -> HorizonField:
        names = "ra_pnt", "dec_pnt", "site_lon", "site_lat", "site_height"
        numbers = dict(zip(names, (self.ra, self.dec, *self.site), strict=True))
        return HorizonField(numbers, Times(None, self.start, self.stop, self.reference, self.system))

    def times(self, n: int, seed: int = 0) -> np.ndarray:
        """Random mission times."""
        return np.random.default_rng(seed).uniform(self.begin, self.begin + HALF_HOUR, n)

    def frame(self, seconds: np.ndarray) -> AltAz:
        """astropy's frame at mission times, which are read as gammapy reads them."""
        day, fraction = self.reference
        reference = time_ref_from_dict({"MJDREFI": day, "MJDREFF": fraction, "TIMESYS": self.system})
        return AltAz(obstime=reference + seconds * u.s, location=self.location)

    def zenith_angle(self, seconds: np.ndarray) -> np.ndarray:
        return 90 - SkyCoord(self.ra, self.dec, unit="deg").transform_to(self.frame(seconds)).alt.deg


def gammapy_place(run: Run, ra, dec, seconds):
    """Field coordinates [deg] through gammapy's frame."""
    frame = run.frame(seconds)
    origin = SkyCoord(run.ra, run.dec, unit="deg").transform_to(frame)
    origin = AltAz(alt=origin.alt, az=origin.az, obstime=frame.obstime, location=frame.location)
    field = FoVAltAzFrame(origin=origin, obstime=frame.obstime, location=frame.location)
    place = SkyCoord(ra, dec, unit="deg").transform_to(frame).transform_to(field)
    return place.fov_lon.deg, place.fov_lat.deg


RUNS = {
    "north, meridian": Run(NORTH, 83.633, 22.014, 0.0),
    "north, west": Run(NORTH, 83.633, 22.014, 45.0, system="UTC"),
    "north, to the north": Run(NORTH, 150.0, 70.0, -5.0),
    "south, east": Run(SOUTH, 228.61, -58.77, -30.0, day=53090.0),
    "south, meridian": Run(SOUTH, 266.4, -29.0, 0.0, system="UTC", day=53200.0),
    "south, to the north": Run(SOUTH, 83.633, 22.014, 10.0, day=61100.0),
    "RA just above 0": Run(NORTH, 0.02, 30.0, 20.0),
    "RA just below 360": Run(SOUTH, 359.98, -30.0, -20.0, system="TAI"),
    "dec 80": Run(NORTH, 359.9, 80.0, 60.0),
    "dec -80": Run(SOUTH, 12.0, -80.0, 0.0),
    "zenith, north": Run(NORTH, 200.0, NORTH[1] + 0.3, 0.0),
    "zenith, south": Run(SOUTH, 20.0, SOUTH[1] - 1.0, 1.0, system="UTC"),
    "of tomorrow": Run(NORTH, 83.633, 22.014, 30.0, day=61500.0),
}
every_run = pytest.mark.parametrize("name", RUNS)


# --- events ------------------------------------------------------------------------------------------------


@every_run
def test_field_coordinates_are_those_of_gammapy(offline, name):
    run, rng = RUNS[name], np.random.default_rng(1)
    seconds = run.times(30)
    ra, dec = fov.from_fov(*rng.uniform(-2.5, 2.5, (2, 30)), run.ra, run.dec)
    lon, lat = run.field.place(ra, dec, seconds)
    expected = gammapy_place(run, ra, dec, seconds)
    assert_allclose([lon, lat], expected, rtol=0, atol=1e-6)
    assert (run.zenith_angle(seconds) < 75).all()
    assert np.ptp(lon) > 3


def test_a_long_run_is_as_exact(offline):
    """What is linear in half an hour need not be in a night."""
    run = Run(NORTH, 83.633, 22.014, 0.0, gti=((-5 * 3600.0, -4 * 3600.0), (3600.0, 5 * 3600.0)))
    seconds = run.begin + np.linspace(-5 * 3600, 5 * 3600, 21)
    ra, dec = fov.from_fov(np.full(21, 2.5), np.linspace(-2.5, 2.5, 21), run.ra, run.dec)
    assert_allclose(run.field.place(ra, dec, seconds), gammapy_place(run, ra, dec, seconds), rtol=0, atol=1e-6)


def test_both_fields_of_gammapy_and_the_angle_between_them(offline):
    """x to the west, y to the north, turned by the angle q of the zenith: (-x cos q - y sin q, y cos q - x sin q)."""
    run = RUNS["south, east"]
    seconds = run.times(20)
    ra, dec = fov.from_fov(*np.random.default_rng(2).uniform(-1, 1, (2, 20)), run.ra, run.dec)
    radec = SkyCoord(ra, dec, unit="deg").transform_to(FoVICRSFrame(origin=SkyCoord(run.ra, run.dec, unit="deg")))
    x, y, q = radec.fov_lon.deg, radec.fov_lat.deg, np.deg2rad(run.field.parallactic(seconds))
    expected = -x * np.cos(q) - y * np.sin(q), y * np.cos(q) - x * np.sin(q)
    assert_allclose(gammapy_place(run, ra, dec, seconds), expected, rtol=0, atol=1e-3)


# --- the zenith --------------------------------------------------------------------------------------------


@every_run
def test_the_parallactic_angle_points_to_the_zenith_of_astropy(offline, name):
    run = RUNS[name]
    seconds = run.times(10)
    frame = run.frame(seconds)
    zenith = SkyCoord(AltAz(alt=90 * u.deg, az=0 * u.deg, obstime=frame.obstime, location=frame.location)).icrs
    expected = SkyCoord(run.ra, run.dec, unit="deg").position_angle(zenith).deg
    # the aberration, 0.006 deg, moves the pointing, and where the zenith is near its direction
    away = 0.01 / np.sin(np.deg2rad(run.zenith_angle(seconds)))
    found = run.field.parallactic(seconds)
    assert (np.abs((found - expected + 180) % 360 - 180) < away).all()


def test_the_field_turns_fast_at_the_zenith():
    run = RUNS["zenith, north"]
    begin, middle, end = run.field.parallactic(run.begin + np.array([0, 0.5, 1]) * HALF_HOUR) % 360
    # to the west of north in the east, and past the south, as the pointing is to the north of the zenith
    assert begin - end > 150
    assert end < 100 < middle < 260 < begin


# --- times and tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", ["UTC", "TT", "TDB", "TAI", "GPS", "LOCAL"])
def test_the_systems_of_time_differ_by_their_seconds(system):
    """As the sidereal day has it: 15 arcsec a second."""
    run, ahead = RUNS["north, meridian"], {"UTC": 0.0, "LOCAL": 0.0, "GPS": -13.0, "TAI": -32.0}
    utc = Run(NORTH, run.ra, run.dec, 0.0, system="UTC")
    utc.begin, utc.start, utc.stop = run.begin, run.start, run.stop
    utc.reference = (51910, 0.0)
    other = Run(NORTH, run.ra, run.dec, 0.0, system=system)
    other.reference = utc.reference
    middle = np.array([run.begin + HALF_HOUR / 2])
    # the same reading of a clock that is ahead is an earlier time; TAI - UTC was 32 s on the day of the reference
    earlier = ahead.get(system, -32.0 - 32.184)
    assert_allclose(other.field.parallactic(middle), utc.field.parallactic(middle + earlier), atol=1e-6)


@pytest.mark.parametrize("day", [30000.0, 41000.0, 70000.0, 90000.0])
def test_dates_outside_of_all_tables_are_taken_without_the_network(monkeypatch, day):
    def refuse(*args, **kwargs):
        raise OSError("no network here")

    monkeypatch.setattr(iers.iers, "download_file", refuse)
    run = Run(SOUTH, 83.633, -10.0, 30.0, day=day, system="UTC")
    middle = run.begin + HALF_HOUR / 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        angle = run.field.parallactic([middle])[0]
    zenith = horizon.zenith_position(sum(run.reference) + middle / 86400, *SOUTH[:2])
    # UT1 - UTC is not known: half a minute at most since there are atomic clocks
    assert angle == pytest.approx(horizon.position_angle(run.ra, run.dec, *zenith), abs=0.2)


def test_what_is_no_date_is_told():
    run = RUNS["north, west"]
    run = Run(NORTH, run.ra, run.dec, 0.0, system="UTC")
    run.reference = (10**10, 0.0)
    with pytest.raises(RunError, match="MJDREFI 1e\\+10 is no date"):
        _ = run.field


# --- steps -------------------------------------------------------------------------------------------------

PIXELS = tuple(np.round(np.arange(-5, 6) * 0.5, 12).tolist())
GRID = fov.pixel_grid(PIXELS, 0.02, 178)


@every_run
def test_steps_are_the_good_time(name):
    run = RUNS[name]
    angle, weight = turning_steps(run.field, PIXELS)
    assert weight.sum() == pytest.approx(1)
    assert (weight > 0).all()
    assert angle.size < 70
    # their mean direction is that of the run
    seconds = run.begin + (np.arange(5000) + 0.5) / 5000 * HALF_HOUR
    every = np.exp(1j * np.deg2rad(run.field.parallactic(seconds))).mean()
    assert abs((np.exp(1j * np.deg2rad(angle)) * weight).sum() - every) < 2e-3


def test_steps_leave_gaps_out():
    gti = ((0.0, 100.0), (1400.0, 1440.0), (1640.0, 1680.0))
    run = Run(NORTH, 83.633, 25.0, 0.0, gti=gti)
    angle, weight = turning_steps(run.field, PIXELS)
    begin, end = (run.field.parallactic(run.begin + np.array(times)) for times in zip(*gti, strict=True))
    share = [weight[(np.abs(angle - (a + b) / 2) <= abs(a - b) / 2)].sum() for a, b in zip(begin, end, strict=True)]
    assert_allclose(share, np.array([100, 40, 40]) / 180)


# --- exposed fraction --------------------------------------------------------------------------------------


def brute_force(run: Run, excluded: np.ndarray, fine: int = 20, steps: int = 120) -> np.ndarray:
    """Exposed fraction of the ALTAZ pixels from points in them, at many times, in the pixels of the RADEC field."""
    width, n = PIXELS[1] - PIXELS[0], len(PIXELS) - 1
    points = np.deg2rad(PIXELS[0] + (np.arange(n * fine) + 0.5) * width / fine)
    lon, lat = np.meshgrid(points, points)
    offset = np.arccos(np.cos(lat) * np.cos(lon))
    # from the zenith to smaller azimuths is to the left, as is from north to east
    left = np.arctan2(np.cos(lat) * np.sin(lon), np.sin(lat))
    seconds = np.concatenate([np.linspace(*each, steps + 1)[:-1] for each in zip(run.start, run.stop, strict=True)])
    weight = np.repeat(run.stop - run.start, steps)
    frame = run.frame(seconds + weight / steps / 2)
    zenith = SkyCoord(AltAz(alt=90 * u.deg, az=0 * u.deg, obstime=frame.obstime, location=frame.location)).icrs
    angles = SkyCoord(run.ra, run.dec, unit="deg").position_angle(zenith).rad
    exposed = np.zeros(lon.shape)
    for angle, share in zip(angles, weight / weight.sum(), strict=True):
        east, north = np.sin(offset) * np.sin(left + angle), np.sin(offset) * np.cos(left + angle)
        place = np.rad2deg([np.arctan2(-east, np.cos(offset)), np.arcsin(north)])
        exposed += share * ~excluded[fov.pixel_index(GRID, *place)]
    area = np.cos(lat)
    squares = (values.reshape(n, fine, n, fine).sum(axis=(1, 3)) for values in (exposed * area, area))
    return np.divide(*squares)


DISCS = np.array([[0.5, 0.0, 0.35], [-1.4, 1.1, 0.5], [2.7, 0.6, 0.4], [-0.7, -2.0, 0.3], [-2.6, -2.5, 0.9]])
"""One near the centre, one that lies over several pixels, two that are centred outside of the field."""


@pytest.mark.parametrize(
    "run",
    [
        RUNS["north, meridian"],
        RUNS["south, east"],
        RUNS["dec 80"],
        RUNS["zenith, north"],
        Run(NORTH, 83.633, 25.0, 0.0, gti=((0.0, 300.0), (1400.0, 1680.0))),
    ],
    ids=["meridian", "east", "dec 80", "zenith", "gaps"],
)
@pytest.mark.slow
def test_exposed_fractions_are_those_of_brute_force(offline, run):
    excluded = fov.excluded_pixels(GRID, *DISCS.T)
    steps = turning_steps(run.field, PIXELS)
    found = turned_fraction(GRID, PIXELS, excluded, *steps).reshape(10, 10)
    expected = brute_force(run, excluded)
    assert np.abs(found - expected).max() < 0.004
    assert np.sqrt(((found - expected) ** 2).mean()) < 0.001
    assert 10 < (expected < 0.99).sum() < 90
    # in one step it would not do
    middle = turned_fraction(GRID, PIXELS, excluded, np.array([np.sum(steps[0] * steps[1])]), np.ones(1))
    assert np.abs(middle.reshape(10, 10) - expected).max() > 0.015


@pytest.mark.parametrize("angle", [0.0, 0.3, 14.04, 26.565, 30.0, 45.0, 90.0, 133.0, 270.2])
def test_turning_neither_loses_nor_makes_solid_angle(angle):
    whole, pixels = np.ones(GRID.bin.size, dtype=bool), fov.excluded_pixels(GRID, *DISCS[[0, 3]].T)
    at, once = np.array([angle]), np.ones(1)
    # a closed field is closed to half a percent, an open one is open, a disc inside of it takes what it has
    assert turned_fraction(GRID, PIXELS, whole, at, once).max() < 0.005
    assert (turned_fraction(GRID, PIXELS, ~whole, at, once) == 1).all()
    lost = (1 - turned_fraction(GRID, PIXELS, pixels, at, once)) @ GRID.bin_solid_angle
    assert lost == pytest.approx(GRID.solid_angle[pixels].sum(), rel=1e-9)


def test_small_pixels_of_the_field_are_as_exact():
    """0.2 deg of ten small ones, at angles where these lie in rows: against each small one cut into 100."""
    edges = tuple(np.round(np.arange(-6, 7) * 0.2, 12).tolist())
    coarse, fine = fov.pixel_grid(edges, 0.02, 90), fov.pixel_grid(edges, 0.002, 900)
    discs = np.array([[0.31, 0.07, 0.35], [-0.8, 0.5, 0.25]]).T
    excluded = fov.excluded_pixels(coarse, *discs).reshape(coarse.shape)
    ten_by_ten = np.repeat(np.repeat(excluded, 10, axis=0), 10, axis=1).ravel()
    for angle in (0.4, 26.0, 44.8):
        step = np.array([angle]), np.ones(1)
        found = turned_fraction(coarse, edges, excluded.ravel(), *step)
        assert_allclose(found, turned_fraction(fine, edges, ten_by_ten, *step), atol=0.005)
