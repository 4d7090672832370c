"""One background, here and now: that of the job, from its run store or from the files."""

from __future__ import annotations

import threading

import pytest
from astropy.io import fits

from dask_bkg.compat import run_make_background
from dask_bkg.config import parse_config
from dask_bkg.errors import RunError
from dask_bkg.pipeline import single
from dask_bkg.pipeline.single import make_one
from dask_bkg.plan import plan_job
from dask_bkg.reduction import reduce
from dask_bkg.store import update

pytestmark = pytest.mark.slow  # whole jobs, or simulations of many skies

OBS_IDS = [64001, 64002, 64003, 64004]
OTHERS = {"from_run": False}


def written_rate(path):
    return fits.getdata(path, "BACKGROUND")["BKG"][0]


@pytest.fixture
def opened(monkeypatch):
    """Numbers of the runs whose files are read."""
    numbers, reduce_views = [], reduce.reduce_views

    def note(run, *args):
        numbers.append(run.obs_id)
        return reduce_views(run, *args)

    monkeypatch.setattr(update.reduce, "reduce_views", note)
    return numbers


def one(job, archive, obs_id=64002, **sections):
    return make_one(plan_job(parse_config(job(archive, run_selection={"runlist": [obs_id]}, **sections))))


@pytest.mark.parametrize("sections", [{}, {"io": OTHERS, "background_selection": {"rank": "kl-conditions"}}])
def test_one_background_is_that_of_the_job(job, four_runs, sections, tmp_path):
    before = one(job, four_runs, **sections)
    assert not (tmp_path / "out").exists()
    run_make_background(job(four_runs, **sections))
    after = one(job, four_runs, **sections)
    written = written_rate(tmp_path / "out" / "data" / "run_064002.fits.gz")
    for background in (before, after):
        assert background.quantity.to_value("s-1 MeV-1 sr-1") == pytest.approx(written.T, rel=1e-6)


def test_one_background_reads_what_the_run_store_does_not_have(job, four_runs, opened, tmp_path):
    one(job, four_runs, io=OTHERS)
    assert sorted(opened) == OBS_IDS
    one(job, four_runs)
    assert opened[4:] == [64002]
    run_make_background(job(four_runs, io=OTHERS))
    opened.clear()
    one(job, four_runs, io=OTHERS)
    assert opened == []
    shared = {"path": str(tmp_path / "out" / "results" / "runs.zarr")}
    one(job, four_runs, io={**OTHERS, "out_dir": str(tmp_path / "another")}, run_store=shared)
    assert opened == []
    assert not (tmp_path / "another").exists()


@pytest.mark.parametrize("kept", [True, False], ids=["a store", "no store"])
@pytest.mark.parametrize("mode", ["2d", "3d"])
def test_several_at_once_are_what_each_is_alone(job, four_runs, kept, mode):
    """As on a cluster, where each is a task of somebody's own; they share the run store where there is one."""
    sections = {"io": OTHERS, "binning": {"mode": mode}, "background_selection": {"rank": "kl"}}
    if kept:
        run_make_background(job(four_runs, **sections))
    plans = [plan_job(parse_config(job(four_runs, **sections, run_selection={"runlist": [i]}))) for i in OBS_IDS]
    found: dict[int, bytes] = {}

    def make(plan):
        found[plan.targets[0].obs_id] = make_one(plan).quantity.value.tobytes()

    threads = [threading.Thread(target=make, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: one(job, four_runs, i, **sections).quantity.value.tobytes() for i in OBS_IDS}


def test_one_background_that_cannot_be_made_says_why(job, four_runs, run_path):
    with pytest.raises(RunError, match="run 64002: no run of the archive passes"):
        one(job, four_runs, io=OTHERS, background_selection={"nsb_diff": 1e-9})
    with pytest.raises(RunError, match="none of the runs of its background_selection"):
        one(job, four_runs, io=OTHERS, background_selection={"bkg_runlist": {64002: [7]}})
    run_path(four_runs, 64002).write_bytes(b"not FITS")
    for places in ({}, OTHERS):
        with pytest.raises(RunError, match="run_064002"):
            one(job, four_runs, io=places)


def test_a_large_archive_that_is_read_for_one_background_is_told(job, four_runs, monkeypatch, caplog):
    monkeypatch.setattr(single, "MANY", 3)
    one(job, four_runs, io=OTHERS)
    assert "all 4 runs of the archive are read, and not kept: `dask-bkg reduce` keeps them" in caplog.text
    caplog.clear()
    one(job, four_runs)
    run_make_background(job(four_runs, io=OTHERS))
    one(job, four_runs, io=OTHERS)
    assert "not kept" not in caplog.text
