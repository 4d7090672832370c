"""How run histograms lie on disk: a zarr group with one store of rows (`dask_bkg.store.rows`) for each kind of thing.

``runs`` is the table of the runs: per-run numbers and texts.  ``fine`` and each further view (``rings-...``,
``field-...``) have the histograms of the runs in this view, what these are of (``key``), and the digest of what was
excluded.  ``parts`` are what tasks have written and no job has folded yet.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from dask_bkg.binning import FIELD, Edges, View
from dask_bkg.errors import ArchiveError
from dask_bkg.files import atomic_directory, remove_leftovers
from dask_bkg.files.read import now, patiently
from dask_bkg.reduction.reduce import solid_angles
from dask_bkg.schema import RUN_NUMBERS, RUN_TEXTS, UNITS, axis_coords
from dask_bkg.store import rows
from dask_bkg.store.rows import Column, Layout, Rows

LAYOUT = 5
"""Version of what is described here; a store of another one is not touched."""

PROGRAM = f"dask_bkg {version('dask_bkg')}"

BLOCK = 25
"""Runs that one task reads: a part of 7 MB in 3D, and a quarter of a second of reading events."""

RUNS, FINE, PARTS = "runs", "fine", "parts"
"""Directories of a store: the table of the runs, the view of the empty name, what tasks have written."""

VIEW_NAMES = ("rings", "field")
"""What the names of further views, and of their directories, begin with."""

TEXTS = (*RUN_TEXTS, "fingerprint")
"""Per-run texts of the store."""

VIEW_TEXTS = ("exclusion", "whole_exclusion")
"""Per-run texts of a view: the digest of the regions within its radius of the pointing, when all of them together had
the digest ``whole_exclusion``."""

RUNS_LAYOUT = Layout({}, ("obs_id",), RUN_NUMBERS, (*TEXTS, "files", "tried"), {"units": UNITS})
"""The table of the runs; ``files`` are the states of its files when a run was read (JSON), ``tried`` says with which
exclusion and for which views it failed."""

LEFT_BEHIND = 3600.0
"""Seconds after which what a process of another machine is making, a matter of seconds, was left by a killed job."""


def arrays_of(view: View) -> dict[str, Column]:
    """Arrays of histograms of a view: rings, unless it is there for its pixels; and pixels, if it has them."""
    energy, offset = view.edges.shape
    found = {}
    if not view.name.startswith("field"):
        found["counts"] = Column("uint32", ("energy", "offset"), (energy, offset))
        found["exposed_fraction"] = Column("float64", ("offset",), (offset,))
    if view.pixels is not None:
        n = len(view.pixels) - 1
        found["field_counts"] = Column("uint32", ("energy", *FIELD), (energy, n, n))
        found["field_exposed_fraction"] = Column("float64", FIELD, (n, n))
    return found


def layout_of(view: View) -> Layout:
    """What the rows of a view have."""
    axes = {
        "name": view.name,
        "energy_edges": view.edges.energy.tolist(),
        "offset_edges": view.edges.offset.tolist(),
        "method": view.method,
        "reach": view.reach,
        "pixel_edges": None if view.pixels is None else list(view.pixels),
        "alignment": view.alignment,
    }
    return Layout(arrays_of(view), ("obs_id", "key"), ("ontime",), VIEW_TEXTS, axes)


def _view(axes: Mapping[str, Any]) -> View:
    edges, pixels = Edges(np.array(axes["energy_edges"]), np.array(axes["offset_edges"])), axes["pixel_edges"]
    pixels = None if pixels is None else tuple(pixels)
    return View(axes["name"], edges, axes["method"], axes["reach"], pixels, axes["alignment"])


def coordinates(view: View) -> dict[str, tuple[Any, NDArray, dict[str, str]]]:
    """Xarray coordinates of the axes of a view: centres, edges and solid angles."""
    coords: dict[str, tuple[Any, NDArray, dict[str, str]]] = dict(axis_coords(view.edges))
    if view.pixels is not None:
        edges, deg = np.asarray(view.pixels), {"units": "deg"}
        for axis in FIELD:
            coords[axis] = (axis, (edges[1:] + edges[:-1]) / 2, deg)
            coords[f"{axis}_min"], coords[f"{axis}_max"] = (axis, edges[:-1], deg), (axis, edges[1:], deg)
    for name, value in solid_angles(view).items():
        coords[name] = (FIELD if value.ndim == 2 else "offset", value, {"units": "sr"})
    return coords


def place_of(path: str | os.PathLike[str], view: str) -> Path:
    """Directory of a view."""
    return Path(path, view or FINE)


def create(path: Path, view: View, block: int) -> None:
    """Write an empty store, under another name and then renamed; if another job was faster, its store stays."""
    now = timestamp()
    attributes: dict[str, Any] = {
        "title": "Run histograms of a gamma-ray archive",
        "dask_bkg_layout": LAYOUT,
        "program": PROGRAM,
        "block": block,
        "exclusion": "",
        "catalogs": {},
        "exclusions": {},
        "made": now,
        "written": now,
    }
    with disk_errors(path):
        _clear_next_to(path)
        with atomic_directory(path) as temporary:
            patiently(lambda: zarr.open_group(temporary, mode="w", zarr_format=3, attributes=attributes))
            Rows.create(temporary / RUNS, RUNS_LAYOUT, "Runs of a gamma-ray archive")
            create_view(temporary, view)


def create_view(path: Path, view: View) -> None:
    """Add an empty view to a store."""
    Rows.create(place_of(path, view.name), layout_of(view), "Histograms of the runs of a gamma-ray archive")


def clear_leftovers(path: Path) -> None:
    """Remove what killed jobs left half-written; only for the one who holds the lock."""
    _clear_next_to(path)
    remove_leftovers(path, 0.0)
    for partial in path.rglob("*.partial"):  # as zarr names them
        partial.unlink(missing_ok=True)


def _clear_next_to(path: Path) -> None:
    """Remove half-made stores and files of this name."""
    remove_leftovers(path.parent, LEFT_BEHIND, (path.name[-40:],), below=False)


def is_store(path: Path) -> bool:
    """Whether there is a store; False where there is nothing at all.

    Raises
    ------
    ArchiveError
        If there is something else, or a store of another version.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return False
    found = rows.attributes_of(path).get("dask_bkg_layout")
    if found is None:
        raise ArchiveError(
            f"{path} exists and is no store of run histograms: it is not touched. Give another place for the store."
        )
    if found != LAYOUT:
        raise ArchiveError(
            f"{path} is a store of run histograms of version {found!r}, and this program reads version {LAYOUT}: it "
            "is not touched. Move it away, and a new one is made of the event files; or use the program that made it."
        )
    return True


def check_there(path: str | os.PathLike[str]) -> None:
    """Raise `ArchiveError` if a store that was there is no more."""
    if not Path(path, "zarr.json").is_file():
        raise removed(path)


def attributes_of(path: Path) -> dict[str, Any]:
    """Attributes of a store.

    Raises
    ------
    ArchiveError
        If there is none.
    """
    if "dask_bkg_layout" not in rows.attributes_of(path):
        # people give the directory of a job, or of its results
        inside = (path / "runs.zarr", path / "results" / "runs.zarr")
        found = [f"there is one in {store}." for store in inside if "dask_bkg_layout" in rows.attributes_of(store)]
        make = (
            "`dask-bkg reduce config.yaml` and `dask-bkg run config.yaml` make one (by default below io.results_dir)."
        )
        raise ArchiveError(f"{path} holds no store of run histograms; {(found or [make])[0]}")
    is_store(path)  # of this version
    return rows.attributes_of(path)


def change_attributes(path: Path, **changes: Any) -> None:
    """Set attributes of a store."""
    with disk_errors(path):
        rows.change_attributes(path, **changes)


def views_of(path: Path) -> dict[str, View]:
    """Views of a store by name, the fine one (empty name) first."""
    found = (p for what in VIEW_NAMES for p in path.glob(f"{what}-*"))
    names = ["", *sorted(p.name for p in found if (p / "zarr.json").is_file())]
    try:
        return {name: _view(rows.attributes_of(place_of(path, name))["layout"]["axes"]) for name in names}
    except KeyError:
        raise removed(path) from None


def view_of(path: Path, name: str) -> View:
    """One view of a store.

    Raises
    ------
    ArchiveError
        If there is no store, or it has no such view.
    """
    try:
        return _view(rows.attributes_of(place_of(path, name))["layout"]["axes"])
    except KeyError:
        raise ArchiveError(f"{path} is no store of run histograms with a view {name!r}; is it there?") from None


def same_axes(a: View, b: View) -> bool:
    """Whether two views have the same bins."""
    same = all(np.array_equal(x, y) for x, y in zip(a.edges, b.edges, strict=True))
    return same and (a.pixels, a.alignment) == (b.pixels, b.alignment)


def axes_text(view: View) -> str:
    """The axes of a view in words."""
    energy, offset = view.edges
    rings = f"{offset.size - 1} rings {offset[0]:g}-{offset[-1]:g} deg"
    frame = "" if view.alignment == "radec" else f" ({view.alignment})"
    side = "" if view.pixels is None else f"{len(view.pixels) - 1}^2 pixels of {np.diff(view.pixels)[0]:g} deg"
    axes = [] if view.name.startswith("field") else [rings]
    axes += [f"{side}{frame}"] if side else []
    return f"{energy.size - 1} energies {energy[0]:g}-{energy[-1]:g} TeV, {', '.join(axes)}"


@contextmanager
def disk_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """`ArchiveError` for what the disk refuses."""
    try:
        yield
    except FileNotFoundError as error:
        raise removed(path) from error
    except OSError as error:
        room = "" if now(error) else "make room, or give a place that you may write to, and "
        raise ArchiveError(
            f"the store of run histograms {path} cannot be written{now(error)} ({error.strerror or error}): {room}"
            "start again; what is in the store is kept."
        ) from error


def removed(path: str | os.PathLike[str]) -> ArchiveError:
    """The error of a store of which something vanished while it was in use."""
    return ArchiveError(
        f"the store of run histograms {path}, or a part of it, was removed or moved while it was in use: put it "
        "back, or remove what is left of it, and start again; a new one is then made from the event files."
    )


def timestamp() -> str:
    """The time, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
