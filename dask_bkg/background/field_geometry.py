"""Geometry of the offset bins and the square pixels of a field of view.

The matrices are sparse, for speed, and because such products are added up in one order: those of BLAS depend in the
last bit on the number of its threads, and thus on the machine.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from dask_bkg.sky import fov

SUB_PIXEL = 0.05
"""Width of the parts of a pixel over which a rate is averaged [deg]."""


class Geometry(NamedTuple):
    """Offset bins and pixels; each pixel is divided into small squares, its parts.

    Attributes
    ----------
    edges
        Edges of the offset bins [deg], continued to the corners of the square (`continued`).
    parts
        Parts of a pixel along each side.
    radial
        Interpolation from offset bin centres to the parts of all pixels, linear, shape ``(offset, parts)``.
    between
        Interpolation from pixel centres to parts along one side, linear, shape ``(parts, pixels)``.
    share
        Share of each pixel in each offset bin, shape ``(offset, pixel)``.
    ring
        Offset bin of the centre of each pixel, shape ``(fov_lat, fov_lon)``.
    """

    edges: NDArray
    parts: int
    radial: csr_array
    between: csr_array
    share: csr_array
    ring: NDArray

    def means(self, parts: NDArray) -> NDArray:
        """Means over pixels of values of their parts, shape ``(energy, fov_lat, fov_lon)``."""
        n = self.ring.shape[0]
        return parts.reshape(-1, n, self.parts, n, self.parts).mean(axis=(2, 4))

    def radial_means(self, nodes: NDArray) -> NDArray:
        """Means over pixels of a radial rate: ln(rate) linear between the centres of the offset bins.

        Inside of the first and outside of the last one it is constant, as gammapy's ``MapDatasetMaker`` pads it.
        Shape ``(energy, offset)`` to ``(energy, fov_lat, fov_lon)``.
        """
        return self.means(np.exp(np.log(nodes) @ self.radial))

    def interpolated_means(self, nodes: NDArray) -> NDArray:
        """Means over pixels of gammapy's interpolation between their centres: ln(rate) linear along each side."""
        return self.means(np.exp(self._along(self._along(np.log(nodes)))))

    def _along(self, values: NDArray) -> NDArray:
        """Interpolated along the last axis, which is then swapped with the one before."""
        *first, n = values.shape
        return (values.reshape(-1, n) @ self.between.T).reshape(*first, -1).swapaxes(-1, -2)


def geometry_of(offset_edges: NDArray, pixel_edges: NDArray) -> Geometry:
    """Geometry of offset bins and pixels with these edges [deg]; computed once for all backgrounds of a job."""
    keys = (tuple(np.asarray(edges, dtype=float).tolist()) for edges in (offset_edges, pixel_edges))
    return _geometry(*keys)


@lru_cache(maxsize=8)
def _geometry(offset_edges: tuple[float, ...], pixel_edges: tuple[float, ...]) -> Geometry:
    pixels = np.array(pixel_edges)
    rings, n = continued(np.array(offset_edges), pixels), pixels.size - 1
    parts = max(1, round((pixels[1] - pixels[0]) / SUB_PIXEL))
    fine = np.linspace(pixels[0], pixels[-1], n * parts + 1)
    offset = pixel_offsets(fine)
    ring = _by_pixel(ring_of(offset, rings), n, parts)
    of_centre = ring_of(pixel_offsets(pixels), rings)
    # offsets of the nodes: centres of the offset bins; in the corners of the square, means of the pixels
    nodes, by_pixel = middle(rings), _by_pixel(offset, n, parts)
    for corner in range(len(offset_edges) - 1, nodes.size):
        if (of_centre == corner).any():
            nodes[corner] = by_pixel[of_centre == corner].mean()
    return Geometry(
        rings,
        parts,
        radial=csr_array(linear(nodes, offset, beyond=False).T),
        between=csr_array(linear(middle(pixels), middle(fine), beyond=True)),
        share=csr_array(np.stack([(ring == number).mean(axis=1) for number in range(rings.size - 1)])),
        ring=of_centre.reshape(n, n),
    )


def _by_pixel(parts: NDArray, n: int, per_side: int) -> NDArray:
    """Values of parts, pixel by pixel, shape ``(pixel, parts)``."""
    return parts.reshape(n, per_side, n, per_side).swapaxes(1, 2).reshape(n * n, -1)


def continued(offset_edges: NDArray, pixel_edges: NDArray) -> NDArray:
    """Edges of offset bins [deg], followed by further ones that reach to the centres of the corner pixels.

    Examples
    --------
    >>> continued(np.array([0.0, 0.5, 1.0]), np.linspace(-1, 1, 11)).tolist()
    [0.0, 0.5, 1.0, 1.5]
    """
    # as wide as the last one; but bins narrower than pixels might contain none
    width = max(offset_edges[-1] - offset_edges[-2], pixel_edges[1] - pixel_edges[0])
    more = int(np.ceil((pixel_offsets(pixel_edges).max() - offset_edges[-1]) / width + 1e-9))
    return np.append(offset_edges, offset_edges[-1] + width * np.arange(1, more + 1))


def pixel_offsets(pixel_edges: NDArray) -> NDArray:
    """Offset of the centres of all pixels [deg], shape ``(pixel,)``, ``fov_lat`` slowest."""
    center = middle(pixel_edges)
    return fov.separation(center[None, :], center[:, None], 0.0, 0.0).ravel()


def ring_of(offset: NDArray, ring_edges: NDArray) -> NDArray:
    """Offset bin of each offset [deg]; the nearest one outside of all."""
    return np.clip(np.searchsorted(ring_edges, offset, side="right") - 1, 0, ring_edges.size - 2)


def members(ring: NDArray, numbers: NDArray) -> csr_array:
    """Which pixel lies in which of some offset bins, shape ``(pixel, offset)``."""
    return csr_array((ring.reshape(-1, 1) == numbers).astype(float))


def middle(edges: NDArray) -> NDArray:
    """Centres between edges."""
    return (edges[1:] + edges[:-1]) / 2


def flat(values: NDArray) -> NDArray:
    """Pixels of the field along one axis, shape ``(energy, pixel)``."""
    return values.reshape(values.shape[0], -1)


def linear(nodes: NDArray, at: NDArray, beyond: bool) -> NDArray:
    """Matrix of a linear interpolation, shape ``(at, nodes)``; outside it continues (``beyond``) or stays constant.

    Examples
    --------
    >>> linear(np.array([0.0, 1.0]), np.array([0.25, 2.0]), beyond=False).tolist()
    [[0.75, 0.25], [0.0, 1.0]]
    """
    matrix = np.zeros((at.size, nodes.size))
    if nodes.size == 1:
        return matrix + 1.0
    left, share = place_between(nodes, at, beyond)
    rows = np.arange(at.size)
    matrix[rows, left], matrix[rows, left + 1] = 1.0 - share, share
    return matrix


def place_between(nodes: NDArray, at: NDArray, beyond: bool) -> tuple[NDArray, NDArray]:
    """The node below each place, and the fraction of the way to the next one; arguments as for `linear`."""
    left = np.clip(np.searchsorted(nodes, at) - 1, 0, nodes.size - 2)
    share = (at - nodes[left]) / (nodes[left + 1] - nodes[left])
    return left, share if beyond else np.clip(share, 0.0, 1.0)
