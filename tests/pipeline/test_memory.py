"""The memory of a worker as it is estimated before the start, beside what it takes."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from dask_bkg.cluster.client import make_client
from dask_bkg.cluster.usage import _peak
from dask_bkg.config import parse_config
from dask_bkg.pipeline import run as pipeline
from dask_bkg.pipeline.memory import estimate_memory, runs_wanted, tell_memory
from dask_bkg.plan import plan_job

pytestmark = pytest.mark.slow  # whole jobs, or simulations of many skies

FINE = {"mode": "3d", "fov_bins": 60, "e_bins": 50}


@pytest.mark.parametrize(
    ("binning", "from_run"),
    [({}, False), ({}, True), ({"mode": "3d"}, False), ({"mode": "3d"}, True), (FINE, False)],
    ids=["2d", "2d-own", "3d", "3d-own", "3d-fine"],
)
def test_within_a_factor_of_two(job, dark_archive, binning, from_run):
    """Of real worker processes, their largest resident memory."""
    sections = {"binning": binning, "io": {"from_run": from_run}, "config": {"njobs": 2}}
    config = parse_config(job(dark_archive[0], cluster="local", background_selection={"rank": "kl"}, **sections))
    with make_client(config) as client:
        client.wait_for_workers(2, timeout=120)
        pipeline.run_job(config, progress=False)
        measured = max(client.run(_peak).values())
    estimated = estimate_memory(plan_job(config))
    assert estimated / 2 < measured < 2 * estimated


MEASURED = [
    # benchmarks/bench_field.py (2D and 3D, 10 h) and bench_kl.py (100 bins, 50 h): runs, bins, hours, GB
    (500, {"e_bins": 30, "off_bins": 10}, 10, 0.19),
    (2000, {"e_bins": 30, "off_bins": 10}, 10, 0.21),
    (500, {"e_bins": 30, "off_bins": 10, "mode": "3d", "fov_bins": 25}, 10, 0.41),
    (1000, {"e_bins": 30, "off_bins": 10, "mode": "3d", "fov_bins": 25}, 10, 0.54),
    (2000, {"e_bins": 30, "off_bins": 10, "mode": "3d", "fov_bins": 25}, 10, 1.01),
    (5000, {"e_bins": 20, "off_bins": 5}, 50, 0.29),
    (20_000, {"e_bins": 20, "off_bins": 5}, 50, 0.52),
]


@pytest.mark.parametrize(("runs", "binning", "hours", "measured"), MEASURED)
def test_large_archives(job, four_runs, runs, binning, hours, measured):
    config = job(four_runs, io={"from_run": False}, binning=binning)
    plan = plan_job(parse_config({**config, "background_selection": {"rank": "kl", "time_request": hours}}))
    plan = replace(plan, runs=plan.runs[:1] * runs, targets=plan.targets[:1] * runs)
    assert 0.5 < estimate_memory(plan) / 1e9 / measured < 2


def test_runs_that_may_contribute():
    def wanted(**selection):
        return runs_wanted(parse_config({"background_selection": selection}).background_selection, 1000)

    assert wanted(rank="kl", time_request=10) == 40
    # 50 hours of the shape
    assert wanted(time_request=10) == 200
    assert wanted(time_request="all") == 1000
    assert wanted(rank="none", time_request=10) == 1000


@pytest.mark.parametrize(("limit", "warned"), [(1e8, True), (1e9, False), (0, False)])
def test_too_little_is_told(job, four_runs, caplog, limit, warned):
    class Told:
        def scheduler_info(self):
            return {"workers": {"a": {"memory_limit": limit}, "b": {"memory_limit": 2 * limit}}}

    caplog.set_level(logging.INFO, logger="dask_bkg")
    tell_memory(plan_job(parse_config(job(four_runs))), Told())
    assert "memory: about 0.2 GB a worker" in caplog.text
    assert ("less memory than it needs" in caplog.text) == warned
    assert ("that it has" in caplog.text) == (limit > 0)
    assert np.isfinite(limit)
