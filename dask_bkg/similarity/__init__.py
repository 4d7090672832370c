"""How similar two runs are: the Kullback-Leibler divergence of all pairs of two blocks of runs.

Pure arrays on flat bins (energy x offset), axes ``(runs, bins)``.  A block of *targets* (P) meets a block of
*references* (Q, the runs that may contribute) in matrix products only.  Two methods:

``document``
    Rates, normalised, plus 1e-9, as the procedure has it; equal to `scipy.stats.entropy`.
``shape``
    The default: measures the shape, not the statistics.  The target enters by its counts, so that ``p @ log q`` is a
    likelihood.  To the reference a prior s worth a events is added, at full exposure, ``q = (n + a s) / (N f + a)``:
    in a bin that was not exposed the prior alone counts.

The prior of a run is not the archive's mean shape but the member of the archive's *family* of shapes that fits the
run best (log-linear in a few principal components).  The runs of H.E.S.S. DL3 DR1 scatter about their mean shape as
if it were worth 107 events, about the family as if it were worth 5700 (median): with 3000 events of the mean shape as
prior, a run of few events resembles the mean so much that targets unlike the mean are ranked by statistics again.  In
a simulation (400 runs of 1k to 30k events, zenith angles 10 to 60 deg), candidates of 1k to 30k events with the shape
of the target have the same divergence within a factor 1.2 with the family, 3 to 12 with the mean; the true divergence
of the 15 nearest is 3.1e-3 with the family, 10e-3 with the mean, 5.6e-3 under ``document``, and 2.4e-3 for those that
are truly the nearest.

In: counts and exposure of a block of runs, shape ``(runs, energy, offset)``.  Out: divergences [nats], shape
``(targets, references)``; ``kl[i, j]`` is KL(i || j).  Source: Kullback & Leibler (1951).
"""

from dask_bkg.similarity.bins import FlatBins, flat_bins
from dask_bkg.similarity.divergence import References, Targets, as_references, as_targets, coverage_block, kl_block
from dask_bkg.similarity.family import (
    Prior,
    add_sums,
    family_sums,
    fit_prior,
    prior_family,
    prior_shape,
    prior_sums,
)  # fmt: skip
from dask_bkg.similarity.settings import METHODS, ShapeSettings

__all__ = [
    "METHODS", "FlatBins", "Prior", "References", "ShapeSettings", "Targets", "add_sums", "as_references",
    "as_targets", "coverage_block", "family_sums", "fit_prior", "flat_bins", "kl_block", "prior_family",
    "prior_shape", "prior_sums",
]  # fmt: skip
