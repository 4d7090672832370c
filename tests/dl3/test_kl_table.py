"""Tables of candidates: what is written is read back, sorted as gammapy-tools expects it."""

from __future__ import annotations

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import Table

from dask_bkg.dl3.kl_table import write_kl_table
from dask_bkg.errors import ArchiveError


def columns(n: int = 5, **changes) -> dict:
    rng = np.random.default_rng(1)
    base = {
        "OBS_ID": np.arange(101, 101 + n),
        "KL_DIV": rng.uniform(0, 1, n),
        "LIVETIME": rng.uniform(1500, 1700, n),
        "ZENITH": rng.uniform(10, 60, n),
        "SELECTED": rng.random(n) < 0.5,
    }
    return {**base, **changes}


def test_table_is_read_back_nearest_first(tmp_path):
    written = columns()
    path = write_kl_table(tmp_path / "new", 7, written)
    assert path == tmp_path / "new" / "7.kl.fits"
    table = Table.read(path)
    assert table.colnames == ["OBS_ID", "KL_DIV", "LIVETIME", "ZENITH", "SELECTED"]
    order = np.argsort(written["KL_DIV"])
    for name in table.colnames:
        assert table[name].tolist() == written[name][order].tolist()
    assert (table["LIVETIME"].unit, table["ZENITH"].unit) == (u.s, u.deg)
    assert table["SELECTED"].dtype == bool
    assert table["OBS_ID"].dtype.kind == "i"
    assert table.meta["TARGET"] == 7


def test_the_run_itself_is_the_first_row_whatever_its_divergence(tmp_path):
    """gammapy-tools drops the first row as the run itself: the best match must not be there."""
    table = Table.read(write_kl_table(tmp_path, 104, columns(KL_DIV=np.array([0.3, 0.1, 0.2, 0.15, 0.4]))))
    assert table["OBS_ID"].tolist() == [104, 102, 103, 101, 105]


def test_ties_go_by_number_and_infinity_comes_last(tmp_path):
    divergence = np.array([np.inf, 0.1 + 1e-13, 0.1, 0.05, 0.1])
    table = Table.read(write_kl_table(tmp_path, 7, columns(KL_DIV=divergence)))
    assert table["OBS_ID"].tolist() == [104, 102, 103, 105, 101]
    assert np.isposinf(table["KL_DIV"][-1])


def test_divergences_lose_no_bit(tmp_path):
    written = columns(OBS_ID=np.array([2**40, 1, 2, 3, 4]))
    table = Table.read(write_kl_table(tmp_path, 7, written))
    assert sorted(table["KL_DIV"].tolist()) == sorted(written["KL_DIV"].tolist())
    assert table["OBS_ID"].max() == 2**40


def test_a_table_is_replaced_and_nothing_is_left_behind(tmp_path):
    write_kl_table(tmp_path, 7, columns(5))
    path = write_kl_table(tmp_path, 7, columns(3))
    assert len(Table.read(path)) == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["7.kl.fits"]


def test_same_table_same_bytes(tmp_path):
    paths = [write_kl_table(tmp_path / name, 7, columns()) for name in ("a", "b")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_it_is_a_valid_fits_file(tmp_path):
    with fits.open(write_kl_table(tmp_path, 7, columns())) as hdus:
        hdus.verify("exception")
        assert [hdu.name for hdu in hdus] == ["PRIMARY", "KL_DIV"]


def test_no_candidates_are_an_empty_table(tmp_path):
    assert len(Table.read(write_kl_table(tmp_path, 7, columns(0)))) == 0


@pytest.mark.parametrize("wrong", [{"KL_DIV": np.zeros(4)}, {"SELECTED": None}])
def test_incomplete_columns_are_refused(tmp_path, wrong):
    given = {name: values for name, values in columns(**wrong).items() if values is not None}
    with pytest.raises(ValueError, match=r"run 7: .*OBS_ID, KL_DIV, LIVETIME, SELECTED"):
        write_kl_table(tmp_path, 7, given)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_a_file_is_told(tmp_path):
    (tmp_path / "results").write_text("")
    with pytest.raises(ArchiveError, match="cannot be written"):
        write_kl_table(tmp_path / "results", 7, columns())
