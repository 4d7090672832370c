"""How well backgrounds predict the counts of runs: prediction, scores, and what they say together. Pure functions.

``prediction`` makes expected counts of the node values of a file, as gammapy does; ``score`` compares them with the
counts of a run; ``results`` and ``summary`` put the runs together.  `dask_bkg.validate` wires it all.
"""

from dask_bkg.validation.bins import Bins, Settings, make_bins
from dask_bkg.validation.flags import flag_words, run_columns, worst_first
from dask_bkg.validation.maps import Comparison, compare_counts
from dask_bkg.validation.prediction import Nodes, Places, predict
from dask_bkg.validation.results import Validation
from dask_bkg.validation.score import FieldSums, RunScore, score_run
from dask_bkg.validation.summary import bootstrap_error, compare, summarise

__all__ = [
    "Bins",
    "Comparison",
    "FieldSums",
    "Nodes",
    "Places",
    "RunScore",
    "Settings",
    "Validation",
    "bootstrap_error",
    "compare",
    "compare_counts",
    "flag_words",
    "make_bins",
    "predict",
    "run_columns",
    "score_run",
    "summarise",
    "worst_first",
]
