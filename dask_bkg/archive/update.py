"""The task that reads runs into a store: eager, module-level and picklable.

One task has one block of rows, and writes whole chunks of histograms; the table is written by the driver alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_bkg.archive import layout, lock
from dask_bkg.archive.hints import Hint, states_of
from dask_bkg.archive.table import failed_key, key_of
from dask_bkg.dl3 import reduce
from dask_bkg.dl3.read import RunFile
from dask_bkg.errors import RunError
from dask_bkg.exclusion import SkyRegions, exclusion_digest
from dask_bkg.schema import RUN_NUMBERS, RUN_TEXTS, View


class BlockWork(NamedTuple):
    """What one task has to do.

    Attributes
    ----------
    block
        Block of rows, that is chunk of the histograms.
    rows, runs
        Rows that are filled, all in this block, and where their runs are.
    fingerprints
        What the rows are of so far, empty: nothing.
    keys
        For each run the key of its histograms in each of the views.
    views
        Names of the views, in the order in which they are needed again.
    whole_exclusion
        Digest of all regions together.
    radius
        Distance from the pointing within which regions matter [deg].
    lock, token
        Lock of the store, and what must stand in it.
    """

    block: int
    rows: tuple[int, ...]
    runs: tuple[RunFile, ...]
    fingerprints: tuple[str, ...]
    keys: tuple[tuple[int, ...], ...]
    views: tuple[str, ...]
    whole_exclusion: str
    radius: float
    lock: str
    token: str


class RunDone(NamedTuple):
    """What became of one run.

    Attributes
    ----------
    row, obs_id
        Its row and its number.
    status
        ``read``: its histograms were made; ``same``: its file was opened, and they were there already; ``failed``.
    numbers, texts
        What the table says of it from now on; of a run that failed only the ``error``.
    keys
        Key of its histograms in each of the views.
    hints
        States of its files before they were read.
    """

    row: int
    obs_id: int
    status: str
    numbers: dict[str, float]
    texts: dict[str, str]
    keys: tuple[int, ...]
    hints: tuple[Hint, ...]


class BlockDone(NamedTuple):
    """What `update_block` did: its block, the names of the views, and what became of each run."""

    block: int
    views: tuple[str, ...]
    runs: tuple[RunDone, ...]


def update_block(store_path: str, work: BlockWork, regions: SkyRegions | None, views: Sequence[View]) -> BlockDone:
    """Read the runs of a block and write their histograms.

    A run that cannot be used is told of in its ``error``, and does not take the others with it.

    Parameters
    ----------
    store_path
        Path of the store.
    work
        What is to be done, from `dask_bkg.archive.store.RunStore.plan_update`.
    regions, views
        As they were given there.

    Returns
    -------
    done
        For `dask_bkg.archive.store.RunStore.record`.

    Raises
    ------
    ArchiveError
        If the store cannot be written, a chunk of it is damaged, or it belongs to another job by now.
    """
    if work.views != tuple(view.name for view in views):
        raise ValueError(f"update_block: the views that were planned are {work.views}, in this order")
    done, histograms = [], {}
    for i in range(len(work.rows)):
        run, found = _reduce(work, i, views, regions)
        done.append(run)
        if found is not None:
            histograms[run.row] = found
    for i, view in enumerate(views):
        new = {
            run.row: histograms[run.row][i]
            for run, keys in zip(done, work.keys, strict=True)
            if run.status != "failed" and run.keys[i] != keys[i]
        }
        if new:
            write_histograms(store_path, view, work, new)
    return BlockDone(work.block, work.views, tuple(done))


def _reduce(
    work: BlockWork, i: int, views: Sequence[View], regions: SkyRegions | None
) -> tuple[RunDone, list[dict[str, NDArray]] | None]:
    """What became of one run, and its histograms."""
    run, row = work.runs[i], work.rows[i]
    # before it is read: a file that is changed meanwhile does not fit its hint
    states = states_of(run)
    try:
        reduced = reduce.reduce_views(run, views, regions)
    except Exception as error:  # whatever it is, the other runs go on
        return _failed(work, run, row, error, states, len(views)), None
    pointing = reduced.numbers["ra_pnt"], reduced.numbers["dec_pnt"]
    exclusion = exclusion_digest(regions, *pointing, work.radius)
    fingerprint = reduced.texts["fingerprint"]
    texts = {name: reduced.texts.get(name, "") for name in RUN_TEXTS}
    texts |= {"fingerprint": fingerprint, "exclusion": exclusion, "whole_exclusion": work.whole_exclusion}
    keys = (key_of(fingerprint, exclusion),) * len(views)
    status = "same" if fingerprint == work.fingerprints[i] and keys == work.keys[i] else "read"
    hints = tuple((*state, fingerprint) for state in states)
    return RunDone(row, run.obs_id, status, reduced.numbers, texts, keys, hints), reduced.histograms


def _failed(
    work: BlockWork, run: RunFile, row: int, error: Exception, states: list[tuple[str, int, int]], n_views: int
) -> RunDone:
    known = isinstance(error, RunError)
    text = str(error) if known else f"run {run.obs_id}: unexpected {type(error).__name__}: {error}"
    # what a disk or network refused once may be granted the next time
    cause = error.__cause__
    lasting = known and not (isinstance(cause, OSError) and cause.errno is not None)
    hints = tuple((*state, "") for state in states) if lasting else ()
    texts = {**dict.fromkeys(layout.TEXTS, ""), "error": text}
    numbers = dict.fromkeys(RUN_NUMBERS, float("nan"))
    keys = (failed_key(work.whole_exclusion),) * n_views
    return RunDone(row, run.obs_id, "failed", numbers, texts, keys, hints)


def write_histograms(store_path: str, view: View, work: BlockWork, new: Mapping[int, Mapping[str, NDArray]]) -> None:
    """Write one block of a view; rows that are not new keep what they have.

    Parameters
    ----------
    store_path
        Path of the store.
    view
        The view.
    work
        Its ``block``, ``lock`` and ``token`` are looked at.
    new
        Histograms of rows of this block.
    """
    packed = {}
    for name, histogram in layout.histograms(view).items():
        array = layout.open_array(store_path, view.name, name, "r+")
        first, stop = block_rows(work.block, array.chunks[0], array.shape[0])
        whole = new.keys() >= set(range(first, stop))
        values = (
            np.empty((stop - first, *histogram.shape), histogram.dtype)
            if whole
            else read_block(store_path, view.name, name, work.block)
        )
        for row, histograms in new.items():
            values[row - first] = histograms[name]
        packed[name] = (array, slice(first, stop), values)
    lock.check(work.lock, work.token)
    with layout.told(store_path):
        for array, rows, values in packed.values():
            array[rows] = values


def block_rows(block: int, size: int, n_runs: int) -> tuple[int, int]:
    """First row of a block, and the one after its last."""
    return block * size, min((block + 1) * size, n_runs)


def read_block(store_path: str | Path, view: str, name: str, block: int) -> NDArray:
    """One block of an array of histograms, shape ``(rows of the block, ...)``.

    Raises
    ------
    ArchiveError
        If the chunk is damaged.
    """
    array = layout.open_array(store_path, view, name)
    try:
        return np.asarray(array[slice(*block_rows(block, array.chunks[0], array.shape[0]))])
    except (RuntimeError, ValueError) as error:
        raise layout.damaged(store_path, view, name, block, error) from error
