"""Facts that hold as long as a file is the same."""

from __future__ import annotations

import os

import pytest

from dask_bkg.files import MISSING, StatCache, state_of


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "run.fits"
    file.write_bytes(b"one")
    return file


@pytest.fixture
def cache(tmp_path):
    return StatCache(tmp_path / "cache.json")


def test_states(tmp_path, file, monkeypatch):
    stat = file.stat()
    assert state_of(file) == (3, stat.st_mtime_ns)
    assert state_of(tmp_path / "nothing") == state_of(file / "below") == MISSING

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "stat", refuse)
    assert state_of(file) is None


def test_what_was_added_is_known_to_the_next_job(file, cache):
    assert not cache.knows(file, state_of(file), "whole")
    cache.add(file, state_of(file), "whole")
    cache.add(file, state_of(file), "good")
    cache.save()
    there = StatCache(cache.path)
    assert there.knows(file, state_of(file), "whole")
    assert there.knows(str(file), state_of(file), "good")
    assert not there.knows(file, state_of(file), "bad")
    assert sorted(there.facts()) == ["good", "whole"]


@pytest.mark.parametrize("change", ["size", "time", "gone"])
def test_a_file_that_changed_is_not_known(file, cache, change):
    cache.add(file, state_of(file), "whole")
    if change == "size":
        file.write_bytes(b"another")
    elif change == "time":
        os.utime(file, ns=(1, 1))
    else:
        file.unlink()
    assert not cache.knows(file, state_of(file), "whole")
    cache.add(file, state_of(file), "new")
    assert list(cache.facts()) == ["new"]


def test_nothing_is_known_of_a_file_of_which_the_disk_says_nothing(file, cache):
    cache.add(file, None, "whole")
    assert not cache.knows(file, None, "whole")
    cache.save()
    assert not cache.path.exists()


@pytest.mark.parametrize("text", ["", "[1, 2]", "null", '{"half', '{"PATH": 3}', '{"PATH": [[3, 1], [3, 1], null]}'])
def test_a_cache_that_is_none_is_empty(file, cache, text):
    cache.path.write_text(text.replace("PATH", str(file)))
    there = StatCache(cache.path)
    assert list(there.facts()) == []
    there.add(file, state_of(file), "whole")
    there.save()
    assert StatCache(cache.path).knows(file, state_of(file), "whole")


def test_what_two_jobs_add_is_kept(file, cache, tmp_path):
    other, second = tmp_path / "other.fits", StatCache(cache.path)
    cache.add(file, state_of(file), "whole")
    second.add(other, MISSING, "gone")
    cache.save()
    second.save()
    there = StatCache(cache.path)
    assert there.knows(file, state_of(file), "whole")
    assert there.knows(other, MISSING, "gone")
    assert not cache.knows(other, MISSING, "gone")
    cache.refresh()
    assert cache.knows(other, MISSING, "gone")
