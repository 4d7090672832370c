"""A run store of the four runs, made once for the session: most tests are not about how one is made."""

from __future__ import annotations

import shutil
from pathlib import Path

from dask_bkg.collect import reduce_archive
from dask_bkg.config import parse_config


def keep_store(job, archive: Path, tmp_path: Path, base: Path):
    """The fixture ``job`` with a copy of that store below ``tmp_path``; its hints, which know paths, stay behind."""
    template, copy = base / "four-runs.zarr", tmp_path / "store" / "runs.zarr"
    if not template.exists():
        io = {"from_run": False, "results_dir": str(base)}
        reduce_archive(parse_config(job(archive, io=io, run_store={"path": str(template)})), progress=False)
    shutil.copytree(template, copy)

    def make(archive, **sections):
        return job(archive, **{**sections, "run_store": {"path": str(copy), **sections.get("run_store", {})}})

    return make
