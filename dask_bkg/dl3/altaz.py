"""The field of view of a run, aligned with the horizon: where its events lie in it, and where the zenith is.

astropy's way through AltAz takes 50 ms for a pointing alone.  Here ERFA's parameters are made for the beginning and
the end of a run; what changes between is linear to 1e-7 deg, but for the rotation of the Earth, which each event has
of its own.  Nothing is downloaded: UT1 - UTC and polar motion are those that come with astropy, and beyond their last
day stay what they were then.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from astropy.utils import iers
from erfa import DJM0, atciqz, pdp, pn, pxp, s2c
from erfa import ufunc as erfa
from numpy.typing import ArrayLike, NDArray

from dask_bkg import fov
from dask_bkg.dl3.headers import SECONDS_PER_DAY, SITE_CARDS
from dask_bkg.dl3.horizon import TAI_FROM
from dask_bkg.dl3.read import RunEvents, Times
from dask_bkg.errors import RunError

EARTH_RATE = 2 * np.pi * 1.00273781191135448 / SECONDS_PER_DAY
"""Rotation of the Earth [rad s-1]."""

ZENITH_TOLERANCE = 10.0
"""Difference of the zenith angle from the one in the header [deg] from which time and site are not believed; a header
may have that of the beginning or the end of a run."""

OTHERWISE = ", or set binning.mode: 2d, or binning.alignment: radec with io.from_run"
"""What can be done about a run of which nobody knows where the horizon was."""


def horizon_of(events: RunEvents) -> HorizonField:
    """The field of view of a run that was read, aligned with the horizon.

    Raises
    ------
    RunError
        Naming what EVENTS does not say, or says in two ways, of all that tells where its events came from; it does
        not name the run.

    Examples
    --------
    >>> numbers = {"site_lat": 30.0, "site_height": 1000.0}
    >>> horizon_of(RunEvents(np.zeros(1), np.zeros(1), np.ones(1), numbers, "", ""))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    dask_bkg.errors.RunError: ... EVENTS does not have GEOLON (or OBSGEO-L) and MJDREFI and the column TIME: ...
    """
    numbers, times = events.numbers, events.times
    missing = [cards for name, cards in SITE_CARDS.items() if not np.isfinite(numbers.get(name, np.nan))]
    if times is None or not np.isfinite(times.reference).all():
        missing.append("MJDREFI")
    if times is None or times.events is None:
        missing.append("the column TIME")
    if times is None or missing:
        raise RunError(
            f"no field aligned with the horizon, as EVENTS does not have {' and '.join(missing)}: add what is missing"
            + OTHERWISE
        )
    field, told = HorizonField(numbers, times), numbers.get("zenith", np.nan)
    found = float(field.zenith_angle([(times.start[0] + times.stop[-1]) / 2])[0])
    if abs(found - told) > ZENITH_TOLERANCE:
        raise RunError(
            f"no field aligned with the horizon, as by its times and site it was {found:.0f} deg from the zenith, "
            f"but {told:.0f} deg by ALT_PNT: correct what is wrong (is GEOLON positive to the east?){OTHERWISE}"
        )
    return field


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
        self._sky = _stars(*utc)
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


def _stars(utc1: NDArray, utc2: NDArray) -> NDArray:
    """ERFA's parameters of the stars of a day (CIRS): precession, nutation, aberration of the Earth's orbit."""
    # TDB is TT to 2 ms, in which the Earth has not gone far
    return erfa.apci13(*erfa.taitt(*erfa.utctai(utc1, utc2)[:2])[:2])[0]


def _site(numbers: Mapping[str, float], utc1: float, utc2: float) -> NDArray:
    """ERFA's parameters of a site at a time; without weather there is no refraction."""
    ut1_utc, pole_x, pole_y = _earth_orientation(utc1, utc2)
    lon, lat = np.deg2rad([numbers["site_lon"], numbers["site_lat"]])
    pressure, temperature, humidity, wavelength = 0.0, 0.0, 0.0, 0.5
    place = lon, lat, numbers["site_height"], pole_x, pole_y
    return erfa.apio13(utc1, utc2, ut1_utc, *place, pressure, temperature, humidity, wavelength)[0]


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
    # this table, unlike astropy's automatic one, is never refreshed from the network
    table = iers.IERS_A.open()
    ut1_utc, _ = table.ut1_utc(utc1, utc2, return_status=True)
    x, y, _ = table.pm_xy(utc1, utc2, return_status=True)
    return float(ut1_utc.to_value("s")), float(x.to_value("rad")), float(y.to_value("rad"))


def _zenith(sky: NDArray) -> NDArray:
    """The zenith of a site in the equatorial frame of its meridian, x to the meridian, z to the pole, shape (3,)."""
    sin_x, cos_x, sin_y, cos_y = np.sin(sky["xpl"]), np.cos(sky["xpl"]), np.sin(sky["ypl"]), np.cos(sky["ypl"])
    x, z = sky["cphi"], sky["sphi"]
    return np.array([cos_x * x - sin_x * cos_y * z, sin_y * z, sin_x * x + cos_x * cos_y * z])
