"""A command of ours in a terminal of its own, and all processes that it has started, found by a mark."""

from __future__ import annotations

import os
import pty
import re
import signal
import sys
import termios
import threading
import time
import uuid
from pathlib import Path

MARK = "DASK_BKG_TEST_MARK"


class PtyJob:
    """``python -m dask_bkg ...`` as the only program of a new terminal; killed at the end of the ``with`` block."""

    def __init__(self, *arguments: object, environment: dict[str, str] | None = None, command: tuple = ()) -> None:
        self.mark = uuid.uuid4().hex
        self._text = b""
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.environ.update({**(environment or {}), MARK: self.mark})
            command = command or ("-m", "dask_bkg")
            os.execv(sys.executable, [sys.executable, *command, *map(str, arguments)])
        termios.tcsetwinsize(self._terminal, (50, 200))  # bars need room
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> PtyJob:
        return self

    def __exit__(self, *_) -> None:
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)

    def _read(self) -> None:
        try:
            while part := os.read(self._terminal, 4096):
                self._text += part
        except OSError:  # Linux: the last program has closed it
            pass

    @property
    def text(self) -> str:
        return self._text.decode(errors="replace")

    def await_text(self, pattern: str, seconds: float = 120) -> None:
        until = time.monotonic() + seconds
        while not re.search(pattern, self.text):
            assert self._reader.is_alive(), f"it has ended, without {pattern}: {self.text}"
            assert time.monotonic() < until, f"no {pattern} in {self.text}"
            time.sleep(0.01)

    def press_ctrl_c(self) -> None:
        """The terminal sends SIGINT to its group of processes in the foreground."""
        os.write(self._terminal, b"\x03")

    def signal_group(self, number: int) -> None:
        os.killpg(self.pid, number)

    def end(self, seconds: float) -> int:
        """Exit status, negative for the signal that has killed the process; an error after some time."""
        until = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < until, f"still there: {self.text}"
            time.sleep(0.01)

    def processes(self) -> list[int]:
        """Numbers of the processes that have the mark, and run."""
        found, mark = [], f"{MARK}={self.mark}".encode()
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (directory / "environ").read_bytes().split(b"\0"):
                    found.append(int(directory.name))
            except OSError:  # it has ended, or is another user's
                continue
        return found

    def await_no_process(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while left := self.processes():
            assert time.monotonic() < until, f"{len(left)} processes are left"
            time.sleep(0.02)
