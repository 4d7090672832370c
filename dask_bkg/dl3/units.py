"""Units as FITS files write them: what a number is multiplied with, or why it is not believed."""

from __future__ import annotations

import warnings
from functools import lru_cache

from astropy import units as u

SPELLINGS = {
    **dict.fromkeys(("degree", "degrees"), "deg"),
    **dict.fromkeys(("radian", "radians"), "rad"),
    **dict.fromkeys(("sec", "secs", "second", "seconds"), "s"),
    **{name.lower(): name for name in ("TeV", "GeV", "MeV", "deg", "rad", "s", "d", "m2", "cm2", "km2", "m")},
}
"""Spellings that are in files though they are in no standard; looked up without capitals."""


@lru_cache(maxsize=256)
def factor(unit: str, target: str) -> float:
    """What a number in a unit is multiplied with, to have it in another one.

    Parameters
    ----------
    unit
        As the file has it (TUNITn, TIMEUNIT).
    target
        The wanted unit.

    Raises
    ------
    ValueError
        If astropy does not know the unit, or it is one of something else; the message goes on from "is".

    Examples
    --------
    >>> factor("GeV", "TeV"), factor("d", "s")
    (0.001, 86400.0)
    >>> factor("Crab", "TeV")
    Traceback (most recent call last):
    ValueError: in the unit 'Crab', which cannot be converted to TeV
    """
    known = SPELLINGS.get(unit.strip().lower(), unit.strip())
    # MeV and meV, which is a billion times less, differ by their capital alone: only what is unknown is respelled
    for text in (unit.strip(), known):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = u.Unit(text, parse_strict="silent") if text else None
        if found is not None and found.is_equivalent(target):
            return 1.0 if found == u.Unit(target) else float(found.to(target))
    raise ValueError(f"in the unit {unit!r}, which cannot be converted to {target}")
