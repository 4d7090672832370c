"""Workers that are batch jobs of SLURM, through dask-jobqueue.

They are submitted, replaced where they are lost, and awaited; what the script of one says is the matter of
`dask_bkg.cluster.script`.
"""

from __future__ import annotations

import logging
import math
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import dask
from dask.utils import tmpfile
from distributed import Client
from distributed.deploy.cluster import Cluster

from dask_bkg.cluster.scaling import WholeJobs
from dask_bkg.cluster.script import SITE, job_options
from dask_bkg.config import Config, Slurm
from dask_bkg.errors import ConfigError

log = logging.getLogger(__name__)

POLL = 10.0
"""Seconds between two looks at the queue while the first worker is awaited."""

LOG_LINES = 12

RUNS_OR_WAITS = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED"}


def start_jobs(config: Config) -> Cluster:
    """A scheduler in this process, and batch jobs that connect with it as the queue lets them.

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
        log.warning("slurm.tls: false: whoever reaches %s can run programs as you", cluster.scheduler_address)
    # where workers come and go the first one is asked for: whether jobs start at all is seen before the work
    _adapt(cluster, max(_fewest(settings), 1), settings.workers)
    return cluster


def remove_keys(cluster: Cluster) -> None:
    """Remove the certificates of jobs: dask-jobqueue keeps them as long as somebody holds the cluster's object."""
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
            f"slurm.tls: {error}; `pip install cryptography`, or slurm.tls: false on a network of friends"
        ) from error
    except (ValueError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"cluster: slurm: the scheduler cannot start: {error}; its network is jobqueue.slurm.interface, {SITE}"
        ) from error


def await_workers(client: Client, cluster: Cluster, config: Config) -> None:
    """Wait until a worker is there; the queue's word on the jobs is told meanwhile.

    Raises
    ------
    ConfigError
        If the jobs have ended without one, or ``slurm.wait`` is over.
    """
    settings, start, told, gone = config.slurm, time.monotonic(), "", 0
    try:
        while True:
            try:
                client.wait_for_workers(1, timeout=POLL)
                break
            except TimeoutError:
                words = _queue_words(cluster)
            # twice: a job that is about to be submitted is in no queue either
            gone = 0 if words else gone + 1
            if gone > 1 or time.monotonic() - start > 60 * settings.wait:
                logs = Path(job_options(settings, job_directory(config))["log_directory"])
                raise ConfigError(_why_none(words, settings, logs)) from None
            if words and words != told:
                log.info("waiting for the first of %d workers: %s", settings.workers, words)
                told = words
    except BaseException:
        client.close()
        raise
    if _fewest(settings) == 0:
        _adapt(cluster, 0, settings.workers)


def _adapt(cluster: Any, fewest: int, most: int) -> None:
    """Let the number of jobs go with the work; also where it is fixed: ``scale`` would not replace a lost one."""
    a_job = int(dask.config.get("jobqueue.slurm.cores"))
    jobs = {"minimum_jobs": math.ceil(fewest / a_job), "maximum_jobs": math.ceil(most / a_job)}
    cluster.adapt(Adaptive=partial(WholeJobs, a_job=a_job), **jobs)


def check_submission(script: str) -> None:
    """Ask ``sbatch`` whether it would take a job: dask-jobqueue only logs what it says.

    Raises
    ------
    ConfigError
        If it would not.
    """
    with tmpfile(extension="sh") as file:
        Path(file).write_text(script)
        try:
            done = subprocess.run(["sbatch", "--test-only", file], capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise ConfigError(
                "cluster: slurm: there is no command sbatch here: start the job on a login node of the cluster, or "
                "take `local` or the address of a scheduler"
            ) from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise ConfigError(
            f"cluster: slurm: sbatch refuses the job of a worker: {said}; {SITE}; `dask-bkg cluster check CONFIG` "
            "prints the job script"
        )


def job_directory(config: Config) -> Path:
    """Where the logs of the jobs, and certificates, are: in the results, or else here; all nodes see that."""
    results = config.io.results_dir
    path = Path(results or "").absolute() / "slurm"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"io.results_dir: {path}, for the logs of the batch jobs, cannot be made: {error}"
        ) from error
    return path


def _jobqueue() -> type:
    """``SLURMCluster``; importing it also puts the site's jobqueue.yaml into Dask's configuration."""
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise ConfigError(
            "cluster: slurm needs dask-jobqueue: `pip install 'dask_bkg[slurm]'`, or take threads, local or the "
            f"address of a scheduler ({error})"
        ) from error
    return SLURMCluster


def _fewest(settings: Slurm) -> int:
    return settings.workers if settings.min_workers is None else settings.min_workers


# -- what the queue says ---------------------------------------------------------------------------------------


def _queue_words(cluster: Any) -> str:
    """What the queue says of our jobs, e.g. ``3 PENDING (Priority)``; empty if none waits or runs."""
    ids = [job.job_id for job in list(cluster.workers.values()) if getattr(job, "job_id", None)]
    if not ids:
        return ""
    # ids that the queue has forgotten are an error only if it knows none of them
    command = ["squeue", "-h", "-o", "%T (%r)", "-j", ",".join(ids)]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    alive = [line for line in listed if line.split(" ")[0] in RUNS_OR_WAITS]
    return ", ".join(f"{alive.count(state)} {state}" for state in sorted(set(alive)))


def _why_none(words: str, settings: Slurm, logs: Path) -> str:
    """That no worker has come, and what is known about it."""
    if words:
        what = f"no worker has connected in {settings.wait:g} min (slurm.wait); the jobs: {words}"
    else:
        what = "the jobs of the workers have ended, or were never taken, before one has connected"
    remedy = [f"their logs are in {logs}", "`dask-bkg cluster check CONFIG` tries one and prints the job script"]
    if settings.tls:
        remedy.append("where a log tells of TLS, SSL or BrokenPipe, slurm.tls: false does without encryption")
    return f"cluster: slurm: {what}; {'; '.join(remedy)}{_last_words(logs)}"


def _last_words(logs: Path) -> str:
    """The end of the newest log of a job."""
    found = sorted(logs.glob("*.err"), key=lambda path: path.stat().st_mtime)
    text = found[-1].read_text(errors="replace").strip() if found else ""
    return "\n" + "\n".join(f"  | {line}" for line in text.splitlines()[-LOG_LINES:]) if text else ""
