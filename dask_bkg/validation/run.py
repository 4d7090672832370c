"""Validation of a configuration: its job, with a score in the place of each file.

A target does not contribute to its own background, so the ordinary job is leave-one-out: plan, run store, selections
and stacks are those of `dask_bkg.pipeline.run`, and the last layer of the graph compares the background that would be
written with the counts of each target (`dask_bkg.validation.task`).  More runs are left out by cuts: those of the
same fold, or of the same object.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from dask.delayed import Delayed

from dask_bkg.background.target import Target
from dask_bkg.cluster import Workers, job_workers
from dask_bkg.config import BackgroundSelection, Config, parse_config
from dask_bkg.dl3.index import Datastore, existing_store, read_datastore
from dask_bkg.errors import ArchiveError, BackgroundError, ConfigError
from dask_bkg.lazy.execute import compute_each
from dask_bkg.lazy.layers import Each, Layers, batches
from dask_bkg.pipeline.graph import WRITE_BATCH, Graph, build, final_tasks, model_of
from dask_bkg.pipeline.tables import Tables
from dask_bkg.pipeline.update import died, progress_bar
from dask_bkg.terminal import reason_lines
from dask_bkg.validation.counts import Counts, Prepared, counts_of, frames_of, prepare
from dask_bkg.validation.results import Validation, gather
from dask_bkg.validation.score import FieldSums
from dask_bkg.validation.task import Scored, Subject, Verdict, score_block, score_given

log = logging.getLogger(__name__)

COLUMNS = ("object", "ra_pnt", "dec_pnt", "zenith", "azimuth", "time", "ontime", "livetime")
"""Metadata of each run in the result."""


class _Folded(BackgroundSelection):
    """A ``background_selection`` with the cut of a validation."""

    folds: int | None = None


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
        The configuration, whose ``validation`` section sets the bins of the comparison.
    against
        Other backgrounds for the same runs, compared in the same bins: another configuration, or the directory of a
        datastore whose files have backgrounds.  The result is in ``against`` of the validation.
    folds
        Number of folds that are left out as a whole, instead of single runs; by default ``validation.folds``.
    same_target_out
        Leave out all runs of the same object as well.
    progress
        Whether bars are shown.

    Returns
    -------
    validation
        See `dask_bkg.validation.Validation`; `dask_bkg.validation.summarise` and ``compare`` give numbers for all
        runs.

    Raises
    ------
    ConfigError
        If the configuration is invalid.
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
    """Several backgrounds against the same counts, in the same bins, for `dask_bkg.validation.compare`.

    Parameters
    ----------
    models
        By name: configurations, or directories of datastores whose files have backgrounds.  The first one must be a
        configuration: its targets, its run store and its ``validation`` section are used for all.
    folds, same_target_out, progress
        As for `validate`.

    Returns
    -------
    validations
        By name.

    Raises
    ------
    BackgroundError
        If no run could be validated for one of them.
    """
    first = _as_config(next(iter(models.values())))
    folds = folds or first.validation.folds
    chosen = {
        name: _for_trial(_as_config(model), folds, same_target_out)
        if isinstance(model, (Config, Mapping))
        else read_datastore(model, first.io.data_dirs)
        for name, model in models.items()
    }
    frames, done = frames_of(chosen.values()), dict[str, Validation]()
    with job_workers(first, progress=progress) as workers:
        job, counts = None, None
        for name, model in chosen.items():
            if isinstance(model, Config):
                prepared = prepare(model, workers, progress, () if job else frames)
                counts = counts or counts_of(prepared, workers, progress, frames)
                job = job or prepared
                done[name] = trial(name, prepared, counts, workers, progress)
            else:
                assert job is not None
                assert counts is not None  # the first model is a configuration
                done[name] = _trial_of_given(name, model, job, counts, workers, progress)
    return done


def _as_config(config: Any) -> Config:
    if not isinstance(config, (Config, Mapping)):
        raise ConfigError(f"expected a configuration, a `Config` or a dictionary, got {config!r:.80}")
    return config if isinstance(config, Config) else parse_config(config)


def _for_trial(config: Config, folds: int | None, same_target_out: bool) -> Config:
    """A configuration whose job leaves out folds or objects, and writes nothing."""
    folds = folds or config.validation.folds
    if folds is not None and folds < 2:
        raise ConfigError(f"folds must be 2 or more, got {folds}")
    # targets from the archive where there is no in_dir; out_dir is required, but nothing is written there
    archive, in_dir = str(config.directory("search_datastore")), config.io.in_dir
    targets = in_dir if in_dir is not None and existing_store(in_dir) is not None else archive
    out_dir = config.io.out_dir or str(Path(config.store_path).parent)
    io = config.io.model_copy(update={"in_dir": targets, "out_dir": out_dir})
    selection = config.background_selection
    lists = {target: [run for run in runs if run != target] for target, runs in (selection.bkg_runlist or {}).items()}
    if lists and (folds or same_target_out):
        log.warning("background_selection.bkg_runlist has no effect where folds or targets are left out")
        lists = {}
    values = {name: getattr(selection, name) for name in BackgroundSelection.model_fields}
    values |= {"store_KL": False, "bkg_runlist": lists or None}
    if same_target_out:
        values["exclude_same_target"] = True
    folded = _Folded.model_construct(**values, folds=None if io.from_run else folds)
    return config.model_copy(update={"io": io, "background_selection": folded})


def trial(name: str, job: Prepared, counts: Counts, workers: Workers, progress: bool) -> Validation:
    """Validation of the backgrounds that a job would write."""
    plan, config = job.plan, job.plan.config
    last = partial(final_layer, job=job, counts=counts)
    graph = build(plan, job.tables, job.stored, last=last) if job.tables.ready else None
    tasks, parts = (graph.writes, graph.parts) if graph else ([], [])
    left_out = _left_out(config)
    if left_out == "nothing":
        log.warning(
            "io.from_run or model.own: the counts of each run contribute to its background: this is no validation"
        )
    numbers = [[target.obs_id for target in part] for part in parts]
    done = _compute(tasks, numbers, workers, config, progress)
    return _validation(name, done, dict(job.tables.failed), job.tables, counts[0], left_out)


def final_layer(graph: Graph, job: Prepared, counts: Counts) -> tuple[list[Delayed], list[list[Target]]]:
    """The layer ``validate`` of the graph of a job, and the targets of its tasks."""
    scored, subjects = counts

    def each(part: list[Target]) -> list[Subject | None]:
        # the target of the job whose background is scored, which may differ in sight and threshold
        return [subjects[t.obs_id]._replace(target=t) if t.obs_id in subjects else None for t in part]

    return final_tasks(graph, job.tables, "validate", score_block, each, model=model_of(job.plan), scored=scored)


def _trial_of_given(
    name: str, archive: Datastore, job: Prepared, counts: Counts, workers: Workers, progress: bool
) -> Validation:
    """Validation of existing backgrounds of the runs."""
    scored, subjects = counts
    layers, parts = Layers(), batches(list(subjects.values()), WRITE_BATCH)
    common = {"archive": layers.share("archive", archive), "scored": layers.share("counts", scored)}
    tasks = layers.delayed(layers.map("validate-given", score_given, subjects=Each(parts), **common))
    numbers = [[subject.target.obs_id for subject in part] for part in parts]
    done = _compute(tasks if subjects else [], numbers, workers, job.plan.config, progress)
    return _validation(name, done, {}, job.tables, scored, "unknown")


def _left_out(config: Config) -> str:
    """Which runs do not contribute to the background of a run, in words (`Validation.left_out`)."""
    selection = config.background_selection
    if config.io.from_run or config.model.own != "off":
        return "nothing"
    folds = getattr(selection, "folds", None)
    parts = [f"its fold ({folds})"] if folds else []
    parts += ["its target"] if selection.exclude_same_target else []
    return " and ".join(parts) or "the run"


def _name(config: Config) -> str:
    """A short name of a configuration."""
    selection = config.background_selection
    return f"{config.binning.mode or 'default'}, {selection.ranking}, {config.model.exposure}"


def _compute(
    tasks: list[Delayed], numbers: list[list[int]], workers: Workers, config: Config, progress: bool
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

        compute_each(tasks, workers.for_runs(sum(map(len, numbers))), config.config.n_workers, take)
    total: FieldSums | None = None
    for i in sorted(fields):
        total = fields[i] if total is None else total + fields[i]
    return sorted(verdicts, key=lambda verdict: verdict.obs_id), total


def _validation(
    name: str,
    done: tuple[list[Verdict], FieldSums | None],
    failed: dict[int, str],
    tables: Tables,
    scored: Scored,
    left_out: str,
) -> Validation:
    """The result from the verdicts of all runs."""
    verdicts, total = done
    failed |= {verdict.obs_id: verdict.reason for verdict in verdicts if verdict.reason}
    scores = {verdict.obs_id: verdict.score for verdict in verdicts if verdict.score is not None}
    kept = [verdict for verdict in verdicts if verdict.obs_id in scores]
    if not kept or total is None:
        reasons = "\n".join(reason_lines(failed))
        raise BackgroundError(f"no run could be validated ({name}):\n{reasons}", failed=failed)
    place = {number: i for i, number in enumerate(tables.targets["obs_id"].tolist())}
    rows = [place[verdict.obs_id] for verdict in kept]
    columns = {column: tables.targets[column][rows] for column in COLUMNS}
    columns |= {key: np.array([getattr(v, key) for v in kept]) for key in ("threshold", "n_runs", "hours")}
    datasets = gather(scores, total, scored.bins, columns)
    return Validation(name, *datasets, dict(sorted(failed.items())), left_out, scored.alignment)
