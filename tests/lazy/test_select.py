"""Selection through the graph: what a plain loop selects, whatever the blocks; the full matrix is never there."""

from __future__ import annotations

import math

import dask
import numpy as np
import pytest
from dask.utils import key_split
from helpers.synthetic import FIRST, dataset, keys_of, make_runs, n_bytes, refuse, settings, watched
from numpy.testing import assert_allclose, assert_array_equal

from dask_bkg import schema, selection, similarity
from dask_bkg.lazy.kl import kl_matrix
from dask_bkg.lazy.select import select_runs
from dask_bkg.selection.cuts import COLUMNS
from dask_bkg.similarity import ShapeSettings, flat_bins
from dask_bkg.sky.fov import separation

RANKS = ("none", "elevation", "kl", "conditions", "kl-conditions")
CUTS = {
    "none": {},
    "some": {"nsb_diff": 1.5, "az_diff": 120, "el_min": 35, "exclude_same_target": True},
    "in time": {"time_max": 20, "n_tels": 4, "el_diff": 0.4},
}
N = 90


@pytest.fixture(scope="module")
def runs():
    """Ninety runs; some of them lack a number, two are equal but for their number."""
    runs = make_runs(N, seed=3)
    columns = {name: runs[name].values.copy() for name in COLUMNS if name in runs.coords}
    for name in ("counts", "exposure"):
        runs[name].values[11] = runs[name].values[10]
    for name in columns.keys() - {"obs_id"}:
        columns[name][11] = columns[name][10]
    columns["nsb"][[5, 40]] = np.nan
    columns["livetime"][60] = np.nan
    return runs.assign_coords({name: ("obs_id", column) for name, column in columns.items()})


@pytest.fixture(scope="module")
def pairs(runs):
    """Divergence of each pair and share of the target that the other run saw, without blocks."""
    args = (runs.counts.values, runs.exposure.values, runs.ontime.values, schema.edges_of(runs), ShapeSettings())
    bins = flat_bins(*args)
    prior = similarity.fit_prior(*bins)
    p = similarity.as_targets(*bins, None, prior, ShapeSettings())
    q = similarity.as_references(*bins, prior, ShapeSettings())
    return similarity.kl_block(p, q), similarity.coverage_block(p, q)


def cut(runs, block):
    """The same runs, lazy and in blocks."""
    if block is None:
        return runs
    histograms = {name: runs[name].values for name in schema.HISTOGRAMS}
    columns = {name: c.values for name, c in runs.coords.items() if c.dims == ("obs_id",)}
    return dataset(histograms, columns, schema.edges_of(runs), block)


def computed(lazy):
    return selection.join(dask.compute(*lazy, scheduler="synchronous"))


# -- the plain loop --------------------------------------------------------------------------------------------


def passes(a, b, s):
    """Whether run b may contribute to a, cut by cut."""
    mass = [1 / math.cos(math.radians(r["zenith"])) for r in (a, b)]
    azimuth = abs(a["azimuth"] - b["azimuth"])
    near = separation(a["ra_pnt"], a["dec_pnt"], b["ra_pnt"], b["dec_pnt"]) <= 1.5
    same = near or a["object_code"] == b["object_code"] >= 0
    return (
        a["obs_id"] != b["obs_id"]
        and not b["excluded"]
        and (s.el_min is None or 90 - b["zenith"] >= s.el_min)
        and (s.n_tels is None or b["n_tels"] >= s.n_tels)
        and (s.el_diff is None or abs(mass[0] - mass[1]) <= s.el_diff)
        and (s.az_diff is None or min(azimuth, 360 - azimuth) <= s.az_diff)
        and (s.nsb_diff is None or abs(a["nsb"] - b["nsb"]) <= s.nsb_diff)
        and (s.time_max is None or abs(a["time"] - b["time"]) <= s.time_max)
        and not (s.exclude_same_target and same)
    )


def kernel(a, b):
    """Squared distance of two runs that have all three numbers."""
    cosines = [math.cos(math.radians(r["zenith"])) for r in (a, b)]
    terms = (
        (cosines[0] - cosines[1]) / 0.05,
        math.log(a["e_thres"] / b["e_thres"]) / 0.10,
        math.log(a["muon_efficiency"] / b["muon_efficiency"]) / 0.07,
    )
    return sum(term**2 for term in terms)


def score(a, b, kl, coverage, rank):
    if "kl" in rank:
        return kl + 1e3 * (coverage < 0.8)
    if rank == "elevation":
        return abs(1 / math.cos(math.radians(a["zenith"])) - 1 / math.cos(math.radians(b["zenith"])))
    return kernel(a, b) if rank == "conditions" else 0.0


def until(runs, weights, wanted):
    """The first runs until the hours, weight x livetime, are reached; the one that crosses included."""
    taken, hours = [], 0.0
    for run, weight in zip(runs, weights, strict=True):
        if hours >= wanted - 1e-9:
            break
        taken.append(run)
        hours += weight * np.nan_to_num(run["livetime"]) / 3600
    return taken


def effective(distances, steps):
    weights = [math.exp(-(d - distances[0]) / (2 * 1.05 ** (2 * steps))) for d in distances]
    return sum(weights) ** 2 / sum(w**2 for w in weights)


def plain(i, table, pairs, s):
    """Numbers and weights of the runs that contribute to the i-th: one target, one run after the other."""
    target, wanted = table[i], math.inf if s.ranking == "none" else s.hours_wanted
    found = [(j, run) for j, run in enumerate(table) if passes(target, run, s)]
    order = sorted(
        found, key=lambda f: (round(score(target, f[1], *(m[i, f[0]] for m in pairs), s.ranking), 10), f[1]["obs_id"])
    )
    order = [run for _, run in order]
    if s.ranking not in ("conditions", "kl-conditions"):
        return [run["obs_id"] for run in until(order, [1.0] * len(order), wanted)], None
    distance = {run["obs_id"]: kernel(target, run) for run in order}
    far = -2 * math.log(1e-4)
    near = sorted(order[:20] + [r for r in order[20:] if distance[r["obs_id"]] <= far], key=order.index)
    weights = [0.0 if distance[r["obs_id"]] > far else math.exp(-distance[r["obs_id"]] / 2) for r in near]
    order = until(near, weights, wanted)
    distances = sorted(distance[r["obs_id"]] for r in order)
    steps, needed = 0, min(3.0, 0.9 * len(order)) if len(order) >= 3 else 1.0
    while order and steps < 28 and effective(distances, steps) < needed:
        steps += 1
    while distances and distances[0] > far * 1.05 ** (2 * steps):
        steps += 1
    weight = {run: math.exp(-d / (2 * 1.05 ** (2 * steps))) for run, d in distance.items()}
    order = [run for run in order if weight[run["obs_id"]] >= 1e-4]
    taken = [run["obs_id"] for run in until(order, [weight[run["obs_id"]] for run in order], wanted)]
    return taken, [weight[run] for run in taken]


@pytest.fixture(scope="module")
def table(runs):
    names = [name for name in COLUMNS if name in runs.coords]
    return [{name: runs[name].values[i].item() for name in names} for i in range(N)]


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.slow
def test_it_is_the_selection_of_a_plain_loop(runs, table, pairs, rank, cuts):
    s = settings(rank=rank, time_request=4, **CUTS[cuts])
    lazy = cut(runs, 20)
    selected = computed(select_runs(lazy, lazy, s))
    sizes = set()
    for i in range(N):
        numbers, weights = plain(i, table, pairs, s)
        chosen = selected.of(i)
        if np.isnan(table[i]["nsb"]) and s.nsb_diff is not None:
            assert "nsb_diff needs NSBLEVEL" in chosen.reason
            continue
        assert chosen.obs_id.tolist() == numbers
        assert_array_equal(runs.obs_id.values[chosen.run], chosen.obs_id)
        assert_allclose(chosen.weight, weights if weights else 1.0, rtol=1e-12)
        assert bool(chosen.reason) == (not numbers)
        sizes.add(len(numbers))
    assert len(sizes) > 1


# -- blocks ----------------------------------------------------------------------------------------------------


def assert_same(a, b):
    for name in ("start", "run", "obs_id", "enough", "flagged", "widened"):
        assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    for name in ("weight", "score", "hours", "livetime"):
        assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-12, atol=2e-10, err_msg=name)
    assert a.reason == b.reason


@pytest.mark.parametrize(("block", "split_every"), [(1, 8), (7, 2), (30, 8), (N, 3)])
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.slow
def test_blocks_and_the_shape_of_the_tree_do_not_matter(runs, rank, block, split_every):
    s = settings(rank=rank, time_request=4, nsb_diff=2)
    whole = cut(runs, 45)
    some = runs.isel(obs_id=slice(0, N, 6)) if block == 1 else runs
    first = computed(select_runs(*[cut(some, 45)] * 2, s)) if block == 1 else computed(select_runs(whole, whole, s))
    lazy = cut(some, block)
    assert_same(first, computed(select_runs(lazy, lazy, s, split_every=split_every)))


@pytest.mark.parametrize("rank", ["kl", "conditions"])
def test_targets_may_be_others_than_the_runs(runs, rank):
    """A part of them, and one that is not among the runs; in blocks of another size."""
    s = settings(rank=rank, time_request=4)
    lazy = cut(runs, 20)
    everything = computed(select_runs(lazy, lazy, s))
    part = computed(select_runs(cut(runs.isel(obs_id=[3, 50, 80]), 2), lazy, s))
    assert_same(selection.pack([everything.of(i) for i in (3, 50, 80)]), part)
    other = runs.isel(obs_id=[3]).assign_coords(obs_id=[7])
    chosen = computed(select_runs(cut(other, 1), lazy, s)).of(0)
    assert chosen.obs_id[0] == FIRST + 3 or runs.excluded.values[3]


def test_the_same_bits_on_threads(runs):
    lazy = cut(runs, 20)
    tasks = select_runs(lazy, lazy, settings(rank="kl-conditions", time_request=4))
    one, many = (selection.join(dask.compute(*tasks, scheduler=s)) for s in ("synchronous", "threads"))
    for name in selection.Selections._fields:
        assert np.asarray(getattr(one, name)).tobytes() == np.asarray(getattr(many, name)).tobytes()


def test_the_divergence_is_the_one_of_kl_matrix(runs):
    """Nearest first by its values, ties by OBS_ID, the run that covers too little behind."""
    for shapes in (ShapeSettings("document"), ShapeSettings(prior=500.0)):
        lazy = cut(runs, 20)
        kl = kl_matrix(lazy, settings=shapes).compute(scheduler="synchronous")
        selected = computed(select_runs(lazy, lazy, settings(rank="kl", time_request=4), shapes=shapes))
        for i in range(N):
            chosen = selected.of(i)
            score = chosen.score - 1e3 * (chosen.score > 500)
            assert_allclose(score, kl.values[i, chosen.run], rtol=0, atol=2e-10)
            assert (np.diff(chosen.score) >= 0).all()


def test_given_lists_win_in_their_block(runs):
    lazy = cut(runs, 20)
    table = {name: runs[name].values for name in ("obs_id", "livetime")}
    wanted = {FIRST + 2: [FIRST + 70, FIRST + 1], FIRST + 45: [FIRST + 45], 99: [FIRST]}
    s = settings(rank="kl", time_request=4)
    free = computed(select_runs(lazy, lazy, s))
    selected = computed(select_runs(lazy, lazy, s, given=selection.given(wanted, table)))
    assert selected.of(2).obs_id.tolist() == [FIRST + 70, FIRST + 1]
    assert selected.of(45).obs_id.tolist() == [FIRST + 45]
    others = [i for i in range(N) if i not in (2, 45)]
    assert_same(selection.pack([selected.of(i) for i in others]), selection.pack([free.of(i) for i in others]))


def test_a_target_that_nothing_passes_says_why_and_takes_no_other_with_it(runs):
    lonely = runs.assign_coords(time=("obs_id", np.where(np.arange(N) == 33, 1.0, runs.time.values)))
    lazy = cut(lonely, 20)
    selected = computed(select_runs(lazy, lazy, settings(rank="kl", time_max=10000)))
    assert "time_max 10000 days: 0" in selected.of(33).reason
    assert [bool(reason) for reason in selected.reason] == [i == 33 for i in range(N)]


# -- the graph -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", RANKS)
def test_building_computes_nothing(rank):
    runs = make_runs(40, block=15)
    with dask.config.set(scheduler=refuse):
        tasks = select_runs(runs, runs, settings(rank=rank))
    assert len(tasks) == 3
    assert all(dask.is_dask_collection(task) for task in tasks)


def test_names_on_the_dashboard():
    runs = make_runs(40, block=15)
    by_kl, by_elevation = (
        {key_split(key) for key in keys_of(*select_runs(runs, runs, settings(rank=rank)))}
        for rank in ("kl", "elevation")
    )
    assert {"shape-of-runs", "kl-divergence", "select-runs"} <= by_kl
    assert {"choose-runs", "select-runs"} <= by_elevation
    assert not any("shape" in name or "kl" in name for name in by_elevation)


@pytest.mark.parametrize("rank", ["kl", "kl-conditions"])
@pytest.mark.slow
def test_the_full_matrix_is_never_there(rank):
    """Neither as one array, nor in pieces that are held at the same time."""
    n, block = 600, 40
    runs = make_runs(n, block=block)
    results, watch = watched(*select_runs(runs, runs, settings(rank=rank, time_request=2)))
    assert n_bytes(list(results)) < n * n * 8 / 4
    assert max(np.prod(shape, dtype=int) for shape in watch.shapes) < n * n / 50
    assert not any(sum(size >= n for size in shape) > 1 for shape in watch.shapes)
    assert watch.most < n * n * 8 / 2


def test_memory_grows_with_the_runs_and_not_with_their_pairs():
    most = []
    for n in (200, 400):
        runs = make_runs(n, block=25)
        most.append(watched(*select_runs(runs, runs, settings(rank="kl", time_request=2)))[1].most)
    assert most[1] < 2.3 * most[0]
