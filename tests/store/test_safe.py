"""The run store whatever happens to it: killed jobs, two writers, disks that lose files, other versions."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.archive_job import BIG, FINE, FIRST, assert_stored, chunk_states, disc, run_files, update

from dask_bkg import dl3
from dask_bkg.binning import Edges, fine_view
from dask_bkg.errors import ArchiveError
from dask_bkg.files import Lock, stat_cache
from dask_bkg.store import layout
from dask_bkg.store import load as load_module
from dask_bkg.store import table as table_module
from dask_bkg.store import update as update_module
from dask_bkg.store.load import load_histograms, open_runs
from dask_bkg.store.rows import Rows
from dask_bkg.store.store import RunStore
from dask_bkg.store.update import RunDone, update_block

pytestmark = pytest.mark.slow  # whole jobs, or simulations of many skies

RINGS = Edges(np.geomspace(0.1, 100, 31), np.linspace(0, 2.5, 11))
ODD = Edges(np.geomspace(0.13, 70, 6), np.array([0.0, 0.33, 1.1, 2.3]))


def drop_event(hdus):
    hdus["EVENTS"].data = hdus["EVENTS"].data[1:]


def test_a_store_keeps_its_own_axes_and_says_so(filled, caplog):
    caplog.set_level(logging.INFO)
    again = RunStore.open_or_create(filled.path, fine_view(bins_per_decade=5))
    assert again.fine.edges.shape == (50, 50)
    assert "keeps its own fine axes: 50 energies 0.01-1000 TeV" in caplog.text
    caplog.clear()
    RunStore.open_or_create(filled.path, FINE)
    assert caplog.text == ""


def test_what_is_no_store_is_not_touched(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("data", "file"):
        with pytest.raises(ArchiveError, match="is no store of run histograms: it is not touched"):
            RunStore.open_or_create(tmp_path / name, FINE)
    assert (tmp_path / "data" / "precious").read_text() == (tmp_path / "file").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "file"]
    with pytest.raises(ArchiveError, match="dask-bkg reduce"):
        RunStore.open(tmp_path / "nothing")


def test_a_store_of_another_version_is_not_touched(filled):
    layout.change_attributes(filled.path, dask_bkg_layout=99)
    with pytest.raises(ArchiveError, match=rf"version 99.*reads version {layout.LAYOUT}.*Move it away"):
        RunStore.open_or_create(filled.path, FINE)


def test_only_plans_and_records_within_writing(store):
    with pytest.raises(RuntimeError, match="writing"):
        store.plan_update([], [store.fine], None)
    for other in (FINE._replace(name="rings-other"), fine_view(bins_per_decade=5)):
        with store.writing(), pytest.raises(ValueError, match="view_for"):
            store.plan_update([], [other], None)


def test_a_file_that_was_lost_is_read_again(archive, filled, opened):
    """Some disks clear away files that were not read for months; rows of fill values are not taken for no events."""
    runs = run_files(archive[0], 12)
    (filled.path / "fine" / "field_counts" / "c.0.0.0.0").unlink()
    (filled.path / "fine" / "counts" / "c.0.0.0").unlink()
    with pytest.raises(ArchiveError, match=r"fine/counts is lost.*reads the runs in it again"):
        load_histograms(str(filled.path), "", [11], RINGS)
    store = RunStore.open(filled.path)
    assert update(store, runs[:7]) == dict.fromkeys(range(FIRST, FIRST + 7), "read")
    assert (store.find(range(FIRST + 5, FIRST + 12)) >= 0).tolist() == [True, True, *[False] * 5]
    assert len(update(store, runs)) == 5
    for run in runs[5:]:
        assert_stored(store, run)


@pytest.mark.parametrize("place", ["runs", "fine"])
@pytest.mark.parametrize("kind", ["integers", "numbers", "texts"])
def test_a_table_that_is_damaged_is_mended_and_no_event_is_read(archive, filled, opened, caplog, place, kind):
    runs, file = run_files(archive[0], 12), filled.path / place / kind / "c.0.0"
    whole = file.read_bytes()
    file.write_bytes(whole[:50] + b"torn" + whole[54:])
    store = RunStore.open(filled.path)
    assert f"{place}/{kind}/c.0.0 is damaged" in caplog.text
    assert store.outdated(runs, [store.fine], None) == []
    store.mend()
    assert file.read_bytes() == whole
    assert update(RunStore.open(filled.path), runs) == {}
    assert opened == []
    assert_stored(store, runs[3])


def test_numbers_that_were_lost_with_their_copy_are_read_again(archive, filled):
    for name in ("runs", "fine"):
        (filled.path / name / "numbers" / "c.0.0").unlink()
        (filled.path / name / "table.npz").unlink()
    with pytest.raises(ArchiveError, match=r"numbers is lost"):
        load_histograms(str(filled.path), "", [0], RINGS)
    store = RunStore.open(filled.path)
    assert store.find([FIRST]) == -1
    assert len(update(store, run_files(archive[0], 12))) == 12
    assert_stored(RunStore.open(filled.path), run_files(archive[0], 1)[0])


def test_a_chunk_that_was_torn_is_told_and_can_be_made_again(archive, filled):
    chunk = filled.path / "fine" / "counts" / "c.0.0.0"
    torn = bytearray(chunk.read_bytes())
    torn[len(torn) // 2] ^= 1
    for content in (bytes(torn), bytes(torn[:100]), b""):
        chunk.write_bytes(content)
        with pytest.raises(ArchiveError, match=r"c\.0\.\* .*is damaged .*remove it, and start again"):
            load_histograms(str(filled.path), "", [0], RINGS)
    chunk.unlink()
    assert len(update(filled, run_files(archive[0], 12))) == 12
    assert_stored(filled, run_files(archive[0], 1)[0])


def test_broken_hints_cost_a_look_into_each_copy(archive, filled, opened, tmp_path):
    """The table has the states of the files that a run was read from."""
    shutil.copytree(archive[0], tmp_path / "copy")
    copies = run_files(tmp_path / "copy", 3)
    update(filled, copies)
    opened.clear()
    filled.path.with_name("runs.zarr.hints.json").write_text('{"half')
    store = RunStore.open(filled.path)
    assert update(store, copies) == {}
    assert set(update(store, run_files(archive[0], 12)).values()) == {"same"}
    assert sorted(opened) == list(range(FIRST, FIRST + 3))


def test_hints_of_two_jobs_are_both_kept(archive, filled):
    one, two = RunStore.open(filled.path), RunStore.open(filled.path)
    one.saw(__file__, "abc")
    two.saw(dl3.__file__, "def")
    one.flush()
    two.flush()
    hints = filled.path.with_name("runs.zarr.hints.json").read_text()
    assert '"abc"' in hints
    assert '"def"' in hints


def test_update_block_can_be_done_twice(archive, store):
    """A worker may die after its work, and another one does it again."""
    runs = run_files(archive[0], 3)
    with store.writing():
        (work,) = store.plan_update(runs, [store.fine], None)
        first = update_block(work, None, [store.fine])
        second = update_block(work, None, [store.fine])
        assert repr(first) == repr(second)
        store.record(first)
        store.record(second)
    for run in runs:
        assert_stored(store, run)


def test_an_empty_store_and_an_empty_request(store):
    assert store.find([1, 2]).tolist() == [-1, -1]
    assert update(store, []) == {}
    assert store.table()["obs_id"].size == 0
    assert open_runs(store.path).sizes["obs_id"] == 0


def test_a_run_that_is_replaced_stays_for_others_and_not_for_this_job(archive, filled):
    runs, table = run_files(archive[0], 12), filled.table()
    ids, regions = [run.obs_id for run in runs], disc(table["ra_pnt"][3], table["dec_pnt"][3], 0.3)
    with filled.writing():
        planned = {run.obs_id for work in filled.plan_update(runs, [filled.fine], regions) for run in work.runs}
        assert 0 < len(planned) < 12
        assert {obs_id for obs_id, row in zip(ids, filled.find(ids), strict=True) if row < 0} == planned
        other = RunStore.open(filled.path)
        load_histograms(str(filled.path), "", other.find(ids), RINGS, other.keys(other.find(ids)))
    assert {obs_id for obs_id, row in zip(ids, filled.find(ids), strict=True) if row < 0} == planned


def test_a_touched_file_is_compared_before_its_row_is_replaced(four_runs, store, edit_run):
    """Others see the old row, this job none, until its events are known."""
    runs = run_files(four_runs, 4)
    update(store, runs)
    ids, before = [run.obs_id for run in runs], chunk_states(store)
    os.utime(runs[0].path)
    edit_run(Path(runs[1].path), drop_event)
    with store.writing():
        (work,) = store.plan_update(runs, [store.fine], None)
        assert RunStore.open(store.path).find(ids).tolist() == [0, 1, 2, 3]
        assert store.find(ids).tolist() == [-1, -1, 2, 3]
        done = update_block(work, None, [store.fine])
        assert [run.status for run in done] == ["same", "read"]
        assert chunk_states(store) == before
        assert repr(update_block(work, None, [store.fine])) == repr(done)
        store.record(done)
    assert store.find(ids)[[0, 2, 3]].tolist() == [0, 2, 3]
    for run in runs:
        assert_stored(RunStore.open(store.path), run)


def test_rows_are_loaded_as_they_were_planned(four_runs, store, edit_run):
    runs = run_files(four_runs, 4)
    update(store, runs)
    rows = store.find([run.obs_id for run in runs])
    keys = store.keys(rows)
    assert (keys.dtype, keys.shape) == (np.uint64, (4,))
    counts, _ = load_histograms(str(store.path), "", rows[::-1], RINGS, keys[::-1])
    assert counts.sum() > 1000
    edit_run(Path(runs[1].path), drop_event)
    update(store, runs)
    # rows are only added: what was planned is there
    assert (load_histograms(str(store.path), "", rows[::-1], RINGS, keys[::-1])[0] == counts).all()
    assert (store.find([run.obs_id for run in runs]) == rows).tolist() == [True, False, True, True]
    other = keys.copy()
    other[1] += np.uint64(1)
    with pytest.raises(ArchiveError, match=r"changed runs of .*runs\.zarr meanwhile, 1 of the 4 .*run it again"):
        load_histograms(str(store.path), "", rows, RINGS, other)
    with pytest.raises(ValueError, match="3 keys for 4 rows"):
        load_histograms(str(store.path), "", rows, RINGS, keys[:3])
    shutil.rmtree(store.path)
    update(RunStore.open_or_create(store.path, FINE), runs[:2])
    with pytest.raises(ArchiveError, match="run it again"):
        load_histograms(str(store.path), "", rows, RINGS, keys)


def test_rows_that_are_moved_while_they_are_loaded_are_reported(filled, monkeypatch):
    """`Rows.tidy` of another job takes rows that were replaced away, first from the table and then their file."""
    rows, values = filled.find([FIRST, FIRST + 1]), Rows.values

    def slow(self, name, rows):
        other = Rows(self.path)
        other.update(np.array([1]), {"obs_id": -1})
        (self.path / "counts" / "c.0.0.0").unlink(missing_ok=True)
        return values(self, name, rows)

    monkeypatch.setattr(load_module.Rows, "values", slow)
    with pytest.raises(ArchiveError, match="meanwhile, 1 of the 2"):
        load_histograms(str(filled.path), "", rows, RINGS, filled.keys(rows))


def test_another_reduction_reads_all_runs_again(archive, filled, monkeypatch):
    runs = run_files(archive[0], 12)
    assert filled.outdated(runs, [filled.fine], None) == []
    monkeypatch.setattr(table_module, "REDUCTION", table_module.REDUCTION + 1)
    assert RunStore.open(filled.path).find([FIRST]) == -1
    assert set(update(filled, runs).values()) == {"read"}
    assert update(filled, runs) == {}


def test_a_store_that_is_removed_while_it_is_used_is_told(archive, filled, tmp_path):
    runs, away = run_files(archive[0], 12), tmp_path / "away"
    remedy = "removed or moved while it was in use: put it back.*start again"
    context = filled.writing()
    context.__enter__()
    work = filled.plan_update(runs, [filled.fine], BIG)
    done = update_block(work[0], BIG, [filled.fine])
    shutil.move(filled.path, away)
    with pytest.raises(ArchiveError, match=remedy):
        update_block(work[-1], BIG, [filled.fine])
    filled.record(done)
    for ask in (
        filled.flush,
        lambda: filled.outdated(runs, [filled.fine], None),
        lambda: filled.plan_update(runs, [filled.fine], BIG),
        lambda: context.__exit__(None, None, None),
    ):
        with pytest.raises(ArchiveError, match=remedy):
            ask()
    with pytest.raises(ArchiveError, match=remedy), filled.writing():
        pytest.fail("nothing can be written")
    assert not filled.path.exists()


def test_what_was_being_made_when_a_job_was_killed_is_cleared_away(tmp_path):
    names = ["runs.zarr", "runs.zarr", "precious"]
    left = [tmp_path / f".dask_bkg-1-{i:016x}-{name}" for i, name in enumerate(names)]
    for path in left:
        (path / "counts").mkdir(parents=True)
        os.utime(path, (time.time() - 3700,) * 2)
    os.utime(left[1])  # may belong to a job that is making a store
    store = RunStore.open_or_create(tmp_path / "runs.zarr", FINE)
    assert [path.exists() for path in left] == [False, True, True]
    view = store.path / f".dask_bkg-1-{0:016x}-rings-0123abcd"
    (view / "counts").mkdir(parents=True)
    with store.writing():
        assert not view.exists()


def refuse(monkeypatch):
    """A disk on which nothing can be written."""

    def refused(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", refused)
    monkeypatch.setattr(stat_cache, "atomic_write", refused)


def test_a_store_that_may_only_be_read(archive, filled, monkeypatch):
    """A view that it does not have is an error where it would have to be read, and not before."""
    runs, before = run_files(archive[0], 12), set(filled.path.rglob("*"))
    refuse(monkeypatch)
    view = filled.view_for(ODD, "geometry", "disc")
    assert filled.outdated([], [view], None) == []
    filled.saw(runs[0].path, "abc")
    filled.flush()
    assert len(filled.outdated(runs, [view], None)) == 12
    with pytest.raises(ArchiveError, match=r"cannot be written \(Read-only file system\).*may write to"):
        filled.writing().__enter__()
    assert set(filled.path.rglob("*")) == before


def test_a_view_is_made_by_the_job_that_writes(archive, filled):
    runs, other = run_files(archive[0], 12), RunStore.open(filled.path)
    one, two = (store.view_for(ODD, "geometry", "disc") for store in (filled, other))
    assert not (filled.path / one.name).exists()
    with filled.writing():
        assert (filled.path / one.name / "zarr.json").is_file()
    assert set(update(filled, runs[:7], views=[one]).values()) == {"read"}
    assert sorted(update(other, runs, views=[two])) == [run.obs_id for run in runs[7:]]
    with other.writing():
        late = other.view_for(RINGS, "event_ratio", "centre")
        assert len([run for work in other.plan_update(runs, [late], None) for run in work.runs]) == 12


def test_a_job_that_replaces_the_runs_of_another_exclusion_says_so(archive, filled, caplog):
    runs = run_files(archive[0], 12)
    assert "read again" not in caplog.text
    read = update(filled, runs, BIG)
    used = layout.attributes_of(filled.path)["exclusions"]
    assert len(used) == 1 + (len(read) < 12)
    assert caplog.text.count("are read again") == 1
    assert re.search(
        rf"{len(read)} of 12 runs are read again, as the exclusion near them is another one than that of \d{{4}}-.*: "
        "give jobs with different exclusions a run_store.path of their own",
        caplog.text,
    )
    caplog.clear()
    update(filled, runs, BIG)
    os.utime(filled.path)
    update(filled, runs, BIG, views=[filled.fine, filled.view_for(ODD, "geometry", "disc")])
    assert caplog.text == ""


def test_a_wide_view_does_not_void_the_others(archive, filled, opened):
    """Each view goes by the regions within its own radius."""
    runs, table = run_files(archive[0], 12), filled.table()
    view = filled.view_for(Edges(ODD.energy, np.array([0.0, 2.0, 6.0])), "geometry", "disc")
    update(filled, runs, views=[filled.fine, view])
    before, (ra, dec) = chunk_states(filled), (table["ra_pnt"][0], table["dec_pnt"][0])
    south = disc(ra, table["dec_pnt"].min() - 5.0, 0.3)
    near = np.abs(table["dec_pnt"] - dec) < 30
    assert near.all()
    opened.clear()
    assert update(filled, runs, south) == {}, "the fine view does not reach so far"
    changed = update(filled, runs, south, views=[filled.fine, view])
    assert 0 < len(changed) == len(opened)
    after = chunk_states(filled)
    assert {path for path in after if after[path] != before[path]} <= {p for p in after if view.name in p}
    for run in runs[:2]:
        assert_stored(filled, run, south)
        assert_stored(filled, run, south, view.name)
    assert update(filled, runs, south, views=[filled.fine, view]) == {}


def test_an_exception_in_a_task_leaves_the_other_blocks(archive, tmp_path, monkeypatch):
    runs = run_files(archive[0], 12)
    store = RunStore.open_or_create(tmp_path / "runs.zarr", FINE, block=5)
    write = update_module.write_runs

    def failing(work, views, found):
        if work.runs[0].obs_id == FIRST + 5:
            raise MemoryError("no room")
        write(work, views, found)

    monkeypatch.setattr(update_module, "write_runs", failing)
    with pytest.raises(MemoryError):
        update(store, runs)
    monkeypatch.setattr(update_module, "write_runs", write)
    store = RunStore.open(store.path)
    assert (store.find([run.obs_id for run in runs]) >= 0).tolist() == [True] * 5 + [False] * 7
    assert sorted(update(store, runs)) == [run.obs_id for run in runs[5:]]
    assert_stored(store, runs[11])


def test_what_tasks_have_written_is_kept_when_the_job_is_killed(archive, tmp_path, opened):
    """Nothing is folded, and no hint was written: the parts have all that the next job needs."""
    runs = run_files(archive[0], 12)
    store = RunStore.open_or_create(tmp_path / "runs.zarr", FINE, block=5)
    context = store.writing()
    context.__enter__()
    for work in store.plan_update(runs, [store.fine], None)[:2]:
        update_block(work, None, [store.fine])
    leave_lock(store.path, age=301.0)
    opened.clear()
    other = RunStore.open(store.path)
    assert sorted(update(other, runs)) == sorted(opened) == [run.obs_id for run in runs[10:]]
    for run in runs:
        assert_stored(other, run)
    store.record([RunDone(FIRST, "read")])
    with pytest.raises(ArchiveError, match="taken over by another job"):
        context.__exit__(None, None, None)


# --- two writers


def leave_lock(path: Path, age: float = 0.0, **holder) -> Path:
    """The lock of some other job, that gave a sign of life some seconds ago."""
    file = path.with_name(f"{path.name}.lock")
    file.write_text(json.dumps({"host": "elsewhere", "pid": 1, "since": "2026-01-01", "token": "theirs", **holder}))
    os.utime(file, (time.time() - age, time.time() - age))
    return file


def test_a_second_job_is_told_who_writes(filled):
    with filled.writing(), pytest.raises(ArchiveError, match=rf"process {os.getpid()} on .*Start again when it has"):
        RunStore.open(filled.path).writing().__enter__()
    assert not filled.path.with_name("runs.zarr.lock").exists()
    leave_lock(filled.path)
    with pytest.raises(ArchiveError, match="process 1 on elsewhere, since 2026-01-01"), filled.writing():
        pytest.fail("both write")


@pytest.mark.parametrize("dead", ["elsewhere, long silent", "here, no such process"])
def test_the_lock_of_a_dead_job_is_taken_over(archive, filled, dead, caplog):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    if dead.startswith("here"):
        lock = Lock(filled.path.with_name("runs.zarr.lock"), "")
        lock.acquire()
        leave_lock(filled.path, pid=gone.pid, host=json.loads(lock.path.read_text())["host"])
    else:
        leave_lock(filled.path, age=301.0)
    assert update(filled, run_files(archive[0], 12)) == {}
    assert "has gone; its work is continued" in caplog.text
    assert not filled.path.with_name("runs.zarr.lock").exists()


def test_the_lock_of_a_job_on_another_machine_is_not_judged_by_its_process(filled):
    leave_lock(filled.path, age=200.0, pid=2**22 + 1)
    with pytest.raises(ArchiveError, match=r"alive 2[0-4]\d s ago"), filled.writing():
        pytest.fail("both write")


def test_a_job_that_was_taken_over_changes_nothing_more(archive, filled, tmp_path):
    """What its tasks still write is not taken for what the other job reads."""
    run = run_files(archive[0], 1)[0]
    shutil.copy(run_files(archive[0], 2)[1].path, tmp_path / "other.fits.gz")
    other_run, before, regions = run._replace(path=str(tmp_path / "other.fits.gz")), chunk_states(filled), BIG
    context = filled.writing()
    context.__enter__()
    (work,) = filled.plan_update([other_run], [filled.fine], regions)
    leave_lock(filled.path)
    filled.record(update_block(work, regions, [filled.fine]))
    with pytest.raises(ArchiveError, match="taken over by another job"):
        context.__exit__(None, None, None)
    assert chunk_states(filled) == before
    assert RunStore.open(filled.path).find([FIRST]) == 0
    assert_stored(RunStore.open(filled.path), run)
    lock_file = filled.path.with_name("runs.zarr.lock")
    assert "theirs" in lock_file.read_text()
    lock_file.unlink()
    other = RunStore.open(filled.path)
    with other.writing():
        plan = other.plan_update(run_files(archive[0], 12), [other.fine], disc(83.6, 22.0, 2.0))
        update_block(work, regions, [filled.fine])  # late
        for part in plan:
            other.record(update_block(part, disc(83.6, 22.0, 2.0), [other.fine]))
    assert_stored(other, run, disc(83.6, 22.0, 2.0))
    # the one after these takes it in before it plans
    assert update(RunStore.open(filled.path), [run], disc(83.6, 22.0, 2.0)) == {FIRST: "read"}
    assert_stored(RunStore.open(filled.path), run, disc(83.6, 22.0, 2.0))


def test_a_store_that_lacks_nothing_needs_no_lock(archive, filled):
    runs, file = run_files(archive[0], 12), leave_lock(filled.path)
    before = {path: path.stat().st_mtime_ns for path in filled.path.rglob("*")}
    assert filled.outdated(runs, [filled.fine], None) == []
    assert 0 < len(filled.outdated(runs, [filled.fine], BIG)) < 12
    assert filled.outdated([*runs, runs[0]._replace(obs_id=5)], [filled.fine], None)[0].obs_id == 5
    assert {path: path.stat().st_mtime_ns for path in filled.path.rglob("*")} == before
    file.unlink()
    assert update(filled, runs) == {}


def test_a_job_sees_what_another_one_added_before_it_could_write(archive, filled, tmp_path):
    runs = run_files(archive[0], 12)
    first = RunStore.open_or_create(tmp_path / "two.zarr", FINE, block=5)
    second = RunStore.open(first.path)
    update(first, runs[:6])
    assert sorted(update(second, runs[3:])) == [run.obs_id for run in runs[6:]]
    assert_stored(second, runs[0])


def test_two_jobs_make_one_store(tmp_path, monkeypatch):
    """Both find nothing and write beside; the one that is later takes what is there."""
    rename, others = os.rename, []

    def late(source, target):
        if not others:
            others.append(1)
            RunStore.open_or_create(tmp_path / "runs.zarr", fine_view(bins_per_decade=5), block=7)
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    store = RunStore.open_or_create(tmp_path / "runs.zarr", FINE)
    assert (store.block, store.fine.edges.shape) == (7, (25, 50))
    assert [p.name for p in tmp_path.iterdir()] == ["runs.zarr"]


def test_a_place_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArchiveError, match="cannot be written"):
        RunStore.open_or_create(tmp_path / "file" / "runs.zarr", FINE)
    store = RunStore.open_or_create(tmp_path / "runs.zarr", FINE)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dask_bkg.store.rows.atomic_write", full)
    with pytest.raises(ArchiveError, match="No space left"), store.writing():
        store.plan_update(run_files(tmp_path, 1), [store.fine], None)
