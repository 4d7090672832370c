"""The first step of a job: the runs of interest placed in ``io.in_dir``, copied or linked, with index files."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
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
    if Path(os.path.realpath(in_dir)) != archive.directory:
        _place(archive, found, in_dir, config.io.attach == "copy", overwrite)
    prepared = _with_runs(config, found, missing)
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


def _with_runs(config: Config, found: list[int], missing: list[int]) -> Config:
    runs = {"runlist": found, "missing_runs": missing}
    prepared = config.model_copy(update={"run_selection": config.run_selection.model_copy(update=runs)})
    explicit = plain(config.explicit)
    explicit["run_selection"] = {**(explicit.get("run_selection") or {}), **runs}
    # a gammapy-tools file names its runlist there too, and two lists would contradict each other
    (explicit.get("io") or {}).pop("runlist", None)
    prepared._explicit = explicit
    return prepared


def _place(archive: Datastore, runs: list[int], in_dir: Path, copy: bool, overwrite: bool) -> None:
    """Copy the files of runs, or link to them, and write the index; the rows of other runs there are kept."""
    usable = [run for run in runs if _is_usable(archive, run, in_dir)]
    rows = _copied(archive, usable, in_dir, overwrite) if copy else linked_rows(archive, usable, in_dir)
    if len(rows) == 0:
        raise ArchiveError(f"no run could be taken from {archive.directory} to {in_dir}: the warnings above say why")
    obs = archive.observations(np.unique(rows["OBS_ID"]).tolist())
    data_dirs = [] if copy else [archive.directory, *archive.data_dirs]
    if in_dir.is_dir() and any(in_dir.glob("hdu-index.fits*")):
        before = read_datastore(in_dir)
        rows, obs = merge_index(before.hdu, rows), merge_index(before.obs, obs)
        data_dirs = [*before.data_dirs, *data_dirs]
    write_index(in_dir, rows, obs, data_dirs)


def _is_usable(archive: Datastore, obs_id: int, in_dir: Path) -> bool:
    """Whether all files of a run may be read; otherwise it is reported and left out."""
    try:
        for hdu_type in set(archive.rows([obs_id])["HDU_TYPE"].tolist()):
            archive.location(obs_id, hdu_type)
    except RunError as error:
        log.warning("left out of %s: %s", in_dir, error)
        return False
    return True


def _copied(archive: Datastore, runs: list[int], in_dir: Path, overwrite: bool) -> Table:
    """Index rows of the copies; a run whose file cannot be copied is reported and left out."""
    remove_leftovers(in_dir)
    rows = archive.rows(runs)
    places: list[Path | None] = []
    copied: dict[str, Path | None] = {}
    for obs_id, hdu_type in zip(rows["OBS_ID"].tolist(), rows["HDU_TYPE"].tolist(), strict=True):
        location = archive.location(obs_id, hdu_type)
        path = "" if location is None else location.path
        if path not in copied:
            copied[path] = _copy_one(archive, obs_id, path, in_dir, overwrite)
        places.append(copied[path])
    bad = {obs_id for obs_id, place in zip(rows["OBS_ID"].tolist(), places, strict=True) if place is None}
    good = ~np.isin(rows["OBS_ID"], list(bad))
    rows = rows[good]
    kept = [place for place, ok in zip(places, good, strict=True) if ok and place is not None]
    rows["FILE_DIR"] = ["" if str(place.parent) == "." else str(place.parent) for place in kept]
    rows["FILE_NAME"] = [place.name for place in kept]
    return rows


def _copy_one(archive: Datastore, obs_id: int, path: str, in_dir: Path, overwrite: bool) -> Path | None:
    place = place_below(archive.directory, path)
    target = inside(in_dir, place)
    try:
        if overwrite:
            target.unlink(missing_ok=True)
        copy_file(path, target)
    except RunError as error:
        log.warning("run %d is left out of %s: %s", obs_id, in_dir, error)
        return None
    return Path(place)
