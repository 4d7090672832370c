"""Tables of the runs that take part in a job, once the run store is up to date.

The tables of its targets and of the runs that may contribute to them, and the lists that the user wrote.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_bkg import selection
from dask_bkg.background.target import Sight, Target
from dask_bkg.dl3.headers import SITE_CARDS
from dask_bkg.dl3.index import Datastore
from dask_bkg.errors import ArchiveError
from dask_bkg.pipeline.runlists import lists_by_hand
from dask_bkg.pipeline.update import Stored
from dask_bkg.plan import Plan
from dask_bkg.reduction.horizon import OTHERWISE
from dask_bkg.selection.instruments import set_instruments, unlike_others
from dask_bkg.selection.lists import own_lists
from dask_bkg.sky.fov import separation
from dask_bkg.store.store import RunStore
from dask_bkg.terminal import reason_lines

log = logging.getLogger(__name__)

Table = dict[str, NDArray]

INDEX_COLUMNS = {
    "zenith": "ZEN_PNT",
    "azimuth": "AZ_PNT",
    "nsb": "NSBLEVEL",
    "n_tels": "N_TELS",
    "muon_efficiency": "MUONEFF",
}
"""Columns of an obs-index that may have what the files of the runs lack."""

SIGHT = ("zenith", "ra_pnt", "dec_pnt", "site_lon", "site_lat", "time", "ontime")
"""Per-run numbers of a `dask_bkg.background.target.Sight`."""

HORIZON = {**SITE_CARDS, "time": "TSTART and MJDREFI"}
"""Per-run numbers that give the horizon, and the cards that they come from."""


@dataclass(frozen=True)
class Tables:
    """Targets and candidates of a job, in the order of their run numbers.

    Attributes
    ----------
    ready
        The targets that can be done, with their threshold and, in a job of 3D backgrounds, their sight; in the order
        of ``targets``.
    targets, runs
        Per-run numbers and texts, arrays of shape ``(targets,)`` and ``(runs,)``; the same object where every run is
        both.
    target_rows, run_rows
        Their rows in the view of the run store that the rings are taken from.
    target_keys, run_keys
        A number for what each row holds: events, exclusion and how they are counted.
    field_rows, field_keys
        In a job of 3D backgrounds the rows and numbers of the runs' field pixels.
    given
        Selections that the configuration gives, ``{obs_id of the target: ...}``.
    absent
        Runs of such lists that cannot contribute, ``{obs_id of the target: {run: reason}}``.
    failed
        Targets that cannot be done, ``{obs_id: reason}``.
    unusable
        Runs of the archive that cannot contribute, ``{obs_id: reason}``.
    """

    ready: list[Target]
    targets: Table
    runs: Table
    target_rows: NDArray
    run_rows: NDArray
    target_keys: NDArray
    run_keys: NDArray
    field_rows: NDArray | None = None
    field_keys: NDArray | None = None
    given: dict[int, selection.Selection] = field(default_factory=dict)
    absent: dict[int, dict[int, str]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    unusable: dict[int, str] = field(default_factory=dict)


def make_tables(plan: Plan, stored: Stored) -> Tables:
    """Tables of a job whose run store is up to date.

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
    errors = {**blind, **store.errors([run.obs_id for run in plan.runs]), **stored.failed}
    unusable = plan.unusable | {run: reason for run, reason in errors.items() if run in plan.candidates}
    usable = _usable(store, sorted(plan.candidates), views, blind)
    given, absent, emptied = _take_lists(plan, set(usable), unusable)
    found = set(_usable(store, [target.obs_id for target in plan.targets], views, blind))
    failed = {**_without_rows(plan, store, found, errors), **emptied, **plan.failed}
    kept = [target for target in plan.targets if target.obs_id not in failed]
    table, numbers = store.table(), [target.obs_id for target in kept]
    targets = _completed_by_index(_table(table, numbers), plan.store)
    ready = _completed(plan, kept, targets)
    rows, keys, field_rows, field_keys = _rows(store, numbers, views)
    about: dict[str, Any] = {"ready": ready, "targets": targets, "target_rows": rows, "target_keys": keys}
    about |= {"failed": failed, "unusable": unusable}
    if plan.config.io.from_run:
        itself = selection.given({obs_id: [obs_id] for obs_id in targets["obs_id"].tolist()}, targets)
        about |= {"run_rows": rows, "run_keys": keys, "field_rows": field_rows, "field_keys": field_keys}
        return Tables(**about, runs=targets, given=itself)
    if not usable:
        reasons = "\n".join(reason_lines(unusable))
        raise ArchiveError(f"io.search_datastore: none of its runs can be used:\n{reasons}", failed=unusable)
    runs = targets if numbers == usable else _table(table, usable)
    runs = _completed_by_index(runs, plan.archive)
    runs["excluded"] = _near(runs, plan.config.exclusion.exclude_source_run)
    settings = plan.config.background_selection
    set_instruments(targets, runs, settings.instruments or {})
    runs["excluded"] |= unlike_others(runs, settings.outlier_factor)
    selection.check_conditions(runs, settings)
    rows, keys, field_rows, field_keys = _rows(store, usable, views)
    about |= {"run_rows": rows, "run_keys": keys, "field_rows": field_rows, "field_keys": field_keys}
    return Tables(**about, runs=runs, given=selection.given(given, runs), absent=absent)


def _usable(store: RunStore, obs_ids: list[int], views: list[str], blind: Mapping[int, str]) -> list[int]:
    """Runs that have histograms in all of the views and can be used."""
    found = np.all([store.find(obs_ids, view) >= 0 for view in views], axis=0)
    return [obs_id for obs_id, there in zip(obs_ids, found.tolist(), strict=True) if there and obs_id not in blind]


def _rows(
    store: RunStore, obs_ids: list[int], views: list[str]
) -> tuple[NDArray, NDArray, NDArray | None, NDArray | None]:
    """Rows of runs, and what they hold, in the view of the rings and, if there is one, in that of the field."""
    rings, *field = [(rows := store.find(obs_ids, view), store.keys(rows, view)) for view in views]
    return (*rings, *(field[0] if field else (None, None)))


def _without_horizon(plan: Plan, store: RunStore) -> dict[int, str]:
    """Runs whose horizon is unknown, and why, if the job needs it."""
    if plan.field_plan is None or "altaz" not in (plan.field_plan.counted, plan.field_plan.written):
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


def _without_rows(plan: Plan, store: RunStore, found: set[int], errors: Mapping[int, str]) -> dict[int, str]:
    """Targets without histograms, with the reason."""
    missing = f"its histograms are not in the run store {store.path}: run the job again"
    return {
        target.obs_id: errors.get(target.obs_id, f"run {target.obs_id}: {missing}")
        for target in plan.targets
        if target.obs_id not in found
    }


def _completed(plan: Plan, targets: list[Target], table: Table) -> list[Target]:
    """Targets with what the run store knows of them: the threshold, and for 3D backgrounds the sight."""
    return [
        target._replace(
            threshold=_threshold(target.threshold, table, i),
            sight=None if plan.field_plan is None else Sight(*(float(table[name][i]) for name in SIGHT)),
        )
        for i, target in enumerate(targets)
    ]


def _threshold(of_index: float, targets: Table, row: int) -> float:
    """Energy threshold of a target [TeV]: of the obs-index, else LO_THRES, else from its effective area."""
    known = (of_index, float(targets["lo_thres"][row]), float(targets["e_thres"][row]))
    return next((number for number in known if number > 0), float("nan"))


def _table(table: Mapping[str, NDArray], obs_ids: list[int]) -> Table:
    """Some runs of the store's table, with a number for each name of a target."""
    places = np.searchsorted(table["obs_id"], np.array(obs_ids, dtype=np.int64))
    chosen = {name: column[places] for name, column in table.items()}
    names = np.array(["".join(str(name).split()).casefold() for name in table["object"]], dtype=str)
    # of the whole table, so that targets and runs have the same numbers
    codes = np.where(names == "", -1, np.unique(names, return_inverse=True)[1])
    chosen["object_code"] = codes[places]
    return chosen


def _completed_by_index(runs: Table, store: Datastore | None) -> Table:
    """The table itself, with conditions of the obs-index where the files have none."""
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


def _take_lists(
    plan: Plan, usable: set[int], unusable: Mapping[int, str]
) -> tuple[dict[int, list[int]], dict[int, dict[int, str]], dict[int, str]]:
    """Given lists without the runs that cannot contribute; those runs; and the targets whose list has no run left.

    Where a run is gone of a list that a job has selected, the selection is made anew.
    """
    given, absent, failed = dict[int, list[int]](), dict[int, dict[int, str]](), dict[int, str]()
    lists = {} if plan.config.io.from_run else lists_by_hand(plan.config)
    own = own_lists(plan.config.background_selection)
    for target in [t.obs_id for t in plan.targets if t.obs_id in lists]:
        wanted = list(dict.fromkeys(lists[target]))
        gone = [run for run in wanted if run not in usable]
        if gone and target not in own:
            continue
        if gone:
            log.warning("run %d: left out of its bkg_runlist, as they cannot contribute: %s", target, gone)
            unknown = "is not in io.search_datastore"
            absent[target] = {run: unusable.get(run, f"run {run}: {unknown}") for run in gone}
        if len(gone) == len(wanted):
            failed[target] = (
                f"run {target}: none of the runs of its background_selection.bkg_runlist is in the archive: "
                + ("; ".join(absent.get(target, {}).values()) or "the list is empty")
            )
        given[target] = [run for run in wanted if run in usable]
    return given, absent, failed
