"""The instrument of the simulated archive: how it responds, and the tables of the files that say so.

The array is invented, of the size of VERITAS.  Background and gamma rays share its threshold and its acceptance
across the field, so that the files agree with themselves: the effective area of a run turns on where the background
of that run does, as in real archives.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

ENERGY_RANGE = (0.05, 100.0)
"""Reconstructed energies that are kept [TeV]."""

OFFSET_MAX = 3.5
"""Edge of the camera [deg]: nothing is recorded beyond it."""

ENERGY_TRUE_RANGE = (0.03, 160.0)
"""Simulated true energies [TeV]: wider than the reconstructed ones, for what migrates in."""

ENERGY_RESOLUTION = 0.1
"""Standard deviation of ln(reconstructed / true energy)."""

PSF_SIGMA = 0.06
"""Width of the Gaussian point spread function [deg]."""

GADF: dict[str, object] = {
    "HDUCLASS": "GADF",
    "HDUDOC": "https://github.com/open-gamma-ray-astro/gamma-astro-data-formats",
    "HDUVERS": "0.3",
}
"""The cards with which every HDU of the archive declares its format."""

_AREA = 1.0e5  # effective area above threshold at zenith [m2]
_EDGE, _EDGE_WIDTH = 3.0, 0.12  # the camera is cut softly around here [deg]

Columns = Mapping[str, tuple[NDArray, str | None]]
"""Values and unit of the columns of a table by name."""

Cards = Mapping[str, object]
"""Header cards by keyword: a value, or a pair of value and comment."""


class Table(NamedTuple):
    """A table of a FITS file.

    Attributes
    ----------
    name
        Name of its HDU.
    columns
        Values and unit of each column.  The first axis of the values is the rows; what has more axes is a column of
        vectors, whose axes are in reverse order in the file, as FITS counts them.
    cards
        Header cards other than those of the structure.
    """

    name: str
    columns: Columns
    cards: Cards


def energy_threshold(zenith: ArrayLike, factor: float = 1.0) -> NDArray:
    """Energy at which half of the events survive the trigger and the cuts, 0.15 TeV overhead.

    Parameters
    ----------
    zenith
        Zenith angle [deg], any shape.
    factor
        By how much it is higher than with nominal mirrors.

    Returns
    -------
    threshold
        Energies [TeV], shape of the input.

    Examples
    --------
    >>> energy_threshold([0.0, 60.0]).round(3).tolist()
    [0.15, 0.849]
    """
    return factor * (0.15 * np.cos(np.deg2rad(zenith)) ** -2.5)


def turn_on(energy: ArrayLike, zenith: ArrayLike, factor: float = 1.0) -> NDArray:
    """Share of events that survive at an energy [TeV] and zenith angle [deg]: 0 far below threshold, 1 above.

    ``factor`` as for `energy_threshold`.
    """
    return 1.0 / (1.0 + (energy_threshold(zenith, factor) / np.asarray(energy)) ** 6)


def acceptance_width(energy: ArrayLike, zenith: ArrayLike) -> NDArray:
    """Gaussian width [deg] of the acceptance; showers are seen further out at high energy and zenith angle."""
    return 1.3 * np.asarray(energy, dtype=float) ** 0.06 * np.cos(np.deg2rad(zenith)) ** -0.15


def camera_edge(offset: ArrayLike) -> NDArray:
    """Share of events at an offset [deg] that the edge of the camera leaves: 1 inside, 0 outside."""
    offset = np.asarray(offset, dtype=float)
    return np.where(offset <= OFFSET_MAX, expit((_EDGE - offset) / _EDGE_WIDTH), 0.0)


def acceptance(energy: ArrayLike, offset: ArrayLike, zenith: ArrayLike) -> NDArray:
    """Events per solid angle relative to the axis, at energy [TeV], offset [deg] and zenith angle [deg]."""
    scaled = np.asarray(offset) / acceptance_width(energy, zenith)
    return np.exp(-0.5 * scaled**2) * camera_edge(offset)


def effective_area(energy: ArrayLike, offset: ArrayLike, zenith: ArrayLike, factor: float = 1.0) -> NDArray:
    """Effective area for gamma rays.

    The light pool, and with it the area, grows with the distance to the shower.

    Parameters
    ----------
    energy
        True energy [TeV].
    offset
        Offset from the pointing [deg].
    zenith
        Zenith angle [deg]; the three broadcast.
    factor
        Of the threshold, as for `energy_threshold`.

    Returns
    -------
    area
        Effective area [m2], the broadcast shape.

    Examples
    --------
    >>> float(effective_area(10.0, 0.0, 0.0).round(-3))
    100000.0
    """
    area = _AREA * np.cos(np.deg2rad(zenith)) ** -2
    return area * turn_on(energy, zenith, factor) * acceptance(energy, offset, zenith)


def aeff_table(obs_id: int, zenith: float, azimuth: float, factor: float = 1.0) -> Table:
    """Effective area of one run as an AEFF_2D table, with its safe energy range in LO_THRES and HI_THRES.

    ``factor`` as for `energy_threshold`.
    """
    energy, offset = _log_edges(*ENERGY_TRUE_RANGE, per_decade=12), np.linspace(0.0, OFFSET_MAX, 15)
    area = effective_area(_log_centers(energy), _centers(offset)[:, None], zenith, factor)
    cards = {
        "OBS_ID": (obs_id, "run number"),
        "ZENITH": (zenith, "mean zenith angle [deg]"),
        "AZIMUTH": (azimuth, "mean azimuth [deg]"),
        "LO_THRES": (round(float(energy_threshold(zenith, factor)), 6), "[TeV]"),
        "HI_THRES": (ENERGY_RANGE[1], "[TeV]"),
    }
    axes = {"ENERG": (energy, "TeV"), "THETA": (offset, "deg")}
    return _response_table("EFFECTIVE AREA", ("EFF_AREA", "AEFF_2D"), axes, {"EFFAREA": (area, "m2")}, cards)


@lru_cache(maxsize=1)
def edisp_table() -> Table:
    """Energy dispersion as an EDISP_2D table: log-normal, without bias, the same for all runs."""
    energy, offset = np.geomspace(*ENERGY_TRUE_RANGE, 4), np.linspace(0.0, 4.0, 3)
    migra = np.linspace(0.5, 1.7, 61)
    center = _centers(migra)
    density = np.exp(-0.5 * (np.log(center) / ENERGY_RESOLUTION) ** 2)
    density /= center * ENERGY_RESOLUTION * np.sqrt(2 * np.pi)
    matrix = np.broadcast_to(density[:, None], (offset.size - 1, center.size, energy.size - 1))
    axes = {"ENERG": (energy, "TeV"), "MIGRA": (migra, None), "THETA": (offset, "deg")}
    return _response_table("ENERGY DISPERSION", ("EDISP", "EDISP_2D"), axes, {"MATRIX": (matrix, None)}, {})


@lru_cache(maxsize=1)
def psf_table() -> Table:
    """Point spread function as a PSF_3GAUSS table of which one Gaussian is used, the same for all runs."""
    energy, offset = np.geomspace(*ENERGY_TRUE_RANGE, 4), np.linspace(0.0, 4.0, 3)
    ones = np.ones((offset.size - 1, energy.size - 1))
    scale = 1.0 / (2 * np.pi * np.deg2rad(PSF_SIGMA) ** 2)
    data: dict[str, tuple[NDArray, str | None]] = {
        "SCALE": (scale * ones, "sr-1"),
        "SIGMA_1": (PSF_SIGMA * ones, "deg"),
    }
    for i in (2, 3):  # a width of zero would divide by zero in readers, an amplitude of zero does not
        data |= {f"AMPL_{i}": (0 * ones, None), f"SIGMA_{i}": (PSF_SIGMA * ones, "deg")}
    axes = {"ENERG": (energy, "TeV"), "THETA": (offset, "deg")}
    return _response_table("PSF", ("RPSF", "PSF_3GAUSS"), axes, data, {})


def background_axes() -> tuple[NDArray, NDArray]:
    """Edges of energy [TeV] and offset [deg] on which `background_table` writes the true rate."""
    return _log_edges(*ENERGY_RANGE, per_decade=40), np.linspace(0.0, OFFSET_MAX, 36)


def background_nodes() -> tuple[NDArray, NDArray]:
    """Centres of `background_axes`, between which gammapy interpolates: energy [TeV] and offset [deg]."""
    energy, offset = background_axes()
    return _log_centers(energy), _centers(offset)


def background_table(obs_id: int, rate: NDArray) -> Table:
    """True background of one run as a BKG_2D table.

    Parameters
    ----------
    obs_id
        Run number.
    rate
        Rate [s-1 TeV-1 sr-1] at the nodes of `background_nodes`, shape (n_offset, n_energy).
    """
    energy, offset = background_axes()
    axes = {"ENERG": (energy, "TeV"), "THETA": (offset, "deg")}
    cards = {"OBS_ID": (obs_id, "run number"), "FOVALIGN": ("RADEC", "alignment of the field of view")}
    data = {"BKG": (rate * 1e-6, "s-1 MeV-1 sr-1")}  # per MeV is what the format asks for
    return _response_table("BACKGROUND", ("BKG", "BKG_2D"), axes, data, cards)


def _response_table(name: str, classes: tuple[str, str], axes: Columns, data: Columns, cards: Cards) -> Table:
    """Return the one-row table of a response; ``data`` have the axes in reverse order, as FITS counts them."""
    columns: dict[str, tuple[NDArray, str | None]] = {}
    for axis, (edges, unit) in axes.items():
        columns |= {f"{axis}_LO": (edges[:-1], unit), f"{axis}_HI": (edges[1:], unit)}
    one_row = {key: (values.astype(np.float32)[None], unit) for key, (values, unit) in (columns | {**data}).items()}
    kind = {"HDUCLAS1": "RESPONSE", "HDUCLAS2": classes[0], "HDUCLAS3": "FULL-ENCLOSURE", "HDUCLAS4": classes[1]}
    return Table(name, one_row, GADF | kind | {"TELESCOP": "VERITAS", "INSTRUME": "simulated"} | {**cards})


def _log_edges(low: float, high: float, per_decade: int) -> NDArray:
    return np.geomspace(low, high, round(np.log10(high / low) * per_decade) + 1)


def _log_centers(edges: NDArray) -> NDArray:
    return np.sqrt(edges[:-1] * edges[1:])


def _centers(edges: NDArray) -> NDArray:
    return 0.5 * (edges[:-1] + edges[1:])
