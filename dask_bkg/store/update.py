"""The task that reads runs into a store: eager, module-level and picklable.

One task has one block of rows, and writes whole chunks of histograms; the table is written by the driver alone.  Rows
that are still valid on disk, because their files may be the same after all, are never written over here: where one
of them differs, the driver gets the histograms of the block, voids the rows, and writes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_bkg.binning import View
from dask_bkg.dl3.read import RunFile
from dask_bkg.errors import RunError
from dask_bkg.files import MISSING, Lock, State
from dask_bkg.reduction import reduce
from dask_bkg.schema import RUN_NUMBERS, RUN_TEXTS
from dask_bkg.sky.exclusion import SkyRegions, exclusion_digest
from dask_bkg.store import layout
from dask_bkg.store.run_files import Hint, mark_of, out_of_reach, states_of
from dask_bkg.store.table import failed_key, key_of


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
    held
        For each run and view whether the row is valid on disk: its histograms are right if the events are the same.
    views
        Names of the views, in the order in which they are needed again.
    whole_exclusion
        Digest of all regions together.
    lock
        Lock of the store, which must hold when something is written.
    """

    block: int
    rows: tuple[int, ...]
    runs: tuple[RunFile, ...]
    fingerprints: tuple[str, ...]
    keys: tuple[tuple[int, ...], ...]
    held: tuple[tuple[bool, ...], ...]
    views: tuple[str, ...]
    whole_exclusion: str
    lock: Lock


class RunDone(NamedTuple):
    """What became of one run.

    Attributes
    ----------
    row, obs_id
        Its row and its number.
    status
        ``read``: its histograms were made; ``same``: its file was opened, and they were there already; ``failed``;
        ``absent``: it cannot be read at the moment, and what the store has of it stays.
    numbers, texts
        What the table says of it from now on; of a run that failed or is absent only the ``error``.
    keys
        Key of its histograms in each of the views.
    hints
        States of its files before they were read.
    exclusions
        Digest of the regions near it in each of the views; none: empty ones.
    """

    row: int
    obs_id: int
    status: str
    numbers: dict[str, float]
    texts: dict[str, str]
    keys: tuple[int, ...]
    hints: tuple[Hint, ...]
    exclusions: tuple[str, ...] = ()


class BlockDone(NamedTuple):
    """What `update_block` did: its block, the names of the views, and what became of each run.

    Attributes
    ----------
    unwritten
        For each view histograms by row which the driver is to write, as a row that is valid on disk is among them;
        empty: all is written.
    """

    block: int
    views: tuple[str, ...]
    runs: tuple[RunDone, ...]
    unwritten: tuple[dict[int, dict[str, NDArray]], ...] = ()


def update_block(store_path: str, work: BlockWork, regions: SkyRegions | None, views: Sequence[View]) -> BlockDone:
    """Read the runs of a block and write their histograms.

    A run that cannot be used is told of in its ``error``, and does not take the others with it.

    Parameters
    ----------
    store_path
        Path of the store.
    work
        What is to be done, from `dask_bkg.store.store.RunStore.plan_update`.
    regions, views
        As they were given there.

    Returns
    -------
    done
        For `dask_bkg.store.store.RunStore.record`.

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
    changed = [
        [run.row in histograms and key != before for key, before in zip(run.keys, keys, strict=True)]
        for run, keys in zip(done, work.keys, strict=True)
    ]
    new = tuple(
        {run.row: histograms[run.row][i] for run, differs in zip(done, changed, strict=True) if differs[i]}
        for i in range(len(views))
    )
    if (np.array(changed) & np.array(work.held)).any():
        # all of the block: two writers would undo each other's rows
        return BlockDone(work.block, work.views, tuple(done), new)
    for view, part in zip(views, new, strict=True):
        if part:
            write_histograms(store_path, view, work, part)
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
        return _failed(work, i, error, states), None
    pointing = reduced.numbers["ra_pnt"], reduced.numbers["dec_pnt"]
    digests = {view.radius: exclusion_digest(regions, *pointing, view.radius) for view in views}
    exclusions = tuple(digests[view.radius] for view in views)
    fingerprint = reduced.texts["fingerprint"]
    texts = {name: reduced.texts.get(name, "") for name in RUN_TEXTS}
    texts |= {"fingerprint": fingerprint, "whole_exclusion": work.whole_exclusion}
    keys = tuple(key_of(fingerprint, exclusion) for exclusion in exclusions)
    status = "same" if fingerprint == work.fingerprints[i] and keys == work.keys[i] else "read"
    hints = _hints(run, fingerprint, states)
    return RunDone(row, run.obs_id, status, reduced.numbers, texts, keys, hints, exclusions), reduced.histograms


def _failed(work: BlockWork, i: int, error: Exception, states: Mapping[str, State | None]) -> RunDone:
    """What is told of a run that could not be used."""
    run, row, known = work.runs[i], work.rows[i], isinstance(error, RunError)
    text = str(error) if known else f"run {run.obs_id}: unexpected {type(error).__name__}: {error}"
    # what a disk or network refused once may be granted the next time; a missing file is not told of as the cause
    cause = error.__cause__ or error.__context__
    lasting = known and not (isinstance(cause, OSError) and cause.errno is not None)
    texts, numbers = {**dict.fromkeys(layout.TEXTS, ""), "error": text}, dict.fromkeys(RUN_NUMBERS, float("nan"))
    if work.fingerprints[i] and not lasting:
        return RunDone(row, run.obs_id, "absent", numbers, texts, work.keys[i], ())
    gone = MISSING in states.values() and bool(out_of_reach(run, states))
    hints = _hints(run, "", states) if lasting or gone else ()
    keys = (failed_key(work.whole_exclusion),) * len(work.views)
    return RunDone(row, run.obs_id, "failed", numbers, texts, keys, hints)


def _hints(run: RunFile, fingerprint: str, states: Mapping[str, State | None]) -> tuple[Hint, ...]:
    """What is remembered of the files of a run."""
    mark = mark_of(run, fingerprint)
    return tuple((path, state, mark) for path, state in states.items() if state is not None)


def write_histograms(store_path: str, view: View, work: BlockWork, new: Mapping[int, Mapping[str, NDArray]]) -> None:
    """Write one block of a view; rows that are not new keep what they have.

    Parameters
    ----------
    store_path
        Path of the store.
    view
        The view.
    work
        Its ``block`` and ``lock`` are looked at.
    new
        Histograms of rows of this block.
    """
    put_histograms(store_path, view, work.block, new, work.lock)


def put_histograms(
    store_path: str, view: View, block: int, new: Mapping[int, Mapping[str, NDArray]], lock: Lock
) -> None:
    """What `write_histograms` does, for one who has no work of a task."""
    packed = {}
    for name, histogram in layout.histograms(view).items():
        array = layout.open_array(store_path, view.name, name, "r+")
        first, stop = block_rows(block, array.chunks[0], array.shape[0])
        whole = new.keys() >= set(range(first, stop))
        values = (
            np.empty((stop - first, *histogram.shape), histogram.dtype)
            if whole
            else read_block(store_path, view.name, name, block)
        )
        for row, histograms in new.items():
            values[row - first] = histograms[name]
        packed[name] = (array, slice(first, stop), values)
    lock.check()
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
