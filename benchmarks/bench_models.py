"""The models against each other on the 72 runs of H.E.S.S. DL3 DR1 that are at hand, each run left out of its own.

    GAMMAPY_DATA=... python benchmarks/bench_models.py [--baccmod DIR] [--baccmod-empty DIR] [--json FILE]

Score and plain procedure are those of ``scores.py``; the mask: GammaCat (2 sigma + 0.25 deg, shells their size + 0.25)
and 3HWC (search radius + 0.25 deg), clipped to 0.3-1.2 deg, targets 0.4 deg, |b| < 0.3 deg, no stars.  The reference is
the plain procedure with 20 energies x 20 rings, and the same with 30 energies, which is stricter.  The bootstrap draws
targets, of empty fields runs.  A second table is of the empty fields, with backgrounds made of them alone.  BAccMod's
come from ``bench_baccmod.py``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scores
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.table import Table
from bench_baccmod import read_all
from common import machine_line, write_json
from numpy.typing import NDArray
from scores import METHODS, HeldOut, Rates, Scores, make_rates

from dask_bkg.catalogs import CATALOG_FILES
from dask_bkg.dl3.index import read_datastore
from dask_bkg.report import format_table

REFERENCES = ("plain procedure", "plain procedure, 30 energies")
RELEASED = "released H.E.S.S. models"
EMPTY = "offdata"  # TARGET_TAG of the release


def mask_circles(obs: Table, data: Path) -> list[list[float]]:
    """What is left out of the score: circles (ra, dec, radius) [deg]."""
    cat, hwc = (Table.read(data / CATALOG_FILES[name]) for name in ("gammacat", "3hwc"))
    sigma = np.nan_to_num(np.ma.filled(np.ma.asarray(cat["morph_sigma"], dtype=float), 0.0))
    shell = np.char.find(np.asarray(cat["morph_type"], dtype=str), "shell") >= 0
    sizes = np.where(shell, 1, 2) * sigma + 0.25, np.asarray(hwc["search_radius"], dtype=float) + 0.25
    circles = [
        [float(ra), float(dec), float(np.clip(size, 0.3, 1.2))]
        for table, radii in zip((cat, hwc), sizes, strict=True)
        for ra, dec, size in zip(table["ra"], table["dec"], radii, strict=True)
    ]
    targets = {(round(float(row["RA_OBJ"]), 3), round(float(row["DEC_OBJ"]), 3)) for row in obs}
    circles += [[ra, dec, 0.4] for ra, dec in sorted(targets) if np.isfinite(ra + dec)]
    plane = SkyCoord(np.arange(0, 360, 0.1) * u.deg, 0 * u.deg, frame="galactic").icrs
    return circles + [[float(ra), float(dec), 0.3] for ra, dec in zip(plane.ra.deg, plane.dec.deg, strict=True)]


def groups(obs: Table, obs_ids: NDArray) -> tuple[NDArray, NDArray]:
    """What the bootstrap draws of each run, and which runs are of empty fields."""
    rows = {int(row["OBS_ID"]): row for row in obs}
    empty = np.array([str(rows[i]["TARGET_TAG"]).strip() == EMPTY for i in obs_ids.tolist()])
    names = [str(i) if free else str(rows[i]["OBJECT"]) for i, free in zip(obs_ids.tolist(), empty, strict=True)]
    return np.array(names), empty


def of_baccmod(directory: Path | None) -> dict[str, Rates]:
    """BAccMod's backgrounds in the form of ours."""
    return {f"BAccMod {name}": rates for name, rates in read_all(directory).items()} if directory else {}


def table(title: str, held: HeldOut, found: Mapping[str, Scores], reference: str) -> dict[str, Any]:
    """Print one table; what is in it."""
    told = {name: scores.compare(result, found[reference], held.group) for name, result in found.items()}
    print(f"\n{title}; 1e-3 nats an event against the {reference}\n")
    print(format_table(["model", *scores.COLUMNS], [[name, *scores.cells(row)] for name, row in told.items()]))
    return {"title": title, "reference": reference, "runs": len(held.obs_id), "models": told}


def score_all(held: HeldOut, models: Mapping[str, Rates]) -> dict[str, Scores]:
    """Scores of all models."""
    return {name: scores.score(held, rates) for name, rates in models.items()}


def make_all(archive: Path, scratch: Path, names: list[str], over: Mapping[str, Any]) -> dict[str, Rates]:
    """Backgrounds by our methods."""
    made = {}
    for name in names:
        start = time.perf_counter()
        made[name] = make_rates(archive, scratch, {**METHODS[name], **over}, {})
        print(f"{name}: {len(made[name].of)} backgrounds in {time.perf_counter() - start:.0f} s", flush=True)
    return made


def alone(obs_ids: NDArray, others: list[list[float]]) -> dict[str, Any]:
    """Configuration of backgrounds of some runs made of them alone: no run that points where the others do."""
    return {"run_selection": {"runlist": obs_ids.tolist()}, "exclusion": {"exclude_source_run": others}}


def main() -> None:
    """Make and score all models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--baccmod", type=Path, help="OUT_DIR of bench_baccmod.py")
    parser.add_argument("--baccmod-empty", type=Path, help="the same of the empty fields alone")
    parser.add_argument("--scratch", type=Path, help="keep run stores and backgrounds here")
    parser.add_argument("--json", type=Path, help="also write the tables here")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    data = Path(os.environ["GAMMAPY_DATA"])
    archive, scratch = data / "hess-dl3-dr1", options.scratch or Path(tempfile.mkdtemp())
    print(machine_line())
    obs = read_datastore(archive).obs
    mask = {"catalogs": [], "star_mag": -99.0, "exclude_regions": mask_circles(obs, data)}
    held, threshold = scores.hold_out(archive, scratch, mask)
    group, empty = groups(obs, held.obs_id)
    held = held._replace(group=group)
    names = list(dict.fromkeys([*REFERENCES, *options.models]))
    models = make_all(archive, scratch, names, {})
    models[RELEASED] = scores.read_rates(archive, held.obs_id.tolist())
    models |= of_baccmod(options.baccmod)
    tables = []
    for factor in (1.0, 1.3):
        part = held.above(factor, threshold)
        found = score_all(part, models)
        tables += [table(f"all runs, E > {factor:g} LO_THRES", part, found, name) for name in REFERENCES]
    others = [
        [float(row["RA_PNT"]), float(row["DEC_PNT"]), 0.01] for row in obs if str(row["TARGET_TAG"]).strip() != EMPTY
    ]
    models = make_all(archive, scratch, names, alone(held.obs_id[empty], others))
    models |= {RELEASED: scores.read_rates(archive, held.obs_id.tolist()), **of_baccmod(options.baccmod_empty)}
    part = held.of(empty)
    found = score_all(part, models)
    tables += [table("empty fields, of them alone, E > LO_THRES", part, found, name) for name in REFERENCES]
    write_json(options.json, {"tables": tables})


if __name__ == "__main__":
    main()
