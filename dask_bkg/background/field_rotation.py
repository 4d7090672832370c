"""From a field aligned with the horizon (ALTAZ) to one aligned with north (RADEC), or back.

Both longitudes are reversed on the sky (``fov_lon`` grows with decreasing azimuth, and with decreasing right
ascension), but north may be to either side of the zenith: the transformation is a rotation and a reflection.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dask_bkg.background.field_geometry import flat, middle, pixel_offsets, place_between


def turn(fov_lon: ArrayLike, fov_lat: ArrayLike, angle: ArrayLike) -> tuple[NDArray, NDArray]:
    """ALTAZ field coordinates of RADEC ones; or RADEC ones of ALTAZ ones, as it is its own inverse.

    On the plane, the coordinate towards the zenith is ``fov_lat cos q - fov_lon sin q``, and towards decreasing
    azimuth ``-(fov_lon cos q + fov_lat sin q)``; here on the sphere.

    Parameters
    ----------
    fov_lon, fov_lat
        Field coordinates [deg].
    angle
        Parallactic angle q [deg]: the position angle of the zenith seen from the pointing, from north through east.

    Returns
    -------
    fov_lon, fov_lat
        Field coordinates [deg] in the other frame, shape of the input.

    Examples
    --------
    >>> lon, lat = turn(-1.0, 0.0, 90.0)   # a degree to the east, where the zenith is
    >>> round(float(lat), 9)
    1.0
    """
    lon, lat, q = (np.deg2rad(np.asarray(x, dtype=float)) for x in (fov_lon, fov_lat, angle))
    x, y, z = np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)
    side, up = -(y * np.cos(q) + z * np.sin(q)), z * np.cos(q) - y * np.sin(q)
    return np.rad2deg(np.arctan2(side, x)), np.rad2deg(np.arctan2(up, np.hypot(x, side)))


def turn_to_radec(
    rate: NDArray, pixel_edges: NDArray, angles: ArrayLike, weights: ArrayLike | None = None
) -> NDArray:
    """Mean of an ALTAZ rate over the rotation of the sky during a run, in RADEC pixels.

    Interpolated as gammapy does, ln(rate) linear along both sides (the rate itself at energies that have zeros);
    beyond the centres of the outermost pixels it is constant.  Each energy keeps its sum over the inscribed circle.

    Parameters
    ----------
    rate
        Values at the centres of the pixels, shape ``(energy, fov_lat, fov_lon)``.
    pixel_edges
        Edges of the pixels [deg].
    angles
        Parallactic angles in the course of the run [deg], shape ``(n,)``.
    weights
        Time spent at each of them; equal by default.

    Returns
    -------
    turned
        Shape ``(energy, fov_lat, fov_lon)``.

    Raises
    ------
    ValueError
        If an angle is not finite, or no weight is positive.

    Examples
    --------
    >>> edges = np.linspace(-2.5, 2.5, 6)
    >>> rate = np.exp(np.linspace(-1, 1, 5))[None, :, None] * np.ones((1, 5, 5))   # brighter towards the zenith
    >>> turned = turn_to_radec(rate, edges, [90.0])                                # which is in the east
    >>> bool(turned[0, 2, 0] > turned[0, 2, 4])
    True
    """
    angles = np.atleast_1d(np.asarray(angles, dtype=float))
    weights = np.ones(angles.size) if weights is None else np.atleast_1d(np.asarray(weights, dtype=float))
    if not (np.isfinite(angles).all() and weights.sum() > 0):
        raise ValueError(f"parallactic angles must be finite, with weights > 0: got {angles} with {weights}")
    center = middle(pixel_edges)
    values = flat(rate)
    logarithmic = np.all(values > 0, axis=1, keepdims=True)
    values = np.where(logarithmic, np.log(np.where(logarithmic, values, 1.0)), values)
    turned = np.zeros(values.shape)
    for angle, weight in zip(angles, weights / weights.sum(), strict=True):
        lon, lat = turn(center[None, :], center[:, None], angle)
        there = _bilinear(values, center, lat.ravel(), lon.ravel())
        turned += weight * np.where(logarithmic, np.exp(np.where(logarithmic, there, 0.0)), there)
    return _same_in_circle(turned, flat(rate), pixel_edges).reshape(rate.shape)


def _bilinear(values: NDArray, center: NDArray, lat: NDArray, lon: NDArray) -> NDArray:
    """Values of flat pixels interpolated between their centres, shape ``(energy, places)``; constant outside."""
    (row, up), (column, right) = (place_between(center, x, beyond=False) for x in (lat, lon))
    corner = row * center.size + column
    lower, upper = (values[:, at] * (1 - right) + values[:, at + 1] * right for at in (corner, corner + center.size))
    return lower * (1 - up) + upper * up


def _same_in_circle(turned: NDArray, rate: NDArray, pixel_edges: NDArray) -> NDArray:
    """Turned pixels, each energy scaled to its sum before: the interpolation lowers a maximum."""
    inside = pixel_offsets(pixel_edges) <= pixel_edges[-1]
    before, after = (values[:, inside].sum(axis=1, keepdims=True) for values in (rate, turned))
    return turned * np.divide(before, after, out=np.ones_like(after), where=after > 0)
