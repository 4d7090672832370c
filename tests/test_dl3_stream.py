"""Files read forwards: cards and columns as astropy has them, whatever the packing; and what a run is known by."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from numpy.testing import assert_array_equal

from dask_bkg.dl3.attach import attach_background
from dask_bkg.dl3.cards import number, parse_cards, text
from dask_bkg.dl3.read import RunFile, read_run
from dask_bkg.dl3.stream import find_hdu, open_fits
from dask_bkg.errors import RunError


@pytest.fixture
def run(four_runs, run_path):
    return RunFile(64001, str(run_path(four_runs, 64001)))


def cards_of(header: fits.Header) -> dict:
    """What astropy makes of the cards that have a value."""
    said = {card.keyword.upper(): card.value for card in reversed(header.cards)}
    nothing = ("COMMENT", "HISTORY", "")
    return {
        key: None if isinstance(value, fits.card.Undefined) else value
        for key, value in said.items()
        if key not in nothing
    }


def parsed(header: fits.Header) -> dict:
    return parse_cards(header.tostring(padding=True).encode("latin-1"))


# --- cards -------------------------------------------------------------------------------------------------


def test_cards_are_those_of_astropy():
    header = fits.Header()
    header["OBJECT"] = ("Barnard's star", "a quote / and a slash")
    header["SLASH"] = ("off / on", "both")
    header["EMPTY"] = ""
    header["NOTHING"] = (None, "no value")
    header["YES"], header["NO"] = True, False
    header["WHOLE"], header["NEGATIVE"], header["REAL"], header["TINY"] = 53402, -3, 0.1, 1e-300
    header["LONG"] = ("x" * 150 + "'" + "y" * 30, "goes on")
    header["HIERARCH SAFE_ENERGY_LO"] = (0.32, "TeV")
    header["COMMENT"] = "KEY = 'value'"
    header["HISTORY"] = "attached"
    header["LAST"] = 1
    assert parsed(header) == cards_of(header)
    assert list(parsed(header)["LONG"]) == list("x" * 150 + "'" + "y" * 30)


@pytest.mark.parametrize(
    ("card", "value"),
    [
        ("KEY     =           1.0D3 / double", 1000.0),
        ("KEY     =           101962602. / MET", 101962602.0),
        ("KEY     = 'no end", "'no end"),
        ("KEY     =1", 1),
        ("KEY     =    (1.0, 2.0)", "(1.0, 2.0)"),
        ("KEY     =", None),
    ],
)
def test_a_card_of_unusual_writing(card, value):
    assert parse_cards(f"{card:80}".encode()) == {"KEY": value}


def test_of_a_keyword_that_is_there_twice_the_first_counts():
    raw = "".join(f"{card:80}" for card in ("KEY     = 1", "KEY     = 2")).encode()
    assert parse_cards(raw)["KEY"] == fits.Header.fromstring(raw.decode())["KEY"] == 1


def test_numbers_and_texts_of_whatever_a_file_says():
    cards = {"A": "12.5", "B": None, "C": "unknown", "D": True, "E": np.ma.masked}
    assert (number(cards, "A"), number(cards, "D")) == (12.5, 1.0)
    assert [number(cards, key, -1.0) for key in "BCEF"] == [-1.0] * 4
    assert [text(cards, key) for key in "ABCEF"] == ["12.5", "", "unknown", "", ""]


def check_file(path: Path) -> int:
    """All cards and all columns of numbers of a file against astropy; the number of columns."""
    n = 0
    with fits.open(path, memmap=False) as expected, open_fits(str(path), 1) as hdus:
        for ours, theirs in zip(hdus, expected, strict=True):
            assert ours.header == cards_of(theirs.header)
            assert len(ours.data) == theirs.size
            for column in getattr(theirs, "columns", ()):
                if column.format[-1] not in "AL":
                    values = theirs.data[column.name]
                    shape = values.shape if values.ndim == 1 else (len(values), -1)
                    assert_array_equal(ours.column(column.name.upper()), values.reshape(shape))
                    assert ours.unit(column.name.upper()) == (column.unit or "")
                    n += 1
    return n


def test_a_simulated_run_is_read_as_astropy_reads_it(run):
    assert check_file(Path(run.path)) > 30


@pytest.mark.realdata
def test_a_real_run_is_read_as_astropy_reads_it(gammapy_data):
    assert check_file(next(iter(sorted(gammapy_data.glob("hess-dl3-dr1/data/*.fits.gz"))))) > 30


# --- columns -----------------------------------------------------------------------------------------------


def test_columns_of_every_kind(tmp_path):
    rng, n = np.random.default_rng(1), 7
    columns = [
        fits.Column("FLAG", "L", array=rng.random(n) < 0.5),
        fits.Column("BITS", "11X", array=rng.random((n, 11)) < 0.5),
        fits.Column("NAME", "5A", array=["Crab"] * n),
        fits.Column("BYTE", "B", array=rng.integers(0, 200, n)),
        fits.Column("SHORT", "I", array=rng.integers(-99, 99, n)),
        fits.Column("LONG", "K", array=rng.integers(-(2**40), 2**40, n)),
        fits.Column("UNSIGNED", "I", bzero=32768, array=rng.integers(0, 65000, n).astype(np.uint16)),
        fits.Column("PAIR", "2E", array=rng.random((n, 2)).astype(np.float32), unit="deg"),
        fits.Column("SCALED", "E", bscale=0.5, bzero=3.0, array=np.arange(n) / 2 + 3),
        fits.Column("LAST", "D", array=rng.random(n)),
    ]
    path = tmp_path / "kinds.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns, name="ALL")]).writeto(path)
    with fits.open(path) as expected, open_fits(str(path), 1) as hdus:
        ours, theirs = find_hdu(hdus, "all", "", 1, str(path)), expected["ALL"].data
        for name in ("BYTE", "SHORT", "LONG", "UNSIGNED", "PAIR", "SCALED", "LAST"):
            assert_array_equal(ours.column(name), theirs[name], err_msg=name)
        assert (ours.rows, ours.unit("PAIR"), ours.unit("LAST")) == (n, "deg", "")
        for name in ("FLAG", "BITS", "NAME"):
            with pytest.raises(ValueError, match=f"{name} is no number"):
                ours.column(name)


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


@pytest.mark.parametrize("packed", [False, True])
def test_what_stands_behind_the_last_table_that_is_needed_is_not_read(run, tmp_path, packed):
    data = gzip.decompress(Path(run.path).read_bytes())
    start = data.index(b"EXTNAME = 'ENERGY DISPERSION'") // 2880 * 2880
    rest = bytes(np.random.default_rng(1).integers(0, 256, 400_000, dtype=np.uint8))
    whole = data[:start] + b"this is no FITS" + rest
    path = tmp_path / "run.fits"
    path.write_bytes(gzip.compress(whole)[:-200_000] if packed else whole)
    assert same_events(run, path)


def test_a_header_that_asks_for_more_than_memory_holds(run, tmp_path):
    data = gzip.decompress(Path(run.path).read_bytes())
    at = data.index(b"NAXIS2  =", data.index(b"XTENSION"))
    path = tmp_path / "run.fits"
    path.write_bytes(data[:at] + b"NAXIS2  =       99999999999999" + data[at + 30 :])
    with pytest.raises(RunError, match=r"run 64001: .*bytes of EVENTS are missing.*copy it again"):
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
