"""What the cards of a run, or a row of an obs-index, say of its pointing, conditions and times."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from astropy.time import Time
from erfa import ufunc as erfa
from numpy.typing import NDArray

from dask_bkg.dl3.units import factor
from dask_bkg.sky import fov
from dask_bkg.sky.horizon import SECONDS_PER_DAY, parallactic_angle, position_angle, to_utc, zenith_position

ZENITH_TOLERANCE = 3.0
"""Difference of the zenith angle from the one of time and site [deg] from which those two are not believed."""

SITE = {
    "site_lon": ("OBSGEO-L", "GEOLON"),
    "site_lat": ("OBSGEO-B", "GEOLAT"),
    "site_height": ("OBSGEO-H", "ALTITUDE"),
}
"""Cards of the place of the array, those of FITS before the older ones of GADF."""

SITE_CARDS = {name: f"{older} (or {newer})" for name, (newer, older) in SITE.items()}
"""The same in words."""


def conditions(header: Mapping[str, Any], reference: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Pointing, observing conditions and times from an EVENTS header or a row of an obs-index.

    Parameters
    ----------
    header
        Cards, or columns of a row.
    reference
        Cards that hold MJDREFI, MJDREFF, TIMESYS and the place of the array, if those are not in ``header``.

    Returns
    -------
    numbers
        ``ra_pnt``, ``azimuth`` (0 to 360), ``dec_pnt``, ``ra_obj``, ``dec_obj``, ``zenith``, ``parallactic``,
        ``site_lon``, ``site_lat`` [deg], ``site_height`` [m], ``nsb``, ``n_tels``, ``muon_efficiency``, ``time``
        [MJD, in the time system of the archive], ``ontime`` and ``livetime`` [s]; NaN where nothing says.

    Raises
    ------
    ValueError
        If TIMEUNIT is no unit of time; the message goes on from the name of the table.

    Examples
    --------
    >>> conditions({"ALT_PNT": 60.0, "TELLIST": "1,2,4"})["zenith"]
    30.0
    """
    zenith = 90.0 - number(header, "ALT_PNT")
    n_tels = number(header, "N_TELS")
    scale = seconds_per_unit(header if "TIMEUNIT" in header else reference or {})
    time = mission_mjd(reference or header, (number(header, "TSTART") + number(header, "TSTOP")) / 2 * scale)
    numbers = {
        "ra_pnt": number(header, "RA_PNT") % 360.0,
        "dec_pnt": number(header, "DEC_PNT"),
        "ra_obj": number(header, "RA_OBJ"),
        "dec_obj": number(header, "DEC_OBJ"),
        "zenith": zenith if np.isfinite(zenith) else number(header, "ZEN_PNT"),
        "azimuth": number(header, "AZ_PNT") % 360.0,
        "nsb": number(header, "NSBLEVEL"),
        "n_tels": n_tels if np.isfinite(n_tels) else _telescopes_of(text(header, "TELLIST")),
        "muon_efficiency": number(header, "MUONEFF"),
        "time": time if np.isfinite(time) else date_mjd(header),
        "ontime": number(header, "ONTIME"),
        "livetime": number(header, "LIVETIME", number(header, "ONTIME") * number(header, "DEADC")),
        **site(header, reference or {}),
    }
    system = text(header, "TIMESYS") or text(reference or {}, "TIMESYS")
    return {**numbers, "parallactic": parallactic(numbers, system)}


def _telescopes_of(listed: str) -> float:
    """Number of telescopes of a TELLIST; NaN if it is not what GADF says, numbers or names with commas between them.

    "1-4" may be two telescopes or four.
    """
    if not re.fullmatch(r"\w+( *, *\w+)*", listed.strip()):
        return float("nan")
    return float(len({name.strip() for name in listed.split(",")}))


def site(header: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, float]:
    """Longitude, latitude [deg] and height [m] of the array; NaN where nothing says."""
    found = {}
    for name, cards in SITE.items():
        values = [number(source, card) for source in (header, reference) for card in cards]
        found[name] = next((value for value in values if np.isfinite(value)), np.nan)
    return found


def parallactic(numbers: Mapping[str, float], system: str) -> float:
    """Position angle of the zenith seen from the pointing in the middle of a run [deg].

    From the place of the zenith on the sky at that time; where time or longitude are missing, or do not go with the
    zenith angle, from zenith angle and azimuth, which are means over the run.

    Parameters
    ----------
    numbers
        Per-run numbers.
    system
        Time system of ``time``, as TIMESYS has it.
    """
    pointing, lat = (numbers["ra_pnt"], numbers["dec_pnt"]), numbers["site_lat"]
    mjd = to_utc(numbers["time"], system.upper())
    if np.isfinite([*pointing, lat, numbers["site_lon"], mjd]).all():
        zenith = zenith_position(mjd, numbers["site_lon"], lat)
        away = abs(float(fov.separation(*pointing, *zenith)) - numbers["zenith"])
        if not away > ZENITH_TOLERANCE:
            return float(position_angle(*pointing, *zenith))
    if np.isfinite([numbers["zenith"], numbers["azimuth"], lat]).all():
        return parallactic_angle(numbers["zenith"], numbers["azimuth"], lat)
    return float("nan")


def horizontal(numbers: Mapping[str, Any], mjd: NDArray, system: str) -> tuple[NDArray, NDArray]:
    """Azimuth, from north through east, and altitude of the pointing by time and site [deg].

    Parameters
    ----------
    numbers
        Pointing and site [deg], scalars or of shape ``(runs,)``.
    mjd
        Times [MJD], shape ``(runs,)``.
    system
        Their time system, as TIMESYS has it.
    """
    utc = np.array([to_utc(time, system.upper()) for time in mjd])
    # precession, up to half a degree, is in the place of the zenith on the sky
    ra, dec = zenith_position(utc, numbers["site_lon"], numbers["site_lat"])
    angle = np.deg2rad(ra - numbers["ra_pnt"])
    azimuth, altitude = erfa.hd2ae(angle, np.deg2rad(numbers["dec_pnt"]), np.deg2rad(dec))
    return np.rad2deg(azimuth), np.rad2deg(altitude)


def unit_of_times(header: Mapping[str, Any]) -> str:
    """Unit of times without one of their own: TIMEUNIT, or s by the standard."""
    return text(header, "TIMEUNIT") or "s"


def seconds_per_unit(header: Mapping[str, Any]) -> float:
    """What the times of cards (TSTART, TSTOP) are multiplied with; `ValueError` if TIMEUNIT is no unit of time."""
    try:
        return factor(unit_of_times(header), "s")
    except ValueError as error:
        raise ValueError(f"has times (TIMEUNIT) {error}") from error


def mission_mjd(reference: Mapping[str, Any], seconds: float) -> float:
    """Mission time [s] as MJD; NaN without a reference."""
    return sum(reference_mjd(reference)) + seconds / SECONDS_PER_DAY


def reference_mjd(header: Mapping[str, Any]) -> tuple[float, float]:
    """Integer and fraction of the day [MJD] that times count from: MJDREFI and MJDREFF, or MJDREF; NaN without."""
    day, fraction = number(header, "MJDREFI"), number(header, "MJDREFF", 0.0)
    if not np.isfinite(day) and np.isfinite(whole := number(header, "MJDREF")):
        day, fraction = float(np.floor(whole)), whole - float(np.floor(whole))
    return day, fraction


def date_mjd(header: Mapping[str, Any]) -> float:
    """Date of a run [MJD] from DATE-AVG, or DATE-OBS with TIME-OBS; NaN without them."""
    day, clock = text(header, "DATE-OBS"), text(header, "TIME-OBS")
    for date in (text(header, "DATE-AVG"), f"{day}T{clock}" if clock and "T" not in day else day):
        try:
            return float(Time(date.replace(" ", "T"), scale="utc").mjd)
        except ValueError:
            continue
    return float("nan")


def number(header: Mapping[str, Any], key: str, default: float = np.nan) -> float:
    """A card as a number; the default where it is missing, masked or no number (T and F are none)."""
    value = header.get(key)
    try:
        return default if value is None or value is np.ma.masked or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return default


def text(header: Mapping[str, Any], key: str) -> str:
    """A card as a text; empty where it is missing or masked."""
    value = header.get(key)
    return "" if value is None or value is np.ma.masked else str(value).strip()
