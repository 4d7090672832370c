"""Counts, exposure, stack and Kullback-Leibler divergence against NumPy, SciPy and closed formulas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal
from scipy import special, stats

from dask_bkg.background.stack import sparse, stack
from dask_bkg.reduction import counts as kernels
from dask_bkg.similarity.divergence import kl_divergence

EDGES = np.array([0.1, 0.3, 1.0, 2.5, 10.0])
# Values on edges, and beside them by one bit, are where the bins of two programs may differ.
ON_EDGES = st.sampled_from([*EDGES, *np.nextafter(EDGES, 0), *np.nextafter(EDGES, 99)])
ANY_VALUE = st.one_of(ON_EDGES, st.floats(allow_nan=True, allow_infinity=True))


@given(st.lists(ANY_VALUE, max_size=60))
def test_digitize_counts_as_numpys_histogram(values):
    values = np.array(values)
    bins = kernels.digitize(values, EDGES)
    expected = np.histogram(values[np.isfinite(values)], EDGES)[0]
    assert_array_equal(np.bincount(bins[bins >= 0], minlength=4), expected)
    assert_array_equal(bins[~np.isfinite(values)], -1)


def test_digitize_bins_are_half_open_but_the_last():
    assert_array_equal(kernels.digitize(EDGES, EDGES), [0, 1, 2, 3, 3])


def test_digitize_keeps_the_shape():
    assert kernels.digitize(np.ones((2, 3)), EDGES).shape == (2, 3)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(0, 500))
def test_count_events_is_numpys_histogram2d(seed, n):
    rng = np.random.default_rng(seed)
    energy, offset = rng.uniform(0, 12, n), rng.choice([0.0, 0.5, 1.0, 2.0, 3.0, np.nan], n)
    rings = np.array([0.0, 0.5, 1.0, 2.0])
    counts = kernels.count_events(kernels.digitize(energy, EDGES), kernels.digitize(offset, rings), 4, 3)
    good = np.isfinite(offset)
    assert_array_equal(counts, np.histogram2d(energy[good], offset[good], (EDGES, rings))[0])


def test_count_events_needs_both_bins():
    counts = kernels.count_events(np.array([0, 0, -1, 1]), np.array([2, -1, 1, 0]), 2, 3)
    assert_array_equal(counts, [[0, 0, 1], [1, 0, 0]])


def test_count_events_without_events_is_zero_in_every_bin():
    none = np.array([], dtype=int)
    counts = kernels.count_events(none, none, 2, 3)
    assert counts.shape == (2, 3)
    assert not counts.any()


def test_exposure_is_ontime_times_width_times_open_solid_angle():
    result = kernels.exposure(1600.0, [0.5, 1.0, 4.0], [2e-4, 6e-4], [1.0, 0.25])
    expected = 1600 * np.outer([0.5, 3.0], [2e-4 * 1.0, 6e-4 * 0.25])
    assert_allclose(result, expected, rtol=1e-14)


def test_exposure_of_a_closed_ring_is_zero():
    assert_array_equal(kernels.exposure(100.0, [1, 2, 3], [1e-3, 1e-3], [0.0, 1.0])[:, 0], 0)


def test_event_ratio_is_the_documents_formula():
    rng = np.random.default_rng(0)
    ring, kept = rng.integers(-1, 4, 300), rng.random(300) < 0.8
    edges = np.arange(5) - 0.5
    counts_all = np.histogram(ring, edges)[0] + 1e-9
    counts_exc = np.histogram(ring[kept], edges)[0] + 1e-9
    assert_allclose(kernels.event_ratio(ring, kept, 4), counts_exc / counts_all, rtol=1e-12)


@pytest.mark.parametrize(
    ("ring", "kept", "expected"),
    [([], [], [1.0, 1.0]), ([1, 1], [True, False], [1.0, 0.5]), ([0, 0], [False, False], [0.0, 1.0])],
)
def test_event_ratio_of_rings_without_or_with_excluded_events_only(ring, kept, expected):
    result = kernels.event_ratio(np.array(ring, dtype=int), np.array(kept, dtype=bool), 2)
    assert_allclose(result, expected, atol=1e-9)
    assert (result > 0).all()


def field_with_source(n_source, seed=3):
    """Ring and excluded-flag of a flat background of 3000 events in three rings, and of a source in ring 0."""
    rng = np.random.default_rng(seed)
    ring = rng.integers(0, 3, 3000)
    excluded = (ring == 0) & (rng.random(3000) < 0.3)
    ring = np.concatenate([ring, np.zeros(n_source, dtype=int)])
    return ring, np.concatenate([excluded, np.ones(n_source, dtype=bool)])


def ring_rate(ring, excluded, fraction):
    counts = kernels.count_events(np.where(excluded, -1, 0), ring, 1, 3)
    return counts / kernels.exposure(1000.0, [1.0, 2.0], np.full(3, 1e-3), fraction)


@pytest.mark.parametrize("n_source", [300, 9000])
def test_a_source_inside_the_exclusion_leaves_the_geometric_rate_bit_for_bit(n_source):
    geometry = np.array([0.7, 1.0, 1.0])
    dark = ring_rate(*field_with_source(0), geometry)
    assert_array_equal(ring_rate(*field_with_source(n_source), geometry), dark)
    assert_allclose(dark / dark.mean(), 1, atol=0.1)  # flat, as it was made


@pytest.mark.parametrize("n_source", [300, 9000])
def test_the_event_ratio_cancels_the_exclusion(n_source):
    """Kept / (T Omega kept / all) = all / (T Omega): the source is back in the rate of its ring."""
    ring, excluded = field_with_source(n_source)
    rate = ring_rate(ring, excluded, kernels.event_ratio(ring, ~excluded, 3))
    assert_allclose(rate, ring_rate(ring, np.zeros_like(excluded), np.ones(3)), rtol=1e-6)
    dark = ring_rate(*field_with_source(0), np.array([0.7, 1.0, 1.0]))
    assert rate[0, 0] / dark[0, 0] == pytest.approx(1 + n_source / 1000, rel=0.1)


def test_flat_solid_angle_is_two_pi_offset_d_offset():
    edges = np.array([0.0, 0.5, 1.5, 2.5])
    expected = 2 * np.pi * np.deg2rad([0.25, 1.0, 2.0]) * np.deg2rad([0.5, 1.0, 1.0])
    assert_allclose(kernels.flat_solid_angle(edges), expected, rtol=1e-14)


def test_flat_solid_angle_is_nearly_the_sphere():
    edges = np.linspace(0, 2.5, 11)
    assert_allclose(kernels.flat_solid_angle(edges), -2 * np.pi * np.diff(np.cos(np.deg2rad(edges))), rtol=1e-3)


def as_sparse(weights):
    """A matrix without its zeros."""
    row, column = np.nonzero(weights)
    return sparse(row, column, weights[row, column], weights.shape)


def test_a_sparse_matrix_is_its_entries_and_adds_up_those_given_twice():
    row, column = np.array([1, 0, 1, 1]), np.array([3, 0, 1, 3])
    matrix = sparse(row, column, np.array([1.0, 2.0, 4.0, 8.0]), (3, 4))
    assert_array_equal(matrix.toarray(), [[2, 0, 0, 0], [0, 4, 0, 9], [0, 0, 0, 0]])


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 3, 2)])
def test_stack_is_the_weighted_sum_over_runs(shape):
    rng = np.random.default_rng(4)
    weights, histograms = rng.random((4, 5)), rng.random(shape)
    expected = np.einsum("tr,r...->t...", weights, histograms)
    assert_allclose(stack(as_sparse(weights), histograms), expected, rtol=1e-13)


def test_stack_of_counts_with_weights_of_0_and_1_is_exact():
    rng = np.random.default_rng(5)
    weights, counts = rng.integers(0, 2, (6, 20)).astype(float), rng.integers(0, 10**6, (20, 7, 3)).astype(float)
    expected = np.stack([counts[row > 0].sum(axis=0) for row in weights])
    assert_array_equal(stack(as_sparse(weights), counts), expected)
    assert_array_equal(stack(as_sparse(weights), counts.astype(np.uint32)), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_run_without_an_entry_may_hold_anything(bad):
    histograms = np.array([[1.0, 2.0], [bad, bad], [3.0, 4.0]])
    result = stack(as_sparse(np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])), histograms)
    assert_array_equal(result, [[4.0, 6.0], [0.0, 0.0]])


def test_a_bad_run_that_is_used_is_not_hidden():
    assert np.isnan(stack(as_sparse(np.array([[1.0, 1.0]])), np.array([1.0, np.nan]))[0])


def test_stack_of_one_target_is_the_same_bits_as_that_of_many():
    rng = np.random.default_rng(6)
    weights, exposure = rng.random((9, 30)), rng.lognormal(5, 3, (30, 6, 4))
    together = stack(as_sparse(weights), exposure)
    for target in range(9):
        assert_array_equal(stack(as_sparse(weights[target : target + 1]), exposure)[0], together[target])


def test_the_order_in_which_entries_are_given_changes_no_bit():
    rng = np.random.default_rng(7)
    run, value, exposure = np.arange(30), rng.random(30), rng.lognormal(5, 3, (30, 4))
    order, row = rng.permutation(30), np.zeros(30, dtype=int)
    first, second = (stack(sparse(row, run[i], value[i], (1, 30)), exposure) for i in (slice(None), order))
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("shape", [(0, 3, 2), (0,)])
def test_a_stack_of_no_runs_is_zero(shape):
    assert_array_equal(stack(as_sparse(np.zeros((4, 0))), np.zeros(shape)), np.zeros((4, *shape[1:])))


def probabilities(shape, floor=1e-6):
    return hnp.arrays(float, shape, elements=st.floats(floor, 1.0)).map(lambda values: values / values.sum())


@given(probabilities((4, 3)), probabilities((4, 3)))
def test_kl_divergence_is_scipys(p, q):
    result = kl_divergence(p, q)
    assert isinstance(result, float)
    assert result == pytest.approx(stats.entropy(p.ravel(), q.ravel()), abs=1e-12)
    assert result > -1e-12


# Not down to 1e-308: there p / q itself underflows, in the document's formula too.
@given(
    hnp.arrays(float, 8, elements=st.one_of(st.just(0.0), st.floats(1e-200, 5))),
    hnp.arrays(float, 8, elements=st.floats(1e-3, 5)),
)
def test_kl_divergence_takes_the_arrays_as_they_are(p, q):
    assert kl_divergence(p, q) == pytest.approx(special.rel_entr(p, q).sum(), rel=1e-12, abs=1e-12)


def test_kl_divergence_of_gaussians_has_the_closed_form():
    x = np.linspace(-15, 15, 6001)
    p, q = stats.norm(0, 1).pdf(x) * 0.005, stats.norm(0.5, 1.5).pdf(x) * 0.005
    expected = np.log(1.5) + (1 + 0.25) / (2 * 1.5**2) - 0.5
    assert kl_divergence(p, q) == pytest.approx(expected, rel=1e-6)


def test_kl_divergence_is_zero_for_equal_and_not_symmetric():
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.1, 0.8])
    assert kl_divergence(p, p) == 0
    assert kl_divergence(p, q) != pytest.approx(kl_divergence(q, p), rel=0.01)


@pytest.mark.parametrize("q", [[0.0, 1.0], [0.5, 0.5]])
def test_zero_log_zero_is_zero(q):
    assert kl_divergence([0.0, 1.0], q) == pytest.approx(-np.log(q[1]))


@pytest.mark.filterwarnings("error")
def test_kl_divergence_is_infinite_where_the_second_is_zero_and_the_first_not():
    assert kl_divergence([0.5, 0.5], [1.0, 0.0]) == np.inf


@pytest.mark.parametrize(("first", "second"), [((4, 3), (3, 4)), ((4, 3), (3,)), ((3,), ())])
def test_kl_divergence_refuses_different_shapes(first, second):
    with pytest.raises(ValueError, match="shape"):
        kl_divergence(np.ones(first), np.ones(second))
