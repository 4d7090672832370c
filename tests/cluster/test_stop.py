"""A job is stopped in a terminal, at every stage: a sentence, the prompt, no process, and it goes on from there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from astropy.io import fits
from helpers.pty_job import PtyJob

from dask_bkg.config.yaml import dump_yaml
from dask_bkg.files import Lock
from dask_bkg.files.lock import LOCK_NAME
from dask_bkg.simulate import simulate_archive

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc"),
]

RUNS = 40
STAGES = {"start": "effective configuration", "reading": r"runs read: +[1-9]", "writing": r"backgrounds: +[1-9]"}
SENTENCE = r"stopped by {}: ([^\n]*); the same command goes on from there"


@pytest.fixture(scope="module")
def long_archive(tmp_path_factory):
    directory = tmp_path_factory.mktemp("long")
    simulate_archive(directory, runs=RUNS, events=20_000, seed=5, sources=False, stars=False)
    return directory


@pytest.fixture
def config_file(long_archive, no_catalogs, tmp_path):
    io = {name: str(tmp_path / name) for name in ("in_dir", "out_dir", "results_dir")}
    path = tmp_path / "config.yaml"
    config = {
        "io": {"search_datastore": str(long_archive), **io, "from_run": False},
        "config": {"njobs": 2},
        "exclusion": no_catalogs,
        "run_store": {"block": 2},
        "run_selection": {"runlist": list(range(64001, 64001 + RUNS))},
    }
    path.write_text(dump_yaml(config))
    return path


def in_the_index(out_dir: Path) -> set[int]:
    """Runs whose background is in the index."""
    rows = fits.getdata(out_dir / "hdu-index.fits.gz")
    return {int(row["OBS_ID"]) for row in rows if row["HDU_TYPE"].strip() == "bkg"}


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("where", ["local", "threads"])
def test_a_job_that_is_stopped_says_so_and_goes_on_the_next_time(config_file, tmp_path, where, stage, how):
    with PtyJob("run", config_file, "--cluster", where) as job:
        job.await_text(STAGES[stage])
        start = time.monotonic()
        job.press_ctrl_c() if how == "SIGINT" else job.signal_group(signal.SIGTERM)
        assert job.end(5) == 128 + signal.Signals[how]
        print(f"{where} {stage} {how}: prompt after {time.monotonic() - start:.2f} s", end=", ")
        job.await_no_process(5)
        print(f"no process after {time.monotonic() - start:.2f} s")
    told = re.findall(SENTENCE.format(how), job.text)
    assert len(told) == 1, job.text
    assert "Traceback" not in job.text
    assert "rror" not in job.text
    if stage == "writing":
        n = int(re.match(rf"(\d+) of {RUNS} backgrounds are written and in the index", told[0])[1])
        assert len(in_the_index(tmp_path / "out_dir")) == n > 0


def test_the_same_command_goes_on_from_there(config_file, tmp_path):
    with PtyJob("run", config_file, "--cluster", "threads") as job:
        job.await_text(STAGES["writing"])
        job.press_ctrl_c()
        job.end(5)
    kept = in_the_index(tmp_path / "out_dir")
    before = {run: (tmp_path / "out_dir/data" / f"run_{run:06d}.fits.gz").stat().st_mtime_ns for run in kept}
    command = [sys.executable, "-m", "dask_bkg", "run", str(config_file), "--cluster", "threads"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    written, unchanged = map(int, re.search(r"(\d+) backgrounds written, (\d+) unchanged", told).groups())
    assert written + unchanged == RUNS
    assert "0 event files opened" in told
    assert unchanged >= len(kept) > 0
    assert {run: (tmp_path / "out_dir/data" / f"run_{run:06d}.fits.gz").stat().st_mtime_ns for run in kept} == before
    assert len(in_the_index(tmp_path / "out_dir")) == RUNS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_job_that_ends_while_its_workers_start_leaves_none(config_file, number):
    with PtyJob("run", config_file, "--cluster", "local") as job:
        until = time.monotonic() + 60
        while len(job.processes()) < 3:  # the scheduler and a nanny at least
            assert time.monotonic() < until, job.text
            time.sleep(0.01)
        job.signal_group(number)
        assert job.end(5) == (-number if number == signal.SIGKILL else 128 + number)
        job.await_no_process(5)
    assert "Traceback" not in job.text


@pytest.mark.parametrize("stage", ["reading", "writing"])
def test_workers_end_with_a_driver_that_is_killed(config_file, stage):
    with PtyJob("run", config_file, "--cluster", "local") as job:
        job.await_text(STAGES[stage])
        os.kill(job.pid, signal.SIGKILL)
        assert job.end(5) == -signal.SIGKILL
        job.await_no_process(5)
    assert "Traceback" not in job.text


@pytest.mark.parametrize("again", [True, False])
def test_a_job_that_cannot_write_its_index_ends_all_the_same(config_file, tmp_path, again):
    """Another job holds the index: at the second Ctrl-C at once, else after some seconds."""
    with PtyJob("run", config_file, "--cluster", "local") as job:
        job.await_text(STAGES["writing"])
        other = Lock(tmp_path / "out_dir" / LOCK_NAME, "")
        other.acquire()
        job.press_ctrl_c()
        if again:
            time.sleep(1)
            job.press_ctrl_c()
        assert job.end(1 if again else 5) == (-signal.SIGINT if again else 130)
        job.await_no_process(5)
        other.release()
    assert "Traceback" not in job.text
