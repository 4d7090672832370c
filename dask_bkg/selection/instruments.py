"""Runs that never contribute, even if they pass all cuts: of another instrument, or unlike all others."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

Table = Mapping[str, NDArray]

INSTRUMENT = "instrument_code"
"""Column of tables of several instruments."""

FEW_RUNS = 5
"""Runs of an instrument below which their median says nothing."""

LOPSIDED, FEW_EVENTS = 0.4, 100
"""Mean direction of the events of a run, over the median, from which half of its field is empty, and the events
below which it says nothing: 0.64 if just one half has events; 72 runs of H.E.S.S. DL3 DR1 have 0.02, up to 0.29."""

MOST_LINES = 50
"""Runs that are named one by one."""


def set_instruments(
    targets: dict[str, NDArray], runs: dict[str, NDArray], groups: Mapping[str, Sequence[str]]
) -> None:
    """Give tables of several instruments a code for each; those of a single one stay as they are.

    Parameters
    ----------
    targets, runs
        Tables with the column ``instrument`` (text), shape ``(runs,)``; `INSTRUMENT` is added to both.
    groups
        Names that count as one instrument, by the name of their group.
    """
    same = {name.casefold(): group for group, names in groups.items() for name in names}
    names = [[same.get(str(name).casefold(), str(name)) for name in table["instrument"]] for table in (targets, runs)]
    counts = Counter(names[1])
    if len(counts | Counter(names[0])) < 2:
        return
    codes = {name: code for code, name in enumerate(sorted({*names[0], *names[1]}))}
    for table, of_table in zip((targets, runs), names, strict=True):
        table[INSTRUMENT] = np.array([codes[name] for name in of_table], dtype=np.int64)
    listed = ", ".join(f"{name or '(unknown)'} ({n} runs)" for name, n in sorted(counts.items()))
    log.warning(
        "io.search_datastore has runs of several instruments (TELESCOP, INSTRUME, ARRAY): %s; to a background only "
        "runs of its own contribute (background_selection.instruments says which names are the same)",
        listed,
    )


def same_instrument(targets: Table, runs: Table) -> NDArray | bool:
    """Which runs are of the instrument of which target, shape ``(targets, runs)``; True: there is just one."""
    if INSTRUMENT not in targets or INSTRUMENT not in runs:
        return True
    return np.equal.outer(np.asarray(targets[INSTRUMENT]), np.asarray(runs[INSTRUMENT]))


def unlike_others(runs: Table, factor: float) -> NDArray:
    """Runs that are unlike all others of their instrument; each is logged, with its numbers.

    Off from the median by more than a factor are the events per ontime, the energies over the threshold, or the reach
    of the offsets; or no event is above the threshold, or a half of the field is empty that the median run fills.
    Among fewer than `FEW_RUNS` runs of an instrument it cannot be said which is the odd one.

    Parameters
    ----------
    runs
        Table, arrays of shape ``(runs,)``: ``obs_id``, ``n_events``, ``ontime`` [s], and what there is of
        ``ln_e_q25`` and ``ln_e_max`` [ln TeV], ``lo_thres`` and ``e_thres`` [TeV], ``off_q90`` [deg] and ``lopsided``
        (length of the mean of the unit vectors from the pointing to the events).
    factor
        Largest ratio, above 1; 0: no run is unlike others.

    Returns
    -------
    odd
        Boolean, shape ``(runs,)``.
    """
    n = runs["obs_id"].size
    words: dict[int, list[str]] = {}
    if factor:
        for far, say in _checks(runs, factor):
            for row in np.flatnonzero(far).tolist():
                words.setdefault(row, []).append(say(row))
    for row in sorted(words)[:MOST_LINES]:
        log.warning(
            "run %d does not contribute: %s (background_selection.outlier_factor: %g)",
            runs["obs_id"][row], "; ".join(words[row]), factor,
        )  # fmt: skip
    if len(words) > MOST_LINES:
        log.warning("... and %d more runs that are unlike the others", len(words) - MOST_LINES)
    return np.isin(np.arange(n), list(words))


def _checks(runs: Table, factor: float) -> Iterator[tuple[NDArray, Callable[[int], str]]]:
    """Which runs are unlike others in some way, and the words for one of them."""
    unknown = np.full(runs["obs_id"].size, np.nan)
    names = ("lo_thres", "e_thres", "ln_e_q25", "ln_e_max")
    lo_thres, e_thres, ln_e_q25, ln_e_max = (runs.get(name, unknown) for name in names)
    with np.errstate(invalid="ignore", over="ignore"):
        threshold = np.where(lo_thres > 0, lo_thres, e_thres)
        numbers = {
            "events per second of good time": runs["n_events"] / runs["ontime"],
            # not over the declared one, which only some of the runs may have
            "25 % quantile of the energies over the threshold": np.exp(ln_e_q25) / e_thres,
            "90 % quantile of the offsets [deg]": runs.get("off_q90", unknown),
        }
        for name, values in numbers.items():
            median = _median(runs, values)
            yield (values > factor * median) | (values * factor < median), partial(_said, name, values, median)
        e_max = np.exp(ln_e_max)
        yield (
            e_max < threshold,
            lambda i: f"no event above its threshold {threshold[i]:.3g} TeV, up to {e_max[i]:.3g} TeV",
        )
        values = runs.get("lopsided", unknown)
        median = _median(runs, values)
        empty = (values > median + LOPSIDED) & (runs["n_events"] > FEW_EVENTS)
        yield empty, partial(_said, "half of the field is empty: mean direction of the events", values, median)


def _said(name: str, values: NDArray, median: NDArray, row: int) -> str:
    return f"{name} {values[row]:.3g}, the median of its instrument is {median[row]:.3g}"


def _median(runs: Table, values: NDArray) -> NDArray:
    """Median of the instrument of each run; NaN where it has fewer than `FEW_RUNS` numbers."""
    codes, median = runs.get(INSTRUMENT, np.zeros(values.size)), np.full(values.size, np.nan)
    for code in np.unique(codes):
        same = codes == code
        there = values[same & np.isfinite(values)]
        if there.size >= FEW_RUNS:
            median[same] = np.median(there)
    return median
