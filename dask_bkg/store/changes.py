"""What must be read to bring a store up to date: the runs that are asked for, compared with the table and the hints.

No event file is opened here.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dask_bkg.binning import View
from dask_bkg.dl3.read import RunFile
from dask_bkg.files import MISSING, StatCache, State
from dask_bkg.sky.exclusion import SkyRegions, concat_regions, exclusion_digest
from dask_bkg.store import layout
from dask_bkg.store.run_files import is_known, mark_of, out_of_reach, states_of
from dask_bkg.store.table import Table, failed_with

log = logging.getLogger(__name__)


def digest_of(regions: SkyRegions | None) -> str:
    """Digest of all regions together; None is no region."""
    return (concat_regions([]) if regions is None else regions).digest()


class Needed(NamedTuple):
    """A run that must be read.

    Attributes
    ----------
    run
        Where it is.
    replaces
        Digest of the whole exclusion of histograms that are there, and right but for their exclusion; empty: none.
    """

    run: RunFile
    replaces: str = ""


class Asked:
    """The runs, views and exclusion that a job asks for, compared with what a store has.

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
        Rows, by view, of which the digest of the whole exclusion was brought up to date in memory.
    """

    def __init__(self, table: Table, hints: StatCache, views: Sequence[View], regions: SkyRegions | None):
        self.table, self.hints, self.views, self.regions = table, hints, views, regions
        self.whole = digest_of(regions)
        self.absent: dict[int, str] = {}
        self.touched: dict[str, set[int]] = {}

    def find_work(self, runs: Sequence[RunFile]) -> list[Needed]:
        """Runs that must be read; of those that need not, the digest of the whole exclusion is brought up to date."""
        return [needed for needed in map(self._look, runs) if needed is not None]

    def _look(self, run: RunFile) -> Needed | None:
        """What must be read of a run; None: nothing."""
        if run.obs_id not in self.table.run_row:
            return Needed(run)
        states = states_of(run)
        if self.table.text("error", run.obs_id):
            return None if self._failed_as_before(run, states) else Needed(run)
        if why := out_of_reach(run, states):
            # its histograms are what they were, and needed again when the disk is back
            self.absent[run.obs_id] = why
            return None
        valid = {view.name: row for view in self.views if (row := self.table.find(view.name, run.obs_id)) >= 0}
        other = [v for v in self.views if v.name in valid and not self._same_exclusion(v, valid[v.name], run.obs_id)]
        lacks_nothing = len(valid) == len(self.views) and not other
        if lacks_nothing and self._is_known(run, self.table.text("fingerprint", run.obs_id), states):
            return None
        whole = [self.table.views[view.name].table["whole_exclusion"][valid[view.name]] for view in other]
        return Needed(run, whole[0] if whole else "")

    def _is_known(self, run: RunFile, fingerprint: str, states: Mapping[str, State | None]) -> bool:
        """Whether the files of a run are as they were when it had this fingerprint.

        The table says so too, for hints that a killed job did not come to write.
        """
        if is_known(self.hints, run, fingerprint, states):
            return True
        seen, mark = json.loads(self.table.text("files", run.obs_id) or "[]"), mark_of(run, fingerprint)
        return all(state is not None and [path, list(state), mark] in seen for path, state in states.items())

    def _failed_as_before(self, run: RunFile, states: Mapping[str, State | None]) -> bool:
        if not self._is_known(run, "", states):
            return False
        if out_of_reach(run, states) and MISSING in states.values():
            return True
        # it may have failed because of the exclusion
        before, _, views = self.table.text("tried", run.obs_id).rpartition("/")
        asked = {view.name for view in self.views}
        return failed_with(self.whole, ()) == f"{before}/" and asked <= set(views.split(","))

    def _same_exclusion(self, view: View, row: int, obs_id: int) -> bool:
        """Whether the regions near a run are those with which its histograms in a view were made."""
        table = self.table.views[view.name].table
        if table["whole_exclusion"][row] == self.whole:
            return True
        if exclusion_digest(self.regions, *self.table.pointing(obs_id), view.radius) != table["exclusion"][row]:
            return False
        table["whole_exclusion"][row] = self.whole
        self.touched.setdefault(view.name, set()).add(row)
        return True


def warn_of_replaced(work: Sequence[Needed], n_runs: int, attributes: Mapping[str, Any]) -> None:
    """Warn of runs that are read again because another job, maybe of someone else, excluded something else.

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
    of_rows = table.whole_exclusions()
    kept = {name: since for name, since in known.items() if name in of_rows}
    return {**kept, whole: known[whole] if whole in known and not used else layout.timestamp()}
