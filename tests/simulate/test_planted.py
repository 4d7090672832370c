"""What can be planted in a simulated archive: mirrors that age, weather, spectra and tilts that change."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table
from astropy.utils import iers
from click.testing import CliRunner
from helpers.horizon_frame import in_horizon_frame, read_events
from scipy import stats

from dask_bkg.cli import main
from dask_bkg.dl3.effective_area import area_curve, area_threshold, declared_threshold
from dask_bkg.dl3.hdus import find_hdu, open_fits
from dask_bkg.errors import ConfigError
from dask_bkg.simulate import Truth, response, simulate_archive
from dask_bkg.simulate.truth import run_norm, spectrum

pytestmark = pytest.mark.slow  # whole jobs, or simulations of many skies

RUNS, EVENTS, SEED = 12, 4000, 5
PLANTED = {"tilt": -0.08, "tilt_slope": 0.1, "steepening": 0.4, "mirror_threshold": 1.5}
CALENDAR = {"seasons": 5, "nights": 30, "weather": 0.1}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Archive in which all of it is planted."""
    directory = tmp_path_factory.mktemp("simulated") / "planted"
    options = {"sources": False, "stars": False, **PLANTED, **CALENDAR}
    return directory, simulate_archive(directory, RUNS, EVENTS, SEED, **options)


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """Many runs without events to speak of, for their conditions."""
    directory = tmp_path_factory.mktemp("simulated") / "long"
    return simulate_archive(directory, 200, 1, SEED, sources=False, stars=False, **CALENDAR)


@pytest.fixture(scope="module", autouse=True)
def no_download():
    with iers.conf.set_temp("auto_download", False):
        yield


def night(run) -> int:
    """The local night of a run."""
    return int(53402 + run.gti[0][0] / 86400 - 0.8)


# -- the truth is what events are drawn from ---------------------------------------------------------------------


def test_counts_follow_the_truth_in_rings_and_over_the_field(archive):
    directory, truth = archive
    energy, edges = np.array([0.1, 0.2, 0.5, 2.0, 20.0]), np.linspace(-2.4, 2.4, 7)
    rings = np.linspace(0, 3, 7)
    sizes = -2 * np.pi * np.diff(np.cos(np.deg2rad(rings)))
    pixels = np.diff(np.sin(np.deg2rad(edges)))[:, None] * np.deg2rad(np.diff(edges))
    pulls, totals = [], []
    for run in truth.runs:
        e, lon, lat = in_horizon_frame(read_events(directory, run.obs_id))
        time = run.ontime * np.diff(energy)
        bins = energy.astype(np.float32)
        for counts, expected in (
            (np.histogramdd((e, np.hypot(lon, lat)), (bins, rings))[0],
             truth.mean_rate(run.obs_id, energy, rings) * time[:, None] * sizes),
            (np.histogramdd((e, lat, lon), (bins, edges, edges))[0],
             truth.mean_field_rate(run.obs_id, energy, edges) * time[:, None, None] * pixels),
        ):  # fmt: skip
            enough = expected > 8
            pulls.append(((counts - expected) / np.sqrt(expected))[enough])
            totals.append((counts.sum() - expected.sum()) / np.sqrt(expected.sum()))
    pulls = np.concatenate(pulls)
    assert pulls.size > 1000
    assert 1e-3 < stats.chi2.sf((pulls**2).sum(), pulls.size) < 1 - 1e-3
    assert np.abs(totals).max() < 3.7


def test_rate_is_the_formula(archive):
    truth = archive[1]
    run = max(truth.runs, key=lambda r: r.zenith)
    airmass = 1 / math.cos(math.radians(run.zenith)) - 1 / math.cos(math.radians(30))
    threshold = 0.15 * math.cos(math.radians(run.zenith)) ** -2.5 * (0.85 / run.muon_efficiency) ** 1.5
    energy = np.array([0.2, 1.0, 7.0])
    index = 2.7 + 0.4 * airmass + 0.04 * np.log(energy)
    expected = run.norm * energy**-index / (1 + (threshold / energy) ** 6)
    np.testing.assert_allclose(truth.rate(run.obs_id, energy, 0.0), expected, rtol=1e-9)
    up, down = (truth.field_rate(run.obs_id, energy, 0.0, lat) for lat in (1.0, -1.0))
    slope = (-0.08 + 0.1 * np.log(energy)) * math.sin(math.radians(run.zenith))
    np.testing.assert_allclose(np.log(up / down), 2 * slope, atol=1e-9)


def test_truth_is_read_back_and_names_what_is_planted(archive):
    directory, truth = archive
    assert Truth.read(directory) == truth
    data = json.loads((directory / "truth.json").read_text())
    assert {name: data[name] for name in PLANTED} == PLANTED


def test_nothing_of_it_unless_it_is_asked_for(tmp_path):
    truth = simulate_archive(tmp_path, 5, 50, SEED)
    assert not PLANTED.keys() & json.loads((tmp_path / "truth.json").read_text()).keys()
    for run in truth.runs:
        mjd = 53402 + (run.gti[0][0] + run.gti[-1][1]) / 2 / 86400
        assert run.norm == pytest.approx(run_norm(50, run.zenith, mjd, run.nsb), rel=1e-5)
        assert truth.threshold_factor(run) == 1
        np.testing.assert_array_equal(truth.spectrum(run, 0.3), spectrum(0.3, run.zenith))


# -- mirrors and weather -----------------------------------------------------------------------------------------


def test_threshold_of_the_files_follows_zenith_angle_and_mirrors(archive):
    directory, truth = archive
    for run in truth.runs:
        path = directory / "data" / f"run_{run.obs_id:06d}.fits.gz"
        with open_fits(str(path), run.obs_id) as hdus:
            hdu = find_hdu(hdus, "EFFECTIVE AREA", "EFF_AREA", run.obs_id, str(path))
            curve, declared = area_curve(hdu), declared_threshold(hdu.header)
        half = response.energy_threshold(run.zenith, (0.85 / run.muon_efficiency) ** 1.5)
        assert declared == pytest.approx(float(half), abs=1e-6)
        # the share of showers seen is 10 % of the largest at 9^(-1/6) of the threshold, a little of it the field's
        assert area_threshold(curve) / half == pytest.approx(9 ** (-1 / 6), rel=0.03)
        assert Table.read(path, hdu="EVENTS").meta["MUONEFF"] == run.muon_efficiency


def test_muon_efficiency_falls_within_seasons_and_jumps_between(long):
    runs = sorted(long.runs, key=lambda r: r.gti)
    season = np.array([(night(r) - 56201) // 365 for r in runs])
    muons = np.array([r.muon_efficiency for r in runs])
    assert set(season) == set(range(5))
    assert all((np.diff(muons[season == s]) <= 0).all() for s in range(5))
    first, last = (np.array([muons[season == s][i] for s in range(5)]) for i in (0, -1))
    assert (first[1:] > last[:-1]).all(), "washed in summer"
    assert first[0] > first[1] > first[2] < first[3], "coated in the third"
    assert np.ptp(muons) > 0.15


def test_level_follows_mirrors_and_weather_of_the_night(long):
    by_night: dict[int, list[float]] = {}
    for run in long.runs:
        mjd = 53402 + (run.gti[0][0] + run.gti[-1][1]) / 2 / 86400
        by_night.setdefault(night(run), []).append(math.log(run.norm / run_norm(1, run.zenith, mjd, run.nsb)))
    several = [levels for levels in by_night.values() if len(levels) > 1]
    assert len(several) > 20
    assert max(np.ptp(levels) for levels in several) < 1e-4
    one_each = np.array([levels[0] for levels in by_night.values()])
    assert one_each.std() == pytest.approx(CALENDAR["weather"], rel=0.25)
    assert abs(one_each.mean()) < 0.04


# -- arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"tilt_slope": 0.4}, {"tilt_slope": -0.3}, {"tilt_slope": np.nan}, {"steepening": 2},
        {"mirror_threshold": -1}, {"seasons": 0}, {"nights": 300}, {"weather": 1.5},
    ],
)  # fmt: skip
def test_wrong_arguments(tmp_path, wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}.* must be from"):
        simulate_archive(tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()


def test_command_passes_them_on(tmp_path, archive):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in (PLANTED | CALENDAR).items()]
    arguments = ["simulate", str(tmp_path / "a"), "--runs", "2", "--events", str(EVENTS), "--seed", str(SEED)]
    done = CliRunner().invoke(main, [*arguments, "--no-sources", "--no-stars", *options])
    assert done.exit_code == 0, done.output
    assert Truth.read(tmp_path / "a").runs == archive[1].runs[:2]
    name = Path("data", f"run_{archive[1].runs[1].obs_id:06d}.fits.gz")
    assert (tmp_path / "a" / name).read_bytes() == (archive[0] / name).read_bytes()
