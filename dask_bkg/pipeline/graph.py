"""The graph of a job, from the run store to the files: who contributes to what, stacks, and what is made of them.

The steps of `dask_bkg.lazy` put together; building it computes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import dask.array as da
import xarray as xr
from dask.delayed import Delayed

from dask_bkg import schema, selection
from dask_bkg.background.model import Known, Model, Stacks
from dask_bkg.background.target import Target
from dask_bkg.binning import ring_view
from dask_bkg.lazy.execute import one_blas_thread
from dask_bkg.lazy.kl import bounds
from dask_bkg.lazy.layers import Layers, block_size, literal
from dask_bkg.lazy.runs import load_runs
from dask_bkg.lazy.select import select_runs
from dask_bkg.lazy.stack import stack_runs
from dask_bkg.output.provenance import common_cards, config_hash
from dask_bkg.output.write import Block, Mark, Place, Result, write_block
from dask_bkg.pipeline.kl import kl_tables
from dask_bkg.pipeline.memory import runs_wanted
from dask_bkg.pipeline.tables import Roster
from dask_bkg.pipeline.update import Stored
from dask_bkg.plan import Plan
from dask_bkg.settings import shape_settings

FIELD_BLOCK = 200
"""Most runs, and targets, a block where fields of pixels are stacked: 30 x 25 x 25 bins are 30 MB then."""

MOST_CHOSEN = 2_000_000
"""Contributing runs that the selections of a block of targets may hold: 80 MB."""

ROLE_STACKS = {
    "shape": (*schema.HISTOGRAMS, "squares"),
    "night": (*schema.HISTOGRAMS, "squares"),
    "field": schema.HISTOGRAMS,
    "own": schema.HISTOGRAMS,
}
"""What is used of the stacks of each role beside the spectrum."""

WRITE_BATCH = 25
"""Targets that one task writes: whole files of a megabyte take 50 ms each."""


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
        Stacks of the targets, of each role in rings, and for 3D backgrounds those of the shape in pixels (``field``);
        the targets themselves where they are asked (``own``).
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
        """The stacks by their names in `dask_bkg.background.model.Stacks`, in blocks of targets."""
        spectrum = self.stacks["spectrum"]
        found = {name: spectrum[name].data for name in (*schema.HISTOGRAMS, "livetime", "squares")}
        for role, names in ROLE_STACKS.items():
            if role in self.stacks:
                found |= {f"{role}_{name}": self.stacks[role][name].data for name in names}
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
        with `dask_bkg.background.model.Known`, what is shared, `dask_bkg.selection.Contributing` and
        `dask_bkg.background.model.Stacks`.
    """

    name: str
    shared: Any
    task: Callable[[list[Target], int], Callable]


def build(
    plan: Plan,
    roster: Roster,
    stored: Stored,
    marks: Mapping[int, Mark] | None = None,
    place: Place | None = None,
    last: Last | None = None,
) -> Graph:
    """The graph of a job, from the store to the files. Computes nothing.

    Parameters
    ----------
    plan, roster, stored
        The job, who takes part, and the run store.
    marks
        Marks of the backgrounds of earlier jobs: those that would come out the same are not written again.
    place
        Where results are kept; None: nowhere.
    last
        What is done with the stacks; by default backgrounds are made of them and written.
    """
    graph = _stacked(plan, roster, stored)
    last = last or _writing(plan, roster, made_by(plan, stored), marks or {}, place)
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
    if plan.rate.own != "off":
        stacks["own"] = targets
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


def _writing(plan: Plan, roster: Roster, made_by: str, marks: Mapping[int, Mark], place: Place | None) -> Last:
    """The layer ``write-files``."""

    def task(part: list[Target], first: int) -> _Write:
        return _Write([(target, marks.get(target.obs_id)) for target in part], first)

    noted = zip(roster.runs["obs_id"].tolist(), roster.runs["note"].tolist(), strict=True)
    notes = {run: str(note) for run, note in noted if note}
    block = Block(model_of(plan), plan.attach_copy, common_cards(plan), made_by, place, notes, roster.absent)
    return Last("write-files", block, task)


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
        with one_blas_thread():
            return write_block(self.targets, self.first, selected, stacks, known, block)


def made_by(plan: Plan, stored: Stored) -> str:
    """What all backgrounds of a job depend on: the settings, and the pixels through which events were counted."""
    view = stored.store.views[stored.view]
    axes = ring_view(view.edges, view.method, view.reach).name
    field = "" if stored.field_view is None else f"/{stored.field_view}{stored.store.views[stored.field_view].pixels}"
    return f"{config_hash(plan.config)}/{axes}/{view.pixels}{field}"
