"""Validation of jobs: nothing of a run in its own background, and the same numbers whichever way they are made."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from helpers.kept_store import keep_store

import dask_bkg
from dask_bkg.config import parse_config
from dask_bkg.dl3.given import read_given
from dask_bkg.dl3.index import read_datastore, write_index
from dask_bkg.errors import ArchiveError, BackgroundError, ConfigError
from dask_bkg.pipeline import run as pipeline
from dask_bkg.pipeline import update as collect
from dask_bkg.validation import compare, summarise
from dask_bkg.validation.run import validate_models

pytestmark = pytest.mark.slow  # whole jobs, or simulations of many skies

FIRST, N = 64001, 12
STACK = {"from_run": False}
MODES = [{"mode": "2d"}, {"mode": "3d"}, {"mode": "3d", "alignment": "radec"}]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def make(job, dark_archive, tmp_path, base):
    """A configuration of stacks of the dark archive: ``make(section={...})``; its run store is made once."""
    kept = keep_store(job, dark_archive[0], tmp_path, base)

    def configure(**sections):
        sections = {**sections, "io": {**STACK, **sections.get("io", {})}}
        return parse_config(kept(dark_archive[0], **sections))

    return configure


def run(config, against=None, **options):
    return dask_bkg.validate(config, against, progress=False, **options)


def assert_equal(one, other, rtol=1e-9):
    """Fits of node values end where steps are small: what is summed in another order ends a bit elsewhere."""
    assert one.runs["obs_id"].values.tolist() == other.runs["obs_id"].values.tolist()
    for name in ("counts", "predicted", "loglike", "cells", "deviance", "profile"):
        np.testing.assert_allclose(one.runs[name], other.runs[name], rtol=rtol, err_msg=name)
    for name in ("counts", "predicted", "significances"):
        np.testing.assert_allclose(one.sums[name], other.sums[name], rtol=rtol, err_msg=name)


def test_a_validation_writes_nothing_and_reads_no_event_that_is_in_the_store(make, tmp_path, monkeypatch):
    first = run(make())
    assert first.runs.sizes["obs_id"] == N
    assert first.failed == {}
    assert (first.held_out, first.left_out, first.alignment) == (True, "the run", "altaz")
    assert not any(path.is_file() for path in (tmp_path / "out").rglob("*"))
    monkeypatch.setattr(collect, "_read_runs", lambda *args: pytest.fail("events are read again"))
    assert_equal(run(make()), first)


def test_a_good_background_validates(make):
    """12 runs of the simulation: stacks of 5 h. Measured 1.00 +- 0.01, width 1.00 +- 0.02."""
    told = summarise(run(make()))
    assert told["ratio"]["value"] == pytest.approx(1, abs=0.06)
    width = told["significance"]["norm"]["width"]
    assert width["value"] == pytest.approx(width["expected"], abs=0.06)


@pytest.mark.parametrize("binning", MODES, ids=str)
def test_what_is_scored_is_what_the_job_writes(make, binning, tmp_path):
    """Against the directory that the same configuration has written; no run is in its own background there."""
    config = make(binning=binning)
    pipeline.run_job(config, progress=False)
    done = run(config, tmp_path / "out")
    assert_equal(done.against, done, rtol=1e-9)
    assert done.against.held_out is None
    row = compare({"job": done, "files": done.against}, "job")[1]
    assert all(abs(row[form]["value"]) < 1e-9 for form in ("raw", "norm", "enorm"))


def test_leaving_a_run_out_by_hand_is_the_same(make, dark_archive, tmp_path):
    """An archive without the run; the defaults of the configuration."""
    copy, number = tmp_path / "without", FIRST + 4
    shutil.copytree(dark_archive[0], copy)
    store = read_datastore(copy)
    write_index(copy, store.hdu[store.hdu["OBS_ID"] != number], store.obs[store.obs["OBS_ID"] != number])
    only, places = {"runlist": [number]}, {"search_datastore": str(copy), "in_dir": str(dark_archive[0])}
    by_hand = run(make(io=places, run_selection=only, run_store={"path": str(tmp_path / "without.zarr")}))
    alone = run(make()).runs.sel(obs_id=[number])
    assert by_hand.runs["n_runs"].values.tolist() == alone["n_runs"].values.tolist()
    for name in ("counts", "predicted", "loglike"):
        np.testing.assert_allclose(by_hand.runs[name], alone[name], rtol=1e-9)


def test_a_list_by_hand_with_the_run_itself_is_used_without_it(make):
    everyone = [FIRST + i for i in range(N)]
    done = run(make(background_selection={"bkg_runlist": {FIRST: everyone}}, run_selection={"runlist": [FIRST]}))
    assert done.runs["n_runs"].values.tolist() == [N - 1]


@pytest.mark.parametrize(
    "options", [{"block": 3}, {"block": 5, "split_every": 2}, {"block": 12}, {"njobs": 2}], ids=str
)
def test_the_result_does_not_depend_on_blocks(make, options):
    selection = {"rank": "kl", "time_request": 3}
    eager = run(make(background_selection=selection, config={"block": 1}))
    assert_equal(run(make(background_selection=selection, config=options)), eager)


def test_folds_are_left_out_as_a_whole(make):
    everything = {"rank": "none", "time_request": "all"}
    halves = run(make(background_selection=everything), folds=2)
    assert (halves.runs["n_runs"] == N // 2).all()
    assert halves.left_out == "its fold (2)"
    singles = run(make(background_selection=everything, validation={"folds": N}))
    assert (singles.runs["n_runs"] == N - 1).all()
    assert_equal(singles, run(make(background_selection=everything)))


def test_runs_of_the_same_target_are_left_out(make):
    everything = {"rank": "none", "time_request": "all"}
    done = run(make(background_selection=everything), same_target_out=True)
    assert done.left_out == "its target"
    group = done.runs["group"].values
    assert (done.runs["n_runs"].values == [np.count_nonzero(group != mine) for mine in group]).all()
    assert np.unique(group).size < N


def test_a_run_from_itself_is_no_validation(make):
    done = run(make(io={"from_run": True}))
    assert done.held_out is False
    assert summarise(done)["ratio"]["value"] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("own", ["level", "spectrum"])
def test_a_run_that_corrects_its_own_background_is_none_either(make, own, caplog):
    done = run(make(model={"own": own}))
    assert done.held_out is False
    assert "model.own" in caplog.text


def test_fields_to_north_and_to_the_zenith_are_compared_in_the_same_pixels(make):
    models = {"2d": make(binning=MODES[0]), "altaz": make(binning=MODES[1]), "radec": make(binning=MODES[2])}
    done = validate_models(models, progress=False)
    assert {one.alignment for one in done.values()} == {"radec"}
    rows = {row["name"]: row for row in compare(done, "2d")}
    assert rows["altaz"]["runs"] == N
    # the same field, turned by the job or by the validation
    assert_equal(done["altaz"], done["radec"], rtol=1e-6)


def test_without_the_horizon_the_sky_is_compared(job, four_runs, edit_run, run_path):
    def blind(hdus):
        for card in ("GEOLON", "OBSGEO-L"):
            hdus["EVENTS"].header.remove(card, ignore_missing=True)

    edit_run(run_path(four_runs, FIRST), blind)
    done = run(parse_config(job(four_runs, io=STACK)))
    assert done.alignment == "radec"
    assert done.runs.sizes["obs_id"] == 4


def test_what_is_scored_may_have_another_exclusion(make, dark_archive, tmp_path, no_catalogs):
    """Training is as before: a disc takes its share of what is compared, and nothing else."""
    pointing = dark_archive[1].runs[0]
    circle = [[pointing.ra_pnt, pointing.dec_pnt, 1.0]]
    plain, cut = run(make()), run(make(validation={"exclusion": {**no_catalogs, "exclude_regions": circle}}))
    assert (tmp_path / "store" / "runs.scored.zarr").exists()
    kept = [name.runs.sel(obs_id=FIRST) for name in (plain, cut)]
    assert kept[1]["counts"].sum() < 0.8 * kept[0]["counts"].sum()
    ratios = [float(one["predicted"].sum() / one["counts"].sum()) for one in kept]
    assert ratios[1] == pytest.approx(ratios[0], abs=0.08)
    # of the profile nothing is left within the disc, and beyond it all is as it was
    inner, outer = (kept[1]["profile"].isel(ring=part).sum() for part in (slice(0, 3), slice(5, None)))
    assert inner == 0
    assert float(outer) > 0
    raw = [one.runs.sel(obs_id=FIRST + 11) for one in (plain, cut)]
    assert raw[0]["predicted"].sum() >= raw[1]["predicted"].sum()


def test_thresholds_are_units_of_that_of_the_run(make):
    low, high = (run(make(validation={"threshold": factor})) for factor in (1.0, 2.0))
    assert (high.runs["threshold"] >= 1.9 * low.runs["threshold"]).all()
    assert high.n_events < low.n_events


# -- what can be wrong -----------------------------------------------------------------------------------------------


def test_a_threshold_above_all_energies(make):
    with pytest.raises(BackgroundError, match="above all energies that are compared") as error:
        run(make(validation={"threshold": 1e5}))
    assert str(FIRST) in str(error.value)


def test_energies_that_the_run_store_does_not_have(make):
    with pytest.raises(ConfigError, match="no energy bin of the run store"):
        run(make(binning={"e_min": 1.01, "e_max": 1.2}))


def test_against_a_directory_that_is_none(make, tmp_path):
    with pytest.raises(ArchiveError, match="hdu-index"):
        run(make(), tmp_path)


def test_against_an_archive_without_backgrounds(make, dark_archive):
    with pytest.raises(ArchiveError, match="no run has a background that can be read"):
        run(make(), dark_archive[0])


def test_what_is_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match="expected a configuration"):
        run(str(tmp_path))


def test_one_fold_is_none(make):
    with pytest.raises(ConfigError, match="folds must be 2 or more, got 1"):
        run(make(), folds=1)


def test_a_run_without_its_background_fails_alone(make, tmp_path):
    config = make()
    pipeline.run_job(config, progress=False)
    store = read_datastore(tmp_path / "out")
    path = store.location(FIRST + 2, "bkg").path
    shutil.copy(store.location(FIRST + 2, "bkg").path, f"{path}.kept")
    with open(path, "wb") as file:
        file.write(b"no FITS file")
    done = run(config, tmp_path / "out")
    assert list(done.against.failed) == [FIRST + 2]
    assert "not a whole FITS file" in done.against.failed[FIRST + 2]
    assert done.runs.sizes["obs_id"] == N
    assert compare({"a": done, "b": done.against}, "a")[0]["runs"] == N - 1


def test_a_background_of_other_columns_is_told(make, tmp_path, edit_run):
    config = make(run_selection={"runlist": [FIRST]})
    pipeline.run_job(config, progress=False)
    store = read_datastore(tmp_path / "out")
    path = store.location(FIRST, "bkg").path

    def rename(hdus):
        hdus["BACKGROUND"].columns["BKG"].name = "RATE"

    edit_run(path, rename)
    with pytest.raises(Exception, match="has no column BGD"):
        read_given(store, FIRST)
