"""The benchmarks still run, and still compare like with like; how long they take is not looked at."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from dask_bkg.config import parse_config
from dask_bkg.dl3.read import RunFile
from dask_bkg.pipeline.prepare import prepare_runs
from dask_bkg.reduction.reduce import reduce_block
from dask_bkg.sky.catalogs import read_region_file, read_stars
from dask_bkg.sky.exclusion import concat_regions, make_regions

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CRAB_RUNS = [23523, 23526, 23559, 23592]


def script(name: str, monkeypatch, *arguments) -> None:
    """The script as a program, in this process."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(BENCHMARKS / name), run_name="__main__")


def module(name: str):
    """The script as a module, for its functions."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_every_benchmark_has_its_test():
    """Here, or in one of the other files of this directory."""
    of_archives = {
        "bench_archive",
        "bench_field",
        "bench_fuzz",
        "bench_kills",
        "bench_kl",
        "bench_memory",
        "bench_roles",
        "bench_scaling",
        "bench_stores",
        "bench_validate",
        "common",
        "mutations",
    }
    of_models = {"baccmod_models", "bench_baccmod", "bench_models", "bench_truth", "methods"}
    found = {path.stem for path in BENCHMARKS.glob("*.py")}
    assert found == {"bench_reduce", "hess", "same_outputs"} | of_archives | of_models


def test_bench_reduce(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    written = tmp_path / "times.json"
    script("bench_reduce.py", monkeypatch, "--runs", 8, "--events", 300, "--repeat", 1, "--json", written)
    told = json.loads(written.read_text())
    assert told["runs"] == 8
    assert list(told["seconds"]) == ["plain NumPy loop", "reduce_block, no Dask", "Dask, 1 worker", "Dask, 2 workers"]
    assert all(seconds > 0 for seconds in told["seconds"].values())
    assert told["speedup"] == pytest.approx(told["seconds"]["Dask, 1 worker"] / told["seconds"]["Dask, 2 workers"])
    shown = capsys.readouterr().out
    rows = re.findall(r"^ *(\D.*?)  +([\d.]+)  +(\d+)  +([\d.]+)$", shown, re.MULTILINE)
    # time over plain loop, to the figures shown
    for name, _, _, ratio in rows:
        assert float(ratio) == pytest.approx(told["seconds"][name] / told["seconds"]["plain NumPy loop"], abs=0.0051)
    assert [row[0] for row in rows if row[0] in told["seconds"]] == list(told["seconds"])
    assert re.search(rf"two workers over one: {told['speedup']:.2f} x", shown)


def test_the_plain_loop_does_the_same_science(archive, monkeypatch):
    """The comparison would see it if it did not: another exclusion, another result."""
    bench = module("bench_reduce")
    directory, truth = archive
    runs = [RunFile(run.obs_id, str(directory / f"data/run_{run.obs_id:06d}.fits.gz")) for run in truth.runs[:3]]
    regions = concat_regions([read_stars(directory / "stars.dat"), read_region_file(directory / "sources.reg")])
    counts, exposure = bench.plain_loop(runs, bench.EDGES, regions)
    ours = reduce_block(runs, bench.EDGES, regions)
    np.testing.assert_array_equal(counts, ours.counts.values)
    np.testing.assert_allclose(exposure, ours.exposure.values, rtol=1e-12)
    without = make_regions([], [], [], [], "own")
    assert bench.plain_loop(runs, bench.EDGES, without)[0].sum() > counts.sum()
    monkeypatch.setattr(bench, "reduce_block", lambda *_: reduce_block(runs, bench.EDGES, without))
    monkeypatch.setattr(sys, "argv", ["bench_reduce.py", "--archive", str(directory)])
    with pytest.raises(AssertionError, match="Arrays are not equal"):
        bench.main()


@pytest.mark.realdata
def test_hess(gammapy_data, monkeypatch, tmp_path, capsys):
    """The whole script, over the four runs on the Crab instead of all."""
    few = tmp_path / "data"
    few.mkdir()
    for name in ("catalogs", "veritas"):
        (few / name).symlink_to(gammapy_data / name)
    places = {"search_datastore": str(gammapy_data / "hess-dl3-dr1"), "in_dir": str(few / "hess-dl3-dr1")}
    prepare_runs(parse_config({"io": {**places, "attach": "index"}, "run_selection": {"runlist": CRAB_RUNS}}))
    monkeypatch.setenv("GAMMAPY_DATA", str(few))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    written = tmp_path / "hess.json"
    script("hess.py", monkeypatch, "--json", written)
    told = json.loads(written.read_text())
    run_wise, stacked = (
        [f"{frame}from_run: {choice}" for frame in ("", "3d altaz, ", "3d radec, ")] for choice in ("true", "false")
    )
    for mode in (*run_wise, *stacked):
        assert [row["run"] for row in told[mode]] == CRAB_RUNS
        assert all(row["target"].startswith("Crab") for row in told[mode])
    # measured 0.976 to 0.993, error 0.022
    for mode in run_wise:
        assert all(row["ratio"] == pytest.approx(1, abs=4 * row["error"]) for row in told[mode]), mode
    assert [row["run"] for row in told["injection"]] == [run for run in CRAB_RUNS for _ in range(3)]
    shown = capsys.readouterr().out
    assert "from_run: true: 4 runs, predicted/observed mean 0.9" in shown
    assert "ten times the Crab's events injected" in shown
    # what it wrote for itself is gone
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["data"]
