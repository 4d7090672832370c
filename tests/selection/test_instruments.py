"""Runs that are unlike all others of their instrument."""

from __future__ import annotations

import numpy as np
import pytest

from dask_bkg.selection.instruments import FEW_RUNS, LOPSIDED, unlike_others

N = 20
ODD = 7


@pytest.fixture
def runs():
    """Runs that scatter as those of an archive do."""
    rng = np.random.default_rng(3)
    ontime, e_thres = rng.uniform(600, 1700, N), rng.uniform(0.2, 1.3, N)
    return {
        "obs_id": np.arange(64001, 64001 + N),
        "ontime": ontime,
        "n_events": np.round(ontime * rng.uniform(3, 10, N)),
        "lo_thres": np.full(N, np.nan),
        "e_thres": e_thres,
        "ln_e_q25": np.log(e_thres * rng.uniform(0.8, 1.5, N)),
        "ln_e_max": np.log(rng.uniform(50, 200, N)),
        "off_q90": rng.uniform(2.4, 3.1, N),
        "lopsided": rng.uniform(0, 0.29, N),
    }


CHANGES = {
    "events per second": ("n_events", lambda n: n / 12),
    "25 % quantile of the energies": ("ln_e_q25", lambda x: x - np.log(1000)),
    "no event above its threshold": ("ln_e_max", lambda x: np.log(0.1)),
    "90 % quantile of the offsets": ("off_q90", lambda x: 0.3),
    "half of the field is empty": ("lopsided", lambda x: 2 / np.pi),
}


def test_usual_runs_are_alike(runs, caplog):
    assert not unlike_others(runs, 5).any()
    assert caplog.text == ""


@pytest.mark.parametrize("words", CHANGES)
def test_the_odd_one_is_listed_once_with_its_numbers(runs, caplog, words):
    name, change = CHANGES[words]
    runs[name][ODD] = change(runs[name][ODD])
    assert np.flatnonzero(unlike_others(runs, 5)).tolist() == [ODD]
    (said,) = caplog.messages
    assert f"run {64001 + ODD} does not contribute: " in said
    assert words in said
    assert "outlier_factor: 5" in said
    assert not unlike_others(runs, 0).any()


def test_a_run_that_is_odd_in_every_way_is_one_line(runs, caplog):
    for name, change in CHANGES.values():
        runs[name][ODD] = change(runs[name][ODD])
    runs["n_events"][ODD] = 1e6
    assert unlike_others(runs, 5).sum() == 1
    assert len(caplog.messages) == 1
    assert all(words in caplog.text for words in CHANGES)


def test_the_declared_threshold_is_taken_first(runs):
    runs["lo_thres"][ODD] = 1000.0  # TeV
    assert np.flatnonzero(unlike_others(runs, 5)).tolist() == [ODD]


def test_what_a_table_lacks_is_not_compared(runs):
    few = {name: runs[name] for name in ("obs_id", "ontime", "n_events")}
    few["n_events"][ODD] = 0
    assert np.flatnonzero(unlike_others(few, 5)).tolist() == [ODD]
    for name in ("e_thres", "ln_e_q25", "ln_e_max", "off_q90", "lopsided"):
        runs[name] = np.full(N, np.nan)
    assert np.flatnonzero(unlike_others(runs, 5)).tolist() == [ODD]


def test_each_instrument_has_its_median_and_few_runs_have_none(runs):
    runs["instrument_code"] = np.arange(N) % 2
    runs["n_events"] = runs["n_events"] * np.where(np.arange(N) % 2, 100, 1)
    assert not unlike_others(runs, 5).any()
    few = {name: column[: FEW_RUNS - 1].copy() for name, column in runs.items() if name != "instrument_code"}
    few["n_events"][0] *= 1000
    assert not unlike_others(few, 5).any()


def test_half_a_field_has_a_direction_and_a_whole_one_has_none():
    """What `LOPSIDED` is compared with, of events as in a camera whose half is dead; a source is not enough."""
    rng = np.random.default_rng(1)
    angle = rng.uniform(-np.pi, np.pi, 10_000)
    lopsided = [abs(np.exp(1j * some).mean()) for some in (angle, angle[angle > 0], np.append(angle, np.zeros(3000)))]
    assert lopsided[0] < 0.03
    assert lopsided[1] == pytest.approx(2 / np.pi, abs=0.02)
    assert lopsided[2] < LOPSIDED < lopsided[1]
