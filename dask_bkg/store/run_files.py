"""The files of a run: their states, and what the store remembers of them so that unchanged ones are not opened.

What is remembered of a file is a *mark*: a fingerprint, with the HDUs that it is of. A file that has the mark in its
present state (`dask_bkg.files.StatCache`) had a part in a run of this fingerprint. An empty fingerprint stands for a
run that could not be used.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from dask_bkg.dl3.read import RunFile
from dask_bkg.files import MISSING, StatCache, State, state_of

Hint = tuple[str, State, str]
"""Path, state, mark."""


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


def by_fingerprint(marks: Iterable[str]) -> dict[str, set[str]]:
    """Marks by their fingerprints."""
    found: dict[str, set[str]] = {}
    for mark in marks:
        found.setdefault(mark.partition(" ")[0], set()).add(mark)
    return found


def is_known(hints: StatCache, run: RunFile, fingerprint: str, states: Mapping[str, State | None]) -> bool:
    """Whether all files of a run, in these states, are still those that had this fingerprint in these HDUs."""
    mark = mark_of(run, fingerprint)
    return all(hints.knows(path, state, mark) for path, state in states.items())


def states_of(run: RunFile) -> dict[str, State | None]:
    """States of the files of a run, by their absolute paths."""
    paths = (run.path, run.gti_path, run.aeff_path)
    return {path: state_of(path) for path in dict.fromkeys(os.path.abspath(path) for path in paths if path)}


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
