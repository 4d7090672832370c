"""FITS tables as bytes.

Simulated archives of hundreds of runs are written again and again, by tests and benchmarks; headers made with astropy
would take nine tenths of that time.  Reading is left to astropy, which is a test of this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

Columns = Mapping[str, tuple[NDArray, str | None]]
"""Columns of a table by name: values, whose first axis is the rows, and unit."""

Cards = Mapping[str, object]
"""Header cards by keyword: a value, or a pair of value and comment."""

_BLOCK = 2880


def primary_hdu() -> bytes:
    """Return the empty primary HDU with which every file starts."""
    return _header([("SIMPLE", True), ("BITPIX", 8), ("NAXIS", 0), ("EXTEND", True)])


def table_hdu(name: str, columns: Columns, cards: Cards) -> bytes:
    """Return a binary table.

    Parameters
    ----------
    name
        Name of the HDU.
    columns
        The columns; their format follows from the type of their values: 64-bit integers, 32-bit or 64-bit floats,
        or text.  Values of more than one dimension become vectors, with the axes reversed as FITS counts them.
    cards
        Cards beside those of the structure.

    Returns
    -------
    hdu
        Header and data, padded to whole FITS blocks.

    Examples
    --------
    >>> len(table_hdu("GTI", {"START": (np.array([0.0]), "s")}, {"TIMEUNIT": "s"}))
    5760
    """
    arrays = {key: _big_endian(values) for key, (values, _) in columns.items()}
    rows = np.empty(
        len(next(iter(arrays.values()))), dtype=[(key, a.dtype, a.shape[1:]) for key, a in arrays.items()]
    )
    for key, array in arrays.items():
        rows[key] = array
    structure: list[tuple[str, object]] = [
        ("XTENSION", "BINTABLE"),
        ("BITPIX", 8),
        ("NAXIS", 2),
        ("NAXIS1", rows.dtype.itemsize),
        ("NAXIS2", rows.size),
        ("PCOUNT", 0),
        ("GCOUNT", 1),
        ("TFIELDS", len(arrays)),
    ]
    for i, (key, array) in enumerate(arrays.items(), start=1):
        structure += [(f"TTYPE{i}", key), (f"TFORM{i}", _format(array))]
        if columns[key][1] is not None:
            structure.append((f"TUNIT{i}", columns[key][1]))
        if array.ndim > 2:
            structure.append((f"TDIM{i}", str(array.shape[:0:-1]).replace(" ", "")))
    return _header([*structure, ("EXTNAME", name), *cards.items()]) + _pad(rows.tobytes(), b"\0")


def _big_endian(values: NDArray) -> NDArray:
    values = np.asarray(values)
    return values.astype("S") if values.dtype.kind == "U" else values.astype(values.dtype.newbyteorder(">"))


def _format(array: NDArray) -> str:
    if array.dtype.kind == "S":
        return f"{array.dtype.itemsize}A"
    letter = {"i8": "K", "f4": "E", "f8": "D"}[array.dtype.str[1:]]
    return f"{int(np.prod(array.shape[1:]))}{letter}"


def _header(cards: Iterable[tuple[str, object]]) -> bytes:
    lines = [_card(key, *(value if isinstance(value, tuple) else (value, ""))) for key, value in cards]
    return _pad("".join([*lines, "END".ljust(80)]).encode("ascii"), b" ")


def _card(key: str, value: object, comment: str) -> str:
    match value:
        case bool():
            text = f"{'T' if value else 'F':>20}"
        case str():
            text = "'" + value.replace("'", "''").ljust(8) + "'"
        case _:
            text = str(value).rjust(20).upper()
    line = f"{key:<8}= {text:<20}" + (f" / {comment}" if comment else "")
    return line[:80].ljust(80)


def _pad(data: bytes, filler: bytes) -> bytes:
    return data + filler * (-len(data) % _BLOCK)
