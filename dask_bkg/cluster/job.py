"""The workers of a job: a cluster that is started when there is enough to do, else threads of this process.

Nothing here imports distributed until it is needed: that takes a second, which a small job does not have.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from tqdm import tqdm

from dask_bkg.config import Config
from dask_bkg.errors import Stopped

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

PROCESSES_PAY = 60
"""Runs to read, or backgrounds to write, from which worker processes are faster than threads (2 cores).

They take some seconds to start; threads wait for each other in all that is not NumPy.
"""


def active_client() -> Client | None:
    """The active client of this process, None if there is none."""
    if "distributed" not in sys.modules:
        return None
    from distributed import default_client

    try:
        return default_client()
    except ValueError:
        return None


@contextmanager
def open_client(config: Config) -> Iterator[Client | None]:
    """A client for the time of a job, or None for threads; worker processes where the configuration leaves it open.

    A client that is already active is used, and not closed.

    Raises
    ------
    ConfigError
        If no scheduler answers, or no batch job can be submitted or starts.
    """
    active = active_client()
    if active is not None:
        yield active
    elif config.cluster == "threads":
        yield None
    else:
        from dask_bkg.cluster.client import new_client

        with ExitStack() as stack:
            client = stack.enter_context(new_client(config))
            try:
                yield client
            except Stopped:
                # this process ends now, and what it has started with it; batch jobs have to be cancelled
                if config.cluster != "slurm":
                    stack.pop_all()
                raise


class Workers:
    """Where the tasks of a job are computed.

    Attributes
    ----------
    client
        The client of the cluster; None as long as threads do the work.
    """

    def __init__(
        self, config: Config, stack: ExitStack, progress: bool, opened: Callable[[Client | None], None]
    ) -> None:
        self._config, self._stack, self._progress, self._opened = config, stack, progress, opened
        self.client: Client | None = None
        if active_client() is not None:
            self._open(config)

    def for_runs(self, n: int) -> Client | None:
        """Where to do a step.

        Parameters
        ----------
        n
            Number of runs that are read, or of backgrounds that are written.

        Returns
        -------
        client
            None: on threads, because the configuration says so, or there is too little to do.
        """
        where = self._config.cluster
        enough = n >= PROCESSES_PAY if where is None else n > 0
        if self.client is None and where != "threads" and enough:
            self._open(self._limited(n) if where in (None, "local") else self._config)
        return self.client

    def _limited(self, n: int) -> Config:
        """The configuration with no more local workers than this machine has cores, or there are runs."""
        execution = self._config.config
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if execution.n_workers > cores:
            log.info("config.njobs: %d, and this machine has %d cores: so many workers", execution.n_workers, cores)
        njobs = min(execution.n_workers, cores, n)
        return self._config.model_copy(update={"config": execution.model_copy(update={"njobs": njobs})})

    def _open(self, config: Config) -> None:
        from dask_bkg.cluster.dashboard import dashboard_lines
        from dask_bkg.cluster.usage import log_usage

        self.client = self._stack.enter_context(open_client(config))
        for line in dashboard_lines(self.client) if self.client is not None else ():
            tqdm.write(line) if self._progress else log.info("%s", line)
        self._stack.enter_context(log_usage(self.client))
        self._opened(self.client)


@contextmanager
def job_workers(
    config: Config, *, progress: bool = True, opened: Callable[[Client | None], None] = lambda client: None
) -> Iterator[Workers]:
    """`Workers` for the time of a job, with the address of the dashboard and, at the end, a log of the usage.

    Parameters
    ----------
    config
        The configuration.
    progress
        Whether bars are shown; the address is then printed above them, otherwise logged.
    opened
        Is called with the client when the workers are there.

    Raises
    ------
    ConfigError
        When workers are needed, as `open_client`.
    """
    with ExitStack() as stack:
        yield Workers(config, stack, progress, opened)
