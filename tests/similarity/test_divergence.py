"""The divergence between runs: against SciPy, formulas written out as loops, and simulations of known truth.

The simulated runs have 15 energies and 5 rings; their threshold, and with it their shape, goes with the zenith angle.
"""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from dask_bkg import similarity
from dask_bkg.similarity import Prior, ShapeSettings, as_references, as_targets, coverage_block, fit_prior, kl_block
from dask_bkg.similarity.bins import coarse_edges, join
from dask_bkg.similarity.divergence import kl_divergence, log_bias
from dask_bkg.similarity.family import family_shapes

DOCUMENT, SHAPE = ShapeSettings("document"), ShapeSettings()
ENERGY, RING = np.geomspace(0.126, 79.4, 15), np.arange(0.25, 2.5, 0.5)
BINS = ENERGY.size * RING.size
STATISTICS = (1000, 3000, 10000, 30000)


def shape(zenith: float, radial: float = 0.0) -> np.ndarray:
    """Expected share of events in each bin; ``radial`` tilts the acceptance by so much a degree."""
    threshold = 0.15 * np.cos(np.deg2rad(zenith)) ** -2.5
    spectrum = ENERGY**-1.7 / (1 + (threshold / ENERGY) ** 6)
    width = 1.3 * ENERGY[:, None] ** 0.06 * np.cos(np.deg2rad(zenith)) ** -0.15
    acceptance = RING * np.exp(-0.5 * (RING / width) ** 2) * (1 + radial * (RING - 1))
    flat = (spectrum[:, None] * acceptance).ravel()
    return flat / flat.sum()


def outer(fraction: float) -> np.ndarray:
    """Exposed fraction of a run whose three outer rings are closed but for this."""
    return np.tile(np.where(RING > 1, fraction, 1.0), ENERGY.size)


@pytest.fixture(scope="module")
def archive() -> np.ndarray:
    """Counts of 300 runs of 1k to 30k events at 10 to 60 deg, slightly different in their acceptance."""
    rng = np.random.default_rng(1)
    events = np.exp(rng.uniform(np.log(1000), np.log(30000), 300))
    shapes = [shape(z, r) for z, r in zip(rng.uniform(10, 60, 300), rng.normal(0, 0.05, 300), strict=True)]
    return rng.poisson(events[:, None] * np.array(shapes))


@pytest.fixture(scope="module")
def prior(archive) -> Prior:
    return fit_prior(archive, np.ones(archive.shape))


def pairs(target, candidate, prior, settings=SHAPE, fraction=1.0) -> np.ndarray:
    """Divergence of each target from the candidate of the same row."""
    seen = np.broadcast_to(fraction, candidate.shape)
    targets = as_targets(target, np.ones(target.shape), None, prior, settings)
    return np.diag(kl_block(targets, as_references(candidate, seen, prior, settings)))


def small(rng, runs: int, bins: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Counts and exposure of runs of few events, some bins of them closed."""
    exposure = rng.uniform(0.5, 2, (runs, bins)) * (rng.random((runs, bins)) > 0.1)
    return rng.poisson(4 * exposure).astype(float), exposure


# --- as the document has it --------------------------------------------------------------------------------


def rates_of(counts, exposure) -> np.ndarray:
    """The procedure's distributions, run by run."""
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = np.nan_to_num(counts / exposure)
    normalised = [run / run.sum() + 1e-9 for run in rates]
    return np.array([run / run.sum() for run in normalised])


@pytest.mark.parametrize("splits", [((0, 9), (0, 9)), ((0, 4, 9), (0, 3, 6, 9)), ((0, 1, 8, 9), (0, 9))])
def test_document_equals_scipy_over_several_splittings(splits):
    counts, exposure = small(np.random.default_rng(2), 9)
    p = rates_of(counts, exposure)
    expected = np.array([[stats.entropy(a, b) for b in p] for a in p])
    assert expected == pytest.approx(np.array([[kl_divergence(a, b) for b in p] for a in p]), abs=1e-14)
    rows, columns = ([slice(*ends) for ends in pairwise(s)] for s in splits)
    blocks = [
        [
            kl_block(
                as_targets(counts[r], exposure[r], None, None, DOCUMENT),
                as_references(counts[c], exposure[c], None, DOCUMENT),
            )
            for c in columns
        ]
        for r in rows
    ]
    assert np.abs(np.block(blocks) - expected).max() < 1e-12
    assert expected.max() > 0.5  # the floor has something to do


def test_document_does_not_know_the_unit_of_the_exposure():
    """A candidate that was observed ten times as long with ten times the events is the same candidate."""
    counts, exposure = small(np.random.default_rng(3), 6)
    targets = as_targets(counts, exposure, None, None, DOCUMENT)
    kl = kl_block(targets, as_references(counts, exposure, None, DOCUMENT))
    longer = kl_block(targets, as_references(10 * counts, 10 * exposure, None, DOCUMENT))
    other_unit = kl_block(targets, as_references(counts, exposure / 3600, None, DOCUMENT))
    assert np.abs(kl - longer).max() < 1e-12
    assert np.abs(kl - other_unit).max() < 1e-12


def test_document_sees_all_bins():
    counts, exposure = small(np.random.default_rng(4), 3)
    blocks = as_targets(counts, exposure, None, None, DOCUMENT), as_references(counts, exposure, None, DOCUMENT)
    assert (coverage_block(*blocks) == 1).all()


# --- the formula of the default, written out ---------------------------------------------------------------


def test_reference_is_the_formula_of_the_issue_if_the_family_is_the_mean():
    rng = np.random.default_rng(5)
    fraction = rng.uniform(0, 1, (4, BINS)) * (rng.random((4, BINS)) > 0.2)
    pi = shape(30)
    counts = rng.poisson(5000 * shape(40) * fraction).astype(float)
    found = as_references(counts, fraction, Prior(pi), SHAPE).q
    for n, f, q in zip(counts, fraction, found, strict=True):
        events = n.sum() / (pi * f).sum()
        expected = [(n[k] + 3000 * pi[k]) / (events * f[k] + 3000) for k in range(BINS)]
        assert q == pytest.approx(np.array(expected) / np.sum(expected), rel=1e-12)


def test_divergence_is_the_sum_over_the_targets_own_bins(prior):
    """Each pair in a loop over bins; what log_q has besides log(q) is the noise and what closed bins hide."""
    rng = np.random.default_rng(6)
    fraction = np.array([outer(0.3), outer(1.0), outer(0.0)])
    counts = rng.poisson(4000 * shape(35) * fraction).astype(float)
    mask = np.tile(RING < 2, ENERGY.size)
    references = as_references(counts, fraction, prior, SHAPE)
    kl = kl_block(as_targets(counts, fraction, mask, prior, SHAPE), references)
    for i in range(3):
        own = mask & (fraction[i] > 0)
        p = counts[i][own] / counts[i][own].sum()
        for j in range(3):
            q = fraction[i][own] * references.q[j][own]
            expected = stats.entropy(p, q) - p @ (references.log_q - np.log(references.q))[j][own]
            assert kl[i, j] == pytest.approx(expected, abs=1e-12)


def test_divergence_is_positive_up_to_what_is_subtracted(archive, prior):
    fraction = np.ones(archive.shape)
    targets, references = (
        as_targets(archive, fraction, None, prior, SHAPE),
        as_references(archive, fraction, prior, SHAPE),
    )
    subtracted = targets.p @ (references.log_q - np.log(references.q)).T
    kl = kl_block(targets, references)
    assert (kl + subtracted).min() > 0
    # of runs that are alike: 2e-3 on average
    assert 0.0005 < subtracted[kl < 0.05].mean() < 0.004
    assert subtracted[kl < 0.05].max() < 0.015


def test_it_is_not_symmetric_and_the_target_is_the_row(prior):
    rng = np.random.default_rng(7)
    counts = rng.poisson(30000 * np.array([shape(20), shape(55)])).astype(float)
    p, q = counts / counts.sum(axis=1, keepdims=True)
    fraction = np.ones(counts.shape)
    kl = kl_block(as_targets(counts, fraction, None, prior, SHAPE), as_references(counts, fraction, prior, SHAPE))
    # at low zenith there are events where at high zenith there is none, but not the other way round
    assert kl[0, 1] > 1.2 * kl[1, 0]
    assert kl[1, 0] == pytest.approx(stats.entropy(q, p + 1e-12), rel=0.05)


def test_what_the_target_has_outside_of_its_mask_does_not_matter(prior):
    rng = np.random.default_rng(8)
    counts = rng.poisson(4000 * shape(35), (3, BINS)).astype(float)
    mask, fraction = np.arange(BINS) % 5 < 3, np.ones((3, BINS))
    references = as_references(counts, fraction, prior, SHAPE)
    changed = np.where(mask, counts, 77.0)
    a, b = (kl_block(as_targets(n, fraction, mask, prior, SHAPE), references) for n in (counts, changed))
    assert (a == b).all()
    assert not (a == kl_block(as_targets(changed, fraction, None, prior, SHAPE), references)).all()


def test_integer_counts_are_as_good_as_floats(archive, prior):
    fraction = np.ones(archive.shape)
    kl = [
        kl_block(as_targets(n, fraction, None, prior, SHAPE), as_references(n, fraction, prior, SHAPE))
        for n in (archive.astype(np.uint32), archive.astype(float))
    ]
    assert (kl[0] == kl[1]).all()
    assert (fit_prior(archive.astype(np.uint32), fraction).directions == prior.directions).all()


# --- noise -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "tolerance"), [(3.0, 0.06), (1.0, 0.15), (0.3, 0.35), (0.1, 0.5)])
def test_bias_of_a_logarithm_is_that_of_poisson_numbers(ratio, tolerance):
    """Against the sum over all numbers, where ``ratio`` times the mean is added."""
    mean = np.array([0.003, 0.03, 0.3, 1.0, 3.0, 30.0, 1000.0])
    n = np.arange(2000)
    exact = [np.log(m * (1 + ratio)) - stats.poisson.pmf(n, m) @ np.log(n + ratio * m) for m in mean]
    assert log_bias(mean, ratio * mean) == pytest.approx(np.array(exact), rel=tolerance)
    assert log_bias(np.zeros(1), np.ones(1)).tolist() == [0]


@pytest.mark.parametrize("events", [1000, 10000])
def test_noise_of_an_open_run_is_that_of_the_issue(events):
    """(bins - 1)/2 N/(N + a)^2, counted over bins that are filled, and what 4000 draws add on average."""
    pi = shape(20)
    draws = np.random.default_rng(9).poisson(events * pi, (4000, BINS)).astype(float)
    references = as_references(draws, np.ones(draws.shape), Prior(pi), SHAPE)
    added = -(pi @ np.log(references.q / pi).T).mean()
    subtracted = (pi @ (references.log_q - np.log(references.q)).T).mean()
    assert subtracted == pytest.approx(added, rel=0.2)
    filled = (events * pi > 0.3).sum()
    assert subtracted == pytest.approx((filled - 1) / 2 * events / (events + 3000) ** 2, rel=0.15)


def test_noise_of_a_half_blind_run_counts_the_bins_that_it_saw():
    pi, fraction, events = shape(20), outer(0.0), 5000
    draws = np.random.default_rng(10).poisson(events * pi * fraction, (4000, BINS)).astype(float)
    references = as_references(draws, np.tile(fraction, (4000, 1)), Prior(pi), SHAPE)
    more = references.log_q - np.log(references.q)
    seen = fraction > 0
    added = -(pi @ np.log(references.q / pi).T).mean()
    of_the_sum = events / (2 * (events + 3000) ** 2)
    assert (pi[seen] @ more[:, seen].T).mean() + of_the_sum == pytest.approx(added + of_the_sum, rel=0.1)
    # in the others nothing is subtracted, but what may be hidden there is added: g^2 / (2 (1 + a pi))
    hidden = (5 / 8) ** 2 / (2 * (1 + 3000 * pi[~seen]))
    assert -more.mean(axis=0)[~seen] == pytest.approx(hidden + of_the_sum, rel=0.05)


# --- shape, not statistics ---------------------------------------------------------------------------------


def means_by_statistics(target_shape, prior, radial_of=None, n=300, settings=SHAPE) -> np.ndarray:
    """Mean divergence of a target of 3000 events from candidates of 1k to 30k events."""
    rng = np.random.default_rng(10)
    target = rng.poisson(3000 * target_shape, (n, BINS)).astype(float)
    candidate_shape = target_shape if radial_of is None else shape(radial_of, 0.15)
    draws = [rng.poisson(events * candidate_shape, (n, BINS)).astype(float) for events in STATISTICS]
    return np.array([pairs(target, candidate, prior, settings).mean() for candidate in draws])


@pytest.mark.parametrize("kind", ["archive mean", 20, 35, 50])
def test_same_shape_scores_the_same_whatever_the_statistics(prior, kind):
    """The archive's mean, and shapes far from it: measured within a factor 1.08 to 1.20."""
    target = prior.shape if kind == "archive mean" else shape(kind)
    means = means_by_statistics(target, prior)
    assert (means > 0).all()
    assert means.max() / means.min() < 1.5


def test_a_prior_of_the_mean_alone_ranks_by_statistics_where_the_shape_is_another(prior):
    """What the family is for: with the mean as prior, runs of few events look like the mean."""
    mean = Prior(prior.shape)
    flat = means_by_statistics(prior.shape, mean)
    assert flat.max() / flat.min() < 1.25
    steep = means_by_statistics(shape(50), mean)
    assert steep.max() / steep.min() > 5
    assert (np.diff(steep) < 0).all()


def test_the_documents_divergence_ranks_by_statistics():
    rng = np.random.default_rng(11)
    target = rng.poisson(3000 * shape(30), (100, BINS)).astype(float)
    draws = [rng.poisson(events * shape(30), (100, BINS)).astype(float) for events in STATISTICS]
    means = [pairs(target, candidate, None, DOCUMENT).mean() for candidate in draws]
    assert means[0] > 5 * means[-1]


@pytest.mark.parametrize("zenith", [20, 50])
def test_a_planted_difference_ranks_behind(prior, zenith):
    """Acceptance tilted by 15 % a degree: behind on average at all statistics, and run by run where they allow."""
    rng = np.random.default_rng(12)
    target = rng.poisson(3000 * shape(zenith), (300, BINS)).astype(float)
    same, tilted = (
        [pairs(target, rng.poisson(n * s, (300, BINS)).astype(float), prior) for n in STATISTICS]
        for s in (shape(zenith), shape(zenith, 0.15))
    )
    means = np.array(same).mean(axis=1), np.array(tilted).mean(axis=1)
    # 1k events tell nothing of 15 %
    assert (means[0][1:] < means[1][1:]).all()
    behind = [(a < b).mean() for a, b in zip(same, tilted, strict=True)]
    assert behind[2] > 0.7
    assert behind[3] > 0.85
    # neither do few events of the right shape fall behind many of the wrong one, nor the other way round
    assert (same[1] < tilted[3]).mean() > 0.6
    assert (same[3] < tilted[1]).mean() > 0.6


def test_another_zenith_angle_ranks_behind_at_all_statistics(prior):
    rng = np.random.default_rng(13)
    target = rng.poisson(3000 * shape(45), (200, BINS)).astype(float)
    few_alike = pairs(target, rng.poisson(1000 * shape(45), (200, BINS)).astype(float), prior)
    many_other = pairs(target, rng.poisson(30000 * shape(38), (200, BINS)).astype(float), prior)
    assert (few_alike < many_other).mean() > 0.99


# --- runs that saw a part only -----------------------------------------------------------------------------


@pytest.mark.parametrize("left", [0.0, 0.05, 0.3, 0.6])
@pytest.mark.parametrize("kind", ["archive mean", 30, 50])
def test_a_half_blind_run_does_not_win_by_it(prior, left, kind):
    """The same run with its outer rings open and closed: on average the closed one is further away.

    And of many it is not the nearest more often than by chance, although what it did not see is filled up.
    """
    rng = np.random.default_rng(14)
    target_shape = prior.shape if kind == "archive mean" else shape(kind)
    target = rng.poisson(3000 * target_shape, (300, BINS)).astype(float)
    for events in STATISTICS[1:]:
        whole = rng.poisson(events * target_shape, (300, BINS))
        half = rng.binomial(whole, outer(left))
        a = pairs(target, whole.astype(float), prior)
        b = pairs(target, half.astype(float), prior, fraction=outer(left))
        assert (b - a).mean() > 0
        assert (b < a).mean() < 0.4


@pytest.mark.parametrize(
    "scatter", [None, 5700.0, 3000.0], ids=["none", "as on the H.E.S.S. runs", "as the prior has it"]
)
@pytest.mark.parametrize("events", STATISTICS[1:])
@pytest.mark.slow
def test_a_half_blind_run_is_the_nearest_no_more_often_than_another(prior, events, scatter):
    """Ten runs of the target's shape and as many events, one of them half-blind: it is the first once in ten at most.

    Half-blind as far as the coverage lets it in: three rings to 40 %, the outermost, the innermost.
    """
    rng, n = np.random.default_rng(15), 1000
    true = shape(30)

    def draw(fraction):
        shapes = np.tile(true, (n, 1)) if scatter is None else rng.gamma(scatter * np.tile(true, (n, 1)))
        seen = shapes * fraction
        return rng.poisson(events * seen / seen.sum(axis=1, keepdims=True)).astype(float)

    target = rng.poisson(3000 * true, (n, BINS)).astype(float)
    nearest = np.min([pairs_of_rows(target, draw(1.0), prior, 1.0) for _ in range(9)], axis=0)
    for closed in (RING > 1, RING > 2, RING < 0.5):
        fraction = np.tile(np.where(closed, 0.4 if closed.sum() > 1 else 0.0, 1.0), ENERGY.size)
        assert true @ np.minimum(fraction / 0.5, 1) > SHAPE.min_coverage
        first = (pairs_of_rows(target, draw(fraction), prior, fraction) < nearest).mean()
        assert first < 0.1 + 2 * np.sqrt(0.1 * 0.9 / n)


def pairs_of_rows(target, candidate, prior, fraction) -> np.ndarray:
    """`pairs` of many runs, a hundred at a time."""
    rows = [slice(i, i + 100) for i in range(0, len(target), 100)]
    return np.concatenate([pairs(target[r], candidate[r], prior, fraction=fraction) for r in rows])


def test_a_half_blind_run_hides_nothing_of_its_own_peculiarities(prior):
    """Runs scatter about their family like the prior has it: with one ring closed they win half of the time."""
    rng = np.random.default_rng(15)
    scattered = rng.gamma(3000 * shape(30), size=(800, BINS))
    scattered /= scattered.sum(axis=1, keepdims=True)
    target = rng.poisson(3000 * shape(30), (800, BINS)).astype(float)
    whole = rng.poisson(10000 * scattered)
    for left in (0.0, 0.3):
        half = rng.binomial(whole, outer(left))
        won = pairs(target, half.astype(float), prior, fraction=outer(left)) < pairs(target, whole * 1.0, prior)
        assert won.mean() < 0.55


def test_the_family_fills_up_what_a_run_did_not_see(prior):
    """Half-blind runs at 55 deg, far from the mean: the closed rings are predicted from the others."""
    rng = np.random.default_rng(16)
    counts = rng.poisson(20000 * shape(55) * outer(0.0), (50, BINS)).astype(float)
    q = as_references(counts, np.tile(outer(0.0), (50, 1)), prior, SHAPE).q
    closed = outer(0.0) == 0
    share = q[:, closed].sum(axis=1)
    assert share.mean() == pytest.approx(shape(55)[closed].sum(), rel=0.03)
    filled = stats.entropy(shape(55)[closed], q[:, closed].mean(axis=0))
    assert filled < 0.01
    assert stats.entropy(shape(55)[closed], prior.shape[closed]) > 30 * filled


def test_coverage_is_the_share_of_the_targets_events_that_were_seen(prior):
    rng = np.random.default_rng(17)
    counts = rng.poisson(5000 * shape(30), (2, BINS)).astype(float)
    fraction = np.array([outer(1.0), outer(2 / 3), outer(0.2), outer(0.0), outer(0.0)[::-1]])
    references = as_references(np.tile(counts[0], (5, 1)) * fraction, fraction, prior, SHAPE)
    mask = np.tile(RING < 2, ENERGY.size)
    coverage = coverage_block(as_targets(counts, np.ones((2, BINS)), mask, prior, SHAPE), references)
    for i in range(2):
        p = counts[i] * mask / (counts[i] * mask).sum()
        beyond = p[outer(0.0) == 0].sum()
        # a third behind a star has been seen; of a fifth that is left two fifths count
        assert coverage[i] == pytest.approx([1, 1, 1 - 0.6 * beyond, 1 - beyond, p @ (outer(0.0)[::-1])])
    assert coverage.max() <= 1
    assert coverage[0, 3] < SHAPE.min_coverage < coverage[0, 1]


# --- nothing to compare ------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [SHAPE, DOCUMENT], ids=["shape", "document"])
def test_runs_without_events_or_exposure_rank_last(prior, settings):
    rng = np.random.default_rng(18)
    counts = rng.poisson(3000 * shape(30), (4, BINS)).astype(float)
    fraction = np.ones(counts.shape)
    counts[1] = 0
    counts[2] = fraction[2] = 0
    with np.errstate(all="raise", under="ignore"):
        references = as_references(counts, fraction, prior, settings)
        targets = as_targets(counts, fraction, None, prior, settings)
        kl, coverage = kl_block(targets, references), coverage_block(targets, references)
    assert not np.isnan(kl).any()
    assert np.isinf(kl[:, [1, 2]]).all()
    assert np.isfinite(kl[0, [0, 3]]).all()
    assert np.isfinite(coverage).all()
    # a target that was exposed and saw nothing is like the archive's mean, under the document like nothing
    assert np.isinf(kl[2]).all()
    assert np.isfinite(kl[1, [0, 3]]).all() == (settings is SHAPE)
    if settings is SHAPE:
        mean = as_targets(1e6 * prior.shape[None], fraction[:1], None, prior, settings)
        assert kl[1, [0, 3]] == pytest.approx(kl_block(mean, references)[0, [0, 3]])


def test_bins_that_no_run_of_the_archive_filled(archive):
    counts, fraction = archive.copy(), np.ones(archive.shape)
    counts[:, 7], fraction[:, 8] = 0, 0
    counts[:, 8] = 0
    prior = fit_prior(counts, fraction)
    assert (prior.shape > 0).all()
    counts[0, 7] = 5
    kl = kl_block(as_targets(counts, fraction, None, prior, SHAPE), as_references(counts, fraction, prior, SHAPE))
    assert np.isfinite(kl).all()


# --- the family --------------------------------------------------------------------------------------------


def test_mean_shape_is_that_of_full_exposure(archive):
    """Half of the runs half-blind: the mean is that of the open archive, to the statistics."""
    rng = np.random.default_rng(19)
    fraction = np.where(rng.random(len(archive))[:, None] < 0.5, outer(0.0), 1.0)
    half = rng.binomial(archive, fraction)
    open_mean = fit_prior(archive, np.ones(archive.shape)).shape
    mean = fit_prior(half, fraction).shape
    assert mean.sum() == pytest.approx(1)
    assert stats.entropy(open_mean, mean) < 3e-3
    assert stats.entropy(open_mean, half.sum(axis=0) + 0.5) > 0.03


def test_components_are_found_where_there_are_some():
    """A planted direction: its place, its variance, and each run's coefficient."""
    rng = np.random.default_rng(20)
    pi = shape(30)
    direction = np.tile(RING - 1, ENERGY.size)
    direction = direction - pi @ direction
    tilt = rng.normal(0, 0.1, 400)
    shapes = pi * np.exp(tilt[:, None] * direction)
    counts = rng.poisson(8000 * shapes / shapes.sum(axis=1, keepdims=True))
    fraction = np.ones(counts.shape)
    prior = fit_prior(counts, fraction)
    assert len(prior.directions) == 1
    filled = 1e5 * pi > 100
    found = prior.directions[0][filled]
    assert abs(np.corrcoef(found, direction[filled])[0, 1]) > 0.99
    fitted = family_shapes(counts, fraction, prior)
    slope = np.log(fitted / prior.shape) @ (pi * direction) / (pi @ direction**2)
    assert np.corrcoef(slope, tilt)[0, 1] > 0.97
    assert np.sqrt(prior.variance[0] * (pi @ prior.directions[0] ** 2)) == pytest.approx(
        0.1 * np.sqrt(pi @ direction**2), rel=0.1
    )


@pytest.mark.parametrize("runs", [1, 2, 12, 100])
def test_equal_runs_have_no_components(runs):
    rng = np.random.default_rng(21)
    prior = fit_prior(rng.poisson(5000 * shape(30), (runs, BINS)), np.ones((runs, BINS)))
    assert prior.variance.size == 0
    assert stats.entropy(shape(30), prior.shape) < 0.01 / np.sqrt(runs)


def test_settings_limit_the_components(archive):
    fraction = np.ones(archive.shape)
    sizes = [len(fit_prior(archive, fraction, ShapeSettings(components=n)).variance) for n in (0, 2, 4)]
    assert sizes == [0, 2, 4]
    # the document needs no family, and what it calls a fraction is an exposure
    assert len(fit_prior(archive, 1e-5 * fraction, DOCUMENT).variance) == 0


def test_fit_of_a_runs_prior_is_the_maximum(archive, prior):
    """The gradient of the likelihood is zero, also for runs of 100 and 100,000 events far from the mean."""
    rng = np.random.default_rng(22)
    counts = np.vstack([rng.poisson(n * shape(z), (5, BINS)) for n in (100, 100000) for z in (5, 65)]).astype(float)
    fraction = np.tile(outer(0.5), (len(counts), 1))
    fitted = family_shapes(counts, fraction, prior)
    assert fitted.sum(axis=1) == pytest.approx(1)
    u = prior.directions
    coefficients = np.linalg.lstsq(np.vstack([u, np.ones(BINS)]).T, np.log(fitted / prior.shape).T, rcond=None)[0][
        :-1
    ]
    seen = fitted * fraction
    expected = counts.sum(axis=1, keepdims=True) * seen / seen.sum(axis=1, keepdims=True)
    gradient = (counts - expected) @ u.T - coefficients.T / prior.variance
    assert np.abs(gradient / counts.sum(axis=1, keepdims=True)).max() < 1e-6


@pytest.mark.parametrize("events", [100, 3000, 10000])
def test_fit_of_a_runs_prior_does_not_depend_on_the_other_runs(prior, events):
    """Near the mean a last step gains less than the rounding of what it gains: it is taken, in whatever company."""
    counts = np.random.default_rng(2).poisson(events * prior.shape, (300, BINS)).astype(float)
    whole = family_shapes(counts, np.ones(counts.shape), prior)
    alone = np.concatenate([family_shapes(run[None], np.ones((1, BINS)), prior) for run in counts])
    assert np.abs(np.log(alone / whole)).max() < 1e-13


def test_fit_of_a_runs_prior_finds_runs_that_are_like_no_other():
    """Nearly all events in a bin that is nearly empty in the archive: a full Newton step leads far beyond."""
    counts = np.array([[10.0, 10.0, 980.0], [0.0, 0.0, 1000.0]])
    for first in (0.98, 0.998):
        rest = (1 - first) / 2
        prior = Prior(np.array([first, rest, rest]), np.array([[-0.02, 0.0, 1.0]]), np.array([25.0]))
        fitted = family_shapes(counts, np.ones((2, 3)), prior)
        slope = np.log(fitted[:, 2] / fitted[:, 1] / (prior.shape[2] / prior.shape[1]))
        gradient = (counts - 1000 * fitted) @ prior.directions[0] - slope / 25
        assert gradient == pytest.approx(0, abs=1e-6)


# --- blocks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 64, 300])
def test_splitting_into_blocks_changes_nothing(archive, prior, size):
    """To 1e-12: the additions of a matrix product depend on its size."""
    rng = np.random.default_rng(23)
    fraction = np.where(rng.random(archive.shape) < 0.1, 0.4, 1.0)
    counts = rng.binomial(archive, fraction)
    parts = [slice(i, i + size) for i in range(0, 300, size)]
    shape_ = similarity.prior_shape(
        *similarity.add_sums(similarity.prior_sums(counts[part], fraction[part]) for part in parts)
    )
    sums = similarity.add_sums(similarity.family_sums(counts[p], fraction[p], shape_, SHAPE) for p in parts)
    blocked, whole = similarity.prior_family(sums, SHAPE), fit_prior(counts, fraction)
    assert np.abs(blocked.shape - whole.shape).max() < 1e-14
    some = parts[:: max(1, len(parts) // 4)]
    full = whole_kl(counts, fraction, whole)
    for rows in some:
        for columns in some:
            targets = as_targets(counts[rows], fraction[rows], None, blocked, SHAPE)
            references = as_references(counts[columns], fraction[columns], blocked, SHAPE)
            assert np.abs(kl_block(targets, references) - full[0][rows, columns]).max() < 1e-12
            assert np.abs(coverage_block(targets, references) - full[1][rows, columns]).max() < 1e-12


def whole_kl(counts, fraction, prior) -> tuple[np.ndarray, np.ndarray]:
    targets = as_targets(counts, fraction, None, prior, SHAPE)
    references = as_references(counts, fraction, prior, SHAPE)
    return kl_block(targets, references), coverage_block(targets, references)


def test_a_block_takes_the_memory_of_two(archive, prior):
    # large: other threads of this process have their memory counted too
    counts = np.tile(archive, (4, 1))
    fraction = np.ones(counts.shape)
    blocks = as_targets(counts, fraction, None, prior, SHAPE), as_references(counts, fraction, prior, SHAPE)
    tracemalloc.start()
    kl = kl_block(*blocks)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.1 * kl.nbytes


def test_one_run_alone(prior):
    counts = np.random.default_rng(24).poisson(3000 * shape(30), (1, BINS))
    kl = kl_block(
        *(f(counts, np.ones((1, BINS)), *a, prior, SHAPE) for f, a in ((as_targets, [None]), (as_references, [])))
    )
    assert kl.shape == (1, 1)
    assert abs(kl[0, 0]) < 0.01


# --- settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ShapeSettings("entropy"), "'entropy'.*shape and document"),
        (ShapeSettings(prior=0.0), "positive number of events"),
        (ShapeSettings(prior=float("nan")), "positive number of events"),
        (SHAPE, "fit_prior"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    counts = np.ones((2, 3))
    with pytest.raises(ValueError, match=message):
        as_references(counts, counts, None, settings)
    with pytest.raises(ValueError, match=message):
        as_targets(counts, counts, None, None, settings)


# --- bins --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("energy", "offset", "bins"),
    [
        (np.geomspace(0.1, 100, 31), np.linspace(0, 2.5, 11), (15, 5)),
        (np.geomspace(0.1, 100, 21), np.linspace(0, 2.5, 6), (10, 5)),  # the preset
        (np.geomspace(0.1, 100, 13), np.linspace(0, 2, 3), (12, 2)),  # coarse already
        (np.geomspace(0.1, 10, 22), np.linspace(0, 2.5, 8), (7, 3)),
        (np.geomspace(0.01, 1000, 51), np.linspace(0, 2.5, 51), (25, 5)),
        ([1.0, 1.1], [0.0, 0.2], (1, 1)),
        ([1.0, 1.1, 1.2], [0.0, 0.2, 0.3], (1, 1)),
        ([1.0, 10.0, 10.1, 10.2], [0.0, 1.0, 2.0, 2.1], (1, 2)),
    ],
)
def test_bins_of_the_comparison(energy, offset, bins):
    coarse = coarse_edges((energy, offset))
    assert tuple(edges.size - 1 for edges in coarse) == bins
    for edges, fine in zip(coarse, (energy, offset), strict=True):
        assert set(edges) <= set(fine)
        assert (edges[0], edges[-1]) == (fine[0], fine[-1])
        assert (np.diff(edges) > 0).all()


def test_joined_bins_hold_the_same_events():
    edges = np.geomspace(0.1, 100, 31), np.linspace(0, 2.5, 11)
    coarse = coarse_edges(edges)
    counts = np.random.default_rng(25).poisson(3, (4, 30, 10)).astype(np.uint32)
    joined = join(counts, edges, coarse)
    assert joined.dtype == np.uint32
    assert joined.shape == (4, 15, 5)
    assert (joined.sum(axis=(1, 2)) == counts.sum(axis=(1, 2))).all()
    assert (joined == counts.reshape(4, 15, 2, 5, 2).sum(axis=(2, 4))).all()


def test_joining_leaves_out_what_lies_outside():
    joined = join(np.ones((4, 3)), (np.arange(1, 6), np.arange(4)), ([2, 4], [0, 1, 3]))
    assert joined.tolist() == [[2, 4]]


def test_edges_that_are_no_edges_are_refused():
    with pytest.raises(ValueError, match="must be among"):
        join(np.ones((2, 2)), ([1, 2, 3], [0, 1, 2]), ([1, 2.5], [0, 2]))
