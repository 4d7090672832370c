"""What may be written for a value, against astropy's own conversions and dates."""

from __future__ import annotations

import astropy.units as u
import pytest
from astropy.time import Time
from hypothesis import given
from hypothesis import strategies as st

from dask_bkg.config import values
from dask_bkg.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        ("100 GeV", "TeV", 0.1),
        ("100GeV", "TeV", 0.1),
        ("2.5 deg", "deg", 2.5),
        ("30 arcmin", "deg", 0.5),
        ("600 min", "h", 10.0),
        ("1e-9", "TeV", 1e-9),
        (" 0.5 ", "deg", 0.5),
        (3, "TeV", 3.0),
        ("1 yr", "d", 365.25),
    ],
)
def test_number_in_unit(text, unit, expected):
    number = values.to_number(text, unit)
    assert type(number) is float
    assert number == pytest.approx(expected, rel=1e-12)


@given(st.floats(1e-6, 1e6), st.sampled_from(["eV", "GeV", "TeV", "erg", "J"]))
def test_number_agrees_with_astropy(value, unit):
    assert values.to_number(f"{value!r} {unit}", "TeV") == pytest.approx((value * u.Unit(unit)).to_value("TeV"))


@pytest.mark.parametrize(
    "value", [True, None, "soon", "", "nan", "inf", float("nan"), float("inf"), "3 deg", [1], {}]
)
def test_number_refused_with_what_was_got(value):
    with pytest.raises(ValueError, match="must be a finite number of TeV") as error:
        values.to_number(value, "TeV")
    assert repr(value) in str(error.value)


def test_number_without_unit_refuses_a_unit():
    with pytest.raises(ValueError, match="without a unit"):
        values.to_number("0.5 deg", "")


@pytest.mark.parametrize(("value", "expected"), [(3, 3), (3.0, 3), ("3", 3), ("-1", -1)])
def test_integer(value, expected):
    result = values.to_integer(value)
    assert result == expected
    assert type(result) is int


@pytest.mark.parametrize("value", [True, 2.5, float("inf"), float("nan"), "2.5", "x", None, [3]])
def test_integer_refused(value):
    with pytest.raises(ValueError, match="whole number"):
        values.to_integer(value)


def test_path_fills_in_variables(monkeypatch):
    monkeypatch.setenv("ARCHIVE", "/archive")
    assert values.to_path("$ARCHIVE/dl3") == "/archive/dl3"
    assert values.to_path("${ARCHIVE}/dl3/") == "/archive/dl3/"
    assert "~" not in values.to_path("~/dl3")


@pytest.mark.parametrize(("value", "match"), [("", "path"), (3, "path"), ("$NOT_SET_ANYWHERE/a", "is not set")])
def test_path_refused(value, match, monkeypatch):
    monkeypatch.delenv("NOT_SET_ANYWHERE", raising=False)
    with pytest.raises(ValueError, match=match):
        values.to_path(value)


def test_circles_single_many_and_null_lines():
    assert values.to_circles([83.6, 22.0, 0.5]) == [(83.6, 22.0, 0.5)]
    assert values.to_circles(["287.10 deg", "6.39", "30 arcmin"]) == [(287.1, 6.39, 0.5)]
    assert values.to_circles([[83.6, 22, 0.5], None, (-10, -5, 1)]) == [(83.6, 22.0, 0.5), (350.0, -5.0, 1.0)]
    # Three circles are not one circle of three numbers.
    assert len(values.to_circles([[1, 2, 3], [4, 5, 6], [7, 8, 9]])) == 3
    # Neither are two circles and a null line.
    assert len(values.to_circles([[1, 2, 3], None, [7, 8, 9]])) == 2
    assert values.to_circles([None]) == []


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ([[83, 22]], "ra, dec, radius"),
        ([83, 22], "ra, dec, radius"),
        ("Crab", "ra, dec, radius"),
        ([[83, 91, 1]], "dec in -90..90"),
        ([[400, 0, 1]], "ra in -360..360"),
        ([[83, 22, 0]], "above 0"),
        ([[83, 22, -1]], "above 0"),
        ([["83", "22", "half"]], "finite number of deg"),
    ],
)
def test_circles_refused(value, match):
    with pytest.raises(ValueError, match=match):
        values.to_circles(value)


def test_named_single_and_many():
    assert values.to_named(["MGRO J1908+06", "0.5 deg"]) == [("MGRO J1908+06", 0.5)]
    assert values.to_named([["Crab", 0.3], None, ["Mrk 421", "18 arcmin"]]) == [("Crab", 0.3), ("Mrk 421", 0.3)]
    assert values.to_named([["Crab", 0.3], ["Mrk 421", 0.4]]) == [("Crab", 0.3), ("Mrk 421", 0.4)]


@pytest.mark.parametrize(
    "value", ["Crab", [["Crab"]], [[0.5, "Crab"]], [["", 0.5]], ["Crab", "Mrk 421"], ["Crab", 0]]
)
def test_named_refused(value):
    with pytest.raises(ValueError, match=r"must be|radius"):
        values.to_named(value)


def test_runs_are_kept_once_in_order():
    assert values.to_runs([3, "1", 2.0, 3]) == [3, 1, 2]
    assert values.to_runs("020136") == [20136]
    assert values.to_runs(7) == [7]


@pytest.mark.parametrize("value", [[1.5], [-3], [True], ["Crab"], [None], [[1]]])
def test_runs_refused(value):
    with pytest.raises(ValueError, match="run numbers"):
        values.to_runs(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("all", None), ("ALL", None), ("64080", [64080]), ("runs.txt", "runs.txt"), ([64080, "64081"], [64080, 64081])],
)
def test_runlist(value, expected):
    assert values.to_runlist(value) == expected


def test_empty_runlist_is_refused():
    with pytest.raises(ValueError, match="empty list"):
        values.to_runlist([])


def test_run_table_from_json():
    assert values.to_run_table({"64080": ["1", 2], 64081: 3}) == {64080: [1, 2], 64081: [3]}
    with pytest.raises(ValueError, match="twice"):
        values.to_run_table({"64080": [1], 64080: [2]})
    with pytest.raises(ValueError, match="table"):
        values.to_run_table([1, 2])


def test_read_runs(tmp_path):
    path = tmp_path / "runs.txt"
    path.write_text("\ufeff# Crab\n020136\n\n 64080  # good weather\r\n64081\n64080\n", encoding="utf-8")
    assert values.read_runs(path) == [20136, 64080, 64081]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"64080\n64081 64082\n", "line 2"),
        (b"64080\nCrab\n", "line 2"),
        (b"-3\n", "line 1"),
        (b"# nothing\n", "names no run"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_read_runs_refused(tmp_path, content, match):
    path = tmp_path / "runs.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=match) as error:
        values.read_runs(path)
    assert "run_selection.runlist" in str(error.value)


def test_read_runs_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        values.read_runs(tmp_path / "none.txt")


@pytest.mark.parametrize("day", ["1972-01-01", "2000-01-01", "2009-09-14", "2024-02-29"])
def test_mjd_agrees_with_astropy(day):
    assert values.to_mjd(day) == Time(day, scale="utc").mjd


def test_seasons():
    table = {"b": ["2011-01-01", None], "a": ["2010-01-01", "2010-12-31"], 2009: ["2009-01-01", "2009-01-01"]}
    seasons = values.to_seasons(table)
    assert list(seasons) == ["b", "a", "2009"]
    assert seasons["b"] == ("2011-01-01", None)


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ({"a": ["2010-01-01"]}, "ISO dates"),
        ({"a": ["01/09/2007", None]}, "ISO dates"),
        ({"a": [None, "2010-01-01"]}, "ISO dates"),
        ({"a": ["2010-13-01", None]}, "ISO dates"),
        ({"a": None}, "ISO dates"),
        (["2010-01-01"], "table"),
        ({"a": ["2011-01-01", "2010-01-01"]}, "before it starts"),
        ({"a": ["2010-01-01", "2011-01-01"], "b": ["2011-01-01", None]}, "overlap"),
        ({"b": ["2011-01-01", None], "a": ["2010-01-01", None]}, "overlap"),
    ],
)
def test_seasons_refused(table, match):
    with pytest.raises(ValueError, match=match):
        values.to_seasons(table)


@pytest.mark.parametrize(("value", "expected"), [(1, 1.0), ("1.5", 1.5), (0, 0.0), ("0.3 deg", "0.3 deg")])
def test_sigma_is_bins_or_an_angle_as_written(value, expected):
    assert values.to_sigma(value) == expected


@pytest.mark.parametrize("value", [-1, "-0.1 deg", "-2", True, "wide", "1 TeV", None])
def test_sigma_refused(value):
    with pytest.raises(ValueError, match="must be"):
        values.to_sigma(value)


@pytest.mark.parametrize(("value", "expected"), [(10, 10.0), ("600 min", 10.0), ("all", "all"), ("0.5", 0.5)])
def test_hours(value, expected):
    assert values.to_hours(value) == expected


@pytest.mark.parametrize("value", [0, -1, "none", "3 deg", True, None])
def test_hours_refused(value):
    with pytest.raises(ValueError, match="'all' for no limit"):
        values.to_hours(value)


@pytest.mark.parametrize(
    "value", ["threads", "local", "slurm", "tcp://10.0.0.1:8786", "tls://head:8786", "/shared/scheduler.json"]
)
def test_cluster(value):
    assert values.to_cluster(value) == value


@pytest.mark.parametrize(
    "value", ["slrum", "http://a", "http://a/b.json", "tcp://", "tcp:/a", "", 8786, "locally", "local\n tcp://a b"]
)
def test_cluster_refused(value):
    with pytest.raises(ValueError, match="scheduler"):
        values.to_cluster(value)
