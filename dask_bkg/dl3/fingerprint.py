"""What a run is known by: a digest of its events and good time intervals, whatever file they are in.

The time, size and hash of a file change when a background is attached to it, when it is packed or copied.  What the
tables hold and what their headers say does not; cards that programs write about themselves are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

from dask_bkg.dl3.hdus import Hdu

IGNORED = frozenset(
    (
        *("CREATOR", "ORIGIN", "AUTHOR", "DATE", "CHECKSUM", "DATASUM", "LONGSTRN", "EXTNAME", "EXTVER", "EXTLEVEL"),
        *("HDUDOC", "HDUVERS", "HDUCLASS"),
    )
)
"""Cards that say who wrote a table when, where and how, or how it is called; so does TDISPn.

Comments and the history have no value, and do not count either.
"""


def fingerprint(hdus: Iterable[Hdu]) -> str:
    """Digest of tables: of their bytes, and of the values of their cards in whatever order and layout.

    Parameters
    ----------
    hdus
        The events and the good time intervals.

    Returns
    -------
    digest
        32 hexadecimal digits.
    """
    digest = blake2b(digest_size=16)
    for hdu in hdus:
        cards = {key: card for key, card in hdu.header.items() if key not in IGNORED and not key.startswith("TDISP")}
        # 100 and 100.0 are the same number, written by two programs
        plain = (f"{key}={float(card) if isinstance(card, int) else card!r}" for key, card in sorted(cards.items()))
        digest.update("\n".join(plain).encode())
        digest.update(hdu.data)
    return digest.hexdigest()
