"""Pictures of a validation, for its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import NDArray

from dask_bkg.report.curves import OWN, STACKED, TRUTH
from dask_bkg.validation.flags import WRONG

GREY = "#9aa0a6"
COLORS = (STACKED, OWN)
"""Of the validation, and of what it is compared with."""

BANDS = ("#3b4cc0", "#6f92f3", "#b0a080", "#e36a53", "#a01020", "#5d0f6b", "#20756b", "#777777")
"""Of energy bands, from low to high."""

MOST_POINTS = 4000
"""Runs that a picture shows; of more evenly spread ones."""

SHOWN = 5.0
"""Range of a residual field, in standard deviations."""


def draw_significances(sums: Sequence[Any], names: Sequence[str], told: Sequence[Mapping[str, Any]]) -> Figure:
    """Histogram of the significances over the unit normal and over what Poisson statistics expect."""
    figure = Figure(figsize=(6.2, 4.1), layout="constrained")
    axes = figure.subplots()
    for part, name, color, summary in zip(sums, names, COLORS, told, strict=False):
        s, n = part["significance"].values, part["significances"].values
        width = summary["significance"]["norm"].get("width", {"value": np.nan})
        axes.stairs(n, _edges(s), color=color, lw=1.8, label=f"{name}: width {width['value']:.3f}")
    s, n = sums[0]["significance"].values, sums[0]["expected_significances"].values
    axes.stairs(n, _edges(s), color=TRUTH, lw=1, ls=":", label="Poisson expectation")
    normal = n.sum() * (s[1] - s[0]) * np.exp(-0.5 * s**2) / np.sqrt(2 * np.pi)
    axes.plot(s, normal, color=GREY, lw=1.2, label="unit normal")
    top = max(float(part["significances"].values.max()) for part in sums)
    axes.set(yscale="log", ylim=(0.5, 4 * max(top, 1)), xlim=(-8, 8), xlabel="significance", ylabel="cells")
    _plain(axes)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def draw_fields(sums: Any, alignment: str, off_max: float) -> Figure:
    """Residual fields by band: how many standard deviations the sum over all runs is away, in each pixel."""
    counts, predicted = sums["counts"].values, sums["predicted"].values
    n = len(counts)
    figure = Figure(figsize=(2.55 * n + 0.8, 2.95), layout="constrained")
    panels = figure.subplots(1, n, squeeze=False)[0]
    pixel = _edges(sums["fov_lon"].values)
    for i, axes in enumerate(panels):
        there = predicted[i] > 0
        pull = np.where(there, (counts[i] - predicted[i]) / np.sqrt(np.where(there, predicted[i], 1.0)), np.nan)
        mesh = axes.pcolormesh(pixel, pixel, pull, cmap="RdBu_r", norm=Normalize(-SHOWN, SHOWN))
        axes.add_patch(Circle((0, 0), off_max, fill=False, color=TRUTH, lw=0.7, ls=":"))
        limits = sums["band_min"].values[i], sums["band_max"].values[i]
        axes.set_title(_band(*limits), fontsize=9)
        axes.set(aspect="equal", xlim=(-off_max * 1.06, off_max * 1.06), ylim=(-off_max * 1.06, off_max * 1.06))
        axes.tick_params(labelsize=7.5, labelleft=i == 0)
        axes.set_xlabel("fov_lon [deg]", fontsize=8)
    panels[0].set_ylabel("fov_lat [deg], " + ("zenith up" if alignment == "altaz" else "north up"), fontsize=8)
    bar = figure.colorbar(mesh, ax=list(panels), pad=0.01, fraction=0.03, extend="both")
    bar.set_label("standard deviations", fontsize=8)
    bar.outline.set_visible(False)
    return figure


def draw_profiles(runs: Any, names: Sequence[str], others: Sequence[Any] = ()) -> Figure:
    """Observed over predicted counts by ring, for each band."""
    every = [runs, *others]
    figure = Figure(figsize=(6.2, 4.1), layout="constrained")
    axes = figure.subplots()
    counts, predicted = runs["profile"].values.sum(axis=0)
    center = (runs["ring_min"].values + runs["ring_max"].values) / 2
    for i in range(len(counts)):
        label = _band(runs["band_min"].values[i], runs["band_max"].values[i])
        _draw_ratio(
            axes, center + 0.012 * (i - len(counts) / 2), counts[i], predicted[i], BANDS[i % len(BANDS)], label
        )
    if len(every) > 1:
        counts, predicted = every[1]["profile"].values.sum(axis=(0, 2))
        _draw_ratio(axes, center, counts, predicted, TRUTH, f"{names[1]}, all bands", ls="--")
    axes.axhline(1, color=GREY, lw=1)
    axes.set(xlabel="offset [deg]", ylabel="observed / predicted (norm)", xlim=(0, runs["ring_max"].values[-1]))
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.35 * (high - low), high)
    _plain(axes)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower center")
    return figure


def _draw_ratio(axes, x: NDArray, counts: NDArray, predicted: NDArray, color: str, label: str, ls: str = "-") -> None:
    there = predicted > 0
    value = np.divide(counts, predicted, out=np.full(counts.shape, np.nan), where=there)
    error = np.divide(np.sqrt(counts), predicted, out=np.full(counts.shape, np.nan), where=there)
    axes.errorbar(x, value, error, fmt="o", ls=ls, ms=3.2, lw=1.1, color=color, label=label)


def draw_slopes(told: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Figure:
    """Residual slopes towards the zenith and to the side of it, by band."""
    figure = Figure(figsize=(6.2, 4.1), layout="constrained")
    axes = figure.subplots()
    for j, (summary, name, color) in enumerate(zip(told, names, COLORS, strict=False)):
        bands = summary["bands"]
        x = np.array([np.sqrt(np.prod(band["energy"])) for band in bands]) * (1 + 0.06 * j)
        for direction, marker, fill in (("zenithward", "o", color), ("sideward", "s", "white")):
            value, error = (np.array([band[direction][key] for band in bands]) for key in ("value", "error"))
            axes.errorbar(
                x, 100 * value, 100 * error, fmt=marker, ms=5, mfc=fill, lw=1.2, color=color,
                label=f"{name}: {direction}",
            )  # fmt: skip
    axes.axhline(0, color=GREY, lw=1)
    axes.set(xscale="log", xlabel="energy [TeV]", ylabel="residual slope [% / deg]")
    axes.xaxis.set_major_formatter("{x:g}")
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.25 * (high - low), high)
    _plain(axes)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower center")
    return figure


def draw_runs(columns: Mapping[str, NDArray]) -> Figure:
    """Predicted over observed counts of each run."""
    chosen = np.unique(np.linspace(0, columns["obs_id"].size - 1, MOST_POINTS).round().astype(int))
    value, error, flag = (columns[name][chosen] for name in ("ratio", "ratio_error", "flag"))
    x = np.arange(chosen.size)
    figure = Figure(figsize=(12.6, 3.3), layout="constrained")
    axes = figure.subplots()
    for wrong, color, label in ((False, STACKED, "run"), (True, OWN, "flagged")):
        here = ((flag & WRONG) > 0) == wrong
        if here.any():
            axes.errorbar(x[here], value[here], error[here], fmt="o", ms=3, lw=0.8, color=color, label=label)
    axes.axhline(1, color=GREY, lw=1)
    ticks = np.unique(np.linspace(0, chosen.size - 1, min(chosen.size, 10)).round().astype(int))
    axes.set_xticks(ticks, columns["obs_id"][chosen[ticks]].astype(str))
    axes.set(xlabel="run", ylabel="predicted / observed", xlim=(-0.5 - 0.01 * x.size, x.size - 0.5 + 0.01 * x.size))
    known = value[np.isfinite(value) & (value > 0)]
    if known.size:
        axes.set_ylim(max(0, min(0.8, known.min() * 0.93)), min(max(1.2, known.max() * 1.07), 4))
    _plain(axes)
    axes.legend(frameon=False, fontsize=8)
    return figure


def draw_energies(told: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Figure:
    """Predicted over observed counts by energy, all runs."""
    figure = Figure(figsize=(6.2, 4.1), layout="constrained")
    axes = figure.subplots()
    for j, (summary, name, color) in enumerate(zip(told, names, COLORS, strict=False)):
        rows = [row for row in summary["energies"] if row["events"] >= 10]
        x = np.array([np.sqrt(np.prod(row["energy"])) for row in rows]) * (1 + 0.02 * j)
        value, error = (np.array([row["ratio"][key] for row in rows]) for key in ("value", "error"))
        axes.errorbar(x, value, error, fmt="o-", ms=3.2, lw=1.1, color=color, label=name)
    axes.axhline(1, color=GREY, lw=1)
    axes.set(xscale="log", xlabel="energy [TeV]", ylabel="predicted / observed")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0.3), min(high, 2.0))
    axes.xaxis.set_major_formatter("{x:g}")
    _plain(axes)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _plain(axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e8eaed", lw=0.7)
    axes.set_axisbelow(True)


def _edges(center: NDArray) -> NDArray:
    step = center[1] - center[0]
    return np.append(center - step / 2, center[-1] + step / 2)


def _band(low: float, high: float) -> str:
    return f"{low:g} to {high:g} TeV"
