"""The acceptance over the camera, where it is not a circle: how it differs from its mean over angle.

    exp(slope x fov_lat + elongation x (fov_lon^2 - fov_lat^2)) / mean over angle of the same

The frame is that of the camera, and so of the horizon: ``fov_lat`` grows to the zenith and ``fov_lon`` to falling
azimuth (gammapy's `FoVAltAzFrame`, the ALTAZ alignment of GADF).  By the division the background as a function of
offset alone, and with it the number of events, is that of a round camera.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

TILT_MAX, ELONGATION_MAX = 1.0, 0.2
"""Largest tilt [1/deg] and elongation [1/deg2], either sign: a factor of 30 between zenith and horizon at 1.7 deg."""

# Evenly spaced angles are exact up to the 32nd harmonic, which is 1e-11 of the mean at the largest values.
_ANGLES = 2 * np.pi * np.arange(32) / 32


def field_offset(fov_lon: ArrayLike, fov_lat: ArrayLike) -> NDArray:
    """Angular distance [deg] of field positions [deg] from the pointing."""
    lon, lat = np.deg2rad(fov_lon), np.deg2rad(fov_lat)
    return np.rad2deg(np.arctan2(np.hypot(np.cos(lat) * np.sin(lon), np.sin(lat)), np.cos(lat) * np.cos(lon)))


def field_position(offset: ArrayLike, angle: ArrayLike) -> tuple[NDArray, NDArray]:
    """Field position [deg] at an offset [deg], and an angle [rad] from +fov_lat towards +fov_lon.

    Examples
    --------
    >>> [round(float(x), 6) for x in field_position(1.5, np.pi / 2)]
    [1.5, 0.0]
    """
    distance = np.deg2rad(offset)
    side, up = np.sin(distance) * np.sin(angle), np.sin(distance) * np.cos(angle)
    return np.rad2deg(np.arctan2(side, np.cos(distance))), np.rad2deg(np.arcsin(up))


def shape(fov_lon: ArrayLike, fov_lat: ArrayLike, slope: ArrayLike, elongation: float) -> NDArray:
    """Return the exponential, which is 1 on the axis.

    Parameters
    ----------
    fov_lon, fov_lat
        Field positions [deg]; they broadcast.
    slope
        Tilt times the sine of the zenith angle [1/deg]; an array broadcasts with the positions.
    elongation
        Growth to both sides and fall upwards and downwards [1/deg2].
    """
    lon, lat = np.asarray(fov_lon, dtype=float), np.asarray(fov_lat, dtype=float)
    return np.exp(slope * lat + elongation * (lon**2 - lat**2))


def mean_shape(offset: ArrayLike, slope: ArrayLike, elongation: float) -> NDArray:
    """Return the mean of `shape` over angle at offsets [deg], with which ``slope`` broadcasts.

    Examples
    --------
    >>> from scipy.special import i0
    >>> bool(abs(mean_shape(1.5, 0.4, 0.0) / i0(0.4 * 1.5) - 1) < 1e-4)   # a Bessel function, on the plane
    True
    """
    lon, lat = field_position(np.asarray(offset, dtype=float)[..., None], _ANGLES)
    return shape(lon, lat, np.asarray(slope)[..., None], elongation).mean(axis=-1)


def largest_shape(offset: ArrayLike, slope: ArrayLike, elongation: float) -> NDArray:
    """Return what `shape` nowhere exceeds at offsets [deg]."""
    offset = np.asarray(offset, dtype=float)
    return np.exp(np.abs(slope) * offset + abs(elongation) * offset**2)


def modulation(fov_lon: ArrayLike, fov_lat: ArrayLike, slope: ArrayLike, elongation: float) -> NDArray:
    """Return the background relative to its mean over angle; arguments as for `shape`."""
    mean = mean_shape(field_offset(fov_lon, fov_lat), slope, elongation)
    return shape(fov_lon, fov_lat, slope, elongation) / mean
