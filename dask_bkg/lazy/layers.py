"""Graphs that grow layer by layer, and how an archive is cut into blocks: the one place that knows a task's form.

A layer is stated by what its tasks take: ``layers.map("shape-of-runs", as_references, bins=bins, settings=settings)``
makes a task of each block.  What is passed as it stands is the same for all tasks; what differs from block to block
is `Blocks` (the tasks of another layer), a dask array (its chunks) or `Each` (a value a block); `Shared` is one task
that all take, `All` the tasks of a layer as a list, and `Named` a dictionary of inputs.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
from dask._task_spec import DataNode, Dict, List, Task, TaskRef
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import NDArray

SPLIT_EVERY = 8
"""Parts that one task of a tree puts together."""

MAX_BLOCK = 1000
"""Most runs a block where runs meet runs: 20,000 runs make 400 pairs of blocks, of 8 MB of divergences each."""


def batch_size(n_runs: int) -> int:
    """Event files a task: 10 ms a run make 0.1 s for a small archive and 0.5 s for a large one."""
    return int(np.clip(n_runs // 100, 10, 50))


def block_size(n_runs: int) -> int:
    """Runs a block where runs meet runs: twenty blocks, of 50 to 1000 runs.

    Examples
    --------
    >>> block_size(72), block_size(2000), block_size(20_000)
    (50, 100, 1000)
    """
    return int(np.clip(-(-n_runs // 20), 50, MAX_BLOCK))


def batches(items: Any, size: int) -> list:
    """Consecutive pieces of ``size`` of a sequence or an array, the last one shorter; of nothing one empty piece."""
    return [items[i : i + size] for i in range(0, len(items), size)] or [items]


class Blocks(NamedTuple):
    """The tasks of a layer, one a block: keys ``(name, 0)``, ``(name, 1)``, ..."""

    name: str
    n: int


class Pairs(NamedTuple):
    """The tasks of a layer, one a pair of blocks: keys ``(name, i, j)`` for some rows ``i`` and all columns ``j``."""

    name: str
    rows: tuple[int, ...]
    n_columns: int


class Shared(NamedTuple):
    """One task that many take; its key is the name of the layer."""

    name: str


class All(NamedTuple):
    """All tasks of some layers, or all chunks of dask arrays along their first axis, as a list."""

    layers: Sequence[Blocks | da.Array]


class Each(NamedTuple):
    """A value a block; delayed ones are computed."""

    values: Sequence[Any]


class Named(NamedTuple):
    """Inputs by name, which a task takes as a dictionary."""

    inputs: dict[str, Any]


class Layers:
    """A graph that grows: layers named after what they hold, with a token that makes them unique.

    The graphs of dask arrays and delayed values that a layer takes are part of it.
    """

    def __init__(self) -> None:
        self.token = uuid.uuid4().hex[:8]
        self._layers: dict[str, Any] = {}
        self._needs: dict[str, set[str]] = {}

    @property
    def graph(self) -> HighLevelGraph:
        """What has grown so far."""
        return HighLevelGraph(dict(self._layers), dict(self._needs))

    def share(self, what: str, value: Any) -> Shared:
        """Add a value that is in the graph once, however many tasks take it."""
        name = f"{what}-{self.token}"
        self._add(name, [DataNode(name, value)])
        return Shared(name)

    def values(self, what: str, values: Sequence[Any]) -> Blocks:
        """Add a value a block, each in the graph once."""
        name = f"{what}-{self.token}"
        self._add(name, [DataNode((name, i), value) for i, value in enumerate(values)])
        return Blocks(name, len(values))

    def join(self, what: str, function: Callable, blocks: Blocks, /, **others: Any) -> Shared:
        """Add one task: the function of the list of all blocks, and of what else is named."""
        name = f"{what}-{self.token}"
        inputs = {name: self._at(value, 0) for name, value in others.items()}
        self._add(name, [Task(name, function, self._at(All([blocks]), 0), **inputs)], [blocks, *others.values()])
        return Shared(name)

    def map(self, what: str, function: Callable, /, **inputs: Any) -> Blocks:
        """Add a task a block: the function of the inputs, by their names; at least one of them has blocks.

        Raises
        ------
        ValueError
            If the inputs have different numbers of blocks.
        """
        name, n = f"{what}-{self.token}", _n_blocks(what, inputs)
        tasks = [Task((name, i), function, **self._all_at(inputs, i)) for i in range(n)]
        self._add(name, tasks, inputs.values())
        return Blocks(name, n)

    def pairs(
        self,
        what: str,
        function: Callable,
        rows: dict[str, Any],
        columns: dict[str, Any],
        only: Sequence[int] | None = None,
        **others: Any,
    ) -> Pairs:
        """Add a task a pair of blocks: the function of the inputs that ``rows`` and ``columns`` name, and of others.

        ``only`` are the rows that are wanted; None: all.
        """
        name = f"{what}-{self.token}"
        n_rows, n_columns = _n_blocks(what, rows), _n_blocks(what, columns)
        chosen = tuple(range(n_rows)) if only is None else tuple(only)
        shared = self._all_at(others, 0)
        right = [self._all_at(columns, j) for j in range(n_columns)]
        left = {i: self._all_at(rows, i) for i in chosen}
        tasks = [
            Task((name, i, j), function, **left[i], **right[j], **shared) for i in chosen for j in range(n_columns)
        ]
        self._add(name, tasks, [*rows.values(), *columns.values(), *others.values()])
        return Pairs(name, chosen, n_columns)

    def tree(
        self, what: str, combine: Callable, pairs: Pairs, split_every: int = SPLIT_EVERY, **others: Any
    ) -> Blocks:
        """Add a tree for each row of pairs, in the order of its rows.

        ``combine`` takes a list of parts, at most ``split_every`` at a time, and what else is named.
        """
        name, tasks = f"{what}-{self.token}", list[Task]()
        for k, i in enumerate(pairs.rows):
            level, depth = [TaskRef((pairs.name, i, j)) for j in range(pairs.n_columns)], 0
            while len(level) > split_every:
                depth += 1
                groups = {(f"{name}-tree", k, depth, j): g for j, g in enumerate(batches(level, split_every))}
                tasks += [Task(key, combine, List(*group), **others) for key, group in groups.items()]
                level = [TaskRef(key) for key in groups]
            tasks.append(Task((name, k), combine, List(*level), **others))
        self._add(name, tasks, [Blocks(pairs.name, 0)])
        return Blocks(name, len(pairs.rows))

    def variable(self, blocks: Blocks, name: str, chunks: tuple[tuple[int, ...], ...], dtype: type) -> da.Array:
        """An attribute of the blocks of a layer as a dask array, chunked along ``obs_id``."""
        key, rest = f"{name}-of-{blocks.name}", (0,) * (len(chunks) - 1)
        work = (TaskRef((blocks.name, i)) for i in range(blocks.n))
        self._add(key, [Task((key, i, *rest), _take, part, name) for i, part in enumerate(work)], [blocks])
        return da.Array(self.graph, key, chunks=chunks, dtype=dtype)

    def matrix(self, pairs: Pairs, chunks: tuple[tuple[int, ...], ...]) -> da.Array:
        """The arrays of pairs of blocks as one dask array."""
        return da.Array(self.graph, pairs.name, chunks=chunks, dtype=float)

    def delayed(self, blocks: Blocks) -> list[Delayed]:
        """The tasks of a layer as delayed objects."""
        graph = self.graph
        return [Delayed((blocks.name, i), graph, layer=blocks.name) for i in range(blocks.n)]

    def _all_at(self, inputs: dict[str, Any], i: int) -> dict[str, Any]:
        return {name: self._at(value, i) for name, value in inputs.items()}

    def _at(self, value: Any, i: int) -> Any:
        """What the task of block ``i`` takes of an input."""
        if isinstance(value, Blocks):
            return TaskRef((value.name, i))
        if isinstance(value, Shared):
            return TaskRef(value.name)
        if isinstance(value, All):
            return List(*(self._at(layer, j) for layer in value.layers for j in range(_length(layer))))
        if isinstance(value, Named):
            return Dict(self._all_at(value.inputs, i))
        if isinstance(value, da.Array):
            return TaskRef((value.name, i, *(0,) * (value.ndim - 1)))
        if isinstance(value, Each):
            return TaskRef(value.values[i].key) if isinstance(value.values[i], Delayed) else value.values[i]
        return value

    def _add(self, name: str, tasks: Iterable[Task | DataNode], inputs: Iterable[Any] = ()) -> None:
        """Add a layer, and the graphs of the collections that it takes."""
        below, graphs = set[str](), dict[int, Any]()
        for value in _flat(inputs):
            if isinstance(value, (Blocks, Shared)):
                below.add(value.name)
            elif isinstance(value, (da.Array, Delayed)):
                below.update(value.__dask_layers__())
                # the delayed values of a layer have the same graph
                graphs[id(value.dask)] = value.dask
        for graph in graphs.values():
            self._layers = {**graph.layers, **self._layers}
            self._needs = {**graph.dependencies, **self._needs}
        self._layers[name], self._needs[name] = {task.key: task for task in tasks}, below


def _flat(inputs: Iterable[Any]) -> Iterator[Any]:
    """Inputs, and those within them."""
    for value in inputs:
        if isinstance(value, Named):
            yield from _flat(value.inputs.values())
        elif isinstance(value, (All, Each)):
            yield from _flat(value[0])
        else:
            yield value


def _n_blocks(what: str, inputs: dict[str, Any]) -> int:
    """Number of blocks of the inputs of a layer; what is the same for all blocks has none."""
    numbers: dict[str, int] = {}
    for name, value in inputs.items():
        if isinstance(value, (Blocks, da.Array)):
            numbers[name] = _length(value)
        elif isinstance(value, Each):
            numbers[name] = len(value.values)
    if len(set(numbers.values())) > 1:
        raise ValueError(f"{what}: inputs must have the same number of blocks, got {numbers}")
    return next(iter(numbers.values()), 0)


def _length(layer: Blocks | da.Array) -> int:
    return layer.n if isinstance(layer, Blocks) else layer.numblocks[0]


def _take(block: Any, name: str) -> NDArray:
    value = getattr(block, name)
    return np.asarray(getattr(value, "values", value))
