"""How runs are ranked and weighted: the kernel against its formula, what stands in for what is missing, the order."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from dask_bkg import selection
from dask_bkg.config import parse_config
from dask_bkg.errors import ConfigError
from dask_bkg.selection import ranking
from dask_bkg.selection.ranking import RANKINGS, WIDTHS, kernel_distance

NAN = np.nan


def table(n=1, **columns):
    """Runs 1, 2, ... that are equal in what the kernel compares; columns replace what is told."""
    equal = {
        "obs_id": np.arange(1, n + 1),
        "zenith": np.full(n, 30.0),
        "e_thres": np.full(n, 0.5),
        "muon_efficiency": np.full(n, 0.9),
        "aeff_integral": np.full(n, 4e5),
        "ln_e_q25": np.full(n, -0.3),
        "nsb": np.full(n, 5.0),
    }
    return equal | {name: np.asarray(values, dtype=float) for name, values in columns.items()}


def distance(target, run):
    """Squared distance of one run from one target."""
    return kernel_distance(target, run)[0].item()


def lacking(target, run):
    return kernel_distance(target, run)[1].item()


def test_the_kernel_is_the_formula_of_the_recipe():
    rng = np.random.default_rng(0)
    zenith, threshold, muons = rng.uniform(0, 60, 40), rng.uniform(0.2, 2, 40), rng.uniform(0.8, 1.2, 40)
    runs = table(40, zenith=zenith, e_thres=threshold, muon_efficiency=muons, nsb=rng.uniform(2, 9, 40))
    found, lack = kernel_distance(table(), runs)
    expected = (
        ((np.cos(np.deg2rad(zenith)) - np.cos(np.deg2rad(30))) / 0.05) ** 2
        + (np.log(threshold / 0.5) / 0.10) ** 2
        + (np.log(muons / 0.9) / 0.07) ** 2
    )
    assert_allclose(found[0], expected, rtol=1e-12)
    assert not lack.any()


def test_the_kernel_is_symmetric_and_zero_for_the_run_itself():
    rng = np.random.default_rng(1)
    runs = table(20, zenith=rng.uniform(0, 60, 20), e_thres=rng.uniform(0.2, 2, 20))
    found, _ = kernel_distance(runs, runs)
    assert_array_equal(found, found.T)
    assert not np.diag(found).any()


@pytest.mark.parametrize("side", ["target", "run", "both"])
def test_the_effective_area_stands_in_for_the_muon_efficiency(side):
    """And the night sky, another thing than the efficiency of the mirrors, is compared beside it."""
    mine, theirs = {"aeff_integral": [4e5], "nsb": [5.0]}, {"aeff_integral": [5e5], "nsb": [5.7]}
    if side in ("target", "both"):
        mine["muon_efficiency"] = [NAN]
    if side in ("run", "both"):
        theirs["muon_efficiency"] = [NAN]
    expected = (math.log(5 / 4) / 0.10) ** 2 + (0.7 / 0.35) ** 2
    assert distance(table(**mine), table(**theirs)) == pytest.approx(expected)
    assert lacking(table(**mine), table(**theirs)) == (1 if side == "run" else 0)


def test_the_night_sky_does_not_count_beside_the_muon_efficiency():
    assert distance(table(nsb=[3.0]), table(nsb=[9.0])) == 0


def test_the_spectrum_of_the_events_stands_in_where_there_is_no_effective_area():
    nothing = {"e_thres": [NAN], "aeff_integral": [NAN], "nsb": [NAN]}
    found = distance(table(**nothing, ln_e_q25=[-0.3]), table(**nothing, ln_e_q25=[-0.1], muon_efficiency=[0.99]))
    assert found == pytest.approx((0.2 / 0.10) ** 2 + (math.log(0.99 / 0.9) / 0.07) ** 2)


def test_the_spectrum_of_the_events_counts_once_where_it_stands_in_for_two():
    nothing = {"e_thres": [NAN], "aeff_integral": [NAN], "muon_efficiency": [NAN], "nsb": [NAN]}
    found = distance(table(**nothing, ln_e_q25=[-0.3]), table(**nothing, ln_e_q25=[-0.1]))
    assert found == pytest.approx((0.2 / 0.10) ** 2)


def test_the_spectrum_stands_in_for_the_efficiency_where_only_the_threshold_is_there():
    nothing = {"aeff_integral": [NAN], "muon_efficiency": [NAN], "nsb": [NAN]}
    found = distance(table(**nothing), table(**nothing, e_thres=[0.55], ln_e_q25=[-0.2]))
    assert found == pytest.approx((math.log(1.1) / 0.10) ** 2 + (0.1 / 0.10) ** 2)


@pytest.mark.parametrize("name", ["e_thres", "muon_efficiency", "aeff_integral"])
@pytest.mark.parametrize("value", [0.0, -1.0, np.inf])
def test_what_has_no_logarithm_is_missing(name, value):
    missing = {"muon_efficiency": [NAN]} if name == "aeff_integral" else {}
    for other in (table(), table(zenith=[20.0], ln_e_q25=[0.0])):
        with np.errstate(all="raise"):
            found = kernel_distance(table(**missing), other | {name: np.array([value])})
        assert found == kernel_distance(table(**missing), other | {name: np.array([NAN])})


def test_what_the_target_lacks_does_not_count():
    nothing = {name: [NAN] for name in ("e_thres", "aeff_integral", "muon_efficiency", "nsb", "ln_e_q25")}
    runs = table(3, zenith=[30, 40, 30], e_thres=[0.1, 1, 9], muon_efficiency=[NAN, 1, 2], nsb=[1, NAN, 9])
    found, lack = kernel_distance(table(**nothing), runs)
    expected = ((np.cos(np.deg2rad([30, 40, 30])) - np.cos(np.deg2rad(30))) / 0.05) ** 2
    assert_allclose(found[0], expected)
    assert not lack.any()


def test_what_cannot_be_compared_although_the_target_has_it_counts_as_two_widths():
    runs = [
        table(zenith=[NAN]),
        table(e_thres=[NAN], ln_e_q25=[NAN]),
        table(muon_efficiency=[NAN], aeff_integral=[NAN], ln_e_q25=[NAN]),
        table(e_thres=[NAN], muon_efficiency=[NAN], aeff_integral=[NAN], ln_e_q25=[NAN]),
    ]
    assert [distance(table(), run) for run in runs] == [4.0] * 4
    without_muons = table(muon_efficiency=[NAN])
    assert distance(without_muons, table(nsb=[NAN])) == 4.0


def test_what_a_run_lacks_is_counted_by_what_the_target_is_compared_by():
    assert lacking(table(), table(e_thres=[NAN], muon_efficiency=[NAN], zenith=[NAN])) == 3
    assert lacking(table(), table(aeff_integral=[NAN], nsb=[NAN], ln_e_q25=[NAN])) == 0
    without_muons = table(muon_efficiency=[NAN])
    assert lacking(without_muons, table(aeff_integral=[NAN], nsb=[NAN], ln_e_q25=[NAN])) == 2
    without_area = table(muon_efficiency=[NAN], aeff_integral=[NAN], e_thres=[NAN])
    assert lacking(without_area, table(ln_e_q25=[NAN])) == 1


def test_a_run_that_lacks_something_ranks_behind_those_that_have_it_but_keeps_its_weight():
    runs = table(3, zenith=[60, 30, 30], muon_efficiency=[0.9, NAN, 0.9], e_thres=[0.9, 0.5, NAN])
    score, found = ranking.by_conditions(table(), runs, None, None, WIDTHS)
    assert np.argsort(score[0])[0] == 0
    assert found[0, 0] > 40
    assert found[0, 1:].tolist() == [0, 0]


def test_a_table_without_a_column_is_one_of_runs_that_lack_it():
    short = {name: values for name, values in table(3).items() if name not in ("nsb", "muon_efficiency")}
    whole = table(3, nsb=[NAN] * 3, muon_efficiency=[NAN] * 3)
    for found, expected in zip(kernel_distance(short, short), kernel_distance(whole, whole), strict=True):
        assert_array_equal(found, expected)


def test_the_divergence_with_runs_that_cover_too_little_behind():
    kl, poor = np.array([[0.3, 0.1, 0.2]]), np.array([[False, True, False]])
    score, found = ranking.by_divergence(table(), table(3), kl, poor, WIDTHS)
    assert np.argsort(score[0]).tolist() == [2, 0, 1]
    assert found is None
    assert_array_equal(ranking.by_divergence(table(), table(3), kl, None, WIDTHS)[0], kl)


def test_divergence_times_kernel_is_ranked_by_the_one_and_weighted_by_the_other():
    kl, runs = np.array([[0.3, 0.1, 0.2]]), table(3, zenith=[30, 40, 50])
    score, found = ranking.by_divergence_and_conditions(table(), runs, kl, None, WIDTHS)
    assert_array_equal(score, kl)
    assert_array_equal(found, kernel_distance(table(), runs)[0])


@pytest.mark.parametrize("name", ["kl", "kl-conditions", "likelihood", "likelihood-conditions"])
def test_a_ranking_by_divergence_without_divergences_is_an_error(name):
    with pytest.raises(ValueError, match="kl"):
        RANKINGS[name].scores(table(), table(), None, None, WIDTHS)


def test_an_unknown_ranking_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"'best'.*none, elevation, kl, conditions, kl-conditions"):
        selection.weighs(SimpleNamespace(ranking="best"))


def test_the_rankings_are_those_of_the_configuration():
    for name in RANKINGS:
        settings = parse_config({"background_selection": {"rank": name}}).background_selection
        assert settings.ranking == name
        assert selection.needs_divergence(settings) == ("kl" in name or "likelihood" in name)
        assert selection.weighs(settings) == ("conditions" in name or "likelihood" in name)


def test_a_further_ranking_is_one_function(monkeypatch):
    def by_number(targets, runs, kl, poor, widths):
        return np.abs(np.subtract.outer(targets["obs_id"], runs["obs_id"]).astype(float)), None

    monkeypatch.setitem(RANKINGS, "number", ranking.Ranking(by_number))
    runs = table(9) | {"livetime": np.full(9, 3600.0)}
    settings = SimpleNamespace(ranking="number", hours_wanted=3.0)
    chosen = selection.finish(runs, selection.choose_block(runs, runs, 0, None, None, settings), settings)
    assert chosen.of(4).obs_id.tolist() == [4, 6, 3]


# --- other kernels --------------------------------------------------------------------------------------------------


def test_a_kernel_compares_what_it_has_a_width_for_and_nothing_else():
    target, run = table(), table(zenith=[50], e_thres=[0.7], muon_efficiency=[0.5], nsb=[9], aeff_integral=[1e5])
    cosine = ((np.cos(np.deg2rad(50)) - np.cos(np.deg2rad(30))) / 0.10) ** 2
    found, lack = kernel_distance(target, run, ranking.SHAPE_WIDTHS)
    assert found.item() == pytest.approx(cosine + (np.log(0.7 / 0.5) / 0.20) ** 2, rel=1e-12)
    assert lack.item() == 0
    assert kernel_distance(target, run, {"cos_zenith": 0.10})[0].item() == pytest.approx(cosine, rel=1e-12)


def test_without_mirrors_a_quantile_stands_in_for_the_threshold_alone():
    no_threshold = table(e_thres=[NAN], muon_efficiency=[NAN], aeff_integral=[NAN])
    run = table(e_thres=[NAN], ln_e_q25=[-0.1], muon_efficiency=[NAN], aeff_integral=[NAN])
    found, _ = kernel_distance(no_threshold, run, ranking.SHAPE_WIDTHS)
    assert found.item() == pytest.approx((0.2 / 0.20) ** 2, rel=1e-12)
    assert kernel_distance(table(), table(ln_e_q25=[5.0]), ranking.SHAPE_WIDTHS)[0].item() == 0


def test_nights_age_and_an_undated_one_is_infinitely_old():
    runs = table(3) | {"time": np.array([100.0, 103.0, NAN])}
    found, _ = kernel_distance(runs, runs, {**WIDTHS, ranking.TIME: 2.0})
    assert_allclose(found[0], [0.0, 3.0, np.inf])
    assert np.exp(-found[0, 1] / 2) == pytest.approx(np.exp(-3 / 2.0))


def test_a_likelihood_weighs_by_the_divergence():
    kl, poor = np.array([[0.003, 0.0, 0.010, np.inf]]), np.array([[False, False, True, False]])
    score, found = ranking.by_likelihood(table(), table(4), kl, poor, {"divergence": 0.005})
    assert_allclose(np.exp(-found[0, :2] / 2), np.exp([-0.6, 0.0]))
    assert np.exp(-found[0, 2] / 2) == 0.0
    assert np.argsort(score[0]).tolist()[:3] == [1, 0, 2]


def test_likelihood_times_kernel_is_ranked_and_weighted_by_both():
    kl, runs = np.array([[0.0, 0.010, np.inf]]), table(3, zenith=[45, 30, 30])
    score, found = ranking.by_likelihood_and_conditions(table(), runs, kl, None, WIDTHS)
    conditions = kernel_distance(table(), runs)[0]
    assert_allclose(found[0, :2], conditions[0, :2] + 2 * kl[0, :2] / ranking.DIVERGENCE_WIDTH)
    assert_allclose(score[0, :2], found[0, :2])
    assert np.isinf(score[0, 2])
