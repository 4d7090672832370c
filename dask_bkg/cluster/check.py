"""Whether a worker can do a job: its versions, the archive and the output as it sees them, its scratch disk."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from distributed import Client

from dask_bkg.config import Config

PACKAGES = ("dask_bkg", "dask", "distributed", "msgpack", "numpy", "scipy", "astropy", "xarray", "zarr", "gammapy")
"""Packages whose versions must agree."""

NETWORK = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb", "afs", "panfs", "glusterfs", "fuse.sshfs")
"""File systems that are too slow for scratch."""

PROBE = b"dask_bkg was here\n"


@dataclass(frozen=True)
class Finding:
    """Result of one check: whether it passed, and a description, or the problem and its remedy."""

    right: bool
    words: str

    def __str__(self) -> str:
        return f"{'ok     ' if self.right else 'PROBLEM'}  {self.words}"


def one_worker(config: Config) -> Config:
    """The configuration with a cluster of one worker."""
    few = {
        "config": config.config.model_copy(update={"njobs": 1}),
        "slurm": config.slurm.model_copy(update={"workers": 1, "min_workers": None}),
    }
    return config.model_copy(update=few)


def check_worker(client: Client, config: Config) -> list[Finding]:
    """Check one worker of a cluster by functions that run on it, and compare with this process.

    Parameters
    ----------
    client
        Client of a cluster that has a worker.
    config
        The configuration of the job.

    Returns
    -------
    findings
        One for each check.
    """
    worker = next(iter(client.nthreads()))
    versions = _versions()
    there = client.run(versions, PACKAGES, workers=[worker])[worker]
    findings = list(_compared(versions(PACKAGES), there))
    if not there["dask_bkg"]:
        return findings
    # the following functions are imported by the worker
    findings.append(_scratch(*client.run(_scratch_on_worker, workers=[worker])[worker]))
    store = [config.store_path.parent] if config.run_store.path or config.io.results_dir else []
    read, written = (config.io.search_datastore, config.io.in_dir), (config.io.out_dir, config.io.results_dir, *store)
    for paths, check in ((read, _archive), (written, _output)):
        findings += [check(client, worker, path) for path in dict.fromkeys(Path(p).absolute() for p in paths if p)]
    return findings


def _versions() -> Callable[[tuple[str, ...]], dict[str, str]]:
    """Function that returns versions of packages (empty if not importable) and of Python, host and executable.

    A local function is sent by value: the worker need not have dask_bkg.
    """

    def versions(packages: tuple[str, ...]) -> dict[str, str]:
        import importlib
        import platform
        import sys

        found = {}
        for name in packages:
            try:
                found[name] = str(getattr(importlib.import_module(name), "__version__", "?"))
            except ImportError:
                found[name] = ""
        host, python = platform.node(), platform.python_version()
        return {**found, "python": python, "host": host, "executable": sys.executable}

    return versions


def _compared(here: dict[str, str], there: dict[str, str]) -> Iterator[Finding]:
    """Versions of the driver and of a worker."""
    yield Finding(True, f"a worker runs on {there['host']}: {there['executable']}, Python {there['python']}")
    names = [name for name in here if name not in ("host", "executable") and here[name] != there[name]]
    for name in names:
        yield Finding(
            False,
            f"{name} is {there[name] or 'missing'} on the worker and {here[name]} here: run both in the same "
            "environment (jobqueue.slurm.python, and job-script-prologue for modules or conda)",
        )
    if not names:
        yield Finding(True, f"same versions here and on the worker: {', '.join(f'{n} {there[n]}' for n in PACKAGES)}")


def _archive(client: Client, worker: str, path: Path) -> Finding:
    """Whether a worker sees the same files of an archive as this process."""
    here, there = _files(path), client.run(_files, path, workers=[worker])[worker]
    if not here:
        return Finding(False, f"{path} has no files here: check io.search_datastore and io.in_dir")
    if here != there:
        what = "does not see" if not there else "sees other files in"
        return Finding(
            False, f"the worker {what} {path}: put the archive on a disk that all nodes mount at the same path"
        )
    return Finding(True, f"the worker sees {path} as it is here")


def _files(path: Path) -> dict[str, int]:
    """Files of a directory (without subdirectories) and their sizes; empty if it cannot be read."""
    try:
        return {entry.name: entry.stat().st_size for entry in os.scandir(path)}
    except OSError:
        return {}


def _output(client: Client, worker: str, path: Path) -> Finding:
    """Whether a worker can write to a directory, and this process reads the same there."""
    probe = path / f".dask_bkg-check-{secrets.token_hex(4)}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        error_there = client.run(_write, probe, workers=[worker])[worker]
        if error_there:
            return Finding(
                False, f"the worker cannot write to {path}: {error_there}; give it rights, or use another directory"
            )
        if not probe.exists() or probe.read_bytes() != PROBE:
            return Finding(
                False, f"files that the worker writes to {path} are not visible here: use a disk that both mount"
            )
        return Finding(True, f"the worker can write to {path}")
    except OSError as error:
        return Finding(False, f"{path} cannot be written here: {error}")
    finally:
        client.run(_remove, probe, workers=[worker])
        _remove(probe)


def _write(probe: Path) -> str:
    """Write a file; the error message, empty without an error."""
    try:
        probe.write_bytes(PROBE)
    except OSError as error:
        return str(error)
    return ""


def _remove(probe: Path) -> None:
    with contextlib.suppress(OSError):
        probe.unlink(missing_ok=True)


def _scratch_on_worker(dask_worker: Any) -> tuple[str, str, int]:
    """The directory to which a worker spills, the kind of its file system, free bytes."""
    directory = dask_worker.local_directory
    return directory, file_system(directory), shutil.disk_usage(directory).free


def file_system(path: str) -> str:
    """Kind of the file system of a path, empty if unknown."""
    real = os.path.realpath(path)
    mounts = [
        part
        for part in psutil.disk_partitions(all=True)
        if os.path.commonpath([part.mountpoint, real]) == part.mountpoint
    ]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else ""


def _scratch(directory: str, kind: str, free: int) -> Finding:
    place = f"{directory} ({kind or 'unknown file system'}, {free / 1e9:.0f} GB free)"
    if kind.startswith(NETWORK):
        return Finding(
            False,
            f"the worker's scratch is on a network disk: {place}; set TMPDIR, or jobqueue.slurm.local-directory, to "
            "a disk of the node",
        )
    return Finding(True, f"the worker's scratch: {place}")
