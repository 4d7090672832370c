"""The picture of the backgrounds that a job made: spectra, and how they fall off or tilt across the field of view."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from dask_bkg.report import averages
from dask_bkg.report.averages import circle_means, evenly, mean_of_known, positive, three_energies
from dask_bkg.report.curves import OWN, STACKED, TRUTH

SHOWN_RUNS = 2000
"""Most runs of which spectra and profiles are read: enough for percentiles."""

FEW_RUNS = 12
"""Up to so many each is a line of its own."""

BARS = 60
"""Up to so many runs hours and events are bars, of more they are points."""

DECADES = 6
"""Most decades of a spectrum: far below its top there are but guesses."""

CUT = 0.3
"""Half width of the strips of the field of which cuts are made [deg]."""

_COLORS = ("#0c2c84", "#1d91c0", "#7fcdbb")
_GREY = "#d9d9d9"
_GREY_MEANS = "grey: zero\nor unknown"
_E2_RATE = r"energy$^2$ x rate [TeV s$^{-1}$ sr$^{-1}$]"
_RELATIVE = "rate / mean over the field"
_LABELS = {
    "altaz": ("fov_lon [deg]  (towards falling azimuth)", "fov_lat [deg]  (towards the zenith)"),
    "radec": ("fov_lon [deg]  (towards falling RA)", "fov_lat [deg]  (towards north)"),
}


class RingBackgrounds(NamedTuple):
    """2D backgrounds of a job, for `plot_backgrounds`.

    Attributes
    ----------
    rate
        Rates [s-1 TeV-1 sr-1] of some or all runs, shape ``(shown, energy, offset)``.
    energy, offset
        Bin edges [TeV], [deg].
    obs_id
        Numbers of all runs that got a background, shape ``(runs,)``.
    hours, n_events
        Livetime [h] and events that were used for each, shape ``(runs,)``.
    """

    rate: NDArray
    energy: NDArray
    offset: NDArray
    obs_id: NDArray
    hours: NDArray
    n_events: NDArray


class FieldBackground(NamedTuple):
    """A 3D background, and what is known of the others of its job, for `plot_backgrounds`.

    Attributes
    ----------
    rate
        Rate [s-1 TeV-1 sr-1] of one run, shape ``(energy, fov_lat, fov_lon)``.
    energy, fov
        Bin edges [TeV] and, the same along both sides of the field, [deg].
    alignment
        ``altaz`` or ``radec``.
    shown
        Number of the run.
    obs_id, hours, n_events
        As for `RingBackgrounds`.
    """

    rate: NDArray
    energy: NDArray
    fov: NDArray
    alignment: str
    shown: int
    obs_id: NDArray
    hours: NDArray
    n_events: NDArray


def plot_backgrounds(path: str | Path, made: RingBackgrounds | FieldBackground, title: str = "") -> None:
    """Picture of what a job made; zeros and NaN in the rates are left out where they cannot be shown.

    Parameters
    ----------
    path
        Where it goes; the suffix is the format.
    made
        The backgrounds.  Of 2D ones spectra and radial profiles are shown, of more than `FEW_RUNS` runs as bands; of
        a 3D one the fields at three energies, relative to the mean at the same offset.
    title
        Line above; by default the number of runs.

    Raises
    ------
    ValueError
        If the shapes do not belong together, or the alignment is neither ``altaz`` nor ``radec``.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> energy, offset = np.geomspace(0.1, 10, 5), np.linspace(0, 2, 4)
    >>> used = np.array([7, 8]), np.array([3.0, 2.5]), np.array([9000, 8000])
    >>> made = RingBackgrounds(np.ones((2, 4, 3)), energy, offset, *used)
    >>> with TemporaryDirectory() as directory:
    ...     plot_backgrounds(f"{directory}/backgrounds.png", made)
    """
    figure = Figure(figsize=(12.5, 7.8), layout="constrained")
    n = len(made.obs_id)
    runs = f"backgrounds of {n} run{'s' * (n != 1)}"
    if isinstance(made, RingBackgrounds):
        _check_shape(made, ("shown", made.energy.size - 1, made.offset.size - 1))
        figure.suptitle(title or f"2D {runs}", fontsize=12)
        _draw_rings(figure, made._replace(rate=_known(made.rate[evenly(len(made.rate), SHOWN_RUNS)])))
    else:
        _check_shape(made, (made.energy.size - 1, made.fov.size - 1, made.fov.size - 1))
        figure.suptitle(title or f"3D {runs}; shown is that of run {made.shown}", fontsize=12)
        _draw_field(figure, made._replace(rate=_known(made.rate)))
    figure.savefig(path, dpi=110)


def _check_shape(made: RingBackgrounds | FieldBackground, expected: tuple) -> None:
    shape = made.rate.shape
    if len(shape) != 3 or any(n != m for n, m in zip(shape, expected, strict=True) if m != "shown"):
        raise ValueError(f"rate has shape {shape}, its edges say {expected}")
    if not np.shape(made.obs_id) == np.shape(made.hours) == np.shape(made.n_events):
        raise ValueError("obs_id, hours and n_events must have the same shape, (runs,)")
    if isinstance(made, FieldBackground) and made.alignment not in _LABELS:
        raise ValueError(f"alignment must be one of {', '.join(_LABELS)}, got {made.alignment!r}")


def _known(rate: NDArray) -> NDArray:
    return np.where(np.isfinite(rate), rate, np.nan)


def _centers(edges: NDArray) -> NDArray:
    return (edges[1:] + edges[:-1]) / 2


# -- rings ---------------------------------------------------------------------------------------------------------


def _draw_rings(figure: Figure, made: RingBackgrounds) -> None:
    (spectra, profiles), (hours, events) = figure.subplots(2, 2, gridspec_kw={"height_ratios": (1.7, 1)})
    _draw_spectra(spectra, made.rate, made.energy, _centers(made.offset))
    _draw_profiles(profiles, made)
    _draw_used(hours, made.obs_id, made.hours, "hours used")
    _draw_used(events, made.obs_id, made.n_events, "events used")


def _draw_spectra(axes, rate: NDArray, energy_edges: NDArray, offset: NDArray) -> None:
    """Spectra times E^2 at the first, middle and last offset; ``rate`` has the axes run, energy, offset."""
    axes.set(xscale="log", title="spectrum" + _meaning(len(rate)), xlabel="energy [TeV]", ylabel=_E2_RATE)
    axes.set_yscale("log", nonpositive="mask")
    energy, medians = np.sqrt(energy_edges[1:] * energy_edges[:-1]), []
    there = np.flatnonzero(np.nan_to_num(rate).any(axis=(0, 1)))
    for ring, color in zip(there[evenly(there.size, 3)], _COLORS, strict=False):
        values = rate[:, :, ring] * energy**2
        medians.append(_draw_runs(axes, energy, values, color, f"{offset[ring]:.2f} deg"))
    axes.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_formatter=NullFormatter())
    axes.set_xlim(energy_edges[0], energy_edges[-1])
    values = np.array(medians)
    known = values[values > 0]
    top = known.max() if known.size else 1.0
    axes.set_ylim(max(known.min(initial=top) / 3, top * 10.0**-DECADES), top * 3)
    _legend(axes)


def _draw_profiles(axes, made: RingBackgrounds) -> None:
    """Radial profiles at three energies, relative to the mean over the field."""
    area, top = -np.diff(np.cos(np.deg2rad(made.offset))), 1.0
    for i, color in zip(three_energies(made.rate, made.energy, area), _COLORS, strict=False):
        relative = made.rate[:, i] / positive(mean_of_known(made.rate[:, i], area))[:, None]
        median = _draw_runs(axes, _centers(made.offset), relative, color, _energy_label(made.energy, i))
        top = max(top, median.max(initial=0.0, where=np.isfinite(median)))
    axes.set(title="radial profile" + _meaning(len(made.rate)), xlabel="offset [deg]", ylabel=_RELATIVE)
    # where there are few events a band is very wide
    axes.set(xlim=(0, made.offset[-1]), ylim=(0, min(axes.get_ylim()[1], 3 * top)))
    _legend(axes)


def _draw_runs(axes, x: NDArray, values: NDArray, color: str, label: str) -> NDArray:
    """Lines of few runs, or the median and a band of many; returns the median, shape ``(x,)``."""
    low, median, high = averages.percentiles(values)
    if len(values) > FEW_RUNS:
        # a logarithmic axis has no zero: a band that reaches down to it goes far down
        low, high = np.maximum((low, high), 1e-30 * max(high.max(initial=0.0, where=np.isfinite(high)), 1e-30))
        axes.fill_between(x, low, high, color=color, alpha=0.22, lw=0)
    elif len(values) > 1:
        axes.plot(x, values.T, color=color, lw=0.7, alpha=0.6)
    axes.plot(x, median, ".-", color=color, lw=1.6, ms=5, label=label)
    return median


def _meaning(n: int) -> str:
    if n <= FEW_RUNS:
        return "" if n < 2 else ": each run, and their median"
    return ": median and 90 % of the runs"


def _energy_label(edges: NDArray, i: int) -> str:
    return f"{np.sqrt(edges[i] * edges[i + 1]):.2g} TeV"


def _legend(axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


# -- field ---------------------------------------------------------------------------------------------------------


def _draw_field(figure: Figure, made: FieldBackground) -> None:
    rows: list = [["first", "second", "third"], ["spectrum", "cuts", "hours"], ["spectrum", "cuts", "events"]]
    panels = figure.subplot_mosaic(rows, height_ratios=(2.7, 1, 1))
    flat = made.rate.reshape(1, len(made.rate), -1)
    energies = three_energies(flat, made.energy, np.ones(flat.shape[2]))
    for name in rows[0][len(energies) :]:
        panels[name].set_axis_off()
    _draw_planes(figure, [panels[name] for name in rows[0][: len(energies)]], made, energies)
    offset, means = circle_means(made.rate, _centers(made.fov))
    whole = offset <= made.fov[-1]  # whole circles
    _draw_spectra(panels["spectrum"], means[None, :, whole], made.energy, offset[whole])
    _draw_cuts(panels["cuts"], made, energies[energies.size // 2])
    _draw_used(panels["hours"], made.obs_id, made.hours, "hours used", made.shown)
    _draw_used(panels["events"], made.obs_id, made.n_events, "events used", made.shown)


def _draw_planes(figure: Figure, panels: list, made: FieldBackground, energies: NDArray) -> None:
    """Fields at some energies relative to their mean at the same offset, on one scale."""
    ratios = averages.relative_to_circle(made.rate[energies], _centers(made.fov))
    span, (lon, lat) = _span(ratios), _LABELS[made.alignment]
    norm = LogNorm(1 / span, span)
    for axes, i, ratio in zip(panels, energies, ratios, strict=True):
        axes.add_patch(Circle((0, 0), made.fov[-1], color=_GREY, lw=0))
        mesh = axes.pcolormesh(made.fov, made.fov, np.ma.masked_invalid(ratio), cmap="RdBu_r", norm=norm)
        mesh.set_clip_path(axes.add_patch(Circle((0, 0), made.fov[-1], fill=False, color=TRUTH, lw=0.8, ls=":")))
        inside = averages.squared_offsets(_centers(made.fov)) < made.fov[-1] ** 2
        if np.isnan(ratio[inside]).any():
            axes.text(0.02, 0.02, _GREY_MEANS, transform=axes.transAxes, fontsize=7.5, color="#666666")
        axes.set(aspect="equal", xlabel=lon, title=_energy_label(made.energy, i))
    panels[0].set_ylabel(lat)
    ticks = np.geomspace(1 / span, span, 7)
    bar = figure.colorbar(mesh, ax=panels, extend="both", pad=0.01, fraction=0.03, ticks=ticks, format="%.2f")
    bar.minorticks_off()
    bar.set_label("rate / mean at equal offset")
    bar.outline.set_visible(False)


def _span(ratios: NDArray) -> float:
    """Factor from 1.05 to 5 up and down, into which nearly all values of the middle one of three fields fit."""
    logs = [np.abs(np.log(ratio[np.isfinite(ratio)])) for ratio in ratios]
    spans = [np.percentile(values, 98) for values in logs if values.size]
    return float(np.clip(np.exp(np.median(spans)), 1.05, 5.0)) if spans else 2.0


def _draw_cuts(axes, made: FieldBackground, i: int) -> None:
    """The field along its two axes at one energy, mean of the pixels within `CUT` of them."""
    center, plane = _centers(made.fov), made.rate[i]
    near = np.abs(center) <= max(CUT, np.abs(center).min() + 1e-9)
    mean = positive(mean_of_known(plane.ravel()))
    for cut, color, label in ((plane[:, near], _COLORS[0], "fov_lat"), (plane[near].T, OWN, "fov_lon")):
        axes.plot(center, mean_of_known(cut) / mean, ".-", color=color, lw=1.6, ms=5, label=f"along {label}")
    axes.axvline(0, color=TRUTH, lw=0.8, ls=":")
    axes.set(title=f"cuts at {_energy_label(made.energy, i)}", xlabel="position [deg]", ylabel=_RELATIVE)
    axes.set(xlim=(made.fov[0], made.fov[-1]), ylim=(0, None))
    _legend(axes)


# -- what they are made of -----------------------------------------------------------------------------------------


def _draw_used(axes, obs_id: NDArray, values: NDArray, title: str, shown: int | None = None) -> None:
    """A number of each run, in the order of run numbers; that of the run which is shown in another colour."""
    order = np.argsort(obs_id)
    obs_id, values, places = np.asarray(obs_id)[order], np.asarray(values, dtype=float)[order], np.arange(order.size)
    colors = np.where(obs_id == shown, OWN, STACKED)
    if order.size <= BARS:
        axes.bar(places, values, color=colors, width=0.7)
    else:
        axes.scatter(places, values, s=6 if order.size <= 1000 else 1, c=colors, lw=0)
    # of seven to twenty runs six would not be evenly spread, and two of the numbers would touch
    ticks = evenly(order.size, 4 if 6 < order.size <= 20 else 6)
    axes.set_xticks(ticks, obs_id[ticks].astype(str))
    # a single bar must not be a wall
    middle, half = (order.size - 1) / 2, 0.51 * max(order.size, 5)
    axes.set(title=title, xlabel="run", xlim=(middle - half, middle + half))
    axes.set_ylim(0, None if (values > 0).any() else 1)
    if (values >= 1000).any():
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
