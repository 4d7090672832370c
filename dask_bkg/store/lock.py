"""One job at a time writes into a store: a lock file that says who, and shows that this job is alive.

Unlike `dask_bkg.files.locked`, which is held for moments and waited for, this one is held for hours: a second
job is told at once.  The token of the lock travels with the tasks, which look whether it still holds before they
write: tasks of a job that was killed, or that stood still until another one took over, write nothing.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from dask_bkg.errors import ArchiveError, StoreBusyError

log = logging.getLogger(__name__)

STALE = 300.0
"""Seconds without a sign of life after which a lock belongs to nobody."""


BEAT_EVERY = 20.0
"""Seconds between signs of life."""


class WriteLock:
    """The lock of a store.

    Parameters
    ----------
    store
        Path of the store; the lock lies beside it.
    """

    def __init__(self, store: Path):
        self.path = store.with_name(f"{store.name}.lock")
        self.token = secrets.token_hex(16)
        self._store = store

    def acquire(self) -> None:
        """Take the lock.

        Raises
        ------
        StoreBusyError
            If another job holds it, saying which and what to do.
        """
        me = {"host": _place(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S"), "token": self.token}
        while True:
            with suppress(FileExistsError):
                handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
                try:
                    with os.fdopen(handle, "w") as stream:
                        json.dump(me, stream)
                except BaseException:
                    self.path.unlink(missing_ok=True)
                    raise
                return
            with suppress(FileNotFoundError):
                self._remove_stale()

    def beat(self) -> None:
        """Show that this job is alive.

        Raises
        ------
        ArchiveError
            If another job has taken over.
        """
        check(self.path, self.token)
        with suppress(FileNotFoundError):
            os.utime(self.path)

    def live(self, stop: threading.Event, also: Callable[[], None]) -> None:
        """Show until ``stop`` that this job is alive, and do something else about every second."""
        beaten = time.monotonic()
        while not stop.wait(1.0):
            try:
                if time.monotonic() - beaten > BEAT_EVERY:
                    self.beat()
                    beaten = time.monotonic()
                also()
            except Exception as error:  # the driver meets it again when it writes
                log.debug("%s: %s", self._store, error)

    def release(self) -> None:
        """Give the lock back, if it is still this one."""
        if _read(self.path).get("token") == self.token:
            self.path.unlink(missing_ok=True)

    def _remove_stale(self) -> None:
        """Remove the lock of a job that is no more; `StoreBusyError` if it is alive."""
        holder, age = _read(self.path), time.time() - self.path.stat().st_mtime
        if age < STALE and not _is_dead(holder):
            who, where, since = (holder.get(name, "?") for name in ("pid", "host", "since"))
            raise StoreBusyError(
                f"Another job writes into {self._store}: process {who} on {where}, since {since}, alive "
                f"{max(age, 0):.0f} s ago. Start again when it has ended; if it is no more, its lock {self.path} is "
                f"void after {STALE:.0f} s, or remove it. Its finished runs are kept."
            )
        # of several jobs that find it, one only can move it away; what it moved may be the new lock of another
        aside = self.path.with_name(f"{self.path.name}-{secrets.token_hex(8)}")
        os.rename(self.path, aside)
        if _read(aside) != holder:
            with suppress(OSError):
                os.link(aside, self.path)
        else:
            log.warning("The job that wrote into %s has gone; its work is continued.", self._store)
        aside.unlink()


def check(path: str | os.PathLike[str], token: str) -> None:
    """Raise `ArchiveError` if the lock is no more the one of this token."""
    if _read(Path(path)).get("token") != token:
        raise ArchiveError(
            f"The lock {path} was taken over by another job, or removed: this one stood still for too long, or was "
            "ended. Nothing more is written by it; start it again when the other one has ended."
        )


def _place() -> str:
    """Name of the machine; and of the container, in which process numbers are its own."""
    with suppress(OSError):
        return f"{socket.gethostname()} ({os.readlink('/proc/self/ns/pid')})"
    return socket.gethostname()


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether the process that holds a lock ran here and runs no more."""
    if holder.get("host") != _place() or not isinstance(holder.get("pid"), int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _read(path: Path) -> dict[str, Any]:
    """What a lock says; nothing where there is none, or in the moment in which it is written."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}
