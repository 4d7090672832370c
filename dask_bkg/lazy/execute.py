"""Computing many tasks on threads or on a cluster, with the results handed over one by one as they come."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import dask
from dask import threaded
from dask.callbacks import Callback
from dask.delayed import Delayed
from threadpoolctl import threadpool_limits

from dask_bkg.errors import LostClusterError

if TYPE_CHECKING:
    from distributed import Client, Future

log = logging.getLogger(__name__)

Handle = Callable[[int, Any], None]

POLL = 0.05
LOOK_EVERY = 5.0
"""Seconds without a result after which the cluster is looked at, again and again."""

SAY_AFTER = 30.0
"""Seconds without a worker after which that is said."""

NO_WORKER_SECONDS = 600.0
"""Seconds without a worker after which a job ends."""

NO_ANSWER_SECONDS = 300.0
"""Seconds without an answer of the scheduler after which a job ends."""

CANCEL_SECONDS = 1.0
"""Time that a scheduler has to take note that a job is over."""


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

    Raises
    ------
    LostClusterError
        If the scheduler has ended, does not answer for `NO_ANSWER_SECONDS`, or has no worker for `NO_WORKER_SECONDS`.
    """
    if not tasks:
        return
    if client is None:
        each = _Each({task.key: i for i, task in enumerate(tasks)}, handle)
        # handed over, not entered as a context: that is global, and another thread that computes would take it away
        callbacks = {*Callback.active, each._callback}
        # the function and not its name: Dask would import distributed to look for a client
        with one_blas_thread():  # as a worker has: the same bits
            dask.compute(*tasks, scheduler=threaded.get, num_workers=n_threads, callbacks=callbacks)
        return
    futures = client.compute(list(tasks))
    number = {future.key: i for i, future in enumerate(futures)}
    try:
        for future in _as_they_come(futures, client):
            try:
                result = future.result(timeout=NO_ANSWER_SECONDS)
            except Exception as error:  # the scheduler's own: KilledWorker, a cancelled task ...
                if isinstance(error, TimeoutError) and future.status == "finished":
                    raise _silent(client) from None
                if getattr(error, "reason", "") == "scheduler-connection-lost" or client.status != "running":
                    raise LostClusterError(
                        f"the scheduler {_address(client)} has ended, or cannot be reached any more: it was killed "
                        "(memory, walltime), or its machine was lost; what is finished is kept: start the job again"
                    ) from None
                result = error
            handle(number[future.key], result)
            # what has been handed over need not stay on the cluster
            future.release()
    except BaseException:
        # an interrupt: the cluster may be another user's, and would go on computing; a dead one does not answer
        cancel = threading.Thread(target=_cancel, args=(client, futures), daemon=True)
        cancel.start()
        cancel.join(CANCEL_SECONDS)
        raise


def _cancel(client: Client, futures: list[Future]) -> None:
    with suppress(Exception):
        client.cancel(futures)


def _as_they_come(futures: list[Future], client: Client) -> Iterator[Future]:
    """Futures as they end; logs when the cluster does not answer, or has no worker."""
    from distributed import as_completed

    coming, watch = as_completed(futures), _Watch(client)
    while not coming.is_empty():
        if coming.has_ready():
            yield next(coming)
            watch.alive()
        else:
            time.sleep(POLL)
            watch.look()


class _Watch:
    """Looks at a cluster from which nothing comes."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.alive()

    def alive(self) -> None:
        """A result has come."""
        self._looked = self._had_worker = self._answered = time.monotonic()
        self._said = self._said_silent = False

    def look(self) -> None:
        """Say what is waited for, if it is not the tasks; raise `LostClusterError` where that was too long."""
        now, scheduler = time.monotonic(), self._client.scheduler
        if now - self._looked < LOOK_EVERY or scheduler is None or self._client.status != "running":
            return
        try:
            workers = len(self._client.sync(scheduler.ncores, callback_timeout=LOOK_EVERY))
        except (TimeoutError, OSError):
            self._looked = time.monotonic()
            self._no_answer(self._looked - self._answered)
            return
        self._looked, self._answered, self._said_silent = now, now, False
        if workers:
            self._had_worker, self._said = now, False
        waited = now - self._had_worker
        # batch jobs come back when the queue lets them: how long that takes is not for us to say
        batch = hasattr(self._client.cluster, "job_script")
        if waited > NO_WORKER_SECONDS and not batch:
            raise LostClusterError(
                f"the cluster has had no worker for {waited:.0f} s: all were killed (memory), or their batch jobs "
                "have ended; what is finished is kept: start the job again, with more memory if this comes again"
            )
        if waited > SAY_AFTER and not self._said:
            log.warning(
                "waiting for a worker: the cluster has none since %.0f s; %s",
                waited,
                "batch jobs are waiting in the queue" if batch else f"the job ends after {NO_WORKER_SECONDS:.0f} s",
            )
            self._said = True

    def _no_answer(self, waited: float) -> None:
        if waited > NO_ANSWER_SECONDS:
            raise _silent(self._client)
        if not self._said_silent:
            left, address = NO_ANSWER_SECONDS - waited, _address(self._client)
            log.warning("waiting for the scheduler %s, which does not answer; the job ends in %.0f s", address, left)
            self._said_silent = True


def _silent(client: Client) -> LostClusterError:
    return LostClusterError(
        f"the scheduler {_address(client)} has not answered for {NO_ANSWER_SECONDS:.0f} s: it, or its machine, is "
        "stopped or overloaded, or the network is down; what is finished is kept: start the job again"
    )


def _address(client: Client) -> str:
    return str(getattr(client.scheduler, "address", "") or "of the job")


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
