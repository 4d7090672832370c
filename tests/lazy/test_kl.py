"""The matrix of divergences: SciPy's values, the same over all chunkings, and nothing computed before its time."""

from __future__ import annotations

import dask
import numpy as np
import pytest
from dask.utils import key_split
from helpers.synthetic import EDGES, FIRST, arrays_in, keys_of, make_runs, refuse, watched
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

import dask_bkg
from dask_bkg import schema, similarity
from dask_bkg.dl3.read import RunFile
from dask_bkg.lazy.kl import kl_matrix
from dask_bkg.lazy.runs import reduce_runs
from dask_bkg.reduction import reduce
from dask_bkg.similarity import ShapeSettings, flat_bins

DOCUMENT, SHAPE = ShapeSettings("document"), ShapeSettings()
N = 23


def shapes_of_the_document(runs):
    """Rates, normalised, plus 1e-9: formula by formula as the procedure has it."""
    rates = [np.nan_to_num(run.counts.values / run.exposure.values).ravel() for _, run in runs.groupby("obs_id")]
    return [rate / rate.sum() + 1e-9 for rate in rates]


def by_scipy(targets, runs):
    qs = shapes_of_the_document(runs)
    return np.array([[stats.entropy(p, q) for q in qs] for p in shapes_of_the_document(targets)])


def eager(targets, runs, settings):
    """Divergences without blocks and without a graph."""
    bins = [
        flat_bins(r.counts.values, r.exposure.values, r.ontime.values, schema.edges_of(r), settings)
        for r in (targets, runs)
    ]
    prior = None if settings.method == "document" else similarity.fit_prior(*bins[1], settings)
    p = similarity.as_targets(*bins[0], None, prior, settings)
    return similarity.kl_block(p, similarity.as_references(*bins[1], prior, settings))


@pytest.fixture(scope="module")
def runs():
    return make_runs(N)


@pytest.fixture(scope="module")
def refs():
    others = make_runs(17, seed=1)
    return others.assign_coords(obs_id=others.obs_id + 1000)


# -- values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 4, 7, 22, N, 50, None])
@pytest.mark.slow
def test_under_the_document_it_is_scipys_entropy_over_all_chunkings(runs, block):
    kl = kl_matrix(runs, settings=DOCUMENT, block=block).compute(scheduler="synchronous")
    assert_allclose(kl.values, by_scipy(runs, runs), rtol=0, atol=1e-12)
    assert kl.values.max() > 0.1
    assert_allclose(np.diag(kl), 0, atol=1e-12)


@pytest.mark.parametrize("block", [3, 10, None])
def test_of_some_runs_from_others(runs, refs, block):
    kl = kl_matrix(runs, refs, settings=DOCUMENT, block=block)
    assert kl.dims == ("obs_id", "obs_id_ref")
    assert kl.shape == (N, 17)
    assert kl.obs_id.values.tolist() == list(range(FIRST, FIRST + N))
    assert kl.obs_id_ref.values.tolist() == refs.obs_id.values.tolist()
    assert_allclose(kl.compute(scheduler="synchronous").values, by_scipy(runs, refs), rtol=0, atol=1e-12)


def test_it_is_not_symmetric_and_the_run_comes_first(runs):
    kl = kl_matrix(runs, settings=DOCUMENT).compute(scheduler="synchronous")
    p, q = (shapes_of_the_document(runs)[i] for i in (3, 8))
    forth, back = kl.sel(obs_id=FIRST + 3, obs_id_ref=FIRST + 8), kl.sel(obs_id=FIRST + 8, obs_id_ref=FIRST + 3)
    assert float(forth) == pytest.approx(stats.entropy(p, q), abs=1e-12)
    assert abs(float(forth) - float(back)) > 1e-4


@pytest.mark.parametrize("settings", [DOCUMENT, SHAPE, ShapeSettings(prior=300.0, components=0)])
@pytest.mark.parametrize("block", [1, 6, 20, None])
@pytest.mark.slow
def test_blocks_give_what_the_whole_gives(runs, refs, settings, block):
    for others in (None, refs):
        kl = kl_matrix(runs, others, settings=settings, block=block).compute(scheduler="synchronous")
        expected = eager(runs, runs if others is None else others, settings)
        # the family of shapes is found by steps that end somewhere near: selections round to 1e-10
        assert_allclose(kl.values, expected, rtol=0, atol=1e-12 if settings == DOCUMENT else 3e-11)
    assert kl.attrs["method"] == settings.method


def test_the_prior_is_that_of_the_runs_that_may_contribute(runs, refs):
    """A target does not change what the others are compared with: one alone has the same row as among many."""
    whole = kl_matrix(runs, refs).compute(scheduler="synchronous")
    alone = kl_matrix(runs.isel(obs_id=[5]), refs).compute(scheduler="synchronous")
    assert_allclose(alone.values[0], whole.values[5], rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunks", [{"obs_id": 9}, {"obs_id": (1, 2, 20)}, {"obs_id": 5, "energy": 2, "offset": 3}])
@pytest.mark.slow
def test_runs_may_be_chunked_as_they_like(runs, chunks):
    whole = runs.assign({name: runs[name].chunk(chunks) for name in schema.HISTOGRAMS})
    kl = kl_matrix(whole, settings=DOCUMENT)
    assert_allclose(kl.compute(scheduler="synchronous").values, by_scipy(runs, runs), rtol=0, atol=1e-12)
    assert kl.chunks[0] == kl.chunks[1]


def test_a_run_without_events_is_far_from_all_and_never_nan(runs):
    empty = runs.copy(deep=True)
    empty["counts"][4] = 0
    for settings in (DOCUMENT, SHAPE):
        kl = kl_matrix(empty, settings=settings, block=6).compute(scheduler="synchronous")
        assert not np.isnan(kl).any()
        assert np.isinf(kl.values[:, 4]).all()
        assert np.isfinite(np.delete(np.delete(kl.values, 4, 0), 4, 1)).all()


def test_the_same_bits_on_threads_and_in_one(runs):
    lazy = kl_matrix(runs, block=4)
    assert (
        lazy.compute(scheduler="threads").values.tobytes() == lazy.compute(scheduler="synchronous").values.tobytes()
    )


# -- the graph -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [None, 6])
@pytest.mark.parametrize("settings", [DOCUMENT, SHAPE])
def test_building_computes_nothing(block, settings):
    with dask.config.set(scheduler=refuse):
        kl = kl_matrix(make_runs(20, block=block), make_runs(10, block=block), settings=settings, block=5)
        assert dask.is_dask_collection(kl)
        with pytest.raises(AssertionError, match="something was computed"):
            kl.compute()


def test_building_reads_no_event_file():
    """Also where not only the histograms but all per-run numbers are lazy."""
    runs = reduce_runs([RunFile(i, f"nowhere/{i}.fits") for i in range(30)], EDGES, batch=10)
    with dask.config.set(scheduler=refuse):
        assert kl_matrix(runs, block=10).chunks == ((10, 10, 10), (10, 10, 10))


def test_straight_from_event_files_each_is_read_once(archive, monkeypatch):
    directory, truth = archive
    files = [RunFile(r.obs_id, str(directory / "data" / f"run_{r.obs_id:06d}.fits.gz")) for r in truth.runs]
    read, read_run = [], reduce.read_run

    def note(file, **options):
        read.append(file.obs_id)
        return read_run(file, **options)

    expected = eager(*[reduce.reduce_block(files, EDGES, None, "geometry", "disc")] * 2, SHAPE)
    monkeypatch.setattr(reduce, "read_run", note)
    kl = kl_matrix(reduce_runs(files, EDGES, batch=5)).compute(scheduler="synchronous")
    assert sorted(read) == [file.obs_id for file in files]
    assert_allclose(kl.values, expected, rtol=0, atol=1e-12)


def test_chunks_in_both_directions(runs, refs):
    assert kl_matrix(runs, block=10).chunks == ((10, 10, 3), (10, 10, 3))
    assert kl_matrix(runs, refs, block=6).chunks == ((6, 6, 6, 5), (6, 6, 5))
    # chunks of a run store are made for reading, and small
    for chunk, sizes in ((None, (50, 50, 20)), (8, (50, 50, 20)), (100, (100, 20))):
        assert kl_matrix(make_runs(120, block=chunk)).chunks == (sizes, sizes)


def test_names_on_the_dashboard(runs):
    names = {key_split(key) for key in keys_of(kl_matrix(runs, block=5))}
    assert {"flat-bins", "shape-of-targets", "shape-of-runs", "kl-divergence"} <= names


def test_no_task_holds_more_than_a_block_of_the_matrix():
    runs = make_runs(200, block=25)
    _, watch = watched(*kl_matrix(runs, block=25).data.to_delayed().ravel().tolist())
    assert (25, 25) in watch.shapes
    assert max(np.prod(shape, dtype=int) for shape in watch.shapes) <= 30 * 30  # bins x bins, of the prior


def test_the_tasks_hold_no_object_of_xarray(runs):
    """Arrays and numbers travel to the workers."""
    lazy = kl_matrix(runs, block=5)
    with dask.config.set(scheduler="synchronous"):
        values = dask.get(dict(lazy.data.__dask_graph__()), lazy.data.__dask_keys__()[0])
    assert all(isinstance(value, np.ndarray) for value in values)
    assert len(arrays_in(list(values))) == 5


# -- what it refuses -------------------------------------------------------------------------------------------


def test_what_is_no_dataset_of_runs_is_told(runs):
    with pytest.raises(ValueError, match="no variable 'exposure'"):
        kl_matrix(runs.drop_vars("exposure"))
    with pytest.raises(ValueError, match="accepted are shape and document"):
        kl_matrix(runs, settings=ShapeSettings("shapes")).compute(scheduler="synchronous")


def test_it_is_public(runs):
    assert dask_bkg.kl_matrix is kl_matrix
    assert_array_equal(dask_bkg.kl_matrix(runs).obs_id, runs.obs_id)
