"""Validations of counts that are drawn from a known rate: what the tests of scores, summaries and pages share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dask_bkg.validation import Validation, make_bins, score_run
from dask_bkg.validation.results import gather

BINS = make_bins(np.geomspace(0.1, 100, 31), np.round(np.arange(-12.5, 13) * 0.2, 12))
FIRST = 7001
EVENTS = 4000.0


def truth(asymmetry: float = 0.0) -> np.ndarray:
    """Expected counts of a run, shape ``(energy, pixels)``; ``asymmetry`` is a slope along fov_lon [1 / deg]."""
    energy = np.sqrt(np.array(BINS.places.energy[1:]) * np.array(BINS.places.energy[:-1]))
    spectrum = energy**-1.7 / (1 + (0.25 / energy) ** 6)
    field = np.exp(-0.5 * (BINS.lon**2 + BINS.lat**2) / 1.2**2 + asymmetry * BINS.lon)
    mu = np.multiply.outer(spectrum, field)
    mu[:4] = 0.0
    return EVENTS * mu / mu.sum()


Change = Callable[[int, np.ndarray], np.ndarray]


def simulate(
    n: int = 60, seed: int = 1, sky: Change | None = None, model: Change | None = None, asymmetry: float = 0.0
) -> Validation:
    """Runs whose counts are drawn from the truth, as ``sky`` changes it, and predicted as ``model`` does.

    Both get the number of the run and its expected counts.  A run has its own level, threshold and target; some have
    a hole in the field.
    """
    rng = np.random.default_rng(seed)
    scores, sums = {}, None
    for i in range(n):
        mu = truth(asymmetry) * rng.uniform(0.6, 1.4)
        open_ = np.hypot(BINS.lon - 0.5, BINS.lat) > 0.45 if i % 5 == 0 else np.ones(BINS.pixel.size, dtype=bool)
        mu = np.where(open_, mu, 0.0)
        counts = rng.poisson(mu if sky is None else sky(i, mu)).astype(float)
        run, field = score_run(counts, mu if model is None else model(i, mu), open_, 4 + i % 3, BINS)
        scores[FIRST + i] = run
        sums = field if sums is None else sums + field
    columns = {
        "object": np.array([f"target {i // 2}" for i in range(n)], dtype=object),
        "ra_pnt": 80.0 + np.arange(n) // 2 * 5.0, "dec_pnt": np.full(n, 20.0), "zenith": np.linspace(10, 50, n),
        "time": 60000.0 + np.arange(n), "threshold": np.full(n, 0.25), "n_runs": np.full(n, n - 1),
        "hours": np.full(n, 10.0),
    }  # fmt: skip
    return Validation("simulated", *gather(scores, sums, BINS, columns))


def pull(pair: dict, expected: float = 0.0) -> float:
    """Distance from an expectation in units of the error."""
    return (pair["value"] - expected) / pair["error"]
