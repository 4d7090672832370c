"""How well backgrounds predict runs that they were not made of: the score of the benchmarks.

Counts of a run outside of a mask, within 2 deg, in ten energies a decade from its threshold and pixels of 0.2 deg,
against what a background expects there: Poisson log-likelihood ``raw`` (rate x ontime as it stands), ``norm`` (one
factor a run) and ``enorm`` (a factor a run and energy); differences of two backgrounds in 1e-3 nats an event with a
paired bootstrap error.  ``width`` is that of the significances, sign x sqrt(Cash ratio), in fields of 0.5 deg and
five energy bands with more than 5 expected counts.

Backgrounds are those of the files that were written, as gammapy reads them, and what is expected comes from their
node values as gammapy takes them: power laws between energies, ln(rate) linear in offset or field pixels, zeros
filled between the energies that have a rate (its ``interp_missing_data``).  There are two departures, for backgrounds
with holes.  Values 1e-6 below the largest of their energy count as holes too: next to them a power law runs away, up
to rates of 1e90.  And a rate is held beyond the outermost nodes, not extrapolated.  Pixels with next to no rate are
floored at 1e-3 of an even share of their energy.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gammapy.data import DataStore
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from dask_bkg import pipeline
from dask_bkg.archive.load import load_field
from dask_bkg.collect import reduce_archive
from dask_bkg.config import parse_config
from dask_bkg.schema import FieldEdges

ENERGY = np.geomspace(0.1, 100, 31)
PIXELS = np.round(np.arange(-12.5, 13) * 0.2, 12)
OFFSET_MAX = 2.0
BANDS = np.array([0.1, 0.4, 0.63, 1.0, 3.16, 31.6])
FLOOR, HOLE = 1e-3, 1e-6
MIRRORED = "REVERSE_LON_RADEC"
"""What gammapy makes of 3D backgrounds of H.E.S.S. DR1: its values are to be mirrored."""

FINE = 4  # points a pixel, each way
EVEN_SHARE = 1.0 + 1e-6  # of a threshold, which files hold as float32

PLAIN = {
    "preset": "gammapy-tools", "binning": {"e_bins": 20, "off_bins": 20},
    "background_selection": {"KL_DIV": True, "time_request": 10, "smooth": False},
}  # fmt: skip
"""The original procedure: 20 energies, 20 rings, event ratios, KL divergence of rates, 10 h; then `smoothed`."""

_2D, _3D = ({"binning": {"mode": mode}} for mode in ("2d", "3d"))
METHODS: dict[str, dict[str, Any]] = {
    "plain procedure": PLAIN,
    "plain procedure, 30 energies": PLAIN | {"binning": {"e_bins": 30, "off_bins": 20}},
    "rank kl": _2D | {"background_selection": {"rank": "kl"}},
    "rank elevation": _2D | {"background_selection": {"rank": "elevation"}},
    "conditions, one set of runs, no night": _2D | {"background_selection": {"shape_runs": "same", "night_level": 0}},
    "default 2D": _2D,
    "default 3D": _3D,
    "rank kl, 3D": _3D | {"background_selection": {"rank": "kl"}},
    "default 3D, same target out": _3D | {"background_selection": {"exclude_same_target": True}},
}
"""Configurations that are compared; each run's background is made of other runs."""


class Rates(NamedTuple):
    """Backgrounds of some runs.

    Attributes
    ----------
    energy, axis
        Energies [TeV] and offsets, or positions along both field axes [deg], at which the rates hold.
    limits
        Energies between which there is a background [TeV].
    of
        Rates [s-1 TeV-1 sr-1] by run number, shape ``(energy, offset)`` or ``(energy, fov_lat, fov_lon)``.
    frame
        In which they are compared: ``altaz``, or where they are aligned with north ``radec``.
    """

    energy: NDArray
    axis: NDArray
    limits: tuple[float, float]
    of: Mapping[int, NDArray]
    frame: str = "altaz"


class HeldOut(NamedTuple):
    """What the backgrounds are to predict.

    Attributes
    ----------
    obs_id, group
        Runs, and what of them is drawn together by the bootstrap, shape ``(runs,)``.
    counts
        Events, shape ``(runs, energy, fov_lat, fov_lon)``; none outside of the exposure.
    exposure
        Ontime x solid angle that is looked at [s sr], shape ``(runs, fov_lat, fov_lon)``.
    seen
        Energies that are looked at, shape ``(runs, energy)``.
    """

    obs_id: NDArray
    group: NDArray
    counts: NDArray
    exposure: NDArray
    seen: NDArray

    def of(self, chosen: NDArray) -> HeldOut:
        """Some of the runs."""
        return HeldOut(*(part[chosen] for part in self))

    def above(self, factor: float, threshold: NDArray) -> HeldOut:
        """The same from higher energies on: ``factor`` times the thresholds [TeV], shape ``(runs,)``."""
        seen = ENERGY[:-1] * EVEN_SHARE >= factor * threshold[:, None]
        return self._replace(counts=self.counts * seen[:, :, None, None], seen=seen)


class Scores(NamedTuple):
    """Scores of one background of each run: log-likelihoods, shape ``(runs,)``, and what goes with them.

    Attributes
    ----------
    raw, norm, enorm
        Log-likelihoods, less what does not depend on the background.
    events, predicted
        Counts, and what the background expects.
    significance
        Of the fields of 0.5 deg, under ``norm``: one array of all runs.
    """

    raw: NDArray
    norm: NDArray
    enorm: NDArray
    events: NDArray
    predicted: NDArray
    significance: NDArray


# -- backgrounds ---------------------------------------------------------------------------------------------------


def quiet() -> None:
    """Keep gammapy from calling backgrounds of 20 x 20 bins ambiguous: it reads them as the format says."""
    logging.getLogger("gammapy").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")


def job(archive: Path, scratch: Path, over: Mapping[str, Any], exclusion: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration for all runs of an archive; binnings that no run store shares get one of their own."""
    bins = over.get("binning", {}).get("e_bins", "fine")
    scratch.mkdir(parents=True, exist_ok=True)
    base = {
        "io": {"search_datastore": str(archive), "in_dir": str(archive), "out_dir": tempfile.mkdtemp(dir=scratch)},
        "run_store": {"path": str(scratch / f"runs-{bins}.zarr")}, "cluster": "threads", "exclusion": {**exclusion},
    }  # fmt: skip
    return {**base, **over, "exclusion": {**exclusion, **over.get("exclusion", {})}}


def make_rates(archive: Path, scratch: Path, over: Mapping[str, Any], exclusion: Mapping[str, Any]) -> Rates:
    """Backgrounds of all runs of an archive under a configuration, read back from the files that were written."""
    config = parse_config(job(archive, scratch, over, exclusion))
    summary = pipeline.run(config, progress=False)
    rates = read_rates(config.directory("out_dir"), [r.obs_id for r in summary.results if r.done])
    if over.get("preset") != "gammapy-tools":
        return rates
    return rates._replace(of={obs_id: smoothed(rate, rates.axis) for obs_id, rate in rates.of.items()})


def read_rates(directory: Path, obs_ids: Sequence[int]) -> Rates:
    """Backgrounds of a datastore as gammapy reads them."""
    store, of = DataStore.from_dir(directory), {}
    for obs_id in obs_ids:
        background = store.obs(obs_id, required_irf=["bkg"]).bkg
        rate = background.quantity.to_value("s-1 TeV-1 sr-1")
        rate = rate if rate.ndim == 2 else rate.swapaxes(1, 2)
        of[int(obs_id)] = rate[..., ::-1] if background.fov_alignment.name == MIRRORED else rate
    frame = "altaz" if rate.ndim == 2 or background.fov_alignment.name == "ALTAZ" else "radec"
    energy, axis = (background.axes[i] for i in (0, 1))
    edges = energy.edges.to_value("TeV")
    return Rates(energy.center.to_value("TeV"), axis.center.to_value("deg"), (edges[0], edges[-1]), of, frame)


def smoothed(rate: NDArray, offset: NDArray, sigma: float = 1.0) -> NDArray:
    """The procedure's smoothing: rings on pixels as wide as they, a Gaussian of ``sigma`` pixels, the row to a side.

    The pixels are filled linearly.  The procedure's own ``to_3d`` goes through logarithms, where a zero is 1e-308 and
    what is extrapolated from it without bounds.
    """
    width = offset[1] - offset[0]
    n = offset.size
    center = (np.arange(-n, n) + 0.5) * width
    radius = np.hypot(center[:, None], center)
    images = (np.interp(radius, offset, ring) for ring in rate)
    return np.array([gaussian_filter(image, sigma)[n, n:] for image in images])


def filled(rate: NDArray) -> NDArray:
    """The nodes with holes filled along the energy, in ln(rate); beyond the energies that have a rate it is zero."""
    flat = np.where(rate > HOLE * rate.max(axis=tuple(range(1, rate.ndim)), keepdims=True), rate, 0.0)
    flat = flat.reshape(len(rate), -1)
    number = np.arange(len(rate))
    for column in np.flatnonzero((flat <= 0).any(axis=0)):
        full = flat[:, column] > 0
        if full.any():
            between = ~full & (number > number[full][0]) & (number < number[full][-1])
            flat[between, column] = np.exp(np.interp(number[between], number[full], np.log(flat[full, column])))
    return flat.reshape(rate.shape)


def mean_rate(rate: NDArray, rates: Rates) -> NDArray:
    """Integral over the energies of the score, mean over its pixels [s-1 sr-1], shape ``(energy, lat, lon)``."""
    with np.errstate(divide="ignore"):
        log_rate = np.log(np.clip(filled(rate), np.finfo(float).tiny, None))
    middle = np.sqrt(ENERGY[1:] * ENERGY[:-1])
    at = np.sort(np.concatenate([ENERGY, middle]))
    log_rate = _between(log_rate, 0, np.log(rates.energy), np.log(at), hold=False)
    log_rate = _over_field(log_rate, rates.axis)
    inside = (at >= rates.limits[0] / EVEN_SHARE) & (at <= rates.limits[1] * EVEN_SHARE)
    integral = _power_law_integral(log_rate, np.log(at)) * (inside[:-1] & inside[1:])[:, None, None]
    n = PIXELS.size - 1
    return (integral[0::2] + integral[1::2]).reshape(-1, n, FINE, n, FINE).mean(axis=(2, 4))


def _over_field(log_rate: NDArray, axis: NDArray) -> NDArray:
    """On points of the pixels of the score."""
    width = (PIXELS[1] - PIXELS[0]) / FINE
    points = PIXELS[0] + width * (np.arange((PIXELS.size - 1) * FINE) + 0.5)
    if log_rate.ndim == 3:
        return _between(_between(log_rate, 1, axis, points), 2, axis, points)
    radius = np.hypot(points[:, None], points)
    return _between(log_rate, 1, axis, radius.ravel()).reshape(-1, *radius.shape)


def _between(values: NDArray, axis: int, nodes: NDArray, at: NDArray, hold: bool = True) -> NDArray:
    """Linear between nodes along an axis; beyond them held, or continued."""
    i = np.clip(np.searchsorted(nodes, at) - 1, 0, nodes.size - 2)
    part = (at - nodes[i]) / (nodes[i + 1] - nodes[i])
    part = np.clip(part, 0, 1) if hold else part
    part = part.reshape(-1, *[1] * (values.ndim - 1 - axis))
    return np.take(values, i, axis) * (1 - part) + np.take(values, i + 1, axis) * part


def _power_law_integral(log_rate: NDArray, log_energy: NDArray) -> NDArray:
    """Integral of power laws between energies."""
    width = np.diff(log_energy)[:, None, None]
    first = log_rate[:-1] + log_energy[:-1, None, None]
    rise = np.clip(np.diff(log_rate, axis=0) + width, -700, 700)
    flat = np.abs(rise) < 1e-8
    return np.exp(first) * width * np.where(flat, 1.0, np.expm1(rise) / np.where(flat, 1.0, rise))


# -- scores --------------------------------------------------------------------------------------------------------


def hold_out(archive: Path, scratch: Path, exclusion: Mapping[str, Any]) -> tuple[dict[str, HeldOut], NDArray]:
    """Counts of the runs of an archive outside of a mask, in both frames; and the thresholds of the runs [TeV]."""
    place = {"run_store": {"path": str(scratch / "score.zarr")}, "binning": {"mode": "3d", "alignment": "altaz"}}
    stored = reduce_archive(parse_config({**job(archive, scratch, {}, exclusion), **place}), progress=False)
    store = stored.store
    table = store.table()
    order = np.argsort(table["obs_id"])
    obs_id = table["obs_id"][order]
    center = (PIXELS[1:] + PIXELS[:-1]) / 2
    inside = np.hypot(center[:, None], center) < OFFSET_MAX
    threshold, held = table["lo_thres"][order], {}
    # the fine pixels of a store are aligned with north
    for frame, view in (("altaz", stored.field_view), ("radec", "")):
        counts, exposure = load_field(str(store.path), view, store.find(obs_id), FieldEdges(ENERGY, PIXELS))
        exposure = exposure * inside
        whole = HeldOut(obs_id, table["object"][order], counts * (exposure > 0)[:, None], exposure, np.empty(0))
        held[frame] = whole.above(1.0, threshold)
    return held, threshold


def score(held: HeldOut, rates: Rates) -> Scores:
    """Scores of backgrounds; a run that has none is an error."""
    return score_means(held, {i: mean_rate(rates.of[i], rates) for i in held.obs_id.tolist()})


def score_means(held: HeldOut, means: Mapping[int, NDArray]) -> Scores:
    """Scores of mean rates as of `mean_rate`."""
    rows = []
    for row, obs_id in enumerate(held.obs_id.tolist()):
        looked_at = held.seen[row][:, None, None] * held.exposure[row]
        rows.append(_score_run(held.counts[row], means[obs_id] * looked_at, looked_at))
    *numbers, significance = zip(*rows, strict=True)
    return Scores(*(np.array(number) for number in numbers), np.concatenate(significance))


def _score_run(counts: NDArray, expected: NDArray, looked_at: NDArray) -> tuple:
    events, predicted = counts.sum(), expected.sum()
    of_energy = counts.sum(axis=(1, 2)), expected.sum(axis=(1, 2))
    factor = np.divide(*of_energy, out=np.zeros_like(of_energy[0]), where=of_energy[1] > 0)
    raw = _floored(expected, looked_at)
    norm = _floored(expected * (events / predicted), looked_at)
    enorm = _floored(expected * factor[:, None, None], looked_at, of_energy[0])
    likelihoods = (_log_likelihood(counts, mean) for mean in (raw, norm, enorm))
    return *likelihoods, events, predicted, _significances(counts, norm)


def _floored(expected: NDArray, looked_at: NDArray, of_energy: NDArray | None = None) -> NDArray:
    """At least 1e-3 of an even share of its energy; energies without any of the same share of all."""
    total = expected.sum(axis=(1, 2)) if of_energy is None else of_energy
    seen = looked_at.sum(axis=(1, 2))
    share = looked_at / np.where(seen > 0, seen, 1)[:, None, None]
    total = np.where(total > 0, total, FLOOR * expected.sum() / max((seen > 0).sum(), 1))
    return np.maximum(expected, FLOOR * total[:, None, None] * share)


def _log_likelihood(counts: NDArray, expected: NDArray) -> float:
    full = counts > 0
    return float((counts[full] * np.log(expected[full])).sum() - expected.sum())


def _significances(counts: NDArray, expected: NDArray) -> NDArray:
    """Of fields of 0.5 deg in five bands with more than five expected."""
    center = (PIXELS[1:] + PIXELS[:-1]) / 2
    part = np.floor((center + 2.5) / 0.5).astype(int)
    place = part[:, None] * 10 + part
    band = np.searchsorted(BANDS, np.sqrt(ENERGY[1:] * ENERGY[:-1])) - 1
    found = []
    for i in range(BANDS.size - 1):
        a, b = (np.bincount(place.ravel(), x[band == i].sum(axis=0).ravel(), 100) for x in (counts, expected))
        a, b = a[b > 5], b[b > 5]
        ratio = b - a + a * np.log(np.where(a > 0, a, 1) / b)
        found.append(np.sign(a - b) * np.sqrt(np.maximum(2 * ratio, 0)))
    return np.concatenate(found)


def compare(scores: Scores, reference: Scores, group: NDArray, draws: int = 2000) -> dict[str, float]:
    """Differences in 1e-3 nats an event with their errors, width, and mean and scatter of predicted / observed."""
    _, member = np.unique(group, return_inverse=True)
    n = member.max() + 1
    events = np.bincount(member, scores.events)
    weight = np.random.default_rng(0).multinomial(n, np.ones(n) / n, draws)
    told = {}
    for name in ("raw", "norm", "enorm"):
        sums = np.bincount(member, getattr(scores, name) - getattr(reference, name))
        told[name] = float(1e3 * sums.sum() / events.sum())
        told[f"{name} error"] = float((1e3 * (weight @ sums) / (weight @ events)).std())
    ratio = scores.predicted / scores.events
    return {**told, "width": float(scores.significance.std()), "ratio": float(ratio.mean()),
            "scatter": float(ratio.std())}  # fmt: skip


def cells(row: Mapping[str, float]) -> list[str]:
    """A line of a table, of what `compare` tells."""
    parts = [f"{row[name]:+.2f} +- {row[f'{name} error']:.2f}" for name in ("raw", "norm", "enorm")]
    return [*parts, f"{row['width']:.3f}", f"{row['ratio']:.3f}", f"{row['scatter']:.3f}"]


COLUMNS = ["raw", "norm", "enorm", "width", "predicted/observed", "scatter"]
