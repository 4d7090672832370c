"""The runs of a validation one by one: their numbers, and flags of runs that deviate.

A run is compared with the other runs, not with a perfect model.  If backgrounds miss the normalisation of a run by
typically 13 %, this is the scatter; a run that deviates by four times that had bad weather, or contains a source that
was not excluded.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dask_bkg.validation.results import Validation
from dask_bkg.validation.score import FORMS, SUMS
from dask_bkg.validation.summary import ratio, widths

FEW_COUNTS = 100
"""Events below which a run is not flagged otherwise."""

FAR_RATE, FAR_SHAPE = 4.0, 5.0
"""Pulls above which the rate, and the shape in the field, are flagged."""

HOT = 5.0
"""Significance above which a spot is flagged: probability 3e-7, for some 400 pixels and cells of a run."""

WORDS = {1: "rate", 2: "shape", 4: "few counts", 8: "hot spot"}
"""Flags, bit by bit."""

WRONG = 1 | 2 | 8
"""Flags of a run that deviates from the others."""


def run_columns(validation: Validation) -> dict[str, NDArray]:
    """Numbers of each run, arrays of shape ``(runs,)``.

    Returns
    -------
    columns
        ``ratio`` is predicted over observed counts with its statistical ``ratio_error``; ``rate_pull`` its distance
        from the median of the archive in units of scatter and statistics; ``width`` that of the significances of the
        cells (norm); ``shape`` the excess of the sum of their squares over its Poisson expectation in units of its
        standard deviation, and ``shape_pull`` the same compared with the other runs; ``deviance`` that of all bins
        over its expectation; ``hottest`` the significance of the largest excess and ``hot_lon``, ``hot_lat`` its
        position in the field [deg]; ``flag`` the sum of the bits in `WORDS`.
    """
    runs = validation.runs
    counts, predicted = (runs[name].values.sum(axis=1) for name in ("counts", "predicted"))
    cells = runs["cells"].values[:, FORMS.index("norm")]
    square, expected, variance = (cells[:, SUMS.index(name)] for name in ("s2", "expected_s2", "variance"))
    shape = ratio(square - expected, np.sqrt(variance))
    rate_pull, shape_pull = rate_pulls(predicted, counts), shape_pulls(shape)
    few = counts < FEW_COUNTS
    # a run without predicted counts (NaN) is flagged
    far_rate = ~(np.abs(rate_pull) <= FAR_RATE) & ~few
    hottest = runs["hottest"].values
    hot = (hottest[:, 0] > HOT) & ~few
    flag = far_rate * 1 + ((shape_pull > FAR_SHAPE) & ~few) * 2 + few * 4 + hot * 8
    copied = ("object", "zenith", "time", "threshold", "n_runs", "hours")
    return {
        "obs_id": runs["obs_id"].values,
        **{name: runs[name].values for name in copied},
        "events": counts.astype(np.int64),
        "predicted": predicted,
        "ratio": ratio(predicted, counts),
        "ratio_error": ratio(predicted, counts) / np.sqrt(np.maximum(counts, 1)),
        "rate_pull": rate_pull,
        "width": widths(cells),
        "shape": shape,
        "shape_pull": shape_pull,
        "deviance": ratio(runs["deviance"].values[:, 0], runs["deviance"].values[:, 1]),
        **dict(zip(("hottest", "hot_lon", "hot_lat"), hottest.T, strict=True)),
        "flag": flag.astype(np.int64),
    }


def rate_pulls(predicted: NDArray, counts: NDArray) -> NDArray:
    """Distance of ln(predicted / observed) from its median, in units of scatter and statistics, shape ``(runs,)``.

    Examples
    --------
    >>> predicted = np.array([1000.0, 1100, 900, 1050, 950, 2000])
    >>> np.abs(rate_pulls(predicted, np.full(6, 1000.0))).argmax()
    np.int64(5)
    """
    log = np.log(np.maximum(predicted, 1e-9) / np.maximum(counts, 1))
    statistics = 1 / np.maximum(counts, 1)
    scatter = max(_spread(log) ** 2 - float(np.median(statistics)), 0.0)
    return (log - np.median(log)) / np.sqrt(scatter + statistics)


def shape_pulls(shape: NDArray) -> NDArray:
    """Excess of ``shape`` of each run over the median, in units of the scatter, at least 1; shape ``(runs,)``."""
    there = np.isfinite(shape)
    if not there.any():
        return np.zeros(shape.shape)
    middle = max(float(np.median(shape[there])), 0.0)
    return np.where(there, (shape - middle) / max(_spread(shape[there]), 1.0), 0.0)


def _spread(values: NDArray) -> float:
    """Standard deviation of the bulk, from the median distance to the median."""
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


def flag_words(flag: int) -> str:
    """Flags in words.

    Examples
    --------
    >>> flag_words(3), flag_words(0)
    ('rate, shape', '')
    """
    return ", ".join(word for bit, word in WORDS.items() if flag & bit)


def worst_first(columns: Mapping[str, NDArray]) -> NDArray:
    """Order of the runs: flagged ones first, then by the largest of their pulls; few counts last."""
    # the largest of 400 exceeds 3 by chance
    spot = np.where(columns["hottest"] > HOT - 1, columns["hottest"], 0.0) * (FAR_RATE / HOT)
    pull = np.max([np.abs(columns["rate_pull"]), columns["shape_pull"] * (FAR_RATE / FAR_SHAPE), spot], axis=0)
    few = (columns["flag"] & 4) > 0
    return np.lexsort((columns["obs_id"], np.where(few, 0.0, -pull), (columns["flag"] & WRONG) == 0))
