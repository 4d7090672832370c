"""Backgrounds by several methods against the truth of a simulated archive in which what matters is planted.

    python benchmarks/bench_truth.py [--runs N] [--events N] [--seed N] [--models NAME ...] [--json FILE]

In the archive level, spectrum, threshold and radial shape depend on the zenith angle, threshold and level on the muon
efficiency, which falls over five seasons and jumps between them; the level scatters from night to night, and a
gradient towards the zenith changes sign with energy.  Two sources and the bright stars are excluded, from the
backgrounds and from the comparison.  Each run's background is made of the others.  ``level`` is the mean of
ln(predicted / true) over runs and its scatter; ``spectrum`` and ``shape`` are rms differences from the truth, of the
share of each energy, and of the share of each pixel of 0.2 deg in its energy, weighted with the true counts.
Log-likelihoods are those of ``scores.py``, against the truth's own; under ``norm`` and ``enorm`` it has a free factor
too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scores
from common import machine_line, write_json
from numpy.typing import NDArray
from scores import ENERGY, METHODS, PIXELS, HeldOut, Rates, make_rates

from dask_bkg.report import format_table
from dask_bkg.simulate import Truth, simulate_archive

PLANTED: dict[str, Any] = {
    "tilt": -0.08, "tilt_slope": 0.1, "steepening": 0.3, "mirror_threshold": 1.0, "seasons": 5, "nights": 10,
    "weather": 0.1,
}  # fmt: skip
MODELS = (
    "plain procedure", "rank kl", "rank elevation", "conditions, one set of runs, no night", "default 2D",
    "default 3D",
)  # fmt: skip


class Difference(NamedTuple):
    """How a background differs from the truth; see the module."""

    level: float
    spectrum: float
    shape: float


def true_means(truth: Truth, obs_id: int) -> NDArray:
    """What `scores.mean_rate` would be of the truth [s-1 sr-1]: Gaussian quadrature, four energies a bin, 2 x 2."""
    x, weight = np.polynomial.legendre.leggauss(4)
    half = np.diff(np.log(ENERGY)) / 2
    energy = np.exp(np.log(ENERGY[:-1])[:, None] + half[:, None] * (1 + x))
    points = ((PIXELS[1:] + PIXELS[:-1]) / 2)[:, None] + np.diff(PIXELS)[:, None] * np.array([-0.5, 0.5]) / 3**0.5
    lat, lon = points.reshape(-1, 1), points.ravel()
    n, found = PIXELS.size - 1, []
    for nodes, width in zip(energy, half, strict=True):
        planes = truth.field_rate(obs_id, nodes[:, None, None], lon, lat)
        plane = np.tensordot(weight * width * nodes, planes, 1) * np.cos(np.deg2rad(lat))
        found.append(plane.reshape(n, 2, n, 2).mean(axis=(1, 3)))
    middle = np.cos(np.deg2rad((PIXELS[1:] + PIXELS[:-1]) / 2))
    return np.array(found) / middle[:, None]


def difference(expected: NDArray, true: NDArray) -> Difference:
    """Of expected counts, shape ``(energy, lat, lon)``, from the true ones; bins without these are left out."""
    expected = np.where(true > 0, expected, 0.0)
    share, true_share = (x.sum(axis=(1, 2)) / x.sum() for x in (expected, true))
    spectrum = _rms(share, true_share, true_share)
    field, true_field = (x / np.maximum(x.sum(axis=(1, 2), keepdims=True), 1e-300) for x in (expected, true))
    return Difference(
        float(np.log(expected.sum() / true.sum())), spectrum, _rms(field, true_field, true / true.sum())
    )


def _rms(value: NDArray, true: NDArray, weight: NDArray) -> float:
    """Weighted rms of the relative difference."""
    there = true > 0
    return float(np.sqrt((weight[there] * (value[there] / true[there] - 1) ** 2).sum()))


def pulls(value: NDArray, error: NDArray, true: NDArray) -> dict[str, float]:
    """Mean and width of (value - true) / error over bins that have an error: 0 and 1 where the errors are right.

    Backgrounds are written without errors so far: where they come with them, `assess` is the place to call it.

    Examples
    --------
    >>> pulls(np.array([1.0, 3.0, 5.0]), np.array([1.0, 1.0, 0.0]), np.full(3, 2.0))
    {'bins': 2, 'mean': 0.0, 'width': 1.0}
    """
    told = error > 0
    pull = (value[told] - true[told]) / error[told]
    return {"bins": int(told.sum()), "mean": float(pull.mean()), "width": float(pull.std())}


def assess(held: HeldOut, rates: Rates, true: Mapping[int, NDArray]) -> dict[str, float]:
    """Differences of the backgrounds of all runs from the truth, and log-likelihoods against the truth's own."""
    means = {i: scores.mean_rate(rates.of[i], rates) for i in held.obs_id.tolist()}
    found = []
    for row, obs_id in enumerate(held.obs_id.tolist()):
        looked_at = held.seen[row][:, None, None] * held.exposure[row]
        found.append(difference(means[obs_id] * looked_at, true[obs_id] * looked_at))
    level, spectrum, shape = np.array(found).T
    told = scores.compare(scores.score_means(held, means), scores.score_means(held, true), held.group)
    return {
        "level": float(level.mean()), "level scatter": float(level.std()),
        "spectrum": float(np.sqrt((spectrum**2).mean())), "shape": float(np.sqrt((shape**2).mean())), **told,
    }  # fmt: skip


def excluded(archive: Path) -> dict[str, Any]:
    """What is left out: the sources and the stars that the simulation has put in."""
    stars, sources = archive / "stars.dat", archive / "sources.reg"
    return {"catalogs": [], "star_cat": str(stars), "exclude_region_files": [str(sources)]}


def measure(scratch: Path, runs: int, events: float, seed: int, names: list[str]) -> dict[str, dict[str, float]]:
    """An archive, and what each method makes of it."""
    archive = scratch / "archive"
    truth = simulate_archive(archive, runs, events, seed, **PLANTED)
    exclusion = excluded(archive)
    held = scores.hold_out(archive, scratch, exclusion)[0]["altaz"]
    held = held._replace(group=held.obs_id)
    true = {run.obs_id: true_means(truth, run.obs_id) for run in truth.runs}
    told = {}
    for name in names:
        start = time.perf_counter()
        rates = make_rates(archive, scratch, METHODS[name], exclusion)
        told[name] = {**assess(held, rates, true), "seconds": time.perf_counter() - start}
    return told


def main() -> None:
    """Simulate, make, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=150)
    parser.add_argument("--events", type=float, default=10_000, help="background events of a nominal run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--models", nargs="+", choices=list(METHODS), default=list(MODELS))
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    scores.quiet()
    print(machine_line())
    with tempfile.TemporaryDirectory() as scratch:
        told = measure(Path(scratch), options.runs, options.events, options.seed, options.models)
    print(f"\n{options.runs} runs of {options.events:g} events; 1e-3 nats an event against the truth\n")
    rows = [
        [name, f"{row['level']:+.3f} +- {row['level scatter']:.3f}", f"{row['spectrum']:.3f}", f"{row['shape']:.3f}",
         *scores.cells(row)[:4]]
        for name, row in told.items()
    ]  # fmt: skip
    print(format_table(["model", "level", "spectrum", "shape", *scores.COLUMNS[:4]], rows))
    options_told = {"runs": options.runs, "events": options.events, "seed": options.seed}
    write_json(options.json, {**options_told, "planted": PLANTED, "models": told})


if __name__ == "__main__":
    main()
