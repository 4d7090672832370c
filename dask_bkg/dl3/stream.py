"""HDUs of a FITS file one after the other, no further than needed, each byte unpacked once.

The runs of an archive are gzipped, and what is wanted of them stands in front.  astropy unpacks a file again from its
beginning for each table that is read, and takes 3 ms for the headers of a run; unpacking it once, forwards, and
parsing cards and columns here takes a third of that.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from dask_bkg.dl3.cards import CARD, Card, integer, number, parse_cards, text
from dask_bkg.errors import RunError

BLOCK = 2880
CHUNK = 1 << 18
"""Bytes of a file that are read at once."""

GZIP = 31
"""What zlib calls gzip with a check sum."""

NUMBERS = {"B": "u1", "I": ">i2", "J": ">i4", "K": ">i8", "E": ">f4", "D": ">f8"}
WIDTHS = {"L": 1, "A": 1, "B": 1, "I": 2, "J": 4, "K": 8, "E": 4, "D": 8, "C": 8, "M": 16, "P": 8, "Q": 16}
FORM = re.compile(r"\s*(\d*)([LAXBIJKEDCMPQ])")
BROKEN = (OSError, EOFError, zlib.error, TypeError, IndexError, ValueError)
"""What a file that is damaged can raise."""


@dataclass(frozen=True)
class Column:
    """A column of a binary table: its number, its first byte in a row, how many values of which TFORM letter."""

    number: int
    offset: int
    repeat: int
    kind: str


@dataclass(frozen=True, eq=False)
class Hdu:
    """One HDU: the cards of its header by their keyword in capitals, and the bytes of its data without filling."""

    header: Mapping[str, Card]
    data: bytes

    @property
    def name(self) -> str:
        """EXTNAME in capitals, empty where there is none."""
        return text(self.header, "EXTNAME").upper()

    @cached_property
    def columns(self) -> dict[str, Column]:
        """Columns of a binary table by their name in capitals; none for another HDU."""
        if text(self.header, "XTENSION") != "BINTABLE":
            return {}
        columns: dict[str, Column] = {}
        offset = 0
        for i in range(1, integer(self.header, "TFIELDS") + 1):
            form = FORM.match(text(self.header, f"TFORM{i}"))
            if form is None:
                raise ValueError(f"TFORM{i} is {text(self.header, f'TFORM{i}')!r}")
            repeat, kind = int(form[1] or 1), form[2]
            columns.setdefault(text(self.header, f"TTYPE{i}").upper(), Column(i, offset, repeat, kind))
            offset += -(-repeat // 8) if kind == "X" else repeat * WIDTHS[kind]
        return columns

    @property
    def rows(self) -> int:
        """Number of rows of a table."""
        return integer(self.header, "NAXIS2", 0)

    def unit(self, name: str) -> str:
        """Unit of a column, empty where it has none."""
        return text(self.header, f"TUNIT{self.columns[name].number}")

    def column(self, name: str) -> NDArray:
        """A column of numbers, shape ``(rows,)`` or ``(rows, repeat)``, float.

        Raises
        ------
        ValueError
            If it holds no numbers, or not the same number of them in each row.
        """
        column = self.columns[name]
        if column.kind not in NUMBERS:
            raise ValueError(f"column {name} is no number (TFORM {column.kind})")
        dtype, width = np.dtype(NUMBERS[column.kind]), integer(self.header, "NAXIS1")
        shape, strides = (self.rows, column.repeat), (width, dtype.itemsize)
        values = np.ndarray(shape, dtype, self.data, column.offset, strides).astype(float)
        scale, zero = (number(self.header, f"{key}{column.number}", x) for key, x in (("TSCAL", 1.0), ("TZERO", 0.0)))
        if (scale, zero) != (1.0, 0.0):
            values = values * scale + zero
        return values[:, 0] if column.repeat == 1 else values


class _Stream:
    """What is in a file, gzipped or not, read forwards; only the unread end of the last piece is held."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._held = file, b""
        self._zip = zlib.decompressobj(GZIP) if file.read(2) == b"\x1f\x8b" else None
        file.seek(0)

    def read(self, size: int) -> bytes:
        """That many bytes, fewer at the end; piece by piece, as a damaged header may ask for more than there is."""
        parts, length = [self._held], len(self._held)
        while length < size and (part := self._more()):
            parts.append(part)
            length += len(part)
        whole = b"".join(parts)
        self._held = whole[size:]
        return whole[:size]

    def _more(self) -> bytes:
        """The next piece, empty at the end."""
        while piece := self._file.read(CHUNK):
            if self._zip is None:
                return piece
            part = self._zip.decompress(piece)
            # a file may be several gzip streams, and end in zeros
            while rest := self._zip.unused_data.lstrip(b"\0"):
                self._zip = zlib.decompressobj(GZIP)
                part += self._zip.decompress(rest)
            if part:
                return part
        if self._zip is not None and not self._zip.eof:
            raise EOFError("its gzip stream ends early")
        return b""


@dataclass
class Hdus:
    """The HDUs of an open file, read as far as they were asked for."""

    _rest: Iterator[Hdu]
    read: list[Hdu] = field(default_factory=list)

    def __iter__(self) -> Iterator[Hdu]:
        yield from self.read
        for hdu in self._rest:
            self.read.append(hdu)
            yield hdu


@contextmanager
def open_fits(path: str, obs_id: int) -> Iterator[Hdus]:
    """A FITS file (gzipped or not), with `RunError` for everything that can be wrong with it."""
    try:
        with open(path, "rb") as file:
            yield Hdus(_hdus(_Stream(file)))
    except FileNotFoundError:
        raise RunError(
            f"run {obs_id}: the index names {path}, which does not exist: restore it or repair the index"
        ) from None
    except BROKEN as error:
        raise RunError(f"run {obs_id}: {path} is not a whole FITS file ({error}): copy it again") from error


def find_hdu(hdus: Hdus, name: str, hdu_class: str, obs_id: int, path: str) -> Hdu:
    """The HDU of a name, or the first of a class (``EVENTS``, ``GTI``, ``EFF_AREA``)."""
    for hdu in hdus:
        classes = (hdu.header.get("HDUCLAS1"), hdu.header.get("HDUCLAS2"), hdu.name)
        if (hdu.name == name.strip().upper()) if name else (hdu_class in classes):
            return hdu
    raise RunError(
        f"run {obs_id}: {path} has no {name or hdu_class} HDU (it has {', '.join(h.name for h in hdus)}); "
        "a DL3 file needs EVENTS and GTI: if it was cut short or damaged, copy it again"
    )


def _hdus(stream: _Stream) -> Iterator[Hdu]:
    """HDUs of a stream, as long as there are any; what stands behind the last one is not looked at."""
    block, begin = stream.read(BLOCK), b"SIMPLE  ="
    if not block.startswith(begin):
        raise ValueError(f"it begins with {block[:9]!r} instead of {begin!r}")
    while block.startswith(begin):
        begin = b"XTENSION="
        cards = [block]
        while not _ends(cards[-1]):
            cards.append(stream.read(BLOCK))
            if len(cards[-1]) < BLOCK:
                raise EOFError("it ends within a header")
        header = parse_cards(b"".join(cards))
        size = _data_size(header)
        data = stream.read(-(-size // BLOCK) * BLOCK)
        if len(data) < size:
            raise EOFError(f"{size - len(data)} bytes of {header.get('EXTNAME', 'its first HDU')} are missing")
        yield Hdu(header, data[:size])
        block = stream.read(BLOCK)


def _ends(block: bytes) -> bool:
    """Whether a block of a header holds its last card."""
    return any(block[at : at + CARD].rstrip() == b"END" for at in range(0, len(block), CARD))


def _data_size(header: Mapping[str, Card]) -> int:
    """Bytes of the data without filling: |BITPIX| / 8 * GCOUNT * (PCOUNT + NAXIS1 * NAXIS2 * ...)."""
    axes = [integer(header, f"NAXIS{axis}") for axis in range(1, integer(header, "NAXIS") + 1)]
    values = integer(header, "PCOUNT", 0) + (math.prod(axes) if axes else 0)
    size = abs(integer(header, "BITPIX")) // 8 * integer(header, "GCOUNT", 1) * values
    if size < 0:
        raise ValueError(f"the size of the data is negative: {size} bytes")
    return size
