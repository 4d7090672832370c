"""3D backgrounds of a large archive: stacks of field pixels beside those of rings.

    python benchmarks/bench_field.py [--runs N ...] [--hours H] [--workers W] [--memory LIMIT] [--targets N]
                                    [--json FILE]

A synthetic run store (30 energies x 25 x 25 pixels and 30 x 10 rings, 5,000 events a run, in every fifth run a circle
excluded).  For every run the most similar runs until 10 h (divergence of the rings, in both), their stack in rings
(2D) and in rings and pixels (3D), on worker processes with a memory limit.  Then for some targets the rate is made of
it, written into a file of its own and read back by gammapy.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import graph_size, local_cluster, machine_line, peak_memory, reset_peak, write_json, write_store
from dask import delayed
from dask.highlevelgraph import HighLevelGraph
from gammapy.irf import Background2D, Background3D
from numpy.typing import NDArray

from dask_bkg.background.estimate import Histogram, Rate, RateSettings, estimate_rate
from dask_bkg.background.field import FieldSettings, estimate_field
from dask_bkg.background.stack import Stack
from dask_bkg.binning import Edges, FieldEdges, View
from dask_bkg.config import parse_config
from dask_bkg.dl3.attach import write_background
from dask_bkg.dl3.background import background_table
from dask_bkg.lazy.layers import block_size
from dask_bkg.lazy.runs import load_runs
from dask_bkg.lazy.select import select_runs
from dask_bkg.lazy.stack import stack_fields, stack_runs
from dask_bkg.pipeline.graph import FIELD_BLOCK
from dask_bkg.report import format_table
from dask_bkg.sky import fov
from dask_bkg.store.store import RunStore

ENERGY = np.geomspace(0.1, 100, 31)
RINGS = Edges(ENERGY, np.linspace(0, 2.5, 11))
PIXELS = np.round(np.arange(-12.5, 13) * 0.2, 12)
FIELD = FieldEdges(ENERGY, PIXELS)
VIEW = View("", RINGS, pixels=tuple(PIXELS.tolist()), alignment="altaz")
EVENTS, ONTIME = 5000.0, 1680.0
ZENITH = 30.0


# -- the archive ---------------------------------------------------------------------------------------------------


def expected_counts() -> tuple[NDArray, NDArray]:
    """Counts that a run is expected to have in rings ``(energy, offset)`` and pixels ``(energy, lat, lon)``."""
    energy = np.sqrt(ENERGY[1:] * ENERGY[:-1])
    spectrum = energy**-1.7 / (1 + (0.3 / energy) ** 5)
    fine = (np.arange(-125, 125) + 0.5) * 0.02
    offset = fov.separation(fine[None, :], fine[:, None], 0, 0)
    plane = np.exp(-0.5 * (offset / 1.3) ** 2) * np.exp(-0.1 * fine[:, None])
    ring = np.digitize(offset, RINGS.offset) - 1
    rings = np.array([plane[ring == i].sum() for i in range(RINGS.shape[1])])
    pixels = plane.reshape(25, 10, 25, 10).sum(axis=(1, 3))
    norm = EVENTS / (spectrum.sum() * plane.sum())
    return norm * np.multiply.outer(spectrum, rings), norm * np.multiply.outer(spectrum, pixels)


def histograms_of(obs_id: int, means: tuple[NDArray, NDArray]) -> dict[str, NDArray]:
    """Histograms of a run."""
    rng = np.random.default_rng(obs_id)
    open_rings, open_pixels = np.ones(RINGS.shape[1]), np.ones((25, 25))
    if obs_id % 5 == 0:
        offset = fov.separation(PIXELS[None, :-1] + 0.1, PIXELS[:-1, None] + 0.1, 0.0, 0.5)
        open_pixels[offset < 0.35], open_rings[:4] = 0.0, 0.8
    return {
        "counts": rng.poisson(means[0] * open_rings).astype(np.uint32),
        "exposed_fraction": open_rings,
        "field_counts": rng.poisson(means[1] * open_pixels).astype(np.uint32),
        "field_exposed_fraction": open_pixels,
    }


def fill_store(path: Path, n: int) -> float:
    """The run store of synthetic runs; MB on disk."""
    numbers = {"livetime": 0.9 * ONTIME, "ontime": ONTIME, "ra_pnt": 0.0, "dec_pnt": 0.0, "zenith": ZENITH}
    histograms = partial(histograms_of, means=expected_counts())
    write_store(path, VIEW, range(50_001, 50_001 + n), histograms, lambda obs_id: numbers)
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6


# -- stacks and files ----------------------------------------------------------------------------------------------


def build(store: RunStore, hours: float, field: bool) -> tuple[list, HighLevelGraph]:
    """Tasks that stack a block of targets each and give no more than a sum; and their graph."""
    settings = parse_config({"background_selection": {"rank": "kl", "time_request": hours}}).background_selection
    table = store.table()
    place, rows = (str(store.path), ""), store.find(table["obs_id"])
    block = min(block_size(len(rows)), FIELD_BLOCK)
    runs = load_runs(*place, rows, table, RINGS, block=block)
    selected = select_runs(runs, runs, settings)
    stacks = [stack_runs(runs, selected)]
    if field:
        stacks.append(stack_fields(load_runs(*place, rows, table, FIELD, block=block), selected))
    graph = HighLevelGraph.merge(*(block.dask for blocks in stacks for block in blocks))
    return [delayed(_sums)(*blocks) for blocks in zip(*stacks, strict=True)], graph


def _sums(*stacks: Stack) -> list[float]:
    return [float(part.sum()) for stack in stacks for part in (stack.counts, stack.exposure)]


def measure(n: int, options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """One archive: seconds, memory and tasks of both."""
    size = fill_store(scratch / f"{n}.zarr", n)
    store, told = RunStore.open(scratch / f"{n}.zarr"), {"runs": n, "store_mb": size}
    with local_cluster(options.workers, options.memory) as client:
        for mode in ("2d", "3d"):
            reset_peak(client)
            start = time.perf_counter()
            tasks, graph = build(store, options.hours, mode == "3d")
            built = time.perf_counter() - start
            sums = np.array(client.gather(client.compute(tasks)))
            told[mode] = {
                "seconds": time.perf_counter() - start, "build": built, "peak_gb": peak_memory(client),
                "counts": float(sums[:, -2].sum()), **graph_size(graph),
            }  # fmt: skip
    # what lies in the square but in no ring comes on top
    assert told["3d"]["counts"] > told["2d"]["counts"]
    return told


def write_and_read(targets: int, scratch: Path) -> dict[str, dict[str, float]]:
    """Milliseconds a target: the rate, its file, and gammapy reading it back."""
    means, runs = expected_counts(), 22
    rings, pixels = (np.random.default_rng(1).poisson(runs * mean).astype(float) for mean in means)
    volume = runs * ONTIME * np.diff(ENERGY)
    exposure = np.multiply.outer(volume, fov.ring_grid(tuple(RINGS.offset.tolist())).bin_solid_angle)
    field = np.multiply.outer(volume, np.full((25, 25), np.deg2rad(0.2) ** 2))
    edges, sin_z = (*RINGS, PIXELS), float(np.sin(np.deg2rad(ZENITH)))
    ways = {
        "2d": (lambda: estimate_rate(rings, exposure, RINGS, RateSettings()), RINGS, Background2D),
        "3d": (lambda: estimate_field(Histogram(rings, exposure), Histogram(pixels, field), edges, (sin_z, sin_z),
                                      RateSettings(), FieldSettings()), FIELD, Background3D),
    }  # fmt: skip
    found = {}
    for mode, (make, axes, irf) in ways.items():
        path = scratch / f"{mode}.fits.gz"
        marks = np.array([_steps(make, axes, irf, path) for _ in range(targets + 1)])[1:]  # the first one warms up
        spent = 1e3 * np.diff(marks, axis=1).mean(axis=0)
        found[mode] = {**dict(zip(("rate", "write", "read"), spent.tolist(), strict=True)),
                       "kb": path.stat().st_size / 1e3}  # fmt: skip
    return found


def _steps(make: Callable[[], Rate], axes: Edges | FieldEdges, irf: Any, path: Path) -> list[float]:
    """Times before, between and after the steps from stack to file and back."""
    marks = [time.perf_counter()]
    rate = make()
    marks.append(time.perf_counter())
    write_background(path, background_table(rate.value, axes))
    marks.append(time.perf_counter())
    irf.read(path, hdu="BACKGROUND")
    return [*marks, time.perf_counter()]


def show(rows: list[dict[str, Any]], files: dict[str, dict[str, float]], options: argparse.Namespace) -> None:
    """The tables."""
    print(machine_line())
    print(f"stacks of {options.hours:g} h for each run; {options.workers} processes, {options.memory} each\n")
    cells = [
        [row["runs"], mode, f"{row['store_mb']:.1f}", f"{row[mode]['seconds']:.1f}", f"{row[mode]['build']:.2f}",
         row[mode]["tasks"], " ".join(f"{gb:.2f}" for gb in row[mode]["peak_gb"])]
        for row in rows for mode in ("2d", "3d")
    ]  # fmt: skip
    header = ["runs", "mode", "store MB", "seconds", "build", "tasks", "peak GB a worker"]
    print(format_table(header, cells))
    print("\nms a target (one process)")
    header = ["mode", "rate", "write", "gammapy reads", "kB a file"]
    print(format_table(header, [[mode, *(f"{v:.1f}" for v in told.values())] for mode, told in files.items()]))


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[500, 2000], help="sizes of the archive")
    parser.add_argument("--hours", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory", default="2GB", help="memory limit of a worker")
    parser.add_argument("--targets", type=int, default=20, help="files that are written and read")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = [measure(n, options, Path(scratch)) for n in options.runs]
        files = write_and_read(options.targets, Path(scratch))
    show(rows, files, options)
    write_json(options.json, {"archives": rows, "files": files})


if __name__ == "__main__":
    main()
