"""The table of a background as GADF wants it, with astropy alone: the workers that write need no gammapy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from dask_bkg.binning import ALIGNMENTS, Edges, FieldEdges

FILE_UNIT = "s-1 MeV-1 sr-1"
TEV_TO_MEV = 1e-6
"""A rate per TeV times this is the rate per MeV."""


def background_table(
    rate: NDArray,
    edges: Edges | FieldEdges,
    cards: Mapping[str, tuple[Any, str]] | None = None,
    alignment: str = "RADEC",
    mirror: bool = False,
) -> fits.BinTableHDU:
    """One-row table of a background.

    Parameters
    ----------
    rate
        Node values [s-1 TeV-1 sr-1], shape ``(energy, offset)`` or ``(energy, fov_lat, fov_lon)``.
    edges
        Bin edges [TeV], [deg].
    cards
        More header cards, ``{keyword: (value, comment)}``.
    alignment
        Frame of the field: ``RADEC`` or ``ALTAZ``.
    mirror
        Write a field with ``fov_lon`` reversed, for a run whose 3D backgrounds gammapy takes as REVERSE_LON_RADEC
        (`dask_bkg.dl3.attach.reads_reversed`); a card MIRRORED says so.

    Returns
    -------
    hdu
        Columns ``ENERG_LO/HI``; ``THETA_LO/HI``, or ``DETX_LO/HI`` (``fov_lon``) and ``DETY_LO/HI`` (``fov_lat``);
        and ``BKG`` [s-1 MeV-1 sr-1], whose axes are in that order; and FOVALIGN.  The other cards of GADF are set
        where it is written (`dask_bkg.dl3.attach`).

    Raises
    ------
    ValueError
        If the alignment is another one, or is to be mirrored and is not RADEC: gammapy reverses in that frame.

    Examples
    --------
    >>> hdu = background_table(np.ones((2, 1)), Edges(np.array([0.1, 1, 10]), np.array([0, 2.5])))
    >>> hdu.columns.names
    ['ENERG_LO', 'ENERG_HI', 'THETA_LO', 'THETA_HI', 'BKG']
    >>> field = FieldEdges(np.array([0.1, 1, 10]), np.linspace(-2.5, 2.5, 6))
    >>> background_table(np.ones(field.shape), field, alignment="ALTAZ").columns["BKG"].dim
    '(2,5,5)'
    """
    _check(alignment, mirror)
    values = np.asarray(rate, dtype=float)
    axes = {"ENERG": (edges.energy, "TeV")}
    if isinstance(edges, FieldEdges):
        axes |= {"DETX": (-edges.fov[::-1] if mirror else edges.fov, "deg"), "DETY": (edges.fov, "deg")}
        values = values[..., ::-1] if mirror else values
    else:
        axes |= {"THETA": (edges.offset, "deg")}
    # GADF counts axes as FITS does, the first runs fastest: (energy, DETX, DETY) is our (fov_lat, fov_lon, energy)
    values = np.moveaxis(values, 0, -1)[np.newaxis] * TEV_TO_MEV
    dim = str(values.shape[:0:-1]).replace(" ", "")
    column = fits.Column("BKG", f"{values[0].size}D", FILE_UNIT, dim=dim, array=values)
    hdu = fits.BinTableHDU.from_columns([*_axis_columns(axes), column])
    own: dict[str, tuple[Any, str]] = {"FOVALIGN": (alignment.upper(), "field of view aligned with")}
    if mirror and isinstance(edges, FieldEdges):
        own["MIRRORED"] = (True, "fov_lon reversed, as gammapy reads this run")
    for key, card in {**own, **(cards or {})}.items():
        hdu.header[key] = card
    return hdu


def read_rate(path: str, hdu: str | int) -> NDArray:
    """Node values that `background_table` has put into a file.

    Returns
    -------
    rate
        [s-1 TeV-1 sr-1], shape ``(energy, offset)`` or ``(energy, fov_lat, fov_lon)``.

    Examples
    --------
    >>> import tempfile
    >>> path = f"{tempfile.mkdtemp()}/background.fits"
    >>> edges = FieldEdges(np.array([0.1, 1, 10]), np.linspace(-2.5, 2.5, 6))
    >>> rate = np.arange(50.0).reshape(edges.shape)
    >>> background_table(rate, edges, mirror=True).writeto(path)
    >>> bool(np.allclose(read_rate(path, 1), rate))
    True
    """
    with fits.open(path, memmap=False) as hdus:
        values = np.moveaxis(hdus[hdu].data["BKG"][0].astype(float), -1, 0) / TEV_TO_MEV
        return values[..., ::-1] if hdus[hdu].header.get("MIRRORED") else values


def _check(alignment: str, mirror: bool) -> None:
    accepted = [name.upper() for name in ALIGNMENTS]
    if alignment.upper() not in accepted:
        raise ValueError(f"alignment {alignment!r} of a background: accepted are {' and '.join(accepted)}")
    if mirror and alignment.upper() != "RADEC":
        raise ValueError(
            f"a background with alignment {alignment!r} cannot be written mirrored: gammapy reads it as RADEC; "
            "write RADEC, or attach it to a copy of the run"
        )


def _axis_columns(axes: Mapping[str, tuple[NDArray, str]]) -> list[fits.Column]:
    """Columns of the lower and upper edges of each axis."""
    return [
        fits.Column(f"{name}_{end}", f"{part.size}D", unit, array=part[np.newaxis])
        for name, (edge, unit) in axes.items()
        for end, part in (("LO", np.asarray(edge[:-1], dtype=float)), ("HI", np.asarray(edge[1:], dtype=float)))
    ]
