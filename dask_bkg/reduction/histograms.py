"""Events of one run to the histograms of several views.

The field grid, its excluded pixels and the pixel of each event are computed once for all views of the same pixel
width.  Events and solid angle are assigned to bins by the same pixels (see `dask_bkg.sky.fov`), so that on one grid
the histograms of coarse offset bins are exact sums of those of fine ones.  The exclusion is a set of these pixels for
all views; they are fixed on the sky, and a field that is aligned with the horizon rotates over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_bkg.binning import View
from dask_bkg.dl3.read import RunEvents
from dask_bkg.errors import RunError
from dask_bkg.reduction.counts import count_events, digitize, event_ratio, flat_solid_angle
from dask_bkg.reduction.horizon import horizon_of
from dask_bkg.reduction.turning import turned_fraction, turning_steps
from dask_bkg.sky import exclusion, fov
from dask_bkg.sky.exclusion import SkyRegions
from dask_bkg.sky.fov import FieldGrid
from dask_bkg.sky.horizon import HorizonField

METHODS = ("geometry", "event_ratio")


def count_views(events: RunEvents, views: Sequence[View], regions: SkyRegions | None) -> list[dict[str, NDArray]]:
    """Counts and exposed fractions of the events of a run, one dictionary per view.

    Parameters
    ----------
    events
        Events and pointing of a run.
    views
        The histograms that are filled.
    regions
        Exclusion regions of the whole sky; None excludes nothing.

    Returns
    -------
    histograms
        As in `dask_bkg.reduction.reduce.Reduced`: counts uint32, fractions float64 (0 to 1).  A field that is to be
        aligned with the horizon, but whose horizon is unknown (`dask_bkg.reduction.horizon`), has no counts and the
        exposed fraction 0.

    Raises
    ------
    ValueError
        If there is no such method, or ``event_ratio`` with field pixels.
    """
    for view in views:
        if view.method not in METHODS:
            accepted = " and ".join(map(repr, METHODS))
            raise ValueError(f"method {view.method!r} of the exposure: accepted are {accepted}")
        if view.method == "event_ratio" and view.pixels is not None:
            raise ValueError("field pixels have no event_ratio: use method geometry, or a view without pixels")
    run, halves = _Run(events, regions), _halves(views)
    return [
        run.by_event(view) if view.method == "event_ratio" else run.by_pixel(view, *_grids(view, halves[_step(view)]))
        for view in views
    ]


def solid_angles(view: View) -> dict[str, NDArray]:
    """Solid angle [sr] of the bins of a view.

    Returns
    -------
    solid_angle
        Of the offset bins, shape ``(offset,)``; and where the view has pixels ``field_solid_angle``, shape
        ``(fov_lat, fov_lon)``.

    Examples
    --------
    >>> from dask_bkg.binning import fine_view
    >>> inside = solid_angles(fine_view())["solid_angle"].sum()
    >>> round(float(inside / (2 * np.pi * (1 - np.cos(np.deg2rad(2.5))))), 3)
    1.0
    """
    if view.method == "event_ratio":
        return {"solid_angle": flat_solid_angle(view.edges.offset)}
    rings, field = _grids(view, _halves([view])[_step(view)])
    found = {"solid_angle": rings.bin_solid_angle}
    return found if field is None else {**found, "field_solid_angle": _square(field.bin_solid_angle)}


def _offsets(view: View) -> tuple[float, ...]:
    return tuple(view.edges.offset.tolist())


def _step(view: View) -> float:
    return fov.grid_step(_offsets(view), view.pixels)


def _halves(views: Sequence[View]) -> dict[float, int]:
    """Half the width of the grid [pixels] for each pixel width [deg], for all views of that width."""
    halves: dict[float, int] = {}
    for view in views:
        if view.method != "event_ratio":
            step = _step(view)
            wanted = [fov.half_size(edges, step) for edges in (_offsets(view), view.pixels) if edges]
            if view.alignment == "altaz" and view.pixels:
                # a square that rotates: out to its corners, and a pixel more
                wanted.append(fov.half_size((view.pixels[-1] * np.sqrt(2),), step) + 1)
            halves[step] = max(halves.get(step, 0), *wanted)
    return halves


def _grids(view: View, half: int) -> tuple[FieldGrid, FieldGrid | None]:
    """The grid with the offset bins of a view as bins, and the same grid with its square field pixels."""
    step = _step(view)
    rings = fov.ring_grid(_offsets(view), step, half)
    return rings, None if view.pixels is None else fov.pixel_grid(view.pixels, step, half)


def _square(values: NDArray) -> NDArray:
    """The last axis of flat field pixels as ``(fov_lat, fov_lon)``."""
    n = round(values.shape[-1] ** 0.5)
    return values.reshape(*values.shape[:-1], n, n)


class _Exposed(NamedTuple):
    """Energies [TeV] and pixels of the events outside of the exclusion, their mask; the mask of excluded pixels."""

    energy: NDArray
    pixel: NDArray
    kept: NDArray
    excluded: NDArray


class _Run:
    """One run, with the quantities that its views share."""

    def __init__(self, events: RunEvents, regions: SkyRegions | None) -> None:
        self.events, self.regions = events, exclusion.concat_regions([]) if regions is None else regions
        self.pointing = events.numbers["ra_pnt"], events.numbers["dec_pnt"]
        self._exposed: dict[tuple[float, str], _Exposed] = {}

    @cached_property
    def place(self) -> tuple[NDArray, NDArray]:
        """Field coordinates of the events [deg]."""
        return fov.to_fov(self.events.ra, self.events.dec, *self.pointing)

    @cached_property
    def horizon(self) -> HorizonField | None:
        """The field aligned with the horizon; None if the horizon is unknown."""
        try:
            return horizon_of(self.events)
        except RunError:
            # its other histograms are valid; this one gets no exposure
            return None

    @cached_property
    def horizon_place(self) -> tuple[NDArray, NDArray]:
        """Coordinates of the events in the field aligned with the horizon [deg]."""
        horizon = self.horizon
        assert horizon is not None, "turning() has checked it"
        assert horizon.times.events is not None, "horizon_of() has checked them"
        return horizon.place(self.events.ra, self.events.dec, horizon.times.events)

    def outside(self, grid: FieldGrid, reach: str) -> _Exposed:
        """Events and pixels outside of the exclusion on a grid; computed once per pixel width."""
        key = grid.step, reach
        if key not in self._exposed:
            near = self.near(-grid.center[0] * np.sqrt(2) + grid.step, reach)
            pixel, excluded = fov.pixel_index(grid, *self.place), np.zeros(grid.bin.size, dtype=bool)
            if len(near):
                excluded = exclusion.excluded_pixels(grid, near, *self.pointing)
            kept = (pixel >= 0) & ~excluded[pixel]
            self._exposed[key] = _Exposed(self.events.energy[kept], pixel[kept], kept, excluded)
        return self._exposed[key]

    def near(self, radius: float, reach: str) -> SkyRegions:
        """Regions that matter within a radius [deg]."""
        return self.regions.near(*self.pointing, float(radius), reach)

    def by_pixel(self, view: View, rings: FieldGrid, field: FieldGrid | None) -> dict[str, NDArray]:
        """Histograms with events and solid angle assigned to bins by the same pixels of the field."""
        exposed = self.outside(rings, view.reach)
        energy, n = digitize(exposed.energy, view.edges.energy), view.edges.shape[0]
        counts = count_events(energy, rings.bin[exposed.pixel], n, rings.n_bins)
        found = {"counts": counts, "exposed_fraction": fov.exposed_fraction(rings, exposed.excluded)}
        if field is not None:
            if view.alignment == "altaz":
                bins, fraction = self.turning(view, field, exposed)
            else:
                bins, fraction = field.bin[exposed.pixel], fov.exposed_fraction(field, exposed.excluded)
            found["field_counts"] = _square(count_events(energy, bins, n, field.n_bins))
            found["field_exposed_fraction"] = _square(fraction)
        return {name: array.astype(np.uint32) if "counts" in name else array for name, array in found.items()}

    def turning(self, view: View, field: FieldGrid, exposed: _Exposed) -> tuple[NDArray, NDArray]:
        """Field pixels of the events and exposed fractions, aligned with the horizon."""
        edges = view.pixels or ()
        if self.horizon is None:
            return np.full(exposed.pixel.size, -1), np.zeros(field.n_bins)
        lon, lat = (digitize(place[exposed.kept], edges) for place in self.horizon_place)
        bins = np.where((lon >= 0) & (lat >= 0), lat * (len(edges) - 1) + lon, -1)
        return bins, turned_fraction(field, edges, exposed.excluded, *turning_steps(self.horizon, edges))

    def by_event(self, view: View) -> dict[str, NDArray]:
        """The procedure's way: exact offsets, the ratio of kept to all events, whatever their times."""
        ra, dec, energy = self.events.ra, self.events.dec, self.events.energy
        if self.events.untimely is not None:
            ra, dec, energy = np.concatenate([[ra, dec, energy], self.events.untimely], axis=1)
        edges = view.edges
        offset = digitize(fov.separation(ra, dec, *self.pointing), edges.offset)
        kept = ~exclusion.excluded_positions(self.near(edges.offset[-1], view.reach), ra, dec)
        counts = count_events(digitize(energy, edges.energy), np.where(kept, offset, -1), *edges.shape)
        fraction = event_ratio(offset, kept, edges.shape[1])
        return {"counts": counts.astype(np.uint32), "exposed_fraction": fraction}
