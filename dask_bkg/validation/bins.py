"""The bins in which prediction and counts are compared: energies, field pixels, and coarser sums of both."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_bkg.background.field_geometry import middle, ring_of
from dask_bkg.validation.prediction import Places, offset_of, wanted

RING = 0.25
"""Width of the offset bins of a radial profile [deg]."""


class Settings(NamedTuple):
    """How a validation compares; the defaults are those of the configuration.

    Attributes
    ----------
    offset_max
        Largest distance of a pixel's centre from the pointing [deg].
    threshold
        Lowest energy in units of the threshold of the run.
    bands
        Edges of the energy bands [TeV].
    cell
        Width of the cells in which significances are computed [deg].
    """

    offset_max: float = 2.0
    threshold: float = 1.0
    bands: tuple[float, ...] = (0.1, 0.4, 0.63, 1.0, 3.16, 31.6)
    cell: float = 0.5

    @property
    def ring_edges(self) -> NDArray:
        """Edges of the offset bins of a radial profile [deg], evenly to the edge of the compared field."""
        return np.linspace(0, self.offset_max, max(1, round(self.offset_max / RING)) + 1)


class Bins(NamedTuple):
    """The bins of a comparison; pixels are those of `dask_bkg.validation.prediction.wanted`.

    Attributes
    ----------
    places
        Energies and pixels.
    settings
        Settings from which they were computed.
    pixel
        Flat indices of the pixels in the field, shape ``(pixels,)``.
    lon, lat
        Their centres [deg].
    band
        Band of each energy, -1 outside of all bands, shape ``(energy,)``.
    cell, ring
        Cell and offset bin of each pixel, shape ``(pixels,)``.
    in_band, in_cell, in_ring
        Matrices of zeros and ones that add up energies to bands, shape ``(energy, band)``, and pixels to cells and
        offset bins, shapes ``(pixels, cell)`` and ``(pixels, ring)``.
    """

    places: Places
    settings: Settings
    pixel: NDArray
    lon: NDArray
    lat: NDArray
    band: NDArray
    cell: NDArray
    ring: NDArray
    in_band: NDArray
    in_cell: NDArray
    in_ring: NDArray

    @property
    def n_side(self) -> int:
        """Pixels along a side of the field."""
        return len(self.places.pixels) - 1

    def square(self, values: NDArray) -> NDArray:
        """Values of pixels, shape ``(..., pixels)``, as a field, shape ``(..., fov_lat, fov_lon)``; 0 outside."""
        full = np.zeros((*values.shape[:-1], self.n_side**2))
        full[..., self.pixel] = values
        return full.reshape(*values.shape[:-1], self.n_side, self.n_side)


def make_bins(energy: Sequence[float], pixels: Sequence[float], settings: Settings | None = None) -> Bins:
    """Bins of a comparison.

    Parameters
    ----------
    energy
        Edges of the energies [TeV].
    pixels
        Edges of the field pixels [deg].
    settings
        See `Settings`.

    Raises
    ------
    ValueError
        If no pixel lies within ``offset_max``.

    Examples
    --------
    >>> bins = make_bins(np.geomspace(0.1, 100, 31), np.round(np.arange(-12.5, 13) * 0.2, 12))
    >>> bins.pixel.size, int(bins.cell.max()) + 1, int(bins.band.max())
    (313, 60, 4)
    """
    places = tuple(map(float, energy)), tuple(map(float, pixels))
    return _make_bins(*places, settings or Settings())


@lru_cache(maxsize=16)
def _make_bins(energy: tuple[float, ...], pixels: tuple[float, ...], settings: Settings) -> Bins:
    places = Places(energy, pixels, settings.offset_max)
    pixel, edges, axis = wanted(places), np.array(pixels), np.array(energy)
    if not pixel.size:
        raise ValueError(f"validation.off_max of {settings.offset_max:g} deg: no field pixel lies within it")
    center = middle(edges)
    row, column = np.divmod(pixel, center.size)
    lon, lat = center[column], center[row]
    bands = np.array(settings.bands)
    band = np.searchsorted(bands, np.sqrt(axis[1:] * axis[:-1]), side="right") - 1
    band[band >= bands.size - 1] = -1
    # cells have their edges at multiples of their width; angles are rounded to six digits
    x, y = (np.floor(np.round(part / settings.cell, 6)).astype(int) for part in (lon, lat))
    _, cell = np.unique((y - y.min()) * (np.ptp(x) + 1) + x - x.min(), return_inverse=True)
    rings = settings.ring_edges
    ring = ring_of(offset_of(lon, lat), rings)
    members = (_members(band, bands.size - 1), _members(cell, cell.max() + 1), _members(ring, rings.size - 1))
    return Bins(places, settings, pixel, lon, lat, band, cell, ring, *members)


def _members(index: NDArray, n: int) -> NDArray:
    """Matrix of zeros and ones, shape ``(index, n)``."""
    return (index[:, None] == np.arange(n)).astype(float)
