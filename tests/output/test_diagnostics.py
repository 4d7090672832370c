"""What is behind a background: written, read back one by one and all together, and safe from what jobs do."""

from __future__ import annotations

from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
from astropy.io import fits
from numpy.testing import assert_allclose, assert_array_equal

import dask_bkg
from dask_bkg.binning import Edges, FieldEdges
from dask_bkg.compat import run_make_background
from dask_bkg.errors import ArchiveError, ConfigError
from dask_bkg.output import diagnostics as sidefiles
from dask_bkg.output import opened as backgrounds
from dask_bkg.schema import edges_of, field_edges_of

EDGES = Edges(np.geomspace(0.1, 10, 5), np.linspace(0, 2, 4))
FIELD = FieldEdges(EDGES.energy, np.linspace(-2, 2, 7))


def values_of(obs_id, field=None, seed=0):
    rng = np.random.default_rng([seed, obs_id])
    shape = EDGES.shape if field is None else field.shape
    made = {name: rng.uniform(1, 2, EDGES.shape) for name in ("counts", "exposure", "effective_counts")}
    made |= {name: rng.uniform(1, 2, shape) for name in ("rate", "error", "resolution")}
    made |= {"flag": rng.integers(0, 63, shape), "level_error": rng.uniform(0, 1, 4), "night_factor": 1.5}
    return made | {"hours": [1.5, 20.0, 0.0], "n_runs": [3, 40, 0], "widened": [1, 1.2, 1], "obs_id": obs_id}


def write(directory, numbers, field=None, edges=EDGES):
    for number in numbers:
        path = sidefiles.side_path(Path(directory, sidefiles.DIRECTORY), number)
        sidefiles.write_side(path, edges, field, values_of(number, field))


@pytest.mark.parametrize("field", [None, FIELD], ids=["2d", "3d"])
def test_what_is_written_is_read_back(tmp_path, field):
    write(tmp_path, [7, 3, 12], field)
    dataset = dask_bkg.open_backgrounds(tmp_path)
    assert dataset.obs_id.values.tolist() == [3, 7, 12]
    assert dataset.rate.dims == ("obs_id", *(EDGES if field is None else field).dims)
    for i, number in enumerate([3, 7, 12]):
        expected = values_of(number, field)
        for name in ("rate", "error", "counts", "level_error", "hours", "n_runs"):
            assert_allclose(dataset[name][i], expected[name], rtol=1e-6)
        assert_array_equal(dataset.flag[i], expected["flag"])
    assert np.isnan(dataset.own_factor).all()
    assert_allclose(edges_of(dataset).offset, EDGES.offset)
    if field is not None:
        assert_allclose(field_edges_of(dataset).fov, FIELD.fov)
    assert dataset.rate.units == "s-1 TeV-1 sr-1"
    assert set(sidefiles.VARIABLES) - {"obs_id"} == set(dataset.data_vars)
    assert dataset.hours.sel(role="shape").values.tolist() == [20.0] * 3


def test_xarray_opens_a_file_of_one_run(tmp_path):
    write(tmp_path, [5])
    with xr.open_dataset(sidefiles.side_path(tmp_path / "backgrounds", 5)) as one:
        assert_allclose(one.rate, values_of(5)["rate"], rtol=1e-6)
        assert int(one.obs_id) == 5


def test_many_are_lazy_and_the_same(tmp_path, monkeypatch):
    write(tmp_path, range(10, 17), FIELD)
    eager = dask_bkg.open_backgrounds(tmp_path)
    monkeypatch.setattr(backgrounds, "IN_MEMORY", 0)
    monkeypatch.setattr(backgrounds, "FILES", 3)
    lazy = dask_bkg.open_backgrounds(tmp_path)
    assert all(dask.is_dask_collection(lazy[name].data) for name in lazy.data_vars)
    assert lazy.rate.chunks[0] == (3, 3, 1)
    xr.testing.assert_identical(lazy.compute(scheduler="synchronous"), eager)


def test_some_runs_only(tmp_path):
    write(tmp_path, [1, 2, 3])
    assert dask_bkg.open_backgrounds(tmp_path, [3, 1]).obs_id.values.tolist() == [1, 3]
    with pytest.raises(ArchiveError, match=r"of the runs \[9\]: give the io.results_dir"):
        dask_bkg.open_backgrounds(tmp_path, [1, 9])


def test_what_cannot_be_put_together_is_told(tmp_path):
    with pytest.raises(ArchiveError, match="no side file of any run"):
        dask_bkg.open_backgrounds(tmp_path)
    write(tmp_path, [1])
    write(tmp_path, [2], edges=EDGES._replace(offset=np.linspace(0, 2.5, 4)))
    write(tmp_path, [3], FIELD)
    for other in (2, 3):
        with pytest.raises(ArchiveError, match=rf"bkg_{other}.nc has other axes .* --refresh"):
            dask_bkg.open_backgrounds(tmp_path, [1, other])
    sidefiles.side_path(tmp_path / "backgrounds", 1).write_bytes(b"CDF\x01 torn")
    with pytest.raises(ArchiveError, match=r"bkg_1.nc is no side file .* run the job again"):
        dask_bkg.open_backgrounds(tmp_path, [1])


# --- in a job -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["2d", "3d"])
def done(request, job, four_runs):
    """A job of backgrounds from other runs, and its results directory."""
    config = job(four_runs, io={"from_run": False}, binning={"mode": request.param, "off_bins": 5, "e_bins": 12})
    run_make_background(config)
    return config, Path(config["io"]["out_dir"], "results")


def times(results):
    return {path.name: path.stat().st_mtime_ns for path in (results / "backgrounds").iterdir()}


def test_each_background_of_a_job_leaves_one(done):
    config, results = done
    dataset = dask_bkg.open_backgrounds(results)
    assert dataset.sizes["obs_id"] == 4
    assert (dataset.rate > 0).all()
    assert (dataset.error > 0).all()
    assert np.isfinite(dataset.error).all()
    assert (dataset.hours.sel(role="spectrum") > 0).all()
    assert (dataset.n_runs.sel(role="shape") >= 1).all()
    before = times(results)
    run_make_background(config)
    assert times(results) == before


def test_one_that_is_lost_is_made_again_and_one_of_a_lost_background_goes(done):
    config, results = done
    before = times(results)
    lost = sidefiles.side_path(results / "backgrounds", 64001)
    lost.unlink()
    run_make_background(config)
    after = times(results)
    assert set(after) == set(before)
    assert {name for name in after if after[name] != before[name]} == {lost.name}
    # its file is deleted, and the next job does others
    next(Path(config["io"]["out_dir"]).rglob("*64002*.fits*")).unlink()
    config["run_selection"] = {"runlist": [64001]}
    run_make_background(config)
    assert set(times(results)) == set(before) - {"bkg_64002.nc"}


@pytest.mark.parametrize("kind", ["level", "spectrum"])
def test_own_counts_of_a_job_are_in_the_header_and_beside_it(job, four_runs, kind):
    config = job(four_runs, io={"from_run": False}, binning={"off_bins": 5, "e_bins": 12}, model={"own": kind})
    run_make_background(config)
    results = Path(config["io"]["out_dir"], "results")
    dataset = dask_bkg.open_backgrounds(results)
    assert ((dataset.own_factor > 0.3) & (dataset.own_factor < 3) & (dataset.own_error < 0.1)).all()
    assert (np.ptp(dataset.own_spectrum.values, axis=1) > 0).all() == (kind == "spectrum")
    path = next(Path(config["io"]["out_dir"]).rglob("*64001*.fits*"))
    header = fits.getheader(path, "BACKGROUND")
    assert header["OWN_FACT"] == pytest.approx(float(dataset.own_factor[0]), abs=1e-6)
    assert (header["OWN_KIND"], header["OWN_N"] > 0) == (kind, True)
    before = times(results)
    run_make_background(config)
    assert times(results) == before


def test_own_counts_and_smoothing_of_rings_need_rings(job, four_runs):
    for model, selection in (({"own": "level"}, {}), ({"smooth_method": "spline"}, {"smooth": True})):
        config = job(
            four_runs, binning={"mode": "3d"}, model={"field": "plain", **model}, background_selection=selection
        )
        with pytest.raises(ConfigError, match=r"works on offset bins, and model.field: plain has none: set"):
            run_make_background(config)
