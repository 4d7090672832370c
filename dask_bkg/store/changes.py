"""What must be read to bring a store up to date: the runs that are asked for beside the table and the hints.

No event file is opened here.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_bkg.binning import View
from dask_bkg.dl3.read import RunFile
from dask_bkg.files import MISSING, StatCache, State
from dask_bkg.sky.exclusion import SkyRegions, concat_regions, exclusion_digest
from dask_bkg.store import layout
from dask_bkg.store.run_files import is_known, out_of_reach, states_of
from dask_bkg.store.table import Table, failed_key
from dask_bkg.store.update import BlockWork

log = logging.getLogger(__name__)


def digest_of(regions: SkyRegions | None) -> str:
    """Digest of all regions together; None is no region."""
    return (concat_regions([]) if regions is None else regions).digest()


def void_lost(table: Table, path: Path, views: Iterable[View], size: int) -> set[int]:
    """Make rows void whose chunks, of so many rows, are no more on disk, and give them.

    Some disks clear away what nobody has read for long.
    """
    lost, blocks = set[int](), np.arange(len(table)) // size
    for view in views:
        keys = table.keys[view.name]
        valid = (keys != 0) & (table.columns["error"] == "")
        if valid.any():
            gone = np.flatnonzero(valid & ~np.isin(blocks, list(layout.blocks_on_disk(path, view))))
            keys[gone] = 0
            lost |= set(gone.tolist())
    return lost


class Needed(NamedTuple):
    """A run that must be read.

    Attributes
    ----------
    run
        Where it is.
    held
        For each view whether its histograms are right unless the events have changed.
    replaces
        Digest of the whole exclusion of histograms that are there, and right but for their exclusion; empty: none.
    """

    run: RunFile
    held: tuple[bool, ...]
    replaces: str


class Asked:
    """The runs, views and exclusion that a job asks for, beside what a store has.

    Parameters
    ----------
    table, hints
        What is known.
    views
        Those that are needed.
    regions
        The exclusion.

    Attributes
    ----------
    absent
        Runs of which something is known, and which are out of reach at the moment: why.
    touched
        Rows of which the digest of the whole exclusion was brought up to date.
    """

    def __init__(self, table: Table, hints: StatCache, views: Sequence[View], regions: SkyRegions | None):
        self.table, self.hints, self.views, self.regions = table, hints, views, regions
        self.whole = digest_of(regions)
        self.absent: dict[int, str] = {}
        self.touched: set[int] = set()

    def find_work(self, runs: Sequence[RunFile]) -> list[Needed]:
        """Runs that must be read; of those that need not, the digest of the whole exclusion is brought up to date."""
        rows = self.table.rows([run.obs_id for run in runs])
        found = [self._look(run, row) for run, row in zip(runs, rows.tolist(), strict=True)]
        return [needed for needed in found if needed is not None]

    def _look(self, run: RunFile, row: int) -> Needed | None:
        """What must be read of a run; None: nothing."""
        nothing = Needed(run, (False,) * len(self.views), "")
        if row < 0:
            return nothing
        states, columns = states_of(run), self.table.columns
        if columns["error"][row]:
            return None if self._failed_as_before(run, row, states) else nothing
        fingerprint = columns["fingerprint"][row]
        if not fingerprint:
            return nothing
        if why := out_of_reach(run, states):
            # its histograms are what they were, and needed again when the disk is back
            self.absent[run.obs_id] = why
            return None
        valid = [self.table.is_valid(view.name, row) for view in self.views]
        held = tuple(ok and self._same_exclusion(view, row) for ok, view in zip(valid, self.views, strict=True))
        if all(held) and is_known(self.hints, run, fingerprint, states):
            return None
        other = [view.name for view, ok, still in zip(self.views, valid, held, strict=True) if ok and not still]
        return Needed(run, held, self.table.exclusions[other[0]]["whole_exclusion"][row] if other else "")

    def _failed_as_before(self, run: RunFile, row: int, states: Mapping[str, State | None]) -> bool:
        if not is_known(self.hints, run, "", states):
            return False
        if out_of_reach(run, states) and MISSING in states.values():
            return True
        # it may have failed because of the exclusion
        return {int(self.table.keys[view.name][row]) for view in self.views} == {failed_key(self.whole)}

    def _same_exclusion(self, view: View, row: int) -> bool:
        """Whether the regions near a run are those with which its histograms in a view were made."""
        known, columns = self.table.exclusions[view.name], self.table.columns
        if known["whole_exclusion"][row] == self.whole:
            return True
        pointing = float(columns["ra_pnt"][row]), float(columns["dec_pnt"][row])
        if exclusion_digest(self.regions, *pointing, view.radius) != known["exclusion"][row]:
            return False
        known["whole_exclusion"][row] = self.whole
        self.touched.add(row)
        return True


def make_blocks(
    work: Sequence[Needed], rows: NDArray, table: Table, size: int, about: Mapping[str, Any]
) -> list[BlockWork]:
    """One piece of work for each block of rows.

    Parameters
    ----------
    work, rows
        Runs to be read, and their rows.
    table
        What is known, with these rows.
    size
        Rows of a block.
    about
        The fields of `BlockWork` that are the same for all, its ``views`` among them.
    """
    keys = np.stack([table.keys[view][rows] for view in about["views"]], axis=1)
    fingerprints = table.columns["fingerprint"][rows]
    return [
        BlockWork(
            block,
            tuple(int(rows[i]) for i in places),
            tuple(work[i].run for i in places),
            tuple(str(fingerprints[i]) for i in places),
            tuple(tuple(int(key) for key in keys[i]) for i in places),
            tuple(work[i].held for i in places),
            **about,
        )
        for block, places in group_blocks(rows, size).items()
    ]


def warn_of_replaced(work: Sequence[Needed], n_runs: int, attributes: Mapping[str, Any]) -> None:
    """Tell of runs that are read again because another job, maybe of someone else, excluded something else.

    Parameters
    ----------
    work
        Runs that are read.
    n_runs
        Number of runs that were asked for.
    attributes
        Those of the store, as the other job left them.
    """
    replaced = Counter(needed.replaces for needed in work if needed.replaces)
    if not replaced:
        return
    ((whole, _),) = replaced.most_common(1)
    log.warning(
        "%d of %d runs are read again, as the exclusion near them is another one than that of %s: give jobs with "
        "different exclusions a run_store.path of their own",
        replaced.total(),
        n_runs,
        attributes["exclusions"].get(whole, attributes["written"]),
    )


def exclusions_used(table: Table, known: Mapping[str, str], whole: str, used: bool) -> dict[str, str]:
    """When the exclusions of the rows, and the present one, were used last."""
    of_rows = {name for texts in table.exclusions.values() for name in texts["whole_exclusion"].tolist()}
    kept = {name: since for name, since in known.items() if name in of_rows}
    return {**kept, whole: known[whole] if whole in known and not used else layout.timestamp()}


def group_blocks(rows: Iterable[int], size: int) -> dict[int, list[int]]:
    """Places in ``rows`` by the block that the row is in."""
    groups: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(int(row) // size, []).append(place)
    return dict(sorted(groups.items()))
