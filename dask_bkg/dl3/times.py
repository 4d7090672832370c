"""What the times in a header count from, in which unit and time system (FITS standard 4.0, section 9)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from erfa import DJM0
from erfa import ufunc as erfa

from dask_bkg.dl3.headers import number, reference_mjd, seconds_per_unit, text
from dask_bkg.sky.horizon import SECONDS_PER_DAY, TAI_FROM

UTC = ("UTC", "UT", "GMT")
"""Names of UTC."""

SYSTEMS = (*TAI_FROM, *UTC)
"""Time systems (TIMESYS) that are understood."""

PLACES = ("", "LOCAL", "TOPOCENTER", "TOPOCENT", "GEOCENTER", "GEOCENTRIC", "NONE")
"""Places (TIMEREF, TREFPOS) whose clocks differ from that of the array by less than 0.03 s."""


class Clock(NamedTuple):
    """What times are counted from.

    Attributes
    ----------
    reference
        Integer and fraction of the day [MJD] that they count from; NaN where the header does not say.
    system
        Time system of that day (TIMESYS) in capitals; empty where the header does not say.
    """

    reference: tuple[float, float]
    system: str


def clock_of(header: Mapping[str, Any]) -> Clock:
    """What the times of a table count from.

    Raises
    ------
    ValueError
        If a card says something that is not understood; the message goes on from the name of the table.
    """
    system = text(header, "TIMESYS").upper()
    if system and system not in SYSTEMS:
        raise ValueError(f"has TIMESYS = {text(header, 'TIMESYS')!r}: accepted are {', '.join(SYSTEMS)}")
    for card in ("TIMEREF", "TREFPOS"):
        if text(header, card).upper() not in PLACES:
            raise ValueError(
                f"has {card} = {text(header, card)!r}: accepted are times at the array (LOCAL, TOPOCENTER)"
            )
    for card in ("TIMEZERO", "TIMEOFFS"):
        if number(header, card, 0.0) != 0:
            raise ValueError(f"has {card} = {header[card]!r}, an offset of its times, which is not understood")
    return Clock(reference_mjd(header), system)


def seconds_of_cards(header: Mapping[str, Any], first: str, second: str) -> tuple[float, float]:
    """Times of a header (TSTART, TSTOP) [s]; NaN where they are missing."""
    scale = seconds_per_unit(header)
    return number(header, first) * scale, number(header, second) * scale


def shift_between(one: Clock, other: Clock) -> float:
    """Seconds to be added to the times of ``other``, so that they count from the reference of ``one``.

    Both count SI seconds from their reference days, which may be in different time systems.

    Examples
    --------
    >>> round(shift_between(Clock((51910.0, 0.0), "UTC"), Clock((51910.0, 0.0), "TT")), 3)
    -64.184
    """
    system = one.system or other.system or "TT", other.system or one.system or "TT"
    if not np.isfinite([*one.reference, *other.reference]).all():
        return 0.0
    if (one.reference, system[0]) == (other.reference, system[1]):
        return 0.0
    (day, fraction), (other_day, other_fraction) = _tai(one.reference, system[0]), _tai(other.reference, system[1])
    return ((other_day - day) + (other_fraction - fraction)) * SECONDS_PER_DAY


def _tai(reference: tuple[float, float], system: str) -> tuple[float, float]:
    """A day as TAI, a Julian date in two parts."""
    day, fraction = reference
    if system in TAI_FROM:
        return DJM0 + day, fraction - TAI_FROM[system] / SECONDS_PER_DAY
    first, second, _ = erfa.utctai(DJM0 + day, fraction)
    return float(first), float(second)
