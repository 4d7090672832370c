"""What a background of three roles (spectrum, shape, night) costs beside one of a single ranking.

    python benchmarks/bench_roles.py [--runs N ...] [--workers W] [--memory LIMIT] [--json FILE]

The synthetic run store of `bench_kl`, in which runs have zenith angles, thresholds, muon efficiencies and dates of an
archive of many years.  For every run, from the store: who contributes, and the stacks; by divergence (``rank: kl``,
10 h), by conditions alone (the same runs make everything), and as by default (three selections, three stacks).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from bench_kl import EDGES, synthetic_runs, write_store
from common import graph_size, local_cluster, machine_line, peak_memory, write_json
from dask.highlevelgraph import HighLevelGraph

from dask_bkg.config import parse_config
from dask_bkg.lazy.runs import load_runs
from dask_bkg.lazy.select import conditions_of, select_runs
from dask_bkg.lazy.stack import stack_runs
from dask_bkg.report import format_table
from dask_bkg.selection import settings_of_roles
from dask_bkg.store.store import RunStore

WAYS: dict[str, dict[str, Any]] = {
    "rank: kl": {"rank": "kl"},
    "rank: conditions, one role": {"rank": "conditions", "shape_runs": "same", "night_level": 0},
    "the default, three roles": {},
}


def build(store: RunStore, section: dict[str, Any]) -> tuple[list, HighLevelGraph]:
    """Blocks of all stacks, delayed, and their graph."""
    settings = parse_config({"background_selection": section}).background_selection
    table = store.table()
    runs = load_runs(str(store.path), "", store.find(table["obs_id"]), table, EDGES)
    roles = settings_of_roles(settings).values()
    conditions = conditions_of(runs, runs, roles)
    selected = [select_runs(runs, runs, role, conditions=conditions) for role in roles]
    stacks = [part for chosen in selected for part in stack_runs(runs, chosen)]
    return stacks, HighLevelGraph.merge(*(stack.dask for stack in stacks))


def measure(n: int, options: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """One archive, each way in turn."""
    write_store(scratch / f"{n}.zarr", synthetic_runs(n))
    store, rows = RunStore.open(scratch / f"{n}.zarr"), []
    for way, section in WAYS.items():
        with local_cluster(options.workers, options.memory) as client:
            client.run(import_module, "dask_bkg.lazy.stack")
            client.run(import_module, "dask_bkg.lazy.select")
            before, start = sum(client.run(time.process_time).values()), time.perf_counter()
            parts, graph = build(store, section)
            built = time.perf_counter()
            found = client.gather(client.compute(parts))
            seconds = time.perf_counter() - start
            cpu = sum(client.run(time.process_time).values()) - before
            events = float(np.sum([part.counts.sum() for part in found]))
            rows.append({
                "runs": n, "way": way, "seconds": seconds, "cpu": cpu, "build": built - start, "events": events,
                **graph_size(graph), "peak_gb": peak_memory(client),
            })  # fmt: skip
    return rows


def show(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """The table."""
    print(machine_line())
    print(f"{EDGES.shape[0] * EDGES.shape[1]} bins; {options.workers} processes of one thread, {options.memory} each")
    first = {row["runs"]: row["cpu"] for row in rows if row["way"] == next(iter(WAYS))}
    cells = [
        [
            row["runs"], row["way"], f"{row['seconds']:.1f}", f"{row['cpu']:.1f}",
            f"{row['cpu'] / first[row['runs']]:.2f}",
            row["tasks"], " ".join(f"{gb:.2f}" for gb in row["peak_gb"]),
        ]
        for row in rows
    ]  # fmt: skip
    print(format_table(["runs", "way", "seconds", "CPU", "CPU over kl", "tasks", "peak GB a worker"], cells))


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[2000, 20_000], help="sizes of the archive")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory", default="2GB", help="memory limit of a worker")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = [row for runs in options.runs for row in measure(runs, options, Path(scratch))]
    show(rows, options)
    write_json(options.json, {"archives": rows})


if __name__ == "__main__":
    main()
