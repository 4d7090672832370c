"""Backgrounds of the H.E.S.S. DL3 DR1 runs: predicted over observed counts, and what an excluded source does.

    GAMMAPY_DATA=... python benchmarks/hess.py [--modes MODE ...] [--rank RANK] [--json FILE]

All modes (each run from itself, stacks of other runs; 2D, 3D) over all runs of the release that are there. Predicted
is what gammapy's MapDatasetMaker makes of the written files, outside of the exclusion, above the run's threshold,
R < 2 deg.
Then the Crab runs again, with ten times their Crab events put in: inside the exclusion disc (nothing may change), or
with tails out to 1 deg. Last, what the original procedure would do: open field, node values, smoothing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from astropy.io import fits
from gammapy.data import DataStore

from dask_bkg import reduce_run, smooth, to_background
from dask_bkg.background.estimate import RateSettings
from dask_bkg.config import parse_config
from dask_bkg.dl3.read import read_threshold
from dask_bkg.pipeline.run import Summary, run_job
from dask_bkg.report import format_table
from dask_bkg.sky.catalogs import sky_regions
from dask_bkg.sky.exclusion import excluded_pixels
from dask_bkg.sky.fov import exposed_fraction, ring_grid, separation
from dask_bkg.validation.maps import compare_counts

CRAB = (83.633, 22.014)
CRAB_RADIUS = 0.35


MODES = {
    "from_run: true": (True, {"mode": "2d"}),
    "from_run: false": (False, {"mode": "2d"}),
    "3d altaz, from_run: true": (True, {"mode": "3d"}),
    "3d radec, from_run: true": (True, {"mode": "3d", "alignment": "radec"}),
    "3d altaz, from_run: false": (False, {"mode": "3d"}),
    "3d radec, from_run: false": (False, {"mode": "3d", "alignment": "radec"}),
}


def make_backgrounds(archive: Path, out_dir: Path, store: Path, mode: str, rank: str) -> Summary:
    """All runs of the archive, with the defaults of the configuration but for the ranking."""
    from_run, binning = MODES[mode]
    io = {"search_datastore": archive, "in_dir": archive, "out_dir": out_dir, "from_run": from_run}
    # in_dir is the archive itself, which may be read-only: nothing to prepare
    selection = {"rank": rank}
    config = parse_config(
        {"io": io, "binning": binning, "run_store": {"path": store}, "background_selection": selection}
    )
    return run_job(config, progress=False)


def table_of_runs(summary: Summary, out_dir: Path, regions) -> list[dict]:
    """Predicted and observed counts of each run."""
    store = DataStore.from_dir(out_dir)
    targets = dict(zip(store.obs_table["OBS_ID"].tolist(), store.obs_table["OBJECT"].tolist(), strict=True))
    rows = []
    for result in (r for r in summary.results if r.status == "done"):
        observation = store.obs(result.obs_id)
        found = compare_counts(observation, regions, result.threshold)
        rows.append({
            "run": result.obs_id, "target": targets[result.obs_id],
            "observed": found.observed, "ratio": found.ratio, "error": found.error,
            "pull": (found.predicted - found.observed) / np.sqrt(found.observed), "hours": result.hours,
        })  # fmt: skip
    return rows


def inject(path: Path, target: Path, n_events: int, radius: float, sigma: float, seed: int = 1) -> None:
    """Copy of a run with events of a source at the Crab: Gaussian of width sigma, cut at radius [deg]."""
    rng = np.random.default_rng(seed)
    with fits.open(path) as hdus:
        events = hdus["EVENTS"]
        crab = np.flatnonzero(separation(events.data["RA"], events.data["DEC"], *CRAB) < 0.1)
        new = events.data[rng.choice(crab, n_events)]
        offset = np.sqrt(-2 * np.log(1 - rng.uniform(0, 1 - np.exp(-0.5 * (radius / sigma) ** 2), n_events))) * sigma
        angle = rng.uniform(0, 2 * np.pi, n_events)
        new["RA"] = CRAB[0] + offset * np.cos(angle) / np.cos(np.deg2rad(CRAB[1]))
        new["DEC"] = CRAB[1] + offset * np.sin(angle)
        merged = fits.BinTableHDU(np.concatenate([events.data, new]), header=events.header)
        for column in events.columns:
            merged.columns.change_unit(column.name, column.unit)  # a table of an array has none
        fits.HDUList([merged if hdu is events else hdu for hdu in hdus]).writeto(target)


def injection(archive: Path, regions, edges, scratch: Path) -> list[dict]:
    """Change of the Crab runs' rates (R < 2 deg, above threshold) by injected events."""
    store, rows = DataStore.from_dir(archive), []
    for obs_id in (23523, 23526, 23559, 23592):
        path = store.hdu_table.hdu_location(obs_id, hdu_type="events").path()
        ra, dec = (fits.getdata(path, "EVENTS")[name] for name in ("RA", "DEC"))
        # the Crab itself: events within 0.1 deg, less a ring of the same area further out
        near = separation(ra, dec, *CRAB)
        excess = int((near < 0.1).sum() - ((near > 0.5) & (near < np.sqrt(0.26))).sum())
        for name, radius, sigma, method in (
            ("inside the disc", 0.34, 0.1, "geometry"),
            ("tails to 1 deg", 1.0, 0.1, "geometry"),
            ("inside the disc, event ratio", 0.34, 0.1, "event_ratio"),
        ):
            target = scratch / f"{obs_id}.fits"
            target.unlink(missing_ok=True)
            inject(path, target, 10 * excess, radius, sigma)
            before, after = (reduce_run(str(p), obs_id, edges, regions, method=method) for p in (path, target))
            a, b = (to_background(d).data for d in (before, after))
            expected = (b * before.exposure.values).sum() / (a * before.exposure.values).sum()
            rows.append({
                "run": obs_id, "injected": name, "events": 10 * excess, "same bits": bool(np.array_equal(a, b)),
                "change": expected - 1, "statistics": 1 / np.sqrt(before.counts.values.sum()),
            })  # fmt: skip
    return rows


def open_field(archive: Path) -> list[dict]:
    """How much of the field the star cuts leave open, and how many runs have a ring with nothing left."""
    store, rows = DataStore.from_dir(archive), []
    positions = [(row["RA_PNT"], row["DEC_PNT"]) for row in store.obs_table]
    for name, exclusion in (
        ("stars V < 5, 0.3 deg", {}),
        ("stars V < 8, 0.35 deg", {"star_mag": 8, "star_radius": 0.35}),
    ):
        config = parse_config({"exclusion": exclusion})
        regions, edges = sky_regions(config.exclusion), config.binning.offset_edges
        grid = ring_grid(tuple(edges.tolist()))
        fractions = np.array([
            exposed_fraction(grid, excluded_pixels(grid, regions.near(ra, dec, edges[-1]), ra, dec))
            for ra, dec in positions
        ])  # fmt: skip
        total = fractions @ grid.bin_solid_angle / grid.bin_solid_angle.sum()
        closed = int((fractions == 0).any(axis=1).sum())
        rows.append({"exclusion": name, "median open": float(np.median(total)), "runs with a closed ring": closed})
    return rows


def choices(archive: Path, regions, edges) -> dict[str, list[float]]:
    """Ratios that the original's way of making a rate would give, over every sixth run."""
    store = DataStore.from_dir(archive)
    plain, smoothed = [], []
    for obs_id in store.obs_ids[::6]:
        path = store.hdu_table.hdu_location(obs_id, hdu_type="events").path()
        run = reduce_run(str(path), obs_id, edges, regions)
        observation = store.obs(obs_id)
        observation.bkg = to_background(run, RateSettings(fill=False, node_values="plain"))
        threshold = read_threshold(str(path))
        plain.append(compare_counts(observation, regions, threshold, bins_per_decade=10).ratio)
        before = to_background(run)
        after = smooth(before, 1.0).data.sum(axis=0) / before.data.sum(axis=0)
        smoothed.append([after[0] - 1, after[-1] - 1])
    centre, edge = np.median(smoothed, axis=0)
    return {"plain": [min(plain), max(plain)], "smoothing": [float(centre), float(edge)]}


def report(rows: list[dict], mode: str) -> None:
    """Mean, scatter and pulls of a mode, and its runs that are furthest off."""
    ratio, pull = (np.array([row[name] for row in rows]) for name in ("ratio", "pull"))
    error = np.array([row["error"] for row in rows])
    print(
        f"\n{mode}: {len(rows)} runs, predicted/observed mean {ratio.mean():.4f}, scatter {ratio.std():.4f}, "
        f"statistics {np.sqrt((error**2).mean()):.4f}; |pull| < 1 in {np.mean(np.abs(pull) < 1):.0%}, "
        f"< 2 in {np.mean(np.abs(pull) < 2):.0%}, largest {np.abs(pull).max():.2f}"
    )
    worst = sorted(rows, key=lambda row: -abs(row["pull"]))[:5]
    print(format_table(
        ["run", "observed", "predicted/observed", "error", "pull"],
        [[r["run"], r["observed"], f"{r['ratio']:.4f}", f"{r['error']:.4f}", f"{r['pull']:.2f}"] for r in worst],
    ))  # fmt: skip


def main() -> None:
    """Run everything and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--rank", default="conditions", help="of stacks: background_selection.rank")
    parser.add_argument("--json", type=Path, help="also write all rows here")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    archive = Path(os.environ["GAMMAPY_DATA"], "hess-dl3-dr1")
    scratch = Path(tempfile.mkdtemp())
    config = parse_config({})
    regions = sky_regions(config.exclusion)
    print(
        f"{datetime.date.today()}  {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    results: dict[str, list[dict]] = {}
    for mode in options.modes:
        start, out_dir = time.perf_counter(), scratch / mode.replace(": ", "-")
        summary = make_backgrounds(archive, out_dir, scratch / "runs.zarr", mode, options.rank)
        seconds = time.perf_counter() - start
        print(f"{mode}: {len(summary.results)} backgrounds in {seconds:.1f} s, failed: {summary.failed}")
        results[mode] = table_of_runs(summary, out_dir, regions)
        report(results[mode], mode)
        shutil.rmtree(out_dir)
    edges = {"energy": config.binning.energy_edges, "offset": config.binning.offset_edges}
    results["injection"] = injection(archive, regions, edges, scratch)
    print("\nten times the Crab's events injected into its runs")
    print(format_table(
        ["run", "events", "same bits", "change", "statistics", "injected"],
        [[r["run"], r["events"], r["same bits"], f"{r['change']:+.4f}", f"{r['statistics']:.4f}", r["injected"]]
         for r in results["injection"]],
    ))  # fmt: skip
    results["open field"] = open_field(archive)
    print("\nopen field")
    print(format_table(
        ["exclusion", "median open", "runs with a closed ring"],
        [[r["exclusion"], f"{r['median open']:.2f}", r["runs with a closed ring"]] for r in results["open field"]],
    ))  # fmt: skip
    found = choices(archive, regions, edges)
    print(
        f"\nplain counts/exposure: predicted/observed from {found['plain'][0]:.2f} to {found['plain'][1]:.2f}"
        f"\nsmoothing through to_3d, sigma 1 bin: {found['smoothing'][0]:+.0%} in the central ring, "
        f"{found['smoothing'][1]:+.0%} in the outermost"
    )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1, default=float))
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
