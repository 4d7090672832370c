"""Worker processes on this machine, and environment variables of all workers."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from distributed import LocalCluster
from distributed.deploy.cluster import Cluster
from distributed.deploy.spec import ProcessInterface, SpecCluster
from distributed.security import Security
from distributed.worker_memory import parse_memory_limit

from dask_bkg.errors import BackgroundError

log = logging.getLogger(__name__)

DASHBOARD = "127.0.0.1:8787"
"""Visible on this machine only; distributed takes a free port if this one is taken."""

START_SECONDS = 60.0
"""Time in which a scheduler must start: it takes about two seconds, and more where many programs start at once."""

CHILD = ("-P", str(Path(__file__).with_name("child.py")))
"""What Python runs as scheduler and as worker: a script, since to import it would import Dask before it runs."""

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
    """A scheduler and worker processes of one thread on this machine, for this process alone.

    They are started as commands, not by multiprocessing, which would run a script without ``if __name__ ==
    "__main__"`` again in each worker: the procedure's example is such a script. They end with this process, and only
    who has the keys, which are made here and kept in memory, can connect.

    Raises
    ------
    BackgroundError
        If the scheduler does not start.
    """
    if sys.platform == "win32":
        return LocalCluster(n_workers=n_workers, threads_per_worker=1, dashboard_address=DASHBOARD)
    security = Security.temporary()
    keys = {
        name: getattr(security, name) for name in security.__slots__ if name.endswith(("_key", "_cert", "ca_file"))
    }
    memory = parse_memory_limit("auto", 1, n_workers, logger=log)
    # what is lost is said by the process that waits for it, once and without a traceback
    worker = {"host": "127.0.0.1", "nthreads": 1, "memory_limit": memory, "silence_logs": "CRITICAL"}
    listen = {"host": "127.0.0.1", "protocol": "tls://", "dashboard": True, "dashboard_address": DASHBOARD}
    a_worker = {"cls": _Worker, "options": {"keys": keys, "options": worker}}
    try:
        with workers_environment():
            return _Processes(
                workers=dict.fromkeys(range(n_workers), a_worker),
                scheduler={"cls": _Scheduler, "options": {"keys": keys, "options": listen}},
                worker=a_worker,
                security=security,
                name="local",
                shutdown_scheduler=False,  # it is killed, not asked
            )
    except (RuntimeError, OSError) as error:
        # distributed puts its own words around those of _Scheduler
        raise BackgroundError(
            f"cluster: local: {error.__cause__ or error}; start again when the machine is less busy, or set cluster: "
            "threads"
        ) from error


def is_alive(cluster: Cluster) -> bool:
    """Whether the scheduler of a cluster of `start_workers` runs, as far as this process can see."""
    scheduler = getattr(cluster, "scheduler", None)
    return not isinstance(scheduler, _Process) or scheduler.is_alive


class _Process(ProcessInterface):
    """A process that ends with this one, in a session of its own: Ctrl-C in a terminal does not reach it."""

    def __init__(self, scheduler: str | None, keys: dict[str, str], options: dict[str, Any]) -> None:
        super().__init__()
        self._order = {"scheduler": scheduler, "keys": keys, "options": options, "path": [*map(str, sys.path)]}
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *CHILD,
            stdin=PIPE,
            stdout=PIPE if self._order["scheduler"] is None else None,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(self._order).encode() + b"\n")
        with suppress(ConnectionError):  # it has ended: its exit status says more
            await self._process.stdin.drain()
        await super().start()

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def close(self) -> None:
        """Kill the process, and what it has started."""
        if self._process is not None and self.is_alive:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
        await super().close()


class _Scheduler(_Process):
    def __init__(self, **how: Any) -> None:
        super().__init__(None, **how)

    async def start(self) -> None:
        await super().start()
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            self.address = (await asyncio.wait_for(self._process.stdout.readline(), START_SECONDS)).decode().strip()
        except TimeoutError:
            await self.close()
            raise RuntimeError(f"the scheduler has not started in {START_SECONDS:g} s") from None
        if not self.address:
            status = await self._process.wait()
            raise RuntimeError(f"the scheduler has ended with status {status} when it was started (see above)")


class _Worker(_Process):
    def __init__(self, scheduler: str, name: int, options: dict[str, Any], **how: Any) -> None:
        super().__init__(scheduler, options={**options, "name": name}, **how)


class _Processes(SpecCluster):
    """A cluster whose end is not waited for: its workers hold nothing that is still needed."""

    async def _close(self) -> None:
        # a scheduler that is closed is not asked to move the results of each worker to the others first
        for process in [*self._created, *([] if self.scheduler is None else [self.scheduler])]:
            await process.close()
        await super()._close()
