"""A simulated camera that is not round: its truth by formulas, its events in gammapy's frame of the horizon."""

from __future__ import annotations

import json

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.utils import iers
from helpers.horizon_frame import in_horizon_frame, read_events
from scipy import integrate, optimize, special, stats

from dask_bkg.errors import ConfigError
from dask_bkg.simulate import Truth, camera, simulate_archive

pytestmark = pytest.mark.slow  # whole jobs, or simulations of many skies

RUNS, EVENTS, SEED = 15, 4000, 3
TILT, ELONGATION = 0.4, 0.06


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Archive of a camera that tilts and is stretched."""
    directory = tmp_path_factory.mktemp("simulated") / "tilted"
    shape = {"tilt": TILT, "elongation": ELONGATION}
    return directory, simulate_archive(directory, RUNS, EVENTS, SEED, sources=False, stars=False, **shape)


@pytest.fixture(scope="module")
def round_archive(tmp_path_factory):
    """The same archive of a round camera."""
    directory = tmp_path_factory.mktemp("simulated") / "round"
    return directory, simulate_archive(directory, RUNS, EVENTS, SEED, sources=False, stars=False)


@pytest.fixture(scope="module", autouse=True)
def no_download():
    with iers.conf.set_temp("auto_download", False):
        yield


@pytest.fixture(scope="module")
def places(archive):
    """For each run energies [TeV] and field positions [deg] of its events, aligned with the horizon."""
    return [in_horizon_frame(read_events(archive[0], run.obs_id)) for run in archive[1].runs]


def mean_over_angle(offset: np.ndarray, slope: float, elongation: float) -> np.ndarray:
    """Mean of exp(slope t + elongation (x^2 - t^2)) at offsets on the plane, as a series of Bessel functions."""
    even = [special.iv(k, elongation * offset**2) * special.iv(2 * k, slope * offset) for k in range(6)]
    return even[0] + 2 * sum((-1) ** k * even[k] for k in range(1, 6))


def log_likelihood(shape, runs, places) -> float:
    """Of the angles of events at their offsets, which is what the shape of the camera decides."""
    tilt, elongation = shape
    total, grid = 0.0, np.linspace(0, 3.6, 200)
    for run, (_, lon, lat) in zip(runs, places, strict=True):
        slope = tilt * np.sin(np.deg2rad(run.zenith))
        mean = np.interp(np.hypot(lon, lat), grid, np.log(mean_over_angle(grid, slope, elongation)))
        total += (slope * lat + elongation * (lon**2 - lat**2) - mean).sum()
    return total


# -- the truth ----------------------------------------------------------------------------------------------------


def test_series_of_the_test_is_the_mean():
    angle = np.linspace(0, 2 * np.pi, 100, endpoint=False)
    x, t = 2.5 * np.sin(angle), 2.5 * np.cos(angle)
    mean = np.exp(0.7 * t + 0.1 * (x**2 - t**2)).mean()
    assert mean_over_angle(np.array(2.5), 0.7, 0.1) == pytest.approx(mean, rel=1e-9)


def test_field_rate_is_the_formula(archive):
    truth = archive[1]
    run = truth.runs[5]
    slope = TILT * np.sin(np.deg2rad(run.zenith))
    lon, lat = np.array([0.3, -1.0, 0.0, 2.0]), np.array([1.2, -0.4, 0.0, -1.5])
    got = truth.field_rate(run.obs_id, 0.8, lon, lat)
    # offsets of up to 2.5 deg on the plane are 3e-4 deg off
    expected = truth.rate(run.obs_id, 0.8, np.hypot(lon, lat)) * np.exp(slope * lat + ELONGATION * (lon**2 - lat**2))
    np.testing.assert_allclose(got, expected / mean_over_angle(np.hypot(lon, lat), slope, ELONGATION), rtol=1e-3)
    assert got[2] == truth.rate(run.obs_id, 0.8, 0.0), "on the axis nothing changes"


@pytest.mark.parametrize("offset", [0.05, 0.8, 2.0, 3.2])
def test_mean_over_angle_is_the_rate_of_a_round_camera(archive, round_archive, offset):
    truth, round_truth = archive[1], round_archive[1]
    obs_id = truth.runs[2].obs_id
    center = SkyCoord(0, 0, unit="deg")
    ring = center.directional_offset_by(np.arange(0, 360, 5) * center.ra.unit, offset * center.ra.unit)
    rate = truth.field_rate(obs_id, 1.0, ring.ra.wrap_at("180d").deg, ring.dec.deg)
    assert np.ptp(rate) > 0.02 * rate.mean()
    assert rate.mean() == pytest.approx(float(round_truth.rate(obs_id, 1.0, offset)), rel=1e-9)
    assert truth.rate(obs_id, 1.0, offset) == round_truth.rate(obs_id, 1.0, offset)


def test_bright_side_is_the_zenith_and_long_sides_are_left_and_right(archive):
    truth = archive[1]
    low, high = (min(truth.runs, key=lambda r, s=s: s * r.zenith) for s in (1, -1))
    for run in (low, high):
        up, down, left, right = truth.field_rate(run.obs_id, 1.0, [0, 0, -1, 1], [1, -1, 0, 0])
        assert left == right
        assert np.log(up / down) == pytest.approx(2 * TILT * np.sin(np.deg2rad(run.zenith)))
        assert np.log(left * right / (up * down)) == pytest.approx(4 * ELONGATION)


def test_mean_field_rate_is_the_integral_of_the_field_rate(archive):
    truth = archive[1]
    obs_id = truth.runs[3].obs_id

    def integrand(log_energy, lat, lon):
        energy = np.exp(log_energy)
        return truth.field_rate(obs_id, energy, lon, lat) * energy * np.cos(np.deg2rad(lat))

    edges = np.array([-0.6, 0.4, 1.4])
    mean = truth.mean_field_rate(obs_id, [0.1, 0.3, 2.0], edges)
    assert mean.shape == (2, 2, 2)
    for energy, row, column in ((0, 0, 1), (1, 1, 0)):
        low, high = ((0.1, 0.3), (0.3, 2.0))[energy]
        box = *edges[column : column + 2], *edges[row : row + 2], *np.log([low, high])
        counts = integrate.tplquad(integrand, *box, epsrel=1e-5)[0]
        area = np.rad2deg(np.diff(np.sin(np.deg2rad(edges[row : row + 2])))).item()
        assert mean[energy, row, column] == pytest.approx(counts / ((high - low) * area), rel=1e-5)
    (down, _), (up, _) = truth.mean_field_rate(obs_id, [0.1, 0.3], [-1.0, 0.0, 1.0])[0]
    assert up > down, "rows are fov_lat, upwards"


def test_field_bins_hold_what_rings_hold(archive):
    """All of the camera, and nothing beyond it or outside the energies."""
    truth = archive[1]
    obs_id, energy = truth.runs[0].obs_id, [0.01, 0.02, 0.2, 150.0]
    edges = np.linspace(-4, 4, 17)
    pixels = truth.mean_field_rate(obs_id, energy, edges)
    solid_angle = np.diff(np.sin(np.deg2rad(edges)))[:, None] * np.deg2rad(np.diff(edges))
    ring = truth.mean_rate(obs_id, energy, [0.0, 4.0])[:, 0] * 2 * np.pi * (1 - np.cos(np.deg2rad(4.0)))
    assert (pixels[0] == 0).all()
    assert (pixels[:, 0, 0] == 0).all()
    np.testing.assert_allclose((pixels * solid_angle).sum(axis=(1, 2)), ring, rtol=1e-4)


def test_round_camera_has_a_round_field(round_archive):
    truth = round_archive[1]
    assert truth.is_round
    lon, lat = np.array([1.5, 0.0, -1.5]), np.array([0.0, 1.5, 0.0])
    expected = truth.rate(64001, 1.0, np.full(3, 1.5))
    np.testing.assert_allclose(truth.field_rate(64001, 1.0, lon, lat), expected, rtol=1e-14)


# -- the events ---------------------------------------------------------------------------------------------------


def test_planted_shape_is_found_in_the_events(archive, places):
    runs = archive[1].runs
    found = optimize.minimize(lambda shape: -log_likelihood(shape, runs, places), [0.0, 0.0], method="BFGS")
    error = np.sqrt(np.diag(found.hess_inv))
    assert (error < [0.03, 0.005]).all()
    assert np.abs((found.x - [TILT, ELONGATION]) / error).max() < 3


def test_frame_is_the_horizon_of_each_events_own_time(tmp_path):
    """The field of a run near the zenith turns by thirty degrees: at the time of its middle the shape fits worse."""
    strong = {"tilt": 1.0, "elongation": 0.2}
    run = simulate_archive(tmp_path, 32, EVENTS, SEED, sources=False, stars=False, **strong).runs[-1]
    assert run.zenith < 10
    own, middle = (in_horizon_frame(read_events(tmp_path, run.obs_id), frozen) for frozen in (False, True))
    shape = strong.values()
    assert log_likelihood(shape, [run], [own]) > log_likelihood(shape, [run], [middle]) + 5


def test_counts_follow_the_field_of_the_truth(archive, places):
    truth = archive[1]
    energy, edges = np.array([0.1, 0.3, 1.0, 10.0]), np.linspace(-3, 3, 13)
    solid_angle = np.diff(np.sin(np.deg2rad(edges)))[:, None] * np.deg2rad(np.diff(edges))
    chi2 = n = 0
    for run, (e, lon, lat) in zip(truth.runs, places, strict=True):
        counts = np.histogramdd((e, lat, lon), (energy.astype(np.float32), edges, edges))[0]
        rate = truth.mean_field_rate(run.obs_id, energy, edges)
        expected = rate * run.ontime * np.diff(energy)[:, None, None] * solid_angle
        enough = expected > 8
        chi2 += ((counts - expected)[enough] ** 2 / expected[enough]).sum()
        n += enough.sum()
    assert n > 1000
    assert 1e-3 < stats.chi2.sf(chi2, n) < 1 - 1e-3


def test_only_directions_change(archive, round_archive):
    moved = 0
    for run in archive[1].runs:
        tilted, straight = read_events(archive[0], run.obs_id), read_events(round_archive[0], run.obs_id)
        for name in ("EVENT_ID", "TIME", "ENERGY"):
            np.testing.assert_array_equal(tilted[name], straight[name])
        pointing = SkyCoord(run.ra_pnt, run.dec_pnt, unit="deg")
        first, second = (SkyCoord(table["RA"], table["DEC"], unit="deg") for table in (tilted, straight))
        np.testing.assert_allclose(first.separation(pointing).deg, second.separation(pointing).deg, atol=5e-5)
        moved += (first.separation(second).deg > 1e-4).sum()
    assert moved > 1000


def test_nearly_round_camera_leaves_the_events_where_they_are(round_archive, tmp_path):
    simulate_archive(tmp_path, 2, EVENTS, SEED, sources=False, stars=False, tilt=1e-9, elongation=-1e-9)
    for obs_id in (64001, 64002):
        first, second = read_events(tmp_path, obs_id), read_events(round_archive[0], obs_id)
        for name in first.colnames:
            np.testing.assert_array_equal(first[name], second[name])


def test_gamma_rays_do_not_tilt(archive, tmp_path):
    simulate_archive(tmp_path / "rich", 2, EVENTS, SEED, stars=False)
    simulate_archive(tmp_path / "tilted", 2, EVENTS, SEED, stars=False, tilt=TILT, elongation=ELONGATION)
    for obs_id in (64001, 64002):
        background = read_events(archive[0], obs_id)["TIME"]
        first, second = (read_events(tmp_path / name, obs_id) for name in ("rich", "tilted"))
        gamma = ~np.isin(first["TIME"], background)
        assert gamma.sum() > 50
        for name in ("TIME", "RA", "DEC", "Xoff"):
            np.testing.assert_array_equal(first[name][gamma], second[name][gamma])


def test_background_in_files_is_the_mean_over_angle(archive, tmp_path):
    from gammapy.data import DataStore

    truth = simulate_archive(tmp_path, 1, 100, background_in_files=True, tilt=TILT)
    background = DataStore.from_dir(tmp_path).obs(64001, required_irf=["bkg"]).bkg
    energy, offset = background.axes["energy"].center[40], background.axes["offset"].center
    rate = background.evaluate(energy=energy, offset=offset).to_value("s-1 TeV-1 sr-1")
    np.testing.assert_allclose(rate, truth.rate(64001, energy.value, offset.value), rtol=1e-5)


# -- the numbers in truth.json, and the arguments -----------------------------------------------------------------


def test_shape_is_read_back_and_an_older_truth_is_round(archive, round_archive, tmp_path):
    assert Truth.read(archive[0]) == archive[1]
    assert (archive[1].tilt, archive[1].elongation) == (TILT, ELONGATION)
    data = json.loads((archive[0] / "truth.json").read_text())
    assert (data.pop("tilt"), data.pop("elongation")) == (TILT, ELONGATION)
    assert data == json.loads((round_archive[0] / "truth.json").read_text()), "a round camera is not mentioned"
    (tmp_path / "truth.json").write_text(json.dumps(data))
    assert Truth.read(tmp_path) == round_archive[1]
    assert archive[1] != round_archive[1]


def test_one_of_the_two_is_enough(tmp_path):
    truth = simulate_archive(tmp_path, 1, 50, elongation=-0.1)
    assert not truth.is_round
    assert Truth.read(tmp_path) == truth
    assert "tilt" not in json.loads((tmp_path / "truth.json").read_text())


@pytest.mark.parametrize(
    "wrong", [{"tilt": 1.1}, {"tilt": np.nan}, {"tilt": -2}, {"elongation": 0.21}, {"elongation": -np.inf}]
)
def test_wrong_shapes(tmp_path, wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} must be from"):
        simulate_archive(tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()


def test_largest_shape_is_never_exceeded():
    """Where it were, thinning would lose events silently."""
    offset, angle = np.linspace(0, 3.5, 30)[:, None], np.linspace(0, 2 * np.pi, 181)
    lon, lat = camera.field_position(offset, angle)
    for slope, elongation in ((1.0, 0.2), (-1.0, -0.2), (0.3, -0.05), (0.0, 0.1)):
        shape, limit = camera.shape(lon, lat, slope, elongation), camera.largest_shape(offset, slope, elongation)
        assert (shape <= limit * (1 + 1e-12)).all()
    np.testing.assert_allclose(camera.field_offset(lon, lat), np.broadcast_to(offset, lon.shape), atol=1e-9)
