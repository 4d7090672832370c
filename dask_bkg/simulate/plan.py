"""Which run is taken when, where, and under which conditions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from astropy import units as u
from astropy.coordinates import AltAz, EarthLocation, SkyCoord
from astropy.time import Time
from astropy.utils import iers
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

from dask_bkg.simulate.files import ALTITUDE, LATITUDE, LONGITUDE, MISSION_START
from dask_bkg.simulate.sky import EMPTY_FIELDS, TARGETS, Field, Stream, displace, random_stream, to_angles, to_vector
from dask_bkg.simulate.truth import (
    FIRST_SEASON,
    NEW_MIRRORS,
    NOMINAL_ONTIME,
    YEAR,
    SimulatedRun,
    mirror_level,
    run_norm,
)

FIRST_OBS_ID = 64001

SIDEREAL = 360.98564737
"""Turn of the Earth in a day [deg]."""

SEASON_NIGHTS = 243
"""October to May."""

_FIRST_NOON = 0.8  # local, in days of UTC
_WOBBLE = 0.5  # distance of the pointing from the target [deg]
_ZENITH_RANGE = (6.0, 54.0)  # of the targets [deg]; the wobble adds up to 0.5, precession 0.2
_SUN_MAX = -15.0  # altitude of the Sun up to which a night is dark [deg]
_SPACING = 0.025  # between the middles of two runs [d]: 36 minutes


class Calendar(NamedTuple):
    """When is observed: seasons, nights of each, evenly spread; and scatter of ln(level) from night to night.

    A field that none of the nights has at its zenith angle in the dark gets another night.
    """

    seasons: int = 2
    nights: int = SEASON_NIGHTS
    weather: float = 0.0


def plan_runs(
    runs: int, events: float, seed: int, targets: int, calendar: Calendar
) -> tuple[tuple[SimulatedRun, ...], NDArray]:
    """Plan the runs of an archive.

    Parameters
    ----------
    runs, events, seed, targets, calendar
        Arguments of `dask_bkg.simulate.simulate_archive`.

    Returns
    -------
    planned
        The runs.
    horizons
        For each run the matrix that turns unit vectors on the sky into (north, east, up) in the middle of the run,
        shape (runs, 3, 3).
    """
    aims = [_aim(number, targets) for number in range(runs)]
    middles = _draw_middles([field for field, _ in aims], seed, calendar)
    horizons = _horizons(middles)
    times = zip(middles.mjd.tolist(), (middles - MISSION_START).sec.tolist(), strict=True)
    planned = tuple(
        _draw_run(number, events, seed, *aim, *time, horizon, calendar.weather)
        for number, (aim, time, horizon) in enumerate(zip(aims, times, horizons, strict=True))
    )
    return planned, horizons


def _aim(number: int, targets: int) -> tuple[Field, tuple[float, float]]:
    """Return the field of a run and its pointing [deg]: every fifth run on an empty field, the others wobbling."""
    if number % 5 == 4:
        field = EMPTY_FIELDS[number // 5 % len(EMPTY_FIELDS)]
        return field, (field.ra, field.dec)
    on_target = number - number // 5
    field = TARGETS[on_target % targets]
    quarter = on_target // targets % 4  # north, east, south, west
    ra, dec = to_angles(displace(to_vector(field.ra, field.dec), _WOBBLE, quarter * np.pi / 2))
    return field, (round(float(ra), 6), round(float(dec), 6))


def _draw_run(
    number: int,
    events: float,
    seed: int,
    field: Field,
    pointing: tuple[float, float],
    mjd: float,
    middle: float,
    horizon: NDArray,
    weather: float,
) -> SimulatedRun:
    """Draw the conditions of a run whose middle is at an MJD and a mission time [s]."""
    rng = random_stream(seed, Stream.CONDITIONS, number)
    az, alt = to_angles(horizon @ to_vector(*pointing))
    zenith = 90.0 - float(alt)
    nsb = round(float(rng.normal(6.5 if field is TARGETS[0] else 6.0, 0.4)), 3)  # the galactic field is brighter
    broken = int(rng.choice(5, p=[0.88] + 4 * [0.03]))
    return SimulatedRun(
        obs_id=FIRST_OBS_ID + number,
        object=field.name,
        ra_obj=field.ra,
        dec_obj=field.dec,
        ra_pnt=pointing[0],
        dec_pnt=pointing[1],
        alt_pnt=float(alt),
        az_pnt=float(az),
        gti=_draw_good_times(middle, rng),
        deadc=round(float(rng.uniform(0.85, 0.95)), 5),
        nsb=nsb,
        tels=tuple(tel for tel in (1, 2, 3, 4) if tel != broken),
        muon_efficiency=round(NEW_MIRRORS * mirror_level(mjd), 5),
        norm=run_norm(events, zenith, mjd, nsb) * _draw_weather(mjd, weather, seed),
    )


def _draw_weather(mjd: float, weather: float, seed: int) -> float:
    """Draw the level of a night, the same for all of its runs."""
    night = int(mjd - _FIRST_NOON)
    return float(np.exp(weather * random_stream(seed, Stream.WEATHER, night).standard_normal()))


def _draw_good_times(middle: float, rng: Generator) -> tuple[tuple[float, float], ...]:
    """Draw one to three intervals around the middle of a run [s], with gaps of half a minute to two."""
    length = NOMINAL_ONTIME if rng.random() < 0.8 else rng.uniform(900.0, 1500.0)
    pieces = int(rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1]))
    cuts = (np.arange(1, pieces) + rng.uniform(-0.2, 0.2, pieces - 1)) / pieces * length
    half_gaps = 0.5 * rng.uniform(30.0, 120.0, pieces - 1)
    starts = np.array([0.0, *(cuts + half_gaps)]) + middle - 0.5 * length
    stops = np.array([*(cuts - half_gaps), length]) + middle - 0.5 * length
    return tuple(zip(starts.round(3).tolist(), stops.round(3).tolist(), strict=True))


def _draw_middles(targets: Sequence[Field], seed: int, calendar: Calendar) -> Time:
    """Draw the middle of each run: in a dark night, zenith angles evenly, and when no earlier run is being taken."""
    middles: list[float] = []
    nights = np.arange(calendar.nights) * SEASON_NIGHTS // calendar.nights
    for number, field in enumerate(targets):
        rng = random_stream(seed, Stream.TIMES, number)
        season = FIRST_SEASON + YEAR * (number // 3 % calendar.seasons)
        dark = _dark_times(field.ra, _draw_hour_angle(field.dec, rng), season)
        taken = np.isin((dark - season - _FIRST_NOON).astype(int), nights)
        dark = dark[taken] if taken.any() else dark
        apart = np.abs(dark[:, None] - np.array(middles)).min(axis=1, initial=1.0) > _SPACING
        middles.append(float(rng.choice(dark[apart] if apart.any() else dark)))
    return Time(middles, format="mjd", scale="utc")


def _draw_hour_angle(dec: float, rng: Generator) -> float:
    """Draw an hour angle [deg] at which a declination is seen at a zenith angle in the range."""
    low, high = _ZENITH_RANGE
    zenith = np.deg2rad(rng.uniform(max(low, abs(LATITUDE - dec) + 1.0), high))
    lat, dec = np.deg2rad(LATITUDE), np.deg2rad(dec)
    cos_hour = (np.cos(zenith) - np.sin(lat) * np.sin(dec)) / (np.cos(lat) * np.cos(dec))
    return float(np.rad2deg(np.arccos(cos_hour)) * rng.choice([-1, 1]))


def _dark_times(ra: float, hour_angle: float, season_start: int) -> NDArray:
    """Times [MJD], one a night at most, when a right ascension has an hour angle [deg] and the night is dark."""
    noon = season_start + _FIRST_NOON + np.arange(SEASON_NIGHTS)
    times = noon + (ra + hour_angle - _sidereal_time(noon)) % 360.0 / SIDEREAL
    return times[_sun_altitude(times) < _SUN_MAX]


def _sun_altitude(mjd: NDArray) -> NDArray:
    """Altitude of the Sun [deg] to 0.01 deg, from the mean elements of its orbit: far quicker than an ephemeris."""
    days = mjd - 51544.5
    anomaly = np.deg2rad(357.528 + 0.9856003 * days)
    longitude = np.deg2rad(280.460 + 0.9856474 * days + 1.915 * np.sin(anomaly) + 0.020 * np.sin(2 * anomaly))
    tilt, lat = np.deg2rad(23.439), np.deg2rad(LATITUDE)
    ra = np.arctan2(np.cos(tilt) * np.sin(longitude), np.cos(longitude))
    dec = np.arcsin(np.sin(tilt) * np.sin(longitude))
    hour = np.deg2rad(_sidereal_time(mjd)) - ra
    return np.rad2deg(np.arcsin(np.sin(lat) * np.sin(dec) + np.cos(lat) * np.cos(dec) * np.cos(hour)))


def _sidereal_time(mjd: ArrayLike) -> NDArray:
    """Local sidereal time [deg]."""
    return (280.46062 + SIDEREAL * (np.asarray(mjd) - 51544.5) + LONGITUDE) % 360.0


def _horizons(times: Time) -> NDArray:
    """Matrices from the sky to (north, east, up) at the site, shape (n_times, 3, 3)."""
    site = EarthLocation.from_geodetic(LONGITUDE, LATITUDE, ALTITUDE)
    axes = SkyCoord([0, 90, 0], [0, 0, 90], unit="deg")
    with iers.conf.set_temp("auto_download", False):  # must work without a network, and the same with one
        frame = AltAz(obstime=times[:, None], location=site, pressure=0 * u.hPa)
        return np.moveaxis(axes[None, :].transform_to(frame).cartesian.xyz.value, 0, 1)
