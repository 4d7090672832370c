"""Histograms of many runs, lazily: from event files and from the run store, the same as without a graph."""

from __future__ import annotations

import dask
import numpy as np
import pytest
from dask.utils import key_split
from helpers.archive_job import FINE, disc, run_files, update
from helpers.synthetic import keys_of, refuse, watched
from numpy.testing import assert_allclose, assert_array_equal

import dask_bkg
from dask_bkg import schema
from dask_bkg.binning import as_edges
from dask_bkg.dl3.read import RunFile
from dask_bkg.errors import ArchiveError
from dask_bkg.lazy.runs import load_runs, reduce_runs
from dask_bkg.reduction import reduce
from dask_bkg.reduction.reduce import reduce_block
from dask_bkg.sky.exclusion import make_regions
from dask_bkg.store.store import RunStore

EDGES = as_edges({"energy": np.geomspace(0.1, 10, 11), "offset": np.linspace(0, 2.5, 6)})
SOME = make_regions([83.633, 150.0], [22.0145, 38.0], 0.5, ["a", "b"], "own")


@pytest.fixture(scope="module")
def files(archive):
    """The twelve runs of the archive, and a thirteenth in the middle that is not there."""
    found = run_files(archive[0], 12)
    return [*found[:5], RunFile(99, str(archive[0] / "nowhere.fits")), *found[5:]]


@pytest.fixture(scope="module")
def eager(files):
    return reduce_block(files, EDGES, SOME, "geometry", "disc")


# -- from event files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, 12, 13, None])
@pytest.mark.slow
def test_reduce_is_the_eager_one_whatever_the_batch(files, eager, batch):
    lazy = reduce_runs(files, EDGES, SOME, batch=batch)
    assert all(dask.is_dask_collection(lazy[name].data) for name in (*schema.HISTOGRAMS, "ontime", "error"))
    assert {max(lazy[name].data.chunks[0]) for name in schema.HISTOGRAMS} == {batch or 10}
    computed = lazy.compute(scheduler="synchronous")
    assert set(computed.variables) == set(eager.variables)
    for name in eager.variables:
        assert_array_equal(computed[name], eager[name], err_msg=name)
        assert computed[name].attrs == eager[name].attrs


def test_a_run_that_cannot_be_used_says_so_and_takes_no_other_with_it(files, eager):
    computed = reduce_runs(files, EDGES, SOME, batch=4).compute(scheduler="synchronous")
    assert bool(computed.error.sel(obs_id=99).item())
    assert (computed.error.drop_sel(obs_id=99) == "").all()
    assert (computed.counts.drop_sel(obs_id=99).sum(("energy", "offset")) > 500).all()


def test_reduce_takes_method_and_reach(files):
    lazy = reduce_runs(files[:2], EDGES, SOME, method="event_ratio", reach="centre").compute(scheduler="synchronous")
    expected = reduce_block(files[:2], EDGES, SOME, "event_ratio", "centre")
    for name in schema.HISTOGRAMS:
        assert_array_equal(lazy[name], expected[name])


def test_reducing_is_announced_and_computes_nothing(files):
    with dask.config.set(scheduler=refuse):
        lazy = reduce_runs(files, EDGES, SOME, batch=4)
        with pytest.raises(AssertionError, match="something was computed"):
            lazy.counts.compute()
    keys = keys_of(lazy.counts.data)
    assert sum(key_split(key) == "reduce-runs" for key in keys) == 4
    assert dask_bkg.reduce_runs is reduce_runs


def test_each_event_file_is_read_once_for_all_variables(files, monkeypatch):
    read, read_run = [], reduce.read_run

    def note(file, **options):
        read.append(file.obs_id)
        return read_run(file, **options)

    monkeypatch.setattr(reduce, "read_run", note)
    reduce_runs(files, EDGES, SOME, batch=4).compute(scheduler="threads", num_workers=2)
    assert sorted(read) == sorted(file.obs_id for file in files)


def test_no_runs_are_no_error():
    assert reduce_runs([], EDGES).compute(scheduler="synchronous").counts.shape == (0, 10, 5)


# -- from the run store ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(archive, tmp_path_factory):
    """The run store of the archive, in chunks of five runs, with an exclusion."""
    made = RunStore.open_or_create(tmp_path_factory.mktemp("store") / "runs.zarr", FINE, block=5)
    update(made, run_files(archive[0], 12), disc(83.633, 22.0145, 0.5))
    return made


def loaded(store, numbers, block=None, edges=EDGES, view=""):
    rows = store.find(numbers, view)
    table = store.table()
    places = np.searchsorted(table["obs_id"], numbers)
    table = {name: column[places] for name, column in table.items()}
    return load_runs(str(store.path), view, rows, table, edges, block=block)


@pytest.fixture(scope="module")
def expected(archive):
    return reduce_block(run_files(archive[0], 12), EDGES, disc(83.633, 22.0145, 0.5), "geometry", "disc")


@pytest.mark.parametrize("block", [1, 4, 5, 12, None])
@pytest.mark.slow
def test_load_is_the_reduction_whatever_the_block(store, expected, block):
    """Sums of the fine rings; the exclusion of 0.05 deg rings is that of the coarse ones to rounding."""
    lazy = loaded(store, expected.obs_id.values, block)
    assert lazy.counts.chunks == lazy.exposure.chunks
    assert max(lazy.counts.chunks[0]) == min(block or 50, 12)
    computed = lazy.compute(scheduler="synchronous")
    assert_array_equal(computed.counts, expected.counts)
    assert_allclose(computed.exposure, expected.exposure, rtol=1e-12)
    assert schema.check(computed) is computed


def test_blocks_change_no_bit(store, expected):
    first, *others = (
        loaded(store, expected.obs_id.values, block).compute(scheduler="synchronous") for block in (12, 1, 5, 7)
    )
    assert all(other.identical(first) for other in others)


def test_runs_in_any_order_and_some_of_them(store, expected):
    numbers = expected.obs_id.values[[7, 0, 11, 3]]
    computed = loaded(store, numbers, 3).compute(scheduler="synchronous")
    assert computed.obs_id.values.tolist() == numbers.tolist()
    assert_array_equal(computed.counts, expected.counts.sel(obs_id=numbers))
    for name in ("zenith", "livetime", "nsb"):
        assert_array_equal(computed[name], expected[name].sel(obs_id=numbers))


def test_coarser_bins_are_sums_and_conserve_the_events(store, expected):
    coarse = as_edges({"energy": EDGES.energy[::5], "offset": EDGES.offset[[0, 2, 5]]})
    computed = loaded(store, expected.obs_id.values, 5, coarse).compute(scheduler="synchronous")
    assert computed.counts.shape == (12, 2, 2)
    assert_array_equal(computed.counts.sum(("energy", "offset")), expected.counts.sum(("energy", "offset")))
    sums = np.add.reduceat(np.add.reduceat(expected.exposure.values, [0, 5], axis=1), [0, 2], axis=2)
    assert_allclose(computed.exposure, sums, rtol=1e-12)


def test_loading_computes_nothing_and_knows_the_conditions_at_once(store, expected):
    with dask.config.set(scheduler=refuse):
        lazy = loaded(store, expected.obs_id.values, 5)
        assert_array_equal(lazy.zenith, expected.zenith)
        assert not dask.is_dask_collection(lazy.livetime.data)
        with pytest.raises(AssertionError, match="something was computed"):
            lazy.counts.compute()
    assert sum(key_split(key) == "load-runs" for key in keys_of(lazy.counts.data)) == 3


def test_a_task_loads_its_block_and_no_more(store, expected):
    lazy = loaded(store, expected.obs_id.values, 2)
    _, watch = watched(*lazy.counts.data.to_delayed().ravel().tolist())
    assert {shape[0] for shape in watch.shapes} == {2}


def test_a_store_that_is_gone_is_told(store, expected, tmp_path):
    lazy = load_runs(str(tmp_path / "no.zarr"), "", np.array([0]), {"obs_id": np.array([1])}, EDGES)
    with pytest.raises(ArchiveError, match=r"no\.zarr"):
        lazy.compute(scheduler="synchronous")
