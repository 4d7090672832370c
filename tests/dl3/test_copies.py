"""Copies that are known to be whole are not read again, unless they or their sources have changed."""

from __future__ import annotations

import os

import pytest

from dask_bkg.dl3 import attach, copies
from dask_bkg.dl3.copies import COPIES, background, copy_of
from dask_bkg.files import StatCache, state_of
from dask_bkg.pipeline.prepare import prepare_runs


@pytest.fixture
def pair(tmp_path):
    source, target = tmp_path / "a.fits", tmp_path / "b.fits"
    source.write_bytes(b"one")
    target.write_bytes(b"one")
    return source, target


def entered(directory, source, target) -> StatCache:
    cache = StatCache(directory / COPIES)
    for fact in (copy_of(source), background("BACKGROUND", "bkg_2d")):
        cache.add(target, state_of(target), fact)
    cache.save()
    return StatCache(directory / COPIES)


def is_known(cache, source, target) -> bool:
    return cache.knows(target, state_of(target), copy_of(source))


def has_background(cache, target, hdu_class="bkg_2d") -> bool:
    return cache.knows(target, state_of(target), background("BACKGROUND", hdu_class))


def test_what_was_entered_is_known_to_the_next_job(tmp_path, pair):
    assert not is_known(StatCache(tmp_path / COPIES), *pair)
    cache = entered(tmp_path, *pair)
    assert is_known(cache, *pair)
    assert has_background(cache, pair[1])
    assert not has_background(cache, pair[1], "bkg_3d")


@pytest.mark.parametrize("changed", [0, 1], ids=["source", "target"])
def test_a_file_that_changed_is_not_known(tmp_path, pair, changed):
    cache = entered(tmp_path, *pair)
    pair[changed].write_bytes(b"another")
    assert not is_known(cache, *pair)
    assert has_background(cache, pair[1]) == (changed == 0)


def test_a_touched_file_is_looked_at_again(tmp_path, pair):
    cache = entered(tmp_path, *pair)
    os.utime(pair[1], ns=(1, 1))
    assert not is_known(cache, *pair)


def test_copies_that_did_not_change_are_not_opened(job, four_runs, tmp_path, monkeypatch):
    """The second preparation of an archive reads its index, and no file of a run."""
    from dask_bkg.config import parse_config

    config = parse_config(job(four_runs, io={"in_dir": str(tmp_path / "in")}))
    prepare_runs(config)

    def refuse(*args, **kwargs):
        raise AssertionError("a file was read")

    for module in (copies, attach):
        monkeypatch.setattr(module, "read_fits_bytes", refuse)
    assert prepare_runs(config).run_selection.runlist == [64001, 64002, 64003, 64004]
    (tmp_path / "in" / "data" / "run_064002.fits.gz").write_bytes(b"short")
    with pytest.raises(AssertionError, match="a file was read"):
        prepare_runs(config)
