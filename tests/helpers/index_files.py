"""What the tests of index files share: rows that are broken, and the backgrounds that an index names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table

from dask_bkg.dl3.index import read_datastore, write_index

OBS_IDS = [64001, 64002, 64003, 64004]


def broken_rows(directory: Path) -> list[str]:
    """Rows of the HDU index whose file or HDU is not there, read without our own code."""
    wrong = []
    with fits.open(directory / "hdu-index.fits.gz") as hdus:
        rows = [tuple(str(value).strip() for value in row) for row in Table(hdus[1].data)]
    for obs_id, kind, _, file_dir, file_name, name in rows:
        path = directory / file_dir / file_name
        if not path.exists():
            wrong.append(f"{obs_id} {kind}: no file {path}")
            continue
        with fits.open(path) as hdus:
            if name not in hdus:
                wrong.append(f"{obs_id} {kind}: no {name} in {path}")
    return wrong


def backgrounds(directory: Path) -> dict[int, tuple[str, str]]:
    """File and HDU name of the background of each run, each run once."""
    rows = read_datastore(directory).hdu
    rows = rows[rows["HDU_TYPE"] == "bkg"]
    assert len(set(rows["OBS_ID"])) == len(rows)
    return {int(r["OBS_ID"]): (f"{r['FILE_DIR']}/{r['FILE_NAME']}", str(r["HDU_NAME"])) for r in rows}


def add_old_background(archive: Path, run_path, edit_run, name: str = "bkg") -> None:
    """Give each run of an archive a 3D background of another program, in the middle of its file."""
    for obs_id in OBS_IDS:

        def insert(hdus):
            column = fits.Column("BKG", "3E", "s-1 MeV-1 sr-1", array=np.ones((1, 3)))
            old = fits.BinTableHDU.from_columns([column], name=name)
            old.header.update({"HDUCLAS1": "RESPONSE", "HDUCLAS2": "BKG", "HDUCLAS4": "BKG_3D"})
            hdus.insert(3, old)

        edit_run(run_path(archive, obs_id), insert)
    store = read_datastore(archive)
    for obs_id in OBS_IDS:
        file_dir, file_name = store.rows([obs_id])[0]["FILE_DIR", "FILE_NAME"]
        store.hdu.add_row((obs_id, "bkg", "bkg_3d", file_dir, file_name, name))
    write_index(archive, store.hdu, store.obs)
