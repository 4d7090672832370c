"""What a store has of each run, in memory: its numbers and texts, and which row of each view has its histograms.

The key of a row in a view says for which events, which exclusion and by which reduction the histograms there are; the
row can be used as long as that is what the fingerprint of the run and the row's exclusion say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dask_bkg.errors import ArchiveError
from dask_bkg.schema import RUN_NUMBERS
from dask_bkg.store import layout
from dask_bkg.store.rows import Rows

REDUCTION = 3
"""Version of what makes histograms and numbers out of a file (`dask_bkg.reduction.reduce` and what it calls): raise
it with each change after which the same file gives other ones, and all runs are read again."""


def key_of(fingerprint: str, exclusion: str) -> int:
    """Key of histograms made of these events with this exclusion, by the present reduction; never zero."""
    digest = hashlib.blake2b(f"{REDUCTION}/{fingerprint}/{exclusion}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) or 1


def failed_with(whole_exclusion: str, views: Iterable[str]) -> str:
    """With what a run was tried when it failed: the present reduction, all regions together, and some views."""
    return f"{REDUCTION}/{whole_exclusion}/{','.join(views)}"


class Table:
    """The runs of a store, and the rows of its views that count.

    Parameters
    ----------
    path
        The store.
    views
        Names of the views that are read.

    Raises
    ------
    ArchiveError
        If it is gone or damaged.

    Attributes
    ----------
    runs
        The table of the runs.
    views
        The rows of each view.
    run_row
        Row of each run in ``runs``, by its number.
    view_row
        For each view the row that counts of each run.
    """

    def __init__(self, path: Path, views: Iterable[str]) -> None:
        try:
            with layout.disk_errors(path):
                self.runs = Rows(path / layout.RUNS)
                self.views = {view: Rows(layout.place_of(path, view)) for view in views}
        except (RuntimeError, ValueError) as error:
            if isinstance(error, ArchiveError):
                raise
            raise ArchiveError(
                f"the table of the store of run histograms {path} is damaged ({error}): move the store away, and a "
                "new one is made from the event files."
            ) from error
        self.index()

    def index(self) -> None:
        """Find the rows that count, by what is in memory and which files there are."""
        table, rows = self.runs.table, self.runs.latest()
        # numbers whose file is lost read as NaN
        rows = rows[np.isfinite(table["ontime"][rows]) | (table["error"][rows] != "")]
        self.run_row = dict(zip(table["obs_id"][rows].tolist(), rows.tolist(), strict=True))
        self.view_row = {}
        for name, view in self.views.items():
            rows = view.latest()
            rows = rows[np.isfinite(view.table["ontime"][rows])]
            self.view_row[name] = dict(zip(view.table["obs_id"][rows].tolist(), rows.tolist(), strict=True))

    def text(self, name: str, obs_id: int) -> str:
        """A text of a run; empty for one that is not there."""
        row = self.run_row.get(obs_id)
        return "" if row is None else str(self.runs.table[name][row])

    def pointing(self, obs_id: int) -> tuple[float, float]:
        """Where a run that is there looked, RA and Dec [deg]."""
        row = self.run_row[obs_id]
        return float(self.runs.table["ra_pnt"][row]), float(self.runs.table["dec_pnt"][row])

    def key(self, view: str, obs_id: int) -> int:
        """What the row of a run in a view holds; zero: there is none."""
        row = self.view_row.get(view, {}).get(obs_id)
        return 0 if row is None else int(self.views[view].table["key"][row].astype(np.uint64))

    def find(self, view: str, obs_id: int) -> int:
        """The row with the histograms of a run as it is, made with the exclusion that the row names; -1: none."""
        row, fingerprint = self.view_row.get(view, {}).get(obs_id), self.text("fingerprint", obs_id)
        if row is None or not fingerprint or self.text("error", obs_id):
            return -1
        exclusion = self.views[view].table["exclusion"][row]
        return row if self.key(view, obs_id) == key_of(fingerprint, str(exclusion)) else -1

    def columns(self) -> dict[str, NDArray]:
        """Numbers and texts of all runs in the order of ``obs_id``, with the exclusion of the fine view."""
        obs_ids = sorted(self.run_row)
        rows = np.array([self.run_row[obs_id] for obs_id in obs_ids], dtype=np.int64)
        found = {name: self.runs.table[name][rows] for name in ("obs_id", *RUN_NUMBERS, *layout.TEXTS)}
        fine, fine_row = self.views[""].table, self.view_row[""]
        for name in layout.VIEW_TEXTS:
            texts = [fine[name][fine_row[obs_id]] if obs_id in fine_row else "" for obs_id in obs_ids]
            found[name] = np.array(texts, dtype=object)
        return found

    def whole_exclusions(self) -> set[str]:
        """Digests of the whole exclusions of all rows that count."""
        return {
            text for name, rows in self.view_row.items()
            for text in self.views[name].table["whole_exclusion"][list(rows.values())].tolist()
        }  # fmt: skip
