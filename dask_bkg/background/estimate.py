"""From stacked counts and exposure to a background rate without empty bins.

The steps, in their order: `fill_rate`, or `rate_of_shape` where the shape comes from more runs than the spectrum;
`dask_bkg.background.smooth.smooth`; `dask_bkg.background.nodes.node_values`.  The error of each bin is propagated
through all of them (`dask_bkg.background.variance`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dask_bkg.background import fill
from dask_bkg.background.nodes import node_values
from dask_bkg.background.smooth import Smoothing, blur_response, resolution, smooth
from dask_bkg.background.variance import Variance, Weights, blind_errors, column


class Rate(NamedTuple):
    """A background rate, its flags and its errors.

    Attributes
    ----------
    value
        Rate [s-1 TeV-1 sr-1], shape ``(energy, offset)``.
    flag
        Sum of the bits in `dask_bkg.background.fill.FLAGS`, 0 for a bin that is measured by its own counts, shape
        ``(energy, offset)``.
    error
        Relative statistical error of the averages, of the shape of ``value``; infinite where a bin that is not filled
        has no counts.
    mean
        Averages over the bins, of which ``value`` are the nodes, shape ``(energy, offset)``; None: they are the same.
    level_error
        The part of it that is common to all bins of an energy, shape ``(energy,)``.
    resolution
        Effective resolution of the smoothing [deg] (`dask_bkg.background.smooth.resolution`), of the shape of
        ``value``.
    """

    value: NDArray
    flag: NDArray
    error: NDArray
    mean: NDArray | None = None
    level_error: NDArray | None = None
    resolution: NDArray | None = None

    @property
    def average(self) -> NDArray:
        """Averages over the bins."""
        return self.value if self.mean is None else self.mean


class Histogram(NamedTuple):
    """Events and exposure [s TeV sr] of bins, shape ``(energy, offset)`` or ``(energy, fov_lat, fov_lon)``."""

    counts: NDArray
    exposure: NDArray


class RateSettings(NamedTuple):
    """How a rate is estimated from counts and exposure; the defaults are those of the configuration.

    Attributes
    ----------
    fill
        Leave no bin empty (`fill_rate`); False: plain counts / exposure.
    min_counts
        Events that a pool of energies needs for a radial shape of its own.
    shape_sigma
        Width of the smoothing of a shape that has runs of its own [deg], where the settings give no other.
    smooth_sigma
        Width of the smoothing [deg]; 0: none.
    smooth_method
        ``field``, ``adaptive``, ``spline`` (`dask_bkg.background.smooth.smooth`) or ``to_3d`` (the procedure's way,
        `dask_bkg.background.irf.smooth`).
    smooth_bins
        The width in offset bins, which is what ``to_3d`` takes.
    smooth_counts, smooth_dof
        Counts that ``adaptive`` collects under its Gaussian, and degrees of freedom of ``spline``.
    smooth
        Whether anything is smoothed; None: if there is a width.
    own, own_counts
        What the run's own counts are used for, and how many of them the rate of the stack is worth
        (`dask_bkg.background.own_counts`).
    node_values
        ``conserving`` (`dask_bkg.background.nodes.node_values`) or ``plain``: the bin averages themselves.
    """

    fill: bool = True
    min_counts: float = 500
    shape_sigma: float = 0.2
    smooth_sigma: float = 0.0
    smooth_method: str = "field"
    smooth_bins: float = 0.0
    node_values: str = "conserving"
    smooth_counts: float = 400.0
    smooth_dof: float = 4.0
    smooth: bool | None = None
    own: str = "off"
    own_counts: float = 100.0

    @property
    def smoothing(self) -> Smoothing:
        """How a rate is smoothed here; idle for ``to_3d``, which gammapy does afterwards."""
        wanted = self.smooth_sigma > 0 if self.smooth is None else self.smooth
        if not wanted or self.smooth_method == "to_3d":
            return Smoothing()
        return Smoothing(self.smooth_method, self.smooth_sigma, self.smooth_counts, self.smooth_dof)

    @property
    def smoothing_of_shape(self) -> Smoothing:
        """How a shape that has runs of its own is smoothed here."""
        smoothing = self.smoothing
        return Smoothing(sigma=self.shape_sigma) if smoothing.idle and not self.through_gammapy else smoothing

    @property
    def through_gammapy(self) -> bool:
        """Whether the procedure's smoothing follows, which gammapy does afterwards."""
        return self.smooth_method == "to_3d" and self.smooth_bins > 0


class Filled(NamedTuple):
    """Bin averages before node values are fitted, with the parts of their variance.

    Attributes
    ----------
    value, flag
        As in `Rate`, shape ``(energy, offset)``.
    variance
        Variance of ln(rate), in parts.
    counts
        Events that measure the shape, shape ``(energy, offset)``.
    exposure
        Exposure [s TeV sr] with which the rate is converted to expected counts, shape ``(energy, offset)``.
    """

    value: NDArray
    flag: NDArray
    variance: Variance
    counts: NDArray
    exposure: NDArray

    @property
    def error(self) -> NDArray:
        """Relative statistical error, shape ``(energy, offset)``; infinite where the rate is 0."""
        return np.where(self.value > 0, self.variance.errors(self.value * self.exposure), np.inf)

    @property
    def level_error(self) -> NDArray:
        """Relative error of the normalisation of each energy, shape ``(energy,)``."""
        return np.sqrt(self.variance.normalisation)

    def after(self, response: NDArray) -> Filled:
        """With the variance after a step of this response, shape ``(energy, offset, offset)``."""
        return self._replace(variance=self.variance._replace(response=response @ self.variance.response))


def estimate_rate(
    counts: NDArray,
    exposure: NDArray,
    edges: tuple[NDArray, NDArray],
    settings: RateSettings | None = None,
    shape: Histogram | None = None,
    weights: Weights | None = None,
) -> Rate:
    """Background rate by all steps of this module.

    Parameters
    ----------
    counts, exposure
        Events and exposure [s TeV sr], shape ``(energy, offset)``.
    edges
        Bin edges of energy [TeV] and offset [deg].
    settings
        What is done; smoothing through ``to_3d`` is left to gammapy. Where ``fill`` is False, a bin without exposure
        has the rate 0.
    shape
        Counts and exposure of the runs that give the shape over offset, on the same axes or with further offset bins
        (then the rate has these as well); None: the runs of the spectrum.
    weights
        Mean weight of the events, for their errors; None: 1.

    Returns
    -------
    rate
        Node values and bin averages [s-1 TeV-1 sr-1] with flags and relative errors, shape ``(energy, offset)``.

    Raises
    ------
    ValueError
        If there are no counts or no exposure at all, or the settings exclude each other.

    Examples
    --------
    >>> edges = np.geomspace(0.5, 10, 5), np.linspace(0, 2, 3)
    >>> rate = estimate_rate(np.full((4, 2), 400.0), np.full((4, 2), 50.0), edges)
    >>> rate.value.shape, bool((rate.value > 0).all())
    ((4, 2), True)
    >>> rate.error.round(3).tolist()[0]    # of four hundred counts
    [0.05, 0.05]
    """
    settings, weights = settings or RateSettings(), weights or Weights()
    if settings.node_values == "conserving" and not settings.fill:
        raise ValueError("conserving node values need a rate > 0 in each bin: set fill, or node_values to 'plain'")
    smoothing = settings.smoothing
    if settings.fill and shape is not None and shape.counts.any():
        smoothing = settings.smoothing_of_shape
        filled = rate_of_shape(Histogram(counts, exposure), shape, edges, settings.min_counts, smoothing, weights)
    elif settings.fill:
        filled = _smoothed(fill_rate(counts, exposure, edges[0], settings.min_counts, weights), edges[1], smoothing)
    else:
        filled = _smoothed(_plain(counts, exposure, weights), edges[1], smoothing)
    if settings.through_gammapy:
        filled = filled.after(blur_response(filled.value, edges[1], settings.smooth_sigma))
    width = np.zeros(filled.value.shape)
    if not smoothing.idle or settings.through_gammapy:
        width = resolution(filled.variance.response, filled.counts, edges[1])
    rate = Rate(filled.value, filled.flag, filled.error, None, filled.level_error, width)
    if settings.node_values == "plain":
        return rate
    return rate._replace(value=node_values(filled.value, filled.exposure, *edges), mean=filled.value)


def _plain(counts: NDArray, exposure: NDArray, weights: Weights) -> Filled:
    """Counts / exposure with zeros where there are none."""
    # a file cannot say "unknown"; a NaN of a filled rate would be a fault, and is not to be hidden
    value = np.nan_to_num(plain_rate(counts, exposure), posinf=0.0)
    seen = np.where(exposure > 0, counts, 0.0)
    normalisation = weights.spectrum / np.maximum(seen.sum(axis=1), fill.UNSEEN)
    shape = column(weights.spectrum) / np.maximum(seen, fill.UNSEEN)
    variance = Variance(normalisation, shape, _independent(shape), 0 * shape)
    return Filled(value, np.zeros(counts.shape, dtype=int), variance, seen, exposure)


def _independent(values: NDArray) -> NDArray:
    """Response of offset bins that do not depend on each other, shape ``(energy, offset, offset)``."""
    return np.broadcast_to(np.eye(values.shape[1]), (*values.shape, values.shape[1]))


def _smoothed(filled: Filled, offset_edges: NDArray, smoothing: Smoothing) -> Filled:
    """A rate, smoothed with the weight of its counts."""
    if smoothing.idle:
        return filled
    value, response = smooth(filled.value, filled.exposure, offset_edges, smoothing, filled.variance.shape)
    return filled.after(response)._replace(value=value, counts=filled.value * filled.exposure)


def _exposed_counts(counts: NDArray, exposure: NDArray) -> NDArray:
    """Counts, without those of bins without exposure."""
    seen = np.where(exposure > 0, counts, 0.0)
    if not seen.sum() > 0:
        raise ValueError("no counts in the binning, or no exposure: a rate cannot be estimated")
    return seen


def plain_rate(counts: NDArray, exposure: NDArray) -> NDArray:
    """Counts / exposure, as in the procedure: NaN in a bin without exposure and counts, 0 in one without counts."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return counts / exposure


def fill_rate(
    counts: NDArray,
    exposure: NDArray,
    energy_edges: ArrayLike,
    min_counts: float = 500,
    weights: Weights | None = None,
) -> Filled:
    """Rate without empty bins; counts conserved from the first energy that has any.

    The radial shape of an energy is pooled with that of its neighbours in ln E, just wide enough for ``min_counts``;
    the normalisation of each energy follows from its own counts, those above the peak pooled to ten; then offset bins
    and energies are scaled in turn until both have their counts.

    What is added to the counts: each energy below the first one that has any gets a rate worth at most `UNSEEN`
    events, spread over its offset bins (for four empty energies, as in the default binning: 4 % of the counts of a
    run of 30 events, 1 % of 100, negligible above; more for more of them).  An empty bin, offset bin or energy from
    there on takes its share from the counts of its neighbours.  Events of bins without exposure are left out, as no
    rate can account for them.

    Parameters
    ----------
    counts, exposure
        Events and exposure [s TeV sr], shape ``(energy, offset)``.
    energy_edges
        Bin edges [TeV], shape ``(energy + 1,)``.
    min_counts
        Events that a pool needs for a radial shape of its own.
    weights
        Mean weight of the events; None: 1.

    Returns
    -------
    filled
        Bin averages [s-1 TeV-1 sr-1], flags and variances, shape ``(energy, offset)``.

    Raises
    ------
    ValueError
        If there are no counts, or no exposure, at all.

    Examples
    --------
    >>> rate = fill_rate(np.array([[600.0, 300.0], [6.0, 3.0]]), np.ones((2, 2)), [1.0, 2.0, 4.0])
    >>> rate.value.round(3).tolist()
    [[600.0, 300.0], [6.0, 3.0]]
    """
    weights, counts = weights or Weights(), _exposed_counts(counts, exposure)
    pool = fill.pooled_shape(counts, exposure, energy_edges, min_counts)
    expected = (exposure * pool.shape).sum(axis=1)
    norm = fill.normalisations(counts.sum(axis=1), expected, energy_edges, weights.spectrum)
    flag = pool.flag | norm.flag[:, None]
    pooled = (flag & fill.SHAPE_POOLED).any(axis=1)
    value = fill.conserve(norm.value[:, None] * pool.shape, counts, exposure, pooled)
    squares = counts * column(weights.spectrum)
    shape = fill.shape_variance(pool, squares, fill.conserved_response(pool, value * exposure, counts, pooled))
    variance = Variance(norm.variance, shape, _independent(shape), blind_errors(pool.blind))
    return Filled(value, flag, variance, counts, exposure)


def rate_of_shape(
    spectrum: Histogram,
    shape: Histogram,
    edges: tuple[NDArray, NDArray],
    min_counts: float = 500,
    smoothing: Smoothing | None = None,
    weights: Weights | None = None,
) -> Filled:
    """Rate with the shape over offset of some runs, and the normalisation of each energy of others.

    Steps 4 and 5 of `dask_bkg.background`: the shape of an energy is that of the pooled events of its neighbours
    (`fill_rate`), smoothed; its normalisation is set by the counts of the spectrum, given that shape.  The counts of
    each energy are conserved, not those of the offset bins: the runs of the spectrum are too few to measure these.

    Parameters
    ----------
    spectrum, shape
        Counts and exposure [s TeV sr] of both, shape ``(energy, offset)``; the shape may have further offset bins.
    edges
        Bin edges of energy [TeV] and offset [deg], of all the offset bins of the shape.
    min_counts
        Events that a pool of energies needs for a radial shape of its own.
    smoothing
        Of the shape; None: it is not smoothed.
    weights
        Mean weight of the events of both; None: 1.

    Returns
    -------
    filled
        Bin averages [s-1 TeV-1 sr-1], flags and variances, in the offset bins of the shape.

    Raises
    ------
    ValueError
        If there are no counts, or no exposure, at all.

    Examples
    --------
    >>> edges = np.array([1.0, 2.0, 4.0]), np.array([0.0, 1.0, 2.0])
    >>> few, many = (Histogram(n * np.array([[20.0, 10], [2, 1]]), np.ones((2, 2))) for n in (1, 100))
    >>> rate_of_shape(few, many, edges).value.round(3).tolist()
    [[20.0, 10.0], [2.0, 1.0]]
    """
    smoothing, weights = smoothing or Smoothing(), weights or Weights()
    counts, many = _exposed_counts(*spectrum), _exposed_counts(*shape)
    pool = fill.pooled_shape(many, shape.exposure, edges[0], min_counts)
    variance = fill.shape_variance(pool, many * column(weights.shape))
    relative, response = smooth(pool.shape, pool.expected, edges[1], smoothing, variance)
    n = counts.shape[1]
    expected = (spectrum.exposure * relative[:, :n]).sum(axis=1)
    norm = fill.normalisations(counts.sum(axis=1), expected, edges[0], weights.spectrum)
    return Filled(
        norm.value[:, None] * relative,
        pool.flag | norm.flag[:, None],
        Variance(norm.variance, variance, response, blind_errors(pool.blind)),
        pool.counts,
        np.concatenate([spectrum.exposure, shape.exposure[:, n:]], axis=1),
    )
