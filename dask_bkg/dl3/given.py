"""The background that a run of an archive has already, whoever made it, as gammapy reads it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from astropy import units as u
from numpy.typing import NDArray

from dask_bkg.dl3.attach import reads_reversed
from dask_bkg.dl3.hdus import Hdu, find_hdu, open_fits
from dask_bkg.dl3.index import Datastore
from dask_bkg.dl3.units import factor
from dask_bkg.errors import RunError

UNIT = "s-1 TeV-1 sr-1"
FILE_UNIT = "s-1 MeV-1 sr-1"
"""Unit of a rate where the file gives none, or one that astropy does not know."""

OFFSET, FIELD = (("THETA", "deg"),), (("DETY", "deg"), ("DETX", "deg"))
"""Columns of the axes after the energy: of offset, or of the field (``fov_lat``, ``fov_lon``)."""


class Given(NamedTuple):
    """A background of a file.

    Attributes
    ----------
    rate
        Node values [s-1 TeV-1 sr-1], shape ``(energy, offset)`` or ``(energy, fov_lat, fov_lon)``.
    axes
        Bin edges of these axes [TeV], [deg].
    alignment
        Frame of a field, ``radec`` or ``altaz``; of rings ``radec``, which says nothing.
    tiny
        What gammapy takes for a rate of zero [s-1 TeV-1 sr-1]: the smallest float of the type that the file has.
    """

    rate: NDArray
    axes: tuple[NDArray, ...]
    alignment: str
    tiny: float


def read_given(store: Datastore, obs_id: int, events: str = "") -> Given:
    """The background that the index of an archive names for a run.

    Parameters
    ----------
    store
        The archive.
    obs_id
        The run.
    events
        File of its events, which decides whether gammapy mirrors a 3D background; that of the archive by default.

    Raises
    ------
    RunError
        If there is none, or it cannot be read.
    """
    place = store.location(obs_id, "bkg")
    if place is None:
        raise RunError(f"run {obs_id}: the index of {store.directory} has no row of type 'bkg' for it")
    with open_fits(place.path, obs_id) as hdus:
        hdu = find_hdu(hdus, place.hdu, "BKG", obs_id, place.path)
        try:
            given = _read(hdu, obs_id, place.path)
        except ValueError as error:
            raise RunError(
                f"run {obs_id}: the background {hdu.name} of {place.path} cannot be used, as {error}: correct it"
            ) from error
    if len(given.axes) == 3:
        found = store.location(obs_id, "events")
        path = events or (found.path if found else "")
        if path and reads_reversed(path):
            energy, lat, lon = given.axes
            return given._replace(rate=given.rate[..., ::-1], axes=(energy, lat, -lon[::-1]), alignment="radec")
    return given


def _read(hdu: Hdu, obs_id: int, path: str) -> Given:
    """A background from its table."""
    names = FIELD if "DETX_LO" in hdu.columns else OFFSET
    wanted = ["ENERG_LO", "ENERG_HI", *(f"{name}_{end}" for name, _ in names for end in ("LO", "HI"))]
    name = "BKG" if "BKG" in hdu.columns else "BGD"
    if missing := [column for column in (*wanted, name) if column not in hdu.columns]:
        raise RunError(
            f"run {obs_id}: the background {hdu.name} of {path} has no column {', '.join(missing)}: a table of GADF "
            "has ENERG_LO/HI; THETA_LO/HI, or DETX_LO/HI and DETY_LO/HI; and BKG"
        )
    axes = tuple(_edges(hdu, axis, unit) for axis, unit in (("ENERG", "TeV"), *names))
    raw = hdu.raw_column(name)[0]
    unit = hdu.unit(name)
    # gammapy takes a unit that cannot be read for this one too
    unknown = isinstance(u.Unit(unit, parse_strict="silent"), u.UnrecognizedUnit)
    scale = _factor(name, FILE_UNIT if unknown else unit or FILE_UNIT, UNIT)
    # the file is read in the order of FITS, energy first; older files of H.E.S.S. have it the other way round
    values = np.asarray(raw, dtype=float).T
    shape = tuple(axis.size - 1 for axis in axes)
    order = (shape[0], *shape[:0:-1])
    if values.shape != order:
        values = values.T
    if values.shape != order:
        raise RunError(f"run {obs_id}: the background of {path} has shape {values.shape}, its axes {order}")
    values = np.moveaxis(values, 1, -1) if len(axes) == 3 else values
    tiny = float(np.finfo(raw.dtype).tiny) if raw.dtype.kind == "f" else float(np.finfo(float).tiny)
    alignment = str(hdu.header.get("FOVALIGN", "RADEC")).strip().lower()
    return Given(values * scale, axes, alignment if len(axes) == 3 else "radec", tiny * scale)


def _edges(hdu: Hdu, axis: str, unit: str) -> NDArray:
    low, high = (np.atleast_1d(hdu.column(f"{axis}_{end}")[0]) for end in ("LO", "HI"))
    return np.append(low, high[-1]) * _factor(f"{axis}_LO", hdu.unit(f"{axis}_LO") or unit, unit)


def _factor(column: str, unit: str, target: str) -> float:
    """What a column is multiplied with."""
    try:
        return factor(unit, target)
    except ValueError as error:
        raise ValueError(f"the column {column} is {error}") from error
