"""Counts that a written background predicts in energy x field pixels: gammapy's ``MapDatasetMaker``, on plain arrays.

The steps are those of gammapy, in the same order: missing values are interpolated along energy between valid ones
(``interp_missing_data``), ln(rate) is interpolated linearly in ln(E) and in offset or field coordinates, a 2D
background is continued by a bin beyond its last offset bin (``background_pad_offset``), outside of its axes the rate
is 0, and between two energies of the map a power law is integrated (``trapz_loglog``).  Maps of 20 bins per decade
have the bin centres of a model of 10 per decade among their edges, and are exact for it.

The rate of a large field pixel is averaged over smaller ones.  Interpolation is two matrix products; the matrices
depend on the axes only and are computed once.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from dask_bkg.background.field_geometry import linear, middle

SUB_PIXEL = 0.05
"""Largest width of the small pixels at whose centres a rate is interpolated [deg]."""

HALVES = 2
"""Parts of an energy bin over which a power law is integrated."""

BLOCK = 64
"""Pixels that are processed at a time."""

FLAT = 1e-8
"""Distance of a spectral index from 1 below which a power law is integrated as a logarithm."""

TINY = float(np.finfo(np.float64).tiny) * 1e6
"""Rate [s-1 TeV-1 sr-1] with which gammapy replaces a missing one: the smallest float in the unit of files."""


class Places(NamedTuple):
    """Energies and pixels in which counts are predicted.

    Attributes
    ----------
    energy
        Edges of the energy bins [TeV].
    pixels
        Edges of the square field pixels [deg], the same along ``fov_lon`` and ``fov_lat``.
    offset_max
        Pixels whose centre is nearer to the pointing than this [deg] are predicted.
    """

    energy: tuple[float, ...]
    pixels: tuple[float, ...]
    offset_max: float


class Nodes(NamedTuple):
    """A background as in a file, in any axes.

    Attributes
    ----------
    value
        Rate at the bin centres [s-1 TeV-1 sr-1], shape ``(energy, offset)`` or ``(energy, fov_lat, fov_lon)``.
    axes
        Bin edges: ``(energy, offset)`` or ``(energy, fov_lat, fov_lon)`` [TeV], [deg].
    tiny
        Rate that replaces 0 [s-1 TeV-1 sr-1].
    """

    value: NDArray
    axes: tuple[NDArray, ...]
    tiny: float = TINY


@lru_cache(maxsize=16)
def wanted(places: Places) -> NDArray:
    """Flat indices of the pixels that are predicted, ``fov_lat`` slowest, shape ``(pixels,)``.

    Examples
    --------
    >>> wanted(Places((1.0, 10.0), (-1.5, -0.5, 0.5, 1.5), 1.2)).tolist()
    [1, 3, 4, 5, 7]
    """
    center = middle(np.array(places.pixels))
    return np.flatnonzero(offset_of(center[None, :], center[:, None]).ravel() < places.offset_max - 1e-9)


def predict(nodes: Nodes, places: Places) -> NDArray:
    """Rate that gammapy predicts, integrated over energy bins and averaged over field pixels [s-1 sr-1].

    Counts are this times ontime and solid angle.

    Parameters
    ----------
    nodes
        The background.
    places
        Energies and pixels; these are in the frame of a 3D background.

    Returns
    -------
    rate
        Shape ``(energy, pixels)``, for the pixels of `wanted`.

    Raises
    ------
    ValueError
        If values and axes do not have the same shape.

    Examples
    --------
    >>> nodes = Nodes(np.full((3, 2), 5.0), (np.array([0.1, 1, 10, 100]), np.array([0, 1, 2.0])))
    >>> rate = predict(nodes, Places((1.0, 2.0, 4.0), (-1.5, -0.5, 0.5, 1.5), 1.2))
    >>> rate.shape, rate[:, 0].round(9).tolist()
    ((2, 5), [5.0, 10.0])
    """
    shape = tuple(axis.size - 1 for axis in nodes.axes)
    if nodes.value.shape != shape:
        raise ValueError(f"a background of shape {nodes.value.shape} does not fit axes of {shape} bins")
    energy_axis, *field = (tuple(np.asarray(axis, dtype=float).tolist()) for axis in nodes.axes)
    matrix, inside, edges = _along_energy(energy_axis, places.energy)
    log = matrix @ _log_nodes(nodes.value, nodes.tiny)
    blocks = _over_offset(field[0], places) if len(field) == 1 else _over_field(*field, places)
    # energies last, and few pixels at a time: data in the cache of a core make it several times faster
    log = np.ascontiguousarray(log.T)
    value = np.concatenate([average @ _integrate(sampled @ log, edges, inside) for sampled, average in blocks])
    return value.reshape(len(value), -1, HALVES).sum(axis=2).T


def _log_nodes(value: NDArray, tiny: float) -> NDArray:
    """Logarithm of node values, the field axes flattened.

    Missing values (0 or NaN) are interpolated along energy between valid ones; before the first and after the last
    valid one the rate is `TINY`.
    """
    flat = np.asarray(value, dtype=float).reshape(value.shape[0], -1)
    with np.errstate(invalid="ignore"):
        missing = ~np.isfinite(flat) | (flat == 0)
        log = np.log(np.maximum(np.where(missing, tiny, flat), tiny))
    row = np.arange(len(flat))
    for column in np.flatnonzero(missing.any(axis=0) & ~missing.all(axis=0)).tolist():
        there = row[~missing[:, column]]
        between = missing[:, column] & (row > there[0]) & (row < there[-1])
        log[between, column] = np.interp(row[between], there, log[there, column])
    return log


@lru_cache(maxsize=32)
def _along_energy(axis: tuple[float, ...], energy: tuple[float, ...]) -> tuple[NDArray, NDArray, NDArray]:
    """Matrix from nodes to the energies of a map, the mask of those within the axis, and these energies [TeV]."""
    wide, nodes = np.log(energy), np.log(axis)
    fine = np.interp(np.arange((wide.size - 1) * HALVES + 1) / HALVES, np.arange(wide.size), wide)
    inside = (fine >= nodes[0] - 1e-9) & (fine <= nodes[-1] + 1e-9)
    return linear(middle(nodes), fine, beyond=True), inside, np.exp(fine)


@lru_cache(maxsize=32)
def _over_offset(axis: tuple[float, ...], places: Places) -> list:
    """One pair of matrices: from offset bins to the offsets of small pixels, and from these to means over pixels."""
    lon, lat, weight = _sub_pixels(places)
    offset, place = np.unique(offset_of(lon, lat).round(9), return_inverse=True)
    edges = np.array(axis)
    center = middle(edges)
    # one more offset bin at both ends, with the values of the last one
    first, last = 2 * edges[0] - edges[1], 2 * edges[-1] - edges[-2]
    inside = (offset >= first) & (offset < last)
    matrix = linear(center, np.clip(offset, center[0], center[-1]), beyond=True)
    pixel = np.repeat(np.arange(len(lon)), lon.shape[1])
    weight = (weight * inside[place.reshape(weight.shape)]).ravel()
    return [(matrix, csr_array((weight, (pixel, place.ravel())), shape=(len(lon), offset.size)))]


@lru_cache(maxsize=32)
def _over_field(lat_axis: tuple[float, ...], lon_axis: tuple[float, ...], places: Places) -> list:
    """Pairs of matrices: from pixels of a background to small ones, and from these to means over some pixels."""
    lon, lat, weight = (array.ravel() for array in _sub_pixels(places))
    n_wanted = wanted(places).size
    at, share, inside = [], [], np.ones(lon.size, dtype=bool)
    for axis, x in ((lat_axis, lat), (lon_axis, lon)):
        edges = np.array(axis)
        center = (edges[1:] + edges[:-1]) / 2
        left = np.clip(np.searchsorted(center, x) - 1, 0, max(center.size - 2, 0))
        right = np.minimum(left + 1, center.size - 1)
        step = np.where(right > left, center[right] - center[left], 1.0)
        at.append((left, right))
        part = np.where(right > left, (x - center[left]) / step, 0.0)
        share.append((1 - part, part))
        inside &= (x >= edges[0]) & (x < edges[-1])
    corners = [(i, j) for i in (0, 1) for j in (0, 1)]
    column = np.concatenate([at[0][i] * (len(lon_axis) - 1) + at[1][j] for i, j in corners])
    value = np.concatenate([share[0][i] * share[1][j] for i, j in corners])
    row, n_nodes = np.tile(np.arange(lon.size), 4), (len(lat_axis) - 1) * (len(lon_axis) - 1)
    matrix = csr_array((value, (row, column)), shape=(lon.size, n_nodes))
    small = lon.size // n_wanted
    pixel = np.repeat(np.arange(n_wanted), small)
    average = csr_array((weight * inside, (pixel, np.arange(lon.size))), shape=(n_wanted, lon.size))
    parts = [slice(i, min(i + BLOCK, n_wanted)) for i in range(0, n_wanted, BLOCK)]
    of_small = [slice(part.start * small, part.stop * small) for part in parts]
    return [(matrix[there], average[part, there]) for part, there in zip(parts, of_small, strict=True)]


def _sub_pixels(places: Places) -> tuple[NDArray, NDArray, NDArray]:
    """Coordinates of the small pixels and their shares of the solid angle, each of shape ``(pixels, small)``."""
    edges = np.array(places.pixels)
    parts = max(1, int(np.ceil(np.diff(edges).max() / SUB_PIXEL - 1e-9)))
    fine = edges[:-1, None] + np.diff(edges)[:, None] * (np.arange(parts) + 0.5) / parts
    row, column = np.divmod(wanted(places), edges.size - 1)
    shape = row.size, parts, parts
    lat = np.broadcast_to(fine[row][:, :, None], shape).reshape(row.size, -1)
    lon = np.broadcast_to(fine[column][:, None, :], shape).reshape(row.size, -1)
    weight = np.cos(np.deg2rad(lat))
    return lon, lat, weight / weight.sum(axis=1, keepdims=True)


def offset_of(lon: ArrayLike, lat: ArrayLike) -> NDArray:
    """Distance of field coordinates [deg] from the pointing [deg]."""
    return np.rad2deg(np.arccos(np.cos(np.deg2rad(lon)) * np.cos(np.deg2rad(lat))))


def _integrate(log: NDArray, edges: NDArray, inside: NDArray) -> NDArray:
    """Integrals of power laws between energies, the ``edges`` [TeV]; 0 where one of the ends is not ``inside``.

    ``log`` is ln(rate) there, shape ``(places, energies)``.
    """
    value, step = np.exp(log), np.diff(np.log(edges))
    value *= edges
    index = log[:, 1:] - log[:, :-1]
    index /= step
    index += 1
    flat = np.abs(index) < FLAT
    index[flat] = 1.0
    integral = value[:, 1:] - value[:, :-1]
    integral /= index
    if flat.any():
        integral[flat] = (value[:, :-1] * step)[flat]
    integral[:, ~(inside[1:] & inside[:-1])] = 0.0
    return integral
