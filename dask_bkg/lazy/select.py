"""Which runs contribute to which, lazily and sparse: the matrix of all pairs is never whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import xarray as xr
from dask.delayed import Delayed

from dask_bkg import selection, similarity
from dask_bkg.lazy.kl import add_shapes, bounds
from dask_bkg.lazy.layers import SPLIT_EVERY, Each, Layers, Pairs
from dask_bkg.selection import Candidates, Selection, Selections, Table
from dask_bkg.selection.settings import SelectionSettings
from dask_bkg.similarity import ShapeSettings


class Conditions(NamedTuple):
    """The observing conditions of targets and of runs that may contribute: a table a block, delayed.

    Those of a target are apart from those of a run even where both are the same: through shared ones schedulers go
    from block to block of runs, and hold the candidates of all pairs at once.
    """

    targets: list[Delayed]
    runs: list[Delayed]


def conditions_of(targets: xr.Dataset, runs: xr.Dataset, sections: Iterable[SelectionSettings]) -> Conditions:
    """Conditions that the selections of some ``background_selection`` sections look at, a block a task.

    Parameters
    ----------
    targets, runs
        As for `select_runs`.
    sections
        The sections: the roles of a job select from the same tables.
    """
    wanted = dict.fromkeys(name for section in sections for name in selection.columns_for(section))
    layers, found = Layers(), []
    for role, part in {"target": targets, "run": runs}.items():
        columns = {name: part[name].values for name in wanted if name in part.coords}
        tables = [{name: column[a:b] for name, column in columns.items()} for a, b in bounds(part)]
        found.append(layers.delayed(layers.values(f"conditions-of-{role}", tables)))
    return Conditions(*found)


def select_runs(
    targets: xr.Dataset,
    runs: xr.Dataset,
    settings: SelectionSettings,
    *,
    shapes: ShapeSettings | None = None,
    given: Mapping[int, Selection] | None = None,
    conditions: Conditions | None = None,
    split_every: int = SPLIT_EVERY,
) -> list[Delayed]:
    """Selections of each block of targets, lazily.

    Parameters
    ----------
    targets, runs
        Runs that receive a background, and runs that may contribute, with the per-run numbers in memory (see
        `dask_bkg.lazy.runs.load_runs`); the same object if they are the same.
    settings
        The ``background_selection`` section.
    shapes
        How shapes are compared, where the ranking is by divergence.
    given
        Selections that win over those that would be made, ``{obs_id of the target: ...}``.
    conditions
        Tables of the conditions that several selections share; None: tables of this one alone.
    split_every
        Merges that one task of the tree does.

    Returns
    -------
    selected
        One `dask_bkg.selection.Selections` for each block of ``targets``.
    """
    shapes, given, layers = shapes or ShapeSettings(), given or {}, Layers()
    numbers = [targets["obs_id"].values[a:b].tolist() for a, b in bounds(targets)]
    won = [{obs_id: given[obs_id] for obs_id in part if obs_id in given} for part in numbers]
    # where every selection is given, none is made
    open_ = [i for i, part in enumerate(numbers) if len(won[i]) < len(part)]
    fixed = [i for i in range(len(numbers)) if i not in open_]
    packed = [selection.pack([won[i][obs_id] for obs_id in numbers[i]]) for i in fixed]
    selected = dict(zip(fixed, layers.delayed(layers.values("given-runs", packed)), strict=True))
    if open_:
        conditions = conditions or conditions_of(targets, runs, [settings])
        chosen = _add_choice(layers, targets, runs, settings, shapes, conditions, open_)
        merged = layers.tree("merge-runs", selection.merge, chosen, split_every, settings=settings)
        tables, kept = (Each([part[i] for i in open_]) for part in (conditions.targets, won))
        finished = layers.map(
            "select-runs", _finish, targets=tables, candidates=merged, given=kept, settings=settings
        )
        selected |= dict(zip(open_, layers.delayed(finished), strict=True))
    return [selected[i] for i in range(len(numbers))]


def _add_choice(
    layers: Layers,
    targets: xr.Dataset,
    runs: xr.Dataset,
    settings: SelectionSettings,
    shapes: ShapeSettings,
    conditions: Conditions,
    only: list[int],
) -> Pairs:
    """Add the layer of the candidates: one task a pair of blocks, with its divergences where they are wanted.

    A pair's divergences and its candidates are one task: as two, schedulers make all divergences before the first
    candidates, and hold the full matrix.
    """
    rows: dict[str, Any] = {"targets": Each(conditions.targets)}
    columns: dict[str, Any] = {"runs": Each(conditions.runs), "first": Each([a for a, _ in bounds(runs)])}
    if not selection.needs_divergence(settings):
        about: dict[str, Any] = {"kl": None, "poor": None, "settings": settings}
        return layers.pairs("choose-runs", selection.choose_block, rows, columns, only, **about)
    operands = add_shapes(layers, targets, runs, shapes)
    rows, columns = {**rows, "p": operands.targets}, {**columns, "q": operands.runs}
    about = {"settings": settings, "min_coverage": shapes.min_coverage}
    return layers.pairs("kl-divergence", _choose, rows, columns, only, **about)


def _choose(
    targets, runs, p, q, first: int, settings: SelectionSettings, min_coverage: float
) -> selection.Candidates:
    poor = similarity.coverage_block(p, q) < min_coverage
    return selection.choose_block(targets, runs, first, similarity.kl_block(p, q), poor, settings)


def _finish(
    targets: Table, candidates: Candidates, given: Mapping[int, Selection], settings: SelectionSettings
) -> Selections:
    return selection.replace(selection.finish(targets, candidates, settings), targets["obs_id"], given)
