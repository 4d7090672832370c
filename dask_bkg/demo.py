"""The whole job on a simulated archive, next to the truth: no data and no network needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dask_bkg import report
from dask_bkg.cluster import open_client
from dask_bkg.config import Config, load_config, parse_config
from dask_bkg.config.yaml import dump_yaml
from dask_bkg.dl3.read import RunFile, read_run, read_threshold
from dask_bkg.errors import ArchiveError
from dask_bkg.pipeline.prepare import prepare_runs
from dask_bkg.pipeline.run import Summary, run_job
from dask_bkg.simulate import Truth, simulate_archive
from dask_bkg.sky.catalogs import sky_regions

RUNS, EVENTS, SEED = 30, 10_000, 1
HOURS = 3.0
"""Hours that are stacked for each run: the eight runs most alike."""

STORE = "runs.zarr"
"""Run store of both jobs, next to their datastores: the second one reads no event."""

OFFSET_MAX = 2.0
ENERGY_MAX = 10.0


@dataclass(frozen=True)
class Comparison:
    """Backgrounds that were made, and the truth, for every run.

    Attributes
    ----------
    obs_id, zenith
        Run numbers and zenith angles [deg], shape ``(runs,)``.
    own, stacked
        Expected events (above threshold, up to 10 TeV and 2 deg) over the true ones, shape ``(runs,)``.
    own_error, stacked_error
        Their statistical errors.
    """

    obs_id: NDArray
    zenith: NDArray
    own: NDArray
    own_error: NDArray
    stacked: NDArray
    stacked_error: NDArray

    @property
    def ratios(self) -> dict[str, tuple[NDArray, NDArray]]:
        """Expected over true events with their errors, for both kinds of backgrounds."""
        return {"run-wise": (self.own, self.own_error), "stacked": (self.stacked, self.stacked_error)}


def run_demo(
    out_dir: str | Path, n_workers: int = 2, echo: Callable[[str], None] = print, progress: bool = True
) -> Comparison:
    """Simulate an archive, make run-wise and stacked backgrounds on a local cluster, and compare with the truth.

    Parameters
    ----------
    out_dir
        Where everything goes: ``archive``, ``runwise``, ``stacked`` (datastores), ``runs.zarr`` (the run store of
        both jobs), configurations, ``demo.png``.
    n_workers
        Local worker processes.
    echo
        Gets the lines of text.
    progress
        Whether bars are shown.

    Raises
    ------
    ArchiveError
        If ``out_dir`` holds something else than an earlier demo.
    """
    out_dir = Path(out_dir)
    archive = out_dir / "archive"
    if out_dir.is_dir() and any(out_dir.iterdir()) and not archive.is_dir():
        raise ArchiveError(f"{out_dir} is not empty and holds no earlier demo: give another --out-dir")
    echo(f"simulating {RUNS} runs of {EVENTS} events in {archive}")
    truth = simulate_archive(archive, runs=RUNS, events=EVENTS, seed=SEED, overwrite=True)
    with open_client(parse_config({"config": {"njobs": n_workers}})):
        summaries = {name: _job(out_dir, name, echo, progress) for name in ("runwise", "stacked")}
    comparison = compare(truth, *(summaries[name].results for name in ("runwise", "stacked")))
    for name, summary in summaries.items():
        for reason in summary.failed.values():
            echo(f"{name}: {reason}")
    _draw(out_dir / "demo.png", truth, comparison, summaries, load_config(out_dir / "stacked.yaml"))
    echo(_table(truth, comparison, summaries))
    echo(f"\npicture      {out_dir / 'demo.png'}\ndatastores   {out_dir / 'runwise'}, {out_dir / 'stacked'}")
    echo(f"run store    dask-bkg info {out_dir / STORE}")
    echo(f"who is like  dask-bkg kl {out_dir / 'stacked.yaml'}")
    echo(f"do it again  dask-bkg run {out_dir / 'stacked.yaml'}")
    return comparison


def demo_config(out_dir: Path, name: str) -> dict:
    """Configuration of one of the two jobs, ``runwise`` or ``stacked``."""
    archive, made = str(out_dir / "archive"), str(out_dir / name)
    return {
        "io": {"search_datastore": archive, "in_dir": archive, "out_dir": made, "from_run": name == "runwise"},
        "run_store": {"path": str(out_dir / STORE)},
        # the picture is of rings; the simulated field is round
        "binning": {"mode": "2d"},
        "exclusion": {
            "catalogs": [],
            "star_cat": f"{archive}/stars.dat",
            "exclude_region_files": [f"{archive}/sources.reg"],
        },
        "background_selection": {"time_request": HOURS, "rank": "kl"},
    }


def _job(out_dir: Path, name: str, echo: Callable[[str], None], progress: bool) -> Summary:
    path = out_dir / f"{name}.yaml"
    path.write_text(dump_yaml(demo_config(out_dir.resolve(), name)))
    what = "of the run itself" if name == "runwise" else f"of {HOURS:g} h of the runs most like it"
    echo(f"{name} backgrounds: each {what}")
    done = run_job(prepare_runs(load_config(path)), progress=progress)
    counted = f"{done.runs_opened} event files opened, events of {done.runs_read} runs counted"
    echo(counted + ("" if done.runs_read else f": {STORE} has them all"))
    return done


def compare(truth: Truth, own: list, stacked: list) -> Comparison:
    """Expected events of the backgrounds that were written over the true ones, run by run."""
    pairs = zip(own, stacked, strict=True)
    ratios = np.array([[_ratio(truth, a), _error(a), _ratio(truth, b), _error(b)] for a, b in pairs])
    obs_id = np.array([r.obs_id for r in own])
    zenith = np.array([truth.run(int(i)).zenith for i in obs_id])
    return Comparison(obs_id, zenith, *ratios.T)


def _ratio(truth: Truth, result) -> float:
    """Integral over energy and solid angle of the background as gammapy interpolates it, over the truth's."""
    if not result.done:
        return float("nan")
    energy, offset = (
        np.geomspace(result.threshold, ENERGY_MAX, 200)[:, None],
        np.linspace(0.02, OFFSET_MAX, 100)[None],
    )
    weight = energy * np.sin(np.deg2rad(offset))
    made = read_rate(result.output, result.hdu, energy, offset)
    return float((made * weight).sum() / (truth.rate(result.obs_id, energy, offset) * weight).sum())


def _error(result) -> float:
    return float(report.relative_error(np.array(result.n_events)))


def read_rate(path: str, hdu: str, energy: NDArray, offset: NDArray) -> NDArray:
    """Rate [s-1 TeV-1 sr-1] of a background in a file, as gammapy interpolates it; energies [TeV], offsets [deg]."""
    import astropy.units as u
    from gammapy.irf import Background2D

    background = Background2D.read(path, hdu=hdu)
    # MapDatasetMaker does the same: constant from the last ring's centre on
    padded = background.pad(1, mode="edge", axis_name="offset")
    return padded.evaluate(energy=energy * u.TeV, offset=offset * u.deg).to_value("s-1 TeV-1 sr-1")


def _table(truth: Truth, found: Comparison, summaries: dict) -> str:
    rows = []
    for i, obs_id in enumerate(found.obs_id.tolist()):
        own, stacked = (summaries[name].results[i] for name in ("runwise", "stacked"))
        rows.append([
            obs_id, f"{found.zenith[i]:.0f}", own.n_events, f"{found.own[i]:.3f}", f"{stacked.n_runs}",
            float(stacked.hours), f"{found.stacked[i]:.3f}",
        ])  # fmt: skip
    header = ["run", "zenith", "events", "run-wise/truth", "runs", "hours", "stacked/truth"]
    lines = [report.format_table(header, rows), ""]
    for name, (values, error) in found.ratios.items():
        lines.append(
            f"{name:9s} made/truth: mean {np.nanmean(values):.3f}, scatter {np.nanstd(values):.3f} "
            f"(statistics alone {np.sqrt(np.nanmean(error**2)):.3f})"
        )
    return "\n".join(lines)


def _draw(path: Path, truth: Truth, found: Comparison, summaries: dict, config: Config) -> None:
    """The picture, for a run on the first target in the middle of the zenith range."""
    crab = [i for i, obs_id in enumerate(found.obs_id) if truth.run(int(obs_id)).object == truth.runs[0].object]
    example = crab[int(np.argsort(found.zenith[crab])[len(crab) // 2])]
    made = {"run-wise": summaries["runwise"].results[example], "stacked": summaries["stacked"].results[example]}
    colors = {"run-wise": report.OWN, "stacked": report.STACKED}
    obs_id = int(found.obs_id[example])
    ratios = [report.Curve(name, found.zenith, *pair, colors[name]) for name, pair in found.ratios.items()]
    report.plot_demo(
        path,
        _field(made["stacked"], config),
        _spectrum(truth, obs_id, made, colors, config),
        _profile(truth, obs_id, made, colors, config),
        ratios,
        f"dask_bkg demo: {len(found.obs_id)} simulated runs; run {obs_id} at zenith {found.zenith[example]:.0f} deg",
    )


def _field(result, config: Config) -> report.Field:
    events = read_run(RunFile(result.obs_id, result.output))
    ra, dec = events.numbers["ra_pnt"], events.numbers["dec_pnt"]
    offset_max = config.binning.off_max
    near = sky_regions(config.exclusion, config.base_dir).near(ra, dec, offset_max)
    title = f"run {result.obs_id}: events, and what is excluded"
    return report.Field(title, events.ra, events.dec, ra, dec, offset_max, near)


def _spectrum(truth: Truth, obs_id: int, made: dict, colors: dict, config: Config) -> list[report.Curve]:
    edges = config.binning.energy_edges
    center = np.sqrt(edges[1:] * edges[:-1])
    center = center[(center > 0.08) & (center < 20)]
    fine = np.geomspace(center[0], center[-1], 300)
    curves = [report.Curve("truth", fine, truth.rate(obs_id, fine, 0.75), None, report.TRUTH)]
    for name, result in made.items():
        rate = read_rate(result.output, result.hdu, center, np.array(0.75))
        expected = rate * center * np.log(edges[1] / edges[0]) * truth.run(obs_id).ontime * 3e-3 * result.n_runs
        curves.append(report.Curve(name, center, rate, rate * report.relative_error(expected), colors[name]))
    return curves


def _profile(truth: Truth, obs_id: int, made: dict, colors: dict, config: Config) -> list[report.Curve]:
    """Ratio to the truth in each ring, summed over energies above threshold."""
    rings = config.binning.offset_edges
    center = (rings[1:] + rings[:-1]) / 2
    curves = []
    for name, result in made.items():
        energy = np.geomspace(read_threshold(result.output), ENERGY_MAX, 200)[:, None]
        rate = (read_rate(result.output, result.hdu, energy, center[None, :]) * energy).sum(axis=0)
        true = (truth.rate(obs_id, energy, center[None, :]) * energy).sum(axis=0)
        share = true * np.sin(np.deg2rad(center))
        error = rate / true * report.relative_error(result.n_events * share / share.sum())
        curves.append(report.Curve(name, center, rate / true, error, colors[name]))
    return curves
