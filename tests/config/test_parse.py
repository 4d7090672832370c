"""The effective configuration: defaults, presets, checks, messages."""

from __future__ import annotations

import json
import logging
import math
import pickle
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from astropy.table import Table
from astropy.time import Time

from dask_bkg.config import load_config, parse_config
from dask_bkg.config.models import SECTIONS, choices_of
from dask_bkg.config.presets import PRESETS, VERITAS_SEASONS
from dask_bkg.config.yaml import default_config, dump_yaml, parse_yaml
from dask_bkg.errors import ConfigError
from dask_bkg.selection import RANKINGS

TABLE = {"2019": ["2019-01-01", "2019-12-31"], "later": ["2020-02-01", None]}


def test_default_binning_is_ten_per_decade_and_quarter_degrees():
    binning = parse_config({}).binning
    np.testing.assert_allclose(binning.energy_edges, 10 ** np.linspace(-1, 2, 31), rtol=1e-12)
    np.testing.assert_allclose(binning.offset_edges, np.arange(11) * 0.25, atol=1e-12)
    assert (binning.e_bins, binning.off_bins) == (30, 10)
    assert binning.energy_edges[0] == 0.1
    assert binning.energy_edges[-1] == 100.0


@pytest.mark.parametrize(
    ("given", "bins"),
    [
        ({"e_min": "500 GeV", "e_max": "50 TeV"}, (20, 10)),
        ({"e_min": 1, "e_max": 1.01, "off_max": 0.1}, (2, 1)),
        ({"e_min": 0.3, "e_max": 10, "off_min": "0.5 deg", "off_max": "150 arcmin"}, (15, 8)),
        ({"e_bins": 4, "off_bins": 3}, (4, 3)),
        ({"e_bins": np.int64(4), "off_bins": "3"}, (4, 3)),
    ],
)
def test_numbers_of_bins_follow_the_range(given, bins):
    binning = parse_config({"binning": given}).binning
    assert (binning.e_bins, binning.off_bins) == bins
    assert binning.energy_edges.shape == (bins[0] + 1,)
    assert binning.offset_edges.shape == (bins[1] + 1,)


@pytest.mark.parametrize(
    ("binning", "match"),
    [
        ({"e_min": 200}, r"binning\.e_min \(200 TeV\) must be below binning\.e_max \(100 TeV\)"),
        ({"e_min": 1, "e_max": 1}, r"binning\.e_min"),
        ({"e_min": 0}, r"binning\.e_min: must be greater than 0 TeV"),
        ({"e_bins": 0}, r"binning\.e_bins: must be greater than or equal to 2, got 0"),
        ({"off_bins": 0}, r"binning\.off_bins"),
        ({"off_bins": 2.5}, r"binning\.off_bins: must be a whole number, got 2.5"),
        ({"off_min": -1}, r"binning\.off_min"),
        ({"off_min": 3}, r"binning\.off_min \(3 deg\) must be below binning\.off_max \(2.5 deg\)"),
        ({"off_max": 30}, r"binning\.off_max: must be less than or equal to 20 deg, got 30.0 deg"),
        ({"e_min": "1 deg"}, r"binning\.e_min: must be a finite number of TeV.*got '1 deg'"),
        ({"e_min": True}, r"binning\.e_min"),
        ({"e_max": float("inf")}, r"binning\.e_max"),
    ],
)
def test_binning_refused(binning, match):
    with pytest.raises(ConfigError, match=match):
        parse_config({"binning": binning})


def test_energy_edges_in_the_order_of_assignment_do_not_matter():
    # Each assignment alone would be invalid: the whole is validated once.
    config = default_config()
    config["binning"]["e_min"] = 200
    config["binning"]["e_max"] = 300
    assert parse_config(config).binning.e_min == 200.0


def test_explicit_wins_over_preset_wins_over_default():
    plain_default = parse_config({})
    preset = parse_config({"preset": "gammapy-tools"})
    both = parse_config({"preset": "gammapy-tools", "exclusion": {"star_mag": 6}, "model": {"fill": True}})
    assert (plain_default.exclusion.star_mag, preset.exclusion.star_mag, both.exclusion.star_mag) == (5, 8, 6)
    assert (plain_default.model.fill, preset.model.fill, both.model.fill) == (True, False, True)
    # Per leaf: the neighbours of what was given still come from the preset.
    assert both.exclusion.star_radius == 0.35
    assert both.model.exposure == "event_ratio"
    assert both.preset == "gammapy-tools"


def test_null_is_not_set():
    with_null = {
        "preset": "veritas",
        "background_selection": {"nsb_diff": None},
        "cluster": None,
        "io": {"attach": None},
    }
    config = parse_config(with_null)
    assert config.background_selection.nsb_diff == 0.7
    assert config.cluster is None
    assert config.io.attach == "copy"


def test_cuts_are_off_by_default():
    selection = parse_config({}).background_selection
    cuts = (
        "el_min",
        "el_max",
        "nsb_diff",
        "el_diff",
        "az_diff",
        "n_tels",
        "time_max",
        "seasons",
        "galactic_latitude_min",
    )
    assert [getattr(selection, cut) for cut in cuts] == [None] * len(cuts)
    assert selection.bkg_runlist is None
    assert (selection.same_szn, selection.time_request, selection.rank) == (False, 10.0, "conditions")


def test_preset_veritas():
    selection = parse_config({"preset": "veritas"}).background_selection
    assert (selection.nsb_diff, selection.el_diff, selection.az_diff) == (0.7, 0.15, 45.0)
    assert selection.seasons is not None
    assert list(selection.seasons) == list(VERITAS_SEASONS)


def test_preset_gammapy_tools():
    config = parse_config({"preset": "gammapy-tools"})
    binning, exclusion, model = config.binning, config.exclusion, config.model
    assert (binning.e_min, binning.e_max, binning.e_bins, binning.off_bins) == (0.1, 100.0, 20, 5)
    assert (exclusion.star_mag, exclusion.star_radius, exclusion.default_radius) == (8.0, 0.35, 0.35)
    assert (exclusion.reach, exclusion.extension_rule) == ("centre", "document")
    assert (model.exposure, model.smooth_method, model.node_values, model.fill) == (
        "event_ratio",
        "to_3d",
        "plain",
        False,
    )
    assert config.background_selection.rank == "none"
    assert config.model.divergence == "document"
    assert config.background_selection.seasons is not None
    # The conditions stay the user's.
    assert config.background_selection.nsb_diff is None


@pytest.mark.parametrize("preset", list(PRESETS))
def test_presets_name_options_that_exist(preset):
    for section, keys in PRESETS[preset].items():
        assert set(keys) <= set(SECTIONS[section].model_fields)


def test_presets_are_not_changed_by_use():
    before = json.dumps(PRESETS)
    config = parse_config({"preset": "veritas", "background_selection": {"az_diff": 10}})
    assert config.background_selection.seasons is not None
    config.background_selection.seasons.clear()
    assert json.dumps(PRESETS) == before


def test_veritas_epochs_follow_each_other_without_a_gap():
    bounds = list(VERITAS_SEASONS.values())
    for (_, stop), (start, _) in pairwise(bounds):
        assert Time(start).mjd - Time(stop).mjd == 1
    assert bounds[-1][1] is None


@pytest.mark.parametrize(
    ("time", "season"),
    [
        ("2018-12-31T23:59:59", None),
        ("2019-01-01T00:00:00", "2019"),
        ("2019-12-31T23:59:59", "2019"),
        ("2020-01-01T00:00:00", None),
        ("2020-02-01T00:00:00", "later"),
        ("2027-01-01T00:00:00", "later"),
    ],
)
def test_season_of_a_time(time, season):
    selection = parse_config({"background_selection": {"seasons": TABLE}}).background_selection
    assert selection.season_of(Time(time).mjd) == season


def test_season_range_holds_its_last_day():
    selection = parse_config({"background_selection": {"seasons": TABLE}}).background_selection
    assert selection.season_range("2019") == (Time("2019-01-01").mjd, Time("2020-01-01").mjd)
    assert selection.season_range("later") == (Time("2020-02-01").mjd, math.inf)


def test_no_seasons_no_season():
    assert parse_config({}).background_selection.season_of(58000.0) is None


def test_same_season_without_a_table_takes_the_veritas_epochs_and_says_so(caplog):
    with caplog.at_level(logging.WARNING, logger="dask_bkg"):
        config = parse_config({"background_selection": {"same_szn": True}})
    assert config.background_selection.season_of(Time("2026-01-01").mjd) == "V6_2022_2022s"
    assert "VERITAS epochs" in caplog.text
    caplog.clear()
    own = parse_config({"background_selection": {"same_szn": True, "seasons": TABLE}})
    assert list(own.background_selection.seasons or {}) == list(TABLE)
    assert caplog.records == []


def test_sigma_in_rings_or_as_an_angle():
    config = parse_config({"binning": {"off_max": 2, "off_bins": 4}, "background_selection": {"smooth_sigma": 1.5}})
    assert config.background_selection.sigma_deg(config.binning) == pytest.approx(0.75)
    angle = parse_config({"background_selection": {"smooth_sigma": "18 arcmin"}})
    assert angle.background_selection.sigma_deg(angle.binning) == pytest.approx(0.3)
    assert angle.effective()["background_selection"]["smooth_sigma"] == "18 arcmin"
    with pytest.raises(ConfigError, match=r"background_selection\.smooth_sigma: must be 0 or more.*got -1"):
        parse_config({"background_selection": {"smooth_sigma": -1}})


@pytest.mark.parametrize(("value", "hours"), [(None, 10.0), (3, 3.0), ("90 min", 1.5), ("all", math.inf)])
def test_time_request(value, hours):
    config = parse_config({"background_selection": {"time_request": value}})
    assert config.background_selection.hours_wanted == hours
    json.dumps(config.effective(), allow_nan=False)


@pytest.mark.parametrize("value", [0, -2, 1.5, True, "many"])
def test_njobs_refused(value):
    with pytest.raises(ConfigError, match=r"config\.njobs"):
        parse_config({"config": {"njobs": value}})


def test_njobs(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert [parse_config({"config": {"njobs": n}}).config.n_workers for n in (None, -1, 1, 64)] == [3, 3, 1, 64]


def test_results_go_below_the_output():
    assert parse_config({"io": {"out_dir": "/data/out"}}).io.results_dir == "/data/out/results"
    assert parse_config({"io": {"out_dir": "/data/out", "results_dir": "plots"}}).io.results_dir == "plots"
    assert parse_config({}).io.results_dir is None


def test_the_run_store_is_below_the_results_or_where_it_is_said():
    """Shared between jobs it has a place of its own; with neither there is nowhere to put it."""
    assert str(parse_config({"io": {"out_dir": "out"}}).store_path) == "out/results/runs.zarr"
    assert str(parse_config({"io": {"out_dir": "out", "results_dir": "r"}}).store_path) == "r/runs.zarr"
    assert str(parse_config({"run_store": {"path": "a.zarr"}}).store_path) == "a.zarr"
    assert str(parse_config({"io": {"out_dir": "out"}, "run_store": {"path": "a.zarr"}}).store_path) == "a.zarr"
    with pytest.raises(ConfigError, match=r"set run_store\.path, or io\.out_dir"):
        _ = parse_config({}).store_path


def test_fine_bins_and_blocks_have_defaults():
    config = parse_config({})
    store = config.run_store
    assert (store.bins_per_decade, store.pixel, store.ring) == (10, 0.2, 0.05)
    assert (config.config.block, config.config.split_every) == (None, 8)
    given = parse_config({"run_store": {"pixel": "15 arcmin", "block": 7}, "config": {"block": 3, "split_every": 2}})
    assert (given.run_store.pixel, given.run_store.block) == (0.25, 7)
    assert (given.config.block, given.config.split_every) == (3, 2)


@pytest.mark.parametrize(
    ("selection", "ranking"),
    [
        ({}, "conditions"),
        ({"KL_DIV": True}, "kl"),
        ({"KL_DIV": True, "rank": "elevation"}, "kl"),
        ({"KL_DIV": True, "rank": "none"}, "kl"),
        ({"KL_DIV": True, "rank": "kl-conditions"}, "kl-conditions"),
        ({"KL_DIV": False, "rank": "kl"}, "kl"),
        ({"rank": "kl-conditions"}, "kl-conditions"),
        ({"rank": "none"}, "none"),
    ],
)
def test_ranking_by_word_or_by_the_switch_of_gammapy_tools(selection, ranking):
    """The switch asks for a divergence, and keeps a ranking that has one."""
    assert parse_config({"background_selection": selection}).background_selection.ranking == ranking
    under_preset = parse_config({"preset": "gammapy-tools", "background_selection": selection}).background_selection
    assert under_preset.ranking == (ranking if selection else "none")


def test_every_ranking_of_the_configuration_is_one():
    field = SECTIONS["background_selection"].model_fields["rank"]
    assert set(choices_of(field)) == set(RANKINGS)


def test_marks_of_lists_survive_json_and_yaml():
    """Run numbers become texts in one and numbers in the other; in the configuration they are texts."""
    marks = {"settings": "8fe1", "64001": "a1b2"}
    for given in (marks, json.loads(json.dumps(marks)), parse_yaml("settings: '8fe1'\n64001: a1b2\n")):
        section = {"bkg_runlist": {64001: [64002]}, "bkg_runlist_digest": given}
        assert parse_config({"background_selection": section}).background_selection.bkg_runlist_digest == marks
    assert parse_config({"background_selection": {"bkg_runlist_digest": None}}).effective() == (
        parse_config({}).effective()
    )


def test_directory_that_is_not_set_is_asked_for():
    config = parse_config({"io": {"in_dir": "/data/in"}})
    assert str(config.directory("in_dir")) == "/data/in"
    with pytest.raises(ConfigError, match=r"io\.search_datastore is not set"):
        config.directory("search_datastore")


@pytest.mark.parametrize(
    "runlist",
    [
        [64080, 64081],
        (64080, np.int64(64081)),
        np.array([64080, 64081], dtype=np.int32),
        np.array([64080.0, 64081.0]),
        Table({"OBS_ID": [64080, 64081]})["OBS_ID"],
        ["64080", "64081"],
        range(64080, 64082),
    ],
)
def test_runlist_of_any_kind(runlist):
    config = parse_config({"run_selection": {"runlist": runlist}})
    assert config.runs() == [64080, 64081]
    assert all(type(run) is int for run in config.run_selection.runlist)


@pytest.mark.parametrize("runlist", [None, "all"])
def test_every_run(runlist):
    assert parse_config({"run_selection": {"runlist": runlist}}).runs() is None


def test_single_run():
    assert parse_config({"run_selection": {"runlist": np.int64(7)}}).runs() == [7]


def test_runlist_file_is_sought_beside_the_yaml_and_read_late(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "config.yaml").write_text("run_selection: {runlist: runs.txt}\n")
    monkeypatch.chdir(tmp_path)
    config = load_config("here/config.yaml")
    with pytest.raises(ConfigError, match=r"run_selection\.runlist: runs\.txt cannot be read"):
        config.runs()
    (tmp_path / "runs.txt").write_text("1\n")
    assert config.runs() == [1]
    (tmp_path / "here" / "runs.txt").write_text("2\n")
    assert config.runs() == [2]
    monkeypatch.chdir("/")
    assert config.runs() == [2], "base_dir must not depend on the working directory"


def test_bkg_runlist_survives_json():
    given = {"background_selection": {"bkg_runlist": {64080: np.array([1, 2])}}}
    config = parse_config(given)
    again = parse_config(json.loads(json.dumps(config.effective())))
    assert again.background_selection.bkg_runlist == {64080: [1, 2]}


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_effective_values_are_a_configuration_themselves(preset):
    given = {
        "preset": preset,
        "io": {"in_dir": "/a", "out_dir": "/b"},
        "binning": {"e_min": "200 GeV"},
        "exclusion": {"exclude_regions": [83.6, 22, 0.5], "exclude_source_name": ["Crab", 0.4]},
        "background_selection": {"seasons": TABLE, "time_request": "all", "bkg_runlist": {"3": [4]}},
        "run_selection": {"runlist": [1, 2]},
    }
    effective = parse_config(given).effective()
    assert parse_yaml(dump_yaml(effective)) == effective
    assert parse_config(parse_yaml(dump_yaml(effective))).effective() == effective
    assert parse_config(json.loads(json.dumps(effective))).effective() == effective


def test_config_travels():
    config = parse_config({"preset": "veritas", "binning": {"e_min": 0.3}}, base_dir="/somewhere")
    copy = pickle.loads(pickle.dumps(config))
    assert copy == config
    assert copy.explicit == {"preset": "veritas", "binning": {"e_min": 0.3}}
    assert copy.base_dir == config.base_dir


def test_explicit_is_what_was_given():
    given = {"binning": {"e_min": "100 GeV", "e_max": None}, "plot_names": "crab"}
    config = parse_config(given)
    given["binning"]["e_min"] = 5
    assert config.explicit == {"binning": {"e_min": "100 GeV", "e_max": None}, "plot_names": "crab"}
    assert config.base_dir is None


def test_load_config_keeps_the_directory_and_names_the_file(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("binning: {e_min: 1e-1}\n")
    assert load_config(path).base_dir == tmp_path
    path.write_text("binning: {e_min: -1}\n")
    with pytest.raises(ConfigError, match=r"my\.yaml: .*\n.*binning\.e_min"):
        load_config(path)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"exclusion": {"star_magg": 5}}, r"exclusion\.star_magg: unknown key, did you mean exclusion\.star_mag\?"),
        ({"binning": {"Emin": 5}}, r"did you mean binning\.e_min\?"),
        ({"background_selection": {"kl_div": True}}, r"did you mean background_selection\.KL_DIV\?"),
        ({"background_selection": {"az_dif": None}}, r"did you mean background_selection\.az_diff\?"),
        ({"binnings": {"e_min": 5}}, r"binnings: unknown key, did you mean binning\?"),
        ({"io": {"njobs": 3}}, r"io\.njobs: unknown key, it belongs to the section config"),
        ({"config": {"zzz": 3}}, r"config\.zzz: unknown key, accepted are njobs"),
        ({"runstore": {"path": "a"}}, r"did you mean run_store\?"),
        ({"run_store": {"pixels": 0.2}}, r"did you mean run_store\.pixel\?"),
        ({"background_selection": {"exclude_same_targets": True}}, r"did you mean .*\.exclude_same_target\?"),
        (
            {"run_store": {"rank": "kl"}},
            r"run_store\.rank: unknown key, it belongs to the section background_selection",
        ),
        ({"clustre": "local"}, r"did you mean cluster\?"),
        ({"zzz": None}, r"zzz: unknown key, accepted are preset, cluster, io"),
        ({"io": {5: 3}}, r"io\.5: unknown key"),
    ],
)
def test_unknown_key_is_refused_with_the_nearest_name(given, match):
    with pytest.raises(ConfigError, match=match):
        parse_config(given)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"preset": "magic"}, r"preset: must be 'veritas' or 'gammapy-tools', got 'magic'"),
        ({"preset": ["veritas"]}, r"preset: must be"),
        ({"cluster": "slrum"}, r"cluster: must be 'threads', 'local', 'slurm', or .*got 'slrum'"),
        ({"slurm": {"workers": 2, "min_workers": 3}}, r"slurm\.min_workers \(3\) must not be above slurm\.workers"),
        ({"io": {"attach": "link"}}, r"io\.attach: must be 'copy' or 'index', got 'link'"),
        ({"io": {"from_run": "yes"}}, r"io\.from_run: must be true or false .*got 'yes'"),
        ({"io": {"from_run": 1}}, r"io\.from_run: must be true or false"),
        ({"io": {"in_dir": 5}}, r"io\.in_dir: must be a path, got 5"),
        ({"io": 5}, r"io: must be a section with keys \(search_datastore, .*got 5"),
        ({"exclusion": {"catalogs": ["fermi"]}}, r"exclusion\.catalogs\[0\]: must be 'gammacat' or '3hwc'"),
        ({"exclusion": {"default_radius": 2}}, r"exclusion\.default_radius \(2 deg\) must not be above"),
        ({"exclusion": {"star_radius": 0}}, r"exclusion\.star_radius: must be greater than 0 deg"),
        ({"exclusion": {"exclude_regions": [[1, 2]]}}, r"exclusion\.exclude_regions: must be \[ra, dec, radius\]"),
        ({"background_selection": {"el_min": 40, "el_max": 30}}, r"background_selection\.el_min \(40 deg\)"),
        ({"background_selection": {"el_max": 91}}, r"background_selection\.el_max"),
        ({"background_selection": {"az_diff": -1}}, r"background_selection\.az_diff"),
        ({"background_selection": {"n_tels": 2.5}}, r"background_selection\.n_tels"),
        ({"background_selection": {"bkg_runlist": [1]}}, r"background_selection\.bkg_runlist: must be a table"),
        (
            {"background_selection": {"bkg_runlist_digest": "abc"}},
            r"background_selection\.bkg_runlist_digest: must be a",
        ),
        ({"background_selection": {"rank": "kld"}}, r"\.rank: must be 'conditions', 'kl', .*or 'none', got 'kld'"),
        ({"background_selection": {"rank": None, "KL_DIV": "yes"}}, r"\.KL_DIV: must be true or false"),
        ({"run_store": {"pixel": 0}}, r"run_store\.pixel: must be greater than 0 deg"),
        ({"run_store": {"ring": -0.1}}, r"run_store\.ring: must be greater than 0 deg"),
        ({"run_store": {"bins_per_decade": 0}}, r"run_store\.bins_per_decade"),
        ({"run_store": {"bins_per_decade": 2.5}}, r"run_store\.bins_per_decade"),
        ({"run_store": {"block": 0}}, r"run_store\.block"),
        ({"run_store": {"path": 5}}, r"run_store\.path: must be a path, got 5"),
        ({"config": {"split_every": 1}}, r"config\.split_every: must be greater than or equal to 2"),
        ({"config": {"block": 0}}, r"config\.block"),
        ({"model": {"divergence": "kl"}}, r"model\.divergence: must be 'shape' or 'document'"),
        ({"model": {"divergence_prior": 0}}, r"model\.divergence_prior: must be greater than 0"),
        ({"run_selection": {"runlist": [1.5]}}, r"run_selection\.runlist: must be run numbers, got 1.5"),
        ({"run_selection": {"runlist": []}}, r"run_selection\.runlist: is an empty list"),
        ({"model": {"exposure": "events"}}, r"model\.exposure: must be 'geometry' or 'event_ratio'"),
        ({"model": {"min_counts": 0}}, r"model\.min_counts"),
    ],
)
def test_wrong_value_is_refused_by_name(given, match):
    with pytest.raises(ConfigError, match=match):
        parse_config(given)


def test_every_problem_is_listed():
    given = {
        "io": {"from_run": "no", "3d_bkg": "yes", "runlist": [1]},
        "binning": {"e_min": 0},
        "run_selection": {"runlist": [2]},
        "zzz": 1,
    }
    with pytest.raises(ConfigError) as error:
        parse_config(given)
    lines = str(error.value).splitlines()
    assert "5 problems" in lines[0]
    assert len(lines) == 6
    for key in ("io.from_run", "io.3d_bkg", "binning.e_min", "io.runlist", "zzz"):
        assert sum(line.startswith(f"  - {key}") for line in lines) == 1, key


def test_no_mapping():
    with pytest.raises(ConfigError, match="table of sections"):
        parse_config([1, 2])  # type: ignore[arg-type]


def test_numpy_booleans_and_numbers():
    config = parse_config(
        {"io": {"from_run": np.True_}, "binning": {"e_min": np.float32(0.5), "e_bins": np.uint8(3)}}
    )
    assert config.io.from_run is True
    assert (config.binning.e_min, config.binning.e_bins) == (0.5, 3)


def test_one_catalogue_none_and_single_paths():
    assert parse_config({"exclusion": {"catalogs": "3hwc"}}).exclusion.catalogs == ["3hwc"]
    assert parse_config({"exclusion": {"catalogs": []}}).exclusion.catalogs == []
    assert parse_config({"io": {"data_dirs": "/data"}}).io.data_dirs == ["/data"]
    assert parse_config({"exclusion": {"exclude_region_files": ["a.reg", None]}}).exclusion.exclude_region_files == [
        "a.reg"
    ]


def test_defaults_are_not_shared():
    parse_config({}).exclusion.catalogs.clear()
    assert parse_config({}).exclusion.catalogs == ["gammacat", "3hwc"]


def test_configuration_is_read_without_gammapy():
    program = (
        "import sys; from dask_bkg.config import parse_config; parse_config({'binning': {'e_min': '100 GeV'}});"
        "print([name for name in ('gammapy', 'dask', 'scipy', 'matplotlib') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_none_takes_away_a_cut_of_the_preset():
    given = {"preset": "veritas", "background_selection": {"nsb_diff": "none", "el_diff": None}}
    selection = parse_config(given).background_selection
    assert selection.nsb_diff is None
    assert (selection.el_diff, selection.az_diff) == (0.15, 45.0)
    assert parse_config({"background_selection": {"rank": "none"}}).background_selection.rank == "none"


def test_the_section_of_a_validation():
    config = parse_config({"validation": {"bands": ["100 GeV", 1], "exclusion": {"star_mag": 3, "star_cat": None}}})
    assert config.validation.bands == [0.1, 1.0]
    assert config.validation.exclusion.star_mag == 3
    assert parse_config(config.effective()).effective() == config.effective()
    assert parse_config({}).validation.exclusion is None


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"exclusion": {"star_mg": 3}}, "validation.exclusion.star_mg: unknown key, did you mean validation.excl"),
        ({"exclusion": 5}, "validation.exclusion: must be a section with keys (star_cat"),
        ({"exclusion": {"star_radius": "-1 deg"}}, "validation.exclusion.star_radius: must be greater than 0 deg"),
        ({"offmax": 3}, "did you mean validation.off_max"),
        ({"bands": [3, 1]}, "bands must be two or more ascending energies above 0 TeV, got [3.0, 1.0]"),
        ({"folds": 1}, "validation.folds: must be greater than or equal to 2, got 1"),
    ],
)
def test_a_bad_section_of_a_validation(section, words):
    with pytest.raises(ConfigError) as error:
        parse_config({"validation": section})
    assert words in str(error.value)
