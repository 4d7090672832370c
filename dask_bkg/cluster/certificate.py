"""A temporary certificate, in a file, for a scheduler and workers that are started by hand.

Only those who can read the file can connect, and the connections are encrypted.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from distributed.security import Security

from dask_bkg.errors import ConfigError

NAME = "dask-tls.pem"


def write_certificate(directory: str | os.PathLike) -> Path:
    """Write a new key and certificate into one file that only its owner can read; its path.

    Raises
    ------
    ConfigError
        If the file cannot be written, or ``cryptography`` is not installed.
    """
    try:
        security = Security.temporary()
    except ImportError as error:
        raise ConfigError(f"{error}: install it with `pip install cryptography`") from error
    path = Path(directory).absolute() / NAME
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{security.tls_client_key}{security.tls_ca_file}")
    except OSError as error:
        raise ConfigError(f"the certificate cannot be written: {error}; give another directory") from error
    return path


def environment_of(certificate: Path) -> str:
    """Shell commands after which scheduler, workers and jobs of Dask use a certificate."""
    lines = [
        f"export DASK_DISTRIBUTED__COMM__TLS__{part}={shlex.quote(str(certificate))}"
        for role in ("SCHEDULER", "WORKER", "CLIENT")
        for part in (f"{role}__CERT", f"{role}__KEY")
    ]
    lines.append(f"export DASK_DISTRIBUTED__COMM__TLS__CA_FILE={shlex.quote(str(certificate))}")
    lines.append("export DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=True")
    return "\n".join(lines) + "\n"
