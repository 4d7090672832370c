"""Which files hold which runs, as far as size and time of a file can tell: so that unchanged ones are not opened.

A hint is a remark on a path, ``{path: [size, mtime_ns, fingerprint, ...]}``: with this size and time it had a part in
the runs of these fingerprints; an empty one stands for a run that could not be used.  Hints are true or void whatever
store they lie beside, and to lose them costs one look into each file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from dask_bkg.dl3.atomic import atomic_path
from dask_bkg.dl3.read import RunFile

Hint = tuple[str, int, int, str]
"""Path, size, time of the last change [ns], fingerprint."""


def files_of(run: RunFile) -> tuple[str, ...]:
    """Absolute paths of the files of a run, each once."""
    paths = (run.path, run.gti_path, run.aeff_path)
    return tuple(dict.fromkeys(os.path.abspath(path) for path in paths if path))


def state_of(path: str) -> tuple[int, int] | None:
    """Size and time of the last change [ns] of a file; None if there is none."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def states_of(run: RunFile) -> list[tuple[str, int, int]]:
    """Path, size and time of the last change [ns] of the files of a run that are there."""
    return [(path, *state) for path in files_of(run) if (state := state_of(path)) is not None]


class Hints:
    """The hints of a store, in memory; `save` writes them.

    Parameters
    ----------
    path
        JSON file; one that is missing or broken holds none.
    """

    def __init__(self, path: Path):
        self.path = path
        self._changed: dict[str, list] = {}
        self._known = self._read()

    def _read(self) -> dict[str, list]:
        self._seen = state_of(str(self.path))
        try:
            return dict(json.loads(self.path.read_text()))
        except (OSError, ValueError, TypeError):
            return {}

    def knows(self, run: RunFile, fingerprint: str) -> bool:
        """Whether all files of a run are still those that had this fingerprint."""
        return all(self._had(path, state_of(path), fingerprint) for path in files_of(run))

    def _had(self, path: str, state: tuple[int, int] | None, fingerprint: str) -> bool:
        hint = self._known.get(path)
        return hint is not None and state is not None and tuple(hint[:2]) == state and fingerprint in hint[2:]

    def add(self, hint: Hint) -> None:
        """Remember a hint; one of the same path that is older in size or time is dropped."""
        path, size, changed, fingerprint = hint
        if self._had(path, (size, changed), fingerprint):
            return
        old = self._known.get(path, [])
        # one file of effective areas may serve many runs
        others = old[2:] if tuple(old[:2]) == (size, changed) else []
        self._known[path] = self._changed[path] = [size, changed, *others, fingerprint]

    def refresh(self) -> None:
        """Take over what another job has written meanwhile."""
        if state_of(str(self.path)) != self._seen:
            self._known = {**self._read(), **self._changed}

    def save(self) -> None:
        """Write the hints, and keep those that another job has written meanwhile."""
        if not self._changed:
            return
        self.refresh()
        with atomic_path(self.path) as temporary:
            temporary.write_text(json.dumps(self._known, separators=(",", ":")))
        self._seen, self._changed = state_of(str(self.path)), {}
