"""What a job will do, before anything is computed: targets, runs that are read, exclusion, where each file goes.

Reads index files, and of the runs one, to see whether its field can be aligned with the horizon.  Which runs
contribute to which is found later, from the run store.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_bkg import catalogs
from dask_bkg.config import Config
from dask_bkg.dl3.altaz import horizon_of
from dask_bkg.dl3.atomic import inside
from dask_bkg.dl3.attach import reads_reversed
from dask_bkg.dl3.index import Datastore, Location, read_datastore
from dask_bkg.dl3.index_rows import place_below
from dask_bkg.dl3.read import RunFile, read_run
from dask_bkg.errors import ArchiveError, ConfigError, RunError
from dask_bkg.exclusion import SkyRegions
from dask_bkg.fov import separation
from dask_bkg.modulation import FieldSettings
from dask_bkg.rate import RateSettings
from dask_bkg.schema import Edges, FieldEdges
from dask_bkg.similarity import ShapeSettings

log = logging.getLogger(__name__)

TRIED = 5
"""Runs that are asked, one after the other, whether the files of an archive tell where the horizon was."""

BACKGROUND_DIR = "backgrounds"
"""Directory below ``out_dir`` of the background files of ``attach: index``."""


class Sight(NamedTuple):
    """Where and when a run looked, which is what turns its field between horizon and sky.

    Attributes
    ----------
    zenith
        Zenith angle [deg].
    ra, dec, site_lon, site_lat
        Pointing and place of the array [deg].
    time, ontime
        Middle of the run [MJD] and sum of its good time intervals [s].
    """

    zenith: float
    ra: float
    dec: float
    site_lon: float
    site_lat: float
    time: float
    ontime: float


class Target(NamedTuple):
    """A run that receives a background.

    Attributes
    ----------
    obs_id
        Run number.
    source, output
        File that is copied, and file that is written.
    threshold
        Energy threshold that the obs-index gives [TeV], NaN if it does not.
    sight
        Where it looked, in a job of 3D backgrounds, once the run store is up to date.
    """

    obs_id: int
    source: str
    output: str
    threshold: float = float("nan")
    sight: Sight | None = None


class FieldPlan(NamedTuple):
    """What a job of 3D backgrounds has beside that of 2D ones.

    Attributes
    ----------
    edges
        Energies and pixels of the field.
    settings
        How the rate varies over the field.
    counted, written
        Frame in which events are counted and runs are stacked, and that of the background: ``radec`` or ``altaz``.
        What is stacked for RADEC is the camera's field, aligned with the horizon; it is turned to the sky at the end.
    """

    edges: FieldEdges
    settings: FieldSettings
    counted: str
    written: str


@dataclass
class Plan:
    """Everything that a job needs to know; see the module.

    Attributes
    ----------
    config
        The configuration.
    edges, regions, rate
        Energies and rings, what is excluded, how a rate is made.
    field
        In a job of 3D backgrounds what there is beside the rings, see `FieldPlan`.
    store, archive
        Datastores of the targets (``io.in_dir``) and of the runs that may contribute (``io.search_datastore``).
    targets
        The runs that will receive a background, by run number.
    runs
        The runs whose histograms are needed, each once: the archive's, and the targets that are not among them.
    candidates
        Numbers of the runs that may contribute.
    failed
        Targets that cannot be done, ``{obs_id: reason}``.
    unusable
        Runs of the archive that cannot contribute, ``{obs_id: reason}``.
    missing
        Runs of the runlist that ``in_dir`` does not have.
    """

    config: Config
    edges: Edges
    regions: SkyRegions
    rate: RateSettings
    store: Datastore
    targets: list[Target] = field(default_factory=list)
    runs: list[RunFile] = field(default_factory=list)
    candidates: set[int] = field(default_factory=set)
    failed: dict[int, str] = field(default_factory=dict)
    unusable: dict[int, str] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)
    field: FieldPlan | None = None
    archive: Datastore | None = None

    @property
    def attach_copy(self) -> bool:
        """Whether whole files are written (``io.attach: copy``)."""
        return self.config.io.attach == "copy"


def plan_job(config: Config) -> Plan:
    """Plan of a job.

    Raises
    ------
    ConfigError, ArchiveError
        If nothing can be done.
    """
    store = read_datastore(config.directory("in_dir"), config.io.data_dirs)
    config = with_mode(config, store)
    plan = Plan(
        config,
        Edges(config.binning.energy_edges, config.binning.offset_edges),
        catalogs.sky_regions(config.exclusion, config.base_dir),
        rate_settings(config),
        store,
        field=field_plan(config),
    )
    chosen, plan.missing = _chosen_runs(config, store)
    _add_targets(plan, chosen)
    if not config.io.from_run:
        _add_candidates(plan)
    present = {run.obs_id for run in plan.runs}
    plan.runs += [run_file(store, t.obs_id) for t in plan.targets if t.obs_id not in present]
    _warn_of_notes(plan)
    if not plan.targets and not plan.failed:
        raise ArchiveError(f"{store.directory} holds none of the runs of run_selection.runlist: nothing to do")
    return plan


def plan_archive(config: Config) -> Plan:
    """Plan without targets: every run of ``search_datastore`` (``in_dir`` where that is not set) is a candidate.

    Raises
    ------
    ConfigError, ArchiveError
        If nothing can be done.
    """
    directory = config.io.search_datastore or config.io.in_dir
    places = config.io.model_copy(update={"search_datastore": directory, "in_dir": directory, "from_run": False})
    config = config.model_copy(update={"io": places})
    store = read_datastore(config.directory("search_datastore"), config.io.data_dirs)
    config = with_mode(config, store)
    plan = Plan(
        config,
        Edges(config.binning.energy_edges, config.binning.offset_edges),
        catalogs.sky_regions(config.exclusion, config.base_dir),
        rate_settings(config),
        store,
        field=field_plan(config),
    )
    _add_candidates(plan)
    return plan


def _warn_of_notes(plan: Plan) -> None:
    """Warn of regions near a target whose radius was cut or guessed; the others do not matter to this job."""
    rows = plan.store.observations([t.obs_id for t in plan.targets])
    noted = plan.regions[plan.regions.note != ""]
    if "RA_PNT" not in rows.colnames or len(rows) == 0:
        return
    ra, dec = (np.asarray(rows[name], dtype=float) for name in ("RA_PNT", "DEC_PNT"))
    for i in range(len(noted)):
        reach = plan.edges.offset[-1] + noted.radius[i]
        if (separation(ra, dec, noted.ra[i], noted.dec[i]) < reach).any():
            log.warning("excluded %s: %s", noted.name[i], noted.note[i])


def check_job(config: Config) -> None:
    """Raise `ConfigError` for what a plan would find wrong, before anything is copied or a cluster is started."""
    for name in ("search_datastore", "in_dir", "out_dir"):
        config.directory(name)
    rate_settings(config)
    catalogs.sky_regions(config.exclusion, config.base_dir)


def rate_settings(config: Config) -> RateSettings:
    """How a rate is made, from a configuration."""
    selected, model = config.background_selection, config.model
    sigma = selected.sigma_deg(config.binning) if selected.smooth else 0.0
    if selected.smooth and model.smooth_method == "to_3d" and config.binning.off_min > 0:
        raise ConfigError(
            f"binning.off_min: smoothing through to_3d needs rings from 0 deg, got {config.binning.off_min:g} deg: "
            "set off_min to 0, or model.smooth_method: field"
        )
    return RateSettings(
        fill=model.fill,
        min_counts=float(model.min_counts),
        smooth_sigma=sigma,
        smooth_method=model.smooth_method,
        smooth_bins=sigma / config.binning.bin_width,
        node_values=model.node_values,
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


def run_file(store: Datastore, obs_id: int) -> RunFile:
    """Where events and good time intervals of a run are.

    Raises
    ------
    RunError
        If the index has no events for the run, or leads outside of the archive.
    """
    events = store.location(obs_id, "events")
    if events is None:
        raise RunError(f"run {obs_id}: the index of {store.directory} has no row of type 'events' for it")
    gti = store.location(obs_id, "gti") or Location(events.path, "")
    aeff = _effective_area(store, obs_id) or Location(events.path, "")
    elsewhere = (place.path if place.path != events.path else "" for place in (gti, aeff))
    gti_path, aeff_path = elsewhere
    return RunFile(int(obs_id), events.path, events.hdu, gti_path, gti.hdu, aeff_path, aeff.hdu)


def _effective_area(store: Datastore, obs_id: int) -> Location | None:
    """Where the effective area is; it only gives a threshold, and no run is lost for the want of it."""
    try:
        return store.location(obs_id, "aeff")
    except RunError:
        return None


def _chosen_runs(config: Config, store: Datastore) -> tuple[list[int], list[int]]:
    """Targets, the runs of ``in_dir`` restricted to the runlist; and the runs of it that are not there."""
    wanted = config.runs()
    if wanted is None:
        return store.obs_ids.tolist(), []
    present = set(store.obs_ids.tolist())
    absent = [run for run in wanted if run not in present]
    if absent:
        log.warning("not in %s, left out: %s", store.directory, ", ".join(map(str, absent)))
    return [run for run in dict.fromkeys(wanted) if run in present], absent


def _add_targets(plan: Plan, obs_ids: Iterable[int]) -> None:
    out_dir = plan.config.directory("out_dir")
    taken: dict[str, int] = {}
    thresholds = _index_thresholds(plan.store)
    for obs_id in obs_ids:
        try:
            events = run_file(plan.store, obs_id)
        except RunError as error:
            plan.failed[obs_id] = str(error)
            continue
        name = _output_name(plan, obs_id, events.path)
        # two runs with the same file name in different directories must not overwrite each other
        if taken.setdefault(name, obs_id) != obs_id:
            name = str(Path(name).with_name(f"{obs_id}_{Path(name).name}"))
        output = str(inside(out_dir, name))
        plan.targets.append(Target(obs_id, events.path, output, thresholds.get(obs_id, float("nan"))))
    plan.targets.sort(key=lambda target: target.obs_id)


def _index_thresholds(store: Datastore) -> dict[int, float]:
    """SAFE_ENERGY_LO [TeV] of the runs, where the obs-index has it."""
    if "SAFE_ENERGY_LO" not in store.obs.colnames:
        return {}
    values: NDArray = np.ma.filled(np.ma.asarray(store.obs["SAFE_ENERGY_LO"], dtype=float), np.nan)
    return dict(zip(store.obs["OBS_ID"].tolist(), values.tolist(), strict=True))


def _output_name(plan: Plan, obs_id: int, source: str) -> str:
    """Place of a target's file below ``out_dir``: as below ``in_dir``, or in ``data`` if it comes from elsewhere."""
    if not plan.attach_copy:
        return f"{BACKGROUND_DIR}/bkg_{obs_id}.fits.gz"
    return place_below(plan.store, source)


def _add_candidates(plan: Plan) -> None:
    """The runs of ``search_datastore``: any of them may contribute."""
    archive = plan.archive = read_datastore(plan.config.directory("search_datastore"), plan.config.io.data_dirs)
    for obs_id in archive.obs_ids.tolist():
        try:
            plan.runs.append(run_file(archive, obs_id))
        except RunError as error:
            plan.unusable[obs_id] = str(error)
    if not plan.runs:
        raise ArchiveError(f"io.search_datastore: no run of {archive.directory} has events")
    plan.candidates = {run.obs_id for run in plan.runs}
