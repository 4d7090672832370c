"""What is left behind by a job beside the files of the runs: index files, provenance, a summary table."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import numpy as np
from astropy.table import Table, vstack

from dask_bkg.catalogs import CATALOG_FILES, beside, data_file, find_star_table
from dask_bkg.config import Config
from dask_bkg.config_io import dump_yaml, with_absolute_paths
from dask_bkg.dl3.atomic import atomic_path, inside, locked, remove_leftovers
from dask_bkg.dl3.attach import HDU_NAME
from dask_bkg.dl3.copies import copy_file
from dask_bkg.dl3.index import existing_store, write_index
from dask_bkg.dl3.index_rows import background_rows, linked_rows, merge_index, place_below, placed_rows
from dask_bkg.dl3.index_table import check_fit
from dask_bkg.journal import read_journals, remove_old_journals
from dask_bkg.plan import Plan
from dask_bkg.products import Made, Result
from dask_bkg.runlists import own_lists

log = logging.getLogger(__name__)

T = TypeVar("T")

INDENTED = 1000
"""Backgrounds up to which the provenance is written for reading."""

PACKAGES = ("dask_bkg", "gammapy", "astropy", "numpy", "scipy", "xarray", "dask", "distributed")


def check_writable(config: Config) -> None:
    """Raise `ArchiveError` if nothing can be written to the output, before hours of work are done.

    What killed jobs left half-written there is cleared away.
    """
    for name in ("out_dir", "results_dir"):
        if getattr(config.io, name) is None:  # a run store in a place of its own needs neither
            continue
        directory = config.directory(name)
        probe = directory / ".dask_bkg-probe"
        with atomic_path(probe) as path:
            path.write_bytes(b"")
        probe.unlink(missing_ok=True)
        remove_leftovers(directory)


def bkg_class(plan: Plan) -> str:
    """HDU_CLASS of the backgrounds of a job in the index."""
    return "bkg_2d" if plan.field is None else "bkg_3d"


def retire_backgrounds(plan: Plan) -> Table | None:
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
        # told now and not when hours of work are to be put into the index
        check_fit(store.hdu, plan.store.hdu)
        check_fit(store.obs, plan.store.obs)
        rows = store.hdu
        mine = np.isin(rows["OBS_ID"], [t.obs_id for t in plan.targets]) & (np.asarray(rows["HDU_TYPE"]) == "bkg")
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


# -- provenance ----------------------------------------------------------------------------------------------


def config_hash(config: Config) -> str:
    """Hash of the effective configuration without its directories and runs: equal for equal models."""
    elsewhere = ("io", "config", "cluster", "slurm", "run_selection", "run_store", "validation")
    values = {name: section for name, section in config.effective().items() if name not in elsewhere}
    values["from_run"] = config.io.from_run
    values["version"] = version("dask_bkg")
    # lists are what a background is made of, not how
    for key in ("bkg_runlist", "bkg_runlist_digest", "store_KL"):
        values["background_selection"].pop(key)
    # where these files lie is no matter; what they exclude is in the hash of the regions
    values["exclusion"].pop("star_cat")
    values["exclusion"].pop("exclude_region_files")
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def common_cards(plan: Plan) -> dict[str, tuple[object, str]]:
    """Header cards that all backgrounds of a job have."""
    config = plan.config
    return {
        "CREATOR": (f"dask_bkg {version('dask_bkg')}", "program that made this background"),
        "BKG_FROM": ("run" if config.io.from_run else "stack", "the run itself, or other runs"),
        "PRESET": (config.preset or "none", "preset of the configuration"),
        "CONFHASH": (config_hash(config), "hash of the configuration"),
        "EXCLHASH": (plan.regions.digest(), "hash of the exclusion regions"),
    }


def write_results(plan: Plan, results: list[Result]) -> Path:
    """Provenance, effective configuration and summary table below ``results_dir``; returns that directory.

    What earlier jobs wrote there of other runs is kept.
    """
    directory = Path(plan.config.directory("results_dir"))
    told, summary = provenance(plan, results), summary_table(results)
    with locked(directory):
        told = _merged(directory / "provenance.json", lambda p: merge_provenance(_with_journals(p), told), told)
        # a line a number makes a file of 20,000 runs twice as long
        indent = 1 if len(told["backgrounds"]) < INDENTED else None
        _write_text(directory / "provenance.json", json.dumps(told, indent=indent, sort_keys=True))
        remove_old_journals(directory)
        _write_text(directory / "effective-config.yaml", dump_yaml(_saved(plan.config)))
        table = directory / "summary.ecsv"
        summary = _merged(table, lambda p: merge_index(Table.read(p, format="ascii.ecsv"), summary), summary)
        with atomic_path(table) as path:
            summary.write(path, format="ascii.ecsv", overwrite=True)
    return directory


def _with_journals(path: Path) -> dict:
    """A side file, and what jobs that were killed have made since, the very first one perhaps."""
    earlier = json.loads(path.read_text()) if path.exists() else {}
    backgrounds = {**earlier.get("backgrounds", {}), **read_journals(path.parent, path)}
    return {**earlier, "backgrounds": backgrounds}


def _merged(path: Path, merge: Callable[[Path], T], new: T) -> T:
    """What ``merge`` makes of the file of an earlier job and of this one, ``new`` where there is no such file.

    A file that cannot be read is kept under another name.
    """
    try:
        return merge(path)
    except FileNotFoundError:
        return new
    except Exception as error:  # somebody edited it, or it is something else: the job is done all the same
        aside = path.with_name(f"unreadable-{path.name}")
        log.warning("%s cannot be read (%s): it is %s now", path, error, aside.name)
        os.replace(path, aside)
        return new


def _saved(config: Config) -> dict:
    """The effective configuration as it can be used from another directory; of lists of runs those of the user."""
    values = config.effective()
    # what a job has selected is told of each background, and twenty thousand lists are long
    values["background_selection"] |= {
        "bkg_runlist": own_lists(config.background_selection) or None,
        "bkg_runlist_digest": None,
    }
    return with_absolute_paths(values, config.base_dir)


def _write_text(target: Path, text: str) -> None:
    with atomic_path(target) as path:
        path.write_text(text + "\n")


def provenance(plan: Plan, results: Iterable[Result]) -> dict:
    """What the backgrounds were made of and with, for the side file.

    Versions, configuration, exclusion and the runs of the archive that cannot be used are those of the latest job;
    ``jobs`` has the first three of each, and each of the ``backgrounds`` names its ``job``. Equal jobs have equal
    names.
    """
    job = {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "config_hash": config_hash(plan.config),
        "config": _saved(plan.config),
        "exclusion": {
            "hash": plan.regions.digest(),
            "regions": len(plan.regions),
            "catalogs": _catalogs(plan.config),
        },
    }
    job_id = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:12]
    made_by = {"job": job_id, "config_hash": job["config_hash"]}
    return {
        **job,
        "unusable_runs": {str(run): reason for run, reason in plan.unusable.items()},
        "jobs": {job_id: job},
        "backgrounds": {str(r.obs_id): {**made_by, **told(r)} for r in results},
    }


def told(result: Result) -> dict:
    """What the side file says of one background."""
    return {
        "status": result.status,
        "reason": result.reason,
        "contributing_runs": list(result.contributing),
        **({"weights": list(result.weights)} if result.weights else {}),
        **({"scores": list(result.scores)} if any(result.scores) else {}),
        "failed_runs": {str(run): reason for run, reason in result.failed_runs.items()},
        "notes": {str(run): note for run, note in result.notes.items()},
        "livetime_hours": round(result.hours, 6),
        "events": result.n_events,
        "threshold_TeV": result.threshold if np.isfinite(result.threshold) else None,
        "flags": result.flags,
        "file": result.output,
        "hdu": result.hdu,
        "digest": result.digest,
        "files": [list(pair) for pair in result.files],
    }


def made_before(plan: Plan) -> dict[int, Made]:
    """What earlier jobs made of the targets of a plan, by their provenance; nothing where it cannot be read."""
    path = Path(plan.config.directory("results_dir")) / "provenance.json"
    try:
        entries = {**_backgrounds(path), **read_journals(path.parent, path)}
        wanted = {str(target.obs_id): target for target in plan.targets}
        return {
            target.obs_id: _made(target.obs_id, entries[run])
            for run, target in wanted.items()
            if run in entries and entries[run].get("digest") and entries[run].get("file") == target.output
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # an older version's, or somebody edited it: everything is made again


def _backgrounds(provenance: Path) -> dict[str, dict]:
    """What a side file tells of backgrounds; nothing where there is none."""
    try:
        return dict(json.loads(provenance.read_text())["backgrounds"])
    except FileNotFoundError:
        return {}


def _made(obs_id: int, entry: dict) -> Made:
    """What the side file tells of one background; the inverse of `told`."""
    threshold = entry["threshold_TeV"]
    result = Result(
        obs_id,
        "done",
        entry["reason"],
        len(entry["contributing_runs"]),
        entry["livetime_hours"],
        entry["events"],
        entry["file"],
        entry["hdu"],
        float("nan") if threshold is None else threshold,
        tuple(entry["contributing_runs"]),
        tuple(entry.get("weights", ())),
        tuple(entry.get("scores", ())),
        entry["flags"],
        {int(run): reason for run, reason in entry["failed_runs"].items()},
        {int(run): note for run, note in entry["notes"].items()},
        entry["digest"],
        tuple(tuple(pair) for pair in entry["files"]),
    )
    return Made(entry["digest"], result.files, result)


def merge_provenance(earlier: dict, told: dict) -> dict:
    """The side file of this job with what an earlier one told of other runs.

    A run that failed now has the background of the earlier job still: it keeps its entry, with the reason beside.  So
    does one that came out unchanged: the versions and the configuration that made it are those of the earlier job.
    """
    backgrounds = dict(earlier.get("backgrounds", {}))
    for run, entry in told["backgrounds"].items():
        old = backgrounds.get(run, {})
        there = old.get("status") == "done"
        if there and entry["status"] == "failed":
            entry = {**old, "failed_since": {name: entry[name] for name in ("job", "reason")}}
        elif there and entry["status"] == "unchanged":
            # a job that was killed has not told which it was: the same configuration as this one
            of_job = {name: entry[name] for name in ("job", "config_hash")}
            entry = {**of_job, **{name: value for name, value in old.items() if name != "failed_since"}}
        backgrounds[run] = entry
    used = {job for b in backgrounds.values() for job in (b.get("job"), b.get("failed_since", {}).get("job"))}
    jobs = {name: job for name, job in earlier.get("jobs", {}).items() if name in used}
    return {**told, "jobs": {**jobs, **told["jobs"]}, "backgrounds": backgrounds}


def _catalogs(config: Config) -> dict[str, dict[str, str]]:
    """Name, path and SHA-256 of each file that the exclusion was made of."""
    settings = config.exclusion
    files: dict[str, Path | None] = {name: data_file(CATALOG_FILES[name]) for name in settings.catalogs}
    files["stars"] = find_star_table(settings.star_cat, config.base_dir)
    for path in settings.exclude_region_files:
        files[path] = beside(path, config.base_dir)
    return {
        name: {"file": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for name, path in files.items()
        if path is not None and path.is_file()
    }


def catalog_hashes(config: Config) -> dict[str, str]:
    """SHA-256 of each file that the exclusion was made of."""
    return {name: told["sha256"] for name, told in _catalogs(config).items()}


def summary_table(results: Iterable[Result]) -> Table:
    """One row a target: run, status, runs and hours used, events, output file, remark."""
    rows = [(r.obs_id, r.status, r.n_runs, round(r.hours, 3), r.n_events, r.output, r.reason) for r in results]
    names = ("OBS_ID", "STATUS", "N_RUNS", "HOURS", "N_EVENTS", "FILE", "REMARK")
    return Table(rows=rows or None, names=names, dtype=(np.int64, str, np.int64, float, np.int64, str, str))
