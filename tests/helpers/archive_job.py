"""What the tests of the run store share: one update as the driver does it, and the histograms that must come out."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from dask_bkg.binning import FieldEdges, fine_view
from dask_bkg.dl3.read import RunFile
from dask_bkg.reduction.reduce import reduce_views
from dask_bkg.sky.exclusion import make_regions
from dask_bkg.store import layout
from dask_bkg.store.load import load_field
from dask_bkg.store.rows import Rows
from dask_bkg.store.store import RunStore
from dask_bkg.store.update import update_block

FINE = fine_view()
FIRST = 64001


def disc(ra: float, dec: float, radius: float = 0.35):
    """An exclusion of one disc [deg]."""
    return make_regions([ra], [dec], radius, ["disc"], "own")


BIG = disc(83.6, 22.0, 1.0)


def run_files(directory, n: int, first: int = FIRST) -> list[RunFile]:
    return [RunFile(i, str(Path(directory, "data", f"run_{i:06d}.fits.gz"))) for i in range(first, first + n)]


def copy_store(source: Path, target: Path) -> RunStore:
    """A store and its hints, of one's own."""
    shutil.copytree(source, target)
    shutil.copy(f"{source}.hints.json", f"{target}.hints.json")
    return RunStore.open(target)


def update(store: RunStore, runs, regions=None, views=None) -> dict[int, str]:
    """Bring a store up to date, one block after the other; what became of the runs that were opened."""
    views, status = views or [store.fine], {}
    with store.writing():
        for work in store.plan_update(runs, views, regions):
            task = pickle.loads(pickle.dumps((work, regions, views)))
            done = update_block(*task)
            store.record(pickle.loads(pickle.dumps(done)))
            status.update({run.obs_id: run.status for run in done})
    return status


def stored(store: RunStore, obs_id: int, view: str = "") -> dict[str, np.ndarray]:
    """Histograms of a run as they lie in the store."""
    row = int(store.find([obs_id], view)[0])
    assert row >= 0, f"{obs_id} cannot be used"
    rows = Rows(layout.place_of(store.path, view))
    return {name: rows.values(name, np.array([row]))[0] for name in rows.layout.arrays}


def assert_stored(store: RunStore, run: RunFile, regions=None, view: str = "") -> None:
    """The store has what comes out of the file of a run, bit by bit."""
    expected = reduce_views(run, [store.views[view]], regions)
    found = stored(store, run.obs_id, view)
    assert found.keys() == layout.arrays_of(store.views[view]).keys() <= expected.histograms[0].keys()
    for name, array in ((name, expected.histograms[0][name]) for name in found):
        assert found[name].dtype == array.dtype
        assert found[name].tobytes() == array.tobytes(), name
    table = store.table()
    row = table["obs_id"].tolist().index(run.obs_id)
    for name, value in expected.numbers.items():
        np.testing.assert_equal(table[name][row], value, err_msg=name)
    for name in ("object", "telescopes", "note", "fingerprint"):
        assert table[name][row] == expected.texts[name]
    if not view:
        edges = FieldEdges(store.fine.edges.energy, np.array(store.fine.pixels))
        rows = store.find([run.obs_id])
        assert (load_field(str(store.path), "", rows, edges)[0][0] == expected.histograms[0]["field_counts"]).all()


def chunk_states(store: RunStore) -> dict[str, tuple[int, int]]:
    """Which files of histograms there are, and whether they are the same files."""
    views = store.views.values()
    names = [layout.place_of(store.path, view.name) / name for view in views for name in layout.arrays_of(view)]
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for name in names for p in name.glob("c.*")}


def die_at(moment: int) -> None:
    """End this process without a word when it is about to put the n-th file into its place."""
    left, replace = [moment], os.replace

    def counted(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(*args, **kwargs)

    os.replace = counted


def main(archive: str, *jobs: str) -> None:
    """For each job, ``store:moment``, a process that updates the store and is killed at its moment."""
    import dask_bkg.store.store as module

    # parts are folded after each block: the n-th file is the same one on any machine
    module.SHARD = 1
    module.Lock.kept_alive = lambda lock: nullcontext()
    for job in jobs:
        path, moment = job.rsplit(":", 1)
        if pid := os.fork():
            os.waitpid(pid, 0)
            continue
        store = RunStore.open(path)
        die_at(int(moment))
        update(store, run_files(archive, 12), BIG)
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
