"""The dataset of run histograms: what it holds, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from numpy.testing import assert_allclose, assert_array_equal

from dask_bkg import schema

ENERGY, OFFSET = np.geomspace(0.5, 8, 5), np.array([0.0, 0.5, 1.0, 2.0])
EDGES = schema.Edges(ENERGY, OFFSET)


def run(number=20136, **numbers):
    counts = np.arange(12.0).reshape(4, 3) + number
    return schema.run_dataset(
        counts, counts * 2.5, EDGES, {"ontime": 1600.0, **numbers}, obs_id=number, object="Crab"
    )


@pytest.mark.parametrize(
    "edges", [EDGES, {"energy": ENERGY, "offset": OFFSET}, {"energy": list(ENERGY), "offset": (0, 0.5, 1, 2)}]
)
def test_as_edges_takes_edges_and_mappings(edges):
    result = schema.as_edges(edges)
    assert_array_equal(result.energy, ENERGY)
    assert_array_equal(result.offset, OFFSET)
    assert result.shape == (4, 3)


@pytest.mark.parametrize(
    "edges",
    [
        {"energy": [1, 1], "offset": [0, 1]},
        {"energy": [2, 1], "offset": [0, 1]},
        {"energy": [1, 2], "offset": [1, 0.5]},
        {"energy": [1], "offset": [0, 1]},
        {"energy": [], "offset": [0, 1]},
        {"energy": [1, np.nan], "offset": [0, 1]},
        {"energy": [[1, 2], [3, 4]], "offset": [0, 1]},
    ],
    ids=str,
)
def test_edges_that_no_histogram_can_have_are_refused(edges):
    with pytest.raises(ValueError, match=r"energy|offset"):
        schema.as_edges(edges)


@pytest.mark.parametrize(
    "edges",
    [
        {"energy": [0, 1], "offset": [0, 1]},
        {"energy": [-1, 1], "offset": [0, 1]},
        {"energy": [1, np.inf], "offset": [0, 1]},
        {"energy": [1, 2], "offset": [-0.5, 1]},
    ],
    ids=str,
)
def test_edges_whose_bins_have_no_centre_are_refused(edges):
    with pytest.raises(ValueError, match=r"energy|offset"):
        schema.as_edges(edges)


@pytest.mark.parametrize("missing", ["energy", "offset"])
def test_edges_without_an_axis_are_refused_by_its_name(missing):
    edges = {"energy": ENERGY, "offset": OFFSET}
    del edges[missing]
    with pytest.raises((ValueError, KeyError), match=missing):
        schema.as_edges(edges)


def test_axes_have_geometric_and_arithmetic_centres():
    coords = xr.Dataset(coords=schema.axis_coords(EDGES))
    assert_allclose(coords.energy, np.sqrt(ENERGY[1:] * ENERGY[:-1]))
    assert_allclose(coords.offset, [0.25, 0.75, 1.5])
    assert_array_equal(coords.energy_max, ENERGY[1:])
    assert_array_equal(coords.offset_min, OFFSET[:-1])
    assert (coords.energy.attrs["units"], coords.offset.attrs["units"]) == ("TeV", "deg")


def test_edges_survive_the_dataset_bit_for_bit():
    edges = schema.edges_of(run())
    assert_array_equal(edges.energy, ENERGY)
    assert_array_equal(edges.offset, OFFSET)


def test_run_dataset_holds_histograms_numbers_and_labels():
    dataset = run()
    assert dataset.counts.dims == dataset.exposure.dims == ("energy", "offset")
    assert_allclose(dataset.exposure, dataset.counts * 2.5)
    assert float(dataset.ontime) == 1600
    assert int(dataset.obs_id) == 20136
    assert str(dataset.object.values) == "Crab"


def test_numbers_that_a_run_does_not_have_are_nan():
    dataset = run(zenith=31.5)
    assert float(dataset.zenith) == 31.5
    missing = set(schema.RUN_NUMBERS) - {"ontime", "zenith"}
    assert all(np.isnan(float(dataset[name])) for name in missing)


@pytest.mark.parametrize(("counts", "exposure"), [((4, 2), (4, 3)), ((4, 3), (3, 4)), ((12,), (4, 3))])
def test_histograms_of_another_shape_than_the_edges_are_refused(counts, exposure):
    with pytest.raises(ValueError, match=r"size|dims"):
        schema.run_dataset(np.ones(counts), np.ones(exposure), EDGES, {})


def test_units_are_attributes():
    dataset = schema.with_units(run(zenith=20.0))
    units = {name: dataset[name].attrs.get("units") for name in ("exposure", "ontime", "zenith", "energy", "offset")}
    assert units == {"exposure": "s TeV sr", "ontime": "s", "zenith": "deg", "energy": "TeV", "offset": "deg"}


def test_check_passes_one_run_and_several_and_returns_the_dataset():
    one = run()
    assert schema.check(one) is one
    several = schema.with_units(xr.concat([run(1), run(2)], dim="obs_id"))
    assert schema.check(several) is several
    assert several.counts.dims == ("obs_id", "energy", "offset")


def broken(change):
    dataset = run()
    if change == "units":
        dataset.exposure.attrs["units"] = "s"
        return dataset
    if change == "dims":
        return dataset.assign(exposure=dataset.exposure.transpose("offset", "energy"))
    return dataset.drop_vars(change)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("counts", "counts"),
        ("exposure", "exposure"),
        ("energy_min", "energy_min"),
        ("offset_max", "offset_max"),
        ("dims", "exposure"),
        ("units", "exposure"),
    ],
)
def test_check_names_what_is_wrong(change, match):
    with pytest.raises(ValueError, match=match):
        schema.check(broken(change))


def test_a_dataset_survives_netcdf_like_encoding_of_its_attributes():
    """What is stored must be plain: numbers and texts."""
    dataset = run()
    for variable in dataset.variables.values():
        assert all(isinstance(value, (str, int, float)) for value in variable.attrs.values())
        assert variable.dtype.kind in "fiUO"
