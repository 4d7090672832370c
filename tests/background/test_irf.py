"""Arrays to gammapy's backgrounds: axes, units, and the document's smoothing."""

from __future__ import annotations

import astropy.units as u
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from gammapy.irf import Background2D, Background3D
from gammapy.maps import MapAxis
from numpy.testing import assert_allclose, assert_array_equal
from scipy.ndimage import gaussian_filter

from dask_bkg import schema
from dask_bkg.background import irf
from dask_bkg.background.estimate import RateSettings, estimate_rate
from dask_bkg.binning import Edges, FieldEdges

ENERGY, OFFSET = np.geomspace(0.1, 100, 7), np.linspace(0, 2.5, 6)
EDGES = Edges(ENERGY, OFFSET)
FIELD = FieldEdges(ENERGY, np.linspace(-2, 2, 9))
UNIT = u.Unit("s-1 TeV-1 sr-1")


def model(energy=ENERGY, offset=OFFSET):
    """Rates that differ in every bin, s-1 TeV-1 sr-1."""
    spectrum = (energy[1:] * energy[:-1]) ** -1.35
    return np.outer(spectrum, np.exp(-0.5 * ((offset[1:] + offset[:-1]) / 3) ** 2))


def histograms(total=30000, seed=0):
    rng = np.random.default_rng(seed)
    exposure = 1e4 * np.outer(np.diff(ENERGY), -2 * np.pi * np.diff(np.cos(np.deg2rad(OFFSET))))
    mean = model() * exposure
    return rng.poisson(mean * total / mean.sum()).astype(float), exposure


def test_axes_are_gammapys_with_log_energies_and_linear_offsets():
    energy, offset = irf.axes_of(EDGES)
    assert (energy.name, offset.name) == ("energy", "offset")
    assert (energy.interp, offset.interp) == ("log", "lin")
    assert_allclose(energy.edges.to_value("TeV"), ENERGY)
    assert_allclose(offset.edges.to_value("deg"), OFFSET, atol=1e-12)
    assert_allclose(energy.center.to_value("TeV"), np.sqrt(ENERGY[1:] * ENERGY[:-1]))
    assert_allclose(offset.center.to_value("deg"), (OFFSET[1:] + OFFSET[:-1]) / 2)


def test_background_2d_returns_its_values_at_the_nodes():
    background = irf.background_2d(model(), EDGES)
    at_nodes = background.evaluate(
        energy=background.axes["energy"].center[:, None], offset=background.axes["offset"].center[None, :]
    )
    assert_allclose(at_nodes.to_value(UNIT), model(), rtol=1e-10)
    assert not background.is_pointlike


def test_axes_of_a_field_are_gammapys():
    axes = irf.axes_of(FIELD)
    assert [axis.name for axis in axes] == ["energy", "fov_lon", "fov_lat"]
    assert [axis.interp for axis in axes] == ["log", "lin", "lin"]
    for axis in axes[1:]:
        assert_allclose(axis.edges.to_value("deg"), FIELD.fov, atol=1e-12)


@pytest.mark.parametrize("alignment", ["radec", "altaz", "ALTAZ"])
def test_background_3d_returns_its_values_at_the_nodes(alignment):
    rate = np.random.default_rng(0).lognormal(size=FIELD.shape)
    background = irf.background_3d(rate, FIELD, alignment)
    assert isinstance(background, Background3D)
    center = (FIELD.fov[1:] + FIELD.fov[:-1]) / 2
    lon, lat = np.meshgrid(center, center)
    at_nodes = background.evaluate(
        energy=background.axes["energy"].center[:, None, None], fov_lon=lon * u.deg, fov_lat=lat * u.deg
    )
    assert_allclose(at_nodes.to_value(UNIT), rate, rtol=1e-10)
    assert background.fov_alignment.value == alignment.upper()
    assert background.to_table().meta["FOVALIGN"] == alignment.upper()
    assert not background.is_pointlike
    rate[:] = 0
    assert (background.data > 0).all()  # a copy


@pytest.mark.parametrize("pixels", [24, 25])
@pytest.mark.slow
def test_a_field_can_be_looked_at(pixels):
    edges = FieldEdges(ENERGY, np.linspace(-2.5, 2.5, pixels + 1))
    irf.background_3d(np.random.default_rng(0).lognormal(size=edges.shape), edges, "altaz").peek()
    assert len(plt.gcf().axes) >= 4
    plt.close()


def test_background_3d_of_another_alignment_is_a_clear_error():
    with pytest.raises(ValueError, match="accepted are 'radec' and 'altaz'"):
        irf.background_3d(np.ones(FIELD.shape), FIELD, "galactic")


def document_smooth(bkg, sigma):
    """The lines of the document, with gammapy and SciPy."""
    bkg_3d = bkg.to_3d()
    for i in range(len(bkg_3d.data)):
        smoothed = gaussian_filter(bkg_3d.data[i, :, :], sigma, 0)
        bkg_3d.data[i, :, :] = smoothed
    return bkg_3d.to_2d()


@pytest.mark.parametrize("sigma", [0.5, 1, 2.0])
@pytest.mark.parametrize("n_offset", [5, 10])
def test_smooth_is_the_documents(sigma, n_offset):
    edges = Edges(ENERGY, np.linspace(0, 2.5, n_offset + 1))
    background = irf.background_2d(model(offset=edges.offset), edges)
    before = background.quantity.copy()
    smoothed = irf.smooth(background, sigma)
    expected = document_smooth(irf.background_2d(model(offset=edges.offset), edges), sigma)
    assert_array_equal(smoothed.quantity.to_value(UNIT), expected.quantity.to_value(UNIT))
    assert smoothed.axes.names == ["energy", "offset"]
    assert_array_equal(background.quantity, before)  # the input is left as it was
    assert not np.allclose(smoothed.quantity.to_value(UNIT), model(offset=edges.offset), rtol=1e-3)


def test_smooth_has_the_documents_sigma_of_one_by_default():
    background = irf.background_2d(model(), EDGES)
    assert_array_equal(irf.smooth(background).data, irf.smooth(background, 1).data)


def test_smooth_of_rings_that_do_not_start_at_zero_is_a_clear_error():
    edges = Edges(ENERGY, np.linspace(0.5, 2.5, 5))
    with pytest.raises(ValueError, match=r"off_min|offset"):
        irf.smooth(irf.background_2d(model(offset=edges.offset), edges), 1)


def test_smooth_takes_a_background_that_was_not_made_here():
    axes = [
        MapAxis.from_energy_bounds("0.1 TeV", "10 TeV", nbin=3),
        MapAxis.from_bounds(0, 2, 4, unit="deg", name="offset"),
    ]
    background = Background2D(axes=axes, data=np.full((3, 4), 2e-6), unit="s-1 MeV-1 sr-1")
    assert irf.smooth(background, 1).quantity.to_value(UNIT).shape == (3, 4)


def test_to_background_is_the_estimated_rate():
    counts, exposure = histograms()
    background = irf.to_background(schema.run_dataset(counts, exposure, EDGES, {}))
    expected = estimate_rate(counts, exposure, EDGES)
    assert_allclose(background.quantity.to_value(UNIT), expected.value, rtol=1e-12)


def test_to_background_adds_several_runs_up():
    parts = [histograms(seed=seed) for seed in range(3)]
    runs = [schema.run_dataset(*part, EDGES, {}, obs_id=number) for number, part in enumerate(parts)]
    total = schema.run_dataset(sum(part[0] for part in parts), sum(part[1] for part in parts), EDGES, {})
    stacked = irf.to_background(xr.concat(runs, dim="obs_id"))
    assert_allclose(stacked.quantity.to_value(UNIT), irf.to_background(total).quantity.to_value(UNIT), rtol=1e-12)


def test_to_background_of_one_run_with_its_dimension():
    dataset = schema.run_dataset(*histograms(), EDGES, {}, obs_id=5)
    assert_array_equal(irf.to_background(dataset.expand_dims("obs_id")).data, irf.to_background(dataset).data)


def test_to_background_takes_settings():
    counts, exposure = histograms()
    plain = irf.to_background(
        schema.run_dataset(counts, exposure, EDGES, {}), RateSettings(fill=False, node_values="plain")
    )
    assert_allclose(plain.quantity.to_value(UNIT), counts / exposure, rtol=1e-12)


def test_rate_to_background_smooths_through_gammapy_where_it_is_told_to():
    counts, exposure = histograms(3e6)
    plain = RateSettings(fill=False, node_values="plain")
    through_3d = plain._replace(smooth_method="to_3d", smooth_sigma=0.5, smooth_bins=1.0)
    background, flag = irf.rate_to_background(counts, exposure, EDGES, through_3d)
    expected = document_smooth(irf.background_2d(counts / exposure, EDGES), 1.0)
    assert_allclose(background.quantity.to_value(UNIT), expected.quantity.to_value(UNIT), rtol=1e-6)
    assert flag.shape == counts.shape


def test_rate_to_background_flags_what_was_filled():
    counts, exposure = histograms()
    counts[:, 2] = exposure[:, 2] = 0
    background, flag = irf.rate_to_background(counts, exposure, EDGES, RateSettings())
    assert (flag[:, 2] > 0).all()
    assert (np.isfinite(background.data) & (background.data > 0)).all()


def test_a_fault_in_a_filled_rate_is_not_hidden_as_a_zero(monkeypatch):
    counts, exposure = histograms()
    broken = estimate_rate(counts, exposure, EDGES)
    broken.value[1, 1] = np.nan
    monkeypatch.setattr(irf, "estimate_rate", lambda *args: broken)
    assert np.isnan(irf.rate_to_background(counts, exposure, EDGES, RateSettings())[0].data[1, 1])


def test_a_plain_rate_is_zero_where_nothing_is_known():
    counts, exposure = histograms()
    counts[1, 1] = exposure[1, 1] = 0
    plain = RateSettings(fill=False, node_values="plain")
    assert irf.rate_to_background(counts, exposure, EDGES, plain)[0].data[1, 1] == 0
