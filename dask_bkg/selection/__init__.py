"""Which runs contribute to which: cuts on the observing conditions, then the most similar runs until n hours.

Pure arrays, blocks of targets against blocks of runs, in three steps of a graph::

    choose_block   a block of targets x a block of runs: cuts (`cuts`), ranking (`ranking`), and of the runs that are
                   left only those that may be selected
    merge          the same for several blocks of runs; in any order and any tree the result is the same
    finish         the selection of each target, with its weights and hours, or the reason why there is none

Before that, runs of other instruments and runs with an event rate unlike that of all others are set apart
(`instruments`).  The runs of the spectrum, of the shape and of the night are selected separately (`roles`); the
formula of the weights is in `ranking.kernel_distance`.

In: tables of targets and runs, and divergences [nats] where the ranking needs them.  Out: the contributing runs of
each target with weights (0 to 1), scores and livetimes [h].  A table is a dictionary of columns of the runs
(`cuts.COLUMNS`), each of shape ``(runs,)``; a number that a run does not have is NaN, a column that is missing is NaN
for all.
"""

from dask_bkg.selection.candidates import Candidates, choose_block, merge
from dask_bkg.selection.cuts import Table, check_conditions, columns_for, passing
from dask_bkg.selection.ranking import RANKINGS, needs_divergence, weighs
from dask_bkg.selection.roles import of_target, settings_of_roles
from dask_bkg.selection.selections import (
    Selection,
    Selections,
    by_hand,
    finish,
    given,
    join,
    pack,
    replace,
    selection_digest,
)  # fmt: skip

__all__ = [
    "RANKINGS", "Candidates", "Selection", "Selections", "Table", "by_hand", "check_conditions", "choose_block",
    "columns_for", "finish", "given", "join", "merge", "needs_divergence", "of_target", "pack", "passing", "replace",
    "selection_digest", "settings_of_roles", "weighs",
]  # fmt: skip
