"""How run histograms lie on disk: the groups and arrays of the zarr store, and how they grow.

The root group holds the fine view and the table of the runs, a subgroup each further view; the rows of all arrays are
runs, in the order in which they came.  The consolidated metadata of a group is replaced last and as a whole: a reader
sees the rows of before or of after, whatever happens in between.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray

from dask_bkg.binning import FIELD, Edges, View
from dask_bkg.errors import ArchiveError
from dask_bkg.files import atomic_path
from dask_bkg.reduction.reduce import solid_angles
from dask_bkg.schema import RUN_NUMBERS, RUN_TEXTS, axis_coords

LAYOUT = 2
"""Version of what is described here; a store of another one is not touched."""

PROGRAM = f"dask_bkg {version('dask_bkg')}"

BLOCK = 50
"""Runs of a chunk of histograms: 0.2 MB packed, 6 MB unpacked, half a second of reading events."""

TABLE_CHUNK = 16384
"""Runs of a chunk of the table: few files, so that a store of 20,000 runs opens at once."""

_one_at_a_time = threading.Lock()

TEXTS = (*RUN_TEXTS, "fingerprint")
"""Per-run texts of the store."""

VIEW_TEXTS = ("exclusion", "whole_exclusion")
"""Per-run texts of a view: the digest of the regions within its radius of the pointing, when all of them together had
the digest ``whole_exclusion``."""

NEVER_WRITTEN = {"uint32": np.iinfo(np.uint32).max, "float64": np.nan}
"""What an array says where no histogram was written: a chunk that is lost is not taken for an empty one."""

VIEW_NAMES = ("rings", "field")
"""What the names of views beside the fine one, and of their directories, begin with."""

_CHUNK = re.compile(r"c\.(\d+)(\.0)*")


class Histogram(NamedTuple):
    """One array of histograms: its type, its dimensions after ``obs_id``, its shape along them."""

    dtype: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]


def histograms(view: View) -> dict[str, Histogram]:
    """Arrays of histograms of a view."""
    energy, offset = view.edges.shape
    found = {
        "counts": Histogram("uint32", ("energy", "offset"), (energy, offset)),
        "exposed_fraction": Histogram("float64", ("offset",), (offset,)),
    }
    if view.pixels is not None:
        n = len(view.pixels) - 1
        found["field_counts"] = Histogram("uint32", ("energy", *FIELD), (energy, n, n))
        found["field_exposed_fraction"] = Histogram("float64", FIELD, (n, n))
    return found


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


def is_full(directory: Path) -> bool:
    """Whether there is a directory with something in it."""
    return directory.is_dir() and any(directory.iterdir())


def _view(attributes: Mapping[str, Any]) -> View:
    edges = Edges(np.array(attributes["energy_edges"]), np.array(attributes["offset_edges"]))
    pixels = attributes["pixel_edges"]
    return View(
        attributes["name"],
        edges,
        attributes["method"],
        attributes["reach"],
        None if pixels is None else tuple(pixels),
        attributes.get("alignment", "radec"),
    )


def is_store(path: Path) -> bool:
    """Whether there is a store; False where there is nothing at all.

    Raises
    ------
    ArchiveError
        If there is something else, or a store of another version.
    """
    if not path.exists() or (path.is_dir() and not is_full(path)):
        return False
    found = _attributes(path).get("dask_bkg_layout")
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


def attributes_of(path: Path) -> dict[str, Any]:
    """Attributes of a store.

    Raises
    ------
    ArchiveError
        If there is none.
    """
    if "dask_bkg_layout" not in _attributes(path):
        # people give the directory of a job, or of its results
        inside = (path / "runs.zarr", path / "results" / "runs.zarr")
        found = [f"there is one in {store}." for store in inside if "dask_bkg_layout" in _attributes(store)]
        make = (
            "`dask-bkg reduce config.yaml` and `dask-bkg run config.yaml` make one (by default below io.results_dir)."
        )
        raise ArchiveError(f"{path} holds no store of run histograms; {(found or [make])[0]}")
    is_store(path)  # of this version
    return _attributes(path)


def _attributes(path: Path) -> dict[str, Any]:
    try:
        return json.loads((path / "zarr.json").read_text())["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def change_attributes(path: Path, **changes: Any) -> None:
    """Set attributes of a store; what else its metadata say stays."""
    with told(path):
        metadata = json.loads((path / "zarr.json").read_text())
        if changes.items() <= metadata["attributes"].items():
            return
        metadata["attributes"].update(changes)
        with atomic_path(path / "zarr.json") as temporary:
            temporary.write_text(json.dumps(metadata, indent=2))


def views_of(path: Path) -> dict[str, View]:
    """Views of a store by name, the fine one (empty name) first."""
    found = (p for what in VIEW_NAMES for p in path.glob(f"{what}-*"))
    names = ["", *sorted(p.name for p in found if (p / "zarr.json").is_file())]
    try:
        return {name: _view(_attributes(path / name)["view"]) for name in names}
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
        return _view(_attributes(path / name)["view"])
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
    pixels = f", {side}{frame}" if side else ""
    return f"{energy.size - 1} energies {energy[0]:g}-{energy[-1]:g} TeV, {rings}{pixels}"


def consolidate(path: Path) -> None:
    """Gather the metadata of a group's arrays in the group's own, which readers then open in one piece."""
    # the filters of warnings are one list for all threads: two at once would leave it as the first one made it
    with _one_at_a_time, warnings.catch_warnings():
        # zarr says that the specification does not have it yet; xarray warns of groups without it
        warnings.simplefilter("ignore", UserWarning)
        zarr.consolidate_metadata(str(path))


def is_consolidated(path: Path, views: Mapping[str, View], n_runs: int) -> bool:
    """Whether the consolidated metadata tell of these views and of so many rows."""
    known = json.loads((path / "zarr.json").read_text()).get("consolidated_metadata", {}).get("metadata", {})
    return known.get("obs_id", {}).get("shape") == [n_runs] and known.keys() >= views.keys() - {""}


def grow(path: Path, views: Mapping[str, View], n_runs: int) -> None:
    """Give all arrays at least this many rows, those of the run numbers last."""
    with told(path):
        for name, view in views.items():
            columns = [] if name else [*RUN_NUMBERS, *TEXTS]
            for array in (open_array(path, name, a, "r+") for a in (*histograms(view), "key", *VIEW_TEXTS, *columns)):
                if array.shape[0] < n_runs:
                    array.resize((n_runs, *array.shape[1:]))
            if name:
                consolidate(path / name)
        array = open_array(path, "", "obs_id", "r+")
        if array.shape[0] < n_runs:
            array.resize((n_runs,))


def open_array(path: str | os.PathLike[str], view: str, name: str, mode: Any = "r") -> zarr.Array:
    """One array of a store.

    Raises
    ------
    ArchiveError
        If it is no more there.
    """
    try:
        array = zarr.open_array(Path(path, view), path=name, mode=mode)
    except FileNotFoundError as error:
        raise removed(path) from error
    assert isinstance(array, zarr.Array)
    return array


def blocks_on_disk(path: Path, view: View) -> set[int]:
    """Blocks all of whose chunks are there."""
    with told(path):
        names = [os.listdir(path / view.name / array) for array in histograms(view)]
    return set.intersection(
        *({int(match[1]) for name in some if (match := _CHUNK.fullmatch(name))} for some in names)
    )


def clear_leftovers(path: Path) -> None:
    """Remove what killed jobs left half-written; only for the one who holds the lock."""
    for folder, _, names in os.walk(path):
        for name in names:
            if name.endswith(".partial") or name.startswith(".dask_bkg-"):
                with suppress(OSError):
                    os.unlink(os.path.join(folder, name))


@contextmanager
def told(path: str | os.PathLike[str]) -> Iterator[None]:
    """`ArchiveError` for what the disk refuses."""
    try:
        yield
    except FileNotFoundError as error:
        raise removed(path) from error
    except OSError as error:
        raise ArchiveError(
            f"the store of run histograms {path} cannot be written ({error.strerror or error}): make room, or give a "
            "place that you may write to, and start again; what is in the store is kept."
        ) from error


def removed(path: str | os.PathLike[str]) -> ArchiveError:
    """The error of a store of which something vanished while it was in use."""
    return ArchiveError(
        f"the store of run histograms {path}, or a part of it, was removed or moved while it was in use: put it "
        "back, or remove what is left of it, and start again; a new one is then made from the event files."
    )


def damaged(path: str | os.PathLike[str], view: str, name: str, block: int, why: object) -> ArchiveError:
    """The error of a chunk that cannot be read."""
    files = Path(path, view, name, f"c.{block}.*")
    return ArchiveError(f"{files} of the store of run histograms is damaged ({why}): remove it, and start again; the "
                        "next job reads the runs in it again.")  # fmt: skip


def timestamp() -> str:
    """The time, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
