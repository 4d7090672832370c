"""A whole archive: backgrounds of all its runs by this package, beside the original way.

    python benchmarks/bench_archive.py [--runs N ...] [--events N] [--hours H] [--workers W] [--sample A B]
                                       [--archive DIR] [--json FILE]

Both make for every run of a simulated archive the background of the runs that resemble it most (KL divergence as the
document has it), 50 h of them, and write it as a small FITS file of its own.  For some targets it is checked that
both take the same runs, count the same events and write the same rate.

The original way, as plain as a competent astronomer writes it: the background of each run by itself, written once
into a file; then for each target, in a pool of as many processes: the file of every candidate opened and its
divergence computed, one pair at a time; the nearest runs opened, masked, binned and added up.  It is *quicker* than
the original program: astropy and NumPy without gammapy's objects, few columns, regions near the pointing only, the
backgrounds of the candidates in small files of their own instead of behind the events, one pool instead of pools in a
pool, run numbers and livetimes in memory.  It keeps what makes it slow: candidates are read again for each target.

It is timed on two samples of targets and scaled to all of them; both samples must give the same time a target.  Ours
is one call, timed as a user would: workers are started, every run is read into the run store, and all is written.
The archive is simulated (50 ms a run) into ``--archive``, where it is found again the next time.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from astropy.io import fits
from common import machine_line, seconds_of, write_json
from numpy.typing import NDArray

from dask_bkg.config import Config, parse_config
from dask_bkg.dl3.index import read_datastore
from dask_bkg.output.backgrounds import contributing_runs
from dask_bkg.report import format_table
from dask_bkg.simulate import simulate_archive
from dask_bkg.sky.catalogs import read_region_file, read_stars
from dask_bkg.sky.exclusion import SkyRegions, concat_regions

if TYPE_CHECKING:
    from dask_bkg.pipeline.run import Summary

ENERGY, OFFSET = np.geomspace(0.1, 100, 21), np.linspace(0, 2.5, 6)
STAR_MAG, STAR_RADIUS = 5.0, 0.3
SEARCH_RADIUS = 2.5
CHECKED = 3
"""Targets whose backgrounds are compared."""


# -- the original way ----------------------------------------------------------------------------------------


class Archive(NamedTuple):
    """What the original way knows before it starts: run numbers, files, livetimes [s], and what is excluded."""

    obs_id: NDArray
    files: list[str]
    livetime: NDArray
    regions: SkyRegions


class Histogram(NamedTuple):
    """Counts and exposure [s TeV sr], shape ``(energy, offset)``."""

    counts: NDArray
    exposure: NDArray


class Background(NamedTuple):
    """What became of one target: contributing runs, nearest first, and their sum."""

    obs_id: int
    contributing: NDArray
    total: Histogram


def bin_run(path: str, regions: SkyRegions) -> Histogram:
    """One run read, masked and binned; exposure by the ratio of kept to all events."""
    with fits.open(path, memmap=False) as hdus:
        header, events, gti = hdus["EVENTS"].header, hdus["EVENTS"].data, hdus["GTI"].data
        ra, dec, energy = (np.asarray(events[name], dtype=float) for name in ("RA", "DEC", "ENERGY"))
        ontime = float((gti["STOP"] - gti["START"]).sum())
    place, pointing = _vector(ra, dec), _vector(header["RA_PNT"], header["DEC_PNT"])
    kept = np.ones(ra.size, dtype=bool)
    centers = _vector(regions.ra, regions.dec)
    for i in np.flatnonzero(centers @ pointing > np.cos(np.deg2rad(SEARCH_RADIUS))):
        kept &= place @ centers[i] < np.cos(np.deg2rad(regions.radius[i]))
    offset = np.rad2deg(np.arccos(np.clip(place @ pointing, -1, 1)))
    k, ring = (np.searchsorted(edges, x, side="right") - 1 for edges, x in ((ENERGY, energy), (OFFSET, offset)))
    n_energy, n_rings = ENERGY.size - 1, OFFSET.size - 1
    of_ring = (ring >= 0) & (ring < n_rings)
    every, outside = (np.bincount(ring[mask], minlength=n_rings) + 1e-9 for mask in (of_ring, of_ring & kept))
    use = of_ring & kept & (k >= 0) & (k < n_energy)
    counts = np.bincount(k[use] * n_rings + ring[use], minlength=n_energy * n_rings).reshape(n_energy, n_rings)
    edges = np.deg2rad(OFFSET)
    solid_angle = np.pi * (edges[1:] + edges[:-1]) * np.diff(edges)
    return Histogram(counts, ontime * np.diff(ENERGY)[:, None] * (solid_angle * outside / every))


def _vector(ra, dec) -> NDArray:
    """Unit vectors, shape (..., 3): one product tells the distance from a point."""
    ra, dec = np.deg2rad(ra), np.deg2rad(dec)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


def write_rate(path: Path, total: Histogram) -> None:
    """A background as a table of one row, as GADF has it; no smoothing."""
    rate = total.counts / total.exposure
    columns = [
        fits.Column("ENERG_LO", "20E", array=ENERGY[None, :-1], unit="TeV"),
        fits.Column("ENERG_HI", "20E", array=ENERGY[None, 1:], unit="TeV"),
        fits.Column("THETA_LO", "5E", array=OFFSET[None, :-1], unit="deg"),
        fits.Column("THETA_HI", "5E", array=OFFSET[None, 1:], unit="deg"),
        fits.Column("BKG", "100D", dim="(20,5)", array=rate.T[None], unit="s-1 TeV-1 sr-1"),
    ]
    fits.BinTableHDU.from_columns(columns, name="BACKGROUND").writeto(path, overwrite=True)


def read_distribution(path: Path) -> NDArray:
    """The stored background of a run: rates, normalised, plus 1e-9."""
    with fits.open(path, memmap=False) as hdus:
        rate = np.asarray(hdus[1].data["BKG"][0], dtype=float)
    return rate / rate.sum() + 1e-9


def divergence(p: NDArray, q: NDArray) -> float:
    """The document's ``kl_divergence``."""
    return float((p * np.log(p / q)).sum())


def make_runwise(i: int, archive: Archive, directory: Path) -> None:
    """Background of a run by itself: what the divergences are computed from."""
    write_rate(directory / f"{archive.obs_id[i]}.fits", bin_run(archive.files[i], archive.regions))


def make_background(i: int, archive: Archive, runwise: Path, out_dir: Path, hours: float) -> Background:
    """Background of one target: divergences pair by pair, then the nearest runs read and added up."""
    files = [runwise / f"{obs_id}.fits" for obs_id in archive.obs_id]
    target = read_distribution(files[i])
    others = [j for j in range(len(files)) if j != i]
    kl = np.array([divergence(target, read_distribution(files[j])) for j in others])
    nearest = np.array(others)[np.lexsort((archive.obs_id[others], kl.round(10)))]
    before = np.cumsum(archive.livetime[nearest]) - archive.livetime[nearest]
    nearest = nearest[before < hours * 3600]
    parts = [bin_run(archive.files[j], archive.regions) for j in nearest]
    total = Histogram(*(np.sum(histograms, axis=0) for histograms in zip(*parts, strict=True)))
    write_rate(out_dir / f"{archive.obs_id[i]}.fits", total)
    return Background(int(archive.obs_id[i]), archive.obs_id[nearest], total)


def time_original(archive: Archive, scratch: Path, options: argparse.Namespace) -> tuple[dict, list[Background]]:
    """Seconds of the preparation, and of a target in each of the samples; and what was made."""
    runwise, out_dir = scratch / "runwise", scratch / "original"
    runwise.mkdir()
    out_dir.mkdir()
    rng, n = np.random.default_rng(1), archive.obs_id.size
    samples = [np.sort(rng.choice(n, min(size, n), replace=False)).tolist() for size in options.sample]
    # spawned: nothing is taken over from this process; one thread a process is all that this work can use
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        list(pool.map(bin_run, archive.files[: options.workers], [archive.regions] * options.workers))  # imports
        prepare = partial(make_runwise, archive=archive, directory=runwise)
        preparation = seconds_of(lambda: list(pool.map(prepare, range(n), chunksize=8)))
        work = partial(make_background, archive=archive, runwise=runwise, out_dir=out_dir, hours=options.hours)
        each, made = [], list[Background]()
        for sample in samples:
            start = time.perf_counter()
            made = list(pool.map(work, sample))
            each.append((time.perf_counter() - start) / len(sample))
    return {"preparation": preparation, "a target": each, "all": preparation + each[-1] * n}, made


def time_pieces(archive: Archive, runwise: Path) -> dict[str, float]:
    """Milliseconds of one divergence and of one run binned, in this process."""
    files, stored = archive.files[:20], [runwise / f"{obs_id}.fits" for obs_id in archive.obs_id[:20]]
    target = read_distribution(stored[0])
    pair = seconds_of(lambda: [divergence(target, read_distribution(path)) for path in stored])
    run = seconds_of(lambda: [bin_run(path, archive.regions) for path in files])
    return {"a pair": pair / len(stored) * 1e3, "a run": run / len(files) * 1e3}


# -- ours ----------------------------------------------------------------------------------------------------


def job(archive: Path, out_dir: Path, workers: int, hours: float) -> Config:
    """Configuration of the same job: formulas, bins and exclusion of the original; a run store that is new."""
    places = {name: str(archive) for name in ("search_datastore", "in_dir")}
    return parse_config({
        "preset": "gammapy-tools",
        "cluster": "local",
        "config": {"njobs": workers},
        "io": {**places, "out_dir": str(out_dir), "attach": "index"},
        "binning": {"e_min": ENERGY[0], "e_max": ENERGY[-1], "e_bins": 20, "off_max": OFFSET[-1], "off_bins": 5},
        "exclusion": {
            "catalogs": [], "star_cat": str(archive / "stars.dat"), "star_mag": STAR_MAG, "star_radius": STAR_RADIUS,
            "exclude_region_files": [str(archive / "sources.reg")],
        },
        "background_selection": {"rank": "kl", "time_request": hours},
    })  # fmt: skip


def ours(config: Config) -> Summary:
    """The whole job."""
    # here, so that the processes of the original way need not load it
    from dask_bkg.pipeline.run import run_job

    return run_job(config, progress=False)


# -- side by side --------------------------------------------------------------------------------------------


def find_archive(runs: int, events: int, directory: Path) -> Path:
    """The simulated archive of this size below a directory; made if it is not there."""
    archive = directory / f"runs-{runs}-events-{events}"
    if not (archive / "hdu-index.fits.gz").is_file():
        print(f"simulating {runs} runs of {events} events", flush=True)
        simulate_archive(archive, runs, events, seed=1, overwrite=True)
    return archive


def open_archive(directory: Path) -> Archive:
    """What the original way needs of an archive; it is read once."""
    store = read_datastore(directory)
    files = [store.location(obs_id, "events").path for obs_id in store.obs_ids.tolist()]
    livetime = dict(zip(store.obs["OBS_ID"].tolist(), store.obs["LIVETIME"].tolist(), strict=True))
    stars = read_stars(directory / "stars.dat", STAR_MAG, STAR_RADIUS)
    regions = concat_regions([stars, read_region_file(directory / "sources.reg")])
    return Archive(store.obs_ids, files, np.array([livetime[i] for i in store.obs_ids.tolist()]), regions)


def check_same(made: list[Background], summary: Summary, contributing: Mapping[int, list[int]]) -> None:
    """Raise AssertionError where ours took other runs, counted other events or wrote another rate."""
    results = {result.obs_id: result for result in summary.results}
    for background in made[:CHECKED]:
        result = results[background.obs_id]
        assert result.status == "done", result.reason
        np.testing.assert_array_equal(np.sort(contributing[background.obs_id]), np.sort(background.contributing))
        assert result.n_events == background.total.counts.sum()
        with fits.open(result.output, memmap=False) as hdus:
            rate = np.asarray(hdus[result.hdu].data["BKG"][0], dtype=float)
            per_tev = 1e6 if "MeV" in hdus[result.hdu].columns["BKG"].unit else 1.0
        wanted = (background.total.counts / background.total.exposure).T
        np.testing.assert_allclose(rate * per_tev, wanted, rtol=1e-5)


def measure(runs: int, options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """One archive, both ways."""
    directory = find_archive(runs, options.events, options.archive or scratch)
    archive, out_dir = open_archive(directory), scratch / "ours"
    config = job(directory, out_dir, options.workers, options.hours)
    start = time.perf_counter()
    summary = ours(config)
    seconds = time.perf_counter() - start
    original, made = time_original(archive, scratch, options)
    check_same(made, summary, contributing_runs(summary.results_dir))
    pieces = time_pieces(archive, scratch / "runwise")
    contributing = float(np.mean([result.n_runs for result in summary.results]))
    for used in (out_dir, scratch / "runwise", scratch / "original"):
        shutil.rmtree(used)
    return {
        "runs": runs, "contributing": contributing, "ours": seconds, "original": original, "pieces": pieces,
        "factor": original["all"] / seconds,
    }  # fmt: skip


def show(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """The table."""
    print(machine_line())
    sizes = " and ".join(map(str, options.sample))
    print(
        f"runs of {options.events} events, {options.hours:g} h for each, {options.workers} worker processes; "
        f"the original way timed on {sizes} targets and scaled to all"
    )
    cells = []
    for row in rows:
        original, pieces = row["original"], row["pieces"]
        each = " / ".join(f"{seconds:.2f}" for seconds in original["a target"])
        cells.append([
            row["runs"], f"{row['contributing']:.0f}", f"{pieces['a pair']:.2f}", f"{pieces['a run']:.1f}", each,
            f"{original['all']:.0f}", f"{row['ours']:.1f}", f"{row['factor']:.0f} x",
        ])  # fmt: skip
    header = ["runs", "contribute", "ms a pair", "ms a run", "s a target", "original s", "ours s", "factor"]
    print(format_table(header, cells))


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[500], help="sizes of the archive")
    parser.add_argument("--events", type=int, default=30_000)
    parser.add_argument("--hours", type=float, default=50.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sample", type=int, nargs=2, default=[8, 24], help="targets that the original is timed on")
    parser.add_argument("--archive", type=Path, help="where simulated archives are kept; nowhere by default")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = [measure(runs, options, Path(scratch)) for runs in options.runs]
    show(rows, options)
    write_json(options.json, {"events": options.events, "hours": options.hours, "archives": rows})


if __name__ == "__main__":
    # under its own name, by which the processes of the pool find its functions
    from bench_archive import main as run

    run()
