"""Graphs that grow: layers, trees, blocks; and how large the graph of a whole job is."""

from __future__ import annotations

import pickle
import time

import dask
import numpy as np
import pytest
from dask.delayed import delayed
from dask.utils import key_split
from helpers.synthetic import FIRST, keys_of, make_job, refuse

from dask_bkg import selection
from dask_bkg.lazy.layers import Layers, batch_size, batches, block_size, each, literal, variable
from dask_bkg.pipeline import graph as wiring


def add(*parts):
    assert len(parts) <= 3
    return sum(parts)


def numbers(n):
    """Layers with one of the numbers 0 ... n - 1."""
    layers = Layers()
    return layers, layers.add("numbers", lambda name: {(name, i): literal(i) for i in range(n)})


# -- layers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9, 10, 27, 28, 100])
def test_a_tree_combines_all_its_leaves_a_few_at_a_time(n):
    layers, leaves = numbers(n)
    tree = layers.tree("sum", add, [[(leaves, i) for i in range(n)], [(leaves, 0)]], 3, leaves)
    whole, one = dask.compute(*layers.delayed(tree, 2), scheduler="synchronous")
    assert (whole, one) == (n * (n - 1) // 2, 0)


def test_a_tree_adds_in_the_order_of_its_leaves():
    layers, leaves = numbers(20)
    tree = layers.tree("join", lambda *parts: "".join(map(str, parts)), [[(leaves, i) for i in range(20)]], 3, leaves)
    assert layers.delayed(tree, 1)[0].compute(scheduler="synchronous") == "".join(map(str, range(20)))


def test_a_tree_has_hardly_more_tasks_than_leaves():
    layers, leaves = numbers(64)
    tree = layers.tree("sum", add, [[(leaves, i) for i in range(64)]], 8, leaves)
    assert len(keys_of(*layers.delayed(tree, 1))) == 64 + 8 + 1


def test_layers_of_two_graphs_do_not_meet():
    names = {numbers(3)[1] for _ in range(20)}
    assert len(names) == 20
    assert {key_split(name) for name in names} == {"numbers"}


def test_layers_take_their_input_from_collections():
    three = delayed(3, name="three")
    layers = Layers(three)
    name = layers.add("squares", lambda name: {(name, i): (pow, "three", i) for i in range(3)}, "three")
    assert dask.compute(*layers.delayed(name, 3), scheduler="synchronous") == (1, 3, 9)


def test_each_makes_a_task_of_every_block():
    layers, leaves = numbers(4)
    shared = layers.add("shared", lambda name: {name: literal(10)})
    name = layers.add("sums", each(add, leaves, 4, shared), leaves, shared)
    assert dask.compute(*layers.delayed(name, 4), scheduler="synchronous") == (10, 11, 12, 13)


@pytest.mark.parametrize("value", [None, {"numbers-1": 2}, ("sums", 1), [print, 2], (print, 2)])
def test_a_literal_is_what_it_was_whatever_dask_would_take_it_for(value):
    layers = Layers()
    name = layers.add("value", lambda name: {(name, 0): literal(value)})
    assert layers.delayed(name, 1)[0].compute(scheduler="synchronous") == value


def test_variables_of_blocks_are_dask_arrays():
    layers = Layers()
    parts = [selection.pack([]), selection.pack([])]
    parts = [part._replace(hours=np.array(hours)) for part, hours in zip(parts, ([1.0, 2.0], [3.0]), strict=True)]
    work = layers.add("parts", lambda name: {(name, i): literal(part) for i, part in enumerate(parts)})
    hours = variable(layers, work, "hours", ((2, 1),), float)
    assert key_split(hours.name) == "hours-of-parts"
    assert hours.compute(scheduler="synchronous").tolist() == [1.0, 2.0, 3.0]


# -- blocks ----------------------------------------------------------------------------------------------------


def test_archives_make_batches_of_tens_of_event_files():
    assert [batch_size(n) for n in (0, 1, 500, 2000, 20_000)] == [10, 10, 10, 20, 50]
    assert batches([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]
    assert batches([], 2) == [[]]


def test_twenty_blocks_or_fewer_where_runs_meet_runs():
    assert [block_size(n) for n in (1, 72, 1000, 2000, 10_001, 20_000, 50_000)] == [50, 50, 50, 100, 501, 1000, 1000]
    assert all(-(-n // block_size(n)) <= 20 for n in range(1, 20_001, 37))


# -- the graph of a whole job ----------------------------------------------------------------------------------


def tasks(graph) -> list[str]:
    return keys_of(*graph.writes, *graph.tables)


@pytest.mark.parametrize("rank", ["elevation", "kl", "conditions", "kl-conditions"])
def test_twenty_thousand_runs_make_fewer_than_5000_tasks(rank):
    job = make_job(20_000, background_selection={"rank": rank, "time_request": 50})
    start = time.perf_counter()
    graph = wiring.build(*job)
    keys = tasks(graph)
    print(f"{rank}: {len(keys)} tasks built in {time.perf_counter() - start:.2f} s")
    assert len(keys) < 5000
    assert sum(key.startswith("write-files") for key in keys) == len(graph.writes)
    assert sum(len(part) for part in graph.parts) == 20_000


@pytest.mark.parametrize("section", [{"rank": "none"}, {"rank": "kl", "time_request": "all"}])
def test_selections_of_the_whole_archive_are_made_for_fewer_targets_at_once(section):
    """As sparse as the matrix itself: two million contributing runs a block, whatever the block of runs."""
    graph = wiring.build(*make_job(20_000, background_selection=section))
    assert graph.runs.counts.chunks[0][0] == 1000
    assert graph.targets.counts.chunks[0][0] * 20_000 <= 2_000_000
    assert [target.obs_id for part in graph.parts for target in part] == graph.runs.obs_id.values.tolist()


def test_ten_times_the_runs_are_not_a_hundred_times_the_tasks():
    few, many = (len(tasks(wiring.build(*make_job(n)))) for n in (2000, 20_000))
    assert many < 2.5 * few


def test_the_graph_of_twenty_thousand_runs_is_none_that_dask_warns_of():
    """Below 10 MB on the wire, also with the marks of the backgrounds of earlier jobs."""
    plan, roster, store = make_job(20_000, background_selection={"rank": "kl"})
    marks = {t.obs_id: ("0" * 16, ((10**6, 10**18),) * 2) for t in plan.targets}
    assert len(pickle.dumps(wiring.build(plan, roster, store, marks).writes[0].__dask_graph__())) < 10e6
    itself = {obs_id: [obs_id] for obs_id in roster.targets["obs_id"].tolist()}
    roster.given = selection.given(itself, roster.targets)
    assert len(pickle.dumps(wiring.build(plan, roster, store, marks).writes[0].__dask_graph__())) < 10e6


def test_building_computes_nothing():
    with dask.config.set(scheduler=refuse):
        graph = wiring.build(*make_job(200, background_selection={"rank": "kl-conditions", "store_KL": True}))
        with pytest.raises(AssertionError, match="something was computed"):
            graph.stacks["spectrum"].compute()
    assert len(graph.selected["spectrum"]) == len(graph.tables) == 4
    assert [len(part) for part in graph.parts] == [25] * 8


def test_names_on_the_dashboard():
    graph = wiring.build(*make_job(200, background_selection={"rank": "kl"}))
    names = {key_split(key) for key in tasks(graph)}
    assert {"load-runs", "shape-of-runs", "kl-divergence", "merge-runs", "select-runs", "stack-runs"} <= names
    assert any(key.startswith("write-files") for key in tasks(graph))


def test_blocks_of_the_configuration():
    graph = wiring.build(*make_job(200, config={"block": 60, "split_every": 2}))
    assert graph.runs.counts.chunks[0] == (60, 60, 60, 20)
    assert [len(part) for part in graph.parts] == [25, 25, 10] * 3 + [20]


def test_nothing_is_selected_where_everything_is_given():
    """Each run from itself: no pair of blocks, whatever the ranking."""
    plan, roster, store = make_job(200, background_selection={"rank": "kl"})
    lists = {FIRST + i: [FIRST + i] for i in range(200)}
    roster.given = selection.given(lists, roster.runs)
    names = {key_split(key) for key in tasks(wiring.build(plan, roster, store))}
    assert "stack-runs" in names
    assert not names & {"kl-divergence", "choose-runs", "merge-runs", "shape-of-runs"}
    del roster.given[FIRST + 70]
    keys = tasks(wiring.build(plan, roster, store))
    assert sum(key_split(key) == "kl-divergence" for key in keys) == 4  # the one block of targets with an open one
