"""Usage of a job: tasks, bytes moved between workers, largest memory of a worker, bytes spilled to disk."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dask.utils import format_bytes
from distributed import Client

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Usage:
    """Usage of a job.

    Attributes
    ----------
    tasks
        Finished tasks; one that was repeated for a lost worker counts again.
    moved, spilled
        Bytes that workers received from each other, and that they wrote to their disks.
    peak
        Largest resident memory since its start [bytes] of a worker that is still connected.
    workers
        Number of workers at the end.
    """

    tasks: int
    moved: int
    spilled: int
    peak: int
    workers: int

    def __str__(self) -> str:
        memory = f"{format_bytes(self.peak)} peak memory of a worker ({self.workers} at the end)"
        return f"{self.tasks} tasks, {format_bytes(self.moved)} moved, {memory}, {format_bytes(self.spilled)} spilled"


@contextmanager
def log_usage(client: Client | None) -> Iterator[None]:
    """Log the usage within the context, if there is a client."""
    before = _totals(client) if client is not None else {}
    yield
    if client is None:
        return
    try:
        log.info("%s", usage_since(client, before))
    except Exception as error:
        # the cluster may have another version of distributed: a finished job must not fail for that
        log.warning("the usage of the job is unknown: %s", error)


def usage_since(client: Client, before: dict[str, int]) -> Usage:
    """Usage since the `_totals` ``before``."""
    peaks = client.run(_beat, on_error="ignore")
    now = _totals(client)
    spent = {name: max(now[name] - before.get(name, 0), 0) for name in ("tasks", "moved", "spilled")}
    return Usage(**spent, peak=max(peaks.values(), default=0), workers=len(peaks))


def _totals(client: Client) -> dict[str, int]:
    try:
        return client.run_on_scheduler(_of_scheduler)
    except Exception as error:
        log.debug("the scheduler does not report its usage: %s", error)
        return {}


def _of_scheduler(dask_scheduler) -> dict[str, int]:
    """Sums over all workers that the scheduler has had."""
    bytes_of = [(key, n) for key, n in dask_scheduler.cumulative_worker_metrics.items() if key[-1] == "bytes"]
    return {
        "tasks": sum(prefix.state_counts["memory"] for prefix in dask_scheduler.task_prefixes.values()),
        "moved": int(sum(n for key, n in bytes_of if key[0] == "get-data" and key[-2].endswith("-read"))),
        "spilled": int(sum(n for key, n in bytes_of if key[-2] == "disk-write")),
    }


async def _beat(dask_worker) -> int:
    """Send the latest metrics of a worker to its scheduler; its largest memory [bytes]."""
    await dask_worker.heartbeat()
    return _peak()


def _peak() -> int:
    """Largest resident memory that this process has had [bytes]."""
    try:
        # not ru_maxrss, which a process inherits from its parent
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
