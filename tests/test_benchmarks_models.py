"""The benchmarks that compare models: their score by its definition, the order of methods on a simulated archive."""

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
from scipy import stats

from dask_bkg.simulate import simulate_archive

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


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
        import scores
    finally:
        sys.path.remove(str(BENCHMARKS))
    return {"baccmod": bench_baccmod, "models": bench_models, "truth": bench_truth, "scores": scores}


@pytest.fixture
def scores(modules):
    return modules["scores"]


def nodes(scores, shape, axis):
    """Background of a formula on 30 energies and an axis."""
    energy = np.sqrt(scores.ENERGY[1:] * scores.ENERGY[:-1])
    return scores.Rates(energy, axis, (0.1, 100.0), {7: shape(energy)})


# -- what a background expects -------------------------------------------------------------------------------------


def test_power_law_is_integrated_exactly_in_rings_and_pixels(scores):
    rings, pixels = (np.arange(10) + 0.5) * 0.25, (np.arange(25) - 12) * 0.2
    for rates in (
        nodes(scores, lambda e: np.multiply.outer(3 * e**-2.7, np.ones(10)), rings),
        nodes(scores, lambda e: np.multiply.outer(3 * e**-2.7, np.ones((25, 25))), pixels),
    ):
        mean = scores.mean_rate(rates.of[7], rates)
        expected = 3 / 1.7 * -np.diff(scores.ENERGY**-1.7)
        np.testing.assert_allclose(mean, np.broadcast_to(expected[:, None, None], mean.shape), rtol=1e-9)


def test_field_is_not_turned_or_mirrored(scores):
    axis = (np.arange(25) - 12) * 0.2
    plane = np.exp(0.3 * axis[:, None] - 0.1 * axis)  # lat, lon
    rates = nodes(scores, lambda e: np.multiply.outer(e**-2.7, plane), axis)
    mean = scores.mean_rate(rates.of[7], rates)[10]
    middle = slice(2, -2)
    np.testing.assert_allclose((mean / mean[12, 12])[middle, middle], plane[middle, middle], rtol=1e-3)


def test_holes_are_filled_along_the_energy_and_ends_stay_empty(scores):
    rate = np.multiply.outer(np.geomspace(1, 1e-6, 7), np.ones(3))
    holed = rate.copy()
    holed[3, 1], holed[4, 1], holed[6, 2], holed[0] = 0.0, 1e-30, 0.0, 0.0
    found = scores.filled(holed)
    np.testing.assert_allclose(found[1:, :2], rate[1:, :2])
    assert found[6, 2] == 0
    assert (found[0] == 0).all()


def test_smoothing_goes_over_pixels_as_wide_as_the_rings(scores):
    offset = (np.arange(20) + 0.5) * 0.125
    rate = np.stack([np.ones(20), np.exp(-0.5 * (offset / 1.0) ** 2)])
    flat, gauss = scores.smoothed(rate, offset)
    np.testing.assert_allclose(flat, 1)
    width = np.hypot(1.0, 0.125)
    np.testing.assert_allclose(gauss[:14], np.exp(-0.5 * (offset / width) ** 2)[:14] / width**2, rtol=0.01)


# -- the score -----------------------------------------------------------------------------------------------------


@pytest.fixture
def held(scores):
    """Runs drawn from a flat background of 0.02 counts a bin."""
    rng = np.random.default_rng(3)
    counts = rng.poisson(0.5, (8, 30, 25, 25)).astype(float)
    exposure, seen = np.ones((8, 25, 25)), np.ones((8, 30), dtype=bool)
    return scores.HeldOut(np.arange(8), np.arange(8) // 2, counts, exposure, seen)


def test_scores_are_poisson_likelihoods(scores, held):
    mean = np.full((30, 25, 25), 0.6) * np.linspace(0.8, 1.2, 30)[:, None, None]
    found = scores.score_means(held, dict.fromkeys(range(8), mean))
    n = held.counts[0]
    for form, mu in (
        ("raw", mean),
        ("norm", mean * n.sum() / mean.sum()),
        ("enorm", mean * (n.sum(axis=(1, 2)) / mean.sum(axis=(1, 2)))[:, None, None]),
    ):
        expected = stats.poisson.logpmf(n, mu).sum() - stats.poisson.logpmf(n, n.mean()).sum()
        level = (n * np.log(n.mean())).sum() - n.size * n.mean()
        assert getattr(found, form)[0] - level == pytest.approx(expected, abs=1e-6)
    assert found.predicted[0] == pytest.approx(mean.sum())


def test_true_background_has_unit_significances_and_wins(scores, held):
    true = scores.score_means(held, dict.fromkeys(range(8), np.full((30, 25, 25), 0.5)))
    tilted = np.full((30, 25, 25), 0.5) * np.linspace(0.8, 1.2, 25)
    other = scores.score_means(held, dict.fromkeys(range(8), tilted))
    row = scores.compare(other, true, held.group)
    assert true.significance.std() == pytest.approx(1, abs=0.03)
    # half the mean square of the relative difference
    assert row["enorm"] == pytest.approx(-1e3 * 0.5 * (np.linspace(0.8, 1.2, 25) - 1).var(), rel=0.15)
    assert row["enorm error"] < 0.1 * abs(row["enorm"])
    assert row["width"] > true.significance.std() + 0.05
    assert {*scores.compare(true, true, held.group).values()} >= {0.0}


def test_background_with_a_hole_is_punished_and_finite(scores, held):
    mean = np.full((30, 25, 25), 0.5)
    holed = mean.copy()
    holed[3, 4:9] = 0
    holed[20] = 0
    found = scores.score_means(held, {i: holed if i == 2 else mean for i in range(8)})
    assert np.isfinite([found.raw, found.norm, found.enorm]).all()
    assert found.norm[2] < found.norm[3] - 100


def test_higher_threshold_leaves_fewer_energies(scores, held):
    part = held.above(1.3, np.full(8, 0.5))
    assert part.counts[:, scores.ENERGY[:-1] < 0.65 - 1e-6].sum() == 0
    assert part.seen.sum(axis=1).tolist() == [21] * 8
    assert part.of(np.arange(8) < 3).obs_id.tolist() == [0, 1, 2]


# -- against the truth ---------------------------------------------------------------------------------------------


def test_true_means_are_the_truth(modules, tmp_path):
    truth = simulate_archive(tmp_path, 1, 50, sources=False, stars=False, **modules["truth"].PLANTED)
    means = modules["truth"].true_means(truth, 64001)
    edges = modules["scores"].PIXELS[10:15]
    energy = modules["scores"].ENERGY
    exact = truth.mean_field_rate(64001, energy, edges) * np.diff(energy)[:, None, None]
    np.testing.assert_allclose(means[:, 10:14, 10:14], exact, rtol=1e-4)


def test_differences_and_pulls(modules):
    bench = modules["truth"]
    true = np.ones((4, 5, 5))
    true[0] = 0
    assert bench.difference(2 * true, true) == pytest.approx((np.log(2), 0, 0))
    spectrum = bench.difference(true * np.array([1, 0.9, 1.0, 1.1])[:, None, None], true)
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
    assert rings["raw"] > kl["raw"] + 5
    assert rings["norm"] > kl["norm"] + 3
    assert rings["spectrum"] < 0.7 * kl["spectrum"]
    assert abs(rings["level"]) < 0.1
    assert field["enorm"] > rings["enorm"] + 0.7
    assert field["norm"] > rings["norm"] + 0.7
    assert field["shape"] < 0.6 * rings["shape"]
    assert field["enorm"] > -2
    assert field["width"] < rings["width"] < kl["width"]
    assert capsys.readouterr().out.splitlines()[-1].split()[:2] == ["default", "3D"]


# -- the real runs and BAccMod -------------------------------------------------------------------------------------


def test_baccmod_files_are_read_and_undefined_bins_are_empty(modules, tmp_path):
    energy, axis = np.geomspace(0.1, 100, 4), np.linspace(-1, 1, 5)
    rate = np.ones((2, 3, 4, 4))
    rate[1, 0, 0, 0], rate[1, 1] = np.nan, 0
    path = tmp_path / "grid3d, as it is.npz"
    np.savez(path, obs_id=[5, 7], energy=energy, axis=axis, rate=rate, outside=[False, True])
    (name, rates), *others = modules["baccmod"].read_all(tmp_path).items()
    assert (name, others) == ("grid3d, as it is", [])
    np.testing.assert_allclose(rates.axis, [-0.75, -0.25, 0.25, 0.75])
    np.testing.assert_allclose(rates.energy, 10.0 ** np.array([-0.5, 0.5, 1.5]))
    assert rates.of[7][0, 0, 0] == 0
    assert modules["baccmod"].describe(path) == {"runs": 2, "outside": [7], "empty": pytest.approx(17 / 96)}
    made = modules["models"].of_baccmod(tmp_path)
    assert list(made) == ["BAccMod grid3d, as it is"]
    assert modules["models"].of_baccmod(None) == {}


def test_baccmod_is_told_what_is_excluded(modules, tmp_path, monkeypatch):
    bench = modules["baccmod"]
    truth = simulate_archive(tmp_path, 3, 50)
    config = bench.parse_config({"exclusion": modules["truth"].excluded(tmp_path)})
    regions = bench.sky_regions(config.exclusion)
    monkeypatch.setattr(bench, "sky_regions", lambda exclusion: regions)
    job = bench.make_job(tmp_path, None, bench.MODELS)
    assert job["runs"] == [run.obs_id for run in truth.runs]
    assert len(job["energy"]) == 31
    assert job["offset"][-1] == 2.5
    source = truth.sources[0]
    assert any(np.allclose(circle[:2], [source.ra, source.dec], atol=1e-4) for circle in job["regions"][64001])
    assert json.loads(json.dumps(job))["models"] == list(bench.MODELS)
    assert bench.make_job(tmp_path, [64002], ["grid3d"])["runs"] == [64002]


def test_real_runs_are_grouped_by_target_and_empty_fields_alone(modules):
    obs = Table({
        "OBS_ID": [1, 2, 3, 4], "OBJECT": ["Crab", "Crab", "Sky", "Sky"], "RA_PNT": [1.0, 2, 3, 4],
        "DEC_PNT": np.zeros(4), "TARGET_TAG": ["crab ", "crab", "offdata", "offdata "],
    })  # fmt: skip
    group, empty = modules["models"].groups(obs, np.arange(1, 5))
    assert group.tolist() == ["Crab", "Crab", "3", "4"]
    assert empty.tolist() == [False, False, True, True]
    alone = modules["models"].alone(obs, np.array([3, 4]))
    assert alone["run_selection"]["runlist"] == [3, 4]
    assert alone["exclusion"]["exclude_source_run"] == [[1.0, 0.0, 0.01], [2.0, 0.0, 0.01]]


def test_tables_of_models_against_both_references(modules, scores, held, capsys):
    rng = np.random.default_rng(5)
    axis = (np.arange(10) + 0.5) * 0.25
    made = {}
    for name in (*modules["models"].REFERENCES, modules["models"].RELEASED):
        level = rng.uniform(0.8, 1.2)
        flat = nodes(scores, lambda e, level=level: np.multiply.outer(level / e, np.ones(10)), axis)
        made[name] = flat._replace(of=dict.fromkeys(range(8), flat.of[7]))
    made[modules["models"].RELEASED] = made[modules["models"].RELEASED]._replace(frame="radec")
    told = modules["models"].tables("some runs", {"altaz": held, "radec": held}, made)
    assert [table["reference"] for table in told] == list(modules["models"].REFERENCES)
    for table in told:
        assert table["models"][table["reference"]]["raw"] == 0
        assert all(row["norm"] == pytest.approx(0, abs=1e-6) for row in table["models"].values())
    assert "some runs" in capsys.readouterr().out
