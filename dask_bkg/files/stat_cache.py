"""Facts that were found in files, and hold as long as size and time of change of a file are the same."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from dask_bkg.files.read import patiently
from dask_bkg.files.write import atomic_write

State = tuple[int, int]
"""Size [bytes] and time of the last change [ns] of a file."""

MISSING: State = (-1, -1)
"""The state of a file that is not there, which is something to know as well."""


def state_of(path: str | os.PathLike[str]) -> State | None:
    """State of a file: `MISSING` if there is none, None if the disk does not say."""
    try:
        stat = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return MISSING
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


class StatCache:
    """Facts that were found in files, each of which holds as long as the file has the state that it had.

    Files whose facts are known need not be opened. To lose the cache costs one look into each file. Several jobs may
    use one: `save` keeps what others have written.

    Parameters
    ----------
    path
        JSON file, ``{path: [size, mtime_ns, fact, ...]}``; one that is missing or broken is empty.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp(), "run.fits")
    >>> cache = StatCache(file.with_name("cache.json"))
    >>> _ = file.write_text("1234")
    >>> cache.add(file, state_of(file), "has four bytes")
    >>> cache.knows(file, state_of(file), "has four bytes")
    True
    >>> _ = file.write_text("12345")
    >>> cache.knows(file, state_of(file), "has four bytes")
    False
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._new: dict[str, list] = {}
        self._entries = self._read()

    def _read(self) -> dict[str, list]:
        self._read_at = state_of(self.path)
        try:
            entries = dict(json.loads(patiently(self.path.read_text)))
        except (OSError, ValueError, TypeError):
            return {}
        return {path: entry for path, entry in entries.items() if _is_entry(entry)}

    def knows(self, path: str | os.PathLike[str], state: State | None, fact: str) -> bool:
        """Whether a file that has this state is known to have a fact."""
        entry = self._entries.get(os.fspath(path))
        return entry is not None and state is not None and tuple(entry[:2]) == state and fact in entry[2:]

    def add(self, path: str | os.PathLike[str], state: State | None, fact: str) -> None:
        """Remember a fact of a file that had this state; facts of any other state of it are forgotten.

        The state is best asked before the file is read: one that is changed meanwhile does not fit it.
        """
        if state is None or self.knows(path, state, fact):
            return
        name = os.fspath(path)
        entry = self._entries.get(name, [])
        others = entry[2:] if tuple(entry[:2]) == state else []
        self._entries[name] = self._new[name] = [*state, *others, fact]

    def facts(self) -> Iterator[str]:
        """All facts of all files, in whatever states."""
        for entry in self._entries.values():
            yield from entry[2:]

    def refresh(self) -> None:
        """Take over what another job has written meanwhile."""
        if state_of(self.path) != self._read_at:
            self._entries = {**self._read(), **self._new}

    def save(self) -> None:
        """Write what is new, and keep what another job has written meanwhile."""
        if not self._new:
            return
        self.refresh()
        text = json.dumps(self._entries, separators=(",", ":"))
        atomic_write(self.path, lambda temporary: temporary.write_text(text))
        self._read_at, self._new = state_of(self.path), {}


def _is_entry(entry: object) -> bool:
    return isinstance(entry, list) and len(entry) > 1 and all(isinstance(fact, str) for fact in entry[2:])
