"""What is behind the backgrounds of a job, as one dataset: from the side files of `dask_bkg.output.diagnostics`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dask_bkg.binning import Edges, FieldEdges
from dask_bkg.errors import ArchiveError
from dask_bkg.lazy.layers import Each, Layers, batches
from dask_bkg.output.diagnostics import DIRECTORY, ROLES, VARIABLES, Layout, layout_of, read_side, side_path
from dask_bkg.schema import axis_coords

IN_MEMORY = 256e6
"""Bytes up to which backgrounds are read at once; more of them are a lazy dataset."""

FILES = 500
"""Most files that a task reads."""


def open_backgrounds(results_dir: str | os.PathLike[str], obs_ids: Iterable[int] | None = None) -> xr.Dataset:
    """Rates of a job with their errors, and what is behind them.

    Parameters
    ----------
    results_dir
        Where a job has left its results (``io.results_dir``).
    obs_ids
        Run numbers; None: all that there are.

    Returns
    -------
    dataset
        The variables of `dask_bkg.output.diagnostics.VARIABLES` with the dimensions ``(obs_id, energy, offset)``, for
        3D backgrounds ``(obs_id, energy, fov_lat, fov_lon)``; in memory, or lazy (Dask) above 256 MB.

    Raises
    ------
    ArchiveError
        If there are none, or they do not have the same axes.
    """
    directory = Path(results_dir, DIRECTORY)
    numbers = _there(directory) if obs_ids is None else np.sort(np.fromiter(obs_ids, dtype=np.int64))
    paths = [str(side_path(directory, number)) for number in numbers.tolist()]
    absent = [number for number, path in zip(numbers.tolist(), paths, strict=True) if not os.path.exists(path)]
    if absent or not paths:
        told = f"of the runs {absent[:10]}" if absent else "of any run"
        raise ArchiveError(
            f"{directory} has no side file {told}: give the io.results_dir of a job that has made them"
        )
    layout = layout_of(Path(paths[0]))
    names = [name for name in VARIABLES if name != "obs_id"]
    large = len(paths) * os.path.getsize(paths[0]) > IN_MEMORY
    arrays = _lazily(paths, layout, names) if large else read_side(paths, layout, names)
    return _dataset(numbers, layout, arrays)


def _there(directory: Path) -> NDArray:
    """Numbers of the runs that have a side file."""
    found = [path.name for path in directory.glob("bkg_*.nc")]
    return np.array(sorted(int(name[4:-3]) for name in found if name[4:-3].lstrip("-").isdigit()), dtype=np.int64)


def _lazily(paths: list[str], layout: Layout, names: list[str]) -> dict[str, da.Array]:
    layers, parts = Layers(), batches(paths, FILES)
    shared = layers.share("layout", layout)
    read = layers.map("read-files", read_side, paths=Each(parts), layout=shared, names=names)
    sizes = tuple(len(part) for part in parts)
    return {
        name: layers.variable(
            read,
            name,
            (sizes, *((n,) for n in layout.fields[name][3])),
            layout.fields[name][2].newbyteorder("=").type,
        )
        for name in names
    }


def _dataset(numbers: NDArray, layout: Layout, arrays: dict) -> xr.Dataset:
    edges = layout.edges
    coords: dict = axis_coords(Edges(edges["energy"], edges["offset"]))
    if "fov_lon" in edges:
        coords |= axis_coords(FieldEdges(edges["energy"], edges["fov_lon"]))
    coords |= {"obs_id": numbers, "role": list(ROLES)}
    return xr.Dataset(
        {
            name: (("obs_id", *layout.fields[name][0]), array, layout.fields[name][4])
            for name, array in arrays.items()
        },
        coords=coords,
    )
