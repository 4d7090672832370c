"""Where a job runs: threads of this process, local worker processes, workers of another scheduler, SLURM batch jobs.

In: the ``cluster`` section of a configuration.  Out: a `distributed.Client`, or None for threads.  `job_client` opens
the client of a job, `make_client` that of a notebook; both use a client that is already active.
"""

from dask_bkg.cluster.client import active_client, job_client, make_client, open_client
from dask_bkg.cluster.local import MALLOC, workers_environment

__all__ = ["MALLOC", "active_client", "job_client", "make_client", "open_client", "workers_environment"]
