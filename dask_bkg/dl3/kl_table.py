"""The table of one run's candidates and their divergence, as gammapy-tools' ``store_KL`` writes it.

Its ``mimic_data`` looks for ``<run>.kl.fits`` next to the backgrounds and finds there the rows of the obs-index with
a column ``KL_DIV``, nearest first; it takes the first row for the run itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table
from numpy.typing import ArrayLike

from dask_bkg.files import atomic_write

REQUIRED = ("OBS_ID", "KL_DIV", "LIVETIME", "SELECTED")

UNITS = {"LIVETIME": "s", "ONTIME": "s", "ZENITH": "deg", "ZEN_PNT": "deg", "ALT_PNT": "deg", "AZ_PNT": "deg",
         "RA_PNT": "deg", "DEC_PNT": "deg"}  # fmt: skip
"""Unit of each column that has one."""


def write_kl_table(directory: str | os.PathLike[str], obs_id: int, columns: Mapping[str, ArrayLike]) -> Path:
    """Write the candidates of one run to ``directory/<obs_id>.kl.fits`` and return the path.

    The run itself comes first if it is among them, then the others by divergence (on values rounded to 1e-10, as they
    are ranked), ties by number.  An infinite divergence (nothing to compare) stays infinite and comes last.  A table
    that is there already is replaced.

    Parameters
    ----------
    directory
        Where it goes; made if missing.
    obs_id
        The run whose candidates these are.
    columns
        Arrays of shape ``(candidates,)`` by name: ``OBS_ID``, ``KL_DIV``, ``LIVETIME`` [s], ``SELECTED`` (whether the
        run contributes), and whatever else.

    Raises
    ------
    ValueError
        If one of the four is missing or the lengths differ.
    ArchiveError
        If the directory cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> columns = {"OBS_ID": [3, 5], "KL_DIV": [0.2, 0.1], "LIVETIME": [1600, 1700], "SELECTED": [False, True]}
    >>> path = write_kl_table(tempfile.mkdtemp(), 7, columns)
    >>> path.name, Table.read(path)["OBS_ID"].tolist()
    ('7.kl.fits', [5, 3])
    """
    arrays = {name: np.asarray(values) for name, values in columns.items()}
    missing = [name for name in REQUIRED if name not in arrays]
    lengths = {name: array.shape for name, array in arrays.items()}
    if missing or len(set(lengths.values())) > 1:
        raise ValueError(
            f"run {obs_id}: a table of divergences has the columns {', '.join(REQUIRED)} and more, all of the same "
            f"length, got {lengths}"
        )
    order = np.lexsort((arrays["OBS_ID"], np.round(arrays["KL_DIV"], 10), arrays["OBS_ID"] != obs_id))
    path = Path(directory, f"{obs_id}.kl.fits")
    hdus = fits.HDUList([fits.PrimaryHDU(), _as_hdu(arrays, order, obs_id)])
    atomic_write(path, lambda temporary: hdus.writeto(temporary, overwrite=True))
    return path


def _as_hdu(arrays: Mapping[str, np.ndarray], order: np.ndarray, obs_id: int) -> fits.BinTableHDU:
    table = Table({name: array[order] for name, array in arrays.items()})
    table["OBS_ID"] = table["OBS_ID"].astype(np.int64)
    table["SELECTED"] = table["SELECTED"].astype(bool)
    for name, unit in UNITS.items():
        if name in table.colnames:
            table[name].unit = unit
    hdu = fits.table_to_hdu(table, name="KL_DIV")
    hdu.header["TARGET"] = (int(obs_id), "run that the divergence is measured from")
    hdu.header["CREATOR"] = ("dask_bkg", "program that made this table")
    return hdu
