"""The first step of a job: the run store brought up to date, every event file read once, ever."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dask import delayed
from distributed import Client
from tqdm import tqdm

from dask_bkg import bookkeeping, schema
from dask_bkg.archive.store import RunStore
from dask_bkg.archive.update import update_block
from dask_bkg.cluster import open_client
from dask_bkg.config import Config
from dask_bkg.errors import ArchiveError
from dask_bkg.lazy.execute import compute_each
from dask_bkg.lazy.graph import batch_size
from dask_bkg.plan import Plan, plan_archive
from dask_bkg.schema import View


@dataclass
class Stored:
    """The run store of a job, up to date.

    Attributes
    ----------
    store
        The store.
    view
        Name of the view that the job takes its histograms from.
    read
        Number of runs whose events were read and counted.
    failed
        Runs that cannot be used, ``{obs_id: reason}``.
    """

    store: RunStore
    view: str
    read: int = 0
    failed: dict[int, str] = field(default_factory=dict)


def update_store(plan: Plan, client: Client | None, path: Path, *, progress: bool = True) -> Stored:
    """Read the runs of a plan that the run store does not have, or has as they were.

    Parameters
    ----------
    plan
        The job.
    client
        Where the runs are read; None: on threads.
    path
        The store; made if it is not there.
    progress
        Whether a bar is shown.
    """
    config = plan.config
    fine = schema.fine_view(
        config.run_store.bins_per_decade, config.run_store.pixel, config.run_store.ring, config.binning.off_max
    )
    store = RunStore.open_or_create(path, fine, block=config.run_store.block or batch_size(len(plan.runs)))
    view = store.view_for(plan.edges, config.model.exposure, config.exclusion.reach)
    views = list({v.name: v for v in (store.fine, view)}.values())
    done = Stored(store, view.name)
    # a store that is up to date needs no lock: it may be read-only, or another job may be writing into it
    if store.outdated(plan.runs, views, plan.regions):
        with store.writing():
            _read_runs(done, plan, views, client, progress)
    done.failed |= {**plan.unusable, **store.errors([run.obs_id for run in plan.runs])}
    return done


def _read_runs(done: Stored, plan: Plan, views: list[View], client: Client | None, progress: bool) -> None:
    """Read what is missing, a block of runs a task, and take it into the store as it comes."""
    store, config = done.store, plan.config
    work = store.plan_update(plan.runs, views, plan.regions, bookkeeping.catalog_hashes(config))
    regions = delayed(plan.regions, name=f"exclusion-{uuid.uuid4().hex[:8]}", pure=False)
    tasks = [
        delayed(update_block, pure=False)(
            str(store.path), part, regions, views, dask_key_name=("reduce-runs-" + uuid.uuid4().hex[:8], i)
        )
        for i, part in enumerate(work)
    ]
    with progress_bar("runs read", sum(len(part.runs) for part in work), progress) as bar:

        def record(i: int, result: Any) -> None:
            if isinstance(result, ArchiveError):
                raise result
            bar.update(len(work[i].runs))
            if isinstance(result, BaseException):
                done.failed |= {run.obs_id: _died(run.obs_id, result) for run in work[i].runs}
                return
            store.record(result)
            done.read += sum(run.status == "read" for run in result.runs)

        compute_each(tasks, client, config.config.n_workers, record)


def _died(obs_id: int, error: BaseException) -> str:
    """Why a run was not read, where the task died with its worker (memory, walltime)."""
    return (
        f"run {obs_id}: the task that reads it failed on the cluster ({type(error).__name__}: {error}): "
        "run it again, with more memory"
    )


def reduce_archive(config: Config, *, progress: bool = True) -> Stored:
    """Bring the run store of a configuration up to date, and no more: what ``dask-bkg reduce`` does."""
    with open_client(config.cluster, config.config.n_workers) as client:
        plan = plan_archive(config)
        bookkeeping.check_writable(config)
        return update_store(plan, client, config.store_path, progress=progress)


@contextmanager
def progress_bar(what: str, total: int, progress: bool) -> Iterator[tqdm]:
    """A bar that counts runs."""
    with tqdm(total=total, desc=what, unit="run", disable=not progress) as bar:
        yield bar
