"""Sky to field of view, and exclusion regions to excluded pixels of the field.

The field of view is divided into small pixels, each of which belongs to one bin (an offset bin, or a field pixel).
Events and solid angle are assigned to bins by the *same* pixels, so that edges of bins and of exclusion regions
affect both alike.

``fov_lon`` grows with *decreasing* right ascension, ``fov_lat`` with declination (the convention of GADF and
gammapy).  All angles are degrees, all solid angles steradian.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_PIXEL = 0.02
"""Largest pixel of the field grid [deg]; an exclusion of 0.35 deg then covers a thousand pixels."""

MAX_HALF_PIXELS = 1000
"""Largest number of pixels from the centre to the edge: 30 MB per grid, whatever the binning."""

PIXELS_PER_BIN = 10
"""Fewest pixels across the narrowest offset bin."""


def to_fov(lon: ArrayLike, lat: ArrayLike, lon0: float, lat0: float) -> tuple[NDArray, NDArray]:
    """Field-of-view coordinates of sky positions.

    Parameters
    ----------
    lon, lat
        Sky positions [deg], any shape.
    lon0, lat0
        Pointing [deg].

    Returns
    -------
    fov_lon, fov_lat
        Spherical field coordinates [deg], ``fov_lon`` in (-180, 180], same shape as the input.

    Examples
    --------
    >>> fov_lon, fov_lat = to_fov(83.0, 22.0, 83.5, 22.0)   # smaller right ascension: positive fov_lon
    >>> bool(fov_lon > 0)
    True
    """
    dlon = np.deg2rad(np.asarray(lon, dtype=float) - lon0)
    lat_rad, lat0_rad = np.deg2rad(np.asarray(lat, dtype=float)), np.deg2rad(lat0)
    sin_lat, cos_lat = np.sin(lat_rad), np.cos(lat_rad)
    sin0, cos0 = np.sin(lat0_rad), np.cos(lat0_rad)
    cos_dlon = np.cos(dlon)
    x = cos_lat * cos_dlon * cos0 + sin_lat * sin0
    y = cos_lat * np.sin(dlon)
    z = sin_lat * cos0 - cos_lat * cos_dlon * sin0
    # atan2 instead of asin: exact for small latitudes and safe from |z| > 1 by rounding
    return -np.rad2deg(np.arctan2(y, x)), np.rad2deg(np.arctan2(z, np.hypot(x, y)))


def from_fov(fov_lon: ArrayLike, fov_lat: ArrayLike, lon0: float, lat0: float) -> tuple[NDArray, NDArray]:
    """Sky positions of field-of-view coordinates; the inverse of `to_fov`.

    Parameters
    ----------
    fov_lon, fov_lat
        Field coordinates [deg], any shape.
    lon0, lat0
        Pointing [deg].

    Returns
    -------
    lon, lat
        Sky positions [deg], ``lon`` in [0, 360).
    """
    x_lon, x_lat = -np.deg2rad(np.asarray(fov_lon, dtype=float)), np.deg2rad(np.asarray(fov_lat, dtype=float))
    sin0, cos0 = np.sin(np.deg2rad(lat0)), np.cos(np.deg2rad(lat0))
    x, y, z = np.cos(x_lat) * np.cos(x_lon), np.cos(x_lat) * np.sin(x_lon), np.sin(x_lat)
    lon = np.rad2deg(np.arctan2(y, x * cos0 - z * sin0)) + lon0
    up = x * sin0 + z * cos0
    return lon % 360.0, np.rad2deg(np.arctan2(up, np.hypot(x * cos0 - z * sin0, y)))


def separation(lon1: ArrayLike, lat1: ArrayLike, lon2: ArrayLike, lat2: ArrayLike) -> NDArray:
    """Angular distance on the sphere [deg]; the inputs [deg] broadcast (haversine, exact for small angles)."""
    x1, y1, x2, y2 = (np.deg2rad(np.asarray(x, dtype=float)) for x in (lon1, lat1, lon2, lat2))
    a = np.sin((y2 - y1) / 2) ** 2 + np.cos(y1) * np.cos(y2) * np.sin((x2 - x1) / 2) ** 2
    return np.rad2deg(2 * np.arcsin(np.sqrt(np.clip(a, 0, 1))))


@dataclass(frozen=True, eq=False)
class FieldGrid:
    """Square pixels of the field of view, each in one bin.

    Attributes
    ----------
    step
        Width of a pixel [deg].
    center
        Pixel centres [deg], shape ``(n,)``, along ``fov_lon`` and along ``fov_lat``.
    solid_angle
        Solid angle of each pixel [sr], shape ``(n * n,)``, ``fov_lat`` slowest.
    bin
        Index of the bin of each pixel, -1 outside of all bins, shape ``(n * n,)``.
    n_bins
        Number of bins.
    bin_solid_angle
        Solid angle of each bin [sr], shape ``(n_bins,)``: the sum over its pixels.
    """

    step: float
    center: NDArray
    solid_angle: NDArray
    bin: NDArray
    n_bins: int
    bin_solid_angle: NDArray

    @property
    def shape(self) -> tuple[int, int]:
        """Pixels along ``fov_lat`` and ``fov_lon``."""
        return self.center.size, self.center.size


def grid_step(offset_edges: tuple[float, ...], pixel_edges: tuple[float, ...] | None = None) -> float:
    """Width of the grid's pixels [deg] for offset bins, or for field pixels: an even fraction of these.

    Parameters
    ----------
    offset_edges, pixel_edges
        Edges of the offset bins and, if there are any, of the field pixels [deg], ascending.

    Examples
    --------
    >>> grid_step((0.0, 0.25, 0.5)), grid_step((0.0, 0.125, 0.25)), grid_step((0.0, 0.05), (-0.1, 0.1))
    (0.02, 0.0125, 0.02)
    """
    if pixel_edges is not None:
        pixel = (pixel_edges[-1] - pixel_edges[0]) / (len(pixel_edges) - 1)
        return pixel / (2 * int(np.ceil(pixel / (2 * MAX_PIXEL) - 1e-9)))
    narrowest = np.diff(offset_edges).min()
    return float(max(min(MAX_PIXEL, narrowest / PIXELS_PER_BIN), offset_edges[-1] / MAX_HALF_PIXELS))


def half_size(edges: tuple[float, ...], step: float) -> int:
    """Number of pixels of a grid from its centre to the last of some edges [deg]."""
    return int(np.ceil(edges[-1] / step - 1e-9))


@lru_cache(maxsize=16)
def ring_grid(offset_edges: tuple[float, ...], step: float | None = None, half: int | None = None) -> FieldGrid:
    """Pixel grid whose bins are offset bins.

    Parameters
    ----------
    offset_edges
        Edges of the offset bins [deg], ascending; a tuple, so that the grid is computed once for an archive.
    step, half
        Width of a pixel [deg] and number of pixels from the centre to the edge, where other bins share the grid.

    Examples
    --------
    >>> grid = ring_grid((0.0, 0.5, 1.0))
    >>> float(grid.bin_solid_angle.sum() / (2 * np.pi * (1 - np.cos(np.deg2rad(1.0)))))  # doctest: +ELLIPSIS
    1.00...
    """
    step = step or grid_step(offset_edges)
    center, solid_angle = _pixels(step, half or half_size(offset_edges, step))
    edges = np.asarray(offset_edges, dtype=float)
    offset = separation(center[None, :], center[:, None], 0, 0).ravel()
    bins = np.searchsorted(edges, offset, side="right") - 1
    bins[(offset < edges[0]) | (offset >= edges[-1])] = -1
    return _binned(step, center, solid_angle, bins, edges.size - 1)


@lru_cache(maxsize=16)
def pixel_grid(pixel_edges: tuple[float, ...], step: float, half: int) -> FieldGrid:
    """Pixel grid whose bins are square field pixels, ``fov_lat`` slowest; arguments as for `ring_grid`.

    Examples
    --------
    >>> pixel_grid((-0.3, -0.1, 0.1, 0.3), 0.02, 15).n_bins
    9
    """
    center, solid_angle = _pixels(step, half)
    edges, n = np.asarray(pixel_edges, dtype=float), len(pixel_edges) - 1
    along = np.searchsorted(edges, center) - 1
    along[(center < edges[0]) | (center >= edges[-1])] = -1
    inside = (along[:, None] >= 0) & (along[None, :] >= 0)
    bins = np.where(inside, along[:, None] * n + along[None, :], -1)
    return _binned(step, center, solid_angle, bins.ravel(), n * n)


def _pixels(step: float, half: int) -> tuple[NDArray, NDArray]:
    """Centres [deg] and flat solid angles [sr] of a grid; a pixel has the same numbers in grids of all sizes."""
    center = (np.arange(-half, half) + 0.5) * step
    row = np.deg2rad(step) * np.diff(np.sin(np.deg2rad(np.arange(-half, half + 1) * step)))
    return center, np.repeat(row, center.size)


def _binned(step: float, center: NDArray, solid_angle: NDArray, bins: NDArray, n_bins: int) -> FieldGrid:
    total = np.bincount(bins[bins >= 0], weights=solid_angle[bins >= 0], minlength=n_bins)
    return FieldGrid(step, center, solid_angle, bins, n_bins, total)


def pixel_index(grid: FieldGrid, fov_lon: ArrayLike, fov_lat: ArrayLike) -> NDArray:
    """Flat pixel of each field position [deg]; -1 for positions outside of the grid or not finite."""
    n = grid.center.size
    with np.errstate(invalid="ignore"):
        # counted from the centre: on a larger grid the same position lies in the same pixel
        x = np.floor(np.asarray(fov_lon) / grid.step) + n // 2
        y = np.floor(np.asarray(fov_lat) / grid.step) + n // 2
        inside = (x >= 0) & (x < n) & (y >= 0) & (y < n)
    return np.where(inside, np.where(inside, y, 0) * n + np.where(inside, x, 0), -1).astype(np.int64)


def excluded_pixels(grid: FieldGrid, fov_lon: ArrayLike, fov_lat: ArrayLike, radius: ArrayLike) -> NDArray:
    """Pixels whose centre lies inside one of the circles.

    Parameters
    ----------
    grid
        The pixels.
    fov_lon, fov_lat, radius
        Circles in field coordinates [deg], shape ``(n_circles,)``; their centres may lie outside of the grid.

    Returns
    -------
    excluded
        Boolean, shape ``(n_pixels,)``.
    """
    excluded = np.zeros(grid.shape, dtype=bool)
    center = np.deg2rad(grid.center)
    sin_c, cos_c = np.sin(center), np.cos(center)
    lon, lat, rad = (np.deg2rad(x) for x in np.broadcast_arrays(*np.atleast_1d(fov_lon, fov_lat, radius)))
    # a window around each circle: for a star the whole grid would take a hundred times as long
    with np.errstate(invalid="ignore"):
        half = np.where(np.abs(lat) + rad >= np.pi / 2, np.pi, np.arcsin(np.minimum(1.0, np.sin(rad) / np.cos(lat))))
    rows = np.searchsorted(center, [lat - rad, lat + rad]).T.tolist()
    cols = np.searchsorted(center, [lon - half, lon + half]).T.tolist()
    for i, (row, col) in enumerate(zip(rows, cols, strict=True)):
        window = slice(*row), slice(*col)
        cos_lon = np.cos(center[None, window[1]] - lon[i])
        cos_sep = sin_c[window[0], None] * np.sin(lat[i]) + cos_c[window[0], None] * np.cos(lat[i]) * cos_lon
        excluded[window] |= cos_sep >= np.cos(rad[i])
    return excluded.ravel()


def exposed_fraction(grid: FieldGrid, excluded: NDArray) -> NDArray:
    """Share of the solid angle of each bin outside of the ``excluded`` pixels, shape ``(n_bins,)``, 0 to 1."""
    # the excluded pixels are few: summing them takes a tenth of the time and memory traffic
    lost_pixels = np.flatnonzero(excluded)
    lost_bins = grid.bin[lost_pixels]
    inside = lost_bins >= 0
    lost = np.bincount(lost_bins[inside], grid.solid_angle[lost_pixels[inside]], minlength=grid.n_bins)
    return np.clip(1.0 - lost / grid.bin_solid_angle, 0.0, 1.0)
