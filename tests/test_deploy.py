"""Every file of ``deploy/`` is started, as its README says, and makes the same bytes as threads do."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from distributed import Client
from helpers.slurm_fixtures import JOB, PATIENCE, PYTHON_BIN, SITE, outputs

from dask_bkg.config.yaml import dump_yaml, parse_yaml, read_yaml

DEPLOY = Path(__file__).parents[1] / "deploy"
MACHINES = ("machines/run.sh", "machines/scheduler.sh", "machines/worker.sh")

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]


@pytest.fixture
def settings(job, archive, tmp_path):
    """The job as a file."""
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(job(archive[0], **JOB)))
    return path


@pytest.fixture
def shell(monkeypatch, tmp_path):
    """A shell in which dask and dask-bkg are found: ``shell(command)`` starts it; all that is left is ended."""
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "bin"), PYTHON_BIN, os.environ["PATH"]]))
    monkeypatch.chdir(tmp_path)
    started = []

    def start(command: str) -> subprocess.Popen:
        log = open(tmp_path / f"shell-{len(started)}.log", "w+")  # noqa: SIM115
        process = subprocess.Popen(["bash", "-c", command], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        process.log = log
        started.append(process)
        return process

    yield start
    for process in reversed(started):
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        process.log.close()


def done(process: subprocess.Popen) -> str:
    """What a shell has said, once it has ended well."""
    status = process.wait(PATIENCE)
    process.log.seek(0)
    text = process.log.read()
    assert status == 0, text
    return text


def documented(words: str) -> list[str]:
    """Lines of the shell block of deploy/README.md that follows a heading."""
    section = DEPLOY.joinpath("README.md").read_text().split(f"## {words}\n")[1]
    block = re.search(r"```bash\n(.*?)```", section, re.DOTALL)[1]
    return [line.split("  #")[0].strip() for line in block.splitlines()]


def test_nothing_is_untested():
    files = {str(path.relative_to(DEPLOY)) for path in DEPLOY.rglob("*") if path.is_file()}
    # what the notebook makes where it lies
    made = ("notebooks/archive/", "notebooks/with-background/", "notebooks/.ipynb_checkpoints/")
    assert {name for name in files if not name.startswith(made)} == {
        "README.md", "jobqueue.yaml", "slurm/dask-bkg.sbatch", "notebooks/backgrounds.ipynb", *MACHINES
    }  # fmt: skip


# --- SLURM -------------------------------------------------------------------------------------------------


@pytest.mark.slurm
def test_all_in_one_job(slurm, settings, shell, by_threads, tmp_path):
    said = tmp_path / "said.txt"
    options = f"--ntasks=2 --mem-per-cpu=1G --output={said}"
    submitted = done(shell(f"sbatch {options} {DEPLOY}/slurm/dask-bkg.sbatch {settings}"))
    number = submitted.split()[-1]
    slurm.wait(lambda: number not in slurm.jobs(), PATIENCE, "the end of the job", 0.2)
    text = said.read_text()
    assert slurm.job_info(number)["JobState"] == "COMPLETED", text
    assert outputs(tmp_path / "out") == by_threads
    # whoever reads this on the login node
    assert re.search(r"ssh -N -L \d+:localhost:\d+ -J \S+ \S+", text)
    assert "0 B spilled" in text
    assert not list(tmp_path.glob(".dask-bkg*"))


@pytest.mark.slurm
def test_one_job_that_fails_says_so_and_leaves_nothing(slurm, settings, shell, tmp_path):
    settings.write_text("binning: {e_min: 100 TeV, e_max: 1 TeV}\n")
    said = tmp_path / "said.txt"
    submitted = done(shell(f"sbatch --ntasks=2 --output={said} {DEPLOY}/slurm/dask-bkg.sbatch {settings}"))
    number = submitted.split()[-1]
    slurm.wait(lambda: number not in slurm.jobs(), PATIENCE, "the end of the job", 0.2)
    assert slurm.job_info(number)["JobState"] == "FAILED"
    assert "binning.e_min (100 TeV) must be below" in said.read_text()
    assert not list(tmp_path.glob(".dask-bkg*"))


@pytest.fixture
def dask_directory(monkeypatch, tmp_path):
    """The jobqueue.yaml of deploy/, filled in for the private Slurm, where Dask looks for it."""
    text = DEPLOY.joinpath("jobqueue.yaml").read_text()
    given = parse_yaml(text)["jobqueue"]["slurm"]
    for key in ("queue", "memory", "interface", "job-script-prologue", "scheduler-options"):
        assert key in given or f"# {key}:" in text or key == "scheduler-options"
        given[key] = SITE[key]
    directory = tmp_path / "dask"
    directory.mkdir()
    (directory / "jobqueue.yaml").write_text(dump_yaml({"jobqueue": {"slurm": given}}))
    monkeypatch.setenv("DASK_CONFIG", str(directory))
    return given


@pytest.mark.slurm
def test_from_the_login_node(slurm, settings, shell, dask_directory, by_threads, tmp_path):
    """The two commands of the README, with the site's file: the check of a job, and the run."""
    commands = [line for line in documented("SLURM, from the login node") if line.startswith("dask-bkg")]
    check, run = (line.replace("config.yaml", str(settings)) for line in commands)
    text = done(shell(check))
    assert "#SBATCH -p test" in text
    assert "--lifetime 2700s --lifetime-stagger 540s" in text
    assert "#SBATCH --no-requeue" in text
    assert re.search(r"ok +the worker can write to .*out$", text, re.MULTILINE)
    assert "PROBLEM" not in text
    values = read_yaml(settings)
    settings.write_text(dump_yaml({**values, "slurm": {"workers": 2}}))
    report = tmp_path / "report.html"
    text = done(shell(f"{run} --performance-report {report}"))
    assert "dashboard: http://127.0.0.1:" in text
    assert f"performance report: {report}" in text
    assert report.read_text().lstrip().startswith("<!DOCTYPE html>")
    assert outputs(tmp_path / "out") == by_threads


# --- a few machines ----------------------------------------------------------------------------------------


def test_a_few_machines_by_hand(settings, shell, by_threads, tmp_path):
    """A scheduler and two workers on ports of their own; who has no certificate is not let in."""
    directory = tmp_path / "shared"
    changes = {
        "machines/": f"{DEPLOY}/machines/", "/shared/dask": str(directory), " 8 node1": " 1 localhost",
        " head": " localhost", "config.yaml": str(settings),
    }  # fmt: skip
    lines = documented("A few machines, by hand")
    for old, new in changes.items():
        lines = [line.replace(old, new) for line in lines]
    scheduler, worker, source, run = lines
    shell(scheduler)
    until(lambda: (directory / "scheduler.json").exists())
    shell(worker), shell(worker)
    text = done(shell(f"{source} && {run}"))
    assert outputs(tmp_path / "out") == by_threads
    assert "dashboard: http://127.0.0.1:" in text
    assert re.search(r"peak memory of a worker \([12] at the end\)", text)
    address = json.loads((directory / "scheduler.json").read_text())["address"]
    assert address.startswith("tls://")
    with pytest.raises((OSError, TypeError)):
        Client(address, timeout=2, set_as_default=False)
    # a job that has nothing to do would not ask for workers
    refused = shell(f"dask-bkg run {settings} --cluster {address} --refresh")
    assert refused.wait(PATIENCE) == 1
    text = done(shell(f"{source} && dask-bkg cluster check {settings} --cluster {address}"))
    assert "PROBLEM" not in text
    assert (directory / "dask-tls.pem").stat().st_mode & 0o077 == 0


def test_a_few_machines_by_ssh(settings, shell, by_threads, tmp_path):
    """An ssh that goes nowhere: what it would do on each machine is done here."""
    fake = tmp_path / "bin" / "ssh"
    fake.parent.mkdir()
    fake.write_text(f"""#!/bin/bash\necho "$@" >> {tmp_path}/hosts\nexec bash -c "${{@: -1}}"\n""")
    fake.chmod(0o755)
    hosts = "localhost 127.0.0.1"
    text = done(shell(f'HERE=localhost WORKERS=1 {DEPLOY}/machines/run.sh "{hosts}" {settings} --no-progress'))
    assert outputs(tmp_path / "out") == by_threads
    assert "INFO: dashboard: " in text
    assert {line.split()[3] for line in (tmp_path / "hosts").read_text().splitlines()} == set(hosts.split())
    assert not list(tmp_path.glob(".dask-bkg*"))


def until(condition) -> None:
    import time

    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


# --- the notebook ------------------------------------------------------------------------------------------


def test_the_notebook(monkeypatch, tmp_path):
    """From end to end; a large graph is an error."""
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.delenv("GAMMAPY_DATA", raising=False)
    monkeypatch.setenv("PYTHONWARNINGS", "error:Sending large graph:UserWarning")
    notebook = nbformat.read(DEPLOY / "notebooks" / "backgrounds.ipynb", 4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells), "commit it without outputs"
    client = NotebookClient(
        notebook, timeout=PATIENCE, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    shown = [output for cell in cells for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 6
    said = "".join(output.text for output in shown if output.output_type == "stream")
    observed, predicted = map(int, re.search(r"observed (\d+), predicted (\d+)", said).groups())
    assert 0.5 < predicted / observed < 1.5
    assert "Warning" not in said.replace("TqdmWarning", "")
