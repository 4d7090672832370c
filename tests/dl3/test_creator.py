"""The one exception to untouched HDUs: the creator of event lists that make gammapy mirror 3D backgrounds."""

from __future__ import annotations

import gzip
import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

import dask_bkg
from dask_bkg.binning import Edges, FieldEdges
from dask_bkg.dl3.attach import attach_background, has_background, other_hdus_digest, reads_reversed
from dask_bkg.dl3.background import background_table
from dask_bkg.dl3.blocks import BLOCK, checksum
from dask_bkg.dl3.copies import copy_file
from dask_bkg.dl3.fingerprint import fingerprint
from dask_bkg.dl3.hdus import open_fits
from dask_bkg.errors import RunError

SASH = "SASH FITS::EventListWriter"
OLD = f"CREATOR was '{SASH}'"
RINGS = Edges(np.geomspace(0.1, 10, 3), np.linspace(0, 2, 3))
FIELD = FieldEdges(RINGS.energy, np.linspace(-2, 2, 5))


def background_2d():
    return background_table(np.ones(RINGS.shape), RINGS)


def background_3d():
    return background_table(np.arange(1.0, 33).reshape(FIELD.shape), FIELD)


def table(name: str, rows: int, cards: dict) -> fits.BinTableHDU:
    column = fits.Column("TIME", "D", "s", array=np.random.default_rng(rows).normal(size=rows))
    hdu = fits.BinTableHDU.from_columns([column], name=name)
    hdu.header.update({"HDUCLAS1": name, **cards})
    return hdu


def run_bytes(cards=None, more: int = 0, sums: bool = False) -> bytes:
    """A run: events with a creator, ``more`` cards after it and, on request, checksums; good time intervals of it."""
    cards = {"CREATOR": (SASH, "program that wrote this"), "HDUVERS": "0.2"} if cards is None else cards
    events, gti = table("EVENTS", 777, cards), table("GTI", 3, cards)
    for number in range(more):
        events.header[f"MORE{number}"] = number
    buffer = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), events, gti]).writeto(buffer, checksum=sums)
    return buffer.getvalue()


def parts(path: Path, name: str) -> tuple[list[str], bytes]:
    """Cards as they are in the file, without blank ones, and the data with what fills them up; by astropy."""
    data = path.read_bytes()
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    with fits.open(io.BytesIO(data)) as hdus:
        info = hdus[name].fileinfo()
    header = data[info["hdrLoc"] : info["datLoc"]].decode()
    assert len(data) % BLOCK == 0
    cards = [header[i : i + 80] for i in range(0, len(header), 80)]
    return [card for card in cards if card.strip()], data[info["datLoc"] : info["datLoc"] + info["datSpan"]]


@pytest.fixture
def run(tmp_path) -> Path:
    path = tmp_path / "run.fits"
    path.write_bytes(run_bytes())
    return path


# --- what is changed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.fits", "out.fits.gz"])
def test_only_the_creator_is_changed_and_it_is_remembered(run, tmp_path, name):
    attach_background(run, tmp_path / name, background_3d())
    (before, data), (after, data_after) = parts(run, "EVENTS"), parts(tmp_path / name, "EVENTS")
    assert data_after == data
    header = fits.getheader(tmp_path / name, "EVENTS")
    assert header["CREATOR"] == f"dask_bkg {dask_bkg.__version__}"
    assert str(header["HISTORY"]).startswith(OLD)
    place = [card[:8] for card in before].index("CREATOR ")
    assert after[:place] + after[place + 1 : -2] + after[-1:] == before[:place] + before[place + 1 :]
    assert (after[place][:8], after[-2][:8], after[-1].strip()) == ("CREATOR ", "HISTORY ", "END")
    for other in ("PRIMARY", "GTI"):  # the same creator in another HDU does no harm
        assert parts(tmp_path / name, other) == parts(run, other)


@pytest.mark.parametrize("more", range(36))
@pytest.mark.slow
def test_a_header_that_is_full_grows_by_a_block(tmp_path, more):
    path, out = tmp_path / "run.fits", tmp_path / "out.fits"
    path.write_bytes(run_bytes(more=more))
    attach_background(path, out, background_3d())
    (before, data), (after, data_after) = parts(path, "EVENTS"), parts(out, "EVENTS")
    assert (len(after), data_after) == (len(before) + 1, data)
    with fits.open(path) as old, fits.open(out) as new:
        sizes = [hdus["EVENTS"].fileinfo()["datLoc"] - hdus["EVENTS"].fileinfo()["hdrLoc"] for hdus in (old, new)]
        np.testing.assert_array_equal(new["EVENTS"].data["TIME"], old["EVENTS"].data["TIME"])
        assert [hdu.name for hdu in new] == ["PRIMARY", "EVENTS", "GTI", "BACKGROUND"]
    assert sizes[1] - sizes[0] == (BLOCK if len(before) % 36 == 0 else 0)


@pytest.mark.parametrize("more", [0, 17, 40])
def test_checksums_stay_right(tmp_path, more):
    path = tmp_path / "run.fits"
    path.write_bytes(run_bytes(more=more, sums=True))
    before = fits.getheader(path, "EVENTS")
    attach_background(path, path, background_3d())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # astropy warns of wrong sums
        with fits.open(path, checksum=True) as hdus:
            header = hdus["EVENTS"].header
            assert header["CREATOR"].startswith("dask_bkg")
            assert header["DATASUM"] == before["DATASUM"]
            assert header["CHECKSUM"] != before["CHECKSUM"]
            assert hdus["EVENTS"].verify_checksum() == hdus["EVENTS"].verify_datasum() == 1


def test_no_checksum_is_added(run):
    attach_background(run, run, background_3d())
    assert not {"CHECKSUM", "DATASUM"} & set(fits.getheader(run, "EVENTS"))


def test_the_checksum_is_astropys():
    rng = np.random.default_rng(0)
    template = b"CHECKSUM= '0000000000000000'".ljust(80)
    for size in rng.integers(1, 2000, 100):
        column = fits.Column("B", "B", array=rng.integers(0, 256, size))
        hdu = fits.BinTableHDU.from_columns([column])
        hdu.add_checksum(when="then")
        expected = hdu.header["CHECKSUM"]
        buffer = io.BytesIO()
        hdu.writeto(buffer)
        raw = buffer.getvalue()[BLOCK:].replace(expected.encode(), b"0" * 16)
        assert template[:28] in raw
        assert checksum(raw).decode() == expected


def test_a_creator_in_two_cards_goes_as_a_whole(tmp_path):
    path = tmp_path / "run.fits"
    whole = fits.Card("CREATOR", SASH, "program that wrote this").image.encode()
    split = b"CREATOR = 'SASH FITS::&'".ljust(80) + b"CONTINUE  'EventListWriter' / program that wrote this".ljust(80)
    room = fits.Card("MORE0", 0).image.encode()
    path.write_bytes(run_bytes(more=1).replace(whole, split, 1).replace(room, b"", 1))
    assert fits.getheader(path, "EVENTS")["CREATOR"] == SASH
    digest = other_hdus_digest(path)
    attach_background(path, path, background_3d())
    cards, _ = parts(path, "EVENTS")
    assert not any(card.startswith("CONTINUE") for card in cards)
    assert fits.getheader(path, "EVENTS")["CREATOR"].startswith("dask_bkg")
    assert other_hdus_digest(path) == digest


def test_twice_is_once(run, tmp_path):
    attach_background(run, tmp_path / "once.fits", background_3d())
    attach_background(tmp_path / "once.fits", tmp_path / "twice.fits", background_3d())
    assert (tmp_path / "twice.fits").read_bytes() == (tmp_path / "once.fits").read_bytes()
    assert len(fits.getheader(tmp_path / "twice.fits", "EVENTS")["HISTORY"]) == 1


# --- what is not -------------------------------------------------------------------------------------------


def test_a_2d_background_leaves_it_alone(run, tmp_path):
    attach_background(run, tmp_path / "out.fits", background_2d())
    assert (tmp_path / "out.fits").read_bytes().startswith(run.read_bytes())


@pytest.mark.parametrize(
    "cards",
    [
        {},
        {"CREATOR": SASH},
        {"CREATOR": SASH, "HDUVERS": "0.3"},
        {"CREATOR": SASH, "HDUVERS": 0.2},
        {"CREATOR": SASH + " 2", "HDUVERS": "0.2"},
        {"CREATOR": "sash", "HDUVERS": "0.2"},
    ],
)
def test_another_creator_is_left_alone(tmp_path, cards):
    path = tmp_path / "run.fits"
    path.write_bytes(run_bytes(cards))
    assert not reads_reversed(path)
    attach_background(path, tmp_path / "out.fits", background_3d())
    assert (tmp_path / "out.fits").read_bytes().startswith(path.read_bytes())


def test_what_lasts_is_the_same_before_and_after(run, tmp_path):
    out = tmp_path / "out.fits"
    attach_background(run, out, background_3d())
    assert other_hdus_digest(out) == other_hdus_digest(run)
    before = other_hdus_digest(run)
    for old, new, changed in ((b"TTYPE1", b"TTYPE9", "EVENTS"), (b"'GTI     '", b"'GTI2    '", "GTI")):
        path = tmp_path / "changed.fits"
        path.write_bytes(out.read_bytes().replace(old, new, 1))
        pairs = zip(before, other_hdus_digest(path), strict=False)
        assert [a[0] for a, b in pairs if a[1] != b[1]] == [changed]
    data = bytearray(out.read_bytes())
    with fits.open(out) as hdus:
        data[hdus["EVENTS"].fileinfo()["datLoc"] + 9] ^= 1
    out.write_bytes(data)
    assert other_hdus_digest(out) != before


def test_the_creator_of_another_hdu_is_not_left_out(run, tmp_path):
    before = other_hdus_digest(run)
    data = run.read_bytes()
    at = data.rindex(SASH.encode())
    run.write_bytes(data[:at] + b"T" + data[at + 1 :])
    assert [a[0] for a, b in zip(before, other_hdus_digest(run), strict=True) if a != b] == ["GTI"]


def test_such_a_copy_is_whole_and_the_same_run(run, tmp_path):
    target = tmp_path / "in" / "run.fits"
    copy_file(run, target)
    attach_background(target, target, background_3d())
    with_background = target.read_bytes()
    assert not copy_file(run, target)
    assert target.read_bytes() == with_background
    assert has_background(target, "BACKGROUND", "bkg_3d")
    prints = []
    for path in (run, target):
        with open_fits(str(path), 1) as hdus:
            prints.append(fingerprint([hdu for hdu in hdus if hdu.name in ("EVENTS", "GTI")]))
    assert prints[0] == prints[1]


# --- what gammapy will do ----------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_reads_reversed_reads_the_header_alone(tmp_path, packed):
    """Neither data nor the HDUs after it: all of the file but the beginning may be missing."""
    path, data = tmp_path / "run.fits", run_bytes()
    for length in (len(data), 3 * BLOCK):
        path.write_bytes(gzip.compress(data)[: 1500 if length < len(data) else None] if packed else data[:length])
        assert reads_reversed(path)
    path.write_bytes(data)
    attach_background(path, path, background_3d())
    assert not reads_reversed(path)


def test_reads_reversed_finds_the_events(tmp_path):
    path = tmp_path / "run.fits"
    cards = {"CREATOR": SASH, "HDUVERS": "0.2"}
    image = fits.PrimaryHDU(np.zeros((90, 90)))
    hdus = [image, table("GTI", 999, cards), table("EVENTS", 5, cards)]
    fits.HDUList(hdus).writeto(path)
    assert reads_reversed(path)
    hdus[2].header["CREATOR"] = "another"
    fits.HDUList(hdus).writeto(path, overwrite=True)
    assert not reads_reversed(path)
    fits.HDUList(hdus[:2]).writeto(path, overwrite=True)
    assert not reads_reversed(path)  # nothing says so


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not a FITS file"),
        (b"<html>", "not a FITS file"),
        (run_bytes()[: BLOCK + 800], "ends inside the header of HDU 1"),
        (gzip.compress(run_bytes(), mtime=0)[:200], "damaged or truncated"),
        (b"\x1f\x8b\x08 no gzip", "damaged or truncated"),
    ],
)
def test_reads_reversed_of_damaged_files(tmp_path, content, why):
    path = tmp_path / "run.fits"
    path.write_bytes(content)
    with pytest.raises(RunError, match=rf"run\.fits .*{why}"):
        reads_reversed(path)
    with pytest.raises(RunError, match="cannot be read"):
        reads_reversed(tmp_path / "missing.fits")


@pytest.mark.realdata
def test_real_runs(gammapy_data, tmp_path):
    for obs_id in (20136, 23523, 47803):
        source = gammapy_data / f"hess-dl3-dr1/data/hess_dl3_dr1_obs_id_{obs_id:06d}.fits.gz"
        copy = tmp_path / source.name
        assert reads_reversed(source)
        attach_background(source, copy, background_3d())
        assert not reads_reversed(copy)
        assert other_hdus_digest(copy) == other_hdus_digest(source)
        assert parts(copy, "EVENTS")[1] == parts(source, "EVENTS")[1]
        assert {card[:8] for card in set(parts(copy, "EVENTS")[0]) ^ set(parts(source, "EVENTS")[0])} == {
            "CREATOR ",
            "HISTORY ",
        }
