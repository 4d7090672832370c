"""Runs of their own for spectrum, shape and night: who they are, and what becomes of their counts."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from dask_bkg.background import estimate as rates
from dask_bkg.background.estimate import Histogram, RateSettings, estimate_rate, rate_of_shape
from dask_bkg.background.model import Model, night_factor, stacked_rate
from dask_bkg.background.stack import Stack
from dask_bkg.background.target import Target
from dask_bkg.binning import Edges
from dask_bkg.config import parse_config
from dask_bkg.selection import by_hand, choose_block, finish, settings_of_roles

EDGES = Edges(np.geomspace(0.1, 100, 31), np.linspace(0, 2.5, 11))
SOLID_ANGLE = -2 * np.pi * np.diff(np.cos(np.deg2rad(EDGES.offset)))


def exposure(ontime: float) -> np.ndarray:
    return ontime * np.outer(np.diff(EDGES.energy), SOLID_ANGLE)


def truth(index: float = 2.7, width: float = 1.2) -> np.ndarray:
    energy = np.sqrt(EDGES.energy[1:] * EDGES.energy[:-1])
    center = (EDGES.offset[1:] + EDGES.offset[:-1]) / 2
    return 500 * np.outer(energy**-index, np.exp(-0.5 * (center / width) ** 2))


def roles(**section):
    return settings_of_roles(parse_config({"background_selection": section}).background_selection)


# --- who contributes to what ---------------------------------------------------------------------------------------


def test_only_conditions_have_runs_of_their_own_unless_they_are_asked_for():
    assert list(roles()) == ["spectrum", "shape", "night"]
    for rank in ("kl", "kl-conditions", "likelihood", "elevation", "none"):
        assert list(roles(rank=rank)) == ["spectrum"]
        assert list(roles(rank=rank, shape_runs="wider", night_level=2)) == ["spectrum", "shape", "night"]
    assert list(roles(shape_runs="same", night_level=0)) == ["spectrum"]
    assert list(roles(KL_DIV=True)) == ["spectrum"]
    assert list(parse_config({"preset": "gammapy-tools"}).background_selection.model_dump()) == list(
        parse_config({}).background_selection.model_dump()
    )


def test_the_cuts_are_the_same_for_all_and_the_kernels_are_not():
    found = roles(el_min=40, time_request=3, shape_time_request="all", kernel={"cos_zenith": 0.1}, night_level=0.5)
    assert {section.el_min for section in found.values()} == {40}
    assert [section.hours_wanted for section in found.values()] == [3, np.inf, np.inf]
    assert found["spectrum"].kernel == {"cos_zenith": 0.1}
    assert found["night"].kernel == {"cos_zenith": 0.1, "time": 0.5}
    assert found["shape"].kernel == {"cos_zenith": 0.10, "e_thres": 0.20, "ln_e_q25": 0.20}


@pytest.fixture
def archive():
    """Forty runs of half an hour in ten nights, ten days apart, whose mirrors grow old."""
    n = 40
    night = np.repeat(np.arange(10), 4)
    return {
        "obs_id": np.arange(1, n + 1),
        "zenith": np.full(n, 20.0),
        "e_thres": np.full(n, 0.3),
        "muon_efficiency": 1.0 - 0.02 * night,
        "time": 53000 + 10.0 * night + np.tile([0.0, 0.02, 0.04, 0.06], 10),
        "livetime": np.full(n, 1800.0),
    }


def chosen(archive, settings):
    return finish(archive, choose_block(archive, archive, 0, None, None, settings), settings)


def test_a_shape_is_taken_from_runs_whatever_their_mirrors(archive):
    found = roles(time_request="all", shape_time_request="all")
    spectrum, shape = (chosen(archive, found[role]).of(0) for role in ("spectrum", "shape"))
    assert shape.weight.tolist() == [1.0] * 39
    assert 3 < spectrum.weight.sum() < 25


def test_the_level_of_a_night_is_told_by_its_runs_and_by_nobody_where_there_are_none(archive):
    settings = roles()["night"]
    found = chosen(archive, settings).of(0)
    assert found.obs_id[:3].tolist() == [2, 3, 4]
    assert_allclose(found.weight[:3], np.exp([-0.02, -0.04, -0.06]), rtol=1e-9)
    # ten days and the mirrors of ten days
    assert (found.weight[3:] < 1e-3).all()
    assert found.widened == 1
    alone = {name: values[[0, 20]] for name, values in archive.items()}
    assert chosen(alone, settings).of(0).run.size == 0


def test_a_run_without_a_date_tells_nothing_of_a_night(archive):
    archive["time"][1] = np.nan
    assert 2 not in chosen(archive, roles()["night"]).of(0).obs_id.tolist()


# --- what becomes of their counts -----------------------------------------------------------------------------------


def test_shape_of_the_many_and_level_of_the_few():
    """The few have another spectrum, and a shape that is not believed."""
    many = Histogram(truth() * exposure(1e6), exposure(1e6))
    few = Histogram(3 * truth(index=2.2, width=0.9) * exposure(1e4), exposure(1e4))
    made = rate_of_shape(few, many, EDGES)
    assert_allclose((made.value * few.exposure).sum(axis=1), few.counts.sum(axis=1), rtol=1e-9)
    shape = made.value / made.value[:, :1]
    assert_allclose(shape, truth() / truth()[:, :1], rtol=1e-6)


def test_the_shape_of_many_makes_a_better_rate_than_the_few_alone():
    rng = np.random.default_rng(5)
    few = Histogram(rng.poisson(truth() * exposure(3e4)).astype(float), exposure(3e4))
    many = Histogram(rng.poisson(truth() * exposure(1e6)).astype(float), exposure(1e6))
    with_shape, alone = (
        estimate_rate(*few, EDGES, RateSettings(node_values="plain"), shape) for shape in (many, None)
    )
    busy = truth() * few.exposure > 5
    error = [np.std(np.log(made.value / truth())[busy]) for made in (with_shape, alone)]
    assert error[0] < 0.6 * error[1]


def test_runs_of_a_shape_without_events_are_those_of_the_spectrum():
    few = Histogram(np.round(truth() * exposure(1e5)), exposure(1e5))
    nothing = Histogram(np.zeros(EDGES.shape), np.zeros(EDGES.shape))
    for made in (estimate_rate(*few, EDGES, None, nothing), estimate_rate(*few, EDGES)):
        assert (made.value > 0).all()
    assert_allclose(estimate_rate(*few, EDGES, None, nothing).value, estimate_rate(*few, EDGES).value)


def test_no_counts_anywhere_is_an_error():
    nothing = Histogram(np.zeros(EDGES.shape), exposure(1.0))
    something = Histogram(np.ones(EDGES.shape), exposure(1.0))
    for pair in ((nothing, something), (something, nothing)):
        with pytest.raises(ValueError, match="no counts"):
            rates.rate_of_shape(*pair, EDGES)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 20.0])
@pytest.mark.parametrize("dim", [0.7, 1.0, 1.4])
def test_the_night_moves_the_level_as_far_as_its_runs_are_believed(weight, dim):
    night = by_hand(1, [0], {"obs_id": np.array([2]), "livetime": np.ones(1)})._replace(weight=np.array([weight]))
    observed = dim * truth() * exposure(weight * 1800)
    stack = Stack(observed, exposure(weight * 1800), np.ones(1), observed.sum(axis=1))
    assert night_factor(truth(), night, stack).value == pytest.approx(dim ** (weight / (weight + 1)), rel=1e-12)


def test_a_night_scales_the_whole_background():
    counts, seen = truth() * exposure(1e5), exposure(1e5)
    table = {"obs_id": np.array([2, 3]), "livetime": np.ones(2)}
    runs = by_hand(1, [0, 1], table)
    night = by_hand(1, [1], table)
    made = {}
    for name, level in {"alike": 1.0, "dim": 0.5}.items():
        dimmed = level * truth() * exposure(1800)
        stacks = {
            "spectrum": Stack(counts, seen, np.array(1.0), counts.sum(axis=1)),
            "night": Stack(dimmed, exposure(1800), np.array(1.0), dimmed.sum(axis=1)),
        }
        chosen = {"spectrum": runs, "night": night}
        target = Target(1, "in.fits", "out.fits")
        made[name] = stacked_rate(target, chosen, stacks, None, Model(EDGES, RateSettings())).rate  # type: ignore[arg-type]
    assert_allclose(made["dim"].value / made["alike"].value, np.sqrt(0.5), rtol=1e-3)
    assert_allclose(made["dim"].average / made["alike"].average, np.sqrt(0.5), rtol=1e-3)
