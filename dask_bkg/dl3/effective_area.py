"""What the effective area of a run says of it: where it begins to see, and how much it sees."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_bkg.dl3.hdus import Hdu
from dask_bkg.dl3.headers import number
from dask_bkg.dl3.units import factor

OFFSET = 0.5
"""Where in the field the area is taken [deg]: usual distance of a source from the pointing."""

FRACTION = 0.1
"""Share of the largest area from which a run sees."""

INDEX = 2.7
"""Of the power law that weighs the area, that of the background."""


class AreaCurve(NamedTuple):
    """Effective area [m2] at 0.5 deg over the true energy [TeV], ascending; shape ``(energy,)`` each."""

    energy: NDArray
    area: NDArray


def declared_threshold(*headers) -> float:
    """LO_THRES or SAFE_ENERGY_LO [TeV] of the first header that has one above zero; NaN without."""
    values = [number(header, key) for header in headers for key in ("LO_THRES", "SAFE_ENERGY_LO")]
    return next((value for value in values if value > 0), float("nan"))


def area_curve(hdu: Hdu) -> AreaCurve:
    """Effective area at 0.5 deg, linear between the centres of the offset bins.

    Raises
    ------
    ValueError
        If the HDU is no table of energy, offset and area, in units of these, or the area is nowhere above zero.
    """
    if not {"ENERG_LO", "ENERG_HI", "THETA_LO", "THETA_HI", "EFFAREA"} <= hdu.columns.keys() or hdu.rows < 1:
        raise ValueError("is no table of energy, offset and area")
    low, high, theta_low, theta_high, area = (
        np.atleast_1d(hdu.column(name)[0]) for name in ("ENERG_LO", "ENERG_HI", "THETA_LO", "THETA_HI", "EFFAREA")
    )
    energy = np.sqrt(low * high) * _factor(hdu, "ENERG_LO", "TeV")
    area = area.reshape(theta_low.size, energy.size) * _factor(hdu, "EFFAREA", "m2")
    theta = (theta_low + theta_high) / 2
    curve = np.array([np.interp(OFFSET, theta, column) for column in area.T])
    if not curve.max(initial=0.0) > 0:
        raise ValueError("is nowhere above zero")
    return AreaCurve(energy, curve)


def _factor(hdu: Hdu, column: str, target: str) -> float:
    """What a column is multiplied with; without a unit it is in the wanted one."""
    try:
        return factor(hdu.unit(column) or target, target)
    except ValueError as error:
        raise ValueError(f"has its column {column} {error}") from error


def area_threshold(curve: AreaCurve) -> float:
    """Energy [TeV] where the area first reaches 10 % of its maximum, between two energies linear in ln E."""
    wanted = FRACTION * curve.area.max()
    first = int(np.argmax(curve.area >= wanted))
    if first == 0:
        return float(curve.energy[0])
    between = slice(first - 1, first + 1)
    return float(np.exp(np.interp(wanted, curve.area[between], np.log(curve.energy[between]))))


def area_integral(curve: AreaCurve) -> float:
    """Integral of the area times (E / TeV)^-2.7 over the energy [m2 TeV-1.7], by trapezia in ln E."""
    return float(np.trapezoid(curve.area * curve.energy ** (1.0 - INDEX), np.log(curve.energy)))
