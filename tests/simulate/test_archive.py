from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import AltAz, EarthLocation, SkyCoord, get_sun
from astropy.io import fits
from astropy.table import Table
from astropy.time import Time
from astropy.utils import iers
from scipy import stats
from scipy.integrate import dblquad

from dask_bkg.errors import ArchiveError, ConfigError, RunError
from dask_bkg.simulate import STAR_LOSS, STAR_MAGNITUDE, STAR_RADIUS, Truth, response, simulate_archive
from dask_bkg.simulate.files import fits_bytes

RUNS, EVENTS, SEED = 15, 4000, 3
SITE = EarthLocation.from_geodetic(-110.952, 31.675, 1268)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Archive with sources and stars."""
    directory = tmp_path_factory.mktemp("simulated") / "archive"
    return directory, simulate_archive(directory, RUNS, EVENTS, SEED)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The same without sources and stars, and with the true background in its files."""
    directory = tmp_path_factory.mktemp("simulated") / "bare"
    truth = simulate_archive(directory, RUNS, EVENTS, SEED, sources=False, stars=False, background_in_files=True)
    return directory, truth


@pytest.fixture(autouse=True)
def no_download():
    with iers.conf.set_temp("auto_download", False):
        yield


def run_file(directory: Path, obs_id: int) -> Path:
    return directory / "data" / f"run_{obs_id:06d}.fits.gz"


def read_events(directory: Path, obs_id: int) -> Table:
    return Table.read(run_file(directory, obs_id), hdu="EVENTS")


def offsets(events: Table) -> np.ndarray:
    pointing = SkyCoord(events.meta["RA_PNT"], events.meta["DEC_PNT"], unit="deg")
    return SkyCoord(events["RA"], events["DEC"], unit="deg").separation(pointing).deg


def times(table: Table) -> Time:
    return Time(table.meta["MJDREFI"], table.meta["MJDREFF"], format="mjd", scale="utc") + table["TIME"].quantity


def all_bytes(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


# -- the files --------------------------------------------------------------------------------------------------


def test_same_arguments_same_bytes_other_seed_other_bytes(tmp_path):
    simulate_archive(tmp_path / "a", 3, 300, 5)
    simulate_archive(tmp_path / "elsewhere", 3, 300, 5)
    simulate_archive(tmp_path / "other", 3, 300, 6)
    first, again, other = (all_bytes(tmp_path / name) for name in ("a", "elsewhere", "other"))
    assert first == again
    assert len(first) == 3 + 5
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first if name not in ("sources.reg", "hdu-index.fits.gz"))


def test_nothing_of_the_day_of_writing(archive):
    directory, _ = archive
    for path in directory.rglob("*.gz"):
        header = path.read_bytes()[:10]
        assert header[3] == 0, "flags: the gzip header holds a file name"
        assert header[4:8] == bytes(4), "the gzip header holds a time"
        with fits.open(path) as hdus:
            assert not any("DATE" in hdu.header for hdu in hdus)


def test_run_does_not_depend_on_the_number_of_runs(archive, tmp_path):
    directory, truth = archive
    few = simulate_archive(tmp_path, 4, EVENTS, SEED)
    assert few.runs == truth.runs[:4]
    for run in few.runs:
        assert run_file(tmp_path, run.obs_id).read_bytes() == run_file(directory, run.obs_id).read_bytes()


def test_background_is_the_same_without_sources_and_stars(archive, bare):
    for run in archive[1].runs:
        rich, poor = read_events(archive[0], run.obs_id), read_events(bare[0], run.obs_id)
        place = SkyCoord(rich["RA"], rich["DEC"], unit="deg")
        near_source = np.zeros(len(rich), dtype=bool)
        for source in archive[1].sources:
            near_source |= place.separation(SkyCoord(source.ra, source.dec, unit="deg")).deg < source.radius
        # what is neither near a source nor lost at a star is the bare background, event by event
        assert np.isin(rich["TIME"][~near_source], poor["TIME"]).mean() > 0.999
        assert np.isin(poor["TIME"], rich["TIME"]).mean() > 0.9


def test_fits_is_valid(bare):
    for path in bare[0].rglob("*.gz"):
        with fits.open(path) as hdus:
            hdus.verify("exception")
            assert [hdu.data is None for hdu in hdus] == [True] + [False] * (len(hdus) - 1)


def test_table_bytes_read_back_by_astropy(tmp_path):
    columns = {
        "N": (np.array([1, -(2**40)]), None),
        "X": (np.array([0.1, np.nan]), "s"),
        "NAME": (np.array(["a", "bcd"]), None),
        "CUBE": (np.arange(12, dtype=np.float32).reshape(2, 2, 3), "m2"),
    }
    cards = {"TINY": (1.25e-17, "a comment"), "QUOTE": "it's", "FLAG": False, "COUNT": np.int64(7)}
    (tmp_path / "t.fits").write_bytes(fits_bytes([response.Table("T", columns, cards)]))
    with fits.open(tmp_path / "t.fits") as hdus:
        hdus.verify("exception")
        hdu = hdus["T"]
        for name, (values, unit) in columns.items():
            np.testing.assert_array_equal(hdu.data[name], values)
            assert hdu.columns[name].unit == unit
        assert (hdu.header["TINY"], hdu.header["QUOTE"], hdu.header["FLAG"]) == (1.25e-17, "it's", False)
        assert hdu.header["COUNT"] == 7
        assert hdu.header.comments["TINY"] == "a comment"


def test_tables_of_one_kind_have_their_own_rows_and_cards(tmp_path):
    values = [1, True, 1.0, "1", 2]
    tables = [response.Table("T", {"X": (np.arange(n), None)}, {"A": value}) for n, value in enumerate(values)]
    (tmp_path / "t.fits").write_bytes(fits_bytes(tables))
    with fits.open(tmp_path / "t.fits") as hdus:
        hdus.verify("exception")
        for n, (value, hdu) in enumerate(zip(values, hdus[1:], strict=True)):
            assert (type(hdu.header["A"]), hdu.header["A"]) == (type(value), value)
            np.testing.assert_array_equal(hdu.data["X"], np.arange(n))


HEADER_KEYS = (
    *("OBS_ID", "DATE-OBS", "DATE-AVG", "DATE-END", "TSTART", "TSTOP", "MJDREFI", "MJDREFF"),
    *("TIMEUNIT", "TIMESYS", "TIMEREF", "ONTIME", "LIVETIME", "DEADC", "OBJECT", "RA_OBJ"),
    *("DEC_OBJ", "RA_PNT", "DEC_PNT", "ALT_PNT", "AZ_PNT", "N_TELS", "TELLIST", "GEOLON"),
    *("GEOLAT", "ALTITUDE", "NSBLEVEL", "MUONEFF", "QUALITY", "CREATOR", "TELESCOP", "OBS_MODE"),
    *("RADECSYS", "EQUINOX"),
)


def test_headers_and_index_agree(archive):
    directory, truth = archive
    index = Table.read(directory / "obs-index.fits.gz")
    assert index.meta["MJDREFI"] == 53402
    assert {"GEOLON", "GEOLAT", "ALTITUDE", "TIMESYS"} <= index.meta.keys()
    assert len(index) == RUNS
    for row, run in zip(index, truth.runs, strict=True):
        events = read_events(directory, run.obs_id)
        assert not [key for key in HEADER_KEYS if key not in events.meta]
        assert row["EVENT_COUNT"] == len(events)
        assert row["ZEN_PNT"] == pytest.approx(90 - events.meta["ALT_PNT"])
        assert row["N_TELS"] == len(events.meta["TELLIST"].split(","))
        shared = set(HEADER_KEYS) & set(index.colnames)
        assert len(shared) >= 20
        assert all(row[key] == events.meta[key] for key in shared)
        assert events.meta["TELESCOP"] == "VERITAS"
        assert 0.85 <= events.meta["DEADC"] <= 0.95
    units = {"ALT_PNT": "deg", "ZEN_PNT": "deg", "RA_OBJ": "deg", "TSTART": "s", "ONTIME": "s", "LIVETIME": "s"}
    assert all(index[name].unit == unit for name, unit in units.items())
    assert set(index["N_TELS"]) == {3, 4}
    assert np.ptp(index["NSBLEVEL"]) > 0.5
    assert {"Sim Crab", "Sim Halo", "Sim Dark 1"} <= set(index["OBJECT"])


def test_event_columns_have_the_types_of_real_files(archive):
    directory, truth = archive
    with fits.open(run_file(directory, truth.runs[0].obs_id)) as hdus:
        columns = hdus["EVENTS"].columns
        assert {c.name: (c.format, c.unit) for c in columns if c.name in ("EVENT_ID", "TIME", "RA", "ENERGY")} == {
            "EVENT_ID": ("1K", None),
            "TIME": ("1D", "s"),
            "RA": ("1E", "deg"),
            "ENERGY": ("1E", "TeV"),
        }


def test_ontime_is_the_sum_of_the_good_times_and_events_lie_in_them(archive):
    directory, truth = archive
    pieces = set()
    for run in truth.runs:
        events = read_events(directory, run.obs_id)
        gti = Table.read(run_file(directory, run.obs_id), hdu="GTI")
        pieces.add(len(gti))
        start, stop = np.array(gti["START"]), np.array(gti["STOP"])
        assert (start < stop).all()
        assert (stop[:-1] < start[1:]).all()
        assert events.meta["ONTIME"] == pytest.approx((stop - start).sum(), abs=1e-6)
        assert events.meta["LIVETIME"] == pytest.approx(events.meta["ONTIME"] * events.meta["DEADC"])
        assert (events.meta["TSTART"], events.meta["TSTOP"]) == (start[0], stop[-1])
        piece = np.searchsorted(start, events["TIME"], side="right") - 1
        assert (piece >= 0).all()
        assert (events["TIME"] <= stop[piece]).all()
        assert (np.diff(events["TIME"]) >= 0).all()
    assert pieces >= {1, 2}


def test_sky_files_are_read_by_others(archive):
    from regions import Regions

    directory, truth = archive
    stars = np.loadtxt(directory / "stars.dat")
    np.testing.assert_array_equal(stars, [(s.ra, s.dec, s.hip, s.v_mag, s.b_v) for s in truth.stars])
    assert (directory / "stars.dat").read_text().startswith("#_RAJ2000\t_DEJ2000\tHIP\tVmag\tB-V\n")
    circles = Regions.read(directory / "sources.reg", format="ds9")
    assert [c.center.ra.deg for c in circles] == pytest.approx([s.ra for s in truth.sources])
    assert [c.radius.to_value("deg") for c in circles] == pytest.approx([s.radius for s in truth.sources], abs=1e-4)


# -- what others make of them -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_gammapy_opens_everything(archive, bare):
    from gammapy.data import DataStore

    for (directory, truth), required in ((archive, ["aeff", "edisp", "psf"]), (bare, "full-enclosure")):
        store = DataStore.from_dir(directory)
        observations = store.get_observations(required_irf=required)
        assert [int(i) for i in observations.ids] == [run.obs_id for run in truth.runs]
        for run, obs in zip(truth.runs, observations, strict=True):
            assert obs.events.table["ENERGY"].unit == "TeV"
            assert obs.gti.time_sum.to_value("s") == pytest.approx(run.ontime)
            assert obs.pointing.fixed_icrs.ra.deg == run.ra_pnt
            assert obs.observatory_earth_location.lat.deg == pytest.approx(31.675)
            start = Time(fits.getheader(run_file(directory, run.obs_id), "EVENTS")["DATE-OBS"])
            assert abs((obs.tstart - start).sec) < 0.01
            psf = obs.psf.containment_radius(0.393, energy_true=1 * u.TeV, offset=1 * u.deg)
            assert psf.to_value("deg").item() == pytest.approx(response.PSF_SIGMA, rel=0.05)
        migra = np.linspace(0.5, 1.7, 601)
        density = obs.edisp.evaluate(energy_true=1 * u.TeV, migra=migra, offset=1 * u.deg).to_value("").ravel()
        assert np.trapezoid(density, migra) == pytest.approx(1, abs=0.02)
        spread = np.sqrt(np.trapezoid(density * np.log(migra) ** 2, migra))
        assert spread == pytest.approx(response.ENERGY_RESOLUTION, rel=0.05)


def test_background_in_files_is_the_truth(bare):
    from gammapy.data import DataStore

    directory, truth = bare
    obs = DataStore.from_dir(directory).obs(truth.runs[2].obs_id)
    energy, offset = np.geomspace(0.1, 50, 40)[:, None], np.linspace(0.1, 2.4, 20)
    rate = obs.bkg.evaluate(energy=energy * u.TeV, offset=offset * u.deg).to_value("s-1 TeV-1 sr-1")
    np.testing.assert_allclose(rate, truth.rate(truth.runs[2].obs_id, energy, offset), rtol=0.006)


def test_prediction_of_gammapy_agrees_with_the_counts(bare):
    from gammapy.data import DataStore
    from gammapy.datasets import MapDataset
    from gammapy.makers import MapDatasetMaker
    from gammapy.maps import MapAxis, WcsGeom

    directory, truth = bare
    store = DataStore.from_dir(directory)
    counts = expected = 0.0
    for run in truth.runs[:4]:
        # gammapy evaluates the rate at the edges of the energy bins: they must be narrow beside the turn-on
        axis = MapAxis.from_energy_bounds("0.1 TeV", "30 TeV", nbin=40, per_decade=True)
        geom = WcsGeom.create(skydir=(run.ra_pnt, run.dec_pnt), width=4.0, binsz=0.1, axes=[axis])
        maker = MapDatasetMaker(selection=["counts", "background"])
        dataset = maker.run(MapDataset.create(geom), store.obs(run.obs_id, required_irf="full-enclosure"))
        counts, expected = counts + dataset.counts.data.sum(), expected + dataset.background.data.sum()
    assert abs(counts - expected) < 3 * np.sqrt(expected) + 0.005 * expected


def test_gammapy_is_not_needed():
    code = "import sys, dask_bkg.simulate; sys.exit('gammapy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- times and directions ---------------------------------------------------------------------------------------


def test_horizontal_coordinates_agree_with_astropy(archive):
    directory, truth = archive
    for run in truth.runs[:5]:
        events = read_events(directory, run.obs_id)[::100]
        meta = events.meta
        middle = Time(meta["DATE-AVG"], scale="utc")
        pointing = SkyCoord(meta["RA_PNT"], meta["DEC_PNT"], unit="deg")
        expected = pointing.transform_to(AltAz(obstime=middle, location=SITE))
        assert (
            SkyCoord(meta["AZ_PNT"], meta["ALT_PNT"], unit="deg", frame=expected.frame).separation(expected).deg
            < 0.02
        )
        frame = AltAz(obstime=times(events), location=SITE)
        expected = SkyCoord(events["RA"], events["DEC"], unit="deg").transform_to(frame)
        got = SkyCoord(events["AZ"], events["ALT"], unit="deg", frame=frame)
        assert got.separation(expected).deg.max() < 0.02


def test_camera_coordinates_are_those_of_the_field_of_view(archive):
    directory, truth = archive
    run = truth.runs[1]
    events = read_events(directory, run.obs_id)
    pointing = SkyCoord(run.ra_pnt, run.dec_pnt, unit="deg")
    field = SkyCoord(events["RA"], events["DEC"], unit="deg").transform_to(pointing.skyoffset_frame())
    np.testing.assert_allclose(events["Xoff"], -field.lon.wrap_at("180d").deg, atol=2e-4)
    np.testing.assert_allclose(events["Yoff"], field.lat.deg, atol=2e-4)


def test_runs_are_taken_in_dark_nights_of_two_seasons(tmp_path):
    truth = simulate_archive(tmp_path, 60, 10)
    index = Table.read(tmp_path / "obs-index.fits.gz")
    middle = Time(list(index["DATE-AVG"]), scale="utc")
    sun = get_sun(middle).transform_to(AltAz(obstime=middle, location=SITE))
    assert sun.alt.deg.max() < -14.5
    assert set(middle.ymdhms["year"]) == {2012, 2013, 2014}
    assert 5 < index["ZEN_PNT"].min() < 15
    assert 45 < index["ZEN_PNT"].max() < 55
    apart = np.diff(np.sort(middle.mjd)) * 86400
    assert apart.min() > 1680, "two runs at the same time"
    wobble = [
        SkyCoord(r.ra_pnt, r.dec_pnt, unit="deg").separation(SkyCoord(r.ra_obj, r.dec_obj, unit="deg")).deg
        for r in truth.runs
    ]
    np.testing.assert_allclose(wobble, np.where(np.arange(60) % 5 == 4, 0, 0.5), atol=1e-5)


# -- the known background ---------------------------------------------------------------------------------------

ENERGY_EDGES = np.geomspace(0.1, 10, 9)
OFFSET_EDGES = np.array([0, 0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5])


def expected_counts(truth: Truth, obs_id: int, energy_edges, offset_edges) -> np.ndarray:
    solid_angle = 2 * np.pi * -np.diff(np.cos(np.deg2rad(offset_edges)))
    rate = truth.mean_rate(obs_id, energy_edges, offset_edges)
    return rate * truth.run(obs_id).ontime * np.diff(energy_edges)[:, None] * solid_angle


def test_counts_follow_the_truth(bare):
    directory, truth = bare
    counts, expected = [], []
    for run in truth.runs:
        events = read_events(directory, run.obs_id)
        bins = ENERGY_EDGES.astype(np.float32), OFFSET_EDGES
        counts.append(np.histogram2d(events["ENERGY"], offsets(events), bins)[0])
        expected.append(expected_counts(truth, run.obs_id, ENERGY_EDGES, OFFSET_EDGES))
    counts, expected = np.array(counts), np.array(expected)
    enough = expected > 10
    assert enough.sum() > 300
    chi2 = ((counts - expected) ** 2 / expected)[enough].sum()
    assert 1e-3 < stats.chi2.sf(chi2, enough.sum()) < 1 - 1e-3
    # a common factor would hide in the chi2 of so many bins
    assert abs(counts.sum() - expected.sum()) < 3 * np.sqrt(expected.sum())
    # and so would a factor of a run
    pull = (counts.sum(axis=(1, 2)) - expected.sum(axis=(1, 2))) / np.sqrt(expected.sum(axis=(1, 2)))
    assert np.abs(pull).max() < 3.5


@pytest.mark.parametrize("number", [0, 4, 9])
def test_energies_and_offsets_follow_the_truth(bare, number):
    directory, truth = bare
    obs_id = truth.runs[number].obs_id
    events = read_events(directory, obs_id)
    energy, offset = np.geomspace(0.05, 100, 300), np.linspace(0, 3.5, 141)
    expected = expected_counts(truth, obs_id, energy, offset)
    for values, edges, share in (
        (np.log(events["ENERGY"]), np.log(energy), expected.sum(1)),
        (offsets(events), offset, expected.sum(0)),
    ):
        cumulative = np.append(0, np.cumsum(share)) / share.sum()
        assert stats.kstest(values, lambda x, e=edges, c=cumulative: np.interp(x, e, c), method="asymp").pvalue > 1e-3


def test_mean_rate_is_the_integral_of_the_rate(bare):
    truth = bare[1]
    obs_id = truth.runs[3].obs_id

    def integrand(log_energy, offset):
        energy = np.exp(log_energy)
        return truth.rate(obs_id, energy, offset) * energy * np.sin(np.deg2rad(offset))

    for energy, offset in (((0.1, 0.3), (0, 0.5)), ((0.05, 100), (0, 2.5)), ((1, 2), (2, 4))):
        limits = (*np.clip(offset, 0, 3.5), *np.log(energy))
        integral = dblquad(integrand, *limits, epsrel=1e-7)[0]
        solid_angle = np.diff(-np.cos(np.deg2rad(offset))).item() / np.deg2rad(1)
        mean = truth.mean_rate(obs_id, energy, offset)
        assert mean.shape == (1, 1)
        assert mean.item() == pytest.approx(integral / ((energy[1] - energy[0]) * solid_angle), rel=1e-5)


def test_rate_outside_the_instrument_is_zero(bare):
    truth = bare[1]
    assert (truth.rate(64001, [0.0, 0.049, 101.0], 0.5) == 0).all()
    assert truth.rate(64001, 1.0, 3.51) == 0
    assert truth.rate(64001, np.ones((3, 1)), np.ones(4)).shape == (3, 4)
    assert truth.rate(64001, 0.5, 1.0) > 0


def test_number_of_events_is_that_of_a_nominal_run(tmp_path):
    from dask_bkg.simulate import truth as model

    # 10 000 where the mirrors are as new as in the norm, at 30 deg and 28 minutes
    norm = model.run_norm(10_000, 30.0, 56201.0, 6.0) / model.mirror_level(56201.0)
    shape = dblquad(
        lambda x, r: (
            np.exp(x)
            * model.spectrum(np.exp(x), 30.0)
            * response.acceptance(np.exp(x), r, 30.0)
            * np.sin(np.deg2rad(r))
        ),
        0,
        3.5,
        np.log(0.05),
        np.log(100),
    )[0]
    assert norm * 1680 * shape * 2 * np.pi * np.deg2rad(1) == pytest.approx(10_000, rel=1e-4)
    truth = simulate_archive(tmp_path, 40, 100)
    mean = np.mean([r.norm for r in truth.runs if 25 < r.zenith < 35])
    assert mean == pytest.approx(norm / 100, rel=0.15)


def test_background_depends_on_zenith_time_and_night_sky():
    from dask_bkg.simulate.truth import mirror_level, run_norm, spectrum

    assert response.energy_threshold(50) > 2 * response.energy_threshold(20)
    assert spectrum(0.15, 50) < 0.05 * spectrum(0.15, 10)
    assert response.acceptance(1.0, 2.0, 50) > response.acceptance(1.0, 2.0, 10)
    assert response.acceptance(5.0, 2.0, 30) > response.acceptance(0.2, 2.0, 30)
    first, last, next_first, next_last = map(mirror_level, (56201, 56443, 56566, 56808))
    assert first > next_first > last > next_last
    assert run_norm(1, 30, 56300, 7.0) > run_norm(1, 30, 56300, 6.0)
    assert run_norm(1, 50, 56300, 6.0) > run_norm(1, 30, 56300, 6.0)


def test_threshold_cards_agree_with_the_effective_area(archive):
    from gammapy.irf import EffectiveAreaTable2D

    directory, truth = archive
    for run in truth.runs[:5]:
        aeff = EffectiveAreaTable2D.read(run_file(directory, run.obs_id), hdu="EFFECTIVE AREA")
        threshold = aeff.meta["LO_THRES"] * u.TeV
        area = aeff.evaluate(energy_true=u.Quantity([threshold, 50 * threshold]), offset=0.05 * u.deg)
        assert (area[0] / area[1]).to_value("") == pytest.approx(0.5, abs=0.02)
        assert threshold.value == pytest.approx(response.energy_threshold(run.zenith), abs=1e-6)
        assert aeff.meta["HI_THRES"] == 100


# -- stars and sources ------------------------------------------------------------------------------------------


def test_bright_stars_make_holes_and_faint_ones_do_not(archive, bare):
    bright = SkyCoord([(s.ra, s.dec) for s in archive[1].stars if s.v_mag < STAR_MAGNITUDE], unit="deg")
    near_star, kept = [], []
    for run in archive[1].runs:
        events, rest = read_events(bare[0], run.obs_id), read_events(archive[0], run.obs_id)
        place = SkyCoord(events["RA"], events["DEC"], unit="deg")
        near_star.append((place[:, None].separation(bright).deg < STAR_RADIUS).any(axis=1))
        kept.append(np.isin(events["TIME"], rest["TIME"]))
    near_star, kept = np.concatenate(near_star), np.concatenate(kept)
    assert near_star.sum() > 500
    # positions are rounded to float32: an event on the very edge of a circle may lie on its other side
    assert (~kept & ~near_star).sum() <= 2
    error = np.sqrt(STAR_LOSS * (1 - STAR_LOSS) / near_star.sum())
    assert abs(kept[near_star].mean() - (1 - STAR_LOSS)) < 4 * error


def test_excess_of_the_sources_is_flux_times_area_times_livetime(archive, bare):
    from gammapy.data import DataStore

    store, truth = DataStore.from_dir(archive[0]), archive[1]
    energy = np.geomspace(0.06, 60, 400)
    for source in truth.sources:
        expected = excess = 0.0
        widths = []
        for run in truth.runs:
            if run.object != source.name:
                continue
            offset = 0.5 * u.deg
            area = (
                store.obs(run.obs_id, required_irf=["aeff"])
                .aeff.evaluate(energy_true=energy * u.TeV, offset=offset)
                .to_value("cm2")
            )
            expected += run.livetime * np.trapezoid(source.flux * energy**-source.index * area.ravel(), energy)
            events, background = read_events(archive[0], run.obs_id), read_events(bare[0], run.obs_id)
            gamma = events[~np.isin(events["TIME"], background["TIME"])]
            distance = SkyCoord(gamma["RA"], gamma["DEC"], unit="deg").separation(
                SkyCoord(source.ra, source.dec, unit="deg")
            )
            assert (distance.deg < source.radius).mean() > 0.99
            excess += len(gamma)
            widths.append(np.mean(distance.deg**2) / 2)
        assert expected > 300
        assert abs(excess - expected) < 4 * np.sqrt(expected) + 0.03 * expected
        assert np.sqrt(np.mean(widths)) == pytest.approx(np.hypot(source.sigma, response.PSF_SIGMA), rel=0.05)


def test_sources_have_hundreds_of_events_in_a_run(tmp_path):
    rich, poor = tmp_path / "rich", tmp_path / "poor"
    truth = simulate_archive(rich, 2)
    simulate_archive(poor, 2, sources=False)
    gained = [len(read_events(rich, r.obs_id)) - len(read_events(poor, r.obs_id)) for r in truth.runs]
    assert min(gained) > 150


def test_one_target_has_one_source(tmp_path):
    truth = simulate_archive(tmp_path, 6, 100, targets=1)
    assert [s.name for s in truth.sources] == ["Sim Crab"]
    assert {r.object for r in truth.runs} == {"Sim Crab", "Sim Dark 1"}


# -- the truth and the arguments --------------------------------------------------------------------------------


def test_truth_is_read_back(archive):
    assert Truth.read(archive[0]) == archive[1]
    with pytest.raises(RunError, match=r"run 5 is not in the simulated archive.*64001 to 64015"):
        archive[1].run(5)


@pytest.mark.parametrize(
    "text", [None, "{", "{}", '{"seed": 1, "events": 2, "runs": [{}], "sources": [], "stars": []}']
)
def test_broken_truth_is_an_archive_error(tmp_path, text):
    if text is not None:
        (tmp_path / "truth.json").write_text(text)
    with pytest.raises(ArchiveError, match=r"truth\.json is not the truth of a simulated archive"):
        Truth.read(tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"runs": 0}, {"runs": 40_000}, {"events": 0}, {"events": np.inf}, {"seed": -1}, {"targets": 3}]
)
def test_wrong_arguments(tmp_path, wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} must be"):
        simulate_archive(tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()


def test_other_data_are_never_touched(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "run_064001.fits.gz").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(ArchiveError, match="not a simulated archive"):
            simulate_archive(tmp_path, 1, 10, overwrite=overwrite)
    assert (tmp_path / "data" / "run_064001.fits.gz").read_text() == "precious"
    assert len(list(tmp_path.rglob("*"))) == 2


def test_overwrite_replaces_the_older_archive(tmp_path):
    simulate_archive(tmp_path / "a", 3, 20)
    before = all_bytes(tmp_path / "a")
    with pytest.raises(ArchiveError, match="overwrite=True"):
        simulate_archive(tmp_path / "a", 1, 20)
    assert all_bytes(tmp_path / "a") == before
    simulate_archive(tmp_path / "a", 1, 20, 9, overwrite=True)
    simulate_archive(tmp_path / "b", 1, 20, 9)
    assert all_bytes(tmp_path / "a") == all_bytes(tmp_path / "b")


def test_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ArchiveError, match="cannot make"):
            simulate_archive(path, 1, 10)
