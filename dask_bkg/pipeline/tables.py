"""Who takes part in a job, once the run store is up to date.

The tables of its targets and of the runs that may contribute to them, and the lists that somebody wrote by hand.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dask_bkg import selection
from dask_bkg.background.target import Sight
from dask_bkg.dl3.headers import SITE_CARDS
from dask_bkg.dl3.index import Datastore
from dask_bkg.errors import ArchiveError
from dask_bkg.pipeline.runlists import lists_by_hand
from dask_bkg.pipeline.update import Stored
from dask_bkg.plan import Plan
from dask_bkg.reduction.horizon import OTHERWISE
from dask_bkg.selection.lists import own_lists
from dask_bkg.sky.fov import separation
from dask_bkg.store.store import RunStore

log = logging.getLogger(__name__)

Table = dict[str, NDArray]

INDEX_COLUMNS = {
    "zenith": "ZEN_PNT",
    "azimuth": "AZ_PNT",
    "nsb": "NSBLEVEL",
    "n_tels": "N_TELS",
    "muon_efficiency": "MUONEFF",
}
"""Columns of an obs-index that may know what the files of the runs do not tell."""

SIGHT = ("zenith", "ra_pnt", "dec_pnt", "site_lon", "site_lat", "time", "ontime")
"""Per-run numbers of a `dask_bkg.background.target.Sight`."""

HORIZON = {**SITE_CARDS, "time": "TSTART and MJDREFI"}
"""Per-run numbers that tell where the horizon is, and the cards that they come from."""


@dataclass
class Roster:
    """Targets and candidates of a job, in the order of their run numbers.

    Attributes
    ----------
    targets, runs
        Per-run numbers and texts, arrays of shape ``(targets,)`` and ``(runs,)``; the same object where every run is
        both.
    target_rows, run_rows
        Their rows in the run store.
    target_keys, run_keys
        A number for what each row holds: events, exclusion and how they are counted.
    field_keys
        In a job of 3D backgrounds such numbers of the runs' field pixels.
    given
        Selections that were not made but given, ``{obs_id of the target: ...}``.
    absent
        Runs of such lists that cannot contribute, ``{obs_id of the target: {run: reason}}``.
    """

    targets: Table
    runs: Table
    target_rows: NDArray
    run_rows: NDArray
    target_keys: NDArray
    run_keys: NDArray
    field_keys: NDArray | None = None
    given: dict[int, selection.Selection] = field(default_factory=dict)
    absent: dict[int, dict[int, str]] = field(default_factory=dict)


def call_the_roll(plan: Plan, stored: Stored) -> Roster:
    """The roster of a job; targets that cannot be done go from ``plan.targets`` to ``plan.failed``, with the reason.

    Parameters
    ----------
    plan
        The job.
    stored
        The run store, up to date.

    Raises
    ------
    ArchiveError
        If no run can contribute.
    ConfigError
        If a cut is set although no run has what it needs.
    """
    store, views = stored.store, [name for name in (stored.view, stored.field_view) if name is not None]
    blind = _without_horizon(plan, store)
    errors = {**stored.failed, **store.errors([run.obs_id for run in plan.runs]), **blind}
    numbers = sorted(plan.candidates)
    plan.unusable |= {run: reason for run, reason in errors.items() if run in plan.candidates}
    rows = dict(zip(numbers, _find(store, numbers, views, blind).tolist(), strict=True))
    usable = {run for run, row in rows.items() if row >= 0}
    settings = plan.config.background_selection
    given, absent = _take_lists({} if plan.config.io.from_run else lists_by_hand(plan.config), usable, plan)
    target_rows = _target_rows(plan, store, views, blind, errors)
    run_rows = np.array([row for row in rows.values() if row >= 0], dtype=np.int64)
    table = store.table()
    targets = _told_by_index(_table(table, target_rows), plan.store)
    plan.targets = [
        t._replace(threshold=_threshold(t.threshold, targets, i), sight=_sight(plan, targets, i))
        for i, t in enumerate(plan.targets)
    ]
    if plan.config.io.from_run:
        itself = {obs_id: [obs_id] for obs_id in targets["obs_id"].tolist()}
        keys, of_field = _keys(store, target_rows, views)
        given_runs = selection.given(itself, targets)
        return Roster(targets, targets, target_rows, target_rows, keys, keys, of_field, given_runs)
    if not run_rows.size:
        reasons = "\n".join(f"  {reason}" for reason in list(plan.unusable.values())[:20])
        raise ArchiveError(f"io.search_datastore: none of its runs can be used:\n{reasons}")
    runs = targets if np.array_equal(target_rows, run_rows) else _table(table, run_rows)
    runs = _told_by_index(runs, plan.archive)
    runs["excluded"] = _near(runs, plan.config.exclusion.exclude_source_run)
    selection.check_conditions(runs, settings)
    target_keys, (run_keys, field_keys) = store.keys(target_rows, views[0]), _keys(store, run_rows, views)
    chosen = selection.given(given, runs)
    return Roster(targets, runs, target_rows, run_rows, target_keys, run_keys, field_keys, chosen, absent)


def _find(store: RunStore, obs_ids: list[int], views: list[str], blind: Mapping[int, str]) -> NDArray:
    """Rows of runs that have histograms in all of the views and can be used; -1 for the others."""
    rows = np.array([store.find(obs_ids, view) for view in views]).reshape(len(views), -1).min(axis=0)
    return np.where(np.array([obs_id in blind for obs_id in obs_ids], dtype=bool), -1, rows).astype(np.int64)


def _keys(store: RunStore, rows: NDArray, views: list[str]) -> tuple[NDArray, NDArray | None]:
    """What rows hold in the view of the rings and, if there is one, in that of the field."""
    keys, *of_field = (store.keys(rows, view) for view in views)
    return keys, of_field[0] if of_field else None


def _without_horizon(plan: Plan, store: RunStore) -> dict[int, str]:
    """Runs of which nobody knows where the horizon was, and why, if the job needs it."""
    if plan.field is None or "altaz" not in (plan.field.counted, plan.field.written):
        return {}
    table = store.table()
    unknown = {name: ~np.isfinite(table[name]) for name in HORIZON}
    return {
        int(table["obs_id"][row]): (
            f"run {table['obs_id'][row]}: no field aligned with the horizon, as its EVENTS header does not have "
            f"{' and '.join(cards for name, cards in HORIZON.items() if unknown[name][row])}: add what is missing"
            + OTHERWISE
        )
        for row in np.flatnonzero(np.any(list(unknown.values()), axis=0) & (table["error"] == ""))
    }


def _target_rows(
    plan: Plan, store: RunStore, views: list[str], blind: Mapping[int, str], errors: Mapping[int, str]
) -> NDArray:
    """Rows of the targets that have histograms; the others leave the plan."""
    rows = _find(store, [t.obs_id for t in plan.targets], views, blind)
    for target, row in zip(plan.targets, rows.tolist(), strict=True):
        if row < 0:
            missing = f"run {target.obs_id}: its histograms are not in the run store {store.path}: run the job again"
            plan.failed.setdefault(target.obs_id, errors.get(target.obs_id, missing))
    kept = [target.obs_id not in plan.failed for target in plan.targets]
    plan.targets = [target for target, keep in zip(plan.targets, kept, strict=True) if keep]
    return np.asarray(rows, dtype=np.int64)[np.array(kept, dtype=bool)]


def _sight(plan: Plan, targets: Table, row: int) -> Sight | None:
    """Where a target looked, which 3D backgrounds need to know."""
    return None if plan.field is None else Sight(*(float(targets[name][row]) for name in SIGHT))


def _threshold(of_index: float, targets: Table, row: int) -> float:
    """Energy threshold of a target [TeV]: of the obs-index, else LO_THRES, else from its effective area."""
    known = (of_index, float(targets["lo_thres"][row]), float(targets["e_thres"][row]))
    return next((number for number in known if number > 0), float("nan"))


def _table(table: Mapping[str, NDArray], rows: NDArray) -> Table:
    """Some rows of the store's table, with a number for each name of a target."""
    chosen = {name: column[rows] for name, column in table.items()}
    names = np.array(["".join(str(name).split()).casefold() for name in chosen["object"]], dtype=str)
    # of the whole table, so that targets and runs have the same numbers
    every = np.unique(["".join(str(name).split()).casefold() for name in table["object"]])
    chosen["object_code"] = np.where(names == "", -1, np.searchsorted(every, names))
    return chosen


def _told_by_index(runs: Table, store: Datastore | None) -> Table:
    """The table itself, in which conditions that the files do not tell are those of an obs-index."""
    if store is None or not len(store.obs):
        return runs
    known = np.asarray(store.obs["OBS_ID"], dtype=np.int64)
    order = np.argsort(known, kind="stable")
    place = order[np.searchsorted(known, runs["obs_id"], sorter=order).clip(max=known.size - 1)]
    for name, column in INDEX_COLUMNS.items():
        if column in store.obs.colnames:
            values: NDArray = np.ma.filled(np.ma.asarray(store.obs[column][place], dtype=float), np.nan)
            there = np.isnan(runs[name]) & (known[place] == runs["obs_id"])
            runs[name] = np.where(there, values, runs[name])
    return runs


def _near(runs: Table, circles: Iterable[tuple[float, float, float]]) -> NDArray:
    """Runs whose pointing lies in one of ``exclusion.exclude_source_run``."""
    near = np.zeros(runs["obs_id"].size, dtype=bool)
    for ra, dec, radius in circles:
        near |= separation(runs["ra_pnt"], runs["dec_pnt"], ra, dec) < radius
    return near


# -- lists of contributing runs --------------------------------------------------------------------------------


def _take_lists(
    lists: Mapping[int, list[int]], usable: set[int], plan: Plan
) -> tuple[dict[int, list[int]], dict[int, dict[int, str]]]:
    """Given lists without what cannot contribute, and what that is; a target whose list has no run left fails.

    Where a run is gone of a list that a job has selected, the selection is made anew.
    """
    given, absent = dict[int, list[int]](), dict[int, dict[int, str]]()
    own = own_lists(plan.config.background_selection)
    for target in [t.obs_id for t in plan.targets if t.obs_id in lists]:
        wanted = list(dict.fromkeys(lists[target]))
        gone = [run for run in wanted if run not in usable]
        if gone and target not in own:
            continue
        if gone:
            log.warning("run %d: left out of its bkg_runlist, as they cannot contribute: %s", target, gone)
            unknown = "is not in io.search_datastore"
            absent[target] = {run: plan.unusable.get(run, f"run {run}: {unknown}") for run in gone}
        if len(gone) == len(wanted):
            plan.failed[target] = (
                f"run {target}: none of the runs of its background_selection.bkg_runlist is in the archive: "
                + ("; ".join(absent.get(target, {}).values()) or "the list is empty")
            )
        given[target] = [run for run in wanted if run in usable]
    return given, absent
