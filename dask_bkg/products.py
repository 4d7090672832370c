"""From a stack to a file: the rate, its HDU with provenance cards, the DL3 file. Eager; runs on the workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_bkg.dl3.attach import attach_background, write_background
from dask_bkg.dl3.read import read_threshold
from dask_bkg.errors import BackgroundError, RunError
from dask_bkg.plan import Target
from dask_bkg.rate import EXTRAPOLATED, FLAGS, RING_FILLED, RateSettings
from dask_bkg.schema import Edges


@dataclass(frozen=True)
class Result:
    """What became of one target.

    Attributes
    ----------
    obs_id
        Run number.
    status
        ``done`` or ``failed``.
    reason
        Why it failed; for a run that is done what is worth knowing (fewer hours than requested, ...).
    n_runs, hours, n_events
        Number of contributing runs, their livetime [h] and their events in the binning.
    output, hdu
        File that was written and the name of the background in it.
    threshold
        Energy threshold of the run [TeV], NaN if unknown.
    contributing
        Numbers of the contributing runs.
    flags
        Number of bins for each flag, and the bins that were filled.
    failed_runs
        Contributing runs that could not be used, ``{obs_id: reason}``.
    notes
        What was remarkable about contributing runs, ``{obs_id: note}``.
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
    flags: dict = field(default_factory=dict)
    failed_runs: dict[int, str] = field(default_factory=dict)
    notes: dict[int, str] = field(default_factory=dict)


def write_block(
    targets: Sequence[Target],
    counts: NDArray,
    exposure: NDArray,
    livetime: NDArray,
    n_runs: NDArray,
    errors: NDArray,
    notes: NDArray,
    edges: Edges,
    settings: RateSettings,
    copy: bool,
    cards: dict[str, tuple[object, str]],
) -> list[Result]:
    """Make and write the backgrounds of a block of targets; one that fails does not take the others with it.

    Parameters
    ----------
    targets
        The runs, in the order of the first axis of the arrays.
    counts, exposure, livetime, n_runs, errors, notes
        Their stacks, see `dask_bkg.stacking.Stack`.
    edges, settings
        Bin edges, and how the rate is made.
    copy
        Whether the whole file is written with the background, or the background alone.
    cards
        Header cards that all backgrounds of the job have in common.
    """
    results = []
    for i, target in enumerate(targets):
        try:
            result = _write_one(target, counts[i], exposure[i], errors[i], notes[i], edges, settings, copy, {
                **cards,
                "N_RUNS": (int(n_runs[i]), "number of contributing runs"),
                "LIVETIME": (round(float(livetime[i]), 3), "[s] livetime of the contributing runs"),
            })  # fmt: skip
        except BackgroundError as error:
            result = Result(target.obs_id, "failed", str(error), failed_runs=dict(errors[i]))
        except Exception as error:  # whatever it is, the other targets go on
            reason = f"run {target.obs_id}: unexpected {type(error).__name__}: {error}"
            result = Result(target.obs_id, "failed", reason, failed_runs=dict(errors[i]))
        results.append(result)
    return results


def _write_one(target, counts, exposure, errors, notes, edges, settings, copy, cards) -> Result:
    from dask_bkg.irf import to_hdu

    background, flag = stacked_background(target.obs_id, counts, exposure, errors, edges, settings)
    threshold = _threshold(target)
    cards = {**cards, "N_EVENTS": (int(counts.sum()), "events in the contributing runs")}
    if np.isfinite(threshold):
        cards["E_THRES"] = (round(threshold, 6), "[TeV] energy threshold of this run")
    hdu = to_hdu(background, cards)
    if copy:
        name = attach_background(target.source, target.output, hdu)
    else:
        name = write_background(target.output, hdu)
    return Result(
        target.obs_id,
        "done",
        _remark(target, errors, notes),
        cards["N_RUNS"][0],
        cards["LIVETIME"][0] / 3600,
        int(counts.sum()),
        target.output,
        name,
        threshold,
        tuple(run for run in target.contributing if run not in errors),
        summarize_flags(flag),
        dict(errors),
        dict(notes),
    )


def stacked_background(
    obs_id: int, counts: NDArray, exposure: NDArray, errors: dict[int, str], edges: Edges, settings: RateSettings
) -> tuple[Any, NDArray]:
    """Background of the stack of one target (`~gammapy.irf.Background2D`) and the flag of each bin.

    Raises
    ------
    RunError
        If there is no event in the stack; with the reasons of the runs that could not be used.
    """
    from dask_bkg.irf import rate_to_background

    if not counts.any():
        energy, others = edges.energy, "; ".join(errors.values())
        raise RunError(
            errors.get(obs_id)
            or f"run {obs_id}: no event of its contributing runs is outside of the exclusion and within "
            f"{energy[0]:g}-{energy[-1]:g} TeV: look at binning.e_min, e_max. {others}".rstrip(" .")
        )
    return rate_to_background(counts, exposure, edges, settings)


def _threshold(target: Target) -> float:
    """Threshold of the run: LO_THRES or SAFE_ENERGY_LO, else from its effective area; NaN if nothing says."""
    if np.isfinite(target.threshold) and target.threshold > 0:
        return float(target.threshold)
    if target.aeff is None:
        return float("nan")
    try:
        return read_threshold(*target.aeff, target.obs_id)
    except RunError:
        return float("nan")


def _remark(target: Target, errors: dict[int, str], notes: dict[int, str]) -> str:
    remarks = [] if target.enough else ["fewer hours than background_selection.time_request"]
    remarks += [note if run == target.obs_id else f"contributing run {run}: {note}" for run, note in notes.items()]
    if errors:
        remarks.append(f"{len(errors)} contributing runs could not be used")
    return "; ".join(remarks)


def summarize_flags(flag: NDArray) -> dict:
    """Number of bins for each flag in words, and the indices (energy, offset) of those that were filled."""
    counted = {text: int(((flag & bit) > 0).sum()) for bit, text in FLAGS.items()}
    filled = np.argwhere((flag & (RING_FILLED | EXTRAPOLATED)) > 0)
    return {"bins": {text: n for text, n in counted.items() if n}, "filled": filled.tolist()}
