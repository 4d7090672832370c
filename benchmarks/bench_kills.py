"""Jobs that are killed and interrupted at random times, on threads and local workers: what is lost, left, done twice.

    python benchmarks/bench_kills.py                  100 kills and 20 interrupts

A small job is started again and again in one place.  At a random time, uniform over what the whole job takes, it is
killed (SIGKILL), or its scheduler or a worker is, or it is interrupted as by Ctrl-C (SIGINT to its group).
After each it is looked at

- left: processes of the job that still run after 5 s (60 s of a killed job), found by a mark in their environment;
- lost: a background of the index whose file is not whole, or is not the one of an undisturbed job, byte for byte;
- repeated: a background of the index that the next job wrote again.

Every few times the job is left alone until its end: then all must be there, equal, with no temporary file.
"""

from __future__ import annotations

import argparse
import gzip
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
from astropy.io import fits
from common import machine_line, write_json

from dask_bkg.config.yaml import dump_yaml
from dask_bkg.simulate import simulate_archive

MARK = "DASK_BKG_BENCH_MARK"

KINDS = ("kill job", "kill worker", "kill scheduler", "interrupt", "ended before")

BAD = ("left", "lost", "repeated", "temporary files", "wrong status", "job ended with its worker", "tracebacks")
"""What must not be seen."""

SITTINGS = 4
"""Disturbed jobs in one place, before one is left alone."""


class Job:
    """``dask-bkg run`` as a process group with a mark, which is disturbed after some time."""

    def __init__(self, config: Path, cluster: str) -> None:
        self.mark = uuid.uuid4().hex
        self.output = tempfile.TemporaryFile("w+")  # noqa: SIM115 (the job writes to it after this)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dask_bkg", "run", str(config), "--cluster", cluster, "--no-progress"],
            env={**os.environ, MARK: self.mark}, stdout=self.output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

    def processes(self) -> list[psutil.Process]:
        """Those that have the mark, and run."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:  # it has ended, or is another user's
                continue
        return found

    def end(self, seconds: float = 600) -> int:
        """Exit status."""
        return self.process.wait(seconds)

    def text(self) -> str:
        """What it has printed."""
        self.output.seek(0)
        return self.output.read()

    def left(self, seconds: float) -> int:
        """Processes that still run after some time."""
        until = time.monotonic() + seconds
        while (left := len(self.processes())) and time.monotonic() < until:
            time.sleep(0.05)
        return left

    def disturb(self, how: str, rng: random.Random) -> bool:
        """Kill or interrupt; False if there is nothing to disturb any more."""
        if self.process.poll() is not None:
            return False
        if how == "interrupt":
            os.killpg(self.process.pid, signal.SIGINT)
        elif how == "kill job":
            self.process.kill()
        else:
            # nannies and workers: the first process that the job has started is its scheduler
            children = sorted(
                (p for p in self.processes() if p.pid != self.process.pid), key=psutil.Process.create_time
            )
            if len(children) < 2:
                return False
            try:
                (children[0] if how == "kill scheduler" else rng.choice(children[1:])).kill()
            except psutil.NoSuchProcess:
                return False
        return True


def write_config(path: Path, archive: Path, place: Path, runs: int) -> None:
    """A job of small blocks, so that it has many stages."""
    stars = path.with_name("stars.dat")
    stars.write_text("266.4 -29.0 1 9.0\n")  # too faint to be excluded
    io = {name: str(place / name) for name in ("in_dir", "out_dir", "results_dir")}
    config = {
        "io": {"search_datastore": str(archive), **io, "from_run": False},
        "config": {"njobs": 2},
        "exclusion": {"catalogs": [], "star_cat": str(stars)},
        "run_store": {"block": 2},
        "run_selection": {"runlist": list(range(64001, 64001 + runs))},
    }
    path.write_text(dump_yaml(config))


def outputs(place: Path) -> dict[str, tuple[int, int]]:
    """The files that the index names: CRC of their content, and the time they were written.

    A file that is not whole has the CRC -1.
    """
    found = {}
    index = place / "out_dir" / "hdu-index.fits.gz"
    if index.exists():
        for row in fits.getdata(index):
            if row["HDU_TYPE"].strip() == "bkg":
                path = index.parent / row["FILE_DIR"].strip() / row["FILE_NAME"].strip()
                try:
                    crc = zlib.crc32(gzip.decompress(path.read_bytes()))
                except (OSError, EOFError, zlib.error):
                    crc = -1
                found[path.name] = crc, path.stat().st_mtime_ns if path.exists() else 0
    return found


def temporaries(place: Path) -> list[str]:
    """What an undisturbed job does not leave."""
    return [str(p) for p in place.rglob("*") if p.name.endswith((".partial", ".tmp")) or ".tmp-" in p.name]


def whole_job(config: Path, cluster: str) -> tuple[float, str]:
    """Seconds and output of a job that nothing disturbs."""
    start = time.monotonic()
    job = Job(config, cluster)
    status = job.end()
    assert status == 0, f"status {status}: {job.text()}"
    return time.monotonic() - start, job.text()


def sitting(kinds: list[str], cluster: str, archive: Path, scratch: Path, rng: random.Random, truth: dict) -> Counter:
    """Some disturbed jobs in one place, and one that ends; counts of what was seen."""
    seen: Counter = Counter()
    place = Path(tempfile.mkdtemp(dir=scratch))
    config = place / "config.yaml"
    write_config(config, archive, place, truth["runs"])
    for how in kinds:
        before = outputs(place)
        job = Job(config, cluster)
        time.sleep(rng.uniform(0, truth["seconds"][cluster]))
        if not job.disturb(how, rng):
            seen["ended before"] += 1
        else:
            seen[how] += 1
        status = job.end()
        if how == "interrupt" and status not in (130, 0):
            seen["wrong status"] += 1
            print(f"status {status} of an interrupted job on {cluster}: {job.text()}", flush=True)
        if how == "kill worker" and status != 0:
            seen["job ended with its worker"] += 1
            print(f"status {status} after a worker was killed: {job.text()[-2000:]}", flush=True)
        if "Traceback" in job.text():
            seen["tracebacks"] += 1
            print(f"a traceback after {how}: {job.text()[-4000:]}", flush=True)
        seen["left"] += job.left(60 if how == "kill job" else 5)
        after = outputs(place)
        seen["lost"] += sum(truth["crc"].get(name) != crc for name, (crc, _) in after.items())
        seen["repeated"] += sum(name in after and after[name] != value for name, value in before.items())
    whole_job(config, cluster)
    end = outputs(place)
    seen["jobs that ended"] += 1
    seen["lost"] += sum(end.get(name, (None,))[0] != crc for name, crc in truth["crc"].items())
    if found := temporaries(place):
        seen["temporary files"] += len(found)
        print("temporary files:", *found, sep="\n  ", flush=True)
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--interrupts", type=int, default=20)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--events", type=float, default=1000)
    parser.add_argument("--clusters", nargs="+", default=["threads", "local"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(machine_line())
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as directory:
        rows = measure(options, Path(directory), rng)
    write_json(options.json, {"rows": rows})
    sys.exit(any(row[name] for row in rows for name in BAD))


def measure(options: argparse.Namespace, scratch: Path, rng: random.Random) -> list[dict[str, Any]]:
    """A row of counts for each kind of cluster."""
    archive = scratch / "archive"
    simulate_archive(archive, runs=options.runs, events=options.events, sources=False, stars=False)
    truth: dict[str, Any] = {"runs": options.runs, "seconds": {}}
    rows = []
    for cluster in options.clusters:
        place = scratch / f"undisturbed-{cluster}"
        place.mkdir()
        write_config(place / "config.yaml", archive, place, options.runs)
        truth["seconds"][cluster], _ = whole_job(place / "config.yaml", cluster)
        truth["crc"] = {name: crc for name, (crc, _) in outputs(place).items()}
        assert len(truth["crc"]) == options.runs
        kills = ["kill job"] if cluster == "threads" else ["kill job", "kill worker", "kill scheduler"]
        n_kills, n_interrupts = (n // len(options.clusters) for n in (options.kills, options.interrupts))
        kinds = [*(kills * n_kills)[:n_kills], *["interrupt"] * n_interrupts]
        rng.shuffle(kinds)
        seen: Counter = Counter()
        for i in range(0, len(kinds), SITTINGS):
            seen += sitting(kinds[i : i + SITTINGS], cluster, archive, scratch, rng, truth)
        counts = {name: seen[name] for name in (*KINDS, *BAD, *seen)}
        rows.append({"cluster": cluster, "seconds": round(truth["seconds"][cluster], 1), **counts})
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    return rows


if __name__ == "__main__":
    main()
