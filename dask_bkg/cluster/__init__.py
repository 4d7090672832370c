"""Where a job runs: threads of this process, local worker processes, a scheduler somewhere else, batch jobs of SLURM.

In: the ``cluster`` section of a configuration.  Out: a `distributed.Client`, or None for threads.  `job_client` gives
a job its client, `make_client` a notebook; a client that is active already always wins.
"""

from dask_bkg.cluster.client import active_client, job_client, make_client, open_client
from dask_bkg.cluster.local import MALLOC, workers_environment

__all__ = ["MALLOC", "active_client", "job_client", "make_client", "open_client", "workers_environment"]
