"""How well backgrounds predict the counts of runs: prediction, scores, and what they say together. Pure functions.

``predict`` makes expected counts of the node values of a file, as gammapy does; ``score`` compares them with the
counts of a run; ``results`` and ``summary`` put the runs together.  `dask_bkg.validate` wires it all.
"""

from dask_bkg.validation.bins import Bins, Settings, make_bins
from dask_bkg.validation.maps import Comparison, compare_counts
from dask_bkg.validation.predict import Nodes, Places, predict
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
    "make_bins",
    "predict",
    "score_run",
    "summarise",
]
