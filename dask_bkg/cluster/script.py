"""Options of the batch job of a worker.

The options of the site (partition, account, cores, memory, walltime, prologue) are in ``jobqueue.slurm`` of Dask's
configuration and take precedence; here those are added that our tasks need.
"""

from __future__ import annotations

import re
import shlex
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
"""Directory to which a worker spills: on a disk of its node, expanded by the shell of the node."""

MARGIN = 60.0, 600.0
"""Smallest and largest time [s] between the end of all workers and the walltime (in between: a tenth of it)."""

STAGGER = 0.15
"""Spread of the lifetimes of workers, as a fraction of the walltime or lifetime: they must not end all at once."""

SITE = "partition (queue), account, cores, memory and walltime of a job are those of jobqueue.slurm in Dask's " \
    "configuration (~/.config/dask/jobqueue.yaml; deploy/jobqueue.yaml is one to start from)"  # fmt: skip


def job_options(settings: Slurm, directory: Path) -> dict[str, Any]:
    """Arguments of ``SLURMCluster``: those of our tasks in addition to those of the site.

    Parameters
    ----------
    settings
        The section ``slurm``.
    directory
        For logs of the jobs and certificates, unless the site sets one; on a disk that all nodes mount.

    Raises
    ------
    ConfigError
        If the site does not set the cores and the memory of a job, or a path cannot be written into a script.
    """
    site = {key.replace("_", "-"): value for key, value in dask.config.get("jobqueue.slurm", {}).items()}
    if not site.get("cores") or not site.get("memory"):
        raise ConfigError(f"cluster: slurm: cores and memory of a job are not set: {SITE}")
    logs = site.get("log-directory") or str(directory)
    shared = site.get("shared-temp-directory") or str(directory)
    for path in (logs, shared, site.get("local-directory") or "", site.get("python") or sys.executable):
        if not path.isprintable():
            raise ConfigError(f"cluster: slurm: a path with a line break or the like cannot be in a script: {path!r}")
    if "$" in str(directory):  # dask-jobqueue, and the shell of a node, would put a variable in its place
        raise ConfigError(f"cluster: slurm: a directory with a dollar sign cannot be in a script: {directory}")
    given = list(site.get("worker-extra-args") or [])
    scheduler = {"dashboard_address": DASHBOARD, **(site.get("scheduler-options") or {})}
    prologue = [f"export {name}=${{{name}:-{value}}}" for name, value in MALLOC.items()]
    listen: list[str] = []
    if not site.get("interface") and not {"host", "interface"} & scheduler.keys():
        # by default Dask listens on every network of a machine
        scheduler["host"] = get_ip()
        python = site.get("python") or shlex.quote(sys.executable)
        prologue.append(f"DASK_BKG_HOST=$({python} -c {_own_address(scheduler['host'])})")
        listen = ["--host", '"$DASK_BKG_HOST"']
    # a worker's own web pages have no encryption and no password: only its node may see them
    pages = [] if "--dashboard-address" in given else ["--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
    # a job that is requeued would have the name of one that Dask has given up
    directives, skip = ["--no-requeue"], []
    if shlex.quote(logs) != logs:
        # dask-jobqueue makes the directory, but does not quote it; to Slurm a percent sign begins a variable
        skip = ["#SBATCH -e", "#SBATCH -o"]
        place = shlex.quote(logs.replace("%", "%%"))
        directives += [f"--error={place}/worker-%J.err", f"--output={place}/worker-%J.out"]
    return {
        "processes": site["cores"],
        # what the site says may be a command (python), or have variables of the node (scratch)
        **({} if site.get("python") else {"python": shlex.quote(sys.executable)}),
        "local_directory": as_a_word(site.get("local-directory") or SCRATCH),
        "log_directory": logs,
        "shared_temp_directory": shared,
        "job_extra_directives": [*(site.get("job-extra-directives") or []), *directives],
        **({"job_directives_skip": [*(site.get("job-directives-skip") or []), *skip]} if skip else {}),
        "job_script_prologue": [*prologue, *(site.get("job-script-prologue") or [])],
        "worker_extra_args": [*given, *listen, *pages, *_lifetime(given, site.get("walltime"), settings)],
        "scheduler_options": scheduler,
        **({"security": True, "protocol": "tls://"} if settings.tls else {}),
    }  # fmt: skip


def as_a_word(path: str) -> str:
    """A path as one word of the shell, which expands the variables in it; those and quotes are the site's.

    Examples
    --------
    >>> print(as_a_word("/data/a b;c"), as_a_word("$SCRATCH/a b"), as_a_word("~/logs"), as_a_word('"$SCRATCH/a b"'))
    '/data/a b;c' "$SCRATCH/a b" ~/logs "$SCRATCH/a b"
    """
    if path.startswith(("~", '"')):
        return path
    return f'"{path}"' if "$" in path and '"' not in path else shlex.quote(path)


def _own_address(other: str) -> str:
    """Program that prints the address of the network through which a machine reaches another one."""
    code = f"import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.connect(('{other}', 9)); " \
        "print(s.getsockname()[0])"  # fmt: skip
    return f'"{code}"'


def _lifetime(given: list[str], walltime: str | None, settings: Slurm) -> list[str]:
    """Arguments with which a worker ends, after moving its results to others, before its job is killed."""
    ends = lifetime_seconds(walltime, settings)
    if ends is None or "--lifetime" in given:
        return []
    return ["--lifetime", f"{ends[0]:.0f}s", "--lifetime-stagger", f"{ends[1]:.0f}s"]


def lifetime_seconds(walltime: str | None, settings: Slurm) -> tuple[float, float] | None:
    """Lifetime of a worker and its spread [s]; None without a limit.

    Raises
    ------
    ConfigError
        If workers would not end before the walltime.

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
    """Seconds of a walltime in the formats of SLURM; None for no limit.

    Raises
    ------
    ConfigError
        If it is no time.

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
