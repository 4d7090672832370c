"""From the stacks of a target to the node values of its background: rings, or pixels of the field. Eager arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_bkg.background.estimate import Histogram, Rate, RateSettings, estimate_rate
from dask_bkg.background.field import FieldSettings, estimate_field
from dask_bkg.background.field_rotation import turn_to_radec
from dask_bkg.background.own_counts import Factor, Own, own_factors
from dask_bkg.background.stack import Stack
from dask_bkg.background.target import FieldPlan, Sight, Target
from dask_bkg.background.variance import Weights, mean_weight
from dask_bkg.binning import TOLERANCE, Edges
from dask_bkg.errors import RunError
from dask_bkg.selection import Selection
from dask_bkg.sky.horizon import SECONDS_PER_DAY, position_angle, zenith_position

STEP = 60.0
"""Seconds between the parallactic angles of a run: 0.3 deg, and a few where it passes near the zenith."""

NIGHT_PRIOR = 1.0
"""Runs that the level of the stack counts for where the nights around a target say something else."""


class RunMetadata(NamedTuple):
    """Metadata of the runs of the archive, arrays of shape ``(runs,)``.

    Attributes
    ----------
    key
        A number for what the run store holds of each: events, exclusion and how they are counted.
    zenith
        Zenith angles [deg].
    n_events
        Numbers of events.
    """

    key: NDArray
    zenith: NDArray
    n_events: NDArray


class Model(NamedTuple):
    """How backgrounds are made of stacks.

    Attributes
    ----------
    edges, rate
        Energies and rings, and how a rate is made of their counts.
    field
        What there is beside them in a job of 3D backgrounds.
    """

    edges: Edges
    rate: RateSettings
    field: FieldPlan | None = None


class Estimate(NamedTuple):
    """The rate of a background, and what was done to the level of its stack.

    Attributes
    ----------
    rate
        As it is written.
    night
        Factor by the nights around.
    own
        Factors by the run's own counts; None where they are not asked.
    """

    rate: Rate
    night: Factor = Factor()
    own: Own | None = None


def stacked_rate(
    target: Target, chosen: Mapping[str, Selection], stacks: Mapping[str, Stack], runs: RunMetadata, model: Model
) -> Estimate:
    """Rate of the stack of one target, as it is written.

    Parameters
    ----------
    target
        The run that receives the background.
    chosen
        The contributing runs by role; that of the spectrum is always there.
    stacks
        Their stacks by role (`dask_bkg.background.stack.Stacks`), of this target alone.
    runs
        Metadata of the runs of the archive.
    model
        How the rate is made.

    Raises
    ------
    RunError
        If there is no event in the stack.
    """
    if not stacks["spectrum"].counts.any():
        energy = model.edges.energy
        raise RunError(
            f"run {target.obs_id}: no event of its contributing runs is outside of the exclusion and within "
            f"{energy[0]:g}-{energy[-1]:g} TeV: look at binning.e_min, e_max"
        )
    if model.field is None:
        rate = _radial_rate(stacks, model)
    else:
        rate = _field_rate(target, chosen, stacks, runs, model, model.field)
    night, rings = Factor(), slice(model.edges.offset.size - 1)
    if "night" in chosen:
        night = night_factor(rate.average[:, rings], chosen["night"], stacks["night"])
        rate = _scaled(rate, np.full(rate.value.shape[0], night.value), added=night.error)
    if model.rate.own == "off":
        return Estimate(rate, night)
    own = _own(target, rate.average[:, rings], _level_error(rate), stacks["own"], model)
    return Estimate(_scaled(rate, own.energies, level_error=own.level_error), night, own)


def weights_of(stacks: Mapping[str, Stack]) -> Weights:
    """Mean weight of the events of spectrum and shape, of one target."""
    spectrum = mean_weight(stacks["spectrum"].counts, stacks["spectrum"].squares)
    shape = stacks.get("shape")
    return Weights(spectrum, spectrum if shape is None else mean_weight(shape.counts, shape.squares))


def _shape_of(stacks: Mapping[str, Stack]) -> Histogram | None:
    """Rings of the runs of the shape; None: they are those of the spectrum."""
    return Histogram(stacks["shape"].counts, stacks["shape"].exposure) if "shape" in stacks else None


def _level_error(rate: Rate) -> NDArray:
    return np.zeros(rate.value.shape[0]) if rate.level_error is None else rate.level_error


def _scaled(rate: Rate, factor: NDArray, level_error: NDArray | None = None, added: float = 0.0) -> Rate:
    """A rate times a factor of each energy; the error of the level is another one, or has something added to it."""
    before = _level_error(rate)
    after = np.hypot(before, added) if level_error is None else level_error
    error = rate.error
    if error is not None:
        change = _beside(after**2 - before**2, error)
        error = np.sqrt(np.maximum(error**2 + change, 0.0))
    mean = rate.average * _beside(factor, rate.average)
    return rate._replace(value=rate.value * _beside(factor, rate.value), mean=mean, error=error, level_error=after)


def _beside(energies: NDArray, array: NDArray) -> NDArray:
    """Numbers of the energies, beside an array of them and more."""
    return energies.reshape(-1, *(1,) * (array.ndim - 1))


def _own(target: Target, mean: NDArray, level_error: NDArray, own: Stack, model: Model) -> Own:
    """What the target's own counts say."""
    counts, exposure = own.counts, own.exposure
    if mean.shape != counts.shape:
        raise ValueError("model.own needs a rate in the target's own rings")
    # where nobody knows the threshold it is where there are most counts
    threshold = target.threshold if target.threshold > 0 else model.edges.energy[int(counts.sum(axis=1).argmax())]
    seen = model.edges.energy[:-1] >= threshold * (1 - TOLERANCE)
    counts, expected = np.where(exposure > 0, counts, 0.0).sum(axis=1), (exposure * mean).sum(axis=1)
    return own_factors(counts, expected, level_error, seen, model.rate.own, model.rate.own_counts)


def _radial_rate(stacks: Mapping[str, Stack], model: Model) -> Rate:
    """Rate in rings."""
    edges, spectrum = (model.edges.energy, model.edges.offset), stacks["spectrum"]
    rate = estimate_rate(spectrum.counts, spectrum.exposure, edges, model.rate, _shape_of(stacks), weights_of(stacks))
    if model.rate.through_gammapy:
        from dask_bkg.background.irf import smooth_as_asked  # it takes seconds to load, and no other rate needs it

        rate = rate._replace(value=smooth_as_asked(rate.value, model.edges, model.rate))
    return rate


def night_factor(mean: NDArray, night: Selection, stack: Stack) -> Factor:
    """By how much the nights around the target differ in level from the stack; weather and dust do that.

    The counts of those runs over what the rate expects of them, held at 1 by a prior that counts for `NIGHT_PRIOR`
    runs of the same hour: step 6 of `dask_bkg.background`.

    Parameters
    ----------
    mean
        Rate, averages over the rings [s-1 TeV-1 sr-1], shape ``(energy, ring)``.
    night
        Those runs; their weights fall with the difference in conditions and in time.
    stack
        Their stack.

    Returns
    -------
    factor
        Its error is that of their counts; how the weather changes from run to run is not in it.
    """
    if mean.shape != stack.counts.shape:
        return Factor()
    observed, expected = float(stack.counts.sum()), float((stack.exposure * mean).sum())
    if not (observed > 0 and expected > 0):
        return Factor()
    squares = float(stack.squares.sum())
    weight = float(night.weight.sum())
    power = weight / (weight + NIGHT_PRIOR)
    return Factor(float((observed / expected) ** power), power * math.sqrt(squares) / observed)


def _field_rate(
    target: Target,
    chosen: Mapping[str, Selection],
    stacks: Mapping[str, Stack],
    runs: RunMetadata,
    model: Model,
    field: FieldPlan,
) -> Rate:
    """Rate in pixels of the field, in the frame in which it is written."""
    if target.sight is None or "field" not in stacks:
        raise ValueError("a job of 3D backgrounds needs stacks in field pixels, and where the target looked")
    edges, sight, pixels = model.edges, target.sight, stacks["field"]
    if not pixels.exposure.any():
        raise RunError(
            f"run {target.obs_id}: none of its contributing runs has a field aligned with the horizon: the place of "
            "the array, or the times of the events (column TIME, MJDREFI), are missing in their EVENTS or do not go "
            "with ALT_PNT; correct them, or set binning.mode: 2d"
        )
    of_shape = chosen.get("shape", chosen["spectrum"])
    sines = _sin_zenith(of_shape, runs), float(np.sin(np.deg2rad(sight.zenith)))
    if field.settings.tilts and not np.isfinite(sines).all():
        raise RunError(
            f"run {target.obs_id}: a gradient towards the zenith needs the zenith angle of the run and of those that "
            "contribute (ALT_PNT in EVENTS, or ZEN_PNT in the obs-index): add it, or set model.field: free"
        )
    rate = estimate_field(
        Histogram(stacks["spectrum"].counts, stacks["spectrum"].exposure),
        Histogram(pixels.counts, np.diff(field.edges.energy)[:, None, None] * pixels.exposure),
        (edges.energy, edges.offset, field.edges.fov),
        sines,
        model.rate,
        field.settings,
        zenith=(0.0, 1.0) if field.counted == "altaz" else _upwards(target, field.settings),
        shape=_shape_of(stacks),
        weights=weights_of(stacks),
    )
    if field.counted == field.written:
        return rate
    fov, angles = field.edges.fov, parallactic_angles(sight)
    error = None if rate.error is None else turn_to_radec(rate.error, fov, angles)
    return rate._replace(value=turn_to_radec(rate.value, fov, angles), error=error)


def _sin_zenith(chosen: Selection, runs: RunMetadata) -> float:
    """Mean sine of the zenith angle of the contributing runs that have one, over their events; NaN: none has."""
    sine, weight = np.sin(np.deg2rad(runs.zenith[chosen.run])), chosen.weight * runs.n_events[chosen.run]
    finite = np.isfinite(sine) & (weight > 0)
    return float(np.average(sine[finite], weights=weight[finite])) if finite.any() else math.nan


def parallactic_angles(sight: Sight) -> NDArray:
    """Parallactic angles [deg] in the course of a run, evenly spaced in time.

    The good time intervals are taken for one about the middle of the run: what a gap moves is less than a step.
    """
    steps = max(1, math.ceil(sight.ontime / STEP))
    middle = (np.arange(steps) + 0.5) / steps - 0.5
    times = sight.time + middle * sight.ontime / SECONDS_PER_DAY
    return position_angle(sight.ra, sight.dec, *zenith_position(times, sight.site_lon, sight.site_lat))


def _upwards(target: Target, settings: FieldSettings) -> tuple[float, float]:
    """Direction of the zenith in a field that is aligned with north, mean over the run, a unit vector."""
    if not settings.tilts or target.sight is None:
        return 0.0, 1.0
    if not np.isfinite(target.sight).all():
        raise RunError(
            f"run {target.obs_id}: nobody knows where the zenith was (GEOLON, GEOLAT, TSTART, MJDREFI in its EVENTS "
            "header): set model.field: free"
        )
    angle = np.deg2rad(parallactic_angles(target.sight))
    # fov_lon grows to the west, a position angle to the east
    lon, lat = -np.sin(angle).mean(), np.cos(angle).mean()
    return lon / np.hypot(lon, lat), lat / np.hypot(lon, lat)
