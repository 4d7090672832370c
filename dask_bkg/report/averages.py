"""What the picture of backgrounds shows of them: averages that zeros and unknown values do not spoil. Plain arrays.

Angles are deg, energies TeV; a value that is not known is NaN.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

COUNT_SHARES = (0.25, 0.9, 0.99)
"""Shares of the expected counts below the three energies that are shown."""


def three_energies(rate: NDArray, energy_edges: NDArray, area: ArrayLike) -> NDArray:
    """Indices of up to three energies where there are many events, fewer and few.

    Parameters
    ----------
    rate
        Rates, shape ``(run, energy, place)``.
    energy_edges
        Bin edges [TeV].
    area
        Solid angles of the places, in any unit.

    Examples
    --------
    >>> energy = np.geomspace(0.1, 10, 21)
    >>> three_energies(energy[None, :-1, None] ** -2.7, energy, [1.0]).tolist()
    [0, 5, 11]
    """
    counts = np.nan_to_num(rate).sum(axis=0) @ np.asarray(area, dtype=float) * np.diff(energy_edges)
    there = np.flatnonzero(counts > 0)
    if there.size <= len(COUNT_SHARES):
        return there if there.size else evenly(counts.size, len(COUNT_SHARES))
    places = np.searchsorted(np.cumsum(counts[there]) / counts.sum(), COUNT_SHARES)
    steps = np.arange(places.size)
    places = np.maximum.accumulate(places - steps) + steps  # no energy twice
    return there[np.minimum(places, there.size - places.size + steps)]


def percentiles(values: NDArray) -> NDArray:
    """5, 50 and 95 per cent over the first axis of what is known, shape ``(3, x)``; NaN where nothing is."""
    columns = [column[np.isfinite(column)] for column in values.T]
    unknown = np.full(3, np.nan)
    return np.array([np.percentile(c, (5, 50, 95)) if c.size else unknown for c in columns]).T


def mean_of_known(values: NDArray, weight: ArrayLike = 1.0) -> NDArray:
    """Weighted mean along the last axis of what is known; NaN where nothing is."""
    known = np.isfinite(values) * np.asarray(weight, dtype=float)
    return (np.nan_to_num(values) * known).sum(axis=-1) / positive(known.sum(axis=-1))


def positive(values: NDArray) -> NDArray:
    """The same, and NaN in place of what is not positive."""
    return np.where(values > 0, values, np.nan)


def squared_offsets(center: NDArray) -> NDArray:
    """Squares of the offsets of pixels [deg2] on the plane, shape ``(fov_lat, fov_lon)``."""
    return center[:, None] ** 2 + center**2


def circle_means(planes: NDArray, center: NDArray) -> tuple[NDArray, NDArray]:
    """Means over angle of fields of square pixels.

    Parameters
    ----------
    planes
        Values, shape ``(energy, fov_lat, fov_lon)``.
    center
        Centres of the pixels along both sides [deg].

    Returns
    -------
    offset
        Mean offsets of the pixels in circles a pixel wide [deg], shape ``(circle,)``.
    mean
        Means of what is known in them, shape ``(energy, circle)``.

    Examples
    --------
    >>> offset, mean = circle_means(np.arange(9.0).reshape(1, 3, 3), np.array([-1.0, 0.0, 1.0]))
    >>> offset.round(2).tolist(), mean.tolist()
    ([0.0, 1.22], [[4.0, 4.0]])
    """
    square = squared_offsets(center).ravel()
    # a hair more: rounding must not tear the pixels of an offset apart
    circle = (np.sqrt(square) / pixel_width(center) + 1e-6).astype(int)
    members = [np.flatnonzero(circle == i) for i in np.unique(circle)]
    flat = planes.reshape(len(planes), -1)
    offset = np.sqrt([square[pixels].mean() for pixels in members])
    return offset, np.stack([mean_of_known(flat[:, pixels]) for pixels in members], axis=-1)


def relative_to_circle(planes: NDArray, center: NDArray) -> NDArray:
    """Fields over their mean at the same offset; arguments as for `circle_means`.

    NaN where they are unknown or zero, and in the corners, through which no whole circle passes.
    """
    offset, means = circle_means(planes, center)
    square = squared_offsets(center)
    # what falls off like a Gaussian is smooth in the square of the offset
    around = np.array([np.interp(square, offset**2, mean) for mean in means])
    # within a circle a pixel wide a steep profile would show as rings: better the pixels of exactly the same offset,
    # four and more, where all of them are known
    _, group = np.unique((square.ravel() / pixel_width(center) ** 2).round(3), return_inverse=True)
    for i in range(group.max() + 1):
        pixels = (group == i).reshape(square.shape)
        same = planes[:, pixels]
        whole: NDArray = np.all(same > 0, axis=1)
        around[whole[:, None, None] & pixels] = np.repeat(same[whole].mean(axis=1), same.shape[1])
    inside = square < (center[-1] + pixel_width(center)) ** 2
    return positive(planes) / positive(np.where(inside, around, 0.0))


def pixel_width(center: NDArray) -> float:
    """Width of the pixels [deg]; of a single one it does not matter."""
    return float(center[1] - center[0]) if center.size > 1 else 1.0


def evenly(n: int, most: int) -> NDArray:
    """At most so many of the indices up to n, evenly spread.

    Examples
    --------
    >>> evenly(9, 3).tolist(), evenly(2, 3).tolist()
    ([0, 4, 8], [0, 1])
    """
    return np.unique(np.linspace(0, n - 1, min(most, n)).round().astype(int))
