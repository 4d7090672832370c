"""A private Slurm for the tests, and what a site would say in its jobqueue.yaml."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import dask
import pytest
from helpers.slurm_sandbox import SlurmSandbox, missing_programs

PATIENCE = 120.0
"""Seconds that a condition is waited for: a machine may be slow, and time says nothing of what is right."""

SITE = {
    "queue": "test",
    "cores": 1,
    "memory": "1GiB",
    "walltime": "00:10:00",
    "interface": "lo",  # scheduler and workers talk on 127.0.0.1
    "death-timeout": 60,
    "scheduler-options": {"dashboard_address": "127.0.0.1:0"},
    # the nodes follow the processes of a job by linuxproc: without it those of a cancelled job would be left
    "job-script-prologue": ["trap : TERM"],
}


@pytest.fixture(scope="session")
def slurm_programs():
    """Skips where Slurm is not installed; in CI that is a failure."""
    missing = missing_programs()
    if missing and os.environ.get("REQUIRE_SLURM"):
        pytest.fail(f"REQUIRE_SLURM is set, and these programs are missing: {', '.join(missing)}")
    if missing:
        pytest.skip(f"no Slurm here ({', '.join(missing)}): apt-get install slurmctld slurmd slurm-client munge")


@pytest.fixture(scope="session")
def _slurm(slurm_programs):
    """One private Slurm for each process of the session: started in 0.2 s, on ports of its own."""
    with SlurmSandbox(nodes=2, cpus=4, proctrack="linuxproc") as sandbox:
        yield sandbox


@pytest.fixture
def slurm(_slurm, monkeypatch, tmp_path):
    """The private Slurm, found by sbatch and its like; its site described; its queue empty before and after."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_", "SQUEUE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_CONF", str(_slurm.conf))
    # not the directory of a worker of xdist
    monkeypatch.chdir(tmp_path)
    import dask_jobqueue  # noqa: F401 - its defaults, which those below win over

    site = {f"jobqueue.slurm.{key}": value for key, value in SITE.items()}
    # a lost job is forgotten, and replaced, after this time
    with dask.config.set({**site, "distributed.deploy.lost-worker-timeout": "5s"}):
        yield _slurm
    _slurm.wait(lambda: not _slurm.jobs(), PATIENCE, "the end of the jobs of a test", 0.1)


@pytest.fixture
def site():
    """Another word of the site for the time of a test: ``site(walltime="00:01:00")``."""
    undo = []

    def say(**changes):
        there = dask.config.set({f"jobqueue.slurm.{key.replace('_', '-')}": value for key, value in changes.items()})
        undo.append(there)

    yield say
    for there in reversed(undo):
        there.__exit__(None, None, None)


class Gate:
    """Tasks that read runs wait on workers which have loaded `gate_preload`, until it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def arguments(self) -> dict[str, list[str]]:
        """What the site says for workers to have it."""
        preload = Path(__file__).with_name("gate_preload.py")
        return {
            "worker_extra_args": ["--preload", str(preload)],
            "job_script_prologue": [*SITE["job-script-prologue"], f"export DASK_BKG_TEST_GATE={self.path}"],
        }

    def open(self) -> None:
        self.path.touch()


@pytest.fixture
def gate(tmp_path):
    """A `Gate`; opened at the end, so that no task waits for ever."""
    made = Gate(tmp_path / "gate")
    yield made
    made.open()


# -- the job that all ways must do alike -----------------------------------------------------------------------

JOB = {
    "io": {"from_run": False},
    "background_selection": {"time_request": 1.5, "rank": "kl-conditions"},
    "binning": {"e_max": 10},
    "config": {"block": 5, "split_every": 2},
    "run_store": {"block": 1},
}
"""Twelve tasks that read, of one run each, and blocks of 5 runs from there on."""


def outputs(directory: Path) -> dict[str, bytes]:
    """What a job has written: whole files, in which the rates are."""
    return {path.name: path.read_bytes() for path in Path(directory, "data").glob("*.fits.gz")}


@pytest.fixture(scope="session")
def _by_threads():
    return {}


@pytest.fixture
def by_threads(_by_threads, archive, job, tmp_path):
    """What the job writes on threads: the comparison for all other ways."""
    from dask_bkg.compat import run_make_background

    if not _by_threads:
        io = {**JOB["io"], "out_dir": str(tmp_path / "threads")}
        run_make_background(job(archive[0], **{**JOB, "io": io}), progress=False)
        _by_threads.update(outputs(tmp_path / "threads"))
        assert len(_by_threads) == 12
    return _by_threads


PYTHON_BIN = str(Path(sys.executable).parent)
