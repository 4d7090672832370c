"""Divergences, selection and stacks of a large archive: this package beside the bare array operations.

    python benchmarks/bench_kl.py [--runs N ...] [--hours H] [--workers W] [--memory LIMIT] [--block B]
                                  [--divergence shape|document] [--repeat R] [--json FILE]

A synthetic run store (20 energies x 5 rings, about 8,000 events a run from a few shapes, livetimes of 20 to 28 min);
for every run the divergence from every other, the most similar ones until 50 h, and their stack.

Ours is the lazy graph on worker processes with a memory limit: histograms are read from the store, shapes made,
divergences, selections and stacks computed and brought to this process.  The bare operations get all of that ready in
memory, and do on as many processes (one thread each) what cannot be left out: the same matrix products and cuts for a
block of rows, ``argpartition`` for as many runs as 50 h can need, a sort of those, a sparse product with counts and
exposure.  Both must take the same runs and come to the same sums.  Times are the best of R rounds, in turn.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import common
import numpy as np
from common import environment, graph_size, local_cluster, machine_line, peak_memory, write_json
from dask.highlevelgraph import HighLevelGraph
from distributed import Client
from numpy.typing import NDArray
from scipy import sparse

from dask_bkg import similarity
from dask_bkg.binning import Edges, View
from dask_bkg.config import parse_config
from dask_bkg.lazy.runs import load_runs
from dask_bkg.lazy.select import select_runs
from dask_bkg.lazy.stack import stack_runs
from dask_bkg.reduction.reduce import solid_angles
from dask_bkg.report import format_table
from dask_bkg.similarity import ShapeSettings, flat_bins
from dask_bkg.store.store import RunStore

EDGES = Edges(np.geomspace(0.01, 100, 21), np.linspace(0, 2.5, 6))
"""Bins that are compared as they are: narrower ones would be joined (`dask_bkg.similarity.bins.coarse_edges`)."""

VIEW = View("", EDGES)
EVENTS = 8000.0
LIVETIME = 1200.0, 1680.0
ROWS = 250
"""Targets that the bare operations do at a time: 40 MB a matrix of 20,000 runs."""

SECONDS = ("bare", "ours", "bare CPU", "ours CPU", "build")
"""What is measured [s]: wall time, CPU time of the processes together, and the build of the graph (part of ours)."""

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


# -- the archive ---------------------------------------------------------------------------------------------


class Runs(NamedTuple):
    """Synthetic runs: counts ``(runs, energy, offset)``, exposed fraction ``(runs, offset)``, times [s]."""

    obs_id: NDArray
    counts: NDArray
    fraction: NDArray
    livetime: NDArray
    ontime: NDArray


class Stacks(NamedTuple):
    """Sums for each target ``(targets, 100)``, and its runs: those of target ``i`` are ``start[i]:start[i + 1]``."""

    counts: NDArray
    exposure: NDArray
    start: NDArray
    run: NDArray


def synthetic_runs(n: int, seed: int = 1) -> Runs:
    """Poisson counts of a few kinds of shapes, each run's a little different."""
    rng = np.random.default_rng(seed)
    energy = np.sqrt(EDGES.energy[1:] * EDGES.energy[:-1])[:, None]
    offset = (EDGES.offset[1:] + EDGES.offset[:-1]) / 2
    kind = rng.integers(6, size=n)[:, None, None]
    threshold = 0.06 * 1.5**kind * np.exp(rng.normal(0, 0.1, (n, 1, 1)))
    width = 1.0 + 0.1 * kind + 0.1 * np.log10(energy) + rng.normal(0, 0.05, (n, 1, 1))
    shape = energy**-1.7 / (1 + (threshold / energy) ** 5) * np.exp(-0.5 * (offset / width) ** 2) * offset
    shape /= shape.sum(axis=(1, 2), keepdims=True)
    fraction = np.maximum(1 - rng.beta(1, 6, (n, offset.size)), 0.3)
    fraction[rng.random((n, offset.size)) < 0.3] = 1.0
    livetime = rng.uniform(*LIVETIME, n)
    events = EVENTS * rng.lognormal(0, 0.2, (n, 1, 1)) * fraction[:, None, :]
    return Runs(np.arange(50_001, 50_001 + n), rng.poisson(events * shape), fraction, livetime, livetime / 0.9)


def synthetic_conditions(n: int, seed: int = 2) -> dict[str, NDArray]:
    """Observing conditions of runs of many years, twelve a night, which rankings by divergence do not look at."""
    rng = np.random.default_rng(seed)
    zenith = np.rad2deg(np.arccos(rng.uniform(0.5, 1.0, n)))
    time_ = 55000 + np.arange(n) // 12 * 2.0 + np.arange(n) % 12 / 48
    muons = 1.0 - 0.1 * ((time_ - 55000) / 800 % 1) + rng.normal(0, 0.01, n)
    threshold = 0.2 * np.cos(np.deg2rad(zenith)) ** -2.5 / muons
    return {"zenith": zenith, "time": time_, "muon_efficiency": muons, "e_thres": threshold}


def write_store(path: Path, runs: Runs) -> None:
    """The run store of synthetic runs."""
    index = {obs_id: i for i, obs_id in enumerate(runs.obs_id.tolist())}

    def histograms(obs_id: int) -> dict[str, NDArray]:
        i = index[obs_id]
        return {"counts": runs.counts[i].astype(np.uint32), "exposed_fraction": runs.fraction[i]}

    conditions = synthetic_conditions(runs.obs_id.size)

    def numbers(obs_id: int) -> dict[str, float]:
        i = index[obs_id]
        times = {"livetime": float(runs.livetime[i]), "ontime": float(runs.ontime[i])}
        told = {name: float(values[i]) for name, values in conditions.items()}
        return {**times, **told, "ra_pnt": 0.0, "dec_pnt": 0.0}

    common.write_store(path, VIEW, list(index), histograms, numbers)


# -- the bare operations -------------------------------------------------------------------------------------


def operands(runs: Runs, shapes: ShapeSettings) -> dict[str, NDArray]:
    """What the bare operations start from: the arrays of `dask_bkg.similarity`, counts and exposure, flat."""
    n = runs.obs_id.size
    exposure = exposure_of(runs)
    bins = flat_bins(runs.counts.astype(float), exposure, runs.ontime, EDGES, shapes)
    prior = similarity.fit_prior(*bins, shapes) if shapes.method == "shape" else None
    p, q = similarity.as_targets(*bins, None, prior, shapes), similarity.as_references(*bins, prior, shapes)
    found = {"p": p.p, "entropy": p.entropy, "log_q": q.log_q, "livetime": runs.livetime}
    if p.weight is not None and q.seen is not None:
        found |= {"weight": p.weight, "q": q.q, "seen": q.seen}
    return {**found, "counts": runs.counts.reshape(n, -1).astype(float), "exposure": exposure.reshape(n, -1)}


def exposure_of(runs: Runs) -> NDArray:
    """Exposure [s TeV sr], shape ``(runs, energy, offset)``."""
    open_sky = runs.fraction * solid_angles(VIEW)["solid_angle"]
    return (runs.ontime[:, None] * np.diff(EDGES.energy))[:, :, None] * open_sky[:, None, :]


def divergences(rows: slice, x: Mapping[str, NDArray], min_coverage: float) -> NDArray:
    """Divergence of some targets from all runs; the run itself is infinitely far, a poor cover behind all others."""
    kl = x["p"][rows] @ x["log_q"].T
    np.subtract(x["entropy"][rows, None], kl, out=kl)
    if "q" in x:
        norm = x["weight"][rows] @ x["q"].T
        kl += np.log(norm, out=norm)
        kl[np.matmul(x["p"][rows], x["seen"].T, out=norm) < min_coverage] += 1e3
    own = np.arange(rows.start, rows.stop)
    kl[own - rows.start, own] = np.inf
    return kl


def stack_rows(rows: slice, x: Mapping[str, NDArray], min_coverage: float, seconds: float) -> Stacks:
    """Selection and stack of some targets."""
    kl = divergences(rows, x, min_coverage)
    most = min(int(np.ceil(seconds / x["livetime"].min())) + 1, kl.shape[1] - 1)
    near = np.argpartition(kl, most - 1, axis=1)[:, :most]
    order = np.argsort(np.take_along_axis(kl, near, axis=1).round(10), axis=1)
    near = np.take_along_axis(near, order, axis=1)
    livetime = x["livetime"][near]
    taken = np.cumsum(livetime, axis=1) - livetime < seconds - 1e-6
    start = np.concatenate([[0], np.cumsum(taken.sum(axis=1))])
    run = near[taken]
    weights = sparse.csr_array((np.ones(run.size), run, start), shape=(len(near), kl.shape[1]))
    return Stacks(weights @ x["counts"], weights @ x["exposure"], start, run)


_LOADED: dict[str, NDArray] = {}


def _load(path: str) -> None:
    with np.load(path) as file:
        _LOADED.update(file)


def _stack_loaded(rows: slice, min_coverage: float, seconds: float) -> tuple[Stacks, float]:
    start = time.process_time()
    return stack_rows(rows, _LOADED, min_coverage, seconds), time.process_time() - start


def bare(pool: ProcessPoolExecutor, n: int, min_coverage: float, hours: float) -> tuple[Stacks, float]:
    """All targets, block by block in the processes of a pool; and the CPU seconds of these."""
    blocks = [slice(i, min(i + ROWS, n)) for i in range(0, n, ROWS)]
    work = partial(_stack_loaded, min_coverage=min_coverage, seconds=hours * 3600)
    parts, seconds = zip(*pool.map(work, blocks), strict=True)
    return joined(parts), sum(seconds)


def joined(parts: Sequence[Stacks]) -> Stacks:
    """Stacks of consecutive blocks of targets as one."""
    ends = np.cumsum([0, *(part.start[-1] for part in parts)])
    start = np.concatenate([[0], *(part.start[1:] + end for part, end in zip(parts, ends, strict=False))])
    counts, exposure, run = (
        np.concatenate([getattr(p, name) for p in parts]) for name in ("counts", "exposure", "run")
    )
    return Stacks(counts, exposure, start, run)


@contextmanager
def bare_pool(x: Mapping[str, NDArray], scratch: Path, workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes of one thread that have the operands in memory."""
    path = scratch / "operands.npz"
    np.savez(path, **x)
    with (
        environment(**dict.fromkeys(THREADS, "1")),
        ProcessPoolExecutor(workers, get_context("spawn"), _load, (str(path),)) as pool,
    ):
        list(pool.map(time.sleep, [0.5] * workers))  # one each: all of them are up
        yield pool


# -- ours ----------------------------------------------------------------------------------------------------


class Lazy(NamedTuple):
    """The lazy job: selections and stacks, each a list of delayed objects, one a block; and its whole graph."""

    selected: list
    stacks: list
    graph: HighLevelGraph


def build(store: RunStore, hours: float, shapes: ShapeSettings, block: int | None) -> Lazy:
    """The graph, from the store to the stacks; computes nothing."""
    settings = parse_config({"background_selection": {"rank": "kl", "time_request": hours}}).background_selection
    table = store.table()
    runs = load_runs(str(store.path), "", store.find(table["obs_id"]), table, EDGES, block=block)
    selected = select_runs(runs, runs, settings, shapes=shapes)
    stacks = stack_runs(runs, selected)
    return Lazy(selected, stacks, HighLevelGraph.merge(*(stack.dask for stack in stacks)))


def ours(client: Client, lazy: Lazy) -> tuple[Stacks, float]:
    """Compute it, and bring selections and stacks here; and the CPU seconds of the workers."""
    n, before = len(lazy.selected), sum(client.run(time.process_time).values())
    found = client.gather(client.compute([*lazy.selected, *lazy.stacks]))
    flat = [[part.reshape(len(part), -1) for part in (stack.counts, stack.exposure)] for stack in found[n:]]
    stacks = joined([Stacks(*pair, chosen.start, chosen.run) for chosen, pair in zip(found[:n], flat, strict=True)])
    return stacks, sum(client.run(time.process_time).values()) - before


# -- side by side --------------------------------------------------------------------------------------------


def check_same(one: Stacks, other: Stacks) -> None:
    """Raise AssertionError unless both took the same runs and added up the same."""
    np.testing.assert_array_equal(one.start, other.start)
    rows = np.repeat(np.arange(one.start.size - 1), np.diff(one.start))
    for mine, theirs in ((one.run, other.run),):
        np.testing.assert_array_equal(mine[np.lexsort((mine, rows))], theirs[np.lexsort((theirs, rows))])
    np.testing.assert_array_equal(one.counts, other.counts)
    np.testing.assert_allclose(one.exposure, other.exposure, rtol=1e-10)


def measure(n: int, options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """One archive: seconds of both, memory of the workers, size of the graph."""
    runs, shapes = synthetic_runs(n), ShapeSettings(options.divergence)
    write_store(scratch / f"{n}.zarr", runs)
    store = RunStore.open(scratch / f"{n}.zarr")
    rounds: list[dict[str, float]] = []
    with (
        bare_pool(operands(runs, shapes), scratch, options.workers) as pool,
        local_cluster(options.workers, options.memory) as client,
    ):
        client.run(import_module, "dask_bkg.lazy.stack")
        client.run(import_module, "dask_bkg.lazy.select")
        for _ in range(options.repeat):
            start = time.perf_counter()
            expected, bare_cpu = bare(pool, n, shapes.min_coverage, options.hours)
            middle = time.perf_counter()
            lazy = build(store, options.hours, shapes, options.block)
            built = time.perf_counter()
            found, ours_cpu = ours(client, lazy)
            done = time.perf_counter()
            seconds = {"bare": middle - start, "build": built - middle, "ours": done - middle}
            rounds.append({**seconds, "bare CPU": bare_cpu, "ours CPU": ours_cpu})
        check_same(found, expected)
        size = graph_size(lazy.graph)
        peak = peak_memory(client)
    best = {name: min(r[name] for r in rounds) for name in rounds[0]}
    return {
        "runs": n, "contributing": float(np.diff(expected.start).mean()), "seconds": best,
        "ratio": best["ours"] / best["bare"], **size, "peak_gb": peak,
    }  # fmt: skip


def show(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """The table."""
    print(machine_line())
    bins = EDGES.shape[0] * EDGES.shape[1]
    print(
        f"{bins} bins, {options.hours:g} h for each run, divergence {options.divergence}; {options.workers} "
        f"processes of one thread, {options.memory} each; best of {options.repeat}"
    )
    cells = []
    for row in rows:
        seconds, peak = row["seconds"], " ".join(f"{gb:.2f}" for gb in row["peak_gb"])
        cells.append([
            row["runs"], f"{row['contributing']:.0f}", *(f"{seconds[name]:.2f}" for name in SECONDS),
            f"{row['ratio']:.2f}", row["tasks"], f"{row['bytes'] / 1e6:.1f}", peak,
        ])  # fmt: skip
    header = ["runs", "contribute", *SECONDS, "ratio", "tasks", "graph MB", "peak GB a worker"]
    print(format_table(header, cells))


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[5000, 10_000, 20_000], help="sizes of the archive")
    parser.add_argument("--hours", type=float, default=50.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory", default="2GB", help="memory limit of a worker")
    parser.add_argument("--block", type=int, help="runs a block; by default as in a job")
    parser.add_argument("--divergence", choices=similarity.METHODS, default="shape")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = [measure(runs, options, Path(scratch)) for runs in options.runs]
    show(rows, options)
    write_json(options.json, {"hours": options.hours, "divergence": options.divergence, "archives": rows})


if __name__ == "__main__":
    # under its own name, by which the processes of the pool find its functions
    from bench_kl import main as run

    run()
