"""Where a job runs: threads of this process, local worker processes, or a scheduler somewhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from distributed import Client, LocalCluster, default_client

from dask_bkg.errors import ConfigError

DASHBOARD = "127.0.0.1:8787"
"""Nothing listens beyond this machine; distributed takes a free port if this one is taken."""

CONNECT_SECONDS = 20

IDLE = "1 hour"
"""Time without a task after which the processes of a local cluster end by themselves."""

MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(128 * 2**20), "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20)}
"""Memory [bytes] that a worker keeps for its next arrays (glibc).

Dask says 64 kB: each array is then asked of the system again, page by page, which makes reading and counting 1.5
times slower, and the divergences 1.3 times.
"""


@contextmanager
def open_client(cluster: str, n_workers: int) -> Iterator[Client | None]:
    """A client for the time of a job, or None for threads.

    Parameters
    ----------
    cluster
        ``threads``, ``local``, or the address of a scheduler. A client that is active already always wins, and is
        left open.
    n_workers
        Worker processes of a local cluster.

    Raises
    ------
    ConfigError
        If no scheduler answers at the address.
    """
    active = active_client()
    if active is not None:
        yield active
    elif cluster == "threads":
        yield None
    elif cluster == "local":
        with workers_environment():
            local = _local_cluster(n_workers)
        with local, Client(local) as client:
            client.wait_for_workers(1)
            yield client
    else:
        with _connect(cluster) as client:
            yield client


def active_client() -> Client | None:
    """The client that this process is connected with, None if there is none."""
    try:
        return default_client()
    except ValueError:
        return None


@contextmanager
def workers_environment() -> Iterator[None]:
    """Environment (`MALLOC`) of processes that are started meanwhile; what the user has set stays."""
    missing = {name: value for name, value in MALLOC.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]


def _local_cluster(n_workers: int):
    """Worker processes on this machine.

    They are started as commands of their own, not by multiprocessing, which would run a script without an
    ``if __name__ == "__main__"`` again in each worker: the procedure's example is such a script.
    """
    if sys.platform == "win32":
        return LocalCluster(n_workers=n_workers, threads_per_worker=1, dashboard_address=DASHBOARD)
    from distributed.deploy import SubprocessCluster

    return SubprocessCluster(
        n_workers=n_workers,
        threads_per_worker=1,
        dashboard_address=DASHBOARD,
        # processes of their own outlive a driver that is killed: they end when nobody has asked for anything
        scheduler_kwargs={"idle_timeout": IDLE},
    )


def _connect(address: str) -> Client:
    try:
        return Client(address, timeout=CONNECT_SECONDS)
    except OSError as error:
        raise ConfigError(
            f"cluster: no scheduler answers at {address} ({error}); start one with `dask scheduler` and workers with "
            "`dask worker`, or take `local`"
        ) from error
