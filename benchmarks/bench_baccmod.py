"""Backgrounds of the H.E.S.S. DL3 DR1 runs by BAccMod, each run's made of the others.

    GAMMAPY_DATA=... python benchmarks/bench_baccmod.py OUT_DIR [--venv DIR] [--models NAME ...] [--runs RUN ...]
                                                       [--json FILE]

BAccMod 0.4.1 (LGPL) in a virtual environment of its own, made here with pip where it is not there.  It gets the
exclusion regions of our own models (catalogues and stars, `dask_bkg.sky.catalogs.sky_regions`) and their bins: 30
energies over 0.1-100 TeV, ten rings of 0.25 deg, or pixels of 0.25 deg, up to 2.5 deg; all else is BAccMod's default
(zenith bins of an hour, and of five, as an hour is few counts for these bins; linear interpolation).  Each model
comes as it is and put right (``baccmod_models.py`` says what is).  ``bench_models.py --baccmod OUT_DIR`` scores what
comes out beside ours.  With ``--runs`` these runs alone are modelled, and trained on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import write_json
from numpy.typing import NDArray

from dask_bkg.binning import Edges, FieldEdges
from dask_bkg.config import parse_config
from dask_bkg.dl3.index import read_datastore
from dask_bkg.sky.catalogs import sky_regions

PINS = ("baccmod==0.4.1", "gammapy==2.1", "regions==0.11")
MODELS = (
    "radial, zenith interpolation",
    "radial, zenith interpolation, bins of 5 h",
    "grid3d",
    "grid3d, zenith interpolation",
    "grid3d, zenith interpolation, bins of 5 h",
)
OFFSET_MAX = 2.5
REACH = OFFSET_MAX * 2**0.5
"""Corner of the square field [deg]: how far a disc can matter."""


def environment_python(directory: Path) -> Path:
    """Python of the environment with BAccMod, which is made where there is none."""
    python = directory / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        venv.create(directory, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PINS], check=True)
    return python


def make_job(archive: Path, runs: Sequence[int] | None, models: Sequence[str]) -> dict[str, Any]:
    """What the other half is told: runs, circles to leave out of each, bins, and who is made of whom."""
    table = read_datastore(archive).obs
    wanted = np.isin(table["OBS_ID"], runs) if runs else np.ones(len(table), dtype=bool)
    table = table[wanted]
    config = parse_config({})
    regions = sky_regions(config.exclusion)
    circles = {}
    for obs_id, ra, dec in zip(table["OBS_ID"].tolist(), table["RA_PNT"], table["DEC_PNT"], strict=True):
        near = regions.near(float(ra), float(dec), REACH)
        circles[obs_id] = np.column_stack([near.ra, near.dec, near.radius]).tolist()
    return {
        "archive": str(archive), "runs": list(circles), "regions": circles, "models": list(models),
        "energy": config.binning.energy_edges.tolist(), "offset": np.linspace(0, OFFSET_MAX, 11).tolist(),
    }  # fmt: skip


def read_all(directory: Path) -> dict[str, tuple[Edges | FieldEdges, dict[int, NDArray]]]:
    """All models of a directory by name: axes, and rates by run; bins that BAccMod leaves undefined are zero."""
    return {path.stem: _read(path)[:2] for path in sorted(directory.glob("*.npz"))}


def _read(path: Path) -> tuple[Edges | FieldEdges, dict[int, NDArray], list[int]]:
    """One model, and the runs with a zenith angle beyond those of its zenith bins: there BAccMod extrapolates."""
    with np.load(path) as held:
        values = np.nan_to_num(held["rate"], nan=0.0, posinf=0.0)
        kind = Edges if values.ndim == 3 else FieldEdges
        of = dict(zip(held["obs_id"].tolist(), values, strict=True))
        return kind(held["energy"], held["axis"]), of, held["obs_id"][held["outside"]].tolist()


def describe(path: Path) -> dict[str, Any]:
    """Runs, those beyond the zenith angles of the bins, and the share of bins without background."""
    _, rates, outside = _read(path)
    values = np.array(list(rates.values()))
    return {"runs": len(values), "outside": outside, "empty": float((values <= 0).mean())}


def main() -> None:
    """Make the environment and the backgrounds, and tell what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--venv", type=Path, help="environment with BAccMod (default: OUT_DIR/venv)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--runs", nargs="+", type=int, help="these runs alone, of them alone (default: all)")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    options.out_dir.mkdir(parents=True, exist_ok=True)
    python = environment_python(options.venv or options.out_dir / "venv")
    archive = Path(os.environ["GAMMAPY_DATA"], "hess-dl3-dr1")
    job = options.out_dir / "job.json"
    job.write_text(json.dumps(make_job(archive, options.runs, options.models)))
    start = time.perf_counter()
    script = Path(__file__).with_name("baccmod_models.py")
    subprocess.run([str(python), str(script), str(job), str(options.out_dir)], check=True)
    seconds = time.perf_counter() - start
    told = {path.stem: describe(path) for path in sorted(options.out_dir.glob("*.npz"))}
    for name, row in told.items():
        print(f"{name}: {row['runs']} runs, {len(row['outside'])} beyond the zenith bins, {row['empty']:.1%} empty")
    write_json(options.json, {"models": told, "seconds": seconds, "pins": PINS})


if __name__ == "__main__":
    main()
