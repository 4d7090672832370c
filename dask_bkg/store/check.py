"""Whether all of a store can be read: a run store, or a store of results."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_bkg.store import layout
from dask_bkg.store.rows import Rows, attributes_of
from dask_bkg.store.table import Table

REMEDIES = {
    "table": "the next job that writes into the store mends its tables",
    "runs": (
        "remove these files, and run `dask-bkg reduce` or `dask-bkg run` again: the runs that have histograms in "
        "them are read again, and no others"
    ),
    "backgrounds": "run `dask-bkg run` again: it writes those of these backgrounds that it is asked for again",
}


class Checked(NamedTuple):
    """What is wrong with a store.

    Attributes
    ----------
    n_items
        Number of runs, or of backgrounds, that it has.
    tables
        What is wrong with its tables, in words.
    files
        Files of histograms or rates that are damaged or lost, with the numbers of the runs that are concerned.
    remedies
        What to do.
    """

    n_items: int
    tables: list[str]
    files: dict[Path, NDArray]
    remedies: list[str]

    @property
    def is_whole(self) -> bool:
        """Whether nothing is wrong."""
        return not self.tables and not self.files

    @property
    def runs(self) -> list[int]:
        """Numbers of the runs of which something is damaged or lost."""
        return sorted({obs_id for numbers in self.files.values() for obs_id in numbers.tolist()})

    def __str__(self) -> str:
        if self.is_whole:
            return f"checked: all of {self.n_items} runs can be read"
        by_runs: dict[tuple[int, ...], list[Path]] = {}
        for file, numbers in self.files.items():
            by_runs.setdefault(tuple(numbers.tolist()), []).append(file)
        lines = [f"checked: of {self.n_items} runs {len(self.runs)} are damaged", *self.tables]
        for runs, there in by_runs.items():
            lines += [f"runs {', '.join(map(str, runs))}: damaged or lost in", *(f"  {file}" for file in there)]
        return "\n".join([*lines, *self.remedies])


def check_store(path: str | os.PathLike[str]) -> Checked:
    """Read all chunks of all arrays of a store.

    Parameters
    ----------
    path
        A run store, or a store of results (``backgrounds.zarr``).

    Raises
    ------
    ArchiveError
        If it is neither, or cannot be read at all.

    Examples
    --------
    >>> from dask_bkg.store.layout import create
    >>> import tempfile
    >>> from dask_bkg.binning import fine_view
    >>> path = Path(tempfile.mkdtemp(), "runs.zarr")
    >>> create(path, fine_view(), 25)
    >>> print(check_store(path))
    checked: all of 0 runs can be read
    """
    path = Path(os.path.abspath(path))
    if "dask_bkg_rows" in attributes_of(path):
        rows = Rows(path)
        return _checked(len(rows.latest()), {"": rows}, "backgrounds")
    layout.attributes_of(path)
    table = Table(path, layout.views_of(path))
    return _checked(len(table.run_row), {"runs": table.runs, **table.views}, "runs")


def _checked(n_items: int, stores: Mapping[str, Rows], what: str) -> Checked:
    tables, files = list[str](), dict[Path, NDArray]()
    for rows in stores.values():
        tables += rows.damaged.values()
        files |= {file: _numbers(rows, bad) for file, bad in rows.find_damage().items()}
    remedies = [text for text, needed in ((REMEDIES["table"], tables), (REMEDIES[what], files)) if needed]
    return Checked(n_items, tables, files, remedies)


def _numbers(rows: Rows, bad: Iterable[int]) -> NDArray:
    return np.unique(rows.table["obs_id"][np.asarray(bad, dtype=np.int64)])
