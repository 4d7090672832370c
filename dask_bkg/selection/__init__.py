"""Which runs contribute to which: cuts on the observing conditions, then the most similar runs until n hours.

Pure arrays, blocks of targets against blocks of runs, in three steps that a graph can put together as it likes::

    choose_block   a block of targets x a block of runs: cuts (`cuts`), ranking (`ranking`), and of what is left only
                   as much as can matter
    merge          the same for several blocks of runs; in any order and any tree the result is the same
    finish         the selection of each target, with its weights and hours, or the reason why there is none

The runs of the spectrum, of the shape and of the night are selected apart (`roles`); the formula of the weights is in
`ranking.kernel_distance`.

In: tables of targets and runs, and divergences [nats] where they are asked for.  Out: the contributing runs of each
target with weights (0 to 1), scores and livetimes [h].  A table is a dictionary of the runs' columns (`COLUMNS`),
each of shape ``(runs,)``; a number that a run does not have is NaN, a column that is not there is NaN for all.
"""

from dask_bkg.selection.candidates import Candidates, choose_block, merge
from dask_bkg.selection.cuts import (
    COLUMNS,
    CONDITIONS,
    NEEDS,
    Table,
    airmass,
    azimuth_difference,
    check_conditions,
    columns_for,
    galactic_latitude,
    is_set,
    passing,
)
from dask_bkg.selection.ranking import RANKINGS, Ranking, kernel_distance, needs_divergence, weighs
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
)
from dask_bkg.selection.settings import SelectionSettings

__all__ = [
    "COLUMNS",
    "CONDITIONS",
    "NEEDS",
    "RANKINGS",
    "Candidates",
    "Ranking",
    "Selection",
    "SelectionSettings",
    "Selections",
    "Table",
    "airmass",
    "azimuth_difference",
    "by_hand",
    "check_conditions",
    "choose_block",
    "columns_for",
    "finish",
    "galactic_latitude",
    "given",
    "is_set",
    "join",
    "kernel_distance",
    "merge",
    "needs_divergence",
    "of_target",
    "pack",
    "passing",
    "replace",
    "selection_digest",
    "settings_of_roles",
    "weighs",
]
