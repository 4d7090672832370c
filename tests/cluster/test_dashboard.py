"""Where the dashboard is, and what a job used."""

from __future__ import annotations

import logging
import socket
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from distributed import Client, LocalCluster
from distributed.deploy import SubprocessCluster

from dask_bkg.cli import main
from dask_bkg.cluster import dashboard
from dask_bkg.cluster.client import make_client
from dask_bkg.cluster.dashboard import dashboard_lines, tunnel
from dask_bkg.cluster.usage import _totals, log_usage, usage_since
from dask_bkg.config.yaml import dump_yaml

pytestmark = pytest.mark.slow


@pytest.fixture
def lines(monkeypatch):
    """Lines for a scheduler at an address, seen from here: ``lines(address, SSH_CONNECTION="...")``."""
    monkeypatch.setattr(dashboard.getpass, "getuser", lambda: "me")
    for name in ("SSH_CONNECTION", "SLURM_JOB_ID", "SLURM_SUBMIT_HOST"):
        monkeypatch.delenv(name, raising=False)

    def tell(address, link="http://127.0.0.1:8788/status", **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return dashboard_lines(SimpleNamespace(dashboard_link=link, scheduler=SimpleNamespace(address=address)))

    return tell


HERE = socket.gethostname()


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:8786", "tls://localhost:1", "inproc://10.0.0.1/1/1"])
def test_at_ones_own_desk(lines, address):
    assert lines(address) == ["dashboard: http://127.0.0.1:8788/status"]


def test_through_ssh(lines):
    told = lines("tcp://127.0.0.1:8786", SSH_CONNECTION="10.0.0.7 50000 10.0.0.1 22")
    assert told[1].startswith(f"ssh -N -L 8788:localhost:8788 me@{HERE} ")


def test_a_scheduler_elsewhere(lines):
    told = lines("tls://192.0.2.77:8786", "http://192.0.2.77:8787/status")
    assert told[1].startswith("ssh -N -L 8787:localhost:8787 me@192.0.2.77 ")


def test_inside_of_a_batch_job(lines):
    told = lines("tls://127.0.0.1:8786", SLURM_JOB_ID="7", SLURM_SUBMIT_HOST="login1")
    assert f" -J me@login1 me@{HERE} " in told[1]


def test_no_dashboard(lines):
    assert lines("tcp://127.0.0.1:8786", link="") == []


def test_a_user_without_a_name(monkeypatch):
    def nobody():
        raise KeyError("uid not found")

    monkeypatch.setattr(dashboard.getpass, "getuser", nobody)
    assert "localhost:1 host " in tunnel("host", 1)


def test_a_port_that_is_taken(monkeypatch):
    """Another one is found, and told."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr("dask_bkg.cluster.local.DASHBOARD", f"127.0.0.1:{port}")
        with make_client({"cluster": "threads"}) as client:
            (line,) = dashboard_lines(client)
    assert line.startswith("dashboard: http://127.0.0.1:")
    assert f":{port}/" not in line


def test_what_was_used(caplog):
    """Tasks, bytes between workers, memory, and what went to disk: 10 x 40 MB do not fit into 2 x 0.15 GB."""
    caplog.set_level(logging.INFO, logger="dask_bkg")
    with (
        SubprocessCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, worker_kwargs={"memory_limit": "300MB"}
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(2)
        client.submit(sum, [1]).result()
        before = _totals(client)
        with log_usage(client):
            parts = client.map(lambda i: np.full(5_000_000, i), range(12))
            assert client.submit(lambda *a: sum(int(x[0]) for x in a), *parts[:2]).result() == 1
            client.gather(client.map(len, parts))
            used = usage_since(client, before)
    assert used.tasks >= 12 + 1 + 12
    assert used.workers == 2
    assert 120e6 < used.peak < 320e6
    assert used.spilled > 40e6
    assert "tasks, " in caplog.text
    assert "peak memory of a worker (2 at the end)" in caplog.text


def test_a_scheduler_that_does_not_tell_is_no_reason_to_fail(monkeypatch, caplog):
    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):

        def refuse(*args, **kwargs):
            raise ValueError("not allowed")

        monkeypatch.setattr(client, "run_on_scheduler", refuse)
        with log_usage(client):
            pass
    assert "the usage of the job is unknown" in caplog.text


def test_threads_have_nothing_to_tell(caplog):
    with log_usage(None):
        pass
    assert not caplog.text


def test_a_report_of_the_job(job, four_runs, tmp_path):
    """Dask's own page; threads have no scheduler that could write one."""
    config, report = tmp_path / "config.yaml", tmp_path / "new" / "report.html"
    config.write_text(dump_yaml(job(four_runs, cluster="local", io={"from_run": True})))
    for command in ("reduce", "run"):
        done = CliRunner().invoke(main, [command, str(config), "--performance-report", str(report)])
        assert done.exit_code == 0, done.output
        assert f"performance report: {report}" in done.stdout
        assert "reduce-runs" in report.read_text() or command == "run"
        report.unlink()
    done = CliRunner().invoke(main, ["run", str(config), "--cluster", "threads", "--performance-report", str(report)])
    assert done.exit_code == 1
    assert "threads have no scheduler" in done.stderr
