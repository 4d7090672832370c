"""Worker processes on this machine, and environment variables of all workers."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from distributed import LocalCluster
from distributed.deploy.cluster import Cluster

DASHBOARD = "127.0.0.1:8787"
"""Visible on this machine only; distributed takes a free port if this one is taken."""

IDLE = "1 hour"
"""Time without a task after which the processes of a local cluster end."""

MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(128 * 2**20), "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20)}
"""Memory [bytes] that a worker keeps for its next arrays (glibc).

Dask sets 64 kB: the system then allocates each array anew, page by page, which makes reading and counting 1.5 times
slower, and the divergences 1.3 times.
"""


@contextmanager
def workers_environment() -> Iterator[None]:
    """Environment (`MALLOC`) of processes that are started in the context; variables of the user are not changed."""
    missing = {name: value for name, value in MALLOC.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]


def start_workers(n_workers: int) -> Cluster:
    """A scheduler and worker processes of one thread on this machine.

    They are started as commands, not by multiprocessing, which would run a script without ``if __name__ ==
    "__main__"`` again in each worker: the procedure's example is such a script.
    """
    if sys.platform == "win32":
        return LocalCluster(n_workers=n_workers, threads_per_worker=1, dashboard_address=DASHBOARD)
    from distributed.deploy import SubprocessCluster

    with workers_environment():
        return SubprocessCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            dashboard_address=DASHBOARD,
            # they survive a driver that is killed, and end after some time without tasks
            scheduler_kwargs={"idle_timeout": IDLE},
        )
