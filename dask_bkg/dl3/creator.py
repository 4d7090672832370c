"""The card by which gammapy takes an event list for one of H.E.S.S. DR1, and mirrors its background.

The 3D backgrounds in the files of that release have ``fov_lon`` the wrong way round.  gammapy puts that right with
*every* 3D background of a run whose EVENTS have CREATOR 'SASH FITS::EventListWriter' and HDUVERS '0.2'
(`gammapy.data.Observation.bkg`), and so puts wrong those that are right.  Another creator prevents it.
"""

from __future__ import annotations

from collections.abc import Iterable

from astropy.io import fits

from dask_bkg import __version__
from dask_bkg.dl3.blocks import CARD, Piece, checksum, header_end, round_up, sum_card

MIRRORED = {"CREATOR": "SASH FITS::EventListWriter", "HDUVERS": "0.2"}
"""Cards of the event lists whose 3D backgrounds gammapy mirrors."""

HISTORY = f"HISTORY CREATOR was '{MIRRORED['CREATOR']}'".encode()
"""How the card begins that keeps what was there."""


def is_events(piece: Piece) -> bool:
    """Whether an HDU is an event list, by its EXTNAME or HDUCLAS1."""
    return "EVENTS" in (piece.name, str(piece.header.get("HDUCLAS1", "")).strip().upper())


def is_mirrored(piece: Piece) -> bool:
    """Whether an HDU is an event list that makes gammapy mirror 3D backgrounds.

    Examples
    --------
    >>> is_mirrored(Piece(fits.Header({"EXTNAME": "EVENTS", "CREATOR": "SASH FITS::EventListWriter"}), b""))
    False
    """
    return is_events(piece) and all(piece.header.get(key) == value for key, value in MIRRORED.items())


def with_own_creator(piece: Piece) -> Piece:
    """Return an HDU that does not make gammapy mirror: itself or, if it does, the same by another creator.

    CREATOR becomes the name and version of this program, a HISTORY card keeps what was there, a CHECKSUM card is set
    again; all other cards and all bytes of the data stay.

    Examples
    --------
    >>> header = fits.ImageHDU(name="EVENTS", header=fits.Header(MIRRORED)).header
    >>> header = with_own_creator(Piece(header, header.tostring().encode())).header
    >>> header["CREATOR"].split()[0], str(header["HISTORY"])[:40]
    ('dask_bkg', "CREATOR was 'SASH FITS::EventListWriter'")
    """
    if not is_mirrored(piece):
        return piece
    cards, data = _cards_and_data(piece.raw)
    own = fits.Card("CREATOR", f"dask_bkg {__version__}", "see HISTORY").image.encode()
    at = [_keyword(card) for card in cards].index(b"CREATOR")
    history = (HISTORY + b"; changed for a 3D background").ljust(CARD)
    raw = _with_checksum([*cards[:at], own, *_without(cards[at:], b"CREATOR"), history], data)
    return Piece(fits.Header.fromstring(raw[: header_end(raw, 0)].decode("latin-1")), raw)


def lasting_bytes(piece: Piece) -> bytes | memoryview:
    """Return what of an HDU is the same before and after `with_own_creator`: all, where that does nothing."""
    cards, data = _cards_and_data(piece.raw)
    if not (is_mirrored(piece) or any(card.startswith(HISTORY) for card in cards)):
        return piece.raw
    others = _without(cards, b"CREATOR", b"CHECKSUM")
    return b"".join([*(card for card in others if not card.startswith(HISTORY)), data])


def _cards_and_data(raw: bytes | memoryview) -> tuple[list[bytes], bytes]:
    """Cards of a header without END, and the bytes of the data."""
    hdu = bytes(raw)
    end = header_end(hdu, 0) or 0  # it was found before
    return [hdu[i : i + CARD] for i in range(0, end - CARD, CARD)], hdu[round_up(end) :]


def _keyword(card: bytes) -> bytes:
    return card[:8].rstrip().upper()


def _without(cards: Iterable[bytes], *keywords: bytes) -> list[bytes]:
    """Cards without those of some keywords, and the ones that continue those."""
    kept, dropped = [], False
    for card in cards:
        dropped = _keyword(card) in keywords or (dropped and _keyword(card) == b"CONTINUE")
        if not dropped:
            kept.append(card)
    return kept


def _with_checksum(cards: list[bytes], data: bytes) -> bytes:
    """Header and data as one; a CHECKSUM card, if there is one, is made right."""
    keywords = [_keyword(card) for card in cards]
    if b"CHECKSUM" in keywords:
        at = keywords.index(b"CHECKSUM")
        cards[at] = sum_card(b"CHECKSUM", b"0" * 16)
        cards[at] = sum_card(b"CHECKSUM", checksum(_joined(cards, data)))
    return _joined(cards, data)


def _joined(cards: list[bytes], data: bytes) -> bytes:
    header = b"".join([*cards, b"END".ljust(CARD)])
    return header.ljust(round_up(len(header))) + data
