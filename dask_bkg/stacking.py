"""Stacks of run histograms: what one task adds up, and how two sums become one.

Eager and picklable; `dask_bkg.pipeline` builds the tree of them.  A run that could not be reduced adds nothing,
and its reason travels with the stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_bkg import kernels


class Stack(NamedTuple):
    """Weighted sums over runs for a block of targets.

    Attributes
    ----------
    counts, exposure
        Events and exposure [s TeV sr], shape ``(targets, energy, offset)``.
    livetime
        Livetime of the contributing runs [s], shape ``(targets,)``.
    n_runs
        Number of contributing runs, shape ``(targets,)``.
    errors
        For each target the runs that should have contributed and could not, ``{obs_id: reason}``.
    notes
        For each target what was remarkable about the runs that did, ``{obs_id: note}``.
    """

    counts: NDArray
    exposure: NDArray
    livetime: NDArray
    n_runs: NDArray
    errors: list[dict[int, str]]
    notes: list[dict[int, str]]


def stack_block(
    weights: NDArray,
    obs_id: NDArray,
    counts: NDArray,
    exposure: NDArray,
    livetime: NDArray,
    error: NDArray,
    note: NDArray,
) -> Stack:
    """Sum over one block of runs.

    Parameters
    ----------
    weights
        Weight of each run for each target, shape ``(targets, runs)``.
    obs_id, livetime, error, note
        Number, livetime [s], reason of failure and remark (empty: none) of each run, shape ``(runs,)``.
    counts, exposure
        Histograms of the runs, shape ``(runs, energy, offset)``.
    """
    good = np.array([not text for text in error])
    used = np.where(good[None, :], weights, 0.0)
    n_runs = (used != 0).sum(axis=1)
    return Stack(
        kernels.stack(used, counts),
        kernels.stack(used, exposure),
        kernels.stack(used, livetime),
        n_runs,
        [_texts(row, obs_id, error) for row in weights],
        [_texts(row, obs_id, note) for row in used],
    )


def _texts(weights: NDArray, obs_id: NDArray, text: NDArray) -> dict[int, str]:
    """Texts of the runs that have a weight and something to say."""
    return {int(obs_id[run]): str(text[run]) for run in np.flatnonzero(weights) if text[run]}


def add_stacks(stacks: Sequence[Stack]) -> Stack:
    """Sum of stacks for the same targets, in their order."""
    first, *others = stacks
    counts, exposure, livetime, n_runs = (np.array(part) for part in first[:4])
    errors, notes = ([dict(texts) for texts in part] for part in first[4:])
    for other in others:
        counts += other.counts
        exposure += other.exposure
        livetime += other.livetime
        n_runs += other.n_runs
        for mine, theirs in zip([*errors, *notes], [*other.errors, *other.notes], strict=True):
            mine.update(theirs)
    return Stack(counts, exposure, livetime, n_runs, errors, notes)
