"""Where the zenith is in a field of view, and where events lie in one that is aligned with the horizon: by ERFA.

astropy's way through AltAz takes 50 ms for a pointing alone.  Here ERFA's parameters are made for the beginning and
the end of a run; what changes between is linear to 1e-7 deg, but for the rotation of the Earth, which each event has
of its own.  Nothing is downloaded: UT1 - UTC and polar motion are those that come with astropy, and beyond their last
day stay what they were then.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from astropy.utils import iers
from erfa import DJM0, atciqz, pdp, pn, pxp, s2c
from erfa import ufunc as erfa
from numpy.typing import ArrayLike, NDArray

from dask_bkg.errors import RunError
from dask_bkg.sky import fov

SECONDS_PER_DAY = 86400.0

TAI_FROM = {"TT": 32.184, "TDB": 32.184, "TDT": 32.184, "ET": 32.184, "TAI": 0.0, "IAT": 0.0, "GPS": -19.0}
"""What a time system is ahead of TAI [s]; those that are not here are UTC."""


IERS_LINE = 188
"""Bytes of a line of the table of the orientation of the Earth."""

EARTH_RATE = 2 * np.pi * 1.00273781191135448 / SECONDS_PER_DAY
"""Rotation of the Earth [rad s-1]."""


def to_utc(mjd: float, system: str) -> float:
    """A time [MJD] in one of the systems of FITS (TIMESYS) as UTC; NaN stays NaN.

    Examples
    --------
    >>> round((to_utc(53090.0, "TT") - 53090.0) * 86400, 3)
    -64.184
    """
    if system not in TAI_FROM or not np.isfinite(mjd):
        return mjd
    day, fraction, _ = erfa.taiutc(DJM0, mjd - TAI_FROM[system] / SECONDS_PER_DAY)
    return float(day - DJM0 + fraction)


def zenith_position(mjd: ArrayLike, lon: float, lat: float) -> tuple[NDArray, NDArray]:
    """ICRS position [deg] of the zenith of a site.

    From the Earth rotation angle, precession, nutation and aberration by ERFA (IAU 2006/2000A).  UT1 - UTC, below a
    second or 0.004 deg, and the polar motion are left out: the table of them would cost a millisecond a run.

    Parameters
    ----------
    mjd
        Times, UTC, any shape.
    lon, lat
        The site [deg], longitude positive east.

    Returns
    -------
    ra, dec
        Of the shape of ``mjd``.

    Examples
    --------
    >>> ra, dec = zenith_position(51544.5, 0.0, 50.0)
    >>> round(float(ra), 2), round(float(dec), 2)
    (280.47, 50.0)
    """
    # the difference of UTC and TDB, a minute, is nothing to precession
    ra, dec, _ = erfa.atic13(erfa.era00(DJM0, mjd) + np.deg2rad(lon), np.deg2rad(lat), DJM0, mjd)
    return np.rad2deg(ra), np.rad2deg(dec)


def position_angle(ra: ArrayLike, dec: ArrayLike, ra_to: ArrayLike, dec_to: ArrayLike) -> NDArray:
    """Direction from one sky position to another [deg], from north through east, in (-180, 180].

    Examples
    --------
    >>> round(float(position_angle(10.0, 0.0, 11.0, 0.0)), 6)
    90.0
    """
    return np.rad2deg(erfa.pas(*(np.deg2rad(angle) for angle in (ra, dec, ra_to, dec_to))))


def parallactic_angle(zenith: float, azimuth: float, lat: float) -> float:
    """Direction of the zenith seen from a place above the horizon [deg], from the pole of date through east.

    Parameters
    ----------
    zenith, azimuth
        The place [deg], azimuth from north through east.
    lat
        Latitude of the site [deg].

    Examples
    --------
    >>> round(parallactic_angle(30.0, 270.0, 0.0), 6)   # on the equator, in the west: the zenith is to the east
    90.0
    """
    azimuth, elevation, lat = np.deg2rad([azimuth, 90.0 - zenith, lat])
    return float(np.rad2deg(erfa.hd2pa(*erfa.ae2hd(azimuth, elevation, lat), lat)))


class Times(NamedTuple):
    """When the events of a run came, and its good time; mission times, all from one reference.

    Attributes
    ----------
    events
        Times of the events [s], shape ``(events,)``; None where the file has no column TIME.
    start, stop
        Good time intervals [s], ascending and apart, shape ``(intervals,)``.
    reference
        MJDREFI and MJDREFF [d]; NaN where no header has them.
    system
        Time system of the reference (TIMESYS) in capitals; where no header says, TT, as gammapy reads it.
    """

    events: NDArray | None
    start: NDArray
    stop: NDArray
    reference: tuple[float, float]
    system: str


class HorizonField:
    """The field of view of a run with a fixed pointing: ``fov_lat`` to the zenith, ``fov_lon`` to smaller azimuths.

    It is gammapy's `FoVAltAzFrame` about the pointing in AltAz at the time of each event, without refraction.

    Parameters
    ----------
    numbers
        Pointing (``ra_pnt``, ``dec_pnt``) [deg] and site (``site_lon``, ``site_lat`` [deg], ``site_height`` [m]).
    times
        Good time intervals, and what they count from.

    Raises
    ------
    RunError
        If the times are no dates.

    Examples
    --------
    A run of half an hour in the south of a northern site: north is up, and fov_lon grows to the east.

    >>> numbers = dict(ra_pnt=130.0, dec_pnt=0.0, site_lon=0.0, site_lat=45.0, site_height=0.0)
    >>> times = Times(None, np.array([0.0]), np.array([1800.0]), (60000.0, 0.93), "UTC")
    >>> field = HorizonField(numbers, times)
    >>> lon, lat = field.place([130.5], [1.0], [900.0])
    >>> bool(lon[0] > 0), bool(lat[0] > 0.9), bool(abs(field.parallactic([900.0])[0]) < 10)
    (True, True, True)
    """

    def __init__(self, numbers: Mapping[str, float], times: Times) -> None:
        self.times = times
        self.pointing = np.deg2rad([numbers["ra_pnt"], numbers["dec_pnt"]])
        self.begin = float(times.start[0])
        self.length = max(float(times.stop[-1]) - self.begin, 1.0)
        utc = _utc(times, np.array([self.begin, self.begin + self.length]))
        # precession, nutation, aberration (CIRS) at both ends; TDB is TT to 2 ms, in which the Earth has not gone far
        self._sky = erfa.apci13(*erfa.taitt(*erfa.utctai(*utc)[:2])[:2])[0]
        self._site = _site(numbers, utc[0][0], utc[1][0])
        self._zenith = _zenith(self._site)

    def place(self, ra: ArrayLike, dec: ArrayLike, time: ArrayLike) -> tuple[NDArray, NDArray]:
        """Field coordinates of sky positions, each at its own time.

        Parameters
        ----------
        ra, dec
            ICRS positions [deg], shape ``(n,)`` or ``(1,)``.
        time
            Mission time [s], shape ``(n,)``.

        Returns
        -------
        fov_lon, fov_lat
            Field coordinates [deg], shape ``(n,)``.
        """
        time = np.asarray(time, dtype=float)
        zenith, drift = self._turned(time)
        _, forward = pn(self._direction(self.pointing[0], self.pointing[1], time) + drift)
        # to smaller azimuths, and from there to the zenith
        _, aside = pn(pxp(zenith, forward))
        up = pxp(forward, aside)
        position = self._direction(np.deg2rad(ra), np.deg2rad(dec), time) + drift
        x, y, z = pdp(position, forward), pdp(position, aside), pdp(position, up)
        return np.rad2deg(np.arctan2(y, x)), np.rad2deg(np.arctan2(z, np.hypot(x, y)))

    def parallactic(self, time: ArrayLike) -> NDArray:
        """Direction of the zenith seen from the pointing [deg], from north through east, in (-180, 180].

        Parameters
        ----------
        time
            Mission time [s], shape ``(n,)``.
        """
        # how a point to the north of the pointing lies: so the angle has all that the events have
        ra, dec = fov.from_fov([0.0], [1.0], *np.rad2deg(self.pointing).tolist())
        lon, lat = self.place(ra, dec, time)
        return np.rad2deg(np.arctan2(-lon, lat))

    def zenith_angle(self, time: ArrayLike) -> NDArray:
        """Distance of the pointing from the zenith at mission times [s], deg."""
        time = np.asarray(time, dtype=float)
        zenith, drift = self._turned(time)
        forward = self._direction(self.pointing[0], self.pointing[1], time) + drift
        return np.rad2deg(np.arccos(np.clip(pdp(zenith, forward), -1, 1)))

    def _direction(self, ra: ArrayLike, dec: ArrayLike, time: NDArray) -> NDArray:
        """Where positions [rad] are seen from the centre of the Earth between the stars of the day, shape (n, 3)."""
        first, last = (s2c(*atciqz(ra, dec, sky)) for sky in self._sky)
        return first + ((time - self.begin) / self.length)[:, None] * (last - first)

    def _turned(self, time: NDArray) -> tuple[NDArray, NDArray]:
        """The zenith between the stars of the day, and what the site's way around the pole adds to all directions."""
        angle = self._site["eral"] + EARTH_RATE * (time - self.begin)
        sin, cos = np.sin(angle), np.cos(angle)
        x, y, z = self._zenith
        zenith = np.stack([x * cos - y * sin, x * sin + y * cos, np.full_like(angle, z)], axis=-1)
        return zenith, self._site["diurab"] * np.stack([-sin, cos, np.zeros_like(angle)], axis=-1)


def _site(numbers: Mapping[str, float], utc1: float, utc2: float) -> NDArray:
    """ERFA's parameters of a site at a time; without weather there is no refraction."""
    ut1_utc, pole_x, pole_y = _earth_orientation(utc1, utc2)
    lon, lat = np.deg2rad([numbers["site_lon"], numbers["site_lat"]])
    weather = 0.0, 0.0, 0.0, 0.5  # pressure, temperature, humidity, wavelength
    return erfa.apio13(utc1, utc2, ut1_utc, lon, lat, numbers["site_height"], pole_x, pole_y, *weather)[0]


def _utc(times: Times, seconds: NDArray) -> tuple[NDArray, NDArray]:
    """Mission times [s] as UTC, a Julian date in two parts; the bare functions of ERFA warn of no date."""
    day, fraction = times.reference
    if times.system in TAI_FROM:
        first, second, status = DJM0 + day, fraction - TAI_FROM[times.system] / SECONDS_PER_DAY, 0
    else:
        first, second, status = erfa.utctai(DJM0 + day, fraction)
    # seconds of atomic clocks have gone by since the reference, whatever its system, as gammapy takes them
    utc1, utc2, late = erfa.taiutc(first, second + seconds / SECONDS_PER_DAY)
    if status < 0 or (late < 0).any():
        raise RunError(f"the mission time {seconds[0]:g} s after MJDREFI {day:g} is no date")
    return utc1, utc2


def _earth_orientation(utc1: float, utc2: float) -> tuple[float, float, float]:
    """UT1 - UTC [s] and the place of the pole [rad] at a date; those of the first or last day beyond the table."""
    mjd, ut1_utc, x, y = _orientation_table()
    day = (utc1 - DJM0) + utc2
    i = np.clip(np.searchsorted(mjd, day, side="right"), 1, mjd.size - 1)
    part = np.clip((day - mjd[i - 1]) / (mjd[i] - mjd[i - 1]), 0, 1)
    step = ut1_utc[i] - ut1_utc[i - 1]
    # a leap second at the end of the day is not spread over it
    ut1 = ut1_utc[i - 1] + part * (step - np.round(step))
    pole_x, pole_y = (float(np.deg2rad((c[i - 1] + part * (c[i] - c[i - 1])) / 3600)) for c in (x, y))
    return float(ut1), pole_x, pole_y


@cache
def _orientation_table() -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Days [MJD], UT1 - UTC [s], place of the pole [arcsec]: the table that came with astropy (IERS Bulletins A, B).

    Astropy's reader of the same file takes half a second, as long as the rest of a small job's plan; and its
    automatic table may be refreshed from the network.
    """
    lines = np.frombuffer(Path(iers.IERS_A_FILE).read_bytes(), dtype="S1")
    lines = lines.reshape(-1, IERS_LINE)

    def column(first: int, last: int) -> NDArray:
        text = np.ascontiguousarray(lines[:, first:last]).view(f"S{last - first}")[:, 0]
        return np.where(np.strings.strip(text) == b"", b"nan", text).astype(float)

    mjd, bulletin_a = column(7, 15), [column(58, 68), column(18, 27), column(37, 46)]
    # the final values of Bulletin B where they are there
    final = [column(154, 165), column(134, 144), column(144, 154)]
    values = [np.where(np.isnan(b), a, b) for a, b in zip(bulletin_a, final, strict=True)]
    mjd, ut1_utc, x, y = np.stack([mjd, *values])[:, ~np.isnan(values).any(axis=0)]
    return mjd, ut1_utc, x, y


def _zenith(sky: NDArray) -> NDArray:
    """The zenith of a site in the equatorial frame of its meridian, x to the meridian, z to the pole, shape (3,)."""
    sin_x, cos_x, sin_y, cos_y = np.sin(sky["xpl"]), np.cos(sky["xpl"]), np.sin(sky["ypl"]), np.cos(sky["ypl"])
    x, z = sky["cphi"], sky["sphi"]
    return np.array([cos_x * x - sin_x * cos_y * z, sin_y * z, sin_x * x + cos_x * cos_y * z])
