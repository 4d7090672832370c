"""Where a job runs: threads, processes of its own, a client that is there, a scheduler somewhere."""

from __future__ import annotations

import os

import psutil
import pytest
from distributed import Client

from dask_bkg import cluster
from dask_bkg.cluster import active_client, open_client
from dask_bkg.cluster import client as clients
from dask_bkg.config import parse_config
from dask_bkg.errors import ConfigError


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
        kept = client.run(lambda: {name: os.environ.get(name) for name in cluster.MALLOC})
        assert all(found == cluster.MALLOC for found in kept.values())
        assert not cluster.MALLOC.keys() & os.environ.keys()
        assert client.dashboard_link.startswith("http://127.0.0.1:")
        seen += set(psutil.Process().children(recursive=True)) - before
        ports = [c.laddr for p in seen for c in p.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN]
        assert len(ports) >= 3
        assert {address.ip for address in ports} <= {"127.0.0.1", "::1"}
        raise KeyError("in mid-job")


def test_a_local_cluster_listens_on_this_machine_only_and_goes_away():
    seen: list[psutil.Process] = []
    with pytest.raises(KeyError, match="in mid-job"):
        look_and_fail(set(psutil.Process().children(recursive=True)), seen)
    assert active_client() is None
    assert not [p for p in seen if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
