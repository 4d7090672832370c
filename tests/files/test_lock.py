"""One job at a time: locks that are waited for, given back, taken over from killed jobs."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dask_bkg.errors import ArchiveError, StoreBusyError
from dask_bkg.files import Lock, locked, owner
from dask_bkg.files import lock as lock_module
from dask_bkg.files.lock import LOCK_NAME


def leave_lock(path: Path, age: float = 0.0, **holder) -> None:
    """The lock of another job, which showed some seconds ago that it is alive."""
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "since": "2026-01-01", "token": "theirs", **holder}))
    os.utime(path, (time.time() - age,) * 2)


COUNTING = """
import sys
from pathlib import Path
from dask_bkg.files import locked
for _ in range(40):
    with locked(sys.argv[1]):
        counter = Path(sys.argv[1], "counter")
        counter.write_text(str(int(counter.read_text()) + 1))
"""


def test_what_is_read_and_written_under_a_lock_is_not_lost(tmp_path):
    (tmp_path / "counter").write_text("0")
    jobs = [subprocess.Popen([sys.executable, "-c", COUNTING, str(tmp_path)]) for _ in range(3)]
    assert [job.wait(60) for job in jobs] == [0, 0, 0]
    assert (tmp_path / "counter").read_text() == "120"
    assert [path.name for path in tmp_path.iterdir()] == ["counter"]


def test_jobs_that_find_the_lock_of_a_killed_one_take_it_over_one_after_the_other(tmp_path):
    (tmp_path / "counter").write_text("0")
    leave_lock(tmp_path / LOCK_NAME, age=3600)
    jobs = [subprocess.Popen([sys.executable, "-c", COUNTING, str(tmp_path)]) for _ in range(4)]
    assert [job.wait(60) for job in jobs] == [0] * 4
    assert (tmp_path / "counter").read_text() == "160"
    assert [path.name for path in tmp_path.iterdir()] == ["counter"]


def test_a_lock_is_released_whatever_happens(tmp_path):
    with pytest.raises(KeyboardInterrupt), locked(tmp_path / "new"):
        raise KeyboardInterrupt
    assert list((tmp_path / "new").iterdir()) == []


def test_a_lock_of_another_job_is_waited_for_and_respected(tmp_path):
    with locked(tmp_path):
        with (
            pytest.raises(ArchiveError, match=r"Another job holds .*remove this file"),
            locked(tmp_path, timeout=0.2),
        ):
            pass
        assert len(list(tmp_path.iterdir())) == 1


def test_a_lock_of_a_job_that_was_killed_is_taken_over(tmp_path):
    lock = tmp_path / LOCK_NAME
    lock.write_text("somebody")
    os.utime(lock, (time.time() - 3600,) * 2)
    with locked(tmp_path, timeout=0):
        assert lock.read_text() != "somebody"
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_was_taken_over_is_left_to_its_new_owner(tmp_path):
    with locked(tmp_path):
        (tmp_path / LOCK_NAME).write_text("somebody")
    assert (tmp_path / LOCK_NAME).read_text() == "somebody"


def test_a_lock_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ArchiveError, match="cannot be written"), locked(tmp_path / "file"):
        pass


@pytest.fixture
def lock(tmp_path):
    return Lock(tmp_path / "runs.zarr.lock", "writes into runs.zarr")


def test_a_second_job_learns_at_once_who_holds_a_lock(lock):
    lock.acquire()
    other = Lock(lock.path, lock.what)
    with pytest.raises(
        StoreBusyError, match=rf"Another job writes into runs\.zarr: process {os.getpid()} on .* alive 0 s"
    ):
        other.acquire()
    other.release()  # it has none
    lock.check()
    lock.release()
    other.acquire()
    with pytest.raises(ArchiveError, match="taken over by another job"):
        lock.check()
    with pytest.raises(ArchiveError, match="taken over by another job"):
        lock.beat()


def test_a_lock_travels_with_tasks(lock):
    lock.acquire()
    there = pickle.loads(pickle.dumps(lock))
    there.check()
    lock.release()
    with pytest.raises(ArchiveError, match="taken over by another job, or removed"):
        there.check()


KILLED = """
import os, sys
from pathlib import Path
from dask_bkg.files import Lock
Lock(Path(sys.argv[1]), "").acquire()
os._exit(9)
"""


@pytest.mark.parametrize("short", [True, False], ids=["locked", "Lock"])
def test_the_lock_of_a_process_that_has_ended_here_is_taken_over_at_once(tmp_path, caplog, short):
    path = tmp_path / LOCK_NAME
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False).returncode == 9
    if short:
        with locked(tmp_path, timeout=0):
            assert path.exists()
    else:
        Lock(path, "").acquire()
    assert f"The job that held {path} has gone; its work is continued." in caplog.text


def test_another_machine_is_judged_by_its_signs_of_life(lock):
    leave_lock(lock.path, age=200, pid=2**22 + 1)
    with pytest.raises(StoreBusyError, match=r"process \d+ on elsewhere, since 2026-01-01, alive 2\d\d s ago"):
        lock.acquire()
    leave_lock(lock.path, age=301)
    lock.acquire()
    lock.check()


def test_a_lock_that_is_kept_alive_is_not_taken_over(lock, monkeypatch):
    monkeypatch.setattr(lock_module, "BEAT_EVERY", 0.05)
    lock.acquire()
    with lock.kept_alive():
        os.utime(lock.path, (0, 0))
        until = time.monotonic() + 60
        while lock.path.stat().st_mtime == 0:
            assert time.monotonic() < until, "no sign of life"
            time.sleep(0.05)
    assert time.time() - lock.path.stat().st_mtime < 60
    os.utime(lock.path, (0, 0))
    time.sleep(0.5)
    assert lock.path.stat().st_mtime == 0, "it goes on after the end of the block"


def test_a_job_that_gives_its_lock_back_and_ends_is_not_taken_for_a_killed_one(lock, monkeypatch):
    """A third job has the lock by the time at which the second one has found out that the first is no more."""
    first, third = Lock(lock.path, "writes"), Lock(lock.path, "writes")
    first.acquire()

    def ended(holder):
        monkeypatch.setattr(lock_module, "_is_dead", is_dead)
        first.release()
        third.acquire()
        return True

    is_dead = lock_module._is_dead
    monkeypatch.setattr(lock_module, "_is_dead", ended)
    monkeypatch.setattr(os, "rename", lambda *args: pytest.fail("the lock of the third is moved away"))
    with pytest.raises(StoreBusyError):
        lock.acquire()
    third.check()


def test_the_new_lock_of_a_job_that_was_faster_is_put_back(lock, monkeypatch):
    """Two jobs find the lock of a killed one; the later moves away the new lock of the first, and puts it back."""
    leave_lock(lock.path, age=3600)
    first, rename = Lock(lock.path, "writes"), os.rename

    def late(source, target):
        monkeypatch.undo()
        first.acquire()
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(StoreBusyError, match=f"process {os.getpid()}"):
        lock.acquire()
    first.check()
    assert [path.name for path in lock.path.parent.iterdir()] == [lock.path.name]


SLEEPING = "import sys, time; print(flush=True); time.sleep(120)"


@pytest.fixture
def living():
    """A process that holds nothing, and does not end by itself."""
    with subprocess.Popen([sys.executable, "-c", SLEEPING], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process
        process.kill()


def held_by(process, lock, age=0.0, **holder):
    held = {"host": owner.place(), "pid": process.pid, "start": owner.start_of(process.pid)}
    leave_lock(lock.path, age, **{**held, **holder})


@pytest.mark.parametrize("age", [1e6, -1e6])
def test_a_living_owner_here_keeps_its_lock_whatever_the_clocks_say(lock, living, age):
    held_by(living, lock, age)
    with pytest.raises(StoreBusyError, match=f"process {living.pid} on"):
        lock.acquire()


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells when a process has started")


@linux
def test_another_process_with_the_number_of_a_dead_owner_does_not_keep_its_lock(lock, living):
    held_by(living, lock, start="another boot 17")
    lock.acquire()
    lock.check()


@linux
def test_an_owner_that_was_killed_and_not_yet_waited_for_is_dead(lock, living):
    held_by(living, lock)
    living.kill()
    os.waitid(os.P_PID, living.pid, os.WEXITED | os.WNOWAIT)
    lock.acquire()
    lock.check()


@pytest.mark.parametrize(("age", "taken"), [(100, False), (400, True)])
@pytest.mark.parametrize("wrong", [-3600, 3600])
def test_the_clock_of_the_disk_counts_not_that_of_this_machine(lock, monkeypatch, age, taken, wrong):
    leave_lock(lock.path, age)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + wrong)
    if taken:
        lock.acquire()
        lock.check()
    else:
        with pytest.raises(StoreBusyError, match=r"on elsewhere.* alive 10\d s ago"):
            lock.acquire()
    assert [path.name for path in lock.path.parent.iterdir()] == [lock.path.name]


def test_waiting_is_said(lock, living, caplog, monkeypatch):
    monkeypatch.setattr(lock_module, "SAY_AFTER", 0.2)
    held_by(living, lock)
    with caplog.at_level("INFO"), pytest.raises(StoreBusyError):
        lock.acquire(0.6)
    assert [r.message for r in caplog.records] == [
        f"waiting for process {living.pid} on {owner.place()}, which writes into runs.zarr"
    ]
