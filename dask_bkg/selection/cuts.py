"""Cuts on the observing conditions: conditions on a run alone, or on a pair of target and run.

A cut that is not set (None, or False for a switch) is skipped.  Limits are inclusive.  A run whose quantity is NaN
passes no cut that needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dask_bkg.errors import ConfigError
from dask_bkg.selection.instruments import INSTRUMENT, same_instrument
from dask_bkg.selection.ranking import Table, airmass, column, ranking_of
from dask_bkg.selection.settings import SelectionSettings
from dask_bkg.sky import fov

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
"""The quantity of a run that each cut needs, and the columns or header cards that it comes from."""

CONDITIONS = ("ra_pnt", "dec_pnt", "zenith", "azimuth", "nsb", "n_tels", "time", "livetime")

COLUMNS = (
    "obs_id", "object_code", "excluded", "fold", *CONDITIONS,
    "muon_efficiency", "e_thres", "lo_thres", "aeff_integral", "ln_e_q25",
)  # fmt: skip
"""Columns of a table of runs: integers (``obs_id``, ``object_code``, -1 if unknown, ``fold``), ``excluded``,
floats."""

SAME_TARGET = 1.5
"""Pointings this close [deg] are of the same object, whatever its name: fields of 2.5 deg share most of their sky."""


def galactic_latitude(ra: ArrayLike, dec: ArrayLike) -> NDArray:
    """Galactic latitude [deg] of ICRS positions [deg] (north galactic pole 192.85948, 27.12825)."""
    return 90.0 - fov.separation(ra, dec, 192.85948, 27.12825)


def is_set(settings: SelectionSettings, key: str) -> bool:
    """Whether a cut is set: its option is neither None nor False (0 is a cut)."""
    value = getattr(settings, key, None)
    return value is not None and value is not False


def columns_for(settings: SelectionSettings) -> tuple[str, ...]:
    """Columns of a table that cuts and ranking of the settings read: the others need not be sent to workers."""
    if ranking_of(settings).weights:
        return (*COLUMNS, INSTRUMENT)
    needed = {"obs_id", "excluded", "livetime", "zenith", "fold"}
    needed |= {quantity for key, (quantity, _) in NEEDS.items() if is_set(settings, key)}
    if is_set(settings, "exclude_same_target") or is_set(settings, "galactic_latitude_min"):
        needed |= {"object_code", "ra_pnt", "dec_pnt"}
    return (*(name for name in COLUMNS if name in needed), INSTRUMENT)


def check_conditions(runs: Mapping[str, NDArray], settings: SelectionSettings) -> None:
    """Raise `ConfigError` for a cut or a ranking for which no run of the archive has the quantity."""
    absent = "(neither in the obs-index nor in the EVENTS headers)"
    for key, (quantity, cards) in NEEDS.items():
        if is_set(settings, key) and not np.isfinite(column(runs, quantity)).any():
            raise ConfigError(
                f"background_selection.{key} is set, but no run of io.search_datastore has {cards} {absent}: "
                f"leave {key} out"
            )
    has_object = (_codes(runs) >= 0).any() or np.isfinite(column(runs, "ra_pnt")).any()
    if is_set(settings, "exclude_same_target") and not has_object:
        raise ConfigError(
            "background_selection.exclude_same_target is set, but no run of io.search_datastore has OBJECT or "
            f"RA_PNT and DEC_PNT {absent}: leave exclude_same_target out"
        )
    rank = ranking_of(settings)
    if rank.needs(settings) and not np.isfinite(column(runs, "zenith")).any():
        raise ConfigError(
            f"background_selection.rank: {rank.why}, but no run of io.search_datastore has ALT_PNT or ZEN_PNT "
            f"{absent}: set rank: none"
        )


# -- cuts on a run alone ---------------------------------------------------------------------------------------

ALONE: dict[str, Callable[[Table, Any], NDArray]] = {
    "el_min": lambda runs, s: 90.0 - column(runs, "zenith") >= s.el_min,
    "el_max": lambda runs, s: 90.0 - column(runs, "zenith") <= s.el_max,
    "n_tels": lambda runs, s: column(runs, "n_tels") >= s.n_tels,
    "galactic_latitude_min": lambda runs, s: (
        np.abs(galactic_latitude(column(runs, "ra_pnt"), column(runs, "dec_pnt"))) >= s.galactic_latitude_min
    ),
}


def pass_alone(targets: Table, runs: Table, settings: SelectionSettings) -> tuple[NDArray, NDArray, NDArray]:
    """Apply the cuts that are the same for every target.

    Returns
    -------
    index
        Indices of the runs that pass, shape ``(passing,)``.
    own
        Position of each target itself in ``index``, -1 where it is not, shape ``(targets,)``.
    left
        Other runs left at first and after each cut, shape ``(targets, 1 + cuts)``.
    """
    passes = np.ones(len(runs["obs_id"]), dtype=bool)
    if "excluded" in runs:
        passes &= ~np.asarray(runs["excluded"], dtype=bool)
    own = _places(targets["obs_id"], runs["obs_id"])
    left = [_others(passes, own)]
    for key, cut in ALONE.items():
        if is_set(settings, key):
            passes &= cut(runs, settings)
            left.append(_others(passes, own))
    index = np.flatnonzero(passes)
    return index, _places(targets["obs_id"], np.asarray(runs["obs_id"])[index]), np.stack(left, axis=1)


def _others(passes: NDArray, own: NDArray) -> NDArray:
    """Number of runs that pass and are not the target itself."""
    return np.count_nonzero(passes) - np.append(passes, False)[own].astype(np.int64)


def _places(numbers: NDArray, among: NDArray) -> NDArray:
    """Index of each number among others, -1 where it is not."""
    order = np.argsort(among)
    place = np.append(order, -1)[np.searchsorted(among, numbers, sorter=order)]
    return np.where(np.append(among, -1)[place] == numbers, place, -1)


# -- cuts on a target and a run --------------------------------------------------------------------------------


def _gap(of_targets: NDArray, of_runs: NDArray) -> NDArray:
    """Absolute differences, shape ``(targets, runs)``."""
    gap = np.subtract.outer(of_targets, of_runs)
    return np.abs(gap, out=gap)


def _near_in_azimuth(targets: Table, runs: Table, settings: Any) -> NDArray:
    # two comparisons: a remainder of each pair would cost more than all the rest
    gap = _gap(column(targets, "azimuth") % 360.0, column(runs, "azimuth") % 360.0)
    return (gap <= settings.az_diff) | (gap >= 360.0 - settings.az_diff)


def _same_season(targets: Table, runs: Table, settings: SelectionSettings) -> NDArray:
    start, stop = season_ranges(column(targets, "time"), settings)
    time = column(runs, "time")
    return (time >= start[:, None]) & (time < stop[:, None])


def _another_object(targets: Table, runs: Table, settings: SelectionSettings) -> NDArray:
    names, other = _codes(targets), _codes(runs)
    same = (names[:, None] == other) & (names >= 0)[:, None]
    # squared chords, one coordinate after the other: exact for small angles, and the same in any block
    pairs = zip(_unit_vectors(targets), _unit_vectors(runs), strict=True)
    chord = sum(np.subtract.outer(of_targets, of_runs) ** 2 for of_targets, of_runs in pairs)
    limit = 2 * np.sin(np.deg2rad(SAME_TARGET) / 2)
    return ~(same | (chord <= limit**2 * (1 + 1e-9)))


def _codes(table: Table) -> NDArray:
    return np.asarray(table["object_code"] if "object_code" in table else np.full(len(table["obs_id"]), -1))


def _unit_vectors(table: Table) -> tuple[NDArray, NDArray, NDArray]:
    ra, dec = np.deg2rad(column(table, "ra_pnt")), np.deg2rad(column(table, "dec_pnt"))
    return np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)


PAIRS: dict[str, Callable[[Table, Table, Any], NDArray]] = {
    "el_diff": lambda targets, runs, s: (
        _gap(airmass(column(targets, "zenith")), airmass(column(runs, "zenith"))) <= s.el_diff
    ),
    "az_diff": _near_in_azimuth,
    "nsb_diff": lambda targets, runs, s: _gap(column(targets, "nsb"), column(runs, "nsb")) <= s.nsb_diff,
    "time_max": lambda targets, runs, s: _gap(column(targets, "time"), column(runs, "time")) <= s.time_max,
    "same_szn": _same_season,
    "exclude_same_target": _another_object,
    # no option of a job: a validation leaves out whole folds (`dask_bkg.validation.run`)
    "folds": lambda targets, runs, s: np.not_equal.outer(column(targets, "fold"), column(runs, "fold")),
}


def pair_cuts(targets: Table, runs: Table, settings: SelectionSettings) -> Iterator[NDArray]:
    """Which runs pass for which target, for one cut after the other; boolean, shape ``(targets, runs)``."""
    for key, cut in PAIRS.items():
        if is_set(settings, key):
            yield cut(targets, runs, settings)


def passing(targets: Table, runs: Table, settings: SelectionSettings) -> NDArray:
    """Which runs pass all cuts for which target, itself left out; boolean, shape ``(targets, runs)``."""
    index, own, _ = pass_alone(targets, runs, settings)
    left = {name: np.asarray(values)[index] for name, values in runs.items()}
    among = np.ones((len(targets["obs_id"]), index.size), dtype=bool) & same_instrument(targets, left)
    for cut in pair_cuts(targets, left, settings):
        among &= cut
    among[np.flatnonzero(own >= 0), own[own >= 0]] = False
    passes = np.zeros((len(among), len(runs["obs_id"])), dtype=bool)
    passes[:, index] = among
    return passes


def season_ranges(time: NDArray, settings: SelectionSettings) -> tuple[NDArray, NDArray]:
    """Start and stop (exclusive) of the season of each time [MJD], NaN outside of all; each of shape ``(times,)``."""
    start, stop = np.full(time.shape, np.nan), np.full(time.shape, np.nan)
    for name in settings.seasons or {}:
        first, last = settings.season_range(name)
        inside = (time >= first) & (time < last)
        start[inside], stop[inside] = first, last
    return start, stop


# -- names and messages ----------------------------------------------------------------------------------------

NAMES: dict[str, str] = {
    "el_min": "el_min {:g} deg", "el_max": "el_max {:g} deg", "n_tels": "n_tels {}",
    "galactic_latitude_min": "galactic_latitude_min {:g} deg", "el_diff": "el_diff {:g} in 1/sin(el)",
    "az_diff": "az_diff {:g} deg", "nsb_diff": "nsb_diff {:g}", "time_max": "time_max {:g} days",
    "same_szn": "same_szn", "exclude_same_target": "exclude_same_target", "folds": "{} folds",
}  # fmt: skip


def cut_names(settings: SelectionSettings) -> list[str]:
    """Names of the cuts that are set, in the order of `pass_alone` and `pair_cuts`, then of the ranking."""
    keys = [key for key in (*ALONE, *PAIRS) if is_set(settings, key)]
    return ["other runs", *(NAMES[key].format(getattr(settings, key)) for key in keys), f"rank {settings.ranking}"]


def target_errors(targets: Table, settings: SelectionSettings) -> list[str]:
    """For each target the reason why no run can be selected for it, whatever the runs; empty if there is none."""
    errors = [""] * len(targets["obs_id"])

    def add(where: NDArray, text: Callable[[int], str]) -> None:
        for i in np.flatnonzero(where).tolist():
            errors[i] = errors[i] or f"run {targets['obs_id'][i]}: {text(i)}"

    for key in PAIRS:
        if key in NEEDS and is_set(settings, key):
            quantity, cards = NEEDS[key]
            message = f"background_selection.{key} needs {cards}, which this run does not have"
            add(~np.isfinite(column(targets, quantity)), lambda i, message=message: message)  # type: ignore[misc]
    if is_set(settings, "same_szn"):
        time = column(targets, "time")
        seasons = ", ".join(settings.seasons or {}) or "(none given)"
        add(
            np.isnan(season_ranges(time, settings)[0]),
            lambda i: (
                f"its date (MJD {time[i]:.1f}) lies in none of the seasons {seasons}: add one to "
                "background_selection.seasons"
            ),
        )
    rank = ranking_of(settings)
    if rank.needs(settings):
        remedy = "set background_selection.rank: none, or give its bkg_runlist"
        lacking = f"{rank.why}, but it has no ALT_PNT or ZEN_PNT: {remedy}"
        add(~np.isfinite(column(targets, "zenith")), lambda i: lacking)
    return errors
