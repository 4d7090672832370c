"""Workers that are jobs of a real Slurm: the same bytes as on threads, whatever happens to the workers."""

from __future__ import annotations

import logging
import subprocess
import threading

import dask
import psutil
import pytest
from distributed import Client
from distributed.security import Security
from helpers.slurm_fixtures import JOB, PATIENCE, outputs

from dask_bkg.cluster import active_client
from dask_bkg.cluster import slurm as batch
from dask_bkg.cluster.client import make_client
from dask_bkg.config import parse_config
from dask_bkg.errors import ConfigError
from dask_bkg.pipeline import run as pipeline

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600), pytest.mark.slow]


@pytest.fixture
def settings(job, archive):
    """The job on jobs of Slurm: ``settings(workers=2, ...)``, the section ``slurm``."""
    return lambda **section: parse_config(job(archive[0], **JOB, cluster="slurm", slurm={"wait": 4, **section}))


@pytest.fixture
def behind():
    """Do a job in a thread: ``behind(config, client)`` returns the thread; its errors are raised at the end."""
    threads, errors = [], []

    def start(config, client):
        def work():
            try:
                with client.as_current():
                    pipeline.run_job(config, progress=False)
            except BaseException as error:
                errors.append(error)

        threads.append(threading.Thread(target=work))
        threads[-1].start()
        return threads[-1]

    yield start
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    for error in errors:
        raise error


def busy(client) -> dict[str, int]:
    """How many tasks that read runs each worker has been given and has not done."""
    has = client.processing()
    return {worker: sum(str(key).startswith("('reduce-runs") for key in keys) for worker, keys in has.items()}


def listening(processes) -> set[str]:
    """Addresses that processes listen at."""
    connections = [c for process in processes for c in process.net_connections(kind="inet")]
    return {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}


def test_the_whole_job(slurm, settings, by_threads, tmp_path, caplog, monkeypatch):
    """Encrypted; nobody listens to more than this machine; what was used is told."""
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)  # what is set stays: a nanny in here has set it
    config = settings(workers=2)
    caplog.set_level(logging.INFO, logger="dask_bkg")
    with make_client(config) as client:
        assert client.scheduler.address.startswith("tls://127.0.0.1:")
        client.wait_for_workers(2, timeout=PATIENCE)
        pids = client.run(lambda dask_worker: __import__("os").getppid())
        nannies = [psutil.Process(pid) for pid in pids.values()]
        assert listening([psutil.Process(), *nannies, *(p for n in nannies for p in n.children())]) <= {"127.0.0.1"}
        kept = client.run(lambda: __import__("os").environ["MALLOC_TRIM_THRESHOLD_"])
        assert set(kept.values()) == {str(128 * 2**20)}
        pipeline.run_job(config, progress=False)
        assert make_client(config) is client
    assert active_client() is None
    assert outputs(tmp_path / "out") == by_threads
    assert "memory: about 0.2 GB a worker of the 1.00 GiB that it has" in caplog.text
    assert "peak memory of a worker (2 at the end), 0 B spilled" in caplog.text
    assert not list((tmp_path / "out/results/slurm").glob(".dask*"))  # no key is left


def test_a_directory_with_blanks_and_quotes(slurm, settings, tmp_path):
    config, results = settings(workers=1), tmp_path / 'it\'s; 50% "mine"'
    config = config.model_copy(update={"io": config.io.model_copy(update={"results_dir": str(results)})})
    with make_client(config) as client:
        assert client.submit(sum, [1, 2]).result(PATIENCE) == 3
        assert sorted(path.suffix for path in (results / "slurm").glob("worker-*")) == [".err", ".out"]


def test_a_job_that_is_cancelled_in_mid_run(slurm, settings, site, gate, behind, by_threads, tmp_path):
    site(**gate.arguments())
    config = settings(workers=2)
    with make_client(config) as client:
        client.wait_for_workers(2, timeout=PATIENCE)
        job = behind(config, client)
        slurm.wait(lambda: len(b := busy(client)) == 2 and all(b.values()), PATIENCE, "two workers at work")
        slurm.cancel(next(iter(slurm.jobs("RUNNING"))))
        slurm.wait(lambda: len(busy(client)) < 2, PATIENCE, "the loss of a worker")
        slurm.wait(lambda: len(busy(client)) == 2, PATIENCE, "another worker")
        gate.open()
        job.join(PATIENCE)
    assert not job.is_alive()
    assert outputs(tmp_path / "out") == by_threads


@pytest.mark.parametrize("cores", [1, 2])
def test_lives_that_end_are_followed_by_others(slurm, settings, site, gate, behind, by_threads, tmp_path, cores):
    """Workers leave in mid-run before their time is up, and new ones do what was left; of one job, or of two."""
    site(cores=cores, **gate.arguments())
    config = settings(workers=2, lifetime="12 s")
    with make_client(config) as client:
        client.wait_for_workers(2, timeout=PATIENCE)
        job = behind(config, client)
        slurm.wait(lambda: any(busy(client).values()), PATIENCE, "work")
        first = set(client.nthreads())
        slurm.wait(lambda: not first & set(client.nthreads()), PATIENCE, "the first ones to leave")
        gate.open()
        job.join(PATIENCE)
    assert not job.is_alive()
    assert outputs(tmp_path / "out") == by_threads


def test_workers_come_for_work_and_go(slurm, settings, site, by_threads, tmp_path):
    """In jobs of two processes, of one thread each."""
    site(cores=2)
    config = settings(workers=3, min_workers=0)
    with make_client(config) as client:
        slurm.wait(lambda: not slurm.jobs(), PATIENCE, "an empty queue where there is nothing to do")
        assert not client.nthreads()
        pipeline.run_job(config, progress=False)
        assert outputs(tmp_path / "out") == by_threads
        assert set(client.nthreads().values()) <= {1}
        slurm.wait(lambda: not slurm.jobs(), PATIENCE, "an empty queue when all is done")
        assert client.submit(sum, [1, 2]).result(timeout=PATIENCE) == 3


def test_nobody_without_the_certificate_gets_in(slurm, settings):
    with make_client(settings(workers=1)) as client:
        address = client.scheduler.address
        for wrong in (address.replace("tls://", "tcp://"), address):
            with pytest.raises((OSError, TypeError)):
                Client(wrong, timeout=2, set_as_default=False)
        with pytest.raises(OSError, match=r"certificate|CERTIFICATE|closed|alert|Timed out"):
            Client(address, security=Security.temporary(), timeout=2, set_as_default=False)
        assert client.submit(sum, [1, 2]).result(timeout=PATIENCE) == 3


def test_without_encryption_if_that_is_wanted(slurm, settings, caplog):
    with make_client(settings(workers=1, tls=False)) as client:
        assert client.scheduler.address.startswith("tcp://127.0.0.1:")
        assert "can run programs as you" in caplog.text
        assert client.submit(sum, [1, 2]).result(timeout=PATIENCE) == 3


def test_a_job_that_is_refused(slurm, settings, site):
    site(queue="nowhere")
    with pytest.raises(
        ConfigError, match=r"(?s)sbatch refuses.*[Ii]nvalid partition.*jobqueue\.slurm.*cluster check"
    ):
        make_client(settings(workers=1))
    assert active_client() is None
    assert not slurm.jobs()


def test_a_network_that_is_not_there(slurm, settings, site):
    site(interface="ib9")
    with pytest.raises(ConfigError, match=r"the scheduler cannot start: .*ib9.*jobqueue\.slurm\.interface"):
        make_client(settings(workers=1))
    assert active_client() is None


def test_jobs_that_end_without_a_worker(slurm, settings, site, monkeypatch):
    monkeypatch.setattr(batch, "POLL", 1.0)
    site(job_script_prologue=["echo no such module: python >&2; exit 1"])
    with pytest.raises(ConfigError, match=r"have ended.*logs are in .*slurm\.tls: false") as told:
        make_client(settings(workers=1))
    assert "no such module: python" in str(told.value)
    assert active_client() is None


def test_jobs_that_wait_in_the_queue(slurm, settings, site, monkeypatch, caplog):
    """More memory than a node has left: the queue's reason is told, and what to do at the end of patience."""
    caplog.set_level(logging.INFO, logger="dask_bkg")
    monkeypatch.setattr(batch, "POLL", 1.0)
    site(job_extra_directives=["--begin=now+1hour"])
    with pytest.raises(ConfigError, match=r"no worker has connected in 0\.05 min.*1 PENDING \(BeginTime\)"):
        make_client(settings(workers=1, wait="3 s"))
    assert "waiting for the first of 1 workers: 1 PENDING (BeginTime)" in caplog.text


def test_no_sbatch_here(settings, monkeypatch, tmp_path):
    """Of no need for a Slurm: a laptop."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        dask.config.set(
            {"jobqueue.slurm.cores": 1, "jobqueue.slurm.memory": "1GB", "jobqueue.slurm.interface": "lo"}
        ),
        pytest.raises(ConfigError, match=r"no command sbatch here.*login node"),
    ):
        make_client(settings())


def test_squeue_of_many_jobs_is_put_in_words(monkeypatch):
    class Cluster:
        workers = {i: type("Job", (), {"job_id": str(i)}) for i in range(4)}  # noqa: RUF012

    def squeue(command, **_):
        assert command[-1] == "0,1,2,3"
        listed = "PENDING (Priority)\nCOMPLETED (None)\nPENDING (Priority)\nRUNNING (None)\n"
        return subprocess.CompletedProcess(command, 0, listed, "")

    monkeypatch.setattr(batch.subprocess, "run", squeue)
    assert batch._job_states(Cluster) == "2 PENDING (Priority), 1 RUNNING (None)"
