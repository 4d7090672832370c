"""From a stack to a file that gammapy reads: values, cards, bytes of the other HDUs, and what cannot be done."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from gammapy.data import DataStore
from gammapy.datasets import MapDataset
from gammapy.irf import Background2D
from gammapy.makers import MapDatasetMaker
from gammapy.maps import MapAxis, WcsGeom

import dask_bkg
from dask_bkg import selection
from dask_bkg.background.fill import ENERGY_POOLED, EXTRAPOLATED, RING_FILLED, SHAPE_POOLED
from dask_bkg.background.irf import rate_to_background
from dask_bkg.background.model import Model, RunMetadata
from dask_bkg.background.stack import stack_of_itself
from dask_bkg.compat import run_make_background
from dask_bkg.config import parse_config
from dask_bkg.errors import ArchiveError
from dask_bkg.output import provenance as bookkeeping
from dask_bkg.output.backgrounds import Backgrounds
from dask_bkg.output.write import Block, Result, digest_of, summarize_flags, write_block
from dask_bkg.plan import plan_job
from dask_bkg.reduction.reduce import reduce_block

pytestmark = pytest.mark.slow  # whole jobs, or simulations of many skies

mpl.use("Agg")


@pytest.fixture
def plan(job, four_runs):
    return plan_job(parse_config(job(four_runs)))


@pytest.fixture
def stacks(plan):
    """Stack of four targets, each from itself."""
    runs = reduce_block(plan.runs, plan.edges, plan.regions, "geometry", "disc")
    return stack_of_itself(runs.counts.values, runs.exposure.values, runs.livetime.values)


def selected(plan, **changes):
    """Each run from itself; ``changes`` are entries of the first selection."""
    numbers = np.array([target.obs_id for target in plan.targets])
    table = {"obs_id": numbers, "livetime": np.full(numbers.size, 1800.0)}
    first, *others = selection.given({number: [number] for number in numbers.tolist()}, table).values()
    return selection.pack([first._replace(**changes), *others])


@pytest.fixture
def kept(plan, tmp_path):
    """The store of results as it is by now, and what it has of the targets: ``kept("digest")``, a value each."""

    def look(name=None):
        backgrounds = Backgrounds(tmp_path / "kept", plan.edges, None, ("a job", {"config_hash": "c"}))
        if name is None:
            return backgrounds
        dataset = dask_bkg.open_backgrounds(tmp_path / "kept")
        return dict(zip(dataset.obs_id.values.tolist(), dataset[name].values, strict=True))

    return look


@pytest.fixture
def write(plan, stacks, kept):
    """Write the backgrounds of a plan, each run its own; targets, selections, ... may be changed."""

    def do(targets=plan.targets, chosen=None, copy=True, marks=None, state=None, first=0, made_by="settings", **more):
        block = Block(
            Model(plan.edges, plan.rate), copy, bookkeeping.common_cards(plan), made_by, kept().place, **more
        )
        targets = list(zip(targets, marks or [None] * len(targets), strict=True))
        metadata = RunMetadata(
            np.arange(4, dtype=np.uint64) if state is None else state, np.full(4, 20.0), np.full(4, 1e4)
        )
        chosen = {"spectrum": chosen or selected(plan)}
        return write_block(targets, first, chosen, {"spectrum": stacks}, metadata, block)

    return do


# --- what gammapy makes of it ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(dark_archive, tmp_path_factory):
    """A finished run-wise job on the first runs of the dark archive."""
    directory, _ = dark_archive
    out = tmp_path_factory.mktemp("finished")
    stars = out / "stars.dat"
    stars.write_text("10.0 -80.0 1 4.0 0.1\n")
    run_make_background({
        "cluster": "threads",
        "binning": {"mode": "2d"},
        "io": {"search_datastore": str(directory), "in_dir": str(directory), "out_dir": str(out), "from_run": True},
        "exclusion": {"catalogs": [], "star_cat": str(stars)},
        "run_selection": {"runlist": [64001, 64002, 64003]},
    })  # fmt: skip
    return out


def test_gammapy_reads_every_output(finished):
    store = DataStore.from_dir(finished)
    observations = store.get_observations(required_irf="full-enclosure")
    assert [obs.obs_id for obs in observations] == [64001, 64002, 64003]
    for obs in observations:
        assert isinstance(obs.bkg, Background2D)
        assert obs.bkg.axes.names == ["energy", "offset"]
        assert np.isfinite(obs.bkg.data).all()
        assert (obs.bkg.data > 0).all()
        obs.bkg.peek()
        assert len(obs.events.table) > 1000
    mpl.pyplot.close("all")


def test_gammapy_predicts_the_counts(finished):
    """The model of a run, by MapDatasetMaker, against the run's own events, above threshold and within 2 deg."""
    obs = DataStore.from_dir(finished).obs(64002)
    threshold = fits.getheader(finished / "data" / "run_064002.fits.gz", "BACKGROUND")["E_THRES"]
    edges = np.geomspace(0.1, 100, 31)
    energy = MapAxis.from_energy_edges(edges[np.searchsorted(edges, threshold) : 24], unit="TeV", name="energy")
    pointing = obs.pointing.fixed_icrs
    geom = WcsGeom.create(skydir=pointing, width=4.2, binsz=0.05, axes=[energy], proj="TAN")
    true = MapAxis.from_energy_bounds("0.1 TeV", "100 TeV", nbin=3, name="energy_true")
    maker = MapDatasetMaker(selection=["counts", "background"])
    dataset = maker.run(MapDataset.create(geom, energy_axis_true=true), obs)
    inside = geom.separation(pointing) < 2 * u.deg
    counts, predicted = (m.data[:, inside].sum(axis=1) for m in (dataset.counts, dataset.background))
    assert counts.sum() > 3000
    assert predicted.sum() / counts.sum() == pytest.approx(1, abs=0.02)
    assert ((predicted - counts) ** 2 / predicted).sum() < 2 * counts.size


def test_all_other_hdus_keep_their_bytes(finished, dark_archive):
    for obs_id in (64001, 64002, 64003):
        name = f"data/run_{obs_id:06d}.fits.gz"
        before, after = (gzip.decompress((place / name).read_bytes()) for place in (dark_archive[0], finished))
        assert after[: len(before)] == before
        assert len(after) > len(before)


def test_cards_of_the_background(finished):
    with fits.open(finished / "data" / "run_064001.fits.gz") as hdus:
        hdu, events = hdus["BACKGROUND"], hdus["EVENTS"]
        header = hdu.header
        assert [header[f"HDUCLAS{i}"] for i in (1, 2, 3, 4)] == ["RESPONSE", "BKG", "FULL-ENCLOSURE", "BKG_2D"]
        assert (header["FOVALIGN"], header["HDUCLASS"], header["HDUVERS"]) == ("RADEC", "GADF", "0.3")
        assert u.Unit(hdu.columns["BKG"].unit) == u.Unit("s-1 MeV-1 sr-1")
        assert (header["BKG_FROM"], header["N_RUNS"]) == ("run", 1)
        assert header["CREATOR"].startswith("dask_bkg ")
        assert header["LIVETIME"] == pytest.approx(events.header["LIVETIME"], abs=1e-3)
        assert header["N_EVENTS"] <= len(events.data)
        assert header["E_THRES"] == pytest.approx(hdus["EFFECTIVE AREA"].header["LO_THRES"], abs=1e-6)
        assert len(header["CONFHASH"]) == 12
        assert header["EXCLHASH"]
        assert [h.name for h in hdus].count("BACKGROUND") == 1


# --- blocks ------------------------------------------------------------------------------------------------


def test_what_is_written_is_the_rate(plan, write, stacks, kept):
    results = write()
    assert [result.status for result in results] == ["done"] * 4
    expected, _ = rate_to_background(stacks[0][2], stacks[1][2], plan.edges, plan.rate)
    written = Background2D.read(results[2].output, hdu=results[2].hdu)
    assert written.quantity.to_value("s-1 TeV-1 sr-1") == pytest.approx(expected.quantity.value, rel=1e-6)
    assert results[2].n_events == stacks[0][2].sum()
    assert results[2].hours == pytest.approx(stacks[2][2] / 3600, abs=1e-6)
    kept()
    contributing = kept("contributing")[64003][0]
    assert contributing[0] == 64003
    assert (contributing[1:] == -1).all()
    assert kept("weight")[64003][0, 0] == 1
    assert kept("rate")[64003] == pytest.approx(expected.quantity.value, rel=1e-6)


def test_a_part_of_a_block_takes_its_own_rows(plan, write, kept):
    """Blocks of hundreds of targets are written by several tasks."""
    whole = write()
    kept()
    digests = kept("digest")
    events = [result.n_events for result in whole]
    assert len(set(events)) == 4
    part = write(plan.targets[2:], first=2)
    assert [result.n_events for result in part] == events[2:]
    kept()
    assert [kept("contributing")[obs_id][0, 0] for obs_id in (64003, 64004)] == [64003, 64004]
    assert kept("digest") == digests
    assert len(set(digests.values())) == 4


def test_a_background_alone(plan, write):
    targets = [t._replace(output=t.output.replace("run_", "bkg_")) for t in plan.targets]
    result = write(targets, copy=False)[0]
    with fits.open(result.output) as hdus:
        assert [hdu.name for hdu in hdus] == ["PRIMARY", "BACKGROUND"]
    assert Background2D.read(result.output, hdu=result.hdu).data.shape == plan.edges.shape


def test_a_target_that_fails_does_not_take_the_others(plan, write, stacks):
    source = Path(plan.targets[1].source)
    source.write_bytes(source.read_bytes()[:-500])
    stacks[0][3] = 0
    results = write([*plan.targets[:2], plan.targets[2]._replace(source=64003), plan.targets[3]])
    assert [result.status for result in results] == ["done", "failed", "failed", "failed"]
    assert str(source) in results[1].reason
    assert results[2].reason.startswith("run 64003: unexpected ")
    assert "no event of its contributing runs" in results[3].reason
    assert "binning.e_min" in results[3].reason
    assert not Path(plan.targets[1].output).exists()


def test_a_target_without_a_selection_says_why(plan, write):
    results = write(chosen=selected(plan, reason="run 64001: no run of the archive passes"))
    assert (results[0].status, results[0].reason) == ("failed", "run 64001: no run of the archive passes")
    assert [result.status for result in results[1:]] == ["done"] * 3


def test_what_is_worth_knowing_is_remarked(plan, write):
    few = write(chosen=selected(plan, enough=False, hours=0.5))[0]
    assert few.reason == "0.5 hours found, fewer than background_selection.time_request"
    poor = write(chosen=selected(plan, flagged=True))[0]
    assert poor.reason == "some contributing runs cover less than 80 % of its expected counts"
    wide = write(chosen=selected(plan, widened=1.3))
    assert wide[0].reason == "kernel widened 1.30 times: few runs are alike"
    assert wide[1].reason == ""


def test_a_kernel_of_the_shape_that_was_widened_is_told(plan, stacks):
    runs, shape = selected(plan), selected(plan, widened=1.5)
    block = Block(Model(plan.edges, plan.rate), True, bookkeeping.common_cards(plan), "settings")
    metadata = RunMetadata(np.arange(4, dtype=np.uint64), np.full(4, 20.0), np.ones(4))
    both = {"spectrum": stacks, "shape": stacks}
    targets = [(target, None) for target in plan.targets]
    results = write_block(targets, 0, {"spectrum": runs, "shape": shape}, both, metadata, block)
    assert results[0].reason == "kernel of the shape widened 1.50 times: few runs are alike"
    assert results[1].reason == ""


def test_weights_and_scores_are_kept(plan, write, kept):
    write(chosen=selected(plan, weight=np.array([1 / 3]), score=np.array([0.123456789012])))
    kept()
    assert kept("weight")[64001][0, 0] == np.float32(1 / 3)
    assert kept("score")[64001][0, 0] == 0.123456789012


def test_runs_that_are_remarkable_or_absent_are_kept(plan, write, kept, stacks):
    about = {"notes": {64002: "odd", 64009: "none of these"}, "absent": {64001: {7: "run 7: gone"}}}
    results = write(**about)
    assert [result.reason for result in results] == ["1 contributing runs could not be used", "odd", "", ""]
    assert [result.failed_runs for result in results] == [{7: "run 7: gone"}, {}, {}, {}]
    kept()
    assert list(kept("notes").values()) == ["{}", '{"64002": "odd"}', "{}", "{}"]
    assert kept("failed_runs")[64001] == '{"7": "run 7: gone"}'
    stacks[0][0] = 0
    assert write(**about)[0].failed_runs == {7: "run 7: gone"}


def test_what_cannot_be_kept_is_the_end_of_all(write, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / ".backgrounds-parts").write_text("in the way")
    with pytest.raises(ArchiveError, match=r"\.backgrounds-parts cannot be written"):
        write()


def test_the_threshold_is_in_the_header_where_it_is_known(plan, write):
    first, *others = plan.targets
    results = write([first._replace(threshold=0.7), *others])
    assert [r.threshold for r in results] == pytest.approx([0.7, np.nan, np.nan, np.nan], nan_ok=True)
    assert fits.getheader(results[0].output, "BACKGROUND")["E_THRES"] == 0.7
    assert "E_THRES" not in fits.getheader(results[2].output, "BACKGROUND")


def test_a_stack_without_events_has_no_background(plan, write, stacks):
    stacks.counts[0] = 0
    results = write()
    assert [result.status for result in results] == ["failed", "done", "done", "done"]
    assert re.search(r"run 64001: no event .* within 0\.1-100 TeV", results[0].reason)


# --- what need not be made again ---------------------------------------------------------------------------


@pytest.fixture
def marks(plan, kept):
    """Marks of the targets, by what the store has of them."""

    def look():
        found = kept().marks(plan.targets)
        return [found.get(target.obs_id) for target in plan.targets]

    return look


def written(results) -> list[tuple[int, bytes]]:
    paths = [Path(result.output) for result in results]
    return [(path.stat().st_mtime_ns, path.read_bytes()) for path in paths]


def test_what_would_come_out_the_same_is_left_alone(write, marks):
    first = write()
    before = written(first)
    again = write(marks=marks())
    assert [result.status for result in again] == ["unchanged"] * 4
    assert all(result.done for result in again)
    assert written(first) == before


def test_without_a_mark_it_is_made_again_and_is_the_same_bytes(write):
    first = write()
    before = written(first)
    assert [result.status for result in write()] == ["done"] * 4
    after = written(first)
    assert [data for _, data in after] == [data for _, data in before]
    assert all(new[0] != old[0] for new, old in zip(after, before, strict=True))


@pytest.mark.parametrize("change", ["events", "weight", "runs", "settings", "source", "output", "gone"])
def test_what_has_changed_is_made_again_and_no_other(plan, write, marks, change):
    first = write()
    how, state = {}, np.arange(4, dtype=np.uint64)
    if change == "events":
        state[0] = 99
    elif change == "weight":
        how["chosen"] = selected(plan, weight=np.array([0.5]))
    elif change == "runs":
        how["chosen"] = selected(plan, run=np.array([0, 1]), obs_id=np.array([64001, 64002]), weight=np.ones(2))
    elif change == "settings":
        how["made_by"] = "other settings"
    elif change == "gone":
        Path(first[0].output).unlink()
    else:
        Path(getattr(plan.targets[0], change)).touch()
    again = write(marks=marks(), state=state, **how)
    rest = "done" if change == "settings" else "unchanged"
    assert [result.status for result in again] == ["done", rest, rest, rest]


def test_the_digest_is_of_the_runs_and_not_of_their_order():
    table = {"obs_id": np.array([11, 12, 13]), "livetime": np.ones(3)}
    state = np.array([5, 6, 7], dtype=np.uint64)
    forth, back, other = ({"spectrum": selection.by_hand(1, index, table)} for index in ([0, 2], [2, 0], [0, 1]))
    assert digest_of("x", forth, state) == digest_of("x", back, state)
    assert digest_of("x", forth, state) != digest_of("x", other, state)
    assert digest_of("x", forth, state) != digest_of("x", forth, state[::-1])
    assert digest_of("x", forth, state) != digest_of("y", forth, state)
    # what it was ranked by is not in the background
    ranked = forth["spectrum"]._replace(score=np.array([3.0, 4.0]))
    assert digest_of("x", {"spectrum": ranked}, state) == digest_of("x", forth, state)


def test_the_digest_is_of_all_that_runs_contribute_to():
    table = {"obs_id": np.array([11, 12, 13]), "livetime": np.ones(3)}
    state = np.array([5, 6, 7], dtype=np.uint64)
    some, others = (selection.by_hand(1, index, table) for index in ([0, 2], [0, 1]))
    roles = [(some,), (some, some), (some, others), (some, None, some), (some, some, some), (some, others, some)]
    names = ("spectrum", "shape", "night")
    chosen = [{name: role for name, role in zip(names, of, strict=False) if role is not None} for of in roles]
    assert len({digest_of("x", role, state) for role in chosen}) == len(roles)


# --- words -------------------------------------------------------------------------------------------------


def test_flags_are_counted_in_words_and_filled_bins_listed():
    flag = np.array([[SHAPE_POOLED, SHAPE_POOLED | RING_FILLED], [0, ENERGY_POOLED | EXTRAPOLATED]])
    summary = summarize_flags(flag)
    assert sorted(summary["bins"].values()) == [1, 1, 1, 2]
    assert summary["bins"]["radial shape pooled over energies"] == 2
    assert summary["filled"] == [[0, 1], [1, 1]]
    assert summarize_flags(np.zeros((2, 2), dtype=int)) == {"bins": {}, "filled": []}


def test_a_result_without_anything_is_empty():
    assert Result(1, "failed", "why").failed_runs == {}
    assert np.isnan(Result(1, "failed").threshold)
    assert [Result(1, status).done for status in ("done", "unchanged", "failed")] == [True, True, False]
