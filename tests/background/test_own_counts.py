"""A run's own counts: less variance and no bias where its truth is known, and nothing from inside the exclusion."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from dask_bkg.background.estimate import RateSettings
from dask_bkg.background.model import Model, RunMetadata, stacked_rate
from dask_bkg.background.own_counts import own_factors
from dask_bkg.background.stack import Stack
from dask_bkg.background.target import Target
from dask_bkg.binning import Edges
from dask_bkg.selection import by_hand

SEEN = np.ones(10, dtype=bool)
EXPECTED = 2000 * np.geomspace(1, 0.01, 10)
NONE = np.zeros(10)


def skies(scatter, n=400, seed=1, slope=0.0):
    """True factors of runs about their stack, a gamma distribution of this scatter, and their counts."""
    rng = np.random.default_rng(seed)
    prior = 1 / scatter**2
    truth = rng.gamma(prior, 1 / prior, (n, 1)) * np.ones(10)
    if slope:
        truth = truth * rng.gamma(1 / slope**2, slope**2, (n, 10))
    return truth, rng.poisson(truth * EXPECTED)


def test_the_factor_is_the_mean_of_the_posterior():
    own = own_factors(np.full(10, 30.0), np.full(10, 20.0), NONE, SEEN, "level", 50.0)
    assert own.level == pytest.approx((350 / 250, 350**-0.5))
    assert_allclose(own.energies, 1.4)
    own = own_factors(np.full(10, 30.0), np.full(10, 20.0), NONE, SEEN, "spectrum", 50.0)
    assert_allclose(own.energies, 1.4 * 80 / (1.4 * 20 + 50))


@pytest.mark.parametrize("kind", ["level", "spectrum"])
def test_without_counts_it_is_the_stack_and_with_many_it_is_the_run(kind):
    nothing = own_factors(NONE, NONE, np.full(10, 0.2), SEEN, kind, 100.0)
    assert_allclose(nothing.energies, 1.0)
    assert (nothing.level_error > 0.2).all()
    many = own_factors(np.full(10, 3e8), np.full(10, 2e8), NONE, SEEN, kind, 100.0)
    assert_allclose(many.energies, 1.5, rtol=1e-5)
    assert (many.level_error < 1e-3).all()


@pytest.mark.parametrize(("kind", "slope"), [("level", 0.0), ("spectrum", 0.1)])
def test_it_is_unbiased_nearer_to_the_truth_and_its_pulls_have_width_one(kind, slope):
    truth, counts = skies(0.1, slope=slope)
    owns = [own_factors(sky, EXPECTED, NONE, SEEN, kind, 100.0) for sky in counts]
    factor, error = np.array([own.energies for own in owns]), np.array([own.level_error for own in owns])
    away = np.log(factor / truth)
    assert abs(away.mean()) < 0.01
    assert (away.std(axis=0) < 0.95 * np.log(truth).std(axis=0)).all()
    assert np.log(truth)[:, :5].std() > 1.5 * away[:, :5].std()
    assert (away / error).std() == pytest.approx(1, abs=0.1)
    # better than the run's own counts without a prior, at energies that have few
    assert away[:, -1].std() < 0.5 * np.log(np.maximum(counts[:, -1], 0.5) / EXPECTED[-1] / truth[:, -1]).std()


def test_the_order_of_what_is_allowed():
    with pytest.raises(ValueError, match="accepted are off, level, spectrum"):
        own_factors(NONE, NONE, NONE, SEEN, "colour", 1.0)
    with pytest.raises(ValueError, match="more than 0 counts"):
        own_factors(NONE, NONE, NONE, SEEN, "level", 0.0)


# --- in a model -----------------------------------------------------------------------------------------------------

EDGES = Edges(np.geomspace(0.1, 10, 11), np.linspace(0, 2.5, 6))
EXPOSURE = np.outer(np.diff(EDGES.energy), [1.0, 3, 5, 7, 9]) * 1e3
TRUTH = np.outer(np.sqrt(EDGES.energy[1:] * EDGES.energy[:-1]) ** -2.7, [1.0, 0.9, 0.7, 0.5, 0.3])
TRUTH *= 3e5 / (TRUTH * EXPOSURE).sum()


def estimate(own_counts, own_exposure, kind="level", threshold=0.1, prior=100.0):
    stack = np.round(TRUTH * EXPOSURE) + 0.0
    stacks = {"spectrum": Stack(stack, EXPOSURE, np.array(1.0), stack.sum(axis=1))}
    if own_counts is not None:
        stacks["own"] = Stack(own_counts, own_exposure, np.array(1.0), own_counts.sum(axis=1))
    runs = {"obs_id": np.array([1, 2]), "livetime": np.full(2, 1800.0)}
    metadata = RunMetadata(np.zeros(2), np.full(2, 20.0), np.ones(2))
    model = Model(EDGES, RateSettings(own=kind, own_counts=prior))
    return stacked_rate(Target(1, "", "", threshold), {"spectrum": by_hand(1, [1], runs)}, stacks, metadata, model)


def test_off_is_nothing_and_needs_nothing():
    made = estimate(None, None, "off")
    assert made.own is None
    with pytest.raises(ValueError, match="needs the target's own offset bins"):
        estimate(None, None, "level")


@pytest.mark.parametrize("kind", ["level", "spectrum"])
def test_the_exposed_fraction_is_respected(kind):
    """A run of which a third of the field is closed is no darker."""
    exposure = EXPOSURE * 0.1
    exposure[:, :2] = 0
    own = estimate(TRUTH * exposure * 1.3, exposure, kind, prior=1e-3).own
    assert own.level.value == pytest.approx(1.3, rel=0.01)
    assert_allclose(own.energies, 1.3, rtol=0.05)


@pytest.mark.parametrize("kind", ["level", "spectrum"])
def test_events_inside_the_exclusion_change_nothing(kind):
    exposure = EXPOSURE * 0.1
    exposure[:, 1] = 0
    counts = TRUTH * exposure
    source = counts.copy()
    source[:, 1] += 1e4
    without, with_source = (estimate(c, exposure, kind) for c in (counts, source))
    assert without.rate.value.tobytes() == with_source.rate.value.tobytes()


@pytest.mark.parametrize("kind", ["level", "spectrum"])
def test_only_energies_above_the_threshold_count(kind):
    exposure, threshold = EXPOSURE * 0.1, EDGES.energy[3] * (1 - 1e-12)
    counts = TRUTH * exposure * 1.2
    dark = counts.copy()
    dark[:3] = 0
    whole, cut = (estimate(c, exposure, kind, threshold) for c in (counts, dark))
    assert whole.rate.value.tobytes() == cut.rate.value.tobytes()
    assert whole.own.counts == pytest.approx(counts[3:].sum())
    # what is below follows the level
    assert_allclose(whole.own.energies[:3], whole.own.level.value)


def test_the_rate_and_its_error_follow():
    exposure = EXPOSURE * 0.1
    stack, own = estimate(None, None, "off").rate, estimate(TRUTH * exposure * 1.5, exposure)
    assert_allclose(own.rate.value, stack.value * own.own.level.value)
    assert_allclose(own.rate.average, stack.average * own.own.level.value)
    assert_allclose(
        own.rate.error**2 - own.rate.level_error[:, None] ** 2, stack.error**2 - stack.level_error[:, None] ** 2
    )
