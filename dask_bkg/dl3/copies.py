"""Copies of runs' files that are whole, whatever was there before and whatever stops the job."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from dask_bkg.dl3.attach import BLOCK, digests, other_hdus_digest, read_fits_bytes, split_hdus, unreadable
from dask_bkg.files import atomic_path

__all__ = ["Ledger", "copy_file", "is_copy"]

LEDGER = ".dask_bkg-copies.json"


def copy_file(source: str | os.PathLike[str], target: str | os.PathLike[str], force: bool = False) -> bool:
    """Copy ``source`` to ``target`` as it is; return False if a whole copy was there already.

    What a whole copy is, `is_copy` says; what an interrupted copy by another program left is copied again. With
    ``force`` a whole copy is replaced too, but never a file by itself. Whatever goes wrong, the file that was there
    is there still.

    Raises
    ------
    RunError
        If ``source`` cannot be read, or is damaged and would replace a file.
    ArchiveError
        If ``target`` cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from astropy.io import fits
    >>> directory = tempfile.mkdtemp()
    >>> fits.PrimaryHDU().writeto(f"{directory}/a.fits")
    >>> copy_file(f"{directory}/a.fits", f"{directory}/b.fits")
    True
    >>> copy_file(f"{directory}/a.fits", f"{directory}/b.fits")
    False
    """
    source, target = Path(source), Path(target)
    if is_copy(source, target):
        if not force or target.samefile(source):
            return False
        other_hdus_digest(source)  # a damaged source must not replace a whole copy
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
    return True


def is_copy(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> bool:
    """Whether ``target`` is a whole copy of ``source``, or the same file (links are followed).

    A background that was attached to the copy does no harm: it is whole if its other HDUs have the bytes of those of
    ``source``. A copy of the size of ``source``, not older than it, is only read to its end (gzip checksum and block
    structure).

    Raises
    ------
    RunError
        If ``source`` cannot be read, or is damaged where there is a ``target`` that differs.

    Examples
    --------
    >>> import tempfile
    >>> from astropy.io import fits
    >>> directory = tempfile.mkdtemp()
    >>> fits.PrimaryHDU().writeto(f"{directory}/a.fits")
    >>> is_copy(f"{directory}/a.fits", f"{directory}/b.fits")
    False
    """
    source, target = Path(source), Path(target)
    try:
        wanted = source.stat()
        with open(source, "rb"):  # an unreadable source is the run's fault, not that of the target directory
            pass
    except OSError as error:
        raise unreadable(source, error) from error
    if not target.exists():
        return False
    if target.samefile(source):
        return True
    there = target.stat()
    if there.st_size == wanted.st_size and there.st_mtime_ns >= wanted.st_mtime_ns and _is_whole(target):
        return True
    wanted_digests = other_hdus_digest(source)
    try:
        data = read_fits_bytes(target)
        # what we write ends with a whole block: where it is cut short, the copy was
        return len(data) % BLOCK == 0 and digests(split_hdus(data)) == wanted_digests
    except (OSError, ValueError):
        return False


def _is_whole(path: Path) -> bool:
    """Whether a file can be read to its end, with HDUs up to there: zeros may be room set aside for a copy."""
    try:
        data = read_fits_bytes(path)
        return sum(len(piece.raw) for piece in split_hdus(data)) >= len(data)
    except (OSError, ValueError):
        return False


class Ledger:
    """Copies below a directory that were found to be whole, so that they need not be read again to see it.

    Each entry holds for as long as size and time of last change of both files are what they were; one that does not
    hold says nothing.  The file is a convenience: without it everything is looked at again.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._path = Path(directory) / LEDGER
        self._entries: dict[str, list] = {}
        self._changed = False
        try:
            entries = json.loads(self._path.read_text())
            self._entries = {str(k): list(v) for k, v in entries.items()} if isinstance(entries, dict) else {}
        except (OSError, ValueError, TypeError):
            pass

    def knows(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> bool:
        """Whether ``target`` is known to be a whole copy of ``source``, as both are now."""
        entry = self._entries.get(str(target))
        return entry is not None and entry[:2] == self._state(source, target)

    def has_background(self, target: str | os.PathLike[str], name: str, hdu_class: str) -> bool:
        """Whether a copy, as it is now, is known to have this background."""
        entry = self._entries.get(str(target))
        return entry is not None and entry[1] == _size_and_time(target) and entry[2] == [name, hdu_class]

    def add(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
        """Enter a copy that is whole."""
        state = self._state(source, target)
        if None not in state and not self.knows(source, target):
            self._entries[str(target)], self._changed = [*state, None], True

    def add_background(self, target: str | os.PathLike[str], name: str, hdu_class: str) -> None:
        """Enter a background that a copy in the ledger has."""
        entry = self._entries.get(str(target))
        if entry is not None and entry[1] == _size_and_time(target) and entry[2] != [name, hdu_class]:
            entry[2], self._changed = [name, hdu_class], True

    def save(self) -> None:
        """Write what is new."""
        if self._changed:
            with atomic_path(self._path) as path:
                path.write_text(json.dumps(self._entries))
            self._changed = False

    @staticmethod
    def _state(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> list[Any]:
        return [_size_and_time(source), _size_and_time(target)]


def _size_and_time(path: str | os.PathLike[str]) -> list[int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]
