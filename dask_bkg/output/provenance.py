"""What people read of the results of jobs: provenance and summary, exports of `dask_bkg.output.backgrounds`."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray

from dask_bkg.config import Config
from dask_bkg.config.yaml import dump_yaml, with_absolute_paths
from dask_bkg.files import atomic_write, locked
from dask_bkg.output.backgrounds import EXPORTED, FILES, Backgrounds, Entry, arrays_of
from dask_bkg.output.write import Result, summarize_flags
from dask_bkg.plan import Plan
from dask_bkg.selection.lists import own_lists
from dask_bkg.sky.catalogs import catalog_files

INDENTED = 1000
"""Backgrounds up to which the provenance is written for reading."""

PACKAGES = ("dask_bkg", "gammapy", "astropy", "numpy", "scipy", "xarray", "dask", "distributed")


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


def job_of(plan: Plan) -> tuple[str, dict[str, Any]]:
    """Name of a job and what is recorded of it: versions, configuration, exclusion. Equal jobs have equal names."""
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
    return hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:12], job


def write_results(
    plan: Plan, results: Sequence[Result], backgrounds: Backgrounds, unusable: Mapping[int, str]
) -> Path:
    """Record the results of a job, and write what people read of them; returns the directory.

    Provenance, effective configuration and summary table lie below ``results_dir``; the first and the last one have
    all runs of which there are results, whichever job made them.
    """
    directory = backgrounds.directory
    with locked(directory):
        backgrounds.record(results)
        entries = backgrounds.entries()
        document = provenance(plan, entries, backgrounds.jobs(), unusable)
        # a line a number makes a file of 20,000 runs twice as long
        indent = 1 if len(entries) < INDENTED else None
        _write_text(directory / "provenance.json", json.dumps(document, indent=indent, sort_keys=True))
        _write_text(directory / "effective-config.yaml", dump_yaml(_saved(plan.config)))
        table = summary_table(entries)
        atomic_write(directory / "summary.ecsv", lambda path: table.write(path, format="ascii.ecsv", overwrite=True))
    return directory


def _saved(config: Config) -> dict:
    """The effective configuration as it can be used from another directory; of lists of runs those of the user."""
    values = config.effective()
    # what a job has selected is recorded with each background, and twenty thousand lists are long
    values["background_selection"] |= {
        "bkg_runlist": own_lists(config.background_selection) or None,
        "bkg_runlist_digest": None,
    }
    return with_absolute_paths(values, config.base_dir)


def _write_text(target: Path, text: str) -> None:
    atomic_write(target, lambda path: path.write_text(text + "\n"))


def provenance(
    plan: Plan, entries: Mapping[int, Entry], jobs: Mapping[str, dict], unusable: Mapping[int, str]
) -> dict[str, Any]:
    """What backgrounds were made of and with.

    Versions, configuration, exclusion and the runs of the archive that cannot be used are those of the latest job;
    ``jobs`` has the first three of each, and each of the ``backgrounds`` names its ``job``.
    """
    name, job = job_of(plan)
    backgrounds, used = {}, {name}
    for entry, arrays in arrays_of(entries.values(), EXPORTED):
        described = _describe(entry, arrays)
        described["config_hash"] = jobs[described["job"]]["config_hash"]
        used |= {described["job"], described.get("failed_since", described)["job"]}
        backgrounds[str(entry["obs_id"])] = described
    return {
        **job,
        "unusable_runs": {str(run): reason for run, reason in unusable.items()},
        "jobs": {key: value for key, value in jobs.items() if key in used},
        "backgrounds": backgrounds,
    }


def _describe(entry: Entry, arrays: Mapping[str, NDArray]) -> dict[str, Any]:
    """What the provenance says of one background, or of the failure to make one."""
    made = bool(entry["output"])
    runs, weights, scores = (arrays[name][0] for name in ("contributing", "weight", "score"))
    n = int(entry["n_runs.spectrum"]) if made else 0
    weights, scores = np.round(weights[:n].astype(float), 6), np.round(scores[:n], 10)
    files = [[int(entry[f"{what}.{file}"]) for what in ("file_size", "file_time")] for file in FILES]
    return {
        "job": entry["job"],
        "status": "done" if made else "failed",
        "reason": entry["reason"],
        "contributing_runs": runs[:n].tolist(),
        **({"weights": weights.tolist()} if (weights != 1).any() else {}),
        **({"scores": scores.tolist()} if scores.any() else {}),
        "failed_runs": json.loads(entry["failed_runs"] or "{}"),
        "notes": json.loads(entry["notes"] or "{}"),
        "livetime_hours": round(float(entry["livetime"]) / 3600, 6) if made else 0.0,
        "events": int(entry["n_events"]) if made else 0,
        "threshold_TeV": float(entry["threshold"]) if np.isfinite(entry["threshold"]) else None,
        "flags": summarize_flags(arrays["flag"]) if made else {},
        "file": entry["output"],
        "hdu": entry["hdu"],
        "digest": entry["digest"],
        "files": files if made else [],
        **({"failed_since": json.loads(entry["failed_since"])} if entry["failed_since"] else {}),
    }


def summary_table(entries: Mapping[int, Entry]) -> Table:
    """One row a target: run, status, runs and hours used, events, output file, remark."""
    rows = [_summary_row(obs_id, entry) for obs_id, entry in entries.items()]
    names = ("OBS_ID", "STATUS", "N_RUNS", "HOURS", "N_EVENTS", "FILE", "REMARK")
    return Table(rows=rows or None, names=names, dtype=(np.int64, str, np.int64, float, np.int64, str, str))


def _summary_row(obs_id: int, entry: Entry) -> tuple:
    if entry["status"] == "failed":
        reason = json.loads(entry["failed_since"])["reason"] if entry["failed_since"] else entry["reason"]
        return obs_id, "failed", 0, 0.0, 0, "", reason
    n_runs, hours = int(entry["n_runs.spectrum"]), round(float(entry["livetime"]) / 3600, 3)
    return obs_id, entry["status"], n_runs, hours, int(entry["n_events"]), entry["output"], entry["reason"]
