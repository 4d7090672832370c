"""From a stack to a file: the rate, its HDU with provenance cards, the DL3 file. Eager; runs on the workers.

What is to be kept of the backgrounds that a task has written goes into one part of the store of results
(`dask_bkg.output.backgrounds`), so that nothing is lost of a job that is killed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_bkg.background.field import FIELD_FLAGS
from dask_bkg.background.fill import EXTRAPOLATED, RING_FILLED
from dask_bkg.background.model import Estimate, Model, RunMetadata, stacked_rate
from dask_bkg.background.stack import Stack
from dask_bkg.background.target import Target
from dask_bkg.background.variance import effective_counts, mean_weight
from dask_bkg.dl3.attach import attach_background, reads_reversed, tail_digest, tail_size, write_background
from dask_bkg.dl3.background import background_table
from dask_bkg.errors import BackgroundError, RunError
from dask_bkg.files import MISSING, State, state_of
from dask_bkg.selection import Selection, Selections, of_target
from dask_bkg.store.rows import Layout, write_part

ROLES = ("spectrum", "shape", "night")
"""What runs contribute to: the order of ``role`` in what is kept."""


@dataclass(frozen=True)
class Result:
    """What became of one target; what it was made of is in the store of results.

    Attributes
    ----------
    obs_id
        Run number.
    status
        ``done``, ``unchanged`` (an earlier job made the very same) or ``failed``.
    reason
        Why it failed; for a run that is done what is worth knowing (fewer hours than requested, ...).
    n_runs, hours, n_events
        Number of contributing runs, their livetime [h] and their events in the binning.
    output, hdu
        File that was written and the name of the background in it.
    threshold
        Energy threshold of the run [TeV], NaN if unknown.
    failed_runs
        Runs that should have contributed and could not, ``{obs_id: reason}``.
    """

    obs_id: int
    status: str
    reason: str = ""
    n_runs: int = 0
    hours: float = 0.0
    n_events: int = 0
    output: str = ""
    hdu: str = ""
    threshold: float = float("nan")
    failed_runs: dict[int, str] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether the run has its background: made now, or by an earlier job and unchanged."""
        return self.status in ("done", "unchanged")


class Place(NamedTuple):
    """Where tasks write what is kept of the backgrounds of a job.

    Attributes
    ----------
    parts
        Directory of the parts.
    layout
        Layout of the store that they go into.
    job
        Name of the job.
    """

    parts: str
    layout: Layout
    job: str


class Block(NamedTuple):
    """What the backgrounds of a job have in common.

    Attributes
    ----------
    model
        How they are made of stacks.
    copy
        Whether the whole file is written with the background, or the background alone.
    cards
        Header cards that all backgrounds of the job have.
    made_by
        Digest of all settings that a background depends on.
    place
        Where results are kept; None: nowhere.
    notes
        What was remarkable about runs that may contribute, ``{obs_id: note}``.
    absent
        Runs of lists by hand that cannot contribute, ``{obs_id of the target: {run: reason}}``.
    """

    model: Model
    copy: bool
    cards: dict[str, tuple[object, str]]
    made_by: str
    place: Place | None = None
    notes: Mapping[int, str] = {}
    absent: Mapping[int, dict[int, str]] = {}


Mark = tuple[str, tuple, tuple[int, int]]
"""Digest of all that a background was made of (`digest_of`), size and time of last change [ns] of its source and its
output, and number and digest of the bytes at the end of the output, where the background is, as they were left: equal
marks, equal backgrounds."""


def write_block(
    batch: Sequence[tuple[Target, Mark | None]],
    first: int,
    selected: Mapping[str, Selections],
    stacks: Mapping[str, Stack],
    runs: RunMetadata,
    block: Block,
) -> list[Result]:
    """Make and write the backgrounds of some targets; one that fails does not take the others with it.

    Parameters
    ----------
    batch
        The targets, and the marks of their backgrounds by earlier jobs: what would be made again as it is, is left
        alone, and of its result there is no more than the ``status``.
    first
        Row of the first of them in the stacks.
    selected, stacks
        The contributing runs of a block of targets, and their stacks, by role.
    runs
        Metadata of the runs of the archive.
    block
        What they have in common.

    Raises
    ------
    ArchiveError
        If what is to be kept of them cannot be written.
    """
    results: list[Result] = []
    records: list[dict[str, Any]] = []
    for row, (target, mark) in enumerate(batch, start=first):
        chosen, failed_runs = of_target(selected, row), block.absent.get(target.obs_id, {})
        try:
            if chosen["spectrum"].reason:
                raise RunError(chosen["spectrum"].reason)
            stacked = {role: stack.of(row) for role, stack in stacks.items()}
            made_by = f"{block.made_by}/{target.threshold!r}/{target.sight!r}{_own_mark(stacked)}"
            digest = digest_of(made_by, chosen, runs.key)
            remark = ""
            if mark is not None and mark[:2] == (digest, _stat(target)):
                if _is_as_written(target.output, *mark[2]):
                    results.append(Result(target.obs_id, "unchanged"))
                    continue
                remark = "its background was damaged in the file, and is written again"
            result, record = _write_one(target, chosen, stacked, runs, block, remark)
            records.append(record | {"digest": digest})
        except BackgroundError as error:
            result = Result(target.obs_id, "failed", str(error), failed_runs=failed_runs)
        except Exception as error:  # whatever it is, the other targets go on
            reason = f"run {target.obs_id}: unexpected {type(error).__name__}: {error}"
            result = Result(target.obs_id, "failed", reason, failed_runs=failed_runs)
        results.append(result)
    if records and block.place is not None:
        about = {"job": block.place.job, "written": time.time_ns()}
        layout = block.place.layout
        write_part(block.place.parts, layout, pack([record | about for record in records], layout))
    return results


def pack(records: Sequence[Mapping[str, Any]], layout: Layout) -> dict[str, NDArray]:
    """Records of some backgrounds as columns of a part, shape ``(records, ...)``, without those that no record has.

    Of arrays that grow, shorter ones get fill values at the end.
    """
    columns: dict[str, NDArray] = {}
    for name, column in layout.arrays.items():
        values = [record.get(name) for record in records]
        if any(value is not None for value in values):
            width = max(np.shape(value)[-1] for value in values if value is not None)
            columns[name] = np.full((len(records), *column.shape[:-1], width), column.fill, column.dtype)
            for row, value in zip(columns[name], values, strict=True):
                if value is not None:
                    with np.errstate(over="ignore"):
                        row[..., : np.shape(value)[-1]] = value
    for kind, names in layout.table.items():
        missing = {"integers": 0, "numbers": np.nan, "texts": ""}[kind]
        columns |= {name: np.array([record.get(name, missing) for record in records]) for name in names}
    return columns


def digest_of(made_by: str, chosen: Mapping[str, Selection], key: NDArray) -> str:
    """Mark of a background: equal if the same settings make it of the same runs, with the same weights and events."""
    sha = hashlib.sha256(made_by.encode())
    for name, role in chosen.items():
        sha.update(name.encode())
        order = np.argsort(role.obs_id)
        for column in (role.obs_id, role.weight, key[role.run]):
            sha.update(np.ascontiguousarray(column[order]).tobytes())
    return sha.hexdigest()[:16]


def _own_mark(stacks: Mapping[str, Stack]) -> str:
    """Mark of the run's own counts, where a background depends on them."""
    if "own" not in stacks:
        return ""
    sha = hashlib.sha256(np.ascontiguousarray(stacks["own"].counts).tobytes())
    sha.update(np.ascontiguousarray(stacks["own"].exposure).tobytes())
    return f"/{sha.hexdigest()[:16]}"


def _stat(target: Target) -> tuple[State, ...]:
    """States of source and output; `MISSING` also where the disk does not say."""
    return tuple(state_of(path) or MISSING for path in (target.source, target.output))


def _is_as_written(path: str, size: int, digest: int) -> bool:
    """Whether the background at the end of a file has the bytes that it had when it was written."""
    try:
        return tail_digest(path, size) == digest
    except OSError:
        return False


def _write_one(
    target: Target,
    contributors: Mapping[str, Selection],
    stacks: Mapping[str, Stack],
    metadata: RunMetadata,
    block: Block,
    remark: str = "",
) -> tuple[Result, dict[str, Any]]:
    """Write the background of a target; what became of it, and what is kept."""
    made, chosen = stacked_rate(target, contributors, stacks, metadata, block.model), contributors["spectrum"]
    rate, spectrum = made.rate, stacks["spectrum"]
    livetime, n_events = float(spectrum.livetime), round(float(spectrum.counts.sum()))
    weighted = ", weighted" if (chosen.weight != 1).any() else ""
    cards = {
        **block.cards,
        "N_RUNS": (chosen.run.size, "number of contributing runs"),
        "LIVETIME": (round(livetime, 3), "[s] livetime of the contributing runs"),
        "N_EVENTS": (n_events, f"events in the contributing runs{weighted}"),
    }
    if "night" in contributors:
        cards["NIGHTFAC"] = (round(made.night.value, 6), "level of the nights around over the stack's")
    if made.own is not None:
        cards["OWN_FACT"] = (round(made.own.level.value, 6), "level of its own counts over the stack's")
        cards["OWN_ERR"] = (round(made.own.level.error, 6), "its relative error")
        cards["OWN_KIND"] = (block.model.rate.own, "what they correct")
        cards["OWN_N"] = (round(made.own.counts), "own counts above the threshold")
    if np.isfinite(target.threshold):
        cards["E_THRES"] = (round(target.threshold, 6), "[TeV] energy threshold of this run")
    name, size = _write_rate(target, rate.value, block, cards)
    notes = {run: block.notes[run] for run in chosen.obs_id.tolist() if run in block.notes}
    failed_runs = block.absent.get(target.obs_id, {})
    reason = "; ".join(filter(None, (remark, _remarks(target, contributors, notes, failed_runs))))
    runs, hours = int(chosen.run.size), livetime / 3600
    result = Result(
        target.obs_id, "done", reason, runs, hours, n_events, target.output, name, target.threshold, failed_runs
    )
    record = {
        **{
            key: getattr(result, key)
            for key in ("obs_id", "status", "reason", "n_events", "output", "hdu", "threshold")
        },
        "livetime": livetime,
        "notes": json.dumps(notes),
        "failed_runs": json.dumps(failed_runs),
        **diagnostics(contributors, stacks, made),
    }
    for file, (file_size, changed) in zip(("source", "output"), _stat(target), strict=True):
        record |= {f"file_size.{file}": file_size, f"file_time.{file}": changed}
    record |= {"tail_size": size, "tail_digest": tail_digest(target.output, size)}
    return result, record


def diagnostics(contributors: Mapping[str, Selection], stacks: Mapping[str, Stack], made: Estimate) -> dict[str, Any]:
    """What is kept of an estimate: arrays and scalars by the names of `dask_bkg.output.backgrounds.layout_of`."""
    rate, spectrum = made.rate, contributors["spectrum"]
    # the shape has the runs of the spectrum where it has none of its own
    chosen = {"spectrum": spectrum, "shape": contributors.get("shape", spectrum)}
    stacked = {"spectrum": stacks["spectrum"], "shape": stacks.get("shape", stacks["spectrum"])}
    if "night" in contributors:
        chosen["night"], stacked["night"] = contributors["night"], stacks["night"]
    parts, roles = list(stacked.values()), list(chosen.values())
    effective = [effective_counts(stack.counts, mean_weight(stack.counts, stack.squares)) for stack in parts]
    values: dict[str, Any] = {
        "rate": rate.value,
        "error": rate.error,
        "flag": rate.flag,
        "resolution": rate.resolution,
        "counts": _by_role([stack.counts for stack in parts]),
        "effective_counts": _by_role(effective),
        "exposure": _by_role([stack.exposure for stack in parts]),
        "level_error": rate.level_error,
        "contributing": _by_role([role.obs_id for role in roles], -1),
        "weight": _by_role([role.weight for role in roles]),
        "score": _by_role([role.score for role in roles]),
        "night_factor": made.night.value,
        "night_error": made.night.error,
    }
    for name in ROLES:
        role = chosen.get(name)
        values[f"hours.{name}"] = 0.0 if role is None else role.hours
        values[f"n_runs.{name}"] = 0 if role is None else role.run.size
        values[f"widened.{name}"] = 1.0 if role is None else role.widened
    if made.own is not None:
        values |= {"own_spectrum": made.own.energies, "own_factor": made.own.level.value}
        values["own_error"] = made.own.level.error
    return values


def _by_role(arrays: Sequence[NDArray], fill: float = np.nan) -> NDArray:
    """Arrays of the first roles, shape ``(role, ...)``; fill values where one is shorter, or a role has none."""
    shape = (*arrays[0].shape[:-1], max(array.shape[-1] for array in arrays))
    values = np.full((len(ROLES), *shape), fill)
    for value, array in zip(values, arrays, strict=False):
        value[..., : array.shape[-1]] = array
    return values


def _write_rate(target: Target, rate: NDArray, block: Block, cards: dict) -> tuple[str, int]:
    """Write the background of a target; the name of its HDU, and the bytes at the end of the file in which it is."""
    field = block.model.field
    if field is None:
        hdu = background_table(rate, block.model.edges, cards)
    else:
        mirror = not block.copy and reads_reversed(target.source)
        if mirror and field.written == "altaz":
            raise RunError(
                f"run {target.obs_id}: gammapy mirrors every 3D background of {target.source} (CREATOR "
                "'SASH FITS::EventListWriter', HDUVERS '0.2' in EVENTS), which spoils one that is aligned with the "
                "horizon: set io.attach: copy, where the copy gets another CREATOR, or binning.alignment: radec"
            )
        hdu = background_table(rate, field.edges, cards, alignment=field.written.upper(), mirror=mirror)
    if block.copy:
        return attach_background(target.source, target.output, hdu), tail_size(hdu)
    return write_background(target.output, hdu), tail_size(hdu)


def _remarks(
    target: Target, contributors: Mapping[str, Selection], notes: Mapping[int, str], failed_runs: Mapping[int, str]
) -> str:
    """What is worth knowing about a background: its selections, and the runs that contribute or could not."""
    remarks, chosen, shape = [], contributors["spectrum"], contributors.get("shape")
    if not chosen.enough:
        weighted = " (weighted)" if (chosen.weight != 1).any() else ""
        remarks.append(f"{chosen.hours:.1f} hours{weighted} found, fewer than background_selection.time_request")
    if chosen.flagged:
        remarks.append("some contributing runs cover less than 80 % of its expected counts")
    if chosen.widened > 1:
        remarks.append(f"kernel widened {chosen.widened:.2f} times: few runs are alike")
    if shape is not None and shape.widened > 1:
        remarks.append(f"kernel of the shape widened {shape.widened:.2f} times: few runs are alike")
    for run, note in notes.items():
        remarks.append(note if run == target.obs_id else f"contributing run {run}: {note}")
    if failed_runs:
        remarks.append(f"{len(failed_runs)} contributing runs could not be used")
    return "; ".join(remarks)


def summarize_flags(flag: NDArray) -> dict:
    """Number of bins for each flag in words, and the indices (energy, ring) of those that were filled."""
    counted = {text: int(((flag & bit) > 0).sum()) for bit, text in FIELD_FLAGS.items()}
    summary: dict = {"bins": {text: n for text, n in counted.items() if n}}
    if flag.ndim == 2:  # a list of the thousands of pixels of a field has no reader
        summary["filled"] = np.argwhere((flag & (RING_FILLED | EXTRAPOLATED)) > 0).tolist()
    return summary
