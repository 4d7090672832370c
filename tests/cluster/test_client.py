"""Where a job runs: threads, processes of its own, a client that is there, a scheduler somewhere."""

from __future__ import annotations

import json
import os

import psutil
import pytest
from distributed import Client, Event, LocalCluster

import dask_bkg
from dask_bkg.cluster import active_client, local, open_client
from dask_bkg.cluster import client as clients
from dask_bkg.cluster.client import make_client
from dask_bkg.config import parse_config
from dask_bkg.errors import ConfigError

pytestmark = pytest.mark.slow


def at(where: str, n_workers: int = 1):
    return parse_config({"cluster": where, "config": {"njobs": n_workers}})


def test_threads_need_no_client():
    with open_client(at("threads", 4)) as client:
        assert client is None
    assert active_client() is None


@pytest.mark.parametrize("wanted", ["threads", "local", "tcp://127.0.0.1:1"])
def test_an_active_client_wins_and_is_left_open(wanted):
    with Client(processes=False, n_workers=1, dashboard_address=None) as mine:
        with open_client(at(wanted, 3)) as client:
            assert client is mine
        assert mine.status == "running"
        assert active_client() is mine


def test_nobody_answers_at_the_address(monkeypatch):
    monkeypatch.setattr(clients, "CONNECT_SECONDS", 0.5)
    with pytest.raises(ConfigError, match=r"no scheduler answers at tcp://127.0.0.1:1.*dask scheduler"):  # noqa: SIM117
        with open_client(at("tcp://127.0.0.1:1")):
            pytest.fail("there is nobody")
    assert active_client() is None


def look_and_fail(before: set, seen: list) -> None:
    """Inside a job on a local cluster: note its processes, then stop with an error."""
    with open_client(at("local", 2)) as client:
        client.wait_for_workers(2, timeout=60)
        assert client.submit(sum, [1, 2]).result() == 3
        kept = client.run(lambda: {name: os.environ.get(name) for name in local.MALLOC})
        assert all(found == local.MALLOC for found in kept.values())
        assert not local.MALLOC.keys() & os.environ.keys()
        assert client.dashboard_link.startswith("http://127.0.0.1:")
        seen += set(psutil.Process().children(recursive=True)) - before
        ports = [c.laddr for p in seen for c in p.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN]
        assert len(ports) >= 3
        assert {address.ip for address in ports} <= {"127.0.0.1", "::1"}
        raise KeyError("in mid-job")


def test_a_local_cluster_listens_on_this_machine_only_and_goes_away(monkeypatch):
    for name in local.MALLOC:  # what is set stays: a nanny in this process has set them
        monkeypatch.delenv(name, raising=False)
    seen: list[psutil.Process] = []
    with pytest.raises(KeyError, match="in mid-job"):
        look_and_fail(set(psutil.Process().children(recursive=True)), seen)
    assert active_client() is None
    assert not [p for p in seen if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_a_client_for_a_notebook():
    """Threads of this process; it ends what it has started, and the next one is another."""
    with make_client({"cluster": "threads", "config": {"njobs": 3}}) as client:
        assert client.nthreads() == {next(iter(client.nthreads())): 3}
        assert make_client() is client
        cluster_of_it = client.cluster
    assert cluster_of_it.status.name == "closed"
    assert active_client() is None


def test_a_client_for_the_configuration_in_a_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("cluster: threads\n")
    with make_client(path) as client:
        assert client.submit(sum, [1, 2]).result() == 3


def test_work_that_is_cancelled_goes_away_and_results_are_small(four_runs, no_catalogs):
    config = {"io": {"from_run": True}, "exclusion": no_catalogs}
    with make_client({"cluster": "threads", "config": {"njobs": 1}}) as client:
        first = client.submit(dask_bkg.make_background, four_runs, 64001, config)
        assert first.result().data.shape == (30, 25, 25)
        sizes = client.run_on_scheduler(lambda dask_scheduler: [t.nbytes for t in dask_scheduler.tasks.values()])
        assert max(sizes) < 20_000
        hold = client.submit(lambda: Event("go").wait(60))  # the only thread
        several = [client.submit(dask_bkg.make_background, four_runs, i, config) for i in (64002, 64003, 64004)]
        client.cancel(several)
        assert all(future.cancelled() for future in several)
        Event("go").set()
        assert hold.result()
        # the scheduler has forgotten them
        while sum("make_background" in key for key in client.run_on_scheduler(_keys)) > 1:
            pass
        assert first.result().data.shape == (30, 25, 25)


def _keys(dask_scheduler):
    return [str(key) for key in dask_scheduler.tasks]


def test_a_scheduler_file(tmp_path, monkeypatch):
    monkeypatch.setattr(clients, "CONNECT_SECONDS", 0.5)
    file = tmp_path / "scheduler.json"
    for text in (None, "half a fi"):
        if text is not None:
            file.write_text(text)
        with pytest.raises(ConfigError, match=r"no scheduler has written .*scheduler\.json.*--scheduler-file"):
            make_client({"cluster": str(file)})
    monkeypatch.undo()
    with LocalCluster(n_workers=1, processes=False, protocol="tcp", dashboard_address=None) as running:
        file.write_text(json.dumps({"address": running.scheduler_address}))
        with make_client({"cluster": str(file)}) as client:
            assert client.submit(sum, [1, 2]).result() == 3
        assert running.status.name == "running"
    with monkeypatch.context() as patch:
        patch.setattr(clients, "CONNECT_SECONDS", 0.5)
        with pytest.raises(ConfigError, match=r"no scheduler answers at tcp://.*, the address in .*scheduler\.json"):
            make_client({"cluster": str(file)})


def test_an_encrypted_scheduler_without_a_certificate():
    with pytest.raises(ConfigError, match=r"tls://127.0.0.1:1 requires a certificate.*environment"):
        make_client({"cluster": "tls://127.0.0.1:1"})
    assert active_client() is None
