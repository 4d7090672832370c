"""The dataset of run histograms: its dimensions, variables and units, and one function that checks them.

One run has the dimensions ``(energy, offset)``, several have ``obs_id`` before them.  Bin edges travel as the
coordinates ``energy_min``, ``energy_max``, ``offset_min`` and ``offset_max``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

UNITS = {
    "counts": "",
    "exposure": "s TeV sr",
    "energy": "TeV",
    "offset": "deg",
    "ontime": "s",
    "livetime": "s",
    "zenith": "deg",
    "azimuth": "deg",
    "ra_pnt": "deg",
    "dec_pnt": "deg",
    "time": "d",
}
"""Unit of each variable and coordinate; those that are not here have none."""

AXES = ("energy", "offset")
HISTOGRAMS = ("counts", "exposure")
RUN_NUMBERS = (
    "ontime", "livetime", "zenith", "azimuth", "nsb", "n_tels", "time", "ra_pnt", "dec_pnt", "n_events",
)  # fmt: skip
"""Per-run numbers, float; NaN where the file does not say."""

RUN_TEXTS = ("object", "note", "error")
"""Per-run texts: the target, what was remarkable, why the run could not be used; empty where there is nothing."""


class Edges(NamedTuple):
    """Bin edges of a background: energy [TeV] and offset [deg], both ascending."""

    energy: NDArray
    offset: NDArray

    @property
    def shape(self) -> tuple[int, int]:
        """Number of bins along energy and offset."""
        return self.energy.size - 1, self.offset.size - 1


def as_edges(edges: Edges | Mapping[str, ArrayLike]) -> Edges:
    """`Edges` from a mapping with ``energy`` and ``offset``, checked."""
    pair = edges._asdict() if isinstance(edges, Edges) else edges
    arrays = {name: np.asarray(pair[name], dtype=float) for name in AXES}
    for name, array in arrays.items():
        if array.ndim != 1 or array.size < 2 or not (np.diff(array) > 0).all():
            raise ValueError(f"{name} edges must be at least two ascending numbers, got {array!r}")
        if not np.isfinite(array).all() or array[0] < 0 or (name == "energy" and array[0] == 0):
            raise ValueError(f"{name} edges must be finite, energies [TeV] > 0 and offsets [deg] >= 0, got {array!r}")
    return Edges(**arrays)


def axis_coords(edges: Edges) -> dict[str, tuple[str, NDArray, dict[str, str]]]:
    """Xarray coordinates of the two axes: centres (geometric for energy) and edges."""
    coords = {}
    for name, array, center in (
        ("energy", edges.energy, np.sqrt(edges.energy[1:] * edges.energy[:-1])),
        ("offset", edges.offset, (edges.offset[1:] + edges.offset[:-1]) / 2),
    ):
        attrs = {"units": UNITS[name]}
        coords[name] = (name, center, attrs)
        coords[f"{name}_min"] = (name, array[:-1], attrs)
        coords[f"{name}_max"] = (name, array[1:], attrs)
    return coords


def edges_of(dataset: xr.Dataset) -> Edges:
    """Bin edges of a dataset."""
    return Edges(*(np.append(dataset[f"{a}_min"].values, dataset[f"{a}_max"].values[-1]) for a in AXES))


def run_dataset(
    counts: ArrayLike, exposure: ArrayLike, edges: Edges, numbers: Mapping[str, float], **labels: object
) -> xr.Dataset:
    """Dataset of one run.

    Parameters
    ----------
    counts, exposure
        Events, and exposure [s TeV sr], shape ``(energy, offset)``.
    edges
        Bin edges.
    numbers
        Per-run numbers (see `RUN_NUMBERS`); those that are missing become NaN.
    labels
        Other scalar coordinates (``obs_id``, ``object``).
    """
    scalars = {name: float(numbers.get(name, np.nan)) for name in RUN_NUMBERS}
    dataset = xr.Dataset(
        {"counts": (AXES, np.asarray(counts)), "exposure": (AXES, np.asarray(exposure))},
        coords={**axis_coords(edges), **scalars, **labels},
    )
    return with_units(dataset)


def with_units(dataset: xr.Dataset) -> xr.Dataset:
    """The same dataset with the ``units`` attribute on each variable that has one; in place."""
    for name, unit in UNITS.items():
        if name in dataset.variables:
            dataset[name].attrs["units"] = unit
    return dataset


def check(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset itself, if it is one of run histograms.

    Raises
    ------
    ValueError
        Naming what is missing or has other dimensions or units than it should.
    """
    for name in HISTOGRAMS:
        if name not in dataset:
            raise ValueError(f"no variable {name!r}; a dataset of runs has {', '.join(HISTOGRAMS)}")
        if dataset[name].dims[-2:] != AXES:
            raise ValueError(f"{name} has dimensions {dataset[name].dims}, expected (..., {', '.join(AXES)})")
        unit = dataset[name].attrs.get("units", UNITS[name])
        if unit != UNITS[name]:
            raise ValueError(f"{name} has unit {unit!r}, expected {UNITS[name]!r}")
    missing = [f"{a}_{side}" for a in AXES for side in ("min", "max") if f"{a}_{side}" not in dataset.coords]
    if missing:
        raise ValueError(f"bin edges are missing: {', '.join(missing)}")
    return dataset
