"""From a stack to a file that gammapy reads: values, cards, bytes of the other HDUs, and what cannot be done."""

from __future__ import annotations

import gzip
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

from dask_bkg import bookkeeping, products
from dask_bkg.compat import run_make_background
from dask_bkg.config import parse_config
from dask_bkg.dl3.reduce import reduce_block
from dask_bkg.irf import rate_to_background
from dask_bkg.pipeline import read_header_batch
from dask_bkg.plan import plan_job
from dask_bkg.products import Result, summarize_flags, write_block
from dask_bkg.rate import ENERGY_POOLED, EXTRAPOLATED, RING_FILLED, SHAPE_POOLED

mpl.use("Agg")


@pytest.fixture
def plan(job, four_runs):
    return plan_job(parse_config(job(four_runs)), read_header_batch)


@pytest.fixture
def write(plan):
    """Write the backgrounds of a plan, each run its own; ``targets`` may be changed."""

    def do(targets=plan.targets, errors=None, copy=True):
        runs = reduce_block(plan.runs, plan.edges, plan.regions, "geometry", "disc")
        n = len(targets)
        errors = errors or [{}] * n
        return write_block(
            targets, runs.counts.values, runs.exposure.values, runs.livetime.values, np.ones(n, dtype=int), errors,
            [{}] * n, plan.edges, plan.rate, copy, bookkeeping.common_cards(plan),
        )  # fmt: skip

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


def test_what_is_written_is_the_rate(plan, write):
    results = write()
    assert [result.status for result in results] == ["done"] * 4
    runs = reduce_block(plan.runs, plan.edges, plan.regions, "geometry", "disc")
    expected, _ = rate_to_background(runs.counts.values[2], runs.exposure.values[2], plan.edges, plan.rate)
    written = Background2D.read(results[2].output, hdu=results[2].hdu)
    assert written.quantity.to_value("s-1 TeV-1 sr-1") == pytest.approx(expected.quantity.value, rel=1e-6)
    assert results[2].n_events == runs.counts.values[2].sum()
    assert results[2].hours == pytest.approx(float(runs.livetime[2]) / 3600, abs=1e-6)


def test_a_background_alone(plan, write):
    targets = [t._replace(output=t.output.replace("run_", "bkg_")) for t in plan.targets]
    result = write(targets, copy=False)[0]
    with fits.open(result.output) as hdus:
        assert [hdu.name for hdu in hdus] == ["PRIMARY", "BACKGROUND"]
    assert Background2D.read(result.output, hdu=result.hdu).data.shape == plan.edges.shape


def test_a_target_that_fails_does_not_take_the_others(plan, write, monkeypatch):
    source = Path(plan.targets[1].source)
    source.write_bytes(source.read_bytes()[:-500])

    def surprise(path, *args):
        if path == plan.targets[2].source:
            raise KeyError("what nobody thought of")
        return np.nan

    monkeypatch.setattr(products, "read_threshold", surprise)
    results = write()
    assert [result.status for result in results] == ["done", "failed", "failed", "done"]
    assert str(source) in results[1].reason
    assert "unexpected KeyError" in results[2].reason
    assert "64003" in results[2].reason
    assert not Path(plan.targets[1].output).exists()


def test_a_target_whose_runs_all_failed_says_why(plan, write):
    empty = write_block(
        [plan.targets[0], plan.targets[1]._replace(contributing=(7, 8))],
        *np.zeros((2, 2, *plan.edges.shape)), np.zeros(2), np.zeros(2, dtype=int),
        [{64001: "run 64001: no GTI"}, {7: "run 7: gone", 8: "run 8: broken"}], [{}, {}],
        plan.edges, plan.rate, True, {},
    )  # fmt: skip
    assert [result.status for result in empty] == ["failed", "failed"]
    assert empty[0].reason == "run 64001: no GTI"
    assert "run 7: gone; run 8: broken" in empty[1].reason
    assert empty[1].failed_runs == {7: "run 7: gone", 8: "run 8: broken"}


def test_what_is_worth_knowing_is_remarked(plan, write):
    targets = [t._replace(enough=t.obs_id != 64001, contributing=(t.obs_id, 7)) for t in plan.targets]
    results = write(targets, errors=[{}, {7: "run 7: gone"}, {}, {}])
    assert "fewer hours" in results[0].reason
    assert results[1].reason == "1 contributing runs could not be used"
    assert results[1].contributing == (64002,)
    assert results[2].reason == ""


def test_threshold_of_the_index_then_of_the_file_then_none(plan, write):
    first, second, third, fourth = plan.targets
    gone = second.aeff._replace(hdu="NOT THERE")
    targets = [first._replace(threshold=0.7), second._replace(aeff=gone), third._replace(aeff=None), fourth]
    results = write(targets)
    lo_thres = fits.getheader(fourth.source, "EFFECTIVE AREA")["LO_THRES"]
    assert [r.threshold for r in results] == pytest.approx([0.7, np.nan, np.nan, lo_thres], nan_ok=True)
    assert fits.getheader(results[0].output, "BACKGROUND")["E_THRES"] == 0.7
    assert "E_THRES" not in fits.getheader(results[2].output, "BACKGROUND")


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
