"""The result of a validation: the scores of each run as a dataset, sums over all runs, and what failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dask_bkg.sky.fov import separation
from dask_bkg.validation.bins import Bins
from dask_bkg.validation.expectation import S_EDGES, expected_histogram
from dask_bkg.validation.score import AXES, FORMS, SUMS, FieldSums, RunScore

SAME_TARGET = 3.0
"""Runs of one OBJECT whose pointings are nearer than this [deg] observe the same object; others only share a name."""


@dataclass
class Validation:
    """How well backgrounds predict the counts of runs.

    Attributes
    ----------
    name
        What was validated, for tables and pictures.
    runs
        By run (``obs_id``): ``counts`` and ``predicted`` by energy; ``loglike`` in each form; sums over the cells of
        the field (``cells``, see `dask_bkg.validation.score.SUMS`); ``deviance`` (observed, expected, variance);
        ``profile`` and ``slope`` by band; the ``hottest`` spot; and metadata of the run.
    sums
        Sums over all runs: residual fields and the histogram of significances, observed and expected.
    failed
        Runs that could not be validated, ``{obs_id: reason}``.
    left_out
        Which runs did not contribute to the background of a run: ``the run``, ``its fold (5)``, ``its target``;
        ``nothing`` (``io.from_run``, ``model.own``); ``unknown`` for existing backgrounds.
    alignment
        Frame of the field pixels of the comparison.
    against
        The validation of other backgrounds, on the same runs and bins; None without.
    """

    name: str
    runs: xr.Dataset
    sums: xr.Dataset
    failed: dict[int, str] = field(default_factory=dict)
    left_out: str = "the run"
    alignment: str = "radec"
    against: Validation | None = None

    @property
    def held_out(self) -> bool | None:
        """Whether no run contributed to its own background; None: unknown."""
        return {"nothing": False, "unknown": None}.get(self.left_out, True)

    @property
    def n_events(self) -> int:
        """Events that were compared."""
        return int(self.runs["counts"].sum())


def gather(
    scores: Mapping[int, RunScore], sums: FieldSums, bins: Bins, columns: Mapping[str, Any]
) -> tuple[xr.Dataset, xr.Dataset]:
    """Datasets of a `Validation`.

    Parameters
    ----------
    scores
        By run number, in the order of the datasets.
    sums
        Sums over them.
    bins
        The bins of the comparison.
    columns
        Metadata of the runs, arrays of shape ``(runs,)``; ``object``, ``ra_pnt`` and ``dec_pnt`` are needed.

    Returns
    -------
    runs, sums
        As in `Validation`.
    """
    energy, settings = np.array(bins.places.energy), bins.settings
    dims = {
        "counts": ("energy",),
        "predicted": ("energy",),
        "loglike": ("form",),
        "cells": ("form", "sum"),
        "deviance": ("moment",),
        "profile": ("kind", "band", "ring"),
        "slope": ("band", "direction", "part"),
        "hottest": ("spot",),
    }
    of_runs: dict[str, Any] = {
        name: (("obs_id", *axes), np.stack([getattr(run, name) for run in scores.values()]))
        for name, axes in dims.items()
    }
    of_runs |= {name: ("obs_id", np.asarray(column)) for name, column in columns.items()}
    group = object_groups(*(np.asarray(columns[name]) for name in ("object", "ra_pnt", "dec_pnt")))
    coords: dict[str, Any] = {
        "obs_id": np.array(list(scores), dtype=np.int64),
        "group": ("obs_id", group),
        "energy": np.sqrt(energy[1:] * energy[:-1]),
        "energy_min": ("energy", energy[:-1]),
        "energy_max": ("energy", energy[1:]),
        "energy_band": ("energy", bins.band),
        "form": list(FORMS),
        "sum": list(SUMS),
        "moment": ["observed", "expected", "variance"],
        "spot": ["significance", "fov_lon", "fov_lat"],
        "kind": ["counts", "predicted"],
        "direction": list(AXES),
        "part": ["residual", "weight"],
        "band_min": ("band", np.array(settings.bands[:-1])),
        "band_max": ("band", np.array(settings.bands[1:])),
        "ring_min": ("ring", settings.ring_edges[:-1]),
        "ring_max": ("ring", settings.ring_edges[1:]),
    }
    return xr.Dataset(of_runs, coords=coords), _field(sums, bins)


def _field(sums: FieldSums, bins: Bins) -> xr.Dataset:
    """Residual fields and histograms."""
    pixels = np.array(bins.places.pixels)
    center, bands = (pixels[1:] + pixels[:-1]) / 2, np.array(bins.settings.bands)
    dims = ("band", "fov_lat", "fov_lon")
    return xr.Dataset(
        {
            "counts": (dims, sums.counts),
            "predicted": (dims, sums.predicted),
            "significances": ("significance", sums.histogram),
            "expected_significances": ("significance", expected_histogram(sums.expected)),
        },
        coords={
            "band_min": ("band", bands[:-1]),
            "band_max": ("band", bands[1:]),
            "fov_lat": center,
            "fov_lon": center,
            "significance": (S_EDGES[1:] + S_EDGES[:-1]) / 2,
        },
    )


def object_groups(objects: NDArray, ra: NDArray, dec: NDArray) -> NDArray:
    """A number for the object of each run, shape ``(runs,)``; a run without OBJECT gets one of its own.

    The residuals of runs of the same object are not independent, as they share its sky: a bootstrap draws objects.

    Parameters
    ----------
    objects, ra, dec
        OBJECT and pointing [deg] of the runs, shape ``(runs,)``.

    Examples
    --------
    >>> object_groups(np.array(["Crab", "", "crab", "Crab"]), np.array([83.6, 10, 83.1, 200]), np.zeros(4)).tolist()
    [0, 1, 0, 2]
    """
    names = ["".join(str(name).split()).casefold() for name in objects]
    first: dict[str, list[tuple[float, float, int]]] = {}
    groups, n = [], 0
    for name, lon, lat in zip(names, ra.tolist(), dec.tolist(), strict=True):
        others = first.setdefault(name, []) if name else []
        near = next((g for x, y, g in others if not separation(x, y, lon, lat) > SAME_TARGET), None)
        if near is None:
            near, n = n, n + 1
            others.append((lon, lat, near))
        groups.append(near)
    return np.array(groups, dtype=np.int64)


def common_runs(validations: Sequence[Validation]) -> NDArray:
    """Numbers of the runs that all validations have in common, shape ``(runs,)``.

    Raises
    ------
    ValueError
        If they have none in common, or other bins, thresholds or counts.
    """
    numbers = reduce(np.intersect1d, [validation.runs["obs_id"].values for validation in validations])
    if not numbers.size:
        raise ValueError("validations that are compared have no run in common")
    counts = [v.runs["counts"].sel(obs_id=numbers).values for v in validations]
    if any(other.shape != counts[0].shape or not np.array_equal(other, counts[0]) for other in counts[1:]):
        raise ValueError(
            "validations that are compared must have the same bins, threshold and exclusion: their counts differ"
        )
    return numbers
