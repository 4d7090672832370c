"""The dataset of run histograms: its dimensions, variables and units, and one function that checks them.

One run has the dimensions ``(energy, offset)``, several have ``obs_id`` before them.  Bin edges are the coordinates
``energy_min``, ``energy_max``, ``offset_min`` and ``offset_max``.  The run store has one or more views of the runs
(`dask_bkg.binning.View`), the fine one of which coarser bins are sums.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from dask_bkg.binning import AXES, FIELD, Edges, FieldEdges

UNITS = {
    "counts": "",
    "exposure": "s TeV sr",
    **dict.fromkeys(("offset", "off_q90", "fov_lon", "fov_lat", "zenith", "azimuth", "parallactic"), "deg"),
    **dict.fromkeys(("site_lon", "site_lat", "ra_pnt", "dec_pnt", "ra_obj", "dec_obj"), "deg"),
    **dict.fromkeys(("energy", "lo_thres", "e_thres"), "TeV"),
    **dict.fromkeys(("ontime", "livetime"), "s"),
    **dict.fromkeys(("solid_angle", "field_solid_angle"), "sr"),
    "site_height": "m",
    "time": "d",
    "aeff_integral": "m2 TeV-1.7",
}
"""Unit of each variable and coordinate; others have none."""

HISTOGRAMS = ("counts", "exposure")
RUN_NUMBERS = (
    "ontime", "livetime", "zenith", "azimuth", "parallactic", "site_lon", "site_lat", "site_height", "nsb", "n_tels",
    "time", "ra_pnt", "dec_pnt", "ra_obj", "dec_obj", "muon_efficiency", "lo_thres", "e_thres", "aeff_integral",
    "ln_e_q25", "ln_e_max", "off_q90", "lopsided", "n_events",
)  # fmt: skip
"""Per-run numbers, float; NaN where the file does not have them.

``parallactic`` is the position angle of the zenith seen from the pointing, from north through east, in the middle of
the run.  ``lo_thres`` is the threshold that the file declares, ``e_thres`` the energy where the effective area at
0.5 deg first reaches 10 % of its maximum, ``aeff_integral`` the integral of that area times (E / TeV)^-2.7.

Of the events are ``ln_e_q25``, the 25 % quantile of ln(E / TeV), and ``ln_e_max``, its maximum; ``off_q90``, the 90 %
quantile of the offsets [deg]; and ``lopsided``, the length of the mean of the unit vectors from the pointing to them:
0 for a field that is the same all around, 0.64 if just one half of it has events.
"""

RUN_TEXTS = ("object", "telescopes", "instrument", "note", "error")
"""Per-run texts: observed object, participating telescopes, telescope and instrument, remarks, and why
the run could not be used; mostly empty."""


def axis_coords(edges: Edges | FieldEdges) -> dict[str, tuple[str, NDArray, dict[str, str]]]:
    """Xarray coordinates of the axes: centres (geometric for energy) and edges."""
    angles = {"offset": edges.offset} if isinstance(edges, Edges) else dict.fromkeys(FIELD, edges.fov)
    coords = {}
    for name, array in {"energy": edges.energy, **angles}.items():
        center = np.sqrt(array[1:] * array[:-1]) if name == "energy" else (array[1:] + array[:-1]) / 2
        attrs = {"units": UNITS[name]}
        coords[name] = (name, center, attrs)
        coords[f"{name}_min"] = (name, array[:-1], attrs)
        coords[f"{name}_max"] = (name, array[1:], attrs)
    return coords


def edges_of(dataset: xr.Dataset) -> Edges:
    """Bin edges [TeV], [deg] of a dataset of offset bins."""
    return Edges(*(_edges_along(dataset, axis) for axis in AXES))


def field_edges_of(dataset: xr.Dataset) -> FieldEdges:
    """Bin edges [TeV], [deg] of a dataset of field pixels."""
    return FieldEdges(_edges_along(dataset, "energy"), _edges_along(dataset, "fov_lon"))


def _edges_along(dataset: xr.Dataset, axis: str) -> NDArray:
    return np.append(dataset[f"{axis}_min"].values, dataset[f"{axis}_max"].values[-1])


def run_dataset(
    counts: ArrayLike, exposure: ArrayLike, edges: Edges, numbers: Mapping[str, float], **labels: object
) -> xr.Dataset:
    """Dataset of one run, dimensions ``(energy, offset)``.

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
    histograms = {"counts": (AXES, np.asarray(counts)), "exposure": (AXES, np.asarray(exposure))}
    return with_units(xr.Dataset(histograms, coords={**axis_coords(edges), **scalars, **labels}))


def with_units(dataset: xr.Dataset) -> xr.Dataset:
    """The same dataset with the ``units`` attribute on each variable that has one; in place."""
    for name, unit in UNITS.items():
        if name in dataset.variables:
            dataset[name].attrs["units"] = unit
    if "exposure" in dataset and "energy" not in dataset["exposure"].dims:
        dataset["exposure"].attrs["units"] = "s sr"
    return dataset


def check(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset itself, if it is one of run histograms.

    Raises
    ------
    ValueError
        If a variable is missing, or has wrong dimensions or units.
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
