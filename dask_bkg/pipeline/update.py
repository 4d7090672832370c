"""The first step of a job: the run store brought up to date, every event file read once, ever."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from dask import delayed
from tqdm import tqdm

from dask_bkg.binning import FieldEdges, View, fine_view
from dask_bkg.cluster import Workers, job_workers
from dask_bkg.config import Config
from dask_bkg.errors import ArchiveError, ConfigError
from dask_bkg.lazy.execute import compute_each
from dask_bkg.output.index import check_writable
from dask_bkg.plan import Plan, plan_archive
from dask_bkg.sky.catalogs import catalog_files
from dask_bkg.store.layout import same_axes
from dask_bkg.store.store import RunStore
from dask_bkg.store.update import BlockWork, update_block
from dask_bkg.terminal import raw_stderr

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

OFF_MAX = 2.5
"""The fine histograms reach at least so far [deg], whatever the binning of the first job."""


@dataclass
class Stored:
    """The run store of a job, up to date.

    Attributes
    ----------
    store
        The store.
    view
        Name of the view that the job takes its rings from.
    opened, read
        Number of runs whose files were opened, and of those whose events were counted: the others were the same.
    field_view
        In a job of 3D backgrounds the name of the view that field pixels are taken from; else None.
    failed
        Runs that cannot be used, ``{obs_id: reason}``.
    fields
        Names of the views whose field pixels were asked for, by their frame.
    """

    store: RunStore
    view: str
    field_view: str | None = None
    opened: int = 0
    read: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)


def update_store(
    plan: Plan, workers: Workers | None, path: Path, *, progress: bool = True, frames: Sequence[str] = ()
) -> Stored:
    """Read the runs of a plan that the run store does not have, or has as they were.

    Parameters
    ----------
    plan
        The job.
    workers
        Where the runs are read; None: on threads.
    path
        The store; made if it is not there.
    progress
        Whether a bar is shown.
    frames
        Frames (``radec``, ``altaz``) in which the pixels of the fine view are needed, whatever the job needs.
    """
    config = plan.config
    fine = _fine_view(config)
    store = RunStore.open_or_create(path, fine, block=config.run_store.block)
    if not same_axes(store.fine, fine):
        log.warning("the run store %s has other fine axes than run_store asks for, and keeps them", store.path)
    view = store.view_for(plan.edges, config.model.exposure, config.exclusion.reach)
    views, done = [store.fine, view], Stored(store, view.name)
    if plan.field_plan is not None:
        views.append(store.field_view_for(plan.field_plan.edges, plan.field_plan.counted, config.exclusion.reach))
        done.field_view = views[-1].name
    for frame in frames:
        pixels = FieldEdges(store.fine.edges.energy, np.asarray(store.fine.pixels))
        views.append(store.field_view_for(pixels, frame, config.exclusion.reach))
        done.fields[frame] = views[-1].name
    views = list({v.name: v for v in views}.values())
    # a store that is up to date needs no lock: it may be read-only, or another job may be writing into it
    missing = store.outdated(plan.runs, views, plan.regions)
    if missing:
        _tell_of_odd_bins(store, views, config, len(missing))
        with store.writing():
            client = None if workers is None else workers.for_runs(len(missing))
            _read_runs(done, plan, views, client, progress)
    else:
        store.mend()
    done.failed |= {**plan.unusable, **store.errors([run.obs_id for run in plan.runs])}
    return done


def _tell_of_odd_bins(store: RunStore, views: list[View], config: Config, n_missing: int) -> None:
    """A warning where runs are read for bins that other ones would have had from what is there."""
    asked, fine, why = config.run_store, store.fine, ""
    if any(view.pixels is None and view.method == fine.method for view in views):
        why = (
            f"the binning is no sum of the fine bins of the run store ({asked.bins_per_decade} energies a decade, "
            f"edges at 0.1, 1, 10 TeV; rings of {asked.ring:g} deg)"
        )
    elif any(view.pixels not in (None, fine.pixels) for view in views):
        why = (
            "the pixels of the field (binning.fov_bins, fov_max) are no sums of the fine ones of the run store "
            f"({asked.pixel:g} deg)"
        )
    if why:
        log.warning("%s: %d runs are read for it", why, n_missing)


def _fine_view(config: Config) -> View:
    """The fine view of a new store, from a configuration."""
    asked = config.run_store
    try:
        return fine_view(asked.bins_per_decade, asked.pixel, asked.ring, max(config.binning.off_max, OFF_MAX))
    except ValueError as error:
        raise ConfigError(f"run_store: {error}") from error


def _read_runs(done: Stored, plan: Plan, views: list[View], client: Client | None, progress: bool) -> None:
    """Read what is missing, a block of runs a task, and take it into the store as it comes."""
    store, config = done.store, plan.config
    files = catalog_files(config.exclusion, config.base_dir)
    hashes = {name: file["sha256"] for name, file in files.items()}
    work = store.plan_update(plan.runs, views, plan.regions, hashes)
    regions = delayed(plan.regions, name=f"exclusion-{uuid.uuid4().hex[:8]}", pure=False)
    with progress_bar("runs read", sum(len(part.runs) for part in work), progress) as bar:

        def record(part: BlockWork, result: Any) -> None:
            if isinstance(result, BaseException):
                # the task died with its worker (memory, walltime)
                why = f"the task that reads it failed ({died(result)}"
                done.failed |= {run.obs_id: f"run {run.obs_id}: {why}" for run in part.runs}
            else:
                store.record(result)
                done.read += sum(run.status == "read" for run in result)
                done.opened += len(result)
            bar.update(len(part.runs))

        def compute(parts: Sequence[BlockWork], last: bool = False) -> list[BlockWork]:
            """Read some blocks; returns the runs of those whose task died, or records these too, the last time."""
            killed: list[BlockWork] = []

            def take(i: int, result: Any) -> None:
                if isinstance(result, ArchiveError):
                    raise result
                if isinstance(result, BaseException) and not last:
                    killed.extend(parts[i].singles())
                else:
                    record(parts[i], result)

            tasks = [
                delayed(update_block, pure=False)(
                    part, regions, views, dask_key_name=("reduce-runs-" + uuid.uuid4().hex[:8], i)
                )
                for i, part in enumerate(parts)
            ]
            compute_each(tasks, client, config.config.n_workers, take)
            return killed

        # a run that kills its worker must not take others along: neither those of its block, nor those of tasks that
        # waited on the same worker, which Dask gives up as well
        for single in compute(compute(work)):
            compute([single], last=True)


def died(error: BaseException) -> str:
    """What happened to a task that died, and what to do."""
    if type(error).__name__ == "KilledWorker":  # distributed is imported where there are workers
        # Dask's own text is a paragraph
        return (
            "KilledWorker: all workers that tried it were killed (memory, walltime)): run it again, with more memory"
        )
    return f"{type(error).__name__}: {error}): run it again{', with more memory' * isinstance(error, MemoryError)}"


def reduce_archive(config: Config, *, progress: bool = True) -> Stored:
    """Bring the run store of a configuration up to date, and no more: what ``dask-bkg reduce`` does."""
    plan = plan_archive(config)
    check_writable(config)
    with job_workers(config, progress=progress) as workers:
        return update_store(plan, workers, config.store_path, progress=progress)


@contextmanager
def progress_bar(what: str, total: int, progress: bool) -> Iterator[tqdm]:
    """A bar that counts runs."""
    with tqdm(total=total, desc=what, unit="run", disable=not progress, file=raw_stderr()) as bar:
        yield bar
