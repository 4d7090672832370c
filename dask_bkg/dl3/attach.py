"""Put a background into a run's file, and leave every other byte of it alone.

A FITS file is cut into its HDUs as ranges of bytes; the backgrounds are left out, the new one is appended, and
the rest is copied as it is. `astropy.io.fits` writes an HDU again once its data were touched, which is why it is
only used here to read headers and to make the new HDU. The one exception, a card of some event lists, is in
`dask_bkg.dl3.creator`.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
from astropy.io import fits

from dask_bkg.dl3.blocks import (
    BLOCK,
    Piece,
    header_end,
    parsed_header,
    read_fits_bytes,
    round_up,
    split_hdus,
    with_sums,
)
from dask_bkg.dl3.creator import is_events, is_mirrored, lasting_bytes, with_own_creator
from dask_bkg.errors import RunError
from dask_bkg.files import atomic_write, write_pieces
from dask_bkg.files.read import GZIP, now, patiently

GADF_URL = "https://github.com/open-gamma-ray-astro/gamma-astro-data-formats"
HDU_NAME = "BACKGROUND"

MARGIN = 4 * BLOCK
"""Bytes of the header of a background, and of what packing may add."""


def attach_background(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    background_hdu: fits.BinTableHDU,
    cards: Mapping[str, Any] | None = None,
) -> str:
    """Copy the run ``source`` to ``target`` with ``background_hdu`` as its only background.

    Every HDU that is a background already (HDUCLAS2 'BKG', HDUCLAS4 'BKG_2D' or 'BKG_3D', or, without these cards,
    EXTNAME 'BACKGROUND' or 'BKG') is dropped; all others keep their bytes, with one exception. ``source`` may be
    gzipped, whatever its name; ``target`` is if its name ends in ``.gz``. The two may be the same file. The same
    input gives the same bytes.

    The exception: gammapy mirrors every 3D background of a file that it takes for H.E.S.S. DR1. With a 3D background,
    and only then, such an EVENTS header gets another CREATOR; see `dask_bkg.dl3.creator`.

    Parameters
    ----------
    source, target
        The file to read and the file to write.
    background_hdu
        A one-row table with ENERG_LO/HI, THETA_LO/HI or DETX_LO/HI and DETY_LO/HI, and BKG. It is not changed.
        The GADF cards, DATASUM and CHECKSUM are set, FOVALIGN is 'RADEC' unless given.
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
    if _kind(background_hdu) == "BKG_3D":
        kept = [with_own_creator(piece) for piece in kept]
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
    first = fits.PrimaryHDU()
    first.header.update({"DATASUM": "", "CHECKSUM": ""})
    _write(target, [with_sums(_to_bytes(first)), _background_bytes(background_hdu, HDU_NAME, cards)])
    return HDU_NAME


def tail_size(background_hdu: fits.BinTableHDU) -> int:
    """Bytes at the end of a file, packed or not, in which this background is when it was attached."""
    return round_up(background_hdu.size) + MARGIN


def tail_digest(path: str | os.PathLike[str], size: int) -> int:
    """Digest of the last bytes of a file, or of all if there are fewer; 64 bits.

    Raises
    ------
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> path = f"{tempfile.mkdtemp()}/background.fits"
    >>> _ = write_background(path, fits.BinTableHDU.from_columns([fits.Column("THETA_LO", "2E", array=[[0, 1]])]))
    >>> tail_digest(path, 1000) == tail_digest(path, 1000) != tail_digest(path, 10_000)
    True
    """
    return int.from_bytes(hashlib.blake2b(patiently(_tail, path, size), digest_size=8).digest(), signed=True)


def _tail(path: str | os.PathLike[str], size: int) -> bytes:
    with open(path, "rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - size))
        return stream.read()


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
    # some programs leave the kind out: then only the index has it
    return str(found.header.get("HDUCLAS4", "")).strip().upper() in ("", hdu_class.strip().upper())


def reads_reversed(path: str | os.PathLike[str]) -> bool:
    """Whether gammapy takes every 3D background of this run as mirrored in ``fov_lon`` (REVERSE_LON_RADEC).

    It does for event lists of H.E.S.S. DR1, see `attach_background`. A background in a file of its own
    (`write_background`) must then be written mirrored. The file is read up to the header of its EVENTS.

    Raises
    ------
    RunError
        If the file cannot be read up to there or is not FITS.

    Examples
    --------
    >>> import tempfile
    >>> path = f"{tempfile.mkdtemp()}/run.fits.gz"
    >>> hdu = fits.BinTableHDU.from_columns([fits.Column("TIME", "D")], name="EVENTS")
    >>> hdu.header.update({"CREATOR": "SASH FITS::EventListWriter", "HDUVERS": "0.2"})
    >>> hdu.writeto(path)
    >>> reads_reversed(path)
    True
    """
    try:
        events = patiently(lambda: _events_of(path))
    except (EOFError, gzip.BadGzipFile, zlib.error, ValueError) as error:
        reason = str(error) if isinstance(error, ValueError) else f"is damaged or truncated ({error})"
        raise RunError(f"The file {os.fspath(path)} {reason}. Get it again, or leave the run out.") from error
    except OSError as error:
        raise unreadable(path, error) from error
    return events is not None and is_mirrored(events)


def other_hdus_digest(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """EXTNAME and SHA-256 of every HDU that is not a background, in the order of the file.

    They cover what `attach_background` leaves as it is: all bytes of an HDU, but for the cards that it changes in an
    event list of H.E.S.S. DR1, which are left out before and after.

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
    """EXTNAME and SHA-256 of those HDUs that are not backgrounds, see `other_hdus_digest`."""
    others = (piece for piece in pieces if not _is_background(piece))
    return [(piece.name, hashlib.sha256(lasting_bytes(piece)).hexdigest()) for piece in others]


def _events_of(path: str | os.PathLike[str]) -> Piece | None:
    with open(path, "rb") as file:
        packed = file.read(2) == GZIP
        file.seek(0)
        return _find_events(gzip.GzipFile(fileobj=file) if packed else file)


def _find_events(stream: IO[bytes] | gzip.GzipFile) -> Piece | None:
    """Return the header of the first event list, without its data; None if the file has none."""
    number, block = 0, stream.read(BLOCK)
    if not block.startswith(b"SIMPLE  ="):
        raise ValueError(f"is not a FITS file: it begins with {block[:9]!r} instead of 'SIMPLE  ='")
    while block.startswith((b"SIMPLE", b"XTENSION")):
        cards, label = block, f"HDU {number}"
        while (end := header_end(cards, 0)) is None:
            block = stream.read(BLOCK)
            if not block:
                raise ValueError(f"is truncated: it ends inside the header of {label}")
            cards += block
        header, size = parsed_header(cards[:end], label)
        if is_events(piece := Piece(header, cards)):
            return piece
        stream.seek(round_up(size), os.SEEK_CUR)
        number, block = number + 1, stream.read(BLOCK)
    return None


def _is_background(piece: Piece) -> bool:
    header = piece.header
    if "XTENSION" not in header:  # a file cannot go without its primary HDU
        return False
    kind, kind_4 = (str(header.get(key, "")).strip().upper() for key in ("HDUCLAS2", "HDUCLAS4"))
    if kind or kind_4:
        return kind == "BKG" or kind_4 in ("BKG_2D", "BKG_3D")
    return piece.name in ("BACKGROUND", "BKG")


def _kind(hdu: fits.BinTableHDU) -> str:
    """HDUCLAS4 of a background."""
    return "BKG_2D" if "THETA_LO" in hdu.columns.names else "BKG_3D"


def _free_name(taken: set[str]) -> str:
    """Return a name that no other HDU has: readers take the first HDU of a name."""
    name, number = HDU_NAME, 1
    while name in taken:
        number += 1
        name = f"{HDU_NAME}_{number}"
    return name


def _background_bytes(hdu: fits.BinTableHDU, name: str, cards: Mapping[str, Any] | None) -> memoryview | bytes:
    header = hdu.header.copy()
    for key in ("DATE", "CHECKSUM", "DATASUM"):  # they would change from one writing to the next, or be wrong
        header.remove(key, ignore_missing=True)
    header.update(
        {"HDUCLASS": "GADF", "HDUDOC": GADF_URL, "HDUVERS": "0.3", "HDUCLAS1": "RESPONSE", "HDUCLAS2": "BKG"}
    )
    header.update({"HDUCLAS3": "FULL-ENCLOSURE", "HDUCLAS4": _kind(hdu)})
    header.setdefault("FOVALIGN", "RADEC")
    for key, card in (cards or {}).items():
        header[key] = card
    header["EXTNAME"] = (name, "extension name")
    header.update({"DATASUM": "", "CHECKSUM": ""})
    # as astropy writes it, which turns the bytes of a row number by number, and copies the table for it: 50 ms in 3D
    rows = hdu.data.view(np.ndarray)
    data = rows.astype(rows.dtype.newbyteorder(">")).tobytes()
    return with_sums(header.tostring().encode("ascii") + data.ljust(round_up(len(data)), b"\0"))


def _to_bytes(*hdus: fits.PrimaryHDU | fits.BinTableHDU) -> bytes:
    buffer = io.BytesIO()
    fits.HDUList(list(hdus)).writeto(buffer)
    return buffer.getvalue()


def _write(target: str | os.PathLike[str], pieces: list[memoryview | bytes]) -> None:
    atomic_write(target, lambda path: write_pieces(path, pieces, compress=os.fspath(target).endswith(".gz")))


def _read_run(path: str | os.PathLike[str]) -> list[Piece]:
    try:
        return split_hdus(read_fits_bytes(path))
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise RunError(f"The file {os.fspath(path)} {error}. Get it again, or leave the run out.") from error


def unreadable(path: str | os.PathLike[str], error: OSError) -> RunError:
    """The error of a run whose file cannot be opened."""
    remedy = "Correct the index that names it, bring the file back, or leave the run out"
    remedy = "Run the job again" if now(error) else remedy
    return RunError(f"The file {os.fspath(path)} cannot be read{now(error)} ({error.strerror}). {remedy}.")
