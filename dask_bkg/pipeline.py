"""A job from its configuration to its files: the steps of `dask_bkg.lazy` put together, and `run` that does them.

First the run store is brought up to date (`dask_bkg.collect`), then one graph leads from the store to the files
(`build`): divergences, selection, stacks, rates.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import dask.array as da
import xarray as xr
from dask.delayed import Delayed
from distributed import Client

from dask_bkg import bookkeeping, schema, selection
from dask_bkg.cluster import job_client
from dask_bkg.collect import Stored, died, progress_bar, update_store
from dask_bkg.config import Config
from dask_bkg.errors import ArchiveError, BackgroundError
from dask_bkg.journal import Journal
from dask_bkg.lazy.execute import compute_each
from dask_bkg.lazy.graph import Layers, block_size, literal
from dask_bkg.lazy.kl import bounds
from dask_bkg.lazy.runs import load_runs
from dask_bkg.lazy.select import select_runs
from dask_bkg.lazy.stack import stack_runs
from dask_bkg.matrix import kl_tables
from dask_bkg.memory import runs_wanted, tell_memory
from dask_bkg.model import Known, Model, Stacks
from dask_bkg.plan import Plan, Target, plan_job, shape_settings
from dask_bkg.products import Block, Made, Mark, Result, write_block
from dask_bkg.roster import Roster, call_the_roll
from dask_bkg.schema import ring_view

log = logging.getLogger(__name__)

FIELD_BLOCK = 200
"""Most runs, and targets, a block where fields of pixels are stacked: 30 x 25 x 25 bins are 30 MB then."""

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
        Who contributes to what (`dask_bkg.selection.settings_of_roles`): of each role a delayed
        `dask_bkg.selection.Selections` for each block of targets.
    stacks
        Stacks of the targets, of each role in rings, and for 3D backgrounds those of the shape in pixels (``field``).
    writes, parts
        Delayed lists of `Result`, and the targets of each.
    tables
        Tasks that write the divergences of the candidates of each target (``store_KL``).
    """

    targets: xr.Dataset
    runs: xr.Dataset
    selected: dict[str, list[Delayed]]
    stacks: dict[str, xr.Dataset]
    writes: list[Delayed] = field(default_factory=list)
    parts: list[list[Target]] = field(default_factory=list)
    tables: list[Delayed] = field(default_factory=list)

    @property
    def arrays(self) -> dict[str, da.Array]:
        """The stacks by their names in `dask_bkg.model.Stacks`, in blocks of targets."""
        spectrum = self.stacks["spectrum"]
        found = {name: spectrum[name].data for name in (*schema.HISTOGRAMS, "livetime")}
        for role in ("shape", "night", "field"):
            if role in self.stacks:
                found |= {f"{role}_{name}": self.stacks[role][name].data for name in schema.HISTOGRAMS}
        return found


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
    few = max(int(MOST_CHOSEN // max(runs_wanted(settings, n_runs), 1)), 1)
    return few if few < block else None


class Last(NamedTuple):
    """The layer at the end of a graph, which makes something of the stacks of some targets a task.

    Attributes
    ----------
    name
        Of the layer.
    shared
        What its tasks have in common.
    task
        Makes the work of a task, given targets and the row of the first of them in the stacks.  The work is called
        with `dask_bkg.model.Known`, what is shared, `dask_bkg.selection.Contributing` and `dask_bkg.model.Stacks`.
    """

    name: str
    shared: Any
    task: Callable[[list[Target], int], Callable]


def build(
    plan: Plan,
    roster: Roster,
    stored: Stored,
    made: Mapping[int, Made] | None = None,
    last: Last | None = None,
) -> Graph:
    """The graph of a job, from the store to the files. Computes nothing.

    Parameters
    ----------
    plan, roster, stored
        The job, who takes part, and the run store.
    made
        What earlier jobs have made: backgrounds that would come out the same are not written again.
    last
        What is done with the stacks; by default backgrounds are made of them and written.
    """
    graph = _stacked(plan, roster, stored)
    last = last or _writing(plan, made_by(plan, stored), made or {})
    graph.writes, graph.parts = _writes(plan, roster, graph, last)
    settings = plan.config.background_selection
    if settings.store_KL:
        # a worker may have another working directory
        directory = os.path.abspath(plan.config.directory("results_dir") / "kl")
        selected = graph.selected["spectrum"]
        graph.tables = kl_tables(
            graph.targets, graph.runs, selected, settings, shape_settings(plan.config), directory
        )
    return graph


def _stacked(plan: Plan, roster: Roster, stored: Stored) -> Graph:
    """The graph of a job up to the stacks of its targets."""
    targets, runs = histograms(plan, roster, stored)
    numbers = [roster.targets["obs_id"][a:b] for a, b in bounds(targets)]
    split_every, shapes = plan.config.config.split_every, shape_settings(plan.config)
    selected = {
        role: select_runs(targets, runs, settings, shapes=shapes, given=given, split_every=split_every)
        for role, (settings, given) in _roles(plan, roster).items()
    }
    stacks = {role: stack_runs(runs, numbers, chosen, split_every=split_every) for role, chosen in selected.items()}
    if (pixels := field_histograms(plan, roster, stored)) is not None:
        chosen = selected.get("shape", selected["spectrum"])
        stacks["field"] = stack_runs(pixels, numbers, chosen, split_every=split_every)
    return Graph(targets, runs, selected, stacks)


def _roles(plan: Plan, roster: Roster) -> dict[str, tuple[Any, Mapping[int, selection.Selection]]]:
    """What runs contribute to: of each role how they are selected, and the selections that are given.

    Whose runs are given by hand has the shape of these, and no level but theirs.
    """
    settings = plan.config.background_selection
    if plan.config.io.from_run:
        return {"spectrum": (settings, roster.given)}
    nobody = {run: selection.by_hand(run, [], roster.runs) for run in roster.given}
    return {
        role: (section, nobody if role == "night" else roster.given)
        for role, section in selection.settings_of_roles(settings).items()
    }


def model_of(plan: Plan) -> Model:
    """How a job makes its backgrounds of stacks."""
    return Model(plan.edges, plan.rate, plan.field)


def _writing(plan: Plan, made_by: str, made: Mapping[int, Made]) -> Last:
    """The layer ``write-files``."""

    def task(part: list[Target], first: int) -> _Write:
        marks = [made[t.obs_id].mark if t.obs_id in made else None for t in part]
        return _Write(list(zip(part, marks, strict=True)), first)

    return Last("write-files", Block(model_of(plan), plan.attach_copy, bookkeeping.common_cards(plan), made_by), task)


def _writes(plan: Plan, roster: Roster, graph: Graph, last: Last) -> tuple[list[Delayed], list[list[Target]]]:
    """Tasks that make something of stacks, some of a block of targets each."""
    arrays = graph.arrays
    layers = Layers(*arrays.values(), *(part for chosen in graph.selected.values() for part in chosen))
    shared = layers.add("settings", lambda name: {name: literal(last.shared)})
    state = layers.add("state-of-runs", lambda name: {name: literal(known_of(roster))})
    unpack = _Unpack(tuple(graph.selected), tuple(arrays))
    tasks: dict = {}
    parts: list[list[Target]] = []

    def write(name: str) -> dict:
        for i, (a, b) in enumerate(bounds(graph.stacks["spectrum"])):
            inputs = [chosen[i].key for chosen in graph.selected.values()]
            inputs += [(array.name, i, *(0,) * (array.ndim - 1)) for array in arrays.values()]
            for first in range(a, b, WRITE_BATCH):
                part = plan.targets[first : min(first + WRITE_BATCH, b)]
                work = partial(unpack, last.task(part, first - a))
                tasks[name, len(parts)] = (work, state, shared, *inputs)
                parts.append(part)
        return tasks

    below = [array.name for array in arrays.values()] + [chosen[0].key[0] for chosen in graph.selected.values()]
    name = layers.add(last.name, write, shared, state, *below)
    return layers.delayed(name, len(parts)), parts


def known_of(roster: Roster) -> Known:
    """What is known of the runs that may contribute beside their histograms."""
    held = roster.run_keys if roster.field_keys is None else roster.field_keys
    return Known(held, roster.runs["zenith"], roster.runs["n_events"])


@dataclass(frozen=True)
class _Unpack:
    """Gives a task of the last layer what it takes: first the selections of the roles come, then the stacks."""

    roles: tuple[str, ...]
    stacks: tuple[str, ...]

    def __call__(self, task: Callable, known: Known, shared: Any, *inputs: Any) -> Any:
        n = len(self.roles)
        selected = selection.Contributing(**dict(zip(self.roles, inputs[:n], strict=True)))
        return task(known, shared, selected, Stacks(**dict(zip(self.stacks, inputs[n:], strict=True))))


class _Write:
    """A task of the layer ``write-files``; its targets are inside of it, where dask does not look for keys."""

    def __init__(self, targets: list[tuple[Target, Mark | None]], first: int) -> None:
        self.targets, self.first = targets, first

    def __call__(self, known: Known, block: Block, selected: selection.Contributing, stacks: Stacks) -> list[Result]:
        return write_block(self.targets, self.first, selected, stacks, known, block)


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
    with job_client(config, progress=progress) as client:
        plan = plan_job(config)
        bookkeeping.check_writable(config)
        tell_memory(plan, client)
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
    return Summary(results, results_dir, plan.unusable, plan.missing, stored.opened, stored.read, plan.config)


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
