"""Each command that takes long is stopped in a terminal: a sentence, the prompt, no process."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest
from helpers.pty_job import PtyJob

from dask_bkg.config.yaml import dump_yaml
from dask_bkg.simulate import simulate_archive

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc"),
]

RUNS = 40
READING = r"runs read: +[1-9]"
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
    }
    path.write_text(dump_yaml(config))
    return path


def stop(job: PtyJob, how: str) -> None:
    """Stop a job, and look that it ends as it should."""
    start = time.monotonic()
    job.press_ctrl_c() if how == "SIGINT" else job.signal_group(signal.Signals[how])
    assert job.end(5) == 128 + signal.Signals[how]
    print(f"{how}: prompt after {time.monotonic() - start:.2f} s", end=", ")
    job.await_no_process(5)
    print(f"no process after {time.monotonic() - start:.2f} s")
    assert len(re.findall(SENTENCE.format(how), job.text)) == 1, job.text
    assert "Traceback" not in job.text
    assert "rror" not in job.text


@pytest.mark.parametrize(
    ("command", "where", "how"),
    [
        ("reduce", "local", "SIGINT"),
        ("reduce", "threads", "SIGTERM"),
        ("kl", "local", "SIGTERM"),
        ("kl", "threads", "SIGINT"),
        ("validate", "local", "SIGINT"),
        ("validate", "threads", "SIGTERM"),
    ],
)
def test_a_command_that_reads_runs(config_file, command, where, how):
    with PtyJob(command, config_file, "--cluster", where) as job:
        job.await_text(READING)
        stop(job, how)


@pytest.mark.parametrize(("where", "how"), [("local", "SIGTERM"), ("threads", "SIGINT")])
def test_validate_while_it_compares(config_file, where, how):
    with PtyJob("validate", config_file, "--cluster", where) as job:
        job.await_text(r"validated: +[1-9]")
        stop(job, how)
    assert not (config_file.parent / "results_dir" / "validation").exists()


@pytest.mark.parametrize(
    ("stage", "how"),
    [
        ("simulating", "SIGINT"),
        (READING, "SIGTERM"),
        (r"backgrounds: +[1-9]", "SIGINT"),
        ("stacked backgrounds", "SIGTERM"),
    ],
)
def test_the_demo(tmp_path, stage, how):
    with PtyJob("demo", "--out-dir", tmp_path / "demo") as job:
        job.await_text(stage)
        stop(job, how)
