"""What a job used: tasks, bytes between workers, the largest memory of a worker, bytes that went to disk."""

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
    """What a job used.

    Attributes
    ----------
    tasks
        Tasks that were done; one that was done again for a lost worker counts again.
    moved, spilled
        Bytes that workers got from each other, and that they wrote to their disks.
    peak
        Largest resident memory of a worker [bytes], of those that are still there; since it was started.
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
def told_usage(client: Client | None) -> Iterator[None]:
    """Tell in the log what is used meanwhile, if there is a client."""
    before = _totals(client) if client is not None else {}
    yield
    if client is None:
        return
    try:
        log.info("%s", usage_since(client, before))
    except Exception as error:
        # it may be somebody's cluster, of another version: no reason for a job to fail that is done
        log.warning("what the job used is not known: %s", error)


def usage_since(client: Client, before: dict[str, int]) -> Usage:
    """What was used since `_totals` were taken."""
    peaks = client.run(_beat, on_error="ignore")
    now = _totals(client)
    spent = {name: max(now[name] - before.get(name, 0), 0) for name in ("tasks", "moved", "spilled")}
    return Usage(**spent, peak=max(peaks.values(), default=0), workers=len(peaks))


def _totals(client: Client) -> dict[str, int]:
    try:
        return client.run_on_scheduler(_of_scheduler)
    except Exception as error:
        log.debug("the scheduler does not tell what was used: %s", error)
        return {}


def _of_scheduler(dask_scheduler) -> dict[str, int]:
    """Sums over all workers that the scheduler ever had."""
    bytes_of = [(key, n) for key, n in dask_scheduler.cumulative_worker_metrics.items() if key[-1] == "bytes"]
    return {
        "tasks": sum(prefix.state_counts["memory"] for prefix in dask_scheduler.task_prefixes.values()),
        "moved": int(sum(n for key, n in bytes_of if key[0] == "get-data" and key[-2].endswith("-read"))),
        "spilled": int(sum(n for key, n in bytes_of if key[-2] == "disk-write")),
    }


async def _beat(dask_worker) -> int:
    """Let a worker tell its scheduler the latest; its largest memory."""
    await dask_worker.heartbeat()
    return _peak()


def _peak() -> int:
    """Largest resident memory that this process ever had [bytes]."""
    try:
        # not ru_maxrss, which a process takes over from the one that started it
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
