"""From a stack to a file: the rate, its HDU with provenance cards, the DL3 file. Eager; runs on the workers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_bkg.background.field import FIELD_FLAGS
from dask_bkg.background.fill import EXTRAPOLATED, RING_FILLED
from dask_bkg.background.model import Estimate, Model, RunMetadata, stacked_rate, weights_of
from dask_bkg.background.stack import Stack
from dask_bkg.background.target import Target
from dask_bkg.background.variance import effective_counts
from dask_bkg.dl3.attach import attach_background, reads_reversed, write_background
from dask_bkg.dl3.background import background_table
from dask_bkg.errors import BackgroundError, RunError
from dask_bkg.files import MISSING, State, state_of
from dask_bkg.output.diagnostics import side_path, write_side
from dask_bkg.selection import Selection, Selections, of_target


@dataclass(frozen=True)
class Result:
    """What became of one target.

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
    contributing, weights, scores
        Numbers of the contributing runs, nearest first; their weights (empty: all 1), and what they were ranked by.
    flags
        Number of bins for each flag, and the bins that were filled.
    failed_runs
        Runs that should have contributed and could not, ``{obs_id: reason}``.
    notes
        What was remarkable about contributing runs, ``{obs_id: note}``.
    digest, files
        What the next job needs to see that nothing has changed, see `Made`.
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
    contributing: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()
    flags: dict = field(default_factory=dict)
    failed_runs: dict[int, str] = field(default_factory=dict)
    notes: dict[int, str] = field(default_factory=dict)
    digest: str = ""
    files: tuple = ()

    @property
    def done(self) -> bool:
        """Whether the run has its background: made now, or by an earlier job and unchanged."""
        return self.status in ("done", "unchanged")


class Block(NamedTuple):
    """What the backgrounds of a block of targets have in common.

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
    side
        Directory of the side files (`dask_bkg.output.diagnostics`); None: there are none.
    """

    model: Model
    copy: bool
    cards: dict[str, tuple[object, str]]
    made_by: str
    side: str | None = None


Mark = tuple[str, tuple]
"""``digest`` and ``files`` of a `Made`: what travels to the workers of it."""


class Made(NamedTuple):
    """What is known of the background that an earlier job made of a target.

    Attributes
    ----------
    digest
        Of everything it was made of, see `digest_of`.
    files
        Size and time of last change [ns] of its source and its output, as they were left.
    result
        What that job told of it.
    """

    digest: str
    files: tuple[tuple[int, int], tuple[int, int]]
    result: Result

    @property
    def mark(self) -> Mark:
        """What tells whether it would come out as it is."""
        return self.digest, self.files


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
        The targets, and the mark under which earlier jobs have made them: what would be made again as it is, is left
        alone, and its result has no more than the ``status``.
    first
        Row of the first of them in the stacks.
    selected, stacks
        The contributing runs of a block of targets, and their stacks, by role.
    runs
        Metadata of the runs of the archive.
    block
        What they have in common.
    """
    results = []
    for row, (target, made) in enumerate(batch, start=first):
        chosen = of_target(selected, row)
        try:
            if chosen["spectrum"].reason:
                raise RunError(chosen["spectrum"].reason)
            stacked = {role: stack.of(row) for role, stack in stacks.items()}
            made_by = f"{block.made_by}/{target.threshold!r}/{target.sight!r}{_own_mark(stacked)}"
            digest = digest_of(made_by, chosen, runs.key)
            if made == (digest, _stat(target)) and _has_side(target, block):
                results.append(Result(target.obs_id, "unchanged"))
                continue
            result = _write_one(target, chosen, stacked, runs, block, digest)
        except BackgroundError as error:
            result = Result(target.obs_id, "failed", str(error))
        except Exception as error:  # whatever it is, the other targets go on
            reason = f"run {target.obs_id}: unexpected {type(error).__name__}: {error}"
            result = Result(target.obs_id, "failed", reason)
        results.append(result)
    return results


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


def _has_side(target: Target, block: Block) -> bool:
    """Whether the side file is there, if there is to be one."""
    return block.side is None or side_path(block.side, target.obs_id).exists()


def _stat(target: Target) -> tuple[State, ...]:
    """States of source and output; `MISSING` also where the disk does not say."""
    return tuple(state_of(path) or MISSING for path in (target.source, target.output))


def _write_one(
    target: Target,
    contributors: Mapping[str, Selection],
    stacks: Mapping[str, Stack],
    runs: RunMetadata,
    block: Block,
    digest: str,
) -> Result:
    made, chosen = stacked_rate(target, contributors, stacks, runs, block.model), contributors["spectrum"]
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
    name = _write_rate(target, rate.value, block, cards)
    if block.side is not None:
        field = None if block.model.field is None else block.model.field.edges
        values = _behind(target, contributors, stacks, made)
        write_side(side_path(block.side, target.obs_id), block.model.edges, field, values)
    return Result(
        target.obs_id,
        "done",
        _remark(contributors),
        chosen.run.size,
        livetime / 3600,
        n_events,
        target.output,
        name,
        target.threshold,
        tuple(chosen.obs_id.tolist()),
        tuple(np.round(chosen.weight, 6).tolist()) if (chosen.weight != 1).any() else (),
        tuple(np.round(chosen.score, 10).tolist()),
        summarize_flags(rate.flag),
        digest=digest,
        files=_stat(target),
    )


def _behind(
    target: Target, contributors: Mapping[str, Selection], stacks: Mapping[str, Stack], made: Estimate
) -> dict[str, object]:
    """What the side file has of a background."""
    rate, weights, spectrum = made.rate, weights_of(stacks), stacks["spectrum"]
    shape = stacks.get("shape", spectrum)
    roles = [contributors["spectrum"], contributors.get("shape", contributors["spectrum"]), contributors.get("night")]
    values: dict[str, object] = {
        "rate": rate.value,
        "error": rate.error,
        "flag": rate.flag,
        "resolution": rate.resolution,
        "counts": spectrum.counts,
        "effective_counts": effective_counts(spectrum.counts, weights.spectrum),
        "exposure": spectrum.exposure,
        "shape_effective_counts": effective_counts(shape.counts, weights.shape),
        "shape_exposure": shape.exposure,
        "level_error": rate.level_error,
        "hours": [0.0 if role is None else role.hours for role in roles],
        "n_runs": [0 if role is None else role.run.size for role in roles],
        "widened": [1.0 if role is None else role.widened for role in roles],
        "night_factor": made.night.value,
        "night_error": made.night.error,
        "threshold": target.threshold,
        "obs_id": target.obs_id,
    }
    if made.own is not None:
        values |= {"own_spectrum": made.own.energies, "own_factor": made.own.level.value}
        values["own_error"] = made.own.level.error
    return values


def _write_rate(target: Target, rate: NDArray, block: Block, cards: dict) -> str:
    """Write the background of a target, and return the name of its HDU."""
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
        return attach_background(target.source, target.output, hdu)
    return write_background(target.output, hdu)


def _remark(contributors: Mapping[str, Selection]) -> str:
    """What is worth knowing about the selections of a background that was made."""
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
    return "; ".join(remarks)


def summarize_flags(flag: NDArray) -> dict:
    """Number of bins for each flag in words, and the indices (energy, ring) of those that were filled."""
    counted = {text: int(((flag & bit) > 0).sum()) for bit, text in FIELD_FLAGS.items()}
    summary: dict = {"bins": {text: n for text, n in counted.items() if n}}
    if flag.ndim == 2:  # of the thousands of pixels of a field nobody reads a list
        summary["filled"] = np.argwhere((flag & (RING_FILLED | EXTRAPOLATED)) > 0).tolist()
    return summary
