"""The steps on Dask: nothing is computed before its time, lazy equals eager, and the same bits everywhere."""

from __future__ import annotations

import logging
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
from astropy.io import fits
from dask.utils import key_split
from distributed import Client, LocalCluster, wait

from dask_bkg import cluster, pipeline, schema
from dask_bkg.compat import run_make_background
from dask_bkg.config import parse_config
from dask_bkg.dl3 import reduce
from dask_bkg.dl3.index import read_datastore, write_index
from dask_bkg.dl3.read import RunFile
from dask_bkg.dl3.reduce import reduce_block
from dask_bkg.errors import BackgroundError
from dask_bkg.exclusion import make_regions
from dask_bkg.plan import Target, plan_job
from dask_bkg.products import Result

EDGES = schema.as_edges({"energy": np.geomspace(0.1, 10, 7), "offset": np.linspace(0, 2.5, 6)})
SOME = make_regions([83.633, 150.0], [22.0145, 38.0], 0.5, ["a", "b"], "own")


@pytest.fixture(scope="module")
def files(archive):
    """The twelve runs of the archive, and a thirteenth in the middle that is not there."""
    directory, truth = archive
    found = [RunFile(r.obs_id, str(directory / "data" / f"run_{r.obs_id:06d}.fits.gz")) for r in truth.runs]
    return [*found[:5], RunFile(99, str(directory / "nowhere.fits")), *found[5:]]


@pytest.fixture(scope="module")
def eager(files):
    return reduce_block(files, EDGES, SOME, "geometry", "disc")


@pytest.fixture(scope="module")
def scheduler():
    """A scheduler that runs already, with two workers (threads of this process, but reached by TCP)."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address=None
    ) as running:
        yield running


def targets_of(contributing: dict[int, tuple[int, ...]]) -> list[Target]:
    return [Target(obs_id, "", "", None, np.nan, runs) for obs_id, runs in contributing.items()]


def keys_of(collection) -> list[str]:
    return [str(key[0] if isinstance(key, tuple) else key) for key in dict(collection.__dask_graph__())]


# --- the graph ---------------------------------------------------------------------------------------------


def refuse(*args, **kwargs):
    raise AssertionError("something was computed")


def test_building_the_graph_computes_nothing(job, four_runs, tmp_path):
    plan = plan_job(parse_config(job(four_runs, io={"from_run": False})), pipeline.read_header_batch)
    with dask.config.set(scheduler=refuse):
        _, stacks, writes = pipeline.build(plan)
        with pytest.raises(AssertionError, match="something was computed"):
            stacks.compute()
    assert len(writes) == 1
    assert not (tmp_path / "out").exists()


def test_names_on_the_dashboard(job, four_runs):
    plan = plan_job(parse_config(job(four_runs, io={"from_run": False})), pipeline.read_header_batch)
    _, _, writes = pipeline.build(plan)
    keys = keys_of(writes[0])
    assert {"reduce-runs", "stack-runs"} <= {key_split(key) for key in keys}
    # the dashboard cuts a name before a word with a digit: there it is "write"
    assert any(key.startswith("write-dl3") for key in keys)


@pytest.mark.parametrize("contributing", [1, 20])
def test_number_of_tasks_grows_with_the_number_of_runs(contributing):
    """A handful of tasks a run, although runs meet runs; twice the runs, twice the tasks."""

    def tasks(n):
        runs = pipeline.reduce_runs([RunFile(i, f"{i}.fits") for i in range(n)], EDGES)
        near = {i: tuple((i + k) % n for k in range(contributing)) for i in range(n)}
        return len(keys_of(pipeline.stack_runs(runs, targets_of(near))))

    few, many = tasks(200), tasks(400)
    assert many < 4 * 400
    assert many < 2.1 * few


def test_archives_make_batches_of_tens_of_runs():
    assert [pipeline.batch_size(n) for n in (1, 500, 2000, 20_000)] == [10, 10, 20, 50]
    assert pipeline.batches([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]


# --- lazy equals eager -------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, 12, 13, None])
def test_reduce_is_the_eager_one_whatever_the_batch(files, eager, batch):
    lazy = pipeline.reduce_runs(files, EDGES, SOME, batch=batch)
    assert all(dask.is_dask_collection(lazy[name].data) for name in (*schema.HISTOGRAMS, "ontime", "error"))
    assert {max(lazy[name].data.chunks[0]) for name in schema.HISTOGRAMS} == {batch or 10}
    computed = lazy.compute(scheduler="synchronous")
    assert computed.identical(eager)
    assert bool(computed.error.sel(obs_id=99).item())


def test_reduce_takes_method_and_reach(files):
    lazy = pipeline.reduce_runs(files[:2], EDGES, SOME, method="event_ratio", reach="centre")
    expected = reduce_block(files[:2], EDGES, SOME, "event_ratio", "centre")
    assert lazy.compute(scheduler="synchronous").identical(expected)


CONTRIBUTING = {
    64001: (64001,),
    64002: (64012, 64003, 64005),
    64003: tuple(range(64001, 64013)),
    64004: (64006, 99),
    64005: (99,),
}


@pytest.fixture(scope="module")
def stacked(eager):
    """The sums without a tree, by xarray."""
    good = eager.reset_coords("livetime")[["counts", "exposure", "livetime"]]
    runs = [[i for i in contributing if i != 99] for contributing in CONTRIBUTING.values()]
    return xr.concat([good.sel(obs_id=ids).sum("obs_id") for ids in runs], "target")


@pytest.mark.parametrize(("batch", "block", "split_every"), [(1, 1, 2), (1, 5, 8), (3, 2, 2), (3, 5, 8), (13, 2, 8)])
def test_stacks_do_not_depend_on_the_blocks(files, stacked, batch, block, split_every):
    runs = pipeline.reduce_runs(files, EDGES, SOME, batch=batch)
    lazy = pipeline.stack_runs(runs, targets_of(CONTRIBUTING), block=block, split_every=split_every)
    stacks = lazy.compute(scheduler="synchronous")
    assert (stacks.counts.values == stacked.counts.values).all()
    assert stacks.exposure.values == pytest.approx(stacked.exposure.values, rel=1e-12)
    assert stacks.livetime.values == pytest.approx(stacked.livetime.values, rel=1e-12)
    assert stacks.n_runs.values.tolist() == [1, 3, 12, 1, 0]
    assert [set(errors) for errors in stacks.errors.values] == [set(), set(), set(), {99}, {99}]
    assert stacks.obs_id.values.tolist() == list(CONTRIBUTING)
    assert schema.check(stacks) is stacks
    assert stacks.exposure.attrs["units"] == "s TeV sr"


def test_a_contributing_run_that_was_not_reduced_is_no_other_run(files):
    """Below, between and above the run numbers that are there: an error, or nothing added."""
    runs = pipeline.reduce_runs(files, EDGES, SOME)
    alone = pipeline.stack_runs(runs, targets_of({1: (64002,)})).compute(scheduler="synchronous")
    for absent in (7, 100, 70_000):
        try:
            stack = pipeline.stack_runs(runs, targets_of({1: (64002, absent)})).compute(scheduler="synchronous")
        except (IndexError, KeyError, ValueError):
            continue
        assert stack.n_runs.values.tolist() == [1]
        assert (stack.counts.values == alone.counts.values).all()


# --- a job, wherever it runs -------------------------------------------------------------------------------


def outputs(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("data/*.fits.gz")}


@pytest.fixture(scope="module")
def selected():
    return {"background_selection": {"time_request": 1.5}, "binning": {"e_max": 10}}


@pytest.fixture
def on_threads(job, archive, selected, tmp_path):
    """What a job on two threads writes: the comparison for all other ways to run it."""
    places = {"from_run": False, "out_dir": str(tmp_path / "threads")}
    run_make_background(job(archive[0], io=places, config={"njobs": 2}, **selected))
    written = outputs(tmp_path / "threads")
    assert len(written) == 12
    return written


def test_one_thread_or_two(job, archive, selected, on_threads, tmp_path):
    run_make_background(job(archive[0], io={"from_run": False}, config={"njobs": 1}, **selected))
    assert outputs(tmp_path / "out") == on_threads


def test_the_address_of_a_scheduler(job, archive, selected, on_threads, scheduler, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_local_cluster", refuse)
    config = job(archive[0], io={"from_run": False}, cluster=scheduler.scheduler_address, **selected)
    assert scheduler.scheduler_address.startswith("tcp://")
    run_make_background(config)
    assert outputs(tmp_path / "out") == on_threads


def test_a_local_cluster(job, archive, selected, on_threads, tmp_path):
    """Worker processes, the default; the rates are the same bit by bit, as is everything else."""
    config = job(archive[0], io={"from_run": False}, cluster="local", config={"njobs": 1}, **selected)
    run_make_background(config)
    assert outputs(tmp_path / "out") == on_threads
    assert cluster.active_client() is None  # nothing is left running


def test_an_active_client_is_used_and_left_open(job, four_runs, scheduler, tmp_path, monkeypatch):
    """Also for what the plan needs: the index lacks a column, and the headers have it."""
    store = read_datastore(four_runs)
    store.obs.remove_column("NSBLEVEL")
    write_index(four_runs, store.hdu, store.obs)
    monkeypatch.setattr(cluster, "_local_cluster", refuse)
    config = job(four_runs, cluster="local", io={"from_run": False}, background_selection={"nsb_diff": 5})
    with Client(scheduler) as client:
        run_make_background(config)
        assert client.status == "running"
        names = {key_split(str(name)) for name in client.run_on_scheduler(_prefixes)}
    assert {"reduce-runs", "stack-runs"} <= names
    assert len(outputs(tmp_path / "out")) == 4


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
    run_make_background(job(archive[0], cluster=address, io={"from_run": False}))
    assert sorted(read) == list(range(64001, 64013))


def _prefixes(dask_scheduler):
    return list(dask_scheduler.task_prefixes)


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
        with (
            dask.config.set({"distributed.admin.large-graph-warning-threshold": "1MB"}),
            pytest.raises(UserWarning, match="Sending large graph"),
        ):
            run_make_background(config)


# --- what a job says ---------------------------------------------------------------------------------------


def test_a_job_without_any_result_is_an_error(job, four_runs, run_path):
    for obs_id in (64001, 64002, 64003, 64004):
        run_path(four_runs, obs_id).write_bytes(b"not FITS")
    with pytest.raises(BackgroundError, match="no background could be made") as caught:
        run_make_background(job(four_runs))
    assert all(f"run {obs_id}" in str(caught.value) for obs_id in (64001, 64002, 64003, 64004))


def test_the_summary_lists_targets_and_contributing_runs_that_failed():
    results = [
        Result(3, "failed", "run 3: no pointing"),
        Result(1, "done", failed_runs={2: "run 2: no file"}),
    ]
    assert pipeline.Summary(results, Path()).failed == {2: "run 2: no file", 3: "run 3: no pointing"}


def test_progress_counts_runs_and_backgrounds(job, four_runs, capsys, caplog):
    with caplog.at_level(logging.WARNING):
        config = parse_config(job(four_runs))
        summary = pipeline.run(config, progress=True)
    shown = capsys.readouterr().err
    assert "runs read: 100%" in shown
    assert "backgrounds written: 100%" in shown
    assert "4/4" in shown
    assert [result.status for result in summary.results] == ["done"] * 4
    pipeline.run(config, progress=False)
    assert capsys.readouterr().err == ""


# --- exclusion, to the very file ---------------------------------------------------------------------------


def test_a_source_inside_an_exclusion_leaves_the_written_background(job, four_runs, run_path, edit_run, tmp_path):
    header = fits.getheader(run_path(four_runs, 64001), "EVENTS")
    circle = [header["RA_OBJ"], header["DEC_OBJ"], 0.35]

    def background(out, **sections):
        config = job(four_runs, io={"out_dir": str(tmp_path / out)}, run_selection={"runlist": [64001]}, **sections)
        config["exclusion"]["exclude_regions"] = [circle]
        run_make_background(config)
        return fits.getdata(tmp_path / out / "data" / "run_064001.fits.gz", "BACKGROUND")["BKG"][0]

    def inject(hdus):
        old = hdus["EVENTS"].data
        new = fits.FITS_rec.from_columns(hdus["EVENTS"].columns, nrows=len(old) + 400)
        new["RA"][-400:] = circle[0]
        new["DEC"][-400:] = circle[1] + np.linspace(-0.33, 0.33, 400)
        new["ENERGY"][-400:] = np.geomspace(0.3, 5, 400)
        hdus["EVENTS"].data = new

    ratio = {"model": {"exposure": "event_ratio"}}
    before = {"geometry": background("a"), "event_ratio": background("b", **ratio)}
    edit_run(run_path(four_runs, 64001), inject)
    assert background("c").tobytes() == before["geometry"].tobytes()
    assert (background("d", **ratio)[:4] > 1.3 * before["event_ratio"][:4]).any()
