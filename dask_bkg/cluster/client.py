"""The client of a cluster, and for a notebook."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distributed import Client, LocalCluster
from distributed.deploy.cluster import Cluster
from distributed.security import Security

from dask_bkg.cluster import local, slurm
from dask_bkg.cluster.job import active_client
from dask_bkg.config import Config, load_config, parse_config
from dask_bkg.errors import ConfigError, LostClusterError

log = logging.getLogger(__name__)

CONNECT_SECONDS = 20

SAY_AFTER = 5.0
"""Seconds of waiting after which is said what for."""

WORKER_SECONDS = 600.0
"""Time in which the first worker of a local cluster must connect."""

POLL = 0.1
"""Seconds between two looks whether a scheduler or worker is there."""


class OwnClient(Client):
    """A client that, when closed, also closes the cluster that was started for it."""

    def __init__(self, cluster: Cluster, **kwargs: Any) -> None:
        self._own = cluster
        super().__init__(cluster, **kwargs)

    def close(self, *args: Any, **kwargs: Any) -> Any:
        """Close the client, then its scheduler and workers."""
        closed = super().close(*args, **kwargs)
        self._own.close()
        slurm.remove_keys(self._own)
        return closed


def make_client(config: Mapping[str, Any] | Config | str | os.PathLike | None = None) -> Client:
    """Client of the cluster that a configuration names, for notebooks.

    Parameters
    ----------
    config
        Configuration (dict, YAML file or `dask_bkg.config.Config`), of which ``cluster`` is used: ``threads`` (of
        this process), ``local``, ``slurm``, or a scheduler's address or file; None: local worker processes, one per
        core.

    Returns
    -------
    client
        The client that is already active, if there is one; else a new one.  ``client.close()``, or leaving its
        ``with`` block, also ends the workers that were started for it.

    Raises
    ------
    ConfigError
        If no scheduler answers, or no batch job can be submitted or starts.

    Examples
    --------
    >>> with make_client({"cluster": "threads", "config": {"njobs": 2}}) as client:
    ...     client.submit(sum, [1, 2]).result()
    3
    """
    active = active_client()
    return active if active is not None else new_client(_parsed(config))


def _parsed(config: Mapping[str, Any] | Config | str | os.PathLike | None) -> Config:
    if isinstance(config, Config):
        return config
    return load_config(Path(config)) if isinstance(config, (str, os.PathLike)) else parse_config(config or {})


def new_client(config: Config) -> Client:
    """A client, with a new cluster unless the configuration names a scheduler."""
    if config.cluster == "threads":
        threads = config.config.n_workers
        in_here = LocalCluster(
            n_workers=1, threads_per_worker=threads, processes=False, dashboard_address=local.DASHBOARD
        )
        return OwnClient(in_here)
    if config.cluster in (None, "local"):
        with slow_reported("the scheduler and workers on this machine to start"):
            return _local_client(local.start_workers(config.config.n_workers))
    if config.cluster == "slurm":
        cluster = slurm.start_jobs(config)
        client = OwnClient(cluster)
        slurm.await_workers(client, cluster, config)
        return client
    return _connect(config.cluster)


def _local_client(cluster: Cluster) -> Client:
    """A client of worker processes, as soon as one of them is there."""
    until, client = time.monotonic() + WORKER_SECONDS, None
    try:
        client = OwnClient(cluster)
        while not cluster.scheduler_info["workers"]:
            # asked for its workers, a scheduler that has ended keeps distributed trying for half a minute
            if not local.is_alive(cluster):
                raise LostClusterError("the scheduler has ended")
            if time.monotonic() > until:
                raise LostClusterError(f"no worker has started in {WORKER_SECONDS:g} s")
            time.sleep(POLL)
    except (LostClusterError, OSError) as error:
        why = f"the scheduler has ended ({error})" if isinstance(error, OSError) else error
        (client or cluster).close()
        raise LostClusterError(
            f"cluster: local: {why}; start again when the machine is less busy, or set cluster: threads"
        ) from error
    return client


def _connect(where: str) -> Client:
    """Client of the scheduler at an address, or at the address in a scheduler file."""
    address = _address_in(Path(where)) if where.endswith(".json") else where
    place = where if where == address else f"{address}, the address in {where}"
    if address.startswith("tls://") and Security().get_connection_args("client")["ssl_context"] is None:
        raise ConfigError(
            f"cluster: {place} requires a certificate, and there is none in this environment: set "
            "distributed.comm.tls in Dask's configuration, or source the output of `dask-bkg cluster certificate`"
        )
    try:
        with slow_reported(f"the scheduler at {place}"):
            return Client(address, timeout=CONNECT_SECONDS)
    except OSError as error:
        raise ConfigError(
            f"cluster: no scheduler answers at {place} ({error}); start one with `dask scheduler` and workers with "
            "`dask worker`, or set cluster: local"
        ) from error


def _address_in(file: Path) -> str:
    """Address in a scheduler file; waits for the file of a scheduler that is starting."""
    until = time.monotonic() + CONNECT_SECONDS
    with slow_reported(f"a scheduler to write {file}"):
        while True:
            try:
                return json.loads(file.read_text())["address"]
            except (OSError, ValueError, KeyError) as error:
                if time.monotonic() > until:
                    raise ConfigError(
                        f"cluster: no scheduler has written {file} ({error}); start one with `dask scheduler "
                        f"--scheduler-file {file}`, on a disk that this machine sees"
                    ) from error
                time.sleep(POLL)


@contextmanager
def slow_reported(what: str) -> Iterator[None]:
    """Log what is waited for, where that takes longer than `SAY_AFTER`."""
    timer = threading.Timer(SAY_AFTER, log.info, ("waiting for %s", what))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
