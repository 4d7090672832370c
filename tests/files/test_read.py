"""Reading whole files: bounded, and tried again where the disk stumbles."""

from __future__ import annotations

import errno
import gzip
import zlib

import pytest

from dask_bkg.files import read
from dask_bkg.files.read import patiently, read_unpacked


def test_members_of_a_packed_file_follow_each_other(tmp_path):
    path = tmp_path / "two.gz"
    path.write_bytes(gzip.compress(b"one") + gzip.compress(b"two") + bytes(10))
    assert read_unpacked(path) == b"onetwo"


def test_damage_is_an_error(tmp_path):
    whole = gzip.compress(bytes(range(256)) * 100)
    (tmp_path / "short").write_bytes(whole[:-20])
    (tmp_path / "changed").write_bytes(whole[:-6] + b"\0\1" + whole[-4:])
    with pytest.raises(EOFError):
        read_unpacked(tmp_path / "short")
    with pytest.raises(zlib.error):
        read_unpacked(tmp_path / "changed")


def test_a_lie_about_the_size_does_not_pass_the_limit(tmp_path):
    packed = gzip.compress(bytes(1_000_000))
    (tmp_path / "lie").write_bytes(packed[:-4] + (10).to_bytes(4, "little"))
    with pytest.raises(OverflowError):
        read_unpacked(tmp_path / "lie", limit=100_000)


def test_errors_that_pass_are_tried_again(monkeypatch):
    monkeypatch.setattr(read, "PAUSES", (0.0, 0.0, 0.0))
    left = [errno.EIO, errno.ESTALE, errno.ETIMEDOUT]

    def work():
        if left:
            raise OSError(left.pop(), "again")
        return "read"

    assert patiently(work) == "read"
    left[:] = [errno.EIO] * 5
    with pytest.raises(OSError, match="again"):
        patiently(work)
    assert len(left) == 1
    left[:] = [errno.ENOENT] * 2
    with pytest.raises(OSError, match="again"):
        patiently(work)
    assert len(left) == 1
