"""Scores: right for counts drawn from the model, and each planted fault is found. Deterministic by their seeds."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.simulated_validation import BINS, FIRST, pull, simulate, truth
from scipy import stats

from dask_bkg.validation import compare, make_bins, run_columns, score_run, summarise, worst_first
from dask_bkg.validation.bins import Settings
from dask_bkg.validation.expectation import S_EDGES, expected, expected_histogram, histogram, significance, spread
from dask_bkg.validation.score import FORMS, SUMS

OPEN = np.ones(BINS.pixel.size, dtype=bool)


@pytest.fixture(scope="module")
def perfect():
    """Counts drawn from the model itself."""
    return simulate(120)


# -- expectations ----------------------------------------------------------------------------------------------------


def test_significance_is_the_root_of_the_cash_ratio():
    n, mu = np.array([0.0, 3.0, 12.0, 100.0]), np.array([4.0, 3.0, 7.5, 130.0])
    log = stats.poisson.logpmf(n, n + 1e-300) - stats.poisson.logpmf(n, mu)
    np.testing.assert_allclose(significance(n, mu) ** 2, 2 * log, atol=1e-9)
    assert (np.sign(significance(n, mu)) == [-1, 0, 1, -1]).all()


@pytest.mark.parametrize("mu", [2e-4, 0.03, 0.7, 5.0, 23.0, 410.0])
def test_expectations_are_those_of_the_poisson_distribution(mu):
    n = np.arange(0, int(mu + 14 * np.sqrt(mu) + 60))
    p, s = stats.poisson.pmf(n, mu), significance(n, mu)
    told = expected(mu)
    assert told.mean == pytest.approx(p @ s, rel=2e-3, abs=2e-3)
    assert told.square == pytest.approx(p @ s**2, rel=2e-3)
    assert told.variance == pytest.approx(p @ s**4 - (p @ s**2) ** 2, rel=5e-3)
    if mu < 20:  # beyond, the table is finer than the jumps of a tail from one number to the next are wide
        assert told.tails[0] == pytest.approx(p @ (np.abs(s) > 3), rel=0.15, abs=1e-4)


def test_histogram_is_the_expected_one():
    rng = np.random.default_rng(1)
    mu = rng.uniform(5, 60, 40_000)
    seen, hoped = histogram(significance(rng.poisson(mu), mu)), expected_histogram(spread(mu))
    assert hoped.sum() == pytest.approx(mu.size)
    many = hoped > 50
    chi2 = ((seen - hoped)[many] ** 2 / hoped[many]).sum()
    assert stats.chi2.sf(chi2, many.sum()) > 1e-3
    assert S_EDGES.size == seen.size + 1


# -- a run -----------------------------------------------------------------------------------------------------------


def test_likelihoods_are_those_of_the_formula():
    rng, mu = np.random.default_rng(2), truth()
    counts = rng.poisson(mu).astype(float)
    run, _ = score_run(counts, 1.3 * mu, OPEN, 5, BINS)
    n, m = counts[5:], 1.3 * mu[5:]
    m = np.maximum(m, 1e-3 * n.sum() / n.size)
    own = n.sum(axis=1) / m.sum(axis=1)
    for i, form in enumerate((m, m * n.sum() / m.sum(), m * own[:, None])):
        positive = form > 0
        assert run.loglike[i] == pytest.approx((n[positive] * np.log(form[positive])).sum() - form.sum(), rel=1e-12)
    assert run.counts.sum() == n.sum()
    assert run.counts[:5].sum() == 0
    assert run.predicted.sum() == pytest.approx(1.3 * mu[5:].sum())


def test_no_factor_changes_norm_and_none_of_an_energy_enorm():
    mu, rng = truth(), np.random.default_rng(3)
    counts = rng.poisson(mu).astype(float)
    first, _ = score_run(counts, mu, OPEN, 4, BINS)
    scaled, _ = score_run(counts, 2 * mu, OPEN, 4, BINS)
    tilted, _ = score_run(counts, mu * np.geomspace(1, 3, 30)[:, None], OPEN, 4, BINS)
    # the floor of empty bins is no part of what is scaled: 1e-3 nats of 4,000 events
    assert scaled.loglike[1] == pytest.approx(first.loglike[1], abs=0.5)
    assert tilted.loglike[2] == pytest.approx(first.loglike[2], abs=0.5)
    assert scaled.loglike[0] < first.loglike[0] - 500
    assert tilted.loglike[1] < first.loglike[1] - 20


def test_nothing_predicted_is_wrong_but_not_infinitely():
    counts = np.random.default_rng(4).poisson(truth()).astype(float)
    run, _ = score_run(counts, np.zeros(counts.shape), OPEN, 4, BINS)
    assert np.isfinite(run.loglike).all()
    even, _ = score_run(counts, np.full(counts.shape, counts[4:].sum() / counts[4:].size), OPEN, 4, BINS)
    # of which every bin has the floor: an even field, where a factor makes up for its smallness
    np.testing.assert_allclose(run.loglike[1:], even.loglike[1:], rtol=1e-12)


def test_closed_pixels_and_energies_below_the_threshold_do_not_matter():
    counts, mu = np.random.default_rng(5).poisson(truth()).astype(float), truth()
    open_ = BINS.lon > -0.5
    run, field = score_run(counts, mu, open_, 6, BINS)
    changed, wrong = counts.copy(), mu.copy()
    changed[:, ~open_] += 50
    wrong[:, ~open_] = np.nan
    changed[:6] += 9
    wrong[:6] *= 7
    again, other = score_run(changed, wrong, open_, 6, BINS)
    for one, two in zip([*run, *field], [*again, *other], strict=True):
        np.testing.assert_array_equal(one, two)


def test_sums_over_cells_are_those_of_the_cells():
    counts, mu = np.random.default_rng(6).poisson(truth()).astype(float), truth()
    run, field = score_run(counts, mu, OPEN, 4, BINS)
    n, m = ([], [])
    for band in range(5):
        for cell in range(BINS.cell.max() + 1):
            rows, pixels = BINS.band == band, BINS.cell == cell
            n.append(counts[rows][:, pixels][:, :].sum() if rows.any() else 0)
            m.append(mu[rows][:, pixels].sum())
    m, n = np.array(m), np.array(n)
    s = significance(n[m > 5], m[m > 5])
    raw = dict(zip(SUMS, run.cells[FORMS.index("raw")], strict=True))
    assert raw["n"] == s.size
    assert raw["s"] == pytest.approx(s.sum())
    assert raw["s2"] == pytest.approx((s**2).sum())
    norm = dict(zip(SUMS, run.cells[FORMS.index("norm")], strict=True))
    assert 0.5 < norm["n"] + (raw["expected_s2"] - raw["n"]) - norm["expected_s2"] < 1.1  # a degree of freedom
    assert raw["expected_s2"] == pytest.approx(expected(m[m > 5]).square.sum())
    assert field.counts.sum() == pytest.approx(run.profile[0].sum())
    assert field.histogram.sum() == run.cells[1, 0]


def test_a_field_that_is_too_small_is_told():
    with pytest.raises(ValueError, match=r"off_max of 0.05 deg: no field pixel"):
        make_bins([0.1, 1.0], [-0.4, -0.2, 0.0, 0.2, 0.4], Settings(offset_max=0.05))


# -- counts drawn from the model -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_perfect_model_has_no_bias(perfect):
    told = summarise(perfect)
    assert told["runs"] == 120
    assert abs(pull(told["ratio"], 1.0)) < 3
    for form in FORMS:
        width, mean = (told["significance"][form][name] for name in ("width", "mean"))
        assert width["expected"] == pytest.approx(1.007 if form == "raw" else 1.002, abs=0.007)
        assert width["error"] < 0.012
        assert abs(pull(width, width["expected"])) < 3, form
        assert abs(mean["value"] - mean["expected"]) < 0.02, form
        tail = told["significance"][form]["beyond_3"]
        assert abs(tail["value"] - tail["expected"]) < 4 * np.sqrt(tail["expected"])
    assert abs(told["deviance"]["value"] - 1) < 3 * told["deviance"]["statistics"]
    assert told["scatter"]["value"] == pytest.approx(told["scatter"]["statistics"], rel=0.25)
    for band in told["bands"]:
        if band["events"]:
            assert abs(pull(band["ratio"], 1.0)) < 4
            for direction in ("zenithward", "sideward"):
                assert abs(band[direction]["value"]) < 4 * band[direction]["statistics"]


def test_the_error_over_targets_is_that_of_statistics_where_nothing_else_is(perfect):
    for band in summarise(perfect)["bands"]:
        if band["events"] > 1000:
            assert band["zenithward"]["error"] == pytest.approx(band["zenithward"]["statistics"], rel=0.35)
            assert band["ratio"]["error"] == pytest.approx(1 / np.sqrt(band["events"]), rel=0.35)


def test_no_run_of_a_perfect_archive_looks_wrong(perfect):
    assert (run_columns(perfect)["flag"] == 0).all()


# -- planted faults --------------------------------------------------------------------------------------------------


def test_a_gradient_of_5_percent_is_found():
    """Of 60 runs of 4,000 events, at more than 5 standard deviations in a band, and its value is right."""
    done = simulate(sky=lambda i, mu: mu * (1 + 0.05 * BINS.lat))
    bands = [band for band in summarise(done)["bands"] if band["events"] > 10_000]
    assert len(bands) >= 2
    for band in bands:
        assert pull(band["zenithward"]) > 5
        assert abs(pull(band["zenithward"], 0.05)) < 3.5
        assert abs(pull(band["sideward"])) < 3.5
    width = summarise(done)["significance"]["norm"]["width"]
    assert width["value"] > width["expected"]


def test_a_source_is_found_in_the_run_that_it_is_in():
    """60 events in a pixel of 0.2 deg, among 4,000: the run is the first one, its place is told."""
    near = int(np.hypot(BINS.lon - 0.6, BINS.lat + 0.4).argmin())

    def sky(i, mu):
        if i == 17:
            mu = mu.copy()
            mu[7:17, near] += 6.0
        return mu

    columns = run_columns(simulate(sky=sky))
    assert columns["obs_id"][worst_first(columns)[0]] == FIRST + 17
    assert np.flatnonzero(columns["flag"]).tolist() == [17]
    assert columns["flag"][17] & 8
    assert columns["hottest"][17] > 7
    assert (columns["hot_lon"][17], columns["hot_lat"][17]) == pytest.approx((0.6, -0.4), abs=0.11)


@pytest.mark.slow
def test_a_mirrored_longitude_is_found():
    """A field that falls by 8 % a degree, mirrored: by its slope, and against the right one by its likelihood."""
    right = simulate(asymmetry=0.08)
    wrong = simulate(asymmetry=0.08, model=lambda i, mu: mu * np.exp(-2 * 0.08 * BINS.lon))
    band = max(summarise(wrong)["bands"], key=lambda band: band["events"])
    assert pull(band["sideward"]) > 15
    assert band["sideward"]["value"] == pytest.approx(0.16, abs=0.03)
    assert abs(pull(band["zenithward"])) < 3.5
    reference, mirrored = compare({"right": right, "wrong": wrong}, "right")
    assert reference["enorm"] == {"value": 0.0, "error": 0.0}
    assert pull(mirrored["enorm"]) < -8
    assert pull(mirrored["norm"]) < -8


def test_a_rate_per_livetime_is_found_in_the_ratio_alone():
    """10 % too much for all runs: 30 standard deviations in raw, nothing in norm."""
    right, wrong = simulate(), simulate(model=lambda i, mu: 1.1 * mu)
    told = summarise(wrong)
    assert pull(told["ratio"], 1.0) > 20
    assert told["ratio"]["value"] == pytest.approx(1.1, abs=0.01)
    row = compare({"right": right, "wrong": wrong}, "right")[1]
    assert pull(row["raw"]) < -10
    assert abs(row["norm"]["value"]) < 1e-5
    assert (run_columns(wrong)["flag"] == 0).all()


def test_a_run_with_a_wrong_livetime_is_flagged():
    columns = run_columns(simulate(model=lambda i, mu: mu * (1.2 if i == 5 else 1.0)))
    assert np.flatnonzero(columns["flag"]).tolist() == [5]
    assert columns["flag"][5] == 1
    assert columns["rate_pull"][5] > 5
    assert worst_first(columns)[0] == 5


def test_a_run_of_few_counts_is_told_and_not_called_wrong():
    few = simulate(sky=lambda i, mu: mu * (0.005 if i == 3 else 1.0), model=lambda i, mu: mu)
    columns = run_columns(few)
    assert columns["flag"][3] == 4
    assert 3 not in worst_first(columns)[:3]


def test_a_run_of_which_nothing_is_predicted_looks_wrong():
    columns = run_columns(simulate(model=lambda i, mu: mu * (0.0 if i == 9 else 1.0)))
    assert columns["flag"][9] & 1


# -- comparing -------------------------------------------------------------------------------------------------------


def test_only_what_has_the_same_counts_is_compared():
    one, other = simulate(10), simulate(10, seed=2)
    with pytest.raises(ValueError, match="counts differ"):
        compare({"one": one, "other": other}, "one")
    with pytest.raises(ValueError, match="reference 'none' is none of 'one'"):
        compare({"one": one}, "none")
    other.runs = other.runs.assign_coords(obs_id=other.runs["obs_id"] + 100)
    with pytest.raises(ValueError, match="no run in common"):
        compare({"one": one, "other": other}, "one")


def test_runs_that_one_of_them_lacks_are_left_out():
    one, other = simulate(10), simulate(10)
    other.runs = other.runs.isel(obs_id=slice(2, None))
    first, second = compare({"one": one, "other": other}, "one")
    assert first["runs"] == second["runs"] == 8
    assert second["raw"] == {"value": 0.0, "error": 0.0}


def test_the_error_of_a_difference_is_paired():
    """A difference that is the same in every event has no error, whatever the runs scatter."""
    right = simulate()
    noisy = simulate(model=lambda i, mu: 1.02 * mu)
    row = compare({"right": right, "noisy": noisy}, "right")[1]
    assert row["raw"]["error"] < 0.05 * abs(summarise(right)["scatter"]["value"])
