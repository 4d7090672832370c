"""From the histograms of offset bins and field pixels to a rate over the field."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from dask_bkg.background import estimate as rates
from dask_bkg.background.estimate import Histogram, Rate, RateSettings
from dask_bkg.background.field_geometry import Geometry, flat, geometry_of, members
from dask_bkg.background.field_shapes import fit_tilt, free_modulation, upwards
from dask_bkg.background.fill import FLAGS
from dask_bkg.background.variance import Weights, column

SHAPES = ("gradient", "free", "both", "plain")

BLIND_SHARE = 0.01
"""Exposure of a pixel without exposure in the mean of its offset bin, in units of that of the mean pixel."""

PRIOR = {"free": 100.0, "both": 300.0}
"""Events that the expectation of no modulation is worth; more where a gradient has been taken out already."""

BENT = 1.25
"""Largest factor between the mean of a pixel and its centre: pixels of 1 deg at the edge of a field of 2.5 deg."""

ROUNDS = 6
"""Rounds in which the offset bins get back their counts; a pixel lies in two or three of them."""

FIELD_POOLED, PIXEL_UNSEEN = 16, 32
FIELD_FLAGS = {
    **FLAGS,
    FIELD_POOLED: "shape over the field pooled over energies",
    PIXEL_UNSEEN: "pixel without exposure",
}


class FieldSettings(NamedTuple):
    """How the modulation of a rate, its ratio to the radial rate, is estimated.

    Attributes
    ----------
    shape
        ``gradient`` towards the zenith; ``free``, smoothed ratio to the radial rate; ``both``, the first times the
        second; ``plain``, counts / exposure of each pixel.
    smooth_sigma
        Width of the Gaussian of ``free`` [deg].
    min_counts
        Events that a pool of energies needs for a ``free`` shape of its own.
    prior
        Events under the Gaussian that the expectation of no modulation is worth in ``free``; None: `PRIOR`.
    """

    shape: str = "gradient"
    smooth_sigma: float = 0.5
    min_counts: float = 2000
    prior: float | None = None

    @property
    def tilts(self) -> bool:
        """Whether a gradient towards the zenith is fitted, and zenith angles are needed."""
        return self.shape in ("gradient", "both")


def estimate_field(
    rings: Histogram,
    field: Histogram,
    edges: tuple[NDArray, NDArray, NDArray],
    sin_zenith: tuple[float, float] = (1.0, 1.0),
    settings: RateSettings | None = None,
    field_settings: FieldSettings | None = None,
    zenith: tuple[float, float] = (0.0, 1.0),
    shape: Histogram | None = None,
    weights: Weights | None = None,
) -> Rate:
    """Rate over the field from the histograms of offset bins and pixels of the same runs.

    Each pixel has the mean of the radial rate of `dask_bkg.background.estimate.estimate_rate`, whose offset bins are
    continued by pixels to the corners of the square, times a modulation.  The modulation leaves the expected counts
    of each offset bin as they are, and with one factor per energy gammapy's interpolation between the centres of the
    pixels returns the counts.

    Parameters
    ----------
    rings, field
        Histograms of the offset bins, shape ``(energy, offset)``, and of square pixels of the field, shape
        ``(energy, fov_lat, fov_lon)``; exposure [s TeV sr].
    edges
        Bin edges of energy [TeV], offset [deg] and pixels [deg] (the same along both sides of the field).
    sin_zenith
        Sine of the zenith angle: mean of the contributing runs, and that of the run that receives the rate.
    settings, field_settings
        How the radial rate and its modulation are estimated.  ``smooth_method: to_3d`` is here what it is for the
        procedure's 3D backgrounds: a plain Gaussian of ``smooth_bins`` pixels over each energy at the end.
    zenith
        Direction of the zenith in the field, a unit vector ``(fov_lon, fov_lat)``; the default is that of ALTAZ.
    shape
        Offset bins of the runs of ``field``, where these are other runs than those of ``rings``: then ``rings`` give
        the spectrum, and the others the shape, over offset as well.
    weights
        Mean weight of the events, for their errors; None: 1.

    Returns
    -------
    rate
        Values at the centres of the pixels [s-1 TeV-1 sr-1], flags (`FIELD_FLAGS`) and relative errors (of radial
        rate and modulation), shape ``(energy, fov_lat, fov_lon)``; and the ``mean`` of the radial rate, shape
        ``(energy, offset)``, with offset bins out to the corners of the square.

    Raises
    ------
    ValueError
        If there are no counts, or the settings exclude each other.

    Examples
    --------
    >>> edges = np.geomspace(0.5, 10, 5), np.linspace(0, 2, 3), np.linspace(-2, 2, 9)
    >>> rings = Histogram(np.full((4, 2), 100.0), np.full((4, 2), 50.0))
    >>> field = Histogram(np.full((4, 8, 8), 4.0), np.full((4, 8, 8), 2.0))
    >>> rate = estimate_field(rings, field, edges)
    >>> rate.value.shape, bool((rate.value > 0).all())
    ((4, 8, 8), True)
    """
    settings, field_settings = settings or RateSettings(), field_settings or FieldSettings()
    _check(settings, field_settings, sin_zenith)
    # a weighted stack has fewer effective events than events
    pixel_weight = column(1.0 if weights is None else weights.shape)[:, :, None]
    unseen = np.where(field.exposure > 0, 0, PIXEL_UNSEEN)
    if field_settings.shape == "plain":
        value = _plain(field, edges[2], settings)
        variance = np.divide(1.0, field.counts, out=np.full(value.shape, np.inf), where=field.counts > 0)
        return Rate(value, unseen, np.sqrt(variance * pixel_weight))
    place = geometry_of(*edges[1:])
    if shape is None:
        rings = _continue(rings, field, place)
    else:
        shape = _continue(shape, field, place)
    radial = rates.estimate_rate(*rings, (edges[0], place.edges), settings, shape, weights)
    base = place.radial_means(radial.value)
    stacked, target, pooled, error = _modulations(field, base, edges, sin_zenith, field_settings, zenith)
    value = base * _on_rings(stacked, target, base, field.exposure, place.share)
    if settings.node_values == "conserving":
        value = _node_values(value, base, field.exposure, place)
    flag = radial.flag[:, place.ring] | np.where(pooled, FIELD_POOLED, 0)[:, None, None] | unseen
    error = np.sqrt(radial.error[:, place.ring] ** 2 + error**2 * pixel_weight)
    width = None if radial.resolution is None else radial.resolution[:, place.ring]
    return Rate(_blurred(value, settings), flag, error, radial.average, radial.level_error, width)


def _check(settings: RateSettings, field: FieldSettings, sin_zenith: tuple[float, float]) -> None:
    if field.shape not in SHAPES:
        raise ValueError(f"shape {field.shape!r} over the field: accepted are {', '.join(SHAPES)}")
    if field.shape != "plain" and not settings.fill:
        raise ValueError(f"shape {field.shape!r} needs a radial rate without empty bins: set fill, or shape 'plain'")
    if not (field.smooth_sigma >= 0 and (field.prior is None or field.prior >= 0)):
        raise ValueError(f"smooth_sigma and prior must be not negative, got {field.smooth_sigma} and {field.prior}")
    if field.tilts and not np.isfinite(sin_zenith).all():
        raise ValueError(
            f"shape {field.shape!r} needs the zenith angles of runs and target, got sin z of {sin_zenith}: "
            "set shape 'free' where the files do not have them"
        )


def _continue(rings: Histogram, field: Histogram, place: Geometry) -> Histogram:
    """The offset bins, followed by those of the pixels whose centres lie beyond the last one."""
    member = members(place.ring, np.arange(rings.counts.shape[1], place.edges.size - 1))
    return Histogram(*(np.concatenate([a, flat(b) @ member], axis=1) for a, b in zip(rings, field, strict=True)))


def _modulations(
    field: Histogram,
    base: NDArray,
    edges: tuple[NDArray, NDArray, NDArray],
    sin_zenith: tuple[float, float],
    settings: FieldSettings,
    zenith: tuple[float, float],
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Modulation of the stack and of the target, not yet scaled; which energies are pooled; its relative error."""
    expected = base * field.exposure
    stacked = target = np.ones(base.shape)
    variance = np.zeros(base.shape)
    pooled = np.zeros(base.shape[0], dtype=bool)
    if settings.tilts:
        up = upwards(edges[2], zenith)
        tilt = fit_tilt(field.counts, expected, edges, sin_zenith[0], up)
        stacked, target = (np.exp(sin_z * tilt.value[:, None, None] * up) for sin_z in sin_zenith)
        variance = (sin_zenith[1] * tilt.error[:, None, None] * up) ** 2
    if settings.shape != "gradient":
        prior = PRIOR[settings.shape] if settings.prior is None else settings.prior
        how = settings.smooth_sigma, settings.min_counts, prior
        free, pooled, error = free_modulation(field.counts, expected * stacked, edges[0], edges[2], *how)
        stacked, target, variance = stacked * free, target * free, variance + error**2
    return stacked, target, pooled, np.sqrt(variance)


def _on_rings(stacked: NDArray, target: NDArray, base: NDArray, exposure: NDArray, share: csr_array) -> NDArray:
    """The target's modulation, such that the counts of the stack in each offset bin are conserved.

    If the brighter part of an offset bin is excluded, the stack has seen its darker part: the mean of its modulation
    is 1 over its exposure, but not over the solid angle.  The target has the same mean over the solid angle.
    """
    seen = np.maximum(exposure, BLIND_SHARE * exposure.mean(axis=(1, 2), keepdims=True))
    # 1 at an energy that no run exposes
    weight = flat(base * np.where(seen > 0, seen, 1.0))
    scaled = _with_sums(flat(stacked), weight, weight @ share.T, share)
    if not np.array_equal(target, stacked):
        weight = flat(base)
        scaled = _with_sums(flat(target), weight, (scaled * weight) @ share.T, share)
    return scaled.reshape(base.shape)


def _with_sums(modulation: NDArray, weight: NDArray, wanted: NDArray, share: csr_array) -> NDArray:
    """A modulation, shape ``(energy, pixel)``, scaled such that its weighted sums over offset bins are ``wanted``."""
    for _ in range(ROUNDS):
        sums = (modulation * weight) @ share.T
        factor = np.divide(wanted, sums, out=np.ones_like(sums), where=sums > 0)
        modulation = modulation * (factor @ share)
    return modulation


def _node_values(value: NDArray, base: NDArray, exposure: NDArray, place: Geometry) -> NDArray:
    """Values at the centres of pixels with these means: corrected as the radial rate, and by a factor per energy.

    Not by a factor per pixel, which would follow the noise; the steps of a sparse radial rate stay as well.
    """
    nodes = value * np.clip(base / place.interpolated_means(base), 1 / BENT, BENT)
    return nodes * _ratio(value, place.interpolated_means(nodes), exposure)


def _ratio(wanted: NDArray, value: NDArray, exposure: NDArray) -> NDArray:
    """Ratio of expected counts of each energy, 1 where there are none."""
    above, below = ((rate * exposure).sum(axis=(1, 2), keepdims=True) for rate in (wanted, value))
    return np.divide(above, below, out=np.ones_like(above), where=below > 0)


def _plain(field: Histogram, pixel_edges: NDArray, settings: RateSettings) -> NDArray:
    """Counts / exposure of each pixel, 0 where there are none; smoothed as the settings say."""
    from scipy.ndimage import gaussian_filter

    rate = _divide(*field)
    if settings.smooth_method == "field" and settings.smooth_sigma > 0:
        width = settings.smooth_sigma / (pixel_edges[1] - pixel_edges[0])
        # both by the same Gaussian: else pixels at the edge of the field would become darker
        spread = (gaussian_filter(np.asarray(a, dtype=float), (0, width, width), mode="constant") for a in field)
        smooth = _divide(*spread)
        rate = smooth * _ratio(rate, smooth, field.exposure)
    return _blurred(rate, settings)


def _divide(counts: NDArray, exposure: NDArray) -> NDArray:
    return np.nan_to_num(rates.plain_rate(counts, exposure), posinf=0.0)


def _blurred(value: NDArray, settings: RateSettings) -> NDArray:
    """A rate, with a plain Gaussian over each energy if the settings say ``to_3d``."""
    from scipy.ndimage import gaussian_filter

    if not settings.through_gammapy:
        return value
    return gaussian_filter(value, (0, settings.smooth_bins, settings.smooth_bins))
