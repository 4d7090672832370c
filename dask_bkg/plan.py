"""What a job will do, before anything is computed: targets, contributing runs, exclusion, where each file goes.

Reads index files (and the headers of runs whose index lacks what a cut needs), never an event.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_bkg import catalogs, selection
from dask_bkg.config import Config
from dask_bkg.dl3.atomic import inside
from dask_bkg.dl3.index import Datastore, Location, read_datastore
from dask_bkg.dl3.index_rows import place_below
from dask_bkg.dl3.read import RunFile, conditions
from dask_bkg.errors import ArchiveError, ConfigError, RunError
from dask_bkg.exclusion import SkyRegions
from dask_bkg.fov import separation
from dask_bkg.rate import RateSettings
from dask_bkg.schema import Edges

log = logging.getLogger(__name__)

BACKGROUND_DIR = "backgrounds"
"""Directory below ``out_dir`` of the background files of ``attach: index``."""


class Target(NamedTuple):
    """A run that receives a background.

    Attributes
    ----------
    obs_id
        Run number.
    source, output
        File that is copied, and file that is written.
    aeff
        Effective area, for the threshold; None if there is none.
    threshold
        Energy threshold that the obs-index gives [TeV], NaN if it does not.
    contributing
        Numbers of the runs that its background is made of, nearest first.
    enough
        Whether they reach the requested hours.
    """

    obs_id: int
    source: str
    output: str
    aeff: Location | None
    threshold: float
    contributing: tuple[int, ...] = ()
    enough: bool = True


@dataclass
class Plan:
    """Everything that a job needs to know; see the module.

    Attributes
    ----------
    config
        The configuration.
    edges, regions, rate
        Bin edges, what is excluded, how a rate is made.
    store
        Datastore of the targets (``io.in_dir``).
    targets
        The runs that will receive a background.
    runs
        The contributing runs, each once.
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
    failed: dict[int, str] = field(default_factory=dict)
    unusable: dict[int, str] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)

    @property
    def attach_copy(self) -> bool:
        """Whether whole files are written (``io.attach: copy``)."""
        return self.config.io.attach == "copy"


ReadHeaders = Callable[[list[RunFile]], list[dict[str, float]]]


def plan_job(config: Config, read_headers: ReadHeaders) -> Plan:
    """Plan of a job.

    Parameters
    ----------
    config
        The configuration.
    read_headers
        Observing conditions from the headers of runs (`dask_bkg.dl3.read.read_conditions` for each); called only
        for runs whose index lacks what is needed.

    Raises
    ------
    ConfigError, ArchiveError
        If nothing can be done.
    """
    store = read_datastore(config.directory("in_dir"), config.io.data_dirs)
    plan = Plan(
        config,
        Edges(config.binning.energy_edges, config.binning.offset_edges),
        catalogs.sky_regions(config.exclusion, config.base_dir),
        rate_settings(config),
        store,
    )
    chosen, plan.missing = _chosen_runs(config, store)
    _add_targets(plan, chosen)
    if config.io.from_run:
        _use_own_runs(plan)
    else:
        _use_other_runs(plan, read_headers)
    _warn_of_notes(plan)
    if not plan.targets and not plan.failed:
        raise ArchiveError(f"{store.directory} holds none of the runs of run_selection.runlist: nothing to do")
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
        smooth_bins=sigma / config.binning.ring_width,
        node_values=model.node_values,
    )


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
    return RunFile(int(obs_id), events.path, events.hdu, gti.path if gti.path != events.path else "", gti.hdu)


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
            events, aeff = run_file(plan.store, obs_id), plan.store.location(obs_id, "aeff")
        except RunError as error:
            plan.failed[obs_id] = str(error)
            continue
        name = _output_name(plan, obs_id, events.path)
        # two runs with the same file name in different directories must not overwrite each other
        if taken.setdefault(name, obs_id) != obs_id:
            name = str(Path(name).with_name(f"{obs_id}_{Path(name).name}"))
        output = str(inside(out_dir, name))
        plan.targets.append(Target(obs_id, events.path, output, aeff, thresholds.get(obs_id, float("nan"))))


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


def _use_own_runs(plan: Plan) -> None:
    plan.targets = [t._replace(contributing=(t.obs_id,)) for t in plan.targets]
    plan.runs = [run_file(plan.store, t.obs_id) for t in plan.targets]


# -- contributing runs of other targets -----------------------------------------------------------------------


def _use_other_runs(plan: Plan, read_headers: ReadHeaders) -> None:
    settings = plan.config.background_selection
    if settings.KL_DIV:
        log.warning(
            "background_selection.KL_DIV: the ranking by KL divergence is not there yet, the observing conditions "
            "alone are used (nearest in 1/sin(elevation) first)"
        )
    if settings.store_KL:
        log.warning("background_selection.store_KL: there are no divergences to store yet, nothing is written")
    archive = read_datastore(plan.config.directory("search_datastore"), plan.config.io.data_dirs)
    files = _usable_runs(archive, plan)
    runs = condition_table(archive, list(files), settings, lambda ids: read_headers([files[i] for i in ids]))
    selection.check_conditions(runs, settings)
    in_dir_files = {t.obs_id: run_file(plan.store, t.obs_id) for t in plan.targets}
    own = condition_table(
        plan.store, list(in_dir_files), settings, lambda ids: read_headers([in_dir_files[i] for i in ids])
    )
    excluded = _runs_near(runs, plan.config.exclusion.exclude_source_run)
    selected = [_select(plan, target, _row(own, i), runs, excluded) for i, target in enumerate(plan.targets)]
    plan.targets = [target for target in selected if target is not None]
    used = sorted({obs_id for target in plan.targets for obs_id in target.contributing})
    plan.runs = [files[obs_id] for obs_id in used]


def _usable_runs(archive: Datastore, plan: Plan) -> dict[int, RunFile]:
    files = {}
    for obs_id in archive.obs_ids.tolist():
        try:
            files[obs_id] = run_file(archive, obs_id)
        except RunError as error:
            plan.unusable[obs_id] = str(error)
    if not files:
        raise ArchiveError(f"io.search_datastore: no run of {archive.directory} has events")
    return files


def _select(
    plan: Plan, target: Target, own: Mapping, runs: Mapping[str, NDArray], excluded: NDArray
) -> Target | None:
    """The target with its contributing runs; None, and a reason in ``plan.failed``, if there are none."""
    by_hand = (plan.config.background_selection.bkg_runlist or {}).get(target.obs_id)
    try:
        if by_hand is not None:
            return target._replace(contributing=_listed(target.obs_id, by_hand, runs["obs_id"]))
        candidates = {name: column[~excluded] for name, column in runs.items()}
        chosen = selection.select_runs(own, candidates, _select_settings(plan))
    except RunError as error:
        plan.failed[target.obs_id] = str(error)
        return None
    return target._replace(contributing=tuple(chosen.obs_id.tolist()), enough=chosen.enough)


def _select_settings(plan: Plan):
    settings = plan.config.background_selection
    # asking for the KL ranking asks for n hours, whatever a preset says of runs that are not ranked
    return settings.model_copy(update={"rank": "elevation"}) if settings.KL_DIV else settings


def _listed(obs_id: int, by_hand: Iterable[int], present: NDArray) -> tuple[int, ...]:
    """The runs of a list that the user wrote; it always wins over the selection."""
    known = set(present.tolist())
    absent = [run for run in by_hand if run not in known]
    found = tuple(run for run in dict.fromkeys(by_hand) if run in known)
    if absent:
        log.warning("run %d: not in io.search_datastore, left out of its bkg_runlist: %s", obs_id, absent)
    if not found:
        raise RunError(f"run {obs_id}: none of the runs of its background_selection.bkg_runlist is in the archive")
    return found


def _runs_near(runs: Mapping[str, NDArray], circles: Iterable[tuple[float, float, float]]) -> NDArray:
    """Runs whose pointing lies in one of ``exclusion.exclude_source_run``."""
    near = np.zeros(runs["obs_id"].size, dtype=bool)
    for ra, dec, radius in circles:
        near |= separation(runs["ra_pnt"], runs["dec_pnt"], ra, dec) < radius
    return near


def condition_table(
    store: Datastore, obs_ids: list[int], settings, read_headers: Callable[[list[int]], list[dict[str, float]]]
) -> dict[str, NDArray]:
    """Observing conditions of runs, from the obs-index and, where that lacks what is needed, from the headers.

    Parameters
    ----------
    store
        The archive.
    obs_ids
        Run numbers.
    settings
        The ``background_selection`` section: it says what is needed.
    read_headers
        Conditions from the EVENTS headers of runs, by number.

    Returns
    -------
    table
        ``obs_id`` and `selection.CONDITIONS`, arrays of shape ``(runs,)``; NaN where nothing says.
    """
    numbers = {obs_id: dict.fromkeys(selection.CONDITIONS, np.nan) for obs_id in obs_ids}
    names = store.obs.colnames
    for row in zip(*(store.obs[name].tolist() for name in names), strict=True):
        cards = dict(zip(names, row, strict=True))
        if cards["OBS_ID"] in numbers:
            numbers[cards["OBS_ID"]] = conditions(cards, store.obs.meta)
    needed = {
        "zenith",
        "livetime",
        *(selection.NEEDS[key][0] for key in selection.NEEDS if selection.is_set(settings, key)),
    }
    short = [obs_id for obs_id in obs_ids if any(np.isnan(numbers[obs_id][name]) for name in needed)]
    for obs_id, found in zip(short, read_headers(short) if short else [], strict=True):
        numbers[obs_id] = {k: found[k] if np.isnan(v) else v for k, v in numbers[obs_id].items()}
    table = {name: np.array([numbers[i][name] for i in obs_ids], dtype=float) for name in selection.CONDITIONS}
    return {"obs_id": np.array(obs_ids, dtype=np.int64), **table}


def _row(table: Mapping[str, NDArray], index: int) -> dict[str, float]:
    return {name: column[index].item() for name, column in table.items()}
