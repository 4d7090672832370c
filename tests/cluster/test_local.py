"""Workers on this machine: they start in time or not at all, nobody else connects, and their loss is told."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest
from dask.delayed import Delayed, delayed
from distributed import Client
from distributed.security import Security

from dask_bkg.cluster import active_client, local, open_client
from dask_bkg.cluster import client as clients
from dask_bkg.config import parse_config
from dask_bkg.errors import BackgroundError, LostClusterError
from dask_bkg.lazy import execute
from dask_bkg.lazy.execute import compute_each

pytestmark = pytest.mark.slow

LOCAL = parse_config({"cluster": "local", "config": {"njobs": 1}})


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]


def quick_and_slow() -> list[Delayed]:
    """A task that is done at once, and one that then takes longer than a test."""
    quick = delayed(abs)(-1)
    return [quick, delayed(lambda _: time.sleep(200))(quick)]


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import time; time.sleep(60)", r"the scheduler has not started in 1 s; start again .*cluster: threads"),
        ("raise SystemExit(7)", r"the scheduler has ended with status 7 when it was started"),
    ],
)
def test_a_scheduler_that_does_not_start(monkeypatch, program, words):
    monkeypatch.setattr(local, "CHILD", ("-c", program))
    monkeypatch.setattr(local, "START_SECONDS", 1.0)
    start, before = time.monotonic(), len(children())
    with pytest.raises(BackgroundError, match=rf"^cluster: local: {words}"):
        local.start_workers(1)
    assert time.monotonic() - start < 10
    assert len(children()) == before


SLEEPING_WORKER = """
import io, json, sys, time
from types import SimpleNamespace
from dask_bkg.cluster import child
order = sys.stdin.buffer.readline()
if json.loads(order)["scheduler"]:
    time.sleep(60)
sys.stdin = SimpleNamespace(buffer=io.BytesIO(order))
child.main()
"""


def test_a_slow_start_is_said_and_one_without_workers_ends(monkeypatch, caplog):
    monkeypatch.setattr(local, "CHILD", ("-c", SLEEPING_WORKER))
    monkeypatch.setattr(clients, "SAY_AFTER", 0.5)
    monkeypatch.setattr(clients, "WORKER_SECONDS", 1.0)
    with caplog.at_level("INFO"), pytest.raises(LostClusterError, match="no worker has started in 1 s"):  # noqa: SIM117
        with open_client(LOCAL):
            pytest.fail("there is no worker")
    assert "waiting for the scheduler and workers on this machine to start" in caplog.text
    assert active_client() is None


def test_a_scheduler_that_is_killed_before_its_workers_are_there(monkeypatch):
    """To ask it for its workers, as distributed does, takes half a minute and ends in a traceback."""
    monkeypatch.setattr(local, "CHILD", ("-c", SLEEPING_WORKER))
    before, start_workers = children(), local.start_workers

    def start_and_kill(n_workers):
        cluster = start_workers(n_workers)
        threading.Timer(1.0, cluster.scheduler._process.kill).start()
        return cluster

    monkeypatch.setattr(local, "start_workers", start_and_kill)
    start = time.monotonic()
    with pytest.raises(LostClusterError, match=r"^cluster: local: the scheduler has ended.*; start again"):  # noqa: SIM117
        with open_client(LOCAL):
            pytest.fail("there is no worker")
    assert time.monotonic() - start < 15
    assert not [p for p in children() if p not in before]


def test_a_child_whose_starter_ends_while_it_imports_dask_ends_at_once(tmp_path):
    """On a busy machine the import takes longer than people wait."""
    (tmp_path / "distributed.py").write_text("print('importing', flush=True)\nimport time; time.sleep(60)")
    order = {"scheduler": None, "keys": {}, "options": {}, "path": [str(tmp_path), *sys.path]}
    command = [sys.executable, *local.CHILD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as child:
        child.stdin.write(json.dumps(order).encode() + b"\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"importing\n"
        child.stdin.close()
        assert child.wait(5) == -signal.SIGKILL


def test_who_has_no_keys_cannot_connect():
    """The address can be seen by all users of a machine, the keys are nowhere: not in a file, not in a command."""
    with open_client(LOCAL) as client:
        address = client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        for where, keys in ((address.replace("tls://", "tcp://"), None), (address, Security.temporary())):
            with pytest.raises(OSError, match=r"Timed out|closed|does not match"):
                Client(where, security=keys, timeout=3)
        for process in children():
            assert "PRIVATE KEY" not in " ".join([*process.cmdline(), *process.environ().values()])
            for port in (c.laddr.port for c in process.net_connections() if c.status == psutil.CONN_LISTEN):
                with socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:
                    # without TLS a scheduler or worker greets whoever comes
                    stranger.settimeout(0.5)
                    with pytest.raises(TimeoutError):
                        stranger.recv(8)


def test_a_scheduler_that_is_killed_ends_the_job_in_a_sentence():
    def kill(i, result):
        os.kill(next(p.pid for p in children() if p.ppid() == os.getpid() and _listens_at(p, port)), signal.SIGKILL)

    with open_client(LOCAL) as client:
        port = int(client.scheduler.address.rpartition(":")[2])
        tasks = quick_and_slow()
        start = time.monotonic()
        with pytest.raises(LostClusterError, match=r"the scheduler tls://.* has ended.*start the job again"):
            compute_each(tasks, client, 1, kill)
        print(f"told after {time.monotonic() - start:.1f} s")
    assert time.monotonic() - start < 15


def _listens_at(process: psutil.Process, port: int) -> bool:
    return any(c.laddr.port == port and c.status == psutil.CONN_LISTEN for c in process.net_connections())


def test_a_cluster_without_workers_is_told_and_ends_the_job(monkeypatch, caplog):
    for name, seconds in {"LOOK_EVERY": 0.2, "SAY_AFTER": 0.5, "NO_WORKER_SECONDS": 2.0}.items():
        monkeypatch.setattr(execute, name, seconds)

    def kill_workers(i, result):
        for worker in client.cluster.workers.values():
            os.killpg(worker._process.pid, signal.SIGKILL)

    with open_client(LOCAL) as client:
        tasks = quick_and_slow()
        with pytest.raises(LostClusterError, match=r"the cluster has had no worker for \d s"):
            compute_each(tasks, client, 1, kill_workers)
    assert caplog.text.count("waiting for a worker: the cluster has none since") == 1


def test_a_scheduler_that_does_not_answer_is_told(monkeypatch, caplog):
    monkeypatch.setattr(execute, "LOOK_EVERY", 0.5)

    def stop(i, result):
        client.cluster.scheduler._process.send_signal(signal.SIGSTOP)

    with open_client(LOCAL) as client:
        tasks = quick_and_slow()
        threading.Timer(4, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            compute_each(tasks, client, 1, stop)
    assert "which does not answer" in caplog.text
