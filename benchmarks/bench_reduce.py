"""Reduction of runs to counts and exposure: this package beside a plain NumPy loop that does the same science.

    python benchmarks/bench_reduce.py [--archive DIR] [--runs N] [--repeat R] [--json FILE]

Same process, same files, same results (checked): event columns and good time intervals through astropy, regions near
the pointing, mask and exposed fraction on the same grid of pixels, ``bincount``.  Then Dask with one and with two
worker processes.  Times are the best of R rounds, the candidates in turn; ratios are what counts, machines are noisy.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from astropy.io import fits
from distributed import Client
from distributed.deploy import SubprocessCluster

from dask_bkg.binning import Edges
from dask_bkg.dl3.index import read_datastore, run_file
from dask_bkg.dl3.read import RunFile
from dask_bkg.lazy.runs import reduce_runs
from dask_bkg.reduction.reduce import reduce_block
from dask_bkg.report import format_table
from dask_bkg.simulate import simulate_archive
from dask_bkg.sky import fov
from dask_bkg.sky.catalogs import read_region_file, read_stars
from dask_bkg.sky.exclusion import SkyRegions, concat_regions

EDGES = Edges(np.geomspace(0.1, 100, 31), np.linspace(0, 2.5, 11))


def plain_loop(runs: list[RunFile], edges: Edges, regions: SkyRegions) -> tuple[np.ndarray, np.ndarray]:
    """The same science in one loop, as one would write it by hand."""
    grid = fov.ring_grid(tuple(edges.offset.tolist()))
    n, low = grid.center.size, grid.center[0] - grid.step / 2
    x_grid, y_grid = np.meshgrid(np.deg2rad(grid.center), np.deg2rad(grid.center))
    sin_y, cos_y = np.sin(y_grid), np.cos(y_grid)
    rings = grid.bin_solid_angle.size
    shape = (edges.energy.size - 1, rings)
    counts, exposure = np.zeros((len(runs), *shape)), np.zeros((len(runs), *shape))
    for i, run in enumerate(runs):
        with fits.open(run.path, memmap=False) as hdus:
            events = hdus["EVENTS"]
            header = events.header
            columns = (np.asarray(events.data[name], dtype=float) for name in ("RA", "DEC", "ENERGY", "TIME"))
            ra, dec, energy, mission_time = columns
            gti = hdus["GTI"].data
            start, stop = np.asarray(gti["START"], dtype=float), np.asarray(gti["STOP"], dtype=float)
            ontime = float((stop - start).sum())
        ra0, dec0 = header["RA_PNT"], header["DEC_PNT"]
        near = fov.separation(regions.ra, regions.dec, ra0, dec0) < edges.offset[-1] + regions.radius
        lon, lat = np.deg2rad(fov.to_fov(regions.ra[near], regions.dec[near], ra0, dec0))
        excluded = np.zeros((n, n), dtype=bool)
        for x, y, radius in zip(lon, lat, np.deg2rad(regions.radius[near]), strict=True):
            window = (np.abs(y_grid[:, 0] - y) <= radius).nonzero()[0]
            rows = slice(window[0], window[-1] + 1) if window.size else slice(0)
            cos_sep = sin_y[rows] * np.sin(y) + cos_y[rows] * np.cos(y) * np.cos(x_grid[rows] - x)
            excluded[rows] |= cos_sep >= np.cos(radius)
        field_bin = np.where(excluded.ravel(), -1, grid.bin)
        kept = field_bin >= 0
        solid_angle = np.bincount(field_bin[kept], weights=grid.solid_angle[kept], minlength=rings)
        interval = np.searchsorted(start, mission_time, side="right") - 1
        good = np.isfinite(energy) & (energy > 0) & (interval >= 0) & (mission_time <= stop[interval])
        x, y = (np.floor((c - low) / grid.step) for c in fov.to_fov(ra[good], dec[good], ra0, dec0))
        inside = (x >= 0) & (x < n) & (y >= 0) & (y < n)
        ring = field_bin[(y[inside] * n + x[inside]).astype(int)]
        k = np.searchsorted(edges.energy, energy[good][inside], side="right") - 1
        use = (ring >= 0) & (k >= 0) & (k < shape[0])
        counts[i] = np.bincount(k[use] * rings + ring[use], minlength=shape[0] * rings).reshape(shape)
        exposure[i] = ontime * np.diff(edges.energy)[:, None] * solid_angle
    return counts, exposure


def with_dask(runs: list[RunFile], regions: SkyRegions, client: Client) -> float:
    """Seconds for the lazy dataset to be computed on the workers, results left there."""
    start = time.perf_counter()
    dataset = reduce_runs(runs, EDGES, regions)
    tasks = dataset["error"].data.to_delayed(optimize_graph=False).ravel().tolist()
    reasons = np.concatenate(client.gather(client.compute(tasks)))
    seconds = time.perf_counter() - start
    assert not any(reasons), reasons
    return seconds


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, help="a datastore; a simulated one by default")
    parser.add_argument("--runs", type=int, default=300, help="runs of the simulated archive")
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if options.archive is None:
            simulate_archive(scratch, options.runs, options.events, seed=1)
        measure(options.archive or Path(scratch), options)


def measure(archive: Path, options: argparse.Namespace) -> None:
    """Check that all give the same, measure, and print the table."""
    store = read_datastore(archive)
    runs = [run_file(store, obs_id) for obs_id in store.obs_ids.tolist()]
    regions = _regions(archive)
    counts, exposure = plain_loop(runs, EDGES, regions)
    ours = reduce_block(runs, EDGES, regions, "geometry", "disc")
    np.testing.assert_array_equal(counts, ours.counts.values)
    np.testing.assert_allclose(exposure, ours.exposure.values, rtol=1e-12)
    seconds = _rounds(runs, regions, options.repeat)
    base = seconds["plain NumPy loop"]
    rows = [
        [name, f"{s / len(runs) * 1e3:.2f}", f"{len(runs) / s:.0f}", f"{s / base:.2f}"] for name, s in seconds.items()
    ]
    print(
        f"{datetime.date.today()}  {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    events = ours.n_events.values.mean()
    print(f"{len(runs)} runs of {events:.0f} events, {len(regions)} regions; best of {options.repeat}")
    print(format_table(["", "ms a run", "runs/s", "time over plain loop"], rows))
    speedup = seconds["Dask, 1 worker"] / seconds["Dask, 2 workers"]
    print(f"two workers over one: {speedup:.2f} x")
    if options.json:
        options.json.write_text(json.dumps({"runs": len(runs), "seconds": seconds, "speedup": speedup}, indent=1))


def _regions(archive: Path) -> SkyRegions:
    if (archive / "stars.dat").is_file():
        return concat_regions([read_stars(archive / "stars.dat"), read_region_file(archive / "sources.reg")])
    from dask_bkg.config import parse_config
    from dask_bkg.sky.catalogs import sky_regions

    return sky_regions(parse_config({}).exclusion)


def _rounds(runs: list[RunFile], regions: SkyRegions, repeat: int) -> dict[str, float]:
    """Best time of each candidate; they take turns, so that a busy minute of the machine hits all of them."""
    with _cluster(1) as one, _cluster(2) as two:
        candidates = {
            "plain NumPy loop": lambda: _seconds(lambda: plain_loop(runs, EDGES, regions)),
            "reduce_block, no Dask": lambda: _seconds(lambda: reduce_block(runs, EDGES, regions, "geometry", "disc")),
            "Dask, 1 worker": lambda: with_dask(runs, regions, one),
            "Dask, 2 workers": lambda: with_dask(runs, regions, two),
        }
        # the first round is not counted: workers import, files come into the cache
        rounds = [{name: measure() for name, measure in candidates.items()} for _ in range(repeat + 1)][1:]
    return {name: min(r[name] for r in rounds) for name in candidates}


@contextmanager
def _cluster(workers: int) -> Iterator[Client]:
    with (
        SubprocessCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(workers)
        yield client


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
