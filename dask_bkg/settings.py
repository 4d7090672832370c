"""From the configuration of a job to the settings of the science; the choice between 2D and 3D backgrounds."""

from __future__ import annotations

import logging

from dask_bkg.background.estimate import RateSettings
from dask_bkg.background.field import FieldSettings
from dask_bkg.background.target import FieldPlan
from dask_bkg.binning import FieldEdges
from dask_bkg.config import Config
from dask_bkg.dl3.attach import reads_reversed
from dask_bkg.dl3.index import Datastore, run_file
from dask_bkg.dl3.read import read_run
from dask_bkg.errors import ConfigError, RunError
from dask_bkg.reduction.horizon import horizon_of
from dask_bkg.similarity import ShapeSettings

log = logging.getLogger(__name__)

TRIED = 5
"""Number of runs of which one must be readable, to see whether the horizon is known in the files of an archive."""


def rate_settings(config: Config) -> RateSettings:
    """How a rate is estimated, from a configuration.

    Raises
    ------
    ConfigError
        If options exclude each other.
    """
    selected, model = config.background_selection, config.model
    sigma = selected.sigma_deg(config.binning) if selected.smooth else 0.0
    if selected.smooth and model.smooth_method == "to_3d" and config.binning.off_min > 0:
        raise ConfigError(
            f"binning.off_min: smoothing through to_3d needs offset bins from 0 deg, got {config.binning.off_min:g} "
            "deg: set off_min to 0, or model.smooth_method: field"
        )
    if config.binning.mode == "3d" and model.field == "plain":
        by_offset = selected.smooth and model.smooth_method in ("adaptive", "spline")
        for wrong, option in ((by_offset, "smooth_method"), (model.own != "off", "own")):
            if wrong:
                raise ConfigError(
                    f"model.{option}: {getattr(model, option)} works on offset bins, and model.field: plain has "
                    "none: set model.field to gradient, free or both, or leave it out"
                )
    return RateSettings(
        fill=model.fill,
        min_counts=float(model.min_counts),
        smooth_sigma=sigma,
        smooth_method=model.smooth_method,
        smooth_bins=sigma / config.binning.bin_width,
        node_values=model.node_values,
        smooth_counts=model.smooth_counts,
        smooth_dof=model.smooth_dof,
        smooth=selected.smooth,
        own=model.own,
        own_counts=model.own_counts,
    )


def with_mode(config: Config, store: Datastore) -> Config:
    """The configuration with its ``binning.mode``: if that is not set, 3D unless there is a reason against it."""
    if config.binning.mode is not None:
        return config
    reason = _against_pixels(config) or _without_horizon(config, store)
    if reason:
        log.info("2D backgrounds (binning.mode: 2d), as %s", reason)
    binning = config.binning.model_copy(update={"mode": "2d" if reason else "3d"})
    return config.model_copy(update={"binning": binning})


def _against_pixels(config: Config) -> str:
    """Option of a configuration that excludes field pixels, as the end of a sentence; empty: none."""
    binning = config.binning
    if config.preset == "gammapy-tools":
        return "preset: gammapy-tools makes these unless io.3d_bkg is set"
    if binning.off_min > 0:
        return "binning.off_min leaves a hole in the field"
    if binning.e_bins == binning.fov_bins:
        return "there are as many energies (binning.e_bins) as pixels (binning.fov_bins)"
    if not config.model.fill and config.model.field != "plain":
        return "model.fill is off"
    return ""


def _without_horizon(config: Config, store: Datastore) -> str:
    """Why fields cannot be aligned with the horizon, by the first readable run of an archive; empty: they can.

    The files of a telescope have the same columns and cards.
    """
    reason = "none of its first runs can be read"
    for obs_id in store.obs_ids[:TRIED].tolist():
        try:
            events = run_file(store, obs_id, config.run_store.file_limit)
            if config.io.attach == "index" and reads_reversed(events.path):
                return f"gammapy mirrors 3D backgrounds of files such as {events.path} (take io.attach: copy)"
            read = read_run(events)
        except RunError:
            continue
        try:
            horizon_of(read)
        except RunError as error:
            reason = f"run {obs_id} has {error}"
        else:
            return ""
    return reason


def field_plan(config: Config) -> FieldPlan | None:
    """What a job of 3D backgrounds needs in addition to one of 2D backgrounds; None for 2D."""
    binning, model, selected = config.binning, config.model, config.background_selection
    if binning.mode != "3d":
        return None
    # the field of a single run is fixed on the sky, and plain pixels are the procedure's, which rotates nothing
    on_the_sky = binning.alignment == "radec" and (config.io.from_run or model.field == "plain")
    return FieldPlan(
        FieldEdges(binning.energy_edges, binning.fov_edges),
        FieldSettings(model.field, selected.sigma_deg(binning) if selected.smooth else model.field_sigma),
        "radec" if on_the_sky else "altaz",
        binning.alignment,
    )


def shape_settings(config: Config) -> ShapeSettings:
    """How shapes of runs are compared, from a configuration."""
    return ShapeSettings(method=config.model.divergence, prior=config.model.divergence_prior)
