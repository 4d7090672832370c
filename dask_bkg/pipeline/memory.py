"""How much memory a worker needs for a job, estimated before it starts.

Measured on two workers of one thread (``benchmarks/bench_field.py``, ``bench_kl.py``, jobs on simulated archives and
on H.E.S.S. DL3 DR1): programs and libraries, what scheduler and workers hold of run histograms and stacks, and the
candidates of the targets while they are sought.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from dask.utils import format_bytes

from dask_bkg.config import BackgroundSelection
from dask_bkg.plan import Plan
from dask_bkg.selection import settings_of_roles

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

RUNS_PER_HOUR = 4
"""Runs that an hour of a selection may hold: half-hour runs, and some that weigh little."""

BASE = {"2d": 200e6, "3d": 270e6}
"""A worker that has done every kind of task once [bytes]."""

HELD = 1.2
"""Histograms of all runs, and stacks of all targets, are held so many times over by each worker.

They are spread over the workers, but each needs those of all runs for its targets, and keeps copies while others do.
"""

CANDIDATE = 54
"""Bytes of a candidate of a target, its copies on the way through the tree of merges included."""


def runs_wanted(settings: BackgroundSelection, n_runs: int) -> float:
    """Most runs that may contribute to a background, to its spectrum or to its shape."""
    if settings.ranking == "none":
        return n_runs
    # those of the night are few, whatever their hours
    hours = [section.hours_wanted for role, section in settings_of_roles(settings).items() if role != "night"]
    return min(max(hours) * RUNS_PER_HOUR, n_runs)


def estimate_memory(plan: Plan) -> int:
    """Largest resident memory [bytes] that a worker of a job is likely to have, right within a factor of 2.

    A worker that may use less writes what it holds to its disk, and goes on.
    """
    n_runs, n_targets, config = len(plan.runs), len(plan.targets), plan.config
    roles = 1 if config.io.from_run else len(settings_of_roles(config.background_selection))
    # counts and exposure of a ring; the exposure of pixels is one for all energies
    bins = 2 * math.prod(plan.edges.shape) * (1 + roles) / 2
    if plan.field_plan is not None:
        bins += math.prod(plan.field_plan.edges.shape)
    held = HELD * 8 * bins * (n_runs + n_targets)
    sought = 0.0
    if not config.io.from_run:
        sought = CANDIDATE * n_targets * runs_wanted(config.background_selection, n_runs) * min(roles, 2)
    return int(BASE["2d" if plan.field_plan is None else "3d"] + held + sought)


def tell_memory(plan: Plan, client: Client | None) -> None:
    """Tell in the log what a worker is going to need, and warn where it has less."""
    if client is None:
        return
    needed = estimate_memory(plan)
    limits = [worker["memory_limit"] for worker in client.scheduler_info()["workers"].values()]
    least = min((limit for limit in limits if limit), default=0)
    has = f" of the {format_bytes(least)} that it has" if least else ""
    log.info("memory: about %.1f GB a worker%s", needed / 1e9, has)
    if least and needed > least:
        log.warning(
            "a worker has less memory than it needs, and will write to its disk: fewer workers with more memory each "
            "(config.njobs, or memory in jobqueue.slurm), or a coarser binning, are faster"
        )
