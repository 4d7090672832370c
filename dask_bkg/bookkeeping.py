"""What is left behind by a job beside the files of the runs: index files, provenance, a summary table."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from astropy.table import Table

from dask_bkg.catalogs import CATALOG_FILES, beside, data_file, find_star_table
from dask_bkg.config import Config
from dask_bkg.dl3.atomic import atomic_path, inside
from dask_bkg.dl3.attach import HDU_NAME, copy_file
from dask_bkg.dl3.index import (
    Datastore,
    background_rows,
    linked_rows,
    merge_index,
    place_below,
    read_datastore,
    write_index,
)
from dask_bkg.errors import ArchiveError
from dask_bkg.plan import Plan
from dask_bkg.products import Result

BKG_CLASS = "bkg_2d"
PACKAGES = ("dask_bkg", "gammapy", "astropy", "numpy", "scipy", "xarray", "dask", "distributed")


def check_writable(config: Config) -> None:
    """Raise `ArchiveError` if nothing can be written to the output, before hours of work are done."""
    for name in ("out_dir", "results_dir"):
        probe = config.directory(name) / ".dask_bkg-probe"
        with atomic_path(probe) as path:
            path.write_bytes(b"")
        probe.unlink()


def existing_store(directory: Path) -> Datastore | None:
    """The datastore that is in the output directory already, None if there is none."""
    try:
        return read_datastore(directory)
    except ArchiveError:
        return None


def retire_backgrounds(plan: Plan) -> tuple[Datastore | None, Datastore | None]:
    """Take rows out of the output's index that the job will make wrong, before it starts.

    A background that replaces one of another name or kind in the same file would leave the index naming an HDU that
    is not there, were the job killed half-way.  Returns the datastore as it was before, and as it is now.
    """
    out_dir = plan.config.directory("out_dir")
    store = existing_store(out_dir)
    if store is None:
        return None, None
    rows = store.hdu
    mine = np.isin(rows["OBS_ID"], [t.obs_id for t in plan.targets]) & (np.asarray(rows["HDU_TYPE"]) == "bkg")
    kept = np.char.upper(np.asarray(rows["HDU_NAME"], dtype=str)) == HDU_NAME
    wrong = mine & ~(kept & (np.asarray(rows["HDU_CLASS"]) == BKG_CLASS))
    if wrong.any():
        write_index(out_dir, rows[~wrong], store.obs, store.data_dirs)
    return store, replace(store, hdu=rows[~wrong])


def write_indexes(plan: Plan, results: Iterable[Result], before: Datastore | None) -> None:
    """Index files of the output: the runs that are done, and the rows of all others as they were.

    Parameters
    ----------
    plan
        The job.
    results
        What became of its targets.
    before
        The datastore that is in the output directory, for the rows of the other runs.
    """
    done = {r.obs_id: r for r in results if r.status == "done"}
    out_dir = Path(os.path.realpath(plan.config.directory("out_dir")))
    if not done:
        if before is not None:
            write_index(out_dir, before.hdu, before.obs, before.data_dirs)
        return
    backgrounds = {}
    for obs_id, result in done.items():
        place = Path(os.path.relpath(os.path.realpath(result.output), out_dir))
        backgrounds[obs_id] = (_file_dir(place), place.name, result.hdu, BKG_CLASS)
    rows = _copied_rows(plan, done, out_dir) if plan.attach_copy else linked_rows(plan.store, done, out_dir)
    hdu, obs = background_rows(rows, backgrounds), plan.store.observations(done)
    data_dirs = [] if plan.attach_copy else [plan.store.directory, *plan.store.data_dirs]
    if before is not None:
        hdu, obs = merge_index(before.hdu, hdu), merge_index(before.obs, obs)
        data_dirs = [*before.data_dirs, *data_dirs]
    write_index(out_dir, hdu, obs, data_dirs)


def _file_dir(place: Path) -> str:
    return "" if str(place.parent) == "." else str(place.parent)


def _copied_rows(plan: Plan, done: Mapping[int, Result], out_dir: Path) -> Table:
    """Rows of the runs with their files below ``out_dir``; files that several runs share are copied once."""
    rows = plan.store.rows(done)
    rows = rows[np.asarray(rows["HDU_TYPE"]) != "bkg"]
    sources = {t.obs_id: t.source for t in plan.targets}
    places = []
    for obs_id, hdu_type in zip(rows["OBS_ID"].tolist(), rows["HDU_TYPE"].tolist(), strict=True):
        location = plan.store.location(obs_id, hdu_type)
        if location is None or location.path == sources[obs_id]:
            place = os.path.relpath(os.path.realpath(done[obs_id].output), out_dir)
        else:
            place = place_below(plan.store, location.path)
            copy_file(location.path, inside(out_dir, place))
        places.append(Path(place))
    rows["FILE_DIR"] = [_file_dir(place) for place in places]
    rows["FILE_NAME"] = [place.name for place in places]
    return rows


# -- provenance ----------------------------------------------------------------------------------------------


def config_hash(config: Config) -> str:
    """Hash of the effective configuration without its directories and runs: equal for equal models."""
    elsewhere = ("io", "config", "cluster", "run_selection")
    values = {name: section for name, section in config.effective().items() if name not in elsewhere}
    values["from_run"] = config.io.from_run
    # where the star table lies is no matter; what it excludes is in the hash of the regions
    values["exclusion"].pop("star_cat")
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
    """Provenance, effective configuration and summary table below ``results_dir``; returns that directory."""
    from dask_bkg.config_io import dump_yaml

    directory = Path(plan.config.directory("results_dir"))
    _write_text(directory / "provenance.json", json.dumps(provenance(plan, results), indent=1, sort_keys=True))
    _write_text(directory / "effective-config.yaml", dump_yaml(plan.config.effective()))
    with atomic_path(directory / "summary.ecsv") as path:
        summary_table(results).write(path, format="ascii.ecsv", overwrite=True)
    return directory


def _write_text(target: Path, text: str) -> None:
    with atomic_path(target) as path:
        path.write_text(text + "\n")


def provenance(plan: Plan, results: Iterable[Result]) -> dict:
    """What the backgrounds were made of and with, for the side file."""
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "config_hash": config_hash(plan.config),
        "config": plan.config.effective(),
        "exclusion": {
            "hash": plan.regions.digest(),
            "regions": len(plan.regions),
            "catalogs": _catalogs(plan.config),
        },
        "backgrounds": {
            str(r.obs_id): {
                "status": r.status,
                "reason": r.reason,
                "contributing_runs": list(r.contributing),
                "failed_runs": {str(run): reason for run, reason in r.failed_runs.items()},
                "notes": {str(run): note for run, note in r.notes.items()},
                "livetime_hours": round(r.hours, 6),
                "events": r.n_events,
                "threshold_TeV": r.threshold if np.isfinite(r.threshold) else None,
                "flags": r.flags,
                "file": r.output,
            }
            for r in results
        },
    }


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


def summary_table(results: Iterable[Result]) -> Table:
    """One row a target: run, status, runs and hours used, events, output file, remark."""
    rows = [(r.obs_id, r.status, r.n_runs, round(r.hours, 3), r.n_events, r.output, r.reason) for r in results]
    names = ("OBS_ID", "STATUS", "N_RUNS", "HOURS", "N_EVENTS", "FILE", "REMARK")
    return Table(rows=rows or None, names=names, dtype=(np.int64, str, np.int64, float, np.int64, str, str))
