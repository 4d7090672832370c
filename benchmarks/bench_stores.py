"""Files, bytes and seconds of the two stores that a job leaves: histograms of runs, and backgrounds.

A job on a small simulated archive makes them; their rows, each under new numbers, then go through the functions that
tasks write with into stores of the size that was asked for.  Counted are all files below the store.

    python benchmarks/bench_stores.py                 2,000 runs, in 2D and 3D
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import machine_line, seconds_of, write_json
from numpy.typing import NDArray

from dask_bkg.compat import run_make_background
from dask_bkg.simulate import simulate_archive
from dask_bkg.store.rows import Rows, write_part

BLOCK = 25
"""Rows of a part, as in a job."""


def stores(scratch: Path, mode: str, options: argparse.Namespace) -> Iterator[tuple[str, Rows]]:
    """The stores of rows that a job leaves: name and rows."""
    archive, out_dir, stars = scratch / f"archive-{mode}", scratch / f"out-{mode}", scratch / "stars.dat"
    simulate_archive(archive, runs=options.sample, events=options.events)
    stars.write_text("266.4 -29.0 1 9.0\n")  # too faint to be excluded
    io = {"search_datastore": str(archive), "in_dir": str(archive), "out_dir": str(out_dir), "from_run": False}
    exclusion = {"catalogs": [], "star_cat": str(stars)}
    run_make_background(
        {"cluster": "threads", "binning": {"mode": mode}, "io": io, "exclusion": exclusion}, progress=False
    )
    results = out_dir / "results"
    for view in sorted(path.parent for path in (results / "runs.zarr").glob("*/integers")):
        yield f"run store, {view.name.partition('-')[0]}", Rows(view)
    yield "backgrounds", Rows(results / "backgrounds.zarr")


def items(store: Rows, rows: NDArray) -> dict[str, NDArray]:
    """All that a store has of some rows."""
    table = {name: np.array(column[rows].tolist()) for name, column in store.table.items()}  # texts are objects
    return table | {name: store.values(name, rows) for name in store.layout.arrays}


def write(path: Path, parts: Path, sample: Rows, runs: int) -> None:
    """Write the rows of a sample, again and again under new numbers, as the tasks of a job do."""
    store = Rows.create(path, sample.layout, "bench_stores")
    known = items(sample, sample.latest())
    size = known["obs_id"].size
    for first in range(0, runs, BLOCK):
        obs_id = np.arange(first, min(first + BLOCK, runs))
        block = {name: values[obs_id % size] for name, values in known.items()}
        write_part(parts, store.layout, block | {"obs_id": obs_id + 1})
    store.fold(parts)


def read(path: Path) -> None:
    """Read all that a store has, a block at a time."""
    store = Rows(path)
    rows = store.latest()
    for first in range(0, rows.size, BLOCK):
        items(store, rows[first : first + BLOCK])


def measure(mode: str, scratch: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Files, MB and seconds of each store at the size asked for."""
    for name, sample in stores(scratch, mode, options):
        path, parts = scratch / f"{mode}-{name}.zarr", scratch / f"{mode}-{name}.parts"
        written = seconds_of(partial(write, path, parts, sample, options.runs))
        files = [file for file in path.rglob("*") if file.is_file()]
        assert Rows(path).latest().size == options.runs
        yield {
            "mode": mode, "store": name, "runs": options.runs, "files": len(files),
            "megabytes": sum(file.stat().st_size for file in files) / 1e6,
            "write_seconds": written, "read_seconds": seconds_of(partial(read, path)),
        }  # fmt: skip


def main() -> None:
    """Measure, print a table, save it if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000, help="rows of a store")
    parser.add_argument("--sample", type=int, default=40, help="simulated runs that are reduced for it")
    parser.add_argument("--events", type=int, default=30_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = [row for mode in ("2d", "3d") for row in measure(mode, Path(scratch), options)]
    print(machine_line())
    print(f"{'':3} {'store':18} {'runs':>6} {'files':>6} {'MB':>7} {'write':>8} {'read':>8}")
    for row in rows:
        print(
            f"{row['mode']:3} {row['store']:18} {row['runs']:6} {row['files']:6} {row['megabytes']:7.1f} "
            f"{row['write_seconds']:7.1f}s {row['read_seconds']:7.1f}s"
        )
    write_json(options.json, {"rows": rows})


if __name__ == "__main__":
    main()
