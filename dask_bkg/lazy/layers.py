"""Graphs that grow layer by layer, and how an archive is cut into blocks."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
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


class Layers:
    """A graph that grows: layers named after what they hold, with a token that makes them unique.

    Parameters
    ----------
    collections
        Dask collections that the layers take their input from.
    """

    def __init__(self, *collections: Any) -> None:
        self.token = uuid.uuid4().hex[:8]
        below = HighLevelGraph.merge(*(c.__dask_graph__() for c in collections))
        self._layers: dict[str, Any] = dict(below.layers)
        self._needs: dict[str, Any] = dict(below.dependencies)

    def add(self, what: str, tasks: Callable[[str], dict], *below: str) -> str:
        """Add a layer and return its name; ``tasks`` gets that name and returns the tasks by key."""
        name = f"{what}-{self.token}"
        self._layers[name], self._needs[name] = tasks(name), set(below)
        return name

    def tree(self, what: str, combine: Callable, leaves: Sequence[Sequence], split_every: int, *below: str) -> str:
        """Add a layer of trees, one for each sequence of keys; their roots are ``(name, i)``.

        ``combine`` takes any number of parts, at most ``split_every`` at a time.
        """

        def tasks(name: str) -> dict:
            found: dict = {}
            for i, level in enumerate(leaves):
                depth = 0
                while len(level) > split_every:
                    depth += 1
                    groups = {(f"{name}-tree", i, depth, j): g for j, g in enumerate(batches(level, split_every))}
                    found |= {key: (combine, *group) for key, group in groups.items()}
                    level = list(groups)
                found[name, i] = (combine, *level)
            return found

        return self.add(what, tasks, *below)

    @property
    def graph(self) -> HighLevelGraph:
        """What has grown so far."""
        return HighLevelGraph(dict(self._layers), dict(self._needs))

    def array(self, name: str, chunks: tuple[tuple[int, ...], ...], dtype: type) -> da.Array:
        """Dask array whose chunks are the tasks of a layer."""
        return da.Array(self.graph, name, chunks=chunks, dtype=dtype)

    def delayed(self, name: str, n: int) -> list[Delayed]:
        """The tasks ``(name, 0)`` ... of a layer as delayed objects."""
        graph = self.graph
        return [Delayed((name, i), graph, layer=name) for i in range(n)]


def each(function: Callable, of: str, n: int, *shared: Any) -> Callable[[str], dict]:
    """Tasks of a layer: the function of each block of another one, and of what all blocks share."""
    return lambda name: {(name, i): (function, (of, i), *shared) for i in range(n)}


def literal(value: Any) -> tuple:
    """A task that gives what it was made with: it is in the graph once, however many tasks take it."""
    return (partial(_give, value),)


def _give(value: Any) -> Any:
    return value


def variable(layers: Layers, work: str, name: str, chunks: tuple, dtype: type) -> da.Array:
    """One variable of the blocks of a layer as a dask array, chunked along ``obs_id``."""
    rest = tuple(0 for _ in chunks[1:])
    key = layers.add(
        f"{name}-of-{work.removesuffix('-' + layers.token)}",
        lambda key: {(key, i, *rest): (partial(_take, name=name), (work, i)) for i in range(len(chunks[0]))},
        work,
    )
    return layers.array(key, chunks, dtype)


def _take(block: Any, name: str) -> NDArray:
    value = getattr(block, name)
    return np.asarray(getattr(value, "values", value))
