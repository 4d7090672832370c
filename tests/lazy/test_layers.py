"""Graphs that grow: layers, trees, blocks; and how large the graph of a whole job is."""

from __future__ import annotations

import pickle
import time
from dataclasses import replace

import dask
import dask.array as da
import numpy as np
import pytest
from dask.delayed import delayed
from dask.utils import key_split
from helpers.synthetic import FIRST, keys_of, make_job, refuse

from dask_bkg import selection
from dask_bkg.lazy.layers import All, Each, Layers, Named, Pairs, batch_size, batches, block_size
from dask_bkg.pipeline import graph as wiring


def add(parts):
    assert len(parts) <= 3
    return sum(parts)


def numbers(n):
    """Layers with one of the numbers 0 ... n - 1."""
    layers = Layers()
    return layers, layers.values("numbers", range(n))


def row(layers, n):
    """A row of pairs of the numbers 0 ... n - 1."""
    return layers.pairs("row", lambda x, y: x + y, {"x": Each([0])}, {"y": Each(range(n))})


def computed(layers, blocks):
    return dask.compute(*layers.delayed(blocks), scheduler="synchronous")


# -- layers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9, 10, 27, 28, 100])
def test_a_tree_combines_all_its_leaves_a_few_at_a_time(n):
    layers = Layers()
    assert computed(layers, layers.tree("sum", add, row(layers, n), 3)) == (n * (n - 1) // 2,)


def test_a_tree_adds_in_the_order_of_its_leaves():
    layers = Layers()
    tree = layers.tree("join", lambda parts: "".join(map(str, parts)), row(layers, 20), 3)
    assert computed(layers, tree) == ("".join(map(str, range(20))),)


def test_a_tree_has_hardly_more_tasks_than_leaves():
    layers = Layers()
    tree = layers.tree("sum", add, row(layers, 64), 8)
    assert len(keys_of(*layers.delayed(tree))) == 64 + 8 + 1


def test_layers_of_two_graphs_do_not_meet():
    names = {numbers(3)[1].name for _ in range(20)}
    assert len(names) == 20
    assert {key_split(name) for name in names} == {"numbers"}


def test_layers_take_their_input_from_collections():
    layers = Layers()
    three, chunks = delayed(3, name="three"), da.from_array(np.arange(6), chunks=2)
    squares = layers.map("squares", pow, base=Each([three, 2]), exp=Each([0, three]))
    assert computed(layers, squares) == (1, 8)
    assert [part.tolist() for part in computed(layers, layers.map("chunks", np.sort, a=chunks))] == [
        [0, 1],
        [2, 3],
        [4, 5],
    ]


def test_a_task_takes_blocks_shared_values_lists_and_names():
    layers, leaves = numbers(4)
    shared = layers.share("shared", 10)
    tasks = layers.map("all", dict, one=leaves, same=shared, every=All([leaves]), named=Named({"x": leaves, "y": 1}))
    assert computed(layers, tasks)[2] == {"one": 2, "same": 10, "every": [0, 1, 2, 3], "named": {"x": 2, "y": 1}}
    total = layers.join("total", add, layers.values("few", [1, 2, 4]))
    assert computed(layers, layers.map("again", dict, total=total, of=leaves))[3] == {"total": 7, "of": 3}


def test_inputs_of_different_numbers_of_blocks_are_an_error():
    """A block more would be left out, one less be missed only when the graph is computed."""
    layers, leaves = numbers(4)
    with pytest.raises(ValueError, match=r"sums: inputs must have the same number of blocks, got .*'a': 4.*'b': 3"):
        layers.map("sums", dict, a=leaves, b=Each([1, 2, 3]), same=5)
    with pytest.raises(ValueError, match="pairs: inputs must have the same number of blocks"):
        layers.pairs("pairs", dict, {"i": leaves}, {"j": Each([7, 8]), "k": da.zeros(6, chunks=2)})


def test_pairs_are_made_of_the_rows_that_are_wanted():
    layers, leaves = numbers(3)
    pairs = layers.pairs("pairs", dict, {"i": leaves}, {"j": Each([7, 8])}, [2, 0])
    assert pairs == Pairs(pairs.name, (2, 0), 2)
    tree = layers.tree("rows", list, pairs)
    assert computed(layers, tree) == ([{"i": 2, "j": 7}, {"i": 2, "j": 8}], [{"i": 0, "j": 7}, {"i": 0, "j": 8}])


@pytest.mark.parametrize("value", [None, {"numbers-1": 2}, ("sums", 1), [print, 2], (print, 2)])
def test_a_value_is_what_it_was_whatever_dask_would_take_it_for(value):
    layers = Layers()
    assert computed(layers, layers.values("value", [value])) == (value,)
    assert computed(layers, layers.map("task", dict, value=Each([value]), same=value))[0] == {
        "value": value,
        "same": value,
    }


def test_variables_of_blocks_are_dask_arrays():
    layers = Layers()
    parts = [selection.pack([]), selection.pack([])]
    parts = [part._replace(hours=np.array(hours)) for part, hours in zip(parts, ([1.0, 2.0], [3.0]), strict=True)]
    hours = layers.variable(layers.values("parts", parts), "hours", ((2, 1),), float)
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
@pytest.mark.slow
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
@pytest.mark.slow
def test_selections_of_the_whole_archive_are_made_for_fewer_targets_at_once(section):
    """As sparse as the matrix itself: two million contributing runs a block, whatever the block of runs."""
    graph = wiring.build(*make_job(20_000, background_selection=section))
    assert graph.runs.counts.chunks[0][0] == 1000
    assert graph.targets.counts.chunks[0][0] * 20_000 <= 2_000_000
    assert [target.obs_id for part in graph.parts for target in part] == graph.runs.obs_id.values.tolist()


def test_ten_times_the_runs_are_not_a_hundred_times_the_tasks():
    few, many = (len(tasks(wiring.build(*make_job(n)))) for n in (2000, 20_000))
    assert many < 2.5 * few


@pytest.mark.slow
def test_the_graph_of_twenty_thousand_runs_is_none_that_dask_warns_of():
    """Below 10 MB on the wire, also with the marks of the backgrounds of earlier jobs."""
    plan, tables, store = make_job(20_000, background_selection={"rank": "kl"})
    marks = {t.obs_id: ("0" * 16, ((10**6, 10**18),) * 2) for t in plan.targets}
    assert len(pickle.dumps(wiring.build(plan, tables, store, marks).writes[0].__dask_graph__())) < 10e6
    itself = {obs_id: [obs_id] for obs_id in tables.targets["obs_id"].tolist()}
    tables = replace(tables, given=selection.given(itself, tables.targets))
    assert len(pickle.dumps(wiring.build(plan, tables, store, marks).writes[0].__dask_graph__())) < 10e6


def test_three_roles_share_one_table_of_conditions():
    """Dask warns of a graph of more than 10 MiB."""
    job = make_job(20_000, background_selection={"rank": "conditions"})
    assert len(pickle.dumps(wiring.build(*job).writes[0].__dask_graph__())) < 10 * 2**20


def test_building_computes_nothing():
    with dask.config.set(scheduler=refuse):
        graph = wiring.build(*make_job(200, background_selection={"rank": "kl-conditions", "store_KL": True}))
        with pytest.raises(AssertionError, match="something was computed"):
            graph.stacks["spectrum"][0].compute()
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
    plan, tables, store = make_job(200, background_selection={"rank": "kl"})
    lists = {FIRST + i: [FIRST + i] for i in range(200)}
    tables = replace(tables, given=selection.given(lists, tables.runs))
    names = {key_split(key) for key in tasks(wiring.build(plan, tables, store))}
    assert "stack-runs" in names
    assert not names & {"kl-divergence", "choose-runs", "merge-runs", "shape-of-runs"}
    del tables.given[FIRST + 70]
    keys = tasks(wiring.build(plan, tables, store))
    assert sum(key_split(key) == "kl-divergence" for key in keys) == 4  # the one block of targets with an open one
