"""The stacks of all targets, lazily: weights x histograms for each pair of blocks, then a tree of sums."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr
from dask.delayed import Delayed

from dask_bkg import schema
from dask_bkg.background.stack import add_stacks, stack_block, stack_blocks, stack_of_itself
from dask_bkg.lazy.kl import bounds
from dask_bkg.lazy.layers import SPLIT_EVERY, All, Each, Layers


def stack_runs(runs: xr.Dataset, selected: Sequence[Delayed], *, split_every: int = SPLIT_EVERY) -> list[Delayed]:
    """Stacks of the contributing runs of each target, lazily, as a tree of sums.

    Parameters
    ----------
    runs
        Run histograms, in rings or in pixels of the field, with ``livetime`` in memory or lazy.
    selected
        For each block of targets the contributing runs (`dask_bkg.selection.Selections`), delayed.
    split_every
        Stacks that one task of the tree adds up.

    Returns
    -------
    stacks
        One `dask_bkg.background.stack.Stack` for each block of targets.
    """
    layers, columns = Layers(), _histograms(runs)
    columns["first"] = Each([first for first, _ in bounds(runs)])
    pairs = layers.pairs("stack-blocks", stack_block, {"selected": Each(selected)}, columns)
    return layers.delayed(layers.tree("stack-runs", add_stacks, pairs, split_every))


def stack_fields(pixels: xr.Dataset, selected: Sequence[Delayed]) -> list[Delayed]:
    """Stacks in pixels of the field, lazily: one task a block of targets, which takes the histograms of all runs.

    A tree would hold partial sums of all targets at once, 270 kB of each in 30 x 25 x 25 bins; the counts of a run
    are 20 kB, as there are few events a pixel.

    Parameters
    ----------
    pixels
        Run histograms in pixels of the field, with ``livetime`` in memory.
    selected
        As for `stack_runs`.

    Returns
    -------
    stacks
        As of `stack_runs`.
    """
    layers = Layers()
    livetime = layers.share("livetime", pixels["livetime"].values)
    blocks = {name: All([pixels[name].data]) for name in schema.HISTOGRAMS}
    return layers.delayed(
        layers.map("stack-fields", stack_blocks, selected=Each(selected), livetime=livetime, **blocks)
    )


def own_stacks(targets: xr.Dataset) -> list[Delayed]:
    """The histograms of the targets themselves as stacks, one for each block of them."""
    layers = Layers()
    return layers.delayed(layers.map("own-counts", stack_of_itself, **_histograms(targets)))


def _histograms(runs: xr.Dataset) -> dict[str, object]:
    """Counts, exposure and livetime as dask arrays of the same blocks."""
    arrays = {name: runs[name].data for name in schema.HISTOGRAMS}
    livetime = runs["livetime"].variable.chunk({"obs_id": arrays["counts"].chunks[0]}).data
    return {**arrays, "livetime": livetime}
