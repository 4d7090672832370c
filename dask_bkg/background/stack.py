"""Stacks of run histograms: the weighted sum over a block of runs, and the sum of such sums.

Eager and picklable; `dask_bkg.lazy` builds the tree of them.  Few runs contribute to each target
(`dask_bkg.selection.Selections`), so the matrix of weights is sparse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from dask_bkg.selection import Selections


class Stack(NamedTuple):
    """Weighted sums over runs for a block of targets.

    Attributes
    ----------
    counts, exposure
        Events and exposure, the histograms of the runs with targets in place of runs, shape ``(targets, ...)``.
    livetime
        Livetime of the contributing runs, not weighted [s], shape ``(targets,)``.
    squares
        Events, weighted by the square of their run's weight: their variance, shape ``(targets, energy)``.
    """

    counts: NDArray
    exposure: NDArray
    livetime: NDArray
    squares: NDArray

    def of(self, row: int) -> Stack:
        """The stack of one target."""
        return Stack(*(part[row] for part in self))


Stacks = Mapping[str, Stack]
"""Stacks by role: ``spectrum``; ``shape`` and ``night`` where they have runs of their own; ``field``, the runs of the
shape in pixels of the field; ``own``, the run itself."""


def stack_block(selected: Selections, first: int, livetime: NDArray, counts: NDArray, exposure: NDArray) -> Stack:
    """Weighted sums over one block of runs, for all targets.

    Parameters
    ----------
    selected
        Which runs contribute to which target, and their weights.
    first
        Index of the first run of the block among all runs.
    livetime
        Livetime of the runs of the block [s], shape ``(runs,)``.
    counts, exposure
        Their histograms, shape ``(runs, ...)``; exposure of offset bins [s TeV sr], or of pixels of the field [s sr].
    """
    here = (selected.run >= first) & (selected.run < first + len(livetime))
    target = np.repeat(np.arange(selected.start.size - 1), np.diff(selected.start))[here]
    run, shape = selected.run[here] - first, (selected.start.size - 1, len(livetime))
    weighted = sparse(target, run, selected.weight[here], shape)
    used = sparse(target, run, np.ones(run.size), shape)
    squared = sparse(target, run, selected.weight[here] ** 2, shape)
    per_energy = np.asarray(counts, dtype=float).sum(axis=tuple(range(2, np.ndim(counts))))
    return Stack(
        stack(weighted, counts),
        stack(weighted, exposure),
        stack(used, np.asarray(livetime)),
        stack(squared, per_energy),
    )


def stack_blocks(
    selected: Selections, livetime: NDArray, counts: Sequence[NDArray], exposure: Sequence[NDArray]
) -> Stack:
    """Weighted sums over all runs, for some targets.

    Parameters
    ----------
    selected
        Which runs contribute to which target, and their weights.
    livetime
        Livetime of all runs [s], shape ``(runs,)``.
    counts, exposure
        Histograms of the runs in consecutive blocks, as for `stack_block`.
    """
    first, total = 0, None
    for some_counts, some_exposure in zip(counts, exposure, strict=True):
        here = livetime[first : first + len(some_counts)]
        part = stack_block(selected, first, here, some_counts, some_exposure)
        total = part if total is None else _add_to(total, part)
        first += len(some_counts)
    assert total is not None
    return total


def stack_of_itself(counts: NDArray, exposure: NDArray, livetime: NDArray) -> Stack:
    """Histograms of runs as their own stacks: each contributes to itself alone, with weight 1."""
    return Stack(counts, exposure, livetime, counts.sum(axis=tuple(range(2, counts.ndim))))


def add_stacks(stacks: Sequence[Stack]) -> Stack:
    """Sum of stacks for the same targets, in their order."""
    first, *others = stacks
    total = Stack(*(np.array(part) for part in first))
    for other in others:
        _add_to(total, other)
    return total


def _add_to(total: Stack, other: Stack) -> Stack:
    """Add a stack to another one, in place."""
    for mine, theirs in zip(total, other, strict=True):
        mine += theirs
    return total


def sparse(row: NDArray, column: NDArray, value: NDArray, shape: tuple[int, int]) -> csr_array:
    """Sparse matrix of its entries, each row in the order of the columns: sums over it have one order.

    Parameters
    ----------
    row, column, value
        Place and value of the entries, shape ``(entries,)``; entries at the same place are added up.
    shape
        Rows and columns.
    """
    matrix = csr_array((value, (row, column)), shape=shape)
    matrix.sum_duplicates()
    return matrix


def stack(weights: csr_array, histograms: NDArray) -> NDArray:
    """Weighted sums over runs.

    Parameters
    ----------
    weights
        Weight of each run for each target, sparse, shape ``(targets, runs)``.
    histograms
        Counts or exposure, shape ``(runs, ...)``.

    Returns
    -------
    stacked
        Shape ``(targets, ...)``.  Runs are added one after the other in their order: the sum does not depend on the
        number of targets, nor on the machine, and only runs with an entry are in it (others may be NaN).

    Examples
    --------
    >>> weights = sparse(np.array([0, 1, 1]), np.array([0, 0, 1]), np.ones(3), (2, 2))
    >>> stack(weights, np.array([3.0, 4.0])).tolist()
    [3.0, 7.0]
    """
    flat = np.asarray(histograms, dtype=float).reshape(len(histograms), math.prod(histograms.shape[1:]))
    return (weights @ flat).reshape(weights.shape[0], *histograms.shape[1:])
