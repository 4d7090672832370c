"""The ledger of copies: what it knows saves a look, and it forgets whatever has changed."""

from __future__ import annotations

import os

import pytest

from dask_bkg.dl3 import attach, copies
from dask_bkg.dl3.copies import LEDGER, Ledger
from dask_bkg.pipeline.prepare import prepare_runs


@pytest.fixture
def pair(tmp_path):
    source, target = tmp_path / "a.fits", tmp_path / "b.fits"
    source.write_bytes(b"one")
    target.write_bytes(b"one")
    return source, target


def entered(directory, source, target) -> Ledger:
    ledger = Ledger(directory)
    ledger.add(source, target)
    ledger.add_background(target, "BACKGROUND", "bkg_2d")
    ledger.save()
    return Ledger(directory)


def test_what_was_entered_is_known_to_the_next_job(tmp_path, pair):
    assert not Ledger(tmp_path).knows(*pair)
    ledger = entered(tmp_path, *pair)
    assert ledger.knows(*pair)
    assert ledger.has_background(pair[1], "BACKGROUND", "bkg_2d")
    assert not ledger.has_background(pair[1], "BACKGROUND", "bkg_3d")


@pytest.mark.parametrize("changed", [0, 1], ids=["source", "target"])
def test_a_file_that_changed_is_not_known(tmp_path, pair, changed):
    ledger = entered(tmp_path, *pair)
    pair[changed].write_bytes(b"another")
    assert not ledger.knows(*pair)
    assert ledger.has_background(pair[1], "BACKGROUND", "bkg_2d") == (changed == 0)


def test_a_touched_file_is_looked_at_again(tmp_path, pair):
    ledger = entered(tmp_path, *pair)
    os.utime(pair[1], ns=(1, 1))
    assert not ledger.knows(*pair)


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"b.fits": 3}', "null"])
def test_a_ledger_that_is_none_says_nothing(tmp_path, pair, text):
    (tmp_path / LEDGER).write_text(text)
    assert not Ledger(tmp_path).knows(*pair)


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
