"""The keys of gammapy-tools' driver files: used, renamed, or without effect - and nothing else."""

from __future__ import annotations

import copy
import logging

import pytest

from dask_bkg.config import parse_config
from dask_bkg.config.gammapy_tools import KEYS, RENAMED, SWITCHES, WITHOUT_EFFECT, normalise
from dask_bkg.config.models import SECTIONS
from dask_bkg.config.yaml import dump_yaml, parse_yaml
from dask_bkg.errors import ConfigError

# A driver file with the keys of the present program, in our own values.
PRESENT = """
io:
    runlist: "lists/source.txt"
    search_datastore : "/data/off"
    in_dir : "/data/in"
    out_dir : "/data/out"
    results_dir: "/data/out/plots"
    from_run : false
    from_runlist: true
    3d_bkg: false
binning: {e_min: 0.2, e_max: 20, e_bins: 8, off_min: 0, off_max: 2, off_bins: 4}
config:
    njobs : 6
exclusion:
    star_cat : "./stars.dat"
    exclude_source_name :
    exclude_regions :
    exclude_source_pos: [ "10.5 deg", "-6.5 deg", "0.4 deg"]
    exclude_source_run : [ "20 deg", "5 deg", "3 deg"]
background_selection: {nsb_diff: 1.2, el_diff: 1, az_diff: 50, n_tel: 3, time_max: 90, same_szn: true, smooth: true,
    smooth_sigma: 1, time_request: 25, KL_DIV: true, store_KL: false, max_runs: true, n_runs: 40}
run_selection: {source_name: "Somewhere", pos_from_DL3: true, offset_max: 3, n_tel: 4, el_min: 30,
    time_min: "01/09/2010", coords: ["1 deg", "2 deg"]}
spectrum: {e_min: 0.3, params: [3e-12,2.6]}
lightcurve:
    bin_size_min: 500
sky_map: {map_deg: 3, on_exclusion_region: 0.25, ring_rin: "0.6 deg"}
analysis_selection: {theta2: 0.01}
results_file: 'a.yaml'
plot_names: 'a'
"""

# And with the older names.
OLDER = """---
source: {source_name: "Somewhere", source_ra: 10.0, use_name: False}
io:
    from_runlist: True
    runlist: [101, 102]
    search_datastore : "/data/off"
    in_dir : "/data/off"
    out_dir : "/data/out"
background_selection: {el_diff: 0.4, az_diff: 40, nsb_diff: 1}
binning: {EMin: 0.15, EMax: 80, Ebins: 18, OffMin: 0.25, OffMax: 2.25, OffBins: 8}
spectrum: {Emin : 0.2}
"""


def test_the_table_leads_to_options_that_exist():
    targets = [new for new in KEYS.values() if new is not None]
    for target in targets:
        section, key = target.split(".")
        assert key in SECTIONS[section].model_fields, target


def test_no_key_has_two_fates():
    for key in [*WITHOUT_EFFECT, *RENAMED, *SWITCHES]:
        section, _, name = key.rpartition(".")
        homes = [name in model.model_fields for home, model in SECTIONS.items() if section in ("*", home)]
        assert not any(homes), f"{key} is one of our options too"
    assert not set(RENAMED) & set(WITHOUT_EFFECT)


def test_present_driver_file():
    config = parse_config(parse_yaml(PRESENT))
    assert config.run_selection.runlist == "lists/source.txt"
    assert config.io.results_dir == "/data/out/plots"
    assert config.background_selection.n_tels == 3
    assert config.background_selection.el_min is None, "run_selection.el_min chooses targets, not contributors"
    assert config.background_selection.time_request == 25.0
    assert config.exclusion.exclude_regions == [(10.5, -6.5, 0.4)]
    assert config.exclusion.exclude_source_run == [(20.0, 5.0, 3.0)]
    assert config.exclusion.exclude_source_name == []
    assert config.exclusion.default_radius == 0.25


def test_older_driver_file():
    config = parse_config(parse_yaml(OLDER))
    binning = config.binning
    assert (binning.e_min, binning.e_max, binning.e_bins) == (0.15, 80.0, 18)
    assert (binning.off_min, binning.off_max, binning.off_bins) == (0.25, 2.25, 8)
    assert config.runs() == [101, 102]


@pytest.mark.parametrize("text", [PRESENT, OLDER])
def test_round_trip_keeps_every_key(text):
    content = parse_yaml(text)
    before = copy.deepcopy(content)
    config = parse_config(content)
    assert content == before, "the user's dictionary was changed"
    assert config.explicit == before
    assert parse_yaml(dump_yaml(config.explicit)) == before


def test_without_effect_is_said_once(caplog):
    with caplog.at_level(logging.WARNING, logger="dask_bkg"):
        parse_config(parse_yaml(PRESENT))
    said = [record.getMessage() for record in caplog.records if "without effect" in record.getMessage()]
    assert len(said) == 1
    for key in (
        "background_selection.max_runs",
        "run_selection.n_tel",
        "spectrum",
        "plot_names",
        "sky_map",
    ):
        assert key in said[0].split(": ")[1].split(", ")
    assert "n_tels" not in said[0]
    assert "runlist" not in said[0]


def test_nothing_is_said_about_our_own_keys(caplog):
    parse_config(
        {"binning": {"e_min": 0.2}, "run_selection": {"runlist": [1]}, "sky_map": {"on_exclusion_region": 0.4}}
    )
    assert caplog.records == []


@pytest.mark.parametrize("key", [key for key in WITHOUT_EFFECT if key.startswith("*.")])
@pytest.mark.parametrize("section", list(SECTIONS))
def test_keys_of_other_steps_are_accepted_in_any_section(section, key):
    name = key.removeprefix("*.")
    result = normalise({section: {name: 1}})
    assert result.own == {section: {}}
    assert result.without_effect == [f"{section}.{name}"]


@pytest.mark.parametrize("old", list(RENAMED))
def test_renamed_key_arrives(old):
    section, key = old.split(".")
    new_section, new_key = RENAMED[old].split(".")
    result = normalise({section: {key: 3}})
    assert result.own[new_section] == {new_key: 3}
    assert result.problems == []


@pytest.mark.parametrize("old", list(RENAMED))
def test_renamed_key_and_new_name_must_agree(old):
    section, key = old.split(".")
    new_section, new_key = RENAMED[old].split(".")
    both: dict = {section: {key: 3}}
    both.setdefault(new_section, {})[new_key] = 4
    assert [old in problem and RENAMED[old] in problem for problem in normalise(both).problems] == [True]
    both[new_section][new_key] = 3
    assert normalise(both).problems == []
    both[new_section][new_key] = None
    assert normalise(both).own[new_section] == {new_key: 3}


def test_renamed_null_does_not_hide_the_new_name():
    assert normalise({"binning": {"EMin": None, "e_min": 0.3}}).own == {"binning": {"e_min": 0.3}}


def test_contradiction_is_a_config_error():
    with pytest.raises(ConfigError, match=r"io\.runlist is the old name of run_selection\.runlist"):
        parse_config({"io": {"runlist": [1, 2]}, "run_selection": {"runlist": [1]}})


def test_bad_value_names_the_key_that_was_written():
    with pytest.raises(
        ConfigError, match=r"binning\.EMin \(binning\.e_min\): must be greater than 0 TeV, got -1.0 TeV"
    ):
        parse_config({"binning": {"EMin": -1}})


@pytest.mark.parametrize(("switch", "expected"), [(True, [7]), (None, [7]), (False, None)])
def test_from_runlist_switches_the_runlist(switch, expected):
    io = {"runlist": [7]} if switch is None else {"runlist": [7], "from_runlist": switch}
    config = parse_config({"io": io})
    assert config.runs() == expected
    assert ("io.runlist" in normalise({"io": io}).without_effect) == (switch is False)


@pytest.mark.parametrize(("switch", "mode"), [(True, "3d"), (False, "2d"), (None, None)])
def test_three_dimensions_have_a_switch(switch, mode):
    assert parse_config({"io": {"3d_bkg": switch}}).binning.mode == mode
    assert parse_config({"io": {"3d_bkg": switch}, "binning": {"mode": mode}}).binning.mode == mode
    if switch is not None:
        other = {"3d": "2d", "2d": "3d"}[mode]
        with pytest.raises(ConfigError, match=r"io\.3d_bkg is the old name of binning\.mode, and the two differ"):
            parse_config({"io": {"3d_bkg": switch}, "binning": {"mode": other}})


@pytest.mark.parametrize("switch", ["from_runlist", "3d_bkg"])
@pytest.mark.parametrize("value", ["yes", 1, 0])
def test_switches_are_booleans(switch, value):
    with pytest.raises(ConfigError, match=rf"io\.{switch}: must be true or false"):
        parse_config({"io": {switch: value}})


@pytest.mark.parametrize("empty", [None, {}])
def test_empty_sections(empty):
    every = {*SECTIONS, "source", "spectrum", "sky_map"}
    config = parse_config(dict.fromkeys(every, empty))
    assert config.effective() == parse_config({}).effective()


def test_section_that_is_none_is_refused_by_name():
    # A renamed key that would go there must not hide it.
    with pytest.raises(ConfigError, match=r"run_selection: must be a section"):
        parse_config({"io": {"runlist": [1]}, "run_selection": 5})
