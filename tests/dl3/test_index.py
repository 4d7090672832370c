"""Index files: read what archives have, refuse what contradicts itself or leads out, write what gammapy reads."""

from __future__ import annotations

import gzip
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import Table
from gammapy.data import DataStore

from dask_bkg.dl3 import index, index_table
from dask_bkg.dl3.index import HDU_COLUMNS, Location, existing_store, read_datastore, write_index
from dask_bkg.dl3.index_rows import background_rows, linked_rows, merge_index, placed_rows
from dask_bkg.errors import ArchiveError, RunError

TYPES = ("events", "gti", "aeff", "edisp", "psf", "bkg")
CLASSES = dict(zip(TYPES, ("events", "gti", "aeff_2d", "edisp_2d", "psf_table", "bkg_3d"), strict=True))


def hdu_rows(obs_ids, types=TYPES, file_dir="data", **columns) -> Table:
    """Rows as an archive has them; ``columns`` replace the values of a column for all rows."""
    rows = [(i, t, CLASSES[t], file_dir, f"run_{i}.fits", t.upper()) for i in obs_ids for t in types]
    table = Table(rows=rows, names=HDU_COLUMNS)
    for name, value in columns.items():
        table[name] = [value] * len(table)
    return table


def observations(obs_ids) -> Table:
    obs_ids = list(obs_ids)
    table = Table({"OBS_ID": obs_ids})
    table["RA_PNT"] = np.full(len(obs_ids), 83.6) * u.deg
    table["TSTART"] = np.array(obs_ids, dtype="f4") + np.float32(1e6)
    table["OBJECT"] = [f"Crab {i}" for i in obs_ids]
    table["NSBLEVEL"] = np.where(np.arange(len(obs_ids)) == 0, np.nan, 5.0)
    table.meta = {"MJDREFI": 53402, "MJDREFF": 0.25, "TIMESYS": "TT", "GEOLON": -110.95, "TELESCOP": "VERITAS"}
    return table


def write_foreign(directory: Path, hdu: Table, obs: Table | None = None, suffix: str = ".fits.gz", **cards) -> Path:
    """Index files from another program: plain `Table.write`, strings padded with blanks."""
    directory.mkdir(parents=True, exist_ok=True)
    hdu = hdu.copy()
    hdu["FILE_DIR"] = [f"{value}  " for value in hdu["FILE_DIR"]]
    hdu.meta.update(cards)
    hdu.write(directory / f"hdu-index{suffix}", overwrite=True)
    if obs is not None:
        obs.write(directory / f"obs-index{suffix}", overwrite=True)
    return directory


@pytest.fixture
def archive(tmp_path) -> Path:
    return write_foreign(tmp_path / "archive", hdu_rows([3, 1, 2]), observations([3, 1, 2]))


# --- reading -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".fits.gz", ".fits"])
def test_read(tmp_path, suffix, caplog):
    write_foreign(tmp_path, hdu_rows([3, 1, 2]), observations([3, 1, 2]), suffix)
    store = read_datastore(tmp_path)
    assert store.obs_ids.tolist() == [1, 2, 3]
    assert store.obs_ids.dtype == np.int64
    assert store.location(2, "aeff") == Location(f"{tmp_path.resolve()}/data/run_2.fits", "AEFF")
    assert store.location(np.int32(2), "events").hdu == "EVENTS"
    assert store.location(2, "rad_max") is None
    assert store.location(99, "events") is None
    assert set(store.hdu["FILE_DIR"]) == {"data"}
    assert store.obs.meta["MJDREFI"] == 53402
    assert np.isnan(store.observations([3])["NSBLEVEL"]).all()
    assert not store.obs.has_masked_columns
    assert store.obs["RA_PNT"].unit == u.deg
    assert store.rows([2, 99, 1])["OBS_ID"].tolist() == [2] * 6 + [1] * 6
    assert store.observations([2, 99, 3])["OBJECT"].tolist() == ["Crab 2", "Crab 3"]
    assert len(store.rows([])) == len(store.observations([99])) == 0
    assert not caplog.records


def test_gzipped_index_is_preferred_as_in_gammapy(archive):
    write_foreign(archive, hdu_rows([7]), suffix=".fits")
    assert read_datastore(archive).obs_ids.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("file_dir", "file_name"), [("", "data/run.fits"), ("./data", "run.fits"), ("data/run.fits", "")]
)
def test_the_parts_of_a_path_may_be_empty(tmp_path, file_dir, file_name):
    write_foreign(tmp_path, hdu_rows([1], FILE_DIR=file_dir, FILE_NAME=file_name), observations([1]))
    assert os.path.normpath(read_datastore(tmp_path).location(1, "gti").path) == f"{tmp_path.resolve()}/data/run.fits"


def test_a_row_without_file_or_hdu_is_the_runs_fault(tmp_path):
    write_foreign(tmp_path, hdu_rows([1], file_dir="", FILE_NAME=""), observations([1]))
    with pytest.raises(RunError, match="Run 1: FILE_NAME is empty"):
        read_datastore(tmp_path).location(1, "events")
    write_foreign(tmp_path, hdu_rows([1], HDU_NAME=" "), observations([1]))
    with pytest.raises(RunError, match="Run 1: HDU_NAME of its 'events' row is empty"):
        read_datastore(tmp_path).location(1, "events")


def test_without_observation_index(tmp_path, caplog):
    write_foreign(tmp_path, hdu_rows([2, 1]))
    store = read_datastore(tmp_path)
    assert "no obs-index.fits.gz" in caplog.text
    assert store.obs["OBS_ID"].tolist() == [1, 2]


def test_a_run_without_observation_row_is_named(tmp_path, caplog):
    write_foreign(tmp_path, hdu_rows([1, 2]), observations([1]))
    read_datastore(tmp_path)
    assert "no row for 1 run(s): 2" in caplog.text


def test_missing_and_empty_directories(tmp_path):
    with pytest.raises(ArchiveError, match=r"There is no directory .*nowhere"):
        read_datastore(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(ArchiveError, match="is not a directory"):
        read_datastore(tmp_path / "file")
    with pytest.raises(ArchiveError, match=r"no hdu-index\.fits\.gz .* other files\. Give .*from_events_files"):
        read_datastore(tmp_path)
    (tmp_path / "file").unlink()
    with pytest.raises(ArchiveError, match="but nothing"):
        read_datastore(tmp_path)


@pytest.mark.parametrize("name", ["hdu-index.fits.gz", "obs-index.fits.gz"])
@pytest.mark.parametrize("damage", ["text", "gzip", "fits", "no table", "empty"])
def test_an_index_that_cannot_be_read_is_named(archive, name, damage):
    path = archive / name
    whole = path.read_bytes()
    primary = gzip.decompress(whole)[:2880]
    damaged = {"text": b"no fits", "gzip": whole[:-40], "fits": gzip.decompress(whole)[:5770]}
    path.write_bytes({**damaged, "no table": primary, "empty": b""}[damage])
    with pytest.raises(ArchiveError, match=name):
        read_datastore(archive)


def test_columns_that_are_missing_are_named(tmp_path):
    rows = hdu_rows([1])
    rows.remove_columns(["FILE_NAME", "HDU_CLASS"])
    write_foreign(tmp_path, rows, observations([1]))
    with pytest.raises(ArchiveError, match=r"hdu-index.* lacks the columns HDU_CLASS, FILE_NAME \(it has OBS_ID"):
        read_datastore(tmp_path)
    write_foreign(tmp_path, hdu_rows([1]), Table({"RUN": [1]}))
    with pytest.raises(ArchiveError, match=r"obs-index.* lacks the columns OBS_ID \(it has RUN\)"):
        read_datastore(tmp_path)


@pytest.mark.parametrize("obs_id", ["run_1", 1.5])
def test_numbers_of_runs_that_are_none(tmp_path, obs_id):
    write_foreign(tmp_path, hdu_rows([1], OBS_ID=obs_id), observations([1]))
    with pytest.raises(ArchiveError, match="OBS_ID that is not a"):
        read_datastore(tmp_path)


def test_numbers_of_runs_as_text(tmp_path):
    write_foreign(tmp_path, hdu_rows([1], OBS_ID=" 020136"), observations([20136]))
    assert read_datastore(tmp_path).obs_ids.tolist() == [20136]


def test_an_index_without_rows(tmp_path):
    write_foreign(tmp_path, hdu_rows([1])[:0], observations([1]))
    with pytest.raises(ArchiveError, match="has no rows"):
        read_datastore(tmp_path)


def test_the_same_observation_row_twice(tmp_path, caplog):
    obs = observations([1, 2, 3])  # run 1 has a NaN, which is not equal to itself
    write_foreign(tmp_path, hdu_rows([1, 2, 3]), obs[[2, 0, 1, 0]])
    assert read_datastore(tmp_path).obs["OBS_ID"].tolist() == [3, 1, 2]
    assert "same row more than once for 1 run(s): 1" in caplog.text


def test_contradictory_observation_rows(tmp_path):
    obs = observations([1, 2, 3, 2, 3, 1])
    obs["NSBLEVEL"] = [5.0, 5.0, np.nan, 5.0, 6.0, 5.0]
    obs["OBJECT"][3] = "Crab 9"
    write_foreign(tmp_path, hdu_rows([1, 2, 3]), obs)
    with pytest.raises(ArchiveError, match=r"different rows for 2 run\(s\): 2, 3; remove"):
        read_datastore(tmp_path)


def test_two_backgrounds_the_first_counts(tmp_path, caplog):
    rows = background_rows(hdu_rows([1], types=["events", "gti"]), {1: ("a", "first", "BKG", "bkg_2d")})
    rows.add_row((1, "bkg", "bkg_3d", "b", "later", "BKG"))
    write_foreign(tmp_path, rows, observations([1]))
    store = read_datastore(tmp_path)
    assert store.location(1, "bkg").path.endswith("/a/first")
    assert "several rows of type 'bkg' for 1 run(s): 1" in caplog.text
    assert len(store.rows([1])) == 4


@pytest.mark.parametrize("hdu_type", ["events", "gti"])
def test_two_event_lists_are_the_runs_fault(tmp_path, hdu_type):
    rows = hdu_rows([1, 2])
    rows.add_row((1, hdu_type, hdu_type, "data", "other.fits", "EVENTS"))
    rows.add_row((2, *rows[rows["OBS_ID"] == 2][list(TYPES).index(hdu_type)].as_void().tolist()[1:]))
    store = read_datastore(write_foreign(tmp_path, rows, observations([1, 2])))
    with pytest.raises(RunError, match=rf"Run 1: .* several rows of type '{hdu_type}' \(other\.fits.*run_1\.fits"):
        store.location(1, hdu_type)
    assert store.location(1, "aeff") is not None
    assert store.location(2, hdu_type) is not None  # the same row twice contradicts nothing


def test_many_runs_cost_one_pass(tmp_path, monkeypatch):
    """20,000 runs in two directories: neither a scan of the table nor a look at all directories for each run."""
    obs_ids = np.arange(20_000)
    columns = {name: np.full(40_000, text) for name, text in zip(HDU_COLUMNS[2:], ["x", "d", "f", "H"], strict=True)}
    table = Table({"OBS_ID": np.tile(obs_ids, 2), "HDU_TYPE": np.repeat(["events", "gti"], 20_000), **columns})
    table["FILE_DIR"] = np.tile(["data/a", "data/b"], 20_000)
    store = index.Datastore(tmp_path, table, Table({"OBS_ID": obs_ids}))
    calls = []
    resolve = os.path.realpath
    monkeypatch.setattr(index.os.path, "realpath", lambda path: calls.append(path) or resolve(path))
    made = store._hdu_rows
    found = {store.location(obs_id, "gti") for obs_id in obs_ids}
    assert store._hdu_rows is made
    assert len(found) == len(calls) == 2


# --- where the paths of an index lead ----------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    """A directory beside the archive whose name begins like the archive's."""
    (tmp_path / "archive2").mkdir()
    (tmp_path / "archive2" / "run.fits").touch()
    return tmp_path / "archive2"


def outside_rows(way: str, archive: Path, elsewhere: Path) -> dict[str, str]:
    archive.mkdir()
    (archive / "linked_dir").symlink_to(elsewhere)
    (archive / "linked.fits").symlink_to(elsewhere / "run.fits")
    return {
        "absolute directory": {"FILE_DIR": str(elsewhere), "FILE_NAME": "run.fits"},
        "absolute name": {"FILE_DIR": "data", "FILE_NAME": str(elsewhere / "run.fits")},
        "dots": {"FILE_DIR": "../archive2", "FILE_NAME": "run.fits"},
        "dots in the name": {"FILE_DIR": "data", "FILE_NAME": "../../archive2/run.fits"},
        "linked directory": {"FILE_DIR": "linked_dir", "FILE_NAME": "run.fits"},
        "linked file": {"FILE_DIR": "", "FILE_NAME": "linked.fits"},
    }[way]


WAYS = ["absolute directory", "absolute name", "dots", "dots in the name", "linked directory", "linked file"]


@pytest.mark.parametrize("way", WAYS)
def test_outside_of_the_archive_is_read_with_one_line(tmp_path, elsewhere, way, caplog):
    archive = tmp_path / "archive"
    columns = outside_rows(way, archive, elsewhere)
    write_foreign(archive, hdu_rows([5], **columns), observations([5]))
    caplog.set_level("INFO", "dask_bkg")
    store = read_datastore(archive)
    for hdu_type in ("events", "gti", "events"):
        assert store.location(5, hdu_type).path == str(elsewhere.resolve() / "run.fits")
    assert sum("outside of the archive" in text for text in caplog.messages) == 1
    caplog.clear()
    meant = read_datastore(archive, data_dirs=[elsewhere])
    assert meant.location(5, "events").path == str(elsewhere.resolve() / "run.fits")
    assert not caplog.messages


def test_absolute_paths_into_the_archive_are_fine(tmp_path):
    archive = tmp_path / "archive"
    write_foreign(archive, hdu_rows([5], FILE_DIR=f"{archive}/data"), observations([5]))
    assert read_datastore(archive).location(5, "events").path == f"{archive.resolve()}/data/run_5.fits"


def test_an_archive_behind_a_link(tmp_path, archive):
    (tmp_path / "link").symlink_to(archive)
    assert read_datastore(tmp_path / "link").location(1, "events").path == f"{archive.resolve()}/data/run_1.fits"


def test_data_dirs_must_exist(archive):
    with pytest.raises(ArchiveError, match=r"no directory .*nowhere; correct io\.data_dirs"):
        read_datastore(archive, data_dirs=[archive / "nowhere"])


@pytest.mark.parametrize(("creator", "honoured"), [("dask_bkg 0.1", True), ("someone", False), (None, False)])
def test_only_our_own_index_names_directories(tmp_path, elsewhere, creator, honoured, caplog):
    archive = tmp_path / "archive"
    cards = {"CREATOR": creator} if creator else {}
    rows = hdu_rows([5], FILE_DIR=str(elsewhere), FILE_NAME="run.fits")
    write_foreign(archive, rows, observations([5]), DATADIR1=str(elsewhere), **cards)
    caplog.set_level("INFO", "dask_bkg")
    store = read_datastore(archive)
    assert store.location(5, "events").path == str(elsewhere.resolve() / "run.fits")
    assert any("outside" in text for text in caplog.messages) != honoured


def test_many_and_long_directories_are_recorded(tmp_path):
    directories = [tmp_path / ("long" * 40) / f"disk{number:02}" for number in range(12)]
    for directory in directories:
        directory.mkdir(parents=True)
    write_index(tmp_path / "out", hdu_rows([1]), observations([1]), data_dirs=directories)
    assert sorted(read_datastore(tmp_path / "out").data_dirs) == [path.resolve() for path in directories]
    write_index(tmp_path / "out", hdu_rows([1]), observations([1]))
    assert read_datastore(tmp_path / "out").data_dirs == ()


def test_an_index_that_points_to_another_archive(tmp_path, archive, elsewhere):
    """`io.attach: index`: gammapy and we open the original files; the pair may be moved together."""
    (archive / "data").mkdir()
    for obs_id in (1, 2, 3):
        fits.PrimaryHDU().writeto(archive / "data" / f"run_{obs_id}.fits")
    store = read_datastore(archive, data_dirs=[elsewhere])
    out = tmp_path / "deep" / "out"
    rows = background_rows(
        linked_rows(store, [1, 3], out)[0], {i: ("bkg", f"b_{i}.fits", "BACKGROUND", "bkg_2d") for i in (1, 3)}
    )
    write_index(out, rows, store.observations([1, 3]), [store.directory, *store.data_dirs])

    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for root in (tmp_path, moved):
        if root == moved:
            shutil.move(archive, moved)
            shutil.move(tmp_path / "deep", moved)
        linked = read_datastore(root / "deep" / "out")
        assert linked.obs_ids.tolist() == [1, 3]
        assert linked.location(3, "events") == Location(f"{root.resolve()}/archive/data/run_3.fits", "EVENTS")
        assert linked.location(3, "bkg") == Location(f"{root.resolve()}/deep/out/bkg/b_3.fits", "BACKGROUND")
        gammapy_path = DataStore.from_dir(root / "deep" / "out").hdu_table.hdu_location(3, "events").path()
        assert gammapy_path.resolve() == root.resolve() / "archive" / "data" / "run_3.fits"


def test_an_index_leads_where_another_one_led(tmp_path, elsewhere):
    archive = tmp_path / "archive"
    write_foreign(archive, hdu_rows([5], FILE_DIR=str(elsewhere)), observations([5]))
    rows, failed = linked_rows(read_datastore(archive), [5], tmp_path / "out")
    assert not failed
    assert {(tmp_path / "out" / row).resolve() for row in rows["FILE_DIR"]} == {elsewhere.resolve()}


def test_one_bad_run_does_not_take_the_others(tmp_path):
    rows = hdu_rows([1, 2, 3, 4])
    rows["HDU_NAME"] = ["" if i == 2 else name for i, name in zip(rows["OBS_ID"], rows["HDU_NAME"], strict=True)]
    write_foreign(tmp_path, rows, observations([1, 2, 3, 4]))

    def place(obs_id, path):
        if obs_id == 3:
            raise RunError("run 3: its file is gone")
        return f"x/y/{Path(path).name}"

    store = read_datastore(tmp_path)
    placed, failed = placed_rows(store, [4, 3, 2, 1], place, without=("bkg",))
    assert placed["OBS_ID"].tolist() == [4] * 5 + [1] * 5
    assert set(zip(placed["FILE_DIR"], placed["FILE_NAME"], strict=True)) == {
        ("x/y", "run_4.fits"),
        ("x/y", "run_1.fits"),
    }
    assert sorted(failed) == [2, 3]
    assert "HDU_NAME" in failed[2]
    linked, failed = linked_rows(store, [1, 2], tmp_path / "out")
    assert (set(linked["OBS_ID"]), list(failed)) == ({1}, [2])


def test_rows_of_one_type_in_several_files_keep_their_files(tmp_path):
    rows = hdu_rows([1, 1], types=["psf"])
    rows["FILE_NAME"] = ["first.fits", "other.fits"]
    write_foreign(tmp_path, rows, observations([1]))
    placed, _ = placed_rows(read_datastore(tmp_path), [1], lambda obs_id, path: Path(path).name)
    assert placed["FILE_NAME"].tolist() == ["first.fits", "other.fits"]


def test_no_store_is_no_index_files_and_nothing_else(tmp_path):
    assert existing_store(tmp_path / "nothing") is None
    assert existing_store(tmp_path) is None
    write_index(tmp_path, hdu_rows([1]), observations([1]))
    assert existing_store(tmp_path).obs_ids.tolist() == [1]
    for name in ("hdu-index.fits.gz", "obs-index.fits.gz"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:100])
        with pytest.raises(ArchiveError, match=f"{name}.*bring it back"):
            existing_store(tmp_path)
        (tmp_path / name).write_bytes(whole)


# --- writing -----------------------------------------------------------------------------------------------


def test_round_trip_keeps_columns_units_and_cards(tmp_path):
    obs = observations([2, 1])
    obs["SPECIAL"] = np.arange(6).reshape(2, 3) * u.Unit("s-1")
    obs.meta["comments"] = ["one", "two"]
    obs.meta |= {"OBSGEO-X": 1.5, "HISTORY": ["made"], "DATE": "2020-01-01", "CREATOR": "other", "DATADIR1": "/etc"}
    rows = hdu_rows([2, 1])
    rows["SIZE"] = np.arange(len(rows))
    write_index(tmp_path, rows, obs)

    store = read_datastore(tmp_path)
    assert store.obs.colnames == obs.colnames
    assert store.obs["OBS_ID"].tolist() == [1, 2]
    for name in obs.colnames:
        np.testing.assert_array_equal(store.obs[name], obs[name][::-1])
        assert store.obs[name].unit == obs[name].unit
    kept = set(obs.meta) - {"DATE", "CREATOR", "DATADIR1"}
    assert {key: store.obs.meta[key] for key in kept} == {key: obs.meta[key] for key in kept}
    assert store.obs.meta["CREATOR"].startswith("dask_bkg")
    assert not {"DATE", "DATADIR1"} & (set(store.obs.meta) | set(store.hdu.meta))
    assert store.hdu["SIZE"].tolist() == [*range(6, 12), *range(6)]
    for kind in ("HDU", "OBS"):
        header = fits.getheader(tmp_path / f"{kind.lower()}-index.fits.gz", f"{kind}_INDEX")
        cards = {"HDUCLASS": "GADF", "HDUVERS": "0.3", "HDUCLAS1": "INDEX", "HDUCLAS2": kind}
        assert {key: header[key] for key in cards} == cards
    assert "TSTART" in obs.colnames
    assert obs["TSTART"].dtype == np.float32  # the caller's table is left alone
    assert store.obs["TSTART"].dtype.itemsize == 8


def test_units_that_astropy_does_not_know_are_handed_on(tmp_path, recwarn):
    obs = observations([1])
    obs.write(tmp_path / "obs-index.fits")
    hdu_rows([1]).write(tmp_path / "hdu-index.fits")
    data = (tmp_path / "obs-index.fits").read_bytes()
    (tmp_path / "obs-index.fits").write_bytes(data.replace(b"'deg     '", b"'DEGREES '"))
    store = read_datastore(tmp_path)
    write_index(tmp_path / "out", store.hdu, store.obs)
    assert fits.getheader(tmp_path / "out" / "obs-index.fits.gz", 1)["TUNIT2"] == "DEGREES"
    assert not [warning for warning in recwarn if "DEGREES" in str(warning.message)]


def test_long_paths_are_not_cut(tmp_path):
    folder, name = "/".join(["veritas_run_directory"] * 8), "r" * 120 + ".fits"
    write_index(tmp_path, hdu_rows([1], FILE_DIR=folder, FILE_NAME=name), observations([1]))
    assert read_datastore(tmp_path).location(1, "events").path == f"{tmp_path.resolve()}/{folder}/{name}"
    row = DataStore.from_dir(tmp_path).hdu_table[0]
    assert (row["FILE_DIR"].strip(), row["FILE_NAME"].strip()) == (folder, name)


def test_bytes_depend_on_the_contents_alone(tmp_path, monkeypatch):
    write_index(tmp_path / "a", hdu_rows([1, 2]), observations([1, 2]))
    monkeypatch.setattr("time.time", lambda: 2e9)
    store = read_datastore(tmp_path / "a")
    shuffled = merge_index(store.rows([2]), store.rows([1]))
    write_index(tmp_path / "b" / "c", shuffled, store.observations([2, 1]))
    for name in ("hdu-index.fits.gz", "obs-index.fits.gz"):
        first, second = (tmp_path / "a" / name).read_bytes(), (tmp_path / "b" / "c" / name).read_bytes()
        assert first == second
        assert first[4:8] == b"\0\0\0\0"


def test_gammapy_reads_it(tmp_path):
    rows = background_rows(hdu_rows([1, 2]), {2: ("", "b.fits", "BACKGROUND", "bkg_2d")})
    write_index(tmp_path, rows[rows["HDU_TYPE"] != "psf"], observations([1, 2]))
    store = DataStore.from_dir(tmp_path)
    assert store.obs_ids.tolist() == [1, 2]
    assert store.obs_table["OBJECT"].tolist() == ["Crab 1", "Crab 2"]
    assert store.obs_table.time_ref.mjd == 53402.25
    assert len(store.get_observations(required_irf="point-like")) == 2
    assert len(store.get_observations(required_irf=["aeff", "edisp", "bkg"])) == 2
    assert len(store.get_observations(required_irf="full-enclosure")) == 0  # psf was left out
    location = store.hdu_table.hdu_location(2, "bkg")
    assert (location.hdu_class, location.file_dir, location.hdu_name) == ("bkg_2d", "", "BACKGROUND")


def test_one_background_a_run_is_written(tmp_path):
    rows = hdu_rows([1, 2, 3])
    rows.add_row((2, "bkg", "bkg_2d", "data", "later.fits", "BKG"))
    write_index(tmp_path, rows[rows["OBS_ID"] != 3], observations([1, 2]))
    written = read_datastore(tmp_path).hdu
    backgrounds = written[written["HDU_TYPE"] == "bkg"]
    assert backgrounds["OBS_ID"].tolist() == [1, 2]
    assert backgrounds["HDU_CLASS"].tolist() == ["bkg_3d", "bkg_3d"]  # the first, as gammapy takes it
    assert len(written) == 12


def test_what_cannot_be_written_is_told(tmp_path):
    with pytest.raises(ArchiveError, match="no runs to write"):
        write_index(tmp_path, hdu_rows([1])[:0], observations([1]))
    with pytest.raises(ArchiveError, match=r"hdu index cannot be written as FITS .*ASCII"):
        write_index(tmp_path, hdu_rows([1], file_dir="Läufe"), observations([1]))
    (tmp_path / "file").touch()
    with pytest.raises(ArchiveError, match="cannot be written"):
        write_index(tmp_path / "file" / "out", hdu_rows([1]), observations([1]))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("fails_at", [1, 2])
def test_both_files_or_none(tmp_path, monkeypatch, fails_at):
    write_index(tmp_path, hdu_rows([1]), observations([1]))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write, calls = index.write_pieces, []

    def full(path, pieces, compress):
        calls.append(path)
        if len(calls) == fails_at:
            raise OSError(28, "No space left on device")
        write(path, pieces, compress)

    monkeypatch.setattr(index, "write_pieces", full)
    with pytest.raises(ArchiveError, match="full"):
        write_index(tmp_path, hdu_rows([1, 2]), observations([1, 2]))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# --- rows --------------------------------------------------------------------------------------------------


def test_backgrounds_are_replaced_and_added():
    rows = hdu_rows([2, 1, 3])
    rows["SIZE"], rows["WEIGHT"] = np.arange(18), np.ones(18)
    rows.add_row((2, "bkg", "bkg_2d", "data", "second.fits", "BKG", 1, 1.0))
    rows.remove_rows(np.flatnonzero((rows["OBS_ID"] == 1) & (rows["HDU_TYPE"] == "bkg")))
    long = "a_file_name_much_longer_than_those_that_were_there_before.fits"
    new = background_rows(rows, dict.fromkeys((1, 2), ("bkg", long, "BACKGROUND", "bkg_2d")))

    assert new.colnames == rows.colnames
    assert new["OBS_ID"].tolist() == [1] * 6 + [2] * 6 + [3] * 6
    backgrounds = new[new["HDU_TYPE"] == "bkg"]
    assert backgrounds["OBS_ID"].tolist() == [1, 2, 3]
    assert backgrounds["FILE_NAME"].tolist() == [long, long, "run_3.fits"]
    assert backgrounds["HDU_CLASS"].tolist() == ["bkg_2d", "bkg_2d", "bkg_3d"]
    assert backgrounds["SIZE"].tolist()[:2] == [0, 0]
    assert np.isnan(backgrounds["WEIGHT"][:2]).all()
    others = new[new["HDU_TYPE"] != "bkg"]
    assert sorted(others["SIZE"]) == sorted(rows["SIZE"][rows["HDU_TYPE"] != "bkg"])
    assert not new.has_masked_columns
    assert len(rows) == 18  # the caller's table is left alone


def test_no_backgrounds_change_nothing():
    assert (background_rows(hdu_rows([1]), {}) == hdu_rows([1])).all()


def test_a_second_job_keeps_the_other_runs(tmp_path):
    write_index(tmp_path, hdu_rows([1, 3]), observations([1, 3]))
    store = read_datastore(tmp_path)
    new_obs = observations([3, 2])
    new_obs["OBJECT"] = ["a much longer name than before", "M 87"]
    new_obs["EXTRA"] = ["x", "y"]
    hdu = merge_index(store.hdu, hdu_rows([3, 2], file_dir="new"))
    write_index(tmp_path, hdu, merge_index(store.obs, new_obs))

    merged = read_datastore(tmp_path)
    assert merged.obs_ids.tolist() == merged.obs["OBS_ID"].tolist() == [1, 2, 3]
    assert merged.obs["OBJECT"].tolist() == ["Crab 1", "M 87", "a much longer name than before"]
    assert merged.obs["EXTRA"].tolist() == ["", "y", "x"]
    assert [Path(merged.location(i, "bkg").path).parent.name for i in (1, 2, 3)] == ["data", "new", "new"]
    assert len(merged.hdu) == 18


def test_runs_of_another_reference_are_not_merged():
    old, new = observations([1]), observations([2])
    new.meta["MJDREFI"] = 51910
    with pytest.raises(ArchiveError, match="MJDREFI differ"):
        merge_index(old, new)
    new = observations([2])
    new["RA_PNT"] = [1.4] * u.rad
    new["OBJECT"] = [5]
    with pytest.raises(ArchiveError, match="OBJECT, RA_PNT differ"):
        merge_index(old, new)


# --- real data ---------------------------------------------------------------------------------------------


@pytest.mark.realdata
def test_real_archive(gammapy_data, tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger=index_table.log.name)
    store = read_datastore(gammapy_data / "hess-dl3-dr1")
    assert not caplog.records
    assert len(store.obs_ids) == 72
    places = [store.location(obs_id, hdu_type) for obs_id in store.obs_ids for hdu_type in TYPES]
    assert all(Path(place.path).is_file() for place in places)

    new = {obs_id: ("bkg", f"{obs_id}.fits", "BACKGROUND", "bkg_2d") for obs_id in store.obs_ids.tolist()}
    rows = background_rows(linked_rows(store, store.obs_ids, tmp_path)[0], new)
    write_index(tmp_path, rows, store.obs, [store.directory])
    original, ours = (DataStore.from_dir(path) for path in (gammapy_data / "hess-dl3-dr1", tmp_path))
    assert ours.obs_table.colnames == original.obs_table.colnames
    for name in original.obs_table.colnames:
        first, second = (table.obs_table[name] for table in (original, ours))
        np.testing.assert_array_equal(np.ma.filled(first), np.ma.filled(second))
        assert first.unit == second.unit
    assert ours.obs_table.time_ref == original.obs_table.time_ref
    assert ours.obs_table.meta["GEOLON"] == original.obs_table.meta["GEOLON"]
    assert len(ours.get_observations()) == 72
    assert len(ours.obs(23523).events.table) == len(original.obs(23523).events.table)
    assert read_datastore(tmp_path).location(23523, "events") == store.location(23523, "events")
