"""The files of a simulated archive: runs and index in the manner of VERITAS, star table, source regions.

Nothing in a file depends on the day or the place of its writing.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.io.fits.header import BLOCK_SIZE
from astropy.time import Time
from numpy.typing import NDArray

from dask_bkg.simulate import response
from dask_bkg.simulate.response import GADF, Table
from dask_bkg.simulate.truth import SimulatedRun, Truth

LONGITUDE, LATITUDE, ALTITUDE = -110.952, 31.675, 1268.0
"""The site of VERITAS [deg, deg, m]."""

MISSION_START = Time(53402, format="mjd", scale="utc")
"""Origin of VERITAS' mission time."""

_PRIMARY_HDU = fits.PrimaryHDU().header.tostring().encode()

DATA_DIR, HDU_INDEX, OBS_INDEX = "data", "hdu-index.fits.gz", "obs-index.fits.gz"

_TIME_CARDS: dict[str, object] = {
    "MJDREFI": (int(MISSION_START.mjd), "int part of reference MJD [days]"),
    "MJDREFF": (0.0, "fractional part of reference MJD [days]"),
    "TIMEUNIT": ("s", "time unit is seconds since MET start"),
    "TIMESYS": ("utc", "time scale is UTC"),
    "TIMEREF": ("topocenter", "location from where the observation was made"),
}
_SITE_CARDS: dict[str, object] = {
    "GEOLON": (LONGITUDE, "longitude of array center [deg]"),
    "GEOLAT": (LATITUDE, "latitude of array center [deg]"),
    "ALTITUDE": (ALTITUDE, "altitude of array center [m]"),
}
_HDUS = (
    ("events", "events", "EVENTS"),
    ("gti", "gti", "GTI"),
    ("aeff", "aeff_2d", "EFFECTIVE AREA"),
    ("edisp", "edisp_2d", "ENERGY DISPERSION"),
    ("psf", "psf_3gauss", "PSF"),
    ("bkg", "bkg_2d", "BACKGROUND"),
)
_EVENT_COLUMNS = {  # type and unit
    "EVENT_ID": (np.int64, None),
    "TIME": (np.float64, "s"),
    "RA": (np.float32, "deg"),
    "DEC": (np.float32, "deg"),
    "ENERGY": (np.float32, "TeV"),
    "ALT": (np.float32, "deg"),
    "AZ": (np.float32, "deg"),
    "Xoff": (np.float32, "deg"),
    "Yoff": (np.float32, "deg"),
}
_INDEX_CARDS = (
    *("OBS_ID", "OBJECT", "RA_OBJ", "DEC_OBJ", "RA_PNT", "DEC_PNT", "ALT_PNT", "AZ_PNT"),
    *("ONTIME", "LIVETIME", "DEADC", "TSTART", "TSTOP", "DATE-OBS", "DATE-AVG", "DATE-END"),
    *("N_TELS", "TELLIST", "NSBLEVEL", "MUONEFF", "QUALITY"),
)


def run_path(directory: Path, obs_id: int) -> Path:
    """Return the path of the file of a run."""
    return directory / DATA_DIR / f"run_{obs_id:06d}.fits.gz"


def run_cards(runs: Sequence[SimulatedRun]) -> list[dict[str, tuple]]:
    """Return what the header of each event list says of its run: value and comment by keyword."""
    start, stop = np.array([(run.gti[0][0], run.gti[-1][1]) for run in runs]).T
    dates = MISSION_START + np.stack([start, 0.5 * (start + stop), stop], axis=1) * u.s
    return [_run_cards(run, *texts) for run, texts in zip(runs, dates.isot.tolist(), strict=True)]


def write_run(
    directory: Path,
    run: SimulatedRun,
    cards: Mapping[str, tuple],
    events: Mapping[str, NDArray],
    truth: Truth,
    with_bkg: bool,
) -> None:
    """Write the file of one run.

    Parameters
    ----------
    directory
        The archive.
    run
        The run.
    cards
        Its `run_cards`.
    events
        Columns of the event list, in the order of time.
    truth
        What is put into the archive.
    with_bkg
        Whether the true background goes into the file.
    """
    tables = [
        _events_table(cards, events),
        _gti_table(run, cards),
        response.aeff_table(run.obs_id, run.zenith, run.az_pnt, truth.threshold_factor(run)),
        response.edisp_table(),
        response.psf_table(),
    ]
    if with_bkg:
        energy, offset = response.background_nodes()
        tables.append(response.background_table(run.obs_id, truth.rate(run.obs_id, energy, offset[:, None])))
    _write_fits(run_path(directory, run.obs_id), tables)


def write_indices(
    directory: Path,
    runs: Sequence[SimulatedRun],
    cards: Sequence[Mapping[str, tuple]],
    counts: Sequence[int],
    with_bkg: bool,
) -> None:
    """Write the observation and the HDU index of runs with their `run_cards` and ``counts`` events each."""
    # the observations first: no index names a file before all of them are there
    _write_fits(directory / OBS_INDEX, [_obs_index(runs, cards, counts)])
    _write_fits(directory / HDU_INDEX, [_hdu_index(runs, _HDUS if with_bkg else _HDUS[:-1])])


def write_sky(directory: Path, truth: Truth) -> None:
    """Write ``stars.dat`` (columns of the Hipparcos table) and ``sources.reg`` (ds9, circles)."""
    lines = ["#_RAJ2000\t_DEJ2000\tHIP\tVmag\tB-V"]
    lines += [f"{s.ra:.6f}\t{s.dec:10.6f}\t{s.hip:6d}\t{s.v_mag:5.2f}\t{s.b_v:6.3f}" for s in truth.stars]
    (directory / "stars.dat").write_text("\n".join(lines) + "\n")
    lines = ["# Region file format: DS9 version 4.1", "icrs"]
    lines += [f'circle({s.ra:.6f},{s.dec:.6f},{3600 * s.radius:.1f}") # text={{{s.name}}}' for s in truth.sources]
    (directory / "sources.reg").write_text("\n".join(lines) + "\n")


def _run_cards(run: SimulatedRun, first: str, middle: str, last: str) -> dict[str, tuple]:
    """Cards as VERITAS writes them, and MUONEFF, DATE-AVG and OBS_MODE of GADF."""
    start, stop = run.gti[0][0], run.gti[-1][1]
    return {
        "OBS_ID": (run.obs_id, "run number"),
        "DATE-OBS": (first, "start date (UTC)"),
        "DATE-AVG": (middle, "middle of the run (UTC)"),
        "DATE-END": (last, "end date (UTC)"),
        "TSTART": (start, "mission time of start of obs [s]"),
        "TSTOP": (stop, "mission time of end of obs [s]"),
        "TELAPSE": (stop - start, "time between start and end [s]"),
        "ONTIME": (run.ontime, "sum of good time intervals [s]"),
        "LIVETIME": (run.livetime, "ontime without dead time [s]"),
        "DEADC": (run.deadc, "LIVETIME/ONTIME"),
        "OBJECT": (run.object, "observed object"),
        "RA_OBJ": (run.ra_obj, "target position RA [deg]"),
        "DEC_OBJ": (run.dec_obj, "target position DEC [deg]"),
        "RA_PNT": (run.ra_pnt, "pointing RA [deg]"),
        "DEC_PNT": (run.dec_pnt, "pointing DEC [deg]"),
        "ALT_PNT": (run.alt_pnt, "average altitude of pointing [deg]"),
        "AZ_PNT": (run.az_pnt, "average azimuth of pointing [deg]"),
        "OBS_MODE": ("POINTING", "observation mode"),
        "N_TELS": (len(run.tels), "number of telescopes in event list"),
        "TELLIST": (",".join(map(str, run.tels)), "comma-separated list of tel IDs"),
        "NSBLEVEL": (run.nsb, "NSB level (mean of pedestal variations)"),
        "MUONEFF": (run.muon_efficiency, "muon efficiency"),
        "QUALITY": (0, "run quality flag"),
    }


def _events_table(run_cards: Mapping[str, tuple], events: Mapping[str, NDArray]) -> Table:
    columns = {name: (events[name].astype(kind), unit) for name, (kind, unit) in _EVENT_COLUMNS.items()}
    cards: dict[str, object] = {
        "HDUCLAS1": "EVENTS",
        "CREATOR": "dask_bkg simulation",
        "ORIGIN": "simulated",
        "TELESCOP": "VERITAS",
        "INSTRUME": "simulated",
        "RADECSYS": "FK5",
        "EQUINOX": 2000.0,
        "EUNIT": "TeV",
    }
    return Table("EVENTS", columns, GADF | cards | _TIME_CARDS | {**run_cards} | _SITE_CARDS)


def _gti_table(run: SimulatedRun, run_cards: Mapping[str, tuple]) -> Table:
    start, stop = np.array(run.gti).T
    cards = {"HDUCLAS1": "GTI"} | {key: run_cards[key] for key in ("OBS_ID", "TSTART", "TSTOP")}
    return Table("GTI", {"START": (start, "s"), "STOP": (stop, "s")}, GADF | cards | _TIME_CARDS)


def _hdu_index(runs: Sequence[SimulatedRun], hdus: Sequence[tuple[str, str, str]]) -> Table:
    rows = [
        (run.obs_id, kind, hdu_class, DATA_DIR, run_path(Path(), run.obs_id).name, name)
        for run in runs
        for kind, hdu_class, name in hdus
    ]
    names = ("OBS_ID", "HDU_TYPE", "HDU_CLASS", "FILE_DIR", "FILE_NAME", "HDU_NAME")
    columns = {name: (np.array(values), None) for name, values in zip(names, zip(*rows, strict=True), strict=True)}
    return Table("HDU_INDEX", columns, GADF | {"HDUCLAS1": "INDEX", "HDUCLAS2": "HDU"})


def _obs_index(runs: Sequence[SimulatedRun], cards: Sequence[Mapping[str, tuple]], counts: Sequence[int]) -> Table:
    columns = {name: (np.array([c[name][0] for c in cards]), _unit(cards[0][name][1])) for name in _INDEX_CARDS}
    columns["ZEN_PNT"] = (np.array([run.zenith for run in runs]), "deg")
    columns["EVENT_COUNT"] = (np.array(counts), None)
    kind = {"HDUCLAS1": "INDEX", "HDUCLAS2": "OBS", "TELESCOP": "VERITAS"}
    return Table("OBS_INDEX", columns, GADF | kind | _TIME_CARDS | _SITE_CARDS)


def _unit(comment: str) -> str | None:
    """Unit in the comment of a card, where FITS has no other place for it."""
    return comment[comment.index("[") + 1 : comment.index("]")] if "[" in comment else None


def _write_fits(path: Path, tables: Sequence[Table]) -> None:
    """Write gzipped FITS without time and file name in the gzip header: the same data are the same bytes."""
    # level 1: event lists are noise, which no level compresses much further
    with path.open("wb") as file, gzip.GzipFile("", "wb", 1, file, mtime=0) as zipped:
        zipped.write(fits_bytes(tables))


def fits_bytes(tables: Sequence[Table]) -> bytes:
    """Return an uncompressed FITS file with these tables.

    With an HDU object for each table a simulation would take four to seven times as long.  Here astropy makes the
    header of each kind of table once, and for each further table it formats only those cards that are new.

    Examples
    --------
    >>> len(fits_bytes([Table("GTI", {"START": (np.array([0.0]), "s")}, {"TIMEUNIT": "s"})]))
    8640
    """
    return b"".join([_PRIMARY_HDU, *map(_table_bytes, tables)])


def _table_bytes(table: Table) -> bytes:
    fields = [(name, values.dtype, values.shape[1:]) for name, (values, _) in table.columns.items()]
    units = tuple(unit for _, unit in table.columns.values())
    record, header = _layout(table.name, np.dtype(fields), units, tuple(table.cards))
    first, _ = next(iter(table.columns.values()))
    rows = np.empty(len(first), record)
    for name, (values, _) in table.columns.items():
        rows[name] = values
    cards = {"NAXIS2": len(rows), **table.cards}
    texts = {key: _card(key, *(card if isinstance(card, tuple) else (card,))) for key, card in cards.items()}
    data = rows.tobytes()
    return "".join((header | texts).values()).encode() + data + bytes(-len(data) % BLOCK_SIZE)


@lru_cache(maxsize=32)
def _layout(
    name: str, kind: np.dtype, units: tuple[str | None, ...], keywords: tuple[str, ...]
) -> tuple[np.dtype, dict[str, str]]:
    """Return the big-endian type of the rows of a table, and its header.

    Parameters
    ----------
    name
        Name of the HDU.
    kind
        Type of the rows in memory, a field for each column.
    units
        Units of the columns.
    keywords
        Keywords of the cards other than those of the structure.

    Returns
    -------
    record
        Type of the rows in the file.
    header
        Text of each card by keyword, and of END with the padding; numbers of rows and values of ``keywords`` are 0.
    """
    columns = []
    for column, unit in zip(fits.ColDefs(np.empty(0, kind)), units, strict=True):
        # as real files have them: formats with their number (1K, not K), dimensions where there is more than one
        number_and_type = f"{column.format.repeat}{column.format.format}"
        dim = column.dim if kind[column.name].ndim > 1 else None
        columns.append(fits.Column(column.name, number_and_type, unit, dim=dim))
    table = fits.BinTableHDU.from_columns(columns, nrows=0, name=name)
    table.header.update(dict.fromkeys(keywords, 0))
    text, size = table.header.tostring(), fits.Card.length
    cards = {key: text[size * i : size * (i + 1)] for i, key in enumerate(table.header)}
    return table.columns.dtype.newbyteorder(">"), cards | {"END": text[size * len(cards) :]}


@lru_cache(maxsize=1024, typed=True)
def _card(key: str, value: object, comment: str = "") -> str:
    return str(fits.Card(key, value, comment))
