"""A job from its configuration to its files: the same bytes wherever it runs, each run read once, what it says."""

from __future__ import annotations

import logging
from pathlib import Path

import dask
import numpy as np
import pytest
from astropy.io import fits
from dask.callbacks import Callback
from dask.utils import key_split
from distributed import Client, LocalCluster, wait
from helpers.described import described
from helpers.synthetic import keys_of, refuse
from numpy.testing import assert_array_equal

from dask_bkg import cluster
from dask_bkg.background.irf import rate_to_background
from dask_bkg.background.stack import Stack
from dask_bkg.compat import run_make_background
from dask_bkg.config import parse_config
from dask_bkg.dl3.index import read_datastore
from dask_bkg.errors import ArchiveError, BackgroundError
from dask_bkg.output import provenance as bookkeeping
from dask_bkg.output.write import Result
from dask_bkg.pipeline import graph as wiring
from dask_bkg.pipeline import run as pipeline
from dask_bkg.pipeline.tables import make_tables
from dask_bkg.pipeline.update import update_store
from dask_bkg.plan import plan_job
from dask_bkg.reduction import reduce
from dask_bkg.reduction.reduce import reduce_block

pytestmark = pytest.mark.slow  # whole jobs, or simulations of many skies

OTHERS = {"from_run": False}
OBS_IDS = [64001, 64002, 64003, 64004]


@pytest.fixture(scope="module")
def scheduler():
    """A scheduler that runs already, with two workers (threads of this process, but reached by TCP)."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address=":0"
    ) as running:
        yield running


def written_rate(path: Path) -> np.ndarray:
    return fits.getdata(path, "BACKGROUND")["BKG"][0]


def outputs(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("data/*.fits.gz")}


# --- the graph ---------------------------------------------------------------------------------------------


@pytest.fixture
def graph(job, four_runs):
    """Graph of a job on the four runs, its run store up to date; what it was built of beside it."""

    def make(**sections):
        plan = plan_job(parse_config(job(four_runs, **{"io": OTHERS, **sections})))
        stored = update_store(plan, None, plan.config.store_path, progress=False)
        tables = make_tables(plan, stored)
        with dask.config.set(scheduler=refuse):
            return wiring.build(plan, tables, stored), plan

    return make


@pytest.mark.parametrize("rank", ["elevation", "kl", "conditions"])
def test_building_the_graph_computes_nothing(graph, rank, tmp_path):
    built, _ = graph(background_selection={"rank": rank, "store_KL": True})
    with dask.config.set(scheduler=refuse), pytest.raises(AssertionError, match="something was computed"):
        built.stacks["spectrum"][0].compute()
    assert (len(built.writes), len(built.tables)) == (1, 1)
    assert not list((tmp_path / "out").glob("**/*.fits*"))


def test_names_on_the_dashboard(graph):
    built, _ = graph(background_selection={"rank": "kl"})
    keys = keys_of(*built.writes)
    names = {key_split(key) for key in keys}
    assert {"load-runs", "shape-of-runs", "kl-divergence", "select-runs", "stack-runs"} <= names
    assert any(key.startswith("write-files") for key in keys)


def test_the_graph_is_the_eager_way_step_by_step(graph):
    """Selection, sum and rate of each target, without a graph."""
    built, plan = graph(background_selection={"rank": "elevation", "time_request": 0.6}, config={"block": 2})
    runs = reduce_block(plan.runs, plan.edges, plan.regions, "geometry", "disc")
    airmass = 1 / np.cos(np.deg2rad(runs.zenith.values))
    results, selected = dask.compute(built.writes[0], built.selected["spectrum"][0], scheduler="synchronous")
    parts = dask.compute(*built.stacks["spectrum"], scheduler="synchronous")
    stacks = Stack(*map(np.concatenate, zip(*parts, strict=True)))
    for i, obs_id in enumerate(OBS_IDS):
        near = [j for j in np.argsort(np.abs(airmass - airmass[i]), kind="stable").tolist() if j != i]
        hours = np.cumsum(runs.livetime.values[near]) / 3600
        used = near[: int(np.searchsorted(hours, 0.6)) + 1]
        assert_array_equal(stacks.counts[i], runs.counts.values[used].sum(axis=0))
        assert stacks.livetime[i] == pytest.approx(runs.livetime.values[used].sum())
        if i < len(results):
            assert selected.of(i).obs_id.tolist() == [OBS_IDS[j] for j in used]
            rate, _ = rate_to_background(stacks.counts[i], stacks.exposure[i], plan.edges, plan.rate)
            written = fits.getdata(results[i].output, results[i].hdu)["BKG"][0]
            assert rate.quantity.to_value("s-1 MeV-1 sr-1") == pytest.approx(written.T, rel=1e-6)
        assert obs_id == plan.targets[i].obs_id


class Alive(Callback):
    """How many blocks of each layer are held at once, at most."""

    def __init__(self):
        super().__init__()
        self.most: dict[str, int] = {}

    def _posttask(self, key, result, dsk, state, worker_id):
        names = [str(k[0] if isinstance(k, tuple) else k).rsplit("-", 1)[0] for k in state["cache"]]
        for name in set(names):
            self.most[name] = max(self.most.get(name, 0), names.count(name))


def test_a_job_goes_from_target_to_target(job, archive, tmp_path):
    """Candidates and stacks of one block of targets at a time, and its files before those of the next."""
    sections = {"config": {"block": 2, "split_every": 2}, "background_selection": {"rank": "kl", "time_request": 0.8}}
    plan = plan_job(parse_config(job(archive[0], io=OTHERS, **sections)))
    stored = update_store(plan, None, plan.config.store_path, progress=False)
    built = wiring.build(plan, make_tables(plan, stored), stored)
    with Alive() as alive:
        results = dask.compute(*built.writes, scheduler="synchronous")
    assert [result.status for part in results for result in part] == ["done"] * 12
    assert alive.most["load-runs"] <= 6
    # of 36 pairs of blocks
    assert alive.most["kl-divergence"] <= 12
    assert alive.most["stack-blocks"] <= 12


# --- a job, wherever it runs -------------------------------------------------------------------------------


SELECTED = {
    "background_selection": {"time_request": 1.5, "rank": "kl-conditions"},
    "binning": {"e_max": 10},
    "config": {"block": 5, "split_every": 2},
}


@pytest.fixture(scope="module")
def once():
    """What lasts as long as this module."""
    return {}


@pytest.fixture
def on_threads(job, archive, once, tmp_path):
    """What a job on two threads writes: the comparison for all other ways to run it."""
    if not once:
        places = {**OTHERS, "out_dir": str(tmp_path / "threads")}
        run_make_background(
            job(archive[0], **SELECTED | {"io": places, "config": {**SELECTED["config"], "njobs": 2}})
        )
        once.update(outputs(tmp_path / "threads"))
        assert len(once) == 12
    return once


def test_one_thread_or_two(job, archive, on_threads, tmp_path):
    run_make_background(job(archive[0], io=OTHERS, **SELECTED))
    assert outputs(tmp_path / "out") == on_threads


def test_the_address_of_a_scheduler(job, archive, on_threads, scheduler, tmp_path, monkeypatch):
    monkeypatch.setattr("dask_bkg.cluster.local.start_workers", refuse)
    config = job(archive[0], io=OTHERS, cluster=scheduler.scheduler_address, **SELECTED)
    assert scheduler.scheduler_address.startswith("tcp://")
    run_make_background(config)
    assert outputs(tmp_path / "out") == on_threads


def test_a_local_cluster(job, archive, on_threads, tmp_path):
    """Worker processes, the default; the rates are the same bit by bit, as is everything else."""
    config = job(archive[0], io=OTHERS, cluster="local", **SELECTED)
    run_make_background(config)
    assert outputs(tmp_path / "out") == on_threads
    assert cluster.active_client() is None  # nothing is left running


def test_an_active_client_is_used_and_left_open(job, four_runs, scheduler, tmp_path, monkeypatch):
    monkeypatch.setattr("dask_bkg.cluster.local.start_workers", refuse)
    config = job(four_runs, cluster="local", io=OTHERS, background_selection={"rank": "kl"})
    with Client(scheduler) as client:
        run_make_background(config)
        assert client.status == "running"
        names = {key_split(str(name)) for name in client.run_on_scheduler(_prefixes)}
    assert {"reduce-runs", "load-runs", "kl-divergence", "select-runs", "stack-runs"} <= names
    assert len(outputs(tmp_path / "out")) == 4


def _prefixes(dask_scheduler):
    return list(dask_scheduler.task_prefixes)


@pytest.mark.parametrize("where", ["threads", "scheduler"])
def test_each_run_is_read_once(job, archive, scheduler, monkeypatch, where):
    """Also where the first tasks are done before the last ones are submitted, as in a large archive."""
    read, read_run, compute = [], reduce.read_run, Client.compute

    def note(file, **options):
        read.append(file.obs_id)
        return read_run(file, **options)

    def compute_slowly(*args, **kwargs):
        futures = compute(*args, **kwargs)
        wait(futures)
        return futures

    monkeypatch.setattr(reduce, "read_run", note)
    monkeypatch.setattr(Client, "compute", compute_slowly)
    address = scheduler.scheduler_address if where == "scheduler" else "threads"
    config = job(archive[0], cluster=address, io=OTHERS, run_store={"block": 5})
    run_make_background(config)
    assert sorted(read) == list(range(64001, 64013))
    config["run_store"]["path"] = config["io"]["out_dir"] + "/results/runs.zarr"
    config["io"]["out_dir"] += "-2"
    run_make_background(config)
    assert len(read) == 12


def test_blocks_change_no_rate(job, four_runs, tmp_path):
    store = {"path": str(tmp_path / "runs.zarr")}
    for name, section in (("whole", {}), ("blocks", {"block": 1, "split_every": 2})):
        sections = {"config": section, "run_store": store, "background_selection": {"rank": "kl"}}
        run_make_background(job(four_runs, io={**OTHERS, "out_dir": str(tmp_path / name)}, **sections))
    for obs_id in OBS_IDS:
        whole, blocks = (
            written_rate(tmp_path / d / "data" / f"run_{obs_id:06d}.fits.gz") for d in ("whole", "blocks")
        )
        assert blocks == pytest.approx(whole, rel=1e-6)


def test_all_stars_to_magnitude_8_are_no_large_graph(job, four_runs, scheduler, tmp_path):
    """41,000 stars, as in the Hipparcos table; pytest makes an error of dask's warning."""
    rng = np.random.default_rng(1)
    stars = tmp_path / "many-stars.dat"
    sky = np.column_stack([rng.uniform(0, 360, 41_000), rng.uniform(-90, 90, 41_000)])
    columns = [sky, np.arange(41_000), rng.uniform(1, 7.9, 41_000), np.zeros(41_000)]
    np.savetxt(stars, np.column_stack(columns), fmt="%.5f %.5f %d %.2f %.2f")
    config = job(four_runs, exclusion={"star_cat": str(stars), "star_mag": 8, "star_radius": 0.1})
    with Client(scheduler):
        run_make_background(config)
        config["io"]["out_dir"] += "-2"
        with (
            dask.config.set({"distributed.admin.large-graph-warning-threshold": "1MB"}),
            pytest.raises(UserWarning, match="Sending large graph"),
        ):
            run_make_background(config)


# --- what goes wrong ---------------------------------------------------------------------------------------


def test_a_job_without_any_result_is_an_error(job, four_runs, run_path):
    for obs_id in OBS_IDS:
        run_path(four_runs, obs_id).write_bytes(b"not FITS")
    with pytest.raises(BackgroundError, match="no background could be made") as caught:
        run_make_background(job(four_runs))
    assert all(f"run {obs_id}" in str(caught.value) for obs_id in OBS_IDS)
    with pytest.raises(ArchiveError, match="none of its runs can be used"):
        run_make_background(job(four_runs, io=OTHERS))


@pytest.mark.parametrize("rank", ["elevation", "kl"])
def test_a_bad_run_is_reported_and_the_others_go_on(job, four_runs, run_path, rank):
    run_path(four_runs, 64002).write_bytes(b"not FITS")
    summary = pipeline.run_job(
        parse_config(job(four_runs, io=OTHERS, background_selection={"rank": rank})), progress=False
    )
    assert [result.status for result in summary.results] == ["done", "failed", "done", "done"]
    assert summary.failed.keys() == summary.unusable.keys() == {64002}
    assert "run_064002" in summary.failed[64002]
    assert all(64002 not in result.contributing for result in described(summary))
    assert summary.runs_read == 3


def test_a_task_that_dies_fails_its_targets_only(job, archive, scheduler, monkeypatch, tmp_path):
    """A worker that is killed is an error of its tasks, as is this one; two targets a task here."""
    write_block = wiring.write_block

    def die(targets, **how):
        if any(target.obs_id == 64004 for target, _ in targets):
            raise MemoryError("too much")
        return write_block(targets, **how)

    monkeypatch.setattr(wiring, "WRITE_BATCH", 2)
    monkeypatch.setattr(wiring, "write_block", die)
    config = parse_config(job(archive[0], io=OTHERS, cluster=scheduler.scheduler_address))
    summary = pipeline.run_job(config, progress=False)
    failed = {result.obs_id: result.reason for result in summary.results if result.status == "failed"}
    assert failed.keys() == {64003, 64004}
    assert "run 64004: its task failed (MemoryError: too much): run it again, with more memory" in failed[64004]
    assert "run 64003: " in failed[64003]
    assert len(outputs(tmp_path / "out")) == 10


@pytest.mark.parametrize("where", ["threads", "scheduler"])
def test_a_run_store_that_is_damaged_is_the_end_of_all(job, four_runs, scheduler, monkeypatch, where):
    """Its message is what is told, and not that a task ended."""

    def damaged(*args, **how):
        raise ArchiveError("chunk 0 is damaged: move the store away")

    monkeypatch.setattr(wiring, "write_block", damaged)
    address = scheduler.scheduler_address if where == "scheduler" else "threads"
    with pytest.raises(ArchiveError, match=r"^chunk 0 is damaged: move the store away$"):
        pipeline.run_job(parse_config(job(four_runs, io=OTHERS, cluster=address)), progress=False)


def test_an_interrupt_keeps_what_is_done(job, four_runs, monkeypatch, tmp_path):
    """The rows of finished runs are in the index, and the next job goes on from there."""
    write_block, written = wiring.write_block, []

    def interrupt(targets, **how):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.extend(targets)
        return write_block(targets, **how)

    monkeypatch.setattr(wiring, "WRITE_BATCH", 1)
    monkeypatch.setattr(wiring, "write_block", interrupt)
    config = parse_config(job(four_runs, io=OTHERS))
    with pytest.raises(KeyboardInterrupt):
        pipeline.run_job(config, progress=False)
    monkeypatch.setattr(wiring, "write_block", write_block)
    done = read_datastore(tmp_path / "out").obs_ids.tolist()
    assert sorted(done) == sorted(target.obs_id for target, _ in written)
    assert set(outputs(tmp_path / "out")) == {f"run_{obs_id:06d}.fits.gz" for obs_id in done}
    summary = pipeline.run_job(config, progress=False)
    assert {r.obs_id: r.status for r in summary.results} == {i: "unchanged" if i in done else "done" for i in OBS_IDS}
    assert summary.runs_read == 0


# --- what a job says ---------------------------------------------------------------------------------------


def test_the_summary_lists_targets_and_contributing_runs_that_failed():
    results = [
        Result(3, "failed", "run 3: no pointing"),
        Result(1, "done", failed_runs={2: "run 2: no file"}),
    ]
    assert pipeline.Summary(results, Path()).failed == {2: "run 2: no file", 3: "run 3: no pointing"}


def test_runs_of_a_list_that_cannot_be_used_are_told_of_where_they_matter(job, four_runs, run_path):
    run_path(four_runs, 64002).write_bytes(b"not FITS")
    lists = {64001: [64002, 64003], 64003: [64001, 64004]}
    config = job(four_runs, io=OTHERS, background_selection={"bkg_runlist": lists})
    results = {r.obs_id: r for r in described(pipeline.run_job(parse_config(config), progress=False))}
    assert results[64001].failed_runs.keys() == {64002}
    assert results[64001].reason == "1 contributing runs could not be used"
    assert (results[64003].failed_runs, results[64003].reason) == ({}, "")
    assert results[64001].contributing == (64003,)


def test_what_was_remarkable_about_a_run_is_told_with_those_it_contributes_to(job, four_runs, run_path, edit_run):
    def spoil(hdus):
        hdus["EVENTS"].data["ENERGY"][:40] = np.nan

    edit_run(run_path(four_runs, 64002), spoil)
    lists = {64001: [64002], 64002: [64002], 64003: [64004], 64004: [64003]}
    config = job(four_runs, io=OTHERS, background_selection={"bkg_runlist": lists})
    first, second, third, _ = described(pipeline.run_job(parse_config(config), progress=False))
    assert first.reason.startswith("contributing run 64002: 40 of ")
    assert second.reason.startswith("40 of ")
    assert first.notes.keys() == second.notes.keys() == {64002}
    assert (third.notes, third.reason) == ({}, "")


def test_progress_counts_runs_and_backgrounds(job, four_runs, capsys, caplog, tmp_path):
    with caplog.at_level(logging.WARNING):
        config = parse_config(job(four_runs))
        summary = pipeline.run_job(config, progress=True)
    shown = capsys.readouterr().err
    assert "runs read: 100%" in shown
    assert "backgrounds: 100%" in shown
    assert "4/4" in shown
    assert [result.status for result in summary.results] == ["done"] * 4
    pipeline.run_job(config, progress=False)
    assert capsys.readouterr().err == ""
    header = fits.getheader(tmp_path / "out" / "data" / "run_064001.fits.gz", "BACKGROUND")
    assert header["CONFHASH"] == bookkeeping.config_hash(config)


def test_the_dashboard_is_told(job, four_runs, scheduler, capsys):
    pipeline.run_job(parse_config(job(four_runs, cluster=scheduler.scheduler_address)), progress=True)
    assert "dashboard: http" in capsys.readouterr().out


# --- exclusion, to the very file ---------------------------------------------------------------------------


def test_a_source_inside_an_exclusion_leaves_the_written_background(job, four_runs, run_path, edit_run, tmp_path):
    header = fits.getheader(run_path(four_runs, 64001), "EVENTS")
    circle = [header["RA_OBJ"], header["DEC_OBJ"], 0.35]

    def background(out, **sections):
        config = job(four_runs, io={"out_dir": str(tmp_path / out)}, run_selection={"runlist": [64001]}, **sections)
        config["exclusion"]["exclude_regions"] = [circle]
        run_make_background(config)
        return written_rate(tmp_path / out / "data" / "run_064001.fits.gz")

    def inject(hdus):
        old = hdus["EVENTS"].data
        new = fits.FITS_rec.from_columns(hdus["EVENTS"].columns, nrows=len(old) + 400)
        new["RA"][-400:] = circle[0]
        new["DEC"][-400:] = circle[1] + np.linspace(-0.33, 0.33, 400)
        new["ENERGY"][-400:] = np.geomspace(0.3, 5, 400)
        hdus["EVENTS"].data = new

    ratio = {"model": {"exposure": "event_ratio"}, "run_store": {"path": str(tmp_path / "runs.zarr")}}
    before = {"geometry": background("a"), "event_ratio": background("b", **ratio)}
    edit_run(run_path(four_runs, 64001), inject)
    assert background("c").tobytes() == before["geometry"].tobytes()
    assert (background("d", **ratio)[:4] > 1.3 * before["event_ratio"][:4]).any()
