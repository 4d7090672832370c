"""The procedure on Dask: each step lazy, and `run` that does them all.

The only room that knows dask's collections; a line here that does arithmetic belongs in `kernels`, `stacking` or
`rate`.  The way of the data::

    reduce-runs    one task a batch of runs -> counts, exposure          xarray.Dataset (obs_id, energy, offset)
    stack-runs     one task a batch of runs and a block of targets, then a tree of sums
    write-dl3      one task a block of targets -> files

Blocks depend on the data and the configuration, never on workers: sums are made in the same order everywhere, and
the rates are the same bit by bit.  Paths, numbers and edges travel, no objects that hold files.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask import delayed
from dask.callbacks import Callback
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph
from distributed import Client, Future, as_completed
from numpy.typing import NDArray
from tqdm import tqdm

from dask_bkg import bookkeeping, schema
from dask_bkg.cluster import open_client
from dask_bkg.config import Config
from dask_bkg.dl3.read import RunFile, read_conditions
from dask_bkg.dl3.reduce import reduce_block
from dask_bkg.errors import BackgroundError
from dask_bkg.exclusion import SkyRegions
from dask_bkg.plan import Plan, Target, plan_job
from dask_bkg.products import Result, write_block
from dask_bkg.schema import Edges
from dask_bkg.stacking import add_stacks, stack_block

SPLIT_EVERY = 8
"""Stacks that one task of the tree adds up."""

STACK_INPUTS = ("counts", "exposure", "livetime", "error", "note")
"""Variables of the runs that a stack is made of, as `dask_bkg.stacking.stack_block` takes them."""


def batch_size(n_runs: int) -> int:
    """Runs a task: 10 ms a run make 0.1 s for a small archive and 0.5 s for a large one."""
    return int(np.clip(n_runs // 100, 10, 50))


def batches(items: Sequence, size: int) -> list:
    """Consecutive pieces of ``size``, the last one shorter."""
    return [items[i : i + size] for i in range(0, len(items), size)]


# -- reduce --------------------------------------------------------------------------------------------------


def reduce_runs(
    runs: Sequence[RunFile],
    edges: Edges,
    regions: SkyRegions | None = None,
    *,
    method: str = "geometry",
    reach: str = "disc",
    batch: int | None = None,
) -> xr.Dataset:
    """Counts and exposure of many runs, lazily.

    Parameters
    ----------
    runs
        Where their events are.
    edges, regions, method, reach
        As for `dask_bkg.reduce_run`.
    batch
        Runs a task; by default `batch_size`.

    Returns
    -------
    dataset
        ``counts`` and ``exposure`` [s TeV sr] with dimensions ``(obs_id, energy, offset)``, dask arrays of one chunk
        a batch; the per-run numbers, and ``error`` (why a run could not be used), as lazy coordinates.
    """
    token = uuid.uuid4().hex[:8]
    parts = batches(list(runs), batch or batch_size(len(runs)))
    shared, name = delayed(regions, name=f"exclusion-{token}", pure=False), f"reduce-runs-{token}"
    # written as a layer: thousands of calls of delayed and from_delayed would take longer than the small archive
    layer: dict = {
        (name, i): (partial(reduce_block, part, edges, method=method, reach=reach), shared.key)
        for i, part in enumerate(parts)
    }
    graph = HighLevelGraph.from_collections(name, layer, dependencies=[shared])
    sizes = [len(part) for part in parts]
    numbers = {**dict.fromkeys(schema.RUN_NUMBERS, float), **dict.fromkeys(schema.RUN_TEXTS, object)}
    obs_id = np.array([run.obs_id for run in runs], dtype=np.int64)
    dataset = xr.Dataset(
        _lazy(graph, name, sizes, dict.fromkeys(schema.HISTOGRAMS, float), edges),
        coords={"obs_id": obs_id, **schema.axis_coords(edges), **_lazy(graph, name, sizes, numbers, edges)},
    )
    return schema.with_units(dataset)


def _variable(block, name: str):
    """One variable of a block: the array that a chunk of the lazy dataset holds."""
    value = getattr(block, name)
    return np.asarray(getattr(value, "values", value))


def _lazy(graph: HighLevelGraph, blocks: str, sizes: list[int], dtypes: Mapping[str, type], edges: Edges) -> dict:
    """Variables of the blocks of a layer as dask arrays, chunked along ``obs_id``."""
    variables = {}
    for name, dtype in dtypes.items():
        histogram = name in schema.HISTOGRAMS
        dims, shape = (("obs_id", *schema.AXES), edges.shape) if histogram else (("obs_id",), ())
        key = f"{name}-of-{blocks}"
        layer = {
            (key, i, *(0 for _ in shape)): (partial(_variable, name=name), (blocks, i)) for i in range(len(sizes))
        }
        layers: dict[str, Any] = {**graph.layers, key: layer}
        joined = HighLevelGraph(layers, {**graph.dependencies, key: {blocks}})
        chunks = (tuple(sizes), *((n,) for n in shape))
        array = da.Array(joined, key, chunks=chunks, dtype=dtype)
        variables[name] = (dims, array)
    return variables


# -- stack ---------------------------------------------------------------------------------------------------


def stack_runs(
    runs: xr.Dataset, targets: Sequence[Target], *, block: int | None = None, split_every: int = SPLIT_EVERY
) -> xr.Dataset:
    """Stacks of the contributing runs of each target, lazily, as a tree of sums.

    Parameters
    ----------
    runs
        Run histograms of `reduce_runs`.
    targets
        Who gets what: ``obs_id`` and ``contributing`` run numbers.
    block
        Targets a task; by default as many as runs.
    split_every
        Stacks that one task of the tree adds up.

    Returns
    -------
    dataset
        ``counts`` and ``exposure`` [s TeV sr] with dimensions ``(obs_id, energy, offset)``, where ``obs_id`` is the
        target; ``livetime`` [s], ``n_runs`` and ``errors`` (a dict of the runs that could not be used) beside them.
    """
    token = uuid.uuid4().hex[:8]
    parts = batches(list(targets), block or batch_size(runs.sizes["obs_id"]))
    arrays = [runs[name].data for name in STACK_INPUTS]
    name, layer = f"stack-runs-{token}", dict[Any, Any]()
    for i, part in enumerate(parts):
        layer.update(_stack_tree(part, runs, [array.name for array in arrays], (name, i), split_every))
    graph = HighLevelGraph.from_collections(name, layer, dependencies=arrays)
    edges, sizes = schema.edges_of(runs), [len(part) for part in parts]
    dtypes = {
        **dict.fromkeys(schema.HISTOGRAMS, float),
        "livetime": float,
        "n_runs": int,
        "errors": object,
        "notes": object,
    }
    dataset = xr.Dataset(
        _lazy(graph, name, sizes, dtypes, edges),
        coords={"obs_id": np.array([t.obs_id for t in targets], dtype=np.int64), **schema.axis_coords(edges)},
    )
    return schema.with_units(dataset)


def _stack_tree(
    targets: Sequence[Target], runs: xr.Dataset, arrays: list[str], root: tuple[str, int], split_every: int
) -> dict:
    """Tasks that sum all contributing runs of a block of targets, the last of them called ``root``."""
    name, i = root
    counts, exposure, *numbers_of_runs = arrays
    tasks: dict = {}
    for chunk, (numbers, weights) in contribution_weights(targets, runs).items():
        inputs = ((counts, chunk, 0, 0), (exposure, chunk, 0, 0), *((array, chunk) for array in numbers_of_runs))
        tasks[f"{name}-block", i, chunk] = (partial(stack_block, weights, numbers), *inputs)
    level, depth = list(tasks), 0
    while len(level) > split_every:
        depth += 1
        groups = {(f"{name}-sum", i, depth, j): group for j, group in enumerate(batches(level, split_every))}
        tasks |= {key: (_add, *group) for key, group in groups.items()}
        level = list(groups)
    tasks[root] = (_add, *level)
    return tasks


def _add(*stacks):
    return add_stacks(stacks)


def contribution_weights(targets: Sequence[Target], runs: xr.Dataset) -> dict[int, tuple[NDArray, NDArray]]:
    """For each chunk of runs that contributes to a block of targets its run numbers and their weights.

    Returns
    -------
    weights
        ``{chunk: (obs_id, weights)}``; a weight is 1 for a run that contributes, shape ``(targets, runs)``. In the
        order of the chunks; those that contribute nothing are not there.
    """
    obs_id = runs["obs_id"].values
    bounds = np.cumsum([0, *runs["counts"].data.chunks[0]])
    order = np.argsort(obs_id, kind="stable")
    places = [_places(obs_id[order], order, np.asarray(t.contributing)) for t in targets]
    weights: dict[int, tuple[NDArray, NDArray]] = {}
    for chunk in np.unique(np.searchsorted(bounds, np.concatenate(places), side="right") - 1).tolist():
        start, stop = bounds[chunk], bounds[chunk + 1]
        block = np.zeros((len(targets), stop - start))
        for row, place in zip(block, places, strict=True):
            row[place[(place >= start) & (place < stop)] - start] = 1.0
        weights[chunk] = (obs_id[start:stop], block)
    return weights


def _places(numbers: NDArray, order: NDArray, wanted: NDArray) -> NDArray:
    """Where the wanted of some runs are, given the ascending numbers of all; a run that is not there has no place."""
    found = np.minimum(np.searchsorted(numbers, wanted), numbers.size - 1)
    return order[found[numbers[found] == wanted]]


# -- write ---------------------------------------------------------------------------------------------------


def write_backgrounds(stacks: xr.Dataset, plan: Plan) -> list[Delayed]:
    """One delayed task a block of targets that makes and writes its backgrounds; each gives a list of `Result`."""
    token = uuid.uuid4().hex[:8]
    cards = bookkeeping.common_cards(plan)
    lazy = [
        stacks[name].data.to_delayed(optimize_graph=False).ravel()
        for name in ("counts", "exposure", "livetime", "n_runs", "errors", "notes")
    ]
    return [
        delayed(write_block, pure=False)(
            targets, *arrays, plan.edges, plan.rate, plan.attach_copy, cards,
            dask_key_name=("write-dl3-" + token, i),
        )
        for i, (targets, *arrays) in enumerate(zip(_target_blocks(plan, stacks), *lazy, strict=True))
    ]  # fmt: skip


# -- run -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """What became of a job.

    Attributes
    ----------
    results
        One `Result` a target, by run number.
    results_dir
        Where provenance, effective configuration and the summary table are.
    unusable
        Runs of the archive that the index makes unusable, ``{obs_id: reason}``.
    missing
        Runs of the runlist that ``in_dir`` does not have.
    """

    results: list[Result]
    results_dir: Path
    unusable: dict[int, str] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)

    @property
    def failed(self) -> dict[int, str]:
        """Targets and contributing runs that could not be used, with their reasons."""
        reasons = dict(self.unusable)
        for result in self.results:
            reasons.update(result.failed_runs)
            if result.status == "failed":
                reasons[result.obs_id] = result.reason
        return dict(sorted(reasons.items()))


def reduce_plan(plan: Plan) -> xr.Dataset:
    """`reduce_runs` of the contributing runs of a plan."""
    method, reach = plan.config.model.exposure, plan.config.exclusion.reach
    return reduce_runs(plan.runs, plan.edges, plan.regions, method=method, reach=reach)


def build(plan: Plan) -> tuple[xr.Dataset, xr.Dataset, list[Delayed]]:
    """The graph of a job: run histograms, stacks and write tasks. Computes nothing."""
    runs = reduce_plan(plan)
    stacks = stack_runs(runs, plan.targets)
    return runs, stacks, write_backgrounds(stacks, plan)


def run(config: Config, *, progress: bool = True) -> Summary:
    """Do a job: plan, reduce, stack, write, index.

    Parameters
    ----------
    config
        A configuration whose ``in_dir`` is prepared (see `dask_bkg.prepare_dataset`).
    progress
        Whether bars are shown.

    Raises
    ------
    BackgroundError
        If nothing could be done; `Summary.failed` otherwise tells the runs that could not.
    """
    with open_client(config.cluster, config.config.n_workers) as client:
        if client is not None and progress:
            tqdm.write(f"dashboard: {client.dashboard_link}")
        plan = plan_job(config, lambda files: _read_headers(files, client))
        results = [Result(obs_id, "failed", reason) for obs_id, reason in plan.failed.items()]
        bookkeeping.check_writable(config)
        retired = bookkeeping.retire_backgrounds(plan)
        try:
            for block in _compute(plan, client, config.config.n_workers, progress):
                results += block
        except BaseException:
            # a task may have written files and not said so yet: only what is known to be done gets its row back
            bookkeeping.write_indexes(plan, results)
            raise
    refused = bookkeeping.write_indexes(plan, results, retired)
    results = [replace(r, status="failed", reason=refused[r.obs_id]) if r.obs_id in refused else r for r in results]
    results.sort(key=lambda r: r.obs_id)
    results_dir = bookkeeping.write_results(plan, results)
    if not any(result.status == "done" for result in results):
        raise BackgroundError("no background could be made:\n" + "\n".join(f"  {r.reason}" for r in results[:20]))
    return Summary(results, results_dir, plan.unusable, plan.missing)


def _read_headers(files: list[RunFile], client: Client | None) -> list[dict[str, float]]:
    """Observing conditions of runs from their EVENTS headers, in batches."""
    tasks = [delayed(read_header_batch, pure=False)(part) for part in batches(files, 50)]
    computed = client.gather(client.compute(tasks)) if client else dask.compute(*tasks, scheduler="threads")
    return [numbers for part in computed for numbers in part]


def read_header_batch(files: list[RunFile]) -> list[dict[str, float]]:
    """Observing conditions from the EVENTS headers of a batch of runs; eager."""
    return [read_conditions(file) for file in files]


def _compute(plan: Plan, client: Client | None, n_workers: int, progress: bool) -> Iterator[list[Result]]:
    """Compute the graph, yielding blocks of results as they are written."""
    if not plan.targets:
        return
    runs, stacks, writes = build(plan)
    with _bars(len(plan.runs), len(plan.targets), progress) as (read, written):
        if client is None:
            with _ReduceProgress(read):
                blocks = dask.compute(*writes, scheduler="threads", num_workers=n_workers)
            for block in blocks:
                written.update(len(block))
                yield block
            return
        # the reasons of failure of a batch of runs are small, and there when the batch has been read; submitted in
        # one go with the rest, so that no batch is forgotten and read again
        reads = runs["error"].data.to_delayed(optimize_graph=False).ravel().tolist()
        futures = client.compute([*reads, *writes])
        of_reading = {future.key for future in futures[: len(reads)]}
        parts = dict(zip((future.key for future in futures[len(reads) :]), _target_blocks(plan, stacks), strict=True))
        try:
            for future in as_completed(futures):
                block = _result_of(future, parts.get(future.key, []))
                (read if future.key in of_reading else written).update(len(block))
                if future.key in parts:
                    yield block
        except BaseException:
            # an interrupt: the cluster may be somebody else's, and would go on computing
            client.cancel(futures)
            raise


def _target_blocks(plan: Plan, stacks: xr.Dataset) -> list[list[Target]]:
    """Targets of each write task: one a chunk of the stacks."""
    return [plan.targets[a:b] for a, b in pairwise(np.cumsum([0, *stacks["counts"].data.chunks[0]]))]


def _result_of(future: Future, targets: Sequence[Target]) -> list:
    """What a task gave; where it died with its worker (memory, walltime), a failure for each of its targets."""
    try:
        return future.result()
    except Exception as error:  # the scheduler's own (KilledWorker ...): tasks report what happens inside of them
        reason = f"its task failed on the cluster ({type(error).__name__}: {error}): run it again, with more memory"
        return [Result(t.obs_id, "failed", f"run {t.obs_id}: {reason}") for t in targets]


@contextmanager
def _bars(n_runs: int, n_targets: int, progress: bool):
    with (
        tqdm(total=n_runs, desc="runs read", unit="run", disable=not progress) as read,
        tqdm(total=n_targets, desc="backgrounds written", unit="run", disable=not progress) as written,
    ):
        yield read, written


class _ReduceProgress(Callback):
    """Moves a bar when a task of `reduce-runs` ends (threads)."""

    def __init__(self, bar: tqdm):
        super().__init__()
        self.bar = bar

    def _posttask(self, key, result, dsk, state, worker_id):
        if str(key[0] if isinstance(key, tuple) else key).startswith("reduce-runs"):
            self.bar.update(result.sizes["obs_id"])
