"""The dataset of run histograms: what it holds, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from numpy.testing import assert_allclose, assert_array_equal

from dask_bkg import schema
from dask_bkg.binning import LEAST_WIDTH, Edges, as_edges, fine_view, is_sum_of, ring_view, sum_index
from dask_bkg.reduction.histograms import solid_angles
from dask_bkg.sky.fov import MAX_PIXEL

ENERGY, OFFSET = np.geomspace(0.5, 8, 5), np.array([0.0, 0.5, 1.0, 2.0])
EDGES = Edges(ENERGY, OFFSET)


def run(number=20136, **numbers):
    counts = np.arange(12.0).reshape(4, 3) + number
    return schema.run_dataset(
        counts, counts * 2.5, EDGES, {"ontime": 1600.0, **numbers}, obs_id=number, object="Crab"
    )


@pytest.mark.parametrize(
    "edges", [EDGES, {"energy": ENERGY, "offset": OFFSET}, {"energy": list(ENERGY), "offset": (0, 0.5, 1, 2)}]
)
def test_as_edges_takes_edges_and_mappings(edges):
    result = as_edges(edges)
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
        as_edges(edges)


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
        as_edges(edges)


@pytest.mark.parametrize("missing", ["energy", "offset"])
def test_edges_without_an_axis_are_refused_by_its_name(missing):
    edges = {"energy": ENERGY, "offset": OFFSET}
    del edges[missing]
    with pytest.raises((ValueError, KeyError), match=missing):
        as_edges(edges)


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


# --- views -------------------------------------------------------------------------------------------------


def test_the_fine_view_has_the_bins_that_others_are_sums_of():
    view = fine_view()
    assert (view.name, view.method, view.reach) == ("", "geometry", "disc")
    assert view.edges.shape == (50, 50)
    assert_allclose(view.edges.energy, 10 ** np.linspace(-2, 3, 51), rtol=1e-12)
    assert_allclose(view.edges.offset, np.linspace(0, 2.5, 51), rtol=1e-12)
    assert_allclose(view.pixels, np.linspace(-2.5, 2.5, 26), atol=1e-12)


@pytest.mark.parametrize(
    ("off_max", "pixel", "pixels", "half"),
    [(2.5, 0.25, 20, 2.5), (2.0, 0.2, 20, 2.0), (2.45, 0.2, 25, 2.5), (1.0, 0.3, 7, 1.05)],
)
def test_the_field_is_the_smallest_that_holds_the_rings(off_max, pixel, pixels, half):
    view = fine_view(off_max=off_max, pixel=pixel)
    assert len(view.pixels) == pixels + 1
    assert_allclose([-view.pixels[0], view.pixels[-1]], half)
    assert_allclose(np.diff(view.pixels), pixel)
    assert view.radius == pytest.approx(half * np.sqrt(2))


@pytest.mark.parametrize(
    "options",
    [{"energy_range": (0.02, 1)}, {"energy_range": (1, 0.1)}, {"energy_range": (0, 1)}],
)
def test_a_fine_view_of_no_whole_bins_is_refused(options):
    with pytest.raises(ValueError, match="energy_range"):
        fine_view(**options)


@pytest.mark.parametrize("name", ["pixel", "ring"])
@pytest.mark.parametrize("width", [0, -1, 0.005, 0.0199, 2.51, 4.0, np.nan, np.inf])
def test_widths_that_no_grid_has_are_refused_with_those_that_are_accepted(name, width):
    with pytest.raises(ValueError, match=rf"{name} of .* deg: accepted are 0\.02 to off_max, 2\.5 deg"):
        fine_view(**{name: width})


@pytest.mark.parametrize("pixel", [0.02, 0.03, 0.2, 0.21, 0.25, 2.5])
def test_the_narrowest_rings_and_pixels_that_are_accepted_have_an_area(pixel):
    """A bin without one has no exposed fraction, and would be taken for damaged."""
    assert LEAST_WIDTH == MAX_PIXEL
    view = fine_view(pixel=pixel, ring=0.02)
    assert all((value > 0).all() for value in solid_angles(view).values())


@pytest.mark.parametrize(
    ("energy", "offset", "expected"),
    [
        (np.geomspace(0.1, 100, 31), np.linspace(0, 2.5, 11), True),
        (np.logspace(-1, 2, 16), np.arange(0, 2.51, 0.25), True),  # 5 per decade, and edges with rounding errors
        (np.array([0.1, 1, 10]), np.array([0.5, 1.0, 2.0]), True),
        (np.geomspace(0.1, 100, 21), np.linspace(0, 2.5, 11), False),
        (np.geomspace(0.1, 100, 31), np.linspace(0, 2.5, 21), False),  # rings of 0.125 deg
        (np.geomspace(0.1, 1e4, 6), np.linspace(0, 2.5, 11), False),
        (np.geomspace(0.1, 100, 31), np.linspace(0, 3.0, 11), False),
        (np.geomspace(0.1, 100, 31) * (1 + 1e-8), np.linspace(0, 2.5, 11), False),
    ],
)
def test_which_bins_are_sums_of_the_fine_ones(energy, offset, expected):
    fine, coarse = fine_view().edges, Edges(energy, offset)
    assert is_sum_of(fine, coarse) is expected
    assert (is_sum_of(fine.energy, energy) and is_sum_of(fine.offset, offset)) is expected


def test_sums_of_fine_bins_are_the_histogram_on_coarse_ones():
    rng, fine = np.random.default_rng(1), fine_view().edges.energy
    energy = 10 ** rng.uniform(-2.2, 3.2, 5000)
    coarse = np.geomspace(0.1, 100, 16)
    index = sum_index(fine, coarse)
    inside = index >= 0
    sums = np.bincount(index[inside], np.histogram(energy, fine)[0][inside], coarse.size - 1)
    assert_array_equal(sums, np.histogram(energy, coarse)[0])
    assert (~inside).sum() == 20  # a decade below, and one above


def test_no_sum_no_index():
    with pytest.raises(ValueError, match="no sums"):
        sum_index([0, 0.1, 0.2], [0, 0.15])


def test_a_ring_view_is_named_after_all_that_it_is_made_with():
    views = [
        ring_view(EDGES),
        ring_view(EDGES, method="event_ratio"),
        ring_view(EDGES, reach="centre"),
        ring_view(EDGES._replace(offset=EDGES.offset * 1.01)),
        ring_view(Edges(OFFSET[1:], ENERGY)),
    ]
    assert len({view.name for view in views}) == len(views)
    assert ring_view(Edges(ENERGY.copy(), OFFSET.copy())).name == views[0].name
    assert all(view.name.startswith("rings-") and view.pixels is None for view in views)
