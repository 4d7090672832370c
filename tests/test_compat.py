"""The names of gammapy-tools: the procedure's example as it stands, its classes, its formulas number by number."""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Column, Table
from distributed import Client
from gammapy.data import DataStore
from gammapy.irf import Background2D
from gammapy.maps import MapAxis
from helpers.kept_store import keep_store
from scipy.ndimage import gaussian_filter
from scipy.stats import entropy

import dask_bkg
from dask_bkg import ExclusionFinder, get_config, load_config, prepare_dataset, reduce_run, run_make_background
from dask_bkg.compat import BackgroundModelEstimator, make_background
from dask_bkg.config import parse_config
from dask_bkg.config.yaml import dump_yaml
from dask_bkg.dl3.index import read_datastore
from dask_bkg.errors import ArchiveError, ConfigError, RunError
from dask_bkg.pipeline import single

pytestmark = pytest.mark.slow  # whole jobs, or simulations of many skies

OBS_IDS = [64001, 64002, 64003, 64004]


@pytest.fixture
def job(job, _four_runs, tmp_path, tmp_path_factory):
    """The shared fixture, with a run store that has the four runs already."""
    return keep_store(job, _four_runs, tmp_path, tmp_path_factory.getbasetemp())


@pytest.fixture
def catalogs(tmp_path, monkeypatch):
    """A ``$GAMMAPY_DATA`` of a few sources and stars around the simulated targets; one of each kind."""
    base = tmp_path / "gammapy-data"
    for folder in ("catalogs/gammacat", "veritas/crab-point-like-ED"):
        (base / folder).mkdir(parents=True)
    gammacat = Table(
        rows=[
            ("Point", 83.633, 22.0145, "point", 0.0),
            ("Small", 84.6, 21.2, "gauss", 0.05),  # 3 sigma is smaller than the radius of a point
            ("Large", 82.3, 23.0, "shell", 0.3),
            ("Sizeless", 83.0, 20.4, "gauss", np.nan),
            ("Reaches in", 83.633, 19.2, "gauss", 0.4),  # the centre lies outside of the field
            ("Beside", 86.8, 22.3, "gauss", 0.3),  # so does this one, at the same declination
            ("Halo", 150.0, 38.0, "gauss", 0.15),
        ],
        names=("common_name", "ra", "dec", "morph_type", "morph_sigma"),
    )
    gammacat.write(base / "catalogs/gammacat/gammacat.fits.gz")
    hawc = Table(
        rows=[("3HWC J0534+220", 83.63, 22.02, 0.0), ("3HWC J0543+231", 85.3, 23.1, 0.5)],
        names=("source_name", "ra", "dec", "search_radius"),
    )
    hawc.write(base / "catalogs/3HWC.ecsv")
    stars = "84.41 21.14 26451 2.97 -0.15\n83.05 22.80 1 7.5 0.0\n84.9 22.6 2 8.01 0.0\n150.8 37.2 3 4.2 0.5\n"
    (base / "veritas/crab-point-like-ED/Hipparcos_MAG8_1997.dat").write_text(f"# RA Dec HIP Vmag B-V\n{stars}")
    monkeypatch.setenv("GAMMAPY_DATA", str(base))
    return base


# --- the example of the procedure --------------------------------------------------------------------------

EXAMPLE = """
from dask_bkg import get_config, prepare_dataset, run_make_background
from gammapy.data import DataStore


config = get_config()


config['io']["search_datastore"] = "{archive}/"
config['io']['in_dir'] = "{runwise}/"
config['io']['out_dir'] = "{runwise}/"

config['io']['from_run'] = True
config['background_selection']['smooth'] = True
config['background_selection']['smooth_sigma'] = 1.0

data_store = DataStore.from_dir(config['io']["search_datastore"])

obs_ids = data_store.obs_table["OBS_ID"]

config["run_selection"]["runlist"] = obs_ids
config["config"]["njobs"] = 10

config["exclusion"]["allow_missing_catalogs"] = True

config = prepare_dataset(config)
config = run_make_background(config)
"""


def test_the_example_of_the_procedure_as_a_plain_script(four_runs, tmp_path):
    """No ``if __name__ == "__main__"``, ten jobs on whatever machine, and ``in_dir == out_dir``."""
    runwise = tmp_path / "runwise"
    script = tmp_path / "script.py"
    example = EXAMPLE.format(archive=four_runs, runwise=runwise)
    script.write_text(example + "print('the end', config['run_selection'])\n")
    environment = {key: value for key, value in os.environ.items() if key != "GAMMAPY_DATA"}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the end") == 1  # the workers did not run the script again
    assert f"'runlist': {OBS_IDS}" in done.stdout
    assert "'failed_runs': {}" in done.stdout
    observations = DataStore.from_dir(runwise).get_observations(required_irf="full-enclosure")
    assert [obs.obs_id for obs in observations] == OBS_IDS
    assert {obs.bkg.tag for obs in observations} == {"bkg_3d"}


# --- get_config, prepare_dataset ---------------------------------------------------------------------------


def test_get_config_is_a_plain_nested_dict_with_nothing_set():
    config = get_config()
    assert type(config) is dict
    assert {"io", "binning", "config", "exclusion", "background_selection", "run_selection"} <= config.keys()
    assert all(type(section) is dict for section in config.values() if section is not None)
    assert parse_config(config).effective() == parse_config({}).effective()


@pytest.fixture
def prepare(job, four_runs, tmp_path):
    """Prepare the four runs in ``tmp_path / "in"``."""

    def do(overwrite=False, archive=four_runs, **sections):
        sections["io"] = {"in_dir": str(tmp_path / "in"), **sections.get("io", {})}
        return prepare_dataset(job(archive, **sections), overwrite)

    return do


def test_runs_are_copied_with_their_index(prepare, four_runs, tmp_path):
    prepared = prepare(run_selection={"runlist": [64003, 5, 64001]})
    assert prepared["run_selection"] == {"runlist": [64003, 64001], "missing_runs": [5]}
    assert sorted(p.name for p in (tmp_path / "in/data").iterdir()) == ["run_064001.fits.gz", "run_064003.fits.gz"]
    for name in ("run_064001.fits.gz", "run_064003.fits.gz"):
        assert (tmp_path / "in/data" / name).read_bytes() == (four_runs / "data" / name).read_bytes()
    before, after = read_datastore(four_runs), read_datastore(tmp_path / "in")
    assert after.obs_ids.tolist() == [64001, 64003]
    assert after.obs.colnames == before.obs.colnames
    assert len(DataStore.from_dir(tmp_path / "in").get_observations(required_irf=[])) == 2


@pytest.mark.parametrize("everything", [None, "all"])
def test_every_run(prepare, everything):
    assert prepare(run_selection={"runlist": everything})["run_selection"]["runlist"] == OBS_IDS


@pytest.mark.parametrize(
    "runlist",
    [
        np.array(OBS_IDS[:2], dtype=np.int32),
        [np.int64(64001), np.int64(64002)],
        Column(OBS_IDS[:2], name="OBS_ID"),
        Table({"OBS_ID": OBS_IDS[:2]})["OBS_ID"],
        (64001, 64002),
    ],
    ids=["array", "NumPy integers", "Column", "table column", "tuple"],
)
def test_any_kind_of_runlist(prepare, runlist):
    found = prepare(run_selection={"runlist": runlist})["run_selection"]["runlist"]
    assert found == [64001, 64002]
    assert {type(run) for run in found} == {int}


def stamps(directory: Path) -> dict[str, tuple[int, int]]:
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (directory / "data").iterdir()}


def test_whole_copies_are_kept_broken_ones_replaced(prepare, four_runs, run_path, tmp_path):
    prepare()
    before = stamps(tmp_path / "in")
    broken = run_path(tmp_path / "in", 64002)
    broken.write_bytes(broken.read_bytes()[:1000])
    prepare()
    after = stamps(tmp_path / "in")
    assert {name for name in before if after[name] != before[name]} == {"run_064002.fits.gz"}
    assert broken.read_bytes() == run_path(four_runs, 64002).read_bytes()


def test_overwrite_copies_again(prepare, tmp_path):
    prepare()
    before = stamps(tmp_path / "in")
    prepare(overwrite=True)
    assert all(before[name] != stamp for name, stamp in stamps(tmp_path / "in").items())


def test_attach_index_copies_nothing(prepare, tmp_path):
    prepare(io={"attach": "index"})
    names = {path.name for path in (tmp_path / "in").iterdir()}
    assert names == {"config.yaml", "hdu-index.fits.gz", "obs-index.fits.gz"}
    assert len(DataStore.from_dir(tmp_path / "in").obs(64001, required_irf=[]).events.table) > 100


def test_in_dir_that_is_the_archive_is_left_alone(prepare, four_runs):
    before = {p: p.read_bytes() for p in four_runs.rglob("*") if p.is_file()}
    prepared = prepare(io={"in_dir": str(four_runs) + "/../four/"}, overwrite=True)
    assert {p: p.read_bytes() for p in four_runs.rglob("*") if p.name != "config.yaml" and p.is_file()} == before
    assert prepared["run_selection"]["runlist"] == OBS_IDS


def test_the_configuration_is_written_and_can_be_loaded(prepare, tmp_path):
    config = prepare(run_selection={"runlist": [64002, 7]}, binning={"e_min": "200 GeV", "e_bins": np.int64(7)})
    loaded = load_config(tmp_path / "in/config.yaml")
    assert loaded.explicit == config
    assert loaded.effective() == parse_config(config).effective()
    assert (loaded.runs(), loaded.run_selection.missing_runs) == ([64002], [7])
    assert (loaded.binning.e_min, loaded.binning.e_bins) == (0.2, 7)


def test_what_was_given_is_not_changed(prepare, job, four_runs):
    config = job(four_runs)
    config["run_selection"] = {"runlist": [64001, 7]}
    prepared = prepare_dataset(config)
    assert config["run_selection"] == {"runlist": [64001, 7]}
    assert prepared["run_selection"]["missing_runs"] == [7]
    finished = run_make_background(prepared)
    assert "failed_runs" not in prepared["run_selection"]
    assert finished["run_selection"] == {"runlist": [64001], "missing_runs": [7], "failed_runs": {}}
    assert run_make_background(finished)["run_selection"] == finished["run_selection"]  # it is a configuration again


def test_a_run_that_cannot_be_copied_is_left_out(prepare, four_runs, run_path, tmp_path, caplog):
    run_path(four_runs, 64002).unlink()
    with caplog.at_level(logging.WARNING):
        prepare()
    assert "64002" in caplog.text
    assert read_datastore(tmp_path / "in").obs_ids.tolist() == [64001, 64003, 64004]
    for obs_id in (64001, 64003, 64004):
        run_path(four_runs, obs_id).unlink()
    with pytest.raises(ArchiveError, match="no run could be"):
        prepare(io={"in_dir": str(tmp_path / "nothing")})


def test_whole_configuration_is_checked_once_at_the_end(job, four_runs):
    """Assigning e_min before e_max is fine; what is wrong in the end is refused before anything is done."""
    config = job(four_runs, binning={"e_min": 200.0})
    with pytest.raises(ConfigError, match="e_min"):
        run_make_background(config)
    with pytest.raises(ConfigError, match="e_min"):
        prepare_dataset(config)
    config["binning"]["e_max"] = 300.0
    prepare_dataset(config)


# --- the lists that were used ------------------------------------------------------------------------------


@pytest.fixture
def stack(job, four_runs, tmp_path):
    """A stacking job for the four runs, two of them for each: ``stack(rank="kl", ...)`` for its selection."""

    def make(**selection):
        return job(four_runs, io={"from_run": False}, background_selection={"time_request": 0.6, **selection})

    return make


def lists_of(config: dict) -> dict[int, list[int]]:
    return config["background_selection"]["bkg_runlist"]


def told_of(tmp_path) -> dict[int, dict]:
    told = json.loads((tmp_path / "out/results/provenance.json").read_text())["backgrounds"]
    return {int(run): entry for run, entry in told.items()}


def statuses(tmp_path) -> list[str]:
    return Table.read(tmp_path / "out/results/summary.ecsv")["STATUS"].tolist()


def no_selection(monkeypatch) -> None:
    """From now on a selection that is made is a failure."""
    for name in ("choose_block", "finish"):
        monkeypatch.setattr(f"dask_bkg.selection.{name}", lambda *args: pytest.fail("a selection was made"))


@pytest.mark.parametrize("rank", ["elevation", "kl"])
def test_the_returned_configuration_holds_the_lists_that_were_used(stack, tmp_path, rank):
    """Nearest first, each marked, and a mark of the settings; what was given is not changed."""
    given = stack(rank=rank)
    finished = run_make_background(given)
    assert "bkg_runlist" not in given["background_selection"]
    assert lists_of(finished) == {run: entry["contributing_runs"] for run, entry in told_of(tmp_path).items()}
    assert all(len(runs) == 2 and run not in runs for run, runs in lists_of(finished).items())
    marks = finished["background_selection"]["bkg_runlist_digest"]
    assert marks.keys() == {"settings", *map(str, OBS_IDS)}
    assert finished["background_selection"]["rank"] == rank
    parse_config(finished)


@pytest.mark.parametrize("text", [None, "yaml", "json"])
def test_a_second_call_takes_the_lists(stack, tmp_path, monkeypatch, caplog, text):
    """Through a file or not: no selection is made, nothing is read or written, and it is the same configuration."""
    finished = run_make_background(stack(rank="kl"))
    back = {
        None: lambda config: config,
        "yaml": lambda config: yaml.safe_load(yaml.safe_dump(config)),
        "json": lambda config: json.loads(json.dumps(config)),
    }[text](finished)
    no_selection(monkeypatch)
    with caplog.at_level(logging.WARNING):
        again = run_make_background(back)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert statuses(tmp_path) == ["unchanged"] * 4
    for name in ("bkg_runlist", "bkg_runlist_digest"):
        assert (
            parse_config(again).effective()["background_selection"][name]
            == (parse_config(finished).effective()["background_selection"][name])
        )


def test_what_was_written_to_a_file_is_read_back_with_its_lists(stack, tmp_path, monkeypatch):
    """By our own writer, and by the loader that refuses what YAML would misread."""
    finished = run_make_background(stack(rank="kl"))
    path = tmp_path / "finished.yaml"
    path.write_text(dump_yaml(finished))
    loaded = load_config(path)
    assert loaded.background_selection.bkg_runlist == lists_of(finished)
    assert loaded.explicit == finished
    no_selection(monkeypatch)
    run_make_background(loaded.explicit)


CHANGES = {
    "a cut": {"background_selection": {"el_min": 10}},
    "hours": {"background_selection": {"time_request": 0.2}},
    "ranking": {"background_selection": {"rank": "elevation"}},
    "divergence": {"model": {"divergence": "document"}},
    "binning": {"binning": {"e_bins": 12}},
    "exclusion": {"exclusion": {"exclude_regions": [[83.6, 22.0, 0.5]]}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_with_other_settings_the_selection_is_made_anew(stack, tmp_path, caplog, change):
    """Whatever decides who contributes; a warning says so."""
    finished = run_make_background(stack(rank="kl"))
    for section, values in CHANGES[change].items():
        finished[section] = {**(finished.get(section) or {}), **values}
    with caplog.at_level(logging.WARNING):
        again = run_make_background(finished)
    words = "the settings have changed since bkg_runlist was selected: the selection of 4 runs is made anew"
    assert words in caplog.text
    assert lists_of(again) == {run: entry["contributing_runs"] for run, entry in told_of(tmp_path).items()}
    settings = [c["background_selection"]["bkg_runlist_digest"]["settings"] for c in (finished, again)]
    assert settings[0] != settings[1]
    if change == "hours":
        assert {len(runs) for runs in lists_of(again).values()} == {1}
    # and these lists are taken the next time, without a word
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        run_make_background(again)
    assert "changed" not in caplog.text
    assert statuses(tmp_path) == ["unchanged"] * 4


@pytest.mark.parametrize(
    "section",
    [
        {"background_selection": {"smooth": True}},
        {"config": {"njobs": 2, "block": 2}},
        {"model": {"min_counts": 100}},
    ],
    ids=["smoothing", "blocks", "rate"],
)
def test_what_decides_nothing_keeps_the_lists(stack, monkeypatch, caplog, section):
    finished = run_make_background(stack(rank="kl"))
    for name, values in section.items():
        finished[name] = {**(finished.get(name) or {}), **values}
    no_selection(monkeypatch)
    with caplog.at_level(logging.WARNING):
        again = run_make_background(finished)
    assert "anew" not in caplog.text
    assert lists_of(again) == lists_of(finished)


def test_weights_are_found_again(stack, tmp_path):
    """A list has no weights: by the same settings the same runs are selected, with theirs."""
    finished = run_make_background(stack(rank="conditions"))
    before = told_of(tmp_path)
    assert all(entry["weights"] for entry in before.values())
    assert lists_of(run_make_background(finished)) == lists_of(finished)
    assert statuses(tmp_path) == ["unchanged"] * 4
    assert told_of(tmp_path) == before


def test_a_list_of_the_user_wins_over_every_cut(stack, tmp_path, caplog):
    """And over other settings; it comes back as it was, in its order, and is never marked."""
    own = {64002: [64004, 64001]}
    given = stack(rank="elevation", time_request=0.3, bkg_runlist=own, el_min=80.0)
    finished = run_make_background(given)
    assert told_of(tmp_path)[64002]["contributing_runs"] == own[64002]
    assert lists_of(finished) == own
    # no other run passes
    assert list(finished["run_selection"]["failed_runs"]) == [64001, 64003, 64004]
    assert finished["background_selection"]["bkg_runlist_digest"].keys() == {"settings"}
    finished["background_selection"]["el_min"] = 5.0
    with caplog.at_level(logging.WARNING):
        again = run_make_background(finished)
    assert "anew" not in caplog.text
    assert lists_of(again)[64002] == own[64002]
    assert again["background_selection"]["bkg_runlist_digest"].keys() == {"settings", "64001", "64003", "64004"}
    assert told_of(tmp_path)[64002]["contributing_runs"] == own[64002]


def test_a_list_that_the_user_changed_is_the_users(stack, tmp_path, caplog):
    finished = run_make_background(stack(rank="kl"))
    selected = lists_of(finished)[64003]
    left_out = next(run for run in OBS_IDS if run not in (*selected, 64003))
    lists_of(finished)[64003] = [left_out]
    finished["background_selection"]["el_min"] = 10.0
    with caplog.at_level(logging.WARNING):
        again = run_make_background(finished)
    assert "the selection of 3 runs is made anew" in caplog.text
    assert told_of(tmp_path)[64003]["contributing_runs"] == [left_out]
    assert lists_of(again)[64003] == [left_out]
    assert "64003" not in again["background_selection"]["bkg_runlist_digest"]


def test_run_wise_there_are_no_lists(job, four_runs):
    assert "bkg_runlist" not in (run_make_background(job(four_runs)).get("background_selection") or {})


# --- KL_DIV ------------------------------------------------------------------------------------------------


def kl_job(archive, out, **sections) -> dict:
    io = {"search_datastore": str(archive), "in_dir": str(archive), "out_dir": str(out), "attach": "index"}
    selection = {"KL_DIV": True, "store_KL": True, "time_request": 1.5}
    config = {"cluster": "threads", "config": {"njobs": 1}, "binning": {"mode": "2d"}, "io": io}
    return run_make_background({**config, "background_selection": selection, **sections})


@pytest.mark.filterwarnings("ignore:overflow")
def test_kl_div_under_the_preset_is_the_documents(archive, catalogs, tmp_path):
    """Formula by formula: the run-wise rates of each run, normalised, plus 1e-9, entropy, the nearest until 1.5 h."""
    directory, _ = archive
    kl_job(directory, tmp_path / "out", preset="gammapy-tools", run_selection={"runlist": [64002, 64007]})
    observations = DataStore.from_dir(directory).get_observations(required_irf=[])
    numbers = [int(obs.obs_id) for obs in observations]
    rates = np.array([np.nan_to_num(document_rate([obs], False, *axes()).ravel()) for obs in observations])
    shapes = dict(zip(numbers, rates / rates.sum(axis=1, keepdims=True) + 1e-9, strict=True))
    hours = {int(obs.obs_id): obs.observation_live_time_duration.to_value("h") for obs in observations}
    for obs_id in (64002, 64007):
        expected = {run: entropy(shapes[obs_id], shapes[run]) for run in numbers}
        order = sorted((run for run in numbers if run != obs_id), key=lambda run: round(expected[run], 10))
        enough = 1 + int(np.searchsorted(np.cumsum([hours[run] for run in order]), 1.5))
        entry = told_of(tmp_path)[obs_id]
        assert entry["contributing_runs"] == order[:enough]
        assert entry["scores"] == pytest.approx([expected[run] for run in order[:enough]], rel=1e-6)
        table = Table.read(tmp_path / f"out/results/kl/{obs_id}.kl.fits")
        assert table["OBS_ID"].tolist() == [obs_id, *order]
        divergences = [expected[run] for run in table["OBS_ID"]]
        assert table["KL_DIV"].tolist() == pytest.approx(divergences, rel=1e-6, abs=1e-9)


def test_kl_div_without_the_preset_compares_shapes(archive, catalogs, tmp_path):
    """The same as ``rank: kl``; another order than the document's, and nearer in zenith angle than chance."""
    directory, truth = archive
    kl_job(directory, tmp_path / "out")
    by_shape = {run: entry["contributing_runs"] for run, entry in told_of(tmp_path).items()}
    (tmp_path / "out").rename(tmp_path / "shape")
    kl_job(directory, tmp_path / "out", background_selection={"rank": "kl", "time_request": 1.5})
    assert {run: entry["contributing_runs"] for run, entry in told_of(tmp_path).items()} == by_shape
    (tmp_path / "out").rename(tmp_path / "rank")
    kl_job(directory, tmp_path / "out", model={"divergence": "document"})
    assert {run: entry["contributing_runs"] for run, entry in told_of(tmp_path).items()} != by_shape
    airmass = {run.obs_id: 1 / np.cos(np.deg2rad(run.zenith)) for run in truth.runs}
    gap = [np.mean([abs(airmass[r] - airmass[run]) for r in runs]) for run, runs in by_shape.items()]
    chance = [abs(a - b) for a in airmass.values() for b in airmass.values()]
    assert np.mean(gap) < 0.7 * np.mean(chance)


# --- make_background ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("from_run", [True, False])
def test_make_background_is_what_the_job_writes(job, four_runs, tmp_path, from_run):
    config = job(four_runs, io={"from_run": from_run}, binning={"e_bins": 12}, background_selection={"smooth": True})
    run_make_background(config)
    written = Background2D.read(tmp_path / "out/data/run_064002.fits.gz", hdu="BACKGROUND")
    made = make_background(four_runs, 64002, config)
    assert isinstance(made, Background2D)
    assert made.data == pytest.approx(written.quantity.to_value(made.unit), rel=1e-6)
    assert not list(four_runs.glob("results"))


@pytest.mark.parametrize("same", [True, False], ids=["the job's archive", "another archive"])
def test_make_background_takes_the_run_store_of_the_job(archive, catalogs, four_runs, tmp_path, monkeypatch, same):
    """Its runs are not read again; an archive that is not the job's has nothing to do with its store."""
    directory, _ = archive
    kl_job(directory, tmp_path / "out")
    io = {"search_datastore": f"{directory}/", "out_dir": str(tmp_path / "out")}
    config = {"io": io, "binning": {"mode": "2d"}, "background_selection": {"KL_DIV": True, "time_request": 1.5}}
    update, places = single.update_store, []

    def noted(plan, client, path, **options):
        stored = update(plan, client, path, **options)
        places.append((path, stored.opened))
        return stored

    monkeypatch.setattr(single, "update_store", noted)
    made = make_background(directory if same else four_runs, 64002, config)
    store = tmp_path / "out/results/runs.zarr"
    assert [(path == store, opened) for path, opened in places] == [(same, 0 if same else 4)]
    if same:
        written = Background2D.read(tmp_path / "out/backgrounds/bkg_64002.fits.gz", hdu="BACKGROUND")
        assert made.data == pytest.approx(written.quantity.to_value(made.unit), rel=1e-6)


def test_make_background_travels_to_a_worker(job, four_runs):
    config = job(four_runs, binning={"e_bins": 6})
    here = make_background(four_runs, 64001, config)
    assert pickle.loads(pickle.dumps(make_background)) is make_background
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        futures = [client.submit(make_background, four_runs, obs_id, config, pure=False) for obs_id in (64001, 64002)]
        there = [future.result() for future in futures]
    assert (there[0].data == here.data).all()
    assert not np.allclose(there[1].data, here.data)


def test_make_background_takes_a_file_a_config_and_nothing(job, four_runs, tmp_path, catalogs):
    assert make_background(str(four_runs), np.int64(64001)).data.shape == (30, 25, 25)
    config = parse_config({"binning": {"e_bins": 4}, "exclusion": {"catalogs": []}, "io": {"from_run": True}})
    path = tmp_path / "config.yaml"
    path.write_text("binning: {e_bins: 4}\nexclusion: {catalogs: []}\nio: {from_run: true}\n")
    backgrounds = [make_background(four_runs, 64001, given) for given in (config, path, config.explicit)]
    assert {b.data.shape[0] for b in backgrounds} == {4}
    assert (backgrounds[0].data == backgrounds[1].data).all()


def test_make_background_of_a_run_that_cannot_be_used(job, four_runs, run_path):
    run_path(four_runs, 64002).write_bytes(b"lost")
    with pytest.raises(RunError, match=r"run 64002.*FITS"):
        make_background(four_runs, 64002, job(four_runs))
    with pytest.raises(ArchiveError, match="none of the runs"):
        make_background(four_runs, 1, job(four_runs))


# --- the estimator, and the document formula by formula ----------------------------------------------------


def axes(energy_bins=20, offset_bins=5):
    energy = MapAxis.from_energy_bounds("0.1 TeV", "100 TeV", nbin=energy_bins, name="energy")
    return energy, MapAxis.from_bounds(0, 2.5, nbin=offset_bins, unit="deg", name="offset")


def document_circles(pointing: SkyCoord) -> list[tuple[float, float, float]]:
    """What the document excludes, written down by hand: centres within 2.5 deg; 3 sigma for sizes that are known."""
    sources = [
        (83.633, 22.0145, 0.35), (84.6, 21.2, 0.15), (82.3, 23.0, 0.9), (83.0, 20.4, 0.35), (83.633, 19.2, 1.2),
        (86.8, 22.3, 0.9), (150.0, 38.0, 0.45), (83.63, 22.02, 0.35), (85.3, 23.1, 0.35),
        (84.41, 21.14, 0.35), (83.05, 22.80, 0.35), (150.8, 37.2, 0.35),
    ]  # fmt: skip
    return [c for c in sources if pointing.separation(SkyCoord(*c[:2], unit="deg")).deg < 2.5]


def document_rate(observations, smooth: bool, energy: MapAxis, offset: MapAxis) -> np.ndarray:
    """The document's formulas with gammapy and NumPy alone [s-1 TeV-1 sr-1]."""
    counts, exposure = 0, 0
    offset_bins = offset.edges.to_value("deg")
    for obs in observations:
        events = obs.events
        circles = document_circles(obs.pointing.fixed_icrs)
        run_mask = np.ones(len(events.table), dtype=bool)
        for ra, dec, radius in circles:
            run_mask &= events.radec.separation(SkyCoord(ra, dec, unit="deg")).deg > radius
        counts_all = np.histogram(events.offset.to_value("deg"), bins=offset_bins)[0] + 1e-9
        counts_exc = np.histogram(events.offset[run_mask].to_value("deg"), bins=offset_bins)[0] + 1e-9
        solid_angle = 2 * np.pi * offset.center.to("rad") * offset.bin_width.to("rad")
        volume = energy.bin_width[:, np.newaxis] * solid_angle
        time = obs.observation_time_duration
        exposure += (time * volume).to_value("s TeV rad2") * (counts_exc / counts_all)
        bins = [energy.edges.to_value("TeV"), offset_bins]
        kept = events.energy.to_value("TeV")[run_mask], events.offset.to_value("deg")[run_mask]
        counts += np.histogram2d(*kept, bins=bins)[0]
    rate = Background2D(axes=[energy, offset], data=counts / exposure, unit="s-1 TeV-1 sr-1")
    if smooth:
        bkg_3d = rate.to_3d()
        for i in range(len(bkg_3d.data)):
            bkg_3d.data[i, :, :] = gaussian_filter(bkg_3d.data[i, :, :], 1.0, 0)
        rate = bkg_3d.to_2d()
    return rate.quantity.to_value("s-1 TeV-1 sr-1")


@pytest.mark.filterwarnings("ignore:overflow")  # the document's way: empty bins through to_3d
@pytest.mark.parametrize("smooth", [False, True])
def test_the_preset_is_the_document_number_by_number(archive, catalogs, smooth):
    observations = DataStore.from_dir(archive[0]).get_observations([64001, 64002, 64003, 64006], required_irf=[])
    energy, offset = axes()
    estimator = BackgroundModelEstimator(energy, offset, smooth=smooth, preset="gammapy-tools")
    estimator.run(observations)
    assert all(document_circles(obs.pointing.fixed_icrs) for obs in observations)
    expected = document_rate(observations, smooth, energy, offset)
    assert (expected > 0).sum() > 30
    assert estimator.background_rate.quantity.to_value("s-1 TeV-1 sr-1") == pytest.approx(expected, rel=1e-6)


def test_a_job_under_the_preset_writes_the_documents_rate(archive, catalogs, tmp_path):
    directory, _ = archive
    io = {"search_datastore": str(directory), "in_dir": str(directory), "out_dir": str(tmp_path / "out")}
    config = {
        "preset": "gammapy-tools", "cluster": "threads", "io": {**io, "from_run": True},
        "background_selection": {"smooth": True}, "run_selection": {"runlist": [64001]},
    }  # fmt: skip
    run_make_background(config)
    observations = DataStore.from_dir(directory).get_observations([64001], required_irf=[])
    expected = document_rate(observations, True, *axes())
    written = DataStore.from_dir(tmp_path / "out").obs(64001).bkg
    assert written.quantity.to_value("s-1 TeV-1 sr-1") == pytest.approx(expected, rel=1e-6)


def test_the_estimator_counts_as_reduce_run_does(archive, catalogs, run_path):
    directory, _ = archive
    energy, offset = axes(9, 10)
    edges = {"energy": energy.edges.to_value("TeV"), "offset": offset.edges.to_value("deg")}
    regions = dask_bkg.sky_regions(parse_config({"exclusion": {"exclude_regions": [[84.0, 22.5, 0.4]]}}).exclusion)
    runs = [reduce_run(str(run_path(directory, i)), i, edges, regions) for i in (64001, 64005)]
    estimator = BackgroundModelEstimator(energy, offset, excluded_sources=[(84.0, 22.5, 0.4)])
    for obs_id in (64001, 64005):  # run adds up
        estimator.run(DataStore.from_dir(directory).get_observations([obs_id], required_irf=[]))
    assert (estimator.counts == sum(run.counts.values for run in runs)).all()
    assert estimator.exposure == pytest.approx(sum(run.exposure.values for run in runs), rel=1e-12)
    rate = estimator.background_rate
    assert np.isfinite(rate.data).all()
    assert (rate.data > 0).all()
    assert rate.axes["energy"].edges.to_value("TeV") == pytest.approx(edges["energy"])


def test_estimator_without_catalogues_says_how_to_get_them(no_catalogs):
    with pytest.raises(ConfigError, match="gammapy download datasets"):
        BackgroundModelEstimator(*axes())


# --- ExclusionFinder ---------------------------------------------------------------------------------------


def test_finder_knows_what_is_near(catalogs):
    finder = ExclusionFinder()
    assert finder.find_gamma_sources(83.633, 22.0145, theta=2.0)["name"].tolist() == [
        "Point", "Small", "Large", "Sizeless",
    ]  # fmt: skip
    assert finder.find_hawc_sources(83.633, 22.0145, theta=1.0)["name"].tolist() == ["3HWC J0534+220"]
    stars = finder.find_stars(83.633, 22.0145, theta=2.0, mag_cut=8)
    assert stars["ra"].tolist() == [84.41, 83.05]
    assert finder.find_stars(83.633, 22.0145, theta=2.0)["ra"].tolist() == [84.41]  # V < 7
    assert len(finder.find_gamma_sources(10.0, -70.0)) == 0


def test_finder_gives_circles_and_names(catalogs):
    regions, names = ExclusionFinder(0.4).find_exclusion(83.633, 22.0145, theta=1.5, star_theta_cut=0.25)
    found = {name: region for region, name in zip(regions, names, strict=True)}
    assert found["Point"] == pytest.approx((83.633, 22.0145, 0.4))
    assert found["Small"][2] == 0.4
    star = next(region for name, region in found.items() if "26451" in name)
    assert star == pytest.approx((84.41, 21.14, 0.25))
    wide, names = ExclusionFinder().find_exclusion(83.633, 22.0145, theta=1.8, theta_cut=0.5)
    radii = dict(zip(names, (region[2] for region in wide), strict=True))
    assert (radii["Point"], radii["Large"]) == (0.5, pytest.approx(0.9))


def test_finder_keeps_events_outside(catalogs, archive, run_path):
    with fits.open(run_path(archive[0], 64001)) as hdus:
        table = Table(hdus["EVENTS"].data)
    finder = ExclusionFinder()
    circles, _ = finder.find_exclusion(83.633, 22.0145, theta=2.0)
    sky = SkyCoord(table["RA"], table["DEC"], unit="deg")
    expected = np.ones(len(table), dtype=bool)
    for ra, dec, radius in circles:
        expected &= sky.separation(SkyCoord(ra, dec, unit="deg")) > radius * u.deg
    assert (finder.exclude_events(table, 83.633, 22.0145, theta=2.0) == expected).all()
    assert 0 < expected.sum() < len(table)
