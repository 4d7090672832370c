"""A run store of an archive, made once for the session: most tests are not about how one is made."""

from __future__ import annotations

import shutil
from pathlib import Path

from dask_bkg.config import parse_config
from dask_bkg.pipeline.update import reduce_archive


def keep_store(job, archive: Path, tmp_path: Path, base: Path, **sections):
    """The fixture ``job`` with a copy of that store below ``tmp_path``; its hints, which know paths, stay behind.

    Parameters
    ----------
    job, archive, tmp_path
        The fixture, the archive, and the directory of the test.
    base
        Directory of the session.
    sections
        What the store is made with.
    """
    template, copy = base / f"store-of-{archive.name}.zarr", tmp_path / "store" / "runs.zarr"
    if not template.exists():
        # nothing of it below the directory of the test that happens to be the first
        io = {"from_run": False, "results_dir": str(base), "out_dir": str(base / "out")}
        config = job(archive, io=io, run_store={"path": str(template)}, **sections)
        reduce_archive(parse_config(config), progress=False)
    shutil.copytree(template, copy)

    def make(archive, **sections):
        return job(archive, **{**sections, "run_store": {"path": str(copy), **sections.get("run_store", {})}})

    return make
