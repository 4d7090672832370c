"""Written whole or not at all: faults of disks, directories and jobs that are killed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dask_bkg.errors import ArchiveError
from dask_bkg.files import atomic_directory, atomic_path, inside, remove_leftovers, write_pieces


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def run_python(code: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_the_target_appears_only_at_the_end(tmp_path):
    target = tmp_path / "deep" / "run.fits.gz"
    with atomic_path(target) as path:
        path.write_bytes(b"new")
        assert path.parent == target.parent
        assert path.name.startswith(".")
        assert path.name.endswith(".fits.gz")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert names(target.parent) == ["run.fits.gz"]


def test_an_error_in_the_block_leaves_the_old_file_and_no_leftover(tmp_path):
    target = tmp_path / "run.fits"
    target.write_bytes(b"old")
    with pytest.raises(TypeError), atomic_path(target) as path:
        write_pieces(path, [b"half", "not bytes"], compress=False)
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["run.fits"]


def test_two_writers_of_one_target_do_not_meet(tmp_path):
    with atomic_path(tmp_path / "a") as first, atomic_path(tmp_path / "a") as second:
        assert first != second
        first.write_bytes(b"1")
        second.write_bytes(b"2")
    assert (tmp_path / "a").read_bytes() == b"1"  # the outer block ends last


def test_a_job_killed_in_mid_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "run.fits"
    target.write_bytes(b"old")
    code = """
import os, sys
from dask_bkg.files import atomic_path
with atomic_path(sys.argv[1]) as path:
    path.write_bytes(b"half")
    os._exit(9)
"""
    assert run_python(code, target).returncode == 9
    assert target.read_bytes() == b"old"
    assert len(names(tmp_path)) == 2  # the leftover is there ...
    assert remove_leftovers(tmp_path) == []  # ... and might belong to a job that is still running
    assert len(remove_leftovers(tmp_path, older_than=0)) == 1
    assert names(tmp_path) == ["run.fits"]


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
    with pytest.raises(ArchiveError, match="full") as caught, atomic_path(target) as path:
        write_pieces(path, [b"new"], compress=False)
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
from dask_bkg.files import atomic_path, write_pieces
from dask_bkg.errors import ArchiveError
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    with atomic_path(sys.argv[1]) as path:
        write_pieces(path, [b"x" * 6000] * 3, compress=False)
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
        with pytest.raises(ArchiveError, match="is full"), atomic_path(disk / "run.fits") as path:
            write_pieces(path, [os.urandom(100_000)], compress=True)
        assert (disk / "run.fits").read_bytes() == b"old"
        assert names(disk) == ["run.fits"]
    finally:
        subprocess.run(["umount", str(disk)], timeout=30, check=True)


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    message = r"file/data cannot be written .*io\.out_dir"
    with pytest.raises(ArchiveError, match=message), atomic_path(tmp_path / "file" / "data" / "run.fits") as path:
        path.write_bytes(b"")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_directory_that_may_not_be_written(tmp_path, monkeypatch, number):
    def refuse(source, target):
        raise OSError(number, os.strerror(number), str(source), None, str(target))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(ArchiveError, match="cannot be written"), atomic_path(tmp_path / "run.fits") as path:
        path.write_bytes(b"")
    assert names(tmp_path) == []


def test_what_the_block_cannot_read_is_not_blamed_on_the_target(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "run.fits") as path:
        path.write_bytes((tmp_path / "no such input").read_bytes())
    with pytest.raises(OSError, match="Not a gzipped file"), atomic_path(tmp_path / "run.fits"):
        raise OSError("Not a gzipped file")


def test_a_link_is_replaced_and_not_written_through(tmp_path):
    original, link = tmp_path / "original", tmp_path / "link"
    original.write_bytes(b"old")
    link.symlink_to(original)
    with atomic_path(link) as path:
        path.write_bytes(b"new")
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
