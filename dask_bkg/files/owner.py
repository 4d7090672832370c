"""Which process a lock or a temporary file belongs to, and whether this process runs no more."""

from __future__ import annotations

import hashlib
import os
import socket
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

ENDED = "ended"
"""Start of a process that was killed, but that its parent has not yet asked after."""


def place() -> str:
    """Name of the machine; and of the container, in which process numbers are its own."""
    with suppress(OSError):
        return f"{socket.gethostname()} ({os.readlink('/proc/self/ns/pid')})"
    return socket.gethostname()


def start_of(pid: int) -> str:
    """When a process has started, on which boot of the machine; empty where the system does not say (Linux does)."""
    try:
        # the name of the program, in brackets, may have blanks and brackets
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (OSError, ValueError):
        return ""
    return ENDED if state in ("Z", "X") else f"{boot} {fields[18]}"


def runs(pid: int) -> bool:
    """Whether there is a process of this number here."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def short(text: str, n: int) -> str:
    """So many hexadecimal digits that are the same for the same text."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()[:n]


@lru_cache(maxsize=4)
def mark_of(pid: int) -> str:
    """Ten hexadecimal digits for this machine (six) and the start of a process on it, which is this one."""
    return short(place(), 6) + short(start_of(pid), 4)


def is_dead(pid: int, mark: str) -> bool:
    """Whether the process that had this number and mark runs no more; False where that cannot be seen from here.

    Examples
    --------
    >>> is_dead(os.getpid(), mark_of(os.getpid()))
    False
    >>> is_dead(os.getpid(), mark_of(os.getpid())[:6] + "0000")  # another process had the number before
    True
    """
    if mark[:6] != short(place(), 6):
        return False
    if not runs(pid):
        return True
    # the number may be that of another process by now
    start = start_of(pid)
    return start == ENDED or bool(start and mark[6:] not in (short(start, 4), short("", 4)))
