"""Order and weights of the runs that pass the cuts: one function per ranking.

A ranking gives the score of each pair of target and run, smallest first, and the squared distance of the Gaussian
kernel, if it has one: the weight of a run is ``exp(-distance / 2)``.  Another ranking is one function and its line in
`RANKINGS` (and a value of ``background_selection.rank``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dask_bkg.errors import ConfigError
from dask_bkg.selection.settings import SelectionSettings

Table = Mapping[str, NDArray]
Scores = tuple[NDArray, NDArray | None]
Matrix = NDArray | None
"""Of each target and run, shape ``(targets, runs)``; None where the ranking does not need it."""

LAST = 1e30
"""Score of a run that lacks the quantity of the ranking: after all others."""

POOR = 1e3
"""Added to the divergence of a run that covers too little of the target: a divergence is never that large."""

LACKING = 1e5
"""Added to the score, not to the distance, for each quantity that the target has and the run lacks."""

UNKNOWN = 4.0
"""Squared distance in a quantity that the target has and the run lacks: as if they were two widths apart."""

Widths = Mapping[str, float]

WIDTHS: Widths = {
    "cos_zenith": 0.05, "e_thres": 0.10, "muon_efficiency": 0.07,
    "aeff_integral": 0.10, "ln_e_q25": 0.10, "nsb": 0.35,
}  # fmt: skip
"""Widths of the kernel: in cos z, in natural logarithms, and for ``nsb`` half of the cut of VERITAS (0.7)."""

SHAPE_WIDTHS: Widths = {"cos_zenith": 0.10, "e_thres": 0.20, "ln_e_q25": 0.20}
"""Widths for the shape: mirrors and night sky change the normalisation, and hardly the threshold."""

DIVERGENCE = "divergence"
"""Name, among the widths, of the width of a weight by divergence [nats]."""

DIVERGENCE_WIDTH = 0.005

TIME = "time"
"""Name, among the widths, of the time [d] in which the weight of a night falls to 1/e; without it time has no effect.

It is no width of a Gaussian: squared distances grow by twice the time over it.
"""


def column(table: Table, name: str) -> NDArray:
    """A column as floats; NaN for all runs where the table does not have it."""
    if name not in table:
        return np.full(len(table["obs_id"]), np.nan)
    return np.asarray(table[name], dtype=float)


def airmass(zenith: ArrayLike) -> NDArray:
    """1 / sin(elevation) of a zenith angle [deg], which the procedure compares."""
    return 1 / np.cos(np.deg2rad(zenith))


# -- the kernel ------------------------------------------------------------------------------------------------


def kernel_distance(targets: Table, runs: Table, widths: Widths = WIDTHS) -> tuple[NDArray, NDArray]:
    r"""Squared distance of runs in the Gaussian kernel of the observing conditions.

    .. math:: d^2 = (\Delta\cos z / 0.05)^2 + (\Delta\ln E_{th} / 0.10)^2 + (\Delta\ln\mu / 0.07)^2

    with the energy threshold (10 % of the effective area) and the muon efficiency: step 3 of
    `dask_bkg.background`, whose widths were measured on H.E.S.S. DL3 DR1.  Missing quantities are replaced:

    - no muon efficiency in either: ln of the integral of Aeff E^-2.7, width 0.10; and in addition the night-sky
      background where both have it (width 0.35: half of VERITAS' cut);
    - no threshold, or neither muon efficiency nor integral: the 25 % quantile of ln E of the events, width 0.10, once
      where it replaces both.

    A quantity that the target has and the run lacks without a replacement counts as two widths; what the target
    itself lacks does not count.  In the ranking a run comes after all those that have what it lacks, replaced or not.

    Parameters
    ----------
    targets, runs
        Their tables; ``zenith`` [deg], ``e_thres`` [TeV], ``muon_efficiency``, ``aeff_integral`` [m2 TeV-1.7],
        ``ln_e_q25`` and ``nsb`` are used.  Numbers that are not positive have no logarithm and count as missing.
    widths
        Width of each quantity; one without a width is not compared, and replaces no other.

    Returns
    -------
    distance, lacking
        Squared distance, and how many of the target's quantities the run lacks, shape ``(targets, runs)``.

    Examples
    --------
    >>> alike = {"obs_id": np.array([1]), "zenith": np.array([60.0]), "e_thres": np.array([1.0]),
    ...          "muon_efficiency": np.array([1.0])}
    >>> other = alike | {"e_thres": np.array([np.exp(0.2)])}
    >>> distance, lacking = kernel_distance(alike, other)
    >>> round(float(distance[0, 0]), 9), int(lacking[0, 0])
    (4.0, 0)
    """
    mine, theirs = _scaled(targets, widths), _scaled(runs, widths)
    has, with_muons = {name: ~np.isnan(values) for name, values in mine.items()}, "muon_efficiency" in widths
    distance = _term(mine, theirs, "cos_zenith", has["cos_zenith"])
    energy, no_threshold = _square(mine, theirs, "e_thres")
    muons, no_muons = _square(mine, theirs, "muon_efficiency")
    distance += energy
    distance += muons
    if not with_muons:
        no_muons = None
    elif no_muons is not None:
        integral, no_integral = _square(mine, theirs, "aeff_integral")
        distance += np.where(no_muons, integral, 0.0)
        distance += np.where(no_muons, _term(mine, theirs, "nsb", has["nsb"] & ~has["muon_efficiency"]), 0.0)
        no_muons = None if no_integral is None else no_muons & no_integral
    missing = _either(no_threshold, no_muons)
    if missing is not None:
        either = has["e_thres"] | has["muon_efficiency"] | has["aeff_integral"] | has["ln_e_q25"]
        distance += np.where(missing, _term(mine, theirs, "ln_e_q25", either), 0.0)
    if TIME in widths:
        days = np.abs(np.subtract.outer(column(targets, "time"), column(runs, "time")))
        # a run without a date is infinitely far
        distance += np.where(np.isnan(days), np.inf, 2 * days / widths[TIME])
    return distance, _lacking(has, theirs, with_muons)


def _scaled(table: Table, widths: Widths) -> dict[str, NDArray]:
    """Quantities of the kernel in units of its widths, NaN where they are missing or have no width."""
    values = {"cos_zenith": np.cos(np.deg2rad(column(table, "zenith")))}
    for name in ("e_thres", "muon_efficiency", "aeff_integral"):
        given = column(table, name)
        values[name] = np.log(given, out=np.full(given.shape, np.nan), where=np.isfinite(given) & (given > 0))
    values |= {name: column(table, name) for name in ("ln_e_q25", "nsb")}
    return {name: np.where(np.isfinite(v), v, np.nan) / widths.get(name, np.nan) for name, v in values.items()}


def _square(mine: Mapping, theirs: Mapping, name: str) -> tuple[NDArray, NDArray | None]:
    """Squared difference, 0 where either is missing; and a mask of these pairs, None if there are none."""
    square = np.subtract.outer(mine[name], theirs[name])
    square *= square
    absent = np.isnan(mine[name]), np.isnan(theirs[name])
    if not (absent[0].any() or absent[1].any()):
        return square, None
    missing = np.logical_or.outer(*absent)
    square[missing] = 0.0
    return square, missing


def _term(mine: Mapping, theirs: Mapping, name: str, has: NDArray) -> NDArray:
    """Squared difference; where either is missing, `UNKNOWN` for the targets of the mask ``has``, else 0."""
    square, missing = _square(mine, theirs, name)
    if missing is not None:
        square += UNKNOWN * (missing & has[:, None])
    return square


def _either(first: NDArray | None, second: NDArray | None) -> NDArray | None:
    if first is None or second is None:
        return second if first is None else first
    return first | second


def _lacking(has: dict[str, NDArray], theirs: dict[str, NDArray], with_muons: bool) -> NDArray:
    """Number of quantities that a target is compared by and a run lacks, shape ``(targets, runs)``."""
    no_muons = ~has["muon_efficiency"] if with_muons else np.zeros_like(has["muon_efficiency"])
    used = has | {
        "aeff_integral": has["aeff_integral"] & no_muons,
        "nsb": has["nsb"] & no_muons,
        "ln_e_q25": has["ln_e_q25"] & (~has["e_thres"] | (no_muons & ~has["aeff_integral"])),
    }
    of_targets = np.stack([used[name] for name in WIDTHS]).astype(float)
    of_runs = np.stack([np.isnan(theirs[name]) for name in WIDTHS]).astype(float)
    # small whole numbers: a matrix product adds them without rounding
    return of_targets.T @ of_runs


# -- the rankings ----------------------------------------------------------------------------------------------


def by_nothing(targets: Table, runs: Table, kl: Matrix, poor: Matrix, widths: Widths) -> Scores:
    """All runs that pass, with the same score."""
    return np.zeros((len(targets["obs_id"]), len(runs["obs_id"]))), None


def by_elevation(targets: Table, runs: Table, kl: Matrix, poor: Matrix, widths: Widths) -> Scores:
    """Nearest in 1/sin(elevation); a run without elevation comes last."""
    mine, theirs = airmass(column(targets, "zenith")), airmass(column(runs, "zenith"))
    gap = np.subtract.outer(mine, theirs)
    np.abs(gap, out=gap)
    gap[np.isnan(mine)] = LAST
    gap[:, np.isnan(theirs)] = LAST
    return gap, None


def by_divergence(targets: Table, runs: Table, kl: Matrix, poor: Matrix, widths: Widths) -> Scores:
    """Smallest divergence; a run that covers too little comes last, one without a divergence is no candidate."""
    if kl is None:
        raise ValueError("this ranking needs the divergences of the pairs (kl), got None")
    kl = np.asarray(kl, dtype=float)
    return (kl if poor is None else kl + POOR * np.asarray(poor, dtype=bool)), None


def by_likelihood(targets: Table, runs: Table, kl: Matrix, poor: Matrix, widths: Widths) -> Scores:
    """Smallest divergence, and weighted by it: exp(-divergence / width).

    The divergence times the number of the target's events is the log-likelihood that is lost if the shape of the run
    replaces that of the target.  This as a weight would leave only the run with the most similar fluctuations; the
    width is the difference in nats per event between runs of the same conditions.
    """
    score = by_divergence(targets, runs, kl, poor, widths)[0]
    return score, 2 * np.maximum(score, 0.0) / widths.get(DIVERGENCE, DIVERGENCE_WIDTH)


def by_conditions(targets: Table, runs: Table, kl: Matrix, poor: Matrix, widths: Widths) -> Scores:
    """Nearest in the kernel of the observing conditions, and weighted by it."""
    distance, lacking = kernel_distance(targets, runs, widths)
    return distance + LACKING * lacking, distance


def by_divergence_and_conditions(targets: Table, runs: Table, kl: Matrix, poor: Matrix, widths: Widths) -> Scores:
    """Smallest divergence, weighted by the kernel of the observing conditions."""
    return by_divergence(targets, runs, kl, poor, widths)[0], kernel_distance(targets, runs, widths)[0]


def by_likelihood_and_conditions(targets: Table, runs: Table, kl: Matrix, poor: Matrix, widths: Widths) -> Scores:
    """Nearest in kernel and divergence together, and weighted by both."""
    score, distance = by_likelihood(targets, runs, kl, poor, widths)
    conditions, lacking = kernel_distance(targets, runs, widths)
    together = conditions + distance
    # a run without a divergence is no candidate here either
    return np.where(np.isfinite(score), together + LACKING * lacking, np.inf), together


class Ranking(NamedTuple):
    """A ranking and what it needs.

    Attributes
    ----------
    scores
        Function of the tables of targets and runs, the divergences and whether the run covers too little, each
        ``(targets, runs)`` or None, and the widths of the kernel.  It returns score and squared distance in the
        kernel (None: every weight is 1), both ``(targets, runs)``.  A pair without a finite score is no candidate.
    divergence, weights
        Whether it ranks by divergence, and whether it weights runs.
    why
        Reason for which it needs the elevation of target and runs, for messages; empty if it does not.
    widens
        Whether the kernel is widened for a target with few runs in it.
    """

    scores: Callable[[Table, Table, Matrix, Matrix, Widths], Scores]
    divergence: bool = False
    weights: bool = False
    why: str = ""
    widens: bool = True

    def needs(self, settings: SelectionSettings) -> bool:
        """Whether a target must have its elevation: not if all runs that pass are taken with equal weights."""
        return bool(self.why) and (self.weights or np.isfinite(settings.hours_wanted))


_KERNEL = "the runs are weighted by their distance in cos z and other conditions"

RANKINGS: dict[str, Ranking] = {
    "none": Ranking(by_nothing),
    "elevation": Ranking(by_elevation, why="the runs are ranked by their elevation"),
    "kl": Ranking(by_divergence, divergence=True),
    "conditions": Ranking(by_conditions, weights=True, why=_KERNEL),
    "kl-conditions": Ranking(by_divergence_and_conditions, divergence=True, weights=True, why=_KERNEL),
    "likelihood": Ranking(by_likelihood, divergence=True, weights=True),
    "likelihood-conditions": Ranking(by_likelihood_and_conditions, divergence=True, weights=True, why=_KERNEL),
}

SAME_NIGHT = "same-night"
"""Ranking of the runs that measure the normalisation of the night; no option of a user, and never widened."""

_OF_JOBS = {SAME_NIGHT: Ranking(by_conditions, weights=True, widens=False)}


def ranking_of(settings: SelectionSettings) -> Ranking:
    """The ranking of the settings.

    Raises
    ------
    ConfigError
        If there is no such ranking.
    """
    try:
        return RANKINGS.get(settings.ranking) or _OF_JOBS[settings.ranking]
    except KeyError:
        raise ConfigError(
            f"background_selection.rank: there is no ranking {settings.ranking!r}; accepted are {', '.join(RANKINGS)}"
        ) from None


def needs_divergence(settings: SelectionSettings) -> bool:
    """Whether the ranking needs the divergences of the pairs."""
    return ranking_of(settings).divergence


def weighs(settings: SelectionSettings) -> bool:
    """Whether runs get weights other than 1."""
    return ranking_of(settings).weights


def widths_of(settings: SelectionSettings) -> Widths:
    """Widths of the kernel in the settings, or the measured ones."""
    return getattr(settings, "kernel", None) or WIDTHS


def hours_wanted(settings: SelectionSettings) -> float:
    """Requested hours; infinite for all of them, and where nothing is ranked."""
    return np.inf if settings.ranking == "none" else float(settings.hours_wanted)
