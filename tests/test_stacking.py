"""Sums over blocks of runs, and sums of sums."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from dask_bkg.stacking import Stack, add_stacks, stack_block

N_TARGETS, N_RUNS = 3, 12


@pytest.fixture
def runs():
    """Weights and columns of twelve runs for three targets; run 107 could not be reduced."""
    rng = np.random.default_rng(0)
    error = np.full(N_RUNS, "", dtype="U40")
    error[7] = "no GTI in run 107"
    weights = rng.integers(0, 2, (N_TARGETS, N_RUNS)).astype(float)
    weights[:, 7] = [1, 0, 1]
    counts = rng.integers(0, 10**6, (N_RUNS, 4, 2)).astype(float)
    return {
        "weights": weights,
        "obs_id": np.arange(100, 100 + N_RUNS),
        "counts": counts,
        "exposure": rng.lognormal(3, 2, (N_RUNS, 4, 2)),
        "livetime": rng.uniform(1000, 1700, N_RUNS),
        "error": error,
        "note": np.where(np.arange(N_RUNS) == 3, "2 of 9 events left out", ""),
    }


def part(runs, start, stop):
    block = {name: column[start:stop] for name, column in runs.items()}
    return stack_block(**(block | {"weights": runs["weights"][:, start:stop]}))


def good(runs):
    return runs["weights"] * (runs["error"] == "")


def test_a_block_is_the_weighted_sum_of_its_good_runs(runs):
    stack = stack_block(**runs)
    weights = good(runs)
    assert_array_equal(stack.counts, np.einsum("tr,reo->teo", weights, runs["counts"]))
    assert_allclose(stack.exposure, np.einsum("tr,reo->teo", weights, runs["exposure"]), rtol=1e-13)
    assert_allclose(stack.livetime, weights @ runs["livetime"])
    assert_array_equal(stack.n_runs, weights.sum(axis=1))


@pytest.mark.parametrize("left_over", [0.0, np.nan, 1e9])
def test_a_run_that_failed_adds_nothing_whatever_its_histogram_holds(runs, left_over):
    clean = stack_block(**runs)
    for name in ("counts", "exposure", "livetime"):
        runs[name][7] = left_over
    spoilt = stack_block(**runs)
    for name in ("counts", "exposure", "livetime", "n_runs"):
        assert_array_equal(getattr(spoilt, name), getattr(clean, name))


def test_the_reason_of_a_failed_run_reaches_the_targets_that_wanted_it_and_no_other(runs):
    assert stack_block(**runs).errors == [{107: "no GTI in run 107"}, {}, {107: "no GTI in run 107"}]


@pytest.mark.parametrize("blocks", [[0, 12], [0, 1, 12], [0, 5, 9, 12], list(range(13)), [0, 7, 8, 12]])
def test_any_grouping_gives_the_same_counts_bit_for_bit(runs, blocks):
    whole = stack_block(**runs)
    summed = add_stacks([part(runs, start, stop) for start, stop in pairwise(blocks)])
    assert_array_equal(summed.counts, whole.counts)
    assert_array_equal(summed.n_runs, whole.n_runs)
    assert_allclose(summed.exposure, whole.exposure, rtol=1e-13)
    assert_allclose(summed.livetime, whole.livetime, rtol=1e-13)
    assert summed.errors == whole.errors


def test_a_tree_of_sums_is_the_sum(runs):
    leaves = [part(runs, start, start + 3) for start in range(0, 12, 3)]
    tree = add_stacks([add_stacks(leaves[:2]), add_stacks(leaves[2:])])
    assert_array_equal(tree.counts, add_stacks(leaves).counts)
    assert tree.errors == add_stacks(leaves).errors


def test_the_same_grouping_gives_the_same_bits_of_exposure(runs):
    blocks = [part(runs, 0, 5), part(runs, 5, 12)]
    assert_array_equal(add_stacks(blocks).exposure, add_stacks([part(runs, 0, 5), part(runs, 5, 12)]).exposure)


def test_adding_leaves_the_parts_as_they_were(runs):
    first, second = part(runs, 0, 6), part(runs, 6, 12)
    before = first.counts.copy(), [dict(errors) for errors in first.errors]
    add_stacks([first, second])
    assert_array_equal(first.counts, before[0])
    assert first.errors == before[1]


def test_errors_of_several_blocks_are_joined():
    empty = np.zeros((2, 1, 1))
    stacks = [
        Stack(empty, empty, np.zeros(2), np.zeros(2), errors, [{}, {}])
        for errors in ([{1: "a"}, {}], [{2: "b"}, {3: "c"}], [{}, {}])
    ]
    assert add_stacks(stacks).errors == [{1: "a", 2: "b"}, {3: "c"}]


def test_the_sum_of_one_is_itself(runs):
    one = stack_block(**runs)
    same = add_stacks([one])
    assert_array_equal(same.counts, one.counts)
    assert same.errors == one.errors


def test_a_target_without_runs_is_zero(runs):
    runs["weights"][1] = 0
    stack = stack_block(**runs)
    assert not stack.counts[1].any()
    assert (stack.n_runs[1], stack.livetime[1]) == (0, 0)


def test_weights_between_0_and_1_count_as_one_run(runs):
    runs["weights"] = runs["weights"] * 0.25
    stack = stack_block(**runs)
    assert_allclose(stack.counts, np.einsum("tr,reo->teo", good(runs), runs["counts"]))
    assert_array_equal(stack.n_runs, (good(runs) > 0).sum(axis=1))


def test_the_note_of_a_run_reaches_the_targets_that_it_contributes_to(runs):
    runs["weights"][:, 3] = [0, 1, 1]
    note = {103: "2 of 9 events left out"}
    assert stack_block(**runs).notes == [{}, note, note]
    assert add_stacks([part(runs, 0, 6), part(runs, 6, 12)]).notes == [{}, note, note]
