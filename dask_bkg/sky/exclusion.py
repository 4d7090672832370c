"""Exclusion: regions on the sky, and which events and pixels lie inside of them.

All regions are in one table of discs (`SkyRegions`), which `dask_bkg.sky.catalogs` reads once for a job; a disc may
have a finer shape (ellipse, polygon, ... of a region file) inside of it.  Distances are spherical.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dask_bkg.sky import fov

DOCUMENT_SEARCH_RADIUS = 2.5
"""Largest distance of a centre from the pointing [deg] in the procedure's search."""


@dataclass(frozen=True, eq=False)
class SkyRegions:
    """Discs on the sky that are excluded.

    Attributes
    ----------
    ra, dec
        Centres, ICRS [deg], shape ``(n,)``.
    radius
        Radii [deg], shape ``(n,)``; the bounding radius where there is a finer shape.
    name, kind, note
        Name, origin (``gammacat``, ``3hwc``, ``star``, ``own``, ``file``) and remark (empty for most), string arrays
        of shape ``(n,)``.
    shape
        DS9 text of a finer shape, empty for a plain disc, string array of shape ``(n,)``.
    """

    ra: NDArray
    dec: NDArray
    radius: NDArray
    name: NDArray
    kind: NDArray
    note: NDArray
    shape: NDArray

    def __len__(self) -> int:
        return self.ra.size

    def __getitem__(self, index: NDArray) -> SkyRegions:
        return SkyRegions(*(getattr(self, f.name)[index] for f in fields(self)))

    def near(self, ra: float, dec: float, offset_max: float, reach: str = "disc") -> SkyRegions:
        """The regions that affect a pointing.

        Parameters
        ----------
        ra, dec
            Pointing [deg].
        offset_max
            Radius of the field of view [deg].
        reach
            ``disc``: every disc that reaches into the field; ``centre``: as in the procedure, centres within 2.5 deg
            of the pointing.
        """
        # first by declination alone: 41,000 arcsines would take a millisecond per run
        widest = DOCUMENT_SEARCH_RADIUS if reach == "centre" else offset_max + float(self.radius.max(initial=0.0))
        close = np.flatnonzero(np.abs(self.dec - dec) <= widest)
        distance = fov.separation(self.ra[close], self.dec[close], ra, dec)
        limit = DOCUMENT_SEARCH_RADIUS if reach == "centre" else offset_max + self.radius[close]
        return self[close[distance < limit]]

    def digest(self) -> str:
        """Hash of positions, radii and shapes: equal for equal exclusions."""
        sha = hashlib.sha256(np.array([self.ra, self.dec, self.radius], dtype="<f8").tobytes())
        sha.update("\n".join(self.shape).encode())
        return sha.hexdigest()[:16]


def exclusion_digest(regions: SkyRegions | None, ra: float, dec: float, radius: float) -> str:
    """Hash of the regions that touch a field of view: equal for equal exclusions of the field.

    Parameters
    ----------
    regions
        Exclusion regions of the whole sky; None excludes nothing.
    ra, dec
        Pointing [deg].
    radius
        Radius of the field [deg], `dask_bkg.binning.View.radius` of the widest view.

    Examples
    --------
    >>> far = make_regions([200.0], [-40.0], 1.0, ["far"], "own")
    >>> exclusion_digest(far, 83.6, 22.0, 3.6) == exclusion_digest(None, 83.6, 22.0, 3.6)
    True
    """
    near = concat_regions([]) if regions is None else regions.near(ra, dec, radius)
    # independent of the order in which catalogues were read
    return near[np.lexsort((near.shape, near.radius, near.dec, near.ra))].digest()


def make_regions(
    ra: ArrayLike,
    dec: ArrayLike,
    radius: ArrayLike,
    name: Sequence[str] | NDArray,
    kind: str,
    note: Sequence[str] | NDArray | None = None,
    shape: Sequence[str] | NDArray | None = None,
) -> SkyRegions:
    """`SkyRegions` from columns (see there), ``kind`` being the same for all of them."""
    n = len(name)
    return SkyRegions(
        np.asarray(ra, dtype=float).reshape(n) % 360.0,
        np.asarray(dec, dtype=float).reshape(n),
        np.broadcast_to(np.asarray(radius, dtype=float), n).copy(),
        np.asarray(name, dtype=str).reshape(n),
        np.full(n, kind, dtype="U8"),
        np.asarray(note if note is not None else [""] * n, dtype=str).reshape(n),
        np.asarray(shape if shape is not None else [""] * n, dtype=str).reshape(n),
    )


def concat_regions(parts: Iterable[SkyRegions]) -> SkyRegions:
    """One table from several; an empty one from none."""
    parts = [make_regions([], [], [], [], ""), *parts]
    return SkyRegions(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(SkyRegions)))


def excluded_pixels(grid: fov.FieldGrid, regions: SkyRegions, ra_pnt: float, dec_pnt: float) -> NDArray:
    """Pixels of the field that lie inside a region.

    Parameters
    ----------
    grid
        Pixels of the field of view.
    regions
        Exclusion regions (`SkyRegions.near` the pointing, to be fast).
    ra_pnt, dec_pnt
        Pointing [deg].

    Returns
    -------
    excluded
        Boolean, shape ``(n_pixels,)``.
    """
    disc = regions.shape == ""
    lon, lat = fov.to_fov(regions.ra[disc], regions.dec[disc], ra_pnt, dec_pnt)
    excluded = fov.excluded_pixels(grid, lon, lat, regions.radius[disc])
    if not disc.all():
        ra, dec = fov.from_fov(grid.center[None, :], grid.center[:, None], ra_pnt, dec_pnt)
        excluded |= excluded_positions(regions[~disc], ra.ravel(), dec.ravel())
    return excluded


def excluded_positions(regions: SkyRegions, ra: ArrayLike, dec: ArrayLike) -> NDArray:
    """Mask of sky positions [deg] inside a region; boolean, shape of ``ra``."""
    ra, dec = np.asarray(ra, dtype=float), np.asarray(dec, dtype=float)
    excluded = np.zeros(ra.size, dtype=bool)
    flat_ra, flat_dec = ra.ravel(), dec.ravel()
    for i in range(len(regions)):
        radius = regions.radius[i]
        # first by declination alone, as most events are far from most discs
        close = np.flatnonzero(np.abs(flat_dec - regions.dec[i]) <= radius + 1e-9)
        distance = fov.separation(flat_ra[close], flat_dec[close], regions.ra[i], regions.dec[i])
        inside = close[distance <= radius]
        if regions.shape[i] and inside.size:
            inside = inside[_inside_shape(str(regions.shape[i]), flat_ra[inside], flat_dec[inside])]
        excluded[inside] = True
    return excluded.reshape(ra.shape)


def _inside_shape(ds9: str, ra: NDArray, dec: NDArray) -> NDArray:
    """Positions inside a shape of a region file, through a tangential projection at its own centre."""
    from astropy.wcs import WCS
    from regions import PixCoord, Regions

    region = Regions.parse(ds9, format="ds9")[0]
    center = center_of(region)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [center.ra.deg, center.dec.deg]
    wcs.wcs.cdelt = [-0.001, 0.001]
    x, y = wcs.all_world2pix(ra, dec, 0)
    return region.to_pixel(wcs).contains(PixCoord(x, y))


def center_of(region):
    """Centre of a sky region, ICRS."""
    if hasattr(region, "vertices"):
        xyz = region.vertices.icrs.cartesian
        return type(region.vertices)(xyz.mean()).icrs
    return region.center.icrs
