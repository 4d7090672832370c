"""Memory and open files of each process of a job over a long archive of tiny runs, one in ten of them bad.

    python benchmarks/bench_memory.py                 10,000 runs of about 100 events, two workers
    python benchmarks/bench_memory.py --archive DIR   the simulated archive is kept there, and found again

The commands ``reduce`` (all runs are read) and ``run`` (all backgrounds are written) are started as users start them,
and looked at twice a second.  What a process has in the last tenth of the time that it lives beside what it has in
the first tenth after it has done its first work: a job that keeps something of each run grows.  A bad run is cut off
in the middle of its bytes, has no events HDU, or has numbers for text; the job must name each, and do the others.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from common import machine_line, write_json

from dask_bkg.config.yaml import dump_yaml
from dask_bkg.simulate import simulate_archive

EVERY = 0.5
"""Seconds between two looks."""

SETTLED = 0.15
"""Part of its life after which a process has imported what it needs."""


def make_archive(directory: Path, runs: int, events: float) -> list[int]:
    """A simulated archive in which every tenth run is spoilt; returns their numbers."""
    if not (directory / "truth.json").exists():
        simulate_archive(directory, runs=runs, events=events, sources=False, stars=False)
        files = sorted((directory / "data").glob("*.fits.gz"))
        for i, path in enumerate(files[::10]):
            content = path.read_bytes()
            path.write_bytes([content[: len(content) // 2], content[:200], bytes(len(content))][i % 3])
    files = sorted((directory / "data").glob("*.fits.gz"))
    return [int(path.name.split("_")[1].split(".")[0]) for path in files[::10]]


def write_config(path: Path, archive: Path, workers: int) -> None:
    """A job with default options, without catalogues (those are read in one process, and are the same for all)."""
    stars = path.with_name("stars.dat")
    stars.write_text("266.4 -29.0 1 9.0\n")  # too faint to be excluded
    io = {name: str(path.with_name(name)) for name in ("in_dir", "out_dir", "results_dir")}
    config = {
        "io": {"search_datastore": str(archive), **io, "from_run": False},
        "cluster": "local",
        "config": {"njobs": workers},
        "exclusion": {"catalogs": [], "star_cat": str(stars)},
        "run_selection": {"runlist": [int(p.name.split("_")[1][:6]) for p in sorted(archive.glob("data/*.fits.gz"))]},
    }
    path.write_text(dump_yaml(config))


def watch(command: list[str]) -> tuple[int, str, dict[str, list[tuple[float, float, int]]]]:
    """Exit status, what was printed, and (time [s], memory [MB], open files) of each process at each look."""
    seen: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
    with tempfile.TemporaryFile("w+") as printed:
        start = time.monotonic()
        with subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT) as job:
            driver = psutil.Process(job.pid)
            while job.poll() is None:
                for process in [driver, *_children(driver)]:
                    try:
                        look = time.monotonic() - start, process.memory_info().rss / 1e6, process.num_fds()
                    except psutil.Error:  # it has ended
                        continue
                    seen[f"{'job' if process == driver else 'child'} {process.pid}"].append(look)
                time.sleep(EVERY)
        printed.seek(0)
        return job.returncode, printed.read(), seen


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def growth(looks: list[tuple[float, float, int]]) -> dict[str, float]:
    """Means of the first and last tenth of what follows the start of a process."""
    values = np.array(looks)
    settled = values[int(SETTLED * len(values)) :]
    tenth = max(len(settled) // 10, 1)
    first, last = settled[:tenth].mean(axis=0), settled[-tenth:].mean(axis=0)
    return {
        "MB first": round(first[1], 1), "MB last": round(last[1], 1), "memory": round(last[1] / first[1], 3),
        "files first": round(first[2], 1), "files last": round(last[2], 1),
    }  # fmt: skip


def measure(options: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """A row a process and command."""
    archive = options.archive or scratch / "archive"
    bad = make_archive(archive, options.runs, options.events)
    write_config(scratch / "config.yaml", archive, options.workers)
    rows = []
    for command in ("reduce", "run"):
        arguments = [sys.executable, "-m", "dask_bkg", command, str(scratch / "config.yaml"), "--no-progress"]
        status, text, seen = watch(arguments)
        assert status == 3, text
        lines = len(text.splitlines())
        print(f"{command}: status {status}, {lines} lines, {len(bad)} bad runs", flush=True)
        longest = max(len(looks) for looks in seen.values())
        for name, looks in seen.items():
            if len(looks) > longest / 2:
                rows.append({"command": command, "process": name.split()[0], "lines": lines, **growth(looks)})
                print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--events", type=float, default=100, help="mean number of events of a run")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--archive", type=Path, help="where the simulated archive is kept; nowhere by default")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(machine_line())
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(options, Path(scratch))
    write_json(options.json, {"runs": options.runs, "rows": rows})


if __name__ == "__main__":
    main()
