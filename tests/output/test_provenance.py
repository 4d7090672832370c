"""What a job leaves behind: index files that name what is there, whatever happened, and what it was made of."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from gammapy.data import DataStore
from helpers.index_files import OBS_IDS, add_old_background, backgrounds, broken_rows
from helpers.kept_store import keep_store

from dask_bkg.binning import Edges
from dask_bkg.compat import prepare_dataset, run_make_background
from dask_bkg.config import load_config, parse_config
from dask_bkg.dl3.index import read_datastore, write_index
from dask_bkg.errors import ArchiveError, BackgroundError
from dask_bkg.output.backgrounds import Backgrounds
from dask_bkg.output.provenance import config_hash, summary_table
from dask_bkg.output.write import Result
from dask_bkg.pipeline import graph as wiring
from dask_bkg.pipeline import run as pipeline

pytestmark = pytest.mark.slow  # whole jobs, or simulations of many skies


@pytest.fixture
def job(job, _four_runs, tmp_path, tmp_path_factory):
    """The shared fixture, with a run store that has the four runs already."""
    return keep_store(job, _four_runs, tmp_path, tmp_path_factory.getbasetemp())


def pieces(path: Path) -> dict[str, bytes]:
    """Bytes of each HDU, cut by astropy."""
    with fits.open(path) as hdus:
        info = {hdu.name: hdu.fileinfo() for hdu in hdus}
    data = subprocess.run(["gzip", "-dc", str(path)], capture_output=True, check=True).stdout
    return {name: data[i["hdrLoc"] : i["datLoc"] + i["datSpan"]] for name, i in info.items()}


# --- index files -------------------------------------------------------------------------------------------


def test_index_of_the_output(job, four_runs, tmp_path):
    store = read_datastore(four_runs)
    store.obs["WEATHER"] = ["A", "B", "C+ (clouds)", "A"]
    store.obs["L3RATE"] = np.array([300.5, np.nan, 250.0, 1.0], dtype="f4")
    write_index(four_runs, store.hdu, store.obs)
    run_make_background(job(four_runs, run_selection={"runlist": [64003, 64001]}))
    before, after = (Table.read(place / "obs-index.fits.gz", hdu=1) for place in (four_runs, tmp_path / "out"))
    assert after.colnames == before.colnames
    assert after["OBS_ID"].tolist() == [64001, 64003]
    for name in before.colnames:
        assert np.array_equal(after[name].tolist(), before[name][[0, 2]].tolist()), name
        assert after[name].unit == before[name].unit
    for card in ("MJDREFI", "TIMESYS", "GEOLON", "TELESCOP"):
        assert after.meta[card] == before.meta[card]
    assert broken_rows(tmp_path / "out") == []
    rows = read_datastore(tmp_path / "out").hdu
    assert set(rows["HDU_TYPE"]) == {"events", "gti", "aeff", "edisp", "psf", "bkg"}
    assert backgrounds(tmp_path / "out") == {i: (f"data/run_0{i}.fits.gz", "BACKGROUND") for i in (64001, 64003)}


@pytest.mark.parametrize("attach", ["copy", "index"])
def test_a_second_job_adds_its_runs(job, four_runs, tmp_path, attach):
    """From another archive; what our index records of the first is still to be read."""
    out, second = tmp_path / "out", Path(shutil.copytree(four_runs, tmp_path / "second"))
    run_make_background(job(four_runs, io={"attach": attach}, run_selection={"runlist": [64001, 64002]}))
    first = {path.name: path.read_bytes() for path in out.glob("*/*.fits.gz")}
    run_make_background(job(second, io={"attach": attach}, run_selection={"runlist": [64004]}))
    assert set(backgrounds(out)) == {64001, 64002, 64004}
    home = {"copy": [out, out], "index": [four_runs, second]}[attach]
    events = [read_datastore(out).location(obs_id, "events").path for obs_id in (64001, 64004)]
    assert [Path(path).parent.parent for path in events] == home
    assert broken_rows(out) == []
    assert len(first) == 2
    assert {name: next(out.glob(f"*/{name}")).read_bytes() for name in first} == first
    observations = DataStore.from_dir(out).get_observations(required_irf="full-enclosure")
    assert [obs.obs_id for obs in observations] == [64001, 64002, 64004]


def test_a_run_that_fails_keeps_what_it_had(job, four_runs, run_path, tmp_path):
    run_make_background(job(four_runs))
    run_path(four_runs, 64002).write_bytes(b"lost")
    finished = run_make_background(job(four_runs, binning={"e_bins": 12}))
    assert list(finished["run_selection"]["failed_runs"]) == [64002]
    assert set(backgrounds(tmp_path / "out")) == set(OBS_IDS)
    assert broken_rows(tmp_path / "out") == []
    shapes = [obs.bkg.data.shape[0] for obs in DataStore.from_dir(tmp_path / "out").get_observations()]
    assert shapes == [12, 30, 12, 12]


def test_attach_index_copies_no_event(job, four_runs, tmp_path):
    out = tmp_path / "deep" / "out"
    run_make_background(job(four_runs, io={"attach": "index", "out_dir": str(out)}))
    files = {str(path.relative_to(out)) for path in out.rglob("*.fits*")}
    assert files == {f"backgrounds/bkg_{i}.fits.gz" for i in OBS_IDS} | {"hdu-index.fits.gz", "obs-index.fits.gz"}
    rows = read_datastore(out).hdu
    assert set(rows["FILE_DIR"][rows["HDU_TYPE"] == "events"]) == {"../../four/data"}
    assert broken_rows(out) == []
    ours, theirs = DataStore.from_dir(out).obs(64002), DataStore.from_dir(four_runs).obs(64002, required_irf=[])
    assert len(ours.events.table) == len(theirs.events.table)
    assert ours.bkg.axes.names == ["energy", "offset"]
    # what our own index records may be read again, without io.data_dirs
    again = tmp_path / "again"
    run_make_background(job(out, io={"out_dir": str(again)}))
    assert set(backgrounds(again)) == set(OBS_IDS)
    assert broken_rows(again) == []


def test_attach_index_names_its_own_background_and_leaves_the_old(job, four_runs, run_path, edit_run, tmp_path):
    add_old_background(four_runs, run_path, edit_run)
    before = run_path(four_runs, 64001).read_bytes()
    run_make_background(job(four_runs, io={"attach": "index"}))
    assert backgrounds(tmp_path / "out")[64001] == ("backgrounds/bkg_64001.fits.gz", "BACKGROUND")
    assert run_path(four_runs, 64001).read_bytes() == before


def not_of_the_store(out: Path) -> dict[Path, bytes]:
    """Bytes of all files but those of the run store."""
    files = [path for path in out.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files if "runs.zarr" not in str(path.relative_to(out))}


# --- what goes wrong with the index ------------------------------------------------------------------------


@pytest.mark.parametrize("in_place", [False, True])
def test_a_row_that_names_a_missing_file_costs_its_run_alone(job, four_runs, run_path, tmp_path, in_place):
    move_out(four_runs, 64002, "psf", four_runs / "irfs" / "psf.fits", run_path)
    (four_runs / "irfs" / "psf.fits").unlink()
    out = four_runs if in_place else tmp_path / "out"
    failed = run_make_background(job(four_runs, io={"out_dir": str(out)}))["run_selection"]["failed_runs"]
    assert list(failed) == [64002]
    assert "psf.fits cannot be read" in failed[64002]
    assert set(backgrounds(out)) == set(OBS_IDS) - {64002}
    if not in_place:
        assert read_datastore(out).obs_ids.tolist() == [64001, 64003, 64004]
        assert broken_rows(out) == []
    summary = Table.read(out / "results/summary.ecsv")
    assert summary["STATUS"].tolist() == ["done", "failed", "done", "done"]


@pytest.mark.parametrize("attach", ["copy", "index"])
def test_a_row_that_leads_outside_is_followed(job, four_runs, run_path, tmp_path, attach):
    move_out(four_runs, 64003, "psf", tmp_path / "elsewhere" / "psf.fits", run_path)
    outside = (tmp_path / "elsewhere" / "psf.fits").read_bytes()
    finished = run_make_background(job(four_runs, io={"attach": attach}))
    assert not finished["run_selection"].get("failed_runs")
    assert set(backgrounds(tmp_path / "out")) == set(OBS_IDS)
    assert broken_rows(tmp_path / "out") == []
    assert (tmp_path / "elsewhere" / "psf.fits").read_bytes() == outside


@pytest.mark.parametrize("name", ["hdu-index.fits.gz", "obs-index.fits.gz"])
def test_an_index_that_cannot_be_read_is_told_before_any_work(job, four_runs, tmp_path, monkeypatch, name):
    out = tmp_path / "out"
    run_make_background(job(four_runs, run_selection={"runlist": [64001]}))
    (out / name).write_bytes((out / name).read_bytes()[:200])
    before = not_of_the_store(out)
    monkeypatch.setattr(pipeline, "_compute", lambda *args: pytest.fail("work was done"))
    with pytest.raises(ArchiveError, match=f"{name}.*would be lost"):
        run_make_background(job(four_runs, run_selection={"runlist": [64002]}))
    assert not_of_the_store(out) == before


def test_an_index_that_does_not_fit_is_told_before_any_work(job, four_runs, tmp_path, monkeypatch):
    run_make_background(job(four_runs, run_selection={"runlist": [64001]}))
    store = read_datastore(four_runs)
    store.obs["ONTIME"].unit = "m"  # of hours it could be read
    write_index(four_runs, store.hdu, store.obs)
    monkeypatch.setattr(pipeline, "_compute", lambda *args: pytest.fail("work was done"))
    with pytest.raises(ArchiveError, match="ONTIME"):
        run_make_background(job(four_runs, run_selection={"runlist": [64002]}))


@pytest.mark.parametrize("there", [False, True])
def test_a_job_that_ends_meanwhile_keeps_its_runs(job, four_runs, tmp_path, monkeypatch, there):
    """Two jobs into one directory: the second begins and ends while the first is at work."""
    if there:
        run_make_background(job(four_runs, run_selection={"runlist": [64002]}))
    write_block, seen = wiring.write_block, []

    def meanwhile(*args, **how):
        if not seen:
            seen.append(True)
            run_make_background(job(four_runs, run_selection={"runlist": [64003, 64004]}))
        return write_block(*args, **how)

    monkeypatch.setattr(wiring, "write_block", meanwhile)
    run_make_background(job(four_runs, run_selection={"runlist": [64001]}))
    expected = {64001, 64003, 64004} | ({64002} if there else set())
    assert set(backgrounds(tmp_path / "out")) == expected
    assert broken_rows(tmp_path / "out") == []
    told = json.loads((tmp_path / "out/results/provenance.json").read_text())
    assert set(told["backgrounds"]) == {str(obs_id) for obs_id in expected}


def test_leftovers_of_killed_jobs_are_cleared_away(job, four_runs, tmp_path):
    out, results = tmp_path / "out", tmp_path / "elsewhere"
    run_make_background(job(four_runs, io={"results_dir": str(results)}))
    old = [place / ".dask_bkg-1-0123456789abcdef-x.fits" for place in (out, out / "data", results)]
    for path in old:
        path.write_text("half")
        os.utime(path, (1e9, 1e9))
    run_make_background(job(four_runs, io={"results_dir": str(results)}))
    assert [path for path in old if path.exists()] == []


# --- in place ----------------------------------------------------------------------------------------------


@pytest.fixture
def in_place(four_runs, run_path, edit_run, job):
    """An archive whose files have a 3D background called 'bkg', and a job that writes where it reads."""
    add_old_background(four_runs, run_path, edit_run)
    return four_runs, job(four_runs, io={"out_dir": str(four_runs)})


def test_in_place_the_old_background_is_replaced(in_place, run_path):
    directory, config = in_place
    before = {i: pieces(run_path(directory, i)) for i in OBS_IDS}
    assert list(before[64001])[3] == "BKG"
    run_make_background(config)
    for obs_id in OBS_IDS:
        after = pieces(run_path(directory, obs_id))
        others = {name: data for name, data in before[obs_id].items() if name != "BKG"}
        assert {name: data for name, data in after.items() if name != "BACKGROUND"} == others
        assert list(after)[-1] == "BACKGROUND"
    assert backgrounds(directory) == {i: (f"data/run_0{i}.fits.gz", "BACKGROUND") for i in OBS_IDS}
    assert broken_rows(directory) == []
    observations = DataStore.from_dir(directory).get_observations(required_irf="full-enclosure")
    assert {obs.bkg.tag for obs in observations} == {"bkg_2d"}


def test_in_place_twice_is_in_place_once(in_place, run_path):
    directory, config = in_place
    run_make_background(config)
    once = {i: run_path(directory, i).read_bytes() for i in OBS_IDS}
    run_make_background(config)
    assert {i: run_path(directory, i).read_bytes() for i in OBS_IDS} == once


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError])
def test_in_place_a_job_that_is_stopped_names_only_what_is_there(in_place, monkeypatch, failure):
    """Ctrl-C when backgrounds were written, and before their task had said so."""
    directory, config = in_place
    write_block = wiring.write_block

    def write_and_stop(targets, **how):
        write_block(targets, **how)
        raise failure("stopped")

    monkeypatch.setattr(wiring, "write_block", write_and_stop)
    with pytest.raises(failure):
        run_make_background(config)
    assert broken_rows(directory) == []


def test_in_place_a_job_that_cannot_start_leaves_the_index(in_place, run_path):
    directory, config = in_place
    before = backgrounds(directory)
    for obs_id in OBS_IDS:
        run_path(directory, obs_id).write_bytes(b"lost")
    with pytest.raises(BackgroundError):
        run_make_background(config)
    assert backgrounds(directory) == before


KILLED_JOB = """
import json, sys, time
from dask_bkg import compat
from dask_bkg.dl3 import attach

write_pieces, calls = attach.write_pieces, []

def stuck_in_the_third(path, pieces, compress):
    calls.append(path)
    write_pieces(path, pieces[:1] if len(calls) == 3 else pieces, compress)
    if len(calls) == 3:
        print("half-way", flush=True)
        time.sleep(60)

attach.write_pieces = stuck_in_the_third
compat.run_make_background(json.loads(sys.argv[1]))
"""


def test_a_job_killed_in_mid_write(in_place, run_path, tmp_path):
    """Nothing broken is left, the index names what is there, and the rerun writes the same bytes."""
    directory, config = in_place
    undisturbed = Path(shutil.copytree(directory, tmp_path / "undisturbed"))
    places = dict.fromkeys(("search_datastore", "in_dir", "out_dir"), str(undisturbed))
    run_make_background({**config, "io": {**config["io"], **places}})

    command = [sys.executable, "-c", KILLED_JOB, json.dumps(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as killed:
        assert killed.stdout.readline() == "half-way\n"
        killed.send_signal(signal.SIGKILL)

    assert broken_rows(directory) == []
    names = [list(pieces(run_path(directory, i)))[-1] for i in OBS_IDS]
    assert names == ["BACKGROUND", "BACKGROUND", "PSF", "PSF"]
    DataStore.from_dir(directory).get_observations(required_irf=[])

    run_make_background(config)
    for obs_id in OBS_IDS:
        assert run_path(directory, obs_id).read_bytes() == run_path(undisturbed, obs_id).read_bytes()
    for name in ("hdu-index.fits.gz", "obs-index.fits.gz"):
        assert (directory / name).read_bytes() == (undisturbed / name).read_bytes()


KILLED_WITH_TWO_WRITTEN = """
import json, os, signal, sys
from dask_bkg import compat
from dask_bkg.pipeline import graph

write_block, calls = graph.write_block, []

def killed_at_the_third(targets, **how):
    calls.append(targets)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return write_block(targets, **how)

graph.WRITE_BATCH, graph.write_block = 1, killed_at_the_third
compat.run_make_background(json.loads(sys.argv[1]))
"""


def test_what_a_killed_job_has_written_is_not_written_again(job, four_runs, tmp_path):
    """It had no time to say anything: what its tasks have written is all that the next job has to go by."""
    config = job(four_runs)
    command = [sys.executable, "-c", KILLED_WITH_TWO_WRITTEN, json.dumps(config)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out/data").glob("run_*")}
    assert len(before) == 2
    run_make_background(config)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out/data").glob("run_*")}
    assert {name: after[name] for name in before} == before
    assert sorted(statuses(tmp_path).values()) == ["done", "done", "unchanged", "unchanged"]
    assert {entry["job"] for entry in told_of(tmp_path)["backgrounds"].values()} == set(told_of(tmp_path)["jobs"])
    assert not [path.name for path in (tmp_path / "out").rglob(".*")]


@pytest.fixture
def stopped(job, four_runs, tmp_path, monkeypatch):
    """A job that is stopped when it has written two of four backgrounds: ``stopped(section={...})`` gives these."""

    def stop(**sections) -> list[int]:
        write_block, written = wiring.write_block, []

        def write_two(targets, **how):
            if len(written) == 2:
                raise KeyboardInterrupt
            done = write_block(targets, **how)
            written.extend(result.obs_id for result in done)
            return done

        with monkeypatch.context() as patch:
            patch.setattr(wiring, "WRITE_BATCH", 1)
            patch.setattr(wiring, "write_block", write_two)
            with pytest.raises(KeyboardInterrupt):
                run_make_background(job(four_runs, **sections))
        return sorted(written)

    return stop


def statuses(tmp_path) -> dict[int, str]:
    """What the latest job did with the runs."""
    table = Table.read(tmp_path / "out/results/summary.ecsv")
    return dict(zip(table["OBS_ID"].tolist(), table["STATUS"].tolist(), strict=True))


def told_of(tmp_path) -> dict:
    return json.loads((tmp_path / "out/results/provenance.json").read_text())


@pytest.mark.parametrize("before", [False, True], ids=["the first job", "a later job"])
def test_what_a_stopped_job_has_done_is_not_done_again(stopped, job, four_runs, tmp_path, before):
    """And in the end the provenance is that of a job that went through."""
    if before:
        run_make_background(job(four_runs, binning={"e_bins": 12}))
    two = stopped()
    assert len(two) == 2
    stamps = {i: (tmp_path / f"out/data/run_0{i}.fits.gz").stat().st_mtime_ns for i in two}
    run_make_background(job(four_runs))
    assert statuses(tmp_path) == {i: "unchanged" if i in two else "done" for i in OBS_IDS}
    assert {i: (tmp_path / f"out/data/run_0{i}.fits.gz").stat().st_mtime_ns for i in two} == stamps
    told = told_of(tmp_path)
    assert {entry["status"] for entry in told["backgrounds"].values()} == {"done"}
    assert {entry["job"] for entry in told["backgrounds"].values()} == set(told["jobs"])
    assert {entry["config_hash"] for entry in told["backgrounds"].values()} == {told["config_hash"]}
    assert broken_rows(tmp_path / "out") == []
    run_make_background(job(four_runs))
    assert set(statuses(tmp_path).values()) == {"unchanged"}
    assert told_of(tmp_path) == told


def test_what_a_stopped_job_has_kept_is_not_believed_for_ever(stopped, job, four_runs, tmp_path):
    """A job with other settings has made all anew since: neither are they made again, nor is the old tale told."""
    two = stopped()
    other = {"binning": {"e_bins": 12}}
    run_make_background(job(four_runs, **other))
    assert set(statuses(tmp_path).values()) == {"done"}
    before = told_of(tmp_path)
    run_make_background(job(four_runs, **other))
    assert set(statuses(tmp_path).values()) == {"unchanged"}
    assert told_of(tmp_path) == before
    rest = next(i for i in OBS_IDS if i not in two)
    run_make_background(job(four_runs, **other, run_selection={"runlist": [rest]}))
    assert told_of(tmp_path)["backgrounds"] == before["backgrounds"]


@pytest.mark.parametrize("size", [0, 100, -100])
def test_a_part_that_was_cut_short(stopped, job, four_runs, tmp_path, size):
    """The others count, and it is no error."""
    stopped()
    first, last = sorted((tmp_path / "out/results/.backgrounds-parts").glob("*.npz"))
    with np.load(first) as part:
        whole = part["integers"][:, 0].tolist()
    last.write_bytes(last.read_bytes()[:size])
    run_make_background(job(four_runs))
    assert [run for run, status in statuses(tmp_path).items() if status == "unchanged"] == whole


def test_nothing_is_left_of_a_stopped_job(stopped, job, four_runs, tmp_path):
    assert len(stopped()) == len([*(tmp_path / "out/results/.backgrounds-parts").iterdir()]) == 2
    run_make_background(job(four_runs))
    assert not [path.name for path in (tmp_path / "out").rglob(".*")]


# --- files that runs share, and files of one name ----------------------------------------------------------


def move_out(archive: Path, obs_id: int, kind: str, target: Path, run_path) -> None:
    """Put the HDU of a run into a file of its own, and let the index point there."""
    store = read_datastore(archive)
    row = np.flatnonzero((store.hdu["OBS_ID"] == obs_id) & (store.hdu["HDU_TYPE"] == kind))[0]
    target.parent.mkdir(parents=True, exist_ok=True)
    with fits.open(run_path(archive, obs_id)) as hdus:
        hdu = hdus[str(store.hdu["HDU_NAME"][row])].copy()
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(target, overwrite=True)
    store.hdu["FILE_NAME"] = store.hdu["FILE_NAME"].astype("U100")
    store.hdu["FILE_DIR"] = store.hdu["FILE_DIR"].astype("U100")
    store.hdu["FILE_DIR"][row] = os.path.relpath(target.parent, archive)
    store.hdu["FILE_NAME"][row] = target.name
    write_index(archive, store.hdu, store.obs)


def test_a_response_file_that_runs_share_is_copied_once(job, four_runs, run_path, tmp_path):
    for obs_id in OBS_IDS:
        move_out(four_runs, obs_id, "aeff", four_runs / "irfs" / "aeff.fits", run_path)
    run_make_background(job(four_runs))
    assert (tmp_path / "out/irfs/aeff.fits").read_bytes() == (four_runs / "irfs/aeff.fits").read_bytes()
    assert broken_rows(tmp_path / "out") == []


@pytest.mark.parametrize("step", ["prepare", "run"])
@pytest.mark.parametrize("homes", [("a/night", "b/night"), ("four/night", "b/night")])
def test_files_of_one_name_do_not_overwrite_each_other(job, four_runs, run_path, tmp_path, step, homes):
    """Two response files with the same name and place below their directories: each run keeps its own."""
    expected = {}
    for obs_id, home in zip((64001, 64002), homes, strict=True):
        place = tmp_path / home / "aeff.fits"
        move_out(four_runs, obs_id, "aeff", place, run_path)
        expected[obs_id] = fits.getheader(place, 1)["ZENITH"]
    assert expected[64001] != expected[64002]
    outside = [str(tmp_path / name) for name in ("a", "b") if (tmp_path / name).exists()]
    written = tmp_path / ("in" if step == "prepare" else "out")
    if step == "prepare":
        prepare_dataset(job(four_runs, io={"data_dirs": outside, "in_dir": str(written)}))
    else:
        run_make_background(job(four_runs, io={"data_dirs": outside}))
    store = read_datastore(written)
    found = {i: fits.getheader(*store.location(i, "aeff"))["ZENITH"] for i in expected}
    assert found == expected


# --- provenance --------------------------------------------------------------------------------------------


def test_provenance_tells_what_it_was_made_of(job, four_runs, run_path, tmp_path, no_catalogs):
    own = tmp_path / "own.reg"
    own.write_text("icrs\ncircle(20.0, 30.0, 0.2)\n")
    run_path(four_runs, 64004).write_bytes(b"lost")
    config = job(
        four_runs, io={"from_run": False}, exclusion={"exclude_region_files": [str(own)]},
        run_selection={"runlist": [64001, 64004]},
    )  # fmt: skip
    run_make_background(config)
    told = json.loads((tmp_path / "out/results/provenance.json").read_text())
    assert {"python", "dask_bkg", "gammapy", "numpy", "astropy", "dask"} <= told["versions"].keys()
    assert told["config"] == parse_config(config).effective()
    assert told["config_hash"] == config_hash(parse_config(config))
    catalogs = told["exclusion"]["catalogs"]
    stars = Path(no_catalogs["star_cat"])
    assert catalogs["stars"] == {"file": str(stars), "sha256": hashlib.sha256(stars.read_bytes()).hexdigest()}
    assert catalogs[str(own)]["sha256"] == hashlib.sha256(own.read_bytes()).hexdigest()
    assert told["exclusion"]["regions"] == 2
    done, failed = told["backgrounds"]["64001"], told["backgrounds"]["64004"]
    assert done["status"] == "done"
    assert sorted(done["contributing_runs"]) == [64002, 64003]
    assert list(told["unusable_runs"]) == ["64004"]
    header = fits.getheader(done["file"], "BACKGROUND")
    assert (header["N_RUNS"], header["N_EVENTS"]) == (2, done["events"])
    assert header["LIVETIME"] / 3600 == pytest.approx(done["livetime_hours"], abs=1e-5)
    assert header["CONFHASH"] == told["config_hash"]
    assert header["EXCLHASH"] == told["exclusion"]["hash"]
    assert failed["status"] == "failed"
    assert "run_064004" in failed["reason"]
    assert failed["file"] == ""


def test_a_region_file_beside_the_configuration_is_in_the_provenance(job, four_runs, tmp_path):
    place = tmp_path / "yaml"
    place.mkdir()
    (place / "own.reg").write_text("icrs\ncircle(20.0, 30.0, 0.2)\n")
    config = parse_config(job(four_runs, exclusion={"exclude_region_files": ["own.reg"]}), base_dir=place)
    pipeline.run_job(config, progress=False)
    told = json.loads((tmp_path / "out/results/provenance.json").read_text())
    assert told["exclusion"]["regions"] == 2
    assert "own.reg" in told["exclusion"]["catalogs"]


def test_a_second_job_keeps_what_the_first_told(job, four_runs, tmp_path):
    results = tmp_path / "out" / "results"
    first = job(four_runs, run_selection={"runlist": [64001, 64002]})
    run_make_background(first)
    before = json.loads((results / "provenance.json").read_text())
    second = job(four_runs, run_selection={"runlist": [64002, 64003]}, binning={"e_bins": 12})
    run_make_background(second)
    told = json.loads((results / "provenance.json").read_text())
    assert list(told["backgrounds"]) == ["64001", "64002", "64003"]
    assert told["backgrounds"]["64001"] == before["backgrounds"]["64001"]
    hashes = {run: entry["config_hash"] for run, entry in told["backgrounds"].items()}
    one, two = (config_hash(parse_config(config)) for config in (first, second))
    assert hashes == {"64001": one, "64002": two, "64003": two}
    for run, entry in told["backgrounds"].items():
        config = {"64001": first}.get(run, second)
        assert told["jobs"][entry["job"]]["config"] == parse_config(config).effective()
        assert fits.getheader(entry["file"], "BACKGROUND")["CONFHASH"] == entry["config_hash"]
    assert told["config"] == parse_config(second).effective()
    assert Table.read(results / "summary.ecsv")["OBS_ID"].tolist() == [64001, 64002, 64003]
    run_make_background(second)
    assert json.loads((results / "provenance.json").read_text()) == told
    assert Table.read(results / "summary.ecsv")["STATUS"].tolist() == ["done", "unchanged", "unchanged"]


def test_provenance_tells_what_runs_were_ranked_by_and_how_they_weigh(job, four_runs, tmp_path):
    """Nearest first; weights only where there are some; and a mark that is the same for the same background."""
    told = {}
    for rank in ("none", "elevation", "kl", "conditions", "kl-conditions"):
        out = tmp_path / rank
        config = job(
            four_runs, io={"from_run": False, "out_dir": str(out)}, run_selection={"runlist": [64002]},
            run_store={"path": str(tmp_path / "runs.zarr")}, background_selection={"rank": rank},
        )  # fmt: skip
        run_make_background(config)
        told[rank] = json.loads((out / "results/provenance.json").read_text())["backgrounds"]["64002"]
    for rank, entry in told.items():
        assert sorted(entry["contributing_runs"]) == [64001, 64003, 64004]
        assert ("scores" in entry) == (rank != "none")
        assert entry.get("scores", []) == sorted(entry.get("scores", []))
        assert ("weights" in entry) == ("conditions" in rank)
    zenith = {i: 90 - fits.getheader(four_runs / f"data/run_0{i}.fits.gz", "EVENTS")["ALT_PNT"] for i in OBS_IDS}
    gap = [abs(1 / np.cos(np.deg2rad(zenith[i])) - 1 / np.cos(np.deg2rad(zenith[64002]))) for i in OBS_IDS]
    assert told["elevation"]["scores"] == pytest.approx(sorted(gap)[1:], abs=1e-8)
    weighted = told["conditions"]
    assert all(0 < weight <= 1 for weight in weighted["weights"])
    assert weighted["weights"] == sorted(weighted["weights"], reverse=True)
    # without the weights: it tells of the runs, not of the stack
    assert weighted["livetime_hours"] == told["none"]["livetime_hours"]
    assert weighted["events"] < told["none"]["events"]
    # weighted by the same kernel, in another order: another configuration, hence another mark
    by_run = [dict(zip(told[k]["contributing_runs"], told[k]["weights"], strict=True)) for k in list(told)[3:]]
    assert by_run[0] == by_run[1]
    assert len({entry["digest"] for entry in told.values()}) == 5


def test_unchanged_backgrounds_are_those_of_the_job_that_made_them(job, four_runs, tmp_path):
    """Another cluster and another runlist are another job, but not another background."""
    results = tmp_path / "out" / "results"
    run_make_background(job(four_runs, run_selection={"runlist": [64001, 64002]}))
    before = json.loads((results / "provenance.json").read_text())
    stamps = {i: (tmp_path / f"out/data/run_0{i}.fits.gz").stat().st_mtime_ns for i in OBS_IDS[:2]}
    run_make_background(job(four_runs, config={"njobs": 2}))
    told = json.loads((results / "provenance.json").read_text())
    for obs_id, stamp in stamps.items():
        assert told["backgrounds"][str(obs_id)] == before["backgrounds"][str(obs_id)]
        assert (tmp_path / f"out/data/run_0{obs_id}.fits.gz").stat().st_mtime_ns == stamp
    assert len(told["jobs"]) == 2
    assert {told["backgrounds"][str(i)]["job"] for i in OBS_IDS[2:]} == set(told["jobs"]) - set(before["jobs"])
    assert Table.read(results / "summary.ecsv")["STATUS"].tolist() == ["unchanged", "unchanged", "done", "done"]
    assert set(backgrounds(tmp_path / "out")) == set(OBS_IDS)


def test_what_is_no_more_as_it_was_left_is_made_again(job, four_runs, run_path, tmp_path):
    """A file that is gone, one that somebody changed, a store of results that is lost; else nothing is written."""
    out = tmp_path / "out"

    def written() -> list[int]:
        before = {i: path.stat().st_mtime_ns if (path := run_path(out, i)).exists() else 0 for i in OBS_IDS}
        run_make_background(job(four_runs))
        assert {i: fits.getdata(run_path(out, i), "BACKGROUND")["BKG"].tobytes() for i in OBS_IDS} == first
        return [i for i in OBS_IDS if run_path(out, i).stat().st_mtime_ns != before[i]]

    run_make_background(job(four_runs))
    first = {i: fits.getdata(run_path(out, i), "BACKGROUND")["BKG"].tobytes() for i in OBS_IDS}
    assert written() == []
    run_path(out, 64001).unlink()
    with run_path(out, 64003).open("ab") as file:
        file.write(b"more")
    os.utime(run_path(four_runs, 64004))
    assert written() == [64001, 64003, 64004]
    (out / "results/provenance.json").write_text("{}")
    assert written() == []
    assert set(told_of(tmp_path)["backgrounds"]) == set(map(str, OBS_IDS))
    shutil.rmtree(out / "results/backgrounds.zarr")
    assert written() == OBS_IDS
    # an index that is lost is written again, the backgrounds are not
    (out / "hdu-index.fits.gz").unlink()
    assert written() == []
    assert set(backgrounds(out)) == set(OBS_IDS)


def test_a_run_that_failed_and_is_whole_again(job, four_runs, run_path, tmp_path):
    """Its background is still the one that it would get: nothing to do, and nothing to say."""
    run_make_background(job(four_runs))
    whole, state = run_path(four_runs, 64002).read_bytes(), run_path(four_runs, 64002).stat()
    before = json.loads((tmp_path / "out/results/provenance.json").read_text())
    run_path(four_runs, 64002).write_bytes(b"lost")
    assert list(run_make_background(job(four_runs))["run_selection"]["failed_runs"]) == [64002]
    run_path(four_runs, 64002).write_bytes(whole)
    os.utime(run_path(four_runs, 64002), ns=(state.st_atime_ns, state.st_mtime_ns))
    assert run_make_background(job(four_runs))["run_selection"]["failed_runs"] == {}
    told = json.loads((tmp_path / "out/results/provenance.json").read_text())
    assert told["backgrounds"] == before["backgrounds"]
    assert backgrounds(tmp_path / "out").keys() == set(OBS_IDS)


def test_a_run_that_fails_later_keeps_the_provenance_of_its_background(job, four_runs, run_path, tmp_path):
    run_make_background(job(four_runs))
    results = tmp_path / "out" / "results"
    before = json.loads((results / "provenance.json").read_text())["backgrounds"]["64002"]
    run_path(four_runs, 64002).write_bytes(b"lost")
    run_make_background(job(four_runs, binning={"e_bins": 12}))
    told = json.loads((results / "provenance.json").read_text())
    after = told["backgrounds"]["64002"]
    since = after.pop("failed_since")
    assert after == before
    assert "run_064002" in since["reason"]
    assert {after["job"], since["job"]} == set(told["jobs"])


def test_results_that_cannot_be_read_are_put_aside(job, four_runs, tmp_path, caplog):
    results = tmp_path / "out" / "results"
    (results / "backgrounds.zarr").mkdir(parents=True)
    (results / "backgrounds.zarr" / "zarr.json").write_text("[1, 2, somebody's notes")
    run_make_background(job(four_runs, run_selection={"runlist": [64001]}))
    assert (results / "unreadable-backgrounds.zarr" / "zarr.json").read_text() == "[1, 2, somebody's notes"
    for name in ("provenance.json", "summary.ecsv"):
        assert "64001" in (results / name).read_text()
    assert "backgrounds.zarr cannot be read" in caplog.text


def test_effective_configuration_and_summary_can_be_read(job, four_runs, tmp_path):
    config = job(four_runs, io={"results_dir": str(tmp_path / "report")}, run_selection={"runlist": [64001]})
    run_make_background(config)
    effective = load_config(tmp_path / "report/effective-config.yaml")
    assert effective.effective() == parse_config(config).effective()
    table = Table.read(tmp_path / "report/summary.ecsv")
    assert table["OBS_ID"].tolist() == [64001]
    assert table["STATUS"][0] == "done"
    assert table["N_RUNS"][0] == 1
    assert table["N_EVENTS"][0] > 100
    assert Path(table["FILE"][0]).is_file()
    assert not (tmp_path / "out" / "results").exists()


def test_summary_of_nothing_and_of_failures(tmp_path):
    assert len(summary_table({})) == 0
    store = Backgrounds(tmp_path, Edges(np.array([0.1, 1]), np.array([0, 1])), None, ("a job", {}))
    store.record([Result(7, "failed", "run 7: gone")])
    table = summary_table(store.entries())
    assert (table["OBS_ID"][0], table["STATUS"][0], table["REMARK"][0]) == (7, "failed", "run 7: gone")


def test_the_hash_is_that_of_the_model(job, four_runs, tmp_path):
    def hashed(**sections):
        return config_hash(parse_config(job(four_runs, **sections)))

    assert hashed() == hashed(io={"out_dir": str(tmp_path / "b")}, config={"njobs": 7}, cluster="local")
    assert len({hashed(), hashed(binning={"e_bins": 3}), hashed(io={"from_run": False})}) == 3
    assert hashed() == hashed(run_selection={"runlist": [64001]})


def test_jobs_are_silent_about_what_is_well(job, four_runs, caplog):
    with caplog.at_level(logging.WARNING):
        run_make_background(job(four_runs))
    assert caplog.text == ""
