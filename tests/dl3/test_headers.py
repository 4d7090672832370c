"""Where a run was taken, what was above it, and which number is NaN because nothing says it."""

from __future__ import annotations

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import AltAz, EarthLocation, SkyCoord
from astropy.io import fits
from astropy.time import Time
from astropy.utils import iers

from dask_bkg import schema
from dask_bkg.dl3.headers import conditions
from dask_bkg.dl3.read import RunFile, read_run
from dask_bkg.sky import fov, horizon

SITES = {
    "VERITAS": (-110.952, 31.675, 1268.0),
    "HESS": (16.5002, -23.2718, 1835.0),
    "CTAO North": (-17.89, 28.76, 2147),
}
AT_HORIZON = 0.02
"""What an angle may be wrong at the horizon [deg]; nearer to the zenith the same shift is a larger angle."""


@pytest.fixture(autouse=True)
def _offline():
    with iers.conf.set_temp("auto_download", False), iers.conf.set_temp("iers_degraded_accuracy", "warn"):
        yield


def astropys_zenith(mjd, site, scale: str) -> SkyCoord:
    """The zenith of a site at a time, ICRS."""
    lon, lat, height = site
    where = EarthLocation.from_geodetic(lon, lat, height)
    frame = AltAz(obstime=Time(mjd, format="mjd", scale=scale), location=where)
    return SkyCoord(0 * u.deg, 90 * u.deg, frame=frame).icrs


def turned(difference) -> np.ndarray:
    """Difference of angles [deg] the short way round."""
    return np.abs((np.asarray(difference) + 180) % 360 - 180)


# --- the zenith --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("scale", ["utc", "tt"])
def test_the_zenith_is_where_astropy_has_it(site, scale):
    mjd = np.linspace(52000, 60900, 40) + np.linspace(0, 1, 40)
    expected = astropys_zenith(mjd, SITES[site], scale)
    lon, lat, _ = SITES[site]
    ours = [horizon.zenith_position(horizon.to_utc(day, scale.upper()), lon, lat) for day in mjd]
    assert SkyCoord(ours, unit="deg").separation(expected).deg.max() < 0.03


def test_leap_seconds_are_those_of_astropy():
    for mjd in (51544.0, 53734.5, 53736.5, 54833.0, 56110.0, 57205.0, 57754.5, 60000.0):
        for scale in ("tt", "tai", "tdb"):
            expected = Time(mjd, format="mjd", scale=scale).utc.mjd
            assert (horizon.to_utc(mjd, scale.upper()) - expected) * 86400 == pytest.approx(0, abs=0.01)
        assert horizon.to_utc(mjd, "UTC") == mjd


def test_position_angle_is_that_of_astropy():
    rng = np.random.default_rng(1)
    lon, lat = rng.uniform(0, 360, (2, 200)), np.rad2deg(np.arcsin(rng.uniform(-1, 1, (2, 200))))
    expected = SkyCoord(lon[0], lat[0], unit="deg").position_angle(SkyCoord(lon[1], lat[1], unit="deg")).deg
    ours = [horizon.position_angle(*each) for each in zip(lon[0], lat[0], lon[1], lat[1], strict=True)]
    assert turned(ours - expected).max() < 1e-9


def test_the_parallactic_angle_is_that_of_astropy_all_over_the_sky():
    site, mjd = SITES["HESS"], 60000.3
    rng = np.random.default_rng(2)
    frame = AltAz(obstime=Time(mjd, format="mjd"), location=EarthLocation.from_geodetic(*site))
    zenith, azimuth = rng.uniform(5, 65, 60), rng.uniform(0, 360, 60)
    sky = SkyCoord(azimuth * u.deg, (90 - zenith) * u.deg, frame=frame).icrs
    expected = sky.position_angle(astropys_zenith(mjd, site, "utc")).deg
    header = {"MJDREFI": 60000, "TSTART": 0.3 * 86400 - 900, "TSTOP": 0.3 * 86400 + 900, "TIMESYS": "UTC"}
    header |= {"GEOLON": site[0], "GEOLAT": site[1]}
    header |= {"ALT_PNT": 90 - zenith, "AZ_PNT": azimuth, "RA_PNT": sky.ra.deg, "DEC_PNT": sky.dec.deg}

    def angles(**other):
        rows = [{key: value[i] if np.ndim(value) else value for key, value in header.items()} for i in range(60)]
        return np.array([conditions({**row, **other})["parallactic"] for row in rows])

    by_time, by_place = angles(), angles(GEOLON=None)
    assert turned(by_time - expected).max() < 0.1
    # the pole of date is 0.13 deg from that of ICRS
    assert turned(by_place - expected).max() < 0.6
    assert np.median(turned(by_place - expected)) < 0.2


def test_a_time_that_does_not_go_with_the_zenith_angle_is_not_believed():
    lon, lat, _ = SITES["VERITAS"]
    ra, dec = horizon.zenith_position(60000.3, lon, lat)
    header = {"MJDREFI": 60000, "TSTART": 0.3 * 86400, "TSTOP": 0.3 * 86400, "TIMESYS": "UTC", "GEOLAT": lat}
    header |= {"RA_PNT": ra, "DEC_PNT": dec - 20, "ALT_PNT": 70.0, "AZ_PNT": 180.0}
    assert turned(conditions({**header, "GEOLON": lon})["parallactic"]) < 0.01
    for wrong in (-lon, lon + 20):  # positive to the west, or somewhere else
        assert turned(conditions({**header, "GEOLON": wrong})["parallactic"]) < 0.01
        alone = {key: value for key, value in header.items() if key not in ("ALT_PNT", "AZ_PNT")}
        assert turned(conditions({**alone, "GEOLON": wrong})["parallactic"]) > 10


def test_the_parallactic_angle_of_a_simulated_run_is_that_of_the_middle_of_its_good_time(archive, run_path):
    directory, truth = archive
    for run in truth.runs:
        numbers = read_run(RunFile(run.obs_id, str(run_path(directory, run.obs_id)))).numbers
        zenith = astropys_zenith(53402 + (run.gti[0][0] + run.gti[-1][1]) / 2 / 86400, SITES["VERITAS"], "utc")
        expected = SkyCoord(run.ra_pnt, run.dec_pnt, unit="deg").position_angle(zenith).deg
        assert turned(numbers["parallactic"] - expected) < AT_HORIZON / np.sin(np.deg2rad(run.zenith))


@pytest.mark.realdata
def test_the_parallactic_angle_of_real_runs(gammapy_data):
    for path in sorted(gammapy_data.glob("hess-dl3-dr1/data/*.fits.gz"))[::12]:
        run = read_run(RunFile(1, str(path)))
        numbers = run.numbers
        site = [numbers[name] for name in ("site_lon", "site_lat", "site_height")]
        assert site == pytest.approx(SITES["HESS"], abs=0.01)
        zenith = astropys_zenith(numbers["time"], site, "tt")
        pointing = SkyCoord(numbers["ra_pnt"], numbers["dec_pnt"], unit="deg")
        distance = float(pointing.separation(zenith).deg)
        difference = turned(numbers["parallactic"] - pointing.position_angle(zenith).deg)
        assert difference < AT_HORIZON / np.sin(np.deg2rad(distance))
        assert distance == pytest.approx(numbers["zenith"], abs=1)
        assert run.telescopes.startswith("1,2")


# --- cards -------------------------------------------------------------------------------------------------


def test_the_site_from_the_cards_of_fits_and_of_gadf():
    geo, obsgeo = {"GEOLON": 1.0, "GEOLAT": 2.0, "ALTITUDE": 3.0}, {"OBSGEO-L": 4.0, "OBSGEO-B": 5.0, "OBSGEO-H": 6.0}
    names = ("site_lon", "site_lat", "site_height")

    def site(header, reference=None):
        return [conditions(header, reference)[name] for name in names]

    assert site(geo) == site({}, geo) == [1, 2, 3]
    assert site(obsgeo) == site({**geo, **obsgeo}) == [4, 5, 6]
    assert site({"GEOLON": 1.0, "OBSGEO-B": 5.0, "ALTITUDE": "high"}, {"ALTITUDE": 7}) == [1, 5, 7]
    assert np.isnan(site({})).all()


def test_every_number_of_a_simulated_run_is_what_was_put_in(archive, run_path):
    directory, truth = archive
    for run in truth.runs:
        read = read_run(RunFile(run.obs_id, str(run_path(directory, run.obs_id))))
        assert set(read.numbers) == set(schema.RUN_NUMBERS)
        expected = {
            "muon_efficiency": run.muon_efficiency, "ra_obj": run.ra_obj, "dec_obj": run.dec_obj, "nsb": run.nsb,
            "n_tels": len(run.tels), "zenith": run.zenith, "azimuth": run.az_pnt,
        }  # fmt: skip
        expected |= dict(zip(("site_lon", "site_lat", "site_height"), SITES["VERITAS"], strict=True))
        assert {name: read.numbers[name] for name in expected} == pytest.approx(expected)
        assert read.telescopes == ",".join(map(str, run.tels))
        assert read.numbers["ln_e_q25"] == pytest.approx(np.quantile(np.log(read.energy), 0.25), abs=1e-6)
        assert read.numbers["ln_e_max"] == pytest.approx(np.log(read.energy.max()))
        offset = fov.separation(read.ra, read.dec, read.numbers["ra_pnt"], read.numbers["dec_pnt"])
        assert read.numbers["off_q90"] == pytest.approx(np.quantile(offset, 0.9), rel=0.05)
        assert read.numbers["lopsided"] < 0.2
        assert np.isfinite(list(read.numbers.values())).all()


def test_a_run_that_says_next_to_nothing_has_nan_for_the_rest(four_runs, run_path, edit_run):
    """What is left are positions, energies and times, and all that follows from them."""
    path, kept = run_path(four_runs, 64001), ("RA_PNT", "DEC_PNT", "EXTNAME", "EUNIT", "HDUCLAS1")

    def forget(hdus):
        for name in [hdu.name for hdu in hdus][3:]:
            hdus.pop(name)
        for hdu in ("EVENTS", "GTI"):
            cards = [c.keyword for c in hdus[hdu].header.cards]
            structure = tuple(
                c
                for c in cards
                if c[:5] in ("XTENS", "BITPI", "NAXIS", "PCOUN", "GCOUN", "TFIEL", "TTYPE", "TFORM", "TUNIT")
            )
            for card in set(cards) - set(structure) - set(kept):
                hdus[hdu].header.pop(card)

    edit_run(path, forget)
    assert len(fits.getheader(path, "EVENTS")) < 45
    read = read_run(RunFile(64001, str(path)))
    known = {"ontime", "livetime", "ra_pnt", "dec_pnt", "ln_e_q25", "ln_e_max", "off_q90", "lopsided", "n_events"}
    assert {name for name, value in read.numbers.items() if np.isfinite(value)} == known
    assert set(read.numbers) == set(schema.RUN_NUMBERS)
    assert (read.object, read.telescopes, read.note) == ("", "", "")
