"""Stacks through the graph: sums run by run, the same over all blocks and trees, and the same bits everywhere."""

from __future__ import annotations

import dask
import numpy as np
import pytest
from dask.utils import key_split
from distributed import Client, LocalCluster
from helpers.synthetic import (
    EDGES,
    FIRST,
    blocks_of,
    dataset,
    keys_of,
    lazy_array,
    make_runs,
    refuse,
    settings,
    watched,
)
from numpy.testing import assert_allclose, assert_array_equal

from dask_bkg import schema, selection
from dask_bkg.background.estimate import RateSettings
from dask_bkg.background.irf import rate_to_background
from dask_bkg.background.stack import Stack
from dask_bkg.lazy.layers import Layers
from dask_bkg.lazy.select import select_runs
from dask_bkg.lazy.stack import own_stacks, stack_fields, stack_runs

N = 60
LISTS = {
    FIRST: [FIRST],
    FIRST + 1: [FIRST + 59, FIRST + 4, FIRST + 30],
    FIRST + 2: list(range(FIRST, FIRST + N)),
    FIRST + 3: [],
    FIRST + 4: [FIRST + 20, FIRST + 21],
}
BLOCKS = [(1, 1, 2), (7, 2, 2), (7, 5, 8), (25, 3, 3), (60, 5, 8)]


def blocked(runs, block):
    histograms = {name: runs[name].values for name in schema.HISTOGRAMS}
    return dataset(
        histograms, {name: runs[name].values for name in ("obs_id", "livetime")}, schema.edges_of(runs), block
    )


def selections(runs, lists=LISTS, size=5, weights=None):
    """Delayed selections of blocks of targets."""
    table = {name: runs[name].values for name in ("obs_id", "livetime")}
    given = selection.given(lists, table)
    if weights is not None:
        given = {run: one._replace(weight=weights[one.run]) for run, one in given.items()}
    numbers = blocks_of(np.array(list(lists)), size)
    packed = [selection.pack([given[run] for run in part.tolist()]) for part in numbers]
    layers = Layers()
    return layers.delayed(layers.values("given", packed))


@pytest.fixture(scope="module")
def runs():
    return make_runs(N)


def stacked(runs, block, size, split_every=8, **how):
    return stack_runs(blocked(runs, block), selections(runs, size=size, **how), split_every=split_every)


def computed(stacks, **how) -> Stack:
    """The stacks of all targets as one."""
    return joined(dask.compute(*stacks, **{"scheduler": "synchronous", **how}))


def joined(parts) -> Stack:
    return Stack(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def identical(one: Stack, other: Stack) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))


# -- values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("block", "size", "split_every"), BLOCKS)
def test_stacks_are_sums_over_the_runs_of_a_list(runs, block, size, split_every):
    stacks = computed(stacked(runs, block, size, split_every))
    assert len(stacks.counts) == len(LISTS)
    for i, listed in enumerate(LISTS.values()):
        mine = np.array(listed, dtype=int) - FIRST
        assert_array_equal(stacks.counts[i], runs.counts.values[mine].sum(axis=0))
        assert_allclose(stacks.exposure[i], runs.exposure.values[mine].sum(axis=0), rtol=1e-12)
        assert_allclose(stacks.livetime[i], runs.livetime.values[mine].sum(), rtol=1e-12)


@pytest.mark.parametrize(("block", "size", "split_every"), BLOCKS)
def test_weights_are_in_counts_and_exposure_and_not_in_the_livetime(runs, block, size, split_every):
    weights = np.random.default_rng(1).uniform(0.01, 1, N)
    stacks = computed(stacked(runs, block, size, split_every, weights=weights))
    for i, listed in enumerate(LISTS.values()):
        mine = np.array(listed, dtype=int) - FIRST
        for name in schema.HISTOGRAMS:
            expected = np.einsum("r,reo->eo", weights[mine], runs[name].values[mine])
            assert_allclose(getattr(stacks, name)[i], expected, rtol=1e-12)
        assert_allclose(stacks.livetime[i], runs.livetime.values[mine].sum(), rtol=1e-12)


@pytest.mark.parametrize(("block", "size"), [(1, 1), (7, 2), (25, 3), (60, 5)])
def test_the_stacks_of_one_task_are_those_of_a_tree(runs, block, size):
    """Counts are few enough for small numbers: they do not overflow when they are added up."""
    weights = np.random.default_rng(1).uniform(0.01, 1, N)
    small = runs.assign(counts=runs.counts.astype(np.uint16))
    assert (small.counts == runs.counts).all()
    fields = computed(stack_fields(blocked(small, block), selections(runs, size=size, weights=weights)))
    tree = computed(stacked(runs, block, size, weights=weights))
    for mine, theirs in zip(fields, tree, strict=True):
        assert_allclose(mine, theirs, rtol=1e-12)


def test_counts_are_conserved(runs):
    """Every run in exactly one stack: all events are there, each once."""
    lists = {FIRST + i: list(range(FIRST + i, FIRST + N, 6)) for i in range(6)}
    stacks = computed(stacked(runs, 7, 4, lists=lists))
    assert stacks.counts.sum() == runs.counts.values.sum()
    assert_array_equal(stacks.counts.sum(axis=0), runs.counts.sum("obs_id"))


def test_a_run_that_is_not_used_may_hold_anything(runs):
    spoilt = runs.copy(deep=True)
    used = {*LISTS[FIRST + 1], *LISTS[FIRST + 4]}
    for name in ("counts", "exposure", "livetime"):
        spoilt[name].values[[i for i in range(N) if FIRST + i not in used]] = np.nan
    lists = {run: LISTS[run] for run in (FIRST + 1, FIRST + 4)}
    clean, other = (computed(stacked(r, 7, 2, lists=lists)) for r in (runs, spoilt))
    assert identical(clean, other)


def test_a_bin_that_a_run_did_not_see_takes_nothing_from_it(runs):
    """Neither events nor exposure: the rate there is that of the runs that saw it."""
    closed = runs.copy(deep=True)
    for name in schema.HISTOGRAMS:
        closed[name].values[20, :, 2:] = 0
    lists = {FIRST: [FIRST + 20, FIRST + 21]}
    stack = computed(stacked(closed, 7, 1, lists=lists))
    for name in schema.HISTOGRAMS:
        assert_array_equal(getattr(stack, name)[0, :, 2:], closed[name].values[21, :, 2:])


def test_livetime_may_be_lazy(runs):
    """As of runs straight from their event files."""
    chosen = selections(runs)
    lazy = blocked(runs, 20)
    livetime = lazy_array("livetime", runs.livetime.values, 20)
    with dask.config.set(scheduler=refuse):
        stacks = stack_runs(lazy.assign_coords(livetime=("obs_id", livetime)), chosen)
    assert identical(computed(stacks), computed(stack_runs(lazy, chosen)))


# -- selected by the graph itself ------------------------------------------------------------------------------


def job(runs, block, split_every, **section):
    lazy = make_runs(N, block=block)
    chosen = select_runs(lazy, lazy, settings(**section), split_every=split_every)
    return stack_runs(lazy, chosen, split_every=split_every)


@pytest.mark.parametrize("rank", ["none", "elevation", "kl", "conditions", "kl-conditions"])
@pytest.mark.slow
def test_blocks_and_trees_change_no_count_and_nothing_else_beyond_rounding(runs, rank):
    section = {"rank": rank, "time_request": 3}
    expected = computed(job(runs, 60, 8, **section))
    for block, split_every in ((5, 2), (11, 8), (30, 3)):
        stacks = computed(job(runs, block, split_every, **section))
        if "conditions" not in rank:
            assert stacks.counts.tobytes() == expected.counts.tobytes()
        for name in ("counts", "exposure", "livetime"):
            assert_allclose(getattr(stacks, name), getattr(expected, name), rtol=1e-12)
    assert (expected.counts > 0).any()


def rates(stacks) -> bytes:
    made = [
        rate_to_background(counts, exposure, EDGES, RateSettings(smooth_sigma=0.5))
        for counts, exposure in zip(stacks.counts[:6], stacks.exposure[:6], strict=True)
    ]
    return b"".join(background.quantity.value.tobytes() + flag.tobytes() for background, flag in made)


@pytest.mark.parametrize("rank", ["elevation", "kl", "kl-conditions"])
@pytest.mark.slow
def test_rates_are_the_same_bits_wherever_they_are_made(runs, rank):
    stacks = job(runs, 13, 2, rank=rank, time_request=3)
    one = computed(stacks)
    threads = computed(stacks, scheduler="threads", num_workers=2)
    assert identical(threads, one)
    assert rates(threads) == rates(one)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        distributed = joined(client.gather(client.compute(stacks)))
    assert identical(distributed, one)
    assert rates(distributed) == rates(one)


# -- the graph -------------------------------------------------------------------------------------------------


def test_building_computes_nothing(runs):
    chosen = selections(runs)
    lazy = blocked(runs, 20)
    with dask.config.set(scheduler=refuse):
        stacks = stack_runs(lazy, chosen)
        with pytest.raises(AssertionError, match="something was computed"):
            stacks[0].compute()
    assert all(dask.is_dask_collection(stack) for stack in stacks)


def test_each_block_of_targets_is_a_stack(runs):
    stacks = dask.compute(*stacked(runs, 20, 2), scheduler="synchronous")
    assert [stack.counts.shape for stack in stacks] == [(2, 6, 5), (2, 6, 5), (1, 6, 5)]
    assert [stack.livetime.shape for stack in stacks] == [(2,), (2,), (1,)]


def test_a_target_is_its_own_stack(runs):
    own = computed(own_stacks(blocked(runs, 20)))
    for name in ("counts", "exposure", "livetime"):
        assert_array_equal(getattr(own, name), runs[name].values)
    assert_array_equal(own.squares, runs.counts.values.sum(axis=2))


def test_names_on_the_dashboard(runs):
    assert {"stack-blocks", "stack-runs"} <= {key_split(key) for key in keys_of(*stacked(runs, 7, 2))}


def test_no_task_holds_more_than_its_blocks():
    """Stacks of all targets are as large as the archive; a task holds those of a block."""
    n, block = 400, 40
    runs = make_runs(n, block=block)
    chosen = select_runs(runs, runs, settings(rank="elevation", time_request=2))
    _, watch = watched(*stack_runs(runs, chosen))
    assert max(np.prod(shape, dtype=int) for shape in watch.shapes) <= block * 30
    # the histograms themselves, those of the stacks, one row of pairs, and some candidates
    assert watch.most < 6 * n * 30 * 8
