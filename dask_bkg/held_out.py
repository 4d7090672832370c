"""Validation of a configuration: its job as it stands, with a score where the job writes a file.

A run never contributes to a background made of other runs, so the ordinary job is leave-one-out: plan, run store,
selections and stacks are those of `dask_bkg.pipeline`, and the last layer of the graph compares what would be written
with the counts of each target (`dask_bkg.trial`).  More is left out by cuts: every run of a fold, or of a target.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from dask.delayed import Delayed
from distributed import Client
from numpy.typing import NDArray

from dask_bkg import catalogs
from dask_bkg.cluster import job_client
from dask_bkg.collect import Stored, died, progress_bar, update_store
from dask_bkg.config import BackgroundSelection, Config, parse_config
from dask_bkg.dl3.index import Datastore, existing_store, read_datastore
from dask_bkg.errors import ArchiveError, BackgroundError, ConfigError
from dask_bkg.lazy.execute import compute_each
from dask_bkg.lazy.graph import Layers, batches, literal
from dask_bkg.model import Stacks
from dask_bkg.pipeline import WRITE_BATCH, Last, build, model_of
from dask_bkg.plan import Plan, Sight, Target, plan_job
from dask_bkg.roster import HORIZON, SIGHT, Roster, call_the_roll
from dask_bkg.selection import Contributing
from dask_bkg.trial import BlockScore, Scored, Subject, Verdict, score_block, score_given
from dask_bkg.validation.bins import Settings
from dask_bkg.validation.results import Validation, gather
from dask_bkg.validation.score import FieldSums

log = logging.getLogger(__name__)

COLUMNS = ("object", "ra_pnt", "dec_pnt", "zenith", "azimuth", "time", "ontime", "livetime")
"""What is told of each run beside its score."""

LEAST_THRESHOLD = 1.5
"""Lowest energy of a run without a declared threshold, in units of that of its effective area."""


class _Folded(BackgroundSelection):
    """A ``background_selection`` with the cut of a validation."""

    folds: int | None = None


Counts = tuple[Scored, dict[int, Subject]]
"""The counts that backgrounds are compared with, and where those of each target are."""


class Prepared(NamedTuple):
    """A job on which nothing was computed yet.

    Attributes
    ----------
    plan, stored, roster
        See `dask_bkg.pipeline`.
    thresholds
        What the obs-index says of the targets [TeV].
    """

    plan: Plan
    stored: Stored
    roster: Roster
    thresholds: dict[int, float]


def validate(
    config: Config | Mapping[str, Any],
    against: Config | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    *,
    folds: int | None = None,
    same_target_out: bool = False,
    progress: bool = True,
) -> Validation:
    """How well the backgrounds of a configuration predict the counts of runs that have not contributed to them.

    The targets are the runs of ``run_selection.runlist`` in ``io.in_dir``, or in ``io.search_datastore`` if there is
    no such datastore.  No file of theirs is written; event files are read only if the run store lacks them.

    Parameters
    ----------
    config
        The configuration, whose ``validation`` section says in which bins is compared.
    against
        Other backgrounds for the same runs, compared in the same bins: another configuration, or the directory of a
        datastore whose files have backgrounds already.  The result is in ``against`` of the validation.
    folds
        Leave out every n-th run at a time, not one; by default ``validation.folds``.
    same_target_out
        Leave out all runs of the target of a run.
    progress
        Whether bars are shown.

    Returns
    -------
    validation
        See `dask_bkg.validation.Validation`; `dask_bkg.validation.summarise` and ``compare`` make numbers of it.

    Raises
    ------
    BackgroundError
        If no run could be validated.
    """
    first = _as_config(config)
    models: dict[str, Any] = {_name(first): first}
    if against is not None:
        other = _name(_as_config(against)) if isinstance(against, (Config, Mapping)) else Path(against).resolve().name
        models[f"against {other}" if other in models else other] = against
    done, *others = validate_models(models, folds=folds, same_target_out=same_target_out, progress=progress).values()
    done.against = others[0] if others else None
    return done


def validate_models(
    models: Mapping[str, Config | Mapping[str, Any] | str | os.PathLike[str]],
    *,
    folds: int | None = None,
    same_target_out: bool = False,
    progress: bool = True,
) -> dict[str, Validation]:
    """Several backgrounds against the same counts, in the same bins: what `dask_bkg.validation.compare` compares.

    Parameters
    ----------
    models
        By name: configurations, or directories of datastores whose files have backgrounds.  The first one must be a
        configuration: its targets, its run store and its ``validation`` section are those of all.
    folds, same_target_out, progress
        As for `validate`.

    Raises
    ------
    BackgroundError
        If of one of them no run could be validated.
    """
    first = _as_config(next(iter(models.values())))
    folds = folds or first.validation.folds
    chosen = {
        name: _for_trial(_as_config(model), folds, same_target_out)
        if isinstance(model, (Config, Mapping))
        else read_datastore(model, first.io.data_dirs)
        for name, model in models.items()
    }
    frames, done = _frames(chosen.values()), dict[str, Validation]()
    with job_client(first, progress=progress) as client:
        job, counts = None, None
        for name, model in chosen.items():
            if isinstance(model, Config):
                prepared = _prepare(model, client, progress, () if job else frames)
                counts = counts or counts_of(prepared, client, progress, frames)
                job = job or prepared
                done[name] = trial(name, prepared, counts, client, progress)
            else:
                assert job is not None
                assert counts is not None  # the first one is a configuration
                done[name] = _trial_of_given(name, model, job, counts, client, progress)
    return done


def _as_config(config: Any) -> Config:
    if isinstance(config, Config):
        return config
    if isinstance(config, Mapping):
        return parse_config(config)
    raise ConfigError(f"a configuration is wanted, a `Config` or a dictionary, got {config!r:.80}")


def _for_trial(config: Config, folds: int | None, same_target_out: bool) -> Config:
    """A configuration whose job leaves out what is to be left out, and writes nothing."""
    folds = folds or config.validation.folds
    if folds is not None and folds < 2:
        raise ConfigError(f"folds must be 2 or more, got {folds}")
    io = config.io.model_copy(update=_places(config))
    selection = config.background_selection
    lists = {target: [run for run in runs if run != target] for target, runs in (selection.bkg_runlist or {}).items()}
    if lists and (folds or same_target_out):
        log.warning("background_selection.bkg_runlist has no effect where folds or targets are left out")
        lists = {}
    changes = {"store_KL": False, "bkg_runlist": lists or None}
    if same_target_out:
        changes["exclude_same_target"] = True
    values = {name: getattr(selection, name) for name in BackgroundSelection.model_fields}
    folded = _Folded.model_construct(**{**values, **changes}, folds=None if io.from_run else folds)
    return config.model_copy(update={"io": io, "background_selection": folded})


def _places(config: Config) -> dict[str, str]:
    """Where the targets are, and a place for files that are never written."""
    archive = config.directory("search_datastore")
    in_dir = config.io.in_dir
    targets = in_dir if in_dir is not None and existing_store(in_dir) is not None else str(archive)
    return {"in_dir": targets, "out_dir": config.io.out_dir or str(Path(config.store_path).parent)}


def _frames(models: Iterable[Config | Datastore]) -> tuple[str, ...]:
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
    from dask_bkg.dl3.given import read_given

    for obs_id in archive.obs_ids.tolist():
        try:
            given = read_given(archive, obs_id)
        except BackgroundError:
            continue
        return len(given.axes) == 3 and given.alignment == "radec"
    raise ArchiveError(f"{archive.directory}: no run has a background that can be read: nothing to compare with")


# -- counts ----------------------------------------------------------------------------------------------------


def _prepare(config: Config, client: Client | None, progress: bool, frames: Sequence[str]) -> Prepared:
    """The job of a configuration up to its graph."""
    plan = plan_job(config)
    thresholds = {target.obs_id: target.threshold for target in plan.targets}
    own_counts = config.validation.exclusion is None
    stored = update_store(plan, client, config.store_path, progress=progress, frames=frames if own_counts else ())
    roster = call_the_roll(plan, stored)
    folds = getattr(config.background_selection, "folds", None)
    if folds is not None:
        _add_folds(roster, folds)
    return Prepared(plan, stored, roster, thresholds)


def _add_folds(roster: Roster, folds: int) -> None:
    """Every n-th run into the same fold, by run number, targets and candidates alike."""
    numbers = np.union1d(roster.targets["obs_id"], roster.runs["obs_id"])
    for table in (roster.targets, roster.runs):
        table["fold"] = np.searchsorted(numbers, table["obs_id"]) % folds


def counts_of(job: Prepared, client: Client | None, progress: bool, frames: Sequence[str]) -> Counts:
    """The counts of the targets, in a store of their own where they have another exclusion."""
    config = job.plan.config
    stored = job.stored if config.validation.exclusion is None else _own_counts(job.plan, client, progress, frames)
    store, options = stored.store, config.validation
    frame = next((f for f in frames if f == "radec" or not _blind(job.roster).any()), "radec")
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
        replace(plan, config=own, regions=regions, runs=runs, field=None),
        client,
        path,
        progress=progress,
        frames=frames,
    )


def _blind(roster: Roster) -> NDArray:
    """Targets of which nobody knows where the horizon was."""
    return ~np.all([np.isfinite(roster.targets[name]) for name in HORIZON], axis=0)


def _subjects(job: Prepared, stored: Stored, view: str) -> dict[int, Subject]:
    """The targets with the place of their counts; those without counts are none."""
    targets = job.plan.targets
    rows = stored.store.find([target.obs_id for target in targets], view)
    keys = stored.store.keys(np.maximum(rows, 0), view) if len(rows) else rows
    table = job.roster.targets
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


# -- the graph -------------------------------------------------------------------------------------------------


class _Score:
    """A task of the layer ``validate``; its runs are inside of it, where dask does not look for keys."""

    def __init__(self, subjects: list[Subject | None], first: int) -> None:
        self.subjects, self.first = subjects, first

    def __call__(self, known, shared, selected: Contributing, stacks: Stacks) -> BlockScore:
        return score_block(self.subjects, self.first, selected, stacks, known, *shared)


class _ScoreGiven:
    """A task of the layer ``validate-given``."""

    def __init__(self, subjects: list[Subject]) -> None:
        self.subjects = subjects

    def __call__(self, archive: Datastore, scored: Scored) -> BlockScore:
        return score_given(self.subjects, archive, scored)


def trial(name: str, job: Prepared, counts: Counts, client: Client | None, progress: bool) -> Validation:
    """Validation of the backgrounds that a job would write."""
    plan, config = job.plan, job.plan.config
    graph = build(plan, job.roster, job.stored, last=last_layer(job, counts)) if plan.targets else None
    tasks, parts = (graph.writes, graph.parts) if graph else ([], [])
    left_out = _left_out(config)
    if left_out == "nothing":
        log.warning("io.from_run: each run predicts itself, which is no validation")
    numbers = [[target.obs_id for target in part] for part in parts]
    done = _compute(tasks, numbers, client, config, progress)
    return _validation(name, done, dict(plan.failed), job.roster, counts[0], left_out)


def last_layer(job: Prepared, counts: Counts) -> Last:
    """The layer ``validate`` of the graph of a job."""
    scored, subjects = counts

    def task(part: list[Target], first: int) -> _Score:
        return _Score([_as_planned(subjects.get(target.obs_id), target) for target in part], first)

    return Last("validate", (model_of(job.plan), scored), task)


def _as_planned(subject: Subject | None, target: Target) -> Subject | None:
    """A run with what the job whose background is scored knows of it."""
    return None if subject is None else subject._replace(target=target)


def _trial_of_given(
    name: str, archive: Datastore, job: Prepared, counts: Counts, client: Client | None, progress: bool
) -> Validation:
    """Validation of the backgrounds that runs have already."""
    scored, subjects = counts
    layers, parts = Layers(), batches(list(subjects.values()), WRITE_BATCH)
    place = layers.add("archive", lambda name: {name: literal(archive)})
    shared = layers.add("counts", lambda name: {name: literal(scored)})
    work = layers.add(
        "validate-given",
        lambda name: {(name, i): (_ScoreGiven(part), place, shared) for i, part in enumerate(parts)},
        place,
        shared,
    )
    numbers = [[subject.target.obs_id for subject in part] for part in parts]
    tasks = layers.delayed(work, len(parts)) if subjects else []
    done = _compute(tasks, numbers, client, job.plan.config, progress)
    return _validation(name, done, {}, job.roster, scored, "unknown")


def _left_out(config: Config) -> str:
    """What does not contribute to the background of a run, in words."""
    selection = config.background_selection
    if config.io.from_run:
        return "nothing"
    folds = getattr(selection, "folds", None)
    parts = [f"its fold ({folds})"] if folds else []
    parts += ["its target"] if selection.exclude_same_target else []
    return " and ".join(parts) or "the run"


def _name(config: Config) -> str:
    """A short name of a configuration."""
    selection = config.background_selection
    return f"{config.binning.mode}, {selection.ranking}, {config.model.exposure}"


def _compute(
    tasks: list[Delayed], numbers: list[list[int]], client: Client | None, config: Config, progress: bool
) -> tuple[list[Verdict], FieldSums | None]:
    """The verdicts of all runs, and the sums over them in the order of the tasks."""
    verdicts: list[Verdict] = []
    fields: dict[int, FieldSums] = {}
    with progress_bar("runs validated", sum(map(len, numbers)), progress) as bar:

        def take(i: int, done: Any) -> None:
            if isinstance(done, ArchiveError):
                raise done
            bar.update(len(numbers[i]))
            if isinstance(done, BaseException):
                verdicts.extend(Verdict(n, f"run {n}: its task failed ({died(done)}") for n in numbers[i])
                return
            verdicts.extend(done.verdicts)
            if done.field is not None:
                fields[i] = done.field

        compute_each(tasks, client, config.config.n_workers, take)
    total: FieldSums | None = None
    for i in sorted(fields):
        total = fields[i] if total is None else total + fields[i]
    return sorted(verdicts, key=lambda verdict: verdict.obs_id), total


def _validation(
    name: str,
    done: tuple[list[Verdict], FieldSums | None],
    failed: dict[int, str],
    roster: Roster,
    scored: Scored,
    left_out: str,
) -> Validation:
    """The result, from what became of each run."""
    verdicts, total = done
    failed |= {verdict.obs_id: verdict.reason for verdict in verdicts if verdict.reason}
    scores = {verdict.obs_id: verdict.score for verdict in verdicts if verdict.score is not None}
    kept = [verdict for verdict in verdicts if verdict.obs_id in scores]
    if not kept or total is None:
        reasons = "\n".join(f"  {reason}" for reason in list(failed.values())[:20])
        raise BackgroundError(f"no run could be validated ({name}):\n{reasons}")
    place = {number: i for i, number in enumerate(roster.targets["obs_id"].tolist())}
    rows = [place[verdict.obs_id] for verdict in kept]
    columns = {column: roster.targets[column][rows] for column in COLUMNS}
    columns |= {key: np.array([getattr(v, key) for v in kept]) for key in ("threshold", "n_runs", "hours")}
    datasets = gather(scores, total, scored.bins, columns)
    return Validation(name, *datasets, dict(sorted(failed.items())), left_out, scored.alignment)
