"""The index files of the output: rows of the runs that have a background, merged with those of earlier jobs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from astropy.table import Table, vstack

from dask_bkg.background.target import Target
from dask_bkg.config import Config
from dask_bkg.dl3.attach import HDU_NAME
from dask_bkg.dl3.copies import copy_file
from dask_bkg.dl3.index import existing_store, write_index
from dask_bkg.dl3.index_rows import background_rows, linked_rows, merge_index, place_below, placed_rows
from dask_bkg.dl3.index_table import check_fit
from dask_bkg.files import atomic_write, inside, locked, remove_leftovers
from dask_bkg.output.write import Result
from dask_bkg.plan import Plan


def check_writable(config: Config) -> None:
    """Raise `ArchiveError` if nothing can be written to the output, before hours of work are done.

    What killed jobs left half-written there, gigabytes perhaps, is cleared away.
    """
    for name in ("out_dir", "results_dir"):
        if getattr(config.io, name) is None:  # a run store in a place of its own needs neither
            continue
        directory = config.directory(name)
        probe = directory / ".dask_bkg-probe"
        atomic_write(probe, lambda path: path.write_bytes(b""))
        probe.unlink(missing_ok=True)
        remove_leftovers(directory)


def bkg_class(plan: Plan) -> str:
    """HDU_CLASS of the backgrounds of a job in the index."""
    return "bkg_2d" if plan.field_plan is None else "bkg_3d"


def retire_backgrounds(plan: Plan, targets: Iterable[Target]) -> Table | None:
    """Take rows out of the output's index that the job will make wrong, before it starts; return those rows.

    A background that replaces one of another name or kind in the same file would leave the index naming an HDU that
    is not there, were the job killed half-way.

    Raises
    ------
    ArchiveError
        If there is an index that cannot be read, or to which the runs of this job cannot be added.
    """
    out_dir = plan.config.directory("out_dir")
    with locked(out_dir):
        store = existing_store(out_dir)
        if store is None:
            return None
        # an error now, and not when hours of work are to be put into the index
        check_fit(store.hdu, plan.store.hdu)
        check_fit(store.obs, plan.store.obs)
        rows = store.hdu
        mine = np.isin(rows["OBS_ID"], [t.obs_id for t in targets]) & (np.asarray(rows["HDU_TYPE"]) == "bkg")
        kept = np.char.upper(np.asarray(rows["HDU_NAME"], dtype=str)) == HDU_NAME
        wrong = mine & ~(kept & (np.asarray(rows["HDU_CLASS"]) == bkg_class(plan)))
        if wrong.any():
            write_index(out_dir, rows[~wrong], store.obs, store.data_dirs)
        return rows[wrong]


def write_indexes(plan: Plan, results: Iterable[Result], retired: Table | None = None) -> dict[int, str]:
    """Index files of the output: the runs that are done, and the rows of all others as they are by now.

    Parameters
    ----------
    plan
        The job.
    results
        What became of its targets.
    retired
        Rows of `retire_backgrounds`: those of the targets that failed are put back, as their files are unchanged.

    Returns
    -------
    failed
        Runs whose rows cannot be used, ``{obs_id: reason}``: they are not added to the index.
    """
    results = list(results)
    done = {r.obs_id: r for r in results if r.done}
    out_dir = Path(os.path.realpath(plan.config.directory("out_dir")))
    rows, failed = _new_rows(plan, done, out_dir)
    good = [obs_id for obs_id in done if obs_id not in failed]
    unchanged = [r.obs_id for r in results if r.status == "failed"]
    obs = plan.store.observations(good)
    data_dirs = [] if plan.attach_copy else [plan.store.directory, *plan.store.data_dirs]
    with locked(out_dir):
        # read now and not at the start: another job may have added runs during the hours of this one
        now = existing_store(out_dir)
        if now is not None:
            rows = merge_index(_with_retired(now.hdu, retired, unchanged), rows)
            obs, data_dirs = merge_index(now.obs, obs), [*now.data_dirs, *data_dirs]
        if len(rows):
            write_index(out_dir, rows, obs, data_dirs)
    return failed


def _new_rows(plan: Plan, done: Mapping[int, Result], out_dir: Path) -> tuple[Table, dict[int, str]]:
    """Rows of the runs that are done, each with its new background, and the runs that cannot have any."""
    if plan.attach_copy:
        rows, failed = _copied_rows(plan, done, out_dir)
    else:
        rows, failed = linked_rows(plan.store, done, out_dir, without=("bkg",))
    backgrounds = {}
    for obs_id, result in done.items():
        if obs_id not in failed:
            folder, name = os.path.split(os.path.relpath(os.path.realpath(result.output), out_dir))
            backgrounds[obs_id] = (folder, name, result.hdu, bkg_class(plan))
    return background_rows(rows, backgrounds), failed


def _copied_rows(plan: Plan, done: Mapping[int, Result], out_dir: Path) -> tuple[Table, dict[int, str]]:
    """Rows of the runs with their files below ``out_dir``; files that several runs share are copied once."""
    sources = {t.obs_id: t.source for t in plan.targets}
    there: set[str] = set()

    def place(obs_id: int, path: str) -> str:
        if path == sources[obs_id]:
            return os.path.relpath(os.path.realpath(done[obs_id].output), out_dir)
        relative = place_below(plan.store, path)
        if path not in there:
            copy_file(path, inside(out_dir, relative))
            there.add(path)
        return relative

    return placed_rows(plan.store, done, place, without=("bkg",))


def _with_retired(rows: Table, retired: Table | None, obs_ids: list[int]) -> Table:
    """Rows with those that were taken out for these runs, where nothing has taken their place meanwhile."""
    if retired is None:
        return rows
    with_background = rows["OBS_ID"][np.asarray(rows["HDU_TYPE"]) == "bkg"]
    back = np.isin(retired["OBS_ID"], np.setdiff1d(obs_ids, with_background))
    return vstack([rows, retired[back]], metadata_conflicts="silent") if back.any() else rows
