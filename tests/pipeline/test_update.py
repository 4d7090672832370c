"""The run store brought up to date: every event file is read once, ever, by whatever job."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from distributed import Client, LocalCluster

from dask_bkg.binning import is_sum_of
from dask_bkg.cluster import job_workers
from dask_bkg.config import parse_config
from dask_bkg.dl3.index import read_datastore, write_index
from dask_bkg.errors import ArchiveError
from dask_bkg.pipeline import update as collect
from dask_bkg.pipeline.update import reduce_archive, update_store
from dask_bkg.plan import plan_job
from dask_bkg.reduction import reduce
from dask_bkg.store.load import open_runs
from dask_bkg.store.store import RunStore

pytestmark = pytest.mark.slow  # whole jobs, or simulations of many skies

OBS_IDS = [64001, 64002, 64003, 64004]


@pytest.fixture
def collected(job, four_runs):
    """Update the store of a job on the four runs."""

    def make(**sections):
        plan = plan_job(parse_config(job(four_runs, **sections)))
        with job_workers(plan.config, progress=False) as workers:  # an active client, else threads
            return update_store(plan, workers, plan.config.store_path, progress=False)

    return make


@pytest.fixture
def reads(monkeypatch):
    """Numbers of the runs that are read, as they are (in this process)."""
    numbers, read_run = [], reduce.read_run

    def note(file, **options):
        numbers.append(file.obs_id)
        return read_run(file, **options)

    monkeypatch.setattr(reduce, "read_run", note)
    return numbers


def test_every_run_is_read_once_ever(collected, reads, tmp_path):
    first = collected(io={"from_run": False})
    assert (first.read, sorted(reads)) == (4, OBS_IDS)
    assert first.store.path == tmp_path / "out" / "results" / "runs.zarr"
    for sections in ({}, {"io": {"from_run": False}}, {"background_selection": {"rank": "kl"}}):
        again = collected(**sections)
        assert (again.read, again.failed) == (0, {})
    assert len(reads) == 4


def test_the_view_is_the_fine_one_where_the_bins_are_sums_of_it(collected, reads):
    stored = collected()
    assert stored.view == ""
    assert is_sum_of(stored.store.fine.edges.energy, [0.1, 1, 10])
    # other sums of its bins: nothing is read
    assert collected(binning={"e_bins": 15, "off_bins": 5}).view == ""
    assert len(reads) == 4


def test_rings_of_ones_own_are_kept_beside_and_read_once(collected, reads):
    collected()
    own = {"binning": {"e_min": 0.15, "e_bins": 7}}
    assert collected(**own).view.startswith("rings-")
    assert sorted(reads) == sorted(2 * OBS_IDS)
    assert collected(**own).read == 0
    assert collected(model={"exposure": "event_ratio"}).view.startswith("rings-")
    assert collected().view == ""
    assert len(reads) == 12


@pytest.mark.parametrize(
    ("binning", "told"),
    [
        ({}, None),
        ({"e_bins": 15, "off_bins": 5}, None),
        ({"e_bins": 7}, "the binning is no sum of the fine bins of the run store (10 energies a decade,"),
        ({"off_bins": 7}, "the binning is no sum of the fine bins of the run store (10 energies a decade,"),
        ({"mode": "3d"}, None),
        ({"mode": "3d", "fov_bins": 5, "fov_max": 1.5}, None),
        ({"mode": "3d", "fov_bins": 7}, "the pixels of the field (binning.fov_bins, fov_max) are no sums of"),
    ],
)
def test_bins_for_which_runs_are_read_are_told(collected, caplog, binning, told):
    collected(binning=binning)
    assert [told in message for message in caplog.messages if "no sum" in message] == [True] * (told is not None)
    caplog.clear()
    collected(binning=binning)
    assert "no sum" not in caplog.text, "they are read once"


def test_the_fine_bins_are_those_of_the_configuration(collected):
    store = collected(run_store={"bins_per_decade": 5, "ring": 0.25, "pixel": 0.25, "block": 3}).store
    assert store.fine.edges.shape == (25, 10)
    assert len(store.fine.pixels) == 21
    assert store.block == 3


def test_a_store_that_is_shared_between_jobs(collected, reads, tmp_path):
    shared = {"run_store": {"path": str(tmp_path / "shared.zarr")}}
    collected(**shared)
    assert collected(**shared, io={"out_dir": str(tmp_path / "another")}).read == 0
    assert len(reads) == 4
    assert not (tmp_path / "out" / "results" / "runs.zarr").exists()


def test_only_new_and_changed_runs_are_read(collected, reads, four_runs, run_path, edit_run):
    store = read_datastore(four_runs)
    write_index(four_runs, store.rows(OBS_IDS[:3]), store.observations(OBS_IDS[:3]))
    collected()
    assert sorted(reads) == OBS_IDS[:3]
    write_index(four_runs, store.hdu, store.obs)
    reads.clear()

    def reprocess(hdus):
        hdus["EVENTS"].data["ENERGY"][0] *= 1.5

    edit_run(run_path(four_runs, 64002), reprocess)
    assert collected().read == 2
    assert sorted(reads) == [64002, 64004]


def test_a_run_that_cannot_be_read_is_told_with_its_reason(collected, four_runs, run_path, reads):
    run_path(four_runs, 64003).write_bytes(b"not FITS")
    for read in (3, 0):
        stored = collected()
        assert stored.read == read
        assert stored.failed.keys() == {64003}
        assert "run_064003" in stored.failed[64003]
    assert len(reads) == 4


def test_runs_without_a_file_in_the_index_are_told_too(collected, four_runs):
    store = read_datastore(four_runs)
    gone = (store.hdu["OBS_ID"] == 64001) & (store.hdu["HDU_TYPE"] == "events")
    write_index(four_runs, store.hdu[~gone], store.obs)
    assert "no row of type 'events'" in collected(io={"from_run": False}).failed[64001]


def die(work, regions, views):
    if any(run.obs_id == 64003 for run in work.runs):
        raise MemoryError("too much")
    return update_block(work, regions, views)


update_block = collect.update_block


def test_a_task_that_dies_takes_its_runs_with_it_and_no_other(collected, monkeypatch):
    """The next job reads them; blocks of one run here."""
    section = {"run_store": {"block": 1}}
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster),
    ):
        monkeypatch.setattr(collect, "update_block", die)
        stored = collected(**section)
        assert stored.read == 3
        assert stored.failed.keys() == {64003}
        assert "failed (MemoryError: too much): run it again, with more memory" in stored.failed[64003]
        monkeypatch.undo()
        stored = collected(**section)
    assert (stored.read, stored.failed) == (1, {})


def test_two_jobs_do_not_write_at_once(collected):
    """One that has nothing to write does not mind."""
    store = collected().store
    with store.writing():
        assert collected().read == 0
        with pytest.raises(ArchiveError, match="Another job writes into"):
            collected(binning={"e_bins": 7})
    assert collected(binning={"e_bins": 7}).read == 4


def test_an_exclusion_that_touches_some_runs_reads_those_alone(collected, reads, four_runs):
    collected()
    reads.clear()
    obs = read_datastore(four_runs).obs
    ra, dec = float(obs["RA_PNT"][0]), float(obs["DEC_PNT"][0])
    near = [run for run, a, d in zip(obs["OBS_ID"], obs["RA_PNT"], obs["DEC_PNT"], strict=True) if abs(d - dec) < 5]
    assert 0 < len(near) < 4
    collected(exclusion={"exclude_regions": [[ra, dec, 0.3], [300.0, -70.0, 0.5]]})
    assert sorted(reads) == sorted(near)


# -- the step by itself ----------------------------------------------------------------------------------------


def test_reduce_archive_does_this_step_alone(job, four_runs, tmp_path, reads):
    config = job(four_runs)
    stored = reduce_archive(parse_config(config), progress=False)
    assert (stored.read, stored.failed) == (4, {})
    runs = open_runs(stored.store.path)
    assert runs.obs_id.values.tolist() == OBS_IDS
    assert not list(Path(tmp_path / "out").glob("**/*.fits.gz"))
    config["io"]["from_run"] = False
    plan = plan_job(parse_config(config))
    assert update_store(plan, None, plan.config.store_path, progress=False).read == 0
    assert len(reads) == 4


def test_reduce_archive_reads_the_search_datastore(job, four_runs, tmp_path):
    empty = Path(shutil.copytree(four_runs, tmp_path / "mine"))
    store = read_datastore(four_runs)
    write_index(empty, store.rows([64001]), store.observations([64001]))
    config = job(four_runs, io={"in_dir": str(empty)})
    assert reduce_archive(parse_config(config), progress=False).read == 4


def test_progress_counts_runs(job, four_runs, capsys):
    reduce_archive(parse_config(job(four_runs)), progress=True)
    shown = capsys.readouterr().err
    assert "runs read: 100%" in shown
    assert "4/4" in shown
    reduce_archive(parse_config(job(four_runs)), progress=False)
    assert capsys.readouterr().err == ""


def test_what_a_killed_job_has_recorded_is_not_read_again(collected, reads, monkeypatch):
    """The job is interrupted after its second block."""
    record, done = RunStore.record, []

    def interrupt(self, result):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(result)
        record(self, result)

    monkeypatch.setattr(RunStore, "record", interrupt)
    with pytest.raises(KeyboardInterrupt):
        collected(run_store={"block": 1})
    monkeypatch.setattr(RunStore, "record", record)
    reads.clear()
    # a block that was read when the job was interrupted may be kept too
    assert collected(run_store={"block": 1}).read <= 2
    assert len(reads) <= 2
    assert {run.obs_id for block in done for run in block}.isdisjoint(reads)
