"""Computing many tasks on threads or on a cluster, with the results handed over one by one as they come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import dask
from dask.callbacks import Callback
from dask.delayed import Delayed
from distributed import Client, as_completed
from threadpoolctl import threadpool_limits

Handle = Callable[[int, Any], None]


def compute_each(tasks: Sequence[Delayed], client: Client | None, n_threads: int, handle: Handle) -> None:
    """Compute tasks; ``handle(i, result)`` is called in this thread when the i-th is done.

    Parameters
    ----------
    tasks
        Delayed objects.
    client
        Where they are computed; None: on ``n_threads`` threads of this process.
    handle
        Takes the number of the task and its result; the exception itself where the task died with its worker
        (tasks of ours report what goes wrong inside of them).
    """
    if not tasks:
        return
    if client is None:
        each = _Each({task.key: i for i, task in enumerate(tasks)}, handle)
        # handed over, not entered as a context: that is global, and another thread that computes would take it away
        callbacks = {*Callback.active, each._callback}
        dask.compute(*tasks, scheduler="threads", num_workers=n_threads, callbacks=callbacks)
        return
    futures = client.compute(list(tasks))
    number = {future.key: i for i, future in enumerate(futures)}
    try:
        for future in as_completed(futures):
            try:
                result = future.result()
            except Exception as error:  # the scheduler's own: KilledWorker, a cancelled task ...
                result = error
            handle(number[future.key], result)
            # what has been handed over need not stay on the cluster
            future.release()
    except BaseException:
        # an interrupt: the cluster may be another user's, and would go on computing
        client.cancel(futures)
        raise


class _Each(Callback):
    """Hands over the results of some tasks when they end (threads; in the thread that waits for them)."""

    def __init__(self, number: dict, handle: Handle) -> None:
        super().__init__()
        self.number, self.handle = number, handle

    def _posttask(self, key, result, dsk, state, worker_id):
        if key in self.number:
            self.handle(self.number[key], result)


_guard, _limits = threading.Lock(), list[Any]()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Matrix products on one thread meanwhile: they are added up in another order on more, and the bits differ.

    Workers of Dask have one each by their environment, a notebook and a job on threads as many as there are cores.
    The number is one for all threads of a process: it is given back when the last one leaves.

    Examples
    --------
    >>> import numpy as np
    >>> with one_blas_thread():
    ...     product = np.ones((2, 3)) @ np.ones((3, 2))
    """
    with _guard:
        # the first one keeps what was there before
        _limits.append(None if _limits else _elsewhere(partial(threadpool_limits, 1, user_api="blas")))
    try:
        yield
    finally:
        with _guard:
            if len(_limits) == 1:
                _elsewhere(_limits[0].restore_original_limits)
            del _limits[-1]


def _elsewhere(function: Callable[[], Any]) -> Any:
    """What a function returns in a thread of its own.

    OpenBLAS takes the number from any thread until the main one has set it, and then from that one alone (0.3.31).
    """
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(function).result()
