"""Which runs contribute to which, lazily and sparse: the matrix of all pairs is never whole."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import xarray as xr
from dask.delayed import Delayed

from dask_bkg import schema, selection, similarity
from dask_bkg.lazy.kl import add_shapes, bounds
from dask_bkg.lazy.layers import SPLIT_EVERY, Layers, literal
from dask_bkg.selection import Selection, Selections
from dask_bkg.similarity import ShapeSettings


def select_runs(
    targets: xr.Dataset,
    runs: xr.Dataset,
    settings: Any,
    *,
    shapes: ShapeSettings | None = None,
    given: Mapping[int, Selection] | None = None,
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
    split_every
        Merges that one task of the tree does.

    Returns
    -------
    selected
        One `dask_bkg.selection.Selections` for each block of ``targets``.
    """
    shapes = shapes or ShapeSettings()
    layers = Layers(*(part[name].data for part in (targets, runs) for name in schema.HISTOGRAMS))
    numbers = [targets["obs_id"].values[a:b].tolist() for a, b in bounds(targets)]
    won = [{obs_id: given[obs_id] for obs_id in part if obs_id in given} if given else {} for part in numbers]
    # where every selection is given, none is made
    open_ = [i for i, part in enumerate(numbers) if len(won[i]) < len(part)]
    conditions, merged, below = "", "", list[str]()
    if open_:
        conditions = layers.add("conditions", lambda name: _tables(name, targets, runs, settings))
        chosen = _add_choice(layers, targets, runs, settings, shapes, conditions, open_)
        leaves = [[(chosen, i, j) for j in range(len(bounds(runs)))] for i in open_]
        merged = layers.tree("merge-runs", partial(_merge, settings=settings), leaves, split_every, chosen)
        below = [conditions, merged]
    place = {i: (merged, k) for k, i in enumerate(open_)}

    def tasks(name: str) -> dict:
        return {
            (name, i): (partial(_finish, given=won[i], settings=settings), (conditions, "target", i), place[i])
            if i in place
            else literal(selection.pack([won[i][obs_id] for obs_id in part]))
            for i, part in enumerate(numbers)
        }

    return layers.delayed(layers.add("select-runs", tasks, *below), len(numbers))


def _tables(name: str, targets: xr.Dataset, runs: xr.Dataset, settings: Any) -> dict:
    """The conditions of the runs, a block a task: small, and wanted by many.

    Those of a target are apart from those of a run even where both are the same: through shared ones schedulers go
    from block to block of runs, and hold the candidates of all pairs at once.
    """
    found: dict = {}
    wanted = selection.columns_for(settings)
    for role, part in {"run": runs, "target": targets}.items():
        columns = {column: part[column].values for column in wanted if column in part.coords}
        for i, (a, b) in enumerate(bounds(part)):
            found[name, role, i] = literal({column: values[a:b] for column, values in columns.items()})
    return found


def _add_choice(
    layers: Layers,
    targets: xr.Dataset,
    runs: xr.Dataset,
    settings: Any,
    shapes: ShapeSettings,
    conditions: str,
    rows: list[int],
) -> str:
    """Add the layer of the candidates: one task a pair of blocks, with its divergences where they are wanted.

    A pair's divergences and its candidates are one task: as two, schedulers make all divergences before the first
    candidates, and hold the full matrix.
    """
    starts, divergence = [a for a, _ in bounds(runs)], selection.needs_divergence(settings)
    below = [conditions]
    if divergence:
        operands = add_shapes(layers, targets, runs, shapes)
        below += [operands.targets, operands.runs]

    def tasks(name: str) -> dict:
        found: dict = {}
        for i in rows:
            for j, first in enumerate(starts):
                tables = (conditions, "target", i), (conditions, "run", j)
                choose = partial(_choose, first=first, settings=settings, min_coverage=shapes.min_coverage)
                compared = ((operands.targets, i), (operands.runs, j)) if divergence else ()
                found[name, i, j] = (choose, *tables, *compared)
        return found

    return layers.add("kl-divergence" if divergence else "choose-runs", tasks, *below)


def _choose(targets, runs, p=None, q=None, *, first: int, settings: Any, min_coverage: float):
    if p is None:
        return selection.choose_block(targets, runs, first, None, None, settings)
    poor = similarity.coverage_block(p, q) < min_coverage
    return selection.choose_block(targets, runs, first, similarity.kl_block(p, q), poor, settings)


def _merge(*parts, settings: Any):
    return selection.merge(parts, settings)


def _finish(targets, candidates, given: Mapping[int, Selection], settings: Any) -> Selections:
    return selection.replace(selection.finish(targets, candidates, settings), targets["obs_id"], given)
