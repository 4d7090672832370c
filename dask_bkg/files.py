"""Write beside, then rename: a reader sees the old file or the new one, never a part of one.

Everything that this package writes goes through `atomic_path`. A job that is killed leaves at most a hidden
temporary file behind, which `remove_leftovers` clears away when it is old enough to belong to nobody.
"""

from __future__ import annotations

import errno
import gzip
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dask_bkg.errors import ArchiveError

__all__ = ["atomic_path", "inside", "locked", "remove_leftovers", "write_pieces"]

log = logging.getLogger(__name__)

# Level 4 on a H.E.S.S. run (1.05 MB): 28 ms and 646 kB; level 6: 46 ms and 634 kB; level 9: 157 ms and 632 kB.
COMPRESS_LEVEL = 4

LOCK_NAME = ".dask_bkg-lock"
LOCK_STALE = 300.0
"""Seconds after which a lock belongs to a job that was killed: it is held while small files are read and written."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_LEFTOVER = re.compile(r"^\.dask_bkg-\d+-[0-9a-f]{16}-")


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``target`` that takes its place when the block ends without an error.

    The temporary file is hidden, lies in the same directory (a rename does not cross file systems) and ends
    like ``target``, so that writers which look at the suffix do the right thing. Missing directories are made.
    A ``target`` that is a symbolic link is replaced, not followed.

    Raises
    ------
    ArchiveError
        If the directory cannot be written or its disk is full; ``target`` is then as it was before.

    Examples
    --------
    >>> import tempfile
    >>> directory = tempfile.mkdtemp()
    >>> with atomic_path(f"{directory}/note.txt") as path:
    ...     _ = path.write_text("whole or not at all")
    >>> [entry.name for entry in Path(directory).iterdir()]
    ['note.txt']
    """
    target = Path(target)
    # The process id alone is not unique where several machines write to one network disk.
    temporary = target.with_name(f".dask_bkg-{os.getpid()}-{secrets.token_hex(8)}-{target.name[-40:]}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        os.replace(temporary, target)
        _flush_directory(target.parent)
    except OSError as error:
        if not _concerns(error, target, temporary):
            raise
        raise _write_error(error, target) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_pieces(path: Path, pieces: Iterable[bytes | memoryview], compress: bool) -> None:
    """Write ``pieces`` one after the other to ``path``, compressed on request, and flush them to the disk.

    The same pieces give the same bytes: neither the time nor the file's name goes into the gzip header.
    """
    with open(path, "wb") as stream:
        if compress:
            with gzip.GzipFile("", "wb", COMPRESS_LEVEL, stream, mtime=0) as packed:
                for piece in pieces:
                    packed.write(piece)
        else:
            stream.writelines(pieces)
        stream.flush()
        os.fsync(stream.fileno())


def remove_leftovers(directory: str | os.PathLike[str], older_than: float = 86400.0) -> list[Path]:
    """Remove the temporary files that killed jobs left in ``directory`` and below; return what was removed.

    Only files named by `atomic_path` and not touched for ``older_than`` seconds (one day) are removed: younger
    ones may belong to a job that is still running. Symbolic links to directories are not followed.
    """
    removed = []
    latest = time.time() - older_than
    for folder, _, names in os.walk(directory):
        for path in (Path(folder, name) for name in names if _LEFTOVER.match(name)):
            try:
                if path.lstat().st_mtime <= latest:
                    path.unlink()
                    removed.append(path)
            except FileNotFoundError:  # another job was faster
                continue
            except OSError as error:
                log.warning("The leftover %s cannot be removed (%s); remove it by hand.", path, error.strerror)
    return sorted(removed)


@contextmanager
def locked(directory: str | os.PathLike[str], timeout: float = 600.0, stale: float = LOCK_STALE) -> Iterator[None]:
    """Keep other jobs from changing the index or results of ``directory`` until the block ends.

    What is read and written back within the block cannot lose what another job writes meanwhile. A lock older than
    ``stale`` seconds is taken over, one of a process of this machine that has ended at once. The directory is made if
    missing.

    Raises
    ------
    ArchiveError
        If the directory cannot be written, or another job holds the lock for ``timeout`` seconds.

    Examples
    --------
    >>> import tempfile
    >>> directory = Path(tempfile.mkdtemp())
    >>> with locked(directory):
    ...     [path.name for path in directory.iterdir()]
    ['.dask_bkg-lock']
    >>> list(directory.iterdir())
    []
    """
    lock = Path(directory, LOCK_NAME)
    mark = f"{os.getpid()} {secrets.token_hex(8)} {_machine()}"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        _take(lock, mark, timeout, stale)
    except OSError as error:
        raise _write_error(error, lock) from error
    try:
        yield
    finally:
        # a job that stood still for minutes may have lost the lock to another one
        if _mark_of(lock) == mark:
            lock.unlink(missing_ok=True)


def _take(lock: Path, mark: str, timeout: float, stale: float) -> None:
    """Make the lock file; opening it exclusively is atomic on network disks too."""
    end = time.monotonic() + timeout
    while True:
        with suppress(FileExistsError):
            handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            try:
                os.write(handle, mark.encode())
            except BaseException:
                lock.unlink(missing_ok=True)
                raise
            finally:
                os.close(handle)
            return
        if _remove_stale(lock, stale):
            continue
        if time.monotonic() > end:
            raise ArchiveError(
                f"Another job holds {lock} since {timeout:.0f} s. Start again when it has ended; if there is none, "
                "remove this file: finished runs are kept."
            )
        time.sleep(0.05)


def _remove_stale(lock: Path, stale: float) -> bool:
    """Remove the lock of a job that was killed; whether there is a reason to try again at once."""
    with suppress(FileNotFoundError):
        mark = _mark_of(lock)
        if time.time() - lock.stat().st_mtime < stale and not _has_ended(mark):
            return False
        # of several jobs that find it, one only can move it away; what it moved may be the new lock of another
        aside = lock.with_name(f"{LOCK_NAME}-{secrets.token_hex(8)}")
        os.rename(lock, aside)
        if _mark_of(aside) != mark:
            with suppress(OSError):
                os.link(aside, lock)
        else:
            log.warning("The lock %s of a job that was killed is removed.", lock)
        aside.unlink()
    return True


def _machine() -> str:
    """Name of the machine; and of the container, in which process numbers are its own."""
    with suppress(OSError):
        return f"{socket.gethostname()} ({os.readlink('/proc/self/ns/pid')})"
    return socket.gethostname()


def _has_ended(mark: str | None) -> bool:
    """Whether a lock was taken by a process that ran on this machine and runs no more."""
    process, _, rest = (mark or "").partition(" ")
    if not process.isdigit() or rest.partition(" ")[2] != _machine():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _mark_of(lock: Path) -> str | None:
    try:
        return lock.read_text()
    except OSError:
        return None


def inside(directory: str | os.PathLike[str], path: str | os.PathLike[str]) -> Path:
    """Return the place of ``path`` (relative to ``directory``, or absolute) below ``directory``.

    Symbolic links among the directories are resolved. The last component is not followed, because
    `atomic_path` replaces a link instead of writing through it.

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


def _flush(path: Path) -> None:
    with open(path, "rb+") as stream:
        os.fsync(stream.fileno())


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


def _write_error(error: OSError, target: Path) -> ArchiveError:
    if error.errno in _FULL:
        problem = f"The disk or quota of {target.parent} is full"
        remedy = "Make room, or write to another disk, and start again: finished runs are kept"
    else:
        problem = f"The directory {target.parent} cannot be written"
        remedy = "Give a directory that you may write to (io.out_dir or io.in_dir)"
    return ArchiveError(f"{problem} ({error.strerror}): {target.name} was not written. {remedy}.")
