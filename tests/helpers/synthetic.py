"""Run histograms with their conditions, without a file: what the tests of the graph share."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask.callbacks import Callback
from dask.highlevelgraph import HighLevelGraph

from dask_bkg import schema
from dask_bkg.background.target import Target
from dask_bkg.binning import AXES, Edges, fine_view
from dask_bkg.config import parse_config
from dask_bkg.pipeline.tables import Tables
from dask_bkg.plan import Plan
from dask_bkg.schema import RUN_NUMBERS
from dask_bkg.settings import rate_settings
from dask_bkg.sky.exclusion import concat_regions

EDGES = Edges(np.geomspace(0.2, 20, 7), np.linspace(0, 2.5, 6))
FIRST = 5001


def settings(**section):
    return parse_config({"background_selection": section}).background_selection


def make_runs(n: int, *, block: int | None = None, seed: int = 0, events: float = 800, edges: Edges = EDGES):
    """Runs ``FIRST`` ... in blocks of ``block``, lazy as those of a run store; None: arrays in memory.

    Spectrum and radial profile go with the zenith angle, some rings are partly closed.
    """
    rng = np.random.default_rng(seed)
    zenith = rng.uniform(5, 60, n)
    energy, offset = np.sqrt(edges.energy[1:] * edges.energy[:-1]), (edges.offset[1:] + edges.offset[:-1]) / 2
    airmass = 1 / np.cos(np.deg2rad(zenith))[:, None, None]
    rate = (energy[:, None] / airmass) ** -1.7 * np.exp(-0.5 * (offset / (1.0 + 0.3 * airmass)) ** 2)
    fraction = np.where(rng.random((n, 1, offset.size)) < 0.2, rng.uniform(0.2, 1, (n, 1, offset.size)), 1.0)
    solid_angle = -2 * np.pi * np.diff(np.cos(np.deg2rad(edges.offset)))
    ontime = rng.uniform(900, 1800, n)
    exposure = ontime[:, None, None] * np.diff(edges.energy)[:, None] * solid_angle * fraction
    mean = rate * exposure
    mean *= (events * rng.uniform(0.3, 3, n) / mean.sum(axis=(1, 2)))[:, None, None]
    histograms = {"counts": rng.poisson(mean).astype(float), "exposure": exposure}
    columns = {
        "obs_id": np.arange(FIRST, FIRST + n),
        "ontime": ontime,
        "livetime": 0.9 * ontime,
        "zenith": zenith,
        "azimuth": rng.uniform(0, 360, n),
        "nsb": rng.normal(6, 1, n),
        "n_tels": rng.integers(3, 5, n).astype(float),
        "time": rng.uniform(58000, 58100, n),
        "ra_pnt": rng.uniform(80, 90, n),
        "dec_pnt": rng.uniform(20, 30, n),
        "muon_efficiency": rng.uniform(0.9, 1.1, n),
        "e_thres": 0.3 * airmass[:, 0, 0] * rng.uniform(0.9, 1.1, n),
        "object_code": rng.integers(-1, 4, n),
        "excluded": rng.random(n) < 0.1,
    }
    return dataset(histograms, columns, edges, block)


def dataset(histograms: dict, columns: dict, edges: Edges, block: int | None) -> xr.Dataset:
    """Arrays of shape ``(runs, energy, offset)`` and columns of shape ``(runs,)`` as run histograms."""
    if block is not None:
        histograms = {name: lazy_array(name, np.asarray(a, dtype=float), block) for name, a in histograms.items()}
    variables = {name: (("obs_id", *AXES), array) for name, array in histograms.items()}
    coords = {name: ("obs_id", column) for name, column in columns.items()}
    return schema.with_units(xr.Dataset(variables, coords={**coords, **schema.axis_coords(edges)}))


def make_job(n: int, **sections) -> tuple[Plan, Tables, SimpleNamespace]:
    """Plan, tables and run store of a job on an archive of ``n`` runs that is nowhere."""
    archive, out = "/archive/of/a/telescope/dl3", "/scratch/of/somebody/backgrounds"
    places = {"search_datastore": archive, "in_dir": archive, "out_dir": out}
    config = parse_config({"io": places, "exclusion": {"catalogs": []}, **sections})
    rng, numbers = np.random.default_rng(0), np.arange(FIRST, FIRST + n)
    texts = {name: np.array([f"{i:032x}" for i in range(n)], object) for name in ("fingerprint", "exclusion")}
    table = {
        **{name: rng.random(n) for name in RUN_NUMBERS},
        **texts,
        "note": np.full(n, "", object),
        "obs_id": numbers,
        "object_code": np.zeros(n, int),
        "excluded": np.zeros(n, bool),
    }
    names = [f"data/run_{i:06d}.fits.gz" for i in numbers.tolist()]
    targets = [
        Target(i, f"{archive}/{name}", f"{out}/{name}") for i, name in zip(numbers.tolist(), names, strict=True)
    ]
    edges = Edges(config.binning.energy_edges, config.binning.offset_edges)
    plan = Plan(config, edges, concat_regions([]), rate_settings(config), None, targets)
    store = SimpleNamespace(
        store=SimpleNamespace(path=f"{out}/runs.zarr", views={"": fine_view()}), view="", field_view=None
    )
    rows, keys = np.arange(n), rng.integers(1, 2**63, n).astype(np.uint64)
    return plan, Tables(targets, table, table, rows, rows, keys, keys), store


def lazy_array(name: str, array: np.ndarray, block: int) -> da.Array:
    """Dask array of one task a block, none of which holds the whole (as `dask.array.from_array` would)."""
    parts = blocks_of(array, block)
    name = f"{name}-{dask.base.tokenize(array, block)}"
    rest = array.ndim - 1
    graph = {(name, i, *[0] * rest): part for i, part in enumerate(parts)}
    return da.Array(graph, name, chunks=(tuple(map(len, parts)), *((n,) for n in array.shape[1:])), dtype=float)


def blocks_of(numbers: np.ndarray, size: int) -> list[np.ndarray]:
    return [numbers[a:b] for a, b in pairwise([*range(0, max(len(numbers), 1), size), len(numbers)])]


def refuse(*args, **kwargs):
    """A scheduler under which nothing may be computed."""
    raise AssertionError("something was computed")


def keys_of(*collections) -> list[str]:
    """Names of all tasks of a graph."""
    whole = HighLevelGraph.merge(*(collection.__dask_graph__() for collection in collections))
    return [str(key[0] if isinstance(key, tuple) else key) for layer in whole.layers.values() for key in layer]


def n_bytes(value) -> int:
    """Bytes of the arrays in what a task returns."""
    return sum(array.nbytes for array in arrays_in(value))


def arrays_in(value) -> list[np.ndarray]:
    """The arrays in what a task returns, in whatever it is packed."""
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [array for item in value for array in arrays_in(item)]
    return []


class Watch(Callback):
    """What the tasks of a graph return: the largest arrays, and how many bytes are held at once."""

    def __init__(self):
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()
        self.most = 0

    def _posttask(self, key, result, dsk, state, worker_id):
        self.shapes |= {array.shape for array in arrays_in(result)}
        self.most = max(self.most, sum(n_bytes(value) for value in state["cache"].values()))


def watched(*collections):
    """Compute in one thread; the results, and the `Watch`."""
    with Watch() as watch, dask.config.set(scheduler="synchronous"):
        results = dask.compute(*collections)
    return results, watch
