"""Everything that can be wrong with an archive, where a user meets it: the job goes on, and says what was wrong."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.io.fits.verify import VerifyWarning
from helpers.kept_store import keep_store

from dask_bkg.compat import prepare_dataset, run_make_background
from dask_bkg.dl3.index import read_datastore, write_index
from dask_bkg.errors import ArchiveError, BackgroundError
from dask_bkg.simulate import simulate_archive
from dask_bkg.store.store import RunStore

pytestmark = pytest.mark.slow  # whole jobs, or simulations of many skies

GOOD, BAD = [64001, 64003, 64004], 64002


@pytest.fixture
def job(job, _four_runs, tmp_path, tmp_path_factory):
    """The shared fixture, with a run store that has the four runs already."""
    return keep_store(job, _four_runs, tmp_path, tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True, scope="module")
def _quiet():
    """What astropy says about files that are cut short is not ours to say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=VerifyWarning)
        warnings.filterwarnings("ignore", message=".*truncated.*")
        warnings.filterwarnings("ignore", message="Error validating header")
        yield


def events(hdus):
    return hdus["EVENTS"]


def drop_column(name):
    def change(hdus):
        columns = [column for column in events(hdus).columns if column.name != name]
        hdus["EVENTS"] = fits.BinTableHDU.from_columns(columns, events(hdus).header, name="EVENTS")

    return change


def no_rows(name):
    def change(hdus):
        hdus[name].data = hdus[name].data[:0]

    return change


def set_column(name, value, hdu="EVENTS"):
    def change(hdus):
        hdus[hdu].data[name][:] = value

    return change


def set_card(name, value):
    def change(hdus):
        events(hdus).header.pop(name) if value is None else events(hdus).header.set(name, value)

    return change


def no_gti(hdus):
    del hdus["GTI"]


def gti_without_stop(hdus):
    hdus["GTI"] = fits.BinTableHDU.from_columns([hdus["GTI"].columns["START"]], hdus["GTI"].header, name="GTI")


def gti_is_an_image(hdus):
    hdus["GTI"] = fits.ImageHDU(np.zeros((2, 2)), name="GTI")


def events_are_an_image(hdus):
    hdus["EVENTS"] = fits.ImageHDU(np.zeros((2, 2)), events(hdus).header, name="EVENTS")


def far_outside(hdus):
    """All events around the antipodes of the pointing."""
    table = events(hdus).data
    table["RA"][:], table["DEC"][:] = (table["RA"] + 180) % 360, -table["DEC"]


def text_for_energy(hdus):
    columns = [column for column in events(hdus).columns if column.name != "ENERGY"]
    words = fits.Column("ENERGY", "3A", array=np.full(len(events(hdus).data), "big"))
    hdus["EVENTS"] = fits.BinTableHDU.from_columns([*columns, words], events(hdus).header, name="EVENTS")


def cut_plain(path):
    """Half of a plain file, although it is named .gz."""
    data = gzip.decompress(path.read_bytes())
    path.write_bytes(data[: len(data) // 3])


FILE_FAULTS = {
    "missing": (Path.unlink, "does not exist"),
    "a directory": (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
    "empty": (lambda path: path.write_bytes(b""), "FITS"),
    "not FITS": (lambda path: path.write_text("<html>404 Not found</html>" * 200), "FITS"),
    "cut gzip": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "copy it again"),
    "cut plain": (cut_plain, "copy it again"),
    "damaged gzip": (lambda path: path.write_bytes(path.read_bytes()[:3000] + b"\0" * 20_000), "copy it again"),
}
HDU_FAULTS = {
    "no event rows": (no_rows("EVENTS"), "EVENTS of .* has no rows"),
    "no RA": (drop_column("RA"), "no column RA"),
    "no DEC": (drop_column("DEC"), "no column DEC"),
    "no ENERGY": (drop_column("ENERGY"), "no column ENERGY"),
    "text for ENERGY": (text_for_energy, "ENERGY .* no numbers"),
    "NaN energies": (set_column("ENERGY", np.nan), r"none of the \d+ events .* energy > 0"),
    "negative energies": (set_column("ENERGY", -1.0), r"none of the \d+ events .* energy > 0"),
    "NaN positions": (set_column("RA", np.nan), r"none of the \d+ events"),
    "far outside": (far_outside, r"none of the \d+ events .* check the pointing"),
    "no pointing": (set_card("RA_PNT", None), "no pointing"),
    "pointing is no number": (set_card("DEC_PNT", "zenith"), "DEC_PNT = 'zenith'"),
    "pointing out of the sky": (set_card("DEC_PNT", 400.0), "no pointing"),
    "no GTI": (no_gti, "no GTI HDU"),
    "no GTI rows": (no_rows("GTI"), "no good time interval"),
    "no GTI stop": (gti_without_stop, "no good time interval"),
    "GTI backwards": (set_column("STOP", 0.0, "GTI"), "add up to no time"),
    "NaN in GTI": (set_column("STOP", np.nan, "GTI"), "add up to no time"),
    "GTI is an image": (gti_is_an_image, "GTI"),
    "EVENTS are an image": (events_are_an_image, "no column RA, DEC, ENERGY"),
    "unknown unit": (lambda hdus: events(hdus).columns.change_unit("ENERGY", "furlong"), "'furlong'.* TeV"),
}


def finished_runs(directory: Path) -> list[int]:
    """Runs in the index that have a background whose HDU is in the file."""
    rows = read_datastore(directory).hdu
    done = []
    for row in rows[rows["HDU_TYPE"] == "bkg"]:
        with fits.open(directory / row["FILE_DIR"] / row["FILE_NAME"]) as hdus:
            assert row["HDU_NAME"] in hdus
        done.append(int(row["OBS_ID"]))
    return done


def check_one_failed(job, archive, tmp_path, match):
    """The bad run is in ``failed_runs`` with its reason, and the others are done."""
    finished = run_make_background(job(archive))
    failed = finished["run_selection"]["failed_runs"]
    assert list(failed) == [BAD]
    assert str(BAD) in failed[BAD]
    assert pytest.raises(AssertionError, match=match).matches(AssertionError(failed[BAD])), failed[BAD]
    assert finished_runs(tmp_path / "out") == GOOD
    assert not [path.name for path in (tmp_path / "out").rglob(".*")]


def rewrite(path: Path, change) -> None:
    with fits.open(path, memmap=False) as opened:
        hdus = fits.HDUList([hdu.copy() for hdu in opened])
    change(hdus)
    hdus.writeto(path, overwrite=True)


FAULTS = {**FILE_FAULTS, **{name: (None, match) for name, (_, match) in HDU_FAULTS.items()}}
BROKEN = dict(zip(FAULTS, range(64003, 64100), strict=False))
"""An archive in which each run is broken in a way of its own, between two that are whole."""


@pytest.fixture(scope="module")
def many_faults(tmp_path_factory):
    """That archive and what became of it: ``(directory of the output, failed_runs, results of a second job)``."""
    base = tmp_path_factory.mktemp("faults")
    simulate_archive(base / "in", runs=2 + len(FAULTS), events=300, seed=5, sources=False, stars=False)
    for fault, obs_id in BROKEN.items():
        path = base / "in" / "data" / f"run_{obs_id:06d}.fits.gz"
        if fault in FILE_FAULTS:
            FILE_FAULTS[fault][0](path)
        else:
            rewrite(path, HDU_FAULTS[fault][0])
    (base / "stars.dat").write_text("10.0 -80.0 1 4.0 0.1\n")
    io = dict.fromkeys(("search_datastore", "in_dir"), str(base / "in"))
    config = {
        "cluster": "threads", "exclusion": {"catalogs": [], "star_cat": str(base / "stars.dat")},
        "io": {**io, "out_dir": str(base / "out"), "from_run": True},
    }  # fmt: skip
    once, again = (run_make_background(config, progress=False)["run_selection"] for _ in range(2))
    return base / "out", once["failed_runs"], again["failed_runs"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_run_among_others(many_faults, fault):
    """Its reason is told, with its number."""
    _, failed, _ = many_faults
    reason = failed[BROKEN[fault]]
    assert f"{BROKEN[fault]}" in reason
    assert pytest.raises(AssertionError, match=FAULTS[fault][1]).matches(AssertionError(reason)), reason


def test_the_whole_runs_among_broken_ones_are_done(many_faults):
    out, failed, again = many_faults
    assert sorted(failed) == sorted(BROKEN.values())
    assert finished_runs(out) == [64001, 64002]
    assert not [path.name for path in out.rglob(".*")]
    # kept with their reasons, which are told again
    assert again == failed
    assert RunStore.open(out / "results/runs.zarr").errors(sorted(failed)) == failed


@pytest.mark.parametrize("fault", ["missing", "cut gzip"])
def test_a_broken_contributing_run(job, four_runs, run_path, tmp_path, fault):
    """Its own target fails for want of a file to copy; the others are made without it."""
    FILE_FAULTS[fault][0](run_path(four_runs, BAD))
    every = {"rank": "none"}
    finished = run_make_background(job(four_runs, io={"from_run": False}, background_selection=every))
    assert list(finished["run_selection"]["failed_runs"]) == [BAD]
    assert finished_runs(tmp_path / "out") == GOOD
    told = json.loads((tmp_path / "out/results/provenance.json").read_text())
    assert told["unusable_runs"] == {str(BAD): finished["run_selection"]["failed_runs"][BAD]}
    others = [sorted(told["backgrounds"][str(run)]["contributing_runs"]) for run in GOOD]
    assert others == [[run for run in GOOD if run != target] for target in GOOD]


def test_a_broken_run_of_a_list_by_hand(job, four_runs, run_path, tmp_path):
    """It was asked for: the target says that it is not there."""
    run_path(four_runs, BAD).unlink()
    lists = {64001: [BAD, 64003], 64003: [BAD], 64004: [64001, 5]}
    finished = run_make_background(
        job(four_runs, io={"from_run": False}, background_selection={"bkg_runlist": lists})
    )
    failed = finished["run_selection"]["failed_runs"]
    assert "none of the runs of its background_selection.bkg_runlist" in failed[64003]
    assert "restore it" in failed[64003]
    told = json.loads((tmp_path / "out/results/provenance.json").read_text())["backgrounds"]
    assert told["64001"]["contributing_runs"] == [64003]
    assert list(told["64001"]["failed_runs"]) == [str(BAD)]
    assert "1 contributing runs could not be used" in told["64001"]["reason"]
    assert "not in io.search_datastore" in told["64004"]["failed_runs"]["5"]
    # what the user wrote stays the user's
    assert finished["background_selection"]["bkg_runlist"] == lists


def test_a_contributing_run_that_the_plan_leaves_out(job, four_runs):
    """No target itself, and its path leads outside: it is reported like one that cannot be read."""
    store = read_datastore(four_runs)
    rows = store.hdu["OBS_ID"] == BAD
    store.hdu["FILE_DIR"] = np.where(rows, "../..", store.hdu["FILE_DIR"])
    write_index(four_runs, store.hdu, store.obs)
    finished = run_make_background(job(four_runs, io={"from_run": False}, run_selection={"runlist": [64001]}))
    assert list(finished["run_selection"]["failed_runs"]) == [BAD]


@pytest.mark.parametrize("fault", ["missing", "cut gzip"])
def test_a_broken_file_through_preparation(job, four_runs, run_path, tmp_path, fault):
    """`prepare_dataset` and `run_make_background`, as `dask-bkg run` does both: the run is still reported."""
    FILE_FAULTS[fault][0](run_path(four_runs, BAD))
    prepared = prepare_dataset(job(four_runs, io={"in_dir": str(tmp_path / "in")}))
    finished = run_make_background(prepared)["run_selection"]
    assert finished_runs(tmp_path / "out") == GOOD
    reported = {**finished["failed_runs"], **dict.fromkeys(finished["missing_runs"], "missing")}
    assert list(reported) == [BAD]


BAD_EVENTS = {
    "NaN energy": lambda table: table["ENERGY"].__setitem__(slice(0, 50), np.nan),
    "negative energy": lambda table: table["ENERGY"].__setitem__(slice(0, 50), -2.0),
    "zero energy": lambda table: table["ENERGY"].__setitem__(slice(0, 50), 0.0),
    "no position": lambda table: table["DEC"].__setitem__(slice(0, 50), np.inf),
    "40 deg away": lambda table: table["DEC"].__setitem__(slice(0, 50), table["DEC"][:50] - 40),
}


def test_a_few_bad_events_are_left_out(job, four_runs, run_path, tmp_path):
    """The same background, bit for bit, as without these events."""
    archives = {name: tmp_path / name for name in ("with", "without")}
    simulate_archive(archives["with"], len(BAD_EVENTS), 500, seed=3, sources=False, stars=False)
    shutil.copytree(archives["with"], archives["without"])
    for obs_id, change in enumerate(BAD_EVENTS.values(), start=64001):
        rewrite(run_path(archives["with"], obs_id), lambda hdus, change=change: change(events(hdus).data))
        rewrite(
            run_path(archives["without"], obs_id), lambda hdus: setattr(events(hdus), "data", events(hdus).data[50:])
        )
    found = {}
    for name, archive in archives.items():
        out = tmp_path / f"out-{name}"
        assert run_make_background(job(archive, io={"out_dir": str(out)}))["run_selection"]["failed_runs"] == {}
        found[name] = [fits.getdata(path, "BACKGROUND")["BKG"].tobytes() for path in sorted(out.glob("data/*"))]
    assert len(found["with"]) == len(set(found["with"])) == len(BAD_EVENTS)
    assert found["with"] == found["without"]


# --- directories and indices -------------------------------------------------------------------------------


def test_missing_empty_and_foreign_directories(job, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    (tmp_path / "file").touch()
    reasons = {"nowhere": "no directory", "empty": "nothing", "photos": "hdu-index", "file": "not a directory"}
    for name, match in reasons.items():
        for step in (run_make_background, prepare_dataset):
            with pytest.raises(ArchiveError, match=match) as caught:
                step(job(tmp_path / name))
            assert str(tmp_path / name) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_search_datastore_is_missing(job, four_runs, tmp_path):
    config = job(four_runs, io={"from_run": False, "search_datastore": str(tmp_path / "nowhere")})
    with pytest.raises(ArchiveError, match="nowhere"):
        run_make_background(config)


@pytest.mark.parametrize("name", ["hdu-index.fits.gz", "obs-index.fits.gz"])
def test_a_cut_index(job, four_runs, name):
    path = four_runs / name
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ArchiveError, match=name):
        run_make_background(job(four_runs))


def test_the_same_run_twice_in_the_index(job, four_runs, tmp_path, caplog):
    """Equal rows are one run; different event lists are an error of that run; different conditions of the archive."""
    store = read_datastore(four_runs)
    double = np.append(np.arange(len(store.hdu)), np.flatnonzero(store.hdu["OBS_ID"] == BAD))
    write_index(four_runs, store.hdu[double], store.obs[[0, 1, 1, 2, 3]])
    assert run_make_background(job(four_runs))["run_selection"]["failed_runs"] == {}
    assert finished_runs(tmp_path / "out") == sorted([*GOOD, BAD])
    assert "64002" in caplog.text

    hdu, obs = store.hdu[double], store.obs[[0, 1, 1, 2, 3]]
    hdu["FILE_NAME"][len(store.hdu) :] = "run_064001.fits.gz"
    write_index(four_runs, hdu, store.obs)
    failed = run_make_background(job(four_runs))["run_selection"]["failed_runs"]
    assert list(failed) == [BAD]
    assert "several rows" in failed[BAD]

    obs["RA_PNT"][2] += 1
    write_index(four_runs, store.hdu, obs)
    with pytest.raises(ArchiveError, match=r"different rows for .*64002"):
        run_make_background(job(four_runs))


@pytest.mark.parametrize("where", ["name", "directory", "absolute", "link"])
def test_a_path_that_leads_outside(job, four_runs, run_path, tmp_path, where):
    """It is followed, and nothing is written outside of ``out_dir``."""
    secret = tmp_path / "secret" / "run.fits.gz"
    secret.parent.mkdir()
    shutil.copy(run_path(four_runs, BAD), secret)
    before = secret.read_bytes()
    store = read_datastore(four_runs)
    rows = store.hdu["OBS_ID"] == BAD
    if where == "link":
        run_path(four_runs, BAD).unlink()
        run_path(four_runs, BAD).symlink_to(secret)
    else:
        file_dir, name = {
            "name": ("", "../secret/run.fits.gz"),
            "directory": ("data/../../secret", "run.fits.gz"),
            "absolute": (str(secret.parent), "run.fits.gz"),
        }[where]
        store.hdu["FILE_DIR"] = np.where(rows, file_dir, store.hdu["FILE_DIR"])
        store.hdu["FILE_NAME"] = np.where(rows, name, store.hdu["FILE_NAME"])
        write_index(four_runs, store.hdu, store.obs)
    # it is read where the index leads, and the copy lies below out_dir
    out = tmp_path / "named" / "out"
    run_make_background(job(four_runs, io={"out_dir": str(out)}))
    assert finished_runs(out) == sorted([*GOOD, BAD])
    assert {path.name for path in (tmp_path / "named").iterdir()} == {"out"}
    assert secret.read_bytes() == before
    assert [path.name for path in secret.parent.iterdir()] == ["run.fits.gz"]


def test_out_dir_leads_outside_through_a_link(job, four_runs, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BackgroundError, match="outside"):
        run_make_background(job(four_runs))
    assert list((tmp_path / "elsewhere").iterdir()) == []


# --- runs and cuts -----------------------------------------------------------------------------------------


def test_a_run_that_the_archive_does_not_have(job, four_runs, tmp_path):
    config = job(four_runs, run_selection={"runlist": [64001, 1, 64003]}, io={"in_dir": str(tmp_path / "in")})
    prepared = prepare_dataset(config)
    assert prepared["run_selection"]["missing_runs"] == [1]
    finished = run_make_background(prepared)["run_selection"]
    assert (finished["missing_runs"], finished["failed_runs"]) == ([1], {})
    assert finished_runs(tmp_path / "out") == [64001, 64003]
    for step in (prepare_dataset, run_make_background):
        with pytest.raises(ArchiveError, match=r"none of the .*runs"):
            step(job(four_runs, run_selection={"runlist": [1, 2]}))


def test_no_run_matches_the_cuts(job, four_runs):
    cuts = {"el_min": 20, "az_diff": 170, "nsb_diff": 0.0001}
    with pytest.raises(BackgroundError) as caught:
        run_make_background(job(four_runs, io={"from_run": False}, background_selection=cuts))
    for obs_id in (*GOOD, BAD):
        assert f"run {obs_id}: no run of the archive passes background_selection" in str(caught.value)
    assert "other runs: 3, el_min 20 deg: 3, az_diff 170 deg: 3, nsb_diff 0.0001: 0" in str(caught.value)


NIGHT_SKY = [6.0, 60.0, 6.1, 6.2]


def check_night_sky(job, archive, tmp_path):
    """The run whose night sky nobody shares fails, the others are made."""
    config = job(archive, io={"from_run": False}, background_selection={"nsb_diff": 1})
    failed = run_make_background(config)["run_selection"]["failed_runs"]
    assert list(failed) == [BAD]
    assert "nsb_diff 1: 0" in failed[BAD]
    assert finished_runs(tmp_path / "out") == GOOD


def test_no_run_matches_the_cuts_of_one_target(job, four_runs, run_path, edit_run, tmp_path):
    for obs_id, level in enumerate(NIGHT_SKY, start=64001):
        edit_run(run_path(four_runs, obs_id), set_card("NSBLEVEL", level))
    check_night_sky(job, four_runs, tmp_path)


def test_the_night_sky_of_the_index(job, four_runs, run_path, edit_run, tmp_path):
    """An archive whose files say nothing of it, and whose obs-index does."""
    for obs_id in (*GOOD, BAD):
        edit_run(run_path(four_runs, obs_id), set_card("NSBLEVEL", None))
    store = read_datastore(four_runs)
    store.obs["NSBLEVEL"] = NIGHT_SKY
    write_index(four_runs, store.hdu, store.obs)
    check_night_sky(job, four_runs, tmp_path)


# --- where nothing can be written --------------------------------------------------------------------------


@pytest.mark.parametrize("attach", ["copy", "index"])
@pytest.mark.parametrize("place", ["out_dir", "results_dir", "in_dir"])
def test_a_directory_that_cannot_be_made(job, four_runs, tmp_path, attach, place):
    (tmp_path / "file").touch()
    io = {"attach": attach, place: str(tmp_path / "file" / "below")}
    step = prepare_dataset if place == "in_dir" else run_make_background
    with pytest.raises(BackgroundError, match="cannot be written") as caught:
        step(job(four_runs, io=io))
    assert str(tmp_path / "file") in str(caught.value)


FULL_DISK = """
import json, resource, sys
from dask_bkg.compat import run_make_background
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
print(json.dumps(run_make_background(json.loads(sys.argv[1]))["run_selection"]["failed_runs"]))
"""


def on_a_full_disk(config, limit) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", FULL_DISK, json.dumps(config), str(limit)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_disk_that_gets_full(job, four_runs, run_path, edit_run, tmp_path):
    """The run that does not fit fails with the reason; nothing broken is left."""
    noise = fits.ImageHDU(np.random.default_rng(1).integers(0, 255, 300_000, dtype=np.uint8), name="PICTURE")
    edit_run(run_path(four_runs, BAD), lambda hdus: hdus.append(noise))
    done = on_a_full_disk(job(four_runs), 200_000)
    assert done.returncode == 0, done.stderr
    failed = json.loads(done.stdout.splitlines()[-1])
    assert list(failed) == [str(BAD)]
    assert "full" in failed[str(BAD)]
    assert finished_runs(tmp_path / "out") == GOOD
    assert not [path.name for path in (tmp_path / "out").rglob(".*")]


def test_a_disk_that_is_full(job, four_runs, tmp_path):
    done = on_a_full_disk(job(four_runs), 100)
    assert done.returncode != 0
    assert "cannot be written" in done.stderr
    assert "make room" in done.stderr.lower()
    assert not [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()]
