"""Divergences as files: the matrix of a whole archive (``dask-bkg kl``), a table for each target (``store_KL``)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from dask.delayed import Delayed

from dask_bkg import selection, similarity
from dask_bkg.cluster import job_workers
from dask_bkg.config import BackgroundSelection, Config
from dask_bkg.dl3.kl_table import write_kl_table
from dask_bkg.errors import ArchiveError
from dask_bkg.files import atomic_directory
from dask_bkg.lazy.execute import compute_each
from dask_bkg.lazy.kl import add_shapes, bounds, kl_matrix
from dask_bkg.lazy.layers import All, Each, Layers
from dask_bkg.lazy.runs import load_runs
from dask_bkg.output.index import check_writable
from dask_bkg.pipeline.tables import make_tables
from dask_bkg.pipeline.update import update_store
from dask_bkg.plan import plan_archive
from dask_bkg.settings import shape_settings
from dask_bkg.similarity import ShapeSettings
from dask_bkg.store.rows import consolidate

if TYPE_CHECKING:
    from distributed import Client


@dataclass(frozen=True)
class Matrix:
    """A matrix that was written: where it is, and the runs that are not in it, ``{obs_id: reason}``."""

    path: Path
    failed: dict[int, str]


def write_matrix(config: Config, *, progress: bool = True) -> Matrix:
    """Write the divergence of every run of ``search_datastore`` from every other to ``results_dir/kl.zarr``.

    A block at a time; the matrix is never whole in memory, and an earlier one stays until the new one is complete.

    Raises
    ------
    ArchiveError
        If fewer than two runs of the archive can be used.
    """
    # a worker may have another working directory
    target = Path(os.path.abspath(config.directory("results_dir") / "kl.zarr"))
    plan = replace(plan_archive(config), field_plan=None)  # runs are compared by their rings
    check_writable(config)
    with job_workers(config, progress=progress) as workers:
        stored = update_store(plan, workers, config.store_path, progress=progress)
        tables = make_tables(plan, stored)
        if tables.run_rows.size < 2:
            raise ArchiveError(
                "io.search_datastore: fewer than two of its runs can be used, and a matrix needs two",
                failed=stored.failed,
            )
        runs = load_runs(
            str(stored.store.path),
            stored.view,
            tables.run_rows,
            tables.runs,
            plan.edges,
            keys=tables.run_keys,
            block=config.config.block,
        )
        kl = kl_matrix(runs, settings=shape_settings(config))
        kl = kl.assign_coords(zenith=("obs_id", tables.runs["zenith"]))
        _write(kl.to_dataset(), target, workers.for_runs(tables.run_rows.size), config.config.n_workers)
    return Matrix(target, stored.failed)


def _write(matrix: xr.Dataset, target: Path, client: Client | None, n_workers: int) -> None:
    with atomic_directory(target, replace=True) as temporary:
        lazy: Delayed = matrix.to_zarr(temporary, compute=False, consolidated=False)
        compute_each([lazy], client, n_workers, lambda i, done: _raise(done))
        consolidate(temporary)


def _raise(done: object) -> None:
    if isinstance(done, BaseException):
        raise done


def kl_tables(
    targets: xr.Dataset,
    runs: xr.Dataset,
    selected: Sequence[Delayed],
    cuts: BackgroundSelection,
    settings: ShapeSettings,
    directory: str,
) -> list[Delayed]:
    """Tasks that write, for each target, the divergences of its candidates as a FITS table; one a block of targets.

    Candidates are the runs that pass the cuts, and those of a list by hand; the run itself comes with them, as
    gammapy-tools has it.
    """
    layers = Layers()
    # a target block's divergences are made by its own task: as tasks of their own all would be held at once
    shapes = add_shapes(layers, targets, runs, settings)
    wanted = (*selection.columns_for(cuts), "livetime", "zenith")
    table, of_targets = (
        {name: part[name].values for name in wanted if name in part.coords} for part in (runs, targets)
    )
    blocks = [{name: column[a:b] for name, column in of_targets.items()} for a, b in bounds(targets)]
    tasks = layers.map(
        "write-kl",
        _write_tables,
        targets=Each(blocks),
        selected=Each(selected),
        p=shapes.targets,
        q=All([shapes.runs]),
        runs=layers.share("candidates", table),
        cuts=cuts,
        directory=directory,
    )
    return layers.delayed(tasks)


def _write_tables(
    targets: selection.Table,
    selected: selection.Selections,
    p: similarity.Targets,
    q: list[similarity.References],
    runs: selection.Table,
    cuts: BackgroundSelection,
    directory: str,
) -> int | ArchiveError:
    """Write the tables of a block of targets; returns their number, or why they cannot be written."""
    kl = np.concatenate([similarity.kl_block(p, block) for block in q], axis=1)
    passes = selection.passing(targets, runs, cuts) | (targets["obs_id"][:, None] == runs["obs_id"])
    for row, obs_id in enumerate(targets["obs_id"].tolist()):
        columns = {
            "OBS_ID": runs["obs_id"],
            "KL_DIV": kl[row],
            "LIVETIME": runs["livetime"],
            "ZENITH": runs["zenith"],
            "SELECTED": np.isin(runs["obs_id"], selected.of(row).obs_id),
        }
        listed = passes[row] | columns["SELECTED"]
        try:
            write_kl_table(directory, obs_id, {name: column[listed] for name, column in columns.items()})
        except ArchiveError as error:  # raised, it would be the end of the whole job on threads
            return error
    return len(passes)
