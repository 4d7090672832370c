"""Results one by one: on threads and on a cluster, with what died; and what becomes of them at an interrupt."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import dask
import pytest
from dask.delayed import Delayed, delayed
from distributed import Client, LocalCluster
from distributed.scheduler import KilledWorker

from dask_bkg.lazy.execute import compute_each


@pytest.fixture(scope="module")
def client():
    """Two workers in this process."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(params=["threads", "cluster"])
def where(request, client):
    return client if request.param == "cluster" else None


def double(x, seconds=0.0):
    time.sleep(seconds)
    return 2 * x


def tasks(n, **options) -> list[Delayed]:
    return [delayed(double, pure=False)(i, **options) for i in range(n)]


def collect(todo, where, n_threads=2):
    found, threads = {}, set()

    def handle(i, result):
        assert i not in found
        found[i] = result
        threads.add(threading.get_ident())

    compute_each(todo, where, n_threads, handle)
    assert threads <= {threading.get_ident()}
    return found


@pytest.mark.parametrize("n", [0, 1, 7])
def test_every_result_comes_once_with_its_number(where, n):
    assert collect(tasks(n), where) == {i: 2 * i for i in range(n)}


# of the module: the workers are threads of this process, and find them here
FINISH, RUNS = threading.Event(), []


def wait(i):
    assert i == 0 or FINISH.wait(30)
    return i


def note_and_give(value):
    RUNS.append(value)
    return value


def test_results_are_handed_over_before_the_last_one_is_there(where):
    """The file of one target is told of while the next ones are still made."""
    FINISH.clear()
    compute_each([delayed(wait, pure=False)(i) for i in range(2)], where, 2, lambda i, result: FINISH.set())
    assert FINISH.is_set()


def test_tasks_that_share_their_input_compute_it_once(where):
    RUNS.clear()
    shared = delayed(note_and_give, pure=False)(5)
    assert collect([delayed(double)(shared), delayed(double, pure=False)(shared)], where) == {0: 10, 1: 10}
    assert RUNS == [5]


def test_what_lies_below_is_not_handed_over(where):
    below = delayed(double, pure=False)(1)
    assert collect([delayed(double, pure=False)(below)], where) == {0: 4}


def test_two_threads_of_a_process_lose_nothing_to_each_other():
    """Two tasks of a worker with two threads: Dask's callbacks, entered as a context, are one set for both."""
    together, found = threading.Barrier(2), [[], []]

    def compute(me):
        for _ in range(100):
            together.wait(30)
            found[me].append(collect(tasks(2), None, n_threads=1))

    threads = [threading.Thread(target=compute, args=(me,)) for me in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[{0: 0, 1: 2}] * 100] * 2


def fail(text):
    raise ValueError(text)


def test_a_task_that_dies_on_a_cluster_is_handed_over_as_its_error(client):
    todo = tasks(3)
    todo[1] = delayed(fail, pure=False)("too much memory")
    found = collect(todo, client)
    assert (found[0], found[2]) == (0, 4)
    assert isinstance(found[1], ValueError)
    assert "too much memory" in str(found[1])


def test_tasks_that_need_a_dead_one_die_with_it_and_no_other(client):
    bad, good = delayed(fail, pure=False)("no more"), delayed(double, pure=False)(4)
    found = collect([delayed(double, pure=False)(bad), delayed(double, pure=False)(good)], client)
    assert isinstance(found[0], ValueError)
    assert found[1] == 16


@pytest.mark.slow
def test_a_worker_that_is_killed_takes_one_task_with_it():
    def die_or_double(i):
        if i == 1:
            os._exit(1)
        return 2 * i

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        found = {}
        compute_each([delayed(die_or_double, pure=False)(i) for i in (1, 2)], client, 1, found.__setitem__)
    assert isinstance(found[0], KilledWorker)
    # it may have been on that worker already
    assert found[1] == 4 or isinstance(found[1], KilledWorker)


def test_an_error_of_the_one_who_is_told_ends_it(where):
    def refuse(i, result):
        raise KeyError("disk full")

    with pytest.raises(KeyError, match="disk full"):
        compute_each(tasks(3), where, 1, refuse)


def wait_for_no_task(client):
    """Until the scheduler has forgotten all: it hears of it a moment later, and a busy machine takes its time."""
    until = time.monotonic() + 60
    while left := client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)):
        assert time.monotonic() < until, f"{left} tasks are left"
        time.sleep(0.05)


def test_an_interrupt_leaves_nothing_behind_on_a_cluster(client):
    """The cluster may be somebody else's: what has not begun is cancelled."""

    def interrupt(i, result):
        raise KeyboardInterrupt

    # the traceback keeps the futures alive, as that of a notebook does
    with pytest.raises(KeyboardInterrupt) as caught:
        compute_each(tasks(50, seconds=0.1), client, 1, interrupt)
    wait_for_no_task(client)
    assert caught.traceback


def test_results_do_not_stay_on_the_cluster(client):
    collect(tasks(5), client)
    wait_for_no_task(client)


def test_threads_are_as_many_as_asked_for():
    seen = set()

    def note(i):
        seen.add(threading.get_ident())
        time.sleep(0.02)

    compute_each([delayed(note, pure=False)(i) for i in range(6)], None, 1, lambda i, result: None)
    assert len(seen) == 1


OVERLAPPING = """
import threading

import numpy, scipy.linalg
from threadpoolctl import threadpool_info

from dask_bkg.lazy.execute import one_blas_thread

def tell(what):
    print(what, *sorted({library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}))

inside, leave = threading.Barrier(2), threading.Event()

def task():
    with one_blas_thread():
        inside.wait(60)
        leave.wait(60)
        tell("last")

for i in range(2):
    tell("before")
    leave.clear()
    other = threading.Thread(target=task)
    other.start()
    try:
        with one_blas_thread():
            inside.wait(60)
            raise KeyError("this one is done, badly")
    except KeyError:
        tell("first")
    leave.set()
    other.join()
    with one_blas_thread():
        tell("alone")
tell("after")
"""


def test_matrix_products_have_one_thread_until_the_last_one_leaves():
    """Tasks of one process overlap: the first one that is done does not give the others more threads."""
    environment = {**os.environ, **dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "2")}
    command = [sys.executable, "-c", OVERLAPPING]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    told = [line.split() for line in done.stdout.splitlines()]
    n = told[0][1]  # one on a machine of one core
    assert told == [*[["before", n], ["first", "1"], ["last", "1"], ["alone", "1"]] * 2, ["after", n]]
