"""How run histograms lie on disk: the groups and arrays of the zarr store, and how they come into being and grow.

The root group holds the fine view and the table of the runs, a subgroup each further view; the rows of all arrays are
runs, in the order in which they came.  What is made is made beside and renamed.  The consolidated metadata of a group
is replaced last and as a whole: a reader sees the rows of before or of after, whatever happens in between.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
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
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from dask_bkg.dl3.atomic import atomic_path
from dask_bkg.dl3.reduce import solid_angles
from dask_bkg.errors import ArchiveError
from dask_bkg.schema import RUN_NUMBERS, RUN_TEXTS, UNITS, Edges, View, axis_coords

LAYOUT = 1
"""Version of what is described here; a store of another one is not touched."""

PROGRAM = f"dask_bkg {version('dask_bkg')}"

BLOCK = 50
"""Runs of a chunk of histograms: 0.2 MB packed, 6 MB unpacked, half a second of reading events."""

TABLE_CHUNK = 16384
"""Runs of a chunk of the table: few files, so that a store of 20,000 runs opens at once."""

TEXTS = (*RUN_TEXTS, "fingerprint", "exclusion", "whole_exclusion")
"""Per-run texts of the store; ``exclusion`` is the digest of the regions near the run when all of them together had
the digest ``whole_exclusion``."""

NEVER_WRITTEN = {"uint32": np.iinfo(np.uint32).max, "float64": np.nan}
"""What an array says where no histogram was written: a chunk that is lost is not taken for an empty one."""

FIELD = ("fov_lat", "fov_lon")
VIEW_DIRECTORY = "rings-"
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


def create(path: Path, view: View, block: int) -> None:
    """Write an empty store, beside and then renamed; if another job was faster, its store stays."""
    now = timestamp()
    attributes = {
        "title": "Run histograms of a gamma-ray archive",
        "dask_bkg_layout": LAYOUT,
        "program": PROGRAM,
        "block": block,
        "exclusion": "",
        "catalogs": {},
        "made": now,
        "written": now,
    }
    with _beside(path, path.parent) as temporary:
        group = _make_group(temporary, view, 0, block, attributes)
        _table_arrays(group)
        consolidate(temporary)


def create_view(path: Path, view: View, n_runs: int, block: int) -> None:
    """Add an empty view to a store."""
    with _beside(path / view.name, path.parent) as temporary:
        _make_group(temporary, view, n_runs, block, {})
        consolidate(temporary)


@contextmanager
def _beside(target: Path, directory: Path) -> Iterator[Path]:
    """A directory to be filled, which then takes its place, unless there is something in it by now."""
    temporary = directory / f".dask_bkg-{os.getpid()}-{secrets.token_hex(8)}-{target.name[-40:]}"
    with told(target):
        try:
            directory.mkdir(parents=True, exist_ok=True)
            yield temporary
            try:
                os.rename(temporary, target)
            except OSError:
                # a directory with something in it is never replaced: another job was faster
                if not _is_full(target):
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _is_full(directory: Path) -> bool:
    return directory.is_dir() and any(directory.iterdir())


def _make_group(directory: Path, view: View, n_runs: int, block: int, attributes: dict[str, Any]) -> zarr.Group:
    """A group with the axes, histograms and keys of a view."""
    coords = coordinates(view)
    listed = sorted({*coords} - {"energy", "offset", *FIELD} | ({*RUN_NUMBERS, *TEXTS} if not view.name else set()))
    attributes = {**attributes, "view": _view_attributes(view), "coordinates": " ".join(listed)}
    group = zarr.open_group(directory, mode="w-", zarr_format=3, attributes=attributes)
    for name, (dims, values, units) in coords.items():
        dims = (dims,) if isinstance(dims, str) else dims
        array = group.create_array(
            name,
            shape=values.shape,
            chunks=values.shape,
            dtype="float64",
            dimension_names=dims,
            attributes={**units},
        )
        array[:] = values
    for name, (dtype, dims, shape) in histograms(view).items():
        group.create_array(
            name,
            shape=(n_runs, *shape),
            chunks=(block, *shape),
            dtype=dtype,
            fill_value=NEVER_WRITTEN[dtype],
            # bits of a kind beside each other: counts are small, 45 % less than zstd alone
            compressors=[BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"), Crc32cCodec()],
            chunk_key_encoding={"name": "default", "separator": "."},
            dimension_names=("obs_id", *dims),
            attributes={"units": ""},
        )
    _column(group, "key", "uint64", 0, n_runs)
    return group


def _table_arrays(group: zarr.Group) -> None:
    _column(group, "obs_id", "int64", -1)
    for name in RUN_NUMBERS:
        _column(group, name, "float64", np.nan)
    for name in TEXTS:
        _column(group, name, str, "")


def _column(group: zarr.Group, name: str, dtype: Any, fill_value: Any, n_runs: int = 0) -> None:
    group.create_array(
        name,
        shape=(n_runs,),
        chunks=(TABLE_CHUNK,),
        dtype=dtype,
        fill_value=fill_value,
        compressors=[ZstdCodec(level=1, checksum=True)],
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=("obs_id",),
        attributes={"units": UNITS[name]} if name in UNITS else {},
    )


def _view_attributes(view: View) -> dict[str, Any]:
    return {
        "name": view.name,
        "energy_edges": view.edges.energy.tolist(),
        "offset_edges": view.edges.offset.tolist(),
        "method": view.method,
        "reach": view.reach,
        "pixel_edges": None if view.pixels is None else list(view.pixels),
    }


def _view(attributes: Mapping[str, Any]) -> View:
    edges = Edges(np.array(attributes["energy_edges"]), np.array(attributes["offset_edges"]))
    pixels = attributes["pixel_edges"]
    return View(
        attributes["name"],
        edges,
        attributes["method"],
        attributes["reach"],
        None if pixels is None else tuple(pixels),
    )


def is_store(path: Path) -> bool:
    """Whether there is a store; False where there is nothing at all.

    Raises
    ------
    ArchiveError
        If there is something else, or a store of another version.
    """
    if not path.exists() or (path.is_dir() and not _is_full(path)):
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
    if not is_store(path):
        raise ArchiveError(
            f"{path} holds no store of run histograms; `dask-bkg reduce config.yaml` and `dask-bkg run config.yaml` "
            "make one (by default below io.results_dir)."
        )
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
    names = ["", *sorted(p.name for p in path.glob(f"{VIEW_DIRECTORY}*") if (p / "zarr.json").is_file())]
    return {name: _view(_attributes(path / name)["view"]) for name in names}


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
    return same and a.pixels == b.pixels


def axes_text(view: View) -> str:
    """The axes of a view in words."""
    energy, offset = view.edges
    rings = f"{offset.size - 1} rings {offset[0]:g}-{offset[-1]:g} deg"
    pixels = "" if view.pixels is None else f", {len(view.pixels) - 1}^2 pixels of {np.diff(view.pixels)[0]:g} deg"
    return f"{energy.size - 1} energies {energy[0]:g}-{energy[-1]:g} TeV, {rings}{pixels}"


def consolidate(path: Path) -> None:
    """Gather the metadata of a group's arrays in the group's own, which readers then open in one piece."""
    with warnings.catch_warnings():
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
            for array in (open_array(path, name, a, "r+") for a in (*histograms(view), "key", *columns)):
                if array.shape[0] < n_runs:
                    array.resize((n_runs, *array.shape[1:]))
            if name:
                consolidate(path / name)
        array = open_array(path, "", "obs_id", "r+")
        if array.shape[0] < n_runs:
            array.resize((n_runs,))


def open_array(path: str | os.PathLike[str], view: str, name: str, mode: Any = "r") -> zarr.Array:
    """One array of a store."""
    array = zarr.open_array(Path(path, view), path=name, mode=mode)
    assert isinstance(array, zarr.Array)
    return array


def blocks_on_disk(path: Path, view: View) -> set[int]:
    """Blocks all of whose chunks are there."""
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
    except OSError as error:
        raise ArchiveError(
            f"the store of run histograms {path} cannot be written ({error.strerror or error}): make room, or give a "
            "place that you may write to, and start again; what is in the store is kept."
        ) from error


def damaged(path: str | os.PathLike[str], view: str, name: str, block: int, why: object) -> ArchiveError:
    """The error of a chunk that cannot be read."""
    files = Path(path, view, name, f"c.{block}.*")
    return ArchiveError(f"{files} of the store of run histograms is damaged ({why}): remove it, and start again; the "
                        "next job reads the runs in it again.")  # fmt: skip


def timestamp() -> str:
    """The time, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
