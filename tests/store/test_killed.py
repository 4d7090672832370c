"""A job that is killed at any moment: no wrong row, and what was finished is not read again."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
from helpers import archive_job
from helpers.archive_job import BIG, FINE, FIRST, copy_store, run_files, stored, update

from dask_bkg.reduction.reduce import reduce_views
from dask_bkg.store.changes import digest_of
from dask_bkg.store.load import open_runs
from dask_bkg.store.store import RunStore

pytestmark = pytest.mark.slow

# 34 files are put into their places: the job ends before the n-th
MOMENTS = {
    "plan": 1,
    "histograms of the first block": 2,
    "numbers of the first block": 3,
    "exclusion of runs that stay": 4,
    "histograms are folded": 6,
    "the table of the view is copied": 12,
    "rows of the view become valid": 13,
    "numbers are folded": 14,
    "runs become valid": 17,
    "hints": 19,
    "histograms of the second block": 20,
    "the second block is folded": 25,
    "its runs become valid": 33,
    "last hints": 34,
    "never": 10_000,
}


@pytest.fixture(scope="module")
def killed(archive, tmp_path_factory):
    """Copies of a store of 7 runs, each left by a job with another exclusion and 12 runs at another moment."""
    directory = tmp_path_factory.mktemp("killed")
    start = RunStore.open_or_create(directory / "start.zarr", FINE, block=5)
    update(start, run_files(archive[0], 7))
    paths = [copy_store(start.path, directory / f"{moment}.zarr").path for moment in MOMENTS.values()]
    jobs = [f"{path}:{moment}" for path, moment in zip(paths, MOMENTS.values(), strict=True)]
    subprocess.run([sys.executable, archive_job.__file__, str(archive[0]), *jobs], check=True)
    return paths


@pytest.fixture(scope="module")
def expected(archive):
    """Histograms of the 12 runs without and with the exclusion of the job that was killed, by its digest."""
    runs = run_files(archive[0], 12)
    return {
        digest_of(regions): {run.obs_id: reduce_views(run, [FINE], regions).histograms[0] for run in runs}
        for regions in (None, BIG)
    }


def right_rows(store: RunStore, expected) -> int:
    """How many rows can be used; each of them has the histograms of the exclusion that it names."""
    table, rows = store.table(), np.flatnonzero(store.usable())
    for row in rows:
        found = stored(store, table["obs_id"][row])
        for name, array in expected[table["whole_exclusion"][row]][table["obs_id"][row]].items():
            assert (found[name] == array).all()
    return rows.size


def test_a_job_killed_at_any_moment_leaves_no_wrong_row_and_is_continued(archive, killed, expected):
    usable, leftovers = [], 0
    for path in killed:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert open_runs(path).sizes["obs_id"] in range(1, 13)
        store, leftovers = RunStore.open(path), leftovers + len([*path.rglob("*.partial")])
        usable.append(right_rows(store, expected))
        table = store.table()
        finished = table["obs_id"][store.usable() & (table["whole_exclusion"] == digest_of(BIG))]
        read = update(store, run_files(archive[0], 12), BIG)
        assert set(finished.tolist()).isdisjoint(read), "a finished run was opened again"
        assert right_rows(store, expected) == 12
        assert sorted(store.table()["obs_id"]) == list(range(FIRST, FIRST + 12))
        assert not [*path.rglob("*.partial"), *path.rglob(".dask_bkg-*"), *path.parent.glob(f".*-{path.name}*")]
    assert min(usable) == 7, "a run that was there is lost"
    assert usable[-1] == 12
    assert len(set(usable)) == 3
    assert leftovers > 0
