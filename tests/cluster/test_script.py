"""What the batch job of a worker is started with: what the site says, and what our tasks need beside it."""

from __future__ import annotations

import builtins
import re
import shlex
import subprocess
import sys

import dask
import pytest

from dask_bkg.cluster import slurm as batch
from dask_bkg.cluster.script import SCRATCH, job_options, lifetime_seconds, walltime_seconds
from dask_bkg.config import Slurm, parse_config
from dask_bkg.errors import ConfigError

EMPTY = {"cores": None, "memory": None, "walltime": "00:30:00", "interface": None, "scheduler-options": {}}


@pytest.fixture
def options(tmp_path):
    """Options of a job: ``options({what the site says}, section of ours)``."""

    def make(site, **section):
        site = {f"jobqueue.slurm.{k}": v for k, v in {**EMPTY, "cores": 2, "memory": "4GB", **site}.items()}
        with dask.config.set(site):
            return job_options(Slurm(**section), tmp_path)

    return make


def test_what_our_tasks_need(options, tmp_path):
    made = options({"interface": "ib0"})
    assert made["processes"] == 2  # of one thread each
    assert made["local_directory"] == SCRATCH
    assert made["log_directory"] == made["shared_temp_directory"] == str(tmp_path)
    assert made["job_extra_directives"] == ["--no-requeue"]
    arguments = " ".join(made["worker_extra_args"])
    assert arguments == (
        "--no-dashboard --dashboard-address 127.0.0.1:0 --lifetime 1350s --lifetime-stagger 270s"
    )  # at most 27 of 30 minutes
    assert made["scheduler_options"] == {"dashboard_address": "127.0.0.1:8787"}
    assert made["security"] is True
    assert made["protocol"] == "tls://"


def test_the_site_wins(options):
    site = {
        "interface": "ib0", "local-directory": "/scratch", "log-directory": "/logs", "shared-temp-directory": "/keys",
        "worker-extra-args": ["--lifetime", "5m", "--dashboard-address", ":0"],
        "job-extra-directives": ["--qos=long"], "job-script-prologue": ["module load python"],
        "scheduler-options": {"dashboard_address": ":9000"},
    }  # fmt: skip
    made = options(site)
    assert made["local_directory"] == "/scratch"
    assert (made["log_directory"], made["shared_temp_directory"]) == ("/logs", "/keys")
    assert made["worker_extra_args"] == site["worker-extra-args"]
    assert made["job_extra_directives"] == ["--qos=long", "--no-requeue"]
    assert made["job_script_prologue"][-1] == "module load python"
    assert made["scheduler_options"] == {"dashboard_address": ":9000"}


def test_no_encryption_if_that_is_wanted(options):
    assert not {"security", "protocol"} & options({}, tls=False).keys()


def test_scratch_is_that_of_the_node(tmp_path):
    """As the node's shell knows it, not this one's."""
    for environment, wanted in (
        ({"SLURM_TMPDIR": "/a b", "TMPDIR": "/c"}, "/a b"),
        ({"TMPDIR": "/c"}, "/c"),
        ({}, "/tmp"),
    ):
        done = subprocess.run(["/bin/bash", "-c", f"echo {SCRATCH}"], env=environment, capture_output=True, text=True)
        assert done.stdout.strip() == wanted


def test_the_prologue_keeps_what_the_user_has_set(options):
    lines = "\n".join([*options({"interface": "lo"})["job_script_prologue"], "echo $MALLOC_TRIM_THRESHOLD_"])
    for environment, wanted in (({}, "134217728"), ({"MALLOC_TRIM_THRESHOLD_": "7"}, "7")):
        done = subprocess.run(["/bin/bash", "-c", lines], env=environment, capture_output=True, text=True)
        assert done.stdout.strip() == wanted


def test_without_an_interface_nobody_listens_on_all_networks(options, monkeypatch):
    monkeypatch.setattr("dask_bkg.cluster.script.get_ip", lambda: "127.0.0.1")
    made = options({})
    assert made["scheduler_options"]["host"] == "127.0.0.1"
    assert made["worker_extra_args"][:2] == ["--host", '"$DASK_BKG_HOST"']
    lines = "\n".join([*made["job_script_prologue"], "echo $DASK_BKG_HOST"])
    done = subprocess.run(["/bin/bash", "-c", lines], capture_output=True, text=True)
    # the network through which the scheduler is reached
    assert done.stdout.strip() == "127.0.0.1"
    assert "--host" not in options({"scheduler-options": {"host": "head"}})["worker_extra_args"]


@pytest.mark.parametrize("missing", ["cores", "memory"])
def test_a_site_that_is_not_described(options, missing):
    with pytest.raises(ConfigError, match=r"cores and memory of a job are not set.*~/\.config/dask/jobqueue\.yaml"):
        options({missing: None})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 1800), ("30:15", 1815), ("1:00:00", 3600), ("2-0", 172800), ("1-2:30", 95400), ("1-02:03:04", 93784),
     ("2h", 7200), (None, None), ("UNLIMITED", None)],
)  # fmt: skip
def test_walltimes(text, seconds):
    assert walltime_seconds(text) == seconds


@pytest.mark.parametrize("text", ["soon", "1:2:3:4:5", "1x"])
def test_a_walltime_that_is_none(text):
    with pytest.raises(ConfigError, match=r"walltime must be a time as in '01:30:00', got"):
        walltime_seconds(text)


@pytest.mark.parametrize("walltime", ["1", "5", "30", "8:00:00", "7-0"])
def test_workers_leave_before_the_walltime(walltime):
    lifetime, stagger = lifetime_seconds(walltime, Slurm())
    limit = walltime_seconds(walltime)
    assert 0.6 * limit - 1 <= lifetime + stagger < limit
    assert limit - lifetime - stagger >= min(60, limit / 4) - 1e-6
    assert 0.5 * limit < lifetime


def test_lives_of_jobs_without_an_end():
    assert lifetime_seconds(None, Slurm()) is None
    assert lifetime_seconds("UNLIMITED", Slurm(lifetime=10)) == (600, 90)


def test_a_life_that_is_longer_than_its_job():
    with pytest.raises(ConfigError, match=r"slurm\.lifetime \(29 min, and up to 15% more\) must end.*00:30:00"):
        lifetime_seconds("00:30:00", Slurm(lifetime=29))


def test_dask_jobqueue_is_not_installed(monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "dask_jobqueue":
            raise ImportError("No module named 'dask_jobqueue'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'dask_bkg\[slurm\]'"):
        batch.start_jobs(parse_config({"cluster": "slurm", "io": {"results_dir": str(tmp_path)}}))


@pytest.mark.parametrize("name", ["line\nbreak", "a\x1b[31mb"])
@pytest.mark.parametrize("key", ["log-directory", "shared-temp-directory", "local-directory", "python"])
def test_a_path_that_cannot_be_quoted_is_refused(options, key, name):
    with pytest.raises(ConfigError, match=r"a path with a line break .* cannot be in a script: '/x/") as caught:
        options({key: f"/x/{name}"})
    assert caught.value.args[0].isprintable()


@pytest.mark.parametrize("name", ["a b", "a;touch x", "it's", "50% $(id)"])
def test_every_path_of_a_script_is_one_word(tmp_path, monkeypatch, name):
    """What Dask would have the shell of a node run."""
    pytest.importorskip("dask_jobqueue")  # it sets defaults when it is imported
    directory = tmp_path / name
    directory.mkdir()
    python = str(directory / "python")
    monkeypatch.setattr("sys.executable", python)
    monkeypatch.setattr(batch, "job_directory", lambda config: directory)
    site = {**EMPTY, "cores": 1, "memory": "1GB", "interface": "lo", "local-directory": str(directory / "scratch")}
    site = {f"jobqueue.slurm.{key}": value for key, value in site.items()}
    with dask.config.set(site):
        if "$" in name:
            with pytest.raises(ConfigError, match="a directory with a dollar sign"):
                batch.job_script(parse_config({"cluster": "slurm"}))
            return
        script = batch.job_script(parse_config({"cluster": "slurm"}))
    assert f"#SBATCH --error={shlex.quote(str(directory))}/worker-%J.err" in script
    assert not re.search("^#SBATCH -[eo]", script, re.MULTILINE)
    words = shlex.split(next(line for line in script.splitlines() if "dask_worker" in line))
    assert words[0] == python
    assert words[words.index("--local-directory") + 1] == str(directory / "scratch")
    for option in ("--tls-ca-file", "--tls-key", "--tls-cert"):
        assert words[words.index(option) + 1].startswith(f"{directory}/.dask-jobqueue.worker.")


def test_signals_are_ours_after_the_import_of_dask_jobqueue():
    code = """if True:
        import signal
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        from dask_bkg.cluster import slurm
        slurm._jobqueue()
        assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    """
    subprocess.run([sys.executable, "-c", code], check=True)
