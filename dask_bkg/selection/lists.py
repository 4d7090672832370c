"""Lists of contributing runs in a configuration: which of them were written by the user, not by a job."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Protocol


class RunLists(Protocol):
    """The lists of a ``background_selection`` section, `dask_bkg.config.BackgroundSelection`."""

    bkg_runlist: dict[int, list[int]] | None
    bkg_runlist_digest: dict[str, str] | None


def own_lists(settings: RunLists) -> dict[int, list[int]]:
    """The lists of ``bkg_runlist`` that the user wrote or changed: those without a valid mark of a job."""
    marks = settings.bkg_runlist_digest or {}
    lists = settings.bkg_runlist or {}
    return {run: runs for run, runs in lists.items() if marks.get(str(run)) != list_digest(runs)}


def list_digest(runs: Iterable[int]) -> str:
    """Mark of a list of runs: equal for equal lists."""
    return hashlib.sha256(json.dumps([int(run) for run in runs]).encode()).hexdigest()[:12]
