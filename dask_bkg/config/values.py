"""The values of a configuration: what a user may write for a number, a position, a run - and the plain value meant.

Every function here is a door: it takes the plain Python value that YAML, JSON or a notebook gives (see
`dask_bkg.config.yaml.plain`), returns the value in the declared unit, or raises a `ValueError` whose text says what
is accepted and what was got. `dask_bkg.config` puts the name of the key before it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

from dask_bkg.errors import ConfigError

KERNEL = ("cos_zenith", "e_thres", "muon_efficiency", "aeff_integral", "ln_e_q25", "nsb", "divergence")
"""Quantities of the kernel in which runs are alike; see `dask_bkg.selection.ranking`."""

Circle = tuple[float, float, float]
Named = tuple[str, float]
Season = tuple[str, str | None]

#: Day number of the origin of the modified Julian date (1858-11-17) in the proleptic calendar of `datetime`.
MJD_ORIGIN = date(1858, 11, 17).toordinal()


def to_number(value: Any, unit: str) -> float:
    """Turn a number, or a text such as ``"100 GeV"``, into a float in ``unit``.

    Parameters
    ----------
    value
        A bare number (already in ``unit``), a number written as text, or a quantity written as text.
    unit
        The unit of the result; empty for a number without a unit.

    Raises
    ------
    ValueError
        If it is not a finite number, or its unit does not fit.

    Examples
    --------
    >>> to_number("100 GeV", "TeV")
    0.1
    """
    # True is an int to Python, but no user means "1 TeV" by it.
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(_number_wanted(unit, value))
    number = _read_quantity(value, unit) if isinstance(value, str) else float(value)
    if not math.isfinite(number):
        raise ValueError(_number_wanted(unit, value))
    return number


def _read_quantity(text: str, unit: str) -> float:
    if _is_bare(text):
        return float(text)
    # Imported where a quantity was written: astropy is slow to import, and most files have bare numbers.
    from astropy.units import Quantity

    try:
        return float(Quantity(text).to_value(unit))
    except (TypeError, ValueError):
        raise ValueError(_number_wanted(unit, text)) from None


def _is_bare(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _number_wanted(unit: str, value: Any) -> str:
    with_unit = f" of {unit}, or a text with a unit such as '1 {unit}'" if unit else " without a unit"
    return f"must be a finite number{with_unit}, got {value!r}"


@dataclass(frozen=True)
class Unit:
    """A converter to numbers in one unit; the template reads the unit's name from it."""

    name: str

    def __call__(self, value: Any) -> float:
        """Convert one value, see `to_number`."""
        return to_number(value, self.name)


def to_integer(value: Any) -> int:
    """Turn an integer, ``3.0`` or ``"3"`` into an int; a bool is refused."""
    if isinstance(value, str) and re.fullmatch(r"\s*[-+]?\d+\s*", value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not float(value).is_integer():
        raise ValueError(f"must be a whole number, got {value!r}")
    return int(value)


def to_path(value: Any) -> str:
    """Return a path with ``~`` and ``$VARIABLES`` filled in; a variable that is not set is an error."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"must be a path, got {value!r}")
    path = os.path.expandvars(os.path.expanduser(value.strip()))
    left = re.search(r"\$(\w+|\{[^}]*\})", path)
    if left:
        raise ValueError(f"must be a path, got {value!r}, but the environment variable {left[0]} is not set")
    return path


def to_list(value: Any) -> list:
    """Return a list without its empty lines; one bare value is a list of one."""
    if isinstance(value, (list, tuple)):
        return [item for item in value if item is not None]
    return [value]


def to_circles(value: Any) -> list[Circle]:
    """Read circles ``[[ra, dec, radius], ...]`` or one of them, all in deg (numbers, or texts with or without unit).

    Examples
    --------
    >>> to_circles(["287.10 deg", "6.39", 0.5])
    [(287.1, 6.39, 0.5)]
    """
    return [_circle(row) for row in _rows(value, 3)]


def _circle(row: Any) -> Circle:
    accepted = "must be [ra, dec, radius] in deg"
    ra, dec, radius = (to_number(part, "deg") for part in _of_length(row, 3, accepted))
    if not -90 <= dec <= 90 or not -360 <= ra <= 360:
        raise ValueError(f"{accepted} with ra in -360..360 and dec in -90..90, got {list(row)!r}")
    return ra % 360.0, dec, _radius(radius, row)


def to_named(value: Any) -> list[Named]:
    """Read sources ``[[name, radius], ...]`` or one of them; the radius is in deg.

    Examples
    --------
    >>> to_named(["Crab", "0.5 deg"])
    [('Crab', 0.5)]
    """
    return [_named(row) for row in _rows(value, 2)]


def _named(row: Any) -> Named:
    accepted = "must be [name, radius in deg]"
    name, radius = _of_length(row, 2, accepted)
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{accepted}, got {list(row)!r}")
    return name.strip(), _radius(to_number(radius, "deg"), row)


def _rows(value: Any, length: int) -> list:
    """Return the rows of a table; a single row, written without the outer brackets, is a table of one."""
    single = isinstance(value, (list, tuple)) and len(value) == length
    if single and not any(isinstance(part, (list, tuple)) or part is None for part in value):
        return [value]
    return to_list(value)


def _of_length(row: Any, length: int, accepted: str) -> Sequence:
    if not isinstance(row, (list, tuple)) or len(row) != length:
        raise ValueError(f"{accepted}, got {row!r}")
    return row


def _radius(radius: float, row: Any) -> float:
    if not 0 < radius <= 180:
        raise ValueError(f"the radius must be above 0 and at most 180 deg, got {list(row)!r}")
    return radius


def to_run(value: Any) -> int:
    """Turn one run number, also written as text, into an int."""
    try:
        run = to_integer(value)
    except ValueError:
        raise ValueError(f"must be run numbers, got {value!r}") from None
    if run < 0:
        raise ValueError(f"must be run numbers, which are not negative, got {value!r}")
    return run


def to_runs(value: Any) -> list[int]:
    """Read a list of run numbers, or a single one; each is kept once, in the order given."""
    rows = list(value) if isinstance(value, (list, tuple)) else [value]
    return list(dict.fromkeys(to_run(row) for row in rows))


def to_runlist(value: Any) -> list[int] | str | None:
    """Read ``run_selection.runlist``: ``"all"`` (None), run numbers, or the path of a text file (a str)."""
    if isinstance(value, str) and not value.strip().isdigit():
        return None if value.strip().lower() == "all" else to_path(value)
    runs = to_runs(value)
    if not runs:
        raise ValueError("is an empty list: give run numbers, a text file, or null (or 'all') for every run")
    return runs


def to_run_table(value: Any) -> dict[int, list[int]]:
    """Read ``{run: [run, ...]}``; the keys come back from JSON as texts and are run numbers all the same."""
    if not isinstance(value, dict):
        raise ValueError(f"must be a table {{run: [contributing run, ...]}}, got {value!r}")
    table = {to_run(run): to_runs(contributing) for run, contributing in value.items()}
    if len(table) < len(value):
        raise ValueError(f"names a run twice: {', '.join(map(str, value))}")
    return table


def to_widths(value: Any) -> dict[str, float]:
    """Read the widths of a kernel, ``{quantity: width}``.

    Examples
    --------
    >>> to_widths({"cos_zenith": "0.05", "e_thres": 0.1})
    {'cos_zenith': 0.05, 'e_thres': 0.1}
    """
    accepted = f"must be a table {{quantity: width}} of {', '.join(KERNEL)}"
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{accepted}, got {value!r}")
    if unknown := [str(name) for name in value if name not in KERNEL]:
        raise ValueError(f"{accepted}, got {', '.join(unknown)}")
    widths = {str(name): to_number(width, "") for name, width in value.items()}
    if wrong := {name: width for name, width in widths.items() if not width > 0}:
        raise ValueError(f"has widths that are not above 0: {wrong}")
    return widths


def to_marks(value: Any) -> dict[str, str]:
    """Read ``bkg_runlist_digest``: a table of texts, whose keys YAML may have taken for numbers."""
    if not isinstance(value, dict):
        raise ValueError(f"must be a table as a job has written it, or be left out, got {value!r}")
    return {str(key): str(mark) for key, mark in value.items()}


def read_runs(path: Path) -> list[int]:
    """Read a text file with one run number per line; ``#`` starts a comment.

    Raises
    ------
    ConfigError
        If the file cannot be read, holds no run, or a line is not a run number.
    """
    where = f"run_selection.runlist: {path}"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where} cannot be read as a text file with one run per line ({error})") from error
    runs = []
    for number, line in enumerate(lines, 1):
        text = line.split("#")[0].strip()
        # A leading zero is decimal here: the file is no YAML, and run lists are often padded.
        if text and not re.fullmatch(r"[0-9]+", text):
            raise ConfigError(f"{where}, line {number}: must be one run number per line, got {line.strip()!r}")
        if text:
            runs.append(int(text))
    if not runs:
        raise ConfigError(f"{where} names no run: write one run number per line, or set runlist to null for all")
    return list(dict.fromkeys(runs))


def to_seasons(value: Any) -> dict[str, Season]:
    """Read ``{name: [start, stop]}``, ISO dates; ``stop`` may be null (still open).

    Both days belong to the season, the last to its end, so two seasons must not share a day.
    """
    if not isinstance(value, dict):
        raise ValueError(f"must be a table {{name: [start, stop]}} of ISO dates, got {value!r}")
    seasons = {str(name): _season(str(name), row) for name, row in value.items()}
    _check_apart(seasons)
    return seasons


def _season(name: str, row: Any) -> Season:
    accepted = f"season {name!r} must be [start, stop], two ISO dates such as 2012-08-01 (stop may be null)"
    start, stop = _of_length(row, 2, accepted)
    try:
        first, last = date.fromisoformat(start), date.fromisoformat(stop) if stop is not None else None
    except (TypeError, ValueError):
        raise ValueError(f"{accepted}, got {list(row)!r}") from None
    if last is not None and last < first:
        raise ValueError(f"season {name!r} must not stop before it starts, got {list(row)!r}")
    return first.isoformat(), last.isoformat() if last else None


def _check_apart(seasons: dict[str, Season]) -> None:
    in_order = sorted(seasons.items(), key=lambda item: item[1][0])
    for (before, (_, stop)), (after, (start, _)) in pairwise(in_order):
        # ISO dates sort as texts.
        if stop is None or start <= stop:
            raise ValueError(
                f"seasons {before!r} (until {stop or 'now'}, the day included) and {after!r} (from {start}) overlap: "
                "a run must belong to one season only"
            )


def to_mjd(day: str) -> float:
    """Return the modified Julian date of the beginning of an ISO date."""
    return float(date.fromisoformat(day).toordinal() - MJD_ORIGIN)


def to_sigma(value: Any) -> float | str:
    """Read a smoothing width: a bare number (in offset bins) or an angle as text, kept as written; not negative."""
    bins = isinstance(value, (int, float)) or (isinstance(value, str) and _is_bare(value))
    width = to_number(value, "" if bins else "deg")
    if width < 0:
        raise ValueError(f"must be 0 or more, in offset bins (1.0) or as an angle ('0.3 deg'), got {value!r}")
    return width if bins else value


def to_hours(value: Any) -> float | str:
    """Read a time in hours (``10``, ``"600 min"``), above 0, or the word ``all`` for no limit."""
    if isinstance(value, str) and value.strip().lower() == "all":
        return "all"
    try:
        hours = to_number(value, "h")
    except ValueError:
        hours = 0.0
    if hours <= 0:
        raise ValueError(f"must be hours above 0, a text such as '600 min', or 'all' for no limit, got {value!r}")
    return hours


def to_cluster(value: Any) -> str:
    """Read where to compute: ``threads``, ``local``, ``slurm``, or a scheduler's address or file (``*.json``)."""
    accepted = (
        "'threads', 'local', 'slurm', or the address of a scheduler (tcp://host:port or tls://host:port) or its file "
        "(a path that ends in .json)"
    )
    text = value.strip() if isinstance(value, str) else ""
    if text.endswith(".json") and "://" not in text:
        return to_path(text)
    if not re.fullmatch(r"threads|local|slurm|(tcp|tls)://\S+", text):
        raise ValueError(f"must be {accepted}, got {value!r}")
    return text


def each(convert: Callable[[Any], Any]) -> Callable[[Any], list]:
    """Make a converter of lists from one of items; a single item is a list of one."""
    return lambda value: [convert(item) for item in to_list(value)]
