"""Fixtures of the run store: one of the 12 runs of `archive`, and which event files are opened."""

from __future__ import annotations

import pytest
from helpers.archive_job import FINE, copy_store, run_files, update

from dask_bkg.reduction import reduce
from dask_bkg.store.store import RunStore


@pytest.fixture
def store(tmp_path):
    return RunStore.open_or_create(tmp_path / "runs.zarr", FINE, block=5)


@pytest.fixture(scope="module")
def master(archive, tmp_path_factory):
    store = RunStore.open_or_create(tmp_path_factory.mktemp("master") / "runs.zarr", FINE, block=5)
    update(store, run_files(archive[0], 12))
    return store.path


@pytest.fixture
def filled(master, tmp_path):
    """A store of the 12 runs of `archive` without an exclusion, in blocks of 5, of one's own."""
    return copy_store(master, tmp_path / "runs.zarr")


@pytest.fixture
def opened(monkeypatch):
    """Numbers of the runs whose files were opened."""
    numbers, read = [], reduce.read_run

    def counted(run, *args, **kwargs):
        numbers.append(run.obs_id)
        return read(run, *args, **kwargs)

    monkeypatch.setattr(reduce, "read_run", counted)
    return numbers
