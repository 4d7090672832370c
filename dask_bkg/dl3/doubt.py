"""What a run says of itself, compared: cards out of range, events that cannot be, a sky that does not fit.

What cannot be right is an error, or left unknown; what is hardly right is a remark.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_bkg.dl3.headers import horizontal, number, text
from dask_bkg.sky import fov
from dask_bkg.sky.horizon import SECONDS_PER_DAY, Times

ANGLE, SHARE = (-360.0, 720.0), (0.0, 1.0)
LIMITS = {
    **{"ALT_PNT": (0.0, 90.0), "ZEN_PNT": (0.0, 90.0), "AZ_PNT": ANGLE},
    **dict.fromkeys(("GEOLON", "OBSGEO-L"), (-360.0, 360.0)),
    **dict.fromkeys(("GEOLAT", "OBSGEO-B"), (-90.0, 90.0)),
    **dict.fromkeys(("ALTITUDE", "OBSGEO-H"), (-500.0, 9000.0)),
    **dict.fromkeys(("ONTIME", "LIVETIME", "NSBLEVEL", "MUONEFF"), (0.0, 1e9)),
    **{"DEADC": SHARE, "N_TELS": (1.0, 1e4)},
}
"""Cards that are left unknown, with a remark, if they are no numbers or not between these [deg], [m], [s]."""

NOTHING = ("", "N/A", "NA", "NAN", "NONE", "NULL", "UNKNOWN", "UNDEFINED")
"""Texts by which files say that a number is not known."""

FEW = 50
"""Events below which their distribution says nothing."""

REPEATED_NOTE, REPEATED_LIMIT = 0.003, 0.5
"""Share of the events with the same energy, or the same RA or Dec, from which there is a remark, and an error."""

REPEATED_LEAST = 10
"""Events of the same value that are not remarkable in any case."""

TWICE_LIMIT = 0.1
"""Share of the events that may be there twice."""

CENTRE_NOTE = 0.4
"""Distance of the mean direction of the events from the pointing [deg] from which there is a remark."""

HORIZON_NOTE = 5.0
"""Distance of the pointing of a header (ALT_PNT, AZ_PNT) from that by time and site [deg] from which there is one."""

ENERGY_NOTE = 10.0
"""Factor between the threshold of the effective area and the energy that a quarter of the events is below."""

DATES = (40000.0, 90000.0)
"""Dates of runs [MJD]: 1968 to 2105."""


def believed(header: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A header without cards that cannot be right, and a remark on each.

    Examples
    --------
    >>> believed({"ALT_PNT": 95.0, "AZ_PNT": 12.0})
    ({'AZ_PNT': 12.0}, ['ALT_PNT = 95.0 is not between 0 and 90 and left unknown'])
    """
    known, notes = dict(header), list[str]()
    for card, (low, high) in LIMITS.items():
        value = number(header, card)
        if text(header, card).upper() in NOTHING or low <= value <= high:
            continue
        why = f"not between {low:g} and {high:g}" if np.isfinite(value) else "no number"
        notes.append(f"{card} = {header[card]!r} is {why} and left unknown")
        del known[card]
    return known, notes


def check_events(ra: NDArray, dec: NDArray, energy: NDArray, time: NDArray | None) -> list[str]:
    """Remarks on events that are not as those of a telescope.

    Parameters
    ----------
    ra, dec, energy, time
        Of the events, shape ``(events,)``; no time: None.

    Raises
    ------
    ValueError
        If most have the same value, or many are there twice; the message goes on from the name of the table.
    """
    if ra.size < FEW:
        return []
    notes = list[str]()
    for name, values in {"RA": ra, "DEC": dec, "ENERGY": energy}.items():
        value, times = _most_frequent(values, max(int(REPEATED_NOTE * ra.size), REPEATED_LEAST))
        if times > REPEATED_LIMIT * ra.size:
            raise ValueError(f"has {times} of {ra.size} events with {name} = {value:.8g}")
        if times:
            notes.append(f"{times} of {ra.size} events have {name} = {value:.8g}")
    order = np.argsort(ra, kind="stable")
    same = np.ones(ra.size - 1, dtype=bool)
    for values in (ra, dec, energy) if time is None else (ra, dec, energy, time):
        same &= np.diff(values[order]) == 0
    twice = int(same.sum())
    if twice > TWICE_LIMIT * ra.size:
        raise ValueError(f"has {twice} of {ra.size} events twice")
    return [*notes, *([f"{twice} of {ra.size} events are there twice"] if twice else [])]


def _most_frequent(values: NDArray, least: int) -> tuple[float, int]:
    """A value that more than some rows have, and how many do; 0 rows: there is none."""
    ordered = np.sort(values)
    # as a rule no value is there so often: one comparison for all
    same = np.flatnonzero(ordered[least:] == ordered[: ordered.size - least])
    if not same.size:
        return np.nan, 0
    found, times = np.unique(ordered[same], return_counts=True)
    value = float(found[times.argmax()])
    return value, int((ordered == value).sum())


def check_numbers(numbers: Mapping[str, float], times: Times, ra: NDArray, dec: NDArray) -> list[str]:
    """Remarks on pointing and energies that do not go with the rest of a file, and on a date that cannot be.

    Parameters
    ----------
    numbers
        Per-run numbers, see `dask_bkg.schema.RUN_NUMBERS`.
    times
        Good time intervals.
    ra, dec
        Of the events [deg], shape ``(events,)``.
    """
    notes, pointing = list[str](), (numbers["ra_pnt"], numbers["dec_pnt"])
    if ra.size >= FEW:
        away = float(fov.separation(*_mean_direction(ra, dec), *pointing))
        if away > CENTRE_NOTE:
            notes.append(f"its events are centred {away:.2f} deg from its pointing (RA_PNT, DEC_PNT)")
    quarter, threshold = float(np.exp(numbers["ln_e_q25"])), numbers["e_thres"]
    if ra.size >= FEW and not threshold / ENERGY_NOTE <= quarter <= threshold * ENERGY_NOTE and threshold > 0:
        notes.append(
            f"a quarter of its events is below {quarter:.3g} TeV, its effective area begins at {threshold:.3g} TeV"
        )
    mjd = numbers["time"]
    if np.isfinite(mjd) and not DATES[0] <= mjd <= DATES[1]:
        return [*notes, f"its date is MJD {mjd:.6g} (MJDREFI, TSTART)"]
    if not np.isfinite([*(numbers[name] for name in ("zenith", "azimuth", "site_lon", "site_lat")), mjd]).all():
        return notes
    half = (times.stop[-1] - times.start[0]) / 2 / SECONDS_PER_DAY
    if horizon_distance(numbers, np.array([mjd]), np.array([half]), times.system)[0] > HORIZON_NOTE:
        (azimuth,), (altitude,) = horizontal(numbers, np.array([mjd]), times.system)
        notes.append(
            f"ALT_PNT, AZ_PNT are {90 - numbers['zenith']:.1f}, {numbers['azimuth']:.1f} deg, but {altitude:.1f}, "
            f"{azimuth:.1f} deg by RA_PNT, DEC_PNT, time and site (azimuth from north through east)"
        )
    return notes


def horizon_distance(numbers: Mapping[str, Any], mjd: NDArray, half: NDArray, system: str) -> NDArray:
    """Distance of the pointing of headers (ALT_PNT, AZ_PNT) from that by time and site [deg].

    The least of beginning, middle and end of a run: a header may have any of these.

    Parameters
    ----------
    numbers
        Pointing, ``zenith``, ``azimuth`` and site of runs [deg], scalars or of shape ``(runs,)``.
    mjd, half
        Middle of the runs [MJD], and half their length [d], shape ``(runs,)``.
    system
        Time system (TIMESYS).
    """
    places = [horizontal(numbers, mjd + part * half, system) for part in (-1, 0, 1)]
    said = numbers["azimuth"], 90.0 - numbers["zenith"]
    return np.min([fov.separation(*place, *said) for place in places], axis=0)


def _mean_direction(ra: NDArray, dec: NDArray) -> tuple[float, float]:
    """Mean of directions [deg]."""
    lon, lat = np.deg2rad(ra), np.deg2rad(dec)
    x, y, z = (float(part.mean()) for part in (np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)))
    return float(np.rad2deg(np.arctan2(y, x))), float(np.rad2deg(np.arctan2(z, np.hypot(x, y))))
