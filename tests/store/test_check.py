"""`dask-bkg info --check`: which runs are damaged, in which file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers.archive_job import BIG, FINE, assert_stored, run_files, update

from dask_bkg.cli import SOME_FAILED, main
from dask_bkg.store import rows
from dask_bkg.store.check import check_store
from dask_bkg.store.rows import Rows
from dask_bkg.store.store import RunStore

pytestmark = pytest.mark.slow


@pytest.fixture
def store(archive, tmp_path, monkeypatch):
    """The 12 runs in shards of four, some of which were replaced: 2 views, 16 rows and more."""
    for name, value in {"SHARD": 4, "CHUNK": 2, "PER_SHARD": 2}.items():
        monkeypatch.setattr(rows, name, value)
    store = RunStore.open_or_create(tmp_path / "runs.zarr", FINE, block=5)
    update(store, run_files(archive[0], 12))
    update(store, run_files(archive[0], 12), BIG)
    return RunStore.open(store.path)


def check(path: Path) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["info", "--check", str(path)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done.exit_code, done.output


def runs_of(store: RunStore, shard: int, chunks=(0, 1)) -> list[int]:
    """Numbers of the runs whose rows lie in some chunks of a shard."""
    fine = Rows(store.path / "fine")
    last = fine.latest()
    wanted = [shard * 4 + chunk * 2 + i for chunk in chunks for i in (0, 1)]
    return sorted(int(fine.table["obs_id"][row]) for row in last if row in wanted)


def test_a_whole_store(store):
    assert check(store.path) == (0, "checked: all of 12 runs can be read\n")


@pytest.mark.parametrize("name", ["field_counts", "exposed_fraction"])
@pytest.mark.parametrize("damage", ["flipped", "cut short", "empty", "lost"])
def test_the_runs_of_a_damaged_file_are_named_and_can_be_read_again(archive, store, name, damage):
    (file,) = (store.path / "fine" / name).glob("c.1.*")
    whole, chunks = file.read_bytes(), (0, 1)
    if damage == "flipped":  # the byte in the middle is in one of the two chunks
        at, index = len(whole) // 2, whole[-4 - 32 : -4]
        places = [
            (int.from_bytes(index[i : i + 8], "little"), int.from_bytes(index[i + 8 : i + 16], "little"))
            for i in (0, 16)
        ]
        chunks = [i for i, (first, size) in enumerate(places) if first <= at < first + size]
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    elif damage == "lost":
        file.unlink()
    else:
        file.write_bytes(whole[: -5 if damage == "cut short" else 0])
    expected, found = runs_of(store, 1, chunks) if damage != "lost" else None, check_store(store.path)
    if expected is None:
        file.write_bytes(whole)
        expected = runs_of(store, 1)
        file.unlink()
    assert found.runs == expected != []
    status, text = check(store.path)
    assert status == SOME_FAILED
    assert re.search(rf"of 12 runs {len(expected)} are damaged", text)
    assert f"runs {', '.join(map(str, expected))}: damaged or lost in" in text
    assert str(file if damage != "lost" else file.parent / "c.1.*") in text
    assert "remove these files, and run `dask-bkg reduce`" in text
    # the remedy
    file.unlink(missing_ok=True)
    assert set(expected) <= set(update(RunStore.open(store.path), run_files(archive[0], 12), BIG))
    assert check(store.path)[0] == 0
    for run in run_files(archive[0], 12):
        if run.obs_id in expected:
            assert_stored(RunStore.open(store.path), run, BIG)


def test_a_damaged_table_is_named(archive, store):
    file = store.path / "runs" / "texts" / "c.0.0"
    file.write_bytes(file.read_bytes()[:-3])
    status, text = check(store.path)
    assert status == SOME_FAILED
    assert f"of 12 runs 0 are damaged\n{file} is damaged" in text
    assert "is taken from its copy" in text
    assert "the next job that writes into the store mends its tables" in text
    update(RunStore.open(store.path), run_files(archive[0], 12), BIG)
    assert check(store.path)[0] == 0


def test_what_is_no_store(tmp_path):
    status, text = check(tmp_path)
    assert status == 1
    assert "holds no store of run histograms" in text
