"""The first step of a job: the runs of interest placed in ``io.in_dir``, copied or linked, with index files.

``in_dir`` may be the ``out_dir`` of earlier jobs.  A copy that has got a background since is a whole copy still: it
is kept, and so is the row of its background in the index.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from astropy.table import Table

from dask_bkg.config import Config
from dask_bkg.config.yaml import dump_yaml, plain, with_absolute_paths
from dask_bkg.dl3 import copies
from dask_bkg.dl3.attach import has_background
from dask_bkg.dl3.copies import copy_file, copy_of, is_copy
from dask_bkg.dl3.index import Datastore, existing_store, read_datastore, write_index
from dask_bkg.dl3.index_rows import background_rows, linked_rows, merge_index, place_below, placed_rows
from dask_bkg.dl3.index_table import check_fit
from dask_bkg.errors import ArchiveError, RunError
from dask_bkg.files import StatCache, atomic_write, inside, locked, remove_leftovers, state_of
from dask_bkg.terminal import reason_lines

log = logging.getLogger(__name__)

OWN_MARK = "# written by dask_bkg"
"""How the first line of our own configuration files begins: they alone are written again."""

ROW_KEY = ("OBS_ID", "HDU_TYPE", "HDU_CLASS", "HDU_NAME")


def prepare_runs(config: Config, overwrite: bool = False) -> Config:
    """Place the runs of a job in ``io.in_dir``; see `dask_bkg.prepare_dataset`.

    Returns
    -------
    config
        A copy with ``run_selection.runlist`` and ``missing_runs`` set, which is also in ``in_dir/config.yaml``.
    """
    archive = read_datastore(config.directory("search_datastore"), config.io.data_dirs)
    in_dir = Path(os.path.realpath(config.directory("in_dir")))
    found, missing = _sought(config, archive)
    failed: dict[int, str] = {}
    if in_dir != archive.directory:
        failed = _place(
            _without_lost_backgrounds(archive, found), found, in_dir, config.io.attach == "copy", overwrite
        )
    prepared = _with_runs(config, [run for run in found if run not in failed], missing, failed)
    try:
        _save(prepared, in_dir)
    except ArchiveError as error:
        # nothing has to be written into an archive that is used where it is
        if in_dir != archive.directory:
            raise
        log.warning("The configuration is not saved. %s", error)
    return prepared


def _without_lost_backgrounds(archive: Datastore, runs: list[int]) -> Datastore:
    """The archive without background rows of some runs whose file is gone: the job replaces them."""
    types = archive.hdu["HDU_TYPE"].tolist()
    rows = [row for run in runs for row in archive.row_numbers(run) if types[row] == "bkg"]
    paths = {row: path for row in rows if (path := _path_or_none(archive, row)) is not None}
    there = {path: os.path.exists(path) for path in {*paths.values()}}
    lost = [row for row, path in paths.items() if not there[path]]
    if not lost:
        return archive
    log.warning(
        "The index of %s names %d backgrounds whose file is gone, such as %s: they are left out",
        archive.directory, len(lost), paths[lost[0]],
    )  # fmt: skip
    return replace(archive, hdu=archive.hdu[np.setdiff1d(np.arange(len(archive.hdu)), lost)])


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


def _save(prepared: Config, in_dir: Path) -> None:
    """Write the configuration, never over a file of another program."""
    target = in_dir / "config.yaml"
    if target.exists() and not _is_ours(target):
        log.warning("%s is not a file of dask_bkg and stays as it is", target)
        target = in_dir / "config.dask_bkg.yaml"
        log.warning("the configuration of this job is in %s", target)
    values = dump_yaml(with_absolute_paths(prepared.explicit, prepared.base_dir))
    text = f"{OWN_MARK}: the runs that were prepared. It will be written again; edit a copy.\n{values}"
    atomic_write(target, lambda path: path.write_text(text))


def _is_ours(path: Path) -> bool:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.readline().startswith(OWN_MARK)
    except OSError:
        return False


# -- files ---------------------------------------------------------------------------------------------------


def _place(archive: Datastore, runs: list[int], in_dir: Path, copy: bool, overwrite: bool) -> dict[int, str]:
    """Copy the files of runs, or link to them, and write the index; the rows of other runs there are kept.

    Returns the runs that could not be placed, with their reasons.
    """
    before = existing_store(in_dir)
    if before is not None:  # what does not fit is an error before anything is copied
        check_fit(before.hdu, archive.hdu)
        check_fit(before.obs, archive.obs)
    remove_leftovers(in_dir)
    copied: set[str] = set()
    cache = StatCache(in_dir / copies.COPIES)
    if copy:
        rows, failed, copied = _copy_runs(archive, runs, in_dir, overwrite, cache)
    else:
        rows, failed = linked_rows(archive, runs, in_dir)
    for obs_id, reason in failed.items():
        log.warning("run %d is left out of %s: %s", obs_id, in_dir, reason)
    good = [run for run in runs if run not in failed]
    if not good:
        reasons = "\n".join(reason_lines(failed))
        raise ArchiveError(f"no run could be taken from {archive.directory} to {in_dir}:\n{reasons}", failed=failed)
    obs = archive.observations(good)
    data_dirs = [] if copy else [archive.directory, *archive.data_dirs]
    with locked(in_dir):
        # read now and not at the start: another job may have added runs meanwhile
        now = existing_store(in_dir)
        if now is not None:
            rows = merge_index(now.hdu, _with_backgrounds_there(rows, now, good, copied, cache))
            obs, data_dirs = merge_index(now.obs, obs), [*now.data_dirs, *data_dirs]
        write_index(in_dir, rows, obs, data_dirs)
        cache.save()
    return failed


def _copy_runs(
    archive: Datastore, runs: list[int], in_dir: Path, overwrite: bool, cache: StatCache
) -> tuple[Table, dict[int, str], set[str]]:
    """Copy the files of runs that are not there; returns rows, failed runs, and the files that were written."""
    outdated, refused = _survey(archive, runs, in_dir, overwrite, cache)
    _retire_rows(in_dir, archive, outdated.values())
    copied: set[str] = set()

    def place(obs_id: int, path: str) -> str:
        if path in refused:
            raise RunError(refused[path])
        relative = place_below(archive, path)
        if path in outdated and str(outdated[path]) not in copied:
            fact = copy_of(path)
            copy_file(path, outdated[path], force=True)
            cache.add(outdated[path], state_of(outdated[path]), fact)
            copied.add(str(outdated[path]))
        return relative

    rows, failed = placed_rows(archive, runs, place)
    return rows, failed, copied


def _survey(
    archive: Datastore, runs: list[int], in_dir: Path, overwrite: bool, cache: StatCache
) -> tuple[dict[str, Path], dict[str, str]]:
    """Files of the runs that have to be copied, with their places, and those that cannot be, with the reason."""
    outdated: dict[str, Path] = {}
    refused: dict[str, str] = {}
    for path in _files(archive, runs):
        target = inside(in_dir, place_below(archive, path))
        state, fact = state_of(target), copy_of(path)
        try:
            if not overwrite and cache.knows(target, state, fact):
                continue
            if not is_copy(path, target) or (overwrite and not target.samefile(path)):
                outdated[path] = target
            else:
                cache.add(target, state, fact)
        except RunError as error:
            refused[path] = str(error)
    return outdated, refused


def _files(archive: Datastore, runs: list[int]) -> list[str]:
    """Files of runs, each once; a run whose rows are wrong is reported when it is placed."""
    files: dict[str, str] = {}
    placed_rows(archive, runs, lambda obs_id, path: files.setdefault(path, path))
    return list(files)


# -- rows of the index ---------------------------------------------------------------------------------------


def _retire_rows(in_dir: Path, archive: Datastore, overwritten: Iterable[Path]) -> None:
    """Take rows out of the index that will be wrong when files are copied over, before they are.

    Such are the rows of backgrounds that the source does not have: were the job killed half-way, the index would
    name HDUs that are not there.
    """
    files = {str(path) for path in overwritten if path.exists()}
    if not files:
        return
    lasting = set(_row_keys(archive.hdu))
    with locked(in_dir):
        store = existing_store(in_dir)
        if store is None:
            return
        wrong = [
            key not in lasting and _path_or_none(store, row) in files for row, key in enumerate(_row_keys(store.hdu))
        ]
        if all(wrong):
            raise ArchiveError(
                f"No row of the index of {in_dir} fits {archive.directory}, whose HDUs have other names now: give "
                "another io.in_dir, or remove the index files there."
            )
        if any(wrong):
            write_index(in_dir, store.hdu[~np.array(wrong)], store.obs, store.data_dirs)


def _row_keys(rows: Table) -> list[tuple]:
    return list(zip(*(rows[name].tolist() for name in ROW_KEY), strict=True))


def _path_or_none(store: Datastore, row: int) -> str | None:
    try:
        return store.path(row)
    except RunError:
        return None


def _with_backgrounds_there(
    rows: Table, now: Datastore, runs: list[int], copied: set[str], cache: StatCache
) -> Table:
    """New rows of runs, with those backgrounds that kept files have in ``in_dir`` instead of the source's."""
    backgrounds, gone = {}, []
    source = Datastore(now.directory, rows, now.obs, (Path("/"),))
    for obs_id in runs:
        own = _background_row(now, obs_id)
        if own is not None and _is_there(now, own, copied, cache):
            row = now.hdu[own]
            names = (str(row["FILE_DIR"]), str(row["FILE_NAME"]), str(row["HDU_NAME"]), str(row["HDU_CLASS"]))
            backgrounds[obs_id] = names
            continue
        new = _background_row(source, obs_id)
        # an earlier job may have replaced the source's background in a copy that is kept
        if new is not None and _in_kept_copy(source, new, copied) and not _is_there(source, new, copied, cache):
            gone.append(obs_id)
    missing = np.isin(rows["OBS_ID"], gone) & (np.asarray(rows["HDU_TYPE"]) == "bkg")
    return background_rows(rows[~missing], backgrounds)


def _background_row(store: Datastore, obs_id: int) -> int | None:
    return next((row for row in store.row_numbers(obs_id) if store.hdu["HDU_TYPE"][row] == "bkg"), None)


def _in_kept_copy(store: Datastore, row: int, copied: set[str]) -> bool:
    path = _path_or_none(store, row)
    return path is not None and path.startswith(os.path.join(store.directory, "")) and path not in copied


def _is_there(store: Datastore, row: int, copied: set[str], cache: StatCache) -> bool:
    """Whether a background is in a file of ``in_dir`` that was not written by this job."""
    if not _in_kept_copy(store, row, copied):
        return False
    path, *names = store.path(row), *(str(store.hdu[name][row]) for name in ("HDU_NAME", "HDU_CLASS"))
    state, fact = state_of(path), copies.background(*names)
    if cache.knows(path, state, fact):
        return True
    found = has_background(path, *names)
    if found:
        cache.add(path, state, fact)
    return found
