"""From the stacks of a target to the node values of its background: rings, or pixels of the field. Eager arrays."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_bkg.background.estimate import Histogram, Rate, RateSettings, estimate_rate
from dask_bkg.background.field import FieldSettings, estimate_field
from dask_bkg.background.field_rotation import turn_to_radec
from dask_bkg.background.own_counts import Factor, Own, own_factors
from dask_bkg.background.target import FieldPlan, Sight, Target
from dask_bkg.background.variance import Weights, mean_weight
from dask_bkg.binning import TOLERANCE, Edges
from dask_bkg.errors import RunError
from dask_bkg.selection import Contributors, Selection
from dask_bkg.sky.horizon import SECONDS_PER_DAY, position_angle, zenith_position

STEP = 60.0
"""Seconds between the parallactic angles of a run: 0.3 deg, and a few where it passes near the zenith."""

NIGHT_PRIOR = 1.0
"""Runs that the level of the stack counts for where the nights around a target say something else."""


class Stacks(NamedTuple):
    """Stacks of some targets, of the shapes that `dask_bkg.background.stack.Stack` has.

    Attributes
    ----------
    counts, exposure, livetime
        In rings: events, exposure [s TeV sr] and livetime of the contributing runs [s].
    squares
        Variance of the counts of each energy, shape ``(targets, energy)``; None: as if no run were weighted.
    shape_counts, shape_exposure, shape_squares
        The same of the runs of the shape, where it has runs of its own.
    night_counts, night_exposure, night_squares
        The same of the runs that tell the level of the night, where they are asked.
    field_counts, field_exposure
        For 3D backgrounds in pixels of the field, of the runs of the shape: events, shape
        ``(targets, energy, fov_lat, fov_lon)``, and exposure [s sr], shape ``(targets, fov_lat, fov_lon)``.
    own_counts, own_exposure
        In rings those of the targets themselves, where they are asked.
    """

    counts: NDArray
    exposure: NDArray
    livetime: NDArray
    squares: NDArray | None = None
    shape_counts: NDArray | None = None
    shape_exposure: NDArray | None = None
    shape_squares: NDArray | None = None
    night_counts: NDArray | None = None
    night_exposure: NDArray | None = None
    night_squares: NDArray | None = None
    field_counts: NDArray | None = None
    field_exposure: NDArray | None = None
    own_counts: NDArray | None = None
    own_exposure: NDArray | None = None

    def of(self, row: int) -> Stacks:
        """The stacks of one target."""
        return Stacks(*(None if part is None else part[row] for part in self))  # type: ignore[arg-type]

    @property
    def shape(self) -> Histogram | None:
        """Rings of the runs of the shape; None: they are those of the spectrum."""
        if self.shape_counts is None or self.shape_exposure is None:
            return None
        return Histogram(self.shape_counts, self.shape_exposure)

    @property
    def weights(self) -> Weights:
        """Mean weight of the events, of one target."""
        spectrum = 1.0 if self.squares is None else mean_weight(self.counts, self.squares)
        if self.shape_counts is None or self.shape_squares is None:
            return Weights(spectrum, spectrum)
        return Weights(spectrum, mean_weight(self.shape_counts, self.shape_squares))


class Known(NamedTuple):
    """What is known of the runs of the archive, arrays of shape ``(runs,)``.

    Attributes
    ----------
    state
        A number for what each holds.
    zenith
        Zenith angles [deg].
    n_events
        Numbers of events.
    """

    state: NDArray
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


def stacked_rate(target: Target, chosen: Contributors, stacks: Stacks, known: Known, model: Model) -> Estimate:
    """Rate of the stack of one target, as it is written.

    Parameters
    ----------
    target
        The run that receives the background.
    chosen
        Who contributes.
    stacks
        Its stacks, of one target.
    known
        What is known of the runs of the archive.
    model
        How the rate is made.

    Raises
    ------
    RunError
        If there is no event in the stack.
    """
    if not stacks.counts.any():
        energy = model.edges.energy
        raise RunError(
            f"run {target.obs_id}: no event of its contributing runs is outside of the exclusion and within "
            f"{energy[0]:g}-{energy[-1]:g} TeV: look at binning.e_min, e_max"
        )
    if model.field is None:
        rate = _radial_rate(stacks, model)
    else:
        rate = _field_rate(target, chosen, stacks, known, model, model.field)
    night, rings = Factor(), slice(model.edges.offset.size - 1)
    if chosen.night is not None:
        night = night_factor(rate.average[:, rings], chosen.night, stacks)
        rate = _scaled(rate, np.full(rate.value.shape[0], night.value), added=night.error)
    if model.rate.own == "off":
        return Estimate(rate, night)
    own = _own(target, rate.average[:, rings], _level_error(rate), stacks, model)
    return Estimate(_scaled(rate, own.energies, level_error=own.level_error), night, own)


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


def _own(target: Target, mean: NDArray, level_error: NDArray, stacks: Stacks, model: Model) -> Own:
    """What the target's own counts say."""
    counts, exposure = stacks.own_counts, stacks.own_exposure
    if counts is None or exposure is None or mean.shape != counts.shape:
        raise ValueError("model.own needs the target's own rings, and a rate that has such")
    # where nobody knows the threshold it is where there are most counts
    threshold = target.threshold if target.threshold > 0 else model.edges.energy[int(counts.sum(axis=1).argmax())]
    seen = model.edges.energy[:-1] >= threshold * (1 - TOLERANCE)
    counts, expected = np.where(exposure > 0, counts, 0.0).sum(axis=1), (exposure * mean).sum(axis=1)
    return own_factors(counts, expected, level_error, seen, model.rate.own, model.rate.own_counts)


def _radial_rate(stacks: Stacks, model: Model) -> Rate:
    """Rate in rings."""
    edges = model.edges.energy, model.edges.offset
    rate = estimate_rate(stacks.counts, stacks.exposure, edges, model.rate, stacks.shape, stacks.weights)
    if model.rate.through_gammapy:
        from dask_bkg.background.irf import smooth_as_asked  # it takes seconds to load, and no other rate needs it

        rate = rate._replace(value=smooth_as_asked(rate.value, model.edges, model.rate))
    return rate


def night_factor(mean: NDArray, night: Selection, stacks: Stacks) -> Factor:
    """By how much the nights around the target differ in level from the stack; weather and dust do that.

    The counts of those runs over what the rate expects of them, held at 1 by a prior that counts for `NIGHT_PRIOR`
    runs of the same hour: step 5 of the recipe of ``science.md``, where it is the mean of the runs' logarithms.

    Parameters
    ----------
    mean
        Rate, averages over the rings [s-1 TeV-1 sr-1], shape ``(energy, ring)``.
    night
        Those runs; their weights fall with the difference in conditions and in time.
    stacks
        Theirs are ``night_counts`` and ``night_exposure``.

    Returns
    -------
    factor
        Its error is that of their counts; how the weather changes from run to run is not in it.
    """
    if stacks.night_counts is None or stacks.night_exposure is None or mean.shape != stacks.night_counts.shape:
        return Factor()
    observed, expected = float(stacks.night_counts.sum()), float((stacks.night_exposure * mean).sum())
    if not (observed > 0 and expected > 0):
        return Factor()
    squares = observed if stacks.night_squares is None else float(stacks.night_squares.sum())
    weight = float(night.weight.sum())
    power = weight / (weight + NIGHT_PRIOR)
    return Factor(float((observed / expected) ** power), power * math.sqrt(squares) / observed)


def _field_rate(
    target: Target, chosen: Contributors, stacks: Stacks, known: Known, model: Model, field: FieldPlan
) -> Rate:
    """Rate in pixels of the field, in the frame in which it is written."""
    if target.sight is None or stacks.field_counts is None or stacks.field_exposure is None:
        raise ValueError("a job of 3D backgrounds needs stacks in field pixels, and where the target looked")
    edges, sight = model.edges, target.sight
    if not stacks.field_exposure.any():
        raise RunError(
            f"run {target.obs_id}: none of its contributing runs has a field aligned with the horizon: the place of "
            "the array, or the times of the events (column TIME, MJDREFI), are missing in their EVENTS or do not go "
            "with ALT_PNT; correct them, or set binning.mode: 2d"
        )
    sines = _sin_zenith(chosen.of_shape, known), float(np.sin(np.deg2rad(sight.zenith)))
    if field.settings.tilts and not np.isfinite(sines).all():
        raise RunError(
            f"run {target.obs_id}: a gradient towards the zenith needs the zenith angle of the run and of those that "
            "contribute (ALT_PNT in EVENTS, or ZEN_PNT in the obs-index): add it, or set model.field: free"
        )
    rate = estimate_field(
        Histogram(stacks.counts, stacks.exposure),
        Histogram(stacks.field_counts, np.diff(field.edges.energy)[:, None, None] * stacks.field_exposure),
        (edges.energy, edges.offset, field.edges.fov),
        sines,
        model.rate,
        field.settings,
        zenith=(0.0, 1.0) if field.counted == "altaz" else _upwards(target, field.settings),
        shape=stacks.shape,
        weights=stacks.weights,
    )
    if field.counted == field.written:
        return rate
    pixels, angles = field.edges.fov, parallactic_angles(sight)
    error = None if rate.error is None else turn_to_radec(rate.error, pixels, angles)
    return rate._replace(value=turn_to_radec(rate.value, pixels, angles), error=error)


def _sin_zenith(chosen: Selection, known: Known) -> float:
    """Mean sine of the zenith angle of the contributing runs that tell it, over their events; NaN: none does."""
    sine, weight = np.sin(np.deg2rad(known.zenith[chosen.run])), chosen.weight * known.n_events[chosen.run]
    told = np.isfinite(sine) & (weight > 0)
    return float(np.average(sine[told], weights=weight[told])) if told.any() else math.nan


def parallactic_angles(sight: Sight) -> NDArray:
    """Parallactic angles [deg] in the course of a run, evenly spaced in time.

    The good time intervals are taken for one about the middle of the run: what a gap moves is less than a step.
    """
    steps = max(1, math.ceil(sight.ontime / STEP))
    middle = (np.arange(steps) + 0.5) / steps - 0.5
    times = sight.time + middle * sight.ontime / SECONDS_PER_DAY
    zeniths = [zenith_position(time, sight.site_lon, sight.site_lat) for time in times.tolist()]
    return np.array([position_angle(sight.ra, sight.dec, *zenith) for zenith in zeniths])


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
