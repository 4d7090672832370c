"""From the stacks of a target to the node values of its background: offset bins, or field pixels. Eager arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_bkg.background.estimate import Histogram, Rate, RateSettings, estimate_rate
from dask_bkg.background.field import estimate_field
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
"""Seconds between the parallactic angles of a run: steps of 0.3 deg, of a few degrees near the zenith."""

NIGHT_PRIOR = 1.0
"""Number of runs that the normalisation of the stack is worth against that of the neighbouring nights."""


class RunMetadata(NamedTuple):
    """Metadata of the runs of the archive, arrays of shape ``(runs,)``; zenith angles are deg.

    ``key`` is that of the row of a run in the run store: it depends on events, exclusion and how they are counted.
    """

    key: NDArray
    zenith: NDArray
    n_events: NDArray


class Model(NamedTuple):
    """How backgrounds are estimated, in bins of energy [TeV] and offset [deg]; ``field`` is for 3D only."""

    edges: Edges
    rate: RateSettings
    field: FieldPlan | None = None


class Estimate(NamedTuple):
    """The rate of a background as it is written, and the factors that were applied to that of its stack.

    ``night`` is by the runs of the same and neighbouring nights, ``own`` by the run's own counts (None: not used).
    """

    rate: Rate
    night: Factor = Factor()
    own: Own | None = None


def stacked_rate(
    target: Target, chosen: Mapping[str, Selection], stacks: Mapping[str, Stack], runs: RunMetadata, model: Model
) -> Estimate:
    """Rate of the background of one target, as it is written.

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
        How the rate is estimated.

    Returns
    -------
    estimate
        Rate [s-1 TeV-1 sr-1], shape ``(energy, offset)`` or ``(energy, fov_lat, fov_lon)``, and factors on it.

    Raises
    ------
    RunError
        If the stack has no event, or the zenith is needed and unknown.
    """
    if not stacks["spectrum"].counts.any():
        energy = model.edges.energy
        raise RunError(
            f"run {target.obs_id}: no event of its contributing runs is outside of the exclusion and within "
            f"{energy[0]:g}-{energy[-1]:g} TeV: check binning.e_min, e_max"
        )
    rate = _radial_rate(stacks, model) if model.field is None else _field_rate(target, chosen, stacks, runs, model)
    # a rate over the field has offset bins beyond these, to its corners
    night, inner = Factor(), slice(model.edges.offset.size - 1)
    if "night" in chosen:
        night = night_factor(rate.average[:, inner], chosen["night"], stacks["night"])
        rate = _scaled(rate, np.full(rate.value.shape[0], night.value), added=night.error)
    if model.rate.own == "off":
        return Estimate(rate, night)
    own = _own(target, rate.average[:, inner], _level_error(rate), stacks.get("own"), model)
    return Estimate(_scaled(rate, own.energies, level_error=own.level_error), night, own)


def weights_of(stacks: Mapping[str, Stack]) -> Weights:
    """Mean weight of the events of spectrum and shape of one target, each of shape ``(energy,)``."""
    spectrum = mean_weight(stacks["spectrum"].counts, stacks["spectrum"].squares)
    shape = stacks.get("shape")
    return Weights(spectrum, spectrum if shape is None else mean_weight(shape.counts, shape.squares))


def _shape_of(stacks: Mapping[str, Stack]) -> Histogram | None:
    """Offset bins of the runs of the shape; None: the runs of the spectrum."""
    return Histogram(stacks["shape"].counts, stacks["shape"].exposure) if "shape" in stacks else None


def _level_error(rate: Rate) -> NDArray:
    return np.zeros(rate.value.shape[0]) if rate.level_error is None else rate.level_error


def _scaled(rate: Rate, factor: NDArray, level_error: NDArray | None = None, added: float = 0.0) -> Rate:
    """A rate times a factor of each energy; the error of the normalisation is replaced, or gets an added part."""
    before = _level_error(rate)
    after = np.hypot(before, added) if level_error is None else level_error
    error = np.sqrt(np.maximum(rate.error**2 + _per_energy(after**2 - before**2, rate.error), 0.0))
    value, mean = (array * _per_energy(factor, array) for array in (rate.value, rate.average))
    return Rate(value, rate.flag, error, mean, after, rate.resolution)


def _per_energy(values: NDArray, array: NDArray) -> NDArray:
    """A number for each energy in a shape that multiplies an array ``(energy, ...)``."""
    return values.reshape(-1, *(1,) * (array.ndim - 1))


def _own(target: Target, mean: NDArray, level_error: NDArray, own: Stack | None, model: Model) -> Own:
    """Factors on the rate by the target's own counts."""
    if own is None or mean.shape != own.counts.shape:
        raise ValueError("model.own needs the target's own offset bins, and a rate that has such")
    counts, exposure = own.counts, own.exposure
    # an unknown threshold is taken to be where there are most counts
    threshold = target.threshold if target.threshold > 0 else model.edges.energy[int(counts.sum(axis=1).argmax())]
    seen = model.edges.energy[:-1] >= threshold * (1 - TOLERANCE)
    counts, expected = np.where(exposure > 0, counts, 0.0).sum(axis=1), (exposure * mean).sum(axis=1)
    return own_factors(counts, expected, level_error, seen, model.rate.own, model.rate.own_counts)


def _radial_rate(stacks: Mapping[str, Stack], model: Model) -> Rate:
    """Rate in offset bins."""
    edges, spectrum = (model.edges.energy, model.edges.offset), stacks["spectrum"]
    rate = estimate_rate(spectrum.counts, spectrum.exposure, edges, model.rate, _shape_of(stacks), weights_of(stacks))
    if model.rate.through_gammapy:
        from dask_bkg.background.irf import smooth_as_set  # it takes seconds to load, and no other rate needs it

        rate = rate._replace(value=smooth_as_set(rate.value, model.edges, model.rate))
    return rate


def night_factor(mean: NDArray, night: Selection, stack: Stack) -> Factor:
    """Normalisation of the neighbouring nights over that of the stack: weather and dust change it.

    The counts of those runs over what the rate expects of them, drawn to 1 by a prior that is worth `NIGHT_PRIOR`
    simultaneous runs: step 6 of `dask_bkg.background`.

    Parameters
    ----------
    mean
        Rate, averages over the bins [s-1 TeV-1 sr-1], shape ``(energy, offset)``.
    night
        The runs of these nights; their weights fall with the difference in conditions and in time.
    stack
        Their stack, counts and exposure of shape ``(energy, offset)``.

    Returns
    -------
    factor
        1 where they have no counts or other bins.  Its error is that of their counts; changes of the weather from run
        to run are not included.
    """
    if mean.shape != stack.counts.shape:
        return Factor()
    observed, expected = float(stack.counts.sum()), float((stack.exposure * mean).sum())
    if not (observed > 0 and expected > 0):
        return Factor()
    weight = float(night.weight.sum())
    power = weight / (weight + NIGHT_PRIOR)
    return Factor(float((observed / expected) ** power), power * math.sqrt(stack.squares.sum()) / observed)


def _field_rate(
    target: Target, chosen: Mapping[str, Selection], stacks: Mapping[str, Stack], runs: RunMetadata, model: Model
) -> Rate:
    """Rate in pixels of the field, in the frame in which it is written."""
    field, sight = model.field, target.sight
    if field is None or sight is None or "field" not in stacks:
        raise ValueError("a 3D background needs a stack in field pixels, and the pointing of the target (sight)")
    edges, pixels, zenith = model.edges, stacks["field"], (0.0, 1.0)
    if not pixels.exposure.any():
        raise RunError(
            f"run {target.obs_id}: none of its contributing runs has a field aligned with the horizon: the site of "
            "the array, or the times of the events (column TIME, MJDREFI), are missing in their EVENTS or contradict "
            "ALT_PNT; correct them, or set binning.mode: 2d"
        )
    of_shape = chosen.get("shape", chosen["spectrum"])
    sines = _sin_zenith(of_shape, runs), float(np.sin(np.deg2rad(sight.zenith)))
    if field.settings.tilts and not np.isfinite(sines).all():
        raise RunError(
            f"run {target.obs_id}: a gradient towards the zenith needs the zenith angle of the run and of those that "
            "contribute (ALT_PNT in EVENTS, or ZEN_PNT in the obs-index): add it, or set model.field: free"
        )
    if field.counted != "altaz" and field.settings.tilts:
        if not np.isfinite(sight).all():
            raise RunError(
                f"run {target.obs_id}: the direction of the zenith is unknown (GEOLON, GEOLAT, TSTART, MJDREFI in "
                "its EVENTS header): set model.field: free"
            )
        zenith = zenith_direction(sight)
    rate = estimate_field(
        Histogram(stacks["spectrum"].counts, stacks["spectrum"].exposure),
        Histogram(pixels.counts, np.diff(field.edges.energy)[:, None, None] * pixels.exposure),
        (edges.energy, edges.offset, field.edges.fov),
        sines,
        model.rate,
        field.settings,
        zenith,
        _shape_of(stacks),
        weights_of(stacks),
    )
    if field.counted == field.written:
        return rate
    fov, angles = field.edges.fov, parallactic_angles(sight)
    value, error = (turn_to_radec(array, fov, angles) for array in (rate.value, rate.error))
    return rate._replace(value=value, error=error)


def _sin_zenith(chosen: Selection, runs: RunMetadata) -> float:
    """Mean sine of the zenith angle of the contributing runs, weighted by their events; NaN: unknown for all."""
    sine, weight = np.sin(np.deg2rad(runs.zenith[chosen.run])), chosen.weight * runs.n_events[chosen.run]
    finite = np.isfinite(sine) & (weight > 0)
    return float(np.average(sine[finite], weights=weight[finite])) if finite.any() else math.nan


def parallactic_angles(sight: Sight) -> NDArray:
    """Parallactic angles [deg] in the course of a run, evenly spaced in time, shape ``(steps,)``.

    The good time intervals are treated as a single one about the middle of the run: a gap shifts the angles by less
    than a step.
    """
    steps = max(1, math.ceil(sight.ontime / STEP))
    middle = (np.arange(steps) + 0.5) / steps - 0.5
    times = sight.time + middle * sight.ontime / SECONDS_PER_DAY
    return position_angle(sight.ra, sight.dec, *zenith_position(times, sight.site_lon, sight.site_lat))


def zenith_direction(sight: Sight) -> tuple[float, float]:
    """Direction of the zenith in a field aligned with north, mean over a run: unit vector ``(fov_lon, fov_lat)``."""
    angle = np.deg2rad(parallactic_angles(sight))
    # fov_lon grows to the west, a position angle to the east
    lon, lat = -np.sin(angle).mean(), np.cos(angle).mean()
    return float(lon / np.hypot(lon, lat)), float(lat / np.hypot(lon, lat))
