"""Who takes part in a job: targets, candidates, and the lists that somebody wrote by hand."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from dask_bkg.config import parse_config
from dask_bkg.dl3.index import read_datastore, write_index
from dask_bkg.errors import ArchiveError, ConfigError
from dask_bkg.pipeline.runlists import lists_by_hand, selection_mark
from dask_bkg.pipeline.tables import make_tables
from dask_bkg.pipeline.update import update_store
from dask_bkg.plan import plan_job
from dask_bkg.selection.lists import list_digest, own_lists

OBS_IDS = [64001, 64002, 64003, 64004]
OTHERS = {"from_run": False}


@pytest.fixture
def called(job, four_runs):
    """Plan and tables of a job on the four runs, with the sections given."""

    def make(archive=four_runs, io=None, **sections):
        plan = plan_job(parse_config(job(archive, io={**OTHERS, **(io or {})}, **sections)))
        stored = update_store(plan, None, plan.config.store_path, progress=False)
        return plan, make_tables(plan, stored)

    return make


def numbers(table) -> list[int]:
    return table["obs_id"].tolist()


def edit_obs(archive: Path, change) -> None:
    """Change the obs-index of an archive."""
    store = read_datastore(archive)
    change(store.obs)
    write_index(archive, store.hdu, store.obs)


# -- targets and candidates ------------------------------------------------------------------------------------


def test_every_run_is_target_and_candidate(called, four_runs):
    _, tables = called()
    assert tables.targets is tables.runs
    assert numbers(tables.runs) == OBS_IDS
    assert tables.given == tables.absent == tables.failed == {}
    obs = read_datastore(four_runs).obs
    assert tables.runs["zenith"] == pytest.approx(90 - np.asarray(obs["ALT_PNT"]), abs=1e-3)
    assert_array_equal(tables.run_rows, tables.target_rows)


def test_in_the_order_of_their_numbers_whatever_the_index_has(called, four_runs):
    store = read_datastore(four_runs)
    write_index(four_runs, store.hdu[::-1], store.obs[::-1])
    _, tables = called()
    assert [target.obs_id for target in tables.ready] == numbers(tables.runs) == OBS_IDS


def test_targets_are_a_part_of_the_runs(called):
    _, tables = called(run_selection={"runlist": [64003, 64001]})
    assert (numbers(tables.targets), numbers(tables.runs)) == ([64001, 64003], OBS_IDS)


def test_a_target_that_is_not_in_the_archive_is_no_candidate(job, four_runs, tmp_path, called):
    store = read_datastore(four_runs)
    mine = Path(shutil.copytree(four_runs, tmp_path / "mine"))
    write_index(four_runs, store.rows(OBS_IDS[1:]), store.observations(OBS_IDS[1:]))
    _, tables = called(io={"in_dir": str(mine)}, run_selection={"runlist": [64001]})
    assert (numbers(tables.targets), numbers(tables.runs)) == ([64001], OBS_IDS[1:])


def test_from_run_each_is_its_own_contributor(called):
    _, tables = called(io={"from_run": True}, run_selection={"runlist": [64002, 64004]})
    assert numbers(tables.runs) == numbers(tables.targets) == [64002, 64004]
    assert {run: one.obs_id.tolist() for run, one in tables.given.items()} == {64002: [64002], 64004: [64004]}
    assert tables.failed == {}


def test_runs_that_are_gone_from_the_archive_are_no_candidates(called, four_runs):
    """Their histograms stay in the store."""
    called()
    store = read_datastore(four_runs)
    write_index(four_runs, store.rows(OBS_IDS[:3]), store.observations(OBS_IDS[:3]))
    _, tables = called()
    assert numbers(tables.runs) == OBS_IDS[:3]


def test_a_run_that_cannot_be_read_fails_alone_and_says_why(called, four_runs, run_path):
    run_path(four_runs, 64002).write_bytes(b"not FITS")
    _, tables = called()
    assert numbers(tables.targets) == numbers(tables.runs) == [64001, 64003, 64004]
    assert tables.failed.keys() == tables.unusable.keys() == {64002}
    assert "run_064002" in tables.failed[64002]


def test_an_archive_of_which_nothing_can_be_used_says_why(called, four_runs, run_path):
    for obs_id in OBS_IDS:
        run_path(four_runs, obs_id).write_bytes(b"not FITS")
    with pytest.raises(ArchiveError, match="none of its runs can be used") as caught:
        called(background_selection={"nsb_diff": 1})
    assert all(f"run {obs_id}" in str(caught.value) for obs_id in OBS_IDS)


def test_a_cut_that_no_run_has_the_quantity_for(called, four_runs, run_path, edit_run):
    for obs_id in OBS_IDS:
        edit_run(run_path(four_runs, obs_id), lambda hdus: hdus["EVENTS"].header.pop("NSBLEVEL"))
    edit_obs(four_runs, lambda obs: obs.remove_column("NSBLEVEL"))
    with pytest.raises(ConfigError, match=r"nsb_diff.*NSBLEVEL"):
        called(background_selection={"nsb_diff": 5})
    called(background_selection={"nsb_diff": None})


def test_thresholds_of_the_index_then_of_the_file_then_of_its_effective_area(called, four_runs, run_path, edit_run):
    def add(obs):
        obs["SAFE_ENERGY_LO"] = [0.7, np.nan, 0.0, np.nan]

    edit_obs(four_runs, add)
    for obs_id in (64003, 64004):
        edit_run(run_path(four_runs, obs_id), lambda hdus: hdus["EFFECTIVE AREA"].header.pop("LO_THRES"))
    edit_run(run_path(four_runs, 64004), lambda hdus: hdus.pop("EFFECTIVE AREA"))
    _, tables = called()
    found = [target.threshold for target in tables.ready]
    table = tables.targets
    assert found == pytest.approx([0.7, table["lo_thres"][1], table["e_thres"][2], np.nan], nan_ok=True)
    assert 0.05 < found[2] < 5
    assert found[1] > 0


# -- conditions that the tables adds ---------------------------------------------------------------------------


def test_runs_near_a_position_do_not_contribute(called):
    _, tables = called()
    ra, dec = (float(tables.runs[name][1]) for name in ("ra_pnt", "dec_pnt"))
    assert not tables.runs["excluded"].any()
    _, tables = called(exclusion={"exclude_source_run": [[ra, dec + 0.09, 0.1], [10.0, -70.0, 1.0]]})
    assert tables.runs["excluded"].tolist() == [False, True, False, False]
    assert numbers(tables.targets) == OBS_IDS


def test_names_of_targets_are_compared_without_case_and_spaces(called, four_runs, run_path, edit_run):
    names = {64001: "Crab Nebula", 64002: "crabnebula", 64003: "Mrk 421", 64004: ""}

    def rename(obs_id):
        def change(hdus):
            hdus["EVENTS"].header["OBJECT"] = names[obs_id]

        return change

    for obs_id in OBS_IDS:
        edit_run(run_path(four_runs, obs_id), rename(obs_id))
    for runlist in (OBS_IDS, [64002, 64003]):
        _, tables = called(run_selection={"runlist": runlist})
        crab, same, other, none = tables.runs["object_code"].tolist()
        assert crab == same != other
        assert none == -1 < min(crab, other)
        codes = dict(zip(numbers(tables.runs), tables.runs["object_code"].tolist(), strict=True))
        assert [codes[run] for run in runlist] == tables.targets["object_code"].tolist()


# -- lists by hand ---------------------------------------------------------------------------------------------


def test_the_users_own_list_wins(called, caplog):
    by_hand = {64001: [64004, 77, 64002, 64004], 64002: [77], 64003: [64003], 99: [64001]}
    _, tables = called(background_selection={"el_min": 80, "bkg_runlist": by_hand})
    given = {run: one.obs_id.tolist() for run, one in tables.given.items() if one.obs_id.size}
    assert given == {64001: [64004, 64002], 64003: [64003]}
    assert tables.absent[64001] == {77: "run 77: is not in io.search_datastore"}
    assert "77" in caplog.text
    assert "none of the runs of its background_selection.bkg_runlist" in tables.failed[64002]
    assert numbers(tables.targets) == [64001, 64003, 64004]


def test_runs_of_a_list_that_cannot_be_read_are_told_of(called, four_runs, run_path):
    run_path(four_runs, 64002).write_bytes(b"not FITS")
    _, tables = called(background_selection={"bkg_runlist": {64001: [64002, 64003], 64004: [64002]}})
    assert tables.given[64001].obs_id.tolist() == [64003]
    assert "run_064002" in tables.absent[64001][64002]
    assert "run_064002" in tables.failed[64004]


def test_from_run_takes_no_list(called):
    _, tables = called(io={"from_run": True}, background_selection={"bkg_runlist": {64001: [64002]}})
    assert tables.given[64001].obs_id.tolist() == [64001]


def of(lists=None, marks=None, **sections):
    """A configuration with lists and their marks."""
    selected = sections.pop("background_selection", {})
    given = {"bkg_runlist": lists, "bkg_runlist_digest": marks}
    return parse_config({**sections, "background_selection": {**selected, **given}})


LISTS = {64001: [64002, 64003], 64002: [64004]}
NSB = {"background_selection": {"rank": "kl", "nsb_diff": 1}}


def marks_of(lists, **sections):
    """Marks of lists that a job has selected by some settings."""
    return {"settings": selection_mark(of(**sections)), **{str(run): list_digest(r) for run, r in lists.items()}}


def test_lists_without_marks_are_the_users():
    given = of(LISTS, **NSB)
    assert lists_by_hand(given) == own_lists(given.background_selection) == LISTS
    assert lists_by_hand(of()) == {}


def test_lists_that_a_job_has_selected_are_used_again_while_the_settings_are_the_same(caplog):
    given = of(LISTS, marks_of(LISTS, **NSB), background_selection={"rank": "kl", "nsb_diff": 1, "smooth": True})
    assert own_lists(given.background_selection) == {}
    assert lists_by_hand(given) == LISTS
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    "sections",
    [
        {"background_selection": {"rank": "kl", "nsb_diff": 2}},
        {"background_selection": {"rank": "elevation", "nsb_diff": 1}},
        {"background_selection": {"rank": "kl", "nsb_diff": 1, "time_request": 5}},
        NSB | {"model": {"divergence_prior": 100}},
        NSB | {"binning": {"e_min": 0.2}},
        NSB | {"exclusion": {"exclude_regions": [[83.0, 22.0, 0.3]]}},
    ],
)
def test_other_settings_select_anew_and_say_so(sections, caplog):
    with caplog.at_level(logging.WARNING):
        assert lists_by_hand(of(LISTS, marks_of(LISTS, **NSB), **sections)) == {}
    assert "settings have changed since bkg_runlist was selected" in caplog.text
    assert "the selection of 2 runs is made anew" in caplog.text


def test_a_list_that_was_edited_is_the_users():
    edited, marks = {**LISTS, 64001: [64003]}, marks_of(LISTS, **NSB)
    for nsb_diff, expected in ((1, edited), (2, {64001: [64003]})):
        given = of(edited, marks, background_selection={"rank": "kl", "nsb_diff": nsb_diff})
        assert own_lists(given.background_selection) == {64001: [64003]}
        assert lists_by_hand(given) == expected


def test_a_list_that_was_added_is_the_users():
    given = of(LISTS, marks_of({64001: LISTS[64001]}, **NSB))
    assert lists_by_hand(given) == own_lists(given.background_selection) == {64002: [64004]}


@pytest.mark.parametrize(("rank", "kept"), [("kl", True), ("conditions", False), ("kl-conditions", False)])
def test_where_runs_are_weighted_the_selection_is_made_again_with_its_weights(rank, kept):
    ranked = {"background_selection": {"rank": rank}}
    assert lists_by_hand(of(LISTS, marks_of(LISTS, **ranked), **ranked)) == (LISTS if kept else {})


def test_a_list_that_a_job_has_selected_is_made_anew_where_a_run_of_it_is_gone(called):
    """The user's own goes on without it, the job's own would have another run now."""
    lists = {64001: [64002, 77], 64002: [64003]}
    plan, tables = called(background_selection={"rank": "kl", "bkg_runlist": lists})
    assert tables.given.keys() == {64001, 64002}
    marks = {"settings": selection_mark(plan.config), **{str(run): list_digest(r) for run, r in lists.items()}}
    section = {"rank": "kl", "bkg_runlist": lists, "bkg_runlist_digest": marks}
    plan, tables = called(background_selection=section)
    assert tables.given.keys() == {64002}
    assert tables.failed == {}


def test_an_empty_list_fails_alone(called):
    _, tables = called(background_selection={"bkg_runlist": {64001: [], 64002: [64003]}})
    assert tables.failed.keys() == {64001}
    assert "the list is empty" in tables.failed[64001]
    assert numbers(tables.targets) == OBS_IDS[1:]


def test_marks_of_equal_lists_are_equal_and_the_order_counts():
    assert list_digest([1, 2]) == list_digest(np.array([1, 2])) == list_digest((1, 2))
    assert len({list_digest(runs) for runs in ([1, 2], [2, 1], [12], [], [1])}) == 5
