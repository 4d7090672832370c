"""Seeded damage of a DL3 file: what `bench_fuzz.py` does to runs.

A file is a list of HDUs, each the texts of its cards and the bytes of its data; a mutation changes one thing in it,
as programs, disks and people do.  Nothing here uses astropy or the package, so that no mistake is made twice.
Of a lie that leaves a file in agreement with itself (every second event dropped) no reader can know: there is none.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

BLOCK, CARD = 2880, 80
TYPES = {
    "L": "S1", "B": "u1", "I": ">i2", "J": ">i4", "K": ">i8", "E": ">f4", "D": ">f8", "C": ">c8", "M": ">c16",
}  # fmt: skip
STRUCTURE = (
    "SIMPLE",
    "XTENSION",
    "BITPIX",
    "NAXIS",
    "PCOUNT",
    "GCOUNT",
    "TFIELDS",
    "TTYPE",
    "TFORM",
    "TDIM",
    "EXTEND",
)
COLUMN_CARDS = re.compile(r"T(TYPE|FORM|UNIT|SCAL|ZERO|NULL|DIM|DISP)\d+")

NUMBERS = (
    *("0", "-1", "1", "1E300", "-1E300", "1E400", "NAN", "INF", "-INF", "1E-300", "999999999999999999999999"),
    *("-9223372036854775808", "4294967296", "0.1.2", "1E", "1D5"),
)
"""Texts in place of a number; some are not FITS."""

OTHER_TYPES = (
    "'text'",
    "''",
    "'1.5'",
    "T",
    "F",
    "(1.0, 2.0)",
    "",
    "'N/A'",
    "'",
    "{1}",
    "12h30m",
    "2026-01-01T00:00:00",
)

MEANINGS = {
    "TIMESYS": ("'TT'", "'UTC'", "'TAI'", "'TDB'", "'GPS'", "'LOCAL'", "'utc'", "'TCB'", "''", "'x'"),
    "TIMEUNIT": ("'s'", "'d'", "'ms'", "'min'", "'m'", "'S'", "'sec'", "'Crab'", "''"),
    "TIMEREF": ("'LOCAL'", "'BARYCENTER'", "'SOLARSYSTEM'", "'local'", "'x'"),
    "TREFPOS": ("'TOPOCENTER'", "'HELIOCENTER'", "'EMBARYCENTER'"),
    "TIMEZERO": ("0", "100.0", "-1E9", "'x'"),
    "TIMEOFFS": ("0", "86400.0"),
    "MJDREFI": ("51544", "0", "53402.5", "-1", "99999999"),
    "MJDREFF": ("0.5", "1.0", "-0.25", "1E9"),
    "MJDREF": ("53402.0", "51544.0", "0.0"),
    "RADECSYS": ("'ICRS'", "'FK5'", "'FK4'", "'GALACTIC'", "'AltAz'", "'icrs'", "''"),
    "RADESYS": ("'ICRS'", "'FK4'", "'FK4-NO-E'", "'GAPPT'"),
    "EQUINOX": ("2000.0", "1950.0", "'J2000'", "2026.9"),
    "OBS_MODE": ("'POINTING'", "'WOBBLE'", "'RASTER'", "'DRIFT'", "'SLEW'", "'OFF'", "'ON'", "'x'"),
    "EUNIT": ("'GeV'", "'MeV'", "'erg'", "'keV'", "''"),
    "DEADC": ("0", "-0.5", "1.5", "95.0"),
    "ALT_PNT": ("95.0", "-30.0", "0.9", "20.0", "70.0"),
    "AZ_PNT": ("400.0", "-90.0", "3.1", "180.0", "0.0"),
    "GEOLON": ("110.952", "16.5", "-1.93", "500.0"),
    "GEOLAT": ("-31.675", "31.0", "120.0"),
    "ALTITUDE": ("-9999.0", "1.268", "1E7"),
    "RA_PNT": ("83.0", "5.5754", "1.4597", "443.633", "-276.367", "263.633"),
    "DEC_PNT": ("0.384", "-22.01", "120.0", "90.0"),
    "TSTART": ("0.0", "-1.0", "53402.5"),
    "TSTOP": ("0.0", "1E12"),
    "ONTIME": ("0.0", "28.0", "0.4", "-1.0", "1E9"),
    "LIVETIME": ("0.0", "1E9", "-5.0"),
    "TELLIST": ("'1-4'", "'T1T2T3T4'", "1234", "','", "'1,,2'"),
    "N_TELS": ("0", "-4", "4.5", "1000", "'four'"),
    "OBS_ID": ("0", "-64001", "99999999999999", "'64001'", "64002"),
    "FOVALIGN": ("'ALTAZ'", "'RADEC'", "'x'"),
    "LO_THRES": ("-1.0", "1E9", "161.6", "'x'"),
    "HDUCLAS1": ("'GTI'", "'EVENTS'", "'RESPONSE'", "''"),
    "TELESCOP": ("'HESS'", "''", "5"),
    "NSBLEVEL": ("-1.0", "1E30", "'dark'"),
}
"""Values of keywords that say what numbers mean, as archives have them, and some as they should not."""

UNITS = (
    *(
        "deg",
        "rad",
        "arcmin",
        "hourangle",
        "h",
        "s",
        "ms",
        "ns",
        "d",
        "min",
        "TeV",
        "GeV",
        "MeV",
        "keV",
        "meV",
        "erg",
    ),
    *(
        "log(TeV)",
        "TEV",
        "gev",
        "Deg",
        "degrees",
        "10**3 GeV",
        "m2",
        "Crab",
        "",
        "None",
        "?",
        "s-1",
        "m/s",
        "1e3 GeV",
    ),
)


@dataclass
class Part:
    """One HDU: the texts of its cards without END, and the bytes of its data without filling."""

    cards: list[str]
    data: bytes

    def keyword(self, i: int) -> str:
        """Keyword of a card."""
        return self.cards[i][:8].strip()

    def get(self, keyword: str, default: str = "") -> str:
        """Text of a value, without quotes and comment."""
        for card in self.cards:
            if card[:8].strip() == keyword:
                value = card[10:]
                quoted = re.match(r"\s*'((?:[^']|'')*)'", value)
                return quoted[1].strip() if quoted else value.split("/")[0].strip()
        return default

    def set(self, keyword: str, value: str) -> None:
        """Change the value of a card, or add one."""
        new = f"{keyword:<8}= {value:>20}".ljust(CARD)[:CARD]
        for i in range(len(self.cards)):
            if self.keyword(i) == keyword:
                self.cards[i] = new
                return
        self.cards.append(new)

    def names(self) -> list[str]:
        """Names of the columns."""
        return [self.get(f"TTYPE{n}") for n in range(1, int(self.get("TFIELDS", "0")) + 1)]


@dataclass
class Column:
    """A column of a table, as it is stored; shape ``(rows,)`` or ``(rows, n)``."""

    name: str
    values: NDArray
    form: str
    more: dict[str, str] = field(default_factory=dict)


def split(raw: bytes) -> list[Part]:
    """The HDUs of a file that is whole."""
    parts, at = list[Part](), 0
    while at < len(raw):
        cards = list[str]()
        while (card := raw[at : at + CARD].decode("latin-1")).rstrip() != "END":
            cards.append(card)
            at += CARD
        at = -(-(at + CARD) // BLOCK) * BLOCK
        part = Part(cards, b"")
        axes = [int(part.get(f"NAXIS{n}")) for n in range(1, int(part.get("NAXIS")) + 1)]
        size = abs(int(part.get("BITPIX"))) // 8 * int(np.prod(axes)) + int(part.get("PCOUNT", "0")) if axes else 0
        part.data, at = raw[at : at + size], at + -(-size // BLOCK) * BLOCK
        parts.append(part)
    return parts


def join(parts: list[Part]) -> bytes:
    """The file of some HDUs."""
    pieces = []
    for part in parts:
        header = "".join([*part.cards, "END".ljust(CARD)]).encode("latin-1")
        pieces += [header, b" " * (-len(header) % BLOCK), part.data, bytes(-len(part.data) % BLOCK)]
    return b"".join(pieces)


def columns_of(part: Part) -> list[Column]:
    """The columns of a table."""
    fields = list[tuple]()
    for n in range(1, len(part.names()) + 1):
        count, letter = re.match(r"(\d*)(\w)", part.get(f"TFORM{n}")).groups()  # type: ignore[union-attr]
        size = int(count or 1)
        kind = f"S{size}" if letter == "A" else TYPES[letter]
        fields.append((f"f{n}", kind, (size,)) if size > 1 and letter != "A" else (f"f{n}", kind))
    table = np.frombuffer(part.data, dtype=fields, count=int(part.get("NAXIS2")))
    return [
        Column(
            name, table[f"f{n}"].copy(), part.get(f"TFORM{n}"),
            {key: f"'{part.get(f'{key}{n}')}'" for key in ("TUNIT",) if part.get(f"{key}{n}")},
        )
        for n, name in enumerate(part.names(), 1)
    ]  # fmt: skip


def put(part: Part, columns: list[Column]) -> None:
    """Make these the columns of a table."""
    rows = len(columns[0].values)
    table = np.zeros(rows, dtype=[(f"f{n}", c.values.dtype, c.values.shape[1:]) for n, c in enumerate(columns)])
    for n, column in enumerate(columns):
        table[f"f{n}"] = column.values
    part.cards = [card for card in part.cards if not COLUMN_CARDS.fullmatch(card[:8].strip())]
    part.data = table.tobytes()
    part.set("NAXIS1", str(table.dtype.itemsize))
    part.set("NAXIS2", str(rows))
    part.set("TFIELDS", str(len(columns)))
    for n, column in enumerate(columns, 1):
        part.set(f"TTYPE{n}", f"'{column.name}'")
        part.set(f"TFORM{n}", f"'{column.form}'")
        for key, value in column.more.items():
            part.set(f"{key}{n}", value)


def _table(rng: Generator, parts: list[Part]) -> Part:
    """Events, good time intervals, seldom the effective area."""
    return parts[rng.choice([1, 2, 3], p=[0.5, 0.4, 0.1])]


def _column(rng: Generator, columns: list[Column]) -> Column:
    """One of those that are used, most often."""
    used = [c for c in columns if c.name in ("TIME", "RA", "DEC", "ENERGY", "START", "STOP")]
    return columns[rng.integers(len(columns))] if not used or rng.random() < 0.1 else used[rng.integers(len(used))]


def _some(rng: Generator, n: int) -> NDArray:
    """Rows: one, a few, a tenth, half, all."""
    share = rng.choice([0.0, 0.01, 0.1, 0.5, 1.0])
    return rng.permutation(n)[: max(1, int(share * n))]


def _any_card(rng: Generator, part: Part, structure: bool = False) -> int:
    places = [i for i in range(len(part.cards)) if part.keyword(i).startswith(STRUCTURE) == structure]
    return int(rng.choice(places))


def drop_card(rng: Generator, parts: list[Part]) -> None:
    part = _table(rng, parts)
    del part.cards[_any_card(rng, part)]


def number_of_card(rng: Generator, parts: list[Part]) -> None:
    part = _table(rng, parts)
    numbers = [
        i for i, card in enumerate(part.cards)
        if re.match(r"\s*[-+]?[\d.]", card[10:]) and not part.keyword(i).startswith(STRUCTURE)
    ]  # fmt: skip
    keyword = part.keyword(int(rng.choice(numbers)))
    value = str(rng.choice(NUMBERS))
    if rng.random() < 0.4:
        value = repr(float(part.get(keyword)) * float(rng.choice([-1, 1e-3, 0.1, 0.5, 0.9, 1.1, 2, 10, 1e3])))
    part.set(keyword, value)


def type_of_card(rng: Generator, parts: list[Part]) -> None:
    part = _table(rng, parts)
    part.set(part.keyword(_any_card(rng, part)), str(rng.choice(OTHER_TYPES)))


def meaning(rng: Generator, parts: list[Part]) -> None:
    keyword = str(rng.choice(list(MEANINGS)))
    value = str(rng.choice(MEANINGS[keyword]))
    for part in ([parts[1]], [parts[2]], parts[1:3], parts[1:])[rng.integers(4)]:
        part.set(keyword, value)


def text_of_card(rng: Generator, parts: list[Part]) -> None:
    part = _table(rng, parts)
    i = int(rng.integers(len(part.cards)))
    card = list(part.cards[i])
    for place in rng.integers(CARD, size=rng.integers(1, 12)):
        card[place] = chr(rng.integers(256)) if rng.random() < 0.5 else chr(rng.integers(32, 127))
    part.cards[i] = "".join(card)


def card_twice(rng: Generator, parts: list[Part]) -> None:
    part = _table(rng, parts)
    i = _any_card(rng, part)
    value = str(rng.choice((*NUMBERS, *OTHER_TYPES)))
    part.cards.insert(i + int(rng.integers(2)), f"{part.keyword(i):<8}= {value:>20}".ljust(CARD)[:CARD])


def structure(rng: Generator, parts: list[Part]) -> None:
    part = parts[rng.integers(4)]
    i = _any_card(rng, part, structure=True)
    keyword, old = part.keyword(i), part.get(part.keyword(i))
    if rng.random() < 0.15:
        del part.cards[i]
    elif old.lstrip("-").isdigit():
        near = [int(old) + d for d in (-1, 1, 2, -2)] + [0, -1, 10**6, 10**9, 10**18, -(10**9), int(old) * 2]
        part.set(keyword, str(rng.choice(near)))
    else:
        others = ("'D'", "'E'", "'1PE(3)'", "'1000000000D'", "'0D'", "'J'", "'8A'", "'Z'", "''", "'IMAGE'", "3", "T")
        part.set(keyword, str(rng.choice(others)))


def hdu(rng: Generator, parts: list[Part]) -> None:
    i = int(rng.integers(1, 3))
    what = int(rng.integers(5))
    if what == 0:
        del parts[i]
    elif what == 1:
        parts.append(Part(list(parts[i].cards), parts[i].data))
    elif what == 2:
        other = Part(list(parts[i].cards), parts[i].data)
        columns = columns_of(other)
        put(other, [Column(c.name, c.values[: len(c.values) // 2 or 1], c.form, c.more) for c in columns])
        parts.insert(int(rng.integers(1, len(parts))), other)
    elif what == 3:
        parts[i].set("EXTNAME", str(rng.choice(["'EVENTS'", "'GTI'", "'events'", "'EVENTS2'", "''", "5", "' GTI'"])))
    else:
        parts[1], parts[2] = parts[2], parts[1]


def values(rng: Generator, parts: list[Part]) -> None:
    part = _table(rng, parts)
    columns = columns_of(part)
    column = _column(rng, columns)
    rows = _some(rng, len(column.values))
    with np.errstate(all="ignore"):
        limits = [np.nan, np.inf, -np.inf, 1e300, -1e300, 0.0, -1.0, 1e-300, 1e9, 400.0, 95.0]
        value = float(rng.choice(limits))
        if column.values.dtype.kind in "iu":
            value = float(np.clip(np.nan_to_num(value), -(2**31), 2**31))
        column.values[rows] = value
    put(part, columns)


def column_name(rng: Generator, parts: list[Part]) -> None:
    part = _table(rng, parts)
    columns = columns_of(part)
    one, other = _column(rng, columns), columns[rng.integers(len(columns))]
    what = int(rng.integers(5))
    if what == 0:
        one.name = one.name.lower()
    elif what == 1:
        one.name = str(rng.choice(["X", "", " ", one.name + " ", "E", "RA_1", "MC_" + one.name, "\u00e4", "T" * 60]))
    elif what == 2:
        one.name, other.name = other.name, one.name
    elif what == 3:
        other.name = one.name
    else:
        columns.insert(int(rng.integers(len(columns))), Column(one.name.lower(), one.values * 0, one.form, one.more))
    put(part, columns)


def column_type(rng: Generator, parts: list[Part]) -> None:
    part = _table(rng, parts)
    columns = columns_of(part)
    one = _column(rng, columns)
    letter = str(rng.choice(list("LBIJKEDACM")))
    with np.errstate(all="ignore"):
        if letter == "A":
            text = np.array([f"{v:.8g}" if v.ndim == 0 else "x" for v in one.values], dtype="S16")
            one.values, one.form = text, "16A"
        elif letter == "L":
            one.values = np.where(one.values != 0, b"T", b"F").astype("S1")
            one.form = f"{one.values[0].size}L"
        else:
            one.values = one.values.astype(TYPES[letter])
            one.form = f"{one.values[0].size}{letter}"
    put(part, columns)


def column_shape(rng: Generator, parts: list[Part]) -> None:
    part = _table(rng, parts)
    columns = columns_of(part)
    one = _column(rng, columns)
    n = int(rng.choice([1, 2, 3]))
    flat = one.values.reshape(len(one.values), -1)
    one.values = np.repeat(flat, n, axis=1) if rng.random() < 0.8 else flat[:, :0]
    one.form = f"{one.values.shape[1]}{one.form[-1]}"
    if rng.random() < 0.3:
        one.more["TDIM"] = str(rng.choice(["'(1,2)'", "'(3)'", "'(x)'", "'(1000000000,1000000000)'", "5"]))
    put(part, columns)


def unit_lies(rng: Generator, parts: list[Part]) -> None:
    part = _table(rng, parts)
    columns = columns_of(part)
    _column(rng, columns).more["TUNIT"] = f"'{rng.choice(UNITS)}'"
    put(part, columns)


def unit_and_values(rng: Generator, parts: list[Part]) -> None:
    honest = {
        "deg": {"rad": np.pi / 180, "arcmin": 60.0, "mas": 3.6e6},
        "s": {"d": 1 / 86400, "ms": 1e3, "ns": 1e9, "min": 1 / 60, "h": 1 / 3600},
        "TeV": {"GeV": 1e3, "MeV": 1e6, "erg": 1.602176634, "keV": 1e9},
        "m2": {"cm2": 1e4, "km2": 1e-6},
    }
    part = _table(rng, parts)
    columns = columns_of(part)
    unit = str(rng.choice(list(honest)))
    other = str(rng.choice(list(honest[unit])))
    for one in columns:
        if one.more.get("TUNIT") == f"'{unit}'":
            one.values = (one.values.astype(float) * honest[unit][other]).astype(">f8")
            one.form, one.more["TUNIT"] = f"{one.values[0].size}D", f"'{other}'"
    put(part, columns)


def scale(rng: Generator, parts: list[Part]) -> None:
    part = _table(rng, parts)
    columns = columns_of(part)
    one = _column(rng, columns)
    if rng.random() < 0.5 and one.values.dtype.kind == "f":
        zero, width = float(one.values.min()), float(np.ptp(one.values)) or 1.0
        one.values = np.round((one.values.astype(float) - zero) / width * 2**31).astype(">i4")
        one.form, one.more = f"{one.values[0].size}J", one.more | {"TSCAL": repr(width / 2**31), "TZERO": repr(zero)}
    else:
        one.more[str(rng.choice(["TSCAL", "TZERO"]))] = str(
            rng.choice(["0", "1E300", "NAN", "'x'", "-1.0", "100.0", "0.01", "1E-300"])
        )
    put(part, columns)


def null(rng: Generator, parts: list[Part]) -> None:
    part = _table(rng, parts)
    columns = columns_of(part)
    one = _column(rng, columns)
    if rng.random() < 0.5 and one.values.ndim == 1:
        power = 1e6 if one.name == "ENERGY" else 1e3
        one.values = np.round(one.values.astype(float) * power).astype(">i8")
        one.form = "K"
        one.values[_some(rng, len(one.values))] = -999
        one.more |= {"TNULL": "-999", "TSCAL": repr(1 / power)}
    else:
        one.more["TNULL"] = str(rng.choice(["0", "-1", "'x'", "1E300", "NAN", "99999999999999999999999"]))
    put(part, columns)


def rows(rng: Generator, parts: list[Part]) -> None:
    part = parts[1]
    columns = columns_of(part)
    n = len(columns[0].values)
    order = np.arange(n)
    what = int(rng.integers(7))
    first, last = sorted(rng.integers(n + 1, size=2).tolist())
    chosen = (
        np.delete(order, slice(first, last)),  # a gap
        order[first:],
        order[:last],
        np.concatenate([order, order]),
        np.concatenate([order, order[first:last]]),
        rng.permutation(n),
        order[: int(rng.integers(3))],
    )[what]
    put(part, [Column(c.name, c.values[chosen], c.form, c.more) for c in columns])


def good_time(rng: Generator, parts: list[Part]) -> None:
    part = parts[2]
    columns = columns_of(part)
    start, stop = (next(c for c in columns if c.name == name) for name in ("START", "STOP"))
    row, what = int(rng.integers(len(start.values))), int(rng.integers(12))
    length = float(stop.values[-1] - start.values[0])
    one = start if rng.random() < 0.5 else stop
    if what == 0:
        start.values, stop.values = stop.values, start.values
    elif what == 1:
        one.values[row] = rng.choice([np.nan, np.inf, -np.inf, 0.0, 1e300, -1e300, 3e38, -1.0])
    elif what == 2:
        one.values[row] += rng.choice([-1, 1]) * 10.0 ** rng.uniform(0, 9)
    elif what == 3:
        for column in (start, stop):
            column.values += rng.choice([-1, 1]) * 10.0 ** rng.uniform(0, 9)
    elif what == 4:
        start.values[row], stop.values[row] = stop.values[row], start.values[row]
    elif what == 5:
        for column in columns:
            column.values = column.values[:0]
    elif what == 6:
        for column in columns:
            column.values = np.concatenate([column.values, column.values])
    elif what == 7:
        for column in columns:
            column.values = column.values[row : row + 1]
    elif what == 8:
        more = start.values[-1] + length * rng.uniform(-5, 5)
        start.values = np.append(start.values, more)
        stop.values = np.append(stop.values, more + length * rng.uniform(-1, 2))
    elif what == 9:
        for column in (start, stop):
            column.values = (column.values - start.values[0]).astype(start.values.dtype)
    elif what == 10:
        for column in (start, stop):
            column.values, column.form = column.values.astype(">f4"), "E"
    else:
        middle = start.values[0] + length * np.sort(rng.random(2))
        start.values, stop.values = np.array([start.values[0], middle[1]]), np.array([middle[0], stop.values[-1]])
    put(part, columns)


def random_bytes(rng: Generator, raw: bytes) -> bytes:
    data = bytearray(raw)
    # half of them in the headers and tables that are read first
    end = len(data) if rng.random() < 0.5 else min(len(data), 40_000)
    for place in rng.integers(end, size=int(10 ** rng.uniform(0, 3))):
        data[place] = rng.integers(256)
    return bytes(data)


def bytes_lost(rng: Generator, raw: bytes) -> bytes:
    """A part of the file overwritten by zeros, moved or gone."""
    first = int(rng.integers(len(raw)))
    last = min(len(raw), first + int(10 ** rng.uniform(0, 5)))
    return raw[:first] + (bytes(last - first), b"", raw[:512])[rng.integers(3)] + raw[last:]


def cut(rng: Generator, raw: bytes) -> bytes:
    at = int(rng.integers(len(raw)))
    return raw[: at if rng.random() < 0.7 else at // BLOCK * BLOCK]


def appended(rng: Generator, raw: bytes) -> bytes:
    more = (rng.bytes(1000), bytes(10_000), raw, b" " * BLOCK, b"XTENSION= 'BINTABLE'".ljust(BLOCK))
    return raw + more[rng.integers(5)]


OF_PARTS: dict[str, Callable[[Generator, list[Part]], None]] = {
    "card dropped": drop_card,
    "card: number": number_of_card,
    "card: type": type_of_card,
    "card: meaning": meaning,
    "card: text": text_of_card,
    "card: twice": card_twice,
    "structure": structure,
    "HDUs": hdu,
    "values": values,
    "column: name": column_name,
    "column: type": column_type,
    "column: shape": column_shape,
    "unit": unit_lies,
    "unit and values": unit_and_values,
    "TSCAL, TZERO": scale,
    "TNULL": null,
    "rows of events": rows,
    "good time": good_time,
}
OF_BYTES: dict[str, Callable[[Generator, bytes], bytes]] = {
    "random bytes": random_bytes,
    "bytes lost": bytes_lost,
    "cut short": cut,
    "appended": appended,
}
KINDS = (*OF_PARTS, *OF_BYTES, "packed bytes", "packed, cut short")


def mutated(raw: bytes, seed: int, kind: str = "") -> tuple[str, bytes]:
    """A damaged file: the kind of its damage, and its bytes, packed or not.

    Parameters
    ----------
    raw
        The file, unpacked.
    seed
        Of the damage.
    kind
        One of `KINDS`; one of them by the seed if empty.
    """
    rng = np.random.default_rng(seed)
    drawn = KINDS[rng.integers(len(KINDS))]
    kind = kind or drawn
    packed = rng.random() < 0.5 or kind.startswith("packed")
    if kind in OF_PARTS:
        parts = split(raw)
        OF_PARTS[kind](rng, parts)
        raw = join(parts)
    elif kind in OF_BYTES:
        raw = OF_BYTES[kind](rng, raw)
    if packed:
        raw = gzip.compress(raw, 1, mtime=0)
    if kind == "packed bytes":
        raw = random_bytes(rng, raw)
    elif kind == "packed, cut short":
        raw = raw[: int(rng.integers(len(raw)))]
    return kind, raw
