"""The methods that the benchmarks compare, and their backgrounds as datastores."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from dask_bkg.binning import Edges, FieldEdges
from dask_bkg.config import parse_config
from dask_bkg.dl3.attach import attach_background
from dask_bkg.dl3.background import background_table
from dask_bkg.dl3.given import read_given
from dask_bkg.dl3.index import read_datastore, write_index
from dask_bkg.dl3.index_rows import background_rows
from dask_bkg.pipeline.run import run_job

PLAIN: dict[str, Any] = {
    "preset": "gammapy-tools", "binning": {"e_bins": 20, "off_bins": 20},
    "background_selection": {"KL_DIV": True, "time_request": 10, "smooth": False},
}  # fmt: skip
"""The original procedure: 20 energies, 20 rings, event ratios, KL divergence of rates, 10 h; then `smoothed`."""

_2D, _3D = ({"binning": {"mode": mode}} for mode in ("2d", "3d"))
METHODS: dict[str, dict[str, Any]] = {
    "plain procedure": PLAIN,
    "plain procedure, 30 energies": PLAIN | {"binning": {"e_bins": 30, "off_bins": 20}},
    "rank kl": _2D | {"background_selection": {"rank": "kl"}},
    "rank elevation": _2D | {"background_selection": {"rank": "elevation"}},
    "conditions, one set of runs, no night": _2D | {"background_selection": {"shape_runs": "same", "night_level": 0}},
    "default 2D": _2D,
    "default 3D": _3D,
    "rank kl, 3D": _3D | {"background_selection": {"rank": "kl"}},
    "default 3D, same target out": _3D | {"background_selection": {"exclude_same_target": True}},
}
"""Configurations that are compared; each run's background is made of other runs."""


def quiet() -> None:
    """Keep gammapy from calling backgrounds of 20 x 20 bins ambiguous: it reads them as the format says."""
    logging.getLogger("gammapy").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")


def configuration(name: str, archive: Path, scratch: Path, over: Mapping[str, Any]) -> dict[str, Any]:
    """A method as a configuration for all runs of an archive; with the same exclusions they have one run store."""
    place = {"search_datastore": str(archive), "in_dir": str(archive), "out_dir": tempfile.mkdtemp(dir=scratch)}
    method = METHODS[name]
    runs = scratch / f"runs{'-' + method['preset'] if 'preset' in method else ''}.zarr"
    return {"io": place, "run_store": {"path": str(runs)}, "cluster": "threads", **method, **over}


def make_files(name: str, archive: Path, scratch: Path, over: Mapping[str, Any]) -> Path:
    """Backgrounds by a method, as a datastore."""
    config = parse_config(configuration(name, archive, scratch, over))
    run_job(config, progress=False)
    if METHODS[name].get("preset") == "gammapy-tools":
        smooth_files(config.directory("out_dir"))
    return config.directory("out_dir")


def smooth_files(directory: Path) -> None:
    """Smooth the backgrounds of a datastore as the procedure does."""
    store = read_datastore(directory)
    for obs_id in store.obs_ids.tolist():
        place = store.location(obs_id, "bkg")
        assert place is not None
        given = read_given(store, obs_id)
        edges = Edges(*given.axes)
        attach_background(place.path, place.path, background_table(smoothed(given.rate, edges.offset), edges))


def smoothed(rate: NDArray, offset_edges: NDArray, sigma: float = 1.0) -> NDArray:
    """The procedure's smoothing: rings on pixels as wide as they, a Gaussian of ``sigma`` pixels, the row to a side.

    The pixels are filled linearly.  The procedure's own ``to_3d`` goes through logarithms, where a ring without
    events is 1e-308 and what is extrapolated from it has no bounds: backgrounds of 1e90 are nothing to compare with.
    """
    n, width = offset_edges.size - 1, offset_edges[1] - offset_edges[0]
    center = (np.arange(-n, n) + 0.5) * width
    radius = np.hypot(center[:, None], center)
    images = (np.interp(radius, center[n:], ring) for ring in rate)
    return np.array([gaussian_filter(image, sigma)[n, n:] for image in images])


def write_archive(archive: Path, directory: Path, edges: Edges | FieldEdges, rates: Mapping[int, NDArray]) -> Path:
    """Copies of runs with backgrounds from elsewhere, those over the field aligned with the horizon.

    Parameters
    ----------
    archive
        Where the runs are, all HDUs of each in one file.
    directory
        What is written.
    edges
        Axes of the backgrounds.
    rates
        Node values by run number [s-1 TeV-1 sr-1], shape ``(energy, offset)`` or ``(energy, fov_lat, fov_lon)``.
    """
    store, placed = read_datastore(archive), {}
    kind = "bkg_3d" if isinstance(edges, FieldEdges) else "bkg_2d"
    for obs_id, rate in rates.items():
        place = store.location(obs_id, "events")
        assert place is not None
        relative = Path(place.path).relative_to(archive.resolve())
        (directory / relative).parent.mkdir(parents=True, exist_ok=True)
        hdu = background_table(rate, edges, alignment="ALTAZ" if kind == "bkg_3d" else "RADEC")
        name = attach_background(place.path, directory / relative, hdu)
        placed[obs_id] = str(relative.parent), relative.name, name, kind
    chosen, table = (np.isin(rows["OBS_ID"], list(rates)) for rows in (store.hdu, store.obs))
    write_index(directory, background_rows(store.hdu[chosen], placed), store.obs[table])
    return directory


def cells(row: Mapping[str, Any]) -> list[str]:
    """A line of a table, of one that `dask_bkg.validation.compare` gives: 1e-3 nats an event."""
    parts = [f"{1e3 * row[form]['value']:+.2f} +- {1e3 * row[form]['error']:.2f}" for form in FORMS]
    width = row["width"]["norm"]
    return [*parts, f"{width['value']:.3f} +- {width['error']:.3f}"]


FORMS = ("raw", "norm", "enorm")
COLUMNS = [*FORMS, "width (norm)"]
