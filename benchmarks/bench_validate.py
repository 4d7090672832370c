"""Validation of a large archive: each run against the stack of the others, leave one out.

    python benchmarks/bench_validate.py [--runs N ...] [--modes MODE ...] [--hours H] [--workers W] [--memory LIMIT]
                                        [--json FILE]

A synthetic run store (50 energies x 25 x 25 pixels and 50 x 50 rings, 5,000 events a run, in every fifth run a circle
excluded) of runs whose files are nowhere: no event is read and no file is written. For every run the nearest runs
until 10 h (``rank: conditions``), their stack, the background as it would be written, its prediction and its scores,
on worker processes with a memory limit; then what a page says of all runs, in this process.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import graph_size, local_cluster, machine_line, peak_memory, reset_peak, write_json, write_store
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import NDArray

from dask_bkg.background.target import Target
from dask_bkg.binning import Edges, FieldEdges, fine_view
from dask_bkg.cluster import job_workers
from dask_bkg.config import Config, parse_config
from dask_bkg.dl3.index import Datastore
from dask_bkg.pipeline.graph import build
from dask_bkg.pipeline.tables import make_tables
from dask_bkg.pipeline.update import Stored
from dask_bkg.plan import Plan
from dask_bkg.report import format_table
from dask_bkg.report.validation_files import write_validation
from dask_bkg.settings import field_plan, rate_settings
from dask_bkg.sky import fov
from dask_bkg.sky.exclusion import concat_regions
from dask_bkg.store.store import RunStore
from dask_bkg.validation import counts as scored
from dask_bkg.validation import run as held_out

FIRST = 50_001
EVENTS, ONTIME = 5000.0, 1680.0
VIEW = fine_view()._replace(alignment="altaz")
BINNING = {mode: {"mode": mode} for mode in ("2d", "3d")}


# -- the archive ---------------------------------------------------------------------------------------------------


def expected_counts() -> tuple[NDArray, NDArray]:
    """Counts that a run is expected to have in rings ``(energy, offset)`` and pixels ``(energy, lat, lon)``."""
    edges, fine = VIEW.edges, (np.arange(-125, 125) + 0.5) * 0.02
    energy = np.sqrt(edges.energy[1:] * edges.energy[:-1])
    spectrum = energy**-1.7 / (1 + (0.3 / energy) ** 9)
    offset = fov.separation(fine[None, :], fine[:, None], 0, 0)
    plane = np.exp(-0.5 * (offset / 1.3) ** 2) * np.exp(-0.05 * fine[:, None])
    ring = np.digitize(offset, edges.offset) - 1
    rings = np.bincount(ring.ravel(), plane.ravel(), minlength=edges.shape[1] + 1)[: edges.shape[1]]
    pixels = plane.reshape(25, 10, 25, 10).sum(axis=(1, 3))
    norm = EVENTS / (spectrum.sum() * plane.sum())
    return norm * np.multiply.outer(spectrum, rings), norm * np.multiply.outer(spectrum, pixels)


def histograms_of(obs_id: int, means: tuple[NDArray, NDArray]) -> dict[str, NDArray]:
    """Histograms of a run."""
    rng = np.random.default_rng(obs_id)
    open_rings, open_pixels = np.ones(VIEW.edges.shape[1]), np.ones((25, 25))
    if obs_id % 5 == 0:
        centre = (np.arange(25) - 12) * 0.2
        open_pixels[fov.separation(centre[None, :], centre[:, None], 0.0, 0.5) < 0.35] = 0.0
        open_rings[3:17] = 0.8
    return {
        "counts": rng.poisson(means[0] * open_rings).astype(np.uint32),
        "exposed_fraction": open_rings,
        "field_counts": rng.poisson(means[1] * open_pixels).astype(np.uint32),
        "field_exposed_fraction": open_pixels,
    }


def numbers_of(obs_id: int) -> dict[str, float]:
    """What is known of a run: 40 nights, 60 pointings, zenith angles to 50 deg."""
    rng = np.random.default_rng(obs_id)
    return {
        "livetime": 0.9 * ONTIME, "ontime": ONTIME, "ra_pnt": 6.0 * (obs_id % 60), "dec_pnt": -30.0,
        "zenith": float(rng.uniform(5, 50)), "azimuth": 180.0, "time": 55_000.0 + obs_id % 40, "lo_thres": 0.25,
        "e_thres": float(rng.uniform(0.15, 0.25)), "muon_efficiency": float(rng.uniform(0.9, 1.1)),
        "n_events": EVENTS, "site_lon": 16.5, "site_lat": -23.3, "site_height": 1800.0,
    }  # fmt: skip


def fill_store(path: Path, n: int) -> None:
    """The run store of synthetic runs."""
    write_store(path, VIEW, range(FIRST, FIRST + n), partial(histograms_of, means=expected_counts()), numbers_of)


# -- the validation ------------------------------------------------------------------------------------------------


def prepare(path: Path, n: int, mode: str, hours: float) -> tuple[Config, Any]:
    """A job on runs whose files are nowhere, up to its graph."""
    nowhere = {"search_datastore": "/archive/dl3", "in_dir": "/archive/dl3", "out_dir": "/scratch/out"}
    selection = {"rank": "conditions", "time_request": hours}
    config = parse_config(
        {"io": nowhere, "binning": BINNING[mode], "background_selection": selection, "run_store": {"path": str(path)}}
    )
    obs_ids = list(range(FIRST, FIRST + n))
    targets = [Target(i, f"/archive/dl3/run_{i}.fits.gz", f"/scratch/out/run_{i}.fits.gz") for i in obs_ids]
    edges = Edges(config.binning.energy_edges, config.binning.offset_edges)
    empty = Datastore(Path("/archive/dl3"), _no_rows(), _no_rows())
    about = {"candidates": frozenset(obs_ids), "field_plan": field_plan(config), "archive": empty}
    plan = Plan(config, edges, concat_regions([]), rate_settings(config), empty, targets, **about)
    store = RunStore.open(path)
    field = None
    if plan.field_plan is not None:
        field = store.field_view_for(
            FieldEdges(plan.field_plan.edges.energy, plan.field_plan.edges.fov), "altaz", "disc"
        ).name
    stored = Stored(store, "", field, fields={"altaz": ""})
    return config, scored.Prepared(plan, stored, make_tables(plan, stored), {})


def _no_rows() -> Any:
    from astropy.table import Table

    return Table({"OBS_ID": np.zeros(0, dtype=np.int64)})


def measure(path: Path, n: int, mode: str, options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """One archive: seconds, memory and tasks."""
    with local_cluster(options.workers, options.memory) as client:
        reset_peak(client)
        start = time.perf_counter()
        _, job = prepare(path, n, mode, options.hours)
        with client.as_current(), job_workers(job.plan.config, progress=False) as workers:
            counts = scored.counts_of(job, workers, False, ("altaz",))
            done = held_out.trial(mode, job, counts, workers, False)
        seconds, memory = time.perf_counter() - start, peak_memory(client)
    start = time.perf_counter()
    write_validation(done, scratch / f"{mode}-{n}")
    summary = time.perf_counter() - start
    graph = build(job.plan, job.tables, job.stored, last=lambda graph: held_out.final_layer(graph, job, counts))
    size = graph_size(HighLevelGraph.merge(*(task.dask for task in graph.writes)))
    return {
        "runs": n, "mode": mode, "seconds": seconds, "summary": summary, "peak_gb": memory, **size,
        "validated": int(done.runs.sizes["obs_id"]), "events": done.n_events,
        "ratio": float(done.runs["predicted"].sum() / done.runs["counts"].sum()),
    }  # fmt: skip


def show(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """The table."""
    print(machine_line())
    print(f"leave one out, stacks of {options.hours:g} h; {options.workers} processes, {options.memory} each\n")
    header = ["runs", "mode", "seconds", "ms a run", "page", "tasks", "peak GB a worker", "predicted/observed"]
    cells = [
        [
            row["runs"], row["mode"], f"{row['seconds']:.1f}", f"{1e3 * row['seconds'] / row['runs']:.1f}",
            f"{row['summary']:.1f}", row["tasks"], " ".join(f"{gb:.2f}" for gb in row["peak_gb"]),
            f"{row['ratio']:.4f}",
        ]
        for row in rows
    ]  # fmt: skip
    print(format_table(header, cells))


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[100, 1000, 20_000], help="sizes of the archive")
    parser.add_argument("--modes", nargs="+", choices=list(BINNING), default=["2d", "3d"])
    parser.add_argument("--hours", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory", default="2GB", help="memory limit of a worker")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for n in options.runs:
            path = Path(scratch, f"{n}.zarr")
            fill_store(path, n)
            rows += [measure(path, n, mode, options, Path(scratch)) for mode in options.modes]
    show(rows, options)
    write_json(options.json, {"archives": rows})


if __name__ == "__main__":
    main()
