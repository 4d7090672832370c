"""Arrays to gammapy's backgrounds, 2D and 3D: axes, units, and the procedure's smoothing."""

from __future__ import annotations

import numpy as np
import xarray as xr
from gammapy.irf import Background2D, Background3D
from gammapy.maps import MapAxis
from numpy.typing import NDArray

from dask_bkg import schema
from dask_bkg.background.estimate import RateSettings, estimate_rate
from dask_bkg.binning import ALIGNMENTS, Edges, FieldEdges

RATE_UNIT = "s-1 TeV-1 sr-1"


def axes_of(edges: Edges | FieldEdges) -> list[MapAxis]:
    """gammapy's axes of bin edges [TeV], [deg]: ``energy`` (log), and ``offset`` or ``fov_lon`` and ``fov_lat``."""  # noqa: D403
    angles = {"offset": edges.offset} if isinstance(edges, Edges) else {"fov_lon": edges.fov, "fov_lat": edges.fov}
    return [
        MapAxis.from_energy_edges(edges.energy, unit="TeV", name="energy"),
        *(MapAxis.from_edges(edge, unit="deg", name=name, interp="lin") for name, edge in angles.items()),
    ]


def background_2d(rate: NDArray, edges: Edges) -> Background2D:
    """`~gammapy.irf.Background2D` of node values [s-1 TeV-1 sr-1], shape ``(energy, offset)``."""
    return Background2D(
        axes=axes_of(edges), data=np.array(rate, dtype=float), unit=RATE_UNIT, meta={"FOVALIGN": "RADEC"}
    )


def background_3d(rate: NDArray, edges: FieldEdges, alignment: str) -> Background3D:
    """`~gammapy.irf.Background3D` of node values in pixels of the field.

    Parameters
    ----------
    rate
        Node values [s-1 TeV-1 sr-1], shape ``(energy, fov_lat, fov_lon)``; gammapy has the last two axes swapped.
    edges
        Edges [TeV], [deg].
    alignment
        Frame of the field, ``radec`` or ``altaz``.

    Raises
    ------
    ValueError
        If there is no such frame.

    Examples
    --------
    >>> edges = FieldEdges(np.geomspace(0.5, 10, 5), np.linspace(-2, 2, 9))
    >>> background = background_3d(np.ones(edges.shape), edges, "altaz")
    >>> background.axes.names, background.fov_alignment.value
    (['energy', 'fov_lon', 'fov_lat'], 'ALTAZ')
    """
    if alignment.lower() not in ALIGNMENTS:
        raise ValueError(f"alignment {alignment!r} of the field: accepted are {' and '.join(map(repr, ALIGNMENTS))}")
    return Background3D(
        axes=axes_of(edges),
        data=np.swapaxes(np.array(rate, dtype=float), 1, 2),
        unit=RATE_UNIT,
        fov_alignment=alignment.upper(),
        meta={"FOVALIGN": alignment.upper()},
    )


def rate_to_background(
    counts: NDArray, exposure: NDArray, edges: Edges, settings: RateSettings
) -> tuple[Background2D, NDArray]:
    """Background from counts and exposure [s TeV sr], shape ``(energy, offset)``, and the flag of each bin."""
    rate = estimate_rate(counts, exposure, (edges.energy, edges.offset), settings)
    return background_2d(smooth_as_set(rate.value, edges, settings), edges), rate.flag


def smooth_as_set(value: NDArray, edges: Edges, settings: RateSettings) -> NDArray:
    """A rate [s-1 TeV-1 sr-1], smoothed by `smooth` if the settings ask for ``to_3d``; shape ``(energy, offset)``."""
    if not settings.through_gammapy:
        return value
    return smooth(background_2d(value, edges), settings.smooth_bins).data


def to_background(dataset: xr.Dataset, settings: RateSettings | None = None) -> Background2D:
    """Background of a reduced run or a stack of runs.

    Parameters
    ----------
    dataset
        ``counts`` and ``exposure`` with dimensions ``(energy, offset)``; several runs (``obs_id``) are added up.
    settings
        How the rate is estimated; the defaults fill empty bins and conserve counts.

    Returns
    -------
    background
        `~gammapy.irf.Background2D`, ready for ``Observation.bkg``.

    Raises
    ------
    ValueError
        If the dataset is not one of run histograms, or has no counts or no exposure.

    Examples
    --------
    >>> edges = schema.Edges(np.geomspace(0.5, 10, 5), np.linspace(0, 2, 3))
    >>> run = schema.run_dataset(np.full((4, 2), 100.0), np.full((4, 2), 50.0), edges, {})
    >>> to_background(run).data.shape
    (4, 2)
    """
    schema.check(dataset)
    histograms = dataset[list(schema.HISTOGRAMS)]
    if "obs_id" in dataset.dims:
        histograms = histograms.sum("obs_id")
    counts, exposure = (np.asarray(histograms[name].values, dtype=float) for name in schema.HISTOGRAMS)
    return rate_to_background(counts, exposure, schema.edges_of(dataset), settings or RateSettings())[0]


def smooth(bkg: Background2D, sigma: float = 1) -> Background2D:
    """Smooth a background the procedure's way: 2D to 3D, Gaussian filter at each energy, back to 2D.

    As gammapy-tools does it; it changes the rate of an unsmoothed model by -5 % in the centre to +18 % at the edge
    with 10 offset bins.  The default of the configuration is `dask_bkg.background.smooth.smooth_rings`.

    Parameters
    ----------
    bkg
        Background with an offset axis that starts at 0.
    sigma
        Width of the Gaussian, in offset bins.

    Raises
    ------
    ValueError
        If the offset axis does not start at 0 (gammapy's ``to_2d`` reads the rate at the centre), or ``sigma`` is
        negative.
    """
    from scipy.ndimage import gaussian_filter

    off_min = bkg.axes["offset"].edges[0].to_value("deg")
    if off_min > 0:
        raise ValueError(
            f"smooth: the offset axis must start at 0 deg, got binning.off_min = {off_min:g} deg; set off_min to 0, "
            "or take model.smooth_method: field"
        )
    if sigma < 0:
        raise ValueError(f"smooth_sigma: a width must not be negative, got {sigma}")
    cube = bkg.to_3d()
    data = np.stack([gaussian_filter(plane, sigma, 0) for plane in cube.data])
    cube = type(cube)(axes=cube.axes, data=data, unit=cube.unit, meta=bkg.meta)
    flat = cube.to_2d()
    return Background2D(axes=bkg.axes, data=flat.data, unit=flat.unit, meta=bkg.meta)
