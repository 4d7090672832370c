"""One job at a time: a lock file that says which job holds it, and shows that this job is alive.

`locked` is for moments, and waits for another job. A `Lock` may be held for hours, and a second job learns at once
that it cannot have it.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dask_bkg.errors import ArchiveError, StoreBusyError
from dask_bkg.files.owner import ENDED, place, runs, start_of
from dask_bkg.files.read import now, patiently
from dask_bkg.files.write import temporary_path, write_error

log = logging.getLogger(__name__)

LOCK_NAME = ".dask_bkg-lock"
STALE = 300.0
"""Seconds without a sign of life after which a lock of another machine is that of a killed job."""
SAY_AFTER = 5.0
"""Seconds of waiting after which is said what for."""
BEAT_EVERY = 20.0
"""Seconds between signs of life of a job that keeps its lock for long."""


@contextmanager
def locked(directory: str | os.PathLike[str], timeout: float = 600.0) -> Iterator[None]:
    """Keep other jobs from changing the index or results of ``directory`` until the block ends.

    For moments: what is read and written back within the block cannot lose what another job writes meanwhile. The
    directory is made if missing.

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
    lock = Lock(Path(directory, LOCK_NAME), f"holds the lock of {directory}")
    try:
        lock.path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout)
    except OSError as error:
        raise write_error(error, lock.path) from error
    try:
        # the results of 20,000 runs are written under it: a minute, and more on a busy disk
        with lock.kept_alive():
            yield
    finally:
        lock.release()


@dataclass(frozen=True)
class Lock:
    """A lock file, which names the job that holds it and whose time of change says when this job was last alive.

    A job that holds a lock for hours shows that it is alive (`kept_alive`) and gives
    the lock to its tasks, which `check` it before they write: tasks of a job that was killed, or stood still until
    another one took over, write nothing.

    Attributes
    ----------
    path
        The lock file.
    what
        What a job does while it holds the lock, for messages: ``"writes into runs.zarr"``.
    token
        What distinguishes this lock from all others of the same file.
    """

    path: Path
    what: str
    token: str = field(default_factory=lambda: secrets.token_hex(16))

    def acquire(self, timeout: float = 0.0) -> None:
        """Take the lock, after another job if that ends within ``timeout`` seconds.

        The lock of a job that was killed is taken over: on this machine as soon as its process has ended, and never
        before; on another one without a sign of life for `STALE` seconds.

        Raises
        ------
        StoreBusyError
            If another job holds it: which, since when, and what to do.
        OSError
            If the disk refuses.
        """
        start, said = time.monotonic(), False
        while not patiently(self._create):
            try:
                text = _read_text(self.path)
                holder = _parse(text)
                dead = _is_dead(holder)
                if dead or (dead is None and self._age() >= STALE):
                    self._take_away(text)
                    continue
                waited = time.monotonic() - start
                if waited >= timeout:
                    raise self._busy(holder, self._age())
            except FileNotFoundError:  # given back at this moment
                continue
            if waited > SAY_AFTER and not said:
                log.info("waiting for process %s on %s, which %s", holder.get("pid"), holder.get("host"), self.what)
                said = True
            # to ask for the time of another machine makes a file
            time.sleep(0.5 if dead is None else 0.05)

    def _age(self) -> float:
        """Seconds since the last sign of life, by the clock of the disk: that of this machine may be another one."""
        probe = temporary_path(self.path)
        probe.touch(exist_ok=False)
        try:
            return probe.stat().st_mtime - self.path.stat().st_mtime
        finally:
            probe.unlink()

    def _create(self) -> bool:
        """Make the lock file if there is none; opening it exclusively is atomic on network disks too."""
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        me = {"host": place(), "pid": os.getpid(), "start": start_of(os.getpid())}
        try:
            with os.fdopen(handle, "w") as stream:
                json.dump({**me, "since": time.strftime("%Y-%m-%d %H:%M:%S"), "token": self.token}, stream)
        except BaseException:
            self.path.unlink(missing_ok=True)
            raise
        return True

    def _take_away(self, text: str) -> None:
        """Remove the lock of a killed job, which has this text."""
        # a job that gave it back and ended between the two looks was not killed
        if _read_text(self.path) != text:
            return
        # of several jobs that find it, one only can move it away; what it moved may be the new lock of another
        aside = temporary_path(self.path)
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return
        if _read_text(aside) != text:
            with suppress(OSError):
                os.link(aside, self.path)
        else:
            log.warning("The job that held %s has gone; its work is continued.", self.path)
        aside.unlink()

    def _busy(self, holder: dict[str, Any], age: float) -> StoreBusyError:
        who, where, since = (holder.get(name, "?") for name in ("pid", "host", "since"))
        return StoreBusyError(
            f"Another job {self.what}: process {who} on {where}, since {since}, alive {max(age, 0):.0f} s ago. Start "
            f"again when it has ended; its finished runs are kept. If it was killed, its lock {self.path} is void "
            f"{STALE:.0f} s after its last sign of life, or remove this file."
        )

    def check(self) -> None:
        """Raise `ArchiveError` if this job does not hold the lock any more."""
        try:
            token = _parse(_read_text(self.path)).get("token")
        except OSError as error:
            raise ArchiveError(
                f"The lock {self.path} cannot be read{now(error)} ({error.strerror}): start again"
            ) from error
        if token != self.token:
            raise ArchiveError(
                f"The lock {self.path} was taken over by another job, or removed: this one stood still for too long, "
                "or was ended. Nothing more is written by it; start it again when the other one has ended."
            )

    def beat(self) -> None:
        """Show that this job is alive; raise `ArchiveError` if another one has taken over."""
        self.check()
        with suppress(FileNotFoundError):
            os.utime(self.path)

    @contextmanager
    def kept_alive(self) -> Iterator[None]:
        """Show that this job is alive until the block ends, in a thread."""
        stop = threading.Event()
        thread = threading.Thread(target=self._live, args=(stop,), daemon=True, name="lock")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _live(self, stop: threading.Event) -> None:
        while not stop.wait(BEAT_EVERY):
            try:
                self.beat()
            except Exception as error:  # the job meets it again when it writes
                log.debug("%s: %s", self.path, error)

    def release(self) -> None:
        """Give the lock back; one that another job has taken over is left to it."""
        with suppress(OSError):  # this process ends, and so does its lock
            if _parse(_read_text(self.path)).get("token") == self.token:
                self.path.unlink(missing_ok=True)


def _is_dead(holder: dict[str, Any]) -> bool | None:
    """Whether the process that holds a lock runs no more; None where it cannot be seen from here."""
    pid = holder.get("pid")
    if holder.get("host") != place() or not isinstance(pid, int):
        return None
    if not runs(pid):
        return True
    # the number may be that of another process by now
    start = start_of(pid)
    return start == ENDED or bool(start and holder.get("start") and start != holder["start"])


def _read_text(path: Path) -> str:
    """What a lock says; empty where there is none, or in the moment in which it is written."""
    try:
        return patiently(path.read_text)
    except (FileNotFoundError, ValueError):
        return ""


def _parse(text: str) -> dict[str, Any]:
    with suppress(ValueError, TypeError):
        return dict(json.loads(text))
    return {}
