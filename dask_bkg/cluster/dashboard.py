"""Where the dashboard of a cluster is, and how to see it from another machine."""

from __future__ import annotations

import getpass
import os
import socket
from urllib.parse import urlsplit

from distributed import Client
from distributed.comm import get_address_host

LOOPBACK = ("127.", "localhost", "::1", "inproc")


def dashboard_lines(client: Client) -> list[str]:
    """What to tell about the dashboard at the start of a job: its address, and a line for ``ssh`` where it is far."""
    link = client.dashboard_link
    if not link:
        return []
    address = str(client.scheduler.address) if client.scheduler is not None else ""
    host = "" if address.startswith("inproc") else get_address_host(address)
    port = urlsplit(link).port or 8787
    if not _is_here(host):
        return [f"dashboard: {link}", tunnel(host, port, _way_in())]
    # Dask names the scheduler's own host, where a dashboard that only this machine may see does not listen
    lines = [f"dashboard: http://127.0.0.1:{port}/status" if _answers(port) else f"dashboard: {link}"]
    if "SSH_CONNECTION" in os.environ or _way_in():
        lines.append(tunnel(socket.gethostname(), port, _way_in()))
    return lines


def tunnel(host: str, port: int, via: str = "") -> str:
    """The line that brings the dashboard of a machine to one's own, ready to paste there.

    Examples
    --------
    >>> tunnel("node17", 8787, "login1").replace(getpass.getuser(), "me")
    'ssh -N -L 8787:localhost:8787 -J me@login1 me@node17  # at your own machine; then http://localhost:8787/status'
    """
    user = _user()
    jump = f"-J {user}{via} " if via else ""
    line = f"ssh -N -L {port}:localhost:{port} {jump}{user}{host}"
    return f"{line}  # at your own machine; then http://localhost:{port}/status"


def _is_here(host: str) -> bool:
    """Whether a scheduler's host is the machine of this process."""
    if not host or host.startswith(LOOPBACK):
        return True
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
            # only an address of one's own can be listened at
            probe.bind((socket.gethostbyname(host) if ":" not in host else host, 0))
    except OSError:
        return False
    return True


def _answers(port: int) -> bool:
    """Whether somebody listens at a port of the loopback interface."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def _way_in() -> str:
    """Machine that a batch job was submitted from: its nodes are reached through it."""
    return os.environ.get("SLURM_SUBMIT_HOST", "") if "SLURM_JOB_ID" in os.environ else ""


def _user() -> str:
    try:
        return f"{getpass.getuser()}@"
    except (KeyError, OSError):
        # a container whose user has no name
        return ""
