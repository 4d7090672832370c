"""What a job has made so far, a line each: what one that is killed has done is known to the next."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

PREFIX = ".dask_bkg-journal-"

OLD = 3600.0
"""Seconds after which a journal that is not written to is that of a job which was killed."""


class Journal:
    """The journal of one job, a hidden file in its directory until it is closed.

    It is a convenience: where it cannot be written, backgrounds are made again after a kill.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}.jsonl"

    def add(self, entries: Mapping[str, dict]) -> None:
        """Add what was made: an entry by the run's number."""
        lines = "".join(json.dumps({run: entry}) + "\n" for run, entry in entries.items())
        try:
            with open(self._path, "a", encoding="utf-8") as stream:
                stream.write(lines)
        except OSError:
            pass

    def close(self) -> None:
        """Take it away: the side file has it all by now."""
        self._path.unlink(missing_ok=True)


def read_journals(directory: Path, side_file: Path) -> dict[str, dict]:
    """Entries of the journals of a directory, the latest of each run; a line that was cut short is left out.

    A journal that is older than the side file was read when that was written, and what is told there is newer.
    """
    entries: dict[str, dict] = {}
    journals = [path for path in directory.glob(f"{PREFIX}*.jsonl") if _changed(path) >= _changed(side_file)]
    for path in sorted(journals, key=_changed):
        for line in _lines(path):
            try:
                entries |= json.loads(line)
            except (ValueError, TypeError):
                continue
    return entries


def remove_old_journals(directory: Path) -> None:
    """Take away the journals of jobs that were killed, once their entries are kept elsewhere."""
    for path in directory.glob(f"{PREFIX}*.jsonl"):
        if time.time() - _changed(path) > OLD:
            path.unlink(missing_ok=True)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
