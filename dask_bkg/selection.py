"""Which runs contribute to which: observing-condition cuts, then the nearest runs until n hours are reached.

Pure arrays of the runs' observing conditions; a criterion that is not set (None) cuts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dask_bkg import fov
from dask_bkg.errors import ConfigError, RunError

NEEDS = {
    "el_min": ("zenith", "ALT_PNT or ZEN_PNT"),
    "el_max": ("zenith", "ALT_PNT or ZEN_PNT"),
    "el_diff": ("zenith", "ALT_PNT or ZEN_PNT"),
    "az_diff": ("azimuth", "AZ_PNT"),
    "nsb_diff": ("nsb", "NSBLEVEL"),
    "n_tels": ("n_tels", "N_TELS or TELLIST"),
    "time_max": ("time", "TSTART with MJDREFI, or DATE-AVG, or DATE-OBS"),
    "same_szn": ("time", "TSTART with MJDREFI, or DATE-AVG, or DATE-OBS"),
    "galactic_latitude_min": ("ra_pnt", "RA_PNT and DEC_PNT"),
}
"""What each cut needs of a run, and the columns or header cards that it comes from."""

CONDITIONS = ("ra_pnt", "dec_pnt", "zenith", "azimuth", "nsb", "n_tels", "time", "livetime")


class Selection(NamedTuple):
    """The runs that contribute to one target.

    Attributes
    ----------
    obs_id
        Run numbers, nearest first.
    hours
        Sum of their livetime [h].
    enough
        Whether the requested time was reached (True where none was requested).
    """

    obs_id: NDArray
    hours: float
    enough: bool


def azimuth_difference(azimuth1: ArrayLike, azimuth2: ArrayLike) -> NDArray:
    """Difference of azimuths [deg] the short way round, 0 to 180.

    Examples
    --------
    >>> float(azimuth_difference(350, 20))
    30.0
    """
    return np.abs((np.asarray(azimuth1) - np.asarray(azimuth2) + 180.0) % 360.0 - 180.0)


def airmass(zenith: ArrayLike) -> NDArray:
    """The procedure's 1 / sin(elevation), of a zenith angle [deg]."""
    return 1 / np.cos(np.deg2rad(zenith))


def galactic_latitude(ra: ArrayLike, dec: ArrayLike) -> NDArray:
    """Galactic latitude [deg] of ICRS positions [deg] (north galactic pole 192.85948, 27.12825)."""
    return 90.0 - fov.separation(ra, dec, 192.85948, 27.12825)


def ranks_by_zenith(settings) -> bool:
    """Whether the nearest in 1/sin(elevation) are sought."""
    return settings.rank == "elevation" and np.isfinite(settings.hours_wanted)


def is_set(settings, key: str) -> bool:
    """Whether a cut is made: its option is neither None nor False (0 is a cut)."""
    value = getattr(settings, key)
    return value is not None and value is not False


def check_conditions(runs: Mapping[str, NDArray], settings) -> None:
    """Raise `ConfigError` for a cut or a ranking although no run of the archive has what it needs."""
    for key, (quantity, cards) in NEEDS.items():
        if is_set(settings, key) and not np.isfinite(runs[quantity]).any():
            raise ConfigError(
                f"background_selection.{key} is set, but no run of io.search_datastore has {cards} (neither in the "
                f"obs-index nor in the EVENTS headers): leave {key} out"
            )
    if ranks_by_zenith(settings) and not np.isfinite(runs["zenith"]).any():
        raise ConfigError(
            "background_selection.rank: the nearest runs in elevation are sought, but no run of io.search_datastore "
            "has ALT_PNT or ZEN_PNT (neither in the obs-index nor in the EVENTS headers): take rank: none"
        )


def passing_runs(
    target: Mapping[str, float], runs: Mapping[str, NDArray], settings
) -> tuple[NDArray, list[tuple[str, int]]]:
    """Runs that pass the cuts for one target.

    Parameters
    ----------
    target
        Its ``obs_id`` and observing conditions (`CONDITIONS`).
    runs
        The same of all runs, arrays of shape ``(runs,)``.
    settings
        The ``background_selection`` section.

    Returns
    -------
    mask, left
        Boolean of shape ``(runs,)``; and for each cut that is set its name and how many runs were left after it.

    Raises
    ------
    RunError
        If the target itself lacks what a cut needs, or lies in no season.
    """
    mask = runs["obs_id"] != target["obs_id"]
    left = [("other runs", int(mask.sum()))]
    with np.errstate(invalid="ignore"):
        for name, cut in _cuts(target, runs, settings):
            mask = mask & cut
            left.append((name, int(mask.sum())))
    return mask, left


def _cuts(target, runs, settings):
    """Name and mask of each cut that is set; a run whose quantity is NaN passes none that needs it."""
    for key in ("el_diff", "az_diff", "nsb_diff", "time_max", "same_szn"):
        quantity, cards = NEEDS[key]
        if is_set(settings, key) and not np.isfinite(target[quantity]):
            raise RunError(
                f"run {target['obs_id']}: background_selection.{key} needs {cards}, which this run does not have"
            )
    elevation = 90.0 - runs["zenith"]
    if settings.el_min is not None:
        yield f"el_min {settings.el_min:g} deg", elevation >= settings.el_min
    if settings.el_max is not None:
        yield f"el_max {settings.el_max:g} deg", elevation <= settings.el_max
    if settings.n_tels is not None:
        yield f"n_tels {settings.n_tels}", runs["n_tels"] >= settings.n_tels
    if settings.galactic_latitude_min is not None:
        latitude = np.abs(galactic_latitude(runs["ra_pnt"], runs["dec_pnt"]))
        yield (
            f"galactic_latitude_min {settings.galactic_latitude_min:g} deg",
            latitude >= settings.galactic_latitude_min,
        )
    if settings.el_diff is not None:
        yield (
            f"el_diff {settings.el_diff:g} in 1/sin(el)",
            np.abs(airmass(runs["zenith"]) - airmass(target["zenith"])) <= settings.el_diff,
        )
    if settings.az_diff is not None:
        yield (
            f"az_diff {settings.az_diff:g} deg",
            azimuth_difference(runs["azimuth"], target["azimuth"]) <= settings.az_diff,
        )
    if settings.nsb_diff is not None:
        yield f"nsb_diff {settings.nsb_diff:g}", np.abs(runs["nsb"] - target["nsb"]) <= settings.nsb_diff
    if settings.time_max is not None:
        yield f"time_max {settings.time_max:g} days", np.abs(runs["time"] - target["time"]) <= settings.time_max
    if settings.same_szn:
        season = settings.season_of(target["time"])
        if season is None:
            raise RunError(
                f"run {target['obs_id']}: its date (MJD {target['time']:.1f}) lies in none of the seasons "
                f"{', '.join(settings.seasons or {}) or '(none given)'}: add one to background_selection.seasons"
            )
        start, stop = settings.season_range(season)
        yield f"same_szn {season}", (runs["time"] >= start) & (runs["time"] < stop)


def select_runs(target: Mapping[str, float], runs: Mapping[str, NDArray], settings) -> Selection:
    """Runs that contribute to one target: those that pass the cuts, nearest in 1/sin(el) first, until n hours.

    The run that crosses the requested time is included.  Arguments and errors as in `passing_runs`; `RunError` also
    where no run passes (it says which cut left how many).
    """
    mask, left = passing_runs(target, runs, settings)
    if ranks_by_zenith(settings) and not np.isfinite(target["zenith"]):
        raise RunError(
            f"run {target['obs_id']}: the nearest runs in elevation are sought, but it has no ALT_PNT or ZEN_PNT: "
            "take background_selection.rank: none, or give its bkg_runlist"
        )
    index = np.flatnonzero(mask)
    if index.size == 0:
        trail = ", ".join(f"{name}: {n}" for name, n in left)
        raise RunError(
            f"run {target['obs_id']}: no run of the archive passes background_selection (runs left after each cut: "
            f"{trail}): widen the cut that left none"
        )
    livetime = np.nan_to_num(runs["livetime"][index]) / 3600.0
    if settings.rank == "none":
        return Selection(runs["obs_id"][index], float(livetime.sum()), True)
    distance = np.nan_to_num(np.abs(airmass(runs["zenith"][index]) - airmass(target["zenith"])), nan=np.inf)
    order = np.lexsort((runs["obs_id"][index], np.round(distance, 10)))
    index, livetime = index[order], livetime[order]
    before = np.cumsum(livetime) - livetime
    # a sum of hours that reaches the request but for rounding has reached it
    taken = before < settings.hours_wanted - 1e-9
    hours = float(livetime[taken].sum())
    return Selection(
        runs["obs_id"][index[taken]], hours, hours >= settings.hours_wanted - 1e-9 or np.isinf(settings.hours_wanted)
    )
