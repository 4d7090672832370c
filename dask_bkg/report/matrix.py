"""The picture of the divergence of each run from each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from dask_bkg.report.averages import evenly
from dask_bkg.report.curves import TRUTH

MATRIX_RUNS = 2000
"""Most runs of a picture of the matrix of divergences: a screen has hardly more rows."""

ORDERED_RUNS = 400
"""Most runs whose order is the best one: 0.2 s, and a minute for 2000."""


def order_of_likeness(kl: NDArray) -> NDArray:
    """Order of runs in which those that are alike are neighbours.

    Leaves of a tree of clusters (mean distance), turned so that the sum of the distances of neighbours is smallest
    (optimal leaf ordering, Bar-Joseph et al. 2001).  The distance is the root of the divergence, mean of both
    directions, which grows like the difference of the shapes.

    Parameters
    ----------
    kl
        Divergence of each run from each other, shape ``(runs, runs)``.  Negative values count as zero, and a pair
        without a value (NaN, infinite) as twice the largest.

    Examples
    --------
    >>> place = np.array([0.0, 5.0, 1.0, 6.0])
    >>> order_of_likeness((place[:, None] - place) ** 2).tolist() in ([0, 2, 1, 3], [3, 1, 2, 0])
    True
    """
    distance = np.sqrt(np.clip(kl, 0, None))
    distance = (distance + distance.T) / 2
    finite = np.isfinite(distance)
    distance = np.where(finite, distance, 2 * distance[finite].max(initial=1.0))
    np.fill_diagonal(distance, 0)
    if len(kl) <= ORDERED_RUNS:
        return _best_order(distance)
    tree = hierarchy.linkage(squareform(distance, checks=False), "average")
    group = hierarchy.fcluster(tree, ORDERED_RUNS, "maxclust") - 1
    member = np.eye(group.max() + 1)[group]
    member /= member.sum(axis=0)
    between = member.T @ distance @ member
    np.fill_diagonal(between, 0)
    place = np.argsort(_best_order((between + between.T) / 2))
    # within a group the tree's own order
    return np.lexsort((np.argsort(hierarchy.leaves_list(tree)), place[group]))


def _best_order(distance: NDArray) -> NDArray:
    if len(distance) < 3:
        return np.arange(len(distance))
    pairs = squareform(distance, checks=False)
    return hierarchy.leaves_list(hierarchy.optimal_leaf_ordering(hierarchy.linkage(pairs, "average"), pairs))


def plot_kl_matrix(path: str | Path, kl: ArrayLike, obs_id: ArrayLike, zenith: ArrayLike | None = None) -> None:
    """Picture of the divergence of each run from each other, ordered so that like runs are neighbours.

    Parameters
    ----------
    path
        Where it goes; the suffix is the format.
    kl
        Divergences, ``kl[i, j]`` = KL(i || j), shape ``(runs, runs)``; of more than `MATRIX_RUNS` runs as many are
        shown, evenly spread.  The diagonal is left out, pairs without a value are grey.
    obs_id
        Run numbers, shape ``(runs,)``.
    zenith
        Zenith angles [deg] for strips next to the matrix, shape ``(runs,)``.
    """
    kl, obs_id = np.array(kl, dtype=float), np.asarray(obs_id)
    shown = evenly(len(kl), MATRIX_RUNS)
    order = order_of_likeness(kl[np.ix_(shown, shown)])
    if zenith is not None and _falls(np.asarray(zenith, dtype=float)[shown[order]]):
        order = order[::-1]
    shown = shown[order]
    matrix = kl[np.ix_(shown, shown)]
    np.fill_diagonal(matrix, np.nan)
    figure = Figure(figsize=(10.4, 9.7))
    axes = figure.add_axes((0.105, 0.085, 0.735, 0.788))
    _draw_matrix(figure, axes, matrix)
    _label_runs(axes, obs_id[shown])
    if zenith is not None:
        _draw_strips(figure, axes, np.asarray(zenith, dtype=float)[shown])
    figure.text(0.105, 0.952, f"How unlike {len(shown)} runs are", fontsize=15, weight="bold", color=TRUTH)
    subtitle = "A row shows how far each other run is from the one described. Runs that are alike are neighbours."
    figure.text(0.105, 0.922, subtitle, fontsize=9.5, color="#666666")
    figure.savefig(path, dpi=130)


def _falls(values: NDArray) -> bool:
    """Whether values fall along their row, on the whole."""
    known = np.isfinite(values)
    return bool(known.sum() > 1 and np.polyfit(np.flatnonzero(known), values[known], 1)[0] < 0)


def _draw_matrix(figure: Figure, axes, matrix: NDArray) -> None:
    """The matrix with its own logarithmic scale, from near the smallest to near the largest divergence."""
    positive = matrix[np.isfinite(matrix) & (matrix > 0)]
    low, high = np.percentile(positive, [0.5, 99.5]) if positive.size else (1e-3, 1.0)
    # what the subtracted noise brings below zero is as near as can be
    image = np.ma.masked_invalid(np.where(matrix <= 0, low, matrix))
    norm = LogNorm(low, max(high, 2 * low))
    axes.set_facecolor("#d9d9d9")
    mesh = axes.imshow(image, norm=norm, cmap="YlGnBu_r", aspect="auto", interpolation="nearest")
    bar = figure.colorbar(mesh, cax=figure.add_axes((0.9, 0.085, 0.018, 0.5)), extend="both", format="%g")
    bar.set_label("Kullback-Leibler divergence", fontsize=10)
    bar.outline.set_visible(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _label_runs(axes, obs_id: NDArray) -> None:
    """Run numbers on both axes, as many as can be read."""
    step = max(1, -(-len(obs_id) // 80))
    places = np.arange(0, len(obs_id), step)
    size = 8 if len(places) <= 40 else 5.5
    axes.set_xticks(places, obs_id[places].astype(str), rotation=90, fontsize=size)
    axes.set_yticks(places, obs_id[places].astype(str), fontsize=size)
    axes.tick_params(length=0, pad=2, colors="#444444")
    axes.set_xlabel("run that may contribute", fontsize=10)
    axes.set_ylabel("run that is described", fontsize=10)


def _draw_strips(figure: Figure, axes, zenith: NDArray) -> None:
    """Zenith angles above the matrix and to its right, with their own scale."""
    box = axes.get_position()
    known = zenith[np.isfinite(zenith)]
    low, high = (known.min(), known.max()) if known.size else (0.0, 90.0)
    norm = Normalize(low, max(high, low + 1))
    right = figure.add_axes((box.x1 + 0.006, box.y0, 0.016, box.height))
    above = figure.add_axes((box.x0, box.y1 + 0.006, box.width, 0.016))
    for part, values in ((right, zenith[:, None]), (above, zenith[None, :])):
        strip = part.imshow(
            np.ma.masked_invalid(values), norm=norm, cmap="magma", aspect="auto", interpolation="nearest"
        )
        part.set_axis_off()
    bar = figure.colorbar(strip, cax=figure.add_axes((0.9, 0.643, 0.018, 0.23)))
    bar.set_label("zenith angle [deg]", fontsize=10)
    bar.outline.set_visible(False)


PICTURE_RUNS = 2000
"""Most runs of a picture: a screen has no more lines."""


def sample(path: Path, most: int = PICTURE_RUNS) -> xr.DataArray:
    """The matrix of a file, of evenly spread runs where there are more than a picture can show; in memory."""
    kl = xr.open_zarr(path)["kl"]
    chosen = evenly(kl.sizes["obs_id"], most)
    return kl.isel(obs_id=chosen, obs_id_ref=chosen).load(scheduler="threads")
