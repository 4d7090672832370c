"""The candidates of a block of targets: runs that pass the cuts, nearest first, and only those that may be selected.

One rule decides, which can be applied to any groups of runs (`merge` of merges is `merge`):

- runs are taken in the order of their score (rounded to 1e-10, ties by OBS_ID) until their hours, weight x livetime,
  reach the request; the run that crosses it is taken;
- a run of weight below 1e-4 is taken only if it is among the 20 nearest, and its hours do not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_bkg.selection import cuts
from dask_bkg.selection.cuts import Table, column
from dask_bkg.selection.instruments import same_instrument
from dask_bkg.selection.ranking import hours_wanted, ranking_of, widths_of
from dask_bkg.selection.settings import SelectionSettings

WEIGHT_MIN = 1e-4
"""Runs of a smaller weight add nothing but work."""

FAR = -2 * np.log(WEIGHT_MIN)
"""The squared distance of that weight."""

NEAREST = 20
"""Number of nearest runs that are kept whatever their weights, for targets unlike all runs."""

CLOSE_ENOUGH = 1e-9
"""Tolerance [h] for a sum of hours to reach the request: 1/3 h is no binary number."""

BLOCK_PAIRS = 1 << 16
"""Pairs of target and run that are processed at a time: they stay in the cache of a core."""


class Candidates(NamedTuple):
    """The candidates of a block of targets, nearest first; those of target ``i`` are ``start[i]:start[i + 1]``.

    Attributes
    ----------
    start
        Shape ``(targets + 1,)``.
    run, obs_id
        Index of the run among all runs, and its number, shape ``(candidates,)``.
    score, distance
        Score of the ranking, rounded to 1e-10, and squared distance in the kernel, 0 where there is none, shape
        ``(candidates,)``.
    hours
        Livetime [h], shape ``(candidates,)``.
    left
        Number of runs that were left at first, after each cut, and after the ranking (`cuts.cut_names`), shape
        ``(targets, cuts + 2)``.
    """

    start: NDArray
    run: NDArray
    obs_id: NDArray
    score: NDArray
    distance: NDArray
    hours: NDArray
    left: NDArray


def choose_block(
    targets: Table, runs: Table, first: int, kl: NDArray | None, poor: NDArray | None, settings: SelectionSettings
) -> Candidates:
    """Candidates of a block of targets among a block of runs.

    Parameters
    ----------
    targets, runs
        Their tables.
    first
        Index of the first run of the block among all runs.
    kl, poor
        Divergence of each target from each run, and whether the run covers less of the target's expected counts than
        it must, shape ``(targets, runs)``; None where the ranking does not need them.
    settings
        The ``background_selection`` section.

    Returns
    -------
    candidates
        Those that would be selected if there were no other runs, see the module.

    Raises
    ------
    ConfigError
        If there is no such ranking.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> runs = {"obs_id": np.array([11, 12, 13]), "zenith": np.array([30.0, 50.0, 31.0])}
    >>> runs["livetime"] = np.full(3, 1800.0)
    >>> settings = SimpleNamespace(ranking="elevation", hours_wanted=0.5)
    >>> choose_block(runs, runs, 0, None, None, settings).obs_id.tolist()
    [13, 13, 11]
    """
    ranking_of(settings)
    selectable = np.array([not error for error in cuts.target_errors(targets, settings)], dtype=bool)
    index, own, left = cuts.pass_alone(targets, runs, settings)
    passing = {name: np.asarray(values)[index] for name, values in runs.items()}
    # most often all runs pass, and nothing is copied
    among = slice(None) if index.size == len(runs["obs_id"]) else index
    parts = []
    for rows in _row_blocks(np.full(selectable.size, index.size)):
        block = {name: np.asarray(values)[rows] for name, values in targets.items()}
        kl_rows, poor_rows = (None if matrix is None else matrix[rows][:, among] for matrix in (kl, poor))
        allowed = np.repeat(selectable[rows, None], index.size, axis=1)
        present = np.flatnonzero(own[rows] >= 0)
        allowed[present, own[rows][present]] = False
        allowed &= same_instrument(block, passing)
        parts.append(_choose_rows(block, passing, allowed, left[rows], kl_rows, poor_rows, settings))
    chosen = _concatenate(parts)
    return chosen._replace(run=index[chosen.run] + first)


def _row_blocks(sizes: NDArray) -> Iterator[slice]:
    """Consecutive targets with about `BLOCK_PAIRS` pairs together; one empty block where there is no target."""
    before = np.cumsum(sizes) - sizes
    limits = np.flatnonzero(np.diff(before // BLOCK_PAIRS, prepend=-1)).tolist() or [0]
    yield from (slice(a, b) for a, b in zip(limits, [*limits[1:], sizes.size], strict=True))


def _choose_rows(
    targets: Table,
    runs: Table,
    allowed: NDArray,
    left: NDArray,
    kl: NDArray | None,
    poor: NDArray | None,
    settings: SelectionSettings,
) -> Candidates:
    """Candidates of a few targets; ``run`` counts the runs of ``runs``."""
    counts = [left]
    for passes in cuts.pair_cuts(targets, runs, settings):
        allowed &= passes
        counts.append(allowed.sum(axis=1)[:, None])
    score, distance = ranking_of(settings).scores(targets, runs, kl, poor, widths_of(settings))
    allowed &= np.isfinite(score)
    counts.append(allowed.sum(axis=1)[:, None])
    score = np.where(allowed, np.round(score, 10), np.inf)
    hours = np.nan_to_num(column(runs, "livetime")) / 3600.0
    index, kept = _nearest(score, distance, hours, np.asarray(runs["obs_id"]), hours_wanted(settings))
    at = index[kept]
    return Candidates(
        _starts(kept),
        at,
        np.asarray(runs["obs_id"])[at],
        _at(score, index)[kept],
        np.zeros(at.size) if distance is None else _at(distance, index)[kept],
        hours[at],
        np.concatenate(counts, axis=1),
    )


def _starts(kept: NDArray) -> NDArray:
    return np.concatenate([[0], np.cumsum(kept.sum(axis=1))])


def _concatenate(parts: Sequence[Candidates]) -> Candidates:
    """Candidates of consecutive targets."""
    ends = np.cumsum([0, *(part.start[-1] for part in parts)])
    start = np.concatenate([[0], *(part.start[1:] + end for part, end in zip(parts, ends, strict=False))])
    return Candidates(start, *(np.concatenate(arrays) for arrays in zip(*(part[1:] for part in parts), strict=True)))


def merge(parts: Sequence[Candidates], settings: SelectionSettings) -> Candidates:
    """Candidates of the same targets among several blocks of runs.

    Parameters
    ----------
    parts
        Candidates of each block, in any order; merged ones as well.
    settings
        The ``background_selection`` section.

    Returns
    -------
    candidates
        The same, bit by bit, as if all runs had been in one block.
    """
    sizes = np.sum([np.diff(part.start) for part in parts], axis=0)
    return _concatenate([_merge_rows([_rows(p, rows) for p in parts], settings) for rows in _row_blocks(sizes)])


def _rows(candidates: Candidates, rows: slice) -> Candidates:
    start = candidates.start[rows.start : rows.stop + 1]
    of_runs = (array[start[0] : start[-1]] for array in candidates[1:-1])
    return Candidates(*(start - start[0], *of_runs, candidates.left[rows]))


def _merge_rows(parts: Sequence[Candidates], settings: SelectionSettings) -> Candidates:
    run, obs_id, score, distance, hours = (
        np.concatenate(arrays) for arrays in zip(*(p[1:-1] for p in parts), strict=True)
    )
    # as one table with a row for each target: ``place`` is the position of each candidate in the arrays
    place, filled = _side_by_side([part.start for part in parts])
    left = np.sum([part.left for part in parts], axis=0)
    if not run.size:
        return parts[0]._replace(left=left)
    table = np.where(filled, score[place], np.inf)
    distances = distance[place] if distance.any() else None
    index, kept = _nearest(table, distances, hours[place], obs_id[place], hours_wanted(settings))
    at = _at(place, index)[kept]
    return Candidates(_starts(kept), run[at], obs_id[at], score[at], distance[at], hours[at], left)


def _side_by_side(starts: Sequence[NDArray]) -> tuple[NDArray, NDArray]:
    """Positions in concatenated arrays, a row for each target, and which are filled; shape ``(targets, most)``."""
    counts = [np.diff(start) for start in starts]
    total = np.sum(counts, axis=0)
    filled = np.arange(total.max(initial=0)) < total[:, None]
    place = np.zeros(filled.shape, dtype=np.int64)
    used, offset = np.zeros(total.size, dtype=np.int64), 0
    for start, count in zip(starts, counts, strict=True):
        row = np.repeat(np.arange(count.size), count)
        flat = np.arange(start[-1])
        place[row, used[row] + flat - start[row]] = flat + offset
        used, offset = used + count, offset + start[-1]
    return place, filled


def _nearest(
    score: NDArray, distance: NDArray | None, hours: NDArray, obs_id: NDArray, wanted: float
) -> tuple[NDArray, NDArray]:
    """Columns in the order of the ranking, and which of them may be selected, shape ``(targets, most)``.

    Score (infinite where there is no candidate) and squared distance (None: every weight is 1) have the shape
    ``(targets, runs)``, livetime [h] and number of the runs this shape or ``(runs,)``.
    """
    mean = hours.mean() if hours.size else 0.0
    guess = wanted / mean + 5 if mean > 0 else np.inf
    if distance is not None:
        far = distance > FAR
        score, hours = _without_far(score, far), hours * np.where(far, 0.0, np.exp(np.minimum(distance, FAR) / -2))
    index, filled = _side_by_columns(_until(score, hours, wanted, guess * (1.1 if distance is None else 2.5)))
    order = _order(np.where(filled, _at(score, index), np.inf), obs_id, index)
    # unfilled places have the largest score and stay at the end
    index = _at(index, order)
    # one run after the other, so that the sum is the same whatever else is in the block
    total = np.cumsum(np.where(filled, _at(hours, index), 0.0), axis=1)
    before = np.concatenate([np.zeros((total.shape[0], 1)), total[:, :-1]], axis=1)[:, : total.shape[1]]
    kept = filled & (before < wanted - CLOSE_ENOUGH)
    if distance is not None:
        kept[:, NEAREST:] &= _at(distance, index)[:, NEAREST:] <= FAR
    return index, kept


def _at(values: NDArray, index: NDArray) -> NDArray:
    """Values of the columns ``index`` of each target; ``values`` is ``(runs,)`` or ``(targets, runs)``."""
    if values.ndim == 1:
        return values[index]
    # three times as fast as take_along_axis
    return values.ravel().take(index + values.shape[1] * np.arange(index.shape[0])[:, None])


def _without_far(score: NDArray, far: NDArray) -> NDArray:
    """Scores, infinite for runs of a negligible weight that are not among the nearest (ties with them stay)."""
    if score.shape[1] <= NEAREST or not far.any():
        return score
    limit = np.partition(score, NEAREST - 1, axis=1)[:, NEAREST - 1, None]
    return np.where(far & (score > limit), np.inf, score)


def _until(score: NDArray, hours: NDArray, wanted: float, guess: float) -> NDArray:
    """A mask that contains the nearest runs until n hours, and some more, as it is found without sorting."""
    take = np.isfinite(score)
    if np.isinf(wanted):
        return take
    short = np.flatnonzero(_sum_hours(take, hours) > wanted)
    while short.size and guess < score.shape[1]:
        some = score if short.size == score.shape[0] else score[short]
        limit = np.partition(some, int(guess), axis=1)[:, int(guess), None]
        few = (some <= limit) & take[short]
        reached = _sum_hours(few, hours if hours.ndim == 1 else hours[short]) >= wanted
        take[short[reached]] = few[reached]
        short, guess = short[~reached], 2 * guess
    return take


def _sum_hours(chosen: NDArray, hours: NDArray) -> NDArray:
    return chosen @ hours if hours.ndim == 1 else np.einsum("ij,ij->i", chosen, hours)


def _side_by_columns(take: NDArray) -> tuple[NDArray, NDArray]:
    """Columns that are taken, a row for each target, and which places of these rows are filled."""
    rows, columns = np.divmod(np.flatnonzero(take), max(take.shape[1], 1))
    counts = np.bincount(rows, minlength=take.shape[0])
    filled = np.arange(counts.max(initial=0)) < counts[:, None]
    index = np.zeros(filled.shape, dtype=np.int64)
    index[filled] = columns
    return index, filled


def _order(score: NDArray, obs_id: NDArray, index: NDArray) -> NDArray:
    """Order of each row by score, then by the numbers of the columns ``index``."""
    order = np.argsort(score, axis=1)
    ranked = _at(score, order)
    ties = ((ranked[:, 1:] == ranked[:, :-1]) & np.isfinite(ranked[:, 1:])).any(axis=1)
    # two stable sorts cost more than one quick one, and most rows have no ties
    numbers = _at(obs_id if obs_id.ndim == 1 else obs_id[ties], index[ties])
    order[ties] = np.lexsort((numbers, score[ties]), axis=1)
    return order
