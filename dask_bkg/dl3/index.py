"""The index files of a datastore (GADF): which run has which HDU in which file.

`read_datastore` reads them, `write_index` writes them. Both are forgiving about what archives look like in
practice and strict about what would give wrong results silently, such as contradictory rows. Files outside of the
archive are read where the index leads, as gammapy does, with a line in the log; what is written stays in its own
directory all the same. ``io.data_dirs``, and the DATADIR1, DATADIR2, ... cards of an index of our own, say of
directories outside that they are meant.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from astropy.table import Table

from dask_bkg.dl3.index_numbers import in_units_of_gadf
from dask_bkg.dl3.index_table import (
    name_runs,
    one_background,
    read_index,
    to_bytes,
    warn_repeated,
    with_double_times,
    without_repeated,
)
from dask_bkg.dl3.read import RunFile
from dask_bkg.errors import ArchiveError, RunError
from dask_bkg.files import atomic_write, write_pieces
from dask_bkg.files.read import LARGEST

log = logging.getLogger(__name__)

CREATOR = "dask_bkg"
HDU_COLUMNS = ("OBS_ID", "HDU_TYPE", "HDU_CLASS", "FILE_DIR", "FILE_NAME", "HDU_NAME")


class Location(NamedTuple):
    """Where an HDU is: the absolute path of a file and the name of the HDU in it."""

    path: str
    hdu: str


@dataclass(frozen=True, eq=False)
class Datastore:
    """The index files of an archive, with strings stripped of their filling.

    Parameters
    ----------
    directory
        The resolved directory of the index files.
    hdu
        One row per HDU: OBS_ID, HDU_TYPE, HDU_CLASS, FILE_DIR, FILE_NAME, HDU_NAME and what else was there.
    obs
        One row per run: OBS_ID and all other columns; the header cards are in ``meta``.
    data_dirs
        Resolved directories outside of ``directory`` from which files are meant to be read.
    """

    directory: Path
    hdu: Table
    obs: Table
    data_dirs: tuple[Path, ...] = ()

    @cached_property
    def obs_ids(self) -> np.ndarray:
        """The runs of the HDU index, sorted, each once (int64)."""
        return np.unique(self.hdu["OBS_ID"]).astype(np.int64)

    def location(self, obs_id: int, hdu_type: str) -> Location | None:
        """Return where the HDU of a run is, or None if the index has no such row.

        The first row counts if there are several, as in gammapy. Whether the file exists is not looked up.

        Raises
        ------
        RunError
            If the row names no file or HDU, or if rows of the types 'events' or 'gti' contradict each other.
        """
        columns = self._columns
        rows = [row for row in self._hdu_rows.get(int(obs_id), ()) if columns["HDU_TYPE"][row] == hdu_type]
        if not rows:
            return None
        if hdu_type in ("events", "gti") and len({self._place(row) for row in rows}) > 1:
            files = ", ".join(sorted({f"{columns['FILE_NAME'][row]}[{columns['HDU_NAME'][row]}]" for row in rows}))
            raise RunError(
                f"Run {obs_id}: the HDU index of {self.directory} has several rows of type {hdu_type!r} ({files}); "
                "remove the wrong ones."
            )
        if not columns["HDU_NAME"][rows[0]]:
            raise RunError(
                f"Run {obs_id}: HDU_NAME of its {hdu_type!r} row is empty in the index of {self.directory}; "
                "write the index again."
            )
        return Location(self.path(rows[0]), columns["HDU_NAME"][rows[0]])

    def row_numbers(self, obs_id: int) -> list[int]:
        """Return where the rows of a run are in ``hdu``; an unknown run has none."""
        return list(self._hdu_rows.get(int(obs_id), ()))

    def rows(self, obs_ids: Iterable[int]) -> Table:
        """Return the HDU rows of these runs, in the order of ``obs_ids``; unknown runs have none."""
        chosen = [row for obs_id in obs_ids for row in self._hdu_rows.get(int(obs_id), ())]
        return self.hdu[np.array(chosen, dtype=int)]

    def observations(self, obs_ids: Iterable[int]) -> Table:
        """Return the rows of these runs in the observation index, in the same order; unknown runs have none."""
        chosen = [self._obs_rows[int(obs_id)] for obs_id in obs_ids if int(obs_id) in self._obs_rows]
        return self.obs[np.array(chosen, dtype=int)]

    @cached_property
    def _columns(self) -> dict[str, list[str]]:
        return {name: self.hdu[name].tolist() for name in HDU_COLUMNS[1:]}

    @cached_property
    def _hdu_rows(self) -> dict[int, list[int]]:
        """Rows of each run: made once, because a scan of the table per run takes minutes for 20,000 runs."""
        rows: dict[int, list[int]] = {}
        for row, obs_id in enumerate(self.hdu["OBS_ID"].tolist()):
            rows.setdefault(obs_id, []).append(row)
        return rows

    @cached_property
    def _obs_rows(self) -> dict[int, int]:
        return {obs_id: row for row, obs_id in enumerate(self.obs["OBS_ID"].tolist())}

    @cached_property
    def _resolved(self) -> dict[str, str]:
        """Directories whose symbolic links are resolved already; thousands of runs share a few."""
        return {}

    @cached_property
    def _outside(self) -> set[str]:
        """Directories outside of the archive that were reported."""
        return set()

    def _place(self, row: int) -> tuple[str, ...]:
        return tuple(self._columns[name][row] for name in ("FILE_DIR", "FILE_NAME", "HDU_NAME"))

    def path(self, row: int) -> str:
        """Return the resolved path of the file that a row of ``hdu`` names.

        Raises
        ------
        RunError
            If the row names no file.
        """
        obs_id, names = self.hdu["OBS_ID"][row], [part for part in self._place(row)[:2] if part]
        if not names:
            raise RunError(
                f"Run {obs_id}: FILE_NAME is empty in the HDU index of {self.directory}; correct the index."
            )
        path = self._resolve(os.path.join(self.directory, *names))
        roots = [os.path.join(root, "") for root in (self.directory, *self.data_dirs)]
        folder = os.path.dirname(path)
        if not path.startswith(tuple(roots)) and folder not in self._outside:
            # as gammapy does; what is written stays in io.out_dir all the same
            self._outside.add(folder)
            log.info("The index of %s leads to %s, outside of the archive: it is read there.", self.directory, folder)
        return path

    def _resolve(self, path: str) -> str:
        folder, name = os.path.split(path)
        if folder not in self._resolved:
            self._resolved[folder] = os.path.realpath(folder)
        path = os.path.join(self._resolved[folder], name)
        return os.path.realpath(path) if name in ("", ".", "..") or os.path.islink(path) else path


def read_datastore(directory: str | os.PathLike[str], data_dirs: Iterable[str | os.PathLike[str]] = ()) -> Datastore:
    """Read ``hdu-index.fits.gz`` and ``obs-index.fits.gz`` (or the same without ``.gz``) of an archive.

    Parameters
    ----------
    directory
        The directory of the index files.
    data_dirs
        Directories outside of it from which files are meant to be read as well (``io.data_dirs``).

    Raises
    ------
    ArchiveError
        If the directory or its HDU index is missing, an index cannot be read or lacks columns, rows of the
        observation index contradict each other, or a unit in it is not understood.

    Examples
    --------
    >>> read_datastore("/no/such/archive")
    Traceback (most recent call last):
    dask_bkg.errors.ArchiveError: There is no directory /no/such/archive; give the directory of a datastore.
    """
    root = _existing(directory, "give the directory of a datastore")
    path = _index_file(root, "hdu")
    if path is None:
        raise ArchiveError(_no_index(root))
    hdu = read_index(path, "HDU_INDEX", HDU_COLUMNS)
    if len(hdu) == 0:
        raise ArchiveError(f"The index {path} has no rows, so {root} has no runs; write its index files again.")
    warn_repeated(hdu, path)
    outside = [_existing(item, "correct io.data_dirs") for item in data_dirs]
    outside += _recorded_dirs(root, hdu.meta)
    return Datastore(root, hdu, _read_obs(root, hdu), tuple(dict.fromkeys(outside)))


def existing_store(directory: str | os.PathLike[str]) -> Datastore | None:
    """Read the datastore that is in an output directory already; None if there are no index files.

    Raises
    ------
    ArchiveError
        If there is an index that cannot be read: written anew, it would lose the runs of earlier jobs.

    Examples
    --------
    >>> existing_store("/no/such/directory") is None
    True
    """
    root = Path(os.path.realpath(directory))
    if not any(root.joinpath(f"hdu-index.fits{end}").exists() for end in (".gz", "")):
        return None
    try:
        return read_datastore(root)
    except ArchiveError as error:
        raise ArchiveError(
            f"{error} Runs would be added to this index, and those that it names would be lost: bring it back from a "
            "copy, move the index files away if the runs are not wanted, or write to another directory."
        ) from error


def write_index(
    directory: str | os.PathLike[str], hdu_rows: Table, obs: Table, data_dirs: Iterable[str | os.PathLike[str]] = ()
) -> None:
    """Write ``hdu-index.fits.gz`` and ``obs-index.fits.gz`` into ``directory``.

    All columns, units and header cards of the tables are kept. Rows are sorted by run and strings are as wide as
    the data need, so that the bytes depend on the contents alone. Of several background rows of a run the first
    is written. Both files are written to temporary paths first; whatever stops the job, a run that the HDU index
    names is in the observation index too if it is in ``obs``.

    Parameters
    ----------
    directory
        Where to write; made if missing.
    hdu_rows, obs
        Tables as in `Datastore`.
    data_dirs
        Directories outside of ``directory`` that the rows lead to; recorded relative to ``directory``.

    Raises
    ------
    ArchiveError
        If there are no rows, a string is not ASCII (FITS has no other), or ``directory`` cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> row = (1, "events", "events", "data", "run_1.fits", "EVENTS")
    >>> directory = tempfile.mkdtemp()
    >>> write_index(directory, Table(rows=[row], names=HDU_COLUMNS), Table({"OBS_ID": [1]}))
    >>> read_datastore(directory).obs_ids.tolist()
    [1]
    """
    if len(hdu_rows) == 0:
        raise ArchiveError(f"There are no runs to write into the index of {os.fspath(directory)}.")
    root = Path(os.path.realpath(directory))
    outside = sorted({os.path.realpath(item) for item in data_dirs} - {str(root)})
    cards = {"CREATOR": CREATOR} | {_dir_card(n): os.path.relpath(item, root) for n, item in enumerate(outside, 1)}
    hdu_bytes = to_bytes(one_background(hdu_rows), "HDU", cards)
    obs_bytes = to_bytes(with_double_times(obs), "OBS", {"CREATOR": CREATOR})
    # The inner file takes its place first: a run in the observation index alone does no harm.

    def write(path: Path) -> None:
        write_pieces(path, [hdu_bytes], compress=True)
        atomic_write(root / "obs-index.fits.gz", lambda path: write_pieces(path, [obs_bytes], compress=True))

    atomic_write(root / "hdu-index.fits.gz", write)


def _existing(directory: str | os.PathLike[str], remedy: str) -> Path:
    path = Path(os.path.realpath(directory))
    if not path.is_dir():
        problem = f"{os.fspath(directory)} is not a directory" if path.exists() else f"There is no directory {path}"
        raise ArchiveError(f"{problem}; {remedy}.")
    return path


def _index_file(directory: Path, kind: str) -> Path | None:
    paths = (directory / f"{kind}-index.fits.gz", directory / f"{kind}-index.fits")
    return next((path for path in paths if path.is_file()), None)


def _no_index(directory: Path) -> str:
    content = "other files" if any(directory.iterdir()) else "nothing"
    return (
        f"The directory {directory} has no hdu-index.fits.gz or hdu-index.fits, but {content}. Give the directory "
        "that has the index files, or make them first, for instance with gammapy's DataStore.from_events_files."
    )


def _read_obs(directory: Path, hdu: Table) -> Table:
    path = _index_file(directory, "obs")
    if path is None:
        log.warning("%s has no obs-index.fits.gz: only the numbers of the runs are known.", directory)
        return Table({"OBS_ID": np.unique(np.asarray(hdu["OBS_ID"]))})
    try:
        obs = in_units_of_gadf(without_repeated(read_index(path, "OBS_INDEX", ["OBS_ID"]), path), path)
    except ValueError as error:
        raise ArchiveError(f"The index {path} {error}.") from error
    unknown = np.setdiff1d(hdu["OBS_ID"], obs["OBS_ID"])
    if len(unknown):
        log.warning("%s has no row for %s.", path, name_runs(unknown.tolist()))
    return obs


def _recorded_dirs(directory: Path, cards: Mapping[str, Any]) -> list[Path]:
    """Return the directories that an index of our own records; a foreign index has no say."""
    if not str(cards.get("CREATOR", "")).startswith(CREATOR):
        return []
    recorded: list[Path] = []
    while (card := _dir_card(len(recorded) + 1)) in cards:
        recorded.append(Path(os.path.realpath(directory / str(cards[card]))))
    return recorded


def _dir_card(number: int) -> str:
    """DATADIR1 ... DATADIR9, DATADI10 ...: a keyword has eight characters."""
    return f"{'DATADIR'[: 8 - len(str(number))]}{number}"


def run_file(store: Datastore, obs_id: int, limit: int = LARGEST) -> RunFile:
    """Where events and good time intervals of a run are; files of more than ``limit`` bytes will not be read.

    Raises
    ------
    RunError
        If the index has no events for the run, or leads outside of the archive.
    """
    events = store.location(obs_id, "events")
    if events is None:
        raise RunError(f"run {obs_id}: the index of {store.directory} has no row of type 'events' for it")
    gti = store.location(obs_id, "gti") or Location(events.path, "")
    aeff = _effective_area(store, obs_id) or Location(events.path, "")
    gti_path, aeff_path = (place.path if place.path != events.path else "" for place in (gti, aeff))
    return RunFile(int(obs_id), events.path, events.hdu, gti_path, gti.hdu, aeff_path, aeff.hdu, limit)


def _effective_area(store: Datastore, obs_id: int) -> Location | None:
    """Where the effective area is; it only gives a threshold, and no run is lost for the want of it."""
    try:
        return store.location(obs_id, "aeff")
    except RunError:
        return None
