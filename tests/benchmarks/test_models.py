"""The benchmarks that compare models: what they compare, and the order of methods on a simulated archive."""

from __future__ import annotations

import json
import logging
import runpy
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table

from dask_bkg.binning import Edges, FieldEdges
from dask_bkg.dl3.given import read_given
from dask_bkg.dl3.index import read_datastore
from dask_bkg.simulate import simulate_archive

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def _as_before():
    """The scripts keep gammapy quiet; it is not for the rest of the tests."""
    before = logging.getLogger("gammapy").level
    with warnings.catch_warnings():
        yield
    logging.getLogger("gammapy").setLevel(before)


@pytest.fixture(scope="module")
def modules():
    """The scripts as modules."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import bench_baccmod
        import bench_models
        import bench_truth
        import methods
    finally:
        sys.path.remove(str(BENCHMARKS))
    return {"baccmod": bench_baccmod, "models": bench_models, "truth": bench_truth, "methods": methods}


@pytest.fixture(scope="module")
def planted(modules, tmp_path_factory):
    """Archive of three runs in which everything is planted."""
    directory = tmp_path_factory.mktemp("planted")
    return directory, simulate_archive(directory, 3, 2000, 1, **modules["truth"].PLANTED)


# -- the methods ---------------------------------------------------------------------------------------------------


def test_smoothing_goes_over_pixels_as_wide_as_the_rings(modules):
    edges = np.linspace(0, 2.5, 21)
    offset = (edges[1:] + edges[:-1]) / 2
    rate = np.stack([np.ones(20), np.exp(-0.5 * offset**2)])
    flat, gauss = modules["methods"].smoothed(rate, edges)
    np.testing.assert_allclose(flat, 1)
    width = np.hypot(1.0, 0.125)
    np.testing.assert_allclose(gauss[:14], np.exp(-0.5 * (offset / width) ** 2)[:14] / width**2, rtol=0.01)


def test_files_of_the_plain_procedure_are_smoothed(modules, planted, tmp_path):
    methods, over = modules["methods"], {"exclusion": modules["truth"].excluded(planted[0])}
    directory = methods.make_files("plain procedure", planted[0], tmp_path, over)
    config = methods.parse_config(methods.configuration("plain procedure", planted[0], tmp_path, over))
    methods.run_job(config, progress=False)
    for run in planted[1].runs:
        rough, smooth = (
            read_given(read_datastore(place), run.obs_id) for place in (config.directory("out_dir"), directory)
        )
        assert smooth.rate.shape == (20, 20)
        expected = modules["methods"].smoothed(rough.rate, rough.axes[1])
        np.testing.assert_allclose(smooth.rate, expected, rtol=1e-12)


@pytest.mark.parametrize("kind", ["rings", "field"])
def test_backgrounds_from_elsewhere_become_a_datastore(modules, planted, tmp_path, kind):
    archive, truth = planted
    energy, rng = np.geomspace(0.1, 100, 7), np.random.default_rng(1)
    edges = Edges(energy, np.linspace(0, 2.5, 5)) if kind == "rings" else FieldEdges(energy, np.linspace(-2, 2, 4))
    rates = {run.obs_id: rng.uniform(1, 2, edges.shape) for run in truth.runs[:2]}
    directory = modules["methods"].write_archive(archive, tmp_path / "new", edges, rates)
    store = read_datastore(directory)
    assert store.obs_ids.tolist() == list(rates)
    for obs_id, rate in rates.items():
        given = read_given(store, obs_id)
        np.testing.assert_allclose(given.rate, rate, rtol=1e-6)
        assert given.alignment == ("altaz" if kind == "field" else "radec")


# -- against the truth ---------------------------------------------------------------------------------------------


def test_true_means_are_the_truth(modules, planted):
    bench, truth = modules["truth"], planted[1]
    edges = bench.PIXELS[10:15]
    exact = truth.mean_field_rate(64001, bench.ENERGY, edges) * np.diff(bench.ENERGY)[:, None, None]
    np.testing.assert_allclose(bench.true_means(truth, 64001)[:, 10:14, 10:14], exact, rtol=1e-4)


def test_counts_held_out_are_those_of_the_truth(modules, planted, tmp_path):
    bench, (archive, truth) = modules["truth"], planted
    held = bench.hold_out(archive, tmp_path, bench.excluded(archive))
    counts = expected = 0.0
    for run in truth.runs:
        assert bench.ENERGY[held.first[run.obs_id] - 1] < 0.15 / np.cos(np.deg2rad(run.zenith)) ** 2.5 * 1.4
        mean = bench.true_means(truth, run.obs_id).reshape(30, -1)[:, held.bins.pixel]
        counts += held.counts[run.obs_id].sum()
        expected += (mean * held.exposure[run.obs_id]).sum()
    assert abs(counts - expected) < 4 * np.sqrt(expected)
    assert expected > 1000


def test_differences_and_pulls(modules):
    bench = modules["truth"]
    true = np.ones((4, 5))
    true[0] = 0
    assert bench.difference(2 * true, true) == pytest.approx((np.log(2), 0, 0))
    spectrum = bench.difference(true * np.array([1, 0.9, 1.0, 1.1])[:, None], true)
    assert spectrum == pytest.approx((0, np.sqrt(2 / 3) * 0.1, 0))
    shape = bench.difference(true * np.array([0.8, 1, 1, 1, 1.2]), true)
    assert shape == pytest.approx((0, 0, np.sqrt(0.4) * 0.2))
    rng = np.random.default_rng(1)
    told = bench.pulls(rng.normal(5, 2, 4000), np.full(4000, 2.0), np.full(4000, 5.0))
    assert told["mean"] == pytest.approx(0, abs=0.05)
    assert told["width"] == pytest.approx(1, abs=0.04)


def test_bench_truth_shows_the_order_of_the_methods(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    written = tmp_path / "told.json"
    models = ["rank kl", "default 2D", "default 3D"]
    arguments = ["--runs", "20", "--events", "4000", "--seed", "1", "--models", *models, "--json", str(written)]
    monkeypatch.setattr(sys, "argv", ["bench_truth", *arguments])
    runpy.run_path(str(BENCHMARKS / "bench_truth.py"), run_name="__main__")
    told = json.loads(written.read_text())["models"]
    kl, rings, field = (told[name] for name in models)

    def gain(better, worse, form):
        return better[form]["value"] - worse[form]["value"]

    assert gain(rings, kl, "raw") > 10
    assert gain(rings, kl, "norm") > 5
    assert rings["spectrum"] < 0.6 * kl["spectrum"]
    assert abs(rings["level"]) < 0.1
    assert gain(field, rings, "norm") > 0.7
    assert gain(field, rings, "enorm") > 0.7
    assert field["shape"] < 0.6 * rings["shape"]
    assert field["enorm"]["value"] > -2
    assert field["width"] < rings["width"] < kl["width"]
    assert field["true width"] == pytest.approx(1, abs=0.05)
    assert capsys.readouterr().out.splitlines()[-1].split()[:2] == ["default", "3D"]


# -- the real runs and BAccMod -------------------------------------------------------------------------------------


def test_baccmod_files_are_read_and_undefined_bins_are_empty(modules, tmp_path):
    energy, axis = np.geomspace(0.1, 100, 4), np.linspace(-1, 1, 5)
    rate = np.ones((2, 3, 4, 4))
    rate[1, 0, 0, 0], rate[1, 1] = np.nan, 0
    path = tmp_path / "grid3d, as it is.npz"
    np.savez(path, obs_id=[5, 7], energy=energy, axis=axis, rate=rate, outside=[False, True])
    np.savez(
        tmp_path / "radial.npz", obs_id=[5], energy=energy, axis=axis[2:], rate=rate[:1, :, :2, 0], outside=[False]
    )
    read = modules["baccmod"].read_all(tmp_path)
    assert list(read) == ["grid3d, as it is", "radial"]
    (field, rates), (rings, _) = read.values()
    assert (type(field), type(rings)) == (FieldEdges, Edges)
    np.testing.assert_array_equal(field.fov, axis)
    assert rates[7][0, 0, 0] == 0
    assert modules["baccmod"].describe(path) == {"runs": 2, "outside": [7], "empty": pytest.approx(17 / 96)}


def test_baccmod_is_told_what_is_excluded(modules, planted, monkeypatch):
    bench, (archive, truth) = modules["baccmod"], planted
    config = bench.parse_config({"exclusion": modules["truth"].excluded(archive)})
    regions = bench.sky_regions(config.exclusion)
    monkeypatch.setattr(bench, "sky_regions", lambda exclusion: regions)
    job = bench.make_job(archive, None, bench.MODELS)
    assert job["runs"] == [run.obs_id for run in truth.runs]
    assert len(job["energy"]) == 31
    assert job["offset"][-1] == 2.5
    source = truth.sources[0]
    assert any(np.allclose(circle[:2], [source.ra, source.dec], atol=1e-4) for circle in job["regions"][64001])
    assert json.loads(json.dumps(job))["models"] == list(bench.MODELS)
    assert bench.make_job(archive, [64002], ["grid3d"])["runs"] == [64002]


def test_empty_fields_are_trained_on_alone(modules):
    obs = Table({"OBS_ID": [1, 2, 3], "RA_PNT": [1.0, 2, 3], "DEC_PNT": np.zeros(3),
                 "TARGET_TAG": ["crab ", "offdata", "offdata "]})  # fmt: skip
    chosen, over = modules["models"].empty_alone(obs)
    assert chosen == [2, 3]
    assert over["run_selection"]["runlist"] == [2, 3]
    assert over["exclusion"]["exclude_source_run"] == [[1.0, 0.0, 0.01]]


def test_bench_models_compares_everything_with_both_references(modules, tmp_path, capsys):
    """On a simulated archive, whose files have backgrounds as the release has."""
    bench, archive, scratch = modules["models"], tmp_path / "archive", tmp_path / "scratch"
    simulate_archive(archive, 6, 2000, 1, background_in_files=True)
    scratch.mkdir()
    energy, offset = np.geomspace(0.1, 100, 4), np.linspace(0, 2.5, 3)
    rate = np.full((6, 3, 2), 1e3) * np.array([1, 1e-2, 1e-5])[:, None]
    (tmp_path / "bacc").mkdir()
    path = tmp_path / "bacc" / "radial.npz"
    np.savez(path, obs_id=range(64001, 64007), energy=energy, axis=offset, rate=rate, outside=[False] * 6)
    exclusion = modules["truth"].excluded(archive)
    models = bench.make_models(archive, scratch, ["rank kl"], {"exclusion": exclusion}, tmp_path / "bacc")
    told = bench.validated(models, archive, exclusion, 1.0)
    bench.show("some runs", told)
    assert set(told) == {*bench.REFERENCES, bench.RELEASED}
    for reference in bench.REFERENCES:
        rows = told[reference]
        assert set(rows) == {*bench.REFERENCES, bench.FIRST, "rank kl", "BAccMod radial", bench.RELEASED}
        assert rows[reference]["norm"]["value"] == 0
        assert rows[bench.RELEASED]["norm"]["value"] > rows["BAccMod radial"]["norm"]["value"] + 0.05
        assert rows[bench.RELEASED]["norm"]["value"] > 0
        assert rows[bench.RELEASED]["ratio"]["value"] == pytest.approx(1, abs=0.03)
    assert "some runs: 6 runs" in capsys.readouterr().out
