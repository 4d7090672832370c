"""The first step of a job: the runs of interest placed in ``io.in_dir``, copied or linked, with index files."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from astropy.table import Table

from dask_bkg.config import Config
from dask_bkg.config_io import dump_yaml, plain
from dask_bkg.dl3.atomic import atomic_path, inside, remove_leftovers
from dask_bkg.dl3.attach import copy_file
from dask_bkg.dl3.index import Datastore, linked_rows, merge_index, place_below, read_datastore, write_index
from dask_bkg.errors import ArchiveError, RunError

log = logging.getLogger(__name__)


def prepare_runs(config: Config, overwrite: bool = False) -> Config:
    """Place the runs of a job in ``io.in_dir``; see `dask_bkg.prepare_dataset`.

    Returns
    -------
    config
        A copy with ``run_selection.runlist`` and ``missing_runs`` set, which is also in ``in_dir/config.yaml``.
    """
    archive = read_datastore(config.directory("search_datastore"), config.io.data_dirs)
    in_dir = config.directory("in_dir")
    found, missing = _sought(config, archive)
    failed: dict[int, str] = {}
    if Path(os.path.realpath(in_dir)) != archive.directory:
        failed = _place(archive, found, in_dir, config.io.attach == "copy", overwrite)
    prepared = _with_runs(config, [run for run in found if run not in failed], missing, failed)
    with atomic_path(in_dir / "config.yaml") as path:
        path.write_text(dump_yaml(prepared.explicit))
    return prepared


def _sought(config: Config, archive: Datastore) -> tuple[list[int], list[int]]:
    """Runs of the runlist that the archive has, and those that it has not."""
    wanted = config.runs()
    present = archive.obs_ids.tolist()
    if wanted is None:
        return present, []
    known = set(present)
    found = [run for run in dict.fromkeys(wanted) if run in known]
    missing = [run for run in dict.fromkeys(wanted) if run not in known]
    if missing:
        log.warning("not in %s: %s", archive.directory, ", ".join(map(str, missing)))
    if not found:
        raise ArchiveError(f"none of the {len(missing)} runs of run_selection.runlist is in {archive.directory}")
    return found, missing


def _with_runs(config: Config, found: list[int], missing: list[int], failed: dict[int, str]) -> Config:
    runs: dict[str, object] = {"runlist": found, "missing_runs": missing}
    if failed:
        runs["failed_runs"] = failed
    prepared = config.model_copy(update={"run_selection": config.run_selection.model_copy(update=runs)})
    explicit = plain(config.explicit)
    explicit["run_selection"] = {**(explicit.get("run_selection") or {}), **runs}
    # a gammapy-tools file names its runlist there too, and two lists would contradict each other
    (explicit.get("io") or {}).pop("runlist", None)
    prepared._explicit = explicit
    return prepared


def _place(archive: Datastore, runs: list[int], in_dir: Path, copy: bool, overwrite: bool) -> dict[int, str]:
    """Copy the files of runs, or link to them, and write the index; the rows of other runs there are kept.

    Returns the runs that could not be placed, with their reasons.
    """
    remove_leftovers(in_dir)
    failed: dict[int, str] = {}
    places: dict[str, Path] = {}
    for obs_id in runs:
        try:
            locations = [archive.location(obs_id, kind) for kind in set(archive.rows([obs_id])["HDU_TYPE"].tolist())]
            for path in {location.path for location in locations if location is not None and copy}:
                if path not in places:
                    places[path] = _copy_one(archive, path, in_dir, overwrite)
        except RunError as error:
            failed[obs_id] = str(error)
            log.warning("run %d is left out of %s: %s", obs_id, in_dir, error)
    good = [run for run in runs if run not in failed]
    if not good:
        reasons = "\n".join(f"  {reason}" for reason in list(failed.values())[:20])
        raise ArchiveError(f"no run could be taken from {archive.directory} to {in_dir}:\n{reasons}")
    rows = _copied_rows(archive, good, places) if copy else linked_rows(archive, good, in_dir)
    obs = archive.observations(good)
    data_dirs = [] if copy else [archive.directory, *archive.data_dirs]
    if in_dir.is_dir() and any(in_dir.glob("hdu-index.fits*")):
        before = read_datastore(in_dir)
        rows, obs = merge_index(before.hdu, rows), merge_index(before.obs, obs)
        data_dirs = [*before.data_dirs, *data_dirs]
    write_index(in_dir, rows, obs, data_dirs)
    return failed


def _copied_rows(archive: Datastore, runs: list[int], places: dict[str, Path]) -> Table:
    """Index rows of runs whose files were copied to ``places``."""
    rows = archive.rows(runs)
    kinds = zip(rows["OBS_ID"].tolist(), rows["HDU_TYPE"].tolist(), strict=True)
    locations = [archive.location(obs_id, kind) for obs_id, kind in kinds]
    copies = [places[location.path] for location in locations if location is not None]
    rows["FILE_DIR"] = ["" if str(place.parent) == "." else str(place.parent) for place in copies]
    rows["FILE_NAME"] = [place.name for place in copies]
    return rows


def _copy_one(archive: Datastore, path: str, in_dir: Path, overwrite: bool) -> Path:
    place = place_below(archive, path)
    target = inside(in_dir, place)
    if overwrite:
        target.unlink(missing_ok=True)
    copy_file(path, target)
    return Path(place)
