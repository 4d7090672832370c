"""Write to a temporary path next to the target, then rename: a reader sees the old or the new, never a part.

What this package writes goes through `atomic_write` or `atomic_directory`. A killed job leaves at most temporary
files, whose names say which process has made them: `remove_leftovers` clears them away when it has ended.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from isal import igzip

from dask_bkg.errors import ArchiveError
from dask_bkg.files.owner import is_dead, mark_of
from dask_bkg.files.read import PASSING, patiently

log = logging.getLogger(__name__)

# Runs of H.E.S.S. (mean of 20, 1,094 kB): zlib at level 4 takes 43 ms and leaves 676 kB, isal 4.8 ms and 690 kB.
COMPRESS_LEVEL = 1

DAY = 86400.0

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_LEFTOVER = re.compile(r"\.dask_bkg-(?P<pid>\d+)-(?P<mark>[0-9a-f]{10})[0-9a-f]{6}-")


def atomic_write(target: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Have a file written to a temporary path next to ``target``, which then takes its place.

    The temporary file is hidden, lies in the same directory (a rename does not cross file systems) and ends
    like ``target``, so that writers which look at the suffix do the right thing. Missing directories are made.
    A ``target`` that is a symbolic link is replaced, not followed.

    Parameters
    ----------
    target
        The file.
    write
        Writes the whole file to the path that it is given. It is called again after an error that may pass: what a
        disk has refused to flush is lost, whatever a second flush says.

    Raises
    ------
    ArchiveError
        If the directory cannot be written or its disk is full; ``target`` is then as it was before.

    Examples
    --------
    >>> import tempfile
    >>> directory = tempfile.mkdtemp()
    >>> atomic_write(f"{directory}/note.txt", lambda path: path.write_text("whole or not at all"))
    >>> [entry.name for entry in Path(directory).iterdir()]
    ['note.txt']
    """
    target = Path(target)
    temporary = temporary_path(target)

    def once() -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, target)

    try:
        patiently(once)
        _flush_directory(target.parent)
    except OSError as error:
        if not _concerns(error, target, temporary):
            raise
        raise write_error(error, target) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(
    target: str | os.PathLike[str], parent: str | os.PathLike[str] | None = None, replace: bool = False
) -> Iterator[Path]:
    """Give the path of a temporary directory that becomes ``target`` when the block ends without an error.

    The block makes the directory. A killed job leaves it; see `remove_leftovers`.

    Parameters
    ----------
    target
        Where the directory will be.
    parent
        Where it is filled, on the same disk; next to ``target`` if not given. It is made if missing.
    replace
        Whether it takes the place of a ``target`` that is there. If not, and another job has made ``target`` since,
        that one stays.

    Raises
    ------
    OSError
        If the disk refuses; ``target`` is then as it was before.

    Examples
    --------
    >>> import tempfile
    >>> parent = Path(tempfile.mkdtemp())
    >>> with atomic_directory(parent / "matrix") as path:
    ...     path.mkdir()
    >>> [entry.name for entry in parent.iterdir()]
    ['matrix']
    """
    target = Path(target)
    parent = target.parent if parent is None else Path(parent)
    temporary, old = temporary_path(target, parent), temporary_path(target, parent)
    try:
        patiently(lambda: parent.mkdir(parents=True, exist_ok=True))
        yield temporary
        if replace:
            with suppress(FileNotFoundError):
                patiently(lambda: os.rename(target, old))
        try:
            patiently(lambda: os.rename(temporary, target))
        except OSError as error:
            # a directory with something in it is never replaced by a rename: another job was faster
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                with suppress(OSError):
                    patiently(lambda: os.rename(old, target))
                raise
    finally:
        for path in (temporary, old):
            with suppress(OSError):
                _remove(path)


def write_pieces(path: Path, pieces: Iterable[bytes | memoryview], compress: bool) -> None:
    """Write ``pieces`` one after the other to ``path``, compressed on request, and flush them to the disk.

    The same pieces give the same bytes: neither the time nor the file's name goes into the gzip header.
    """
    with open(path, "wb") as stream:
        if compress:
            with igzip.GzipFile("", "wb", COMPRESS_LEVEL, stream, mtime=0) as packed:
                for piece in pieces:
                    packed.write(piece)
        else:
            stream.writelines(pieces)
        stream.flush()
        os.fsync(stream.fileno())


def remove_leftovers(
    directory: str | os.PathLike[str], older_than: float = DAY, names: Iterable[str] = ("",), below: bool = True
) -> list[Path]:
    """Remove the temporary files and directories that killed jobs left in a directory; return what was removed.

    Only what `temporary_path` has named is removed: at once where its process has run on this machine and runs no
    more. Symbolic links are not followed.

    Parameters
    ----------
    directory
        Where to look.
    older_than
        Seconds since the last change after which also those of other machines, and of living processes, are removed.
    names
        How the names of the targets begin; by default of any name.
    below
        Whether to look in its subdirectories too.
    """
    removed = []
    latest, names = time.time() - older_than, tuple(names)
    for folder, folders, files in os.walk(directory):
        for name in (*folders, *files):
            ours, path = _LEFTOVER.match(name), Path(folder, name)
            if ours and name.startswith(names, ours.end()) and _is_left(path, ours, latest) and _removed(path):
                removed.append(path)
        folders[:] = [name for name in folders if below and not _LEFTOVER.match(name)]
    return sorted(removed)


def _is_left(path: Path, name: re.Match[str], latest: float) -> bool:
    """Whether no running process can need a temporary file."""
    if is_dead(int(name["pid"]), name["mark"]):
        return True
    try:
        return path.lstat().st_mtime <= latest
    except OSError:
        return False


def _removed(path: Path) -> bool:
    try:
        _remove(path)
    except FileNotFoundError:  # another job was faster
        return False
    except OSError as error:
        log.warning("The leftover %s cannot be removed (%s); remove it by hand.", path, error.strerror)
        return False
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def temporary_path(target: Path, parent: Path | None = None) -> Path:
    """A path for what becomes ``target``, next to it or in a directory, which says whose it is."""
    # the process alone is not unique: it has threads
    who = f"{os.getpid()}-{mark_of(os.getpid())}{secrets.token_hex(3)}"
    return (parent or target.parent) / f".dask_bkg-{who}-{target.name[-40:]}"


def inside(directory: str | os.PathLike[str], path: str | os.PathLike[str]) -> Path:
    """Return the place of ``path`` (relative to ``directory``, or absolute) below ``directory``.

    Symbolic links among the directories are resolved. The last component is not followed, because
    `atomic_write` replaces a link instead of writing through it.

    Raises
    ------
    ArchiveError
        If ``path`` leads out of ``directory``, or names no file.

    Examples
    --------
    >>> inside("/tmp", "runs/run_1.fits").name
    'run_1.fits'
    """
    root = Path(os.path.realpath(directory))
    wanted = root / path
    parent = Path(os.path.realpath(wanted.parent))
    if wanted.name in ("", ".."):
        raise ArchiveError(f"{os.fspath(path)!r} names no file below {root}; give the path of a file there.")
    if parent != root and root not in parent.parents:
        raise ArchiveError(
            f"{os.fspath(path)!r} leads to {parent / wanted.name}, outside of {root}, and nothing is written there. "
            "Use paths below the output directory, without '..' or symbolic links that lead out of it."
        )
    return parent / wanted.name


def _flush_directory(directory: Path) -> None:
    # Not every network file system can flush a directory; the rename itself has succeeded.
    with suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _concerns(error: OSError, target: Path, temporary: Path) -> bool:
    """Whether ``error`` comes from writing ``target`` and not from what the caller read meanwhile."""
    if error.errno is None:  # gzip and astropy raise such an OSError for contents that they cannot read
        return False
    if error.errno in _FULL or error.filename is None:
        return True
    named = {str(error.filename), str(error.filename2)}
    return not named.isdisjoint(map(str, (target, temporary, *target.parents)))


def write_error(error: OSError, target: Path) -> ArchiveError:
    """The error of a file that the disk refuses to write: why, and what to do."""
    if error.errno in PASSING:
        problem = f"The directory {target.parent} cannot be written now"
        remedy = "Start again; if it stays so, have the disk or network looked at: finished runs are kept"
    elif error.errno in _FULL:
        problem = f"The disk or quota of {target.parent} is full"
        remedy = "Make room, or write to another disk, and start again: finished runs are kept"
    else:
        problem = f"The directory {target.parent} cannot be written"
        remedy = "Give a directory that you may write to (io.out_dir or io.in_dir)"
    return ArchiveError(f"{problem} ({error.strerror}): {target.name} was not written. {remedy}.")
