"""The table of a background as GADF wants it, with astropy alone: the workers that write need no gammapy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from dask_bkg.schema import Edges

FILE_UNIT = "s-1 MeV-1 sr-1"
TEV_TO_MEV = 1e-6
"""A rate per TeV times this is the rate per MeV."""


def background_table(
    rate: NDArray, edges: Edges, cards: Mapping[str, tuple[Any, str]] | None = None
) -> fits.BinTableHDU:
    """One-row table of a background.

    Parameters
    ----------
    rate
        Node values [s-1 TeV-1 sr-1], shape ``(energy, offset)``.
    edges
        Bin edges [TeV], [deg].
    cards
        More header cards, ``{keyword: (value, comment)}``.

    Returns
    -------
    hdu
        Columns ``ENERG_LO/HI``, ``THETA_LO/HI`` and ``BKG`` [s-1 MeV-1 sr-1], and FOVALIGN; the other cards of GADF
        are set where it is written (`dask_bkg.dl3.attach`).

    Examples
    --------
    >>> hdu = background_table(np.ones((2, 1)), Edges(np.array([0.1, 1, 10]), np.array([0, 2.5])))
    >>> hdu.columns.names
    ['ENERG_LO', 'ENERG_HI', 'THETA_LO', 'THETA_HI', 'BKG']
    """
    axes = {"ENERG": (edges.energy, "TeV"), "THETA": (edges.offset, "deg")}
    columns = [
        fits.Column(f"{name}_{end}", f"{part.size}D", unit, array=part[np.newaxis])
        for name, (edge, unit) in axes.items()
        for end, part in (("LO", np.asarray(edge[:-1], dtype=float)), ("HI", np.asarray(edge[1:], dtype=float)))
    ]
    # GADF counts axes as FITS does, the first runs fastest
    values = np.asarray(rate, dtype=float).T[np.newaxis] * TEV_TO_MEV
    dim = str(values.shape[:0:-1]).replace(" ", "")
    columns.append(fits.Column("BKG", f"{values[0].size}D", FILE_UNIT, dim=dim, array=values))
    hdu = fits.BinTableHDU.from_columns(columns)
    for key, card in {"FOVALIGN": ("RADEC", "field of view aligned with"), **(cards or {})}.items():
        hdu.header[key] = card
    return hdu
