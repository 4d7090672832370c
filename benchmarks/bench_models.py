"""The models against each other on the 72 runs of H.E.S.S. DL3 DR1 that are at hand, each run left out of its own.

    GAMMAPY_DATA=... python benchmarks/bench_models.py [--baccmod DIR] [--baccmod-empty DIR] [--json FILE]
    GAMMAPY_DATA=... python benchmarks/bench_models.py --plateau       # the default beside variants of itself

What is compared is what `dask_bkg.validate` compares: counts within 2 deg, 10 energies a decade, from LO_THRES and
from 1.3 times it, pixels of 0.2 deg; differences in 1e-3 nats an event with a paired bootstrap over targets.  The
mask of the counts: GammaCat (2 sigma + 0.25 deg, shells their size + 0.25) and 3HWC (search radius + 0.25 deg),
clipped to 0.3-1.2 deg, targets 0.4 deg, |b| < 0.3 deg, no stars.  References are the plain procedure with 20
energies x 20 rings, and the same with 30 energies, which is stricter; its smoothing is `methods.smoothed`, without
logarithms of zero.  The released models are aligned with north, and are compared with the references in such
pixels.  The last tables are of the empty fields, with backgrounds made of them alone.  BAccMod's come from
``bench_baccmod.py``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.table import Table
from bench_baccmod import read_all
from common import machine_line, write_json
from methods import COLUMNS, METHODS, cells, configuration, make_files, quiet, write_archive

from dask_bkg.dl3.index import read_datastore
from dask_bkg.report import format_table
from dask_bkg.selection.ranking import SHAPE_WIDTHS, WIDTHS
from dask_bkg.sky.catalogs import CATALOG_FILES
from dask_bkg.validation import compare
from dask_bkg.validation.run import validate_models

REFERENCES = ("plain procedure", "plain procedure, 30 energies")
FIRST, RELEASED = "default 2D", "released H.E.S.S. models"
BESIDE_RELEASED = ("default 3D", "default 3D, same target out")
EMPTY = "offdata"  # TARGET_TAG of the release

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "kernel x 0.7": {"background_selection": {"kernel": {n: 0.7 * w for n, w in WIDTHS.items()}}},
    "kernel x 1.4": {"background_selection": {"kernel": {n: 1.4 * w for n, w in WIDTHS.items()}}},
    "kernel x 2": {"background_selection": {"kernel": {n: 2 * w for n, w in WIDTHS.items()}}},
    "shape kernel x 0.7": {"background_selection": {"shape_kernel": {n: 0.7 * w for n, w in SHAPE_WIDTHS.items()}}},
    "shape kernel x 1.4": {"background_selection": {"shape_kernel": {n: 1.4 * w for n, w in SHAPE_WIDTHS.items()}}},
    "shape kernel x 2": {"background_selection": {"shape_kernel": {n: 2 * w for n, w in SHAPE_WIDTHS.items()}}},
    "shape_time_request 5 h": {"background_selection": {"shape_time_request": 5}},
    "time_request 3 h": {"background_selection": {"time_request": 3}},
    "night_level 0.3 d": {"background_selection": {"night_level": 0.3}},
    "night_level 3 d": {"background_selection": {"night_level": 3}},
    "no night": {"background_selection": {"night_level": 0}},
    "min_counts 200": {"model": {"min_counts": 200}},
    "min_counts 1000": {"model": {"min_counts": 1000}},
    "field: free": {"model": {"field": "free"}},
    "field: both": {"model": {"field": "both"}},
    "smooth_method: spline": {"background_selection": {"smooth": True}, "model": {"smooth_method": "spline"}},
    "smooth_method: adaptive": {"background_selection": {"smooth": True}, "model": {"smooth_method": "adaptive"}},
}
"""What is changed of the default, to see how broad the plateau is that it lies on."""

Models = dict[str, Any]
"""Configurations, or directories of datastores, by name."""


def mask_circles(obs: Table, data: Path) -> list[list[float]]:
    """What is left out of the counts: circles (ra, dec, radius) [deg]."""
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


def empty_alone(obs: Table) -> tuple[list[int], dict[str, Any]]:
    """Runs of empty fields, and a configuration in which no run contributes that points elsewhere."""
    empty = np.char.strip(np.asarray(obs["TARGET_TAG"], dtype=str)) == EMPTY
    others = obs[~empty]
    circles = [[float(ra), float(dec), 0.01] for ra, dec in zip(others["RA_PNT"], others["DEC_PNT"], strict=True)]
    chosen = [int(obs_id) for obs_id in obs["OBS_ID"][empty]]
    return chosen, {"run_selection": {"runlist": chosen}, "exclusion": {"exclude_source_run": circles}}


def make_models(
    archive: Path, scratch: Path, names: Sequence[str], over: Mapping[str, Any], baccmod: Path | None
) -> Models:
    """All models but the released ones; the plain procedure and BAccMod as files."""
    models: Models = {FIRST: configuration(FIRST, archive, scratch, over)}
    for name in [*REFERENCES, *names]:
        if name in REFERENCES:
            start = time.perf_counter()
            models[name] = make_files(name, archive, scratch, over)
            print(f"{name}: files in {time.perf_counter() - start:.0f} s", flush=True)
        else:
            models.setdefault(name, configuration(name, archive, scratch, over))
    for name, (edges, rates) in (read_all(baccmod) if baccmod else {}).items():
        directory = Path(tempfile.mkdtemp(dir=scratch))
        models[f"BAccMod {name}"] = write_archive(archive, directory, edges, rates)
    return models


def validated(models: Models, archive: Path, mask: Mapping[str, Any], threshold: float) -> dict[str, dict[str, Any]]:
    """For each reference the lines of its table by model."""
    validation = {"validation": {"exclusion": mask, "threshold": threshold}}
    first = {FIRST: models[FIRST] | validation}
    done = validate_models(models | first, progress=False)
    # fields that are aligned with north want pixels that are: with the references alone, not with all models
    few = {name: models[name] for name in (*REFERENCES, *BESIDE_RELEASED) if name in models}
    north = validate_models({**first, **few, RELEASED: archive}, progress=False)
    told = {RELEASED: compare(north, RELEASED)}
    for reference in REFERENCES:
        told[reference] = [
            *compare(done, reference),
            *(r for r in compare(north, reference) if r["name"] == RELEASED),
        ]
    return {reference: {row["name"]: row for row in rows} for reference, rows in told.items()}


def plateau(archive: Path, scratch: Path, mask: Mapping[str, Any], threshold: float) -> dict[str, dict[str, Any]]:
    """Variants of the default, relative to it; the lines of the table by variant."""
    validation = {"validation": {"exclusion": mask, "threshold": threshold}}
    models = {"default": configuration("default 3D", archive, scratch, validation)}
    for name, change in VARIANTS.items():
        models[name] = configuration("default 3D", archive, scratch, change)
    return {row["name"]: row for row in compare(validate_models(models, progress=False), "default")}


def show(title: str, told: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the tables."""
    for reference, rows in told.items():
        first = next(iter(rows.values()))
        print(
            f"\n{title}: {first['runs']} runs, {first['events']} events; 1e-3 nats an event against the {reference}\n"
        )
        lines = [
            [name, *cells(row), f"{row['ratio']['value']:.3f}", f"{row['scatter']['value']:.3f}"]
            for name, row in rows.items()
        ]
        print(format_table(["model", *COLUMNS, "predicted/observed", "scatter"], lines))


def main() -> None:
    """Make and score all models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--baccmod", type=Path, help="OUT_DIR of bench_baccmod.py")
    parser.add_argument("--baccmod-empty", type=Path, help="the same of the empty fields alone")
    parser.add_argument("--plateau", action="store_true", help="the default beside variants of itself, and no more")
    parser.add_argument("--json", type=Path, help="also write the tables here")
    options = parser.parse_args()
    quiet()
    data = Path(os.environ["GAMMAPY_DATA"])
    archive = data / "hess-dl3-dr1"
    print(machine_line())
    obs = read_datastore(archive).obs
    mask = {"catalogs": [], "star_mag": -99.0, "exclude_regions": mask_circles(obs, data)}
    tables = {}
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        if options.plateau:
            for threshold in (1.0, 1.3):
                told = {"default": plateau(archive, scratch, mask, threshold)}
                show(f"E > {threshold:g} LO_THRES", told)
                tables[f"E > {threshold:g} LO_THRES"] = told
            write_json(options.json, {"tables": tables})
            return
        models = make_models(archive, scratch, options.models, {}, options.baccmod)
        for threshold in (1.0, 1.3):
            title = f"E > {threshold:g} LO_THRES"
            tables[title] = validated(models, archive, mask, threshold)
            show(title, tables[title])
        _, alone = empty_alone(obs)
        models = make_models(archive, scratch, options.models, alone, options.baccmod_empty)
        title = "empty fields, of them alone"
        tables[title] = validated(models, archive, mask, 1.0)
        show(title, tables[title])
    write_json(options.json, {"tables": tables})


if __name__ == "__main__":
    main()
