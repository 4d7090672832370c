"""Jobs of 3D backgrounds: from the configuration to what gammapy reads, run-wise and stacked, in both alignments."""

from __future__ import annotations

import json
from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
import xarray as xr
from astropy.io import fits
from astropy.table import Table
from gammapy.data import DataStore
from gammapy.irf import Background2D, Background3D
from helpers.described import described
from numpy.testing import assert_allclose

from dask_bkg import make_background
from dask_bkg.binning import FieldEdges
from dask_bkg.compat import run_make_background
from dask_bkg.config import parse_config
from dask_bkg.dl3.background import read_rate
from dask_bkg.errors import ConfigError
from dask_bkg.pipeline import graph as wiring
from dask_bkg.pipeline import run as pipeline
from dask_bkg.pipeline.tables import make_tables
from dask_bkg.pipeline.update import reduce_archive, update_store
from dask_bkg.plan import plan_job
from dask_bkg.simulate import simulate_archive
from dask_bkg.store.load import load_field
from dask_bkg.store.store import RunStore

pytestmark = pytest.mark.slow  # whole jobs, or simulations of many skies

OBS_IDS = [64001, 64002, 64003, 64004]
FIELD = {"mode": "3d", "fov_bins": 10}
STACKED = {"io": {"from_run": False}, "background_selection": {"rank": "kl", "time_request": 0.8}}


def backgrounds(out: Path) -> dict[int, Background3D]:
    return {obs.obs_id: obs.bkg for obs in DataStore.from_dir(out).get_observations(required_irf="full-enclosure")}


def written(out: Path) -> dict[int, np.ndarray]:
    """The rates as they are in the files."""
    return {int(path.name[4:10]): fits.getdata(path, "BACKGROUND")["BKG"] for path in out.glob("data/run_*.gz")}


def in_rings(bkg: Background2D | Background3D, edges: np.ndarray) -> np.ndarray:
    """Means over rings [deg] of what gammapy interpolates, integrated over energy, s-1 sr-1."""
    fine = (np.arange(-250, 250) + 0.5) * 0.01
    lon, lat = np.meshgrid(fine, fine)
    ring = np.digitize(np.hypot(lon, lat), edges) - 1
    lon, lat, ring = (array[(ring >= 0) & (ring < edges.size - 1)] for array in (lon, lat, ring))
    place = {"fov_lon": lon, "fov_lat": lat} if isinstance(bkg, Background3D) else {"offset": np.hypot(lon, lat)}
    energy = bkg.axes["energy"]
    rate = bkg.evaluate(energy=energy.center[:, None], **{name: value * u.deg for name, value in place.items()})
    spectrum = np.diff(energy.edges.to_value("TeV")) @ rate.to_value("s-1 TeV-1 sr-1")
    return np.bincount(ring, spectrum) / np.bincount(ring)


# --- what comes out ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sections", [{"io": {"from_run": True}}, STACKED], ids=["run", "stack"])
@pytest.mark.parametrize("alignment", ["altaz", "radec"])
def test_gammapy_reads_a_field(job, four_runs, tmp_path, sections, alignment):
    run_make_background(job(four_runs, binning={**FIELD, "alignment": alignment}, **sections))
    found = backgrounds(tmp_path / "out")
    assert sorted(found) == OBS_IDS
    for bkg in found.values():
        assert isinstance(bkg, Background3D)
        assert bkg.axes.names == ["energy", "fov_lon", "fov_lat"]
        assert bkg.data.shape == (30, 10, 10)
        assert bkg.fov_alignment.value == alignment.upper()
        assert np.isfinite(bkg.data).all()
        assert (bkg.data > 0).all()
        bkg.peek()
    index = DataStore.from_dir(tmp_path / "out").hdu_table
    assert index["HDU_CLASS"][index["HDU_TYPE"] == "bkg"].tolist() == ["bkg_3d"] * 4


@pytest.mark.parametrize("sections", [{"io": {"from_run": True}}, STACKED], ids=["run", "stack"])
def test_its_mean_over_angle_is_the_2d_background(job, dark_archive, tmp_path, sections):
    sections = {**sections, "run_selection": {"runlist": [64002, 64007]}}
    edges = np.linspace(0, 2, 5)
    run_make_background(job(dark_archive[0], binning={"mode": "3d"}, **sections))
    fields = backgrounds(tmp_path / "out")
    run_make_background(job(dark_archive[0], **sections))
    rings = backgrounds(tmp_path / "out")
    assert sorted(rings) == [64002, 64007]
    for obs_id, bkg in rings.items():
        assert_allclose(in_rings(fields[obs_id], edges), in_rings(bkg, edges), rtol=0.015)


def test_bins_that_are_no_sums_of_fine_ones_are_counted_for_themselves(job, four_runs, tmp_path, caplog):
    binning = {**FIELD, "fov_bins": 11, "alignment": "altaz"}
    run_make_background(job(four_runs, binning=binning, io={"from_run": True}))
    store = RunStore.open(tmp_path / "out/results/runs.zarr")
    (name,) = set(store.views) - {""}
    assert (len(store.views[name].pixels), store.views[name].alignment) == (12, "altaz")
    assert {bkg.data.shape for bkg in backgrounds(tmp_path / "out").values()} == {(30, 11, 11)}
    assert "fov_max) are no sums of the fine ones of the run store (0.2 deg): 4 runs are read for it" in caplog.text
    caplog.clear()
    run_make_background(job(four_runs, binning={**binning, "fov_bins": 5}, io={"from_run": True}))
    assert "no sum" not in caplog.text


def test_events_are_read_once_for_all_fields(job, four_runs, tmp_path):
    """The view that is aligned with the horizon is added to the store of a 2D job, and other pixels are its sums."""
    asked = [{}, {"mode": "3d"}, {"mode": "3d", "fov_bins": 5}, {"mode": "3d", "alignment": "radec"}]
    read = []
    for binning in asked:
        plan = plan_job(parse_config(job(four_runs, binning=binning, **STACKED)))
        read.append(update_store(plan, None, plan.config.store_path, progress=False).read)
    assert read == [4, 4, 0, 0]


def test_reduce_fills_the_field_of_the_job(job, four_runs):
    config = parse_config(job(four_runs, binning={"mode": "3d"}, **STACKED))
    assert reduce_archive(config, progress=False).read == 4
    summary = pipeline.run_job(config, progress=False)
    assert (summary.runs_read, summary.runs_opened) == (0, 0)


@pytest.mark.parametrize("rank", ["elevation", "conditions"])
def test_the_stack_of_fields_is_the_sum_of_its_runs(job, four_runs, rank):
    """Of those of the shape, where it has runs of its own."""
    sections = {**STACKED, "background_selection": {"rank": rank}}
    plan = plan_job(parse_config(job(four_runs, binning=FIELD, config={"block": 2}, **sections)))
    stored = update_store(plan, None, plan.config.store_path, progress=False)
    tables = make_tables(plan, stored)
    graph = wiring.build(plan, tables, stored)
    chosen = [part.compute() for part in graph.selected["shape" if rank == "conditions" else "spectrum"]]
    fields = [part.compute() for part in graph.stacks["field"]]
    runs = wiring.field_histograms(plan, tables, stored).compute()
    for i in range(4):
        used = chosen[i // 2].of(i % 2).run
        assert used.size > 0
        weight = xr.DataArray(chosen[i // 2].of(i % 2).weight, dims="obs_id")
        assert_allclose(fields[i // 2].counts[i % 2], (weight * runs.counts[used]).sum("obs_id"), rtol=1e-12)
        assert_allclose(fields[i // 2].exposure[i % 2], (weight * runs.exposure[used]).sum("obs_id"), rtol=1e-12)


def test_the_same_wherever_it_is_computed(job, four_runs, tmp_path):
    """The same bytes on threads and processes; in other blocks the exposure is added up in another order."""
    found = []
    for config, cluster in (({}, "threads"), ({"njobs": 2}, "local"), ({"block": 1, "split_every": 2}, "threads")):
        run_make_background(job(four_runs, binning=FIELD, config=config, cluster=cluster, **STACKED))
        found.append(written(tmp_path / "out"))
        for path in tmp_path.glob("out/data/*"):
            path.unlink()
    for obs_id in OBS_IDS:
        assert found[0][obs_id].tobytes() == found[1][obs_id].tobytes()
        assert_allclose(found[2][obs_id], found[0][obs_id], rtol=1e-9)


def test_nothing_is_made_twice_and_a_new_mode_is_made_anew(job, four_runs, tmp_path):
    def statuses(binning):
        run_make_background(job(four_runs, binning=binning, **STACKED))
        return set(Table.read(tmp_path / "out/results/summary.ecsv")["STATUS"])

    assert [statuses(binning) for binning in (FIELD, FIELD, {}, FIELD)] == [
        {"done"},
        {"unchanged"},
        {"done"},
        {"done"},
    ]
    index = DataStore.from_dir(tmp_path / "out").hdu_table
    assert set(index["HDU_CLASS"][index["HDU_TYPE"] == "bkg"]) == {"bkg_3d"}


@pytest.mark.parametrize("alignment", ["altaz", "radec"])
def test_the_switch_of_gammapy_tools(job, four_runs, tmp_path, alignment):
    """Under its preset the plain counts / exposure of each pixel, zeros and all."""
    sections = {"preset": "gammapy-tools", "io": {"from_run": True, "3d_bkg": True}}
    run_make_background(job(four_runs, binning={"mode": None, "fov_bins": 10, "alignment": alignment}, **sections))
    bkg = backgrounds(tmp_path / "out")[64001]
    assert isinstance(bkg, Background3D)
    assert (bkg.data == 0).any()
    store = RunStore.open(tmp_path / "out/results/runs.zarr")
    (view,) = (v for v in store.views.values() if v.name.startswith("field-"))
    assert view.alignment == alignment
    row = store.find([64001], view.name)
    edges = parse_config(job(four_runs, binning={"mode": "3d", "fov_bins": 10, "e_bins": 20})).binning
    axes = FieldEdges(edges.energy_edges, edges.fov_edges)
    counts, exposure = load_field(str(store.path), view.name, row, axes)
    volume = np.diff(axes.energy)[:, None, None] * exposure[0]
    assert_allclose(bkg.quantity.to_value("s-1 TeV-1 sr-1"), (counts[0] / volume).transpose(0, 2, 1), rtol=1e-6)


def test_one_run_in_a_notebook(job, four_runs, tmp_path):
    config = job(four_runs, binning=FIELD, **STACKED)
    run_make_background(config)
    background = make_background(four_runs, 64002, config)
    assert isinstance(background, Background3D)
    assert_allclose(background.quantity, backgrounds(tmp_path / "out")[64002].quantity, rtol=1e-6)


# --- the truth -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tilted(tmp_path_factory):
    """Twelve runs whose acceptance tilts towards the zenith."""
    directory = tmp_path_factory.mktemp("tilted")
    simulate_archive(directory, runs=12, events=8000, seed=5, sources=False, stars=False, tilt=0.6)
    return directory


@pytest.mark.parametrize("field", ["gradient", "free", "both"])
@pytest.mark.parametrize("alignment", ["altaz", "radec"])
def test_the_bright_side_is_that_of_the_run_itself(job, tilted, tmp_path, alignment, field):
    """Each background is made of other runs; the events of the run lie where it says, in either frame."""
    sections = {"io": {"from_run": False}, "model": {"field": field}}
    binning = {"mode": "3d", "alignment": alignment}
    config = parse_config(job(tilted, binning=binning, **sections))
    results = described(pipeline.run_job(config, progress=False))
    store, edges = RunStore.open(config.store_path), FieldEdges(config.binning.energy_edges, config.binning.fov_edges)
    own = store.field_view_for(edges, alignment, "disc")
    # the view on the sky is the fine one, that on the horizon was filled by the job
    counts, exposure = load_field(str(store.path), own.name, store.find([r.obs_id for r in results], own.name), edges)
    center = config.binning.fov_edges[:-1] + 0.1
    offset = np.hypot(center[:, None], center)
    found = tilt_expected = variance = flat_expected = 0.0
    for result, n, open_sky in zip(results, counts, exposure, strict=True):
        rate = read_rate(result.output, result.hdu)
        assert result.obs_id not in result.contributing
        expected = rate * np.diff(edges.energy)[:, None, None] * open_sky
        above = np.sqrt(edges.energy[1:] * edges.energy[:-1]) > result.threshold
        expected, n = (values[above][:, offset < 2].sum(axis=0) for values in (expected, n))
        ring = np.digitize(offset[offset < 2], np.arange(0, 2.1, 0.25)) - 1
        flat = (np.bincount(ring, expected) / np.bincount(ring))[ring]
        side = expected / flat - 1
        level = n.sum() / expected.sum()  # that of the run is its own
        found += n @ side
        tilt_expected += level * (expected @ side)
        flat_expected += level * (flat @ side)
        variance += level * (expected @ side**2)
    # what is free to be anything is held back by its prior
    assert field == "free" or abs(found - tilt_expected) < 4 * np.sqrt(variance)
    assert found - flat_expected > 10 * np.sqrt(variance)


# --- what cannot be done ---------------------------------------------------------------------------------------


def test_without_a_site_there_is_no_horizon(job, four_runs, run_path, edit_run, tmp_path):
    def blind(hdus):
        for card in ("GEOLON", "GEOLAT", "ALTITUDE", "OBSGEO-L", "OBSGEO-B", "OBSGEO-H"):
            hdus["EVENTS"].header.remove(card, ignore_missing=True)

    edit_run(run_path(four_runs, 64003), blind)
    run_make_background(job(four_runs, binning=FIELD, **STACKED))
    told = json.loads((tmp_path / "out/results/provenance.json").read_text())
    assert sorted(backgrounds(tmp_path / "out")) == [64001, 64002, 64004]
    reason = told["failed_runs"]["64003"] if "failed_runs" in told else json.dumps(told)
    assert "GEOLON" in reason
    assert "GEOLAT" in reason
    # nothing else is lost: a 2D job does not need it, and reads no event again
    run_make_background(job(four_runs, **STACKED))
    assert sorted(backgrounds(tmp_path / "out")) == OBS_IDS
    # nor does the run's own field on the sky
    run_make_background(
        job(four_runs, binning={**FIELD, "alignment": "radec"}, io={"from_run": True}, model={"field": "free"})
    )
    assert sorted(backgrounds(tmp_path / "out")) == OBS_IDS


def test_a_gradient_needs_to_know_where_the_zenith_was(job, four_runs, run_path, edit_run, tmp_path):
    for obs_id in (64001, 64002):
        edit_run(run_path(four_runs, obs_id), lambda hdus: hdus["EVENTS"].header.remove("ALT_PNT"))
    index = four_runs / "obs-index.fits.gz"
    with fits.open(index) as hdus:
        table = Table(hdus[1].data)
    table.remove_columns([name for name in ("ZEN_PNT", "ALT_PNT") if name in table.colnames])
    fits.HDUList([fits.PrimaryHDU(), fits.table_to_hdu(table)]).writeto(index, overwrite=True)
    binning = {**FIELD, "alignment": "radec"}
    results = pipeline.run_job(parse_config(job(four_runs, binning=binning)), progress=False).results
    assert [result.status for result in results] == ["failed", "failed", "done", "done"]
    assert "ALT_PNT in EVENTS" in results[0].reason
    assert "model.field: free" in results[0].reason
    # a stack does without those of the contributing runs that nobody knows
    every = {**STACKED, "background_selection": {"rank": "none"}}
    results = pipeline.run_job(parse_config(job(four_runs, binning=binning, **every)), progress=False).results
    assert [result.status for result in results] == ["failed", "failed", "done", "done"]
    run_make_background(job(four_runs, binning=binning, model={"field": "free"}))
    assert sorted(backgrounds(tmp_path / "out")) == OBS_IDS


def test_axes_that_gammapy_would_mistake_are_refused(job, four_runs):
    with pytest.raises(ConfigError, match=r"fov_bins and binning\.e_bins are both 30"):
        parse_config(job(four_runs, binning={"mode": "3d", "fov_bins": 30}))
    with pytest.raises(ConfigError, match=r"off_min \(0\.5 deg\) must be 0 for binning\.mode: 3d"):
        parse_config(job(four_runs, binning={"mode": "3d", "off_min": 0.5}))
    assert parse_config(job(four_runs, binning={"fov_bins": 30})).binning.mode == "2d"


# --- the mode that nobody asked for ---------------------------------------------------------------------------------


def resolved(job, archive, **sections):
    config = job(archive, **sections)
    config["binning"] = {name: value for name, value in config["binning"].items() if name != "mode"}
    return plan_job(parse_config(config)).config.binning.mode


def test_3d_is_the_default_where_the_horizon_is_known(job, four_runs):
    assert parse_config({}).binning.mode is None
    assert resolved(job, four_runs) == "3d"
    assert resolved(job, four_runs, preset="gammapy-tools") == "2d"


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"binning": {"off_min": 0.5}}, "off_min"),
        ({"binning": {"e_bins": 25}}, "as many energies"),
        ({"model": {"fill": False, "node_values": "plain"}}, "model.fill"),
    ],
)
def test_what_does_not_go_with_pixels_makes_it_2d_and_says_so(job, four_runs, caplog, sections, reason):
    with caplog.at_level("INFO"):
        assert resolved(job, four_runs, **sections) == "2d"
    assert reason in caplog.text


def test_an_archive_without_a_site_has_2d_backgrounds_by_default(job, four_runs, run_path, edit_run, caplog):
    for obs_id in OBS_IDS:
        edit_run(run_path(four_runs, obs_id), lambda hdus: [hdus["EVENTS"].header.remove("GEOLON")])
    with caplog.at_level("INFO"):
        assert resolved(job, four_runs) == "2d"
    assert "GEOLON" in caplog.text


def test_the_first_run_that_can_be_read_speaks_for_all(job, four_runs, run_path):
    run_path(four_runs, 64001).write_bytes(b"lost")
    assert resolved(job, four_runs) == "3d"
    for obs_id in OBS_IDS:
        run_path(four_runs, obs_id).write_bytes(b"lost")
    assert resolved(job, four_runs) == "2d"


def test_files_whose_3d_backgrounds_gammapy_mirrors_stay_2d_beside_an_index(job, four_runs, run_path, edit_run):
    def by_sash(hdus):
        hdus["EVENTS"].header["CREATOR"] = "SASH FITS::EventListWriter"
        hdus["EVENTS"].header["HDUVERS"] = "0.2"

    for obs_id in OBS_IDS:
        edit_run(run_path(four_runs, obs_id), by_sash)
    assert resolved(job, four_runs, io={"attach": "index"}) == "2d"
    assert resolved(job, four_runs) == "3d"


def test_a_default_job_writes_3d_and_its_lists_are_known_again(job, four_runs, tmp_path, caplog):
    config = job(four_runs, io={"from_run": False}, background_selection={"rank": "elevation", "time_request": 0.8})
    del config["binning"]
    finished = run_make_background(config)
    background = DataStore.from_dir(tmp_path / "out").obs(64001).bkg
    assert isinstance(background, Background3D)
    assert background.fov_alignment.value == "ALTAZ"
    caplog.clear()
    run_make_background(finished)
    assert "have changed" not in caplog.text
