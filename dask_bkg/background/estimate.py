"""From stacked counts and exposure to a background rate that an interpolation can live with.

The steps, in their order: `fill_rate` (no empty bin is left; the shape may come from more runs than the spectrum),
`dask_bkg.background.smooth.smooth`,
`dask_bkg.background.nodes.node_values` (gammapy interpolates between bin centres; the values are set such that this
interpolation gives the counts back).  The error of each bin goes along (`dask_bkg.background.variance`).  Pure
arrays: energies TeV, angles deg, exposure s TeV sr, rates s-1 TeV-1 sr-1; axes ``energy``, then ``ring`` (of offset).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dask_bkg.background.fill import SHAPE_POOLED, UNSEEN, conserve, held_rings, level_of, pooled_shape, ring_variance
from dask_bkg.background.nodes import node_values
from dask_bkg.background.smooth import Smoothing, blur_response, resolution, smooth
from dask_bkg.background.variance import Variance, Weights, blind_errors, column


class Rate(NamedTuple):
    """A background rate and how each bin of it came about.

    Attributes
    ----------
    value
        Rate [s-1 TeV-1 sr-1], shape ``(energy, ring)``.
    flag
        Sum of the bits in `dask_bkg.background.fill.FLAGS`, 0 for a bin that stands on its own counts, shape
        ``(energy, ring)``.
    mean
        Averages over the bins, of which ``value`` are the nodes, shape ``(energy, ring)``; None: they are the same.
    error
        Relative statistical error of the averages, of the shape of ``value``; infinite where a bin that is not filled
        has no counts.
    level_error
        What of it is common to all bins of an energy, shape ``(energy,)``.
    resolution
        Effective resolution of the smoothing [deg] (`dask_bkg.background.smooth.resolution`), of the shape of
        ``value``.
    """

    value: NDArray
    flag: NDArray
    mean: NDArray | None = None
    error: NDArray | None = None
    level_error: NDArray | None = None
    resolution: NDArray | None = None

    @property
    def average(self) -> NDArray:
        """Averages over the bins."""
        return self.value if self.mean is None else self.mean


class Histogram(NamedTuple):
    """Events and exposure [s TeV sr] of the same bins, shape ``(energy, ring)`` or ``(energy, fov_lat, fov_lon)``."""

    counts: NDArray
    exposure: NDArray


class RateSettings(NamedTuple):
    """How a rate is made of counts and exposure; the defaults are those of the configuration.

    Attributes
    ----------
    fill
        Leave no bin empty (`fill_rate`); False: plain counts / exposure.
    min_counts
        Events that a pool of energies needs for a radial shape of its own.
    shape_sigma
        Width of the smoothing of a shape that has runs of its own [deg], where no other is asked for.
    smooth_sigma
        Width of the smoothing [deg]; 0: none.
    smooth_method
        ``field``, ``adaptive``, ``spline`` (`dask_bkg.background.smooth.smooth`) or ``to_3d`` (the procedure's way,
        `dask_bkg.background.irf.smooth`).
    smooth_bins
        The width in offset bins, which is what ``to_3d`` takes.
    smooth_counts, smooth_dof
        Counts that ``adaptive`` wants under its Gaussian, and degrees of freedom of ``spline``.
    smooth
        Whether anything is smoothed; None: if there is a width.
    own, own_counts
        What the run's own counts are used for, and what the rate of the stack counts for beside them
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
        """What is asked for; idle for ``to_3d``, which is gammapy's and not done here."""
        asked = self.smooth_sigma > 0 if self.smooth is None else self.smooth
        if not asked or self.smooth_method == "to_3d":
            return Smoothing()
        return Smoothing(self.smooth_method, self.smooth_sigma, self.smooth_counts, self.smooth_dof)

    @property
    def smoothing_of_shape(self) -> Smoothing:
        """The same of a shape that has runs of its own."""
        smoothing = self.smoothing
        return Smoothing(sigma=self.shape_sigma) if smoothing.idle and not self.through_gammapy else smoothing

    @property
    def through_gammapy(self) -> bool:
        """Whether the procedure's smoothing follows, which is gammapy's and not done here."""
        return self.smooth_method == "to_3d" and self.smooth_bins > 0


def estimate_rate(
    counts: NDArray,
    exposure: NDArray,
    edges: tuple[NDArray, NDArray],
    settings: RateSettings | None = None,
    shape: Histogram | None = None,
    weights: Weights | None = None,
) -> Rate:
    """All steps of this module, in their order; see there.

    Parameters
    ----------
    counts, exposure
        Events and exposure [s TeV sr], shape ``(energy, ring)``.
    edges
        Bin edges of energy [TeV] and offset [deg].
    settings
        What is done; smoothing through ``to_3d`` is not done here, as it is gammapy's. Where ``fill`` is False, a bin
        without exposure has the rate 0.
    shape
        Counts and exposure of the runs that the shape over the rings comes from, on the same axes or on some rings
        more (then the rate has these as well); None: the same as the spectrum.
    weights
        Mean weight of the events, which their errors need to know; None: 1.

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
        raise ValueError("conserving node values cannot go through empty bins: set fill, or node_values to 'plain'")
    smoothing = settings.smoothing
    if settings.fill and shape is not None and shape.counts.any():
        spectrum, smoothing = Histogram(counts, exposure), settings.smoothing_of_shape
        made = _made_of_shape(spectrum, shape, edges, settings.min_counts, smoothing, weights)
        exposure = continue_rings(exposure, shape.exposure)
    else:
        make = _filled if settings.fill else _plain
        made = _smoothed(
            make(counts, exposure, edges[0], settings.min_counts, weights), exposure, edges[1], smoothing
        )
    variance = made.variance
    if settings.through_gammapy:
        blur = blur_response(made.value, edges[1], settings.smooth_sigma)
        variance = variance._replace(response=blur @ variance.response)
    rate = made.rate(variance, exposure)
    width = np.zeros(made.value.shape)
    if not smoothing.idle or settings.through_gammapy:
        width = resolution(variance.response, made.behind, edges[1])
    rate = rate._replace(resolution=width)
    if settings.node_values == "plain":
        return rate
    return rate._replace(value=node_values(made.value, exposure, *edges), mean=made.value)


class _Made(NamedTuple):
    """A rate in the making: bin averages, flags, the parts of their variance, and the counts behind the shape."""

    value: NDArray
    flag: NDArray
    variance: Variance
    behind: NDArray

    def rate(self, variance: Variance, exposure: NDArray) -> Rate:
        """What can be told of it."""
        error = np.where(self.value > 0, variance.errors(self.value * exposure), np.inf)
        return Rate(self.value, self.flag, None, error, np.sqrt(variance.level))


def _plain(counts: NDArray, exposure: NDArray, energy_edges: ArrayLike, min_counts: float, weights: Weights) -> _Made:
    """Counts / exposure with zeros where there are none; takes what `_filled` takes."""
    # a file has no place for "not known"; a NaN of a filled rate would be a fault, and is not to be hidden
    value = np.nan_to_num(plain_rate(counts, exposure), posinf=0.0)
    seen = np.where(exposure > 0, counts, 0.0)
    level = weights.spectrum / np.maximum(seen.sum(axis=1), UNSEEN)
    ring = column(weights.spectrum) / np.maximum(seen, UNSEEN)
    return _Made(value, np.zeros(counts.shape, dtype=int), Variance(level, ring, _alone(ring), 0 * ring), seen)


def _alone(values: NDArray) -> NDArray:
    """Response of rings that do not know of each other."""
    return np.broadcast_to(np.eye(values.shape[1]), (*values.shape, values.shape[1]))


def _smoothed(made: _Made, exposure: NDArray, offset_edges: NDArray, smoothing: Smoothing) -> _Made:
    """A rate, smoothed by its counts."""
    if smoothing.idle:
        return made
    value, response = smooth(made.value, exposure, offset_edges, smoothing, made.variance.ring)
    variance = made.variance._replace(response=response @ made.variance.response)
    return _Made(value, made.flag, variance, made.value * exposure)


def plain_rate(counts: NDArray, exposure: NDArray) -> NDArray:
    """Counts / exposure, as the procedure has it: NaN in a bin without exposure, 0 in one without counts."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return counts / exposure


def fill_rate(
    counts: NDArray,
    exposure: NDArray,
    energy_edges: ArrayLike,
    min_counts: float = 500,
    weights: Weights | None = None,
) -> Rate:
    """Rate without empty bins; counts conserved from the first energy that has any.

    The radial shape of an energy is pooled with that of its neighbours in ln E, just wide enough for ``min_counts``;
    the level of each energy follows from its own counts, those above the peak pooled to ten; then rings and energies
    are scaled in turn until both have their counts.

    What is added to the counts: each energy below the first one that has any gets a rate worth at most `UNSEEN`
    events, spread over its rings (for four empty energies, as in the default binning: 4 % of the counts of a run of
    30 events, 1 % of 100, nothing to speak of above; more for more of them).  An empty bin, ring or energy from there
    on takes its share from the counts of its neighbours.  Events of bins without exposure are left out, as no rate
    can account for them.

    Parameters
    ----------
    counts, exposure
        Events and exposure [s TeV sr], shape ``(energy, ring)``.
    energy_edges
        Bin edges [TeV], shape ``(energy + 1,)``.
    min_counts
        Events that a pool needs for a radial shape of its own.
    weights
        Mean weight of the events; None: 1.

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
    made = _filled(counts, exposure, energy_edges, min_counts, weights or Weights())
    return made.rate(made.variance, exposure)


def _filled(
    counts: NDArray, exposure: NDArray, energy_edges: ArrayLike, min_counts: float, weights: Weights
) -> _Made:
    """`fill_rate`, and the parts of the variance."""
    counts = np.where(exposure > 0, counts, 0.0)
    if not counts.sum() > 0:
        raise ValueError("no counts in the binning, or no exposure: nothing to make a rate of")
    pool = pooled_shape(counts, exposure, energy_edges, min_counts)
    level = level_of(counts.sum(axis=1), (exposure * pool.shape).sum(axis=1), energy_edges, weights.spectrum)
    flag = pool.flag | level.flag[:, None]
    pooled = (flag & SHAPE_POOLED).any(axis=1)
    value = conserve(level.value[:, None] * pool.shape, counts, exposure, pooled)
    squares = counts * column(weights.spectrum)
    ring = ring_variance(pool, squares, held_rings(pool, value * exposure, counts, pooled))
    return _Made(value, flag, Variance(level.variance, ring, _alone(ring), blind_errors(pool.blind)), counts)


def rate_of_shape(
    spectrum: Histogram,
    shape: Histogram,
    edges: tuple[NDArray, NDArray],
    min_counts: float = 500,
    smoothing: Smoothing | None = None,
    weights: Weights | None = None,
) -> Rate:
    """Rate with the shape over the rings of some runs, and the level of each energy of others.

    Steps 4 and 5 of `dask_bkg.background`: the shape of an energy is that of the pooled events of its
    neighbours (`fill_rate`), smoothed; its level is what the counts of the spectrum ask for, given that shape.  The
    counts of each energy are conserved, not those of the rings: the spectrum's runs are few, and do not know better.

    Parameters
    ----------
    spectrum, shape
        Counts and exposure [s TeV sr] of both; the shape may have some rings more.
    edges
        Bin edges of energy [TeV] and offset [deg], of all the rings of the shape.
    min_counts
        Events that a pool of energies needs for a radial shape of its own.
    smoothing
        Of the shape; None: it is not smoothed.
    weights
        Mean weight of the events of both; None: 1.

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
    made = _made_of_shape(spectrum, shape, edges, min_counts, smoothing or Smoothing(), weights or Weights())
    return made.rate(made.variance, continue_rings(spectrum.exposure, shape.exposure))


def _made_of_shape(
    spectrum: Histogram,
    shape: Histogram,
    edges: tuple[NDArray, NDArray],
    min_counts: float,
    smoothing: Smoothing,
    weights: Weights,
) -> _Made:
    """`rate_of_shape`, and the parts of the variance."""
    counts = np.where(spectrum.exposure > 0, spectrum.counts, 0.0)
    many = np.where(shape.exposure > 0, shape.counts, 0.0)
    if not (counts.sum() > 0 and many.sum() > 0):
        raise ValueError("no counts in the binning, or no exposure: nothing to make a rate of")
    pool = pooled_shape(many, shape.exposure, edges[0], min_counts)
    ring = ring_variance(pool, many * column(weights.shape))
    relative, response = smooth(pool.shape, pool.expected, edges[1], smoothing, ring)
    seen = (spectrum.exposure * relative[:, : counts.shape[1]]).sum(axis=1)
    level = level_of(counts.sum(axis=1), seen, edges[0], weights.spectrum)
    variance = Variance(level.variance, ring, response, blind_errors(pool.blind))
    return _Made(level.value[:, None] * relative, pool.flag | level.flag[:, None], variance, pool.counts)


def continue_rings(rings: NDArray, more: NDArray) -> NDArray:
    """Rings, shape ``(energy, ring)``, and behind them what another array has of those beyond."""
    return np.concatenate([rings, more[:, rings.shape[1] :]], axis=1)
