"""Curves and fields of events, and the picture of the demo that is made of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import NDArray

from dask_bkg.sky.exclusion import SkyRegions
from dask_bkg.sky.fov import to_fov

TRUTH, OWN, STACKED = "#222222", "#d95f02", "#1b75bc"

RATE = r"rate [s$^{-1}$ TeV$^{-1}$ sr$^{-1}$]"


class Curve(NamedTuple):
    """Values with errors at positions, and how to draw them."""

    label: str
    x: NDArray
    y: NDArray
    error: NDArray | None
    color: str


class Field(NamedTuple):
    """Events of a run and what is excluded, for `plot_field`; positions [deg]."""

    title: str
    ra: NDArray
    dec: NDArray
    ra_pnt: float
    dec_pnt: float
    offset_max: float
    regions: SkyRegions


def plot_field(axes, field: Field) -> None:
    """Events of one run in the field of view, with the excluded regions and the edge of the model."""
    lon, lat = to_fov(field.ra, field.dec, field.ra_pnt, field.dec_pnt)
    size = field.offset_max * 1.1
    image, x_edges, y_edges = np.histogram2d(lon, lat, bins=60, range=[[-size, size], [-size, size]])
    # a bright source must not make the field invisible
    top = max(float(np.percentile(image, 99.5)), 1.0)
    axes.pcolormesh(x_edges, y_edges, image.T, cmap="GnBu", vmax=top)
    lon, lat = to_fov(field.regions.ra, field.regions.dec, field.ra_pnt, field.dec_pnt)
    for x, y, radius in zip(lon, lat, field.regions.radius, strict=True):
        axes.add_patch(Circle((x, y), radius, fill=False, color=OWN, lw=1.3))
    axes.add_patch(Circle((0, 0), field.offset_max, fill=False, color=TRUTH, lw=0.8, ls=":"))
    axes.set(xlim=(-size, size), ylim=(-size, size), aspect="equal", title=field.title)
    axes.set(xlabel="fov_lon [deg]", ylabel="fov_lat [deg]")


def plot_curves(axes, curves: Iterable[Curve], **settings) -> None:
    """Curves with error bars over a line for the truth; keywords go to ``axes.set``."""
    for curve in curves:
        if curve.error is None:
            axes.plot(curve.x, curve.y, color=curve.color, lw=1.5, label=curve.label)
        else:
            axes.errorbar(curve.x, curve.y, curve.error, fmt="o", ms=3.5, lw=1, color=curve.color, label=curve.label)
    axes.set(**settings)
    axes.legend(frameon=False, fontsize=8)


def plot_demo(
    path: str | Path, field: Field, spectrum: list[Curve], profile: list[Curve], ratio: list[Curve], title: str
) -> None:
    """The picture of the demo: a field, spectrum and radial profile over the truth, and every run's ratio to it."""
    figure = Figure(figsize=(12.5, 7.2), layout="constrained")
    (top_left, top_right), (low_left, low_right) = figure.subplots(2, 2)
    plot_field(top_left, field)
    logarithmic = {"xscale": "log", "yscale": "log"}
    plot_curves(top_right, spectrum, **logarithmic, xlabel="energy [TeV]", ylabel=RATE, title="spectrum at 0.75 deg")
    plot_curves(low_left, profile, xlabel="offset [deg]", ylabel="relative to the truth", title="radial profile")
    low_left.axhline(1, color=TRUTH, lw=1)
    labels = {"xlabel": "zenith angle [deg]", "ylabel": "background made / truth"}
    plot_curves(low_right, ratio, **labels, title="every run of the archive")
    low_right.axhline(1, color=TRUTH, lw=1)
    figure.suptitle(title, fontsize=12)
    figure.savefig(path, dpi=110)


def relative_error(counts: NDArray) -> NDArray:
    """Statistical error of a rate, relative: 1 / sqrt(counts), 1 for an empty bin."""
    return 1 / np.sqrt(np.maximum(counts, 1))
