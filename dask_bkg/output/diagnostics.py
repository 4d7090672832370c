"""What is behind each background, in a small file beside the provenance: errors, counts, exposure, hours, factors.

One file a run, NetCDF 3, which xarray opens too.  A task writes it when the background is written, under another name
that is changed at the end: any number of workers write at once, and a job that is killed leaves the old one or the
new one.  All files of a job have the same bytes before their numbers: what reads thousands of them looks at one, and
compares the others.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_bkg.binning import Edges, FieldEdges
from dask_bkg.errors import ArchiveError
from dask_bkg.files import atomic_path

DIRECTORY = "backgrounds"
"""Directory below ``results_dir``."""

ROLES = ("spectrum", "shape", "night")
"""What runs contribute to: the order of ``hours``, ``n_runs`` and ``widened``."""

RATE_UNIT, EXPOSURE_UNIT = "s-1 TeV-1 sr-1", "s TeV sr"

RINGS, PIXELS = ("energy", "offset"), ("energy", "fov_lat", "fov_lon")


class Variable(NamedTuple):
    """A variable of a side file: its axes, type, unit and meaning; ``None`` for the axes of the background."""

    dims: tuple[str, ...] | None
    kind: str
    unit: str
    meaning: str


VARIABLES: Mapping[str, Variable] = {
    "rate": Variable(None, "f4", RATE_UNIT, "node values, as they are written"),
    "error": Variable(None, "f4", "", "relative statistical error of the rate; infinite: no counts"),
    "flag": Variable(None, "i2", "", "sum of the bits of dask_bkg.background.field.FIELD_FLAGS"),
    "resolution": Variable(None, "f4", "deg", "effective resolution of the smoothing"),
    "counts": Variable(RINGS, "f4", "", "counts of the runs of the spectrum, weighted"),
    "effective_counts": Variable(RINGS, "f4", "", "events of weight 1 that would tell as much"),
    "exposure": Variable(RINGS, "f4", EXPOSURE_UNIT, "of the runs of the spectrum, weighted"),
    "shape_effective_counts": Variable(RINGS, "f4", "", "of the runs of the shape"),
    "shape_exposure": Variable(RINGS, "f4", EXPOSURE_UNIT, "of the runs of the shape, weighted"),
    "level_error": Variable(("energy",), "f4", "", "what of the error is common to all bins of an energy"),
    "own_spectrum": Variable(("energy",), "f4", "", "factor by the run's own counts, level included"),
    "hours": Variable(("role",), "f8", "h", "weight x livetime of the contributing runs"),
    "n_runs": Variable(("role",), "i4", "", "number of contributing runs"),
    "widened": Variable(("role",), "f4", "", "factor on the widths of the kernel"),
    "night_factor": Variable((), "f8", "", "level of the nights around over that of the stack"),
    "night_error": Variable((), "f8", "", "its relative error"),
    "own_factor": Variable((), "f8", "", "level of the run's own counts over that of the stack"),
    "own_error": Variable((), "f8", "", "its relative error"),
    "threshold": Variable((), "f8", "TeV", "energy threshold of the run"),
    "obs_id": Variable((), "f8", "", "run number"),
}


def side_path(directory: str | os.PathLike[str], obs_id: int) -> Path:
    """Side file of a run below ``results_dir/backgrounds``."""
    return Path(directory, f"bkg_{obs_id}.nc")


def write_side(path: Path, edges: Edges, field: FieldEdges | None, values: Mapping[str, Any]) -> None:
    """Write a side file, atomically.

    Parameters
    ----------
    path
        The file (`side_path`).
    edges, field
        Axes of the rings, and of the pixels where the background has such.
    values
        By the names of `VARIABLES`; numbers that are missing are NaN (0 for whole ones).
    """
    from scipy.io import netcdf_file

    axes = {"energy": edges.energy, "offset": edges.offset}
    if field is not None:
        axes |= {"fov_lat": field.fov, "fov_lon": field.fov}
    with atomic_path(path) as temporary, netcdf_file(temporary, "w") as file:
        for name, array in axes.items():
            file.createDimension(name, array.size - 1)
            file.createDimension(f"{name}_edge", array.size)
            _put(
                file,
                f"{name}_edges",
                (f"{name}_edge",),
                "f8",
                array,
                "TeV" if name == "energy" else "deg",
                "bin edges",
            )
        file.createDimension("role", len(ROLES))
        for name, (dims, kind, unit, meaning) in VARIABLES.items():
            dims = (RINGS if field is None else PIXELS) if dims is None else dims
            _put(file, name, dims, kind, values.get(name), unit, meaning)


def _put(file: Any, name: str, dims: tuple[str, ...], kind: str, value: Any, unit: str, meaning: str) -> None:
    variable = file.createVariable(name, kind, dims)
    variable.long_name = meaning
    if unit:
        variable.units = unit
    missing = np.nan if kind.startswith("f") else 0
    with np.errstate(over="ignore"):
        variable[...] = np.asarray(missing if value is None else value).astype(kind)


# -- reading -----------------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """How the side files of a job are laid out.

    Attributes
    ----------
    head
        The bytes before the numbers.
    edges
        Edges of the axes, by their names.
    fields
        Of each variable its axes, place in the file, type, shape and attributes.
    """

    head: bytes
    edges: dict[str, NDArray]
    fields: dict[str, tuple[tuple[str, ...], int, np.dtype, tuple[int, ...], dict[str, str]]]


def layout_of(path: Path) -> Layout:
    """Layout of a side file and of all that were made alike.

    Raises
    ------
    ArchiveError
        If it cannot be read.
    """
    from scipy.io import netcdf_file

    content, edges = path.read_bytes(), {}
    fields: dict[str, Any] = {}
    try:
        with netcdf_file(path, "r", mmap=False) as file:
            place = len(content) - sum(_padded(variable) for variable in file.variables.values())
            head = content[:place]
            for name, variable in file.variables.items():
                data, attributes = variable.data, {k: v.decode() for k, v in variable._attributes.items()}
                kind = np.dtype(data.dtype).newbyteorder(">")
                if np.frombuffer(content, kind, data.size, place).tobytes() != data.astype(kind).tobytes():
                    raise ValueError("its variables are not in their order")
                if name.endswith("_edges"):
                    edges[name.removesuffix("_edges")] = np.array(data, dtype=float)
                fields[name] = variable.dimensions, place, kind, data.shape, attributes
                place += _padded(variable)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ArchiveError(
            f"{path} is no side file of a background ({error}): remove it, and run the job again"
        ) from error
    return Layout(head, edges, fields)


def _padded(variable: Any) -> int:
    """Bytes of a variable in the file, where each begins at a multiple of four."""
    size: int = variable.data.size * variable.data.itemsize
    return -(-size // 4) * 4


def read_side(paths: Iterable[str | os.PathLike[str]], layout: Layout, names: Iterable[str]) -> dict[str, NDArray]:
    """Variables of some side files, shape ``(files, ...)``.

    Raises
    ------
    ArchiveError
        If one of them is not laid out like the others, or has other axes.
    """
    contents = [Path(path).read_bytes() for path in paths]
    _check_alike(list(paths), contents, layout)
    read = {}
    for name in names:
        _, place, kind, shape, _ = layout.fields[name]
        size = int(np.prod(shape, dtype=int))
        rows = [np.frombuffer(content, kind, size, place) for content in contents]
        read[name] = np.array(rows).astype(kind.newbyteorder("=")).reshape(len(rows), *shape)
    return read


def _check_alike(paths: list, contents: list[bytes], layout: Layout) -> None:
    axes = [(place, edges.size * 8, edges.astype(">f8").tobytes()) for edges, place in _edge_places(layout)]
    for path, content in zip(paths, contents, strict=True):
        same = content.startswith(layout.head) and all(content[a : a + n] == bytes_ for a, n, bytes_ in axes)
        if not same:
            raise ArchiveError(
                f"{path} has other axes than the first background, or was made by another version: name runs that "
                "were made alike (obs_ids), or make all of them again (dask-bkg run --refresh)"
            )


def _edge_places(layout: Layout) -> list[tuple[NDArray, int]]:
    return [(edges, layout.fields[f"{name}_edges"][1]) for name, edges in layout.edges.items()]
