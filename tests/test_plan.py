"""What a job will do: which runs it reads, which receive a background, what is left out and why, where files go."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table

from dask_bkg.config import parse_config
from dask_bkg.dl3.index import read_datastore, write_index
from dask_bkg.errors import ArchiveError, ConfigError
from dask_bkg.plan import check_job, plan_archive, plan_job
from dask_bkg.settings import shape_settings

OBS_IDS = [64001, 64002, 64003, 64004]
OTHERS = {"io": {"from_run": False}}


@pytest.fixture
def plan(job, four_runs):
    """Plan of a job on the four runs; the sections given are added to the configuration."""

    def make(archive=four_runs, **sections):
        return plan_job(parse_config(job(archive, **sections)))

    return make


def targets(plan) -> list[int]:
    return [target.obs_id for target in plan.targets]


def read(plan) -> list[int]:
    return [run.obs_id for run in plan.runs]


def index_column(archive: Path, change) -> None:
    """Change the obs-index of an archive."""
    store = read_datastore(archive)
    change(store.obs)
    write_index(archive, store.hdu, store.obs)


def without_rows(archive: Path, obs_id: int, kind: str) -> None:
    """Take the rows of one kind of HDU of a run out of the index."""
    store = read_datastore(archive)
    gone = (store.hdu["OBS_ID"] == obs_id) & (store.hdu["HDU_TYPE"] == kind)
    assert gone.any()
    write_index(archive, store.hdu[~gone], store.obs)


# --- which runs --------------------------------------------------------------------------------------------


def test_from_run_the_targets_alone_are_read(plan):
    planned = plan(run_selection={"runlist": [64003, 64001]})
    assert targets(planned) == [64001, 64003]
    assert sorted(read(planned)) == [64001, 64003]
    assert planned.candidates == set()


def test_other_runs_are_all_of_the_archive_each_once(plan):
    planned = plan(**OTHERS, run_selection={"runlist": [64003]})
    assert targets(planned) == [64003]
    assert sorted(read(planned)) == OBS_IDS
    assert planned.candidates == set(OBS_IDS)


def test_runs_of_the_runlist_that_are_not_there_are_told(plan, caplog):
    planned = plan(run_selection={"runlist": [64003, 99, 64001, 64003]}, **OTHERS)
    assert targets(planned) == [64001, 64003]
    assert planned.missing == [99]
    assert "99" in caplog.text


def test_none_of_the_runlist_is_there(plan):
    with pytest.raises(ArchiveError, match=r"none of the runs of run_selection\.runlist"):
        plan(run_selection={"runlist": [99]})


@pytest.fixture
def apart(job, four_runs, tmp_path):
    """A job whose one target, 64001, lies in a datastore of its own."""

    def make(keep_in_archive=True):
        store = read_datastore(four_runs)
        mine = Path(shutil.copytree(four_runs, tmp_path / "mine"))
        write_index(mine, store.rows([64001]), store.observations([64001]))
        if not keep_in_archive:
            write_index(four_runs, store.rows(OBS_IDS[1:]), store.observations(OBS_IDS[1:]))
        config = job(four_runs, **OTHERS)
        config["io"]["in_dir"] = str(mine)
        return plan_job(parse_config(config))

    return make


def test_contributing_runs_come_from_the_search_datastore(apart, four_runs):
    planned = apart()
    assert sorted(read(planned)) == OBS_IDS
    assert all(run.path.startswith(str(four_runs)) for run in planned.runs)
    assert "mine" in planned.targets[0].source


def test_a_target_that_is_not_in_the_archive_is_read_and_contributes_to_nobody(apart):
    planned = apart(keep_in_archive=False)
    assert sorted(read(planned)) == OBS_IDS
    assert planned.candidates == set(OBS_IDS[1:])
    assert [run.path for run in planned.runs if run.obs_id == 64001] == [planned.targets[0].source]


def test_the_plan_of_an_archive_has_all_runs_and_no_target(job, four_runs):
    config = job(four_runs)
    for place in ("search_datastore", "in_dir"):
        planned = plan_archive(parse_config({**config, "io": {"out_dir": "out", place: str(four_runs)}}))
        assert (targets(planned), read(planned)) == ([], OBS_IDS)
        assert planned.candidates == set(OBS_IDS)
    with pytest.raises(ConfigError, match=r"io\.search_datastore is not set"):
        plan_archive(parse_config({**config, "io": {"out_dir": "out"}}))


# --- runs that cannot be used ------------------------------------------------------------------------------


def test_a_run_without_events_in_the_index_fails_alone(plan, four_runs):
    without_rows(four_runs, 64001, "events")
    planned = plan()
    assert "no row of type 'events'" in planned.failed[64001]
    assert targets(planned) == OBS_IDS[1:]
    planned = plan(**OTHERS)
    assert planned.failed.keys() == planned.unusable.keys() == {64001}
    assert planned.candidates == set(read(planned)) == set(OBS_IDS[1:])


def test_an_archive_without_any_events_is_told(plan, four_runs):
    store = read_datastore(four_runs)
    write_index(four_runs, store.hdu[store.hdu["HDU_TYPE"] != "events"], store.obs)
    with pytest.raises(ArchiveError, match=r"io\.search_datastore: no run of .* has events"):
        plan(**OTHERS)


def test_a_path_that_leads_outside_is_followed(plan, four_runs, run_path, tmp_path):
    shutil.copy(run_path(four_runs, 64002), tmp_path / "elsewhere.fits.gz")
    store = read_datastore(four_runs)
    mine = store.hdu["OBS_ID"] == 64002
    names = np.where(mine, "elsewhere.fits.gz", store.hdu["FILE_NAME"])
    store.hdu["FILE_NAME"], store.hdu["FILE_DIR"] = names, np.where(mine, "..", store.hdu["FILE_DIR"])
    write_index(four_runs, store.hdu, store.obs)
    planned = plan()
    assert targets(planned) == OBS_IDS
    assert not planned.failed
    assert targets(plan(io={"data_dirs": [str(tmp_path)]})) == OBS_IDS
    assert plan(**OTHERS).candidates == set(OBS_IDS)


def test_no_run_is_lost_for_the_want_of_an_effective_area(plan, four_runs):
    without_rows(four_runs, 64002, "aeff")
    planned = plan()
    assert targets(planned) == OBS_IDS
    assert [run.aeff_hdu for run in planned.runs] == ["EFFECTIVE AREA", "", "EFFECTIVE AREA", "EFFECTIVE AREA"]


def test_hdus_of_other_files_are_named_and_those_of_the_same_file_are_not_opened_again(plan, four_runs, run_path):
    shutil.copy(run_path(four_runs, 64003), four_runs / "data" / "responses.fits.gz")
    store = read_datastore(four_runs)
    moved = (store.hdu["OBS_ID"] == 64003) & (store.hdu["HDU_TYPE"] == "aeff")
    store.hdu["FILE_NAME"] = np.where(moved, "responses.fits.gz", store.hdu["FILE_NAME"])
    write_index(four_runs, store.hdu, store.obs)
    paths = {run.obs_id: (run.gti_path, Path(run.aeff_path).name) for run in plan().runs}
    assert paths == {64001: ("", ""), 64002: ("", ""), 64003: ("", "responses.fits.gz"), 64004: ("", "")}


# --- files -------------------------------------------------------------------------------------------------


def test_outputs_lie_below_out_dir_as_the_sources_below_in_dir(plan, tmp_path):
    planned = plan()
    assert planned.targets[0].output == str(tmp_path / "out" / "data" / "run_064001.fits.gz")
    assert planned.attach_copy


def test_attach_index_writes_small_files_beside(plan, tmp_path):
    planned = plan(io={"attach": "index"})
    assert planned.targets[0].output == str(tmp_path / "out" / "backgrounds" / "bkg_64001.fits.gz")
    assert not planned.attach_copy


def test_two_files_of_one_name_do_not_overwrite_each_other(plan, four_runs, run_path, tmp_path):
    """Files outside of the archive lose their directories: three of one name, one of them inside."""
    store = read_datastore(four_runs)
    for obs_id, folder in ((64001, "a"), (64002, "b")):
        (tmp_path / folder).mkdir()
        run_path(four_runs, obs_id).rename(tmp_path / folder / "run_064003.fits.gz")
        for row in np.flatnonzero(store.hdu["OBS_ID"] == obs_id):
            store.hdu["FILE_DIR"][row], store.hdu["FILE_NAME"][row] = f"../{folder}", "run_064003.fits.gz"
    write_index(four_runs, store.hdu, store.obs)
    planned = plan(io={"data_dirs": [str(tmp_path / "a"), str(tmp_path / "b")]})
    outputs = [target.output for target in planned.targets]
    assert len(set(outputs)) == 4
    assert all(Path(output).is_relative_to(tmp_path / "out") for output in outputs)
    assert [Path(run.path).parent.name for run in planned.runs] == ["a", "b", "data", "data"]


def test_threshold_of_the_index_is_taken_along(plan, four_runs):
    def add(obs: Table):
        obs["SAFE_ENERGY_LO"] = [0.5, np.nan, 0.25, 0.0]

    index_column(four_runs, add)
    assert [target.threshold for target in plan().targets] == pytest.approx([0.5, np.nan, 0.25, 0.0], nan_ok=True)


@pytest.mark.parametrize("sections", [{}, OTHERS, OTHERS | {"background_selection": {"nsb_diff": 5, "rank": "kl"}}])
def test_planning_reads_index_files_only(plan, four_runs, sections):
    """The files of the runs may be gone: what is asked of them is known when the run store is up to date."""
    shutil.rmtree(four_runs / "data")
    assert targets(plan(**sections)) == OBS_IDS


# --- settings ----------------------------------------------------------------------------------------------


def test_smoothing_through_3d_needs_rings_from_zero(plan, job, four_runs):
    sections = {
        "binning": {"off_min": 0.5},
        "background_selection": {"smooth": True},
        "model": {"smooth_method": "to_3d"},
    }
    with pytest.raises(ConfigError, match="off_min"):
        plan(**sections)
    with pytest.raises(ConfigError, match="off_min"):
        check_job(parse_config(job(four_runs, **sections)))


def test_what_is_not_set_is_told_before_anything_is_read(job, four_runs):
    config = job(four_runs, **OTHERS)
    check_job(parse_config(config))
    for name in ("search_datastore", "in_dir", "out_dir"):
        with pytest.raises(ConfigError, match=rf"io\.{name} is not set"):
            check_job(parse_config({**config, "io": {**config["io"], name: None}}))


def test_shapes_are_compared_as_the_configuration_says(job, four_runs):
    def of(**sections):
        return shape_settings(parse_config(job(four_runs, **sections)))

    assert (of().method, of().prior) == ("shape", 3000)
    assert of(model={"divergence_prior": 500}).prior == 500
    assert of(preset="gammapy-tools").method == "document"
