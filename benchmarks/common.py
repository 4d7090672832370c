"""What the benchmarks share: machine, local cluster, memory, graph and times of its tasks, a synthetic run store."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
from dask.utils import key_split
from distributed import Client, Worker
from distributed.deploy import SubprocessCluster
from numpy.typing import NDArray

from dask_bkg.binning import View
from dask_bkg.cluster.local import workers_environment
from dask_bkg.dl3.read import RunFile
from dask_bkg.store.store import RunStore
from dask_bkg.store.update import Found, RunDone, write_runs


def machine() -> dict[str, str | int]:
    """Where and when it was measured, and with what."""
    packages = {name: version(name) for name in ("numpy", "dask", "distributed")}
    return {
        "date": str(datetime.date.today()), "machine": platform.machine(), "cores": os.cpu_count() or 1,
        "python": platform.python_version(), **packages,
    }  # fmt: skip


def machine_line() -> str:
    """`machine` as one line."""
    told = machine()
    packages = ", ".join(f"{name} {told[name]}" for name in ("numpy", "dask", "distributed"))
    return f"{told['date']}  {told['machine']}, {told['cores']} cores, Python {told['python']}, {packages}"


def write_json(path: Path | None, content: Mapping[str, Any]) -> None:
    """The numbers with the machine as JSON, where a path was given."""
    if path:
        path.write_text(json.dumps({**machine(), **content}, indent=1) + "\n")


def seconds_of(work: Callable[[], object]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Environment variables for processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def local_cluster(workers: int, memory: str | int = "auto") -> Iterator[Client]:
    """Worker processes of one thread on this machine, with a memory limit for each.

    Its processes are started as those of a job.  A worker has one thread for linear algebra too: Dask's nanny sees to
    it.
    """
    with (
        workers_environment(),
        environment(DASK_LOGGING__DISTRIBUTED="error"),
        SubprocessCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address=None, worker_kwargs={"memory_limit": memory}
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(workers)
        yield client


def peak_memory(client: Client) -> list[float]:
    """Largest resident memory that each worker ever had [GB], since it was started or since `reset_peak`."""

    # a function of a function: it is sent whole, and needs no module on the worker
    def peak() -> float:
        import resource
        import sys

        try:
            # not ru_maxrss, which a process takes over from the one that started it
            with open("/proc/self/status") as status:
                return next(int(line.split()[1]) * 1024 / 1e9 for line in status if line.startswith("VmHWM"))
        except OSError:
            unit = 1 if sys.platform == "darwin" else 1024
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9

    return sorted(client.run(peak).values())


def reset_peak(client: Client) -> None:
    """Let `peak_memory` start anew, where the system can (Linux)."""

    def reset() -> None:
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")
        except OSError:
            pass

    client.run(reset)


def graph_size(graph: Mapping) -> dict[str, int]:
    """Number of tasks and bytes of a graph as it is sent (low-level graph, pickled)."""
    tasks = dict(graph)
    return {"tasks": len(tasks), "bytes": len(cloudpickle.dumps(tasks))}


def task_seconds(stream: list[dict[str, Any]]) -> dict[str, NDArray]:
    """Seconds that the tasks of each name computed, from `distributed.Client.get_task_stream`.

    Reading of inputs from other workers is not in them.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for task in stream:
        seconds = sum(s["stop"] - s["start"] for s in task["startstops"] if s["action"] == "compute")
        found[layer_name(task["key"])].append(seconds)
    return {name: np.array(values) for name, values in found.items()}


def layer_name(key: Any) -> str:
    """Name of a task's layer without its token: ``("reduce-runs-1a2b3c4d", 0)`` is ``reduce-runs``."""
    return str(key_split(key))


def host_workers(address: str, number: int) -> None:
    """Run many workers of one thread in this process, until it is killed."""

    async def run() -> None:
        workers: list[Worker] = []
        while len(workers) < number:
            # all at once would keep the scheduler from answering the first of them
            few = range(min(8, number - len(workers)))
            workers += await asyncio.gather(*(Worker(address, nthreads=1, memory_limit=0) for _ in few))
        await asyncio.gather(*(worker.finished() for worker in workers))

    asyncio.run(run())


def doze(seconds: float, *inputs: Any) -> None:
    """A task that only takes its time."""
    time.sleep(seconds)


def write_store(
    path: Path, view: View, obs_ids: Sequence[int], histograms: Callable[[int], dict], numbers: Callable[[int], dict]
) -> None:
    """The run store of an archive that was never read: histograms and table as a job leaves them.

    ``histograms`` and ``numbers`` give those of a run by its number; numbers that they leave out are NaN.
    """
    store = RunStore.open_or_create(path, view)
    with store.writing():
        for work in store.plan_update([RunFile(obs_id, "") for obs_id in obs_ids], [view], None):
            found = [
                Found(
                    run.obs_id, numbers(run.obs_id), {"fingerprint": f"synthetic {run.obs_id}"}, ("",),
                    [histograms(run.obs_id)],
                )
                for run in work.runs
            ]  # fmt: skip
            write_runs(work, [view], found)
            store.record([RunDone(run.obs_id, "read") for run in work.runs])
