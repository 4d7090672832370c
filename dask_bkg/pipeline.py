"""A job from its configuration to its files: the steps of `dask_bkg.lazy` put together, and `run` that does them.

First the run store is brought up to date (`dask_bkg.collect`), then one graph leads from the store to the files
(`build`): divergences, selection, stacks, rates.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import xarray as xr
from dask.delayed import Delayed
from distributed import Client
from tqdm import tqdm

from dask_bkg import bookkeeping, schema
from dask_bkg.cluster import open_client
from dask_bkg.collect import Stored, died, progress_bar, update_store
from dask_bkg.config import Config
from dask_bkg.errors import ArchiveError, BackgroundError
from dask_bkg.journal import Journal
from dask_bkg.lazy.execute import compute_each, one_blas_thread
from dask_bkg.lazy.graph import Layers, block_size, literal
from dask_bkg.lazy.kl import bounds
from dask_bkg.lazy.runs import load_runs
from dask_bkg.lazy.select import select_runs
from dask_bkg.lazy.stack import stack_runs
from dask_bkg.matrix import kl_tables
from dask_bkg.model import Known, Model, Stacks
from dask_bkg.plan import Plan, Target, plan_job, shape_settings
from dask_bkg.products import Block, Made, Mark, Result, write_block
from dask_bkg.roster import Roster, call_the_roll
from dask_bkg.schema import ring_view

log = logging.getLogger(__name__)

FIELD_BLOCK = 200
"""Most runs, and targets, a block where fields of pixels are stacked: 30 x 25 x 25 bins are 30 MB then."""

RUNS_PER_HOUR = 4
"""Runs that an hour of a selection may hold: half-hour runs, and some that weigh little."""

SAVE_EVERY = 5.0
"""Seconds after which the run store is told of the files that were written."""

MOST_CHOSEN = 2_000_000
"""Contributing runs that the selections of a block of targets may hold: 80 MB."""

WRITE_BATCH = 25
"""Targets that one task writes: whole files of a megabyte take 50 ms each."""


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
    """

    results: list[Result]
    results_dir: Path
    unusable: dict[int, str] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)
    runs_opened: int = 0
    runs_read: int = 0

    @property
    def failed(self) -> dict[int, str]:
        """Targets and contributing runs that could not be used, with their reasons."""
        reasons = dict(self.unusable)
        for result in self.results:
            reasons.update(result.failed_runs)
            if result.status == "failed":
                reasons[result.obs_id] = result.reason
        return dict(sorted(reasons.items()))


# -- from the store to the files -------------------------------------------------------------------------------


@dataclass
class Graph:
    """The lazy collections of a job; nothing is computed.

    Attributes
    ----------
    targets, runs
        Histograms of the targets and of the runs that may contribute (the same object where they are the same).
    selected
        Who contributes: a delayed `dask_bkg.selection.Selections` for each block of targets.
    stacks, fields
        Stacks of the targets in rings and, for 3D backgrounds, in pixels of the field.
    writes, parts
        Delayed lists of `Result`, and the targets of each.
    tables
        Tasks that write the divergences of the candidates of each target (``store_KL``).
    """

    targets: xr.Dataset
    runs: xr.Dataset
    selected: list[Delayed]
    stacks: xr.Dataset
    fields: xr.Dataset | None
    writes: list[Delayed]
    parts: list[list[Target]]
    tables: list[Delayed] = field(default_factory=list)


def histograms(plan: Plan, roster: Roster, stored: Stored) -> tuple[xr.Dataset, xr.Dataset]:
    """Run histograms of targets and of candidates, in the rings of the job, lazily."""
    place, block = (str(stored.store.path), stored.view), plan.config.config.block
    runs = load_runs(*place, roster.run_rows, roster.runs, plan.edges, keys=roster.run_keys, block=block)
    few = _targets_at_once(plan, roster.run_rows.size, max((b - a for a, b in bounds(runs)), default=1))
    if roster.targets is roster.runs and few is None:
        return runs, runs
    keys = roster.target_keys
    return load_runs(*place, roster.target_rows, roster.targets, plan.edges, keys=keys, block=few or block), runs


def field_histograms(plan: Plan, roster: Roster, stored: Stored) -> xr.Dataset | None:
    """Run histograms of candidates in the pixels of the field, lazily; None in a job of 2D backgrounds."""
    if plan.field is None or stored.field_view is None:
        return None
    block = min(plan.config.config.block or block_size(roster.run_rows.size), FIELD_BLOCK)
    place = str(stored.store.path), stored.field_view
    keys = roster.field_keys
    return load_runs(*place, roster.run_rows, roster.runs, plan.field.edges, keys=keys, block=block)


def _targets_at_once(plan: Plan, n_runs: int, block: int) -> int | None:
    """Targets a block where selections would be too long, as far as the matrix itself; None: as many as runs."""
    settings = plan.config.background_selection
    if plan.field is not None and block > FIELD_BLOCK:
        return FIELD_BLOCK
    if plan.config.io.from_run:
        return None
    wanted = n_runs if settings.ranking == "none" else min(settings.hours_wanted * RUNS_PER_HOUR, n_runs)
    few = max(int(MOST_CHOSEN // max(wanted, 1)), 1)
    return few if few < block else None


def build(plan: Plan, roster: Roster, stored: Stored, made: Mapping[int, Made] | None = None) -> Graph:
    """The graph of a job, from the store to the files. Computes nothing.

    Parameters
    ----------
    plan, roster, stored
        The job, who takes part, and the run store.
    made
        What earlier jobs have made: backgrounds that would come out the same are not written again.
    """
    settings = plan.config.background_selection
    targets, runs = histograms(plan, roster, stored)
    split_every = plan.config.config.split_every
    selected = select_runs(
        targets, runs, settings, shapes=shape_settings(plan.config), given=roster.given, split_every=split_every
    )
    numbers = [roster.targets["obs_id"][a:b] for a, b in bounds(targets)]
    stacks = stack_runs(runs, numbers, selected, split_every=split_every)
    pixels = field_histograms(plan, roster, stored)
    fields = None if pixels is None else stack_runs(pixels, numbers, selected, split_every=split_every)
    all_stacks = [stack for stack in (stacks, fields) if stack is not None]
    writes, parts = _writes(plan, roster, selected, all_stacks, made_by(plan, stored), made or {})
    graph = Graph(targets, runs, selected, stacks, fields, writes, parts)
    if settings.store_KL:
        # a worker may have another working directory
        directory = os.path.abspath(plan.config.directory("results_dir") / "kl")
        graph.tables = kl_tables(targets, runs, selected, settings, shape_settings(plan.config), directory)
    return graph


def _writes(
    plan: Plan,
    roster: Roster,
    selected: list[Delayed],
    stacks: Sequence[xr.Dataset],
    made_by: str,
    made: Mapping[int, Made],
) -> tuple[list[Delayed], list[list[Target]]]:
    """Tasks that make and write backgrounds, some of a block of targets each."""
    rings, *field = stacks
    arrays = [rings[name].data for name in ("counts", "exposure", "livetime")]
    arrays += [stack[name].data for stack in field for name in schema.HISTOGRAMS]
    layers = Layers(*arrays, *selected)
    model = Model(plan.edges, plan.rate, plan.field)
    settings = Block(model, plan.attach_copy, bookkeeping.common_cards(plan), made_by)
    shared = layers.add("settings", lambda name: {name: literal(settings)})
    state = layers.add("state-of-runs", lambda name: {name: literal(known_of(roster))})
    tasks: dict = {}
    parts: list[list[Target]] = []

    def write(name: str) -> dict:
        for i, (a, b) in enumerate(bounds(rings)):
            inputs = [(array.name, i, *(0,) * (array.ndim - 1)) for array in arrays]
            for first in range(a, b, WRITE_BATCH):
                part = plan.targets[first : min(first + WRITE_BATCH, b)]
                marks = [made[t.obs_id].mark if t.obs_id in made else None for t in part]
                work = _Write(list(zip(part, marks, strict=True)), first - a)
                tasks[name, len(parts)] = (work, state, shared, selected[i].key, *inputs)
                parts.append(part)
        return tasks

    name = layers.add("write-dl3", write, shared, state, *(array.name for array in arrays), selected[0].key[0])
    return layers.delayed(name, len(parts)), parts


def known_of(roster: Roster) -> Known:
    """What is known of the runs that may contribute beside their histograms."""
    held = roster.run_keys if roster.field_keys is None else roster.field_keys
    return Known(held, roster.runs["zenith"], roster.runs["n_events"])


class _Write:
    """A task of the layer ``write-dl3``; its targets are inside of it, where dask does not look for keys."""

    def __init__(self, targets: list[tuple[Target, Mark | None]], first: int) -> None:
        self.targets, self.first = targets, first

    def __call__(self, known, block, selected, *stacks) -> list[Result]:
        with one_blas_thread():
            return write_block(self.targets, self.first, selected, Stacks(*stacks), known, block)


def made_by(plan: Plan, stored: Stored) -> str:
    """What all backgrounds of a job depend on: the settings, and the pixels through which events were counted."""
    view = stored.store.views[stored.view]
    axes = ring_view(view.edges, view.method, view.reach).name
    field = "" if stored.field_view is None else f"/{stored.field_view}{stored.store.views[stored.field_view].pixels}"
    return f"{bookkeeping.config_hash(plan.config)}/{axes}/{view.pixels}{field}"


# -- run -------------------------------------------------------------------------------------------------------


def run(config: Config, *, progress: bool = True, refresh: bool = False) -> Summary:
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
        If nothing could be done; `Summary.failed` otherwise tells the runs that could not.
    """
    with open_client(config.cluster, config.config.n_workers) as client:
        if client is not None and progress:
            tqdm.write(f"dashboard: {client.dashboard_link}")
        plan = plan_job(config)
        bookkeeping.check_writable(config)
        stored = update_store(plan, client, config.store_path, progress=progress)
        roster = call_the_roll(plan, stored)
        results = [Result(obs_id, "failed", reason) for obs_id, reason in plan.failed.items()]
        made = {} if refresh else bookkeeping.made_before(plan)
        retired = bookkeeping.retire_backgrounds(plan)
        job = _Job(plan, stored, roster, made, results)
        try:
            if plan.targets:
                _compute(build(plan, roster, stored, made), client, config, progress, job)
        except BaseException:
            # a task may have written files and not said so yet: only what is known to be done gets its row back
            bookkeeping.write_indexes(plan, results)
            raise
    refused = bookkeeping.write_indexes(plan, results, retired)
    results = [replace(r, status="failed", reason=refused[r.obs_id]) if r.obs_id in refused else r for r in results]
    results.sort(key=lambda r: r.obs_id)
    results_dir = bookkeeping.write_results(plan, results)
    job.close()
    if not any(result.done for result in results):
        raise BackgroundError("no background could be made:\n" + "\n".join(f"  {r.reason}" for r in results[:20]))
    return Summary(results, results_dir, plan.unusable, plan.missing, stored.opened, stored.read)


class _Job:
    """Takes the results of a job as they come, and sees to it that they are known if it is killed.

    Parameters
    ----------
    results
        Where the results are added.
    """

    def __init__(
        self, plan: Plan, stored: Stored, roster: Roster, made: Mapping[int, Made], results: list[Result]
    ) -> None:
        self.results, self._made, self._roster, self._store = results, made, roster, stored.store
        self._noted = dict(zip(roster.runs["obs_id"].tolist(), roster.runs["note"].tolist(), strict=True))
        self._journal = Journal(plan.config.directory("results_dir"))
        fingerprints = dict(
            zip(roster.targets["obs_id"].tolist(), roster.targets["fingerprint"].tolist(), strict=True)
        )
        sources = {run.obs_id: run.path for run in plan.runs}
        # the output holds the events of its source: known only where that is the file that the store read
        self._known = {
            t.obs_id: str(fingerprints[t.obs_id])
            for t in plan.targets
            if plan.attach_copy and sources.get(t.obs_id) == t.source
        }
        self._saved = time.monotonic()

    def take(self, results: list[Result]) -> None:
        """Add results of a task."""
        told = [
            replace(self._made[r.obs_id].result, status=r.status)
            if r.status == "unchanged"
            else with_runs(r, self._noted, self._roster.absent.get(r.obs_id, {}))
            for r in results
        ]
        self.results.extend(told)
        written = [result for result in told if result.status == "done"]
        self._journal.add({str(result.obs_id): bookkeeping.told(result) for result in written})
        for result in written:
            if result.obs_id in self._known:
                self._store.saw(result.output, self._known[result.obs_id])
        if time.monotonic() - self._saved > SAVE_EVERY:
            self._save()

    def close(self) -> None:
        """All is written: what was kept for the case of a kill is no more needed."""
        self._save()
        self._journal.close()

    def _save(self) -> None:
        try:
            self._store.flush()
        except ArchiveError as error:
            # the next job opens the files that were written, to see that their events are what they were
            log.warning("%s", error)
        self._saved = time.monotonic()


def with_runs(result: Result, noted: Mapping[int, str], failed: Mapping[int, str]) -> Result:
    """A result with what is known of its contributing runs: those that could not be used, and remarkable ones."""
    notes = {run: str(noted[run]) for run in result.contributing if noted.get(run)}
    remarks = [result.reason] if result.reason else []
    if result.done:
        told = notes.items()
        remarks += [note if run == result.obs_id else f"contributing run {run}: {note}" for run, note in told]
        remarks += [f"{len(failed)} contributing runs could not be used"] if failed else []
    return replace(result, notes=notes, failed_runs=dict(failed), reason="; ".join(remarks))


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
            bar.update(len(graph.parts[i]))
            job.take(_failed(done, graph.parts[i]) if isinstance(done, BaseException) else done)

        compute_each([*graph.writes, *graph.tables], client, config.config.n_workers, take)


def _failed(error: BaseException, targets: list[Target]) -> list[Result]:
    """A failure for each target of a task that died with its worker (memory, walltime)."""
    return [Result(t.obs_id, "failed", f"run {t.obs_id}: its task failed ({died(error)}") for t in targets]
