"""The address of the dashboard of a cluster, and how to open it on another machine."""

from __future__ import annotations

import getpass
import os
import socket
from urllib.parse import urlsplit

from distributed import Client
from distributed.comm import get_address_host

LOOPBACK = ("127.", "localhost", "::1", "inproc")


def dashboard_lines(client: Client) -> list[str]:
    """Lines to report at the start of a job: address of the dashboard, and an ``ssh`` tunnel where it is remote."""
    link = client.dashboard_link
    if not link:
        return []
    address = str(client.scheduler.address) if client.scheduler is not None else ""
    host = "" if address.startswith("inproc") else get_address_host(address)
    port = urlsplit(link).port or 8787
    if not _is_here(host):
        return [f"dashboard: {link}", tunnel(host, port, _way_in())]
    # Dask names the scheduler's host, but a dashboard that only this machine may see listens on the loopback address
    lines = [f"dashboard: http://127.0.0.1:{port}/status" if _answers(port) else f"dashboard: {link}"]
    if "SSH_CONNECTION" in os.environ or _way_in():
        lines.append(tunnel(socket.gethostname(), port, _way_in()))
    return lines


def tunnel(host: str, port: int, via: str = "") -> str:
    """Shell command that makes the dashboard of a host available on the user's own machine.

    Examples
    --------
    >>> tunnel("node17", 8787, "login1").replace(getpass.getuser(), "me")
    'ssh -N -L 8787:localhost:8787 -J me@login1 me@node17  # at your own machine; then http://localhost:8787/status'
    """
    try:
        user = f"{getpass.getuser()}@"
    except (KeyError, OSError):
        # a container whose user has no name
        user = ""
    jump = f"-J {user}{via} " if via else ""
    line = f"ssh -N -L {port}:localhost:{port} {jump}{user}{host}"
    return f"{line}  # at your own machine; then http://localhost:{port}/status"


def _is_here(host: str) -> bool:
    """Whether a scheduler's host is the machine of this process."""
    if not host or host.startswith(LOOPBACK):
        return True
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
            # only an address of this machine can be bound
            probe.bind((socket.gethostbyname(host) if ":" not in host else host, 0))
    except OSError:
        return False
    return True


def _answers(port: int) -> bool:
    """Whether a program listens at a port of the loopback interface."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def _way_in() -> str:
    """Machine from which a batch job was submitted: its nodes are reached through it."""
    return os.environ.get("SLURM_SUBMIT_HOST", "") if "SLURM_JOB_ID" in os.environ else ""
