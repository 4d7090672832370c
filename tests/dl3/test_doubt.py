"""What is read is doubted: each thing a card or unit says is honoured, or refused by its name, never ignored."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.time import Time

from dask_bkg.dl3.headers import conditions
from dask_bkg.dl3.intervals import check_intervals, good_rows
from dask_bkg.dl3.read import RunFile, read_run
from dask_bkg.dl3.times import Clock, shift_between
from dask_bkg.dl3.units import factor
from dask_bkg.errors import RunError


@pytest.fixture
def run(four_runs, run_path):
    return RunFile(64001, str(run_path(four_runs, 64001)))


def scaled(hdu: str, unit: str, scale: float, *names: str):
    """Columns written in another unit."""

    def change(hdus):
        for name in names:
            column = hdus[hdu].data[name].astype(float) * scale
            hdus[hdu].columns.del_col(name)
            new = fits.ColDefs([fits.Column(name, "D", unit=unit, array=column)])
            table = fits.BinTableHDU.from_columns(hdus[hdu].columns + new, header=hdus[hdu].header, name=hdu)
            hdus[hdu] = table

    return change


def cards(hdu: str, **values):
    """Header cards changed; None removes one."""

    def change(hdus):
        for card, value in values.items():
            hdus[hdu].header.remove(card, ignore_missing=True)
            if value is not None:
                hdus[hdu].header[card] = value

    return change


def assert_same(run, before):
    after = read_run(run)
    assert after.ra == pytest.approx(before.ra, abs=1e-9)
    assert after.dec == pytest.approx(before.dec, abs=1e-9)
    assert after.energy == pytest.approx(before.energy, rel=1e-6)
    assert after.numbers["ontime"] == pytest.approx(before.numbers["ontime"], rel=1e-6)
    assert after.numbers["time"] == pytest.approx(before.numbers["time"], abs=1e-6)


# -- honoured --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        scaled("EVENTS", "rad", np.pi / 180, "RA", "DEC"),
        scaled("EVENTS", "GeV", 1e3, "ENERGY"),
        scaled("EVENTS", "MeV", 1e6, "ENERGY"),
        scaled("EVENTS", "ms", 1e3, "TIME"),
        scaled("GTI", "d", 1 / 86400, "START", "STOP"),
        scaled("GTI", "min", 1 / 60, "START", "STOP"),
    ],
    ids=["radians", "GeV", "MeV", "milliseconds", "days", "minutes"],
)
def test_units_of_columns_are_honoured(run, edit_run, change):
    before = read_run(run)
    edit_run(run.path, change)
    assert_same(run, before)


def test_intervals_in_another_time_system_are_the_same_instants(run, edit_run):
    before = read_run(run)

    def change(hdus):
        header = hdus["GTI"].header
        mjd = header["MJDREFI"] + header["MJDREFF"]
        shift = (Time(mjd, format="mjd", scale=header["TIMESYS"].lower()) - Time(mjd, format="mjd", scale="tt")).sec
        for name in ("START", "STOP"):
            hdus["GTI"].data[name] += shift
        for card in ("TSTART", "TSTOP"):
            if card in header:
                header[card] += shift
        header["TIMESYS"] = "TT"

    edit_run(run.path, change)
    assert read_run(run).energy.size == before.energy.size
    assert read_run(run).numbers["ontime"] == pytest.approx(before.numbers["ontime"])


def test_one_card_of_the_reference_is_as_good_as_two(run, edit_run):
    before = read_run(run)

    def change(hdus):
        for hdu in (hdus["EVENTS"], hdus["GTI"]):
            hdu.header["MJDREF"] = hdu.header["MJDREFI"] + hdu.header["MJDREFF"]
            del hdu.header["MJDREFI"], hdu.header["MJDREFF"]

    edit_run(run.path, change)
    assert_same(run, before)


@pytest.mark.parametrize("first", ["TT", "UTC", "TAI"])
@pytest.mark.parametrize("second", ["TT", "UTC", "TAI"])
def test_shift_between_references_is_that_of_astropy(first, second):
    one, other = (51910.0, 0.00074287037), (52000.0, 0.25)
    expected = Time(*other, format="mjd", scale=second.lower()) - Time(*one, format="mjd", scale=first.lower())
    assert shift_between(Clock(one, first), Clock(other, second)) == pytest.approx(expected.sec, abs=1e-4)


def test_names_in_capitals_win_over_others(run, edit_run):
    before = read_run(run)

    def change(hdus):
        events = hdus["EVENTS"]
        more = [fits.Column(n.lower(), "D", array=np.radians(events.data[n].astype(float))) for n in ("RA", "DEC")]
        columns = fits.ColDefs(more) + events.columns
        hdus["EVENTS"] = fits.BinTableHDU.from_columns(columns, header=events.header, name="EVENTS")

    edit_run(run.path, change)
    assert_same(run, before)


def test_null_of_an_integer_column_is_no_number(run, edit_run):
    before = read_run(run)

    def change(hdus):
        events = hdus["EVENTS"]
        mev = np.round(events.data["ENERGY"].astype(float) * 1e6).astype(np.int64)
        mev[0] = -1
        columns = [c for c in events.columns if c.name != "ENERGY"]
        columns.append(fits.Column("ENERGY", "K", unit="MeV", null=-1, array=mev))
        hdus["EVENTS"] = fits.BinTableHDU.from_columns(columns, header=events.header, name="EVENTS")

    edit_run(run.path, change)
    after = read_run(run)
    assert after.energy.size == before.energy.size - 1
    assert "without a position or an energy" in after.note


# -- refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (cards("EVENTS", OBS_MODE="DRIFT"), "OBS_MODE = 'DRIFT'"),
        (cards("EVENTS", RADECSYS="FK4"), "'FK4'"),
        (cards("EVENTS", RADECSYS="FK5", EQUINOX=1950.0), "EQUINOX = 1950"),
        (cards("EVENTS", RA_PNT="05:34:31.9"), "RA_PNT = '05:34:31.9'"),
        (cards("EVENTS", TSTART="yesterday"), "TSTART = 'yesterday'"),
        (cards("EVENTS", TIMESYS="TCB"), "TIMESYS = 'TCB'"),
        (cards("GTI", TIMESYS="LOCAL"), "TIMESYS = 'LOCAL'"),
        (cards("EVENTS", TIMEREF="BARYCENTER"), "TIMEREF = 'BARYCENTER'"),
        (cards("EVENTS", TIMEZERO=100.0), "TIMEZERO = 100"),
        (scaled("EVENTS", "Crab", 1.0, "ENERGY"), "column ENERGY .*'Crab'"),
        (scaled("EVENTS", "", 1.0, "RA"), "column RA .*without a unit"),
        (scaled("GTI", "m", 1.0, "START"), "column START .*'m'"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_by_name(run, edit_run, change, said):
    edit_run(run.path, change)
    with pytest.raises(RunError, match=rf"run 64001: .*{said}"):
        read_run(run)


@pytest.mark.parametrize("what", ["text", "array", "twice"])
def test_columns_that_are_no_single_numbers(run, edit_run, what):
    def change(hdus):
        events = hdus["EVENTS"]
        energy = events.data["ENERGY"].astype(float)
        others = [c for c in events.columns if c.name != "ENERGY"]
        new = {
            "text": [fits.Column("ENERGY", "8A", unit="TeV", array=np.full(energy.size, "1.5"))],
            "array": [fits.Column("ENERGY", "2D", unit="TeV", array=np.stack([energy, energy], axis=1))],
            "twice": [fits.Column("ENERGY", "D", unit="TeV", array=energy), fits.Column("E2", "D", array=energy)],
        }[what]
        hdus["EVENTS"] = fits.BinTableHDU.from_columns([*others, *new], header=events.header, name="EVENTS")

    edit_run(run.path, change)
    raw = gzip.decompress(Path(run.path).read_bytes())
    Path(run.path).write_bytes(raw.replace(b"'E2      '", b"'ENERGY  '"))  # astropy writes no name twice
    with pytest.raises(RunError, match=r"run 64001: .*ENERGY"):
        read_run(run)


@pytest.mark.parametrize(
    ("start", "stop", "said"),
    [
        (0.0, None, r"more than a day|TSTART"),
        (None, 3e38, r"more than a day"),
        (None, 5000.0, r"ONTIME|TSTOP"),
    ],
)
def test_good_time_that_the_file_contradicts(run, edit_run, start, stop, said):
    def change(hdus):
        data = hdus["GTI"].data
        if start is not None:
            data["START"][0] = start
        if stop is not None:
            data["STOP"][-1] = max(data["STOP"][-1] + stop, stop)

    edit_run(run.path, change)
    with pytest.raises(RunError, match=rf"run 64001: .*good time intervals.*({said})"):
        read_run(run)


def test_a_file_larger_than_the_limit_is_not_unpacked(run):
    with pytest.raises(RunError, match=r"too large \(it has more than 1000 bytes.*max_file_size"):
        read_run(run._replace(limit=1000))


def test_a_condition_that_is_no_number_is_unknown_with_a_remark(run, edit_run):
    edit_run(run.path, cards("EVENTS", NSBLEVEL="bright", MUONEFF="N/A"))
    read = read_run(run)
    assert np.isnan(read.numbers["nsb"])
    assert read.note == "NSBLEVEL = 'bright' is no number and left unknown"


# -- remarked on, or refused where it is too much --------------------------------------------------------------


def rows(hdu: str, choose):
    """A table with the rows that ``choose`` picks, by their number."""

    def change(hdus):
        data = hdus[hdu].data
        hdus[hdu] = fits.BinTableHDU(data[choose(len(data))], header=hdus[hdu].header, name=hdu)

    return change


def values(name: str, change):
    """Values of a column of the events changed in place."""

    def of_file(hdus):
        column = hdus["EVENTS"].data[name]
        column[:] = change(column.copy())

    return of_file


def first(share: float, value: float):
    """The first rows have a value."""

    def change(column):
        column[: int(share * column.size)] = value
        return column

    return change


def both(**cards_of_both):
    """Cards of events and good time intervals."""

    def change(hdus):
        for hdu in (hdus["EVENTS"], hdus["GTI"]):
            hdu.header.update(cards_of_both)

    return change


def half_turn(hdus):
    """The azimuth counted from the south."""
    hdus["EVENTS"].header["AZ_PNT"] = (hdus["EVENTS"].header["AZ_PNT"] + 180) % 360


def beside(hdus):
    """The pointing of another run of the same field."""
    hdus["EVENTS"].header["DEC_PNT"] += 0.6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (values("ENERGY", lambda energy: energy + 100), r"below 100 TeV, its effective area begins at 0\.\d+ TeV"),
        (values("ENERGY", first(0.1, 1.0)), r"\d+ of \d+ events have ENERGY = 1"),
        (rows("EVENTS", lambda n: np.append(np.arange(n), [0, 1])), r"2 of \d+ events are there twice"),
        (rows("EVENTS", lambda n: np.delete(np.arange(n), slice(n // 4, n // 2))), "s of good time have no event"),
        (rows("EVENTS", lambda n: np.arange(3)), r"3 events in \d+ s of good time"),
        (values("DEC", first(0.1, 95.0)), "without a position or an energy"),
        (cards("EVENTS", ALT_PNT=95.0), "ALT_PNT = 95.0 is not between 0 and 90 and left unknown"),
        (cards("EVENTS", GEOLAT=120.0), "GEOLAT = 120.0 is not between -90 and 90"),
        (cards("EVENTS", N_TELS=-4), "N_TELS = -4 is not between 1 and 10000"),
        (cards("EVENTS", NSBLEVEL=True), "NSBLEVEL = True is no number"),
        (cards("EVENTS", EUNIT="GeV"), r"ENERGY is taken in TeV \(TUNIT\), not in GeV \(EUNIT\)"),
        (half_turn, r"ALT_PNT, AZ_PNT are .*azimuth from north through east"),
        (beside, r"its events are centred 0\.\d+ deg from its pointing"),
        (both(MJDREFI=0), r"its date is MJD 2"),
    ],
)  # fmt: skip
def test_what_is_hardly_right_is_remarked_on(run, edit_run, change, said):
    assert read_run(run).note == ""
    edit_run(run.path, change)
    assert re.search(said, read_run(run).note)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (values("RA", first(0.6, 83.0)), r"\d+ of \d+ events with RA = 83"),
        (rows("EVENTS", lambda n: np.repeat(np.arange(n), 2)), r"\d+ of \d+ events twice"),
        (rows("EVENTS", lambda n: np.delete(np.arange(n), slice(n // 8, -n // 8))), "there is no event"),
        (cards("EVENTS", DEC_PNT=120.0), r"no pointing .*120\.0"),
        (cards("EVENTS", RA_PNT=True), r"RA_PNT = True, which is no number"),
        (both(TIMEUNIT="Crab"), r"times \(TIMEUNIT\) in the unit 'Crab'"),
        (cards("EVENTS", TIMEUNIT="Crab"), r"times \(TIMEUNIT\) in the unit 'Crab'"),
    ],
)
def test_what_cannot_be_right_is_refused(run, edit_run, change, said):
    edit_run(run.path, change)
    with pytest.raises(RunError, match=rf"run 64001: .*{said}.*: correct it, or leave the run out"):
        read_run(run)


@pytest.mark.parametrize("card", ["TFIELDS", "NAXIS"])
def test_too_many_columns_or_axes_are_refused_at_once(run, card):
    """Of which astropy reads each."""
    raw = gzip.decompress(Path(run.path).read_bytes())
    at = raw.index(f"{card:<8}=".encode(), 2880)
    Path(run.path).write_bytes(raw[:at] + f"{card:<8}= {10**9:20d}".encode().ljust(80) + raw[at + 80 :])
    with pytest.raises(RunError, match=rf"it has {card} = 1000000000, 999 is the most"):
        read_run(run)


def test_an_effective_area_that_begins_nowhere(run, edit_run):
    def change(hdus):
        for name in ("ENERG_LO", "ENERG_HI"):
            hdus["EFFECTIVE AREA"].data[name][:] = 0

    edit_run(run.path, change)
    assert read_run(run).energy.size


def test_a_table_that_ends_early(run):
    raw = gzip.decompress(Path(run.path).read_bytes())
    at = raw.index(b"PCOUNT", raw.rindex(b"XTENSION", 0, raw.index(b"'START")))
    Path(run.path).write_bytes(raw[:at] + b"PCOUNT  =           1000000000".ljust(80) + raw[at + 80 :])
    with pytest.raises(RunError, match=r"not a whole FITS file \(\d+ bytes of GTI are missing\): copy it again"):
        read_run(run)


def test_angles_that_went_round(run, edit_run):
    before = read_run(run)

    def change(hdus):
        header = hdus["EVENTS"].header
        header["RA_PNT"], header["AZ_PNT"] = header["RA_PNT"] + 360, header["AZ_PNT"] - 360

    edit_run(run.path, change)
    after = read_run(run)
    assert after.numbers == pytest.approx(before.numbers, nan_ok=True)
    assert after.note.endswith(f"is taken for {before.numbers['ra_pnt']:g} deg")


def test_start_and_stop_of_a_header_are_in_its_unit_of_time():
    header = {"TSTART": 86400.0, "TSTOP": 172800.0, "MJDREFI": 51910, "MJDREFF": 0.0}
    assert conditions(header)["time"] == 51911.5
    assert conditions({**header, "TSTART": 1.0, "TSTOP": 2.0, "TIMEUNIT": "d"})["time"] == 51911.5


# -- several of one name -----------------------------------------------------------------------------------------


def second_hdu(name: str, rows: slice, place: int):
    """The events, or some of them, under a name of their own, before or after the events."""

    def change(hdus):
        more = fits.BinTableHDU(hdus["EVENTS"].data[rows].copy(), header=hdus["EVENTS"].header)
        hdus.insert(place, more)
        more.header["EXTNAME"] = name

    return change


def test_two_equal_hdus_are_remarked_on(run, edit_run):
    before = read_run(run)
    edit_run(run.path, second_hdu("EVENTS", slice(None), 3))
    assert_same(run, before)
    assert read_run(run._replace(events_hdu="EVENTS")).note == "EVENTS is there 2 times, and all are equal"


@pytest.mark.parametrize("named", ["EVENTS", ""])
def test_two_hdus_that_differ_are_refused(run, edit_run, named):
    edit_run(run.path, second_hdu("EVENTS", slice(100), 1))
    with pytest.raises(RunError, match=r"2 HDUs EVENTS that differ: remove the wrong ones"):
        read_run(run._replace(events_hdu=named))


def test_the_exact_spelling_comes_first(run, edit_run):
    before = read_run(run)
    edit_run(run.path, second_hdu("Events", slice(None, None, 4), 1))
    assert read_run(run._replace(events_hdu="EVENTS")).energy.size == before.energy.size
    assert read_run(run._replace(events_hdu="Events")).energy.size == -(-before.energy.size // 4)


def test_columns_of_two_spellings_of_which_none_is_exact(run, edit_run):
    def change(hdus):
        events = hdus["EVENTS"]
        others = [c for c in events.columns if c.name != "RA"]
        new = [fits.Column(name, "D", unit="deg", array=events.data["RA"]) for name in ("Ra", "ra")]
        hdus["EVENTS"] = fits.BinTableHDU.from_columns([*others, *new], header=events.header, name="EVENTS")

    edit_run(run.path, change)
    with pytest.raises(RunError, match=r"several columns Ra, ra: remove the wrong ones"):
        read_run(run)


def test_a_damaged_hdu_after_those_that_are_needed(run):
    before, raw = read_run(run), bytearray(gzip.decompress(Path(run.path).read_bytes()))
    at = raw.index(b"EFFECTIVE AREA")
    raw[raw.rindex(b"XTENSION", 0, at) :] = b"XTENSION= 'BINTABLE'".ljust(80) + b"BITPIX  = 'x'".ljust(2800)
    Path(run.path).write_bytes(raw)
    assert_same(run, before)


# -- intervals -------------------------------------------------------------------------------------------------


def test_rows_that_are_no_intervals_are_named_and_left_out():
    start, stop, note = good_rows(np.array([0.0, np.nan, 20.0]), np.array([10.0, 5.0, 15.0]))
    assert (start.tolist(), stop.tolist()) == ([0.0], [10.0])
    assert "row 2" in note
    assert "row 3" in note
    with pytest.raises(ValueError, match="add up to no time"):
        good_rows(np.array([5.0]), np.array([4.0]))


def test_time_without_events_is_a_remark_and_then_an_error():
    start, stop, unknown = np.array([0.0]), np.array([1000.0]), (np.nan, np.nan)
    assert check_intervals(start, stop, unknown, 0.0, np.linspace(0, 1000, 500)) == ""
    assert "of 1000 s of good time have no event" in check_intervals(
        start, stop, unknown, 0.0, np.linspace(0, 800, 500)
    )
    with pytest.raises(ValueError, match="there is no event"):
        check_intervals(start, stop, unknown, 0.0, np.linspace(0, 300, 500))


def test_units_that_differ_by_their_capitals_alone():
    assert factor("MeV", "TeV") == 1e-6
    assert factor("meV", "TeV") == pytest.approx(1e-15)
    assert factor("TEV", "TeV") == 1.0
    with pytest.raises(ValueError, match="'kg'"):
        factor("kg", "s")
