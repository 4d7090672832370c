"""A FITS file as ranges of bytes: its HDUs, where their headers end, how long their data are, their checksums."""

from __future__ import annotations

import math
import os
import zlib
from typing import NamedTuple

import numpy as np
from astropy.io import fits

from dask_bkg.files.read import read_unpacked

BLOCK = 2880
"""Headers and data are filled up to a multiple of this."""

CARD = 80

_PUNCTUATION = frozenset(b":;<=>?@[\\]^_`")
"""What lies between the digits and letters of ASCII, and may not be in a checksum."""


class Piece(NamedTuple):
    """One HDU of a file: its header, and all of its bytes filled up to whole FITS blocks."""

    header: fits.Header
    raw: memoryview | bytes

    @property
    def name(self) -> str:
        """EXTNAME in capitals; empty where there is none."""
        return str(self.header.get("EXTNAME", "")).strip().upper()


def read_fits_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read a whole file, decompressed if it begins like gzip (names lie).

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If the gzip stream is damaged or ends early.

    Examples
    --------
    >>> import gzip, pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "a.fits")
    >>> _ = path.write_bytes(gzip.compress(b"SIMPLE"))
    >>> read_fits_bytes(path)
    b'SIMPLE'
    """
    try:
        return read_unpacked(path)
    except EOFError as error:
        raise ValueError("is truncated: its gzip stream ends early") from error
    except OverflowError as error:
        raise ValueError(f"is too large: {error}") from error
    except zlib.error as error:
        raise ValueError(f"is damaged: its gzip stream cannot be read ({error})") from error


def split_hdus(data: bytes) -> list[Piece]:
    """Cut the contents of a FITS file into its HDUs.

    A last block that is not filled up, which some programs write, is filled up here.

    Raises
    ------
    ValueError
        If ``data`` is not FITS, is truncated, or goes on with something else after its last HDU.

    Examples
    --------
    >>> [len(piece.raw) for piece in split_hdus(fits.PrimaryHDU().header.tostring().encode())]
    [2880]
    """
    if not data.startswith(b"SIMPLE  ="):
        raise ValueError(f"is not a FITS file: it begins with {data[:9]!r} instead of 'SIMPLE  ='")
    pieces: list[Piece] = []
    start = 0
    while start < len(data):
        # Tape drives filled files up with zeros; anything else here may be an HDU that was damaged.
        if pieces and data[start : start + 8] != b"XTENSION":
            if data[start:].strip(b"\0 "):
                raise ValueError(f"is damaged: byte {start} is neither the end nor the begin of HDU {len(pieces)}")
            break
        piece, start = _cut(data, start, f"HDU {len(pieces)}")
        pieces.append(piece)
    return pieces


def _cut(data: bytes, start: int, label: str) -> tuple[Piece, int]:
    """Return the HDU that begins at ``start`` and the byte where the next one begins."""
    end = header_end(data, start)
    if end is None:
        raise ValueError(f"is truncated: it ends inside the header of {label}")
    header, size = parsed_header(data[start:end], label)
    body = round_up(end)
    if size and body + size > len(data):
        name = header.get("EXTNAME", "no EXTNAME")
        raise ValueError(f"is truncated: {body + size - len(data)} bytes of {label} ({name}) are missing")
    stop = round_up(body + size)
    return Piece(header, _filled(data, start, stop, blank=not size or header.get("XTENSION") == "TABLE")), stop


def _filled(data: bytes, start: int, stop: int, blank: bool) -> memoryview | bytes:
    missing = stop - len(data)
    if missing <= 0:
        return memoryview(data)[start:stop]
    return data[start:] + (b" " if blank else b"\0") * missing


def round_up(at: int) -> int:
    """The end of the block in which a byte range ends.

    Examples
    --------
    >>> round_up(0), round_up(1), round_up(2880)
    (0, 2880, 2880)
    """
    return -(-at // BLOCK) * BLOCK


def header_end(data: bytes, start: int) -> int | None:
    """Byte after the END card of the header that begins at ``start``; None if it does not end in ``data``.

    Examples
    --------
    >>> header_end(b"SIMPLE".ljust(80) + b"END".ljust(80), 0)
    160
    """
    cards = range(start, len(data) - CARD + 1, CARD)
    return next((at + CARD for at in cards if data[at : at + CARD].rstrip() == b"END"), None)


def data_size(header: fits.Header) -> int:
    """Bytes of the data without filling: |BITPIX| / 8 * GCOUNT * (PCOUNT + NAXIS1 * NAXIS2 * ...).

    Raises
    ------
    KeyError, TypeError, ValueError, astropy.io.fits.VerifyError
        If the header does not say, or says nonsense.
    """
    axes = [int(header[f"NAXIS{axis}"]) for axis in range(1, int(header["NAXIS"]) + 1)]
    numbers = [*axes, int(header.get("PCOUNT", 0)), int(header.get("GCOUNT", 1))]
    if min(numbers) < 0:
        raise ValueError(f"negative number among {numbers}")
    if not axes:
        return 0
    if axes[0] == 0 and header.get("GROUPS", False):  # random groups begin with an axis of length 0
        axes = axes[1:]
    return abs(int(header["BITPIX"])) // 8 * numbers[-1] * (numbers[-2] + math.prod(axes))


def parsed_header(cards: bytes, label: str) -> tuple[fits.Header, int]:
    """A header, and the size of its data without filling.

    Parameters
    ----------
    cards
        Its bytes, with END.
    label
        What it is called if it is damaged.

    Raises
    ------
    ValueError
        If it does not give the size of the data.
    """
    header = fits.Header.fromstring(cards.decode("latin-1"))
    try:
        return header, data_size(header)
    except (KeyError, TypeError, ValueError, fits.VerifyError) as error:
        raise ValueError(f"is damaged: the header of {label} does not give the size of its data ({error})") from error


def checksum(hdu: bytes | bytearray) -> bytes:
    """Value of the CHECKSUM card of an HDU in which that card says '0000000000000000'.

    The sum of the whole HDU, in ones' complement of 32 bits, is then minus zero (FITS 4.0, appendix J).

    Parameters
    ----------
    hdu
        Header and data, filled up to whole blocks.

    Examples
    --------
    >>> checksum(bytes(2880))
    b'orrrrooooooooooo'
    """
    total = _sum(hdu)
    encoded = bytearray(16)
    for column, byte in enumerate((~total & 0xFFFFFFFF).to_bytes(4, "big")):
        encoded[column::4] = _four_characters(byte)
    # the value of a card begins at its twelfth byte, the last one of a word
    return bytes(encoded[-1:] + encoded[:-1])


def with_sums(hdu: bytes | memoryview) -> bytes:
    """An HDU with the right values in its cards DATASUM and CHECKSUM, which it has.

    The comments have no date: equal HDUs have equal bytes.  (`astropy.io.fits` takes half a second for a 3D
    background.)

    Examples
    --------
    >>> import io
    >>> hdu = fits.ImageHDU(np.arange(3, dtype=np.int16))
    >>> hdu.header.update({"DATASUM": "", "CHECKSUM": ""})
    >>> file = io.BytesIO()
    >>> fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(file)
    >>> whole = with_sums(file.getvalue()[2880:])
    >>> fits.ImageHDU.fromstring(whole, checksum=True).verify_checksum()
    1
    """
    raw = bytearray(hdu)
    end = header_end(bytes(raw), 0)
    assert end is not None
    place = {bytes(raw[at : at + 8]).rstrip(): at for at in range(0, end, CARD)}
    values = {b"DATASUM": lambda: b"%d" % _sum(raw[round_up(end) :]), b"CHECKSUM": lambda: checksum(raw)}
    for name in values:
        raw[place[name] : place[name] + CARD] = sum_card(name, b"0" * 16)
    for name, value in values.items():
        raw[place[name] : place[name] + CARD] = sum_card(name, value())
    return bytes(raw)


def sum_card(name: bytes, value: bytes) -> bytes:
    """A card DATASUM or CHECKSUM."""
    what = {b"DATASUM": b"data unit checksum", b"CHECKSUM": b"HDU checksum"}[name]
    return (b"%-8s= %-20s / %s" % (name, b"'%s'" % value, what)).ljust(CARD)


def _sum(data: bytes | bytearray) -> int:
    """Sum of 32-bit words in ones' complement."""
    total = int(np.frombuffer(data, ">u4").sum(dtype=np.uint64))
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


def _four_characters(byte: int) -> list[int]:
    """Digits and letters whose codes, less that of '0', add up to a byte."""
    codes = [byte // 4 + ord("0")] * 4
    codes[0] += byte % 4
    while not _PUNCTUATION.isdisjoint(codes):
        for i in (0, 2):
            if not _PUNCTUATION.isdisjoint(codes[i : i + 2]):
                codes[i], codes[i + 1] = codes[i] + 1, codes[i + 1] - 1
    return codes
