"""One run to counts and exposure: against gammapy and NumPy, against the truth, and whatever is put in a disc."""

from __future__ import annotations

import pickle
from functools import partial

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from gammapy.data import DataStore

from dask_bkg import schema
from dask_bkg.binning import Edges, as_edges
from dask_bkg.dl3.read import RunFile
from dask_bkg.errors import RunError
from dask_bkg.reduction import reduce
from dask_bkg.reduction.reduce import reduce_block, reduce_run
from dask_bkg.sky.exclusion import SkyRegions, make_regions

ENERGY, OFFSET = np.geomspace(0.1, 10, 9), np.linspace(0, 2.5, 6)
EDGES = {"energy": ENERGY, "offset": OFFSET}
HALF_PIXEL = 0.0145  # half the diagonal of a pixel of the field [deg]: so near to an edge, the pixel decides
RING = 2 * np.pi * -np.diff(np.cos(np.deg2rad(OFFSET)))


def regions_of(truth) -> SkyRegions:
    """The sources and bright stars that were simulated."""
    stars = [(star.ra, star.dec, 0.3) for star in truth.stars if star.v_mag < 5]
    ra, dec, radius = np.array(stars + [(s.ra, s.dec, s.radius) for s in truth.sources]).T
    return make_regions(ra, dec, radius, [""] * ra.size, "own")


def distances(regions: SkyRegions, sky: SkyCoord) -> np.ndarray:
    """Distance of positions to the edge of each disc [deg], negative inside; shape ``(regions, positions)``."""
    centers = SkyCoord(regions.ra, regions.dec, unit="deg")
    return np.array([c.separation(sky).deg - r for c, r in zip(centers, regions.radius, strict=True)])


def random_sky(pointing: SkyCoord, radius: float, n: int, seed: int = 1) -> SkyCoord:
    """Positions that fill a disc evenly."""
    rng = np.random.default_rng(seed)
    distance = np.rad2deg(np.arccos(rng.uniform(np.cos(np.deg2rad(radius)), 1, n)))
    return pointing.directional_offset_by(rng.uniform(0, 360, n) * u.deg, distance * u.deg)


@pytest.mark.parametrize("obs_id", [64001, 64005, 64010])
@pytest.mark.slow
def test_counts_and_exposure_are_those_of_gammapy_and_numpy(archive, run_path, edit_run, tmp_path, obs_id):
    """Counts exactly, of events further than half a pixel from all edges; exposure to 1 %."""
    directory, truth = archive
    regions, obs = regions_of(truth), DataStore.from_dir(directory).obs(obs_id, required_irf=[])
    pointing = obs.pointing.fixed_icrs
    events = obs.events
    offset, to_region = events.offset.deg, distances(regions, events.radec)
    clear = np.abs(offset[:, None] - OFFSET).min(axis=1) > HALF_PIXEL
    clear &= np.abs(to_region).min(axis=0) > HALF_PIXEL
    kept = clear & (to_region > 0).all(axis=0)
    expected = np.histogram2d(events.energy.to_value("TeV")[kept], offset[kept], bins=[ENERGY, OFFSET])[0]

    path = tmp_path / "clear.fits.gz"
    path.write_bytes(run_path(directory, obs_id).read_bytes())

    def keep_clear(hdus):
        hdus["EVENTS"].data = hdus["EVENTS"].data[clear]

    edit_run(path, keep_clear)
    run = reduce_run(str(path), obs_id, EDGES, regions)
    assert (run.counts.values == expected).all()
    assert 0.8 * clear.size < clear.sum() < clear.size
    assert kept.sum() < clear.sum()  # the exclusion cuts something out of this field

    sky = random_sky(pointing, OFFSET[-1], 400_000)
    ring = np.digitize(sky.separation(pointing).deg, OFFSET) - 1
    outside = (distances(regions, sky) > 0).all(axis=0)
    fraction = np.bincount(ring[outside], minlength=5)[:5] / np.bincount(ring, minlength=5)[:5]
    ontime = obs.observation_time_duration.to_value("s")
    assert run.exposure.values == pytest.approx(ontime * np.diff(ENERGY)[:, None] * RING * fraction, rel=0.01)


def test_exposure_without_exclusion_is_ontime_solid_angle_energy(four_runs, run_path):
    run = reduce_run(str(run_path(four_runs, 64001)), 64001, EDGES)
    expected = float(run.ontime) * np.diff(ENERGY)[:, None] * RING
    # a ring is made of whole pixels, events and solid angle alike
    assert run.exposure.values == pytest.approx(expected, rel=0.01)
    assert run.exposure.values.sum() == pytest.approx(expected.sum(), rel=5e-4)
    assert run.exposure.attrs["units"] == "s TeV sr"


def test_exposure_is_per_ontime_whatever_the_dead_time(four_runs, run_path, edit_run):
    path = run_path(four_runs, 64001)
    before = reduce_run(str(path), 64001, EDGES)

    def half_dead(hdus):
        header = hdus["EVENTS"].header
        header["DEADC"], header["LIVETIME"] = 0.5, 0.5 * header["ONTIME"]

    edit_run(path, half_dead)
    after = reduce_run(str(path), 64001, EDGES)
    assert float(after.livetime) == pytest.approx(0.5 * float(before.ontime))
    assert (after.exposure.values == before.exposure.values).all()


def test_event_ratio_is_the_formula_of_the_document(archive, run_path):
    directory, truth = archive
    regions, obs = regions_of(truth), DataStore.from_dir(directory).obs(64001, required_irf=[])
    near = regions[SkyCoord(regions.ra, regions.dec, unit="deg").separation(obs.pointing.fixed_icrs).deg < 2.5]
    events = obs.events
    kept = (distances(near, events.radec) > 0).all(axis=0)
    offset = events.offset.deg
    counts_all = np.histogram(offset, bins=OFFSET)[0] + 1e-9
    counts_exc = np.histogram(offset[kept], bins=OFFSET)[0] + 1e-9
    center, width = np.deg2rad((OFFSET[1:] + OFFSET[:-1]) / 2), np.deg2rad(np.diff(OFFSET))
    ontime = obs.observation_time_duration.to_value("s")
    exposure = ontime * np.diff(ENERGY)[:, None] * (2 * np.pi * center * width) * (counts_exc / counts_all)
    counts = np.histogram2d(events.energy.to_value("TeV")[kept], offset[kept], bins=[ENERGY, OFFSET])[0]

    run = reduce_run(str(run_path(directory, 64001)), 64001, EDGES, regions, method="event_ratio", reach="centre")
    assert len(near) > 0
    assert (run.counts.values == counts).all()
    assert run.exposure.values == pytest.approx(exposure, rel=1e-12)


def test_unknown_method_is_refused(four_runs, run_path):
    with pytest.raises(ValueError, match="'geometry' and 'event_ratio'"):
        reduce_run(str(run_path(four_runs, 64001)), 64001, EDGES, method="guess")


# --- truth -------------------------------------------------------------------------------------------------


def test_stacked_rate_is_the_true_one(dark_archive, run_path):
    directory, truth = dark_archive
    energy = np.geomspace(0.2, 20, 11)
    edges = Edges(energy, OFFSET)
    obs_ids = [run.obs_id for run in truth.runs]
    runs = reduce_block([RunFile(i, str(run_path(directory, i))) for i in obs_ids], edges, None, "geometry", "disc")
    true_rate = np.array([truth.mean_rate(i, energy, OFFSET) for i in obs_ids])
    expected = (true_rate * runs.exposure.values).sum(axis=0)
    counts = runs.counts.values.sum(axis=0)
    used = expected > 10
    chi2 = ((counts - expected)[used] ** 2 / expected[used]).sum()
    assert used.sum() > 35
    assert abs(chi2 - used.sum()) < 4 * np.sqrt(2 * used.sum())
    assert abs(counts.sum() / expected.sum() - 1) < 4 / np.sqrt(expected.sum())
    assert expected.sum() > 40_000


# --- a source in an exclusion ------------------------------------------------------------------------------


def test_what_is_inside_an_exclusion_changes_nothing(four_runs, run_path, edit_run):
    """Ten times the events of the disc injected, up to half a pixel from its edge: not a bit changes."""
    path, radius = run_path(four_runs, 64001), 0.35
    header = fits.getheader(path, "EVENTS")
    target = SkyCoord(header["RA_OBJ"], header["DEC_OBJ"], unit="deg")
    regions = make_regions([target.ra.deg], [target.dec.deg], radius, ["target"], "own")

    def inject(hdus):
        table = hdus["EVENTS"].data
        inside = target.separation(SkyCoord(table["RA"], table["DEC"], unit="deg")).deg < radius
        n = 10 * int(inside.sum())
        assert n >= 50
        more = fits.FITS_rec.from_columns(hdus["EVENTS"].columns, nrows=len(table) + n)
        sky = random_sky(target, radius - HALF_PIXEL, n)
        more["RA"][-n:], more["DEC"][-n:], more["ENERGY"][-n:] = sky.ra.deg, sky.dec.deg, 0.5
        hdus["EVENTS"].data = more

    methods = ("geometry", "event_ratio")
    before = {method: reduce_run(str(path), 64001, EDGES, regions, method=method) for method in methods}
    edit_run(path, inject)
    after = {method: reduce_run(str(path), 64001, EDGES, regions, method=method) for method in methods}

    for name in schema.HISTOGRAMS:
        assert (after["geometry"][name].values == before["geometry"][name].values).all()
    # the document's ratio of kept to all events puts the excluded source into the rate
    rate = {when: runs["event_ratio"].counts.values.sum(0) / runs["event_ratio"].exposure.values.sum(0)
            for when, runs in (("before", before), ("after", after))}  # fmt: skip
    assert (rate["after"] / rate["before"]).max() > 1.5


def test_an_exclusion_elsewhere_changes_nothing(four_runs, run_path):
    path = str(run_path(four_runs, 64001))
    far = make_regions([200.0], [-40.0], 1.0, ["far"], "own")
    with_far, without = reduce_run(path, 64001, EDGES, far), reduce_run(path, 64001, EDGES)
    assert (with_far.counts.values == without.counts.values).all()
    assert (with_far.exposure.values == without.exposure.values).all()


# --- as a task ---------------------------------------------------------------------------------------------


def test_a_run_travels(four_runs, run_path):
    regions = make_regions([83.6], [22.0], 0.3, ["Crab"], "own")
    task = partial(reduce_run, str(run_path(four_runs, 64001)), 64001, EDGES, regions)
    there, here = pickle.loads(pickle.dumps(task))(), task()
    assert there.identical(here)
    assert pickle.loads(pickle.dumps(here)).identical(here)
    assert schema.check(here) is here
    assert (int(here.obs_id), here.attrs) == (64001, {})
    assert str(here.object.values).startswith("Sim ")


def test_a_block_is_its_runs_and_a_bad_one_is_reported(four_runs, run_path, tmp_path):
    edges = as_edges(EDGES)
    files = [RunFile(i, str(run_path(four_runs, i))) for i in (64003, 64001, 64002)]
    files.insert(1, RunFile(99, str(tmp_path / "nowhere.fits")))
    block = reduce_block(files, edges, None, "geometry", "disc")
    assert block.obs_id.values.tolist() == [64003, 99, 64001, 64002]
    for file in files[:1] + files[2:]:
        one, in_block = reduce_run(file.path, file.obs_id, EDGES), block.sel(obs_id=file.obs_id)
        for name in (*schema.HISTOGRAMS, *schema.RUN_NUMBERS, "object"):
            assert np.array_equal(one[name].values, in_block[name].values), name
    assert [bool(text) for text in block.error.values] == [False, True, False, False]
    assert "run 99" in block.error.values[1]
    assert "nowhere.fits" in block.error.values[1]
    assert block.counts.values[1].sum() == block.exposure.values[1].sum() == 0
    assert np.isnan(block.ontime.values[1])


def test_a_surprise_in_one_run_does_not_take_the_block(four_runs, run_path, monkeypatch):
    read_run = reduce.read_run

    def surprise(file, **options):
        if file.obs_id == 64002:
            raise KeyError("what nobody thought of")
        return read_run(file, **options)

    monkeypatch.setattr(reduce, "read_run", surprise)
    files = [RunFile(i, str(run_path(four_runs, i))) for i in (64001, 64002)]
    block = reduce_block(files, as_edges(EDGES), None, "geometry", "disc")
    assert "what nobody thought of" in block.error.sel(obs_id=64002).item()
    assert block.counts.sel(obs_id=64001).sum() > 0


def test_a_block_notes_what_was_remarkable(four_runs, run_path, edit_run):
    path = run_path(four_runs, 64001)

    def damage(hdus):
        hdus["EVENTS"].data["ENERGY"][:3] = np.nan

    edit_run(path, damage)
    block = reduce_block([RunFile(64001, str(path))], as_edges(EDGES), None, "geometry", "disc")
    assert block.note.values[0].startswith("3 of ")


def test_no_event_in_the_binning_is_a_measurement(four_runs, run_path):
    run = reduce_run(str(run_path(four_runs, 64001)), 64001, {**EDGES, "energy": [1e4, 1e5]})
    assert run.counts.sum() == 0
    assert (run.exposure > 0).all()


def test_an_exclusion_that_closes_the_field_is_an_error(four_runs, run_path):
    everywhere = make_regions([0.0], [0.0], 180.0, ["the sky"], "own")
    with pytest.raises(RunError, match="run 64001: its whole field is excluded"):
        reduce_run(str(run_path(four_runs, 64001)), 64001, EDGES, everywhere)


def test_events_outside_of_the_good_time_are_left_out_and_told(four_runs, run_path, edit_run):
    path = run_path(four_runs, 64001)
    whole = reduce_run(str(path), 64001, EDGES)

    def halve(hdus):
        gti = hdus["GTI"].data
        gti["STOP"][0] = (gti["START"][0] + gti["STOP"][0]) / 2
        hdus["GTI"].data = gti[:1]

    edit_run(path, halve)
    cut = reduce_run(str(path), 64001, EDGES)
    share = float(cut.ontime / whole.ontime)
    n = int(cut.counts.sum())
    # the rate stays: 2,000 events, 5 standard deviations
    assert n / share == pytest.approx(int(whole.counts.sum()), rel=5 / np.sqrt(n))
    assert 0.1 < share < 0.7
    block = reduce_block([RunFile(64001, str(path))], as_edges(EDGES), None)
    assert "outside of the good time intervals left out" in block.note.values[0]


def test_time_that_is_listed_twice_is_exposed_once(four_runs, run_path, edit_run):
    path = run_path(four_runs, 64001)
    once = reduce_run(str(path), 64001, EDGES)

    def double(hdus):
        rows = hdus["GTI"].data
        hdus["GTI"].data = np.concatenate([rows, rows])

    edit_run(path, double)
    assert reduce_run(str(path), 64001, EDGES).ontime == once.ontime


@pytest.mark.parametrize("energy", [[1.0], [1.0, 1.0], [2.0, 1.0]])
def test_edges_must_ascend(four_runs, run_path, energy):
    with pytest.raises(ValueError, match="energy edges"):
        reduce_run(str(run_path(four_runs, 64001)), 64001, {**EDGES, "energy": energy})
