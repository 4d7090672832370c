"""`dask-bkg cluster check`: what is wrong is said in words; and the certificate for schedulers started by hand."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
from click.testing import CliRunner
from distributed import Client, LocalCluster

from dask_bkg.cli import main
from dask_bkg.cluster import check
from dask_bkg.cluster.check import check_worker, file_system, one_worker
from dask_bkg.config import parse_config
from dask_bkg.config.yaml import dump_yaml

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture
def found(client, job, four_runs):
    """What is found: ``found()``, ``{right: [words, ...]}``."""

    def look(**sections):
        findings = check_worker(client, parse_config(job(four_runs, **sections)))
        return {right: [f.words for f in findings if f.right == right] for right in (True, False)}

    return look


def test_all_is_well(found, four_runs, tmp_path):
    words = found()
    assert words[False] == []
    assert "same versions here and on the worker: dask_bkg" in words[True][1]
    assert any("scratch" in line and "GB free" in line for line in words[True])
    assert f"the worker sees {four_runs} as it is here" in words[True]
    assert f"the worker can write to {tmp_path / 'out'}" in words[True]
    assert not list((tmp_path / "out").rglob(".dask_bkg-check*"))


@pytest.fixture
def on_the_worker(monkeypatch):
    """Other versions there than here: ``on_the_worker(numpy="0.9")``; the worker is a thread of this process."""
    real = check._versions()

    def other(**changes):
        def versions(packages):
            here = threading.current_thread() is threading.main_thread()
            return {**real(packages), **({} if here else changes)}

        monkeypatch.setattr(check, "_versions", lambda: versions)

    return other


def test_another_version(found, on_the_worker):
    on_the_worker(numpy="0.9", zarr="", python="3.1")
    problems = found()[False]
    assert problems[0].startswith(f"numpy is 0.9 on the worker and {np.__version__} here")
    assert problems[1].startswith("zarr is missing on the worker")
    assert problems[2].startswith("python is 3.1 on the worker")
    assert all("job-script-prologue" in line for line in problems)


def test_no_dask_bkg_on_the_worker(found, on_the_worker):
    """Nothing more is tried, as nothing of ours can be run there."""
    on_the_worker(dask_bkg="")
    words = found()
    assert len(words[False]) == 1
    assert words[False][0].startswith("dask_bkg is missing on the worker")
    assert len(words[True]) == 1


def test_an_archive_that_the_worker_does_not_see(found, monkeypatch):
    seen = iter([{"a": 1}, {}])
    monkeypatch.setattr(check, "_files", lambda path: next(seen))
    assert "put the archive on a disk that all nodes mount at the same path" in found()[False][0]


def test_a_datastore_that_is_empty(found, tmp_path):
    (tmp_path / "empty").mkdir()
    problem = found(io={"search_datastore": str(tmp_path / "empty")})[False][0]
    assert "empty has no files here: check io.search_datastore" in problem


def test_an_output_that_cannot_be_written(found, monkeypatch, tmp_path):
    monkeypatch.setattr(check, "_write", lambda probe: "[Errno 30] Read-only file system")
    problems = found()[False]
    assert f"the worker cannot write to {tmp_path / 'out'}: [Errno 30] Read-only file system" in problems[0]


def test_an_output_on_another_disk(found, monkeypatch):
    monkeypatch.setattr(check, "_write", lambda probe: "")
    assert "are not visible here: use a disk that both mount" in found()[False][0]


def test_an_output_that_cannot_be_made(found, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be written here" in found(io={"out_dir": str(tmp_path / "file" / "out")})[False][0]


@pytest.mark.parametrize(("kind", "right"), [("nfs4", False), ("lustre", False), ("ext4", True), ("", True)])
def test_scratch_on_a_network_disk(kind, right):
    finding = check._scratch("/here", kind, 10**9)
    assert finding.right == right
    assert "/here" in finding.words


def test_the_kind_of_a_file_system():
    assert file_system("/proc/self") == "proc"


def test_one_worker():
    config = one_worker(parse_config({"config": {"njobs": 8}, "slurm": {"workers": 9, "min_workers": 3}}))
    assert (config.config.njobs, config.slurm.workers, config.slurm.min_workers) == (1, 1, None)


def test_the_command(job, four_runs, tmp_path):
    """On a local cluster; a problem is an exit status too."""
    path = tmp_path / "config.yaml"
    for out, status in (("out", 0), ("file/out", 1)):
        (tmp_path / "file").touch()
        path.write_text(dump_yaml(job(four_runs, cluster="local", io={"out_dir": str(tmp_path / out)})))
        done = CliRunner().invoke(main, ["cluster", "check", str(path)])
        assert done.exit_code == status, done.output
        assert ("PROBLEM" in done.output) == bool(status)
    done = CliRunner().invoke(main, ["cluster", "check", str(path), "--cluster", "threads"])
    assert done.exit_code == 0
    assert "nothing to check" in done.output


def test_the_certificate_in_a_shell(tmp_path):
    """What the command prints is taken by a shell, and by Dask; a second one replaces the first."""
    directory = tmp_path / "a b"
    for _ in range(2):
        printed = CliRunner().invoke(main, ["cluster", "certificate", str(directory)]).output
    assert (directory / "dask-tls.pem").stat().st_mode & 0o777 == 0o600
    code = "from distributed.security import Security as S; print(S().get_connection_args('client')['ssl_context'])"
    done = subprocess.run(
        ["bash", "-c", f'{printed}\nexec "$0" -c "{code}"', sys.executable], capture_output=True, text=True
    )
    assert "SSLContext" in done.stdout, done.stderr


def test_a_certificate_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    done = CliRunner().invoke(main, ["cluster", "certificate", str(tmp_path / "file" / "keys")])
    assert done.exit_code == 1
    assert "the certificate cannot be written" in done.stderr
