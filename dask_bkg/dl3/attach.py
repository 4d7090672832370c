"""Put a background into a run's file, and leave every other byte of it alone.

A FITS file is cut into its HDUs as ranges of bytes; the backgrounds are left out, the new one is appended, and
the rest is copied as it is. `astropy.io.fits` writes an HDU again once its data were touched, which is why it is
only used here to read headers and to make the new HDU.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from astropy.io import fits

from dask_bkg.dl3.atomic import atomic_path, write_pieces
from dask_bkg.errors import RunError

__all__ = [
    "Piece",
    "attach_background",
    "digests",
    "has_background",
    "other_hdus_digest",
    "read_fits_bytes",
    "split_hdus",
    "unreadable",
    "write_background",
]

BLOCK = 2880
CARD = 80
GADF_URL = "https://github.com/open-gamma-ray-astro/gamma-astro-data-formats"
HDU_NAME = "BACKGROUND"


class Piece(NamedTuple):
    """One HDU of a file: its header, and all of its bytes filled up to whole FITS blocks."""

    header: fits.Header
    raw: memoryview | bytes

    @property
    def name(self) -> str:
        """EXTNAME in capitals; empty where there is none."""
        return str(self.header.get("EXTNAME", "")).strip().upper()


def attach_background(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    background_hdu: fits.BinTableHDU,
    cards: Mapping[str, Any] | None = None,
) -> str:
    """Copy the run ``source`` to ``target`` with ``background_hdu`` as its only background.

    Every HDU that is a background already (HDUCLAS2 'BKG', HDUCLAS4 'BKG_2D' or 'BKG_3D', or, without these cards,
    EXTNAME 'BACKGROUND' or 'BKG') is dropped; all others keep their bytes. ``source`` may be gzipped, whatever
    its name; ``target`` is if its name ends in ``.gz``. The two may be the same file. The same input gives the
    same bytes.

    A 3D background in a file that gammapy takes for H.E.S.S. DR1 (CREATOR 'SASH FITS::EventListWriter', HDUVERS
    '0.2' in EVENTS) is mirrored by gammapy on reading; this function does not touch EVENTS to prevent that.

    Parameters
    ----------
    source, target
        The file to read and the file to write.
    background_hdu
        A one-row table with ENERG_LO/HI, THETA_LO/HI or DETX_LO/HI and DETY_LO/HI, and BKG. It is not changed.
        The GADF cards are set, FOVALIGN is 'RADEC' unless given.
    cards
        Further header cards of the background: keyword -> value or (value, comment).

    Returns
    -------
    name
        EXTNAME of the new HDU: 'BACKGROUND', or with a number where another kind of HDU has that name.

    Raises
    ------
    RunError
        If ``source`` cannot be read, is not FITS or is truncated.
    ArchiveError
        If ``target`` cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> column = fits.Column("THETA_LO", "2E", "deg", array=[[0, 1]])
    >>> hdu = fits.BinTableHDU.from_columns([column])
    >>> path = f"{tempfile.mkdtemp()}/run.fits.gz"
    >>> fits.PrimaryHDU().writeto(path)
    >>> attach_background(path, path, hdu, cards={"BKGHOURS": (10.0, "[h] ontime")})
    'BACKGROUND'
    >>> [str(hdu.header.get("HDUCLAS4", "")) for hdu in fits.open(path)]
    ['', 'BKG_2D']
    """
    kept = [piece for piece in _read_run(source) if not _is_background(piece)]
    name = _free_name({piece.name for piece in kept})
    _write(target, [*(piece.raw for piece in kept), _background_bytes(background_hdu, name, cards)])
    return name


def write_background(
    target: str | os.PathLike[str], background_hdu: fits.BinTableHDU, cards: Mapping[str, Any] | None = None
) -> str:
    """Write a small file with ``background_hdu`` alone, and return the name of its HDU.

    The cards are those of `attach_background`; the file is gzipped if its name ends in ``.gz``.

    Raises
    ------
    ArchiveError
        If ``target`` cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> column = fits.Column("THETA_LO", "2E", "deg", array=[[0, 1]])
    >>> path = f"{tempfile.mkdtemp()}/bkg_1.fits"
    >>> write_background(path, fits.BinTableHDU.from_columns([column]))
    'BACKGROUND'
    """
    primary = split_hdus(_to_bytes(fits.PrimaryHDU()))[0]
    _write(target, [primary.raw, _background_bytes(background_hdu, HDU_NAME, cards)])
    return HDU_NAME


def has_background(path: str | os.PathLike[str], name: str, hdu_class: str) -> bool:
    """Whether a file has a background of this EXTNAME and kind (``bkg_2d``, ``bkg_3d``); False if it is unreadable.

    Examples
    --------
    >>> has_background("/no/such/file", "BACKGROUND", "bkg_2d")
    False
    """
    try:
        found = next((piece for piece in _read_run(path) if piece.name == name.strip().upper()), None)
    except RunError:
        return False
    if found is None or not _is_background(found):
        return False
    # some programs leave the kind out: then only the index tells it
    return str(found.header.get("HDUCLAS4", "")).strip().upper() in ("", hdu_class.strip().upper())


def other_hdus_digest(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """EXTNAME and SHA-256 of the bytes of every HDU that is not a background, in the order of the file.

    Raises
    ------
    RunError
        If the file cannot be read, is not FITS or is truncated.

    Examples
    --------
    >>> import tempfile
    >>> path = f"{tempfile.mkdtemp()}/a.fits"
    >>> fits.PrimaryHDU().writeto(path)
    >>> [name for name, digest in other_hdus_digest(path)]
    ['']
    """
    return digests(_read_run(path))


def digests(pieces: list[Piece]) -> list[tuple[str, str]]:
    """EXTNAME and SHA-256 of those HDUs that are not backgrounds."""
    others = (piece for piece in pieces if not _is_background(piece))
    return [(piece.name, hashlib.sha256(piece.raw).hexdigest()) for piece in others]


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
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "a.fits")
    >>> _ = path.write_bytes(gzip.compress(b"SIMPLE"))
    >>> read_fits_bytes(path)
    b'SIMPLE'
    """
    data = Path(path).read_bytes()
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        return gzip.decompress(data)
    except EOFError as error:
        raise ValueError("is truncated: its gzip stream ends early") from error
    except (gzip.BadGzipFile, zlib.error) as error:
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
    >>> [len(piece.raw) for piece in split_hdus(_to_bytes(fits.PrimaryHDU()))]
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
    cards = range(start, len(data) - CARD + 1, CARD)
    end = next((at + CARD for at in cards if data[at : at + CARD].rstrip() == b"END"), None)
    if end is None:
        raise ValueError(f"is truncated: it ends inside the header of {label}")
    header = fits.Header.fromstring(data[start:end].decode("latin-1"))
    try:
        size = _data_size(header)
    except (KeyError, TypeError, ValueError, fits.VerifyError) as error:
        raise ValueError(f"is damaged: the header of {label} does not give the size of its data ({error})") from error
    body = _round_up(end)
    if size and body + size > len(data):
        name = header.get("EXTNAME", "no EXTNAME")
        raise ValueError(f"is truncated: {body + size - len(data)} bytes of {label} ({name}) are missing")
    stop = _round_up(body + size)
    return Piece(header, _filled(data, start, stop, blank=not size or header.get("XTENSION") == "TABLE")), stop


def _round_up(at: int) -> int:
    return -(-at // BLOCK) * BLOCK


def _data_size(header: fits.Header) -> int:
    """Bytes of the data without filling: |BITPIX| / 8 * GCOUNT * (PCOUNT + NAXIS1 * NAXIS2 * ...)."""
    axes = [int(header[f"NAXIS{axis}"]) for axis in range(1, int(header["NAXIS"]) + 1)]
    numbers = [*axes, int(header.get("PCOUNT", 0)), int(header.get("GCOUNT", 1))]
    if min(numbers) < 0:
        raise ValueError(f"negative number among {numbers}")
    if not axes:
        return 0
    if axes[0] == 0 and header.get("GROUPS", False):  # random groups begin with an axis of length 0
        axes = axes[1:]
    return abs(int(header["BITPIX"])) // 8 * numbers[-1] * (numbers[-2] + math.prod(axes))


def _filled(data: bytes, start: int, stop: int, blank: bool) -> memoryview | bytes:
    missing = stop - len(data)
    if missing <= 0:
        return memoryview(data)[start:stop]
    return data[start:] + (b" " if blank else b"\0") * missing


def _is_background(piece: Piece) -> bool:
    header = piece.header
    if "XTENSION" not in header:  # a file cannot go without its primary HDU
        return False
    kind, kind_4 = (str(header.get(key, "")).strip().upper() for key in ("HDUCLAS2", "HDUCLAS4"))
    if kind or kind_4:
        return kind == "BKG" or kind_4 in ("BKG_2D", "BKG_3D")
    return piece.name in ("BACKGROUND", "BKG")


def _free_name(taken: set[str]) -> str:
    """Return a name that no other HDU has: readers take the first HDU of a name."""
    name, number = HDU_NAME, 1
    while name in taken:
        number += 1
        name = f"{HDU_NAME}_{number}"
    return name


def _background_bytes(hdu: fits.BinTableHDU, name: str, cards: Mapping[str, Any] | None) -> memoryview | bytes:
    hdu = hdu.copy()
    header = hdu.header
    for key in ("DATE", "CHECKSUM", "DATASUM"):  # they would change from one writing to the next, or be wrong
        header.remove(key, ignore_missing=True)
    header["HDUCLASS"] = "GADF"
    header["HDUDOC"] = GADF_URL
    header["HDUVERS"] = "0.3"
    header["HDUCLAS1"] = "RESPONSE"
    header["HDUCLAS2"] = "BKG"
    header["HDUCLAS3"] = "FULL-ENCLOSURE"
    header["HDUCLAS4"] = "BKG_2D" if "THETA_LO" in hdu.columns.names else "BKG_3D"
    header.setdefault("FOVALIGN", "RADEC")
    for key, card in (cards or {}).items():
        header[key] = card
    hdu.name = name
    return split_hdus(_to_bytes(fits.PrimaryHDU(), hdu))[1].raw


def _to_bytes(*hdus: fits.PrimaryHDU | fits.BinTableHDU) -> bytes:
    buffer = io.BytesIO()
    fits.HDUList(list(hdus)).writeto(buffer)
    return buffer.getvalue()


def _write(target: str | os.PathLike[str], pieces: list[memoryview | bytes]) -> None:
    with atomic_path(target) as temporary:
        write_pieces(temporary, pieces, compress=os.fspath(target).endswith(".gz"))


def _read_run(path: str | os.PathLike[str]) -> list[Piece]:
    try:
        return split_hdus(read_fits_bytes(path))
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise RunError(f"The file {os.fspath(path)} {error}. Get it again, or leave the run out.") from error


def unreadable(path: str | os.PathLike[str], error: OSError) -> RunError:
    """The error of a run whose file cannot be opened."""
    return RunError(
        f"The file {os.fspath(path)} cannot be read ({error.strerror}). "
        "Correct the index that names it, bring the file back, or leave the run out."
    )
