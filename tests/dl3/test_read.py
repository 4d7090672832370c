"""One file at the door: against gammapy's own readers, and with everything that GADF leaves optional left out."""

from __future__ import annotations

import gzip
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.time import Time
from gammapy.data import GTI, DataStore, EventList
from gammapy.irf import EffectiveAreaTable2D

from dask_bkg.dl3.headers import conditions, date_mjd
from dask_bkg.dl3.read import RunFile, read_run, read_threshold
from dask_bkg.errors import RunError
from dask_bkg.simulate import response


@pytest.fixture
def run(four_runs, run_path):
    return RunFile(64001, str(run_path(four_runs, 64001)))


# --- against gammapy ---------------------------------------------------------------------------------------


def test_events_and_times_are_those_of_gammapy(archive, run_path):
    directory, _ = archive
    store = DataStore.from_dir(directory)
    for obs_id in (64001, 64007, 64012):
        path = str(run_path(directory, obs_id))
        ours, events, obs = read_run(RunFile(obs_id, path)), EventList.read(path), store.obs(obs_id, required_irf=[])
        assert ours.ra == pytest.approx(events.radec.ra.deg, abs=1e-9)
        assert ours.dec == pytest.approx(events.radec.dec.deg, abs=1e-9)
        assert ours.energy == pytest.approx(events.energy.to_value("TeV"), rel=1e-12)
        pointing = obs.pointing.fixed_icrs
        expected = {
            "ontime": obs.observation_time_duration.to_value("s"),
            "livetime": obs.observation_live_time_duration.to_value("s"),
            "ra_pnt": pointing.ra.deg,
            "dec_pnt": pointing.dec.deg,
            "zenith": 90 - obs.events.table.meta["ALT_PNT"],
            "n_events": len(events.table),
        }
        assert {name: ours.numbers[name] for name in expected} == pytest.approx(expected, rel=1e-9)
        # an archive in UTC is taken as it is: a minute before TT, which no criterion of days can tell
        gti = obs.gti
        middle = (gti.time_start[0].tt.mjd + gti.time_stop[-1].tt.mjd) / 2
        assert ours.numbers["time"] == pytest.approx(middle, abs=70 / 86400)
        assert ours.object == events.table.meta["OBJECT"]
        assert ours.note == ""


def test_ontime_is_the_sum_of_several_intervals(run, edit_run):
    def three_intervals(hdus):
        start = hdus["GTI"].data["START"][0]
        gti = fits.FITS_rec.from_columns(hdus["GTI"].columns, nrows=3)
        gti["START"], gti["STOP"] = start + np.array([0, 100, 500]), start + np.array([50, 300, 501])
        hdus["GTI"].data = gti

    edit_run(run.path, three_intervals)
    assert read_run(run).numbers["ontime"] == pytest.approx(251.0)
    assert read_run(run).numbers["ontime"] == pytest.approx(GTI.read(run.path).time_sum.to_value("s"))


@pytest.mark.realdata
def test_real_run_is_read_as_gammapy_reads_it(gammapy_data):
    store = DataStore.from_dir(gammapy_data / "hess-dl3-dr1")
    obs_id = int(store.obs_ids[0])
    entry = store.hdu_table[(store.hdu_table["OBS_ID"] == obs_id) & (store.hdu_table["HDU_TYPE"] == "events")][0]
    path = gammapy_data / "hess-dl3-dr1" / str(entry["FILE_DIR"]).strip() / str(entry["FILE_NAME"]).strip()
    ours, obs = read_run(RunFile(obs_id, str(path))), store.obs(obs_id, required_irf=[])
    # the intervals are in whole seconds: three events of this run came before or after
    inside = obs.events.select_time(obs.gti.time_intervals[0])
    assert 0 <= len(obs.events.table) - len(inside.table) < 10
    assert sorted(ours.energy) == pytest.approx(sorted(inside.energy.to_value("TeV")))
    assert ours.numbers["ontime"] == pytest.approx(obs.observation_time_duration.to_value("s"))
    assert ours.numbers["livetime"] == pytest.approx(obs.observation_live_time_duration.to_value("s"), rel=1e-3)
    assert ours.numbers["time"] == pytest.approx(obs.tmid.tt.mjd, abs=70 / 86400)


# --- times of the events -----------------------------------------------------------------------------------


def test_times_go_with_their_events(run, edit_run):
    def change(hdus):
        hdus["EVENTS"].data["ENERGY"][::7] = np.nan
        gti = hdus["GTI"].data
        gti["STOP"][0] = (gti["START"][0] + gti["STOP"][0]) / 2

    edit_run(run.path, change)
    found, table = read_run(run), fits.getdata(run.path, "EVENTS")
    assert 0.8 * len(table) > found.ra.size > 0
    row = {ra: i for i, ra in enumerate(table["RA"].astype(float).tolist())}
    assert len(row) == len(table)
    assert found.times.events.tolist() == [table["TIME"][row[ra]] for ra in found.ra.tolist()]
    gti = fits.getdata(run.path, "GTI")
    assert (found.times.start == gti["START"]).all()
    assert (found.times.stop == gti["STOP"]).all()
    assert (found.times.reference, found.times.system) == ((53402.0, 0.0), "UTC")


def test_good_times_that_count_from_another_day_are_the_same(run, edit_run):
    before = read_run(run)

    def change(hdus):
        hdus["GTI"].header["MJDREFI"] -= 2
        for column in ("START", "STOP"):
            hdus["GTI"].data[column] += 2 * 86400

    edit_run(run.path, change)
    after = read_run(run)
    assert (after.times.events == before.times.events).all()
    for ours, expected in zip(after.times[1:], before.times[1:], strict=True):
        assert np.all(ours == expected)
    assert after.numbers["time"] == pytest.approx(before.numbers["time"], abs=1e-9)


def test_reference_and_system_of_the_times_where_one_header_has_none(run, edit_run):
    edit_run(run.path, lambda hdus: [hdus["EVENTS"].header.remove(key) for key in ("MJDREFI", "MJDREFF", "TIMESYS")])
    times = read_run(run).times
    assert (times.reference, times.system) == ((53402.0, 0.0), "UTC")
    edit_run(run.path, lambda hdus: [hdus["GTI"].header.remove(key) for key in ("MJDREFI", "TIMESYS")])
    times = read_run(run).times
    assert np.isnan(times.reference[0])
    assert times.system == "TT"  # as gammapy takes it


def test_a_run_without_times_is_read_all_the_same(run, edit_run):
    expected = read_run(run)

    def change(hdus):
        columns = [column for column in hdus["EVENTS"].columns if column.name != "TIME"]
        hdus["EVENTS"] = fits.BinTableHDU.from_columns(columns, hdus["EVENTS"].header, name="EVENTS")

    edit_run(run.path, change)
    found = read_run(run)
    assert found.times.events is None
    assert found.energy.size >= expected.energy.size
    assert found.numbers["ontime"] == expected.numbers["ontime"]


# --- energies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "factor"), [("GeV", 1e3), ("MeV", 1e6)])
def test_energy_in_other_units(run, edit_run, unit, factor):
    before = read_run(run).energy

    def change(hdus):
        hdus["EVENTS"].data["ENERGY"] *= factor
        hdus["EVENTS"].columns.change_unit("ENERGY", unit)

    edit_run(run.path, change)
    assert read_run(run).energy == pytest.approx(before, rel=1e-6)


def test_energy_without_unit_takes_eunit_and_a_wrong_unit_is_refused(run, edit_run):
    before = read_run(run).energy

    def change(hdus):
        hdus["EVENTS"].columns.change_unit("ENERGY", "")
        hdus["EVENTS"].header["EUNIT"] = "GeV"

    edit_run(run.path, change)
    assert read_run(run).energy == pytest.approx(before / 1000, rel=1e-6)
    edit_run(run.path, lambda hdus: hdus["EVENTS"].header.set("EUNIT", "Crab"))
    with pytest.raises(RunError, match=r"64001.*ENERGY.*'Crab'.*TeV"):
        read_run(run)


# --- livetime, dates, telescopes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cards", "fraction"),
    [
        ({"LIVETIME": None}, "DEADC"),
        ({"LIVETIME": 0.0}, "DEADC"),
        ({"LIVETIME": 1e5}, "DEADC"),  # the intervals were cut, the header was not
        ({"LIVETIME": None, "DEADC": None}, 1.0),
        ({"LIVETIME": 0.0, "DEADC": 0.0}, 1.0),
    ],
)
def test_livetime_that_is_not_told_is_derived(run, edit_run, cards, fraction):
    header = fits.getheader(run.path, "EVENTS")

    def change(hdus):
        for key, value in cards.items():
            hdus["EVENTS"].header.pop(key) if value is None else hdus["EVENTS"].header.set(key, value)

    edit_run(run.path, change)
    numbers = read_run(run).numbers
    fraction = header[fraction] if isinstance(fraction, str) else fraction
    assert numbers["livetime"] == pytest.approx(numbers["ontime"] * fraction)


def test_time_from_mission_time():
    header = {"MJDREFI": 53402, "MJDREFF": 0.25, "TSTART": 0.0, "TSTOP": 86400.0, "DATE-AVG": "2000-01-01T00:00:00"}
    assert conditions(header)["time"] == pytest.approx(53402.75)
    row = {"TSTART": 0.0, "TSTOP": 86400.0}
    assert conditions(row, {"MJDREFI": 53402, "MJDREFF": 0.25})["time"] == pytest.approx(53402.75)


@pytest.mark.parametrize(
    ("header", "utc"),
    [
        ({"DATE-AVG": "2013-01-02T03:04:05", "DATE-OBS": "2000-01-01"}, "2013-01-02T03:04:05"),
        ({"DATE-AVG": "2013-01-02 03:04:05"}, "2013-01-02T03:04:05"),
        ({"DATE-OBS": "2004-03-26", "TIME-OBS": "02:57:47.1"}, "2004-03-26T02:57:47.1"),
        ({"DATE-OBS": "2004-03-26T02:57:47", "TIME-OBS": "11:11:11"}, "2004-03-26T02:57:47"),
        ({"DATE-OBS": "2004-03-26"}, "2004-03-26T00:00:00"),
        ({"DATE-AVG": "unknown", "DATE-OBS": "2004-03-26"}, "2004-03-26T00:00:00"),
    ],
)
def test_time_from_dates(header, utc):
    expected = Time(utc, scale="utc").mjd
    assert date_mjd(header) == pytest.approx(expected, abs=1e-9)
    assert conditions({**header, "TSTART": 0.0, "TSTOP": 10.0})["time"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("header", [{}, {"TIME-OBS": "01:00:00"}, {"DATE-OBS": None}, {"DATE-AVG": "yesterday"}])
def test_no_date_is_nan(header):
    assert np.isnan(conditions(header)["time"])


def test_date_where_the_reference_is_missing_in_the_file(run, edit_run):
    def change(hdus):
        for hdu in ("EVENTS", "GTI"):
            for key in ("MJDREFI", "MJDREFF"):
                hdus[hdu].header.pop(key)

    expected = Time(fits.getheader(run.path, "EVENTS")["DATE-AVG"], scale="utc").mjd
    edit_run(run.path, change)
    assert read_run(run).numbers["time"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ({"N_TELS": 3, "TELLIST": "1,2,3,4"}, 3),
        ({"TELLIST": "1,2,4"}, 3),
        ({"TELLIST": "1-4"}, np.nan),
        ({"TELLIST": "CT1, CT2, CT2"}, 2),
        ({"TELLIST": "7"}, 1),
        ({"TELLIST": ""}, np.nan),
        ({}, np.nan),
    ],
)
def test_number_of_telescopes(header, expected):
    assert conditions(header)["n_tels"] == pytest.approx(expected, nan_ok=True)


def test_zenith_from_altitude_or_zenith():
    assert conditions({"ALT_PNT": 70.0, "ZEN_PNT": 1.0})["zenith"] == 20.0
    assert conditions({"ZEN_PNT": 25.0})["zenith"] == 25.0
    assert np.isnan(conditions({"ALT_PNT": "undefined"})["zenith"])


# --- threshold ---------------------------------------------------------------------------------------------


def test_threshold_is_lo_thres_where_it_is_given(run, edit_run):
    edit_run(run.path, lambda hdus: hdus["EFFECTIVE AREA"].header.set("LO_THRES", 0.77))
    assert read_threshold(run.path, "EFFECTIVE AREA") == 0.77


@pytest.mark.parametrize("card", [None, 0.0, -1.0])
def test_threshold_from_a_tenth_of_the_effective_area(run, edit_run, card):
    def change(hdus):
        header = hdus["EFFECTIVE AREA"].header
        header.pop("LO_THRES") if card is None else header.set("LO_THRES", card)

    edit_run(run.path, change)
    threshold = read_threshold(run.path, "EFFECTIVE AREA")
    assert read_threshold(run.path) == threshold  # the HDU found by its class
    table = EffectiveAreaTable2D.read(run.path, hdu="EFFECTIVE AREA")
    energy = table.axes["energy_true"].center
    offset = 0.5 * table.axes["offset"].unit
    largest = table.evaluate(energy_true=energy, offset=offset).max()
    # gammapy interpolates in ln E as we do: at the threshold its area is a tenth of the largest, below it is less
    around = np.array([0.9, 0.99, 1.0]) * threshold * energy.unit
    share = (table.evaluate(energy_true=around, offset=offset) / largest).to_value("")
    assert share[2] == pytest.approx(0.1, rel=1e-5)
    assert share[0] < share[1] < 0.1
    assert read_run(run).numbers["e_thres"] == threshold


def test_threshold_and_integral_are_those_of_the_formula(archive, run_path):
    """The effective area that was simulated: to a tenth of the width that the threshold is compared with."""
    directory, truth = archive
    for true in truth.runs:
        numbers = read_run(RunFile(true.obs_id, str(run_path(directory, true.obs_id)))).numbers
        energy = np.geomspace(*response.ENERGY_TRUE_RANGE, 20001)
        area = response.effective_area(energy, 0.5, true.zenith)
        threshold = np.exp(np.interp(0.1, (area / area.max())[: area.argmax()], np.log(energy)[: area.argmax()]))
        assert np.log(numbers["e_thres"] / threshold) == pytest.approx(0, abs=0.025)
        integral = np.trapezoid(area * energy**-2.7, energy)
        assert np.log(numbers["aeff_integral"] / integral) == pytest.approx(0, abs=0.006)
        assert numbers["lo_thres"] == pytest.approx(response.energy_threshold(true.zenith), abs=1e-6)


@pytest.mark.realdata
def test_threshold_and_integral_of_real_runs(gammapy_data):
    for path in sorted(gammapy_data.glob("hess-dl3-dr1/data/*.fits.gz"))[::20]:
        numbers = read_run(RunFile(1, str(path))).numbers
        table = EffectiveAreaTable2D.read(path, hdu="AEFF")
        energy = np.geomspace(0.05, 90, 3000)
        area = table.evaluate(energy_true=energy * u.TeV, offset=0.5 * u.deg).to_value("m2")
        assert numbers["lo_thres"] == fits.getheader(path, "AEFF")["LO_THRES"] == read_threshold(str(path))
        assert numbers["e_thres"] == pytest.approx(energy[np.argmax(area >= 0.1 * area.max())], rel=0.01)
        assert numbers["aeff_integral"] == pytest.approx(np.trapezoid(area * energy**-2.7, energy), rel=0.01)


@pytest.mark.parametrize(
    ("unit", "factor"), [("cm2", 1e4), ("cm^2", 1e4), ("m**2", 1.0), ("km2", 1e-6), ("barn", 1e28), ("", 1.0)]
)
def test_effective_area_in_other_units(run, edit_run, unit, factor):
    before = read_run(run).numbers

    def change(hdus):
        hdu = hdus["EFFECTIVE AREA"]
        hdu.data["EFFAREA"] *= factor
        hdu.data["ENERG_LO"] *= 1e3
        hdu.data["ENERG_HI"] *= 1e3
        for name, new in (("EFFAREA", unit), ("ENERG_LO", "GeV"), ("ENERG_HI", "GeV")):
            hdu.columns.change_unit(name, new)

    edit_run(run.path, change)
    after = read_run(run).numbers
    for name in ("e_thres", "aeff_integral"):
        assert after[name] == pytest.approx(before[name], rel=1e-5)


def test_the_threshold_card_where_it_is(run, edit_run):
    def declared(hdu, key, value):
        def change(hdus):
            hdus["EFFECTIVE AREA"].header.pop("LO_THRES", None)
            hdus[hdu].header[key] = value

        edit_run(run.path, change)
        return read_run(run).numbers["lo_thres"]

    assert np.isnan(declared("EFFECTIVE AREA", "LO_THRES", -1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # astropy says that the keyword is long
        assert declared("EVENTS", "SAFE_ENERGY_LO", 0.4) == 0.4
        assert declared("EFFECTIVE AREA", "SAFE_ENERGY_LO", 0.5) == 0.5


AREA = ("e_thres", "aeff_integral")


def test_effective_area_of_another_file(run, edit_run, tmp_path):
    before, other = read_run(run), str(tmp_path / "aeff.fits.gz")
    with fits.open(run.path) as hdus:
        fits.HDUList([fits.PrimaryHDU(), hdus["EFFECTIVE AREA"].copy()]).writeto(other)
    edit_run(run.path, lambda hdus: hdus.pop("EFFECTIVE AREA"))
    for hdu in ("", "effective area"):
        after = read_run(run._replace(aeff_path=other, aeff_hdu=hdu))
        assert after.numbers == before.numbers
        assert after.fingerprint == before.fingerprint
    for path, hdu in ((str(tmp_path / "nowhere.fits"), ""), (other, "AEFF"), ("", ""), (run.path, "AEFF")):
        numbers = read_run(run._replace(aeff_path=path, aeff_hdu=hdu)).numbers
        assert np.isnan([numbers[name] for name in (*AREA, "lo_thres")]).all()
        assert numbers["n_events"] == before.numbers["n_events"]


def no_table(hdus):
    hdus["EFFECTIVE AREA"] = fits.ImageHDU(np.zeros((2, 2)), hdus["EFFECTIVE AREA"].header, name="EFFECTIVE AREA")


def no_area(hdus):
    hdus["EFFECTIVE AREA"].data["EFFAREA"][:] = np.nan


@pytest.mark.parametrize("damage", [no_table, no_area, lambda hdus: hdus.pop("EFFECTIVE AREA")])
def test_an_effective_area_that_gives_no_threshold_is_an_error_of_the_run(run, edit_run, damage):
    def change(hdus):
        hdus["EFFECTIVE AREA"].header.pop("LO_THRES")
        damage(hdus)

    edit_run(run.path, change)
    with pytest.raises(RunError, match="run 64001"):
        read_threshold(run.path, "EFFECTIVE AREA", 64001)


def unknown_unit(hdus):
    hdus["EFFECTIVE AREA"].columns.change_unit("EFFAREA", "Crab")


@pytest.mark.parametrize("damage", [no_table, no_area, unknown_unit])
def test_an_effective_area_that_says_nothing_leaves_the_run_as_it_is(run, edit_run, damage):
    before = read_run(run)
    edit_run(run.path, damage)
    after = read_run(run)
    assert (after.energy == before.energy).all()
    assert np.isnan([after.numbers[name] for name in AREA]).all()
    assert {**after.numbers, **dict.fromkeys(AREA)} == {**before.numbers, **dict.fromkeys(AREA)}


# --- where the HDUs are ------------------------------------------------------------------------------------


def test_good_times_in_a_file_of_their_own(run, edit_run, tmp_path):
    expected = read_run(run).numbers["ontime"]
    other = str(tmp_path / "gti.fits")
    with fits.open(run.path) as hdus:
        fits.HDUList([fits.PrimaryHDU(), hdus["GTI"].copy()]).writeto(other)
    edit_run(run.path, lambda hdus: hdus.pop("GTI"))
    assert read_run(run._replace(gti_path=other, gti_hdu="gti")).numbers["ontime"] == expected
    with pytest.raises(RunError, match="no GTI HDU"):
        read_run(run)


def test_hdus_are_found_by_name_or_by_class(run, edit_run):
    expected = read_run(run).energy

    def rename(hdus):
        hdus["EVENTS"].name, hdus["GTI"].name = "SELECTED", "TIMES"

    edit_run(run.path, rename)
    assert (read_run(run._replace(events_hdu="selected", gti_hdu="TIMES")).energy == expected).all()
    assert (read_run(run).energy == expected).all()  # by HDUCLAS1
    with pytest.raises(RunError, match=r"64001.*EVENTS HDU"):
        read_run(run._replace(events_hdu="EVENTS"))


# --- broken files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".fits", ".fits.gz"])
def test_a_cut_file_gives_all_events_or_an_error(run, tmp_path, suffix):
    packed = Path(run.path).read_bytes()
    data = gzip.decompress(packed)[:45000] if suffix == ".fits" else packed
    events, path = read_run(run).ra.size, tmp_path / f"cut{suffix}"
    outcomes, messages = set(), []
    for size in range(0, len(data), 509):
        path.write_bytes(data[:size])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                outcomes.add(read_run(RunFile(64001, str(path))).ra.size)
            except RunError as error:
                messages.append(str(error))
                outcomes.add("error")
    assert all("run 64001" in text and str(path) in text and "copy it again" in text for text in messages)
    # a packed file has a check sum at its end, of a plain one all that is needed may be there
    assert outcomes == ({events, "error"} if suffix == ".fits" else {"error"})


@pytest.mark.slow
def test_file_descriptors_do_not_pile_up(run, tmp_path):
    packed = Path(run.path).read_bytes()
    broken, plain = tmp_path / "broken.fits.gz", tmp_path / "plain.fits"
    broken.write_bytes(packed[:5000])
    plain.write_bytes(gzip.decompress(packed))
    files = [run, RunFile(64001, str(plain))]
    read_run(run)
    before = len(os.listdir("/proc/self/fd"))
    kept = [read_run(file) for file in files * 150]  # also while what was read is held
    for _ in range(30):
        with pytest.raises(RunError):
            read_run(RunFile(1, str(broken)))
    assert len(kept) == 300
    assert len(os.listdir("/proc/self/fd")) <= before + 1
