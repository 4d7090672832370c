"""Run histograms out of the store: plain arrays for tasks, a lazy dataset for people, a text about it."""

from __future__ import annotations

import re
import shutil
import threading
import warnings
from collections import Counter

import dask
import numpy as np
import pytest
import xarray as xr
from helpers.archive_job import FINE, FIRST, disc, run_files, update

import dask_bkg
from dask_bkg import schema
from dask_bkg.binning import Edges, FieldEdges
from dask_bkg.dl3.read import RunFile
from dask_bkg.errors import ArchiveError
from dask_bkg.reduction import counts as kernels
from dask_bkg.reduction.reduce import reduce_run, reduce_views, solid_angles
from dask_bkg.store import layout
from dask_bkg.store import load as load_module
from dask_bkg.store.info import describe
from dask_bkg.store.load import load_field, load_histograms, open_runs
from dask_bkg.store.rows import Rows, consolidate
from dask_bkg.store.store import RunStore

RINGS = Edges(np.geomspace(0.1, 100, 31), np.linspace(0, 2.5, 11))
ODD = Edges(np.geomspace(0.13, 70, 6), np.array([0.0, 0.33, 1.1, 2.3]))


def test_it_opens_without_a_warning(filled):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = open_runs(filled.path)
        plain = xr.open_zarr(filled.path / "fine")
    assert {name: array.dims for name, array in plain.items() if name in layout.arrays_of(FINE)} == {
        "counts": ("row", "energy", "offset"),
        "exposed_fraction": ("row", "offset"),
        "field_counts": ("row", "energy", "fov_lat", "fov_lon"),
        "field_exposed_fraction": ("row", "fov_lat", "fov_lon"),
    }
    assert dataset.sizes == {"obs_id": 12, "energy": 50, "offset": 50, "fov_lat": 25, "fov_lon": 25}
    assert dataset.field_counts.dims == ("obs_id", "energy", "fov_lat", "fov_lon")
    units = {name: dataset[name].attrs["units"] for name in ("energy_min", "fov_lon", "livetime", "time", "zenith")}
    assert units == {"energy_min": "TeV", "fov_lon": "deg", "livetime": "s", "time": "d", "zenith": "deg"}
    assert {"zenith", "object", "solid_angle", "field_solid_angle", "offset_max", "fov_lat_min"} <= {*dataset.coords}
    assert set(dataset.data_vars) == {"exposure", *layout.arrays_of(FINE)}
    assert dataset.energy_max.values == pytest.approx(FINE.edges.energy[1:], rel=1e-15)
    assert dataset.attrs["dask_bkg_layout"] == layout.LAYOUT
    assert dataset.counts.sel(obs_id=FIRST).sum() > 1000


@pytest.mark.parametrize("edges", [RINGS, Edges(FINE.edges.energy[20:41:4], np.array([0.5, 1.0, 2.5]))])
def test_sums_of_fine_bins_are_the_histograms_of_coarse_ones(archive, tmp_path, edges):
    directory, _ = archive
    regions = disc(83.9, 22.2, 0.5)
    store = RunStore.open_or_create(tmp_path / "runs.zarr", FINE, block=5)
    update(store, run_files(directory, 12), regions)
    assert store.view_for(edges, "geometry", "disc") is store.fine
    chosen = [FIRST + 9, FIRST, FIRST + 3, FIRST + 11]
    counts, exposure = load_histograms(str(store.path), "", store.find(chosen), edges)
    assert counts.shape == exposure.shape == (4, *edges.shape)
    for i, obs_id in enumerate(chosen):
        eager = reduce_run(run_files(directory, 1, obs_id)[0].path, obs_id, edges, regions)
        assert (counts[i] == eager.counts.values).all()
        assert exposure[i] == pytest.approx(eager.exposure.values, rel=1e-12)
    assert counts.sum() > 500


def test_bins_that_the_view_does_not_have_are_refused(filled):
    with pytest.raises(ValueError, match="no sums"):
        load_histograms(str(filled.path), "", [0], ODD)
    with pytest.raises(ValueError, match="find"):
        load_histograms(str(filled.path), "", [0, -1], RINGS)
    with pytest.raises(ArchiveError, match="rings-none"):
        load_histograms(str(filled.path), "rings-none", [0], RINGS)


def test_no_row_gives_no_histogram(filled):
    counts, exposure = load_histograms(str(filled.path), "", np.array([], dtype=int), RINGS)
    assert counts.shape == exposure.shape == (0, *RINGS.shape)


def test_exposure_never_depends_on_the_block(archive, filled, tmp_path):
    other = RunStore.open_or_create(tmp_path / "other.zarr", FINE, block=2)
    update(other, run_files(archive[0], 12)[::-1])
    ids = range(FIRST, FIRST + 12)
    pairs = [load_histograms(str(s.path), "", s.find(ids), RINGS) for s in (filled, other)]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(*pairs, strict=True))
    width = kernels.exposure(1.0, FINE.edges.energy, solid_angles(FINE)["solid_angle"], np.ones(50))
    fine = load_histograms(str(filled.path), "", [0], FINE.edges)[1][0]
    assert fine == pytest.approx(filled.table()["ontime"][0] * width, rel=1e-15)


def test_a_task_reads_the_chunks_of_its_rows_alone(filled, monkeypatch):
    read, names = load_module.Rows._slice, []

    def watched(self, array, name, first, stop):
        names.append((name, first, stop))
        return read(self, array, name, first, stop)

    monkeypatch.setattr(load_module.Rows, "_slice", watched)
    load_histograms(str(filled.path), "", [10, 11], RINGS)
    assert names == [("counts", 0, 25), ("exposed_fraction", 0, 25)]


def computes(graph, *args, **kwargs):
    raise AssertionError("this must not compute anything")


def test_the_open_dataset_is_lazy_and_sorted_and_passes_the_check(archive, tmp_path):
    runs = run_files(archive[0], 12)
    bad = RunFile(1, str(tmp_path / "nowhere.fits"))
    store = RunStore.open_or_create(tmp_path / "runs.zarr", FINE, block=5)
    update(store, [*runs[6:], bad, *runs[:6]])
    with dask.config.set(scheduler=computes):
        dataset = open_runs(store.path)
        assert schema.check(dataset) is dataset
        assert dataset.obs_id.values.tolist() == [run.obs_id for run in runs]
        assert dataset.counts.dims == dataset.exposure.dims == ("obs_id", "energy", "offset")
        assert dataset.zenith.values.max() > 5
        assert set(dataset.telescopes.values) != {""}
        dense = dataset.field_counts
        assert dataset.energy_max.values.tolist() == FINE.edges.energy[1:].tolist()
    for run in runs[::5]:
        expected = reduce_views(run, [FINE])
        one = dataset.sel(obs_id=run.obs_id)
        assert (one.counts.values == expected.histograms[0]["counts"]).all()
        assert (dense.sel(obs_id=run.obs_id).values == expected.histograms[0]["field_counts"]).all()
        assert one.exposure.values == pytest.approx(
            kernels.exposure(
                expected.numbers["ontime"],
                FINE.edges.energy,
                solid_angles(FINE)["solid_angle"],
                expected.histograms[0]["exposed_fraction"],
            ),
            rel=1e-14,
        )
        assert float(one.zenith) == expected.numbers["zenith"]
        assert str(one.object.values) == expected.texts["object"]


def test_rows_in_order_are_not_rearranged(filled):
    dataset = dask_bkg.open_runs(filled.path)
    assert dataset.counts.chunks[0] == (12,)
    assert len(dask.optimize(dataset.counts)[0].data.__dask_graph__()) < 6


def test_a_background_of_an_open_dataset(filled):
    dataset = open_runs(filled.path)
    background = dask_bkg.to_background(dataset.sel(obs_id=[FIRST, FIRST + 5]).isel(energy=slice(15, 40)))
    assert background.data.shape == (25, 50)
    assert np.isfinite(background.data).all()


def test_another_view_opens_with_the_same_runs(archive, filled):
    view = filled.view_for(ODD, "event_ratio", "centre")
    update(filled, run_files(archive[0], 7), views=[view])
    dataset = open_runs(filled.path, view.name)
    assert dataset.obs_id.size == 7
    eager = reduce_run(run_files(archive[0], 1)[0].path, FIRST, ODD, method="event_ratio", reach="centre")
    assert (dataset.exposure[0].values == eager.exposure.values).all()
    assert "field_counts" not in dataset
    with pytest.raises(ArchiveError, match=r"no view 'rings-no'; it has '', 'rings-"):
        open_runs(filled.path, "rings-no")


def test_no_store_is_an_error_that_says_what_to_do(tmp_path):
    for ask in (open_runs, describe):
        with pytest.raises(ArchiveError, match="dask-bkg reduce"):
            ask(tmp_path / "nothing.zarr")


def test_the_directory_of_a_job_is_no_store_and_its_store_is_named(filled, tmp_path):
    """Nobody is going to write: that it is left alone, the error of those who would, is beside the point."""
    job = tmp_path / "job"
    shutil.copytree(filled.path, job / "results" / "runs.zarr")
    for ask in (open_runs, describe):
        for place in (job, job / "results"):
            with pytest.raises(ArchiveError, match=r"holds no store.*; there is one in .*job/results/runs\.zarr\.$"):
                ask(place)
        with pytest.raises(ArchiveError, match=r"holds no store.*; `dask-bkg reduce"):
            ask(job / "results" / "runs.zarr" / "fine" / "counts")


def test_threads_that_write_stores_leave_the_filters_of_warnings_as_they_were(filled):
    """Tasks of one worker, each with a store of its own: what one of them ignores is not ignored for good."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        threads = [threading.Thread(target=consolidate, args=(filled.path / "fine",)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert warnings.filters == before


def test_the_field_is_that_of_the_run(archive, filled):
    rows = filled.find([FIRST + 8, FIRST + 1])
    edges = FieldEdges(FINE.edges.energy, np.array(FINE.pixels))
    counts, exposure = load_field(str(filled.path), "", rows, edges)
    whole = filled.table()["ontime"][rows, None, None] * solid_angles(FINE)["field_solid_angle"]
    for i, run in enumerate((run_files(archive[0], 9)[8], run_files(archive[0], 2)[1])):
        expected = reduce_views(run, [FINE]).histograms[0]
        assert (counts[i] == expected["field_counts"]).all()
        np.testing.assert_allclose(exposure[i], whole[i] * expected["field_exposed_fraction"], rtol=1e-14)


def test_coarse_pixels_are_sums(filled):
    rows = filled.find([FIRST, FIRST + 3])
    fine = FieldEdges(FINE.edges.energy, np.array(FINE.pixels))
    coarse = FieldEdges(FINE.edges.energy[10:41:5], np.array(FINE.pixels)[::5])
    counts, exposure = load_field(str(filled.path), "", rows, fine)
    sums, exposed = load_field(str(filled.path), "", rows, coarse)
    assert sums.shape == (2, *coarse.shape)
    np.testing.assert_array_equal(sums, counts[:, 10:40].reshape(2, 6, 5, 5, 5, 5, 5).sum(axis=(2, 4, 6)))
    np.testing.assert_allclose(exposed, exposure.reshape(2, 5, 5, 5, 5).sum(axis=(2, 4)), rtol=1e-13)


def test_the_description_says_what_is_there(archive, filled, tmp_path):
    runs, view = run_files(archive[0], 12), filled.view_for(ODD, "geometry", "disc")
    bad = RunFile(7, str(tmp_path / "nowhere.fits"))
    regions = disc(83.6, 22.0)
    with filled.writing():
        filled.plan_update([], [filled.fine], regions, {"gammacat": "0123abcd"})
    update(filled, [*runs[:4], bad], views=[filled.fine, view])
    runs_table = Rows(filled.path / "runs")
    runs_table.update(runs_table.latest()[[6]], {"livetime": [np.nan]})
    filled = RunStore.open(filled.path)
    text = describe(filled.path)
    table = {name: column[1:] for name, column in filled.table().items()}  # without run 7
    assert table["obs_id"].tolist() == [run.obs_id for run in runs]
    assert np.isnan(table["livetime"]).tolist() == [i == 5 for i in range(12)]
    assert f"{np.nansum(table['livetime']) / 3600:.1f} h livetime" in text
    assert "12 usable, 1 failed" in text
    assert "run 7: the index names" in text
    assert "64001 to 64012" in text
    assert "50 energies 0.01-1000 TeV, 50 rings 0-2.5 deg, 25^2 pixels of 0.2 deg" in text
    assert "5 energies 0.13-70 TeV, 3 rings 0-2.3 deg; geometry, disc; 4 runs; " in text
    (ring,) = [line for line in text.splitlines() if line.startswith(view.name)]
    assert re.search(r"; [\d.]+ kB in \d+ files$", ring)
    assert f"{table['ontime'].sum() / 3600:.1f} h ontime" in text
    assert f"{table['n_events'].sum():.0f}" in text
    dates = [line for line in text.splitlines() if line.startswith("dates")]
    mjd = table["time"].min()
    assert str(np.datetime64("1858-11-17") + np.timedelta64(int(mjd), "D")) in dates[0]


def test_the_description_tells_how_many_runs_are_of_which_exclusion(archive, filled):
    """Not only that of the last job."""
    ids = filled.table()["obs_id"]
    update(filled, run_files(archive[0], 5), disc(83.6, 22.0, 180.0 / 100))
    counts = Counter(filled.table()["whole_exclusion"].tolist())
    assert sorted(counts.values()) == [5, 7]
    text, used = describe(filled.path), layout.attributes_of(filled.path)["exclusions"]
    for sha, n in counts.items():
        assert re.search(rf"{sha} +{n} runs, used {used[sha]}", text)
    assert ids.size == 12


def test_the_description_of_an_empty_store(tmp_path):
    RunStore.open_or_create(tmp_path / "runs.zarr", FINE)
    text = describe(tmp_path / "runs.zarr")
    assert "0 usable, 0 failed" in text
    assert "none yet" in text
