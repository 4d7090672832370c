"""The counts that backgrounds are compared with: from the run store, in the pixels of the field.

The frame of the pixels depends on the backgrounds.  In the frame of the camera, aligned with the horizon, the
residuals of all runs add up; a background that is aligned with north can only be compared on the sky.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_bkg.background.target import Sight
from dask_bkg.cluster import Workers
from dask_bkg.config import Config
from dask_bkg.dl3.given import read_given
from dask_bkg.dl3.index import Datastore
from dask_bkg.errors import ArchiveError, BackgroundError, ConfigError
from dask_bkg.pipeline.tables import HORIZON, SIGHT, Tables, make_tables
from dask_bkg.pipeline.update import Stored, update_store
from dask_bkg.plan import Plan, plan_job
from dask_bkg.sky import catalogs
from dask_bkg.validation.bins import Settings
from dask_bkg.validation.task import Scored, Subject

LEAST_THRESHOLD = 1.5
"""Lowest energy of a run without a declared threshold, in units of the threshold of its effective area."""

Counts = tuple[Scored, dict[int, Subject]]
"""The counts that backgrounds are compared with, and their place in the run store for each target."""


class Prepared(NamedTuple):
    """A job (`dask_bkg.pipeline.run`) up to its graph, and the thresholds of its targets in the obs-index [TeV]."""

    plan: Plan
    stored: Stored
    tables: Tables
    thresholds: dict[int, float]


def frames_of(models: Iterable[Config | Datastore]) -> tuple[str, ...]:
    """Frames in which the counts may be needed, the best first: that of the camera, in which gradients add up."""
    north = any(
        _is_aligned_with_north(model)
        if isinstance(model, Datastore)
        else model.binning.mode != "2d" and model.binning.alignment == "radec"
        for model in models
    )
    return ("radec",) if north else ("altaz", "radec")


def _is_aligned_with_north(archive: Datastore) -> bool:
    """Whether the first background of an archive that can be read is 3D and aligned with north."""
    for obs_id in archive.obs_ids.tolist():
        try:
            given = read_given(archive, obs_id)
        except BackgroundError:
            continue
        return len(given.axes) == 3 and given.alignment == "radec"
    raise ArchiveError(f"{archive.directory}: no run has a background that can be read: nothing to compare with")


def prepare(config: Config, workers: Workers, progress: bool, frames: Sequence[str]) -> Prepared:
    """The job of a configuration up to its graph."""
    plan = plan_job(config)
    thresholds = {target.obs_id: target.threshold for target in plan.targets}
    own_counts = config.validation.exclusion is None
    stored = update_store(plan, workers, config.store_path, progress=progress, frames=frames if own_counts else ())
    tables = make_tables(plan, stored)
    folds = getattr(config.background_selection, "folds", None)
    if folds is not None:
        # every n-th run is in the same fold, by run number, targets and candidates alike
        numbers = np.union1d(tables.targets["obs_id"], tables.runs["obs_id"])
        for table in (tables.targets, tables.runs):
            table["fold"] = np.searchsorted(numbers, table["obs_id"]) % folds
    return Prepared(plan, stored, tables, thresholds)


def counts_of(job: Prepared, workers: Workers, progress: bool, frames: Sequence[str]) -> Counts:
    """The counts of the targets, in a separate run store if they have another exclusion."""
    config = job.plan.config
    stored = job.stored if config.validation.exclusion is None else _own_counts(job.plan, workers, progress, frames)
    store, options = stored.store, config.validation
    targets = job.tables.targets
    # altaz only if the horizon is known for all targets
    frame = next((f for f in frames if f == "radec" or all(np.isfinite(targets[n]).all() for n in HORIZON)), "radec")
    view, energy = stored.fields[frame], store.fine.edges.energy
    within = (energy >= config.binning.e_min * (1 - 1e-9)) & (energy <= config.binning.e_max * (1 + 1e-9))
    if within.sum() < 2:
        raise ConfigError(
            f"binning.e_min, e_max: no energy bin of the run store {store.path} lies within "
            f"{config.binning.e_min:g}-{config.binning.e_max:g} TeV: widen this range"
        )
    settings = Settings(options.off_max, options.threshold, tuple(options.bands), options.cell)
    pixels = store.fine.pixels or ()
    scored = Scored(str(store.path), view, frame, tuple(energy[within].tolist()), tuple(pixels), settings)
    return scored, _subjects(job, stored, view)


def _own_counts(plan: Plan, workers: Workers, progress: bool, frames: Sequence[str]) -> Stored:
    """The run store of the compared counts, with the exclusion of the validation."""
    config = plan.config
    assert config.validation.exclusion is not None
    path = config.store_path.with_name(f"{config.store_path.stem}.scored.zarr")
    own = config.model_copy(update={"exclusion": config.validation.exclusion})
    targets = {target.obs_id for target in plan.targets}
    runs = [run for run in plan.runs if run.obs_id in targets]
    regions = catalogs.sky_regions(own.exclusion, own.base_dir)
    of_targets = replace(plan, config=own, regions=regions, runs=runs, field_plan=None)
    return update_store(of_targets, workers, path, progress=progress, frames=frames)


def _subjects(job: Prepared, stored: Stored, view: str) -> dict[int, Subject]:
    """The targets that have counts, with their place in the run store."""
    targets = job.tables.ready
    rows = stored.store.find([target.obs_id for target in targets], view)
    keys = np.zeros(rows.size, dtype=np.uint64)
    keys[rows >= 0] = stored.store.keys(rows[rows >= 0], view)
    table = job.tables.targets
    return {
        target.obs_id: Subject(
            target,
            int(rows[i]),
            int(keys[i]),
            _threshold(job.thresholds.get(target.obs_id, np.nan), table, i),
            Sight(*(float(table[name][i]) for name in SIGHT)),
        )
        for i, target in enumerate(targets)
        if rows[i] >= 0
    }


def _threshold(of_index: float, targets: Mapping[str, NDArray], row: int) -> float:
    """Lowest energy of a run [TeV]: LO_THRES, else of the obs-index, else 1.5 times that of its effective area."""
    thresholds = (float(targets["lo_thres"][row]), of_index, LEAST_THRESHOLD * float(targets["e_thres"][row]))
    return next((number for number in thresholds if number > 0), float("nan"))
