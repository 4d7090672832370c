"""Many runs that cannot be used: a few lines say of which kinds they are, a file has them all."""

from __future__ import annotations

import shutil

import pytest
from astropy.table import Table
from click.testing import CliRunner

from dask_bkg.cli import _tell_results, main
from dask_bkg.config.yaml import dump_yaml
from dask_bkg.output.write import Result
from dask_bkg.simulate import simulate_archive

pytestmark = pytest.mark.slow

RUNS = [*range(64001, 64025)]
CUT, GONE, NO_GTI = RUNS[:7], RUNS[7:12], RUNS[12:15]


@pytest.fixture
def config_file(job, tmp_path, run_path, edit_run):
    """A job on an archive of 24 runs, of which 15 are bad, of three kinds; the good archive is next to it."""
    archive = tmp_path / "dl3"
    simulate_archive(tmp_path / "good", runs=len(RUNS), events=300, seed=3, sources=False, stars=False)
    shutil.copytree(tmp_path / "good", archive)
    for obs_id in CUT:
        path = run_path(archive, obs_id)
        path.write_bytes(path.read_bytes()[: 1000 + obs_id % 100])
    for obs_id in GONE:
        run_path(archive, obs_id).unlink()
    for obs_id in NO_GTI:
        edit_run(run_path(archive, obs_id), lambda hdus: hdus.pop("GTI"))
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(job(archive)))
    return path


def call(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments), "--no-progress"])


@pytest.mark.parametrize("command", ["run", "reduce", "kl", "validate"])
def test_failures_are_reported_by_kind_and_listed_in_a_file(config_file, tmp_path, run_path, command):
    results = tmp_path / "out" / "results" / ("validation" if command == "validate" else "")
    if command == "validate":
        config_file.write_text(config_file.read_text().replace("from_run: true", "from_run: false"))
    done = call(command, config_file)
    assert done.exit_code == 3, done.output
    told = done.stderr[done.stderr.index("15 runs could not be used:") :].splitlines()
    print("\n".join(told))
    assert [int(line.split()[0]) for line in told[2:]] == [7, 5, 3]
    assert f"\nfailures, all 15: {results / 'failures.ecsv'}\n" in done.stderr
    table = Table.read(results / "failures.ecsv")
    assert sorted(table["OBS_ID"].tolist()) == sorted([*CUT, *GONE, *NO_GTI])
    assert all(f"run {row['OBS_ID']}: " in row["REASON"] for row in table)
    assert len(set(table["KIND"])) == 3
    for obs_id in (*CUT, *GONE, *NO_GTI):
        shutil.copy(run_path(tmp_path / "good", obs_id), run_path(tmp_path / "dl3", obs_id))
    done = call(command, config_file)
    assert done.exit_code == 0, done.output
    assert not (results / "failures.ecsv").exists()


def test_a_job_without_any_background_says_so_by_kind(config_file, tmp_path, run_path):
    for obs_id in RUNS[15:]:
        path = run_path(tmp_path / "dl3", obs_id)
        path.write_bytes(path.read_bytes()[:500])
    done = call("run", config_file)
    assert done.exit_code == 1
    told = done.stderr[done.stderr.index("error: no background could be made:") :].splitlines()
    assert [int(line.split()[0]) for line in told[2:]] == [16, 5, 3]
    assert len(Table.read(tmp_path / "out" / "results" / "failures.ecsv")) == len(RUNS)


def test_remarks_that_are_the_same_are_said_once(capsys):
    """Of 1,500 runs, a third of them with one of 100 remarks."""
    words = ["smoothed", *(f"{a}{b}" for a in "abcdefghij" for b in "klmnopqrst")]
    results = [
        Result(n, "done", "" if n % 3 else f"{words[max(n // 3 - 399, 0)]} over {n} events", n_events=n)
        for n in range(1500)
    ]
    _tell_results(results)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 52 + 1 + 50
    assert lines[52] == "... all 1500 runs are in summary.ecsv"
    first = lines.index("remarks on 500 backgrounds (each in summary.ecsv):")
    assert lines[first + 2].split() == ["400", "run", "0", "smoothed", "over", "N", "events"]
    assert len(lines) - first <= 50
