"""What must be read to bring a store up to date: the runs that are asked for beside the table and the hints.

No event file is opened here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_bkg.archive.hints import Hints
from dask_bkg.archive.table import Table, failed_key
from dask_bkg.archive.update import BlockWork
from dask_bkg.dl3.read import RunFile
from dask_bkg.exclusion import SkyRegions, concat_regions, exclusion_digest


def digest_of(regions: SkyRegions | None) -> str:
    """Digest of all regions together; None is no region."""
    return (concat_regions([]) if regions is None else regions).digest()


def find_work(
    table: Table,
    views: Sequence[str],
    hints: Hints,
    runs: Sequence[RunFile],
    regions: SkyRegions | None,
    radius: float,
) -> list[RunFile]:
    """Runs that must be read; of those that need not, the digest of all regions is brought up to date.

    Parameters
    ----------
    table, hints
        What is known.
    views
        Names of the views that are needed.
    runs
        Those that are asked for, each once.
    regions, radius
        The exclusion, and the distance from a pointing within which it matters [deg].
    """
    whole = digest_of(regions)
    rows = table.rows([run.obs_id for run in runs])
    return [
        run
        for run, row in zip(runs, rows.tolist(), strict=True)
        if row < 0 or not _is_current(table, views, hints, run, row, regions, radius, whole)
    ]


def _is_current(
    table: Table,
    views: Sequence[str],
    hints: Hints,
    run: RunFile,
    row: int,
    regions: SkyRegions | None,
    radius: float,
    whole: str,
) -> bool:
    keys, columns = {int(table.keys[view][row]) for view in views}, table.columns
    if columns["error"][row]:
        # it may have failed because of the exclusion
        return keys == {failed_key(whole)} and hints.knows(run, "")
    fingerprint = columns["fingerprint"][row]
    if not fingerprint or keys != {table.key(row)} or not hints.knows(run, fingerprint):
        return False
    if columns["whole_exclusion"][row] == whole:
        return True
    pointing = float(columns["ra_pnt"][row]), float(columns["dec_pnt"][row])
    if exclusion_digest(regions, *pointing, radius) != columns["exclusion"][row]:
        return False
    columns["whole_exclusion"][row] = whole
    return True


def make_blocks(
    runs: Sequence[RunFile],
    rows: NDArray,
    table: Table,
    views: Sequence[str],
    size: int,
    about: Mapping[str, Any],
) -> list[BlockWork]:
    """One piece of work for each block of rows.

    Parameters
    ----------
    runs, rows
        Runs to be read, and their rows.
    table
        What is known, with these rows.
    views
        Names of the views that are needed.
    size
        Rows of a block.
    about
        The fields of `BlockWork` that are the same for all.
    """
    keys = np.stack([table.keys[view][rows] for view in views], axis=1)
    fingerprints = table.columns["fingerprint"][rows]
    return [
        BlockWork(
            block,
            tuple(int(rows[i]) for i in places),
            tuple(runs[i] for i in places),
            tuple(str(fingerprints[i]) for i in places),
            tuple(tuple(int(key) for key in keys[i]) for i in places),
            **about,
        )
        for block, places in group_blocks(rows, size).items()
    ]


def group_blocks(rows: Iterable[int], size: int) -> dict[int, list[int]]:
    """Places in ``rows`` by the block that the row is in."""
    groups: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(int(row) // size, []).append(place)
    return dict(sorted(groups.items()))
