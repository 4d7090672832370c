"""Who takes part in a job, once the run store is up to date.

The tables of its targets and of the runs that may contribute to them, and the lists that somebody wrote by hand.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dask_bkg import selection
from dask_bkg.archive.store import RunStore
from dask_bkg.errors import ArchiveError
from dask_bkg.fov import separation
from dask_bkg.plan import Plan

log = logging.getLogger(__name__)

Table = dict[str, NDArray]


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
    given
        Selections that were not made but given, ``{obs_id of the target: ...}``.
    absent
        Runs of such lists that cannot contribute, ``{obs_id of the target: {run: reason}}``.
    """

    targets: Table
    runs: Table
    target_rows: NDArray
    run_rows: NDArray
    given: dict[int, selection.Selection] = field(default_factory=dict)
    absent: dict[int, dict[int, str]] = field(default_factory=dict)


def call_the_roll(plan: Plan, store: RunStore, view: str) -> Roster:
    """The roster of a job; targets that cannot be done go from ``plan.targets`` to ``plan.failed``, with the reason.

    Raises
    ------
    ArchiveError
        If no run can contribute.
    ConfigError
        If a cut is set although no run has what it needs.
    """
    errors, numbers = store.errors([run.obs_id for run in plan.runs]), sorted(plan.candidates)
    plan.unusable |= {run: reason for run, reason in errors.items() if run in plan.candidates}
    rows = dict(zip(numbers, store.find(numbers, view).tolist(), strict=True))
    usable = {run for run, row in rows.items() if row >= 0}
    settings = plan.config.background_selection
    given, absent = _take_lists({} if plan.config.io.from_run else lists_by_hand(settings), usable, plan)
    target_rows = _target_rows(plan, store, view, errors)
    run_rows = np.array([row for row in rows.values() if row >= 0], dtype=np.int64)
    table = store.table()
    targets = _table(table, target_rows)
    plan.targets = [t._replace(threshold=_threshold(t.threshold, targets, i)) for i, t in enumerate(plan.targets)]
    if plan.config.io.from_run:
        itself = {obs_id: [obs_id] for obs_id in targets["obs_id"].tolist()}
        return Roster(targets, targets, target_rows, target_rows, selection.given(itself, targets))
    if not run_rows.size:
        reasons = "\n".join(f"  {reason}" for reason in list(plan.unusable.values())[:20])
        raise ArchiveError(f"io.search_datastore: none of its runs can be used:\n{reasons}")
    runs = targets if np.array_equal(target_rows, run_rows) else _table(table, run_rows)
    runs["excluded"] = _near(runs, plan.config.exclusion.exclude_source_run)
    selection.check_conditions(runs, settings)
    return Roster(targets, runs, target_rows, run_rows, selection.given(given, runs), absent)


def _target_rows(plan: Plan, store: RunStore, view: str, errors: Mapping[int, str]) -> NDArray:
    """Rows of the targets that have histograms; the others leave the plan."""
    rows = store.find([t.obs_id for t in plan.targets], view)
    for target, row in zip(plan.targets, rows.tolist(), strict=True):
        if row < 0:
            missing = f"run {target.obs_id}: its histograms are not in the run store {store.path}: run the job again"
            plan.failed.setdefault(target.obs_id, errors.get(target.obs_id, missing))
    kept = [target.obs_id not in plan.failed for target in plan.targets]
    plan.targets = [target for target, keep in zip(plan.targets, kept, strict=True) if keep]
    return np.asarray(rows, dtype=np.int64)[np.array(kept, dtype=bool)]


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


def _near(runs: Table, circles: Iterable[tuple[float, float, float]]) -> NDArray:
    """Runs whose pointing lies in one of ``exclusion.exclude_source_run``."""
    near = np.zeros(runs["obs_id"].size, dtype=bool)
    for ra, dec, radius in circles:
        near |= separation(runs["ra_pnt"], runs["dec_pnt"], ra, dec) < radius
    return near


# -- lists of contributing runs --------------------------------------------------------------------------------


def lists_by_hand(settings) -> dict[int, list[int]]:
    """The lists of ``bkg_runlist`` that count: what the user wrote, and what a job selected by the same settings.

    A list that a job has selected is marked in ``bkg_runlist_digest``; where the settings have changed since, it is
    left out, with a warning, and the selection is made anew.
    """
    own, lists = own_lists(settings), dict(settings.bkg_runlist or {})
    if len(own) == len(lists):
        return own
    if (settings.bkg_runlist_digest or {}).get("settings") != selection.selection_digest(settings):
        log.warning(
            "background_selection: the settings have changed since bkg_runlist was selected: the selection of %d "
            "runs is made anew (take bkg_runlist_digest out to keep the lists)",
            len(lists) - len(own),
        )
        return own
    # a list has no weights: where there are any, the same settings give the same selection again, with them
    return own if selection.weighs(settings) else lists


def own_lists(settings) -> dict[int, list[int]]:
    """The lists of ``bkg_runlist`` that the user wrote or changed: those that no job has marked as its own."""
    marks = settings.bkg_runlist_digest or {}
    lists = settings.bkg_runlist or {}
    return {run: runs for run, runs in lists.items() if marks.get(str(run)) != list_digest(runs)}


def list_digest(runs: Iterable[int]) -> str:
    """Mark of a list of runs: equal for equal lists."""
    return hashlib.sha256(json.dumps([int(run) for run in runs]).encode()).hexdigest()[:12]


def _take_lists(
    lists: Mapping[int, list[int]], usable: set[int], plan: Plan
) -> tuple[dict[int, list[int]], dict[int, dict[int, str]]]:
    """Given lists without what cannot contribute, and what that is; a target whose list has no run left fails."""
    given, absent = dict[int, list[int]](), dict[int, dict[int, str]]()
    for target in [t.obs_id for t in plan.targets if t.obs_id in lists]:
        wanted = list(dict.fromkeys(lists[target]))
        gone = [run for run in wanted if run not in usable]
        if gone:
            log.warning("run %d: left out of its bkg_runlist, as they cannot contribute: %s", target, gone)
            unknown = "is not in io.search_datastore"
            absent[target] = {run: plan.unusable.get(run, f"run {run}: {unknown}") for run in gone}
        if len(gone) == len(wanted):
            plan.failed[target] = (
                f"run {target}: none of the runs of its background_selection.bkg_runlist is in the archive: "
                + "; ".join(absent[target].values())
            )
        given[target] = [run for run in wanted if run in usable]
    return given, absent
