"""A scheduler that is frozen: it has not ended, its connections are open, and nothing comes of it any more."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
from astropy.io import fits
from dask.delayed import delayed
from helpers.pty_job import PtyJob

from dask_bkg.cluster import open_client
from dask_bkg.config import parse_config
from dask_bkg.config.yaml import dump_yaml
from dask_bkg.errors import LostClusterError
from dask_bkg.lazy import execute
from dask_bkg.lazy.execute import compute_each
from dask_bkg.simulate import simulate_archive

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc"),
]

SENTENCE = r"the scheduler tls://\S+ has not answered for (3|12) s: .* stopped .*what is finished is kept: start"
IMPATIENT = """
import sys
from dask_bkg.lazy import execute
execute.LOOK_EVERY, execute.NO_ANSWER_SECONDS = 0.5, 12.0
from dask_bkg.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("when", ["before a result is fetched", "while a task runs"])
def test_a_scheduler_that_does_not_answer_ends_the_job(monkeypatch, caplog, when):
    monkeypatch.setattr(execute, "LOOK_EVERY", 0.5)
    monkeypatch.setattr(execute, "NO_ANSWER_SECONDS", 3.0)
    quick = [delayed(abs, pure=False)(-i) for i in range(4)]
    tasks = quick if when.startswith("before") else [quick[0], delayed(lambda _: time.sleep(200))(quick[0])]

    def stop(i, result):
        time.sleep(1)  # all that is quick has ended
        client.cluster.scheduler._process.send_signal(signal.SIGSTOP)

    with open_client(parse_config({"cluster": "local", "config": {"njobs": 1}})) as client:
        start = time.monotonic()
        with pytest.raises(LostClusterError, match=SENTENCE):
            compute_each(tasks, client, 1, stop)
        assert time.monotonic() - start < 15
        start = time.monotonic()
    assert time.monotonic() - start < 15
    if when.startswith("while"):
        assert caplog.text.count("which does not answer; the job ends in") == 1


def scheduler_of(job: PtyJob) -> int:
    """The scheduler is the child of ours that has started none."""
    for pid in job.processes():
        status = Path(f"/proc/{pid}/status").read_text()
        if f"PPid:\t{job.pid}\n" in status and not Path(f"/proc/{pid}/task/{pid}/children").read_text():
            return pid
    raise AssertionError(job.text)


@pytest.mark.parametrize("stage", ["runs read: +[1-9]", "backgrounds: +[1-9]"])
def test_a_job_whose_scheduler_is_frozen_ends_with_its_index(no_catalogs, tmp_path, stage):
    archive, path = tmp_path / "dl3", tmp_path / "config.yaml"
    simulate_archive(archive, runs=40, events=10_000, seed=5, sources=False, stars=False)
    io = {"search_datastore": str(archive), "in_dir": str(archive), "out_dir": str(tmp_path / "out")}
    config = {
        "cluster": "local", "io": {**io, "from_run": False}, "config": {"njobs": 1}, "exclusion": no_catalogs,
        "run_store": {"block": 2},
    }  # fmt: skip
    path.write_text(dump_yaml(config))
    with PtyJob("run", path, command=("-c", IMPATIENT)) as job:
        job.await_text(stage)
        os.kill(scheduler_of(job), signal.SIGSTOP)
        start = time.monotonic()
        assert job.end(40) == 1
        print(f"ended after {time.monotonic() - start:.1f} s")
        job.await_no_process(5)
    assert re.search(f"error: {SENTENCE}", job.text), job.text
    assert "Traceback" not in job.text
    if stage.startswith("backgrounds"):
        rows = fits.getdata(tmp_path / "out" / "hdu-index.fits.gz")
        assert any(row["HDU_TYPE"].strip() == "bkg" for row in rows)
