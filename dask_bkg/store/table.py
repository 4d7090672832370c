"""The table of a store in memory: one row a run, with its numbers, its texts and the key of its histograms.

The key of a row in a view says for which events, which exclusion and by which reduction the histograms there are; the
row can be used as long as that is what its fingerprint and the view's exclusion say.  Zero is never valid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dask_bkg.binning import View
from dask_bkg.errors import ArchiveError
from dask_bkg.schema import RUN_NUMBERS
from dask_bkg.store import layout

REDUCTION = 1
"""Version of what makes histograms and numbers out of a file (`dask_bkg.reduction.reduce` and what it calls): raise
it with each change after which the same file gives other ones, and all runs are read again."""


def key_of(fingerprint: str, exclusion: str) -> int:
    """Key of histograms made of these events with this exclusion, by the present reduction; never zero."""
    digest = hashlib.blake2b(f"{REDUCTION}/{fingerprint}/{exclusion}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) or 1


def failed_key(whole_exclusion: str) -> int:
    """Key of a run that could not be used when all regions together had this digest."""
    return key_of("failed", whole_exclusion)


class Table:
    """All rows of a store.

    Attributes
    ----------
    obs_id
        Run numbers, int64; -1: a row that a killed job made and did not come to fill.
    columns
        `dask_bkg.schema.RUN_NUMBERS` (float64) and `dask_bkg.store.layout.TEXTS` (str), each of shape ``(runs,)``.
    keys
        For each view what its histograms are of, uint64 of shape ``(runs,)``.
    exclusions
        For each view the texts `dask_bkg.store.layout.VIEW_TEXTS`, each of shape ``(runs,)``.
    """

    def __init__(
        self,
        obs_id: NDArray,
        columns: dict[str, NDArray],
        keys: dict[str, NDArray],
        exclusions: dict[str, dict[str, NDArray]],
    ):
        self.obs_id, self.columns, self.keys, self.exclusions = obs_id, columns, keys, exclusions
        self._order = np.argsort(obs_id, kind="stable")

    @classmethod
    def read(cls, path: Path, views: Iterable[str]) -> Table:
        """The table as it is on disk."""
        obs_id = _read(path, "", "obs_id")
        n = obs_id.size
        columns = {name: _read(path, "", name)[:n] for name in RUN_NUMBERS}
        columns |= {name: np.asarray(_read(path, "", name)[:n], dtype=object) for name in layout.TEXTS}
        # a view that was added while the store grew may be behind, any other array may be ahead
        views = list(views)
        keys = {view: _resized(_read(path, view, "key"), n) for view in views}
        exclusions = {
            view: {name: _resized(np.asarray(_read(path, view, name), dtype=object), n) for name in layout.VIEW_TEXTS}
            for view in views
        }
        # a chunk of numbers that is lost reads as NaN
        lost = ~np.isfinite(columns["ontime"]) & (columns["error"] == "")
        keys = {view: np.where(lost, 0, key).astype(np.uint64) for view, key in keys.items()}
        return cls(obs_id, columns, keys, exclusions)

    def add_view(self, view: str) -> None:
        """Room for a view of which nothing is known."""
        self.keys[view] = np.zeros(len(self), np.uint64)
        self.exclusions[view] = {name: np.full(len(self), "", dtype=object) for name in layout.VIEW_TEXTS}

    def __len__(self) -> int:
        return self.obs_id.size

    def rows(self, obs_ids: ArrayLike) -> NDArray:
        """Rows of runs, -1 for those that are not there."""
        wanted = np.asarray(obs_ids, dtype=np.int64)
        if not len(self):
            return np.full(wanted.shape, -1)
        place = np.searchsorted(self.obs_id, wanted, sorter=self._order)
        rows = self._order[np.minimum(place, len(self) - 1)]
        return np.where((self.obs_id[rows] == wanted) & (wanted >= 0), rows, -1)

    def usable(self, view: str) -> NDArray:
        """Which rows have histograms in a view that are those of the run as it is; boolean."""
        valid = np.zeros(len(self), dtype=bool)
        for row in np.flatnonzero((self.keys[view] != 0) & (self.columns["error"] == "")).tolist():
            valid[row] = self.is_valid(view, row)
        return valid

    def is_valid(self, view: str, row: int) -> bool:
        """Whether the histograms of a row in a view are those of its fingerprint and of the view's exclusion."""
        fingerprint = self.columns["fingerprint"][row]
        return bool(fingerprint) and self.keys[view][row] == key_of(
            fingerprint, self.exclusions[view]["exclusion"][row]
        )

    def add(self, obs_ids: Sequence[int]) -> NDArray:
        """Rows for new runs: those that nobody filled, then new ones at the end."""
        free = np.flatnonzero(self.obs_id < 0)[: len(obs_ids)]
        n, more = len(self), len(obs_ids) - free.size
        rows = np.append(free, np.arange(n, n + more))
        self.obs_id = np.append(self.obs_id, np.full(more, -1))
        self.obs_id[rows] = obs_ids
        self._order = np.argsort(self.obs_id, kind="stable")
        for columns in (self.columns, *self.exclusions.values()):
            for name, column in columns.items():
                columns[name] = np.append(column, np.full(more, "" if column.dtype == object else np.nan))
                columns[name][rows] = "" if column.dtype == object else np.nan
        for view, key in self.keys.items():
            self.keys[view] = _resized(key, n + more)
            self.keys[view][rows] = 0
        return rows

    def rows_for(self, obs_ids: Sequence[int]) -> NDArray:
        """Rows of runs; those that are new get some."""
        rows = self.rows(obs_ids)
        new = np.flatnonzero(rows < 0)
        if new.size:
            rows[new] = self.add([obs_ids[int(i)] for i in new])
        return rows

    def tell(
        self, row: int, numbers: Mapping[str, float], texts: Mapping[str, str], exclusions: Mapping[str, str]
    ) -> None:
        """What is known of a row from now on, with the digest of its exclusion for each view."""
        for name in RUN_NUMBERS:
            self.columns[name][row] = numbers.get(name, np.nan)
        for name in layout.TEXTS:
            self.columns[name][row] = texts.get(name, "")
        for view, exclusion in exclusions.items():
            self.exclusions[view]["exclusion"][row] = exclusion
            self.exclusions[view]["whole_exclusion"][row] = texts.get("whole_exclusion", "")

    def make_room(self, path: Path, views: Mapping[str, View], changed: set[int]) -> None:
        """Make the arrays on disk as long as the table, and write keys of rows before new ones are seen."""
        grown = not layout.is_consolidated(path, views, len(self))
        if grown:
            layout.grow(path, views, len(self))
        if changed:
            self.write_keys(path, changed)
            self.write_ids(path)
        if grown:
            layout.consolidate(path)

    def write_ids(self, path: Path) -> None:
        """Write the run numbers."""
        _write(path, "", "obs_id", self.obs_id, range(len(self)))

    def write_columns(self, path: Path, rows: Iterable[int]) -> None:
        """Write numbers and texts, in the chunks that hold these rows."""
        rows = list(rows)
        for view, columns in (("", self.columns), *self.exclusions.items()):
            for name, column in columns.items():
                _write(path, view, name, column, rows)

    def write_keys(self, path: Path, rows: Iterable[int]) -> None:
        """Write the keys of all views, in the chunks that hold these rows."""
        rows = list(rows)
        for view, key in self.keys.items():
            _write(path, view, "key", key, rows)


def _read(path: Path, view: str, name: str) -> NDArray:
    try:
        return np.asarray(layout.open_array(path, view, name)[:])
    except (RuntimeError, ValueError) as error:
        raise ArchiveError(
            f"the table of the store of run histograms {path} is damaged ({view}/{name}: {error}): move the store "
            "away, and a new one is made from the event files."
        ) from error


def _write(path: Path, view: str, name: str, column: NDArray, rows: Iterable[int]) -> None:
    array, size = layout.open_array(path, view, name, "r+"), layout.TABLE_CHUNK
    for chunk in sorted({row // size for row in rows}):
        part = slice(chunk * size, min((chunk + 1) * size, column.size))
        array[part] = column[part]


def _resized(column: NDArray, n: int) -> NDArray:
    """The first ``n`` values, zeros or empty texts added where there are fewer."""
    nothing: Any = "" if column.dtype == object else 0
    return np.append(column, np.full(max(n - column.size, 0), nothing, column.dtype))[:n]
