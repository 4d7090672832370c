"""A run is the same whatever its packing, damaged files are told, and what a run is known by."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from numpy.testing import assert_array_equal

from dask_bkg.dl3.attach import attach_background
from dask_bkg.dl3.headers import number, text
from dask_bkg.dl3.read import RunFile, read_run
from dask_bkg.errors import RunError


@pytest.fixture
def run(four_runs, run_path):
    return RunFile(64001, str(run_path(four_runs, 64001)))


def test_numbers_and_texts_of_whatever_a_file_says():
    cards = {"A": "12.5", "B": None, "C": "unknown", "D": True, "E": np.ma.masked}
    assert number(cards, "A") == 12.5
    assert [number(cards, key, -1.0) for key in "BCDEF"] == [-1.0] * 5
    assert [text(cards, key) for key in "ABCEF"] == ["12.5", "", "unknown", "", ""]


# --- files -------------------------------------------------------------------------------------------------


def same_events(run: RunFile, path: Path) -> bool:
    one, other = read_run(run), read_run(run._replace(path=str(path)))
    assert_array_equal(one.energy, other.energy)
    return one.numbers == other.numbers and one.fingerprint == other.fingerprint


def packings(data: bytes) -> dict[str, bytes]:
    half = len(data) // 2
    return {
        "plain": data,
        "packed": gzip.compress(data, 9),
        "two streams": gzip.compress(data[:half]) + gzip.compress(data[half:]),
        "zeros behind": gzip.compress(data) + b"\0" * 512,
        "zeros behind, plain": data + b"\0" * 2880,
        "last block not filled up": data.rstrip(b"\0"),
    }


@pytest.mark.parametrize("kind", packings(b""))
def test_the_packing_of_a_file_changes_nothing(run, tmp_path, kind):
    path = tmp_path / "run.fits"
    path.write_bytes(packings(gzip.decompress(Path(run.path).read_bytes()))[kind])
    assert same_events(run, path)


def test_a_header_that_asks_for_more_than_memory_holds(run, tmp_path):
    data = gzip.decompress(Path(run.path).read_bytes())
    at = data.index(b"NAXIS2  =", data.index(b"XTENSION"))
    path = tmp_path / "run.fits"
    path.write_bytes(data[:at] + b"NAXIS2  =       99999999999999" + data[at + 30 :])
    with pytest.raises(RunError, match=r"run 64001: .* is not a whole FITS file .*copy it again"):
        read_run(run._replace(path=str(path)))


@pytest.mark.parametrize("content", [b"", b"<html>404 Not found</html>", b"SIMPLE  =", b"SIMPLE  =" + b" " * 5000])
def test_what_is_no_fits_file_is_told(run, tmp_path, content):
    for name, data in (("plain.fits", content), ("packed.fits.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(RunError, match=r"run 64001: .* is not a whole FITS file .*copy it again"):
            read_run(run._replace(path=str(tmp_path / name)))


@pytest.mark.parametrize("kind", ["5A", "PE"])
def test_a_time_that_is_no_number_is_an_error_of_the_run(run, edit_run, kind):
    def change(hdus):
        columns = [fits.Column("START", kind, array=np.array([[1.0]] if kind == "PE" else ["now"], dtype=object)),
                   hdus["GTI"].columns["STOP"]]  # fmt: skip
        hdus["GTI"] = fits.BinTableHDU.from_columns(columns, hdus["GTI"].header, name="GTI", nrows=1)

    edit_run(run.path, change)
    with pytest.raises(RunError, match="run 64001"):
        read_run(run)


# --- fingerprint -------------------------------------------------------------------------------------------


def fingerprint(run: RunFile) -> str:
    return read_run(run).fingerprint


def card(hdu: str, key: str, value):
    return lambda hdus: hdus[hdu].header.set(key, value)


def history(hdus):
    for hdu in ("EVENTS", "GTI"):
        hdus[hdu].header["HISTORY"] = "background attached"
        hdus[hdu].header["COMMENT"] = "by whom"
        hdus[hdu].add_checksum()


@pytest.mark.parametrize(
    "change",
    [
        card("EVENTS", "CREATOR", "somebody else"),
        card("EVENTS", "DATE", "2026-01-01T00:00:00"),
        card("EVENTS", "ORIGIN", "elsewhere"),
        card("GTI", "EXTVER", 3),
        card("EFFECTIVE AREA", "LO_THRES", 0.5),
        history,
        lambda hdus: hdus.pop("PSF"),
        lambda hdus: (
            hdus["EVENTS"].header.rename_keyword("HDUVERS", "HDUDOC2") or hdus["EVENTS"].header.pop("HDUDOC2")
        ),
    ],
    ids=["creator", "date", "origin", "extver", "area", "history", "psf", "version"],
)
@pytest.mark.slow
def test_what_programs_write_about_themselves_leaves_the_fingerprint(run, edit_run, change):
    before = fingerprint(run)
    edit_run(run.path, change)
    assert fingerprint(run) == before


def test_a_background_and_packing_leave_the_fingerprint(run, tmp_path):
    before = fingerprint(run)
    assert len(before) == 32
    hdu = fits.BinTableHDU.from_columns([fits.Column("THETA_LO", "2E", "deg", array=[[0, 1]])])
    attach_background(run.path, run.path, hdu)
    assert fingerprint(run) == before
    plain = tmp_path / "moved.fits"
    plain.write_bytes(gzip.decompress(Path(run.path).read_bytes()))
    assert fingerprint(RunFile(1, str(plain))) == before


def test_the_layout_of_a_header_leaves_the_fingerprint(run, tmp_path):
    """Cards in another order, numbers and texts written in another way."""
    data = gzip.decompress(Path(run.path).read_bytes())
    start = data.index(b"XTENSION")
    n = next(i for i in range(200) if data[start + 80 * i :].startswith(b"END "))
    cards = [data[start + 80 * i : start + 80 * (i + 1)] for i in range(n)]
    cards[10:] = reversed(cards[10:])
    at = next(i for i, each in enumerate(cards) if each.startswith(b"ONTIME"))
    value = float(cards[at][10:].split(b"/")[0])
    cards[at] = f"ONTIME  = {value:.17E} / other words".ljust(80).encode()
    path = tmp_path / "run.fits"
    path.write_bytes(data[:start] + b"".join(cards) + data[start + 80 * n :])
    assert same_events(run, path)


def one_event(hdus):
    energy = hdus["EVENTS"].data["ENERGY"]
    energy[17] = np.nextafter(energy[17], np.float32(1e9))


def one_event_less(hdus):
    hdus["EVENTS"].data = hdus["EVENTS"].data[:-1]


def one_interval(hdus):
    hdus["GTI"].data["STOP"][-1] -= 0.001


@pytest.mark.parametrize(
    "change",
    [
        one_event,
        one_event_less,
        one_interval,
        card("EVENTS", "RA_PNT", 83.5),
        card("EVENTS", "OBJECT", "Crab nebula"),
        card("EVENTS", "DEADC", 0.5),
        card("GTI", "MJDREFF", 1e-6),
        lambda hdus: hdus["EVENTS"].columns.change_unit("ENERGY", "GeV"),
    ],
    ids=["event", "length", "interval", "pointing", "object", "dead time", "reference", "unit"],
)
@pytest.mark.slow
def test_what_the_run_says_is_in_the_fingerprint(run, edit_run, change):
    before = fingerprint(run)
    edit_run(run.path, change)
    assert fingerprint(run) != before


def test_good_times_of_another_file_are_in_the_fingerprint(run, edit_run, tmp_path):
    before, other = fingerprint(run), str(tmp_path / "gti.fits")
    with fits.open(run.path) as hdus:
        fits.HDUList([fits.PrimaryHDU(), hdus["GTI"].copy()]).writeto(other)
    apart = run._replace(gti_path=other)
    assert fingerprint(apart) == before
    edit_run(other, one_interval)
    assert fingerprint(apart) != before
