"""The counts that backgrounds are compared with: out of the run store, in the pixels of the field.

Which frame the pixels have depends on what is compared.  In the camera's, aligned with the horizon, the residuals of
all runs add up; a field that is aligned with north can only be compared on the sky.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from dask_bkg.background.target import Sight
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
"""Lowest energy of a run without a declared threshold, in units of that of its effective area."""


Counts = tuple[Scored, dict[int, Subject]]
"""The counts that backgrounds are compared with, and where those of each target are."""


class Prepared(NamedTuple):
    """A job on which nothing was computed yet.

    Attributes
    ----------
    plan, stored, tables
        See `dask_bkg.pipeline.run`.
    thresholds
        What the obs-index says of the targets [TeV].
    """

    plan: Plan
    stored: Stored
    tables: Tables
    thresholds: dict[int, float]


def frames_of(models: Iterable[Config | Datastore]) -> tuple[str, ...]:
    """Frames that the counts may be needed in, the best first: the camera's, whose gradients add up."""
    north = any(
        _any_field_to_north(model)
        if isinstance(model, Datastore)
        else model.binning.mode != "2d" and model.binning.alignment == "radec"
        for model in models
    )
    return ("radec",) if north else ("altaz", "radec")


def _any_field_to_north(archive: Datastore) -> bool:
    """Whether the first background of an archive that can be read is a field aligned with north."""
    for obs_id in archive.obs_ids.tolist():
        try:
            given = read_given(archive, obs_id)
        except BackgroundError:
            continue
        return len(given.axes) == 3 and given.alignment == "radec"
    raise ArchiveError(f"{archive.directory}: no run has a background that can be read: nothing to compare with")


def prepare(config: Config, client: Client | None, progress: bool, frames: Sequence[str]) -> Prepared:
    """The job of a configuration up to its graph."""
    plan = plan_job(config)
    thresholds = {target.obs_id: target.threshold for target in plan.targets}
    own_counts = config.validation.exclusion is None
    stored = update_store(plan, client, config.store_path, progress=progress, frames=frames if own_counts else ())
    tables = make_tables(plan, stored)
    folds = getattr(config.background_selection, "folds", None)
    if folds is not None:
        _add_folds(tables, folds)
    return Prepared(plan, stored, tables, thresholds)


def _add_folds(tables: Tables, folds: int) -> None:
    """Every n-th run into the same fold, by run number, targets and candidates alike."""
    numbers = np.union1d(tables.targets["obs_id"], tables.runs["obs_id"])
    for table in (tables.targets, tables.runs):
        table["fold"] = np.searchsorted(numbers, table["obs_id"]) % folds


def counts_of(job: Prepared, client: Client | None, progress: bool, frames: Sequence[str]) -> Counts:
    """The counts of the targets, in a store of their own where they have another exclusion."""
    config = job.plan.config
    stored = job.stored if config.validation.exclusion is None else _own_counts(job.plan, client, progress, frames)
    store, options = stored.store, config.validation
    frame = next((f for f in frames if f == "radec" or not _blind(job.tables).any()), "radec")
    view, energy = stored.fields[frame], store.fine.edges.energy
    within = (energy >= config.binning.e_min * (1 - 1e-9)) & (energy <= config.binning.e_max * (1 + 1e-9))
    if within.sum() < 2:
        raise ConfigError(
            f"binning.e_min, e_max: no energy bin of the run store {store.path} lies within "
            f"{config.binning.e_min:g}-{config.binning.e_max:g} TeV, and there is nothing to compare in"
        )
    settings = Settings(options.off_max, options.threshold, tuple(options.bands), options.cell)
    pixels = store.fine.pixels or ()
    scored = Scored(str(store.path), view, frame, tuple(energy[within].tolist()), tuple(pixels), settings)
    return scored, _subjects(job, stored, view)


def _own_counts(plan: Plan, client: Client | None, progress: bool, frames: Sequence[str]) -> Stored:
    """The run store of the counts that are compared, with an exclusion of their own."""
    config = plan.config
    assert config.validation.exclusion is not None
    path = config.store_path.with_name(f"{config.store_path.stem}.scored.zarr")
    own = config.model_copy(update={"exclusion": config.validation.exclusion})
    targets = {target.obs_id for target in plan.targets}
    runs = [run for run in plan.runs if run.obs_id in targets]
    regions = catalogs.sky_regions(own.exclusion, own.base_dir)
    return update_store(
        replace(plan, config=own, regions=regions, runs=runs, field_plan=None),
        client,
        path,
        progress=progress,
        frames=frames,
    )


def _blind(tables: Tables) -> NDArray:
    """Targets of which nobody knows where the horizon was."""
    return ~np.all([np.isfinite(tables.targets[name]) for name in HORIZON], axis=0)


def _subjects(job: Prepared, stored: Stored, view: str) -> dict[int, Subject]:
    """The targets with the place of their counts; those without counts are none."""
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
    """Lowest energy of a run [TeV]: LO_THRES, else of the obs-index, else 1.5 times where its area begins."""
    known = (float(targets["lo_thres"][row]), of_index, LEAST_THRESHOLD * float(targets["e_thres"][row]))
    return next((number for number in known if number > 0), float("nan"))
