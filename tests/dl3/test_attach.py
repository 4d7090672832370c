"""Attach a background: one new HDU, every other byte as it was, and a word about every damaged file."""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from gammapy.data import DataStore
from gammapy.irf import Background2D

from dask_bkg.binning import Edges, FieldEdges
from dask_bkg.dl3 import attach
from dask_bkg.dl3.attach import attach_background, has_background, other_hdus_digest, split_hdus, write_background
from dask_bkg.dl3.background import background_table
from dask_bkg.dl3.copies import copy_file
from dask_bkg.errors import ArchiveError, RunError

ENERGY = np.geomspace(0.1, 100, 7)
RATES = np.linspace(1.0, 6.0, 6).reshape(1, 2, 3)


def background_2d() -> fits.BinTableHDU:
    """Two offset rings, three energies, as an independent program would write them."""
    columns = [
        fits.Column("ENERG_LO", "3E", "TeV", array=[[0.1, 1, 10]]),
        fits.Column("ENERG_HI", "3E", "TeV", array=[[1, 10, 100]]),
        fits.Column("THETA_LO", "2E", "deg", array=[[0, 1]]),
        fits.Column("THETA_HI", "2E", "deg", array=[[1, 2]]),
        fits.Column("BKG", "6E", "s-1 MeV-1 sr-1", dim="(3,2)", array=RATES),
    ]
    return fits.BinTableHDU.from_columns(columns)


def table(name: str, rows: int = 5, **cards: str) -> fits.BinTableHDU:
    column = fits.Column("VALUE", "D", array=np.random.default_rng(len(name) + rows).normal(size=rows))
    hdu = fits.BinTableHDU.from_columns([column], name=name)
    hdu.header.update({key.upper(): value for key, value in cards.items()})
    return hdu


def old_background(name: str = "bkg") -> fits.BinTableHDU:
    return table(name, hduclas1="RESPONSE", hduclas2="BKG", hduclas4="BKG_3D")


def to_bytes(*hdus) -> bytes:
    buffer = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(buffer)
    return buffer.getvalue()


def run_bytes(*more) -> bytes:
    """A run whose bytes astropy would not write: a number in a format of its own, a heap, an old background."""
    heap = fits.Column("LISTS", "PJ()", array=np.array([np.arange(3), np.arange(700)], dtype=object))
    hdus = [
        table("EVENTS", 999, hduclass="GADF", hduclas1="EVENTS", ontime=1682.0),
        fits.BinTableHDU.from_columns([heap], name="GTI"),
        old_background(),
        table("AEFF", hduclas2="EFF_AREA"),
    ]
    data = to_bytes(*hdus, *more)
    usual, own = b"ONTIME  =               1682.0", b"ONTIME  =                1682."
    assert data.count(usual) == 1
    return data.replace(usual, own)


def cut_by_astropy(path: Path) -> dict[str, list[bytes]]:
    """EXTNAME -> bytes of its HDUs, from astropy's bookkeeping instead of ours."""
    data = path.read_bytes()
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    found: dict[str, list[bytes]] = {}
    with fits.open(io.BytesIO(data)) as hdus:
        for hdu in hdus:
            info = hdu.fileinfo()
            found.setdefault(hdu.name, []).append(data[info["hdrLoc"] : info["datLoc"] + info["datSpan"]])
    return found


@pytest.fixture
def run(tmp_path) -> Path:
    path = tmp_path / "run.fits"
    path.write_bytes(run_bytes())
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("suffix", [".fits", ".fits.gz"])
def test_all_other_hdus_keep_their_bytes(tmp_path, packed, suffix):
    data = run_bytes()
    source = tmp_path / "run.fits"  # by magic bytes: also a gzipped file that is called .fits
    source.write_bytes(gzip.compress(data) if packed else data)
    target = tmp_path / "out" / f"run{suffix}"
    before = cut_by_astropy(source)

    assert attach_background(source, target, background_2d()) == "BACKGROUND"

    after = cut_by_astropy(target)
    assert list(after) == ["PRIMARY", "EVENTS", "GTI", "AEFF", "BACKGROUND"]
    assert all(before[name] == after[name] for name in ("PRIMARY", "EVENTS", "GTI", "AEFF"))
    assert b"ONTIME  =                1682." in after["EVENTS"][0]
    assert (target.read_bytes()[:2] == b"\x1f\x8b") == suffix.endswith(".gz")
    assert source.read_bytes() == (gzip.compress(data) if packed else data) or packed
    np.testing.assert_array_equal(fits.getdata(target, "BACKGROUND")["BKG"], RATES)


def test_the_digest_sees_other_hdus_and_not_the_backgrounds(run, tmp_path):
    names = ["PRIMARY", "EVENTS", "GTI", "AEFF"]
    expected = [hashlib.sha256(cut_by_astropy(run)[name][0]).hexdigest() for name in names]
    assert other_hdus_digest(run) == list(zip(["", *names[1:]], expected, strict=True))
    attach_background(run, tmp_path / "new.fits.gz", background_2d())
    assert other_hdus_digest(tmp_path / "new.fits.gz") == other_hdus_digest(run)
    run.write_bytes(run.read_bytes().replace(b"                1682.", b"                1683."))
    changed = [old[0] for old, new in zip(other_hdus_digest(run), expected, strict=True) if old[1] != new]
    assert changed == ["EVENTS"]


@pytest.mark.parametrize(
    ("name", "cards", "dropped"),
    [
        ("bkg", {"hduclas2": "BKG"}, True),
        ("ANY", {"hduclas2": "BKG"}, True),
        ("ANY", {"hduclas4": "BKG_2D"}, True),
        ("ANY", {"hduclas4": "BKG_3D"}, True),
        ("Background", {}, True),
        ("bkg", {"hduclas1": "RESPONSE"}, True),
        ("BKG", {"hduclas2": "EFF_AREA"}, False),
        ("BKG_RATE_CHECK", {}, False),
        ("PSF", {"hduclas2": "RPSF", "hduclas4": "PSF_TABLE"}, False),
    ],
)
def test_what_is_a_background(tmp_path, name, cards, dropped):
    path = tmp_path / "run.fits"
    path.write_bytes(run_bytes(table(name, 7, **cards), old_background("BACKGROUND")))
    attach_background(path, path, background_2d())
    with fits.open(path) as hdus:
        kinds = [hdu.header.get("HDUCLAS2") for hdu in hdus]
        assert kinds.count("BKG") == 1
        assert ("VALUE" in hdus[-2].columns.names and len(hdus[-2].data) == 7) == (not dropped)


def test_another_hdu_of_that_name_is_not_hidden(tmp_path):
    path = tmp_path / "run.fits"
    path.write_bytes(run_bytes(table("BACKGROUND", 7, hduclas2="SKY_MAP")))
    name = attach_background(path, path, background_2d())
    assert name == "BACKGROUND_2"
    assert fits.getval(path, "HDUCLAS4", name) == "BKG_2D"
    assert len(fits.getdata(path, "BACKGROUND")) == 7
    assert attach_background(path, path, background_2d()) == name  # and it is replaced the next time


def test_cards_of_the_background(run):
    hdu = background_2d()
    hdu.header.update({"DATE": "2026-01-01", "CHECKSUM": "stale", "HDUCLAS3": "POINT-LIKE", "FOVALIGN": "ALTAZ"})
    before = hdu.header.tostring()
    donors = "run " * 40
    attach_background(run, run, hdu, cards={"BKGRUNS": (12, "contributing runs"), "BKGLIST": donors})
    header = fits.getheader(run, "BACKGROUND")
    expected = {"HDUCLASS": "GADF", "HDUCLAS1": "RESPONSE", "HDUCLAS2": "BKG", "HDUCLAS3": "FULL-ENCLOSURE"}
    expected |= {"HDUCLAS4": "BKG_2D", "HDUVERS": "0.3", "FOVALIGN": "ALTAZ", "BKGRUNS": 12}
    assert {key: header[key] for key in expected} == expected
    assert header["HDUDOC"].startswith("https://")
    assert header.comments["BKGRUNS"] == "contributing runs"
    assert header["BKGLIST"].strip() == donors.strip()
    assert "DATE" not in header
    assert {header.comments[key] for key in ("DATASUM", "CHECKSUM")} == {"data unit checksum", "HDU checksum"}
    with fits.open(run, checksum=True) as hdus:
        assert hdus["BACKGROUND"].verify_checksum() == hdus["BACKGROUND"].verify_datasum() == 1
    assert hdu.header.tostring() == before  # the caller's HDU is not touched


def test_alignment_is_always_written_and_3d_is_recognised(run):
    hdu = fits.BinTableHDU.from_columns([fits.Column("DETX_LO", "2E", array=[[0, 1]])])
    attach_background(run, run, hdu)
    header = fits.getheader(run, "BACKGROUND")
    assert (header["FOVALIGN"], header["HDUCLAS4"]) == ("RADEC", "BKG_3D")


@pytest.mark.parametrize("suffix", [".fits", ".fits.gz"])
def test_same_input_same_bytes(run, tmp_path, suffix):
    first, second = tmp_path / f"a{suffix}", tmp_path / "other" / f"b{suffix}"
    attach_background(run, first, background_2d())
    attach_background(first, second, background_2d())  # twice is once
    assert first.read_bytes() == second.read_bytes()
    if suffix.endswith(".gz"):
        assert first.read_bytes()[4:8] == b"\0\0\0\0"  # the time in the gzip header


@pytest.mark.parametrize("edges", [Edges(ENERGY, np.linspace(0, 2.5, 4)), FieldEdges(ENERGY, np.linspace(-2, 2, 6))])
def test_the_bytes_of_a_background_are_those_that_astropy_writes(edges, tmp_path):
    """Our own writer is for speed: apart from the sums nothing differs."""
    rate = np.random.default_rng(2).uniform(0, 1, edges.shape)
    background = background_table(rate, edges, {"BKGHOURS": (1.5, "[h] ontime")}, alignment="ALTAZ")
    write_background(tmp_path / "ours.fits", background)
    with fits.open(tmp_path / "ours.fits", checksum=True) as hdus:
        assert hdus[1].name == "BACKGROUND"
        assert all((hdus[1].data[name] == background.data[name]).all() for name in background.columns.names)
        astropys = fits.BinTableHDU(background.data, hdus[1].header)
        fits.HDUList([hdus[0], astropys]).writeto(tmp_path / "astropys.fits", output_verify="exception")
    assert (tmp_path / "ours.fits").read_bytes() == (tmp_path / "astropys.fits").read_bytes()


def test_in_place_and_an_interruption_leaves_the_run(run, monkeypatch):
    before = run.read_bytes()
    complete = attach.write_pieces

    def interrupted(path, pieces, compress):
        complete(path, pieces[:2], compress)
        raise KeyboardInterrupt

    monkeypatch.setattr(attach, "write_pieces", interrupted)
    with pytest.raises(KeyboardInterrupt):
        attach_background(run, run, background_2d())
    assert run.read_bytes() == before
    assert [path.name for path in run.parent.iterdir()] == ["run.fits"]
    monkeypatch.undo()
    attach_background(run, run, background_2d())
    assert list(cut_by_astropy(run)) == ["PRIMARY", "EVENTS", "GTI", "AEFF", "BACKGROUND"]


@pytest.mark.slow
def test_every_truncation_is_told(run, tmp_path):
    whole, target = run.read_bytes(), tmp_path / "out.fits"
    target.write_bytes(b"old")
    with fits.open(run) as hdus:
        parts = [(hdu.fileinfo(), hdu.size) for hdu in hdus]
    # A file that ends between two HDUs, or in the filling after one, cannot be told from a whole one.
    filling = {
        at for info, size in parts for at in range(info["datLoc"] + size, info["datLoc"] + info["datSpan"] + 1)
    }
    filling |= set(range(whole.index(b"END" + b" " * 77) + 80, 2881))  # the primary HDU has no data
    last_byte = parts[-1][0]["datLoc"] + parts[-1][1] - 1
    for length in {*range(1, last_byte, 97), last_byte} - filling:
        run.write_bytes(whole[:length])
        with pytest.raises(RunError, match=r"run\.fits is (truncated|not a FITS file)"):
            attach_background(run, target, background_2d())
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize("missing", [1, 9, 1000])
def test_a_truncated_gzip_stream_is_told(tmp_path, missing):
    source = tmp_path / "run.fits.gz"
    source.write_bytes(gzip.compress(run_bytes())[:-missing])
    with pytest.raises(RunError, match=r"run\.fits\.gz is truncated: its gzip stream"):
        attach_background(source, tmp_path / "out.fits", background_2d())


def test_a_damaged_gzip_stream_is_told(tmp_path):
    data = bytearray(gzip.compress(run_bytes()))
    data[len(data) // 2] ^= 0xFF
    source = tmp_path / "run.fits.gz"
    source.write_bytes(data)
    with pytest.raises(RunError, match=r"run\.fits\.gz is damaged|truncated"):
        attach_background(source, tmp_path / "out.fits", background_2d())


def test_the_message_says_what_is_missing(run):
    run.write_bytes(run.read_bytes()[: 2 * 2880 + 2880])
    with pytest.raises(RunError, match=r"\d+ bytes of HDU 1 \(EVENTS\) are missing.*Get it again"):
        attach_background(run, run, background_2d())


@pytest.mark.parametrize(
    "content", [b"", b"<html>Not found</html>", b"\x1f\x8b\x08 no gzip", gzip.compress(b"text", mtime=0)]
)
def test_what_is_not_fits_is_told(run, content):
    run.write_bytes(content)
    with pytest.raises(RunError, match=r"run\.fits"):
        attach_background(run, run, background_2d())
    assert run.read_bytes() == content


@pytest.mark.parametrize(
    ("card", "damaged"),
    [
        (b"NAXIS1  =                    8", b"NAXIS1  =                   -8"),
        (b"NAXIS1  =                    8", b"NAXIS1  = 'eight   '          "),
        (b"BITPIX  =                    8", b"BITPAX  =                    8"),
    ],
)
def test_a_header_that_does_not_give_the_size(run, card, damaged):
    run.write_bytes(run.read_bytes().replace(card, damaged))
    with pytest.raises(RunError, match="header of HDU 1 does not give the size"):
        attach_background(run, run, background_2d())


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(RunError, match=r"no\.fits cannot be read \(No such file"):
        attach_background(tmp_path / "no.fits", tmp_path / "out.fits", background_2d())
    with pytest.raises(RunError, match="Is a directory"):
        attach_background(tmp_path, tmp_path / "out.fits", background_2d())


def test_a_target_that_cannot_be_written_is_the_archives_fault(run):
    with pytest.raises(ArchiveError, match="cannot be written"):
        attach_background(run, run / "below a file" / "run.fits", background_2d())


def test_filling_at_the_end_of_the_file(run):
    whole = run.read_bytes()
    expected = other_hdus_digest(run)
    run.write_bytes(whole + b"\0" * 2880 * 3)  # as from tape
    assert other_hdus_digest(run) == expected
    run.write_bytes(whole.rstrip(b"\0"))  # the last block is not filled up
    assert len(run.read_bytes()) < len(whole)
    attach_background(run, run, background_2d())
    assert other_hdus_digest(run) == expected
    np.testing.assert_array_equal(fits.getdata(run, "BACKGROUND")["BKG"], RATES)


def test_a_last_header_that_is_not_filled_up(tmp_path):
    path = tmp_path / "run.fits"
    end = to_bytes().index(b"END" + b" " * 77) + 80
    path.write_bytes(to_bytes()[:end])
    attach_background(path, path, background_2d())
    assert cut_by_astropy(path)["PRIMARY"] == [to_bytes()]


def test_a_last_ascii_table_that_is_not_filled_up(tmp_path):
    path = tmp_path / "run.fits"
    whole = to_bytes(fits.TableHDU.from_columns([fits.Column("A", "I6", array=np.arange(7))]))
    path.write_bytes(whole.rstrip(b" "))
    attach_background(path, path, background_2d())
    assert path.read_bytes().startswith(whole)


def test_something_else_between_the_hdus_is_not_dropped_in_silence(run):
    run.write_bytes(run.read_bytes().replace(b"XTENSION= 'BINTABLE'", b"XTENSJON= 'BINTABLE'"))
    with pytest.raises(RunError, match="neither the end nor the begin of HDU 1"):
        attach_background(run, run, background_2d())


def test_sizes_of_all_kinds_of_hdus(tmp_path):
    """Against astropy: images of several types, an ASCII table, random groups, a compressed image, a heap."""
    image = np.arange(2 * 3 * 400).reshape(2, 3, 400)
    ascii_table = fits.TableHDU.from_columns([fits.Column("A", "I6", array=np.arange(700))], name="TEXT")
    heap = fits.Column("L", "PD()", array=np.array([np.arange(5.0), np.arange(900.0)], dtype=object))
    hdus = [fits.PrimaryHDU(image.astype(np.uint8)), ascii_table, fits.BinTableHDU.from_columns([heap])]
    hdus += [fits.ImageHDU(image.astype(kind)) for kind in ("i2", "i4", "i8", "f4", "f8")]
    hdus += [fits.ImageHDU(), fits.CompImageHDU(image[0].astype("i4"), tile_shape=(1, 400))]
    groups = fits.GroupData(image[:, None, None].astype("f4"), bitpix=-32, parnames=["U"], pardata=[np.ones(2)])
    for number, content in enumerate([fits.HDUList(hdus), fits.HDUList([fits.GroupsHDU(groups)])]):
        path = tmp_path / f"{number}.fits"
        content.writeto(path)
        with fits.open(path, disable_image_compression=True) as found:
            expected = [hdu.fileinfo()["datLoc"] + hdu.fileinfo()["datSpan"] for hdu in found]
        lengths = [len(piece.raw) for piece in split_hdus(path.read_bytes())]
        assert np.cumsum(lengths).tolist() == expected


def test_a_file_of_its_own(tmp_path):
    path = tmp_path / "bkg" / "bkg_1.fits.gz"
    assert write_background(path, background_2d(), cards={"BKGRUNS": 3}) == "BACKGROUND"
    background = Background2D.read(path, hdu="BACKGROUND")
    np.testing.assert_array_equal(background.quantity.to_value("s-1 MeV-1 sr-1").T, RATES[0])
    np.testing.assert_array_equal(background.axes["offset"].edges.to_value("deg"), [0, 1, 2])
    assert fits.getval(path, "BKGRUNS", "BACKGROUND") == 3
    first = path.read_bytes()
    write_background(path, background_2d(), cards={"BKGRUNS": 3})
    assert path.read_bytes() == first


@pytest.mark.parametrize("packed", [False, True])
def test_copies_are_kept_if_they_are_whole(tmp_path, packed):
    source, target = tmp_path / "run.fits", tmp_path / "in" / "run.fits"
    source.write_bytes(gzip.compress(run_bytes()) if packed else run_bytes())
    assert copy_file(source, target)
    assert target.read_bytes() == source.read_bytes()
    inode = target.stat().st_ino
    assert not copy_file(source, target)
    assert target.stat().st_ino == inode

    whole = source.read_bytes()
    for damaged in (whole[:-1], whole[:5000] + b"\0" * (len(whole) - 5000), b""):
        target.write_bytes(damaged)
        assert copy_file(source, target)
        assert target.read_bytes() == whole
    assert [path.name for path in target.parent.iterdir()] == ["run.fits"]


def test_copies_onto_themselves_and_from_nowhere(run, tmp_path):
    assert not copy_file(run, run)
    (tmp_path / "link.fits").symlink_to(run)
    assert not copy_file(run, tmp_path / "link.fits")
    run.write_bytes(run.read_bytes()[:4000])  # nor if it is damaged
    assert not copy_file(run, tmp_path / "link.fits")
    assert (tmp_path / "link.fits").is_symlink()
    with pytest.raises(RunError, match=r"no\.fits cannot be read"):
        copy_file(tmp_path / "no.fits", tmp_path / "out.fits")
    with pytest.raises(RunError, match="Is a directory"):
        copy_file(tmp_path, tmp_path / "out.fits")
    with pytest.raises(ArchiveError, match="cannot be written"):
        copy_file(run, run / "below a file" / "run.fits")


def test_a_copy_with_a_background_is_a_whole_copy(run, tmp_path):
    """It has another size and is kept; a source of which another HDU changed is copied again."""
    target = tmp_path / "in" / "run.fits"
    copy_file(run, target)
    attach_background(target, target, background_2d())
    before = target.read_bytes()
    assert before != run.read_bytes()
    assert not copy_file(run, target)
    assert target.read_bytes() == before
    assert has_background(target, "background", "bkg_2d")
    assert not has_background(target, "BACKGROUND", "bkg_3d")
    assert not has_background(target, "EVENTS", "bkg_2d")

    with fits.open(run, mode="update") as hdus:
        hdus["EVENTS"].header["CHANGED"] = True
    assert copy_file(run, target)
    assert target.read_bytes() == run.read_bytes()


def test_a_newer_source_of_the_same_size_is_copied(run, tmp_path):
    target = tmp_path / "copy.fits"
    copy_file(run, target)
    with fits.open(run, mode="update") as hdus:
        size = run.stat().st_size
        hdus["EVENTS"].header["EXTNAME"] = "EVENTS2"
    assert run.stat().st_size == size
    assert copy_file(run, target)
    assert target.read_bytes() == run.read_bytes()


def test_a_forced_copy_never_costs_the_file_that_was_there(run, tmp_path):
    whole = run.read_bytes()
    copy, symbolic, hard = (tmp_path / f"{name}.fits" for name in ("copy", "symbolic", "hard"))
    copy_file(run, copy)
    inode = copy.stat().st_ino
    assert copy_file(run, copy, force=True)
    assert copy.stat().st_ino != inode
    symbolic.symlink_to(run)
    hard.hardlink_to(run)
    for same in (run, symbolic, hard):
        assert not copy_file(run, same, force=True)
        assert not copy_file(same, run, force=True)
    assert run.read_bytes() == whole
    run.write_bytes(whole[:-2881])
    with pytest.raises(RunError, match="truncated"):
        copy_file(run, copy, force=True)
    run.unlink()
    with pytest.raises(RunError, match="cannot be read"):
        copy_file(run, copy, force=True)
    assert copy.read_bytes() == whole


@pytest.mark.realdata
def test_real_runs(gammapy_data, tmp_path):
    archive = gammapy_data / "hess-dl3-dr1"
    obs_ids = [20136, 23523, 47803]
    for name in ("hdu-index.fits.gz", "obs-index.fits.gz"):
        shutil.copy(archive / name, tmp_path)
    for obs_id in obs_ids:
        name = f"data/hess_dl3_dr1_obs_id_{obs_id:06d}.fits.gz"
        assert attach_background(archive / name, tmp_path / name, background_2d()) == "BACKGROUND"
        before, after = cut_by_astropy(archive / name), cut_by_astropy(tmp_path / name)
        assert list(before)[-1] == "BKG"
        assert list(after) == [*list(before)[:-1], "BACKGROUND"]
        assert all(before[hdu] == after[hdu] for hdu in list(before)[:-1])

    store = DataStore.from_dir(tmp_path)
    rows = store.hdu_table["HDU_TYPE"] == "bkg"
    store.hdu_table["HDU_NAME"] = store.hdu_table["HDU_NAME"].astype("U10")
    store.hdu_table["HDU_NAME"][rows] = "BACKGROUND"
    store.hdu_table["HDU_CLASS"][rows] = "bkg_2d"
    for obs in store.get_observations(obs_ids):
        assert isinstance(obs.bkg, Background2D)
        np.testing.assert_array_equal(obs.bkg.quantity.to_value("s-1 MeV-1 sr-1").T, RATES[0])
        assert len(obs.events.table) > 1000
