"""Tables and pictures, from made-up numbers."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from dask_bkg import report
from dask_bkg.output.write import Result
from dask_bkg.sky.exclusion import make_regions
from dask_bkg.sky.fov import from_fov

NONE = make_regions([], [], [], [], "own")


@pytest.fixture
def axes():
    return Figure().subplots()


def field(fov_lon, fov_lat, pointing=(83.6, 22.0), regions=NONE, offset_max=2.5) -> report.Field:
    """A field with events at given places in the field of view."""
    ra, dec = from_fov(np.asarray(fov_lon, float), np.asarray(fov_lat, float), *pointing)
    return report.Field("run 7", ra, dec, *pointing, offset_max, regions)


# --- tables ------------------------------------------------------------------------------------------------


def test_table_puts_numbers_below_each_other():
    text = report.format_table(["run", "hours", "file"], [[64001, 1.25, "a.fits"], [7, 10.0, "-"]])
    assert text.splitlines() == [
        "  run  hours    file",
        "-----  -----  ------",
        "64001   1.25  a.fits",
        "    7  10.00       -",
    ]


def test_table_without_rows_is_its_header():
    assert report.format_table(["run", "hours"], []) == "run  hours\n---  -----"


def test_table_takes_rows_of_the_headers_length_only():
    with pytest.raises((ValueError, IndexError)):
        report.format_table(["run", "hours"], [[1, 2.0], [3]])


def test_table_of_numpy_numbers_and_nan():
    text = report.format_table(["a", "b"], [[np.int64(3), np.float64(0.5)], [np.True_, float("nan")]])
    assert text.splitlines()[2:] == ["   3  0.50", "True   nan"]


def test_summary_rows_fit_their_header():
    done = Result(64001, "done", "", 3, 1.25, 4000, "/out/run.fits", "BACKGROUND", 0.2)
    failed = Result(64002, "failed", "no events")
    rows = report.summary_rows([done, failed])
    assert rows == [[64001, "done", 3, 1.25, 4000, "/out/run.fits"], [64002, "failed", 0, 0.0, 0, "-"]]
    assert len(rows[0]) == len(report.SUMMARY_HEADER)
    assert "64002  failed" in report.format_table(report.SUMMARY_HEADER, rows)


def test_relative_error():
    assert report.relative_error(np.array([0, 1, 4, 10_000])).tolist() == [1, 1, 0.5, 0.01]


# --- pictures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pointing", [(83.6, 22.0), (0.1, -70.0), (359.9, 85.0)])
def test_field_shows_events_where_they_are(axes, pointing):
    """To the very pixel, also across right ascension zero and near a pole."""
    report.plot_field(axes, field([1.0, 1.0, -0.5], [0.3, 0.3, -2.0], pointing))
    mesh = axes.collections[0]
    x, y = mesh.get_coordinates()[0, :, 0], mesh.get_coordinates()[:, 0, 1]
    image = mesh.get_array()
    assert image.sum() == 3
    assert image[np.searchsorted(y, 0.3) - 1, np.searchsorted(x, 1.0) - 1] == 2
    assert image[np.searchsorted(y, -2.0) - 1, np.searchsorted(x, -0.5) - 1] == 1
    assert axes.get_title() == "run 7"
    assert (axes.get_xlim(), axes.get_ylim()) == ((-2.75, 2.75), (-2.75, 2.75))


def test_field_draws_each_region_and_the_edge(axes):
    """North and east of the pointing: fov_lat and -fov_lon."""
    pointing = (83.6, 22.0)
    regions = make_regions([83.6, 83.6 + 1 / np.cos(np.deg2rad(22))], [23.0, 22.0], [0.3, 0.4], ["a", "b"], "own")
    report.plot_field(axes, field([0.0], [0.0], pointing, regions, offset_max=2.0))
    circles = [(*patch.center, patch.radius) for patch in axes.patches]
    assert circles == [
        pytest.approx((0, 1, 0.3), abs=0.01),
        pytest.approx((-1, 0, 0.4), abs=0.01),
        pytest.approx((0, 0, 2.0)),
    ]


def test_field_of_a_bright_source_is_still_visible(axes):
    """A thousand events in one pixel of 3600, one in every other: the scale is that of the others."""
    side = np.linspace(-2.7, 2.7, 60)
    lon, lat = (grid.ravel() for grid in np.meshgrid(side, side))
    report.plot_field(axes, field(np.append(lon, np.full(1000, 0.02)), np.append(lat, np.full(1000, 0.02))))
    assert axes.collections[0].get_array().max() > 1000
    assert axes.collections[0].get_clim()[1] < 5


def test_field_without_events(axes):
    report.plot_field(axes, field([], []))
    assert axes.collections[0].get_array().sum() == 0
    assert axes.collections[0].get_clim()[1] == 1


def test_curves_are_lines_or_points_with_errors(axes):
    x = np.array([1.0, 10.0, 100.0])
    truth = report.Curve("truth", x, x**-2, None, report.TRUTH)
    made = report.Curve("made", x, 1.1 * x**-2, 0.1 * x**-2, report.OWN)
    report.plot_curves(axes, [truth, made], xscale="log", yscale="log", xlabel="energy [TeV]", title="spectrum")
    line, points = axes.lines[0], axes.containers[0]
    assert line.get_ydata().tolist() == (x**-2).tolist()
    assert points.lines[0].get_ydata() == pytest.approx(1.1 * x**-2)
    bars = np.array([[segment[0, 1], segment[1, 1]] for segment in points.lines[2][0].get_segments()])
    assert bars == pytest.approx(np.column_stack([1.0 * x**-2, 1.2 * x**-2]))
    assert (line.get_color(), points.lines[0].get_color()) == (report.TRUTH, report.OWN)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["truth", "made"]
    assert (axes.get_xscale(), axes.get_xlabel(), axes.get_title()) == ("log", "energy [TeV]", "spectrum")


@pytest.mark.slow
def test_demo_picture_is_a_picture(tmp_path):
    """1375 x 792 pixels, and in each quarter something in the colour of the run-wise backgrounds."""
    rng = np.random.default_rng(1)
    regions = make_regions([84.0], [22.5], 0.35, ["a"], "own")
    shown = field(rng.normal(0, 1, 3000), rng.normal(0, 1, 3000), regions=regions)
    x = np.geomspace(0.1, 10, 12)
    curves = [report.Curve("own", x, x**-0.5, np.full(12, 0.1), report.OWN)]
    path = tmp_path / "demo.png"
    report.plot_demo(path, shown, curves, curves, curves, "title")
    picture = imread(path)[..., :3]
    assert picture.shape == (792, 1375, 3)
    # measured 893 colours, an empty figure has one
    assert len(np.unique((picture * 255).astype(int).reshape(-1, 3), axis=0)) > 200
    colored = np.abs(picture - to_rgb(report.OWN)).max(axis=-1) < 0.02
    quarters = [half for rows in np.array_split(colored, 2) for half in np.array_split(rows, 2, axis=1)]
    # measured 117 (the circle) to 351 pixels
    assert [int(quarter.sum()) > 40 for quarter in quarters] == [True] * 4


def test_pictures_need_no_display(tmp_path, monkeypatch):
    """Nothing of pyplot is used: a job on a cluster has no screen, and figures would pile up."""
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    curve = report.Curve("a", np.ones(1), np.ones(1), None, report.OWN)
    report.plot_demo(tmp_path / "a.png", field([0.0], [0.0]), [curve], [curve], [curve], "title")
    assert plt.get_fignums() == before
