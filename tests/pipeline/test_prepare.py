"""Preparation where something is there already: nothing is lost, and the index names what is there."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from helpers.index_files import OBS_IDS, add_old_background, backgrounds, broken_rows
from helpers.kept_store import keep_store

from dask_bkg.compat import make_background, prepare_dataset, run_make_background
from dask_bkg.config import load_config, parse_config
from dask_bkg.dl3.index import read_datastore
from dask_bkg.errors import ArchiveError
from dask_bkg.pipeline import prepare as prepare_module
from dask_bkg.pipeline.prepare import prepare_runs
from dask_bkg.pipeline.run import run_job

pytestmark = pytest.mark.slow  # whole jobs, or simulations of many skies


@pytest.fixture
def job(job, _four_runs, tmp_path, tmp_path_factory):
    """The shared fixture, with a run store that has the four runs already."""
    return keep_store(job, _four_runs, tmp_path, tmp_path_factory.getbasetemp())


@pytest.fixture
def both(tmp_path):
    """The directory that is ``in_dir`` and ``out_dir``, as in the procedure's example."""
    return tmp_path / "runwise"


@pytest.fixture
def example(job, four_runs, both):
    """The configuration of the procedure's example."""

    def make(**sections):
        sections["io"] = {"in_dir": str(both), "out_dir": str(both), **sections.get("io", {})}
        return job(four_runs, **sections)

    return make


def contents(directory: Path) -> dict[str, bytes]:
    """Bytes of the runs' files and index files."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*.fits*")}


# --- backgrounds that are there ----------------------------------------------------------------------------


@pytest.mark.parametrize("attach", ["copy", "index"])
@pytest.mark.parametrize("old", [False, True], ids=["no background", "old backgrounds"])
def test_preparing_again_keeps_the_backgrounds(example, four_runs, run_path, edit_run, both, attach, old):
    if old:
        add_old_background(four_runs, run_path, edit_run)
    config = example(io={"attach": attach})
    run_make_background(prepare_dataset(config))
    before = contents(both)
    assert set(backgrounds(both)) == set(OBS_IDS)
    prepare_dataset(config)
    assert contents(both) == before
    assert broken_rows(both) == []


def test_a_run_that_is_added_costs_the_others_nothing(example, both):
    run_make_background(prepare_dataset(example(run_selection={"runlist": [64001]})))
    before = contents(both)["data/run_064001.fits.gz"]
    prepare_dataset(example())
    assert contents(both)["data/run_064001.fits.gz"] == before
    assert list(backgrounds(both)) == [64001]
    assert read_datastore(both).obs_ids.tolist() == OBS_IDS


def change(hdus) -> None:
    hdus["EVENTS"].header["CHANGED"] = True


def test_a_source_that_changed_is_copied_and_its_background_is_no_longer_named(
    example, four_runs, run_path, edit_run, both
):
    run_make_background(prepare_dataset(example()))
    edit_run(run_path(four_runs, 64002), change)
    prepare_dataset(example())
    assert run_path(both, 64002).read_bytes() == run_path(four_runs, 64002).read_bytes()
    assert list(backgrounds(both)) == [64001, 64003, 64004]
    assert broken_rows(both) == []


@pytest.mark.parametrize("copies", [1, 3])
def test_a_job_killed_while_it_copies_over(example, four_runs, run_path, edit_run, both, monkeypatch, copies):
    run_make_background(prepare_dataset(example()))
    for obs_id in OBS_IDS:
        edit_run(run_path(four_runs, obs_id), change)
    copy_file, done = prepare_module.copy_file, []

    def stop(source, target, force=False):
        if len(done) == copies:
            raise KeyboardInterrupt
        done.append(copy_file(source, target, force))

    monkeypatch.setattr(prepare_module, "copy_file", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(example())
    assert done == [True] * copies
    assert broken_rows(both) == []
    assert read_datastore(both).obs_ids.tolist() == OBS_IDS


def test_a_background_of_the_source_that_was_replaced_is_not_named(
    example, four_runs, run_path, edit_run, both, monkeypatch
):
    """A job was killed when it had replaced the 3D backgrounds and not yet written its index."""
    add_old_background(four_runs, run_path, edit_run, name="BACKGROUND")
    config = prepare_dataset(example())
    monkeypatch.setattr("dask_bkg.pipeline.run.write_indexes", lambda *args: {})
    run_make_background(config)
    monkeypatch.undo()
    assert backgrounds(both) == {}
    prepare_dataset(example())
    rows = read_datastore(both).hdu
    assert "bkg_3d" not in rows["HDU_CLASS"]
    assert broken_rows(both) == []


# --- overwrite ---------------------------------------------------------------------------------------------


def test_overwrite_replaces_the_copies_and_forgets_their_backgrounds(example, four_runs, run_path, both):
    run_make_background(prepare_dataset(example()))
    prepare_dataset(example(), overwrite=True)
    for obs_id in OBS_IDS:
        assert run_path(both, obs_id).read_bytes() == run_path(four_runs, obs_id).read_bytes()
    assert backgrounds(both) == {}


def test_overwrite_leaves_a_copy_whose_source_is_gone(example, four_runs, run_path, both):
    run_make_background(prepare_dataset(example()))
    before = contents(both)
    run_path(four_runs, 64001).unlink()
    whole = run_path(four_runs, 64002).read_bytes()
    run_path(four_runs, 64002).write_bytes(whole[:-500])
    prepared = prepare_dataset(example(), overwrite=True)["run_selection"]
    assert list(prepared["failed_runs"]) == [64001, 64002]
    assert prepared["runlist"] == [64003, 64004]
    for name in ("data/run_064001.fits.gz", "data/run_064002.fits.gz"):
        assert contents(both)[name] == before[name]
    assert list(backgrounds(both)) == [64001, 64002]
    assert broken_rows(both) == []


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_overwrite_does_nothing_to_a_file_that_is_its_own_source(example, four_runs, run_path, both, link):
    before = contents(four_runs)
    for obs_id in OBS_IDS:
        run_path(both, obs_id).parent.mkdir(parents=True, exist_ok=True)
        getattr(run_path(both, obs_id), link)(run_path(four_runs, obs_id))
    prepare_dataset(example(), overwrite=True)
    assert contents(four_runs) == before
    assert all(run_path(both, obs_id).samefile(run_path(four_runs, obs_id)) for obs_id in OBS_IDS)


def test_overwrite_into_a_second_name_of_the_archive(example, four_runs, tmp_path):
    (tmp_path / "alias").symlink_to(four_runs)
    before = contents(four_runs)
    prepare_dataset(example(io={"in_dir": str(tmp_path / "alias")}), overwrite=True)
    assert contents(four_runs) == before


# --- indexes that are there --------------------------------------------------------------------------------


def test_an_index_that_cannot_be_read_is_told_before_anything_is_copied(example, both):
    run_make_background(prepare_dataset(example(run_selection={"runlist": [64001]})))
    index = both / "hdu-index.fits.gz"
    index.write_bytes(index.read_bytes()[:200])
    before = contents(both)
    with pytest.raises(ArchiveError, match=r"hdu-index.*would be lost"):
        prepare_dataset(example())
    assert contents(both) == before


def test_a_job_that_prepares_meanwhile_keeps_its_runs(example, both, monkeypatch):
    copy_file, calls = prepare_module.copy_file, []

    def meanwhile(source, target, force=False):
        calls.append(source)
        if len(calls) == 1:
            prepare_dataset(example(run_selection={"runlist": [64004]}))
        return copy_file(source, target, force)

    monkeypatch.setattr(prepare_module, "copy_file", meanwhile)
    prepare_dataset(example(run_selection={"runlist": [64001, 64002]}))
    assert read_datastore(both).obs_ids.tolist() == [64001, 64002, 64004]


# --- configurations ----------------------------------------------------------------------------------------


def test_a_configuration_of_the_user_is_left_alone(example, both, caplog):
    both.mkdir()
    own = "# my own remarks\nio:\n    in_dir: here  # beside me\n"
    (both / "config.yaml").write_text(own)
    for n_bins in (4, 5):
        with caplog.at_level(logging.WARNING):
            config = prepare_dataset(example(binning={"e_bins": n_bins}))
        assert (both / "config.yaml").read_text() == own
        assert load_config(both / "config.dask_bkg.yaml").explicit == config
    assert "config.dask_bkg.yaml" in caplog.text


def test_our_own_configuration_is_written_again(example, both):
    for n_bins in (4, 5):
        prepare_dataset(example(binning={"e_bins": n_bins}))
        assert load_config(both / "config.yaml").binning.e_bins == n_bins
    assert (both / "config.yaml").read_text().startswith("# written by dask_bkg")
    assert not (both / "config.dask_bkg.yaml").exists()


def test_an_archive_that_is_used_in_place_need_not_be_writable(job, four_runs, monkeypatch, caplog, tmp_path):
    def read_only(target, write):
        raise ArchiveError(f"The directory {target.parent} cannot be written")

    monkeypatch.setattr(prepare_module, "atomic_write", read_only)
    assert prepare_dataset(job(four_runs))["run_selection"]["runlist"] == OBS_IDS
    assert "cannot be written" in caplog.text
    with pytest.raises(ArchiveError, match="cannot be written"):
        prepare_dataset(job(four_runs, io={"in_dir": str(tmp_path / "in")}))


@pytest.fixture
def beside(example, tmp_path, no_catalogs):
    """A configuration whose star table, region file and runlist lie beside it, and are named without a directory."""
    place = tmp_path / "yaml"
    place.mkdir()
    (place / "own.reg").write_text("icrs\ncircle(20.0, 30.0, 0.2)\n")
    (place / "runs.txt").write_text("64001\n64003\n")
    shutil.copy(no_catalogs["star_cat"], place / "stars.dat")
    section = {"star_cat": "stars.dat", "exclude_region_files": ["own.reg"]}
    return parse_config(example(exclusion=section, run_selection={"runlist": "runs.txt"}), base_dir=place)


def test_saved_configurations_find_their_files(beside, both):
    """From where they are saved, the files beside the first configuration are found."""
    prepare_runs(beside)
    run_job(beside, progress=False)
    for path in (both / "config.yaml", both / "results/effective-config.yaml"):
        saved = load_config(path)
        assert saved.exclusion.star_cat == str(beside.base_dir / "stars.dat")
        assert list(saved.exclusion.exclude_region_files) == [str(beside.base_dir / "own.reg")]
        assert saved.runs() == [64001, 64003]


def test_a_saved_configuration_is_the_same_model(beside, both):
    from dask_bkg.output.provenance import config_hash

    prepare_runs(beside)
    assert config_hash(load_config(both / "config.yaml")) == config_hash(beside)


def test_make_background_finds_files_beside_the_configuration(beside, four_runs, run_path, edit_run):
    header = fits.getheader(run_path(four_runs, 64001), "EVENTS")
    region = f"icrs\ncircle({header['RA_PNT']}, {header['DEC_PNT']}, 0.4)\n"
    (beside.base_dir / "own.reg").write_text(region)
    path = beside.base_dir / "config.yaml"
    path.write_text(
        "exclusion: {catalogs: [], star_cat: stars.dat, exclude_region_files: [own.reg]}\nio: {from_run: true}\n"
        "model: {node_values: plain, fill: false}\nbinning: {off_max: 0.5, off_bins: 2}\n"
    )
    for config in (path, load_config(path)):
        assert np.all(make_background(four_runs, 64001, config).data[:, 0] == 0)
