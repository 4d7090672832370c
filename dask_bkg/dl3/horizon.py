"""Where the zenith is in a field of view: sidereal time and precession by plain formulas, to 0.02 deg.

astropy's transformation to AltAz takes 50 ms a run, and its tables of the Earth's rotation; neither is needed here.
Nutation, aberration, refraction and UT1 - UTC are left out: together less than 0.02 deg.
"""

from __future__ import annotations

from math import atan2, cos, degrees, radians, sin

import numpy as np

LEAP_SECONDS = ((0, 32), (53736, 33), (54832, 34), (56109, 35), (57204, 36), (57754, 37))
"""First day [MJD] and TAI - UTC [s] from then on; before 1999 a second or two less, 0.01 deg."""

TAI_FROM = {"TT": 32.184, "TDB": 32.184, "TDT": 32.184, "ET": 32.184, "TAI": 0.0, "GPS": -19.0}
"""What a time system is ahead of TAI [s]; those that are not here are UTC."""


def to_utc(mjd: float, system: str) -> float:
    """A time [MJD] in one of the systems of FITS (TIMESYS) as UTC.

    Examples
    --------
    >>> round((to_utc(53090.0, "TT") - 53090.0) * 86400, 3)
    -64.184
    """
    if system not in TAI_FROM:
        return mjd
    leap = [seconds for day, seconds in LEAP_SECONDS if mjd >= day][-1]
    return mjd - (TAI_FROM[system] + leap) / 86400.0


def zenith_position(mjd: float, lon: float, lat: float) -> tuple[float, float]:
    """ICRS position [deg] of the zenith of a site.

    Mean sidereal time and the precession angles of IAU 1976 (Meeus, Astronomical Algorithms, 12.4 and 21.3).

    Parameters
    ----------
    mjd
        Time, UTC.
    lon, lat
        The site [deg], longitude positive east.

    Examples
    --------
    >>> ra, dec = zenith_position(51544.5, 0.0, 50.0)
    >>> round(ra, 2), round(dec, 2)
    (280.46, 50.0)
    """
    days = mjd - 51544.5
    t = days / 36525.0
    sidereal = 280.46061837 + 360.98564736629 * days + 0.000387933 * t * t + lon
    zeta = radians((2306.2181 * t + 0.30188 * t * t) / 3600)
    z = radians((2306.2181 * t + 1.09468 * t * t) / 3600)
    theta = radians((2004.3109 * t - 0.42665 * t * t) / 3600)
    ra, dec = radians(sidereal) - z, radians(lat)
    x, up = (
        cos(theta) * cos(dec) * cos(ra) + sin(theta) * sin(dec),
        cos(theta) * sin(dec) - sin(theta) * cos(dec) * cos(ra),
    )
    y = cos(dec) * sin(ra)
    return degrees(atan2(y, x) - zeta) % 360.0, degrees(atan2(up, np.hypot(x, y)))


def position_angle(ra: float, dec: float, ra_to: float, dec_to: float) -> float:
    """Direction from one sky position to another [deg], from north through east, in (-180, 180].

    Examples
    --------
    >>> round(position_angle(10.0, 0.0, 11.0, 0.0), 6)
    90.0
    """
    turn, lat, to = radians(ra_to - ra), radians(dec), radians(dec_to)
    return degrees(atan2(sin(turn) * cos(to), sin(to) * cos(lat) - cos(to) * sin(lat) * cos(turn)))


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
    alt, az, lat = radians(90.0 - zenith), radians(azimuth), radians(lat)
    return degrees(atan2(-sin(az) * cos(lat), sin(lat) * cos(alt) - cos(lat) * sin(alt) * cos(az)))
