"""Bins of energy, offset and field pixels: their edges, the views of a run store, and sums of bins.

Energies TeV, angles deg.  Coarse bins are sums of fine ones where each of their edges is an edge of the fine bins.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

AXES = ("energy", "offset")
FIELD = ("fov_lat", "fov_lon")
FIELD_AXES = ("energy", *FIELD)
ALIGNMENTS = ("radec", "altaz")
"""Frames of the field of view: ``fov_lat`` towards north, or towards the zenith."""

TOLERANCE = 1e-9
"""Relative distance up to which two bin edges are equal."""

LEAST_WIDTH = 0.02
"""Smallest width of offset bins and field pixels of the fine view [deg]: that of the small pixels in which events are
counted (`dask_bkg.sky.fov.MAX_PIXEL`, which this module may not import); a narrower bin may contain none."""

FLOOR = 1e-9
"""Number that the procedure adds to event numbers and to normalised rates to avoid a division by zero."""


class Edges(NamedTuple):
    """Bin edges of a background: energy [TeV] and offset [deg], both ascending."""

    energy: NDArray
    offset: NDArray

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of bins along energy and offset."""
        return self.energy.size - 1, self.offset.size - 1

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the axes."""
        return AXES


class FieldEdges(NamedTuple):
    """Bin edges of a background in square pixels, ascending: energy [TeV], ``fov_lon`` and ``fov_lat`` [deg]."""

    energy: NDArray
    fov: NDArray

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of bins along energy, ``fov_lat`` and ``fov_lon``."""
        return self.energy.size - 1, self.fov.size - 1, self.fov.size - 1

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the axes."""
        return FIELD_AXES


def dims_of(edges: Edges | FieldEdges) -> dict[str, tuple[str, ...]]:
    """Dimensions of the histograms on some axes; the exposure of field pixels is the same for all energies.

    Examples
    --------
    >>> dims_of(FieldEdges(np.array([0.1, 1, 10]), np.linspace(-2.5, 2.5, 26)))["exposure"]
    ('fov_lat', 'fov_lon')
    """
    return {"counts": edges.dims, "exposure": edges.dims if isinstance(edges, Edges) else FIELD}


def as_edges(edges: Edges | Mapping[str, ArrayLike]) -> Edges:
    """`Edges` from a mapping with ``energy`` [TeV] and ``offset`` [deg].

    Raises
    ------
    ValueError
        If they are not ascending and finite, energies > 0 and offsets >= 0.
    """
    pair = edges._asdict() if isinstance(edges, Edges) else edges
    arrays = {name: np.asarray(pair[name], dtype=float) for name in AXES}
    for name, array in arrays.items():
        if array.ndim != 1 or array.size < 2 or not (np.diff(array) > 0).all():
            raise ValueError(f"{name} edges must be at least two ascending numbers, got {array!r}")
        if not np.isfinite(array).all() or array[0] < 0 or (name == "energy" and array[0] == 0):
            raise ValueError(f"{name} edges must be finite, energies [TeV] > 0 and offsets [deg] >= 0, got {array!r}")
    return Edges(**arrays)


class View(NamedTuple):
    """One set of histograms of a run: its bins, and how its exposure is estimated.

    Attributes
    ----------
    name
        Empty for the fine one, ``rings-<digest>`` or ``field-<digest>`` for others.
    edges
        Edges of energy [TeV] and offset bins [deg].
    method
        ``geometry`` or ``event_ratio``, see `dask_bkg.reduce_run`.
    reach
        ``disc`` or ``centre``, see `dask_bkg.sky.exclusion.SkyRegions.near`.
    pixels
        Edges of square field pixels [deg], the same along ``fov_lon`` and ``fov_lat``; None: offset bins only.
    alignment
        Frame of those pixels, ``radec`` or ``altaz``.
    """

    name: str
    edges: Edges
    method: str = "geometry"
    reach: str = "disc"
    pixels: tuple[float, ...] | None = None
    alignment: str = "radec"

    @property
    def radius(self) -> float:
        """Distance from the pointing within which all of its bins lie [deg]: to the corners of the square field."""
        return float(max(self.edges.offset[-1], *self.pixels or (0.0,))) * math.sqrt(2.0)


def fine_view(
    bins_per_decade: int = 10,
    pixel: float = 0.2,
    ring: float = 0.05,
    off_max: float = 2.5,
    energy_range: tuple[float, float] = (0.01, 1000.0),
) -> View:
    """The view of which other binnings are sums: narrow offset bins, and square pixels of the field.

    The offset bins are stored in addition to the pixels, because sums of pixels of 0.2 deg have their mean offset
    wrong by up to 0.03 deg, which is 1-3 % of the rate.

    Parameters
    ----------
    bins_per_decade
        Energy bins per decade.
    pixel
        Width of a field pixel [deg], 0.02 to ``off_max``; the field is the smallest square of them that holds
        ``off_max``.
    ring
        Width of an offset bin [deg], 0.02 to ``off_max``.
    off_max
        Outer edge of the last offset bin [deg]; a larger one if ``ring`` does not divide it.
    energy_range
        Lowest and highest edge [TeV], a whole number of bins apart.

    Raises
    ------
    ValueError
        If a width or the energy range is not accepted.

    Examples
    --------
    >>> view = fine_view()
    >>> view.edges.shape, len(view.pixels)
    ((50, 50), 26)
    """
    low, high = energy_range
    bins = math.log10(high / low) * bins_per_decade if 0 < low < high else math.nan
    if not abs(bins - np.round(bins)) < 1e-6:
        raise ValueError(
            f"energy_range {energy_range} [TeV] is no whole number of bins at {bins_per_decade} per decade: "
            "use powers of ten"
        )
    for name, width in {"pixel": pixel, "ring": ring}.items():
        if not LEAST_WIDTH * (1 - TOLERANCE) <= width <= off_max < math.inf:
            raise ValueError(f"{name} of {width:g} deg: accepted are {LEAST_WIDTH:g} to off_max, {off_max:g} deg")
    energy = np.geomspace(low, high, round(bins) + 1)
    # multiples of the width, not sums: edges then agree with those of other binnings to the last digits
    offset = np.round(np.arange(_pieces(off_max, ring) + 1) * ring, 12)
    halves = _pieces(off_max, pixel / 2)
    pixels = np.round(np.arange(-halves, halves + 1, 2) * (pixel / 2), 12)
    return View("", Edges(energy, offset), pixels=tuple(pixels.tolist()))


def _pieces(length: float, width: float) -> int:
    """Smallest number of pieces of a width that cover a length, but for rounding."""
    return math.ceil(length / width * (1 - TOLERANCE))


def ring_view(edges: Edges, method: str = "geometry", reach: str = "disc") -> View:
    """The view of exact offset bins on given axes, named after a digest of all its arguments.

    Examples
    --------
    >>> view = ring_view(Edges(np.array([0.1, 1, 10]), np.array([0, 0.7, 2.5])))
    >>> view.name.startswith("rings-"), view.pixels
    (True, None)
    """
    return View(f"rings-{_digest(f'{method} {reach} {edges.shape}', edges)}", edges, method, reach)


def _digest(text: str, edges: Edges) -> str:
    """Hash of a text and of bin edges."""
    digest = hashlib.blake2b(text.encode(), digest_size=4)
    for axis in edges:
        digest.update(np.ascontiguousarray(axis, dtype="<f8").tobytes())
    return digest.hexdigest()


def field_view(fine: View, alignment: str, pixels: tuple[float, ...] | None = None) -> View:
    """A view with the axes of the fine one, but field pixels in another frame or of another width.

    Parameters
    ----------
    fine
        The fine view.
    alignment
        ``radec`` or ``altaz``.
    pixels
        Edges of the pixels [deg]; those of the fine view by default.

    Raises
    ------
    ValueError
        If there is no such frame.

    Examples
    --------
    >>> view = field_view(fine_view(), "altaz")
    >>> view.name.startswith("field-"), view.alignment, len(view.pixels)
    (True, 'altaz', 26)
    """
    if alignment not in ALIGNMENTS:
        raise ValueError(f"alignment {alignment!r} of the field: accepted are {' and '.join(map(repr, ALIGNMENTS))}")
    view = fine._replace(alignment=alignment, pixels=pixels or fine.pixels)
    return view._replace(name=f"field-{_digest(f'{alignment} {view.reach} {view.pixels}', view.edges)}")


def is_sum_of(fine: Edges | ArrayLike, coarse: Edges | ArrayLike) -> bool:
    """Whether coarse bins are sums of fine ones: each of their edges is an edge of the fine bins, to 1e-9.

    Parameters
    ----------
    fine, coarse
        Edges of one axis, ascending; or `Edges`, of which both axes must be sums.

    Examples
    --------
    >>> is_sum_of([0, 0.1, 0.2, 0.3], [0, 0.2]), is_sum_of([0, 0.1, 0.2, 0.3], [0, 0.15])
    (True, False)
    """
    if isinstance(fine, Edges) and isinstance(coarse, Edges):
        return all(is_sum_of(*pair) for pair in zip(fine, coarse, strict=True))
    fine, coarse = np.asarray(fine, dtype=float), np.asarray(coarse, dtype=float)
    right = np.clip(np.searchsorted(fine, coarse), 1, fine.size - 1)
    distance = np.minimum(np.abs(fine[right] - coarse), np.abs(fine[right - 1] - coarse))
    # near zero an edge is compared with the width of its bins
    scale = np.maximum(np.abs(coarse), fine[right] - fine[right - 1])
    return bool((distance <= TOLERANCE * scale).all())


def sum_index(fine: ArrayLike, coarse: ArrayLike) -> NDArray:
    """Index of the coarse bin to which each fine bin belongs, -1 outside of all; shape ``(fine bins,)``.

    Parameters
    ----------
    fine, coarse
        Edges of one axis, ascending.

    Raises
    ------
    ValueError
        If the coarse bins are no sums of the fine ones.

    Examples
    --------
    >>> sum_index([0, 0.1, 0.2, 0.3, 0.4], [0.1, 0.3]).tolist()
    [-1, 0, 0, -1]
    """
    fine, coarse = np.asarray(fine, dtype=float), np.asarray(coarse, dtype=float)
    if not is_sum_of(fine, coarse):
        raise ValueError(f"bins with the edges {coarse} are no sums of those with the edges {fine}")
    center = (fine[1:] + fine[:-1]) / 2
    index = np.searchsorted(coarse, center, side="right") - 1
    return np.where(index < coarse.size - 1, index, -1)


def sum_bins(values: NDArray, fine: NDArray, coarse: NDArray, axis: int) -> NDArray:
    """Sums over the fine bins of each coarse one along an axis, always in the same order of terms.

    Parameters
    ----------
    values
        Any shape, with the fine bins along ``axis``.
    fine, coarse
        Edges, ascending.

    Raises
    ------
    ValueError
        If the coarse bins are no sums of the fine ones.
    """
    index = sum_index(fine, coarse)
    inside = np.flatnonzero(index >= 0)
    part = values[(slice(None),) * axis + (slice(inside[0], inside[-1] + 1),)]
    return np.add.reduceat(part, np.searchsorted(index[inside], np.arange(coarse.size - 1)), axis=axis)
