"""A zarr group that grows by rows: written ahead in parts by any number of tasks, folded into few large files by one.

A row is an item with a number (``obs_id``): a run of an archive, or the background of one.  It has scalars, which are
packed into three arrays on disk (``integers``, ``numbers``, ``texts``: the *table*), and a value in each of the large
arrays, whose files are shards of `SHARD` rows.

*Parts.*  A task writes all that it knows of its items into one file next to the store (`write_part`), at once and
whole.  What is in a part is safe, whoever is killed.

*Folding.*  One process at a time, which holds a lock, appends the items of the parts to the arrays (`Rows.fold`):
first the large arrays, then numbers and texts, last the integers, whose ``obs_id`` makes the rows valid; then it
removes the parts.  Killed in between it leaves rows without a number, which the next one writes over, and the parts.

*The table is there twice.*  A copy of it in one file is written after numbers and texts and before the integers: what
it says of a row that is valid is right, whenever the process is killed.  An array of the table that is damaged or
lost is taken from the copy, and written again by the next process that holds the lock; where there is none, the items
concerned are lost, and no others.

*Rows are only added.*  Of the rows of one item the last one counts; an older one stays as it was, so that readers see
what they have opened, until a shard has few rows that count: these are then appended again, and the shard is removed
(`Rows.tidy`).  Row numbers are never used twice: who still reads a shard that is gone finds fill values.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import operator
import os
import secrets
import threading
import time
import warnings
import zipfile
import zlib
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from dask_bkg.errors import ArchiveError
from dask_bkg.files import atomic_directory, atomic_write
from dask_bkg.files.read import now, patiently

log = logging.getLogger(__name__)

FORMAT = 1
"""Version of what is described here; a store of another one is not touched."""

SHARD = 500
"""Rows of a file of an array."""

CHUNK = 25
"""Rows that are packed together in it: 1.9 MB of a 3D background's rates, of which one is read in 5 ms."""

PER_SHARD = SHARD // CHUNK

TABLE_CHUNK = 16384
"""Rows of a file of the table: the table of 16,000 runs is three files."""

GROWTH = 512
"""Step in which the last axis of an array grows, if it does; `WIDTHS` steps are one file."""

WIDTHS = 8

ABSENT = 2**64 - 1
"""Place of a chunk that was never written, in the index of a shard."""

FILL: dict[str, Any] = {"integers": -1, "numbers": np.nan, "texts": ""}
"""What the arrays of the table say of rows that are not there."""

DTYPES: dict[str, Any] = {"integers": "int64", "numbers": "float64", "texts": str}

COPY = "table.npz"
"""The copy of the table; zlib, of an NPZ of ``integers``, ``numbers``, and ``texts`` as the bytes of their JSON."""

DAMAGED = (RuntimeError, ValueError, KeyError, IndexError, TypeError, zlib.error, zipfile.BadZipFile)
"""What zarr, its codecs and NumPy raise for damaged files; never an `OSError`."""

_one_at_a_time = threading.Lock()


class Column(NamedTuple):
    """A large array of a store.

    Attributes
    ----------
    dtype
        Its type.
    dims, shape
        Axes after that of the rows; of one whose last axis grows (``grows``) the last size is not looked at.
    units, long_name
        Attributes of the array.
    grows
        Whether the last axis becomes longer when an item needs it; shorter items have fill values at the end.
    """

    dtype: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    units: str = ""
    long_name: str = ""
    grows: bool = False

    @property
    def fill(self) -> Any:
        """What rows have that were not written: NaN, -1, or the largest number of a type without sign."""
        dtype = np.dtype(self.dtype)
        return {"f": np.nan, "i": -1}.get(dtype.kind) or int(np.iinfo(dtype).max)


class Layout(NamedTuple):
    """What the items of a store have.

    Attributes
    ----------
    arrays
        Large arrays by name.
    integers, numbers, texts
        Names of scalars: int64, of which the first one is ``obs_id``; float64; and texts.
    axes
        What else makes this store differ from others, such as bin edges; goes into JSON.
    """

    arrays: Mapping[str, Column]
    integers: tuple[str, ...]
    numbers: tuple[str, ...]
    texts: tuple[str, ...]
    axes: Mapping[str, Any]

    @property
    def table(self) -> dict[str, tuple[str, ...]]:
        """Names of the scalars by the array of the table that holds them."""
        return {name: getattr(self, name) for name in FILL}

    def as_json(self) -> dict[str, Any]:
        """The layout as it is written into the attributes of the store."""
        return json.loads(json.dumps({**self._asdict(), "arrays": {k: v._asdict() for k, v in self.arrays.items()}}))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Layout:
        """The inverse of `as_json`."""
        arrays = {
            name: Column(**{**column, "dims": tuple(column["dims"]), "shape": tuple(column["shape"])})
            for name, column in value["arrays"].items()
        }
        integers, numbers, texts = (tuple(value[name]) for name in FILL)
        return cls(arrays, integers, numbers, texts, value["axes"])

    @property
    def digest(self) -> str:
        """Eight letters that are equal for equal layouts."""
        text = json.dumps(self.as_json(), sort_keys=True)
        return hashlib.blake2b(f"{FORMAT} {text}".encode(), digest_size=4).hexdigest()


def write_part(directory: str | os.PathLike[str], layout: Layout, columns: Mapping[str, ArrayLike]) -> Path:
    """Write what is known of some items into one file, atomically; any number of processes at once.

    Parameters
    ----------
    directory
        Where the parts of a store are; made if missing.
    layout
        Layout of the store.
    columns
        Arrays of shape ``(items, ...)`` by the names of the layout, ``obs_id`` among them; of those that are missing
        the rows have fill values.

    Raises
    ------
    ArchiveError
        If the directory cannot be written, or its disk is full.
    """
    path = Path(directory, f"{layout.digest}-{time.time_ns():020d}-{secrets.token_hex(4)}.npz")
    n = len(np.asarray(columns["obs_id"]))
    # few arrays here too: to read the header of each takes longer than its numbers
    members = {
        kind: np.stack([np.asarray(columns.get(name, np.full(n, FILL[kind]))) for name in names], axis=1)
        for kind, names in layout.table.items()
    }
    members |= {name: np.asarray(columns[name]) for name in layout.arrays if name in columns}
    atomic_write(path, lambda temporary: np.savez(temporary, allow_pickle=False, **members))
    return path


class Rows:
    """A store of rows, as the one process that holds its lock sees it; without the lock it can be read.

    Attributes
    ----------
    path
        Its directory.
    layout
        What its items have.
    table
        Scalars by name, arrays of shape ``(rows,)``; rows without an item have ``obs_id`` -1.
    damaged
        Arrays of the table that are damaged or lost, at least in part: why.  `mend` writes them again.

    Parameters
    ----------
    path
        Its directory.
    kinds
        Arrays of the table that are read; a task that only reads rows needs no ``texts``.
    """

    def __init__(self, path: str | os.PathLike[str], kinds: Sequence[str] = tuple(FILL)) -> None:
        self.path, self._kinds = Path(os.path.abspath(path)), kinds
        found = attributes_of(self.path)
        if found.get("dask_bkg_rows") != FORMAT:
            raise ArchiveError(
                f"{self.path} is no store of rows of version {FORMAT}, which this program reads: move it away, and "
                "run the job again; or use the program that made it."
            )
        self.layout = Layout.from_json(found["layout"])
        self.table: dict[str, NDArray] = {}
        self.damaged: dict[str, str] = {}
        self.read()

    @classmethod
    def create(cls, path: Path, layout: Layout, title: str) -> Rows:
        """An empty store, made under another name and then renamed; the caller holds the lock."""
        attributes: dict[str, Any] = {"title": title, "dask_bkg_rows": FORMAT, "layout": layout.as_json()}

        def fill(directory: Path) -> None:
            group = zarr.open_group(directory, mode="w", zarr_format=3, attributes=attributes)
            for name, scalars in layout.table.items():
                _create_table_array(group, name, len(scalars))
            for name, column in layout.arrays.items():
                _create_array(group, name, column)
            consolidate(directory)

        with _disk_errors(path), atomic_directory(path) as temporary:
            patiently(fill, temporary)
        return cls(path)

    # -- reading -----------------------------------------------------------------------------------------------

    def read(self) -> None:
        """Read the table as it is on disk by now."""
        self.damaged, arrays, bad = {}, {}, {}
        with _disk_errors(self.path, "read"):
            for kind in self._kinds:
                arrays[kind], bad[kind] = patiently(self._read_kind, kind)
            if any(bad.values()):
                self._take_from_copy(arrays, bad)
        # the store may grow between the reading of two arrays; rows that one of them does not have are not valid yet
        n = min(len(values) for values in arrays.values())
        self.table = {
            name: values[:n, i].copy()
            for kind, values in arrays.items()
            for i, name in enumerate(self.layout.table[kind])
        }

    def _read_kind(self, kind: str) -> tuple[NDArray, dict[int, str]]:
        """An array of the table, and why chunks of it cannot be used, which then have fill values."""
        array, bad = self._array(kind), {}
        chunks = {i: slice(i * TABLE_CHUNK, (i + 1) * TABLE_CHUNK) for i in range(-(-array.shape[0] // TABLE_CHUNK))}
        # one that was never written is there before the first rows of it are
        bad = {i: "is lost" for i in chunks if not (self.path / kind / f"c.{i}.0").exists()}
        try:
            values = np.asarray(array[:])
        except DAMAGED:
            values = np.full(array.shape, FILL[kind], array.dtype)
            for i, rows in chunks.items():
                try:
                    values[rows] = array[rows]
                except DAMAGED as error:
                    bad[i] = f"is damaged ({error})"
        return values.astype(object) if kind == "texts" else values, bad

    def _take_from_copy(self, arrays: dict[str, NDArray], bad: Mapping[str, dict[int, str]]) -> None:
        """Chunks of the table that are damaged or lost, as the copy of the table has them."""
        copy = self._read_copy()
        n = max(len(values) for values in (*arrays.values(), copy["integers"]))
        for kind, chunks in bad.items():
            more = np.full((n - len(arrays[kind]), arrays[kind].shape[1]), FILL[kind], arrays[kind].dtype)
            for i, why in chunks.items():
                rows = slice(i * TABLE_CHUNK, (i + 1) * TABLE_CHUNK)
                if not why.startswith("is damaged") and not (copy["integers"][rows, 0] >= 0).any():
                    continue
                arrays[kind] = np.append(arrays[kind], more, axis=0) if len(arrays[kind]) < n else arrays[kind]
                there = copy[kind][rows]
                arrays[kind][rows][: len(there)] = there
                rest = "is taken from its copy" if len(there) else "has no copy: what it had is made again"
                self.damaged[kind] = f"{self.path / kind / f'c.{i}.0'} {why}, and {rest}"
                log.warning("%s", self.damaged[kind])

    def _read_copy(self) -> dict[str, NDArray]:
        """The arrays of the table as the copy has them; without rows where there is none."""
        try:
            data = patiently((self.path / COPY).read_bytes)
            with np.load(io.BytesIO(zlib.decompress(data))) as file:
                found = {kind: file[kind] for kind in FILL}
            found["texts"] = np.array(json.loads(found["texts"].tobytes()), dtype=object)
        except (FileNotFoundError, *DAMAGED):
            found = {}
        shapes = {kind: (len(found.get("integers", ())), len(names)) for kind, names in self.layout.table.items()}
        if any(kind not in found or found[kind].shape != shape for kind, shape in shapes.items()):
            return {kind: np.empty((0, len(names)), object) for kind, names in self.layout.table.items()}
        return found

    def _write_copy(self) -> None:
        integers, numbers, texts = (
            np.stack([self.table[name] for name in names], axis=1) for names in self.layout.table.values()
        )
        texts = np.frombuffer(json.dumps(texts.tolist()).encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, integers=integers, numbers=numbers, texts=texts)
        data = zlib.compress(buffer.getvalue(), 1)
        atomic_write(self.path / COPY, lambda path: path.write_bytes(data))

    def mend(self) -> None:
        """Write arrays of the table that were damaged again, as they are in memory; the caller holds the lock."""
        with _disk_errors(self.path):
            for kind in ("numbers", "texts", "integers"):
                if kind in self.damaged:
                    self._write_table(kind, 0, self.table["obs_id"].size)
        self.damaged = {}

    def latest(self) -> NDArray:
        """Rows that count: of each item the last one, in the order of ``obs_id``; without those that are lost."""
        rows = self.last()
        return rows[np.isin(rows // SHARD, self._lost_shards(), invert=True)]

    def last(self) -> NDArray:
        """As `latest`, with those that are lost."""
        obs_id = self.table["obs_id"]
        rows = np.flatnonzero(obs_id >= 0)
        rows = rows[np.argsort(obs_id[rows], kind="stable")]
        last = np.append(obs_id[rows][1:] != obs_id[rows][:-1], True)[: rows.size]
        return rows[last]

    def _lost_shards(self) -> list[int]:
        """Shards with rows of which the file of an array is missing."""
        used = set(np.unique(np.flatnonzero(self.table["obs_id"] >= 0) // SHARD).tolist())
        if not used:
            return []
        there = [{*_shards_on_disk(self.path / name)} for name in self.layout.arrays]
        return sorted(used - set.intersection(used, *there))

    def values(self, name: str, rows: NDArray) -> NDArray:
        """Values of a large array at some rows, shape ``(rows, ...)``; reads the chunks that hold them.

        Raises
        ------
        ArchiveError
            If a file of it is damaged, or cannot be read now.
        """
        array, rows = self._array(name), np.asarray(rows, dtype=np.int64)
        found = np.empty((rows.size, *array.shape[1:]), array.dtype)
        chunks = np.unique(rows // CHUNK)
        for some in np.split(chunks, np.flatnonzero((np.diff(chunks) > 1) | (np.diff(chunks // PER_SHARD) > 0)) + 1):
            if some.size:
                first, stop = int(some[0]) * CHUNK, (int(some[-1]) + 1) * CHUNK
                here = (rows >= first) & (rows < stop)
                found[here] = self._slice(array, name, first, stop)[rows[here] - first]
        return found

    def _slice(self, array: zarr.Array, name: str, first: int, stop: int) -> NDArray:
        try:
            with _disk_errors(self.path, "read"):
                return np.asarray(patiently(operator.getitem, array, slice(first, stop)))
        except DAMAGED as error:
            raise self._damaged(name, first // SHARD, error) from error

    def _damaged(self, name: str, shard: int, error: Exception) -> ArchiveError:
        file = self.path / name / f"c.{shard}.*"
        return ArchiveError(f"{file} is damaged ({error}): remove it, and start again; what was in it is made again.")

    def find_damage(self, rows: NDArray | None = None, names: Iterable[str] = ()) -> dict[Path, NDArray]:
        """Files of the large arrays that are damaged or lost, with the rows concerned.

        The files are read, and the checksums of their chunks compared; nothing is unpacked.

        Parameters
        ----------
        rows
            Rows to look at; None: all that count, also those of files that are lost.
        names
            Arrays to look at, by default all.
        """
        found: dict[Path, NDArray] = {}
        rows = self.last() if rows is None else rows
        for shard in np.unique(rows // SHARD).tolist():
            here = rows[rows // SHARD == shard]
            for name in names or self.layout.arrays:
                files = sorted((self.path / name).glob(f"c.{shard}.*"))
                if not files:
                    found[self.path / name / f"c.{shard}.*"] = here
                widths = WIDTHS if self.layout.arrays[name].grows else 1
                for file in files:
                    with _disk_errors(self.path, "read"):
                        chunks = shard * PER_SHARD + patiently(_bad_chunks, file, widths)
                    if (bad := here[np.isin(here // CHUNK, chunks)]).size:
                        found[file] = bad
        return found

    def drop_damaged(
        self, directory: str | os.PathLike[str], rows: NDArray, names: Sequence[str] = ()
    ) -> dict[Path, NDArray]:
        """Take shards in which something is damaged or lost out of the store; their items that are whole are kept.

        The caller holds the lock.

        Parameters
        ----------
        directory
            Where the parts are.
        rows
            Rows that are looked at.
        names
            Arrays that are looked at of all other rows that count.

        Returns
        -------
        lost
            Numbers of the items that were lost, by the file.
        """
        last = self.last()
        damage = self.find_damage(rows) | (self.find_damage(last, names) if names else {})
        if not damage:
            return {}
        shards = np.unique(np.concatenate([*damage.values()]) // SHARD)
        here = last[np.isin(last // SHARD, shards)]
        damage = self.find_damage(here)
        lost = {file: np.unique(self.table["obs_id"][bad]) for file, bad in damage.items()}
        whole = np.setdiff1d(here, np.concatenate([*damage.values()]))
        if whole.size:
            part = {name: column[whole] for name, column in self.table.items()}
            part |= {name: part[name].astype(str) for name in self.layout.texts}
            write_part(directory, self.layout, part | {name: self.values(name, whole) for name in self.layout.arrays})
        for shard in shards.tolist():
            self.update(np.arange(shard * SHARD, (shard + 1) * SHARD), dict.fromkeys(self.layout.integers, -1))
            self._remove_shard(shard)
        self.fold(directory)
        return lost

    def _array(self, name: str, mode: Any = "r") -> zarr.Array:
        # chunks of fill values are written too: a file that is missing is one that is lost
        with zarr.config.set({"array.write_empty_chunks": True}):
            try:
                return zarr.open_array(self.path, path=name, mode=mode)
            except (FileNotFoundError, *DAMAGED):
                self._restore_metadata(name)
                return zarr.open_array(self.path, path=name, mode=mode)

    def _restore_metadata(self, name: str) -> None:
        """Write the metadata of an array again, from those of the group."""
        try:
            metadata = json.loads((self.path / "zarr.json").read_text())["consolidated_metadata"]["metadata"][name]
        except DAMAGED as error:
            raise ArchiveError(f"{self.path / 'zarr.json'} is damaged ({error}): move the store away") from error
        log.warning("%s is damaged or lost, and is written again", self.path / name / "zarr.json")
        atomic_write(self.path / name / "zarr.json", lambda path: path.write_text(json.dumps(metadata, indent=2)))

    # -- writing -----------------------------------------------------------------------------------------------

    def fold(self, directory: str | os.PathLike[str]) -> int:
        """Take the parts of this store into it, whoever wrote them, and remove them; the caller holds the lock.

        Parameters
        ----------
        directory
            Where the parts are.

        Returns
        -------
        items
            Number of items that were in the parts.

        Raises
        ------
        ArchiveError
            If the store cannot be written; the parts that are not in it are kept.
        """
        self.read()
        self.mend()
        total = 0
        for paths in _groups(sorted(Path(directory).glob(f"{self.layout.digest}-*.npz"))):
            with ExitStack() as stack, _disk_errors(self.path, "read"):
                files = [stack.enter_context(np.load(path)) for path in paths]
                total += self.append([ChainMap(self._table_of(file), file) for file in files]).size
            for path in paths:
                path.unlink(missing_ok=True)
        with suppress(OSError):  # it is not there, or has parts of another store
            os.rmdir(directory)
        return total

    def _table_of(self, file: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """Scalars of a part, or of the store, by name."""
        packed = {kind: file[kind] for kind in FILL}
        return {name: packed[kind][:, i] for kind, names in self.layout.table.items() for i, name in enumerate(names)}

    def append(self, parts: Sequence[Mapping[str, NDArray]]) -> NDArray:
        """Add the items of some parts, and return their rows; the caller holds the lock.

        Parameters
        ----------
        parts
            For each of them columns as of `write_part`; items that come twice count as they were in the last one.
        """
        obs_id = np.concatenate([part["obs_id"] for part in parts])
        used = np.flatnonzero(self.table["obs_id"] >= 0)
        first = int(used[-1]) + 1 if used.size else 0
        rows, order = np.arange(first, first + obs_id.size), np.argsort(obs_id, kind="stable")
        # a file that was lost and is made anew would let its rows count again, without their values
        for shard in self._lost_shards():
            self.update(np.arange(shard * SHARD, (shard + 1) * SHARD), dict.fromkeys(self.layout.integers, -1))
        with _disk_errors(self.path):
            self._make_room(first + obs_id.size, parts)
            for name, column in self.layout.arrays.items():
                array = self._array(name, "r+")
                shape = (*column.shape[:-1], array.shape[-1]) if column.grows else column.shape
                values = _joined(name, parts, shape, column)[order]
                try:
                    self._put(array, name, first, values, SHARD)
                except DAMAGED as error:  # rows that are there already are read, and packed with them
                    raise self._damaged(name, first // SHARD, error) from error
            columns = {name: self._scalars(name, parts)[order] for name in self.table}
            self.update(rows, columns)
        return rows

    def _scalars(self, name: str, parts: Sequence[Mapping[str, NDArray]]) -> NDArray:
        fill = next(FILL[kind] for kind, names in self.layout.table.items() if name in names)
        values = [part[name] if name in part else np.full(len(part["obs_id"]), fill) for part in parts]
        return np.concatenate([np.asarray(value, dtype=self.table[name].dtype) for value in values])

    def update(self, rows: NDArray, columns: Mapping[str, ArrayLike]) -> None:
        """Set scalars of some rows; the caller holds the lock.

        Integers are written last: a row becomes valid by its ``obs_id``, when all that it has is there.
        """
        if not len(rows):
            return
        for name, column in columns.items():
            self.table[name][rows] = column
        first, stop = int(np.min(rows)), int(np.max(rows)) + 1
        changed = [kind for kind, names in self.layout.table.items() if columns.keys() & set(names)]
        with _disk_errors(self.path):
            for kind in ("numbers", "texts"):
                if kind in changed:
                    self._write_table(kind, first, stop)
            self._write_copy()
            if "integers" in changed:
                self._write_table("integers", first, stop)

    def _write_table(self, kind: str, first: int, stop: int) -> None:
        """Write some rows of an array of the table as they are in memory."""
        block = np.stack([self.table[name][first:stop] for name in self.layout.table[kind]], axis=1)
        # texts of fixed width would be as wide as the longest one
        block = block.astype(np.dtypes.StringDType()) if kind == "texts" else block
        self._put(self._array(kind, "r+"), kind, first, block, TABLE_CHUNK)

    def _put(self, array: zarr.Array, name: str, first: int, values: NDArray, per_file: int) -> None:
        """Write some rows of an array, and have its files on the disk before what makes them valid is written."""

        def put() -> None:
            array[first : first + len(values)] = values
            for chunk in range(first // per_file, (first + len(values) - 1) // per_file + 1):
                for path in (self.path / name).glob(f"c.{chunk}.*"):
                    with open(path, "rb+") as stream:
                        os.fsync(stream.fileno())

        patiently(put)

    def _make_room(self, n_rows: int, parts: Sequence[Mapping[str, NDArray]]) -> None:
        """Make the arrays long enough, in whole shards, and wide enough."""
        n_rows, grown = max(-(-n_rows // SHARD) * SHARD, self.table["obs_id"].size), False
        for name in (*self.layout.arrays, *FILL):
            array, column = self._array(name, "r+"), self.layout.arrays.get(name)
            shape = (n_rows, *array.shape[1:])
            if column is not None and column.grows:
                width = max([part[name].shape[-1] for part in parts if name in part], default=0)
                shape = (*shape[:-1], max(shape[-1], -(-width // GROWTH) * GROWTH))
            if shape != array.shape:
                patiently(array.resize, shape)
                grown = True
        if grown:
            consolidate(self.path)
            for kind, names in self.layout.table.items():
                for name in names:
                    more = n_rows - self.table[name].size
                    self.table[name] = np.append(self.table[name], np.full(more, FILL[kind], self.table[name].dtype))

    def tidy(self) -> None:
        """Remove shards whose rows were replaced; rows that count in a shard of which most were go to the end.

        The caller holds the lock.
        """
        counts = np.zeros(self.table["obs_id"].size, dtype=bool)
        counts[self.latest()] = True
        used, counting = (
            mask.reshape(-1, SHARD).sum(axis=1)
            for mask in (self.table["obs_id"] >= 0, counts)  # in whole shards
        )
        full = np.flatnonzero(used)[:-1]  # the last one is not, or not for long
        for shard in full[counting[full] < used[full] / 2].tolist():
            rows = shard * SHARD + np.flatnonzero(counts[shard * SHARD : (shard + 1) * SHARD])
            if rows.size:
                part = {name: column[rows] for name, column in self.table.items()}
                self.append([part | {name: self.values(name, rows) for name in self.layout.arrays}])
            here = np.arange(shard * SHARD, (shard + 1) * SHARD)
            self.update(here, dict.fromkeys(self.layout.integers, -1))
            self.update(here, dict.fromkeys(self.layout.texts, "") | dict.fromkeys(self.layout.numbers, np.nan))
        self._remove_empty_shards()

    def _remove_empty_shards(self) -> None:
        """Remove the files of shards without a row, but for those that come after the last row."""
        shards = np.unique(np.flatnonzero(self.table["obs_id"] >= 0) // SHARD)
        with _disk_errors(self.path):
            for name in self.layout.arrays:
                for shard in {*_shards_on_disk(self.path / name)} - {*shards.tolist()}:
                    if shard < shards.max(initial=0):
                        self._remove_shard(shard, [name])

    def _remove_shard(self, shard: int, names: Iterable[str] | None = None) -> None:
        for name in names or self.layout.arrays:
            for file in (self.path / name).glob(f"c.{shard}.*"):
                file.unlink(missing_ok=True)


def _groups(paths: list[Path]) -> Iterator[list[Path]]:
    """Parts in groups of about a shard; one that cannot be read is removed."""
    group: list[Path] = []
    n = 0
    for path in paths:
        try:
            size = patiently(_size_of, path)
        except FileNotFoundError:
            continue
        except (EOFError, *DAMAGED) as error:
            log.warning("%s cannot be read (%s) and is removed: what it had is made again", path, error)
            path.unlink(missing_ok=True)
            continue
        if group and n + size > SHARD:
            yield group
            group, n = [], 0
        group.append(path)
        n += size
    if group:
        yield group


def _bad_chunks(path: Path, widths: int) -> NDArray:
    """Chunks of a shard, numbered along its rows, whose bytes are not those that were written.

    A shard ends with an index, offset and size of each chunk; the index, and each chunk, end with their CRC32C.
    ``widths`` is the number of chunks along the last axis.
    """
    data, n = memoryview(path.read_bytes()), PER_SHARD * widths
    if not _has_right_sum(data[-16 * n - 4 :], 16 * n + 4):
        return np.arange(PER_SHARD)
    places = np.frombuffer(data[-16 * n - 4 : -4], "<u8").reshape(n, 2).tolist()
    wrong = [
        i // widths
        for i, (first, size) in enumerate(places)
        if first != ABSENT and not _has_right_sum(data[first : first + size], size)
    ]
    return np.unique(np.array(wrong, dtype=np.int64))


def _has_right_sum(data: memoryview, size: int) -> bool:
    """Whether there are so many bytes, the last four of which are the CRC32C of the others."""
    return len(data) == size > 4 and google_crc32c.value(bytes(data[:-4])) == int.from_bytes(data[-4:], "little")


def _size_of(path: Path) -> int:
    """Number of items in a part that is whole."""
    with zipfile.ZipFile(path) as file, np.load(path) as part:
        if (member := file.testzip()) is not None:
            raise zipfile.BadZipFile(member)
        return len(part["integers"])


def _joined(name: str, parts: Sequence[Mapping[str, NDArray]], shape: tuple[int, ...], column: Column) -> NDArray:
    """An array of the items of all parts, with fill values where a part does not have it or is not as wide."""
    sizes = [len(part["obs_id"]) for part in parts]
    values = np.full((sum(sizes), *shape), column.fill, column.dtype)
    place = 0
    for part, size in zip(parts, sizes, strict=True):
        if name in part:
            found = part[name]
            values[place : place + size, ..., : found.shape[-1]] = found
        place += size
    return values


def _create_table_array(group: zarr.Group, name: str, n: int) -> None:
    group.create_array(
        name,
        shape=(0, n),
        chunks=(TABLE_CHUNK, max(n, 1)),
        dtype=DTYPES[name],
        fill_value=FILL[name],
        compressors=[ZstdCodec(level=1, checksum=True)],
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=("row", f"{name}_name"),
    )


def _create_array(group: zarr.Group, name: str, column: Column) -> None:
    shape, chunks, shards = (column.shape,) * 3
    shuffle: Any = "bitshuffle" if np.dtype(column.dtype).kind == "u" else "shuffle"
    if column.grows:
        shape, chunks = ((*column.shape[:-1], GROWTH),) * 2
        shards = (*column.shape[:-1], WIDTHS * GROWTH)
    group.create_array(
        name,
        shape=(0, *shape),
        chunks=(CHUNK, *chunks),
        shards=(SHARD, *shards),
        dtype=column.dtype,
        fill_value=column.fill,
        # bytes of a kind together: 3D rates and errors take 55 % of their bytes, and 0.25 s a shard of 37 MB; of
        # counts, which are small, bits of a kind: 45 % less than zstd alone
        compressors=[BloscCodec(cname="zstd", clevel=2, shuffle=shuffle), Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=("row", *column.dims),
        attributes={"units": column.units, "long_name": column.long_name},
    )


def attributes_of(path: Path) -> dict[str, Any]:
    """Attributes of a group, as they are on disk; none where there is no group."""
    try:
        with _disk_errors(path, "read"):
            return json.loads(patiently((path / "zarr.json").read_text))["attributes"]
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return {}


def change_attributes(path: Path, **changes: Any) -> None:
    """Set attributes of a group; what else its metadata say stays."""
    metadata = json.loads(patiently((path / "zarr.json").read_text))
    if changes.items() <= metadata["attributes"].items():
        return
    metadata["attributes"].update(changes)
    atomic_write(path / "zarr.json", lambda temporary: temporary.write_text(json.dumps(metadata, indent=2)))


def consolidate(path: Path) -> None:
    """Gather the metadata of the arrays in those of the group: readers see all of them grow at once."""
    # the filters of warnings are one list for all threads: two at once would leave it as the first one made it
    with _one_at_a_time, warnings.catch_warnings():
        # zarr says that the specification does not have it yet; xarray warns of groups without it
        warnings.simplefilter("ignore", UserWarning)
        patiently(zarr.consolidate_metadata, str(path))


def _shards_on_disk(directory: Path) -> Iterator[int]:
    with suppress(FileNotFoundError):
        for name in os.listdir(directory):
            prefix, _, rest = name.partition(".")
            if prefix == "c" and not name.endswith(".partial"):
                yield int(rest.partition(".")[0])


@contextmanager
def _disk_errors(path: Path, what: str = "written") -> Iterator[None]:
    """`ArchiveError` for what the disk refuses to have ``written``, or ``read`` if it is there."""
    try:
        yield
    except OSError as error:
        if what == "read" and isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise
        room = "" if what == "read" or now(error) else "make room, or give a place that you may write to, and "
        raise ArchiveError(
            f"{path} cannot be {what}{now(error)} ({error.strerror or error}): {room}start again; what is "
            "finished is kept."
        ) from error
