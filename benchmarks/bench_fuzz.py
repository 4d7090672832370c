"""Damaged DL3 files, read as a job reads them: each is to be refused with a reason, remarked on, or harmless.

    python benchmarks/bench_fuzz.py                        20,000 files (half an hour on 2 cores), 20 whole jobs
    python benchmarks/bench_fuzz.py --only 1234            what becomes of one seed, in words
    python benchmarks/bench_fuzz.py --files 0 --jobs 50    whole jobs alone

A run of a small simulated archive is damaged in one place (`mutations.py`), then read and counted in 3D in a process
of its own.  The outcomes of a file:

- *same*: accepted without a word; counts (in all, in 25 bins of energy and offset, in quarters of the field),
  exposures of rings and field are those of the undamaged run within 5 sigma of its counts, the zenith angle in 5 deg;
- *remark*: accepted, with a note in the store, at the end of a job and in the provenance;
- *refused*: a `RunError` that names the file, the reason and a remedy;
- *BAD*: another exception, or a refusal that only names one; a file that takes longer than 20 s, or 1 GB; an accepted
  run that differs and has no note.

A whole job has 20 runs, ten of them damaged.  No other background may move, in any bin or in all, by more than its
error from that of the same job without damage, and without the runs that were refused.  Exit status 1 if anything is
BAD.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import queue
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import machine_line, write_json
from mutations import KINDS, mutated

from dask_bkg.binning import fine_view
from dask_bkg.dl3.index import read_datastore, run_file
from dask_bkg.dl3.read import RunFile
from dask_bkg.errors import RunError
from dask_bkg.output.backgrounds import open_backgrounds
from dask_bkg.reduction.reduce import Reduced, reduce_views
from dask_bkg.report import format_table
from dask_bkg.simulate import simulate_archive

SECONDS, MEMORY, SIGMA, DEGREES = 20.0, 1e9, 5.0, 5.0
OUTCOMES = ("same", "remark", "refused", "BAD")
REMEDIES = ("correct", "copy it again", "restore", "repair", "remove", "write", "check", "leave", "drop", "raise")
VIEW = fine_view()._replace(alignment="altaz")


class Summary(NamedTuple):
    """What of a run is compared."""

    counts: np.ndarray
    exposure: np.ndarray
    zenith: float


class Outcome(NamedTuple):
    """What became of a file."""

    seed: int
    kind: str
    outcome: str
    why: str
    seconds: float = 0.0


def summary(reduced: Reduced) -> Summary:
    """Counts in all, in coarse bins and in quarters of the field; exposures [s] of rings and field."""
    found = reduced.histograms[0]
    coarse = found["counts"].astype(float).reshape(5, 10, 5, 10).sum(axis=(1, 3)).ravel()
    field = found["field_counts"].sum(axis=0, dtype=float)
    quarters = [field[i][:, j].sum() for i in (slice(12), slice(12, None)) for j in (slice(12), slice(12, None))]
    counts = np.array([coarse.sum(), *coarse, *quarters])
    shares = found["exposed_fraction"].mean(), found["field_exposed_fraction"].mean()
    return Summary(counts, reduced.numbers["ontime"] * np.array(shares), reduced.numbers["zenith"])


def difference(one: Summary, other: Summary) -> str:
    """What differs by more than the errors, in words; empty: nothing."""
    sigma = (other.counts - one.counts) / np.sqrt(np.maximum(one.counts, 1.0))
    if np.abs(sigma).max() > SIGMA:
        return f"counts differ by {sigma[0]:+.1f} sigma in all, {sigma[np.abs(sigma).argmax()]:+.1f} in a bin"
    ratio = other.exposure / one.exposure
    if not np.abs(ratio - 1).max() <= SIGMA / np.sqrt(one.counts[0]):
        return f"exposures are {ratio[0]:.3f} and {ratio[1]:.3f} of what they were"
    if abs(other.zenith - one.zenith) > DEGREES:
        return f"the zenith angle is {other.zenith:.1f} instead of {one.zenith:.1f} deg"
    return ""


def judged(run: RunFile, before: Summary) -> tuple[str, str]:
    """Outcome of a file, and why."""
    try:
        reduced = reduce_views(run, [VIEW])
    except RunError as error:
        text = str(error)
        bare = "unexpected" in text or "cannot be understood" in text
        reasoned = Path(run.path).name in text and any(word in text for word in REMEDIES)
        return ("refused" if reasoned and not bare else "BAD"), text
    except BaseException:
        return "BAD", traceback.format_exc(limit=-3)
    differs, note = difference(before, summary(reduced)), reduced.texts["note"]
    if note:
        return "remark", f"{note} ({differs or 'the same'})"
    return ("BAD", differs) if differs else ("same", "")


def peak_memory() -> float:
    """Largest resident memory since the last call [bytes]; 0 where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text()
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0.0
    return next(float(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


class Reader:
    """Damages runs of an archive and reads them, in this process."""

    def __init__(self, archive: Path, scratch: Path) -> None:
        store, self.scratch = read_datastore(archive), scratch
        self.runs = [run_file(store, obs_id) for obs_id in store.obs_ids.tolist()[:4]]
        self.raw = [unpacked(Path(run.path)) for run in self.runs]
        self.before = [summary(reduce_views(run, [VIEW])) for run in self.runs]
        self.memory = peak_memory() or peak_memory()

    def look(self, seed: int, kind: str = "") -> Outcome:
        """What becomes of the damage of a seed."""
        which = seed % len(self.runs)
        kind, data = mutated(self.raw[which], seed, kind)
        path = self.scratch / f"run_{os.getpid()}.fits.gz"
        path.write_bytes(data)
        del data
        peak_memory()
        start = time.perf_counter()
        outcome, why = judged(self.runs[which]._replace(path=str(path)), self.before[which])
        seconds, memory = time.perf_counter() - start, peak_memory() - self.memory
        if seconds > SECONDS:
            outcome, why = "BAD", f"it took {seconds:.0f} s ({why})"
        elif memory > MEMORY:
            outcome, why = "BAD", f"it took {memory / 1e9:.1f} GB ({why})"
        return Outcome(seed, kind, outcome, why, seconds)


def unpacked(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data


def serve(archive: Path, scratch: Path) -> None:
    """Read seeds from standard input, write outcomes to standard output: the process that may die."""
    reader = Reader(archive, scratch)
    # the machine is not to suffer: what a file takes beyond 1 GB is BAD long before
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(reader.look(int(line))), flush=True)


class Server:
    """A process that reads damaged files, started anew when it dies or hangs."""

    def __init__(self, archive: Path, scratch: Path) -> None:
        self.command = [sys.executable, "-W", "ignore", __file__, "--serve", str(archive), str(scratch)]
        self.process: subprocess.Popen | None = None

    def ask(self, seed: int) -> Outcome:
        """What becomes of the damage of a seed."""
        if self.process is None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self.process = subprocess.Popen(self.command, text=True, bufsize=1, **pipes)
            if self.process.stdout.readline() != "ready\n":
                raise RuntimeError(f"{self.command} does not start")
        self.process.stdin.write(f"{seed}\n")
        if select.select([self.process.stdout], [], [], 2 * SECONDS)[0] and (line := self.process.stdout.readline()):
            return Outcome(*json.loads(line))
        died = self.process.poll()
        self.stop()
        why = f"no answer in {2 * SECONDS:.0f} s" if died is None else f"the process died ({died})"
        return Outcome(seed, "unknown", "BAD", why)

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def outcomes(archive: Path, scratch: Path, seeds: range, njobs: int) -> Iterator[Outcome]:
    """What becomes of the damage of some seeds, by several processes."""
    todo, done = queue.SimpleQueue[int | None](), queue.SimpleQueue[Outcome | Exception | None]()
    for seed in [*seeds, *[None] * njobs]:
        todo.put(seed)

    def work() -> None:
        server = Server(archive, scratch)
        try:
            while (seed := todo.get()) is not None:
                done.put(server.ask(seed))
            done.put(None)
        except Exception as error:
            done.put(error)
        finally:
            server.stop()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(njobs)]
    for thread in threads:
        thread.start()
    left = njobs
    while left:
        found = done.get()
        if isinstance(found, Exception):
            raise found
        if found is None:
            left -= 1
        else:
            yield found
    for thread in threads:
        thread.join()


def run_job(archive: Path, base: Path) -> tuple[int, str]:
    """A job on an archive, in processes of its own; exit status and the end of what it said."""
    base.mkdir()
    stars = base / "stars.dat"
    stars.write_text("10.0 -80.0 1 9.0\n")  # too faint to be excluded
    config = {
        "cluster": "threads",
        "io": {"search_datastore": str(archive), "in_dir": f"{base}/in", "out_dir": f"{base}/out", "from_run": False},
        "binning": {"mode": "2d"},
        "exclusion": {"catalogs": [], "star_cat": str(stars)},
    }
    (base / "config.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "dask_bkg", "run", str(base / "config.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return done.returncode, (done.stdout + done.stderr)[-2000:]


def whole_job(seed: int, clean: Path, scratch: Path) -> dict[str, Any]:
    """One job with ten damaged runs of twenty, and what moved in the backgrounds of the others."""
    store = read_datastore(clean)
    rng = np.random.default_rng(seed)
    chosen = rng.choice(store.obs_ids, 10, replace=False).tolist()
    wrong, control = scratch / "wrong", scratch / "control"
    shutil.copytree(clean, wrong)
    damage = {}
    for obs_id in chosen:
        path = Path(run_file(store, obs_id).path)
        damage[obs_id], data = mutated(unpacked(path), int(rng.integers(10**9)))
        (wrong / path.relative_to(clean)).write_bytes(data)
    status, said = run_job(wrong, scratch / "job")
    told = {"seed": seed, "damage": damage, "status": status, "moved": {}}
    if status not in (0, 3):
        return {**told, "said": said}
    read = open_backgrounds(scratch / "job/out/results")
    # runs that contributed nowhere were refused, or left out by a remark: the control does without them
    used = set(np.unique(read.contributing.values).tolist()) | set(store.obs_ids.tolist()) - set(chosen)
    shutil.copytree(clean, control)
    for obs_id in set(chosen) - used:
        (control / Path(run_file(store, obs_id).path).relative_to(clean)).write_bytes(b"")
    status, said = run_job(control, scratch / "control-job")
    if status not in (0, 3):
        return {**told, "said": said}
    expected = open_backgrounds(scratch / "control-job/out/results")
    for obs_id in sorted(set(store.obs_ids.tolist()) - set(chosen)):
        one, other = (data.sel(obs_id=obs_id) for data in (expected, read))
        if moved := moved_by(one, other):
            told["moved"][obs_id] = moved
    return {**told, "accepted": sorted(used & set(chosen))}


def moved_by(one: Any, other: Any) -> str:
    """Whether a background moved by more than its error, in a bin or in all."""
    rate, error, now = one.rate.values, one.error.values, other.rate.values
    counted = np.isfinite(error) & (rate > 0)
    pull = (now[counted] / rate[counted] - 1) / error[counted]
    counts = float(one.counts.sel(role="spectrum").sum())
    level = (now.sum() / rate.sum() - 1) * np.sqrt(counts)
    if not (np.abs(pull).max() <= 1 and abs(level) <= 1):
        return f"{np.abs(pull).max():.2f} of its error in a bin, {level:+.2f} in all"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1, help="of the first file; the others follow one by one")
    parser.add_argument("--only", type=int, metavar="SEED", help="one file, its outcome in words")
    parser.add_argument("--njobs", type=int, default=2, help="processes")
    parser.add_argument("--jobs", type=int, default=20, help="whole jobs")
    parser.add_argument("--events", type=int, default=5000, help="events of a run")
    parser.add_argument("--archive", type=Path, help="a datastore, one file a run; a simulated one by default")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        archive = options.archive
        if archive is None:
            archive = scratch / "dl3"
            simulate_archive(archive, 4, options.events, seed=1, sources=False, stars=False)
        if options.only is not None:
            warnings.simplefilter("ignore")
            print(*Reader(archive, scratch).look(options.only), sep="\n")
            return
        bad = measure(archive, scratch, options)
    sys.exit(1 if bad else 0)


def measure(archive: Path, scratch: Path, options: argparse.Namespace) -> bool:
    """All files and jobs; prints the tables, and says whether anything is BAD."""
    seeds = range(options.seed, options.seed + options.files)
    start = time.perf_counter()
    found = sorted(outcomes(archive, scratch, seeds, options.njobs))
    jobs = list(_jobs(scratch, options))
    bad = [one for one in found if one.outcome == "BAD"]
    print(machine_line())
    print(f"{len(found)} files, {len(jobs)} jobs, {time.perf_counter() - start:.0f} s")
    if found:
        number = Counter((one.kind, one.outcome) for one in found)
        kinds = [*KINDS, *sorted({one.kind for one in found} - {*KINDS})]
        rows = [[kind, *(number[kind, outcome] for outcome in OUTCOMES)] for kind in kinds]
        rows.append(["all", *(sum(row[i] for row in rows) for i in range(1, 5))])
        print(format_table(["damage", *OUTCOMES], rows))
        print(f"slowest: {max(one.seconds for one in found):.1f} s")
    for one in bad:
        print(f"BAD {one.seed} ({one.kind}): {' '.join(one.why.split())[-300:]}")
    wrong = [job for job in jobs if job["moved"] or "said" in job]
    if jobs:
        backgrounds = sum(10 for job in jobs if "said" not in job)
        print(f"{len(jobs)} jobs, {sum(len(job['moved']) for job in jobs)} of {backgrounds} other backgrounds moved")
    for job in wrong:
        print(f"BAD job {job['seed']}: {json.dumps(job)[:1000]}")
    write_json(options.json, {"files": [one._asdict() for one in found], "jobs": jobs})
    return bool(bad or wrong)


def _jobs(scratch: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    clean = scratch / "clean"
    if options.jobs:
        simulate_archive(clean, 20, options.events, seed=2, sources=False, stars=False)
    for seed in range(options.seed, options.seed + options.jobs):
        with tempfile.TemporaryDirectory(dir=scratch) as directory:
            yield whole_job(seed, clean, Path(directory))


if __name__ == "__main__":
    main()
