"""From the stacks of a target to the node values of its background: rings, or pixels of the field. Eager arrays."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_bkg.dl3.headers import SECONDS_PER_DAY
from dask_bkg.dl3.horizon import position_angle, zenith_position
from dask_bkg.errors import RunError
from dask_bkg.modulation import FieldSettings, estimate_field, turn_to_radec
from dask_bkg.plan import FieldPlan, Sight, Target
from dask_bkg.rate import Histogram, Rate, RateSettings, estimate_rate
from dask_bkg.schema import Edges
from dask_bkg.selection import Contributors, Selection

STEP = 60.0
"""Seconds between the parallactic angles of a run: 0.3 deg, and a few where it passes near the zenith."""

NIGHT_PRIOR = 1.0
"""Runs that the level of the stack counts for where the nights around a target say something else."""


class Stacks(NamedTuple):
    """Stacks of some targets, of the shapes that `dask_bkg.stacking.Stack` has.

    Attributes
    ----------
    counts, exposure, livetime
        In rings: events, exposure [s TeV sr] and livetime of the contributing runs [s].
    shape_counts, shape_exposure
        The same of the runs of the shape, where it has runs of its own.
    night_counts, night_exposure
        The same of the runs that tell the level of the night, where they are asked.
    field_counts, field_exposure
        For 3D backgrounds in pixels of the field, of the runs of the shape: events, shape
        ``(targets, energy, fov_lat, fov_lon)``, and exposure [s sr], shape ``(targets, fov_lat, fov_lon)``.
    """

    counts: NDArray
    exposure: NDArray
    livetime: NDArray
    shape_counts: NDArray | None = None
    shape_exposure: NDArray | None = None
    night_counts: NDArray | None = None
    night_exposure: NDArray | None = None
    field_counts: NDArray | None = None
    field_exposure: NDArray | None = None

    def of(self, row: int) -> Stacks:
        """The stacks of one target."""
        return Stacks(*(None if part is None else part[row] for part in self))  # type: ignore[arg-type]

    @property
    def shape(self) -> Histogram | None:
        """Rings of the runs of the shape; None: they are those of the spectrum."""
        if self.shape_counts is None or self.shape_exposure is None:
            return None
        return Histogram(self.shape_counts, self.shape_exposure)


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


def stacked_rate(target: Target, chosen: Contributors, stacks: Stacks, known: Known, model: Model) -> Rate:
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
    if chosen.night is None:
        return rate
    factor = night_factor(rate.average[:, : model.edges.offset.size - 1], chosen.night, stacks)
    return rate._replace(value=rate.value * factor, mean=rate.average * factor)


def _radial_rate(stacks: Stacks, model: Model) -> Rate:
    """Rate in rings."""
    edges = model.edges.energy, model.edges.offset
    rate = estimate_rate(stacks.counts, stacks.exposure, edges, model.rate, stacks.shape)
    if model.rate.through_gammapy:
        from dask_bkg.irf import smooth_as_asked  # it takes seconds to load, and no other rate needs it

        rate = rate._replace(value=smooth_as_asked(rate.value, model.edges, model.rate))
    return rate


def night_factor(mean: NDArray, night: Selection, stacks: Stacks) -> float:
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
    """
    if stacks.night_counts is None or stacks.night_exposure is None or mean.shape != stacks.night_counts.shape:
        return 1.0
    observed, expected = float(stacks.night_counts.sum()), float((stacks.night_exposure * mean).sum())
    if not (observed > 0 and expected > 0):
        return 1.0
    weight = float(night.weight.sum())
    return float((observed / expected) ** (weight / (weight + NIGHT_PRIOR)))


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
    )
    if field.counted == field.written:
        return rate
    return rate._replace(value=turn_to_radec(rate.value, field.edges.fov, parallactic_angles(sight)))


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
