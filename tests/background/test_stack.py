"""Sums over blocks of runs, and sums of sums."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from dask_bkg import selection
from dask_bkg.background.stack import add_stacks, stack_block

N_TARGETS, N_RUNS = 3, 12


@pytest.fixture
def runs():
    """Histograms of twelve runs, and which of them contribute to three targets; dense."""
    rng = np.random.default_rng(0)
    weights = rng.integers(0, 2, (N_TARGETS, N_RUNS)).astype(float)
    weights[:, 7] = [1, 0, 1]
    return {
        "weights": weights,
        "counts": rng.integers(0, 10**6, (N_RUNS, 4, 2)).astype(float),
        "exposure": rng.lognormal(3, 2, (N_RUNS, 4, 2)),
        "livetime": rng.uniform(1000, 1700, N_RUNS),
    }


def selections(weights, order=slice(None)):
    """Selections of the runs that have a weight, sparse; nearest first is in whatever order."""
    table = {"obs_id": np.arange(100, 100 + N_RUNS), "livetime": np.zeros(N_RUNS)}
    rows = []
    for row in weights:
        used = np.flatnonzero(row)[order]
        rows.append(selection.by_hand(1, used, table)._replace(weight=row[used]))
    return selection.pack(rows)


def part(runs, start, stop, **how):
    block = (runs[name][start:stop] for name in ("livetime", "counts", "exposure"))
    return stack_block(selections(runs["weights"], **how), start, *block)


def whole(runs, **how):
    return part(runs, 0, N_RUNS, **how)


def test_a_block_is_the_weighted_sum_of_its_runs(runs):
    stack, weights = whole(runs), runs["weights"]
    assert_array_equal(stack.counts, np.einsum("tr,reo->teo", weights, runs["counts"]))
    assert_allclose(stack.exposure, np.einsum("tr,reo->teo", weights, runs["exposure"]), rtol=1e-13)
    assert_allclose(stack.livetime, weights @ runs["livetime"])


def test_weights_between_0_and_1_are_in_the_sums_and_not_in_the_livetime(runs):
    runs["weights"] *= np.random.default_rng(1).uniform(0.01, 1, N_RUNS)
    stack = whole(runs)
    for name in ("counts", "exposure"):
        expected = np.einsum("tr,reo->teo", runs["weights"], runs[name])
        assert_allclose(getattr(stack, name), expected, rtol=1e-13)
    assert_allclose(stack.livetime, (runs["weights"] > 0) @ runs["livetime"])


@pytest.mark.parametrize("left_over", [0.0, np.nan, np.inf, 1e9])
def test_a_run_that_does_not_contribute_adds_nothing_whatever_its_histogram_holds(runs, left_over):
    runs["weights"][:, 7] = 0
    clean = whole(runs)
    for name in ("counts", "exposure", "livetime"):
        runs[name][7] = left_over
    spoilt = whole(runs)
    for name in ("counts", "exposure", "livetime"):
        assert_array_equal(getattr(spoilt, name), getattr(clean, name))


def test_the_order_of_a_selection_does_not_change_a_bit(runs):
    """Runs are added in the order of the archive, whichever is the nearest."""
    forth, back = whole(runs), whole(runs, order=slice(None, None, -1))
    for one, other in zip(forth, back, strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("blocks", [[0, 12], [0, 1, 12], [0, 5, 9, 12], list(range(13)), [0, 7, 8, 12]])
def test_any_grouping_gives_the_same_counts_bit_for_bit(runs, blocks):
    expected = whole(runs)
    summed = add_stacks([part(runs, start, stop) for start, stop in pairwise(blocks)])
    assert_array_equal(summed.counts, expected.counts)
    assert_allclose(summed.exposure, expected.exposure, rtol=1e-13)
    assert_allclose(summed.livetime, expected.livetime, rtol=1e-13)


def test_a_tree_of_sums_is_the_sum(runs):
    leaves = [part(runs, start, start + 3) for start in range(0, 12, 3)]
    tree = add_stacks([add_stacks(leaves[:2]), add_stacks(leaves[2:])])
    assert_array_equal(tree.counts, add_stacks(leaves).counts)


def test_the_same_grouping_gives_the_same_bits_of_exposure(runs):
    first, second = (add_stacks([part(runs, 0, 5), part(runs, 5, 12)]) for _ in range(2))
    assert first.exposure.tobytes() == second.exposure.tobytes()


def test_a_target_is_the_same_bits_alone_and_among_others(runs):
    together = whole(runs)
    for target in range(N_TARGETS):
        alone = whole(runs | {"weights": runs["weights"][[target]]})
        assert alone.exposure[0].tobytes() == together.exposure[target].tobytes()


def test_adding_leaves_the_parts_as_they_were(runs):
    first, second = part(runs, 0, 6), part(runs, 6, 12)
    before = first.counts.copy()
    add_stacks([first, second])
    assert_array_equal(first.counts, before)


def test_the_sum_of_one_is_itself(runs):
    one = whole(runs)
    for before, after in zip(one, add_stacks([one]), strict=True):
        assert_array_equal(before, after)


def test_a_target_without_runs_is_zero(runs):
    runs["weights"][1] = 0
    stack = whole(runs)
    assert not stack.counts[1].any()
    assert not stack.exposure[1].any()
    assert stack.livetime[1] == 0
    assert stack.counts[0].any()


@pytest.mark.parametrize(("targets", "size"), [(0, 12), (3, 0), (0, 0)])
def test_no_targets_or_no_runs_are_no_error(runs, targets, size):
    runs["weights"] = runs["weights"][:targets]
    stack = part(runs, 0, size)
    assert stack.counts.shape == stack.exposure.shape == (targets, 4, 2)
    assert stack.livetime.shape == (targets,)
    assert not stack.counts.any() or size
