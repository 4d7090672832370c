"""The benchmarks of whole archives still run, and their comparators do the same science; times are not looked at."""

from __future__ import annotations

import gzip
import importlib
import json
import runpy
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from dask._task_spec import Task
from scipy.stats import entropy

from dask_bkg import reduce_run, similarity
from dask_bkg.similarity import ShapeSettings
from dask_bkg.similarity.bins import coarse_edges
from dask_bkg.similarity.divergence import kl_divergence
from dask_bkg.sky.exclusion import make_regions
from dask_bkg.store.load import load_histograms
from dask_bkg.store.store import RunStore

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    """A script as a module, for its functions: ``bench("bench_kl")``."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def script(monkeypatch, tmp_path):
    """A script as a program, in this process; returns what it wrote as JSON."""

    def run(name, *arguments):
        monkeypatch.syspath_prepend(str(BENCHMARKS))
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        written = tmp_path / "told.json"
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments), "--json", str(written)])
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
        return json.loads(written.read_text())

    return run


# -- the programs --------------------------------------------------------------------------------------------


def test_bench_kills_disturbs_jobs_and_finds_nothing_wrong(script):
    with pytest.raises(SystemExit, match="False"):
        script("bench_kills", "--kills", 3, "--interrupts", 1, "--runs", 4, "--events", 300, "--clusters", "threads")


def test_bench_kills_finds_what_is_lost_and_left(bench, tmp_path):
    kills = bench("bench_kills")
    out_dir = tmp_path / "out_dir"
    (out_dir / "data").mkdir(parents=True)
    for name, content in {"a.fits.gz": gzip.compress(b"whole"), "b.fits.gz": gzip.compress(b"half")[:-9]}.items():
        (out_dir / "data" / name).write_bytes(content)
    names = ["a.fits.gz", "b.fits.gz", "c.fits.gz"]
    columns = {"HDU_TYPE": ["bkg"] * 3, "FILE_DIR": ["data"] * 3, "FILE_NAME": names}
    Table(columns).write(out_dir / "hdu-index.fits.gz")
    found = {name: crc for name, (crc, _) in kills.outputs(tmp_path).items()}
    assert found == {"a.fits.gz": zlib.crc32(b"whole"), "b.fits.gz": -1, "c.fits.gz": -1}


def test_bench_memory_watches_each_process(script, bench):
    rows = script("bench_memory", "--runs", 30, "--workers", 1)["rows"]
    assert [row["command"] for row in rows].count("reduce") >= 3
    assert {row["process"] for row in rows} == {"job", "child"}
    looks = [(i / 10, 100.0 + max(i - 100, 0), 7) for i in range(200)]
    assert bench("bench_memory").growth(looks)["memory"] == pytest.approx(1.91, abs=0.01)


def test_bench_stores_writes_what_a_job_left_once_a_row(script, capsys):
    rows = script("bench_stores", "--runs", 60, "--sample", 6, "--events", 2000)["rows"]
    assert [(row["mode"], row["store"]) for row in rows] == [
        ("2d", "run store, fine"), ("2d", "run store, runs"), ("2d", "backgrounds"),
        ("3d", "run store, field"), ("3d", "run store, fine"), ("3d", "run store, runs"), ("3d", "backgrounds"),
    ]  # fmt: skip
    assert all(row["runs"] == 60 and row["megabytes"] > 0 for row in rows)
    assert max(row["files"] for row in rows) < 70
    assert "3d  backgrounds" in capsys.readouterr().out


def test_bench_kl_runs_and_both_ways_agree(script, capsys):
    told = script("bench_kl", "--runs", 120, "--hours", 5, "--repeat", 1)
    (row,) = told["archives"]
    assert row["runs"] == 120
    assert 11 < row["contributing"] < 15  # 5 h of runs of 20 to 28 min
    assert row["ratio"] == pytest.approx(row["seconds"]["ours"] / row["seconds"]["bare"])
    assert row["seconds"]["build"] < row["seconds"]["ours"]
    assert row["tasks"] > 10
    assert len(row["peak_gb"]) == 2
    assert all(0.05 < gb < 2 for gb in row["peak_gb"])
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1].split()[0] == "120"
    assert shown[-1].split()[-3] == f"{row['bytes'] / 1e6:.1f}"


def test_bench_archive_runs_and_both_ways_agree(script, capsys):
    arguments = ("--runs", 8, "--events", 300, "--hours", 1, "--sample", 1, 3)
    told = script("bench_archive", *arguments)
    (row,) = told["archives"]
    original = row["original"]
    assert original["all"] == pytest.approx(original["preparation"] + 8 * original["a target"][1])
    assert row["factor"] == pytest.approx(original["all"] / row["ours"])
    assert 2 < row["contributing"] < 7
    assert capsys.readouterr().out.splitlines()[-1].split()[0] == "8"


def test_bench_scaling_runs(script, capsys):
    arguments = ("--runs", 6, "--events", 300, "--hours", 1, "--job-workers", 1)
    told = script("bench_scaling", *arguments, "--archive-runs", 60, "--workers", 2, "--batch", 5, 30)
    assert list(told["job"]["seconds"]) == ["1"]
    assert [row["graph"] for row in told["sleeping"]] == ["read, 5 a task", "read, 30 a task", "store to files"]
    for row in told["sleeping"]:
        assert row["wall"] > 0.95 * row["ideal"] > 0  # nobody sleeps faster than the clock
    assert told["sleeping"][0]["tasks"] == 1 + 60 // 5
    shown = capsys.readouterr().out
    cost = told["scheduler seconds a task"]["2"]
    assert cost == pytest.approx(max((r["tasks"], r["scheduler CPU"] / r["tasks"]) for r in told["sleeping"])[1])
    assert f"2 workers: the scheduler needs {cost * 1e3:.2f} ms a task" in shown


def test_bench_field_runs(script, capsys):
    told = script("bench_field", "--runs", 60, "--hours", 2, "--targets", 2)
    (row,) = told["archives"]
    assert row["3d"]["counts"] > row["2d"]["counts"] > 60 * 4 * 4000  # 2 h are five runs of 25 min
    assert row["3d"]["tasks"] > row["2d"]["tasks"]
    assert all(0.05 < gb < 2 for gb in row["3d"]["peak_gb"])
    assert told["files"]["3d"]["kb"] > told["files"]["2d"]["kb"]
    assert "ms a target" in capsys.readouterr().out


def test_bench_roles_runs(script, capsys):
    told = script("bench_roles", "--runs", 150)
    kl, one, three = told["archives"]
    assert one["tasks"] < three["tasks"]
    assert min(row["events"] for row in (kl, one, three)) > 150 * 8000
    assert "the default, three roles" in capsys.readouterr().out


# -- bench_archive: the original way -------------------------------------------------------------------------


@pytest.fixture
def original(bench, archive):
    """The module and the simulated archive, as the original way sees it."""
    module = bench("bench_archive")
    return module, module.open_archive(archive[0])


def test_the_original_way_counts_the_same_events(original):
    bench, opened = original
    assert len(opened.regions) > 3
    for obs_id, path in zip(opened.obs_id[:4].tolist(), opened.files, strict=False):
        mine = bench.bin_run(path, opened.regions)
        edges = {"energy": bench.ENERGY, "offset": bench.OFFSET}
        ours = reduce_run(path, obs_id, edges, opened.regions, method="event_ratio", reach="centre")
        np.testing.assert_array_equal(mine.counts, ours.counts.values)
        np.testing.assert_allclose(mine.exposure, ours.exposure.values, rtol=1e-12)
        without = bench.bin_run(path, make_regions([], [], [], [], "own"))
        assert without.counts.sum() > mine.counts.sum()


def test_the_original_way_computes_the_document_s_divergence(original, tmp_path):
    bench, opened = original
    totals = [bench.bin_run(path, opened.regions) for path in opened.files[:2]]
    for i, total in enumerate(totals):
        bench.write_rate(tmp_path / f"{i}.fits", total)
    p, q = (bench.read_distribution(tmp_path / f"{i}.fits").ravel() for i in range(2))
    rates = [(t.counts / t.exposure).T.ravel() for t in totals]
    np.testing.assert_allclose(p, rates[0] / rates[0].sum() + 1e-9, rtol=1e-12)
    # scipy normalises once more: 1 + 1e-7
    assert bench.divergence(p, q) == pytest.approx(entropy(p, q), rel=1e-5)
    assert bench.divergence(p, q) == kl_divergence(p, q)


def test_the_original_way_takes_the_nearest_until_n_hours(original, tmp_path):
    bench, opened = original
    runwise = tmp_path / "runwise"
    runwise.mkdir()
    for i in range(opened.obs_id.size):
        bench.make_runwise(i, opened, runwise)
    made = bench.make_background(3, opened, runwise, tmp_path, hours=1.0)
    distribution = {o: bench.read_distribution(runwise / f"{o}.fits") for o in opened.obs_id.tolist()}
    target = distribution.pop(made.obs_id)
    ranked = sorted(distribution, key=lambda o: entropy(target.ravel(), distribution[o].ravel()))
    hours = dict(zip(opened.obs_id.tolist(), (opened.livetime / 3600).tolist(), strict=True))
    n = made.contributing.size
    assert made.contributing.tolist() == ranked[:n]
    assert sum(hours[o] for o in ranked[: n - 1]) < 1.0 <= sum(hours[o] for o in ranked[:n])
    files = dict(zip(opened.obs_id.tolist(), opened.files, strict=True))
    counts = sum(bench.bin_run(files[o], opened.regions).counts for o in ranked[:n])
    np.testing.assert_array_equal(made.total.counts, counts)
    with fits.open(tmp_path / f"{made.obs_id}.fits") as hdus:
        np.testing.assert_allclose(hdus[1].data["BKG"][0], (counts / made.total.exposure).T, rtol=1e-12)


def test_another_selection_than_ours_is_noticed(bench):
    bench = bench("bench_archive")
    total = bench.Histogram(np.ones((20, 5)), np.ones((20, 5)))
    made = bench.Background(7, np.array([1, 2]), total)
    result = SimpleNamespace(obs_id=7, status="done", reason="", n_events=100)
    with pytest.raises(AssertionError, match="Arrays are not equal"):
        bench.check_same([made], SimpleNamespace(results=[result]), {7: [1, 3]})


# -- bench_kl: the bare operations ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def few_runs():
    """Synthetic runs, made once: ``(module, runs)``."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        module = importlib.import_module("bench_kl")
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module, module.synthetic_runs(60)


def test_synthetic_runs_are_as_said(few_runs):
    bench, runs = few_runs
    assert runs.counts.shape == (60, 20, 5)
    assert coarse_edges(bench.EDGES)[0].size == 21  # compared on these bins, not on wider ones
    open_sky = runs.counts.sum(axis=1) / runs.fraction
    assert open_sky.sum(axis=1).mean() == pytest.approx(bench.EVENTS, rel=0.15)
    assert (runs.livetime >= 20 * 60).all()
    assert (runs.livetime <= 28 * 60).all()
    assert (runs.fraction == 1).any()
    assert runs.fraction.min() >= 0.3


def test_the_synthetic_store_holds_these_runs(few_runs, tmp_path):
    bench, runs = few_runs
    bench.write_store(tmp_path / "runs.zarr", runs)
    store = RunStore.open(tmp_path / "runs.zarr")
    rows = store.find(runs.obs_id)
    counts, exposure = load_histograms(str(store.path), "", rows, bench.EDGES)
    np.testing.assert_array_equal(counts, runs.counts)
    np.testing.assert_allclose(exposure, bench.exposure_of(runs), rtol=1e-12)
    table = store.table()
    places = np.searchsorted(table["obs_id"], runs.obs_id)
    np.testing.assert_array_equal(table["livetime"][places], runs.livetime)


def test_bare_divergences_are_scipy_s_under_the_document(few_runs):
    bench, runs = few_runs
    x = bench.operands(runs, ShapeSettings("document"))
    kl = bench.divergences(slice(10, 20), x, 0.8)
    rates = (runs.counts / bench.exposure_of(runs)).reshape(60, -1)
    p = rates / rates.sum(axis=1, keepdims=True) + 1e-9
    expected = np.array([[entropy(p[i], p[j]) for j in range(60)] for i in range(10, 20)])
    own = np.arange(10), np.arange(10, 20)
    assert np.isinf(kl[own]).all()
    kl[own] = expected[own]
    np.testing.assert_allclose(kl, expected, atol=1e-12)


def test_bare_divergences_are_those_of_the_package(few_runs):
    bench, runs = few_runs
    x, shapes = bench.operands(runs, ShapeSettings()), ShapeSettings()
    bins = bench.flat_bins(runs.counts.astype(float), bench.exposure_of(runs), runs.ontime, bench.EDGES, shapes)
    prior = similarity.fit_prior(*bins, shapes)
    targets = similarity.as_targets(*bins, None, prior, shapes)
    references = similarity.as_references(*bins, prior, shapes)
    expected = similarity.kl_block(targets, references)
    np.fill_diagonal(expected, np.inf)
    poor = similarity.coverage_block(targets, references) < 0.9
    assert poor.any()
    np.testing.assert_allclose(bench.divergences(slice(0, 60), x, 0.9), expected + 1e3 * poor, rtol=0, atol=1e-12)


def test_bare_stacks_are_the_nearest_runs_until_n_hours(few_runs):
    bench, runs = few_runs
    x, seconds = bench.operands(runs, ShapeSettings()), 3 * 3600.0
    found = bench.stack_rows(slice(20, 30), x, 0.8, seconds)
    kl = bench.divergences(slice(20, 30), x, 0.8)
    for i in range(10):
        taken, total = [], 0.0
        for j in np.argsort(kl[i]).tolist():
            if total >= seconds:
                break
            taken.append(j)
            total += runs.livetime[j]
        assert found.run[found.start[i] : found.start[i + 1]].tolist() == taken
        np.testing.assert_array_equal(found.counts[i], runs.counts[taken].sum(axis=0).ravel())
        np.testing.assert_allclose(found.exposure[i], bench.exposure_of(runs)[taken].sum(axis=0).ravel())


def test_blocks_of_bare_stacks_are_joined_in_order(few_runs):
    bench, runs = few_runs
    x = bench.operands(runs, ShapeSettings())
    whole = bench.stack_rows(slice(0, 60), x, 0.8, 7200.0)
    parts = bench.joined([bench.stack_rows(slice(a, a + 20), x, 0.8, 7200.0) for a in (0, 20, 40)])
    bench.check_same(whole, parts)
    wrong = whole._replace(counts=whole.counts + 1)
    with pytest.raises(AssertionError):
        bench.check_same(whole, wrong)


# -- bench_scaling: graphs that sleep ------------------------------------------------------------------------


def test_a_sleeping_graph_keeps_keys_and_dependencies(bench):
    bench = bench("bench_scaling")
    graph = {("load-1", 0): (int, 3), ("add-1", 0): (sum, [("load-1", 0), "shared-1"]), "shared-1": (int, 4)}
    tasks = bench.sleeping(graph, {"load": 0.5})
    assert tasks.keys() == graph.keys()
    assert tasks["add-1", 0].dependencies == {("load-1", 0), "shared-1"}
    assert all(isinstance(task, Task) for task in tasks.values())
    assert tasks["load-1", 0].args[0] == 0.5
    assert tasks["add-1", 0].args[0] == 0.0


@pytest.mark.parametrize(("workers", "seconds"), [(1, 10.0), (2, 5.0), (4, 3.0), (100, 3.0)])
def test_the_ideal_time_is_the_shared_work_or_the_longest_chain(bench, workers, seconds):
    """Eight loads of 1 s, and one sum of 2 s after them."""
    bench = bench("bench_scaling")
    graph = {("load-1", i): (int, i) for i in range(8)} | {("add-1", 0): (sum, [("load-1", i) for i in range(8)])}
    cost = {"load": 1.0, "add": 2.0}
    assert bench.ideal_seconds(bench.sleeping(graph, cost), cost, workers) == seconds


def test_the_graph_that_sleeps_is_that_of_the_job(few_runs, bench, tmp_path):
    _, runs = few_runs
    kl, scaling = bench("bench_kl"), bench("bench_scaling")
    kl.write_store(tmp_path / "runs.zarr", runs)
    graph = scaling.job_graph(RunStore.open(tmp_path / "runs.zarr"), 2.0, tmp_path)
    names = {scaling.layer_name(key) for key in graph}
    assert {"load-runs", "kl-divergence", "stack-runs"} <= names
    writes = [key for key in graph if str(key[0]).startswith("write-files")]
    assert len(writes) == 3  # 60 targets
    assert scaling.reading_graph(101, 50).keys() == {"exclusion-0", *(("reduce-runs-0", i) for i in range(3))}


def test_bench_validate_runs_and_nothing_is_left_out_twice(script, capsys):
    told = script("bench_validate", "--runs", 60, "--hours", 5)
    assert [(row["runs"], row["mode"], row["validated"]) for row in told["archives"]] == [
        (60, "2d", 60),
        (60, "3d", 60),
    ]
    for row in told["archives"]:
        assert row["ratio"] == pytest.approx(1, abs=0.01)  # 60 runs of 3,700 events above the threshold: 0.2 %
        assert row["tasks"] > 10
        assert all(0.05 < gb < 2 for gb in row["peak_gb"])
    assert told["archives"][0]["events"] == told["archives"][1]["events"]
    assert capsys.readouterr().out.splitlines()[-1].split()[:2] == ["60", "3d"]
