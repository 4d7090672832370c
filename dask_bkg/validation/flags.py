"""The runs of a validation one by one: their numbers, and which of them look wrong.

A run is compared with the others, not with a perfect model: that a background misses the level of each run by 13 % is
said by the scatter; a run that is off by four times that had bad weather, or holds a source that nobody excluded.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dask_bkg.validation.results import Validation
from dask_bkg.validation.score import FORMS, SUMS
from dask_bkg.validation.summary import ratio, widths

FEW_COUNTS = 100
"""Events below which a run says little."""

FAR_RATE, FAR_SHAPE = 4.0, 5.0
"""Pulls from which a rate, and the shape in the field, are flagged."""

HOT = 5.0
"""Significance of a spot from which it is flagged: 3e-7, of some 400 pixels and cells of a run."""

WORDS = {1: "rate", 2: "shape", 4: "few counts", 8: "hot spot"}
"""Flags, bit by bit."""

WRONG = 1 | 2 | 8
"""Those of a run that looks wrong."""


def run_columns(validation: Validation) -> dict[str, NDArray]:
    """Numbers of each run, arrays of shape ``(runs,)``.

    Returns
    -------
    columns
        ``ratio`` is predicted over observed counts with its statistical ``ratio_error``; ``rate_pull`` its distance
        from the median of the archive in units of scatter and statistics; ``width`` that of the significances of the
        cells (norm); ``shape`` how far the sum of their squares is above its Poisson expectation in units of its
        standard deviation, and ``shape_pull`` the same against the other runs; ``deviance`` that of all bins over
        its expectation; ``hottest`` the significance of the largest excess and ``hot_lon``, ``hot_lat`` its place in
        the field [deg]; ``flag`` the sum of the bits in `WORDS`.
    """
    runs = validation.runs
    counts, predicted = (runs[name].values.sum(axis=1) for name in ("counts", "predicted"))
    cells = runs["cells"].values[:, FORMS.index("norm")]
    square, hoped, variance = (cells[:, SUMS.index(name)] for name in ("s2", "expected_s2", "variance"))
    shape = ratio(square - hoped, np.sqrt(variance))
    rate_pull, shape_pull = rate_pulls(predicted, counts), shape_pulls(shape)
    few = counts < FEW_COUNTS
    # a run of which nothing was predicted is as wrong as can be
    far_rate = ~(np.abs(rate_pull) <= FAR_RATE) & ~few
    hottest = runs["hottest"].values
    hot = (hottest[:, 0] > HOT) & ~few
    flag = far_rate * 1 + ((shape_pull > FAR_SHAPE) & ~few) * 2 + few * 4 + hot * 8
    known = ("object", "zenith", "time", "threshold", "n_runs", "hours")
    return {
        "obs_id": runs["obs_id"].values,
        **{name: runs[name].values for name in known},
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
    """Distance of ln(predicted / observed) from its median, in units of what scatter and statistics make of it.

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
    """How far the shape of a run is off, as compared with the others; never more than compared with statistics."""
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
    """Order of the runs: those that look wrong first, then by the larger one of their pulls; few counts last."""
    # the largest of 400 is above 3 by chance
    spot = np.where(columns["hottest"] > HOT - 1, columns["hottest"], 0.0) * (FAR_RATE / HOT)
    pull = np.max([np.abs(columns["rate_pull"]), columns["shape_pull"] * (FAR_RATE / FAR_SHAPE), spot], axis=0)
    few = (columns["flag"] & 4) > 0
    return np.lexsort((columns["obs_id"], np.where(few, 0.0, -pull), (columns["flag"] & WRONG) == 0))
