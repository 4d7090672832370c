"""The stacks of all targets, lazily: weights x histograms for each pair of blocks, then a tree of sums."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import xarray as xr
from dask.delayed import Delayed

from dask_bkg import schema
from dask_bkg.background.stack import Stack, add_stacks, stack_block
from dask_bkg.lazy.kl import bounds
from dask_bkg.lazy.layers import SPLIT_EVERY, Layers, variable


def stack_runs(
    runs: xr.Dataset, targets: Sequence[np.ndarray], selected: Sequence[Delayed], *, split_every: int = SPLIT_EVERY
) -> xr.Dataset:
    """Stacks of the contributing runs of each target, lazily, as a tree of sums.

    Parameters
    ----------
    runs
        Run histograms, in rings or in pixels of the field, with ``livetime`` in memory or lazy.
    targets
        Run numbers of each block of targets.
    selected
        For each block who contributes (`dask_bkg.selection.Selections`), delayed.
    split_every
        Stacks that one task of the tree adds up.

    Returns
    -------
    dataset
        ``counts`` and ``exposure`` with the dimensions and units that they have in ``runs``, where ``obs_id`` is the
        target, and beside them ``livetime`` [s] and ``squares``, the variance of the counts of each energy; one chunk
        a block of targets.
    """
    arrays = [runs[name].data for name in schema.HISTOGRAMS]
    livetime, limits = runs["livetime"].variable.chunk({"obs_id": arrays[0].chunks[0]}).data, bounds(runs)
    layers = Layers(*arrays, livetime, *selected)
    blocks = layers.add(
        "stack-blocks",
        lambda name: {
            (name, i, j): (
                partial(_stack_block, first=a),
                part.key,
                (livetime.name, j),
                *((array.name, j, *(0,) * (array.ndim - 1)) for array in arrays),
            )
            for i, part in enumerate(selected)
            for j, (a, _) in enumerate(limits)
        },
        *(array.name for array in arrays),
        livetime.name,
        *{part.key[0] for part in selected},
    )
    leaves = [[(blocks, i, j) for j in range(len(limits))] for i in range(len(selected))]
    work = layers.tree("stack-runs", _add, leaves, split_every, blocks)
    sizes = tuple(len(part) for part in targets)
    histograms = {
        name: (runs[name].dims, variable(layers, work, name, (sizes, *array.chunks[1:]), float))
        for name, array in zip(schema.HISTOGRAMS, arrays, strict=True)
    }
    coords = {
        "obs_id": np.concatenate([np.asarray(part, dtype=np.int64) for part in targets]),
        "livetime": ("obs_id", variable(layers, work, "livetime", (sizes,), float)),
        "squares": (("obs_id", "energy"), variable(layers, work, "squares", (sizes, arrays[0].chunks[1]), float)),
        **{name: runs[name].variable for name in runs.coords if runs[name].dims and "obs_id" not in runs[name].dims},
    }
    return schema.with_units(xr.Dataset(histograms, coords=coords))


def _stack_block(selected, livetime, counts, exposure, first: int) -> Stack:
    return stack_block(selected, first, livetime, counts, exposure)


def _add(*stacks: Stack) -> Stack:
    return add_stacks(stacks)
