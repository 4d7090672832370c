"""Workers that are batch jobs of SLURM, through dask-jobqueue: submission, replacement of lost jobs, waiting.

The options of the job script are in `dask_bkg.cluster.script`.
"""

from __future__ import annotations

import logging
import math
import signal
import subprocess
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import dask
from dask.utils import tmpfile
from distributed import Client
from distributed.deploy.cluster import Cluster

from dask_bkg.cluster.scaling import WholeJobs
from dask_bkg.cluster.script import SITE, as_a_word, job_options
from dask_bkg.config import Config, Slurm
from dask_bkg.errors import ConfigError

log = logging.getLogger(__name__)

POLL = 10.0
"""Seconds between two queries of the queue while waiting for the first worker."""

LOG_LINES = 12

RUNS_OR_WAITS = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED"}


def start_jobs(config: Config) -> Cluster:
    """A scheduler in this process, and batch jobs whose workers connect to it when they start.

    Raises
    ------
    ConfigError
        If dask-jobqueue is not installed, the site is not described, or ``sbatch`` refuses a job.
    """
    cluster, settings = _scheduler(config), config.slurm
    try:
        check_submission(cluster.job_script())
    except ConfigError:
        cluster.close()
        raise
    if not settings.tls:
        log.warning(
            "slurm.tls: false: anyone who can connect to %s can run programs as you", cluster.scheduler_address
        )
    # at least one worker, even if min_workers is 0: so it is seen at once whether jobs start
    _adapt(cluster, max(_fewest(settings), 1), settings.workers)
    return cluster


def remove_keys(cluster: Cluster) -> None:
    """Remove the certificates of jobs, which dask-jobqueue keeps as long as the cluster object exists."""
    for name, value in list(vars(cluster).items()):
        if name.startswith("_job_") and hasattr(value, "close"):
            value.close()


def job_script(config: Config) -> str:
    """The batch script of a job, as it is submitted (but for the scheduler's address and the certificates)."""
    with _scheduler(config) as cluster:
        return cluster.job_script()


def _scheduler(config: Config) -> Any:
    """A scheduler in this process, without a job."""
    cluster_class, settings = _jobqueue(), config.slurm
    options = job_options(settings, job_directory(config))
    try:
        with dask.config.set({"distributed.scheduler.allowed-failures": settings.retries}):
            return cluster_class(**options)
    except ImportError as error:
        raise ConfigError(
            f"slurm.tls: {error}; `pip install cryptography`, or set slurm.tls: false on a trusted network"
        ) from error
    except (ValueError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"cluster: slurm: the scheduler cannot start: {error}; its network is jobqueue.slurm.interface, {SITE}"
        ) from error


def await_workers(client: Client, cluster: Cluster, config: Config) -> None:
    """Wait until a worker has connected; the states of the jobs are logged meanwhile.

    Raises
    ------
    ConfigError
        If the jobs have ended without one, or after ``slurm.wait``.
    """
    settings, start, logged, gone = config.slurm, time.monotonic(), "", 0
    try:
        while True:
            try:
                client.wait_for_workers(1, timeout=POLL)
                break
            except TimeoutError:
                states = _job_states(cluster)
            # twice: a job that is about to be submitted is not yet in the queue
            gone = 0 if states else gone + 1
            if gone > 1 or time.monotonic() - start > 60 * settings.wait:
                logs = Path(job_options(settings, job_directory(config))["log_directory"])
                raise ConfigError(_why_none(states, settings, logs)) from None
            if states and states != logged:
                log.info("waiting for the first of %d workers: %s", settings.workers, states)
                logged = states
    except BaseException:
        client.close()
        raise
    if _fewest(settings) == 0:
        _adapt(cluster, 0, settings.workers)


def _adapt(cluster: Any, fewest: int, most: int) -> None:
    """Adapt the number of jobs to the work; also if it is fixed, as ``scale`` would not replace a lost job."""
    a_job = int(dask.config.get("jobqueue.slurm.cores"))
    jobs = {"minimum_jobs": math.ceil(fewest / a_job), "maximum_jobs": math.ceil(most / a_job)}
    cluster.adapt(Adaptive=partial(WholeJobs, a_job=a_job), **jobs)


def check_submission(script: str) -> None:
    """Ask ``sbatch`` whether it would accept a job, as dask-jobqueue only logs a refusal.

    Raises
    ------
    ConfigError
        If it would not, or there is no ``sbatch``.
    """
    with tmpfile(extension="sh") as file:
        Path(file).write_text(script)
        try:
            done = subprocess.run(["sbatch", "--test-only", file], capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise ConfigError(
                "cluster: slurm: there is no command sbatch here: start the job on a login node of the cluster, or "
                "set cluster to local or to the address of a scheduler"
            ) from error
    if done.returncode:
        answer = (done.stderr or done.stdout).strip()
        raise ConfigError(
            f"cluster: slurm: sbatch refuses the job of a worker: {answer}; {SITE}; `dask-bkg cluster check CONFIG` "
            "prints the job script"
        )


def job_directory(config: Config) -> Path:
    """Directory of logs and certificates of the jobs: in the results, or the current one; on a disk of all nodes."""
    path = Path(config.io.results_dir or "").absolute() / "slurm"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"io.results_dir: {path}, for the logs of the batch jobs, cannot be created: {error}"
        ) from error
    return path


def _jobqueue() -> type:
    """``SLURMCluster``; importing it also puts the site's jobqueue.yaml into Dask's configuration."""
    # importing it replaces the handlers of signals by its own, which know nothing of an index to be written
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise ConfigError(
            "cluster: slurm needs dask-jobqueue: `pip install 'dask_bkg[slurm]'`, or set cluster to threads, "
            f"local or the address of a scheduler ({error})"
        ) from error

    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)

    class Quoting(SLURMCluster):
        """Puts the paths of its certificates into the script as words of the shell, special characters included."""

        def _get_worker_security(self, security: Any) -> Any:
            made = super()._get_worker_security(security)
            if made is not security:  # a copy, which has paths; it is for the script alone
                for name in ("tls_ca_file", "tls_worker_key", "tls_worker_cert"):
                    setattr(made, name, as_a_word(getattr(made, name)))
            return made

    # jobs and workers are called after the class
    Quoting.__name__ = SLURMCluster.__name__
    return Quoting


def _fewest(settings: Slurm) -> int:
    return settings.workers if settings.min_workers is None else settings.min_workers


def _job_states(cluster: Any) -> str:
    """States of our jobs in the queue, e.g. ``3 PENDING (Priority)``; empty if none waits or runs."""
    ids = [job.job_id for job in list(cluster.workers.values()) if getattr(job, "job_id", None)]
    if not ids:
        return ""
    # unknown ids are an error of squeue only if all are unknown
    command = ["squeue", "-h", "-o", "%T (%r)", "-j", ",".join(ids)]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    alive = [line for line in listed if line.split(" ")[0] in RUNS_OR_WAITS]
    return ", ".join(f"{alive.count(state)} {state}" for state in sorted(set(alive)))


def _why_none(states: str, settings: Slurm, logs: Path) -> str:
    """Message that no worker has connected, with states, remedies and the end of a log."""
    if states:
        what = f"no worker has connected in {settings.wait:g} min (slurm.wait); the jobs: {states}"
    else:
        what = "the jobs of the workers have ended, or were not accepted, before one has connected"
    remedy = [f"their logs are in {logs}", "`dask-bkg cluster check CONFIG` tries one and prints the job script"]
    if settings.tls:
        remedy.append("if a log mentions TLS, SSL or BrokenPipe, slurm.tls: false switches encryption off")
    return f"cluster: slurm: {what}; {'; '.join(remedy)}{_end_of_log(logs)}"


def _end_of_log(logs: Path) -> str:
    """The end of the newest log of a job."""
    found = sorted(logs.glob("*.err"), key=lambda path: path.stat().st_mtime)
    text = found[-1].read_text(errors="replace").strip() if found else ""
    return "\n" + "\n".join(f"  | {line}" for line in text.splitlines()[-LOG_LINES:]) if text else ""
