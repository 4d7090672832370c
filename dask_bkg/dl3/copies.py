"""Copies of runs' files that are whole, whatever was there before and whatever stops the job."""

from __future__ import annotations

import os
from pathlib import Path

from dask_bkg.dl3.attach import digests, other_hdus_digest, unreadable
from dask_bkg.dl3.blocks import BLOCK, read_fits_bytes, split_hdus
from dask_bkg.files import atomic_write, state_of
from dask_bkg.files.read import now, patiently

COPIES = ".dask_bkg-copies.json"
"""Name of the `dask_bkg.files.StatCache` of copies, in their directory."""


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
    try:
        data = patiently(source.read_bytes)
    except OSError as error:
        raise unreadable(source, error) from error
    atomic_write(target, lambda path: path.write_bytes(data))
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
        # an unreadable source is the run's fault, not that of the target directory
        patiently(lambda: open(source, "rb").close())
    except OSError as error:
        raise unreadable(source, error) from error
    if not target.exists():
        return False
    if target.samefile(source):
        return True
    there, data, pieces = target.stat(), b"", []
    try:
        data = read_fits_bytes(target)
        pieces = split_hdus(data)
    except OSError as error:
        if now(error):
            raise unreadable(target, error) from error
    except ValueError:
        pass
    alike = there.st_size == wanted.st_size and there.st_mtime_ns >= wanted.st_mtime_ns
    # with HDUs up to its end: zeros may be room set aside for a copy
    if pieces and alike and sum(len(piece.raw) for piece in pieces) >= len(data):
        return True
    wanted_digests = other_hdus_digest(source)
    # what we write ends with a whole block: where it is cut short, the copy was
    return len(data) % BLOCK == 0 and digests(pieces) == wanted_digests


# -- what a `dask_bkg.files.StatCache` remembers of copies, so that they need not be read again -----------------


def copy_of(source: str | os.PathLike[str]) -> str:
    """The fact that a file is a whole copy of ``source``, as this is now."""
    return f"copy of {os.fspath(source)} {state_of(source)}"


def background(name: str, hdu_class: str) -> str:
    """The fact that a file has a background HDU of this name and class."""
    return f"background {name} {hdu_class}"
