"""Runs that never contribute, even if they pass all cuts: of another instrument, or unlike all others."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

Table = Mapping[str, NDArray]

INSTRUMENT = "instrument_code"
"""Column of tables of several instruments."""

FEW_RUNS = 5
"""Runs of an instrument below which their median says nothing."""

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
    """Runs whose events per ontime are off from the median of their instrument by more than a factor; logged.

    Among fewer than `FEW_RUNS` runs of an instrument it cannot be said which is the odd one.

    Parameters
    ----------
    runs
        Table with ``obs_id``, ``n_events`` and ``ontime`` [s], shape ``(runs,)``.
    factor
        Largest ratio, above 1; 0: no run is.

    Returns
    -------
    odd
        Boolean, shape ``(runs,)``.
    """
    odd = np.zeros(runs["obs_id"].size, dtype=bool)
    if not factor:
        return odd
    rate = runs["n_events"] / runs["ontime"]
    codes = runs.get(INSTRUMENT, np.zeros(odd.size))
    median = np.full(odd.size, np.nan)
    for code in np.unique(codes):
        if (same := codes == code).sum() >= FEW_RUNS:
            median[same] = np.median(rate[same])
    with np.errstate(invalid="ignore"):
        odd = (rate > factor * median) | (rate * factor < median)
    for row in np.flatnonzero(odd)[:MOST_LINES].tolist():
        log.warning(
            "run %d does not contribute: %.3g events/s (%.0f in %.0f s of good time), the median of its "
            "instrument is %.3g events/s (background_selection.outlier_factor: %g)",
            runs["obs_id"][row], rate[row], runs["n_events"][row], runs["ontime"][row], median[row], factor,
        )  # fmt: skip
    if odd.sum() > MOST_LINES:
        log.warning("... and %d more runs that are unlike the others", odd.sum() - MOST_LINES)
    return odd
