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
"""What tasks and their messages are made with."""

NETWORK = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb", "afs", "panfs", "glusterfs", "fuse.sshfs")
"""File systems that are no place for scratch."""

PROBE = b"dask_bkg was here\n"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: whether it is right, and in words what it is, or what is wrong and what to do."""

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
    """Look at one worker of a cluster from the inside, and compare with this process.

    Parameters
    ----------
    client
        Connected with a cluster that has a worker.
    config
        The job that it is to do.
    """
    worker = next(iter(client.nthreads()))
    versions = _versions()
    there = client.run(versions, PACKAGES, workers=[worker])[worker]
    findings = list(_compared(versions(PACKAGES), there))
    if not there["dask_bkg"]:
        return findings
    # from here on the worker runs functions of ours by their names
    findings.append(_scratch(client.run(_scratch_there, workers=[worker])[worker]))
    findings += [_archive(client, worker, path) for path in _archives(config)]
    findings += [_output(client, worker, path) for path in _outputs(config)]
    return findings


# -- versions --------------------------------------------------------------------------------------------------


def _versions() -> Callable[[tuple[str, ...]], dict[str, str]]:
    """Function that tells versions of packages, empty where one cannot be imported; of Python, and where this is.

    A function of a function is sent whole: to a worker that may have no dask_bkg.
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
            f"{name} is {there[name] or 'not there'} on the worker and {here[name]} here: let both run the same "
            "environment (jobqueue.slurm.python, and job-script-prologue for modules or conda)",
        )
    if not names:
        yield Finding(True, f"same versions here and there: {', '.join(f'{n} {there[n]}' for n in PACKAGES)}")


# -- places ----------------------------------------------------------------------------------------------------


def _archives(config: Config) -> list[Path]:
    return list(dict.fromkeys(Path(p).absolute() for p in (config.io.search_datastore, config.io.in_dir) if p))


def _outputs(config: Config) -> list[Path]:
    store = [config.store_path.parent] if config.run_store.path or config.io.results_dir else []
    written = [config.io.out_dir, config.io.results_dir, *store]
    return list(dict.fromkeys(Path(p).absolute() for p in written if p))


def _archive(client: Client, worker: str, path: Path) -> Finding:
    """Whether a worker sees the same files of an archive."""
    here, there = _files(path), client.run(_files, path, workers=[worker])[worker]
    if not here:
        return Finding(False, f"{path} has no files here: check io.search_datastore and io.in_dir")
    if here != there:
        what = "does not see" if not there else "sees other files in"
        return Finding(False, f"the worker {what} {path}: put the archive on a disk that all nodes mount alike")
    return Finding(True, f"the worker sees {path} as it is here")


def _files(path: Path) -> dict[str, int]:
    """Files directly in a directory (the index files are there) and their sizes."""
    try:
        return {entry.name: entry.stat().st_size for entry in os.scandir(path)}
    except OSError:
        return {}


def _output(client: Client, worker: str, path: Path) -> Finding:
    """Whether a worker can write to a place, and this process sees it."""
    probe = path / f".dask_bkg-check-{secrets.token_hex(4)}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        said = client.run(_write, probe, workers=[worker])[worker]
        if said:
            return Finding(False, f"the worker cannot write to {path}: {said}; give it rights, or take another place")
        if not probe.exists() or probe.read_bytes() != PROBE:
            return Finding(False, f"what the worker writes to {path} is not seen here: it is another disk there")
        return Finding(True, f"the worker can write to {path}")
    except OSError as error:
        return Finding(False, f"{path} cannot be written here: {error}")
    finally:
        client.run(_remove, probe, workers=[worker])
        _remove(probe)


def _write(probe: Path) -> str:
    """Write a file; what is wrong, if anything."""
    try:
        probe.write_bytes(PROBE)
    except OSError as error:
        return str(error)
    return ""


def _remove(probe: Path) -> None:
    with contextlib.suppress(OSError):
        probe.unlink(missing_ok=True)


# -- scratch ---------------------------------------------------------------------------------------------------


def _scratch_there(dask_worker: Any) -> tuple[str, str, int]:
    """The directory that a worker spills to, the kind of its file system, bytes that are free."""
    directory = dask_worker.local_directory
    return directory, file_system(directory), shutil.disk_usage(directory).free


def file_system(path: str) -> str:
    """Kind of the file system that a path is on, empty where that cannot be told."""
    real = os.path.realpath(path)
    mounts = [
        part
        for part in psutil.disk_partitions(all=True)
        if os.path.commonpath([part.mountpoint, real]) == part.mountpoint
    ]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else ""


def _scratch(found: tuple[str, str, int]) -> Finding:
    directory, kind, free = found
    told = f"{directory} ({kind or 'unknown file system'}, {free / 1e9:.0f} GB free)"
    if kind.startswith(NETWORK):
        return Finding(
            False,
            f"the worker's scratch is on a network disk: {told}; set TMPDIR, or jobqueue.slurm.local-directory, to a "
            "disk of the node",
        )
    return Finding(True, f"the worker's scratch: {told}")
