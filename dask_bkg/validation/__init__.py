"""How well backgrounds predict the counts of runs that have not contributed to them.

In: node values of a background, or a stack, and the counts of a run in field pixels, shape ``(energy, pixel)``.  Out:
log-likelihoods [nats], counts over prediction, significances, per run and for an archive.

The science: ``prediction`` computes expected counts from node values, as gammapy does; ``bins``, ``expectation`` and
``score`` compare them with the counts of a run; ``results``, ``summary`` and ``flags`` combine the runs; ``maps``
compares with gammapy's own maps.  The job: ``counts`` finds the counts in the run store, ``task`` scores a batch of
targets, ``run`` runs the whole validation (`dask_bkg.validate`).  Significance: sign x sqrt(Cash ratio), W. Cash
(1979, ApJ 228, 939).
"""

from dask_bkg.validation.bins import Bins, make_bins
from dask_bkg.validation.flags import run_columns, worst_first
from dask_bkg.validation.maps import compare_counts
from dask_bkg.validation.prediction import Nodes, predict
from dask_bkg.validation.results import Validation
from dask_bkg.validation.score import RunScore, score_run
from dask_bkg.validation.summary import bootstrap_error, compare, summarise

__all__ = [
    "Bins", "Nodes", "RunScore", "Validation", "bootstrap_error", "compare", "compare_counts", "make_bins", "predict",
    "run_columns", "score_run", "summarise", "worst_first",
]  # fmt: skip
