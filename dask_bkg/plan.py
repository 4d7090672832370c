"""What a job will do, before anything is computed: targets, runs that are read, exclusion, path of each file.

Index files are read, and a single run, to see whether its field can be aligned with the horizon.  Which runs
contribute to which target is selected later, from the run store.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_bkg.background.estimate import RateSettings
from dask_bkg.background.target import FieldPlan, Target
from dask_bkg.binning import Edges
from dask_bkg.config import Config
from dask_bkg.dl3.index import Datastore, read_datastore, run_file
from dask_bkg.dl3.index_rows import place_below
from dask_bkg.dl3.read import RunFile
from dask_bkg.errors import ArchiveError, RunError
from dask_bkg.files import inside
from dask_bkg.settings import field_plan, rate_settings, with_mode
from dask_bkg.sky import catalogs
from dask_bkg.sky.exclusion import SkyRegions
from dask_bkg.sky.fov import separation

log = logging.getLogger(__name__)

BACKGROUND_DIR = "backgrounds"
"""Directory below ``out_dir`` of the background files of ``attach: index``."""


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before event files are read; a plan is never changed.

    Attributes
    ----------
    config
        The configuration, in which the choice between 2D and 3D has been made.
    edges, regions, rate
        Bin edges of energy and offset, exclusion regions, how a rate is estimated.
    store
        Datastore of the targets (``io.in_dir``).
    targets
        The runs that are to receive a background, by run number.
    runs
        The runs whose histograms are needed, each once: those of the archive, and targets that are not among them.
    candidates
        Numbers of the runs that may contribute.
    failed
        Targets for which there can be no background, ``{obs_id: reason}``.
    unusable
        Runs of the archive that cannot contribute, ``{obs_id: reason}``.
    missing
        Runs of the runlist that ``in_dir`` does not have.
    field_plan
        What 3D backgrounds need in addition, see `FieldPlan`; None for 2D.
    archive
        Datastore of the runs that may contribute (``io.search_datastore``); None: each target is modelled by itself.
    """

    config: Config
    edges: Edges
    regions: SkyRegions
    rate: RateSettings
    store: Datastore
    targets: list[Target] = field(default_factory=list)
    runs: list[RunFile] = field(default_factory=list)
    candidates: frozenset[int] = frozenset()
    failed: dict[int, str] = field(default_factory=dict)
    unusable: dict[int, str] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)
    field_plan: FieldPlan | None = None
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
        If the configuration is invalid, or there is no target or no run that may contribute.
    """
    store = read_datastore(config.directory("in_dir"), config.io.data_dirs)
    config = with_mode(config, store)
    chosen, missing = _chosen_runs(config, store)
    targets, failed = _find_targets(config, store, chosen)
    if not targets and not failed:
        raise ArchiveError(f"{store.directory} holds none of the runs of run_selection.runlist: nothing to do")
    archive, runs, unusable = (None, [], {}) if config.io.from_run else _find_candidates(config)
    present = {run.obs_id for run in runs}
    limit = config.run_store.file_limit
    more = [run_file(store, target.obs_id, limit) for target in targets if target.obs_id not in present]
    plan = Plan(
        **_settings(config),
        store=store,
        targets=targets,
        runs=[*runs, *more],
        candidates=frozenset(present),
        failed=failed,
        unusable=unusable,
        missing=missing,
        archive=archive,
    )
    _warn_of_notes(plan)
    return plan


def plan_archive(config: Config) -> Plan:
    """Plan without targets: every run of ``search_datastore`` (``in_dir`` where that is not set) is a candidate.

    Raises
    ------
    ConfigError, ArchiveError
        If the configuration is invalid, or no run may contribute.
    """
    directory = config.io.search_datastore or config.io.in_dir
    places = config.io.model_copy(update={"search_datastore": directory, "in_dir": directory, "from_run": False})
    config = config.model_copy(update={"io": places})
    config = with_mode(config, read_datastore(config.directory("search_datastore"), config.io.data_dirs))
    archive, runs, unusable = _find_candidates(config)
    numbers = frozenset(run.obs_id for run in runs)
    return Plan(**_settings(config), store=archive, runs=runs, candidates=numbers, unusable=unusable, archive=archive)


def _settings(config: Config) -> dict[str, Any]:
    """The parts of a plan that depend on the configuration only."""
    return {
        "config": config,
        "edges": Edges(config.binning.energy_edges, config.binning.offset_edges),
        "regions": catalogs.sky_regions(config.exclusion, config.base_dir),
        "rate": rate_settings(config),
        "field_plan": field_plan(config),
    }


def _warn_of_notes(plan: Plan) -> None:
    """Warn of regions near a target whose radius was reduced or assumed."""
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
    """Raise the `ConfigError` that a plan would raise, before files are copied or a cluster is started."""
    for name in ("search_datastore", "in_dir", "out_dir"):
        config.directory(name)
    rate_settings(config)
    catalogs.sky_regions(config.exclusion, config.base_dir)


def _chosen_runs(config: Config, store: Datastore) -> tuple[list[int], list[int]]:
    """Targets, the runs of ``in_dir`` that are in the runlist; and the runs of the runlist that are missing."""
    wanted = config.runs()
    if wanted is None:
        return store.obs_ids.tolist(), []
    present = set(store.obs_ids.tolist())
    absent = [run for run in wanted if run not in present]
    if absent:
        log.warning("not in %s, left out: %s", store.directory, ", ".join(map(str, absent)))
    return [run for run in dict.fromkeys(wanted) if run in present], absent


def _find_targets(config: Config, store: Datastore, obs_ids: Iterable[int]) -> tuple[list[Target], dict[int, str]]:
    """The runs that are to receive a background, by run number; and those that cannot, with the reason."""
    targets, failed = list[Target](), dict[int, str]()
    taken: dict[str, int] = {}
    thresholds = _index_thresholds(store)
    for obs_id in obs_ids:
        try:
            events = run_file(store, obs_id)
        except RunError as error:
            failed[obs_id] = str(error)
            continue
        only_index = config.io.attach == "index"
        name = f"{BACKGROUND_DIR}/bkg_{obs_id}.fits.gz" if only_index else place_below(store, events.path)
        # two runs with the same file name in different directories must not overwrite each other
        if taken.setdefault(name, obs_id) != obs_id:
            name = str(Path(name).with_name(f"{obs_id}_{Path(name).name}"))
        output = str(inside(config.directory("out_dir"), name))
        targets.append(Target(obs_id, events.path, output, thresholds.get(obs_id, float("nan"))))
    return sorted(targets, key=lambda target: target.obs_id), failed


def _index_thresholds(store: Datastore) -> dict[int, float]:
    """SAFE_ENERGY_LO [TeV] of the runs, where the obs-index has it."""
    if "SAFE_ENERGY_LO" not in store.obs.colnames:
        return {}
    values: NDArray = np.ma.filled(np.ma.asarray(store.obs["SAFE_ENERGY_LO"], dtype=float), np.nan)
    return dict(zip(store.obs["OBS_ID"].tolist(), values.tolist(), strict=True))


def _find_candidates(config: Config) -> tuple[Datastore, list[RunFile], dict[int, str]]:
    """The archive, its runs, any of which may contribute, and those that cannot, with the reason."""
    archive = read_datastore(config.directory("search_datastore"), config.io.data_dirs)
    runs, unusable = list[RunFile](), dict[int, str]()
    for obs_id in archive.obs_ids.tolist():
        try:
            runs.append(run_file(archive, obs_id, config.run_store.file_limit))
        except RunError as error:
            unusable[obs_id] = str(error)
    if not runs:
        raise ArchiveError(f"io.search_datastore: no run of {archive.directory} has events")
    return archive, runs, unusable
