"""The selections of targets: which runs contribute with which weights, or why none does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dask_bkg.selection import cuts
from dask_bkg.selection.candidates import CLOSE_ENOUGH, FAR, Candidates
from dask_bkg.selection.cuts import Table, column
from dask_bkg.selection.ranking import POOR, hours_wanted, ranking_of, widths_of
from dask_bkg.selection.settings import SelectionSettings

RUNS_MIN = 3.0
"""Effective number of runs, (sum w)^2 / sum w^2, below which the kernel is widened."""

STEP = 1.05
"""Factor on all widths of the kernel at each step."""

STEPS_MAX = 28
"""Largest number of steps: four times as wide.  Further widening does not make 3 of a few very different runs."""

OF_RUNS = {"run": np.int64, "obs_id": np.int64, "weight": float, "score": float}
OF_TARGETS = {"hours": float, "livetime": float, "enough": bool, "flagged": bool, "widened": float}
"""Arrays of a selection along its runs, and numbers of each target."""


class Selection(NamedTuple):
    """The runs that contribute to one target.

    Attributes
    ----------
    run, obs_id
        Index among all runs, and number, nearest first, shape ``(runs,)``.
    weight, score
        Weight in the stack, and score of the ranking (0 without one), shape ``(runs,)``.
    hours, livetime
        Sum of weight x livetime, and of livetime [h].
    enough
        Whether ``hours`` reaches the request (True where all were requested).
    flagged
        Whether one of the runs covers too little of the target.
    widened
        Factor by which the widths of the kernel were multiplied.
    reason
        Why there are no runs; empty where there are.
    """

    run: NDArray
    obs_id: NDArray
    weight: NDArray
    score: NDArray
    hours: float
    livetime: float
    enough: bool
    flagged: bool
    widened: float
    reason: str


class Selections(NamedTuple):
    """The runs that contribute to each target of a block; those of target ``i`` are ``start[i]:start[i + 1]``.

    Attributes
    ----------
    start
        Shape ``(targets + 1,)``.
    run, obs_id, weight, score
        As in `Selection`, target after target.
    hours, livetime, enough, flagged, widened, reason
        As in `Selection`, shape ``(targets,)``; ``reason`` is a list.
    """

    start: NDArray
    run: NDArray
    obs_id: NDArray
    weight: NDArray
    score: NDArray
    hours: NDArray
    livetime: NDArray
    enough: NDArray
    flagged: NDArray
    widened: NDArray
    reason: list[str]

    def of(self, i: int) -> Selection:
        """The selection of the i-th target."""
        here = slice(self.start[i], self.start[i + 1])
        of_runs: dict[str, Any] = {name: getattr(self, name)[here] for name in OF_RUNS}
        # plain numbers, not NumPy's
        of_target: dict[str, Any] = {name: getattr(self, name)[i].item() for name in OF_TARGETS}
        return Selection(**of_runs, **of_target, reason=self.reason[i])


def finish(targets: Table, candidates: Candidates, settings: SelectionSettings) -> Selections:
    """Selections of a block of targets from their candidates among all runs.

    Where the ranking weights runs, the widths of the kernel are widened by steps of 5 % until the effective number of
    candidates, (sum w)^2 / sum w^2, reaches 3 (2.7 if there are 3 candidates, not if there are fewer; at most four
    times as wide), and further only until the nearest weighs 1e-4: without weights there would be no background.
    Then the runs of at least this weight are taken until the hours, with these weights, reach the request.

    Parameters
    ----------
    targets
        Their table.
    candidates
        Merged over all blocks of runs.
    settings
        The ``background_selection`` section.

    Returns
    -------
    selections
        Runs, weights (0 to 1) and hours of each target, or the reason why it has none.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from dask_bkg.selection import choose_block
    >>> runs = {"obs_id": np.array([11, 12, 13]), "zenith": np.array([30.0, 50.0, 31.0])}
    >>> runs["livetime"] = np.full(3, 1800.0)
    >>> settings = SimpleNamespace(ranking="elevation", hours_wanted=0.8)
    >>> selections = finish(runs, choose_block(runs, runs, 0, None, None, settings), settings)
    >>> selections.of(0).obs_id.tolist(), selections.hours.tolist()
    ([13, 12], [1.0, 1.0, 1.0])
    """
    ranking, wanted = ranking_of(settings), hours_wanted(settings)
    n_targets = candidates.start.size - 1
    target = np.repeat(np.arange(n_targets), np.diff(candidates.start))
    steps = np.zeros(n_targets, dtype=np.int64)
    if ranking.weights and ranking.widens:
        for i, here in _slices(candidates.start):
            steps[i] = _steps_of(candidates.distance[here])
    widened = STEP**steps
    weight = _weights(candidates.distance, widened[target])
    weight[candidates.distance > FAR * widened[target] ** 2] = 0.0
    taken = (weight > 0) & (_hours_before(candidates.start, weight * candidates.hours) < wanted - CLOSE_ENOUGH)
    start = np.concatenate([[0], np.cumsum(np.bincount(target[taken], minlength=n_targets))])
    target, weight, livetime, score = (a[taken] for a in (target, weight, candidates.hours, candidates.score))
    hours = np.bincount(target, weight * livetime, minlength=n_targets)
    errors = cuts.target_errors(targets, settings)
    none = np.diff(start) == 0
    poor = ranking.divergence & (score >= POOR)
    return Selections(
        start,
        candidates.run[taken],
        candidates.obs_id[taken],
        weight,
        score,
        hours,
        np.bincount(target, livetime, minlength=n_targets),
        (hours >= wanted - CLOSE_ENOUGH) | (np.isinf(wanted) & ~none),
        np.bincount(target, poor, minlength=n_targets) > 0,
        widened,
        [
            e or (_nothing_left(targets, candidates.left, i, settings) if none[i] else "")
            for i, e in enumerate(errors)
        ],
    )


def _weights(distance: NDArray, widened: NDArray | float) -> NDArray:
    return np.exp(-distance / (2 * widened**2))


def _steps_of(distance: NDArray) -> int:
    """Number of steps by which the kernel of a target is widened."""
    nearest, n = distance.min(), distance.size
    needed = min(RUNS_MIN, 0.9 * n) if n >= RUNS_MIN else 1.0
    steps = 0
    # relative to the nearest: a common factor does not change the number, and all weights together may be 0
    while steps < STEPS_MAX and _effective_number(_weights(distance - nearest, STEP**steps)) < needed:
        steps += 1
    # with a margin, so that rounding does not drop the nearest itself
    while nearest > FAR * STEP ** (2 * steps) * (1 - CLOSE_ENOUGH):
        steps += 1
    return steps


def _effective_number(weight: NDArray) -> float:
    """Number of runs of equal weight with the same statistical error."""
    return float(weight.sum() ** 2 / (weight**2).sum())


def _slices(start: NDArray) -> Iterator[tuple[int, slice]]:
    """Index of each target that has candidates, and the slice of these."""
    for i in np.flatnonzero(np.diff(start)).tolist():
        yield i, slice(start[i], start[i + 1])


def _hours_before(start: NDArray, hours: NDArray) -> NDArray:
    """Sum of the hours of the nearer candidates of the same target."""
    before = np.zeros(hours.size)
    for _, here in _slices(start):
        before[here.start + 1 : here.stop] = np.cumsum(hours[here])[:-1]
    return before


def _nothing_left(targets: Table, left: NDArray, i: int, settings: SelectionSettings) -> str:
    """Message for the i-th target with the number of runs that each cut left."""
    names = cuts.cut_names(settings)
    if cuts.is_set(settings, "same_szn"):
        names[names.index("same_szn")] += f" {settings.season_of(float(column(targets, 'time')[i]))}"
    # the ranking is named only where it could not rank some runs
    shown = len(names) if left[i, -1] < left[i, -2] else len(names) - 1
    trail = ", ".join(f"{name}: {n}" for name, n in list(zip(names, left[i].tolist(), strict=True))[:shown])
    return (
        f"run {targets['obs_id'][i]}: no run of the archive passes background_selection (runs left after each cut: "
        f"{trail}): widen the cut that left none"
    )


# -- selections by lists ---------------------------------------------------------------------------------------


def by_hand(obs_id: int, index: ArrayLike, runs: Table) -> Selection:
    """Selection of a target whose runs were given: each weighs 1, and their hours are always enough.

    Parameters
    ----------
    obs_id
        The target.
    index
        Indices of its runs in ``runs``, shape ``(given,)``.
    runs
        Table of all runs; ``obs_id`` and ``livetime`` are used.
    """
    run = np.asarray(index, dtype=np.int64)
    hours = float(np.nan_to_num(column(runs, "livetime")[run]).sum()) / 3600.0
    missing = f"run {obs_id}: none of the runs of its background_selection.bkg_runlist is in the archive"
    arrays = run, np.asarray(runs["obs_id"])[run], np.ones(run.size), np.zeros(run.size)
    return Selection(*arrays, hours, hours, True, False, 1.0, "" if run.size else missing)


def given(lists: Mapping[int, Sequence[int]], runs: Table) -> dict[int, Selection]:
    """Selections from lists of run numbers: a user's ``bkg_runlist``, or each run from itself.

    Parameters
    ----------
    lists
        Numbers of the contributing runs of each target; the order is kept, a run counts once, and one that is not
        in ``runs`` is left out.
    runs
        Table of all runs; ``obs_id`` and ``livetime`` are used.

    Examples
    --------
    >>> runs = {"obs_id": np.array([11, 12, 13]), "livetime": np.full(3, 1800.0)}
    >>> selections = given({11: [13, 99, 12], 12: [12]}, runs)
    >>> selections[11].obs_id.tolist(), selections[11].hours, selections[12].run.tolist()
    ([13, 12], 1.0, [1])
    """
    place = {number: i for i, number in enumerate(np.asarray(runs["obs_id"]).tolist())}
    return {
        target: by_hand(target, [place[run] for run in dict.fromkeys(listed) if run in place], runs)
        for target, listed in lists.items()
    }


def replace(selections: Selections, obs_id: NDArray, others: Mapping[int, Selection]) -> Selections:
    """Replace the selections of some targets by others (see `given`).

    Parameters
    ----------
    selections
        Selections of the targets ``obs_id``, shape ``(targets,)``.
    others
        By run number; targets that are not among ``obs_id`` are left out.
    """
    numbers = np.asarray(obs_id).tolist()
    if not any(number in others for number in numbers):
        return selections
    return pack([others.get(number) or selections.of(i) for i, number in enumerate(numbers)])


def pack(rows: Sequence[Selection]) -> Selections:
    """Selections of some targets from those of each."""
    start = np.concatenate([[0], np.cumsum([row.run.size for row in rows], dtype=np.int64)])
    columns: dict[str, Any] = {
        name: np.concatenate([np.zeros(0, dtype=kind), *(getattr(row, name) for row in rows)])
        for name, kind in OF_RUNS.items()
    } | {name: np.array([getattr(row, name) for row in rows], dtype=kind) for name, kind in OF_TARGETS.items()}
    return Selections(start=start, reason=[row.reason for row in rows], **columns)


def join(parts: Sequence[Selections]) -> Selections:
    """Selections of consecutive blocks of targets as one."""
    ends = np.cumsum([0, *(part.start[-1] for part in parts)])
    start = np.concatenate([[0], *(part.start[1:] + end for part, end in zip(parts, ends, strict=False))])
    columns: Any = (np.concatenate(arrays) for arrays in zip(*(part[1:-1] for part in parts), strict=True))
    return Selections(*(start, *columns, [text for part in parts for text in part.reason]))


def selection_digest(settings: SelectionSettings) -> str:
    """Hash of the settings that decide which runs contribute; cuts that are not set, and smoothing, do not enter."""
    keys = [key for key in (*cuts.ALONE, *cuts.PAIRS) if cuts.is_set(settings, key)]
    deciding = {key: getattr(settings, key) for key in keys}
    deciding |= {"rank": settings.ranking, "hours": hours_wanted(settings)}
    if ranking_of(settings).weights:
        deciding["kernel"] = dict(widths_of(settings))
    if "same_szn" in keys:
        deciding["seasons"] = {name: list(settings.season_range(name)) for name in settings.seasons or {}}
    return hashlib.blake2b(json.dumps(deciding, sort_keys=True).encode(), digest_size=8).hexdigest()
