"""The command line as a user meets it: exit status, messages on the right stream, and what is printed."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import sys
import sysconfig
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml
from astropy.io import fits
from astropy.table import Table
from click.testing import CliRunner
from gammapy.data import DataStore
from helpers.kept_store import keep_store
from matplotlib.image import imread

from dask_bkg import __version__
from dask_bkg.cli import main
from dask_bkg.config import load_config, parse_config
from dask_bkg.config.presets import PRESETS
from dask_bkg.config.yaml import dump_yaml, parse_yaml
from dask_bkg.simulate import simulate_archive

pytestmark = pytest.mark.slow  # whole jobs, or simulations of many skies

ALL_DONE, NOTHING_DONE, WRONG_USAGE, SOME_FAILED = 0, 1, 2, 3
COMMANDS = ("demo", "config", "run", "reduce", "info", "kl", "simulate")
PROGRAM = Path(sysconfig.get_path("scripts"), "dask-bkg")
ROW = re.compile(r"^ *(\d+)  +(done|unchanged|failed)  +(\d+)  +([\d.]+)  +(\d+)  +(\S+)$", re.MULTILINE)


@pytest.fixture(autouse=True)
def _same_logging():
    """The command changes logging for its whole process, which here is that of all tests."""
    levels = {name: logging.getLogger(name).level for name in ("distributed", "dask_bkg")}
    yield
    logging.captureWarnings(False)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def call(*arguments):
    """The command in this process; only an exit is an end that a user may see."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert "Traceback" not in result.output
    return result


def shell(*arguments):
    command = [PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


def writer(job, four_runs, path):
    def write(archive=four_runs, **sections):
        path.write_text(dump_yaml(job(archive, **sections)))
        return path

    return write


@pytest.fixture
def yaml_file(job, four_runs, _four_runs, tmp_path, tmp_path_factory):
    """A configuration file for the four runs, which a run store has already: ``yaml_file(binning={...}, ...)``."""
    kept = keep_store(job, _four_runs, tmp_path, tmp_path_factory.getbasetemp())
    return writer(kept, four_runs, tmp_path / "config.yaml")


@pytest.fixture
def new_file(job, four_runs, tmp_path):
    """The same before anything was done, and for stacks."""
    write = writer(job, four_runs, tmp_path / "config.yaml")
    return lambda **sections: write(**{**sections, "io": {"from_run": False, **sections.get("io", {})}})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def backgrounds(directory: Path) -> list[int]:
    """Runs of a datastore that gammapy reads with a background."""
    observations = DataStore.from_dir(directory).get_observations(required_irf="full-enclosure")
    return [int(o.obs_id) for o in observations if o.bkg.data.min() > 0]


# --- 0: all runs done --------------------------------------------------------------------------------------


def test_a_job_ends_with_its_table(yaml_file, tmp_path, run_path, four_runs):
    result = call("run", yaml_file(run_selection={"runlist": [64001, 64003]}))
    assert result.exit_code == ALL_DONE
    rows = ROW.findall(result.stdout)
    header = next(line for line in result.stdout.splitlines() if "output file" in line)
    assert re.split("  +", header.strip()) == ["run", "status", "runs used", "hours", "events", "output file"]
    summary = Table.read(tmp_path / "out/results/summary.ecsv")
    for row, written, obs_id in zip(rows, summary, (64001, 64003), strict=True):
        events = fits.getheader(run_path(four_runs, obs_id), "EVENTS")
        assert row[:3] == (str(obs_id), "done", "1")
        assert float(row[3]) == pytest.approx(events["LIVETIME"] / 3600, abs=0.006)
        assert 0 < int(row[4]) == written["N_EVENTS"] < events["NAXIS2"]
        assert fits.getheader(row[5], "BACKGROUND")["HDUCLAS4"] == "BKG_2D"
    assert f"provenance, effective configuration and this table: {tmp_path / 'out/results'}" in result.stdout
    assert backgrounds(tmp_path / "out") == [64001, 64003]


def test_a_job_tells_its_effective_configuration(yaml_file, tmp_path):
    path = yaml_file(binning={"e_min": "200 GeV"}, preset="veritas", run_selection={"runlist": [64001]})
    result = call("run", path)
    told = re.search(r"# effective configuration\n(.*?)\n\n? *run  status", result.stdout, re.DOTALL)
    effective = load_config(path).effective()
    assert yaml.safe_load(told[1]) == effective
    assert (effective["binning"]["e_min"], effective["background_selection"]["nsb_diff"]) == (0.2, 0.7)
    assert yaml.safe_load((tmp_path / "out/results/effective-config.yaml").read_text()) == effective


def test_bars_only_where_they_are_wanted(yaml_file):
    assert "backgrounds: 100%" in call("run", yaml_file()).stderr
    assert call("run", yaml_file(), "--no-progress").stderr == ""


def test_the_cluster_of_the_command_wins(yaml_file, monkeypatch):
    def refuse(*_):
        raise AssertionError("a local cluster was started")

    monkeypatch.setattr("dask_bkg.cluster.local.start_workers", refuse)
    result = call("run", yaml_file(cluster="local"), "--cluster", "threads")
    assert result.exit_code == ALL_DONE
    assert "\ncluster: threads\n" in result.stdout
    assert "dashboard" not in result.output


def test_a_local_cluster_tells_its_dashboard(yaml_file, tmp_path):
    """Real worker processes; the address is there before the work, where a user can follow it."""
    result = call("run", yaml_file(cluster="local"))
    assert result.exit_code == ALL_DONE
    told = re.search(r"dashboard: http://127\.0\.0\.1:\d+/status", result.output)
    assert told
    assert told.start() < ROW.search(result.output).start()
    assert backgrounds(tmp_path / "out") == [64001, 64002, 64003, 64004]


def test_copies_are_kept_unless_overwrite(yaml_file, four_runs, run_path, tmp_path):
    """A copy of the right size is whole, whatever is in it."""
    path = yaml_file(io={"in_dir": str(tmp_path / "in")})
    assert call("run", path).exit_code == ALL_DONE
    copy, original = run_path(tmp_path / "in", 64001), run_path(four_runs, 64001)
    before = original.read_bytes()
    assert copy.read_bytes() == before
    # the time in the gzip header: another file, the same content
    changed = before[:4] + b"\1\1\1\1" + before[8:]
    original.write_bytes(changed)
    assert call("run", path).exit_code == ALL_DONE
    assert copy.read_bytes() == before
    assert call("run", path, "--overwrite").exit_code == ALL_DONE
    assert copy.read_bytes() == changed


def test_a_whole_stack_as_a_command(yaml_file, tmp_path):
    """The installed program, in a process of its own."""
    done = shell("run", yaml_file(io={"from_run": False}, background_selection={"time_request": "all"}))
    assert done.returncode == ALL_DONE, done.stderr
    assert [row[:3] for row in ROW.findall(done.stdout)] == [(str(run), "done", "3") for run in range(64001, 64005)]
    assert backgrounds(tmp_path / "out") == [64001, 64002, 64003, 64004]


# --- only what is new --------------------------------------------------------------------------------------


def told(result) -> str:
    """What a job says of its reading and writing."""
    return re.search(r"^\d+ event files opened, .*", result.stdout, re.MULTILINE)[0]


def read(opened: int, counted: int | None = None) -> str:
    return f"{opened} event files opened, events of {opened if counted is None else counted} runs counted"


def test_what_a_job_read_and_wrote(new_file, tmp_path):
    """Once everything; then nothing, whatever the cuts are; with --refresh the backgrounds, and no event."""
    path = new_file()
    assert told(call("run", path)) == read(4) + "; 4 backgrounds written, 0 unchanged"
    first = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out/data").iterdir()}
    again = call("run", path)
    assert again.exit_code == ALL_DONE
    assert told(again) == read(0) + "; 0 backgrounds written, 4 unchanged"
    assert [row[1] for row in ROW.findall(again.stdout)] == ["unchanged"] * 4
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out/data").iterdir()} == first
    assert told(call("run", path, "--refresh")) == read(0) + "; 4 backgrounds written, 0 unchanged"
    assert all(p.stat().st_mtime_ns != first[p.name] for p in (tmp_path / "out/data").iterdir())
    # a cut that changes who contributes, and one that does not: made of the same runs, yet told another way
    path = new_file(background_selection={"rank": "kl", "time_request": 0.1})
    assert told(call("run", path)) == read(0) + "; 4 backgrounds written, 0 unchanged"


def test_a_night_of_new_runs(job, tmp_path):
    """Two more runs in an archive of six: their files alone are opened, the backgrounds that they change written."""
    for name, runs in (("archive", 6), ("all", 8)):
        simulate_archive(tmp_path / name, runs, 500, seed=3, sources=False, stars=False)
    path = tmp_path / "config.yaml"
    io = {"from_run": False, "attach": "index"}
    near = {"rank": "elevation", "time_request": 0.4}
    path.write_text(dump_yaml(job(tmp_path / "archive", io=io, background_selection=near)))
    before = {row[0]: row for row in ROW.findall(call("run", path).stdout)}
    for name in ("data/run_064007.fits.gz", "data/run_064008.fits.gz", "hdu-index.fits.gz", "obs-index.fits.gz"):
        shutil.copy(tmp_path / "all" / name, tmp_path / "archive" / name)
    with files_opened() as opened:
        result = call("run", path)
    after = {row[0]: row for row in ROW.findall(result.stdout)}
    written = {run for run, row in after.items() if row[1] == "done"}
    assert {"64007", "64008"} < written
    assert len(written) < 8
    assert told(result) == read(2) + f"; {len(written)} backgrounds written, {8 - len(written)} unchanged"
    assert all(row[2:] == before[run][2:] for run, row in after.items() if run not in written)
    assert backgrounds(tmp_path / "out") == list(range(64001, 64009))
    assert {name for name in opened if "archive/data" in name} == {
        str(tmp_path / "archive/data" / f"run_{i:06d}.fits.gz") for i in (64007, 64008)
    }


_OPENED: list[list[str]] = []


def _note(event: str, arguments: tuple) -> None:
    if event == "open" and _OPENED and isinstance(arguments[0], str):
        _OPENED[-1].append(arguments[0])


sys.addaudithook(_note)


@contextmanager
def files_opened():
    """Names of all files that this process opens, by whatever library."""
    _OPENED.append([])
    try:
        yield _OPENED[-1]
    finally:
        _OPENED.pop()


# --- reduce, info, kl --------------------------------------------------------------------------------------


def test_reduce_reads_once_and_the_job_nothing(new_file, tmp_path):
    path = new_file()
    first = call("reduce", path)
    assert first.exit_code == ALL_DONE
    assert told(first) == read(4)
    assert "runs read: 100%" in first.stderr
    assert re.search(r"^runs +4 usable, 0 failed$", first.stdout, re.MULTILINE)
    assert not (tmp_path / "out/data").exists()
    again = call("reduce", path, "--no-progress")
    assert (again.exit_code, again.stderr) == (ALL_DONE, "")
    assert told(again) == read(0)
    assert told(call("run", path)) == read(0) + "; 4 backgrounds written, 0 unchanged"


def test_reduce_needs_no_place_for_backgrounds(job, four_runs, tmp_path):
    """An archive and a place for the store are enough; one of them alone is not."""
    path, place = tmp_path / "config.yaml", {"path": str(tmp_path / "shared.zarr")}
    config = {**job(four_runs, run_store=place), "io": {"search_datastore": str(four_runs)}}
    path.write_text(dump_yaml(config))
    assert call("reduce", path).exit_code == ALL_DONE
    assert sorted(p.name for p in tmp_path.iterdir() if "shared" in p.name) == [
        "shared.zarr",
        "shared.zarr.hints.json",
    ]
    assert "4 usable" in call("info", place["path"]).stdout
    assert not (tmp_path / "out").exists()
    for left_out, words in (("run_store", "no place for the run store: set run_store.path"), ("io", "io.")):
        path.write_text(dump_yaml({name: section for name, section in config.items() if name != left_out}))
        result = call("reduce", path)
        assert result.exit_code == NOTHING_DONE
        assert words in result.stderr


def test_reduce_with_a_broken_run(new_file, four_runs, run_path, tmp_path):
    cut(run_path(four_runs, 64002))
    for opened, counted in ((4, 3), (0, 0)):
        result = call("reduce", new_file())
        assert result.exit_code == SOME_FAILED
        assert told(result) == read(opened, counted)
        assert re.search(r"^runs +3 usable, 1 failed$", result.stdout, re.MULTILINE)
        assert "1 runs could not be used:\n  run 64002" in result.stderr
    # copied again it is as good as any other
    whole = tmp_path / "whole"
    simulate_archive(whole, 4, 500, seed=3, sources=False, stars=False)
    shutil.copy(run_path(whole, 64002), run_path(four_runs, 64002))
    result = call("reduce", new_file())
    assert result.exit_code == ALL_DONE
    assert told(result) == read(1)


def test_reduce_of_nothing(new_file, four_runs, run_path, tmp_path):
    result = call("reduce", new_file(io={"search_datastore": str(tmp_path / "nowhere")}))
    assert result.exit_code == NOTHING_DONE
    assert str(tmp_path / "nowhere") in result.stderr


def test_info_tells_what_is_in_a_store(new_file, tmp_path, monkeypatch):
    call("reduce", new_file())
    monkeypatch.chdir(tmp_path / "out")
    result = call("info", "results/runs.zarr")
    assert result.exit_code == ALL_DONE
    assert result.stderr == ""
    lines = dict(re.split("  +", line.strip(), maxsplit=1) for line in result.stdout.splitlines())
    assert lines["runs"] == "4 usable, 0 failed"
    assert lines["run numbers"] == "64001 to 64004"
    assert str(tmp_path / "out/results/runs.zarr") in lines["store"]
    assert {"hours", "events", "dates", "zenith", "fine axes", "exclusion", "size", "written"} <= lines.keys()


@pytest.mark.parametrize("place", ["nowhere", "four", "file", "kl.zarr", ""])
def test_info_of_what_is_no_store(four_runs, tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    xr.Dataset({"kl": ("x", [1.0])}).to_zarr(tmp_path / "kl.zarr", consolidated=False)
    before = sorted(tmp_path.rglob("*"))
    result = call("info", place)
    assert result.exit_code == NOTHING_DONE
    assert "no store of run histograms" in result.stderr
    assert str(tmp_path / place) in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_kl_writes_matrix_and_picture(new_file, tmp_path):
    """Twice in a row; the second one is in the place of the first."""
    path, results = new_file(), tmp_path / "out" / "results"
    found = []
    for _ in range(2):
        result = call("kl", path)
        assert result.exit_code == ALL_DONE
        assert f"matrix:  {results / 'kl.zarr'}\npicture: {results / 'kl.png'}\n" in result.stdout
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found.append(xr.open_zarr(results / "kl.zarr").load())
        assert imread(results / "kl.png").std() > 0.01
        assert not [p.name for p in results.iterdir() if p.name.startswith(".")]
    assert found[0].identical(found[1])
    assert found[0].obs_id.values.tolist() == found[0].obs_id_ref.values.tolist() == [64001, 64002, 64003, 64004]
    assert np.isfinite(found[0].kl.values).all()
    assert not (tmp_path / "out/data").exists()


def test_kl_without_a_broken_run(new_file, four_runs, run_path, tmp_path):
    cut(run_path(four_runs, 64002))
    result = call("kl", new_file())
    assert result.exit_code == SOME_FAILED
    assert "1 runs could not be used:\n  run 64002" in result.stderr
    assert xr.open_zarr(tmp_path / "out/results/kl.zarr").obs_id.values.tolist() == [64001, 64003, 64004]
    for obs_id in (64001, 64003):
        cut(run_path(four_runs, obs_id))
    result = call("kl", new_file())
    assert result.exit_code == NOTHING_DONE
    assert "a matrix needs two" in result.stderr
    # the earlier one is still there
    assert xr.open_zarr(tmp_path / "out/results/kl.zarr").sizes["obs_id"] == 3


def test_kl_needs_a_place(job, four_runs, tmp_path):
    """Said before anything is read."""
    path = tmp_path / "config.yaml"
    config = {
        **job(four_runs, run_store={"path": str(tmp_path / "a.zarr")}),
        "io": {"search_datastore": str(four_runs)},
    }
    path.write_text(dump_yaml(config))
    result = call("kl", path)
    assert result.exit_code == NOTHING_DONE
    assert "io.results_dir is not set" in result.stderr
    assert not (tmp_path / "a.zarr").exists()


# --- 1: nothing could be done ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"binning": {"e_mni": 1}}, ["binning.e_mni: unknown key, did you mean binning.e_min?"]),
        ({"binning": {"e_min": 10, "e_max": 1}}, ["e_min (10 TeV) must be below binning.e_max (1 TeV)"]),
        ({"binning": {"off_bins": 0}}, ["binning.off_bins", "greater than or equal to 1", "got 0"]),
        ({"io": {"in_dir": None}}, ["io.in_dir is not set: give a path"]),
        ({"cluster": "trheads"}, ["cluster", "threads", "local", "tcp://host:port", "trheads"]),
        ({"exclusion": {"star_cat": "/no/stars.dat"}}, ["exclusion.star_cat", "/no/stars.dat", "correct the path"]),
        ({"exclusion": {"catalogs": ["gammacat"]}}, ["gammapy download datasets", "allow_missing_catalogs"]),
        ({"run_selection": {"runlist": [1, 2]}}, ["none of the 2 runs of run_selection.runlist is in"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_bad_configuration(yaml_file, tmp_path, sections, words):
    result = call("run", yaml_file(**sections))
    assert result.exit_code == NOTHING_DONE
    assert result.stderr.startswith("error: ")
    assert all(word in result.stderr for word in words), result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("run_selection: {runlist: [020136]}", ["line 1", "020136", "begins with a zero", "write 20136"]),
        ("io: [unclosed", ["config.yaml", "line 1"]),
        ("just words", ["must be a table of sections"]),
        ("io: {}\nio: {}", ["line 2", "io is given twice"]),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path, text, words):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    result = call("run", path)
    assert result.exit_code == NOTHING_DONE
    assert all(word in result.stderr for word in words), result.stderr


@pytest.mark.parametrize(("name", "words"), [("nowhere", "no directory"), ("empty", "nothing")])
def test_an_unreadable_archive(yaml_file, tmp_path, name, words):
    (tmp_path / "empty").mkdir()
    result = call("run", yaml_file(tmp_path / name))
    assert result.exit_code == NOTHING_DONE
    assert words in result.stderr
    assert str(tmp_path / name) in result.stderr


def test_a_cut_index_as_a_command(yaml_file, four_runs):
    cut(four_runs / "hdu-index.fits.gz")
    done = shell("run", yaml_file())
    assert done.returncode == NOTHING_DONE
    assert "hdu-index.fits.gz" in done.stderr
    assert "Traceback" not in done.stderr
    # hints of libraries to a programmer are of no use to somebody with a broken file
    assert [line for line in done.stderr.splitlines() if line.strip()][-1].startswith("error: ")


def test_every_run_is_broken(yaml_file, four_runs, run_path):
    for obs_id in range(64001, 64005):
        cut(run_path(four_runs, obs_id))
    result = call("run", yaml_file())
    assert result.exit_code == NOTHING_DONE
    assert "no background could be made" in result.stderr
    assert all(f"run {obs_id}" in result.stderr for obs_id in range(64001, 64005))


def test_no_scheduler_answers(yaml_file, monkeypatch):
    monkeypatch.setattr("dask_bkg.cluster.client.CONNECT_SECONDS", 0.3)
    result = call("run", yaml_file(), "--cluster", "tcp://127.0.0.1:1")
    assert result.exit_code == NOTHING_DONE
    assert "no scheduler answers at tcp://127.0.0.1:1" in result.stderr
    assert "dask scheduler" in result.stderr


# --- 2: wrong usage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["run"], "Missing argument 'CONFIG_FILE'"),
        (["run", "nowhere.yaml"], "'nowhere.yaml' does not exist"),
        (["run", "."], "is a directory"),
        (["run", "--clutser", "threads"], "--clutser"),
        (["reduce"], "Missing argument 'CONFIG_FILE'"),
        (["reduce", "nowhere.yaml"], "'nowhere.yaml' does not exist"),
        (["kl", "."], "is a directory"),
        (["info"], "Missing argument 'STORE'"),
        (["config", "extra"], "unexpected extra argument"),
        (["simulate"], "Missing argument 'DIRECTORY'"),
        (["simulate", "a", "--runs", "many"], "'many' is not a valid integer"),
        (["simulate", "a", "--runs", "0"], "0 is not in the range"),
        (["simulate", "a", "--events", "-5"], "-5 is not in the range"),
        (["simulate", "a", "--seed", "-1"], "-1 is not in the range"),
        (["demo", "--njobs", "0"], "0 is not in the range"),  # it would wait for a worker for ever
        (["rnu"], "No such command 'rnu'"),
        (["--verbos"], "--verbos"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage(arguments, word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.exit_code == WRONG_USAGE
    assert word in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


# --- 3: some runs failed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("from_run", [True, False])
def test_one_cut_file_among_good_ones(yaml_file, four_runs, run_path, tmp_path, from_run):
    cut(run_path(four_runs, 64002))
    result = call("run", yaml_file(io={"from_run": from_run}))
    assert result.exit_code == SOME_FAILED
    listed = result.stderr[result.stderr.index("1 runs could not be used:") :].splitlines()[1:]
    assert len(listed) == 1
    assert "run 64002" in listed[0]
    assert "copy it again" in listed[0]
    status = {row[0]: row[1] for row in ROW.findall(result.stdout)}
    assert status == {"64001": "done", "64002": "failed", "64003": "done", "64004": "done"}
    assert backgrounds(tmp_path / "out") == [64001, 64003, 64004]


def test_a_cut_file_as_a_command(yaml_file, four_runs, run_path):
    cut(run_path(four_runs, 64002))
    done = shell("run", yaml_file(), "--no-progress")
    assert done.returncode == SOME_FAILED
    assert "1 runs could not be used:\n  run 64002" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_that_cannot_be_placed(yaml_file, four_runs, run_path, tmp_path):
    """It fails in the first step, and is still in the list at the end."""
    run_path(four_runs, 64003).unlink()
    result = call("run", yaml_file(io={"in_dir": str(tmp_path / "in")}))
    assert result.exit_code == SOME_FAILED
    assert "1 runs could not be used:" in result.stderr
    assert "64003" in result.stderr
    assert backgrounds(tmp_path / "out") == [64001, 64002, 64004]


def test_a_run_that_the_archive_does_not_have(yaml_file, tmp_path):
    result = call("run", yaml_file(run_selection={"runlist": [64001, 7]}))
    assert result.exit_code == SOME_FAILED
    assert "not in the archive: 7" in result.stderr
    assert backgrounds(tmp_path / "out") == [64001]


# --- config, simulate, help --------------------------------------------------------------------------------


def test_the_template_is_the_defaults(tmp_path):
    text = call("config").stdout
    path = tmp_path / "config.yaml"
    path.write_text(text)
    defaults = parse_config({}).effective()
    assert load_config(path).effective() == defaults
    # and so it is with the hash of every option taken away
    uncommented = re.sub(r"^(    )?# (\w+): ", r"\1\2: ", text, flags=re.MULTILINE)
    assert uncommented != text
    sections = parse_yaml(uncommented)
    assert parse_config(sections).effective() == defaults
    keys = {name: set(section) for name, section in defaults.items() if isinstance(section, dict)}
    assert {name: set(section) for name, section in sections.items() if isinstance(section, dict)} == keys


def test_config_prints_a_preset(tmp_path):
    command = next(option for option in main.commands["config"].params if option.name == "preset")
    assert list(command.type.choices) == list(PRESETS)
    path = tmp_path / "config.yaml"
    path.write_text(call("config", "--preset", "gammapy-tools").stdout)
    assert load_config(path).model.exposure == "event_ratio"
    assert "# The original procedure" in path.read_text()
    refused = call("config", "--preset", "hess")
    assert refused.exit_code == WRONG_USAGE
    assert "'veritas', 'gammapy-tools'" in refused.stderr


def test_the_template_as_it_stands_says_what_to_fill_in(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(shell("config").stdout)
    result = call("run", path)
    assert result.exit_code == NOTHING_DONE
    assert "io.search_datastore is not set: give a path" in result.stderr


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_simulate_same_seed_same_bytes(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        result = call("simulate", tmp_path / name, "--runs", 2, "--events", 100, "--seed", seed)
        assert result.exit_code == ALL_DONE
        assert f"2 runs in {tmp_path / name}" in result.stdout
        assert str(tmp_path / name / "truth.json") in result.stdout
    first = bytes_of(tmp_path / "a")
    assert sum("run_" in name for name in first) == 2
    assert bytes_of(tmp_path / "b") == first
    assert bytes_of(tmp_path / "c") != first


def test_simulate_without_sources_and_stars(tmp_path):
    sizes = {}
    for name, options in (("all", []), ("dark", ["--no-sources", "--no-stars"])):
        call("simulate", tmp_path / name, "--runs", 1, "--events", 2000, *options)
        sizes[name] = fits.getheader(tmp_path / name / "data/run_064001.fits.gz", "EVENTS")["NAXIS2"]
        assert ("circle" in (tmp_path / name / "sources.reg").read_text()) == (name == "all")
    assert sizes["dark"] < sizes["all"]


def test_simulate_keeps_what_is_there(tmp_path):
    options = ["--runs", 1, "--events", 50]
    assert call("simulate", tmp_path / "a", *options).exit_code == ALL_DONE
    again = call("simulate", tmp_path / "a", *options)
    assert again.exit_code == NOTHING_DONE
    assert "is a simulated archive already" in again.stderr
    assert call("simulate", tmp_path / "a", *options, "--overwrite").exit_code == ALL_DONE
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    foreign = call("simulate", tmp_path / "photos", *options, "--overwrite")
    assert foreign.exit_code == NOTHING_DONE
    assert "choose a new or an empty directory" in foreign.stderr
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_demo_keeps_what_is_there(tmp_path):
    (tmp_path / "cat.jpg").touch()
    result = call("demo", "--out-dir", tmp_path)
    assert result.exit_code == NOTHING_DONE
    assert "--out-dir" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["cat.jpg"]


def test_python_m():
    """Where the package is, but its program is not on the path."""
    module = [sys.executable, "-m", "dask_bkg"]
    done = subprocess.run([*module, "--version"], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == call("--version").stdout
    wrong = subprocess.run([*module, "walk"], capture_output=True, text=True, check=False, timeout=60)
    assert wrong.returncode == WRONG_USAGE
    assert wrong.stderr.startswith("Usage: python -m dask_bkg")


def test_version():
    result = call("--version")
    assert (result.exit_code, result.stdout) == (ALL_DONE, f"dask-bkg, version {__version__}\n")


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command, option):
    result = call(*command.split(), option)
    assert result.exit_code == ALL_DONE
    assert result.stdout.startswith("Usage:")
    words = (
        COMMANDS if not command else [line.split()[0] for line in result.stdout.split("Options:\n")[1].splitlines()]
    )
    assert all(word in result.stdout for word in words)
    options = re.findall(r"^ +(--?[\w-]+.*)$", result.stdout, re.MULTILINE)
    # an option without a word of help would end with its type
    assert options
    assert not [line for line in options if re.fullmatch(r"(-\w, )?--[\w/-]+( [A-Z|\[\]]+)?", line)]
