"""What a job will do: which runs contribute to which, what is left out and why, where each file goes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table

from dask_bkg.config import parse_config
from dask_bkg.dl3.index import read_datastore, write_index
from dask_bkg.errors import ArchiveError, ConfigError
from dask_bkg.pipeline import read_header_batch
from dask_bkg.plan import plan_job

OBS_IDS = [64001, 64002, 64003, 64004]


@pytest.fixture
def plan(job, four_runs):
    """Plan of a job on the four runs; the sections given are added to the configuration."""

    def make(read_headers=read_header_batch, archive=four_runs, **sections):
        return plan_job(parse_config(job(archive, **sections)), read_headers)

    return make


def others(**selection):
    """Sections of a job with other runs, whatever hours they have."""
    return {"io": {"from_run": False}, "background_selection": {"time_request": "all", **selection}}


def contributing(plan) -> dict[int, tuple[int, ...]]:
    return {target.obs_id: target.contributing for target in plan.targets}


def index_column(archive: Path, change) -> None:
    """Change the obs-index of an archive."""
    store = read_datastore(archive)
    change(store.obs)
    write_index(archive, store.hdu, store.obs)


# --- who contributes ---------------------------------------------------------------------------------------


def test_from_run_each_run_makes_its_own(plan):
    planned = plan()
    assert contributing(planned) == {obs_id: (obs_id,) for obs_id in OBS_IDS}
    assert [run.obs_id for run in planned.runs] == OBS_IDS


def test_other_runs_never_the_run_itself(plan):
    planned = plan(**others())
    assert {target: set(runs) for target, runs in contributing(planned).items()} == {
        target: set(OBS_IDS) - {target} for target in OBS_IDS
    }
    assert [run.obs_id for run in planned.runs] == OBS_IDS  # each once


def test_nearest_in_elevation_until_the_hours_are_reached(plan, four_runs):
    planned = plan(**others(time_request=0.6))
    obs = read_datastore(four_runs).obs
    airmass = dict(zip(obs["OBS_ID"].tolist(), 1 / np.sin(np.deg2rad(obs["ALT_PNT"])), strict=True))
    hours = dict(zip(obs["OBS_ID"].tolist(), np.asarray(obs["LIVETIME"]) / 3600, strict=True))
    for target, runs in contributing(planned).items():
        by_distance = sorted(set(OBS_IDS) - {target}, key=lambda i: abs(airmass[i] - airmass[target]))
        assert runs == tuple(by_distance[: len(runs)])
        assert sum(hours[i] for i in runs) >= 0.6 > sum(hours[i] for i in runs[:-1])


def test_too_few_hours_are_marked(plan):
    assert [target.enough for target in plan(**others(time_request=100)).targets] == [False] * 4
    assert [target.enough for target in plan(**others(time_request=0.5)).targets] == [True] * 4


def test_targets_are_restricted_to_the_runlist_and_contributors_are_not(plan, caplog):
    planned = plan(run_selection={"runlist": [64003, 99, 64001]}, **others())
    assert contributing(planned).keys() == {64001, 64003}
    assert set(contributing(planned)[64003]) == {64001, 64002, 64004}
    assert "99" in caplog.text


def test_none_of_the_runlist_is_there(plan):
    with pytest.raises(ArchiveError, match=r"none of the runs of run_selection\.runlist"):
        plan(run_selection={"runlist": [99]})


def test_the_users_own_list_wins(plan, caplog):
    by_hand = {64001: [64004, 77, 64002], 64002: [77]}
    planned = plan(**others(el_min=89.9, bkg_runlist=by_hand))
    assert contributing(planned) == {64001: (64004, 64002)}
    assert "77" in caplog.text
    assert "none of the runs of its background_selection.bkg_runlist" in planned.failed[64002]
    assert "el_min 89.9 deg: 0" in planned.failed[64003]


def test_runs_near_a_position_do_not_contribute(plan, four_runs):
    row = read_datastore(four_runs).observations([64002])[0]
    circle = [row["RA_PNT"], row["DEC_PNT"], 0.1]
    planned = plan(exclusion={"exclude_source_run": [circle]}, **others())
    assert all(64002 not in runs for runs in contributing(planned).values())
    assert 64002 in contributing(planned)  # it still receives a background


def test_contributing_runs_come_from_the_search_datastore(job, four_runs, tmp_path):
    store = read_datastore(four_runs)
    mine = Path(shutil.copytree(four_runs, tmp_path / "mine"))
    write_index(mine, store.rows([64001]), store.observations([64001]))
    config = job(four_runs, **others())
    config["io"]["in_dir"] = str(mine)
    planned = plan_job(parse_config(config), read_header_batch)
    assert {target: set(runs) for target, runs in contributing(planned).items()} == {64001: {64002, 64003, 64004}}
    assert all(run.path.startswith(str(four_runs)) for run in planned.runs)
    assert planned.targets[0].source.startswith(str(mine))


# --- cuts --------------------------------------------------------------------------------------------------


def test_no_run_passes_and_the_message_counts(plan):
    planned = plan(**others(el_min=1, nsb_diff=1e-6, n_tels=3))
    assert planned.targets == []
    assert planned.failed.keys() == set(OBS_IDS)
    for reason in planned.failed.values():
        assert "other runs: 3, el_min 1 deg: 3, n_tels 3: 3" in reason
        assert "nsb_diff 1e-06: 0" in reason


def without_nsb(hdus):
    hdus["EVENTS"].header.pop("NSBLEVEL")


def test_a_cut_whose_column_nobody_has_is_an_error_that_names_it(plan, four_runs, run_path, edit_run):
    index_column(four_runs, lambda obs: obs.remove_column("NSBLEVEL"))
    for obs_id in OBS_IDS:
        edit_run(run_path(four_runs, obs_id), without_nsb)
    with pytest.raises(ConfigError, match=r"nsb_diff.*NSBLEVEL"):
        plan(**others(nsb_diff=5))
    assert len(plan(**others()).targets) == 4


def test_a_column_that_the_index_lacks_is_taken_from_the_headers(plan, four_runs):
    complete = contributing(plan(**others(nsb_diff=0.5)))
    asked = []

    def read_headers(files):
        asked.append([file.obs_id for file in files])
        return read_header_batch(files)

    assert contributing(plan(read_headers, **others(nsb_diff=0.5))) == complete
    assert asked == []  # the index had it
    index_column(four_runs, lambda obs: obs.remove_column("NSBLEVEL"))
    assert contributing(plan(read_headers, **others(nsb_diff=0.5))) == complete
    assert OBS_IDS in asked
    asked.clear()
    plan(read_headers, **others())  # no cut needs it
    assert asked == []


def test_a_target_without_the_quantity_fails_alone(plan, four_runs, run_path, edit_run):
    index_column(four_runs, lambda obs: obs["NSBLEVEL"].__setitem__(1, np.nan))
    edit_run(run_path(four_runs, 64002), without_nsb)
    planned = plan(**others(nsb_diff=50))
    assert planned.failed.keys() == {64002}
    assert "nsb_diff needs NSBLEVEL" in planned.failed[64002]
    assert all(64002 not in runs for runs in contributing(planned).values())


def test_kl_is_not_there_yet_and_says_so(plan, caplog):
    plan(**others(KL_DIV=True))
    assert "KL" in caplog.text
    assert "observing conditions alone" in caplog.text


def test_kl_under_the_preset_asks_for_hours(job, four_runs):
    def runs_of(**selection):
        config = job(four_runs, preset="gammapy-tools", **others(time_request=0.2, **selection))
        return contributing(plan_job(parse_config(config), read_header_batch))

    assert {len(runs) for runs in runs_of().values()} == {3}  # whatever passes
    assert {len(runs) for runs in runs_of(KL_DIV=True).values()} == {1}


def test_smoothing_through_3d_needs_rings_from_zero(plan):
    with pytest.raises(ConfigError, match="off_min"):
        plan(
            binning={"off_min": 0.5},
            background_selection={"smooth": True},
            model={"smooth_method": "to_3d"},
        )


# --- files -------------------------------------------------------------------------------------------------


def test_outputs_lie_below_out_dir_as_the_sources_below_in_dir(plan, tmp_path):
    planned = plan()
    assert planned.targets[0].output == str(tmp_path / "out" / "data" / "run_064001.fits.gz")
    assert planned.targets[0].aeff.hdu == "EFFECTIVE AREA"
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


def test_a_path_that_leads_outside_fails_alone(plan, four_runs, run_path, tmp_path):
    shutil.copy(run_path(four_runs, 64002), tmp_path / "elsewhere.fits.gz")
    store = read_datastore(four_runs)
    mine = store.hdu["OBS_ID"] == 64002
    names = np.where(mine, "elsewhere.fits.gz", store.hdu["FILE_NAME"])
    store.hdu["FILE_NAME"], store.hdu["FILE_DIR"] = names, np.where(mine, "..", store.hdu["FILE_DIR"])
    write_index(four_runs, store.hdu, store.obs)
    planned = plan()
    assert contributing(planned).keys() == {64001, 64003, 64004}
    assert "outside" in planned.failed[64002]
    assert "io.data_dirs" in planned.failed[64002]
    assert len(plan(io={"data_dirs": [str(tmp_path)]}).targets) == 4
    assert set(contributing(plan(**others()))[64001]) == {64003, 64004}


def test_a_run_without_events_in_the_index_fails_alone(plan, four_runs):
    store = read_datastore(four_runs)
    gone = (store.hdu["OBS_ID"] == 64001) & (store.hdu["HDU_TYPE"] == "events")
    write_index(four_runs, store.hdu[~gone], store.obs)
    planned = plan()
    assert "no row of type 'events'" in planned.failed[64001]
    assert len(planned.targets) == 3


def test_threshold_of_the_index_is_taken_along(plan, four_runs):
    def add(obs: Table):
        obs["SAFE_ENERGY_LO"] = [0.5, np.nan, 0.25, 0.0]

    index_column(four_runs, add)
    assert [target.threshold for target in plan().targets] == pytest.approx([0.5, np.nan, 0.25, 0.0], nan_ok=True)


@pytest.mark.parametrize("sections", [{}, others(el_diff=1, az_diff=180, nsb_diff=5, n_tels=2, time_max=1000)])
def test_planning_reads_index_files_only(plan, four_runs, sections):
    """The files of the runs may be gone, as long as the index has what the cuts need."""
    shutil.rmtree(four_runs / "data")
    assert len(plan(**sections).targets) == 4
