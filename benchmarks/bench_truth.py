"""Backgrounds by several methods against the truth of a simulated archive in which what matters is planted.

    python benchmarks/bench_truth.py [--runs N] [--events N] [--seed N] [--models NAME ...] [--json FILE]

In the archive level, spectrum, threshold and radial shape depend on the zenith angle, threshold and level on the muon
efficiency, which falls over five seasons and jumps between them; the level scatters from night to night, and a
gradient towards the zenith changes sign with energy.  Two sources and the bright stars are excluded, from the
backgrounds and from the comparison.  Each run's background is made of the others.  ``level`` is the mean of
ln(predicted / true) over runs and its scatter; ``spectrum`` and ``shape`` are rms differences from the truth, of the
share of each energy, and of the share of each pixel of 0.2 deg in its energy, weighted with the true counts.
Log-likelihoods are those of `dask_bkg.validation.score_run`, against the truth's own, which has the free factors of
``norm`` and ``enorm`` too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import machine_line, write_json
from methods import FORMS, METHODS, make_files, quiet
from numpy.typing import NDArray

from dask_bkg.binning import FieldEdges
from dask_bkg.config import parse_config
from dask_bkg.dl3.given import read_given
from dask_bkg.dl3.index import read_datastore
from dask_bkg.pipeline.update import reduce_archive
from dask_bkg.report import format_table
from dask_bkg.simulate import Truth, simulate_archive
from dask_bkg.store.load import load_field
from dask_bkg.validation import Bins, Nodes, RunScore, bootstrap_error, make_bins, predict, score_run
from dask_bkg.validation.summary import ratio, widths

PLANTED: dict[str, Any] = {
    "tilt": -0.08, "tilt_slope": 0.1, "steepening": 0.3, "mirror_threshold": 1.0, "seasons": 5, "nights": 12,
    "weather": 0.1,
}  # fmt: skip
MODELS = (
    "plain procedure", "rank kl", "rank elevation", "conditions, one set of runs, no night", "default 2D",
    "default 3D",
)  # fmt: skip
ENERGY = np.geomspace(0.1, 100, 31)
PIXELS = np.round(np.arange(-12.5, 13) * 0.2, 12)


class Counts(NamedTuple):
    """What the backgrounds are to predict.

    Attributes
    ----------
    counts, exposure
        Events and ontime x open solid angle [s sr] by run, shapes ``(energy, pixels)`` and ``(pixels,)``.
    first
        First energy above the threshold by run.
    bins
        The bins, whose pixels they are.
    """

    counts: dict[int, NDArray]
    exposure: dict[int, NDArray]
    first: dict[int, int]
    bins: Bins


class Difference(NamedTuple):
    """How a background differs from the truth; see the module."""

    level: float
    spectrum: float
    shape: float


def true_means(truth: Truth, obs_id: int) -> NDArray:
    """What `dask_bkg.validation.predict` would give for the truth, in all pixels: shape ``(energy, lat, lon)``.

    By Gaussian quadrature, four energies a bin and 2 x 2 places a pixel.
    """
    x, weight = np.polynomial.legendre.leggauss(4)
    half = np.diff(np.log(ENERGY)) / 2
    energy = np.exp(np.log(ENERGY[:-1])[:, None] + half[:, None] * (1 + x))
    middle = (PIXELS[1:] + PIXELS[:-1]) / 2
    points = middle[:, None] + np.diff(PIXELS)[:, None] * np.array([-0.5, 0.5]) / 3**0.5
    lat, lon = points.reshape(-1, 1), points.ravel()
    found = []
    for nodes, width in zip(energy, half, strict=True):
        planes = truth.field_rate(obs_id, nodes[:, None, None], lon, lat)
        plane = np.tensordot(weight * width * nodes, planes, 1) * np.cos(np.deg2rad(lat))
        found.append(plane.reshape(middle.size, 2, middle.size, 2).mean(axis=(1, 3)))
    return np.array(found) / np.cos(np.deg2rad(middle))[:, None]


def difference(expected: NDArray, true: NDArray) -> Difference:
    """Of expected counts, shape ``(energy, pixels)``, from the true ones; bins without these are left out."""
    expected = np.where(true > 0, expected, 0.0)
    share, true_share = (x.sum(axis=1) / x.sum() for x in (expected, true))
    field, true_field = (x / np.maximum(x.sum(axis=1, keepdims=True), 1e-300) for x in (expected, true))
    level = float(np.log(expected.sum() / true.sum()))
    return Difference(level, _rms(share, true_share, true_share), _rms(field, true_field, true / true.sum()))


def _rms(value: NDArray, true: NDArray, weight: NDArray) -> float:
    """Weighted rms of the relative difference."""
    there = true > 0
    return float(np.sqrt((weight[there] * (value[there] / true[there] - 1) ** 2).sum()))


def pulls(value: NDArray, error: NDArray, true: NDArray) -> dict[str, float]:
    """Mean and width of (value - true) / error over bins that have an error: 0 and 1 where the errors are right.

    Backgrounds are written without errors so far; where they come with them, `assess` is the place to call it.

    Examples
    --------
    >>> pulls(np.array([1.0, 3.0, 5.0]), np.array([1.0, 1.0, 0.0]), np.full(3, 2.0))
    {'bins': 2, 'mean': 0.0, 'width': 1.0}
    """
    told = error > 0
    pull = (value[told] - true[told]) / error[told]
    return {"bins": int(told.sum()), "mean": float(pull.mean()), "width": float(pull.std())}


def excluded(archive: Path) -> dict[str, Any]:
    """What is left out: the sources and the stars that the simulation has put in."""
    stars, sources = archive / "stars.dat", archive / "sources.reg"
    return {"catalogs": [], "star_cat": str(stars), "exclude_region_files": [str(sources)]}


def hold_out(archive: Path, scratch: Path, exclusion: Mapping[str, Any]) -> Counts:
    """Counts of all runs, in pixels aligned with the horizon."""
    config = {
        "io": {"search_datastore": str(archive)}, "run_store": {"path": str(scratch / "counts.zarr")},
        "binning": {"mode": "3d", "alignment": "altaz"}, "exclusion": exclusion, "cluster": "threads",
    }  # fmt: skip
    stored = reduce_archive(parse_config(config), progress=False)
    assert stored.field_view is not None
    table, bins = stored.store.table(), make_bins(ENERGY, PIXELS)
    obs_ids = table["obs_id"].tolist()
    place = str(stored.store.path), stored.field_view, stored.store.find(obs_ids, stored.field_view)
    flat = (
        part.reshape(*part.shape[:-2], -1)[..., bins.pixel] for part in load_field(*place, FieldEdges(ENERGY, PIXELS))
    )
    first = np.searchsorted(ENERGY[:-1], table["lo_thres"]).tolist()
    counts, exposure, start = (dict(zip(obs_ids, part, strict=True)) for part in (*flat, first))
    return Counts(counts, exposure, start, bins)


def score(held: Counts, obs_id: int, mu: NDArray) -> RunScore:
    """Score of expected counts of a run."""
    is_open = held.exposure[obs_id] > 0
    return score_run(held.counts[obs_id], mu, is_open, held.first[obs_id], held.bins)[0]


def assess(held: Counts, directory: Path, true: Mapping[int, NDArray]) -> dict[str, Any]:
    """Differences of the backgrounds of a datastore from true expected counts, and log-likelihoods against theirs."""
    store, found, scores = read_datastore(directory), [], []
    for obs_id, expected in true.items():
        given = read_given(store, obs_id)
        mu = predict(Nodes(given.rate, given.axes, given.tiny), held.bins.places) * held.exposure[obs_id]
        seen = slice(held.first[obs_id], None)
        found.append(difference(mu[seen], expected[seen]))
        scores.append((score(held, obs_id, mu), score(held, obs_id, expected)))
    level, spectrum, shape = np.array(found).T
    return {
        "level": float(level.mean()), "level scatter": float(level.std()),
        "spectrum": float(np.sqrt((spectrum**2).mean())), "shape": float(np.sqrt((shape**2).mean())),
        **_likelihoods(scores),
    }  # fmt: skip


def _likelihoods(scores: list[tuple[RunScore, RunScore]]) -> dict[str, Any]:
    """Differences in 1e-3 nats an event with their errors, a bootstrap over runs; width of the significances."""
    events, runs = np.array([mine.counts.sum() for mine, _ in scores]), np.arange(len(scores))
    told: dict[str, Any] = {}
    for i, form in enumerate(FORMS):
        sums = np.stack(
            [1e3 * np.array([mine.loglike[i] - best.loglike[i] for mine, best in scores]), events], axis=1
        )
        error = bootstrap_error(sums, runs, lambda total: ratio(total[:, 0], total[:, 1]))
        told[form] = {"value": float(sums[:, 0].sum() / events.sum()), "error": float(error)}
    told["width"], told["true width"] = (
        float(widths(np.sum([part.cells[1] for part in parts], axis=0))) for parts in zip(*scores, strict=True)
    )
    return told


def measure(scratch: Path, runs: int, events: float, seed: int, names: list[str]) -> dict[str, dict[str, Any]]:
    """An archive, and what each method makes of it."""
    archive = scratch / "archive"
    truth = simulate_archive(archive, runs, events, seed, **PLANTED)
    exclusion = excluded(archive)
    held = hold_out(archive, scratch, exclusion)
    n = ENERGY.size - 1
    true = {
        obs_id: true_means(truth, obs_id).reshape(n, -1)[:, held.bins.pixel] * exposure
        for obs_id, exposure in held.exposure.items()
    }
    told = {}
    for name in names:
        start = time.perf_counter()
        directory = make_files(name, archive, scratch, {"exclusion": exclusion})
        told[name] = {**assess(held, directory, true), "seconds": time.perf_counter() - start}
    return told


def row_of(name: str, told: Mapping[str, Any]) -> list[str]:
    """A line of the table."""
    level = f"{told['level']:+.3f} +- {told['level scatter']:.3f}"
    likelihoods = [f"{told[form]['value']:+.2f} +- {told[form]['error']:.2f}" for form in FORMS]
    return [name, level, f"{told['spectrum']:.3f}", f"{told['shape']:.3f}", *likelihoods, f"{told['width']:.3f}"]


def main() -> None:
    """Simulate, make, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=150)
    parser.add_argument("--events", type=float, default=10_000, help="background events of a nominal run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--models", nargs="+", choices=list(METHODS), default=list(MODELS))
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    quiet()
    print(machine_line())
    with tempfile.TemporaryDirectory() as scratch:
        told = measure(Path(scratch), options.runs, options.events, options.seed, options.models)
    best = next(iter(told.values()))["true width"]
    archive = f"{options.runs} runs of {options.events:g} events"
    print(f"\n{archive}; 1e-3 nats an event against the truth, whose width is {best:.3f}\n")
    columns = ["model", "level", "spectrum", "shape", *FORMS, "width (norm)"]
    print(format_table(columns, [row_of(name, row) for name, row in told.items()]))
    asked = {"runs": options.runs, "events": options.events, "seed": options.seed, "planted": PLANTED}
    write_json(options.json, {**asked, "models": told})


if __name__ == "__main__":
    main()
