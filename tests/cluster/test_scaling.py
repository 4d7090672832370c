"""Jobs of several workers are given up, and replaced, as a whole."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from types import SimpleNamespace

import dask
import pytest

from dask_bkg.cluster.scaling import WholeJobs

pytestmark = pytest.mark.slow


@pytest.fixture
def scaling():
    """Of jobs of two workers: ``scaling(plan, observed)`` of a cluster that is not there."""

    def make(plan: set, observed: set) -> WholeJobs:
        made = object.__new__(WholeJobs)
        made.cluster = SimpleNamespace(plan=plan, requested=plan, observed=observed)
        made._a_job, made._lost_since, made.worker_key, made.state = 2, {}, None, "inactive"
        made.wait_count, made.close_counts = 1, defaultdict(int)
        return made

    return make


def said(scaling: WholeJobs, target: int) -> tuple[str, set]:
    found = asyncio.run(scaling.recommendations(target))
    return found["status"], set(found.get("workers", ()))


def test_half_a_job_that_waits_in_the_queue_is_not_given_up(scaling):
    job = {"C-0-0", "C-0-1"}
    assert said(scaling(job, set()), 1) == ("same", set())
    assert said(scaling(job, set()), 0) == ("down", job)


def test_a_job_is_lost_when_all_its_workers_are(scaling):
    plan = {"C-0-0", "C-0-1", "C-1-0", "C-1-1"}
    jobs = scaling(plan, {"C-0-0", "C-0-1"})
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "0s"}):
        assert said(jobs, 4) == ("same", set())  # the second one is still in the queue
        jobs.cluster.observed = {"C-0-1"}
        assert said(jobs, 4) == ("same", set())
        jobs.cluster.observed = set()
        said(jobs, 4)
        assert said(jobs, 4) == ("down", {"C-0-0", "C-0-1"})


def test_whole_jobs_are_wanted(scaling):
    async def three(**_):
        return 3

    jobs = scaling(set(), set())
    jobs.cluster.scheduler_comm, jobs.target_duration = SimpleNamespace(adaptive_target=three), 5
    assert asyncio.run(jobs.target()) == 4
