"""Rotation of a field of view that is aligned with the horizon, and its exposed fraction under an exclusion.

The exclusion is a set of pixels fixed on the sky, which rotates in the field of the camera during a run.  It is
rotated in steps, and the excluded part of each pixel of the camera is the mean over the steps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dask_bkg.sky.fov import FieldGrid
from dask_bkg.sky.horizon import HorizonField, Times

SLICE = 2.0
"""Time between two parallactic angles [s]; in a run through the zenith the field rotates by 180 deg in a minute."""

MOST_SLICES = 20_000
"""Largest number of those angles: for ten hours, longer than any run."""

STEP_ERROR = 0.002
"""Largest error of an exposed fraction by a step: an edge that enters a pixel during the step is wrong by an eighth
of its displacement, in units of the width of the pixel, times the step's share of the time."""

BATCH = 1 << 15
"""Pixels that are rotated at once: they fit into the cache of a processor."""


def turning_steps(field: HorizonField, edges: tuple[float, ...]) -> tuple[NDArray, NDArray]:
    """Steps of the rotation of a field over the sky during its good time: long ones where it rotates slowly.

    Parameters
    ----------
    field
        The field.
    edges
        Edges of its square pixels [deg], evenly spaced, the same along ``fov_lon`` and ``fov_lat``.

    Returns
    -------
    angle, weight
        Mean parallactic angle of each step [deg] and its share of the good time, shape ``(steps,)``.

    Examples
    --------
    >>> numbers = dict(ra_pnt=130.0, dec_pnt=0.0, site_lon=0.0, site_lat=45.0, site_height=0.0)
    >>> times = Times(None, np.array([0.0]), np.array([1800.0]), (60000.0, 0.93), "UTC")
    >>> angle, weight = turning_steps(HorizonField(numbers, times), (-0.3, -0.1, 0.1, 0.3))
    >>> round(float(angle[-1] - angle[0])), float(weight.sum().round(12))
    (6, 1.0)
    """
    angle = np.unwrap(field.parallactic(_slices(field.times)), period=360.0)
    width, reach = (edges[-1] - edges[0]) / (len(edges) - 1), edges[-1] * np.sqrt(2)
    step = _steps(angle.tolist(), np.rad2deg(8 * STEP_ERROR * width / reach) * angle.size)
    number = np.bincount(step)
    return np.bincount(step, angle) / number, number / angle.size


def _steps(angle: list[float], most: float) -> list[int]:
    """The step of each angle; number of angles times rotation [deg] of a step are at most ``most``."""
    first, step, steps = 0, 0, []
    for i, value in enumerate(angle):
        if (i + 1 - first) * abs(value - angle[first]) > most:
            first, step = i, step + 1
        steps.append(step)
    return steps


def _slices(times: Times) -> NDArray:
    """Middle of equal slices of the good time [s], gaps left out."""
    end = np.cumsum(times.stop - times.start)
    n = int(np.clip(np.ceil(end[-1] / SLICE), 1, MOST_SLICES))
    gone = (np.arange(n) + 0.5) / n * end[-1]
    interval = np.searchsorted(end[:-1], gone, side="right")
    return times.stop[interval] - (end[interval] - gone)


def turned_fraction(
    grid: FieldGrid, edges: tuple[float, ...], excluded: NDArray, angle: NDArray, weight: NDArray
) -> NDArray:
    """Share of solid angle and time of each ALTAZ pixel that is outside of the excluded pixels of the RADEC field.

    The small pixels are rotated one by one, and cut in two by the edges of the large ones: assigned as a whole, they
    would fill a large pixel of 10 x 10 to 90 or 110 %.

    Parameters
    ----------
    grid
        Small pixels of the RADEC field, reaching to the corners of the ALTAZ field; its bins are the large ones.
    edges
        Edges of the large pixels [deg], evenly spaced, the same along ``fov_lon`` and ``fov_lat``.
    excluded
        Which of the small ones are excluded, shape ``(small pixels,)``.
    angle, weight
        Parallactic angles [deg] and shares of the time, shape ``(steps,)``.

    Returns
    -------
    fraction
        Shape ``(large pixels,)``, ``fov_lat`` slowest, 0 to 1.

    Examples
    --------
    A quarter of the field is excluded, in a run in which it rotates by 90 deg in the middle.

    >>> from dask_bkg.sky.fov import pixel_grid
    >>> edges = (-1.0, 0.0, 1.0)
    >>> grid = pixel_grid(edges, 0.02, 75)
    >>> x, y = np.meshgrid(grid.center, grid.center)
    >>> quarter = ((x > 0) & (y > 0)).ravel()
    >>> turned_fraction(grid, edges, quarter, np.array([0.0, 90.0]), np.array([0.5, 0.5])).round(3).tolist()
    [0.5, 1.0, 0.5, 1.0]
    """
    n = len(edges) + 1
    x, y, z, solid_angle = _reaching(grid, edges[-1], excluded)
    lost, turn = np.zeros(n * n), np.deg2rad(angle)[:, None]
    batch = max(1, BATCH // max(1, solid_angle.size))
    for first in range(0, angle.size, batch):
        part = slice(first, first + batch)
        sin, cos = np.sin(turn[part]), np.cos(turn[part])
        lon, lat = np.arctan2(-(y * cos + z * sin), x), np.arcsin(z * cos - y * sin)
        # the two sides of a rotated square as seen along an axis [rad]
        sides = np.deg2rad(grid.step) * np.abs([sin, cos])
        lost += _deposit(lon, lat, weight[part, None] * solid_angle, edges, sides.max(axis=0), sides.min(axis=0))
    return np.clip(1.0 - lost.reshape(n, n)[1:-1, 1:-1].ravel() / grid.bin_solid_angle, 0.0, 1.0)


def _reaching(grid: FieldGrid, edge: float, excluded: NDArray) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Unit vectors and solid angles [sr] of the excluded pixels that a square field can reach as it rotates."""
    row, column = np.divmod(np.flatnonzero(excluded), grid.center.size)
    lon, lat = np.deg2rad(grid.center[column]), np.deg2rad(grid.center[row])
    near = np.hypot(lon, lat) < np.deg2rad(edge * np.sqrt(2) + grid.step)
    lon, lat, solid_angle = lon[near], lat[near], grid.solid_angle[np.flatnonzero(excluded)[near]]
    return np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat), solid_angle


def _deposit(
    lon: NDArray, lat: NDArray, amount: NDArray, edges: tuple[float, ...], long: NDArray, short: NDArray
) -> NDArray:
    """Sum of the amounts of rotated squares in large pixels, with a border; flat, ``fov_lat`` slowest."""
    n = len(edges) + 1
    column, beyond_lon = _cut(lon, edges, long, short)
    row, beyond_lat = _cut(lat, edges, long, short)
    pixel, above = (row * n + column).ravel(), amount * beyond_lat
    total = np.zeros(n * n + n + 1)
    for shift, value in ((0, amount - above), (n, above)):
        right = value * beyond_lon
        for further, share in ((0, value - right), (1, right)):
            here = slice(shift + further, shift + further + n * n)
            total[here] += np.bincount(pixel, share.ravel(), n * n)
    return total[: n * n]


def _cut(place: NDArray, edges: tuple[float, ...], long: NDArray, short: NDArray) -> tuple[NDArray, NDArray]:
    """Index of the edge that is nearest to each square, and the part of the square beyond it.

    A rotated square projected on an axis is a trapezoid.  It is replaced by two boxes of its long side, displaced
    such that they have its variance: the part beyond an edge is the same to 1e-3.
    """
    first, width = np.deg2rad(edges[0]), np.deg2rad(edges[-1] - edges[0]) / (len(edges) - 1)
    nearest = np.clip(np.rint((place - first) / width), 0, len(edges) - 1)
    beyond = (place - first - nearest * width) / long + 0.5
    moved = short / long / np.sqrt(12.0)
    part = (np.clip(beyond + moved, 0, 1) + np.clip(beyond - moved, 0, 1)) / 2
    return nearest.astype(np.int64), part
