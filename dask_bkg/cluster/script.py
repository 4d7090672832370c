"""What the batch job of a worker is started with.

What the site wants of a job (partition, account, cores, memory, walltime, prologue) is in ``jobqueue.slurm`` of
Dask's own configuration, and whatever is said there wins; this adds what our tasks need of a job.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import dask
from dask.utils import parse_timedelta
from distributed.utils import get_ip

from dask_bkg.cluster.local import DASHBOARD, MALLOC
from dask_bkg.config import Slurm
from dask_bkg.errors import ConfigError

SCRATCH = '"${SLURM_TMPDIR:-${TMPDIR:-/tmp}}"'
"""Where a worker puts what does not fit into its memory: a disk of its own node, as the node's shell knows it."""

MARGIN = 60.0, 600.0
"""Least and most seconds before the walltime when all workers of a job have left (in between: a tenth of it)."""

STAGGER = 0.15
"""Workers that start together leave at different times: up to this part of the walltime, or lifetime, apart."""

SITE = "partition (queue), account, cores, memory and walltime of a job are those of jobqueue.slurm in Dask's " \
    "configuration (~/.config/dask/jobqueue.yaml; deploy/jobqueue.yaml is one to start from)"  # fmt: skip


def job_options(settings: Slurm, directory: Path) -> dict[str, Any]:
    """Arguments of ``SLURMCluster``: what a job needs beside what the site says.

    Parameters
    ----------
    settings
        The section ``slurm``.
    directory
        Where logs of the jobs, and certificates, go if the site does not say it: on a disk that all nodes see.

    Raises
    ------
    ConfigError
        If the site does not say the cores and the memory of a job.
    """
    site = {key.replace("_", "-"): value for key, value in dask.config.get("jobqueue.slurm", {}).items()}
    if not site.get("cores") or not site.get("memory"):
        raise ConfigError(f"cluster: slurm: it is not said how many cores and how much memory a job has: {SITE}")
    given = list(site.get("worker-extra-args") or [])
    scheduler = {"dashboard_address": DASHBOARD, **(site.get("scheduler-options") or {})}
    prologue = [f"export {name}=${{{name}:-{value}}}" for name, value in MALLOC.items()]
    listen: list[str] = []
    if not site.get("interface") and not {"host", "interface"} & scheduler.keys():
        # without a word on it Dask listens on every network that a machine has
        scheduler["host"] = get_ip()
        python = site.get("python") or sys.executable
        prologue.append(f"DASK_BKG_HOST=$({python} -c {_own_address(scheduler['host'])})")
        listen = ["--host", '"$DASK_BKG_HOST"']
    return {
        "processes": site["cores"],
        "local_directory": site.get("local-directory") or SCRATCH,
        "log_directory": site.get("log-directory") or str(directory),
        "shared_temp_directory": site.get("shared-temp-directory") or str(directory),
        # a job that is put back into the queue comes with the name of one that was given up
        "job_extra_directives": [*(site.get("job-extra-directives") or []), "--no-requeue"],
        "job_script_prologue": [*prologue, *(site.get("job-script-prologue") or [])],
        "worker_extra_args": [*given, *listen, *_pages(given), *_lifetime(given, site.get("walltime"), settings)],
        "scheduler_options": scheduler,
        **({"security": True, "protocol": "tls://"} if settings.tls else {}),
    }  # fmt: skip


def _own_address(other: str) -> str:
    """Program that prints the address of the network through which a machine reaches another one."""
    code = f"import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.connect(('{other}', 9)); " \
        "print(s.getsockname()[0])"  # fmt: skip
    return f'"{code}"'


def _pages(given: list[str]) -> list[str]:
    """A worker's own web pages need no encryption and no password: its node alone sees them."""
    return [] if "--dashboard-address" in given else ["--no-dashboard", "--dashboard-address", "127.0.0.1:0"]


def _lifetime(given: list[str], walltime: str | None, settings: Slurm) -> list[str]:
    """Arguments that let a worker leave, with what it holds handed over, before its job is killed."""
    ends = lifetime_seconds(walltime, settings)
    if ends is None or "--lifetime" in given:
        return []
    return ["--lifetime", f"{ends[0]:.0f}s", "--lifetime-stagger", f"{ends[1]:.0f}s"]


def lifetime_seconds(walltime: str | None, settings: Slurm) -> tuple[float, float] | None:
    """Lifetime of a worker and how much it varies [s]; None where jobs end by themselves.

    Raises
    ------
    ConfigError
        If workers would not have left before the walltime is over.

    Examples
    --------
    >>> lifetime_seconds("01:00:00", Slurm())   # between 36 and 54 minutes
    (2700.0, 540.0)
    >>> lifetime_seconds("01:00:00", Slurm(lifetime="10 min"))
    (600.0, 90.0)
    """
    limit = walltime_seconds(walltime)
    if settings.lifetime is None:
        if limit is None:
            return None
        margin = min(max(limit / 10, MARGIN[0]), MARGIN[1], limit / 4)
        return (1 - STAGGER) * limit - margin, STAGGER * limit
    lifetime = 60 * settings.lifetime
    if limit is not None and (1 + STAGGER) * lifetime > limit:
        raise ConfigError(
            f"slurm.lifetime ({settings.lifetime:g} min, and up to {STAGGER:.0%} more) must end before the walltime "
            f"of a job ({walltime}), which is that of jobqueue.slurm in Dask's configuration"
        )
    return lifetime, STAGGER * lifetime


def walltime_seconds(text: str | None) -> float | None:
    """Seconds of a walltime as SLURM writes them; None for no limit.

    Examples
    --------
    >>> walltime_seconds("00:30:00"), walltime_seconds("1-12"), walltime_seconds("90"), walltime_seconds("2:30")
    (1800.0, 129600.0, 5400.0, 150.0)
    """
    if text is None or str(text).upper() in ("UNLIMITED", "INFINITE"):
        return None
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(text).strip())
    if found is None:
        try:
            return float(parse_timedelta(text))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"jobqueue.slurm.walltime must be a time as in '01:30:00', got {text!r}") from error
    days, *parts = (None if part is None else int(part) for part in found.groups())
    if days is None and parts[2] is None:
        # minutes, or minutes:seconds
        parts = [0, *parts[:2]]
    hours, minutes, seconds = (part or 0 for part in parts)
    return float(((days or 0) * 24 + hours) * 3600 + minutes * 60 + seconds)
