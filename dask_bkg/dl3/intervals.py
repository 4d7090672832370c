"""Good time intervals: which rows are intervals, and whether all of them together can be true.

An interval that is too long gives its run a weight that bends the backgrounds of all others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DAY = 86400.0
"""Longest good time of a run [s]."""

TOLERANCE = 0.05
"""Share of its length by which good time may exceed what the header says."""

LEAST = 10.0
"""Seconds by which it may always: headers in whole seconds, intervals that begin with the tracking."""

LONG_GAP = 20
"""Mean gaps between events that a gap is at most, at a steady rate: one in 5e8 is longer."""

FEW = 10
"""Events below which their times say nothing of the good time, but that they are few."""

EMPTY_NOTE, EMPTY_LIMIT = 0.05, 0.5
"""Share of the good time without events from which there is a note, and an error."""


def good_rows(start: NDArray, stop: NDArray) -> tuple[NDArray, NDArray, str]:
    """Intervals in order, overlapping ones joined: time that is listed twice is exposed once.

    Parameters
    ----------
    start, stop
        As the file has them, shape ``(rows,)``.

    Returns
    -------
    start, stop
        Without rows that are no interval, shape ``(intervals,)``.
    note
        Which rows were left out, counted from 1; empty: none.

    Raises
    ------
    ValueError
        If no row is an interval; the message goes on from the name of the table.

    Examples
    --------
    >>> start, stop, note = good_rows(np.array([5.0, 0.0, 9.0]), np.array([8.0, 6.0, 8.5]))
    >>> start, stop, note
    (array([0.]), array([8.]), 'row 3 of the good time intervals (9 to 8.5) is no interval and was left out')
    """
    good = np.isfinite(start) & np.isfinite(stop) & (stop >= start)
    if not (stop[good] - start[good]).sum() > 0:
        raise ValueError("has good time intervals that add up to no time")
    note = "; ".join(
        f"row {row + 1} of the good time intervals ({start[row]:.12g} to {stop[row]:.12g}) is no interval and "
        "was left out"
        for row in np.flatnonzero(~good)[:3].tolist()
    )
    order = np.argsort(start[good])
    start, stop = start[good][order], np.maximum.accumulate(stop[good][order])
    first = np.append(True, start[1:] > stop[:-1])
    return start[first], np.append(stop[:-1][first[1:]], stop[-1]), note


def check_intervals(
    start: NDArray, stop: NDArray, declared: tuple[float, float], ontime: float, events: NDArray | None
) -> str:
    """Compare good time intervals with what else the file says of its times.

    Parameters
    ----------
    start, stop
        Intervals [s] from `good_rows`.
    declared
        TSTART and TSTOP [s] from the same reference; not finite or not ascending: unknown.
    ontime
        Observation time of the header [s]; not positive: unknown.
    events
        Times of the events [s] from the same reference, shape ``(events,)``; None: unknown.

    Returns
    -------
    note
        What is remarkable; empty: nothing.

    Raises
    ------
    ValueError
        If it contradicts them; the message has both numbers, and goes on from the name of the table.
    """
    total, begin, end = float((stop - start).sum()), float(start[0]), float(stop[-1])
    if total > DAY:
        raise ValueError(f"has good time intervals of {total:.6g} s, more than a day")
    if ontime > 0 and total > ontime * (1 + TOLERANCE) + LEAST:
        raise ValueError(f"has good time intervals of {total:.6g} s, but ONTIME or TELAPSE is {ontime:.6g} s")
    times = np.sort(events[np.isfinite(events)]) if events is not None else np.empty(0)
    first, last = declared
    if np.isfinite([first, last]).all() and last > first:
        slack = max(TOLERANCE * (last - first), LEAST)
        outside = begin < first - slack or end > last + slack
        # a header that no event agrees with is the one that is wrong
        if outside and not (times.size and not ((times >= first - slack) & (times <= last + slack)).any()):
            raise ValueError(
                f"has good time intervals from {begin:.12g} to {end:.12g} s, but TSTART is {first:.12g} and TSTOP "
                f"{last:.12g} s"
            )
    if times.size < FEW:
        return f"{times.size} events in {total:.0f} s of good time" if events is not None else ""
    empty = _empty(start, stop, times)
    if empty > EMPTY_LIMIT * total:
        raise ValueError(
            f"has good time intervals of {total:.6g} s, in {empty:.6g} s of which there is no event: these come from "
            f"{times[0]:.12g} to {times[-1]:.12g} s, the intervals are from {begin:.12g} to {end:.12g} s"
        )
    return f"{empty:.0f} of {total:.0f} s of good time have no event" if empty > EMPTY_NOTE * total else ""


def _empty(start: NDArray, stop: NDArray, times: NDArray) -> float:
    """Good time [s] in gaps that are longer than those that events at a steady rate leave.

    Parameters
    ----------
    start, stop
        Intervals [s], shape ``(intervals,)``.
    times
        Of the events, ascending [s], shape ``(events,)``.
    """
    length = np.cumsum(stop - start)
    index = np.searchsorted(start, times, side="right") - 1
    inside = (index >= 0) & (times <= stop[index])
    # good time that has gone by: what lies between intervals is no gap
    gone = length[index[inside]] - (stop[index[inside]] - times[inside])
    if not gone.size:
        return float(length[-1])
    gaps = np.diff(gone, prepend=0.0, append=length[-1])
    return float(gaps[gaps > LONG_GAP * (gone[-1] - gone[0]) / gone.size].sum())
