"""The graph of a job, from the run store to the files: who contributes to what, stacks, and what is made of them.

The steps of `dask_bkg.lazy` put together; building it computes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import xarray as xr
from dask.delayed import Delayed

from dask_bkg import selection
from dask_bkg.background.model import Model, RunMetadata
from dask_bkg.background.target import Target
from dask_bkg.binning import ring_view
from dask_bkg.lazy.execute import one_blas_thread
from dask_bkg.lazy.kl import bounds
from dask_bkg.lazy.layers import Each, Layers, Named, block_size
from dask_bkg.lazy.runs import load_runs
from dask_bkg.lazy.select import conditions_of, select_runs
from dask_bkg.lazy.stack import own_stacks, stack_fields, stack_runs
from dask_bkg.output.provenance import common_cards, config_hash
from dask_bkg.output.write import Block, Mark, Place, Result, write_block
from dask_bkg.pipeline.kl import kl_tables
from dask_bkg.pipeline.memory import runs_wanted
from dask_bkg.pipeline.tables import Tables
from dask_bkg.pipeline.update import Stored
from dask_bkg.plan import Plan
from dask_bkg.settings import shape_settings

FIELD_BLOCK = 200
"""Most runs, and targets, a block where fields of pixels are stacked: 30 x 25 x 25 bins are 30 MB then."""

MOST_CHOSEN = 2_000_000
"""Contributing runs that the selections of a block of targets may hold: 80 MB."""

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
        The contributing runs by role (`dask_bkg.selection.settings_of_roles`): for each block of targets a delayed
        `dask_bkg.selection.Selections`.
    stacks
        Their stacks by role (`dask_bkg.background.stack.Stacks`): for each block of targets a delayed
        `dask_bkg.background.stack.Stack`.
    writes, parts
        Delayed lists of `Result`, and the targets of each.
    tables
        Tasks that write the divergences of the candidates of each target (``store_KL``).
    """

    targets: xr.Dataset
    runs: xr.Dataset
    selected: dict[str, list[Delayed]]
    stacks: dict[str, list[Delayed]]
    writes: list[Delayed] = field(default_factory=list)
    parts: list[list[Target]] = field(default_factory=list)
    tables: list[Delayed] = field(default_factory=list)


def histograms(plan: Plan, tables: Tables, stored: Stored) -> tuple[xr.Dataset, xr.Dataset]:
    """Run histograms of targets and of candidates, in the rings of the job, lazily."""
    place, block = (str(stored.store.path), stored.view), plan.config.config.block
    runs = load_runs(*place, tables.run_rows, tables.runs, plan.edges, keys=tables.run_keys, block=block)
    few = _targets_at_once(plan, tables.run_rows.size, max((b - a for a, b in bounds(runs)), default=1))
    if tables.targets is tables.runs and few is None:
        return runs, runs
    keys = tables.target_keys
    return load_runs(*place, tables.target_rows, tables.targets, plan.edges, keys=keys, block=few or block), runs


def field_histograms(plan: Plan, tables: Tables, stored: Stored) -> xr.Dataset | None:
    """Run histograms of candidates in the pixels of the field, lazily; None in a job of 2D backgrounds."""
    if plan.field_plan is None or stored.field_view is None or tables.field_rows is None:
        return None
    block = min(plan.config.config.block or block_size(tables.field_rows.size), FIELD_BLOCK)
    place = str(stored.store.path), stored.field_view
    keys = tables.field_keys
    return load_runs(*place, tables.field_rows, tables.runs, plan.field_plan.edges, keys=keys, block=block)


def _targets_at_once(plan: Plan, n_runs: int, block: int) -> int | None:
    """Targets a block where selections would be too long, as far as the matrix itself; None: as many as runs."""
    settings = plan.config.background_selection
    if plan.field_plan is not None and block > FIELD_BLOCK:
        return FIELD_BLOCK
    if plan.config.io.from_run:
        return None
    few = max(int(MOST_CHOSEN // max(runs_wanted(settings, n_runs), 1)), 1)
    return few if few < block else None


def build(
    plan: Plan,
    tables: Tables,
    stored: Stored,
    marks: Mapping[int, Mark] | None = None,
    place: Place | None = None,
    last: Callable[[Graph], tuple[list[Delayed], list[list[Target]]]] | None = None,
) -> Graph:
    """The graph of a job, from the store to the files. Computes nothing.

    Parameters
    ----------
    plan, tables, stored
        The job, the runs that take part, and the run store.
    marks
        Marks of the backgrounds of earlier jobs: those that would come out the same are not written again.
    place
        Where results are kept; None: nowhere.
    last
        Makes the final tasks of the graph so far, and says which targets each is of (`final_tasks`); by default
        backgrounds are made of the stacks and written.
    """
    graph = _stacked(plan, tables, stored)
    graph.writes, graph.parts = last(graph) if last else _writes(plan, tables, stored, graph, marks or {}, place)
    settings = plan.config.background_selection
    if settings.store_KL:
        # a worker may have another working directory
        directory = os.path.abspath(plan.config.directory("results_dir") / "kl")
        selected = graph.selected["spectrum"]
        graph.tables = kl_tables(
            graph.targets, graph.runs, selected, settings, shape_settings(plan.config), directory
        )
    return graph


def _stacked(plan: Plan, tables: Tables, stored: Stored) -> Graph:
    """The graph of a job up to the stacks of its targets."""
    targets, runs = histograms(plan, tables, stored)
    split_every, shapes = plan.config.config.split_every, shape_settings(plan.config)
    roles = _roles(plan, tables)
    conditions = conditions_of(targets, runs, [settings for settings, _ in roles.values()])
    about: dict[str, Any] = {"shapes": shapes, "conditions": conditions, "split_every": split_every}
    selected = {
        role: select_runs(targets, runs, settings, given=given, **about) for role, (settings, given) in roles.items()
    }
    stacks = {role: stack_runs(runs, chosen, split_every=split_every) for role, chosen in selected.items()}
    if (pixels := field_histograms(plan, tables, stored)) is not None:
        chosen = selected.get("shape", selected["spectrum"])
        stacks["field"] = stack_fields(pixels, chosen)
    if plan.rate.own != "off":
        stacks["own"] = own_stacks(targets)
    return Graph(targets, runs, selected, stacks)


def _roles(plan: Plan, tables: Tables) -> dict[str, tuple[Any, Mapping[int, selection.Selection]]]:
    """What runs contribute to: of each role how they are selected, and the selections that are given.

    Whose runs are given by hand has the shape of these, and no level but theirs.
    """
    settings = plan.config.background_selection
    if plan.config.io.from_run:
        return {"spectrum": (settings, tables.given)}
    none = {run: selection.by_hand(run, [], tables.runs) for run in tables.given}
    return {
        role: (section, none if role == "night" else tables.given)
        for role, section in selection.settings_of_roles(settings).items()
    }


def model_of(plan: Plan) -> Model:
    """How a job makes its backgrounds of stacks."""
    return Model(plan.edges, plan.rate, plan.field_plan)


def final_tasks(
    graph: Graph, tables: Tables, what: str, function: Callable, each: Callable[[list[Target]], Any], **shared: Any
) -> tuple[list[Delayed], list[list[Target]]]:
    """The final layer: one task per batch of targets, and the targets of each.

    Parameters
    ----------
    graph
        The graph up to the stacks.
    tables
        The runs that take part.
    what
        Name of the layer.
    function
        Takes ``batch`` (see ``each``), ``first``, the row of its first target in the block, ``selected`` and
        ``stacks`` of the block by role, ``runs`` (`dask_bkg.background.model.RunMetadata`), and what is shared.
    each
        Makes the batch of some targets.
    shared
        What all tasks take; each is in the graph once.
    """
    layers, parts, firsts, blocks = Layers(), list[list[Target]](), list[int](), list[int]()
    for i, (a, b) in enumerate(bounds(graph.targets)):
        for first in range(a, b, WRITE_BATCH):
            parts.append(tables.ready[first : min(first + WRITE_BATCH, b)])
            firsts.append(first - a)
            blocks.append(i)
    selected, stacks = (
        Named({role: Each([part[i] for i in blocks]) for role, part in by_role.items()})
        for by_role in (graph.selected, graph.stacks)
    )
    common = {name: layers.share(name, value) for name, value in {"runs": metadata_of(tables), **shared}.items()}
    batches = Each([each(part) for part in parts])
    tasks = layers.map(what, function, batch=batches, first=Each(firsts), selected=selected, stacks=stacks, **common)
    return layers.delayed(tasks), parts


def _writes(
    plan: Plan, tables: Tables, stored: Stored, graph: Graph, marks: Mapping[int, Mark], place: Place | None
) -> tuple[list[Delayed], list[list[Target]]]:
    """The layer ``write-files``."""

    def each(part: list[Target]) -> list[tuple[Target, Mark | None]]:
        return [(target, marks.get(target.obs_id)) for target in part]

    noted = zip(tables.runs["obs_id"].tolist(), tables.runs["note"].tolist(), strict=True)
    notes = {run: str(note) for run, note in noted if note}
    cards, digest = common_cards(plan), made_by(plan, stored)
    block = Block(model_of(plan), plan.attach_copy, cards, digest, place, notes, tables.absent)
    return final_tasks(graph, tables, "write-files", _write_batch, each, block=block)


def _write_batch(batch: list[tuple[Target, Mark | None]], **inputs: Any) -> list[Result]:
    """`dask_bkg.output.write.write_block`, with matrix products on one thread."""
    with one_blas_thread():
        return write_block(batch, **inputs)


def metadata_of(tables: Tables) -> RunMetadata:
    """Metadata of the runs that may contribute."""
    key = tables.run_keys if tables.field_keys is None else tables.field_keys
    return RunMetadata(key, tables.runs["zenith"], tables.runs["n_events"])


def made_by(plan: Plan, stored: Stored) -> str:
    """What all backgrounds of a job depend on: the settings, and the pixels through which events were counted."""
    view = stored.store.views[stored.view]
    axes = ring_view(view.edges, view.method, view.reach).name
    field = "" if stored.field_view is None else f"/{stored.field_view}{stored.store.views[stored.field_view].pixels}"
    return f"{config_hash(plan.config)}/{axes}/{view.pixels}{field}"
