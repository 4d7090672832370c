"""How the job scales: on 1 and 2 real workers, and on many that only sleep.

    python benchmarks/bench_scaling.py [--runs N] [--events N] [--job-workers W ...] [--archive-runs N]
                                       [--workers W ...] [--batch B ...] [--archive DIR] [--json FILE]

1. The whole job on a simulated archive (as in ``bench_archive.py``), on 1 and on 2 worker processes.  What a run
   costs to read and a target to write is taken from there.
2. The graph from the run store to the files for a synthetic archive of 20,000 runs; its divergences, selections and
   stacks are computed once on 2 workers, and the seconds of each kind of task noted.
3. The same two graphs (the reading of 20,000 runs, in batches of several sizes; and from the store to the files) with
   each task replaced by a sleep of what it took, on 64 and 512 workers.  Scheduler, workers and their messages are
   the real ones: the scheduler in a process of its own, the workers many to a process (their monitors and profiles
   switched off, or two cores would do nothing else).  Results are not sent about.

*Ideal* is the larger of the work shared by all workers and the longest chain of tasks.  The scheduler does one thing
at a time: a job lasts at least its CPU seconds, however many workers there are (*at best*).  *Wall* is what it took
here; where scheduler and workers together need more CPU than this machine has, that is the limit of the machine and
not that of a cluster, and the CPU seconds of the workers are told too.  A scheduler that needs c seconds a task can
feed d / c workers with tasks of d seconds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

import bench_kl
import numpy as np
import psutil
from bench_archive import find_archive, job
from common import doze, environment, layer_name, local_cluster, machine_line, task_seconds, write_json
from dask._task_spec import Task, TaskRef, convert_legacy_graph
from dask.highlevelgraph import HighLevelGraph
from distributed import Client, get_task_stream
from distributed.deploy import SubprocessCluster

from dask_bkg.background.target import Target
from dask_bkg.config import parse_config
from dask_bkg.pipeline import graph as wiring
from dask_bkg.pipeline.run import run_job
from dask_bkg.pipeline.tables import make_tables
from dask_bkg.pipeline.update import Stored
from dask_bkg.plan import Plan
from dask_bkg.report import format_table
from dask_bkg.settings import rate_settings
from dask_bkg.similarity import ShapeSettings
from dask_bkg.sky.exclusion import concat_regions
from dask_bkg.store.store import RunStore

HOSTED = 256
"""Sleeping workers of one process, at most."""

QUIET = {
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__WORKER__MEMORY__MONITOR_INTERVAL": "60s",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "60s",
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "2s",
    "DASK_DISTRIBUTED__ADMIN__TICK__LIMIT": "60s",
}
"""Settings of a process of many sleeping workers, each of which would look after itself many times a second."""


# -- real workers --------------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """Seconds of the whole job for a number of workers, and of reading a run and writing a target."""

    seconds: dict[int, float]
    a_run: float
    a_target: float


def measure_job(archive: Path, scratch: Path, options: argparse.Namespace) -> Measured:
    """The job on real workers that are up; its task times from the last of them."""
    seconds: dict[int, float] = {}
    for workers in options.job_workers:
        config = job(archive, scratch / f"out-{workers}", workers, options.hours)
        with local_cluster(workers) as client, client.as_current(), get_task_stream(client=client) as stream:
            # imports are not what is measured
            client.run(lambda: __import__("dask_bkg.pipeline.run") and __import__("gammapy.irf"))
            start = time.perf_counter()
            run_job(config, progress=False)
            seconds[workers] = time.perf_counter() - start
    kinds = task_seconds(stream.data)
    return Measured(seconds, kinds["reduce-runs"].sum() / options.runs, kinds["write-files"].sum() / options.runs)


def measure_blocks(store: RunStore, options: argparse.Namespace) -> dict[str, float]:
    """Mean seconds of each kind of task from the store to the stacks of a large archive."""
    with local_cluster(2, "2GB") as client:
        lazy = bench_kl.build(store, options.hours, ShapeSettings(), None)
        with get_task_stream(client=client) as stream:
            bench_kl.ours(client, lazy)
    return {name: float(values.mean()) for name, values in task_seconds(stream.data).items()}


# -- graphs that sleep ---------------------------------------------------------------------------------------


def job_graph(store: RunStore, hours: float, out_dir: Path) -> dict:
    """The package's own graph from the store to the files of all runs of an archive that has no event files."""
    config = parse_config({
        "io": {name: str(out_dir) for name in ("search_datastore", "in_dir", "out_dir")},
        "background_selection": {"rank": "kl", "time_request": hours},
    })  # fmt: skip
    numbers = np.sort(store.table()["obs_id"]).tolist()
    targets = [Target(obs_id, "", "") for obs_id in numbers]
    nowhere: Any = None
    settings = bench_kl.EDGES, concat_regions([]), rate_settings(config)
    plan = Plan(config, *settings, nowhere, targets, candidates=frozenset(numbers))
    stored = Stored(store, "")
    graph = wiring.build(plan, make_tables(plan, stored), stored)
    return dict(HighLevelGraph.merge(*(task.__dask_graph__() for task in graph.writes)))


def reading_graph(n_runs: int, batch: int) -> dict:
    """The tasks that read the runs of an archive into the store, as `dask_bkg.pipeline.update` makes them."""
    tasks: dict = {"exclusion-0": (dict,)}
    return tasks | {("reduce-runs-0", i): (list, "exclusion-0") for i in range(-(-n_runs // batch))}


def sleeping(graph: Mapping, seconds: Mapping[str, float]) -> dict:
    """The graph with the same keys and dependencies, of tasks that sleep for the seconds of their kind."""
    nodes = convert_legacy_graph(graph)
    return {
        key: Task(key, doze, seconds.get(layer_name(key), 0.0), *map(TaskRef, sorted(node.dependencies, key=str)))
        for key, node in nodes.items()
    }


def ideal_seconds(graph: Mapping[Any, Task], seconds: Mapping[str, float], workers: int) -> float:
    """What it would take if only the tasks took time: all of them shared, or their longest chain."""
    ends: dict = {}
    for key in TopologicalSorter({key: node.dependencies for key, node in graph.items()}).static_order():
        before = max((ends[need] for need in graph[key].dependencies), default=0.0)
        ends[key] = before + seconds.get(layer_name(key), 0.0)
    return max(max(ends.values()), sum(seconds.get(layer_name(key), 0.0) for key in graph) / workers)


# -- workers that sleep --------------------------------------------------------------------------------------


@contextmanager
def sleeping_cluster(workers: int) -> Iterator[tuple[Client, list[psutil.Process]]]:
    """A scheduler in a process of its own and workers of one thread, many to a process; and these processes."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    with (
        # scheduler and workers must know `doze`; nobody reads what the scheduler logs: at 64 kB of it, it would stop
        environment(PYTHONPATH=path, DASK_LOGGING__DISTRIBUTED="error"),
        SubprocessCluster(n_workers=0, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        hosts: list[subprocess.Popen] = []
        try:
            for first in range(0, workers, HOSTED):
                number = min(HOSTED, workers - first)
                work = f"import common; common.host_workers({cluster.scheduler_address!r}, {number})"
                hosts.append(subprocess.Popen([sys.executable, "-c", work], env=os.environ | QUIET))
            client.wait_for_workers(workers, timeout=120)
            yield client, [psutil.Process(host.pid) for host in hosts]
        finally:
            for host in hosts:
                host.kill()
                host.wait()


def sleep_through(
    graph: dict, seconds: Mapping[str, float], client: Client, hosts: list[psutil.Process], workers: int
) -> dict[str, float]:
    """Seconds of a sleeping graph, and CPU seconds of the scheduler and of the processes of the workers."""
    tasks = sleeping(graph, seconds)
    inner = {need for task in tasks.values() for need in task.dependencies}
    before = _cpu(client, hosts)
    start = time.perf_counter()
    client.get(tasks, [key for key in tasks if key not in inner])
    wall = time.perf_counter() - start
    scheduler, hosted = np.subtract(_cpu(client, hosts), before).tolist()
    ideal = ideal_seconds(tasks, seconds, workers)
    return {
        "tasks": len(tasks), "ideal": ideal, "scheduler CPU": scheduler, "at best": max(ideal, scheduler),
        "wall": wall, "worker CPU": hosted,
    }  # fmt: skip


def _cpu(client: Client, hosts: list[psutil.Process]) -> tuple[float, float]:
    return client.run_on_scheduler(time.process_time), sum(sum(host.cpu_times()[:2]) for host in hosts)


def simulate(
    measured: Measured, blocks: Mapping[str, float], store: RunStore, scratch: Path, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """All sleeping graphs on all numbers of workers."""
    seconds = {**blocks, "write": measured.a_target * wiring.WRITE_BATCH}
    found: list[dict[str, Any]] = []

    def take(workers: int, name: str, graph: dict, cost: Mapping[str, float], a_task: float, *where: Any) -> None:
        print(f"sleeping: {workers} workers, {name}", file=sys.stderr, flush=True)
        told = sleep_through(graph, cost, *where, workers)
        found.append({"workers": workers, "graph": name, "a task": a_task, **told})

    for workers in options.workers:
        with sleeping_cluster(workers) as where:
            for batch in options.batch:
                a_task = measured.a_run * batch
                graph = reading_graph(options.archive_runs, batch)
                take(workers, f"read, {batch} a task", graph, {"reduce-runs": a_task}, a_task, *where)
            graph = job_graph(store, options.hours, scratch)
            mean = float(np.mean([seconds.get(layer_name(key), 0.0) for key in graph]))
            take(workers, "store to files", graph, seconds, mean, *where)
    return found


# -- what came out -------------------------------------------------------------------------------------------


def show(measured: Measured, rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """The tables, and the batch that feeds all workers."""
    print(machine_line())
    print(f"\nthe job on {options.runs} runs of {options.events} events, workers that are up")
    first = next(iter(measured.seconds.values()))
    lines = [[w, f"{s:.1f}", f"{first / s:.2f}"] for w, s in measured.seconds.items()]
    print(format_table(["workers", "seconds", "times faster"], lines))
    print(f"a run is read in {measured.a_run * 1e3:.0f} ms, a target written in {measured.a_target * 1e3:.0f} ms")
    print(f"\nan archive of {options.archive_runs} runs, tasks that sleep as long as they took")
    header = ["workers", "graph", "tasks", "s a task", *TIMES]
    numbers = [[f"{row['a task']:.3f}", *(f"{row[name]:.1f}" for name in TIMES)] for row in rows]
    named = [[row[name] for name in header[:3]] for row in rows]
    print(format_table(header, [a + b for a, b in zip(named, numbers, strict=True)]))
    print()
    for workers, cost in scheduling_costs(rows).items():
        batch = int(np.ceil(workers * cost / measured.a_run))
        print(
            f"{workers} workers: the scheduler needs {cost * 1e3:.2f} ms a task, and feeds them with tasks of "
            f"{workers * cost:.2f} s or more: {batch} or more runs a task"
        )


TIMES = ("ideal", "scheduler CPU", "at best", "wall", "worker CPU")


def scheduling_costs(rows: list[dict[str, Any]]) -> dict[int, float]:
    """CPU seconds of the scheduler for one task, for each number of workers.

    From the graph with the most tasks, where start and end matter least.
    """
    costs = {}
    for workers in dict.fromkeys(row["workers"] for row in rows):
        most = max((row for row in rows if row["workers"] == workers), key=lambda row: row["tasks"])
        costs[workers] = most["scheduler CPU"] / most["tasks"]
    return costs


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="runs of the simulated archive of the real job")
    parser.add_argument("--events", type=int, default=30_000)
    parser.add_argument("--hours", type=float, default=50.0)
    parser.add_argument("--job-workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--archive-runs", type=int, default=20_000, help="runs of the archive that is slept through")
    parser.add_argument("--workers", type=int, nargs="+", default=[64, 512], help="sleeping workers")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 10, 50], help="runs that one task reads")
    parser.add_argument("--archive", type=Path, help="where simulated archives are kept; nowhere by default")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        measured = measure_job(
            find_archive(options.runs, options.events, options.archive or scratch), scratch, options
        )
        bench_kl.write_store(scratch / "large.zarr", bench_kl.synthetic_runs(options.archive_runs))
        store = RunStore.open(scratch / "large.zarr")
        blocks = measure_blocks(store, options)
        rows = simulate(measured, blocks, store, scratch, options)
    show(measured, rows, options)
    write_json(options.json, {
        "job": measured._asdict(), "seconds of tasks": blocks, "sleeping": rows,
        "scheduler seconds a task": scheduling_costs(rows),
    })  # fmt: skip


if __name__ == "__main__":
    main()
