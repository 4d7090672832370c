"""The run store: what comes out of it is what the files say, bit by bit, and nothing is read that was read before."""

from __future__ import annotations

import gzip
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from helpers.archive_job import FINE, FIRST, assert_stored, chunk_states, disc, run_files, stored, update

from dask_bkg.binning import Edges
from dask_bkg.dl3.attach import attach_background
from dask_bkg.dl3.read import RunFile
from dask_bkg.errors import RunError
from dask_bkg.reduction import reduce
from dask_bkg.reduction.reduce import reduce_run, reduce_views
from dask_bkg.store import changes as plan
from dask_bkg.store import layout
from dask_bkg.store.load import load_histograms, open_runs
from dask_bkg.store.store import RunStore

pytestmark = pytest.mark.slow  # whole jobs, or simulations of many skies

RINGS = Edges(np.geomspace(0.1, 100, 31), np.linspace(0, 2.5, 11))
ODD = Edges(np.geomspace(0.13, 70, 6), np.array([0.0, 0.33, 1.1, 2.3]))


def drop_event(hdus):
    hdus["EVENTS"].data = hdus["EVENTS"].data[1:]


@pytest.mark.parametrize("block", [1, 5, 50])
def test_the_store_has_what_comes_out_of_the_files_bit_by_bit(archive, tmp_path, block):
    runs, regions = run_files(archive[0], 12), disc(83.6, 22.0, 0.6)
    store = RunStore.open_or_create(tmp_path / "runs.zarr", FINE, block=block)
    assert update(store, runs, regions) == dict.fromkeys(range(FIRST, FIRST + 12), "read")
    again = RunStore.open(store.path)
    for run in runs[::4]:
        assert_stored(again, run, regions)
    assert again.table()["obs_id"].tolist() == list(range(FIRST, FIRST + 12))
    assert len(chunk_states(again)) == 4


def test_an_unchanged_archive_opens_no_file(archive, filled, opened):
    assert update(filled, run_files(archive[0], 12)) == {}
    assert opened == []


def test_a_copy_elsewhere_is_looked_into_once_and_changes_nothing(archive, filled, opened, tmp_path):
    shutil.copytree(archive[0], tmp_path / "copy")
    before, copies = chunk_states(filled), run_files(tmp_path / "copy", 3)
    assert update(filled, copies) == dict.fromkeys(range(FIRST, FIRST + 3), "same")
    assert len(opened) == 3
    assert update(filled, copies) == {}
    assert update(filled, run_files(archive[0], 12)) == {}
    assert chunk_states(filled) == before


def test_of_two_paths_to_a_run_the_first_counts(archive, filled, tmp_path):
    nowhere = [RunFile(run.obs_id, str(tmp_path / "none.fits")) for run in run_files(archive[0], 12)]
    assert update(filled, run_files(archive[0], 12) + nowhere) == {}


def test_a_run_with_other_events_replaces_the_old_one(four_runs, store, edit_run, opened):
    runs = run_files(four_runs, 4)
    update(store, runs)
    before = {run.obs_id: stored(store, run.obs_id) for run in runs}
    opened.clear()
    edit_run(Path(runs[2].path), drop_event)
    assert update(store, runs) == {FIRST + 2: "read"}
    assert opened == [FIRST + 2]
    assert store.table()["obs_id"].tolist() == [run.obs_id for run in runs]
    assert_stored(RunStore.open(store.path), runs[2])
    for run in (runs[0], runs[1], runs[3]):
        for name, array in stored(store, run.obs_id).items():
            assert array.tobytes() == before[run.obs_id][name].tobytes()


@pytest.mark.parametrize("block", [4, 50])
def test_runs_that_are_added_fill_the_last_chunk(archive, filled, tmp_path, opened, block):
    runs = run_files(archive[0], 12)
    store = RunStore.open_or_create(tmp_path / "grown.zarr", FINE, block=block)
    update(store, runs[:7])
    opened.clear()
    assert sorted(update(store, runs)) == opened == [run.obs_id for run in runs[7:]]
    for run in runs:
        for name, array in stored(store, run.obs_id).items():
            assert array.tobytes() == stored(filled, run.obs_id)[name].tobytes()
    assert open_runs(store.path).sizes["obs_id"] == 12


def test_runs_that_are_gone_from_the_archive_are_not_asked_for(archive, filled):
    fewer = [FIRST, FIRST + 7]
    assert update(filled, [run for run in run_files(archive[0], 12) if run.obs_id in fewer]) == {}
    assert filled.find([*fewer, 99]).tolist() == [0, 7, -1]
    assert filled.errors(fewer) == {}


def background() -> fits.BinTableHDU:
    columns = [
        fits.Column("ENERG_LO", "1E", "TeV", array=[[0.1]]),
        fits.Column("ENERG_HI", "1E", "TeV", array=[[100]]),
        fits.Column("THETA_LO", "1E", "deg", array=[[0]]),
        fits.Column("THETA_HI", "1E", "deg", array=[[2.5]]),
        fits.Column("BKG", "1E", "s-1 MeV-1 sr-1", dim="(1,1)", array=[[[1.0]]]),
    ]
    return fits.BinTableHDU.from_columns(columns)


def test_attaching_a_background_changes_nothing(four_runs, store, opened):
    """in_dir == out_dir == search_datastore: what the job itself wrote is no new run."""
    runs = run_files(four_runs, 4)
    update(store, runs)
    fingerprint = dict(zip(store.table()["obs_id"].tolist(), store.table()["fingerprint"], strict=True))
    before, sizes = chunk_states(store), [os.path.getsize(run.path) for run in runs]
    for run in runs:
        attach_background(run.path, run.path, background())
    assert [os.path.getsize(run.path) for run in runs] != sizes
    for run in runs[:2]:
        store.saw(run.path, fingerprint[run.obs_id])
    store.flush()
    opened.clear()
    store = RunStore.open(store.path)
    assert update(store, runs) == {FIRST + 2: "same", FIRST + 3: "same"}
    assert opened == [FIRST + 2, FIRST + 3]
    assert chunk_states(store) == before
    assert update(store, runs) == {}


def test_a_file_that_was_packed_is_the_same_run(four_runs, store):
    runs = run_files(four_runs, 4)
    update(store, runs)
    plain = Path(runs[0].path).with_suffix("")
    plain.write_bytes(gzip.decompress(Path(runs[0].path).read_bytes()))
    assert update(store, [RunFile(FIRST, str(plain))]) == {FIRST: "same"}


def test_a_changed_exclusion_touches_the_runs_near_it(archive, filled, opened, monkeypatch):
    runs, table = run_files(archive[0], 12), filled.table()
    ra, dec = table["ra_pnt"][3], table["dec_pnt"][3]
    regions = disc(ra, dec, 0.3)
    near = np.hypot((table["ra_pnt"] - ra) * np.cos(np.deg2rad(dec)), table["dec_pnt"] - dec) < 3.8
    assert 0 < near.sum() < 12
    assert sorted(update(filled, runs, regions)) == table["obs_id"][near].tolist() == sorted(opened)
    for run in runs[2:4]:
        assert_stored(filled, run, regions)
    digests, digest = [], plan.exclusion_digest
    monkeypatch.setattr(plan, "exclusion_digest", lambda *args: digests.append(1) or digest(*args))
    store = RunStore.open(filled.path)
    assert update(store, runs, regions) == {}
    assert digests == []  # the digest of the whole says that nothing changed
    assert layout.attributes_of(filled.path)["exclusion"] == regions.digest()


def test_a_bad_run_is_told_and_tried_again_when_its_file_is_another(four_runs, store, opened):
    runs = run_files(four_runs, 4)
    whole = Path(runs[1].path).read_bytes()
    Path(runs[1].path).write_bytes(whole[:2000])
    done = update(store, runs)
    assert done == {FIRST: "read", FIRST + 1: "failed", FIRST + 2: "read", FIRST + 3: "read"}
    assert "copy it again" in store.errors([FIRST, FIRST + 1])[FIRST + 1]
    assert store.find(range(FIRST, FIRST + 4)).tolist() == [0, -1, 1, 2]
    opened.clear()
    store = RunStore.open(store.path)
    assert update(store, runs) == {}
    assert opened == []
    Path(runs[1].path).write_bytes(whole)
    assert update(store, runs) == {FIRST + 1: "read"}
    assert store.errors([FIRST + 1]) == {}
    for run in runs:
        assert_stored(store, run)


def test_a_run_that_failed_for_its_exclusion_is_tried_with_another(four_runs, store):
    runs = run_files(four_runs, 4)
    everything = disc(83.6, 22.0, 180.0)
    assert set(update(store, runs, everything).values()) == {"failed"}
    assert update(store, runs, everything) == {}
    assert set(update(store, runs).values()) == {"read"}


def test_what_the_disk_refused_once_is_tried_again(four_runs, store, monkeypatch):
    runs, read = run_files(four_runs, 4), reduce.read_run

    def flaky(run, *args, **kwargs):
        if run.obs_id == FIRST:
            raise RunError("run 64001: cannot be read") from OSError(5, "Input/output error")
        if run.obs_id == FIRST + 1:
            raise MemoryError
        return read(run, *args, **kwargs)

    monkeypatch.setattr(reduce, "read_run", flaky)
    assert update(store, runs) == {FIRST: "failed", FIRST + 1: "failed", FIRST + 2: "read", FIRST + 3: "read"}
    assert "unexpected MemoryError" in store.errors([FIRST + 1])[FIRST + 1]
    monkeypatch.setattr(reduce, "read_run", read)
    assert update(store, runs) == {FIRST: "read", FIRST + 1: "read"}


def test_runs_whose_disk_is_away_are_told_and_come_back_unread(four_runs, store, opened):
    runs = run_files(four_runs, 4)
    ids = [run.obs_id for run in runs]
    update(store, runs)
    before = chunk_states(store)
    opened.clear()
    os.rename(four_runs / "data", four_runs / "away")
    for regions in (None, disc(83.6, 22.0, 1.0)):
        assert store.outdated(runs, [store.fine], regions) == []
        assert update(store, runs, regions) == {}
        assert all("does not exist" in store.errors(ids)[obs_id] for obs_id in ids)
        assert (store.find(ids) == -1).all()
        store = RunStore.open(store.path)
    os.rename(four_runs / "away", four_runs / "data")
    assert store.outdated(runs, [store.fine], None) == []
    assert (store.errors(ids), store.find(ids).tolist()) == ({}, [0, 1, 2, 3])
    assert opened == []
    assert chunk_states(store) == before


@pytest.mark.parametrize("error", [OSError(116, "Stale file handle"), FileNotFoundError(2, "No such file"), None])
def test_what_a_disk_refuses_for_a_moment_does_not_wipe_a_run(four_runs, store, monkeypatch, error):
    """The disk goes away after the job has planned; or the worker has no memory left."""
    runs, read = run_files(four_runs, 4), reduce.read_run
    update(store, runs)
    fingerprints = store.table()["fingerprint"].tolist()

    def refused(run, *args, **kwargs):
        if error is None:
            raise MemoryError
        try:
            raise error
        except OSError:
            raise RunError(f"run {run.obs_id}: cannot be read") from None

    monkeypatch.setattr(reduce, "read_run", refused)
    for run in runs:
        os.utime(run.path)
    regions = disc(83.6, 22.0, 1.0)
    for around in (None, regions):
        assert set(update(store, runs, around).values()) == {"absent"}
        assert store.errors([FIRST]).keys() == {FIRST}
        assert store.find([FIRST]) == -1
    store = RunStore.open(store.path)
    assert store.table()["fingerprint"].tolist() == fingerprints
    monkeypatch.setattr(reduce, "read_run", read)
    assert set(update(store, runs).values()) == {"same"}
    assert store.errors([FIRST]) == {}
    assert_stored(store, runs[0])


def test_a_file_that_was_never_there_is_asked_for_once(four_runs, store, opened, tmp_path):
    runs, there = run_files(four_runs, 4), tmp_path / "late.fits.gz"
    more = [*runs, RunFile(7, str(there)), runs[0]._replace(obs_id=8, aeff_path=str(tmp_path / "aeff.fits"))]
    assert update(store, more)[7] == "failed"
    opened.clear()
    for regions in (None, disc(200.0, -60.0)):
        assert RunStore.open(store.path).outdated(more, [store.fine], regions) == []
        assert "does not exist" in RunStore.open(store.path).errors([7])[7]
    shutil.copy(runs[1].path, there)
    assert update(store, more) == {7: "read"}
    shutil.copy(runs[1].path, tmp_path / "aeff.fits")
    assert update(store, more) == {8: "same"}


def test_an_index_that_names_other_hdus_counts(four_runs, store, edit_run, opened):
    run = run_files(four_runs, 1)[0]._replace(events_hdu="EVENTS", gti_hdu="GTI")

    def second(hdus):
        other = hdus["GTI"].copy()
        other.name = "GTI2"
        other.data["STOP"] -= 100.0
        hdus.append(other)

    edit_run(Path(run.path), second)
    shutil.copy(run.path, four_runs / "apart.fits.gz")
    update(store, [run])
    ontime, fingerprint = store.table()["ontime"][0], store.table()["fingerprint"][0]
    assert update(store, [run]) == {}
    assert update(store, [run._replace(gti_hdu="GTI2")]) == {FIRST: "read"}
    assert store.table()["ontime"][0] < ontime
    assert update(store, [run]) == {FIRST: "read"}
    apart = run._replace(gti_path=str(four_runs / "apart.fits.gz"), gti_hdu="GTI2")
    assert update(store, [apart]) == {FIRST: "read"}
    assert update(store, [run]) == {FIRST: "read"}
    opened.clear()
    os.utime(run.path)
    store.saw(run.path, fingerprint)
    shutil.copy(run.path, four_runs / "made.fits.gz")
    store.saw(four_runs / "made.fits.gz", fingerprint)
    store.flush()
    store = RunStore.open(store.path)
    assert update(store, [run]) == {}
    assert update(store, [run._replace(path=str(four_runs / "made.fits.gz"))]) == {}
    assert opened == []


@pytest.mark.parametrize(("edges", "method", "reach"), [(ODD, "geometry", "disc"), (RINGS, "event_ratio", "centre")])
def test_what_is_no_sum_is_kept_exactly_beside(archive, filled, opened, edges, method, reach):
    runs = run_files(archive[0], 12)
    view = filled.view_for(edges, method, reach)
    assert view.name.startswith("rings-")
    assert (filled.find([FIRST], view.name), filled.find([FIRST])) == (-1, 0)
    fine = chunk_states(filled)
    assert set(update(filled, runs, views=[filled.fine, view]).values()) == {"read"}
    assert len(opened) == 12
    assert {path: state for path, state in chunk_states(filled).items() if path in fine} == fine
    store = RunStore.open(filled.path)
    assert store.view_for(edges, method, reach).name == view.name
    assert update(store, runs, views=[store.fine, view]) == {}
    counts, exposure = load_histograms(str(store.path), view.name, store.find([FIRST + 4], view.name), edges)
    eager = reduce_run(runs[4].path, runs[4].obs_id, edges, method=method, reach=reach)
    assert (counts[0] == eager.counts.values).all()
    assert (exposure[0] == eager.exposure.values).all()
    assert_stored(store, runs[7], view=view.name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_runs(store.path, view.name).sizes["obs_id"] == 12


def test_a_view_that_another_job_did_not_ask_for_is_void_where_runs_changed(four_runs, store, edit_run):
    runs = run_files(four_runs, 4)
    view = store.view_for(ODD, "geometry", "disc")
    update(store, runs, views=[store.fine, view])
    edit_run(Path(runs[3].path), drop_event)
    update(store, runs)
    assert store.find(range(FIRST, FIRST + 4), view.name).tolist() == [0, 1, 2, -1]
    assert update(store, runs, views=[view]) == {FIRST + 3: "read"}
    assert_stored(store, runs[3], view=view.name)
    assert_stored(store, runs[3])


def test_files_apart_are_looked_at_too(four_runs, store, edit_run):
    """Good time intervals and effective areas may lie elsewhere, and one file may serve many runs."""
    shared = str(four_runs / "shared.fits.gz")
    shutil.copy(run_files(four_runs, 1)[0].path, shared)
    runs = [run._replace(aeff_path=shared) for run in run_files(four_runs, 4)]
    assert set(update(store, runs).values()) == {"read"}
    assert update(store, runs) == {}
    os.utime(shared)
    assert set(update(store, runs).values()) == {"same"}
    assert update(store, runs) == {}
    apart = [run._replace(gti_path=shared) for run in run_files(four_runs, 1)]
    assert update(store, apart) == {FIRST: "same"}
    assert update(store, apart) == {}
    edit_run(Path(shared), lambda hdus: hdus["GTI"].data["STOP"].__isub__(100.0))
    assert update(store, apart) == {FIRST: "read"}
    assert store.table()["ontime"][0] == pytest.approx(reduce_views(apart[0], [FINE]).numbers["ontime"])


def test_a_file_that_was_too_large_is_read_when_the_limit_is_raised(four_runs, tmp_path):
    store = RunStore.open_or_create(tmp_path / "runs.zarr", FINE)
    runs = run_files(four_runs, 2)
    small = [runs[0]._replace(limit=1000), runs[1]]
    assert update(store, small) == {64001: "failed", 64002: "read"}
    assert "too large" in store.errors([64001])[64001]
    assert update(RunStore.open(store.path), runs) == {64001: "read"}
