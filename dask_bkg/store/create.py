"""How a store of run histograms, and a view of it, come into being: whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from dask_bkg.binning import FIELD, View
from dask_bkg.files import atomic_directory, remove_leftovers
from dask_bkg.schema import RUN_NUMBERS, UNITS
from dask_bkg.store.layout import (  # fmt: skip
    LAYOUT,
    NEVER_WRITTEN,
    PROGRAM,
    TABLE_CHUNK,
    TEXTS,
    VIEW_NAMES,
    VIEW_TEXTS,
    consolidate,
    coordinates,
    histograms,
    timestamp,
    told,
)

LEFT_BEHIND = 3600.0
"""Seconds after which what is made within seconds is that of a killed job."""


def create(path: Path, view: View, block: int) -> None:
    """Write an empty store; if another job was faster, its store stays."""
    now = timestamp()
    attributes = {
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
    with _made_whole(path, path) as temporary:
        group = _make_group(temporary, view, 0, block, attributes)
        _table_arrays(group)
        consolidate(temporary)


def create_view(path: Path, view: View, n_runs: int, block: int) -> None:
    """Add an empty view to a store."""
    with _made_whole(path, path / view.name) as temporary:
        _make_group(temporary, view, n_runs, block, {})
        consolidate(temporary)


@contextmanager
def _made_whole(store: Path, target: Path) -> Iterator[Path]:
    """A temporary directory that becomes a store or a part of it; what killed jobs left of such is removed."""
    with told(target):
        # next to the store: nothing in it may be taken for a view
        remove_leftovers(store.parent, LEFT_BEHIND, (target.name[-40:], *VIEW_NAMES), below=False)
        with atomic_directory(target, store.parent) as temporary:
            yield temporary


def _make_group(directory: Path, view: View, n_runs: int, block: int, attributes: dict[str, Any]) -> zarr.Group:
    """A group with the axes, histograms and keys of a view."""
    coords = coordinates(view)
    of_runs = {*VIEW_TEXTS, *(() if view.name else (*RUN_NUMBERS, *TEXTS))}
    listed = sorted({*coords} - {"energy", "offset", *FIELD} | of_runs)
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
    for name in VIEW_TEXTS:
        _column(group, name, str, "", n_runs)
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
        "alignment": view.alignment,
    }
