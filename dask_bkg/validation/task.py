"""From a stack to a score: the background as it would be written, against the counts of the run. Eager; on workers.

The rate is estimated by the same function as for files (`dask_bkg.background.model.stacked_rate`); the counts come
from the run store.  No file is written and no event is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_bkg.background.field_rotation import turn_to_radec
from dask_bkg.background.model import Model, RunMetadata, parallactic_angles, stacked_rate, zenith_direction
from dask_bkg.background.stack import Stack
from dask_bkg.background.target import Sight, Target
from dask_bkg.binning import FieldEdges
from dask_bkg.dl3.given import read_given
from dask_bkg.dl3.index import Datastore
from dask_bkg.errors import ArchiveError, BackgroundError, RunError
from dask_bkg.selection import Selections, of_target
from dask_bkg.store.load import load_field
from dask_bkg.validation.bins import Bins, Settings, make_bins
from dask_bkg.validation.prediction import Nodes, predict
from dask_bkg.validation.score import FieldSums, RunScore, score_run


class Scored(NamedTuple):
    """The counts that backgrounds are compared with: a view of a run store, and the bins of the comparison."""

    path: str
    view: str
    alignment: str  # frame of the field pixels, radec or altaz
    energy: tuple[float, ...]  # edges [TeV]
    pixels: tuple[float, ...]  # edges [deg]
    settings: Settings

    @property
    def bins(self) -> Bins:
        """The bins of the comparison."""
        return make_bins(self.energy, self.pixels, self.settings)


class Subject(NamedTuple):
    """A run whose background is scored, and where its counts are in the run store."""

    target: Target
    row: int
    key: int  # which must be in this row (`dask_bkg.store.store.RunStore.keys`)
    threshold: float  # energy [TeV]; NaN: unknown, and the energy of the most counts takes its place
    sight: Sight  # NaN if unknown


class Verdict(NamedTuple):
    """Score of one run, or the reason why there is none; number and livetime [h] of its contributing runs."""

    obs_id: int
    reason: str = ""
    score: RunScore | None = None
    threshold: float = float("nan")  # lowest energy that was compared [TeV]
    n_runs: int = 0
    hours: float = 0.0


class BlockScore(NamedTuple):
    """Verdicts of a batch of runs, and the sums over them."""

    verdicts: list[Verdict]
    field: FieldSums | None


class Judged(NamedTuple):
    """A background, its frame (empty for 2D), and the number and livetime [h] of its contributing runs."""

    nodes: Nodes
    alignment: str = ""
    n_runs: int = 0
    hours: float = 0.0


def score_block(
    batch: Sequence[Subject | None],
    first: int,
    selected: Mapping[str, Selections],
    stacks: Mapping[str, Stack],
    runs: RunMetadata,
    model: Model,
    scored: Scored,
) -> BlockScore:
    """Score the backgrounds of a batch of targets, estimated as in `dask_bkg.output.write.write_block`.

    Parameters
    ----------
    batch
        The runs; None for one without counts to compare with, which is left out.
    first
        Row of the first of them in the stacks.
    selected, stacks, runs, model
        As for `dask_bkg.output.write.write_block`.
    scored
        The counts that they are compared with.

    Returns
    -------
    block
        A verdict for each run, and sums over those that were scored.
    """
    there = [(first + i, subject) for i, subject in enumerate(batch) if subject is not None]

    def make(i: int) -> Judged:
        row, subject = there[i]
        contributors = of_target(selected, row)
        stack = {role: stack.of(row) for role, stack in stacks.items()}
        chosen = contributors["spectrum"]
        if chosen.reason:
            raise RunError(chosen.reason)
        rate = stacked_rate(subject.target, contributors, stack, runs, model).rate
        livetime = float(stack["spectrum"].livetime)
        if model.field is None:
            return Judged(Nodes(rate.value, model.edges), "", chosen.run.size, livetime / 3600)
        energy, fov = model.field.edges
        return Judged(Nodes(rate.value, (energy, fov, fov)), model.field.written, chosen.run.size, livetime / 3600)

    return _score([subject for _, subject in there], scored, make)


def score_given(subjects: Sequence[Subject], archive: Datastore, scored: Scored) -> BlockScore:
    """Score the existing backgrounds of runs of an archive."""

    def make(i: int) -> Judged:
        target = subjects[i].target
        given = read_given(archive, target.obs_id)
        return Judged(Nodes(given.rate, given.axes, given.tiny), given.alignment if len(given.axes) == 3 else "")

    return _score(subjects, scored, make)


def _score(subjects: Sequence[Subject], scored: Scored, make: Callable[[int], Judged]) -> BlockScore:
    """Score the backgrounds that a function returns; one that fails does not affect the others."""
    bins = scored.bins
    if not subjects:
        return BlockScore([], None)
    rows, keys = np.array([s.row for s in subjects]), np.array([s.key for s in subjects], dtype=np.uint64)
    edges = FieldEdges(np.array(scored.energy), np.array(scored.pixels))
    counts, exposure = load_field(scored.path, scored.view, rows, edges, keys)
    counts, exposure = (array.reshape(*array.shape[:-2], -1)[..., bins.pixel] for array in (counts, exposure))
    verdicts, total = [], None
    for i, subject in enumerate(subjects):
        obs_id = subject.target.obs_id
        try:
            judged = make(i)
            mu = predict(_in_frame(judged, subject, scored), bins.places) * exposure[i]
            verdict, field = _judge(subject, judged, counts[i], mu, exposure[i], scored)
            total = field if total is None else total + field
        except ArchiveError:
            raise
        except BackgroundError as error:
            verdict = Verdict(obs_id, str(error))
        except Exception as error:  # any other error of one run must not stop the others
            verdict = Verdict(obs_id, f"run {obs_id}: unexpected {type(error).__name__}: {error}")
        verdicts.append(verdict)
    return BlockScore(verdicts, total)


def _judge(
    subject: Subject, judged: Judged, counts: NDArray, mu: NDArray, exposure: NDArray, scored: Scored
) -> tuple[Verdict, FieldSums]:
    """Score of one run above its threshold."""
    obs_id, bins, exposed = subject.target.obs_id, scored.bins, exposure > 0
    low = np.array(scored.energy[:-1])
    lowest = subject.threshold * scored.settings.threshold
    if not np.isfinite(lowest):
        lowest = float(low[counts[:, exposed].sum(axis=1).argmax()])
    first = int(np.searchsorted(low, lowest * (1 - 1e-9)))
    if first >= low.size:
        raise RunError(
            f"run {obs_id}: its threshold, {lowest:g} TeV, is above all energies that are compared "
            f"({low[0]:g}-{scored.energy[-1]:g} TeV): check binning.e_max and validation.threshold"
        )
    if not np.isfinite(mu).all():
        raise RunError(f"run {obs_id}: its background predicts counts that are not finite")
    if not counts[first:][:, exposed].any():
        raise RunError(f"run {obs_id}: no counts outside of the exclusion above {low[first]:g} TeV")
    up = (0.0, 1.0)  # north, if the direction of the zenith is unknown
    if scored.alignment != "altaz" and np.isfinite(subject.sight).all():
        up = zenith_direction(subject.sight)
    score, field = score_run(counts, mu, exposure, first, bins, up)
    return Verdict(obs_id, "", score, float(low[first]), judged.n_runs, judged.hours), field


def _in_frame(judged: Judged, subject: Subject, scored: Scored) -> Nodes:
    """A background in the frame of the counts."""
    nodes, obs_id = judged.nodes, subject.target.obs_id
    if judged.alignment in ("", scored.alignment):
        return nodes
    _, lat, lon = nodes.axes
    if scored.alignment == "altaz":
        raise RunError(f"run {obs_id}: a background aligned with north cannot be compared in pixels aligned with the "
                       "horizon")  # fmt: skip
    if not np.array_equal(lat, lon) or not np.isfinite(subject.sight).all():
        raise RunError(
            f"run {obs_id}: its background is aligned with the horizon and cannot be rotated to the sky: it has "
            "other bins along fov_lon than along fov_lat, or time and site of the run are unknown"
        )
    return nodes._replace(value=turn_to_radec(nodes.value, lat, parallactic_angles(subject.sight)))
