"""The task that reads runs into a store: eager, module-level and picklable.

A task writes what it has found as parts (`dask_bkg.store.rows.write_part`), which are safe from then on: first those
of the views, and last that of the table of the runs, by which the rows of the views become valid.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_bkg.binning import View
from dask_bkg.dl3.read import RunFile
from dask_bkg.errors import RunError
from dask_bkg.files import MISSING, State
from dask_bkg.reduction import reduce
from dask_bkg.schema import RUN_NUMBERS
from dask_bkg.sky.exclusion import SkyRegions, exclusion_digest
from dask_bkg.store import layout
from dask_bkg.store.rows import write_part
from dask_bkg.store.run_files import Hint, mark_of, out_of_reach, states_of
from dask_bkg.store.table import failed_with, key_of


class BlockWork(NamedTuple):
    """What one task has to do.

    Attributes
    ----------
    runs
        Where the runs are.
    fingerprints
        What the store has of them so far, empty: nothing.
    keys
        For each run the key of its row in each of the views; zero: there is none.
    whole_exclusion
        Digest of all regions together.
    store, parts
        The store, and the directory for the parts of this job.
    """

    runs: tuple[RunFile, ...]
    fingerprints: tuple[str, ...]
    keys: tuple[tuple[int, ...], ...]
    whole_exclusion: str
    store: str
    parts: str

    def singles(self) -> list[BlockWork]:
        """The same work, one run a task."""
        of_runs = zip(self.runs, self.fingerprints, self.keys, strict=True)
        return [self._replace(runs=(run,), fingerprints=(mark,), keys=(keys,)) for run, mark, keys in of_runs]


class RunDone(NamedTuple):
    """What became of one run.

    Attributes
    ----------
    obs_id
        Its number.
    status
        ``read``: its histograms were made; ``same``: its file was opened, and they were there already; ``failed``;
        ``absent``: it cannot be read at the moment, and what the store has of it stays.
    error
        Why it failed or is absent.
    hints
        States of its files before they were read.
    """

    obs_id: int
    status: str
    error: str = ""
    hints: tuple[Hint, ...] = ()


class Found(NamedTuple):
    """What is written of one run.

    Attributes
    ----------
    obs_id
        Its number.
    numbers, texts
        What the table of the runs says of it from now on.
    exclusions
        Digest of the regions near it in each of the views.
    histograms
        Its histograms in each of the views; none of a run that failed.
    """

    obs_id: int
    numbers: Mapping[str, float]
    texts: Mapping[str, str]
    exclusions: tuple[str, ...] = ()
    histograms: Sequence[Mapping[str, NDArray]] = ()


def update_block(work: BlockWork, regions: SkyRegions | None, views: Sequence[View]) -> list[RunDone]:
    """Read some runs, and write what was found.

    A run that cannot be used is reported in its ``error``, and does not take the others with it.

    Parameters
    ----------
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
        If the store cannot be written.
    """
    both = [_read(work, i, regions, views) for i in range(len(work.runs))]
    write_runs(work, views, [found for _, found in both if found is not None])
    return [done for done, _ in both]


def _read(work: BlockWork, i: int, regions: SkyRegions | None, views: Sequence[View]) -> tuple[RunDone, Found | None]:
    """What became of one run, and what is written of it."""
    run = work.runs[i]
    # before it is read: a file that is changed meanwhile does not fit its hint
    states = states_of(run)
    try:
        reduced = reduce.reduce_views(run, views, regions)
    except Exception as error:  # whatever it is, the other runs go on
        return _failed(work, i, error, states, views)
    pointing = reduced.numbers["ra_pnt"], reduced.numbers["dec_pnt"]
    digests = {view.radius: exclusion_digest(regions, *pointing, view.radius) for view in views}
    exclusions = tuple(digests[view.radius] for view in views)
    fingerprint = reduced.texts["fingerprint"]
    keys = tuple(key_of(fingerprint, exclusion) for exclusion in exclusions)
    same = fingerprint == work.fingerprints[i] and keys == work.keys[i]
    hints = _hints(run, fingerprint, states)
    texts = {name: reduced.texts.get(name, "") for name in layout.TEXTS} | {"files": json.dumps(hints)}
    done = RunDone(run.obs_id, "same" if same else "read", "", hints)
    return done, Found(run.obs_id, reduced.numbers, texts, exclusions, reduced.histograms)


def _failed(
    work: BlockWork, i: int, error: Exception, states: Mapping[str, State | None], views: Sequence[View]
) -> tuple[RunDone, Found | None]:
    """What is reported of a run that could not be used, and written of it."""
    run, known = work.runs[i], isinstance(error, RunError)
    text = str(error) if known else f"run {run.obs_id}: unexpected {type(error).__name__}: {error}"
    # what a disk or network refused once may be granted the next time; a missing file is not reported as the cause
    cause = error.__cause__ or error.__context__
    refused = isinstance(cause, OSError) and cause.errno is not None
    # a file too large for one limit may not be for the next
    lasting = known and not refused and not isinstance(cause, OverflowError)
    if work.fingerprints[i] and not lasting:
        return RunDone(run.obs_id, "absent", text), None
    gone = MISSING in states.values() and bool(out_of_reach(run, states))
    hints = _hints(run, "", states) if lasting or gone else ()
    tried = failed_with(work.whole_exclusion, (view.name for view in views))
    texts = {"error": text, "files": json.dumps(hints), "tried": tried}
    return RunDone(run.obs_id, "failed", text, hints), Found(run.obs_id, {}, texts)


def _hints(run: RunFile, fingerprint: str, states: Mapping[str, State | None]) -> tuple[Hint, ...]:
    """What is remembered of the files of a run."""
    mark = mark_of(run, fingerprint)
    return tuple((path, state, mark) for path, state in states.items() if state is not None)


def write_runs(work: BlockWork, views: Sequence[View], runs: Sequence[Found]) -> None:
    """Write what was found of the runs of a task; histograms that the store has already are not written again.

    Parameters
    ----------
    work
        What the task had to do.
    views
        The views of the histograms.
    runs
        Runs of the task, in any order.

    Raises
    ------
    ArchiveError
        If the store cannot be written, or is not there any more.
    """
    if not runs:
        return
    # a part would make its directory anew
    layout.check_there(work.store)
    before = dict(zip((run.obs_id for run in work.runs), work.keys, strict=True))
    for i, view in enumerate(views):
        rows: list[dict[str, Any]] = []
        for run in runs:
            if not run.histograms:
                continue
            key = key_of(run.texts["fingerprint"], run.exclusions[i])
            if key != before[run.obs_id][i]:
                about = {
                    "obs_id": run.obs_id,
                    "key": np.uint64(key).astype(np.int64),
                    "ontime": run.numbers["ontime"],
                }
                about |= {"exclusion": run.exclusions[i], "whole_exclusion": work.whole_exclusion}
                rows.append(about | {name: run.histograms[i][name] for name in layout.arrays_of(view)})
        if rows:
            columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
            write_part(work.parts, layout.layout_of(view), columns)
    table: dict[str, NDArray] = {"obs_id": np.array([run.obs_id for run in runs], dtype=np.int64)}
    for name in RUN_NUMBERS:
        table[name] = np.array([run.numbers.get(name, np.nan) for run in runs], dtype=float)
    for name in layout.RUNS_LAYOUT.texts:
        table[name] = np.array([run.texts.get(name, "") for run in runs], dtype=str)
    write_part(work.parts, layout.RUNS_LAYOUT, table)
