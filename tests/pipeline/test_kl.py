"""Divergences as files: the matrix of an archive is what the formula says, the tables are what was selected by."""

from __future__ import annotations

import json
import logging
import os
import shutil
import warnings

import numpy as np
import pytest
import xarray as xr
from astropy.io import fits
from astropy.table import Table
from distributed import Client
from helpers.kept_store import keep_store
from scipy.stats import entropy

import dask_bkg
from dask_bkg.compat import run_make_background
from dask_bkg.config import parse_config
from dask_bkg.dl3.index import read_datastore, write_index
from dask_bkg.errors import ArchiveError
from dask_bkg.pipeline import kl as matrix
from dask_bkg.report.matrix import sample

pytestmark = pytest.mark.slow  # whole jobs, or simulations of many skies

OBS_IDS = list(range(64001, 64013))
BINNING = {"e_min": 0.2, "e_max": 20, "e_bins": 4, "off_max": 2, "off_bins": 2}


@pytest.fixture
def config(job, archive, tmp_path, tmp_path_factory):
    """A configuration for the twelve runs, stacks by divergence: ``config(section={...}, ...)``."""
    job = keep_store(job, archive[0], tmp_path, tmp_path_factory.getbasetemp(), binning=BINNING)

    def make(**sections):
        defaults = {"io": {"from_run": False}, "binning": BINNING, "background_selection": {"rank": "kl"}}
        ours = {name: {**values, **sections.get(name, {})} for name, values in defaults.items()}
        return job(archive[0], **{**sections, **ours})

    return make


def write(sections: dict) -> xr.DataArray:
    done = matrix.write_matrix(parse_config(sections), progress=False)
    assert done.failed == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return xr.open_zarr(done.path)["kl"].load()


# --- the matrix --------------------------------------------------------------------------------------------


def test_the_matrix_of_the_document_is_scipys(config, archive):
    """Entropy of the rates of each pair, normalised, plus 1e-9; the rates are made here of the runs themselves."""
    kl = write(config(model={"divergence": "document"}))
    binning = parse_config(config()).binning
    edges = {"energy": binning.energy_edges, "offset": binning.offset_edges}
    paths = [archive[0] / f"data/run_{i:06d}.fits.gz" for i in OBS_IDS]
    runs = [dask_bkg.reduce_run(str(path), i, edges, None) for path, i in zip(paths, OBS_IDS, strict=True)]
    rates = np.array([(run.counts / run.exposure).values.ravel() for run in runs])
    shapes = rates / rates.sum(axis=1, keepdims=True) + 1e-9
    assert (rates > 0).mean() > 0.9
    expected = np.array([[entropy(p, q) for q in shapes] for p in shapes])
    assert kl.dims == ("obs_id", "obs_id_ref")
    assert kl.obs_id.values.tolist() == kl.obs_id_ref.values.tolist() == OBS_IDS
    np.testing.assert_allclose(kl.values, expected, rtol=1e-7, atol=1e-12)


def test_the_matrix_is_that_of_python(config, tmp_path):
    """From the store that it made, with `dask_bkg.open_runs`, sums of its fine bins; another block is another sum."""
    kl = write(config(config={"block": 5}))
    # the axes of this job are no sums of the fine bins, and have a view of their own
    store = tmp_path / "store" / "runs.zarr"
    runs = dask_bkg.open_runs(store, *(path.name for path in store.glob("rings-*")))
    assert runs.obs_id.values.tolist() == OBS_IDS
    assert runs.counts.shape == (12, 4, 2)
    here = dask_bkg.kl_matrix(runs).compute()
    np.testing.assert_allclose(kl.values, here.values, rtol=1e-10, atol=1e-12)
    assert kl.attrs == here.attrs
    np.testing.assert_array_equal(kl.zenith.values, runs.zenith.values)
    for block in (1, None):
        np.testing.assert_allclose(write(config(config={"block": block})).values, kl.values, rtol=1e-10, atol=1e-12)


def test_the_matrix_shows_the_zenith_angle(config):
    """Runs at like zenith angles are more alike than others: what the whole thing is for."""
    kl = write(config())
    airmass = 1 / np.cos(np.deg2rad(kl.zenith.values))
    gap = np.abs(airmass[:, None] - airmass)
    pairs = ~np.eye(len(gap), dtype=bool)
    rank = [np.argsort(np.argsort(values[pairs])) for values in (kl.values, gap)]
    assert np.corrcoef(rank)[0, 1] > 0.6


def test_the_matrix_from_a_cluster(config):
    here = write(config())
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None):
        there = write(config(cluster="local"))
    np.testing.assert_array_equal(there.values, here.values)


def test_a_matrix_that_cannot_be_written_leaves_the_earlier_one(config, tmp_path, monkeypatch):
    before = write(config())
    monkeypatch.setattr(matrix, "compute_each", lambda tasks, client, n, handle: handle(0, OSError("no space left")))
    with pytest.raises(OSError, match="no space"):
        write(config(model={"divergence": "document"}))
    monkeypatch.undo()
    assert xr.open_zarr(tmp_path / "out/results/kl.zarr")["kl"].load().identical(before)
    assert not [path.name for path in (tmp_path / "out/results").iterdir() if path.name.startswith(".")]


def test_what_killed_jobs_left_is_cleared_away(config, tmp_path):
    """Directories that are older than a day; a younger one may be another job's."""
    results = tmp_path / "out" / "results"
    old, young = (results / f".dask_bkg-{pid}-{'0123456789abcdef'}-kl.zarr" for pid in (1, 2))
    for left in (old, young):
        (left / "kl" / "c").mkdir(parents=True)
    os.utime(old, (1e9, 1e9))
    write(config())
    assert not old.exists()
    assert young.is_dir()


def test_two_runs_at_least(config, job, four_runs, run_path):
    for obs_id in (64001, 64002, 64003):
        run_path(four_runs, obs_id).unlink()
    with pytest.raises(ArchiveError, match="a matrix needs two"):
        matrix.write_matrix(parse_config(job(four_runs, io={"from_run": False})), progress=False)


@pytest.mark.parametrize(("most", "expected"), [(20, OBS_IDS), (3, [64001, 64007, 64012]), (1, [64001])])
def test_a_sample_for_a_picture(tmp_path, most, expected):
    """The ends and what lies between, evenly; the values are those of these runs."""
    values = np.arange(144.0).reshape(12, 12)
    coords = {"obs_id": OBS_IDS, "obs_id_ref": OBS_IDS, "zenith": ("obs_id", np.arange(12.0))}
    whole = xr.DataArray(values, coords, ("obs_id", "obs_id_ref"), name="kl")
    whole.to_dataset().to_zarr(tmp_path / "kl.zarr", consolidated=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        some = sample(tmp_path / "kl.zarr", most)
    assert some.obs_id.values.tolist() == some.obs_id_ref.values.tolist() == expected
    np.testing.assert_array_equal(some.values, whole.sel(obs_id=expected, obs_id_ref=expected).values)
    np.testing.assert_array_equal(some.zenith, np.array(expected) - 64001)


# --- tables of targets -------------------------------------------------------------------------------------


def tables(tmp_path) -> dict[int, Table]:
    paths = (tmp_path / "out/results/kl").glob("*.kl.fits")
    return {int(path.name.split(".")[0]): Table.read(path) for path in sorted(paths)}


def contributing(tmp_path) -> dict[int, list[int]]:
    told = json.loads((tmp_path / "out/results/provenance.json").read_text())["backgrounds"]
    return {int(run): entry["contributing_runs"] for run, entry in told.items()}


@pytest.mark.parametrize("rank", ["kl", "kl-conditions", "elevation"])
def test_a_table_for_each_target(config, tmp_path, archive, rank):
    """The runs that pass the cuts, itself first, then by divergence; marked are those that contribute."""
    chosen = {"runlist": OBS_IDS[:3]}
    selection = {"rank": rank, "store_KL": True, "time_request": 1.0, "exclude_same_target": rank == "elevation"}
    run_make_background(config(background_selection=selection, run_selection=chosen))
    found, used = tables(tmp_path), contributing(tmp_path)
    assert list(found) == list(used) == OBS_IDS[:3]
    objects = {run.obs_id: run.object for run in archive[1].runs}
    kl = write(config())
    for obs_id, table in found.items():
        assert table.colnames[:2] == ["OBS_ID", "KL_DIV"]
        assert {"OBS_ID", "LIVETIME", "ZENITH", "KL_DIV", "SELECTED"} == set(table.colnames)
        assert (str(table["LIVETIME"].unit), str(table["ZENITH"].unit)) == ("s", "deg")
        others = [run for run in OBS_IDS if rank != "elevation" or objects[run] != objects[obs_id]]
        assert sorted(table["OBS_ID"]) == sorted({*others, obs_id})
        assert table["OBS_ID"][0] == obs_id
        assert np.all(np.diff(np.round(table["KL_DIV"][1:], 10)) >= 0)
        expected = kl.sel(obs_id=obs_id, obs_id_ref=np.array(table["OBS_ID"]))
        np.testing.assert_allclose(table["KL_DIV"], expected, rtol=1e-10, atol=1e-12)
        assert sorted(table["OBS_ID"][table["SELECTED"]]) == sorted(used[obs_id])
        assert 2 <= table["SELECTED"].sum() < 11
        if rank == "kl":
            # no cut: they are the first ones, and in this order
            assert table["OBS_ID"][1 : len(used[obs_id]) + 1].tolist() == used[obs_id]
        header = fits.getheader(archive[0] / f"data/run_{obs_id:06d}.fits.gz", "EVENTS")
        assert table["LIVETIME"][0] == pytest.approx(header["LIVETIME"])
        assert table["ZENITH"][0] == pytest.approx(90 - header["ALT_PNT"])


def test_scores_are_the_divergences_of_the_tables(config, tmp_path):
    run_make_background(config(background_selection={"store_KL": True, "time_request": 1.0}))
    told = json.loads((tmp_path / "out/results/provenance.json").read_text())["backgrounds"]
    for obs_id, table in tables(tmp_path).items():
        entry = told[str(obs_id)]
        divergence = dict(zip(table["OBS_ID"].tolist(), table["KL_DIV"].tolist(), strict=True))
        assert entry["scores"] == pytest.approx([divergence[run] for run in entry["contributing_runs"]], abs=1e-9)


def test_a_table_of_a_target_that_is_not_in_the_archive(config, archive, tmp_path):
    """The rows are the runs that may contribute, and the target is none of them."""
    some = tmp_path / "some"
    shutil.copytree(archive[0], some)
    store = read_datastore(some)
    write_index(some, store.hdu[store.hdu["OBS_ID"] < 64009], store.obs[:8])
    io, wanted = {"search_datastore": str(some)}, {"runlist": [64010]}
    run_make_background(config(io=io, background_selection={"store_KL": True}, run_selection=wanted))
    table = tables(tmp_path)[64010]
    assert sorted(table["OBS_ID"]) == OBS_IDS[:8]
    assert np.isfinite(table["KL_DIV"]).all()


def test_lists_by_hand_are_marked_too(config, tmp_path):
    lists = {64001: [64009, 64004], 64002: [64001]}
    # whatever the cuts say of them
    selection = {"store_KL": True, "bkg_runlist": lists, "time_request": 0.5, "el_min": 60}
    run_make_background(config(background_selection=selection, run_selection={"runlist": OBS_IDS[:3]}))
    found = tables(tmp_path)
    for obs_id in lists:
        assert sorted(found[obs_id]["OBS_ID"][found[obs_id]["SELECTED"]]) == sorted(lists[obs_id])
        assert {*lists[obs_id], obs_id} <= set(found[obs_id]["OBS_ID"])


def test_a_table_that_cannot_be_written_costs_no_background(config, tmp_path, caplog):
    results = tmp_path / "out" / "results"
    results.mkdir(parents=True)
    (results / "kl").touch()  # a file where the directory would be
    chosen = {"runlist": OBS_IDS[:2]}
    with caplog.at_level(logging.WARNING):
        finished = run_make_background(config(background_selection={"store_KL": True}, run_selection=chosen))
    assert finished["run_selection"]["failed_runs"] == {}
    assert sorted(contributing(tmp_path)) == OBS_IDS[:2]
    assert "table of divergences could not be written" in caplog.text


def test_no_tables_unless_they_are_wanted(config, tmp_path):
    run_make_background(config(run_selection={"runlist": OBS_IDS[:2]}))
    assert not (tmp_path / "out/results/kl").exists()
