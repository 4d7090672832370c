"""A store that grows by rows: parts and shards, rows that replace others, and what a kill at any moment leaves."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from numpy.testing import assert_array_equal

from dask_bkg.errors import ArchiveError
from dask_bkg.files import read
from dask_bkg.store import rows as module
from dask_bkg.store.rows import Column, Layout, Rows, write_part

pytestmark = pytest.mark.slow  # whole jobs, or simulations of many skies

LAYOUT = Layout(
    {
        "rate": Column("float32", ("energy",), (6,), "s-1", "a rate"),
        "counts": Column("uint32", ("energy",), (6,)),
        "runs": Column("int64", ("role", "slot"), (2, 0), grows=True),
    },
    ("obs_id", "size"),
    ("hours",),
    ("digest",),
    {"energy": [0.1, 1 / 3, 10.0]},
)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    """Shards of eight rows: forty rows are many."""
    for name, value in {"SHARD": 8, "CHUNK": 2, "PER_SHARD": 4, "TABLE_CHUNK": 16, "GROWTH": 3}.items():
        monkeypatch.setattr(module, name, value)


@pytest.fixture
def store(tmp_path):
    return Rows.create(tmp_path / "things.zarr", LAYOUT, "things")


def columns(obs_ids, version=0, width=3):
    """All that is known of some items, of a version."""
    number = np.asarray(obs_ids)
    return {
        "obs_id": number,
        "size": number * 10 + version,
        "hours": number / 4 + version,
        "digest": np.array([f"{i} of {version}" for i in number.tolist()]),
        "rate": number[:, None] + np.linspace(0, 0.5, 6) + 100 * version,
        "counts": np.full((number.size, 6), version),
        "runs": np.broadcast_to(np.arange(width), (number.size, 2, width)),
    }


def parts_of(store):
    return store.path.with_name("parts")


def put(store, obs_ids, version=0, width=3):
    return write_part(parts_of(store), LAYOUT, columns(obs_ids, version, width))


def versions(store) -> dict[int, int]:
    """Version of each item that counts, after a look at all that it has."""
    rows = store.latest()
    found = {}
    arrays = {name: store.values(name, rows) for name in LAYOUT.arrays}
    for i, row in enumerate(rows.tolist()):
        obs_id = int(store.table["obs_id"][row])
        version = int(store.table["size"][row]) - 10 * obs_id
        expected = columns([obs_id], version)
        assert store.table["digest"][row] == expected["digest"][0]
        assert store.table["hours"][row] == expected["hours"][0]
        for name in ("rate", "counts"):
            assert_array_equal(arrays[name][i], expected[name][0].astype(arrays[name].dtype))
        assert_array_equal(arrays["runs"][i, :, :3], expected["runs"][0])
        found[obs_id] = version
    return found


def test_parts_are_folded_and_removed(store):
    for first in (5, 0):
        put(store, range(first, first + 5))
    assert versions(store) == {}
    assert store.fold(parts_of(store)) == 10
    assert versions(store) == dict.fromkeys(range(10), 0)
    assert not parts_of(store).exists()
    assert store.fold(parts_of(store)) == 0
    assert versions(Rows(store.path)) == dict.fromkeys(range(10), 0)


def test_of_the_rows_of_an_item_the_last_one_counts(store):
    put(store, range(12))
    put(store, [3, 4], version=1)
    store.fold(parts_of(store))
    put(store, [4, 20], version=2)
    store.fold(parts_of(store))
    expected = dict.fromkeys(range(12), 0) | {3: 1, 4: 2, 20: 2}
    assert versions(store) == versions(Rows(store.path)) == expected


def test_what_a_part_does_not_have_is_filled(store):
    write_part(parts_of(store), LAYOUT, {"obs_id": [7], "digest": ["none"]})
    store.fold(parts_of(store))
    rows = store.latest()
    assert np.isnan(store.values("rate", rows)).all()
    assert (store.values("counts", rows) == np.iinfo("uint32").max).all()
    assert (store.values("runs", rows) == -1).all()
    assert (store.table["size"][rows], store.table["digest"][rows]) == (-1, "none")
    assert np.isnan(store.table["hours"][rows])


def test_the_last_axis_grows(store):
    put(store, [1], width=3)
    store.fold(parts_of(store))
    put(store, [2], width=100)
    store.fold(parts_of(store))
    runs = store.values("runs", store.latest())
    assert runs.shape == (2, 2, 102)
    assert_array_equal(runs[:, 0, :4], [[0, 1, 2, -1], [0, 1, 2, 3]])
    assert_array_equal(runs[1, 1, 98:], [98, 99, -1, -1])


def test_shards_of_replaced_rows_are_removed_and_few_rows_go_to_the_end(store):
    for version in range(3):
        put(store, range(24), version)
        store.fold(parts_of(store))
    put(store, [*range(1, 16), *range(18, 24)], version=3)
    store.fold(parts_of(store))
    store.tidy()
    expected = dict.fromkeys(range(24), 3) | {0: 2, 16: 2, 17: 2}
    assert versions(store) == versions(Rows(store.path)) == expected
    assert {path.name.split(".")[1] for path in (store.path / "rate").glob("c.*")} == {"9", "10", "11"}
    assert (store.table["obs_id"][:72] == -1).all()
    before = store.table["obs_id"].copy()
    store.tidy()
    assert_array_equal(store.table["obs_id"], before)


def test_few_items_in_one_shard_are_left_there(store):
    for version in range(2):
        put(store, range(3), version)
        store.fold(parts_of(store))
        store.tidy()
    assert versions(store) == dict.fromkeys(range(3), 1)
    assert store.latest().tolist() == [3, 4, 5]


def test_a_reader_sees_what_it_has_opened(store):
    put(store, range(10))
    store.fold(parts_of(store))
    before = xr.open_zarr(store.path, chunks={})
    put(store, range(10), version=1)
    store.fold(parts_of(store))
    assert_array_equal(before.rate[:10], columns(range(10))["rate"].astype("float32"))
    assert before.sizes["row"] == 16
    assert xr.open_zarr(store.path).sizes["row"] == 24
    assert before.rate.attrs["units"] == "s-1"


def test_a_store_of_many_items_is_few_files(store):
    put(store, range(80))
    store.fold(parts_of(store))
    files = [path for path in store.path.rglob("*") if path.is_file()]
    # metadata of the group and of six arrays; ten shards of three arrays, three tables of 80 rows, and their copy
    assert len(files) == 7 + 3 * 10 + 3 * 5 + 1


@pytest.mark.parametrize("name", ["rate", "runs"])
def test_items_of_a_file_that_is_lost_do_not_count(store, name):
    put(store, range(20))
    store.fold(parts_of(store))
    next((store.path / name).glob("c.1.*")).unlink()
    assert set(versions(Rows(store.path))) == {*range(8), *range(16, 20)}
    put(store, range(8, 16), version=1)
    store.read()
    store.fold(parts_of(store))
    store.tidy()
    assert versions(store) == dict.fromkeys(range(20), 0) | dict.fromkeys(range(8, 16), 1)


def test_a_file_that_is_damaged_is_named(store):
    put(store, range(10))
    store.fold(parts_of(store))
    path = next((store.path / "rate").glob("c.0.*"))
    path.write_bytes(path.read_bytes()[:40] + b"\0" * 30 + path.read_bytes()[70:])
    with pytest.raises(ArchiveError, match=r"rate.c\.0\.\* is damaged .*remove it"):
        store.values("rate", store.latest())


def test_a_part_that_is_damaged_costs_its_items_alone(store, caplog):
    put(store, range(5))
    bad = put(store, range(5, 10))
    bad.write_bytes(bad.read_bytes()[:-2000] + b"x" * 2000)
    put(store, range(10, 12))
    store.fold(parts_of(store))
    assert set(versions(store)) == {*range(5), 10, 11}
    assert f"{bad} cannot be read" in caplog.text
    assert not parts_of(store).exists()


def test_parts_of_another_layout_are_left(store):
    other = LAYOUT._replace(axes={"energy": [0.1, 10.0]})
    path = write_part(parts_of(store), other, columns(range(3)))
    put(store, range(3, 5))
    assert store.fold(parts_of(store)) == 2
    assert list(parts_of(store).iterdir()) == [path]


def test_the_layout_is_kept_and_other_versions_are_refused(store, monkeypatch):
    assert Rows(store.path).layout == LAYOUT
    monkeypatch.setattr(module, "FORMAT", 2)
    assert LAYOUT.digest != store.path.name
    with pytest.raises(ArchiveError, match="no store of rows of version 2"):
        Rows(store.path)


def test_a_disk_that_refuses_is_an_error_of_ours(store, monkeypatch):
    put(store, range(3))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArchiveError, match=r"No space left on device.*what is finished is kept"):
        store.fold(parts_of(store))
    monkeypatch.undo()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_what_may_pass_is_tried_again_and_no_damage(store, monkeypatch, number):
    """Of files that are read and of those that are written."""
    put(store, range(10))
    monkeypatch.setattr(read, "PAUSES", (0.0, 0.0, 0.0))
    for what, name in (("written", "replace"), ("read", "open")):
        work, left = getattr(os if what == "written" else io, name), [3]

        def failing(path, *args, work=work, left=left, **kwargs):
            if left[0] and "things.zarr" in str(path) and "zarr.json" not in str(path):
                left[0] -= 1
                raise OSError(number, os.strerror(number))
            return work(path, *args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(os if what == "written" else io, name, failing)
            do = (lambda: store.fold(parts_of(store))) if what == "written" else (lambda: versions(Rows(store.path)))
            do()
            assert left == [0]
            left[0] = 1000
            put(store, range(10))
            with pytest.raises(ArchiveError, match=rf"cannot be {what} now \(.*start again"):
                do()
    store.fold(parts_of(store))
    assert versions(Rows(store.path)) == dict.fromkeys(range(10), 0)


# --- damage ---------------------------------------------------------------------------------------------------------

KINDS = ("integers", "numbers", "texts")


def flip(path: Path, at: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 4
    path.write_bytes(data)


DAMAGES = {
    "flipped": flip,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "empty": lambda path: path.write_bytes(b""),
    "lost": Path.unlink,
}


@pytest.fixture
def forty(store):
    """Forty items, eight of which were replaced: three chunks of the table."""
    put(store, range(40))
    put(store, range(10, 18), version=1)
    store.fold(parts_of(store))
    return store


FORTY = dict.fromkeys(range(40), 0) | dict.fromkeys(range(10, 18), 1)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_array_of_the_table_that_is_damaged_is_taken_from_its_copy(forty, caplog, kind, damage):
    DAMAGES[damage](forty.path / kind / "c.1.0")
    store = Rows(forty.path)
    assert f"{kind}/c.1.0 is" in caplog.text
    assert "is taken from its copy" in store.damaged[kind]
    assert versions(store) == FORTY
    put(store, [50])
    store.fold(parts_of(store))
    caplog.clear()
    assert versions(Rows(store.path)) == FORTY | {50: 0}
    assert (caplog.text, Rows(store.path).damaged) == ("", {})


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["rate", "texts"])
def test_metadata_of_an_array_that_are_damaged_are_taken_from_those_of_the_group(forty, caplog, name, damage):
    file = forty.path / name / "zarr.json"
    whole = json.loads(file.read_text())
    file.write_text(json.dumps(whole)[:-1])
    DAMAGES[damage](file)
    assert versions(Rows(forty.path)) == FORTY
    assert f"{file} is damaged or lost" in caplog.text
    assert json.loads(file.read_text())["shape"] == whole["shape"]


@pytest.mark.parametrize("copy", ["flipped", "lost"])
@pytest.mark.parametrize("kind", KINDS)
def test_without_a_copy_the_items_of_the_damaged_part_are_lost_and_no_others(forty, caplog, kind, copy):
    DAMAGES[copy](forty.path / module.COPY)
    assert versions(Rows(forty.path)) == FORTY
    flip(forty.path / kind / "c.1.0")
    store = Rows(forty.path)
    assert "has no copy" in caplog.text
    if kind == "integers":
        assert versions(store) == {n: FORTY[n] for n in FORTY if not 16 <= n < 32} | {16: 1, 17: 1}
    elif kind == "numbers":
        assert np.isnan(store.table["hours"][16:32]).all()
        assert not np.isnan(store.table["hours"][[15, 32]]).any()
    else:
        assert (store.table["digest"][16:32] == "").all()
        assert (store.table["digest"][[15, 32]] != "").all()
    put(store, range(16, 32), version=2)
    store.fold(parts_of(store))
    assert versions(Rows(store.path)) == FORTY | dict.fromkeys(range(16, 32), 2)


def test_any_single_byte_of_the_table_may_be_wrong(forty):
    """No byte changes a number without a word, and none ends in an error."""
    for path in (*(forty.path / kind / "c.0.0" for kind in KINDS), forty.path / module.COPY):
        whole = path.read_bytes()
        for i in range(0, len(whole), 1 + len(whole) // 25):
            path.write_bytes(whole[:i] + bytes([whole[i] ^ 0x21]) + whole[i + 1 :])
            assert versions(Rows(forty.path)) == FORTY, (path, i)
        path.write_bytes(whole)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["rate", "runs"])
def test_items_of_a_damaged_file_are_named_and_only_these_are_lost(forty, name, damage):
    assert forty.find_damage() == {}
    file = next((forty.path / name).glob("c.2.*"))
    if damage == "flipped":  # in the last chunk, before the index of the shard
        flip(file, -4 - 16 * (32 if name == "runs" else 4) - 10)
    else:
        DAMAGES[damage](file)
    store = Rows(forty.path)
    found = store.find_damage()
    (bad,) = found.values()
    # those before them were replaced
    assert bad.tolist() == ([22, 23] if damage == "flipped" else [18, 19, 20, 21, 22, 23])
    assert [path.name for path in found] == [file.name if damage != "lost" else "c.2.*"]
    assert store.drop_damaged(parts_of(store), np.array([0, 30]), ["counts"]) == {}
    lost = store.drop_damaged(parts_of(store), np.array([*bad[-1:]]))
    assert [numbers.tolist() for numbers in lost.values()] == [sorted(set(bad.tolist()))]
    left = {obs_id: version for obs_id, version in FORTY.items() if obs_id not in bad}
    assert versions(store) == versions(Rows(store.path)) == left
    assert store.find_damage() == {}
    put(store, bad)
    store.fold(parts_of(store))
    assert versions(store) == FORTY


# --- kills ----------------------------------------------------------------------------------------------------------


def killed_at(moment: int, work) -> bool:
    """Do some work in a process that is killed before it puts its n-th file into its place, or removes it."""
    if pid := os.fork():
        return os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    left = [moment]

    def counted(function):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    os.replace, os.unlink = counted(os.replace), counted(os.unlink)
    work()
    os._exit(0)


def killed_stores(start: Rows, work, directory: Path):
    """Copies of a store and of its parts, in each of which the work was killed at another moment, up to its end."""
    for moment in range(1, 1000):
        shutil.copytree(start.path.parent, directory / str(moment))
        path = directory / str(moment) / start.path.name
        killed = killed_at(moment, lambda path=path: work(Rows(path)))
        yield Rows(path)
        if not killed:
            assert moment > 15
            return


def fold_and_tidy(store):
    store.fold(parts_of(store))
    store.tidy()


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_all_items(tmp_path):
    """Twelve items, eight of which are made again with two others: each is there as it was, or as it is now."""
    (tmp_path / "start").mkdir()
    start = Rows.create(tmp_path / "start" / "things.zarr", LAYOUT, "things")
    put(start, range(12))
    start.fold(parts_of(start))
    put(start, range(4, 10), version=1)
    put(start, range(10, 14), version=1, width=5)
    new = dict.fromkeys(range(4), 0) | dict.fromkeys(range(4, 14), 1)
    seen = []
    for store in killed_stores(start, fold_and_tidy, tmp_path):
        left = versions(store)
        assert set(range(12)) <= left.keys() <= new.keys()
        assert all(version in (0, new[obs_id]) for obs_id, version in left.items() if obs_id < 12)
        seen.append(sum(left.values()))
        assert xr.open_zarr(store.path).sizes["row"] in (16, 24)
        for kind in KINDS:
            copy = store.path.with_name(kind)
            shutil.copytree(store.path, copy)
            for path in (copy / kind).glob("c.*"):
                flip(path)
            # the copy of the table may be one step ahead of its integers, never behind them
            found = versions(Rows(copy))
            assert all(left[obs_id] <= found[obs_id] <= new[obs_id] for obs_id in left)
        fold_and_tidy(store)
        assert versions(Rows(store.path)) == new
        assert not parts_of(store).exists()
    assert seen == sorted(seen)
    assert {0, 6, 10} <= set(seen)


@pytest.mark.slow
def test_a_kill_while_rows_are_moved_loses_none(tmp_path):
    (tmp_path / "start").mkdir()
    start = Rows.create(tmp_path / "start" / "things.zarr", LAYOUT, "things")
    put(start, range(16))
    put(start, [*range(1, 9), *range(10, 16)], version=1)
    start.fold(parts_of(start))
    expected = dict.fromkeys(range(16), 1) | {0: 0, 9: 0}
    for store in killed_stores(start, Rows.tidy, tmp_path):
        assert versions(store) == expected
        store.tidy()
        assert versions(Rows(store.path)) == expected
        assert {path.name.split(".")[1] for path in (store.path / "rate").glob("c.*")} == {"2", "3"}
