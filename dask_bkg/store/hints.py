"""Which files hold which runs, as far as size and time of a file can tell: so that unchanged ones are not opened.

A hint is a remark on a path, ``{path: [size, mtime_ns, mark, ...]}``: with this size and time it had a part in the
runs of these marks, and a mark is a fingerprint with the HDUs that it is of.  An empty fingerprint stands for a run
that could not be used.  Hints are true or void whatever store they lie beside, and to lose them costs one look into
each file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from dask_bkg.dl3.read import RunFile
from dask_bkg.files import atomic_path

Hint = tuple[str, int, int, str]
"""Path, size, time of the last change [ns], mark."""

State = tuple[int, int]
"""Size and time of the last change [ns] of a file."""

MISSING: State = (-1, -1)
"""The state of a file that is not there, which is something to know as well."""


def mark_of(run: RunFile, fingerprint: str) -> str:
    """A fingerprint, and the names of the HDUs that it is of, where the index gives them.

    Examples
    --------
    >>> mark_of(RunFile(1, "run.fits"), "abc"), mark_of(RunFile(1, "run.fits", "EVENTS", "gti.fits"), "abc")
    ('abc', 'abc EVENTS//apart')
    """
    apart = "apart" if run.gti_path not in ("", run.path) else ""
    hdus = "/".join((run.events_hdu.strip().upper(), run.gti_hdu.strip().upper(), apart))
    return fingerprint if hdus == "//" else f"{fingerprint} {hdus}"


def files_of(run: RunFile) -> tuple[str, ...]:
    """Absolute paths of the files of a run, each once."""
    paths = (run.path, run.gti_path, run.aeff_path)
    return tuple(dict.fromkeys(os.path.abspath(path) for path in paths if path))


def state_of(path: str) -> State | None:
    """Size and time of the last change [ns] of a file, `MISSING`, or None if the disk does not say."""
    try:
        stat = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return MISSING
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def states_of(run: RunFile) -> dict[str, State | None]:
    """States of the files of a run, by their absolute paths."""
    return {path: state_of(path) for path in files_of(run)}


def out_of_reach(run: RunFile, states: Mapping[str, State | None]) -> str:
    """Why a run cannot be read at all, as its files are; empty if it may be.

    An effective area that is not there is no reason: the run has some numbers less.
    """
    for path in dict.fromkeys(os.path.abspath(path) for path in (run.path, run.gti_path) if path):
        if states[path] == MISSING:
            return f"run {run.obs_id}: the index names {path}, which does not exist: restore it or repair the index"
        if states[path] is None:
            return f"run {run.obs_id}: {path} cannot be reached: is its disk there, and may you read it?"
    return ""


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
        self._marks: dict[str, set[str]] | None = None
        self._known = self._read()

    def _read(self) -> dict[str, list]:
        self._seen = state_of(str(self.path))
        try:
            return dict(json.loads(self.path.read_text()))
        except (OSError, ValueError, TypeError):
            return {}

    def knows(self, run: RunFile, fingerprint: str, states: Mapping[str, State | None]) -> bool:
        """Whether all files of a run, as they are, are still those that had this fingerprint in these HDUs."""
        mark = mark_of(run, fingerprint)
        return all(self._had(path, state, mark) for path, state in states.items())

    def _had(self, path: str, state: State | None, mark: str) -> bool:
        hint = self._known.get(path)
        return hint is not None and state is not None and tuple(hint[:2]) == state and mark in hint[2:]

    def marks(self, fingerprint: str) -> Iterable[str]:
        """All marks that are known of a fingerprint; itself where there is none."""
        if self._marks is None:
            self._marks = {}
            for hint in self._known.values():
                for mark in hint[2:]:
                    self._marks.setdefault(mark.partition(" ")[0], set()).add(mark)
        return tuple(self._marks.get(fingerprint, (fingerprint,)))

    def add(self, hint: Hint) -> None:
        """Remember a hint; one of the same path that is older in size or time is dropped."""
        path, size, changed, mark = hint
        if self._had(path, (size, changed), mark):
            return
        old = self._known.get(path, [])
        # one file of effective areas may serve many runs
        others = old[2:] if tuple(old[:2]) == (size, changed) else []
        self._known[path] = self._changed[path] = [size, changed, *others, mark]
        if self._marks is not None:
            self._marks.setdefault(mark.partition(" ")[0], set()).add(mark)

    def refresh(self) -> None:
        """Take over what another job has written meanwhile."""
        if state_of(str(self.path)) != self._seen:
            self._known, self._marks = {**self._read(), **self._changed}, None

    def save(self) -> None:
        """Write the hints, and keep those that another job has written meanwhile."""
        if not self._changed:
            return
        self.refresh()
        with atomic_path(self.path) as temporary:
            temporary.write_text(json.dumps(self._known, separators=(",", ":")))
        self._seen, self._changed = state_of(str(self.path)), {}
