"""The results of jobs as one dataset: written in parts, folded, opened; other bins, failures, files that are gone."""

from __future__ import annotations

import errno
import gzip
import json
import logging
import os
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
from astropy.io import fits
from astropy.table import Table
from numpy.testing import assert_allclose, assert_array_equal

import dask_bkg
from dask_bkg.background.target import Target
from dask_bkg.binning import Edges, FieldEdges
from dask_bkg.compat import run_make_background
from dask_bkg.errors import ArchiveError, ConfigError
from dask_bkg.files import read
from dask_bkg.output import backgrounds as module
from dask_bkg.output.backgrounds import Backgrounds, contributing_runs, layout_of
from dask_bkg.output.write import Result, pack
from dask_bkg.schema import edges_of, field_edges_of
from dask_bkg.store.check import check_store
from dask_bkg.store.rows import Rows, write_part

pytestmark = pytest.mark.slow  # whole jobs, or simulations of many skies

EDGES = Edges(np.geomspace(0.1, 10, 5), np.linspace(0, 2, 4))
FIELD = FieldEdges(EDGES.energy, np.linspace(-2, 2, 7))


def record_of(obs_id, directory, field=None, job="j1", n_runs=3, digest="d"):
    """All that is kept of a background, whose file is there."""
    rng = np.random.default_rng(obs_id)
    shape = EDGES.shape if field is None else field.shape
    made = {name: rng.uniform(1, 2, (3, *EDGES.shape)) for name in ("counts", "exposure", "effective_counts")}
    made |= {name: rng.uniform(1, 2, shape) for name in ("rate", "error", "resolution")}
    made |= {"flag": rng.integers(0, 63, shape), "level_error": rng.uniform(0, 1, 4), "night_factor": 1.5}
    made["contributing"] = np.full((3, n_runs), -1)
    made["contributing"][:2] = obs_id + np.arange(n_runs)
    made |= {"weight": rng.uniform(0.1, 1, (3, n_runs)), "score": rng.uniform(0, 1, (3, n_runs))}
    for i, role in enumerate(("spectrum", "shape", "night")):
        made |= {f"hours.{role}": i + 0.5, f"n_runs.{role}": n_runs if i < 2 else 0, f"widened.{role}": 1.0}
    output = Path(directory, f"bkg_{obs_id}.fits")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.touch()
    about = {"obs_id": obs_id, "status": "done", "output": str(output), "hdu": "BACKGROUND", "digest": digest}
    files = {
        "file_size.source": 10,
        "file_size.output": 20,
        "file_time.source": 10**18,
        "file_time.output": 2 * 10**18,
    }
    return made | about | files | {"job": job, "livetime": 3600.0, "n_events": 17, "written": 3 * 10**18}


class Job:
    """A job as its driver sees it, without anything that is computed."""

    def __init__(self, directory, name="j1", field=None):
        self.directory, self.field, self.name = Path(directory), field, name
        self.backgrounds = Backgrounds(self.directory, EDGES, field, (name, {"config_hash": f"c of {name}"}))

    def write(self, *obs_ids, **changes):
        """What a task does; its result for each run."""
        layout = layout_of(EDGES, self.field)
        records = [record_of(i, self.directory.parent / "out", self.field, self.name, **changes) for i in obs_ids]
        write_part(self.backgrounds.place.parts, layout, pack(records, layout))
        return [Result(obs_id, "done") for obs_id in obs_ids]


def failed(*obs_ids):
    return [Result(obs_id, "failed", f"run {obs_id}: gone") for obs_id in obs_ids]


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


@pytest.mark.parametrize("field", [None, FIELD], ids=["2d", "3d"])
def test_what_is_written_is_read_back(results, field):
    job = Job(results, field=field)
    job.backgrounds.record(job.write(7, 3) + job.write(12, n_runs=300))
    dataset = dask_bkg.open_backgrounds(results)
    assert dataset.obs_id.values.tolist() == [3, 7, 12]
    assert dataset.rate.dims == ("obs_id", *(EDGES if field is None else field).dims)
    for i, obs_id in enumerate([3, 7, 12]):
        expected = record_of(obs_id, results.parent / "out", field, n_runs=300 if obs_id == 12 else 3)
        for name in ("rate", "error", "resolution", "counts", "exposure", "effective_counts", "level_error", "flag"):
            assert_allclose(dataset[name][i], expected[name], rtol=1e-6)
        for name in ("contributing", "weight", "score"):
            n = expected[name].shape[-1]
            assert_allclose(dataset[name][i, :, :n], expected[name], rtol=1e-6)
            rest = dataset[name][i, :, n:]
            assert (rest == -1).all() if name == "contributing" else np.isnan(rest).all()
        assert dataset.night_factor[i] == 1.5
        assert (dataset.n_events[i], dataset.livetime[i], dataset.job[i]) == (17, 3600, "j1")
    assert np.isnan(dataset.own_factor).all()
    assert np.isnan(dataset.own_spectrum).all()
    assert_allclose(edges_of(dataset).offset, EDGES.offset)
    assert "energy_min" in dataset.coords
    if field is not None:
        assert_allclose(field_edges_of(dataset).fov, FIELD.fov)
    assert dataset.hours.sel(role="shape").values.tolist() == [1.5] * 3
    assert dataset.n_runs.sel(role="spectrum").values.tolist() == [3, 3, 300]
    assert dataset.file_size.sel(file="output").values.tolist() == [20] * 3
    assert (dataset.file_time.sel(file="source") == np.datetime64("2001-09-09T01:46:40")).all()
    assert dataset.jobs == {"j1": {"config_hash": "c of j1"}}
    assert contributing_runs(results, [3, 7]) == {3: [3, 4, 5], 7: [7, 8, 9]}


def test_every_variable_has_its_unit_and_its_meaning(results):
    job = Job(results)
    job.backgrounds.record(job.write(1))
    dataset = dask_bkg.open_backgrounds(results)
    assert {*layout_of(EDGES, None).arrays, *module.SCALARS} == set(dataset.data_vars)
    assert all(variable.attrs["long_name"] for variable in dataset.data_vars.values())
    assert {name: dataset[name].units for name in ("rate", "exposure", "resolution", "hours", "livetime")} == {
        "rate": "s-1 TeV-1 sr-1", "exposure": "s TeV sr", "resolution": "deg", "hours": "h", "livetime": "s",
    }  # fmt: skip


def test_arrays_are_lazy_and_a_notebook_may_save_them(results, tmp_path):
    job = Job(results, field=FIELD)
    job.backgrounds.record(job.write(*range(10, 17)))
    dataset = dask_bkg.open_backgrounds(results)
    arrays = layout_of(EDGES, FIELD).arrays
    assert {name for name in dataset.data_vars if dask.is_dask_collection(dataset[name].data)} == set(arrays)
    dataset.to_zarr(tmp_path / "copy.zarr", consolidated=False)
    copy = xr.open_zarr(tmp_path / "copy.zarr", consolidated=False)
    assert_array_equal(copy.rate, dataset.rate)


def test_some_runs_only(results):
    job = Job(results)
    job.backgrounds.record(job.write(1, 2, 3))
    assert dask_bkg.open_backgrounds(results, [3, 1]).obs_id.values.tolist() == [1, 3]
    with pytest.raises(ArchiveError, match=r"no background of the runs \[9\]: give the io.results_dir"):
        dask_bkg.open_backgrounds(results, [1, 9])


def test_a_directory_without_results_is_an_error(results):
    with pytest.raises(ArchiveError, match=r"results has no backgrounds.zarr.*give the io.results_dir"):
        dask_bkg.open_backgrounds(results)
    job = Job(results)
    job.write(1)
    with pytest.raises(ArchiveError, match="no background of any run yet"):
        dask_bkg.open_backgrounds(results)


def test_it_can_be_read_while_a_job_writes_and_where_nothing_may_be_written(results):
    job = Job(results)
    job.backgrounds.record(job.write(1, 2))
    before = dask_bkg.open_backgrounds(results)
    expected = before.rate.values
    job = Job(results, "j2")
    job.backgrounds.record(job.write(1, 2, 5))
    assert_array_equal(before.rate, expected)
    for path in [results, *results.rglob("*")]:
        os.chmod(path, 0o555 if path.is_dir() else 0o444)
    assert dask_bkg.open_backgrounds(results).rate.sizes["obs_id"] == 3
    for path in [results, *results.rglob("*")]:
        os.chmod(path, 0o755 if path.is_dir() else 0o644)


def test_the_driver_folds_when_there_are_enough(results, monkeypatch):
    monkeypatch.setattr(module, "FOLD", 4)
    job = Job(results)
    for first in (1, 3):
        job.write(first, first + 1)
        job.backgrounds.written(2)
    assert dask_bkg.open_backgrounds(results).obs_id.values.tolist() == [1, 2, 3, 4]


def test_parts_of_a_job_that_was_killed_are_what_the_next_one_finds(results):
    first = Job(results)
    first.write(4, 5)
    target = Target(4, "source", str(results.parent / "out" / "bkg_4.fits"))
    assert first.backgrounds.marks([target]) == {}
    second = Job(results, "j2")
    assert second.backgrounds.marks([target]) == {4: ("d", ((10, 10**18), (20, 2 * 10**18)), (0, 0))}
    assert second.backgrounds.marks([target._replace(output="elsewhere")]) == {}
    result = second.backgrounds.result(4)
    assert (result.status, result.n_runs, result.hours, result.n_events) == ("unchanged", 3, 1.0, 17)
    second.backgrounds.record([result])
    assert set(second.backgrounds.jobs()) == {"j1", "j2"}


def described(job) -> dict[int, tuple]:
    """Status, job and what failed later, of each run."""
    return {
        obs_id: (entry["status"], entry["job"], json.loads(entry["failed_since"] or "{}").get("job"))
        for obs_id, entry in job.backgrounds.entries().items()
    }


def test_what_a_job_leaves_of_the_results_of_earlier_ones(results):
    """Made anew: the new row; unchanged or failed: the old one, as the background is the old one."""
    job = Job(results, "j0")
    job.backgrounds.record(job.write(3))
    job = Job(results, "j1")
    job.backgrounds.record(job.write(1, 2, 5, 6) + failed(4))
    job = Job(results, "j2")
    job.backgrounds.record(failed(5, 6))
    job = Job(results, "j3")
    unchanged = [job.backgrounds.result(obs_id) for obs_id in (2, 6)]
    job.backgrounds.record([*job.write(1, 7), *unchanged, *failed(4, 5)])
    assert described(job) == {
        1: ("done", "j3", None),
        2: ("unchanged", "j1", None),
        3: ("done", "j0", None),
        4: ("failed", "j3", None),
        5: ("failed", "j1", "j3"),
        6: ("unchanged", "j1", None),
        7: ("done", "j3", None),
    }
    assert set(job.backgrounds.jobs()) == {"j0", "j1", "j3"}
    assert dask_bkg.open_backgrounds(results).obs_id.values.tolist() == [1, 2, 3, 5, 6, 7]


def test_a_background_whose_file_is_gone_is_none(results):
    job = Job(results)
    job.backgrounds.record(job.write(1, 2))
    (results.parent / "out" / "bkg_2.fits").unlink()
    job = Job(results, "j2")
    job.backgrounds.record(job.write(3))
    assert dask_bkg.open_backgrounds(results).obs_id.values.tolist() == [1, 3]
    assert set(job.backgrounds.entries()) == {1, 2, 3}


def test_other_bins_begin_a_new_store_and_nothing_is_lost(results, caplog):
    job = Job(results)
    job.backgrounds.record(job.write(1, 2, 3))
    Job(results).write(4)  # and was killed
    with caplog.at_level(logging.INFO):
        other = Job(results, "j2", FIELD)
    assert "backgrounds.zarr has other bins than this job" in caplog.text
    other.backgrounds.record(other.write(1) + failed(2, 9))
    assert dask_bkg.open_backgrounds(results).rate.dims == ("obs_id", *FIELD.dims)
    assert dask_bkg.open_backgrounds(results).obs_id.values.tolist() == [1]
    assert described(other) == {
        1: ("done", "j2", None),
        2: ("failed", "j1", "j2"),
        3: ("done", "j1", None),
        4: ("done", "j1", None),
        9: ("failed", "j2", None),
    }
    assert set(other.backgrounds.jobs()) == {"j1", "j2"}
    # back again
    job = Job(results, "j3")
    assert dask_bkg.open_backgrounds(results).obs_id.values.tolist() == [1, 2, 3, 4]
    job.backgrounds.record(job.write(5))
    assert described(job)[5] == ("done", "j3", None)
    last = Job(results, "j4", FIELD)
    with caplog.at_level(logging.INFO):
        last.backgrounds.record(last.write(*range(1, 6)))
    assert "is removed: all of its runs have other backgrounds" in caplog.text
    assert sorted(path.name for path in results.iterdir()) == ["backgrounds.zarr"]
    assert set(last.backgrounds.jobs()) == {"j2", "j4"}


# --- in a job -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["2d", "3d"])
def done(request, job, four_runs):
    """A job of backgrounds from other runs, and its results directory."""
    config = job(four_runs, io={"from_run": False}, binning={"mode": request.param, "off_bins": 5, "e_bins": 12})
    run_make_background(config)
    return config, Path(config["io"]["out_dir"], "results")


def written(results) -> dict[int, int]:
    dataset = dask_bkg.open_backgrounds(results)
    return dict(zip(dataset.obs_id.values.tolist(), dataset.written.values.astype(int).tolist(), strict=True))


def test_each_background_of_a_job_is_there(done):
    config, results = done
    dataset = dask_bkg.open_backgrounds(results)
    assert dataset.sizes["obs_id"] == 4
    assert (dataset.rate > 0).all()
    assert (dataset.error > 0).all()
    assert np.isfinite(dataset.error).all()
    assert (dataset.hours.sel(role="spectrum") > 0).all()
    assert (dataset.n_runs.sel(role="shape") >= 1).all()
    assert (dataset.counts.sel(role="spectrum").sum(["energy", "offset"]) > 0).all()
    runs = contributing_runs(results)
    provenance = json.loads((results / "provenance.json").read_text())["backgrounds"]
    assert runs == {int(run): entry["contributing_runs"] for run, entry in provenance.items()}
    assert [len(row) for row in runs.values()] == dataset.n_runs.sel(role="spectrum").values.tolist()
    before = written(results)
    run_make_background(config)
    assert written(results) == before


def test_what_is_lost_is_made_again_and_what_a_lost_background_had_goes(done):
    config, results = done
    before = written(results)
    next((results / "backgrounds.zarr" / "error").glob("c.0.*")).unlink()
    run_make_background(config)
    after = written(results)
    assert set(after) == set(before)
    assert all(after[run] > before[run] for run in before)
    # a file is deleted, and the next job does others
    next(Path(config["io"]["out_dir"]).rglob("*64002*.fits*")).unlink()
    config["run_selection"] = {"runlist": [64001]}
    run_make_background(config)
    assert set(written(results)) == set(before) - {64002}


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "lost":
        path.unlink()
    elif how == "flipped":  # in the first chunk
        path.write_bytes(data[:30] + bytes([data[30] ^ 8]) + data[31:])
    else:
        path.write_bytes(data[:-9])


@pytest.mark.parametrize("how", ["lost", "flipped", "cut short"])
@pytest.mark.parametrize("name", ["error", "contributing"])
def test_what_is_damaged_in_the_store_is_written_again_with_a_line(done, caplog, name, how):
    config, results = done
    before = {name: dask_bkg.open_backgrounds(results)[name].values for name in ("rate", "error", "contributing")}
    times = written(results)
    damage(next((results / "backgrounds.zarr" / name).glob("c.0.*")), how)
    assert check_store(results / "backgrounds.zarr").runs == [64001, 64002, 64003, 64004]
    run_make_background(config)
    assert "of the backgrounds of 4 runs (64001, 64002, 64003, 64004) is made again" in caplog.text
    assert all(after > times[run] for run, after in written(results).items())
    after = dask_bkg.open_backgrounds(results)
    for name, values in before.items():
        assert_array_equal(after[name].values, values)
    assert check_store(results / "backgrounds.zarr").is_whole
    times = written(results)
    run_make_background(config)
    assert written(results) == times


@pytest.mark.parametrize("kind", ["integers", "numbers", "texts"])
def test_a_table_that_is_damaged_is_mended_and_nothing_is_written_again(done, caplog, kind):
    config, results = done
    before, provenance = written(results), (results / "provenance.json").read_text()
    file = results / "backgrounds.zarr" / kind / "c.0.0"
    damage(file, "flipped")
    run_make_background(config)
    assert f"{file} is damaged" in caplog.text
    assert "is taken from its copy" in caplog.text
    assert written(results) == before
    assert (results / "provenance.json").read_text() == provenance
    assert check_store(results / "backgrounds.zarr").is_whole


def test_a_disk_that_cannot_be_read_now_is_no_damage(results, monkeypatch):
    """The store is not moved away, as one is that is none."""
    job = Job(results)
    job.backgrounds.record(job.write(1, 2))
    monkeypatch.setattr(read, "PAUSES", (0.0, 0.0, 0.0))
    read_text = Path.read_text

    def stale(path, *args, **kwargs):
        if path.name == "zarr.json":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return read_text(path, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_text", stale)
        with pytest.raises(ArchiveError, match=r"backgrounds.zarr cannot be read now \(Stale"):
            Job(results, "j2")
    assert sorted(path.name for path in results.iterdir()) == ["backgrounds.zarr"]
    assert dask_bkg.open_backgrounds(results).obs_id.values.tolist() == [1, 2]


@pytest.mark.parametrize(("attach", "suffix"), [("copy", ""), ("copy", ".gz"), ("index", ".gz")])
def test_a_background_that_was_damaged_in_its_file_is_written_again(done, attach, suffix):
    """By one byte, and the file looks as it did."""
    config, results = done
    config["io"]["attach"] = attach
    out = Path(config["io"]["out_dir"])
    if not suffix:
        data = Path(config["io"]["search_datastore"])
        for path in data.rglob("run_*.fits.gz"):
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
            path.unlink()
        for index in data.glob("hdu-index.fits.gz"):
            table = Table.read(index)
            table["FILE_NAME"] = [name.removesuffix(".gz") for name in table["FILE_NAME"]]
            table.meta["HDUCLAS1"] = "INDEX"
            table.write(index, overwrite=True)
    run_make_background(config)
    before = written(results)
    output = Path(str(dask_bkg.open_backgrounds(results).output.sel(obs_id=64002).values))
    whole, stat = output.read_bytes(), output.stat()
    with fits.open(output, checksum=True) as hdus:  # astropy warns of wrong sums, and warnings are errors here
        assert hdus["BACKGROUND"].verify_checksum() == hdus["BACKGROUND"].verify_datasum() == 1
    for at in (-200, -1500):
        output.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        os.utime(output, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        run_make_background(config)
        assert output.read_bytes() == whole
        after, stat = written(results), output.stat()
        assert [run for run in after if after[run] != before[run]] == [64002]
        reason = str(dask_bkg.open_backgrounds(results).reason.sel(obs_id=64002).values)
        assert "its background was damaged in the file, and is written again" in reason
        before = after
    run_make_background(config)
    assert written(results) == before
    assert out in output.parents


@pytest.mark.parametrize("kind", ["level", "spectrum"])
def test_own_counts_of_a_job_are_in_the_header_and_in_the_store(job, four_runs, kind):
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
    before = written(results)
    run_make_background(config)
    assert written(results) == before


def test_own_counts_and_smoothing_of_rings_need_rings(job, four_runs):
    for model, selection in (({"own": "level"}, {}), ({"smooth_method": "spline"}, {"smooth": True})):
        config = job(
            four_runs, binning={"mode": "3d"}, model={"field": "plain", **model}, background_selection=selection
        )
        with pytest.raises(ConfigError, match=r"works on offset bins, and model.field: plain has none: set"):
            run_make_background(config)


def test_a_results_store_is_few_files(results):
    """Of any number of backgrounds up to a shard."""
    job = Job(results, field=FIELD)
    job.backgrounds.record(job.write(*range(1, 30)))
    store = Rows(results / "backgrounds.zarr")
    files = [path for path in store.path.rglob("*") if path.is_file()]
    assert len(files) == 1 + 2 * (len(store.layout.arrays) + 3) + 1 == 32
