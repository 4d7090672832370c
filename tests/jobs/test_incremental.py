"""The next night: only new events are read, only backgrounds that change are written; with a count of open files."""

from __future__ import annotations

import builtins
import io
import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers.described import described

from dask_bkg.config import parse_config
from dask_bkg.dl3 import attach
from dask_bkg.dl3.index import read_datastore, write_index
from dask_bkg.pipeline import run as pipeline
from dask_bkg.reduction import reduce
from dask_bkg.simulate import simulate_archive

pytestmark = pytest.mark.slow  # whole jobs, or simulations of many skies

OBS_IDS = list(range(64001, 64009))
NEW = 64008


@pytest.fixture(scope="module")
def eight_runs(tmp_path_factory):
    """An archive of eight runs over two seasons, and the date of each."""
    directory = tmp_path_factory.mktemp("archive") / "eight"
    truth = simulate_archive(directory, runs=8, events=500, seed=7, sources=False, stars=False)
    obs = read_datastore(directory).obs
    dates = dict(zip(obs["OBS_ID"].tolist(), np.asarray(obs["TSTART"]) / 86400, strict=True))
    assert [run.obs_id for run in truth.runs] == OBS_IDS
    return directory, dates


class Place:
    """Where the jobs of this module run, always the same; what a first job left there is kept for other tests."""

    def __init__(self, directory: Path):
        self.now, self.kept, self.results = directory / "now", directory, {}

    def restore(self, source: Path):
        """Files with their times, as nothing had happened since."""
        shutil.rmtree(self.now, ignore_errors=True)
        shutil.copytree(source, self.now)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("place"))


@pytest.fixture
def mine(place, eight_runs):
    """The archive, of one's own."""
    place.restore(eight_runs[0].parent)
    return place.now / "eight"


class Opened:
    """Event files that were opened, whoever did it, and runs whose events were read.

    A look at the last bytes of a file, whether its background is as it was written, does not count.
    """

    def __init__(self):
        self.looking = threading.local()
        self.files: list[str] = []
        self.runs: list[int] = []

    def note(self, path):
        looks = getattr(self.looking, "at_the_end", False)
        if not looks and isinstance(path, (str, os.PathLike)) and Path(path).name.startswith("run_"):
            self.files.append(Path(path).name)

    def forget(self):
        self.files.clear()
        self.runs.clear()


@pytest.fixture
def opened(monkeypatch):
    found = Opened()

    def noting(function):
        def call(path, *args, **kwargs):
            found.note(path)
            return function(path, *args, **kwargs)

        return call

    for module, name in ((builtins, "open"), (io, "open"), (os, "open")):
        monkeypatch.setattr(module, name, noting(getattr(module, name)))
    read_run, tail = reduce.read_run, attach._tail

    def look(path, size):
        found.looking.at_the_end = True
        try:
            return tail(path, size)
        finally:
            found.looking.at_the_end = False

    def note(file, **options):
        found.runs.append(file.obs_id)
        return read_run(file, **options)

    monkeypatch.setattr(reduce, "read_run", note)
    monkeypatch.setattr(attach, "_tail", look)
    return found


@pytest.fixture
def do(job, mine, place):
    """Do the job again, with the sections given; what became of each run."""

    def run(archive=mine, refresh=False, **sections):
        io = {"from_run": False, "out_dir": str(place.now / "out"), **sections.pop("io", {})}
        selection = {"rank": "none", **sections.pop("background_selection", {})}
        config = parse_config(job(archive, io=io, background_selection=selection, **sections))
        summary = pipeline.run_job(config, progress=False, refresh=refresh)
        return {result.obs_id: result for result in described(summary)}

    return run


@pytest.fixture
def first(do, place):
    """Do a job for the first time; its sections go by a name, and what it leaves is there again for the next test."""

    def once(name="plain", **sections):
        if name not in place.results:
            place.results[name] = do(**sections)
            shutil.copytree(place.now, place.kept / name)
        else:
            place.restore(place.kept / name)
        return place.results[name]

    return once


def statuses(results) -> dict[int, str]:
    return {run: result.status for run, result in results.items()}


def all_are(status: str) -> dict[int, str]:
    return dict.fromkeys(OBS_IDS, status)


def states(results) -> dict[int, tuple[int, bytes]]:
    paths = {run: Path(result.output) for run, result in results.items()}
    return {run: (path.stat().st_mtime_ns, path.read_bytes()) for run, path in paths.items()}


def file_of(obs_id: int) -> str:
    return f"run_{obs_id:06d}.fits.gz"


# -- nothing new -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", ["elevation", "kl", "kl-conditions"])
def test_nothing_new_opens_no_event_file_and_writes_no_background(do, opened, rank):
    first = do(background_selection={"rank": rank, "time_request": 1})
    assert statuses(first) == all_are("done")
    assert sorted(opened.runs) == OBS_IDS
    assert {file_of(run) for run in OBS_IDS} <= set(opened.files)
    before = states(first)
    opened.forget()
    again = do(background_selection={"rank": rank, "time_request": 1})
    assert (opened.files, opened.runs) == ([], [])
    assert statuses(again) == all_are("unchanged")
    assert states(again) == before


def test_what_is_told_of_an_unchanged_background_is_what_was_told_when_it_was_made(do, place):
    sections = {"background_selection": {"rank": "kl-conditions", "time_request": 1}}

    def told():
        return json.loads((place.now / "out" / "results" / "provenance.json").read_text())["backgrounds"]

    first, before = do(**sections), told()
    assert any(result.reason for result in first.values())
    for _ in range(2):
        again, after = do(**sections), told()
        for run in OBS_IDS:
            for name in (
                "n_runs",
                "n_events",
                "contributing",
                "weights",
                "scores",
                "flags",
                "hdu",
                "reason",
                "output",
            ):
                assert getattr(again[run], name) == getattr(first[run], name), name
            assert again[run].hours == pytest.approx(first[run].hours, abs=1e-6)
            assert {**after[str(run)], "status": "done"} == before[str(run)]


def test_refresh_writes_all(do, first, opened):
    before = states(first())
    opened.forget()
    again = do(refresh=True)
    assert statuses(again) == all_are("done")
    assert opened.runs == []
    after = states(again)
    assert all(after[run][1] == before[run][1] and after[run][0] > before[run][0] for run in OBS_IDS)


def test_index_and_results_are_those_of_all_runs_although_nothing_was_written(do, first, place):
    first()
    (place.now / "out" / "hdu-index.fits.gz").unlink()
    do()
    store = read_datastore(place.now / "out")
    assert sorted(store.obs_ids.tolist()) == OBS_IDS
    assert all(store.location(run, "bkg") is not None for run in OBS_IDS)


def test_each_run_from_itself(do, opened):
    places = {"from_run": True}
    before = states(do(io=places))
    opened.forget()
    again = do(io=places)
    assert statuses(again) == all_are("unchanged")
    assert opened.files == []
    assert states(again) == before


def test_backgrounds_beside_the_runs(do, opened):
    places = {"attach": "index"}
    before = states(do(io=places))
    opened.forget()
    again = do(io=places)
    assert statuses(again) == all_are("unchanged")
    assert opened.files == []
    assert states(again) == before


# -- new and changed runs --------------------------------------------------------------------------------------


@pytest.fixture
def until(mine):
    """Restrict the archive to some runs; with all of them it is as it was."""
    store = read_datastore(mine)

    def restrict(runs):
        write_index(mine, store.rows(runs), store.observations(runs))

    return restrict


WITHIN = {"background_selection": {"time_max": 150}}


def near(dates, obs_id) -> list[int]:
    """Runs that a run contributes to."""
    return [run for run in OBS_IDS if run != obs_id and abs(dates[run] - dates[obs_id]) < 150]


def test_of_a_new_run_only_its_events_are_read_and_only_what_it_contributes_to_is_written(
    do, first, opened, until, eight_runs
):
    changed = near(eight_runs[1], NEW)
    assert 1 <= len(changed) <= 5
    until(OBS_IDS[:-1])
    before = states(do(**WITHIN))
    assert before.keys() == set(OBS_IDS[:-1])
    until(OBS_IDS)
    opened.forget()
    again = do(**WITHIN)
    assert opened.runs == [NEW]
    assert set(opened.files) == {file_of(run) for run in [*changed, NEW]}
    assert {run for run, status in statuses(again).items() if status == "done"} == {*changed, NEW}
    assert {run for run, status in statuses(again).items() if status == "unchanged"} == set(OBS_IDS) - {*changed, NEW}
    after = states(again)
    assert all((after[run] == before[run]) == (run not in changed) for run in OBS_IDS[:-1])
    # the same as if all had been there at once
    for run, (_, data) in states(first("within", **WITHIN)).items():
        assert after[run][1] == data


def test_a_new_run_that_is_not_among_the_nearest_changes_nothing(do, opened, until):
    """By divergence, although the prior of all shapes is another one then."""
    until(OBS_IDS[:-1])
    section = {"background_selection": {"rank": "kl", "time_request": 0.4}}
    before = do(**section)
    until(OBS_IDS)
    opened.forget()
    again = do(**section)
    same = [run for run in OBS_IDS[:-1] if set(again[run].contributing) == set(before[run].contributing)]
    assert same
    assert {run for run, status in statuses(again).items() if status == "unchanged"} == set(same)
    assert not {file_of(run) for run in same} & set(opened.files)


def test_a_run_that_was_reprocessed_changes_what_it_contributes_to(
    do, first, opened, mine, run_path, edit_run, eight_runs
):
    before = states(first("within", **WITHIN))

    def reprocess(hdus):
        hdus["EVENTS"].data["ENERGY"][:50] *= 1.5

    edit_run(run_path(mine, 64003), reprocess)
    opened.forget()
    again = do(**WITHIN)
    assert opened.runs == [64003]
    # itself as well: its other HDUs go into its output
    changed = {64003, *near(eight_runs[1], 64003)}
    assert {run for run, status in statuses(again).items() if status == "done"} == changed
    assert {run for run in OBS_IDS if states(again)[run] != before[run]} == changed


def test_a_file_that_was_touched_is_looked_at_and_its_events_are_the_same(do, first, opened, mine, run_path):
    first("within", **WITHIN)
    run_path(mine, 64003).touch()
    opened.forget()
    again = do(**WITHIN)
    assert opened.runs == [64003]
    # its output is made of that file; the backgrounds that it contributes to are the same
    assert statuses(again) == all_are("unchanged") | {64003: "done"}


def test_a_run_that_is_gone_from_the_archive_contributes_no_more(do, first, until, opened, eight_runs):
    before = first("within", **WITHIN)
    assert NEW in {run for result in before.values() for run in result.contributing}
    until(OBS_IDS[:-1])
    opened.forget()
    again = do(**WITHIN)
    assert opened.runs == []
    assert all(NEW not in result.contributing for result in again.values())
    assert {run for run, status in statuses(again).items() if status == "done"} == set(near(eight_runs[1], NEW))


def test_an_exclusion_reads_the_runs_that_see_it_alone(do, first, opened, mine):
    first("within", **WITHIN)
    obs = read_datastore(mine).obs
    circle = [float(obs["RA_PNT"][0]), float(obs["DEC_PNT"][0]), 0.4]
    opened.forget()
    again = do(**WITHIN, exclusion={"exclude_regions": [circle]})
    seen = [run for run, dec in zip(obs["OBS_ID"].tolist(), obs["DEC_PNT"], strict=True) if abs(dec - circle[1]) < 5]
    assert 0 < len(seen) < 8
    assert sorted(opened.runs) == seen
    assert statuses(again) == all_are("done")  # it is in the header of each that the settings are others


# -- one directory for everything ------------------------------------------------------------------------------


@pytest.mark.parametrize("from_run", [True, False])
def test_attaching_a_background_does_not_make_a_run_new(do, mine, opened, from_run):
    """in_dir, out_dir and search_datastore are one and the same."""
    places = {"out_dir": str(mine), "from_run": from_run}
    first = do(io=places)
    assert statuses(first) == all_are("done")
    assert sorted(opened.runs) == OBS_IDS
    assert Path(first[64001].output).parent == mine / "data"
    before = states(first)
    opened.forget()
    again = do(io=places)
    assert (opened.files, opened.runs) == ([], [])
    assert statuses(again) == all_are("unchanged")
    assert states(again) == before
    assert statuses(do(io=places, refresh=True)) == all_are("done")
    assert opened.runs == []
    assert statuses(do(io=places)) == all_are("unchanged")


def test_a_store_that_is_shared_with_another_job_knows_attached_runs_by_their_events(do, mine, opened, place):
    """A second job did not see the first one write: it looks into the files, and finds the same events."""
    shared = {"run_store": {"path": str(place.now / "shared.zarr")}}
    do(**shared)
    do(io={"out_dir": str(mine)})
    opened.forget()
    again = do(**shared)
    assert sorted(opened.runs) == OBS_IDS
    sources = {run: result.n_events for run, result in again.items()}
    opened.forget()
    after = do(**shared)
    assert opened.runs == []
    assert {run: result.n_events for run, result in after.items()} == sources


# -- other settings, other files -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sections",
    [
        {"background_selection": {"smooth": True}, "model": {"min_counts": 30}},
        {"binning": {"e_max": 10}},
        {"background_selection": {"rank": "elevation", "time_request": 0.5}},
    ],
)
def test_other_settings_write_all_and_read_no_events(do, first, opened, sections):
    before = states(first())
    opened.forget()
    again = do(**sections)
    assert statuses(again) == all_are("done")
    assert opened.runs == []
    after = states(again)
    assert all(after[run][1] != before[run][1] for run in OBS_IDS)
    assert statuses(do()) == all_are("done")


def test_how_a_job_runs_is_no_setting_of_a_background(do, first):
    first()
    sections = {
        "config": {"njobs": 2, "block": 3, "split_every": 2},
        "background_selection": {"store_KL": True},
        "run_selection": {"runlist": OBS_IDS},
    }
    assert statuses(do(**sections)) == all_are("unchanged")


def test_coarser_bins_are_sums_of_fine_ones_and_read_no_event(do, first, opened):
    events = {run: result.n_events for run, result in first().items()}
    for binning in ({"e_bins": 15, "off_bins": 5}, {"e_bins": 6, "off_bins": 1}, {"e_bins": 30, "off_bins": 25}):
        opened.forget()
        again = do(binning=binning)
        assert statuses(again) == all_are("done")
        assert opened.runs == []
        assert {run: result.n_events for run, result in again.items()} == events


def test_an_output_that_somebody_changed_is_written_again(do, first, opened):
    made = first()
    before, path = states(made), {run: Path(result.output) for run, result in made.items()}
    path[64001].touch()
    path[64002].unlink()
    path[64003].write_bytes(path[64003].read_bytes() + b" ")
    path[64004].write_bytes(path[64004].read_bytes()[:1000])
    opened.forget()
    again = do()
    assert statuses(again) == all_are("unchanged") | dict.fromkeys(OBS_IDS[:4], "done")
    assert opened.runs == []
    assert {run: data for run, (_, data) in states(again).items()} == {run: data for run, (_, data) in before.items()}


@pytest.mark.parametrize("text", [None, "{}", '{"attributes": {"dask_bkg_rows": 1, "layout": 3}}', "no JSON"])
def test_without_the_results_of_the_earlier_job_everything_is_made_again(do, first, place, text):
    first()
    store = place.now / "out" / "results" / "backgrounds.zarr"
    if text is None:
        shutil.rmtree(store)
    else:
        (store / "zarr.json").write_text(text)
    assert statuses(do()) == all_are("done")
    assert statuses(do()) == all_are("unchanged")


def test_lists_by_hand_of_the_same_runs_make_the_same_backgrounds(do, first):
    made = first("within", **WITHIN)
    lists = {run: list(result.contributing) for run, result in made.items()}
    lists[64001] = lists[64001][1:]
    again = do(background_selection={"time_max": 150, "bkg_runlist": lists})
    assert statuses(again) == all_are("unchanged") | {64001: "done"}
    assert list(again[64001].contributing) == lists[64001] != []
