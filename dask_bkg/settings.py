"""From the configuration of a job to the settings of the science; and whether its backgrounds are 2D or 3D."""

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
"""Runs that are asked, one after the other, whether the files of an archive tell where the horizon was."""


def rate_settings(config: Config) -> RateSettings:
    """How a rate is made, from a configuration."""
    selected, model = config.background_selection, config.model
    sigma = selected.sigma_deg(config.binning) if selected.smooth else 0.0
    if selected.smooth and model.smooth_method == "to_3d" and config.binning.off_min > 0:
        raise ConfigError(
            f"binning.off_min: smoothing through to_3d needs rings from 0 deg, got {config.binning.off_min:g} deg: "
            "set off_min to 0, or model.smooth_method: field"
        )
    if config.binning.mode == "3d" and model.field == "plain":
        _check_plain(config)
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
    """The configuration with its ``binning.mode``: if it leaves that open, 3D unless something speaks against it."""
    if config.binning.mode is not None:
        return config
    reason = _against_pixels(config) or _without_horizon(config, store)
    if reason:
        log.info("2D backgrounds (binning.mode: 2d), as %s", reason)
    binning = config.binning.model_copy(update={"mode": "2d" if reason else "3d"})
    return config.model_copy(update={"binning": binning})


def _against_pixels(config: Config) -> str:
    """What in a configuration does not go with pixels of the field; empty: nothing."""
    binning = config.binning
    if config.preset == "gammapy-tools":
        return "those of preset: gammapy-tools are, unless io.3d_bkg asks for more"
    if binning.off_min > 0:
        return "binning.off_min leaves a hole in the field"
    if binning.e_bins == binning.fov_bins:
        return "there are as many energies (binning.e_bins) as pixels (binning.fov_bins)"
    if not config.model.fill and config.model.field != "plain":
        return "model.fill is off"
    return ""


def _without_horizon(config: Config, store: Datastore) -> str:
    """Why fields cannot be aligned with the horizon, as far as the first runs of an archive tell; empty: they can.

    The files of a telescope are alike: one that can be read speaks for all.
    """
    reason = "none of its first runs can be read"
    for obs_id in store.obs_ids[:TRIED].tolist():
        try:
            events = run_file(store, obs_id)
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


def _check_plain(config: Config) -> None:
    """Raise for what needs rings, where each pixel stands alone."""
    rings = ("adaptive", "spline")
    for wrong, what in (
        (config.background_selection.smooth and config.model.smooth_method in rings, "smooth_method"),
        (config.model.own != "off", "own"),
    ):
        if wrong:
            raise ConfigError(
                f"model.{what}: {getattr(config.model, what)} works on rings, and model.field: plain has none: set "
                "model.field to gradient, free or both, or leave it out"
            )


def field_plan(config: Config) -> FieldPlan | None:
    """What a job of 3D backgrounds has beside that of 2D ones; None for 2D."""
    binning, model, selected = config.binning, config.model, config.background_selection
    if binning.mode != "3d":
        return None
    # one run turns with the sky as a whole, and plain pixels are the original procedure's, which turns nothing
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
