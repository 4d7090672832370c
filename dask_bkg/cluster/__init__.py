"""Where a job runs: threads of this process, local worker processes, workers of another scheduler, SLURM batch jobs.

In: the ``cluster`` section of a configuration.  Out: a `distributed.Client`, or None for threads.  `job_workers`
opens it for a job when there is enough to do, `dask_bkg.cluster.client.make_client` for a notebook; both use a client
that is already active.
"""

from dask_bkg.cluster.job import Workers, active_client, job_workers, open_client

__all__ = ["Workers", "active_client", "job_workers", "open_client"]
