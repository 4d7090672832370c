"""The models against each other on the 72 runs of H.E.S.S. DL3 DR1 that are at hand, each run left out of its own.

    GAMMAPY_DATA=... python benchmarks/bench_models.py [--baccmod DIR] [--baccmod-empty DIR] [--json FILE]

Score and plain procedure are those of ``scores.py``.  The mask: GammaCat (2 sigma + 0.25 deg, shells their size +
0.25) and 3HWC (search radius + 0.25 deg), clipped to 0.3-1.2 deg, targets 0.4 deg, |b| < 0.3 deg, no stars.
References are the plain procedure with 20 energies x 20 rings, and the same with 30 energies, which is stricter.  The
bootstrap draws targets, of empty fields runs.  The released models are aligned with north, and are compared with the
reference in such pixels.  The last tables are of the empty fields, with backgrounds made of them alone.  BAccMod's
come from ``bench_baccmod.py``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
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
from scores import METHODS, HeldOut, Rates, make_rates

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


def tables(title: str, held: Mapping[str, HeldOut], models: Mapping[str, Rates]) -> list[dict[str, Any]]:
    """Print what the models score against each of the references; what was printed."""
    found = {name: (rates.frame, scores.score(held[rates.frame], rates)) for name, rates in models.items()}
    group = held["altaz"].group
    told = []
    for reference in REFERENCES:
        of_frame = {frame: scores.score(held[frame], models[reference]) for frame, _ in found.values()}
        rows = {name: scores.compare(mine, of_frame[frame], group) for name, (frame, mine) in found.items()}
        print(f"\n{title}; 1e-3 nats an event against the {reference}\n")
        print(format_table(["model", *scores.COLUMNS], [[name, *scores.cells(row)] for name, row in rows.items()]))
        told.append({"title": title, "reference": reference, "runs": group.size, "models": rows})
    return told


def make_all(archive: Path, scratch: Path, names: list[str], over: Mapping[str, Any]) -> dict[str, Rates]:
    """Backgrounds by our methods."""
    made = {}
    for name in names:
        start = time.perf_counter()
        made[name] = make_rates(archive, scratch, {**METHODS[name], **over}, {})
        print(f"{name}: {len(made[name].of)} backgrounds in {time.perf_counter() - start:.0f} s", flush=True)
    return made


def alone(obs: Table, obs_ids: NDArray) -> dict[str, Any]:
    """Configuration of backgrounds of some runs made of them alone: no run contributes that points elsewhere."""
    others = obs[~np.isin(obs["OBS_ID"], obs_ids)]
    circles = [[float(ra), float(dec), 0.01] for ra, dec in zip(others["RA_PNT"], others["DEC_PNT"], strict=True)]
    return {"run_selection": {"runlist": obs_ids.tolist()}, "exclusion": {"exclude_source_run": circles}}


def main() -> None:
    """Make and score all models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--baccmod", type=Path, help="OUT_DIR of bench_baccmod.py")
    parser.add_argument("--baccmod-empty", type=Path, help="the same of the empty fields alone")
    parser.add_argument("--scratch", type=Path, help="keep run stores and backgrounds here")
    parser.add_argument("--json", type=Path, help="also write the tables here")
    options = parser.parse_args()
    scores.quiet()
    data = Path(os.environ["GAMMAPY_DATA"])
    archive, scratch = data / "hess-dl3-dr1", options.scratch or Path(tempfile.mkdtemp())
    print(machine_line())
    obs = read_datastore(archive).obs
    mask = {"catalogs": [], "star_mag": -99.0, "exclude_regions": mask_circles(obs, data)}
    held, threshold = scores.hold_out(archive, scratch, mask)
    obs_id = held["altaz"].obs_id
    group, empty = groups(obs, obs_id)
    held = {frame: part._replace(group=group) for frame, part in held.items()}
    names = list(dict.fromkeys([*REFERENCES, *options.models]))
    released = {RELEASED: scores.read_rates(archive, obs_id.tolist())}
    models = {**make_all(archive, scratch, names, {}), **released, **of_baccmod(options.baccmod)}
    told = []
    for factor in (1.0, 1.3):
        part = {frame: whole.above(factor, threshold) for frame, whole in held.items()}
        told += tables(f"all runs, E > {factor:g} LO_THRES", part, models)
    models = make_all(archive, scratch, names, alone(obs, obs_id[empty]))
    models |= {**released, **of_baccmod(options.baccmod_empty)}
    part = {frame: whole.of(empty) for frame, whole in held.items()}
    told += tables("empty fields, of them alone, E > LO_THRES", part, models)
    write_json(options.json, {"tables": told})


if __name__ == "__main__":
    main()
