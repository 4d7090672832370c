"""Rows of index files for another place: linked, placed elsewhere, with new backgrounds, merged."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import numpy as np
from astropy.table import Table, vstack

from dask_bkg.dl3.index import HDU_COLUMNS, Datastore
from dask_bkg.dl3.index_table import by_run, check_fit
from dask_bkg.errors import RunError


def background_rows(hdu_table: Table, backgrounds: Mapping[int, tuple[str, str, str, str]]) -> Table:
    """Give each of the runs in ``backgrounds`` one background row in place of all it had.

    Parameters
    ----------
    hdu_table
        Rows of an HDU index.
    backgrounds
        obs_id -> (FILE_DIR, FILE_NAME, HDU_NAME, HDU_CLASS). Other columns of the new rows are empty, 0 or NaN.

    Returns
    -------
    table
        The rows sorted by run; in each run the background is the last row.

    Examples
    --------
    >>> row = (1, "bkg", "bkg_3d", "data", "run_1.fits", "BKG")
    >>> table = Table(rows=[row], names=HDU_COLUMNS)
    >>> print(*background_rows(table, {1: ("data", "run_1.fits", "BACKGROUND", "bkg_2d")})[0])
    1 bkg bkg_2d data run_1.fits BACKGROUND
    """
    if not backgrounds:
        return hdu_table.copy()
    replaced = np.isin(hdu_table["OBS_ID"], list(backgrounds)) & (np.asarray(hdu_table["HDU_TYPE"]) == "bkg")
    kept = hdu_table[~replaced]
    file_dir, file_name, hdu_name, hdu_class = zip(*backgrounds.values(), strict=True)
    new = Table({"OBS_ID": np.array(list(backgrounds), dtype=np.int64), "HDU_TYPE": ["bkg"] * len(backgrounds)})
    for name, values in zip(HDU_COLUMNS[2:], (hdu_class, file_dir, file_name, hdu_name), strict=True):
        new[name] = values
    for name in set(kept.colnames) - set(HDU_COLUMNS):
        empty = np.zeros((len(new), *kept[name].shape[1:]), dtype=kept[name].dtype)
        new[name] = empty * np.nan if empty.dtype.kind == "f" else empty
    return by_run(vstack([kept, new[kept.colnames]], metadata_conflicts="silent"))


def linked_rows(
    store: Datastore, obs_ids: Iterable[int], directory: str | os.PathLike[str], without: Collection[str] = ()
) -> tuple[Table, dict[int, str]]:
    """Return the HDU rows of these runs for an index in ``directory`` that points to the files of ``store``.

    FILE_DIR is relative to ``directory``, so that the two may be moved together. Pass ``store.directory`` and
    ``store.data_dirs`` to `write_index` as ``data_dirs``, or the files will be refused on reading.

    Returns
    -------
    rows, failed
        As `placed_rows`.

    Examples
    --------
    >>> import tempfile
    >>> from dask_bkg.dl3.index import HDU_COLUMNS, read_datastore, write_index
    >>> directory = tempfile.mkdtemp()
    >>> row = (1, "events", "events", "data", "run_1.fits", "EVENTS")
    >>> write_index(directory, Table(rows=[row], names=HDU_COLUMNS), Table({"OBS_ID": [1]}))
    >>> store = read_datastore(directory)
    >>> rows, failed = linked_rows(store, [1], store.directory / "backgrounds")
    >>> print(*rows["FILE_DIR"], failed)
    ../data {}
    """
    root = os.path.realpath(directory)
    folders: dict[str, str] = {}  # thousands of runs share a few

    def link(obs_id: int, path: str) -> str:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.relpath(folder, root)
        return os.path.join(folders[folder], name)

    return placed_rows(store, obs_ids, link, without)


def placed_rows(
    store: Datastore, obs_ids: Iterable[int], place: Callable[[int, str], str], without: Collection[str] = ()
) -> tuple[Table, dict[int, str]]:
    """Return the HDU rows of these runs, with their files somewhere else.

    Parameters
    ----------
    store
        Where the runs are.
    obs_ids
        Their numbers.
    place
        Gives the new place of a file, relative to the new index, for a run and the file's path; it may put the file
        there. A `RunError` that it raises costs this run alone.
    without
        Types of HDU whose rows are left out.

    Returns
    -------
    rows, failed
        The rows, and the runs that have none because a row or file of theirs cannot be used, ``{obs_id: reason}``.

    Examples
    --------
    >>> row = (1, "events", "events", "data", "run_1.fits", "EVENTS")
    >>> store = Datastore(Path("/archive"), Table(rows=[row], names=HDU_COLUMNS), Table({"OBS_ID": [1]}))
    >>> rows, failed = placed_rows(store, [1], lambda obs_id, path: f"new/{obs_id}.fits")
    >>> print(*rows[0])
    1 events events new 1.fits EVENTS
    """
    kinds = store.hdu["HDU_TYPE"].tolist()
    chosen: list[int] = []
    places: list[tuple[str, str]] = []
    failed: dict[int, str] = {}
    for obs_id in map(int, obs_ids):
        rows = [row for row in store.row_numbers(obs_id) if kinds[row] not in without]
        try:
            for kind in {kinds[row] for row in rows}:
                store.location(obs_id, kind)  # refuses rows that contradict each other
            new = [os.path.split(place(obs_id, store.path(row))) for row in rows]
        except RunError as error:
            failed[obs_id] = str(error)
            continue
        chosen += rows
        places += new
    table = store.hdu[np.array(chosen, dtype=int)]
    table["FILE_DIR"] = np.array([folder for folder, _ in places], dtype=str)
    table["FILE_NAME"] = np.array([name for _, name in places], dtype=str)
    return table, failed


def place_below(store: Datastore, path: str) -> str:
    """Place of a file in a copy of a datastore: as below its directory, or below a directory of its own.

    Examples
    --------
    >>> store = Datastore(Path("/archive"), Table(), Table(), (Path("/irfs"),))
    >>> place_below(store, "/archive/2026/run_1.fits"), place_below(store, "/irfs/south/aeff.fits")
    ('2026/run_1.fits', 'irfs-c1b222/south/aeff.fits')
    """
    roots = [store.directory, *store.data_dirs]
    root = next((r for r in roots if path.startswith(os.path.join(r, ""))), Path(path).parent)
    relative = os.path.relpath(path, root)
    if root == store.directory:
        return relative
    # the same relative path inside and outside, or below two data directories, is two files
    return f"{root.name}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:6]}/{relative}"


def merge_index(old: Table, new: Table) -> Table:
    """Return the rows of ``new`` and those of ``old`` for all other runs, sorted by run.

    For HDU and for observation indices, where a job adds runs to a datastore that another job has written.

    Raises
    ------
    ArchiveError
        If the two do not fit: other reference times, units, or text in one and numbers in the other.

    Examples
    --------
    >>> old = Table({"OBS_ID": [1, 2], "ONTIME": [1.0, 2.0]})
    >>> print(*merge_index(old, Table({"OBS_ID": [2, 3], "ONTIME": [5.0, 6.0]}))["ONTIME"])
    1.0 5.0 6.0
    """
    check_fit(old, new)
    others = old[~np.isin(old["OBS_ID"], new["OBS_ID"])]
    return by_run(vstack([others, new], metadata_conflicts="silent"))
