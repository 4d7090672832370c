"""Numbers of an observation index: in the units of GADF, or refused by the name of their column."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray

from dask_bkg.dl3.doubt import HORIZON_NOTE, LIMITS, horizon_distance
from dask_bkg.dl3.headers import reference_mjd, site, text, unit_of_times
from dask_bkg.dl3.index_table import name_runs
from dask_bkg.dl3.units import factor
from dask_bkg.sky.horizon import SECONDS_PER_DAY

log = logging.getLogger(__name__)

ANGLES = (
    *("RA_PNT", "DEC_PNT", "GLON_PNT", "GLAT_PNT", "ZEN_PNT", "ALT_PNT", "AZ_PNT", "RA_OBJ", "DEC_OBJ"),
    *("GEOLON", "GEOLAT"),
)
TIMES = ("TSTART", "TSTOP")
UNITS = {
    **dict.fromkeys(ANGLES, "deg"),
    **dict.fromkeys((*TIMES, "ONTIME", "LIVETIME", "TELAPSE"), "s"),
    **dict.fromkeys(("SAFE_ENERGY_LO", "SAFE_ENERGY_HI"), "TeV"),
    **dict.fromkeys(("NSBLEVEL", "N_TELS", "MUONEFF", "DEADC"), ""),
}
"""Columns that are numbers, and their units in GADF; a column without a unit is in this one."""

RANGES = {**LIMITS, "DEC_PNT": (-90.0, 90.0)}


def in_units_of_gadf(obs: Table, path: Path) -> Table:
    """An observation index whose numbers are those that GADF means; what else it has stays as it is.

    Parameters
    ----------
    obs
        The table, changed in place where it is not so.
    path
        Its file, for messages.

    Returns
    -------
    table
        The same; numbers that cannot be right are NaN, and the log says of which runs.

    Raises
    ------
    ValueError
        If a column is text, an array, or in a unit of something else; the message goes on from the name of the file.
    """
    for name in [name for name in obs.colnames if name in UNITS]:
        if obs[name].dtype.kind not in "iufb" or obs[name].ndim != 1:
            raise ValueError(f"has a column {name} that holds no single numbers ({obs[name].dtype}): write numbers")
        _convert(obs, name)
        _leave_unknown(obs, name, path)
    if "TIMEUNIT" in obs.meta and any(name in obs.colnames for name in TIMES):
        obs.meta["TIMEUNIT"] = "s"
    _check_horizon(obs, path)
    return obs


def _convert(obs: Table, name: str) -> None:
    """A column in its unit of GADF."""
    unit = str(obs[name].unit or "") or (unit_of_times(obs.meta) if name in TIMES else "")
    if not unit or not UNITS[name]:
        return
    try:
        scale = factor(unit, UNITS[name])
    except ValueError as error:
        raise ValueError(f"has its column {name} {error}: correct TUNIT") from error
    if scale != 1.0:
        obs[name] = obs[name].astype(np.float64) * scale
        obs[name].unit = UNITS[name]


def _numbers(obs: Table, name: str) -> NDArray:
    """A column; NaN where it is masked, or there is none."""
    if name not in obs.colnames:
        return np.full(len(obs), np.nan)
    return np.ma.filled(np.ma.asarray(obs[name]).astype(float), np.nan)


def _leave_unknown(obs: Table, name: str, path: Path) -> None:
    """Numbers out of range become NaN; a right ascension is brought into its range."""
    values = _numbers(obs, name)
    low, high = (-720.0, 720.0) if name == "RA_PNT" else RANGES.get(name, (-np.inf, np.inf))
    wrong = np.isinf(values) | (values < low) | (values > high)
    turned = (name == "RA_PNT") & ~wrong & ((values < 0) | (values > 360))
    for rows, what in (
        (wrong, f"is not between {low:g} and {high:g} and left unknown"),
        (turned, "is taken mod 360"),
    ):
        if rows.any():
            runs = name_runs(np.asarray(obs["OBS_ID"])[rows].tolist())
            log.warning("%s: %s %s for %s", path, name, what, runs)
    if wrong.any() or turned.any():
        unit = obs[name].unit
        obs[name] = np.where(wrong, np.nan, np.where(turned, values % 360.0, values))
        obs[name].unit = unit


def _check_horizon(obs: Table, path: Path) -> None:
    """Name the runs whose ALT_PNT and AZ_PNT do not go with pointing, time and site."""
    middle = (_numbers(obs, "TSTART") + _numbers(obs, "TSTOP")) / 2
    altitude = _numbers(obs, "ALT_PNT")
    numbers: dict[str, Any] = {
        "ra_pnt": _numbers(obs, "RA_PNT"), "dec_pnt": _numbers(obs, "DEC_PNT"), "azimuth": _numbers(obs, "AZ_PNT"),
        "zenith": np.where(np.isfinite(altitude), 90.0 - altitude, _numbers(obs, "ZEN_PNT")),
        **site(obs.meta, {}),
    }  # fmt: skip
    mjd = sum(reference_mjd(obs.meta)) + middle / SECONDS_PER_DAY
    known = np.isfinite(mjd + sum(numbers[name] for name in ("ra_pnt", "dec_pnt", "azimuth", "zenith")))
    if not known.any() or not np.isfinite([numbers["site_lon"], numbers["site_lat"]]).all():
        return
    half = (_numbers(obs, "TSTOP") - _numbers(obs, "TSTART"))[known] / 2 / SECONDS_PER_DAY
    there = {name: value[known] if np.ndim(value) else value for name, value in numbers.items()}
    away = horizon_distance(there, mjd[known], half, text(obs.meta, "TIMESYS")) > HORIZON_NOTE
    if away.any():
        log.warning(
            "%s: ALT_PNT and AZ_PNT are more than %g deg from the place of the pointing by RA_PNT, DEC_PNT, time and "
            "site (is the azimuth from north through east?) for %s",
            path, HORIZON_NOTE, name_runs(np.asarray(obs["OBS_ID"])[known][away].tolist()),
        )  # fmt: skip
