"""Predicted counts: those of gammapy, number by number on models in memory, and of its maker on written files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from gammapy.data import DataStore
from gammapy.datasets import MapDataset
from gammapy.irf import Background2D, Background3D
from gammapy.makers import MapDatasetMaker
from gammapy.maps import MapAxis, WcsGeom

from dask_bkg.config import parse_config
from dask_bkg.dl3.given import read_given
from dask_bkg.dl3.index import read_datastore
from dask_bkg.pipeline import run as pipeline
from dask_bkg.sky import fov
from dask_bkg.validation.prediction import HALVES, Nodes, Places, _sub_pixels, predict, wanted

pytestmark = pytest.mark.slow  # whole jobs, or simulations of many skies

PIXELS = tuple(np.round(np.arange(-12.5, 13) * 0.2, 12).tolist())
ENERGY = tuple(np.geomspace(0.1, 100, 31).tolist())
PLACES = Places(ENERGY, PIXELS, 2.0)
FEW = Places(tuple(np.geomspace(0.3, 3, 11).tolist()), tuple(np.linspace(-1.5, 1.5, 7).tolist()), 1.4)


def axis(name: str, edges) -> MapAxis:
    unit, interp = ("TeV", "log") if name == "energy" else ("deg", "lin")
    return MapAxis.from_edges(edges, unit=unit, name=name, interp=interp)


def by_gammapy(nodes: Nodes, places: Places):
    """gammapy's own interpolation and integration at the same small pixels; counts per time and solid angle."""
    n_half = (len(places.energy) - 1) * HALVES
    energy = np.exp(np.interp(np.arange(n_half + 1) / HALVES, np.arange(n_half // 2 + 1), np.log(places.energy)))
    lon, lat, weight = _sub_pixels(places)
    if len(nodes.axes) == 2:
        axes = [axis(name, edges) for name, edges in zip(("energy", "offset"), nodes.axes, strict=True)]
        bkg = Background2D(axes, data=nodes.value, unit="s-1 TeV-1 sr-1")
        bkg.interp_missing_data(axis_name="energy")
        bkg = bkg.pad(1, mode="edge", axis_name="offset")
        coords = {"offset": fov.separation(lon, lat, 0, 0)[None] * axes[1].unit}
    else:
        axes = [axis("energy", nodes.axes[0]), axis("fov_lon", nodes.axes[2]), axis("fov_lat", nodes.axes[1])]
        bkg = Background3D(axes, data=nodes.value.swapaxes(1, 2), unit="s-1 TeV-1 sr-1")
        bkg.interp_missing_data(axis_name="energy")
        coords = {"fov_lon": lon[None] * axes[1].unit, "fov_lat": lat[None] * axes[2].unit}
    rate = bkg.integrate_log_log(energy=energy[:, None, None] * axes[0].unit, axis_name="energy", **coords)
    rate = (rate.to_value("s-1 sr-1") * weight).sum(axis=2)
    return rate.reshape(-1, HALVES, rate.shape[1]).sum(axis=1)


def random_nodes(shape_axes, seed: int = 1, tiny: float = float(np.finfo(float).tiny)) -> Nodes:
    rng = np.random.default_rng(seed)
    energy = np.sqrt(shape_axes[0][1:] * shape_axes[0][:-1])
    shape = tuple(edges.size - 1 for edges in shape_axes)
    value = energy.reshape(-1, *[1] * (len(shape) - 1)) ** -2.7 * rng.lognormal(0, 0.5, shape)
    return Nodes(value, tuple(shape_axes), tiny)


E_MODEL = np.geomspace(0.2, 20, 14)
AXES = {
    "rings": (E_MODEL, np.linspace(0, 2.5, 11)),
    "rings from 0.3 deg": (E_MODEL, np.linspace(0.3, 1.1, 4)),
    "pixels": (E_MODEL, np.linspace(-2.5, 2.5, 21), np.linspace(-2.5, 2.5, 21)),
    "a narrow field": (E_MODEL, np.linspace(-0.8, 1.1, 8), np.linspace(-1.2, 0.7, 6)),
    "a narrow range of energies": (np.geomspace(0.5, 2, 6), np.linspace(0, 2.5, 11)),
    "uneven rings": (E_MODEL, np.array([0, 0.2, 0.5, 1.1, 1.3])),
}


@pytest.mark.parametrize("name", AXES)
def test_it_is_gammapys_own_number_by_number(name):
    nodes = random_nodes(AXES[name])
    np.testing.assert_allclose(predict(nodes, FEW), by_gammapy(nodes, FEW), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("missing", [0.0, np.nan])
@pytest.mark.parametrize("name", ["rings", "pixels"])
def test_missing_values_are_filled_along_energy_as_gammapy_does(name, missing):
    """Between others; at an end gammapy predicts (next to) nothing."""
    nodes = random_nodes(AXES[name])
    holes = np.random.default_rng(3).random(nodes.value.shape) < 0.3
    holes[:4] = holes[-3:] = False
    middle = holes.shape[1] // 2 if holes.ndim == 3 else 1
    value = np.where(holes, missing, nodes.value)
    value[:3, middle] = 0.0
    nodes = nodes._replace(value=value)
    mine, theirs = predict(nodes, FEW), by_gammapy(nodes, FEW)
    assert (theirs < 0.5 * by_gammapy(random_nodes(AXES[name]), FEW)).any()
    np.testing.assert_allclose(mine, theirs, rtol=1e-7, atol=1e-9 * theirs.max())


def test_a_power_law_is_integrated_exactly():
    """Through the bin centres of a model of 10 bins a decade, which are edges of the map's 20."""
    energy = np.geomspace(0.1, 100, 31)
    center = np.sqrt(energy[1:] * energy[:-1])
    nodes = Nodes(np.repeat(center[:, None] ** -2.7, 10, axis=1), (energy, np.linspace(0, 2.5, 11)))
    rate = predict(nodes, PLACES)
    exact = (energy[:-1] ** -1.7 - energy[1:] ** -1.7) / 1.7
    np.testing.assert_allclose(rate, np.repeat(exact[:, None], rate.shape[1], axis=1), rtol=1e-9)
    flat = nodes._replace(value=np.repeat(1 / center[:, None], 10, axis=1))
    np.testing.assert_allclose(predict(flat, PLACES)[:, 0], np.log(energy[1:] / energy[:-1]), rtol=1e-9)


def test_a_field_is_averaged_over_a_pixel():
    """exp(a x) has the mean sinh(a w) / (a w) over a pixel of half-width w."""
    edges, slope = np.linspace(-3, 3, 601), 2.0
    center = (edges[1:] + edges[:-1]) / 2
    value = np.exp(slope * center)[None, None, :] * np.ones((2, 600, 1))
    nodes = Nodes(value, (np.array([0.1, 1.0, 10.0]), edges, edges))
    places = Places((0.5, 1.0), PIXELS, 0.05)
    expected = 0.5 * np.sinh(slope * 0.1) / (slope * 0.1)
    np.testing.assert_allclose(predict(nodes, places), [[expected]], rtol=1e-3)


def test_pixels_are_those_whose_centre_is_near():
    index = wanted(PLACES)
    row, column = np.divmod(index, 25)
    center = np.round((np.array(PIXELS)[1:] + np.array(PIXELS)[:-1]) / 2, 9)
    everywhere = fov.separation(center[None, :], center[:, None], 0, 0) < 2.0 - 1e-6  # four centres are at 2 deg
    assert index.size == everywhere.sum()
    assert everywhere[row, column].all()


def test_a_wrong_shape_is_told():
    with pytest.raises(ValueError, match=r"shape \(3, 4\) does not fit axes of \(4, 3\)"):
        predict(Nodes(np.ones((3, 4)), (np.geomspace(1, 10, 5), np.linspace(0, 1, 4))), FEW)


# -- on written files ----------------------------------------------------------------------------------------------


def compare_with_maker(directory: Path, obs_id: int, altaz: bool = False) -> None:
    """0.1 % of the total, 1 % in any bin with 10 or more expected counts: of energy and pixel, means of the rate.

    A field aligned with the horizon is compared ring by ring, as gammapy turns it on its way to the map.
    """
    observation = DataStore.from_dir(directory).obs(obs_id)
    given = read_given(read_datastore(directory), obs_id)
    mine = predict(Nodes(given.rate, given.axes, given.tiny), PLACES)
    pointing = observation.pointing.fixed_icrs
    energy = MapAxis.from_energy_bounds(0.1, 100, 60, unit="TeV")
    geom = WcsGeom.create(skydir=pointing, width=4.4, binsz=0.025, axes=[energy], proj="TAN")
    made = MapDatasetMaker(selection=["background"]).run(MapDataset.create(geom), observation)
    counts = made.background.data.reshape(30, 2, *geom.data_shape[1:]).sum(axis=1).reshape(30, -1)
    sky, solid_angle = geom.to_image().get_coord().skycoord, geom.to_image().solid_angle().to_value("sr").ravel()
    lon, lat = (part.ravel() for part in fov.to_fov(sky.ra.deg, sky.dec.deg, pointing.ra.deg, pointing.dec.deg))
    row, column = (np.floor((part + 2.5) / 0.2).astype(int) for part in (lat, lon))
    inside = (row >= 0) & (row < 25) & (column >= 0) & (column < 25)
    pixel = np.where(inside, row * 25 + column, 625)
    seen, area = (
        np.array([np.bincount(pixel, part, minlength=626)[:625][wanted(PLACES)] for part in np.atleast_2d(values)])
        for values in (counts, solid_angle)
    )
    ontime = observation.observation_time_duration.to_value("s")
    expected, theirs = mine * ontime * area, seen
    assert expected.sum() == pytest.approx(theirs.sum(), rel=1e-3)
    if altaz:
        r, c = np.divmod(wanted(PLACES), 25)
        ring = np.round(np.hypot(r - 12, c - 12)).astype(int)
        expected, theirs = (np.array([np.bincount(ring, e) for e in part]) for part in (expected, theirs))
    many = theirs >= 10
    assert many.any() or theirs.max() < 10
    if many.any():
        np.testing.assert_allclose(expected[many], theirs[many], rtol=0.01)


@pytest.mark.parametrize("binning", [{"mode": "2d"}, {"mode": "3d", "alignment": "radec"}, {"mode": "3d"}], ids=str)
def test_it_is_what_gammapys_maker_predicts_of_a_file(dark_archive, job, binning, tmp_path):
    directory, _ = dark_archive
    config = parse_config(job(directory, binning=binning, run_selection={"runlist": [64001]}))
    pipeline.run_job(config, progress=False)
    compare_with_maker(tmp_path / "out", 64001, altaz=binning == {"mode": "3d"})


@pytest.mark.realdata
@pytest.mark.parametrize("obs_id", [20136, 23523, 47829])
def test_it_is_what_gammapys_maker_predicts_of_the_released_models(gammapy_data, obs_id):
    compare_with_maker(gammapy_data / "hess-dl3-dr1", obs_id)


@pytest.mark.realdata
def test_released_models_are_mirrored_as_gammapy_has_it(gammapy_data):
    directory = gammapy_data / "hess-dl3-dr1"
    given, bkg = read_given(read_datastore(directory), 20136), DataStore.from_dir(directory).obs(20136).bkg
    assert bkg.fov_alignment == "REVERSE_LON_RADEC"
    assert given.alignment == "radec"
    np.testing.assert_allclose(given.rate[:, :, ::-1], bkg.quantity.to_value("s-1 TeV-1 sr-1").swapaxes(1, 2))
    assert os.path.isdir(directory)
