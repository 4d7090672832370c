"""Read whole files: refused if they unpack to more than they should, tried again if the disk or network stumbles."""

from __future__ import annotations

import errno
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

GZIP = b"\x1f\x8b"

LARGEST = 500_000_000
"""Bytes of a file, unpacked, above which it is refused: a H.E.S.S. run has a hundredth of it."""

PASSING = frozenset(
    (
        errno.EIO,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.EAGAIN,
        errno.EINTR,
        errno.EBUSY,
        errno.ENETDOWN,
        errno.ENETUNREACH,
    )
)
"""Errors of disks and networks that may be gone in a moment."""

PAUSES = (0.1, 0.5, 2.0)
"""Seconds before an operation that failed in passing is tried again."""


def patiently(work: Callable[..., T], *arguments: Any) -> T:
    """What a function returns; tried again where it fails with one of the errors that pass."""
    for pause in PAUSES:
        try:
            return work(*arguments)
        except OSError as error:
            if error.errno not in PASSING:
                raise
        time.sleep(pause)
    return work(*arguments)


def now(error: OSError) -> str:
    """What goes between "cannot be read" and the reason of an error: " now" if it may pass."""
    return " now" if error.errno in PASSING else ""


def read_unpacked(path: str | os.PathLike[str], limit: int = LARGEST) -> bytes:
    """All bytes of a file, unpacked if it begins like gzip (names lie).

    Parameters
    ----------
    path
        The file.
    limit
        Most bytes, unpacked.

    Raises
    ------
    OSError
        If it cannot be read; ``errno`` is set.
    EOFError, zlib.error
        If the packed bytes end early or are damaged.
    OverflowError
        If there are more than ``limit`` bytes; no more are unpacked.

    Examples
    --------
    >>> import gzip, tempfile
    >>> path = Path(tempfile.mkdtemp(), "zeros.gz")
    >>> _ = path.write_bytes(gzip.compress(bytes(10_000)))
    >>> len(read_unpacked(path))
    10000
    >>> read_unpacked(path, limit=100)
    Traceback (most recent call last):
    OverflowError: it has more than 100 bytes, unpacked
    """
    if patiently(lambda: os.stat(path).st_size) > limit:
        raise OverflowError(f"it has more than {limit} bytes")
    data = patiently(Path(path).read_bytes)
    if not data.startswith(GZIP):
        return data
    if int.from_bytes(data[-4:], "little") > limit:
        # the size that a packed file ends with: it is large, or was cut short; no memory is taken to find out
        _count(data, limit)
    pieces, size = [], 0
    while data:
        member = zlib.decompressobj(wbits=31)  # a gzip stream, its checksum verified
        pieces.append(member.decompress(data, limit - size + 1))
        size += len(pieces[-1])
        if size > limit:
            raise OverflowError(f"it has more than {limit} bytes, unpacked")
        if not member.eof:
            raise EOFError("the packed bytes end early")
        data = member.unused_data.lstrip(b"\0")  # programs that write to tape fill up with zeros
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _count(data: bytes, limit: int) -> None:
    """Unpack the first member of a gzip file a piece at a time; `OverflowError` if it has more than the limit."""
    member, size = zlib.decompressobj(wbits=31), 0
    while not member.eof and (data or member.unconsumed_tail):
        size += len(member.decompress(data, 1 << 20))
        data = member.unconsumed_tail
        if size > limit:
            raise OverflowError(f"it has more than {limit} bytes, unpacked")
