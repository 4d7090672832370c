"""The background of a single run, in this thread: for notebooks, and for `client.submit`."""

from __future__ import annotations

import logging
import tempfile
import time
from pathlib import Path

import dask
from gammapy.irf import Background2D, Background3D

from dask_bkg.background.irf import background_2d, background_3d
from dask_bkg.background.model import stacked_rate
from dask_bkg.errors import RunError, StoreBusyError
from dask_bkg.lazy.execute import one_blas_thread
from dask_bkg.pipeline.graph import build, metadata_of, model_of
from dask_bkg.pipeline.tables import make_tables
from dask_bkg.pipeline.update import Stored, update_store
from dask_bkg.plan import Plan

log = logging.getLogger(__name__)

PATIENCE = 600.0
"""Seconds that a task waits for another one which writes to the run store."""

IN_THIS_THREAD = "synchronous"
"""Scheduler; named in each call, as Dask's configuration is one for all threads of a worker."""

MANY = 200
"""Runs that are read for a single background without a word."""


def make_one(plan: Plan) -> Background2D | Background3D:
    """Background of the one target of a plan, in this thread; writes no DL3 file.

    Contributing runs come from the run store of the configuration, or else are read for this one background.

    Raises
    ------
    RunError
        If the run cannot be used.
    """
    for reason in plan.failed.values():
        raise RunError(reason)
    target = plan.targets[0].obs_id
    path = plan.config.store_path
    with tempfile.TemporaryDirectory() as scratch:
        kept = not plan.config.io.from_run and (path / "zarr.json").exists()
        if not kept and len(plan.runs) > MANY:
            log.warning(
                "run %d: all %d runs of the archive are read, and not kept: `dask-bkg reduce` keeps them in a store",
                target,
                len(plan.runs),
            )
        stored = _update_patiently(plan, path if kept else Path(scratch) / "runs.zarr")
        tables = make_tables(plan, stored)
        for reason in tables.failed.values():
            raise RunError(reason)
        graph = build(plan, tables, stored)
        of_target = [{role: part[0] for role, part in blocks.items()} for blocks in (graph.selected, graph.stacks)]
        selected, stacks = dask.compute(*of_target, scheduler=IN_THIS_THREAD)
    chosen, stacks = ({role: block.of(0) for role, block in blocks.items()} for blocks in (selected, stacks))
    if chosen["spectrum"].reason:
        raise RunError(chosen["spectrum"].reason)
    with one_blas_thread():
        rate = stacked_rate(tables.ready[0], chosen, stacks, metadata_of(tables), model_of(plan)).rate
    if plan.field_plan is None:
        return background_2d(rate.value, plan.edges)
    return background_3d(rate.value, plan.field_plan.edges, plan.field_plan.written)


def _update_patiently(plan: Plan, path: Path) -> Stored:
    """`update_store`, after another task that is bringing the store up to date: many are submitted at once."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return update_store(plan, None, path, progress=False)
        except StoreBusyError:
            if time.monotonic() > until:
                raise
            time.sleep(0.5)
