"""Adaptive number of batch jobs, in whole jobs.

Where a job has several worker processes, Dask's own scaling counts workers: it cancels a job because one of its
workers is too many, submits it again, and so on for ever; and it never notices that all workers of a job are gone.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import Any

import dask
from dask.utils import parse_timedelta
from distributed.deploy.adaptive import Adaptive


class WholeJobs(Adaptive):
    """Adapts the number of jobs to the work.

    Parameters
    ----------
    cluster
        A cluster of dask-jobqueue.
    a_job
        Worker processes per job.
    """

    def __init__(self, cluster: Any, *, a_job: int, **kwargs: Any) -> None:
        self._a_job = a_job
        # jobs that had workers, and the time [s] since when they have none
        self._lost_since: dict[str, float | None] = {}
        super().__init__(cluster, worker_key=(lambda worker: job_of(worker.name)) if a_job > 1 else None, **kwargs)

    async def target(self) -> int:
        """Number of workers that are needed, rounded up to whole jobs."""
        return math.ceil(await super().target() / self._a_job) * self._a_job

    async def recommendations(self, target: int) -> dict:
        """Workers to start or to stop; a job is stopped as a whole, or not at all."""
        if self._a_job == 1:
            return await super().recommendations(target)
        if lost := self._lost_jobs():
            return {"status": "down", "workers": lost}
        found = await super().recommendations(target)
        if found["status"] != "down":
            return found
        named = Counter(job_of(name) for name in found["workers"])
        whole = [name for name in found["workers"] if named[job_of(name)] == self._a_job]
        return {"status": "down", "workers": whole} if whole else {"status": "same"}

    def _lost_jobs(self) -> list[str]:
        """Workers of jobs that had workers, but none for longer than Dask's timeout for lost workers."""
        alive, now = {job_of(name) for name in self.observed}, time.monotonic()
        patience = parse_timedelta(dask.config.get("distributed.deploy.lost-worker-timeout"))
        planned = {job_of(name) for name in self.plan}
        self._lost_since = {
            job: None if job in alive else self._lost_since.get(job) or now
            for job in planned
            if job in alive or job in self._lost_since
        }
        lost = {job for job, since in self._lost_since.items() if since is not None and now - since > patience}
        return [name for name in self.plan if job_of(name) in lost]


def job_of(name: Any) -> str:
    """Name of the job of one of its workers.

    Examples
    --------
    >>> job_of("SLURMCluster-3-0")
    'SLURMCluster-3'
    """
    return str(name).rpartition("-")[0]
