"""Show whether two checkouts of this project make the same outputs.

    GAMMAPY_DATA=... python benchmarks/same_outputs.py BEFORE AFTER [--rtol R] [--lost NAME ...] [--keep DIR]
    GAMMAPY_DATA=... python benchmarks/same_outputs.py BEFORE --keep DIR

BEFORE and AFTER are checkouts (directories with a ``dask_bkg`` package), or directories that ``--keep`` has written:
outputs of an earlier run, so that its jobs need not run again.  ``--keep`` keeps those of the first one.

Each checkout runs, in a process of its own and through its command line, the demo and seven jobs on the H.E.S.S. DL3
DR1 runs: 15 targets, all 72 runs as the archive; 2D and 3D; each run from itself, and stacks; copies, and an index
that leads to small files; KL divergences, smoothing, own counts, the preset of gammapy-tools.  ``--quick`` takes two
jobs on a small simulated archive instead.  All is written to the same absolute paths, as some files hold paths, and
moved away when it is complete.

Then every output of BEFORE is compared with that of AFTER: FITS files byte for byte (gunzipped; whether the packed
bytes are equal is said too), all variables that BEFORE's `dask_bkg.open_backgrounds` and `dask_bkg.open_runs` give,
provenance, configuration, summary, pictures, exit status of each job.  How rates are stored in ``results`` is not
compared.  What only AFTER has is listed; a DL3 file or index file that only it has is a difference.

This changes from one run of a checkout to the next, and is left out:

- the times when files were written: in ``files`` of the provenance (sizes are compared), in ``*.hints.json``, and in
  ``written`` and ``file_time`` of the store of results;
- the times in the attributes of the run store (attributes of datasets, units among them, are not compared).

In two quick runs of nearly the same code the KL divergences differed by 3e-14 (``rings-kl``, cause not found).  That
is not left out: with ``--rtol 0`` it counts as a difference.

Two checkouts may differ in this, which is left out too: ``versions`` of packages, and the names of jobs (``job``, the
keys of ``jobs``: hashes of all that a job is made of, versions included).

``--rtol`` above 0 compares the numbers instead of the bytes: columns and cards of BACKGROUND, index and divergence
tables, numbers of texts and datasets.  Other HDUs must keep their values to the last bit, the comments of their cards
may change.  Hashes (``config_hash``, ``digest``, the card CONFHASH), the card CREATOR, the sizes of packed files and
pictures may then change.

Exit status: 0 the same; 1 something differs by more than ``--rtol``, or is lost; 2 wrong usage, or a job failed.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import yaml
from astropy.io import fits
from astropy.table import Table
from numpy.typing import NDArray

# dask_bkg is imported where jobs are made only: here it would be that of a third checkout

EVERY = 5
"""Each fifth of the 72 runs receives backgrounds."""

NOT_REPEATABLE = frozenset({"versions", "job", "written", "file_time"})
"""Keys of texts and variables of datasets that are left out."""

OF_BYTES = frozenset({"config_hash", "digest", "file_size"})
"""As `NOT_REPEATABLE`, with --rtol above 0: hashes change with names of options, sizes with the packing."""

CARDS = frozenset({"CREATOR", "CONFHASH"})
"""As `OF_BYTES`, header cards of backgrounds."""

MOST = 20
"""Remarks that are printed of each kind of files."""

KEPT = "same-outputs.json"

JOBS: Mapping[str, dict[str, Any]] = {
    "rings-own": {"io": {"from_run": True}, "binning": {"mode": "2d"}},
    "rings-stack": {
        "io": {"attach": "index"},
        "binning": {"mode": "2d"},
        "background_selection": {"smooth": True},
        "model": {"own": "level"},
    },
    "rings-kl": {"binning": {"mode": "2d"}, "background_selection": {"KL_DIV": True, "store_KL": True}},
    "gammapy-tools": {
        "preset": "gammapy-tools",
        "binning": {"mode": "2d"},
        "background_selection": {"smooth": True},
        "run_store": {"path": "runs-gammapy-tools.zarr"},
    },
    "field-own": {"io": {"from_run": True}, "binning": {"mode": "3d"}},
    "field-stack": {"binning": {"mode": "3d"}, "cluster": "local"},
    "field-radec": {
        "io": {"attach": "index"},
        "binning": {"mode": "3d", "alignment": "radec"},
        "model": {"field": "both", "own": "spectrum"},
    },
}
"""What each job has other than the defaults."""

QUICK = ("rings-kl", "field-radec")


def _stop(message: str) -> NoReturn:
    """End with the status of wrong usage: 1 is that of outputs that differ."""
    print(message, file=sys.stderr)
    raise SystemExit(2)


# -- outputs ---------------------------------------------------------------------------------------------------


def make_outputs(checkout: Path, work: Path, quick: bool) -> Path:
    """Run all jobs of a checkout below ``work``, in a process of its own; returns the directory of the outputs.

    Raises
    ------
    SystemExit
        If one of them failed.
    """
    outputs = work / "outputs"
    if outputs.exists():
        _stop(f"{outputs} exists: another comparison runs there, or one was killed; remove it")
    (outputs / "logs").mkdir(parents=True)
    of_run = {"work": str(work), "quick": quick, "data": None if quick else str(_data_dir())}
    (outputs / KEPT).write_text(json.dumps(of_run, indent=1))
    command = [sys.executable, str(Path(__file__).resolve()), "--make", str(checkout), str(outputs)]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    messages = outputs / "logs" / "messages.txt"
    try:
        with messages.open("w") as stream:
            # in a directory that holds no checkout: workers look for packages there first
            done = subprocess.run(command + ["--quick"] * quick, cwd=messages.parent, env=environment, stderr=stream)
        if done.returncode:
            print(messages.read_text()[-3000:], file=sys.stderr)
            raise SystemExit(2)
    except BaseException:
        shutil.rmtree(outputs)
        raise
    return outputs


def make(checkout: Path, outputs: Path, quick: bool) -> None:
    """Run the jobs with the package of the checkout, which this process imports, and export their datasets."""
    import dask_bkg
    from dask_bkg.cli import main as dask_bkg_command

    if not Path(dask_bkg.__file__).resolve().is_relative_to(checkout.resolve()):
        _stop(f"dask_bkg comes from {dask_bkg.__file__}, not from {checkout}")
    if quick:
        archive, commands = outputs / "archive", {}
        dask_bkg.simulate_archive(archive, runs=6, events=2000, seed=1)
    else:
        archive = _data_dir() / "hess-dl3-dr1"
        commands = {"demo": ["demo", "--out-dir", str(outputs / "demo")]}
    for name in QUICK if quick else JOBS:
        file = outputs / f"{name}.yaml"
        file.write_text(json.dumps(job_config(name, outputs, archive, quick), indent=1))  # JSON is YAML too
        commands[name] = ["run", str(file), "--no-progress"]
    status = {
        name: run(dask_bkg_command, arguments, outputs / "logs" / f"{name}.txt")
        for name, arguments in commands.items()
    }
    (outputs / "status.json").write_text(json.dumps(status, indent=1))
    export(outputs)


def run(command: Callable[[list[str]], object], arguments: list[str], log: Path) -> int:
    """Run a command, with what it prints in a file; returns its exit status.

    Raises
    ------
    SystemExit
        If the status is neither 0 nor 3 (done, but some runs failed).
    """
    start, status = time.perf_counter(), 0
    with log.open("w") as stream, redirect_stdout(stream):
        try:
            command(arguments)
        except SystemExit as end:
            status = int(end.code or 0)
    print(f"{log.stem}: {time.perf_counter() - start:.0f} s, exit status {status}", flush=True)
    if status not in (0, 3):
        raise SystemExit(2)
    return status


def job_config(name: str, outputs: Path, archive: Path, quick: bool) -> dict[str, Any]:
    """Configuration of one of `JOBS`."""
    job = JOBS[name]
    if quick:
        runs = None
        exclusion = {"catalogs": [], "star_cat": str(archive / "stars.dat"),
                     "exclude_region_files": [str(archive / "sources.reg")]}  # fmt: skip
    else:
        with fits.open(archive / "obs-index.fits.gz") as hdus:
            runs = sorted(int(run) for run in hdus[1].data["OBS_ID"])[::EVERY]
        exclusion = {}
    directories = {"search_datastore": archive, "in_dir": archive, "out_dir": outputs / name}
    return {
        "cluster": "threads",
        **job,
        "io": {**{key: str(path) for key, path in directories.items()}, **job.get("io", {})},
        "run_store": {"path": str(outputs / job.get("run_store", {}).get("path", "runs.zarr"))},
        "config": {"njobs": 2},
        "exclusion": exclusion,
        "run_selection": {"runlist": runs},
    }


def _data_dir() -> Path:
    base = os.environ.get("GAMMAPY_DATA", "")
    if not Path(base, "hess-dl3-dr1", "obs-index.fits.gz").is_file():
        _stop("no H.E.S.S. DL3 DR1 under $GAMMAPY_DATA: `gammapy download datasets`, or take --quick")
    return Path(base).resolve()


def export(outputs: Path) -> None:
    """Write what `open_backgrounds` and `open_runs` give to ``.npz`` files below ``datasets``."""
    import zarr

    import dask_bkg

    for results in sorted(path.parent for path in outputs.rglob("provenance.json")):
        _save(dask_bkg.open_backgrounds(results), outputs, results.relative_to(outputs) / "backgrounds")
    for store in sorted(outputs.rglob("runs*.zarr")):
        # the fine view has the empty name; since layout 3 it and the table of runs are groups as well
        groups = set(zarr.open_group(store, mode="r").group_keys()) - {"fine", "runs"}
        for view in ["", *sorted(groups)]:
            _save(dask_bkg.open_runs(store, view), outputs, store.relative_to(outputs) / (view or "fine"))


def _save(dataset: Any, outputs: Path, name: Path) -> None:
    path = outputs / "datasets" / name.with_name(f"{name.name}.npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {str(key): np.asarray(values.values) for key, values in dataset.variables.items()}
    save_arrays(path, {key: a.astype(str) if a.dtype == object else a for key, a in arrays.items()})


def save_arrays(path: Path, arrays: Mapping[str, NDArray]) -> None:
    """Write an ``.npz`` file; unlike `numpy.savez` it may have a variable called ``file``."""
    with zipfile.ZipFile(path, "w") as packed:
        for name, array in arrays.items():
            with packed.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)


# -- comparison ------------------------------------------------------------------------------------------------


@dataclass
class Difference:
    """Of two files: whether all that is compared is identical, and how far the numbers are apart.

    Attributes
    ----------
    places
        Where, and the relative difference, ``{place: difference}``.
    extra
        What only the second file has.
    identical
        Whether nothing differs at all, and for files that are compared by bytes, whether they are equal.
    packed
        Whether the files are equal as they are on disk.
    """

    places: dict[str, float] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)
    identical: bool = True
    packed: bool = True

    @property
    def relative(self) -> float:
        """Largest relative difference of all numbers; infinite where something else differs, or is lost."""
        return max(self.places.values(), default=0.0)

    def add(self, place: str, relative: float) -> None:
        """Note a difference, if it is one."""
        if relative > 0:
            self.places[place], self.identical = max(relative, self.places.get(place, 0.0)), False


def relative_difference(one: NDArray, two: NDArray) -> float:
    """Largest of ``|one - two| / max(|one|, |two|)``; infinite for texts, shapes or NaN that differ.

    Floats of different precision are compared in the lower one.
    """
    if one.shape != two.shape:
        return float("inf")
    if one.dtype.kind not in "biufc" or two.dtype.kind not in "biufc":
        return 0.0 if np.array_equal(one, two) else float("inf")
    if one.dtype.kind == two.dtype.kind == "f":
        one, two = (a.astype(min(one.dtype, two.dtype, key=lambda kind: kind.itemsize)) for a in (one, two))
    differs = ~((one == two) | ((one != one) & (two != two)))
    if not differs.any():
        return 0.0
    one, two = one[differs].astype(float), two[differs].astype(float)
    with np.errstate(invalid="ignore"):
        relative = np.abs(one - two) / np.maximum(np.abs(one), np.abs(two))
    # whole numbers that differ beyond the precision of a float; NaN or infinity against a number
    return float(np.where(np.isfinite(relative), np.maximum(relative, np.finfo(float).tiny), np.inf).max())


def compare_datasets(one: Path, two: Path, rtol: float, lost: frozenset[str]) -> Difference:
    """Compare the variables of two exported datasets."""
    found, skip = Difference(), NOT_REPEATABLE | (OF_BYTES if rtol else frozenset())
    with np.load(one) as before, np.load(two) as after:
        found.extra = sorted(set(after.files) - set(before.files) - skip)
        for name in sorted(set(before.files) - skip):
            other = _counterpart(after, name, before[name].ndim)
            if other is not None:
                found.add(name, relative_difference(before[name], other))
            elif name not in lost:
                found.add(f"{name} is lost", float("inf"))
    return found


def _counterpart(after: Mapping[str, NDArray], name: str, ndim: int) -> NDArray | None:
    """A variable of BEFORE in AFTER, which may have it by role: ``shape_exposure`` is then an ``exposure``."""
    role, of_role = ("shape", name.removeprefix("shape_")) if name.startswith("shape_") else ("spectrum", name)
    if name in after and after[name].ndim == ndim:
        return after[name]
    roles = after["role"].tolist() if "role" in after else []
    if of_role in after and role in roles and after[of_role].ndim == ndim + 1:
        return after[of_role][:, roles.index(role)]
    return after.get(name)


def compare_fits(one: Path, two: Path, rtol: float, lost: frozenset[str]) -> Difference:
    """Compare FITS files; bytes first, then the numbers of the HDUs that differ."""
    packed = [path.read_bytes() for path in (one, two)]
    raw = [gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data for data in packed]
    found = Difference(identical=raw[0] == raw[1], packed=packed[0] == packed[1])
    if found.identical:
        return found
    with fits.open(io.BytesIO(raw[0])) as before, fits.open(io.BytesIO(raw[1])) as after:
        names = [[hdu.name for hdu in hdus] for hdus in (before, after)]
        if names[0] != names[1]:
            found.add(f"HDUs {names[0]} -> {names[1]}", float("inf"))
            return found
        for hdu, other in zip(before, after, strict=True):
            if _bytes_of(hdu, raw[0]) != _bytes_of(other, raw[1]):
                # what a job only hands on must stay as it is, to the last bit
                exactly = one.parent.name == "data" and hdu.name != "BACKGROUND"
                _compare_hdu(found, hdu, other, exactly)
    return found


def _bytes_of(hdu: Any, raw: bytes) -> bytes:
    place = hdu.fileinfo()
    return raw[place["hdrLoc"] : place["datLoc"] + place["datSpan"]]


def _compare_hdu(found: Difference, hdu: Any, other: Any, exactly: bool) -> None:
    of_hdu = Difference()
    for key in sorted({*hdu.header, *other.header} - CARDS):
        values = [_leaf(str(h.header.get(key))) for h in (hdu, other)]
        of_hdu.add(f"card {key} of {hdu.name}", relative_difference(*values))
    if isinstance(hdu, fits.BinTableHDU) and isinstance(other, fits.BinTableHDU):
        _compare_columns(of_hdu, Table(hdu.data), Table(other.data), f" of {hdu.name}")
    for place, relative in of_hdu.places.items():
        found.add(f"{place}, {relative:.3g}" if exactly else place, float("inf") if exactly else relative)
    found.extra += of_hdu.extra


def _compare_columns(found: Difference, before: Table, after: Table, of: str = "") -> None:
    found.extra += [f"{name}{of}" for name in after.colnames if name not in before.colnames]
    for name in before.colnames:
        if name in after.colnames:
            found.add(f"{name}{of}", relative_difference(*(np.asarray(t[name]) for t in (before, after))))
        else:
            found.add(f"{name}{of} is lost", float("inf"))


def compare_tables(one: Path, two: Path, rtol: float, lost: frozenset[str]) -> Difference:
    """Compare the columns of ECSV tables."""
    found = _equal_bytes(one, two)
    if not found.identical:
        _compare_columns(found, *(Table.read(path, format="ascii.ecsv") for path in (one, two)))
    return found


def compare_texts(one: Path, two: Path, rtol: float, lost: frozenset[str]) -> Difference:
    """Compare JSON or YAML value by value, without what is `NOT_REPEATABLE`, with ``rtol`` also without `HASHES`."""
    load = json.loads if one.suffix == ".json" else yaml.safe_load
    found, skip = Difference(), NOT_REPEATABLE | (OF_BYTES if rtol else frozenset())
    before, after = (dict(_leaves(load(path.read_text()), skip, bool(rtol))) for path in (one, two))
    found.packed = one.read_bytes() == two.read_bytes()
    found.extra = sorted(set(after) - set(before))
    for name, value in before.items():
        if name in after:
            found.add(name, relative_difference(_leaf(value), _leaf(after[name])))
        elif not lost.intersection(name.split("/")):
            found.add(f"{name} is lost", float("inf"))
    return found


def _leaves(node: Any, skip: frozenset[str], without_sizes: bool, path: str = "") -> Iterator[tuple[str, Any]]:
    """Values of nested dicts, lists of values as they are, by ``key/key``."""
    if not isinstance(node, dict):
        yield path, node
        return
    for key, value in node.items():
        if str(key) in skip:
            continue
        if key == "jobs":  # keyed by names that change with the versions
            value = {str(i): job for i, job in enumerate(value.values())}
        if key == "files":  # pairs of size and modification time
            if without_sizes:
                continue
            value = [size for size, _ in value]
        yield from _leaves(value, skip, without_sizes, f"{path}/{key}" if path else str(key))


def _leaf(value: Any) -> NDArray:
    """A value as an array: numbers as such (``1e-9`` is a text for some readers of YAML), all else as text."""
    try:
        return np.asarray(value if isinstance(value, bool) else np.asarray(value).astype(float))
    except (TypeError, ValueError):
        return np.asarray(json.dumps(value, sort_keys=True, default=str))


def compare_bytes(one: Path, two: Path, rtol: float, lost: frozenset[str]) -> Difference:
    """Compare files of which nothing is known."""
    found = _equal_bytes(one, two)
    if not found.identical and not (rtol and one.suffix == ".png"):
        found.add("bytes", float("inf"))
    return found


def _equal_bytes(one: Path, two: Path) -> Difference:
    equal = one.read_bytes() == two.read_bytes()
    return Difference(identical=equal, packed=equal)


KINDS = {
    "DL3 files": compare_fits,
    "index files": compare_fits,
    "divergence tables": compare_fits,
    "datasets of backgrounds": compare_datasets,
    "datasets of runs": compare_datasets,
    "provenance": compare_texts,
    "effective configuration": compare_texts,
    "exit status": compare_texts,
    "summary tables": compare_tables,
    "pictures": compare_bytes,
    "other files": compare_bytes,
}


def kind_of(path: Path) -> str | None:
    """Which of `KINDS` an output is, by its path below the outputs; None: it is not compared as a file."""
    if path.parts[0] == "datasets":
        return "datasets of backgrounds" if path.stem == "backgrounds" else "datasets of runs"
    stored = any(part.endswith(".zarr") for part in path.parts) or path.parts[-3:-1] == ("results", "backgrounds")
    if stored or path.parts[0] == "logs" or path.name == KEPT or path.name.endswith(".hints.json"):
        return None
    of_name = {"status.json": "exit status", "provenance.json": "provenance", "summary.ecsv": "summary tables",
               "effective-config.yaml": "effective configuration"}  # fmt: skip
    if path.name in of_name:
        return of_name[path.name]
    if path.name.endswith((".fits", ".fits.gz")):
        if path.parent.name == "kl":
            return "divergence tables"
        return "index files" if "-index." in path.name else "DL3 files"
    return "pictures" if path.suffix == ".png" else "other files"


def compare(before: Path, after: Path, rtol: float, lost: frozenset[str]) -> bool:
    """Print the table of all comparisons, and each difference; returns whether the outputs are the same.

    Parameters
    ----------
    before, after
        Outputs.
    rtol
        Largest relative difference that is allowed; 0: identical bytes.
    lost
        Variables and keys that only ``before`` may have.
    """
    files = [_files(outputs) for outputs in (before, after)]
    rows, remarks, same = [], {}, True
    for kind, compare_files in KINDS.items():
        mine, theirs = ({path for path, k in found.items() if k == kind} for found in files)
        found = {path: compare_files(before / path, after / path, rtol, lost) for path in sorted(mine & theirs)}
        bad = {path for path, d in found.items() if d.relative > rtol or not (rtol or d.identical)}
        gone = {path for path in mine - theirs if not lost.intersection(path.parts)}
        new = theirs - mine
        wrong = bad or gone or (new and compare_files is compare_fits)
        same = same and not wrong
        lines = [f"{path}: only BEFORE has it" for path in sorted(gone)]
        lines += [f"{path}: only AFTER has it" for path in sorted(new)]
        lines += [line for path, difference in found.items() for line in _remarks(path, difference)]
        if lines:
            remarks[kind] = lines
        if found or gone or new:
            largest = max((d.relative for d in found.values()), default=0.0)
            packed = sum(d.packed for d in found.values()) if compare_files is compare_fits else ""
            identical = sum(d.identical for d in found.values())
            rows.append((kind, len(mine), identical, packed, f"{largest:.3g}", "DIFFERENT" if wrong else "same"))
    _print_table(("what", "files", "identical", "packed too", "largest rel. diff.", ""), rows)
    for kind, lines in remarks.items():
        print("\n".join(["", f"{kind}:", *(f"  {line}" for line in lines[:MOST])]))
        if len(lines) > MOST:
            print(f"  ... and {len(lines) - MOST} more")
    if not any(files):
        _stop(f"there is nothing to compare in {before} and {after}")
    return same


def _files(outputs: Path) -> dict[Path, str | None]:
    found = (path.relative_to(outputs) for path in outputs.rglob("*") if path.is_file())
    return {path: kind_of(path) for path in found}


def _remarks(path: Path, found: Difference) -> list[str]:
    worst = sorted(found.places.items(), key=lambda item: -item[1])[:8]
    remarks = [f"{path}: {place} ({relative:.3g})" for place, relative in worst]
    if not found.identical and not found.places:
        remarks.append(f"{path}: bytes that are none of the values compared")
    return remarks + ([f"{path}: only AFTER has {', '.join(found.extra[:12])}"] if found.extra else [])


def _print_table(head: tuple, rows: list[tuple]) -> None:
    lines = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


# -- program ---------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Make the outputs that are not kept, compare them; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="+", type=Path, metavar="BEFORE [AFTER]", help="checkouts, or kept outputs")
    parser.add_argument("--work", type=Path, help="where jobs write; default: as kept outputs say, or temporary")
    parser.add_argument("--quick", action="store_true", help="two jobs on a small simulated archive; seconds")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the outputs of BEFORE here (a new directory)")
    parser.add_argument("--rtol", type=float, default=0.0, help="compare numbers, not bytes, to this")
    parser.add_argument("--lost", nargs="+", default=[], metavar="NAME", help="names that only BEFORE may have")
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)  # the script calls itself
    options = parser.parse_args(arguments)
    if options.make:
        make(*options.places, options.quick)
        return 0
    places = [place.resolve() for place in options.places]
    _check(parser, places, options)
    kept = [json.loads((p / KEPT).read_text()) if (p / KEPT).is_file() else None for p in places]
    quick, work = _as_kept(parser, [k for k in kept if k], options)
    with tempfile.TemporaryDirectory(prefix="same-outputs-") as scratch:
        work = work or Path(scratch, "work")
        outputs = []
        for i, (place, content) in enumerate(zip(places, kept, strict=True)):
            if content is None:
                # moved away, so that the next one writes to the same paths
                target = options.keep.resolve() if options.keep and i == 0 else Path(scratch, str(i))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(make_outputs(place, work, quick), target)
                place = target
            outputs.append(place)
        if len(outputs) == 1:
            print(f"kept in {outputs[0]}")
            return 0
        return 0 if compare(*outputs, options.rtol, frozenset(options.lost)) else 1


def _check(parser: argparse.ArgumentParser, places: list[Path], options: argparse.Namespace) -> None:
    if len(places) > 2 or (len(places) == 1 and not options.keep):
        parser.error("give BEFORE and AFTER, or BEFORE and --keep DIR")
    for place in places:
        if not ((place / KEPT).is_file() or (place / "dask_bkg" / "__init__.py").is_file()):
            parser.error(f"{place} holds neither the package dask_bkg nor kept outputs")
    if options.keep and (options.keep.exists() or (places[0] / KEPT).is_file()):
        parser.error("--keep takes a directory that does not exist, and BEFORE must be a checkout")


def _as_kept(
    parser: argparse.ArgumentParser, kept: list[dict], options: argparse.Namespace
) -> tuple[bool, Path | None]:
    """Whether to be quick, and where jobs write: as those of the kept outputs, as paths are in some files."""
    if not kept:
        return options.quick, options.work.resolve() if options.work else None
    first = kept[0]
    if any(other != first for other in kept):
        parser.error(f"the kept outputs were not made alike: {kept}")
    if options.work and options.work.resolve() != Path(first["work"]):
        parser.error(f"the kept outputs were made in {first['work']}: give that as --work, or nothing")
    if first["data"] and len(kept) < len(options.places) and first["data"] != str(_data_dir()):
        parser.error(f"the kept outputs were made of $GAMMAPY_DATA = {first['data']}")
    return first["quick"], Path(first["work"])


if __name__ == "__main__":
    sys.exit(main())
