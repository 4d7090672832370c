"""Written whole or not at all: faults of disks, directories and jobs that are killed."""

from __future__ import annotations

import errno
import gzip
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dask_bkg.errors import ArchiveError
from dask_bkg.files import atomic_directory, atomic_write, inside, owner, read, remove_leftovers, write_pieces
from dask_bkg.files.write import temporary_path


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def run_python(code: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_the_target_appears_only_at_the_end(tmp_path):
    target = tmp_path / "deep" / "run.fits.gz"

    def write(path):
        path.write_bytes(b"new")
        assert path.parent == target.parent
        assert path.name.startswith(".")
        assert path.name.endswith(".fits.gz")
        assert not target.exists()

    atomic_write(target, write)
    assert target.read_bytes() == b"new"
    assert names(target.parent) == ["run.fits.gz"]


def test_an_error_in_the_block_leaves_the_old_file_and_no_leftover(tmp_path):
    target = tmp_path / "run.fits"
    target.write_bytes(b"old")
    with pytest.raises(TypeError):
        atomic_write(target, lambda path: write_pieces(path, [b"half", "not bytes"], compress=False))
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["run.fits"]


def test_two_writers_of_one_target_do_not_meet(tmp_path):
    target = tmp_path / "a"

    def write(first):
        first.write_bytes(b"1")
        atomic_write(target, lambda second: second.write_bytes(b"2"))
        assert (first.read_bytes(), target.read_bytes()) == (b"1", b"2")

    atomic_write(target, write)
    assert target.read_bytes() == b"1"
    assert names(tmp_path) == ["a"]


KILLED = """
import os, signal, sys, time
from dask_bkg.files import atomic_directory, atomic_write
target, moment = sys.argv[1:]

def here(name):
    if name == moment:
        print("here", flush=True)
        time.sleep(60)

fsync, replace = os.fsync, os.replace
os.fsync = lambda handle: (here("before the flush"), fsync(handle))
os.replace = lambda *paths: (here("before the rename"), replace(*paths), here("after the rename"))

def write(path):
    path.write_bytes(b"ne")
    here("half")
    path.write_bytes(b"new")

if moment == "directory":
    with atomic_directory(target + ".zarr") as path:
        os.makedirs(path / "counts")
        here("directory")
atomic_write(target, write)
"""


@pytest.mark.parametrize("moment", ["half", "before the flush", "before the rename", "after the rename", "directory"])
def test_what_a_killed_job_leaves_is_cleared_away_when_it_is_dead(tmp_path, moment):
    """Not while it lives, and not by its age: only the process knows how long a write takes."""
    target = tmp_path / "data" / "run.fits"
    target.parent.mkdir()
    target.write_bytes(b"old")
    command = [sys.executable, "-c", KILLED, str(target), moment]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "here\n"
        assert remove_leftovers(tmp_path) == []
        left = len(names(target.parent)) - 1
        assert left == (moment != "after the rename")
        process.kill()
        process.wait()
        assert len(remove_leftovers(tmp_path)) == left
    assert target.read_bytes() == (b"new" if moment == "after the rename" else b"old")
    assert names(target.parent) == ["run.fits"]


def test_what_a_process_of_another_machine_left_goes_by_its_age(tmp_path, monkeypatch):
    own = temporary_path(tmp_path / "a")
    monkeypatch.setattr(owner, "place", lambda: "another machine")
    owner.mark_of.cache_clear()
    other = temporary_path(tmp_path / "b")
    monkeypatch.undo()
    owner.mark_of.cache_clear()
    for path in (own, other):
        path.touch()
    assert remove_leftovers(tmp_path) == []
    os.utime(other, (0, 0))
    assert remove_leftovers(tmp_path) == [other]


def test_a_process_that_took_the_number_of_a_dead_one_does_not_keep_its_files(tmp_path):
    path, mark = temporary_path(tmp_path / "a"), owner.mark_of(os.getpid())
    left = path.with_name(path.name.replace(mark, mark[:6] + f"{int(mark[6:], 16) ^ 1:04x}"))
    left.touch()
    assert str(os.getpid()) in left.name
    assert remove_leftovers(tmp_path) == [left]


@pytest.fixture
def no_pauses(monkeypatch):
    monkeypatch.setattr(read, "PAUSES", (0.0, 0.0, 0.0))


class Failing:
    """A function of `os` that fails some times before it works."""

    def __init__(self, monkeypatch, name: str, number: int, times: int) -> None:
        self.work, self.number, self.left, self.calls = getattr(os, name), number, times, 0
        monkeypatch.setattr(os, name, self)

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.left:
            self.left -= 1
            raise OSError(self.number, os.strerror(self.number))
        return self.work(*args, **kwargs)


PASSING = [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.EBUSY]


@pytest.mark.parametrize("number", PASSING, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", ["fsync", "replace", "mkdir"])
def test_an_error_that_passes_is_tried_again(tmp_path, monkeypatch, no_pauses, name, number):
    target, written = tmp_path / "data" / "run.fits", []

    def write(path):
        written.append(path)
        write_pieces(path, [b"new"], compress=False)

    failing = Failing(monkeypatch, name, number, times=3)
    atomic_write(target, write)
    assert (target.read_bytes(), names(target.parent)) == (b"new", ["run.fits"])
    assert failing.calls >= 4
    # what a disk refused to flush is lost: it is written again
    assert len(written) == (1 if name == "mkdir" else 4)
    target.unlink()
    target.parent.rmdir()
    failing.left = 4
    with pytest.raises(ArchiveError, match=r"data cannot be written now \(.*run\.fits was not written. Start again"):
        atomic_write(target, write)
    assert not target.exists()


def test_a_write_that_fails_half_way_is_done_again_and_never_seen(tmp_path, no_pauses):
    target, seen = tmp_path / "run.fits", []
    target.write_bytes(b"old")

    def write(path):
        path.write_bytes(b"ha" if len(seen) < 3 else b"half")
        seen.append(target.read_bytes())
        if len(seen) < 4:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    atomic_write(target, write)
    assert seen == [b"old"] * 4
    assert (target.read_bytes(), names(tmp_path)) == (b"half", ["run.fits"])


@pytest.mark.parametrize("replace", [False, True])
def test_a_directory_is_renamed_again_when_the_error_may_pass(tmp_path, monkeypatch, no_pauses, replace):
    target = tmp_path / "kl.zarr"
    if replace:
        fill(target, "old")
    failing = Failing(monkeypatch, "rename", errno.ESTALE, times=3)
    with atomic_directory(target, replace=replace) as path:
        fill(path, "new")
    assert failing.calls >= 4
    assert (target / "part").read_text() == "new"
    assert names(tmp_path) == ["kl.zarr"]


def test_leftovers_are_found_below_but_only_our_own_and_old_ones(tmp_path):
    (tmp_path / "data").mkdir()
    old, young = (tmp_path / "data" / f".dask_bkg-12-{digit * 16}-run.fits.gz" for digit in "ab")
    foreign = [tmp_path / ".dask_bkg-notes", tmp_path / "dask_bkg-12-aaaaaaaaaaaaaaaa-run.fits", tmp_path / ".nfs01"]
    for path in (old, young, *foreign):
        path.touch()
        os.utime(path, (0, 0))
    os.utime(young, (time.time() - 3600, time.time() - 3600))
    assert remove_leftovers(tmp_path) == [old]
    assert young.exists()
    assert all(path.exists() for path in foreign)


def test_leftovers_of_some_targets_in_one_directory(tmp_path):
    """Directories with all that is in them; a link is removed, and not what it leads to."""
    (tmp_path / "below").mkdir()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "data").touch()
    places = ["runs.zarr", "rings-01", "kl.zarr", "below/runs.zarr"]
    left = [tmp_path / Path(place).parent / f".dask_bkg-1-{'a' * 16}-{Path(place).name}" for place in places]
    for path in left:
        (path / "counts").mkdir(parents=True)
    link = tmp_path / f".dask_bkg-2-{'b' * 16}-runs.zarr"
    link.symlink_to(tmp_path / "precious")
    gone = remove_leftovers(tmp_path, 0, ["runs.zarr", "rings"], below=False)
    assert gone == sorted([*left[:2], link])
    assert [path.exists() for path in left] == [False, False, True, True]
    assert (tmp_path / "precious" / "data").exists()
    assert remove_leftovers(tmp_path, 0) == sorted(left[2:])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_the_old_file_kept(tmp_path, monkeypatch, number):
    target = tmp_path / "run.fits"
    target.write_bytes(b"old")

    def full(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)  # network disks often tell only here
    with pytest.raises(ArchiveError, match="full") as caught:
        atomic_write(target, lambda path: write_pieces(path, [b"new"], compress=False))
    assert str(tmp_path) in str(caught.value)
    assert "run.fits" in str(caught.value)
    monkeypatch.undo()
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["run.fits"]


def test_a_real_limit_on_the_size_of_files(tmp_path):
    target = tmp_path / "run.fits"
    target.write_bytes(b"old")
    code = """
import resource, sys
from dask_bkg.files import atomic_write, write_pieces
from dask_bkg.errors import ArchiveError
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    atomic_write(sys.argv[1], lambda path: write_pieces(path, [b"x" * 6000] * 3, compress=False))
except ArchiveError as error:
    print(error)
"""
    result = run_python(code, target)
    assert "is full" in result.stdout, result.stderr
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["run.fits"]


def test_a_really_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, timeout=30, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("a small tmpfs cannot be mounted here")
    try:
        (disk / "run.fits").write_bytes(b"old")
        with pytest.raises(ArchiveError, match="is full"):
            atomic_write(disk / "run.fits", lambda path: write_pieces(path, [os.urandom(100_000)], compress=True))
        assert (disk / "run.fits").read_bytes() == b"old"
        assert names(disk) == ["run.fits"]
    finally:
        subprocess.run(["umount", str(disk)], timeout=30, check=True)


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    message = r"file/data cannot be written .*io\.out_dir"
    with pytest.raises(ArchiveError, match=message):
        atomic_write(tmp_path / "file" / "data" / "run.fits", lambda path: path.write_bytes(b""))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_directory_that_may_not_be_written(tmp_path, monkeypatch, number):
    def refuse(source, target):
        raise OSError(number, os.strerror(number), str(source), None, str(target))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(ArchiveError, match=r"cannot be written \("):
        atomic_write(tmp_path / "run.fits", lambda path: path.write_bytes(b""))
    assert names(tmp_path) == []


def test_what_the_block_cannot_read_is_not_blamed_on_the_target(tmp_path):
    given = tmp_path / "input"
    with pytest.raises(FileNotFoundError):
        atomic_write(tmp_path / "run.fits", lambda path: path.write_bytes(given.read_bytes()))
    given.write_bytes(b"not packed")
    with pytest.raises(OSError, match="Not a gzipped file"):
        atomic_write(tmp_path / "run.fits", lambda path: path.write_bytes(gzip.GzipFile(given).read()))


def test_a_link_is_replaced_and_not_written_through(tmp_path):
    original, link = tmp_path / "original", tmp_path / "link"
    original.write_bytes(b"old")
    link.symlink_to(original)
    atomic_write(link, lambda path: path.write_bytes(b"new"))
    assert original.read_bytes() == b"old"
    assert (link.read_bytes(), link.is_symlink()) == (b"new", False)


def fill(directory: Path, text: str) -> None:
    directory.mkdir()
    (directory / "part").write_text(text)


def test_a_directory_appears_only_at_the_end(tmp_path):
    target = tmp_path / "deep" / "kl.zarr"
    with atomic_directory(target) as path:
        fill(path, "new")
        assert path.parent == target.parent
        assert not target.exists()
    assert (target / "part").read_text() == "new"
    with atomic_directory(target / "rings", tmp_path) as path:
        fill(path, "ring")
        assert path.parent == tmp_path
    assert (target / "rings" / "part").read_text() == "ring"
    assert (names(tmp_path), names(target.parent)) == (["deep"], ["kl.zarr"])


@pytest.mark.parametrize("replace", [False, True])
def test_a_directory_that_is_there_is_kept_or_replaced(tmp_path, replace):
    target = tmp_path / "kl.zarr"
    fill(target, "old")
    with pytest.raises(TypeError, match="str"), atomic_directory(target, replace=replace) as path:
        fill(path, None)  # when there is half of it
    assert (target / "part").read_text() == "old"
    with atomic_directory(target, replace=replace) as path:
        fill(path, "new")
    assert (target / "part").read_text() == ("new" if replace else "old")
    assert names(tmp_path) == ["kl.zarr"]


def test_a_directory_that_cannot_take_its_place_leaves_the_old_one(tmp_path):
    target = tmp_path / "kl.zarr"
    fill(target, "old")
    with pytest.raises(FileNotFoundError), atomic_directory(target, replace=True):
        pass  # nothing was made
    assert (target / "part").read_text() == "old"
    assert names(tmp_path) == ["kl.zarr"]


def test_compressed_bytes_do_not_depend_on_time_or_name(tmp_path, monkeypatch):
    write_pieces(tmp_path / "a.gz", [b"data" * 999, memoryview(b"more")], compress=True)
    monkeypatch.setattr(time, "time", lambda: 1e9)
    write_pieces(tmp_path / "b.gz", [b"data" * 999, b"more"], compress=True)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


@pytest.mark.parametrize("path", ["run.fits", "data/run.fits", "data/../run.fits", "./data/new/run.fits"])
def test_inside_accepts(tmp_path, path):
    (tmp_path / "data").mkdir()
    expected = Path(os.path.realpath(tmp_path / path))
    assert inside(tmp_path, path) == expected
    assert inside(tmp_path, tmp_path / path) == expected


@pytest.mark.parametrize(
    "path", ["../run.fits", "/etc/run.fits", "data/../../run.fits", "out/run.fits", "", ".", "a/.."]
)
def test_inside_refuses(tmp_path, path):
    root = tmp_path / "archive"
    (root / "data").mkdir(parents=True)
    (tmp_path / "archive2").mkdir()
    (root / "out").symlink_to(tmp_path / "archive2")  # begins like the root, but is not in it
    with pytest.raises(ArchiveError, match=r"outside of|names no file"):
        inside(root, path)
    assert names(tmp_path / "archive2") == []


def test_inside_resolves_the_directory_itself(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert inside(tmp_path / "link", tmp_path / "link" / "run.fits") == tmp_path / "real" / "run.fits"
