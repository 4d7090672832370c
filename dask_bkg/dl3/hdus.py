"""The HDUs of a FITS file through astropy: few columns, each byte of a packed file unpacked once.

astropy unpacks a .gz again from its beginning for each table that is read; here it gets the unpacked bytes.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from dask_bkg.dl3.blocks import CARD
from dask_bkg.errors import RunError
from dask_bkg.files.read import LARGEST, read_unpacked

BROKEN = (OSError, EOFError, zlib.error, TypeError, IndexError, KeyError, ValueError, fits.VerifyError)
"""What a file that is damaged can raise."""

TOO_MANY = re.compile(rb"(NAXIS|TFIELDS) *= +(\d{4,})")
"""Axes of an image, columns of a table: the FITS standard has up to 999, and astropy counts to what the card says."""


class Hdu:
    """One HDU of an open file.

    Parameters
    ----------
    hdu
        The HDU of astropy.
    raw
        All bytes of the file.
    """

    def __init__(self, hdu: Any, raw: bytes) -> None:
        self._hdu, self._raw = hdu, raw

    @cached_property
    def header(self) -> Mapping[str, Any]:
        """Values of the cards by their keyword; of one that is there twice, the first."""
        values: dict[str, Any] = {}
        for card in self._hdu.header.cards:
            if card.keyword not in ("", "COMMENT", "HISTORY"):
                value = card.value
                values.setdefault(card.keyword, None if isinstance(value, fits.card.Undefined) else value)
        return values

    @property
    def spelled(self) -> str:
        """EXTNAME as the file has it, empty where there is none."""
        return str(self._hdu.header.get("EXTNAME", "")).strip()

    @property
    def name(self) -> str:
        """EXTNAME in capitals, empty where there is none."""
        return self.spelled.upper()

    @cached_property
    def columns(self) -> dict[str, str]:
        """Names of the columns of a table as the file writes them, by their name in capitals.

        Of names that differ in case alone the one in capitals counts, as GADF writes them, else the first.
        """
        names = getattr(getattr(self._hdu, "columns", None), "names", ())
        return {name.upper(): name for name in reversed(names)} | {name: name for name in names if name.isupper()}

    @property
    def rows(self) -> int:
        """Number of rows of a table."""
        return int(self._hdu.header.get("NAXIS2", 0))

    @property
    def data(self) -> bytes:
        """The bytes of the data, without filling."""
        info, header = self._hdu.fileinfo(), self._hdu.header
        size = header.get("NAXIS1", 0) * header.get("NAXIS2", 0) + header.get("PCOUNT", 0)
        data = self._raw[info["datLoc"] : info["datLoc"] + size]
        if len(data) < size:
            raise EOFError(f"{size - len(data)} bytes of {self.name} are missing")
        return data

    def unit(self, name: str) -> str:
        """Unit of a column, empty where it has none."""
        return str(self._hdu.columns[self.columns[name]].unit or "").strip()

    def column(self, name: str) -> NDArray:
        """A column of numbers, shape ``(rows,)`` or ``(rows, ...)``, float; NaN where an integer is TNULL.

        Raises
        ------
        ValueError
            If it holds no real numbers, or two columns have the same name.
        """
        names = self._hdu.columns.names
        twice = {each for each in names if names.count(each) > 1}
        alike = [each for each in names if each.upper() == name]
        if len(alike) > 1 and name not in alike:
            twice |= {*alike}
        if twice:
            raise ValueError(f"{self.name} has several columns {', '.join(sorted(twice))}: remove the wrong ones")
        column, values = self._hdu.columns[self.columns[name]], self.raw_column(name)
        if values.dtype.kind not in "iuf":
            raise ValueError(f"the column {name} of {self.name} holds no numbers (TFORM = {column.format!r})")
        numbers = np.asarray(values, dtype=float)
        if column.null not in (None, "") and values.dtype.kind in "iu":
            numbers = np.where(values == column.null, np.nan, numbers)
        return numbers

    def raw_column(self, name: str) -> NDArray:
        """A column of numbers in the type that the file has, shape ``(rows,)`` or ``(rows, ...)``."""
        return np.asarray(self._hdu.data[self.columns[name]])


class Hdus:
    """The HDUs of an open file, looked at as far as they were asked for."""

    def __init__(self, hdus: fits.HDUList, raw: bytes) -> None:
        self._hdus, self._raw = hdus, raw
        self._seen: dict[int, Hdu] = {}

    def __iter__(self) -> Iterator[Hdu]:
        for i in count():
            try:
                hdu = self._hdus[i]
            except IndexError:
                return
            except Exception:
                # a damaged HDU, of which astropy may raise anything, ends the file; those before it can be used
                if i == 0:
                    raise
                return
            yield self._seen.setdefault(i, Hdu(hdu, self._raw))


@contextmanager
def open_fits(path: str, obs_id: int, limit: int = LARGEST) -> Iterator[Hdus]:
    """A FITS file (gzipped or not), with `RunError` for everything that can be wrong with it."""
    try:
        raw = read_unpacked(path, limit)
        for card in TOO_MANY.finditer(raw):
            if card.start() % CARD == 0:
                raise ValueError(f"it has {card[1].decode()} = {card[2].decode()[:20]}, 999 is the most")
        with fits.open(io.BytesIO(raw), memmap=False) as hdus:
            yield Hdus(hdus, raw)
    except RunError:
        raise
    except FileNotFoundError:
        raise RunError(
            f"run {obs_id}: the index names {path}, which does not exist: restore it or repair the index"
        ) from None
    except OverflowError as error:
        raise RunError(
            f"run {obs_id}: {path} is too large ({error}): raise run_store.max_file_size if it is right"
        ) from error
    except Exception as error:
        # astropy's own OSErrors, of files that it does not understand, have no number
        if isinstance(error, OSError) and error.errno is not None:
            why = error.strerror or str(error)
            raise RunError(f"run {obs_id}: {path} cannot be read now ({why}): run the job again") from error
        # astropy and numpy raise nearly anything for a damaged header: MemoryError, AttributeError, AssertionError
        why = str(error) if isinstance(error, BROKEN) else f"{type(error).__name__}: {error}"
        raise RunError(f"run {obs_id}: {path} is not a whole FITS file ({why}): copy it again") from error


def find_hdus(hdus: Hdus, name: str, hdu_class: str, obs_id: int, path: str) -> list[Hdu]:
    """The HDUs of a name, spelled so or else in capitals, or those of a class (``EVENTS``, ``GTI``, ``EFF_AREA``).

    Raises
    ------
    RunError
        If there is none.
    """
    found, wanted = list(hdus), name.strip()
    if wanted:
        groups = [[h for h in found if h.spelled == wanted], [h for h in found if h.name == wanted.upper()]]
    else:
        named = [h for h in found if h.name == hdu_class]
        groups = [named or [h for h in found if hdu_class in (h.header.get("HDUCLAS1"), h.header.get("HDUCLAS2"))]]
    for group in groups:
        if group:
            return group
    raise RunError(
        f"run {obs_id}: {path} has no {name or hdu_class} HDU (it has {', '.join(h.name for h in found)}); "
        "a DL3 file needs EVENTS and GTI: if it was cut short or damaged, copy it again"
    )


def find_hdu(hdus: Hdus, name: str, hdu_class: str, obs_id: int, path: str) -> Hdu:
    """The first of `find_hdus`."""
    return find_hdus(hdus, name, hdu_class, obs_id, path)[0]
