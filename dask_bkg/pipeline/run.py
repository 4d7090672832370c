"""A job from its configuration to its files: the steps of `dask_bkg.lazy` put together, and `run_job` that does them.

First the run store is brought up to date (`dask_bkg.pipeline.update`), then one graph leads from the store to the
files (`dask_bkg.pipeline.graph.build`): divergences, selection, stacks, rates.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dask_bkg.background.target import Target
from dask_bkg.cluster import job_workers
from dask_bkg.config import Config
from dask_bkg.errors import ArchiveError, BackgroundError
from dask_bkg.lazy.execute import compute_each
from dask_bkg.output.backgrounds import Backgrounds
from dask_bkg.output.index import check_writable, retire_backgrounds, write_indexes
from dask_bkg.output.provenance import job_of, write_results
from dask_bkg.output.write import Result
from dask_bkg.pipeline.graph import Graph, build
from dask_bkg.pipeline.memory import tell_memory
from dask_bkg.pipeline.tables import Tables, make_tables
from dask_bkg.pipeline.update import Stored, died, progress_bar, update_store
from dask_bkg.plan import Plan, plan_job
from dask_bkg.terminal import reason_lines

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

UNCHANGED = 20
"""So many backgrounds that were made before are, for the choice of workers, one that has to be made."""

SAVE_EVERY = 5.0
"""Seconds after which the files that were written are recorded in the run store."""


@dataclass(frozen=True)
class Summary:
    """What became of a job.

    Attributes
    ----------
    results
        One `Result` a target, by run number.
    results_dir
        Where provenance, effective configuration and the summary table are.
    unusable
        Runs of the archive that cannot be used, ``{obs_id: reason}``.
    missing
        Runs of the runlist that ``in_dir`` does not have.
    runs_opened, runs_read
        Number of event files that were opened, and of those whose events were counted: runs that the run store did
        not have as they are.
    config
        The configuration, in which what it left open is decided.
    """

    results: list[Result]
    results_dir: Path
    unusable: dict[int, str] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)
    runs_opened: int = 0
    runs_read: int = 0
    config: Config | None = None

    @property
    def picture(self) -> Path:
        """Where the picture of the backgrounds is, or will be."""
        return self.results_dir / "backgrounds.png"

    @property
    def failed(self) -> dict[int, str]:
        """Targets and contributing runs that could not be used, with their reasons."""
        reasons = dict(self.unusable)
        for result in self.results:
            reasons.update(result.failed_runs)
            if result.status == "failed":
                reasons[result.obs_id] = result.reason
        return dict(sorted(reasons.items()))


def run_job(config: Config, *, progress: bool = True, refresh: bool = False) -> Summary:
    """Do a job: plan, reduce, select, stack, write, index.

    Parameters
    ----------
    config
        A configuration whose ``in_dir`` is prepared (see `dask_bkg.prepare_dataset`).
    progress
        Whether bars are shown.
    refresh
        Whether backgrounds that would come out as they are there already are written all the same.

    Raises
    ------
    BackgroundError
        If nothing could be done; `Summary.failed` otherwise has the runs that could not.
    """
    plan = plan_job(config)
    check_writable(config)
    with job_workers(config, progress=progress, opened=partial(tell_memory, plan)) as workers:
        stored = update_store(plan, workers, config.store_path, progress=progress)
        tables = make_tables(plan, stored)
        results = [Result(obs_id, "failed", reason) for obs_id, reason in tables.failed.items()]
        try:
            retired = retire_backgrounds(plan, tables.ready)
            field_edges = None if plan.field_plan is None else plan.field_plan.edges
            results_dir, obs_ids = plan.config.directory("results_dir"), [t.obs_id for t in tables.ready]
            backgrounds = Backgrounds(results_dir, plan.edges, field_edges, job_of(plan), obs_ids)
            marks = {} if refresh else backgrounds.marks(tables.ready)
            job = _Job(plan, stored, tables, backgrounds, results)
            if tables.ready:
                # to see that a background is unchanged takes a small part of what it takes to make it
                client = workers.for_runs(len(tables.ready) - len(marks) + len(marks) // UNCHANGED)
                _compute(build(plan, tables, stored, marks, backgrounds.place), client, config, progress, job)
        except BaseException as error:
            _put_on_record(plan, results, error)
            raise
    try:
        refused = write_indexes(plan, results, retired)
    except KeyboardInterrupt as error:
        _put_on_record(plan, results, error)
        raise
    results = [replace(r, status="failed", reason=refused[r.obs_id]) if r.obs_id in refused else r for r in results]
    results.sort(key=lambda r: r.obs_id)
    results_dir = write_results(plan, results, backgrounds, tables.unusable)
    job.save()
    if not any(result.done for result in results):
        reasons = {result.obs_id: result.reason for result in results}
        raise BackgroundError("\n".join(["no background could be made:", *reason_lines(reasons)]), failed=reasons)
    return Summary(results, results_dir, tables.unusable, plan.missing, stored.opened, stored.read, plan.config)


def _put_on_record(plan: Plan, results: list[Result], error: BaseException) -> None:
    """Write the index of a job that is broken off, and note on its error how far it has come."""
    # a task may have written files and not said so yet: only what is known to be done gets its row back
    write_indexes(plan, results)
    if isinstance(error, KeyboardInterrupt):
        done = sum(result.done for result in results)
        error.add_note(f"{done} of {len(plan.targets)} backgrounds are written and in the index")


class _Job:
    """Takes the results of a job as they come, and sees to it that little is lost if it is killed.

    Parameters
    ----------
    results
        Where the results are added.
    """

    def __init__(
        self, plan: Plan, stored: Stored, tables: Tables, backgrounds: Backgrounds, results: list[Result]
    ) -> None:
        self.results, self._backgrounds, self._store = results, backgrounds, stored.store
        fingerprints = dict(
            zip(tables.targets["obs_id"].tolist(), tables.targets["fingerprint"].tolist(), strict=True)
        )
        sources = {run.obs_id: run.path for run in plan.runs}
        # the output holds the events of its source: known only where that is the file that the store read
        self._known = {
            t.obs_id: str(fingerprints[t.obs_id])
            for t in tables.ready
            if plan.attach_copy and sources.get(t.obs_id) == t.source
        }
        self._saved = time.monotonic()

    def take(self, results: list[Result]) -> None:
        """Add results of a task."""
        self.results.extend(self._backgrounds.result(r.obs_id) if r.status == "unchanged" else r for r in results)
        written = [result for result in results if result.status == "done"]
        self._backgrounds.written(len(written))
        for result in written:
            if result.obs_id in self._known:
                self._store.saw(result.output, self._known[result.obs_id])
        if time.monotonic() - self._saved > SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Tell the run store which of its runs are in the files that were written."""
        try:
            self._store.flush()
        except ArchiveError as error:
            # the next job opens the files that were written, to see that their events are what they were
            log.warning("%s", error)
        self._saved = time.monotonic()


def _compute(graph: Graph, client: Client | None, config: Config, progress: bool, job: _Job) -> None:
    """Compute the graph; the job takes results as they are written."""
    with progress_bar("backgrounds", sum(len(part) for part in graph.parts), progress) as bar:

        def take(i: int, done: Any) -> None:
            if i >= len(graph.writes):
                if isinstance(done, BaseException):
                    log.warning("a table of divergences could not be written: %s", done)
                return
            if isinstance(done, ArchiveError):
                # the run store is damaged or another job changes it: as on threads, that is the end of all
                raise done
            job.take(_failed(done, graph.parts[i]) if isinstance(done, BaseException) else done)
            # last: what the bar counts is in the index even if the job is stopped right here
            bar.update(len(graph.parts[i]))

        compute_each([*graph.writes, *graph.tables], client, config.config.n_workers, take)


def _failed(error: BaseException, targets: list[Target]) -> list[Result]:
    """A failure for each target of a task that died with its worker (memory, walltime)."""
    return [Result(t.obs_id, "failed", f"run {t.obs_id}: its task failed ({died(error)}") for t in targets]
