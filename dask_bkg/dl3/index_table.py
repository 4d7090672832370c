"""One index file <-> one table: what `dask_bkg.dl3.index` needs to read, check and write its two tables."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.table import Table

from dask_bkg.dl3.attach import GADF_URL
from dask_bkg.dl3.blocks import read_fits_bytes, split_hdus
from dask_bkg.errors import ArchiveError

log = logging.getLogger(__name__)

# Cards that describe the file and not the runs, and cards that would make the bytes depend on the time.
_OWN_CARDS = {"HDUCLASS", "HDUDOC", "HDUVERS", "HDUCLAS1", "HDUCLAS2", "CREATOR", "DATE", "CHECKSUM", "DATASUM"}


LARGEST_RUN = 10**15
"""Run numbers above it are damage: a double holds all below it."""


def read_index(path: Path, name: str, required: Iterable[str]) -> Table:
    """Read the index table of a file, with strings stripped and OBS_ID as int64."""
    try:
        # `split_hdus` says what is wrong with a damaged file, where astropy makes the missing rows up.
        data = b"".join(piece.raw for piece in split_hdus(read_fits_bytes(path)))
        with fits.open(io.BytesIO(data)) as hdus:
            tables = [hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU)]
            chosen = next((hdu for hdu in tables if hdu.name == name), tables[0] if tables else None)
            if chosen is None:
                raise ValueError("has no table")
            table = Table.read(chosen, mask_invalid=False, unit_parse_strict="silent")
            return _clean(table, required)
    except OSError as error:
        raise ArchiveError(f"The index {path} cannot be read ({error.strerror or error}).") from error
    except Exception as error:  # astropy raises nearly anything for a damaged header
        why = str(error) if isinstance(error, ValueError) else f"is damaged ({type(error).__name__}: {error})"
        raise ArchiveError(f"The index {path} {why}. Get it again or write the index files anew.") from error


def to_bytes(table: Table, kind: str, cards: Mapping[str, str]) -> bytes:
    """Return the table of an index (``kind`` 'HDU' or 'OBS'), sorted by run, as the bytes of a FITS file."""
    table = by_run(table)
    kept = {key: value for key, value in table.meta.items() if key not in _OWN_CARDS and not key.startswith("DATADI")}
    gadf = {"HDUCLASS": "GADF", "HDUDOC": GADF_URL, "HDUVERS": "0.3", "HDUCLAS1": "INDEX", "HDUCLAS2": kind}
    table.meta = {**kept, **gadf, **cards}
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            # Units that astropy does not know were in the input: they are handed on, not judged.
            warnings.simplefilter("ignore", u.UnitsWarning)
            hdu = fits.table_to_hdu(table, name=f"{kind}_INDEX")
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(buffer)
    except (UnicodeEncodeError, ValueError) as error:
        raise ArchiveError(
            f"The {kind.lower()} index cannot be written as FITS ({error}). FITS knows ASCII text only: use names of "
            "files, directories and objects without other characters."
        ) from error
    return buffer.getvalue()


def without_repeated(obs: Table, path: Path) -> Table:
    """Drop rows that are there twice; refuse runs with contradictory rows."""
    obs_ids = np.asarray(obs["OBS_ID"])
    _, first, inverse, counts = np.unique(obs_ids, return_index=True, return_inverse=True, return_counts=True)
    if np.all(counts == 1):
        return obs
    # As text, because NaN is not equal to NaN.
    several = np.flatnonzero(counts[inverse] > 1).tolist()
    text = dict(zip(several, map(repr, obs[several].as_array().tolist()), strict=True))
    wrong = {int(obs_ids[row]) for row in several if text[row] != text[int(first[inverse[row]])]}
    if wrong:
        raise ArchiveError(
            f"The index {path} has several, different rows for {name_runs(sorted(wrong))}; remove the wrong rows."
        )
    log.warning("%s has the same row more than once for %s.", path, name_runs(np.unique(obs_ids[several]).tolist()))
    return obs[np.sort(first)]


def warn_repeated(hdu: Table, path: Path) -> None:
    """Say which runs have several HDUs of a type."""
    seen: set[tuple[int, str]] = set()
    repeated: dict[str, set[int]] = {}
    for key in zip(hdu["OBS_ID"].tolist(), hdu["HDU_TYPE"].tolist(), strict=True):
        if key in seen:
            repeated.setdefault(key[1], set()).add(key[0])
        seen.add(key)
    for hdu_type, obs_ids in repeated.items():
        log.warning("%s has several rows of type %r for %s.", path, hdu_type, name_runs(sorted(obs_ids)))


def by_run(table: Table) -> Table:
    """Return the rows sorted by run; the order within a run stays."""
    return table[np.argsort(np.asarray(table["OBS_ID"]), kind="stable")]


def name_runs(obs_ids: list[int]) -> str:
    """Number and names of runs for a message, the names of the first ten only."""
    shown = ", ".join(map(str, obs_ids[:10]))
    return f"{len(obs_ids)} run(s): {shown}{', ...' if len(obs_ids) > 10 else ''}"


def _clean(table: Table, required: Iterable[str]) -> Table:
    missing = [name for name in required if name not in table.colnames]
    if missing:
        raise ValueError(f"lacks the columns {', '.join(missing)} (it has {', '.join(table.colnames)})")
    for name in table.colnames:
        if table[name].dtype.kind in "SU":
            table[name] = np.char.strip(np.asarray(table[name]).astype(str))
    try:
        numbers = np.asarray(table["OBS_ID"])
        table["OBS_ID"] = numbers.astype(np.int64)
    except ValueError as error:
        raise ValueError(f"has an OBS_ID that is not a number ({error})") from error
    if wrong := sorted({int(number) for number in table["OBS_ID"] if not 0 <= number <= LARGEST_RUN}):
        raise ValueError(
            f"has OBS_ID {', '.join(map(str, wrong[:5]))}: run numbers are 0 to {LARGEST_RUN}, none is negative; "
            "number these runs anew"
        )
    if numbers.dtype.kind == "f" and np.any(numbers != table["OBS_ID"]):
        raise ValueError("has an OBS_ID that is not a whole number")
    return table


def check_fit(old: Table, new: Table) -> None:
    """Refuse what `vstack` would join without converting it."""
    different = [
        key
        for key in ("MJDREFI", "MJDREFF", "TIMESYS", "TIMEUNIT")
        if key in old.meta and key in new.meta and old.meta[key] != new.meta[key]
    ]
    for name in set(old.colnames) & set(new.colnames):
        text = (old[name].dtype.kind in "SU", new[name].dtype.kind in "SU")
        if old[name].unit != new[name].unit or text[0] != text[1]:
            different.append(name)
    if different:
        raise ArchiveError(
            f"The runs cannot be added to the index that is there: {', '.join(sorted(different))} differ in "
            "reference, unit or type. Write them to another directory."
        )


def one_background(hdu_rows: Table) -> Table:
    """Drop all background rows of a run but the first, which is the one that gammapy takes."""
    background = np.asarray(hdu_rows["HDU_TYPE"]) == "bkg"
    first = np.unique(np.asarray(hdu_rows["OBS_ID"])[background], return_index=True)[1]
    background[np.flatnonzero(background)[first]] = False
    return hdu_rows[~background]


def with_double_times(obs: Table) -> Table:
    """Return a copy with start and stop as float64: single precision is 8 s at TSTART = 1e8 s."""
    obs = obs.copy()
    for name in {"TSTART", "TSTOP"} & set(obs.colnames):
        if obs[name].dtype.kind == "f":
            obs[name] = obs[name].astype(np.float64)
    return obs
