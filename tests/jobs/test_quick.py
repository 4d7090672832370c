"""A whole job in seconds: every step once, for those who do not wait for the slow tests."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from gammapy.data import DataStore

from dask_bkg import open_backgrounds
from dask_bkg.cli import main
from dask_bkg.simulate import simulate_archive

RUNS = 4


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Exit status and output of the job, and of the same job once more; where all is."""
    base = tmp_path_factory.mktemp("quick")
    truth = simulate_archive(base / "dl3", runs=RUNS, events=1500, seed=2)
    places = {"search_datastore": f"{base}/dl3", "in_dir": f"{base}/in", "out_dir": f"{base}/out", "from_run": False}
    regions = {"star_cat": f"{base}/dl3/stars.dat", "exclude_region_files": [f"{base}/dl3/sources.reg"]}
    config = {"cluster": "threads", "io": places, "exclusion": {"catalogs": [], **regions}, "binning": {"mode": "3d"}}
    (base / "config.yaml").write_text(yaml.safe_dump(config))
    first, second = (CliRunner().invoke(main, ["run", str(base / "config.yaml"), "--no-progress"]) for _ in range(2))
    return base, truth, first, second


def test_gammapy_finds_a_background_for_every_run(job):
    base, _, first, _ = job
    assert first.exit_code == 0, first.output
    store = DataStore.from_dir(base / "out")
    for observation in store.get_observations(required_irf=["bkg"]):
        assert (observation.bkg.data >= 0).all()
        assert observation.bkg.data.max() > 0
    assert len(store.obs_ids) == RUNS


def test_results_say_what_was_made_of_what(job):
    base, *_ = job
    results = base / "out" / "results"
    backgrounds = open_backgrounds(results)
    assert backgrounds.status.values.tolist() == ["unchanged"] * RUNS  # since the second job
    assert np.isfinite(backgrounds.rate.values).all()
    assert len(json.loads((results / "provenance.json").read_text())["backgrounds"]) == RUNS
    assert (results / "summary.ecsv").exists()
    assert (results / "backgrounds.png").stat().st_size > 10_000


def test_the_same_job_once_more_writes_nothing(job):
    *_, second = job
    assert second.exit_code == 0, second.output
    assert f"0 event files opened, events of 0 runs counted; 0 backgrounds written, {RUNS} unchanged" in second.output


def test_info_lists_the_runs_of_the_store(job):
    base, *_ = job
    shown = CliRunner().invoke(main, ["info", str(base / "out" / "results" / "runs.zarr")])
    assert shown.exit_code == 0, shown.output
    assert f"{RUNS} runs" in shown.output
