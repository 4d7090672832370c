"""How many batch jobs there are, in whole jobs.

Where a job has several worker processes, Dask's own scaling thinks in workers: it gives up a job as one worker of it
is too many, asks for it again, and so on for ever; and it never notices that all workers of a job are gone.
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
    """Lets the number of jobs go with the work.

    Parameters
    ----------
    cluster
        A cluster of dask-jobqueue.
    a_job
        Worker processes of a job.
    """

    def __init__(self, cluster: Any, *, a_job: int, **kwargs: Any) -> None:
        self._a_job = a_job
        # jobs whose workers were there, and since when [s] none of them is
        self._lost_since: dict[str, float | None] = {}
        super().__init__(cluster, worker_key=_job_of_worker if a_job > 1 else None, **kwargs)

    async def target(self) -> int:
        """Workers that there should be: those of whole jobs."""
        return math.ceil(await super().target() / self._a_job) * self._a_job

    async def recommendations(self, target: int) -> dict:
        """What is to be done; a job is given up as a whole, or not at all."""
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
        """Workers of jobs that were there, and have had none for longer than the time that Dask waits for one."""
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


def job_of(name: str) -> str:
    """Name of the job of one of its workers.

    Examples
    --------
    >>> job_of("SLURMCluster-3-0")
    'SLURMCluster-3'
    """
    return str(name).rpartition("-")[0]


def _job_of_worker(worker: Any) -> str:
    return job_of(worker.name)
