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
from astropy.table import Table

from dask_bkg.config import Config
from dask_bkg.config.yaml import dump_yaml, with_absolute_paths
from dask_bkg.dl3.index_rows import merge_index
from dask_bkg.files import atomic_path, locked
from dask_bkg.output.diagnostics import DIRECTORY, side_path
from dask_bkg.output.journal import read_journals, remove_old_journals
from dask_bkg.output.write import Made, Result
from dask_bkg.plan import Plan
from dask_bkg.selection.lists import own_lists
from dask_bkg.sky.catalogs import catalog_files

log = logging.getLogger(__name__)

T = TypeVar("T")

INDENTED = 1000
"""Backgrounds up to which the provenance is written for reading."""

PACKAGES = ("dask_bkg", "gammapy", "astropy", "numpy", "scipy", "xarray", "dask", "distributed")


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


def side_directory(config: Config) -> Path:
    """Where the side files of the backgrounds are."""
    return Path(config.directory("results_dir")) / DIRECTORY


def _drop_side_files(directory: Path, backgrounds: Mapping[str, Mapping]) -> None:
    """Remove the side files of backgrounds that are gone; those that nobody tells of may be another job's."""
    for run, entry in backgrounds.items():
        if entry.get("file") and not os.path.exists(entry["file"]):
            side_path(directory, int(run)).unlink(missing_ok=True)


def write_results(plan: Plan, results: list[Result], unusable: Mapping[int, str]) -> Path:
    """Provenance, effective configuration and summary table below ``results_dir``; returns that directory.

    What earlier jobs wrote there of other runs is kept.
    """
    directory = Path(plan.config.directory("results_dir"))
    told, summary = provenance(plan, results, unusable), summary_table(results)
    with locked(directory):
        told = _merged(directory / "provenance.json", lambda p: merge_provenance(_with_journals(p), told), told)
        # a line a number makes a file of 20,000 runs twice as long
        indent = 1 if len(told["backgrounds"]) < INDENTED else None
        _write_text(directory / "provenance.json", json.dumps(told, indent=indent, sort_keys=True))
        remove_old_journals(directory)
        _drop_side_files(side_directory(plan.config), told["backgrounds"])
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


def provenance(plan: Plan, results: Iterable[Result], unusable: Mapping[int, str]) -> dict:
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
            "catalogs": catalog_files(plan.config.exclusion, plan.config.base_dir),
        },
    }
    job_id = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:12]
    made_by = {"job": job_id, "config_hash": job["config_hash"]}
    return {
        **job,
        "unusable_runs": {str(run): reason for run, reason in unusable.items()},
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


def summary_table(results: Iterable[Result]) -> Table:
    """One row a target: run, status, runs and hours used, events, output file, remark."""
    rows = [(r.obs_id, r.status, r.n_runs, round(r.hours, 3), r.n_events, r.output, r.reason) for r in results]
    names = ("OBS_ID", "STATUS", "N_RUNS", "HOURS", "N_EVENTS", "FILE", "REMARK")
    return Table(rows=rows or None, names=names, dtype=(np.int64, str, np.int64, float, np.int64, str, str))
