"""The picture of the backgrounds of a job, from formulas: what is drawn where, and that little spoils it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread
from scipy.special import i0

from dask_bkg import report
from dask_bkg.report import averages

pytestmark = pytest.mark.slow  # whole jobs, or simulations of many skies

ENERGY, OFFSET, FOV = np.geomspace(0.1, 100, 16), np.linspace(0, 2.5, 11), np.linspace(-2.5, 2.5, 26)
CENTER = {"energy": np.sqrt(ENERGY[1:] * ENERGY[:-1]), "offset": (OFFSET[1:] + OFFSET[:-1]) / 2}
PIXEL = (FOV[1:] + FOV[:-1]) / 2
LAT, LON = np.meshgrid(PIXEL, PIXEL, indexing="ij")


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """Figures that are saved from now on; they are not rendered."""
    saved: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *arguments, **settings: saved.append(self))
    return saved


def used(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run numbers, not in order, hours and events."""
    return 64000 + np.arange(n)[::-1], np.linspace(5.0, 30.0, n), np.arange(n) * 1000 + 5000


def rings(n: int) -> report.RingBackgrounds:
    """Power laws that fall off like Gaussians; the i-th run is i + 1 times the first."""
    shape = CENTER["energy"][:, None] ** -2.7 * np.exp(-0.5 * (CENTER["offset"] / 1.3) ** 2)
    return report.RingBackgrounds((np.arange(n) + 1.0)[:, None, None] * shape, ENERGY, OFFSET, *used(n))


def field(modulation: np.ndarray | float = 1.0, alignment: str = "altaz", n: int = 4) -> report.FieldBackground:
    """The same as a field, times a modulation over it."""
    plane = np.exp(-0.5 * (LON**2 + LAT**2) / 1.3**2) * modulation
    rate = CENTER["energy"][:, None, None] ** -2.7 * plane
    return report.FieldBackground(rate, ENERGY, FOV, alignment, 64001, *used(n))


def panel(figure: Figure, title: str):
    """The panel whose title starts with some words."""
    (found,) = [axes for axes in figure.axes if axes.get_title().startswith(title)]
    return found


def maps(figure: Figure) -> list[np.ma.MaskedArray]:
    return [
        axes.collections[0].get_array().reshape(PIXEL.size, PIXEL.size)
        for axes in figure.axes
        if axes.get_title().endswith("TeV") and axes.collections
    ]


# --- rings -------------------------------------------------------------------------------------------------


def test_spectra_are_those_of_the_first_middle_and_last_ring(tmp_path, figures):
    made = rings(3)
    report.plot_backgrounds(tmp_path / "a.png", made)
    axes = panel(figures[0], "spectrum")
    medians = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert list(medians) == ["0.12 deg", "1.12 deg", "2.38 deg"]
    for ring, line in zip((0, 4, 9), medians.values(), strict=True):
        np.testing.assert_allclose(line.get_xdata(), CENTER["energy"])
        np.testing.assert_allclose(line.get_ydata(), CENTER["energy"] ** 2 * made.rate[1, :, ring])
    single = [line.get_ydata()[0] / medians["0.12 deg"].get_ydata()[0] for line in axes.lines[:3]]
    assert sorted(single) == pytest.approx([0.5, 1.0, 1.5])
    assert axes.get_title() == "spectrum: each run, and their median"
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_profiles_are_relative_to_the_mean_over_the_field(tmp_path, figures):
    report.plot_backgrounds(tmp_path / "a.png", rings(1))
    axes = panel(figures[0], "radial profile")
    profile = np.exp(-0.5 * (CENTER["offset"] / 1.3) ** 2)
    area = np.diff(np.cos(np.deg2rad(OFFSET)))
    assert len(axes.lines) == 3
    for line in axes.lines:
        np.testing.assert_allclose(line.get_ydata(), profile * area.sum() / (profile * area).sum())
    assert axes.get_title() == "radial profile"


def test_many_runs_are_bands(tmp_path, figures):
    """Of 20,000 runs a tenth is enough for percentiles of factors from 1 to 20,000."""
    made = rings(20_000)
    report.plot_backgrounds(tmp_path / "a.png", made)
    axes = panel(figures[0], "spectrum: median and 90 % of the runs")
    assert (len(axes.lines), len(axes.collections)) == (3, 3)
    top = axes.collections[0].get_paths()[0].get_extents()
    first = CENTER["energy"] ** 2 * made.rate[0, :, 0]
    assert top.y1 / first[0] == pytest.approx(19_000, rel=0.01)
    assert top.y0 / first[-1] == pytest.approx(1_000, rel=0.01)
    assert axes.lines[0].get_ydata()[0] / first[0] == pytest.approx(10_000, rel=0.01)
    for title, values in (("hours used", made.hours), ("events used", made.n_events)):
        points = panel(figures[0], title).collections[0].get_offsets()
        assert (points[:, 1] == values[::-1]).all(), "in the order of run numbers"


def test_hours_and_events_of_few_runs_are_bars(tmp_path, figures):
    report.plot_backgrounds(tmp_path / "a.png", rings(6))
    for title, values in (("hours used", used(6)[1]), ("events used", used(6)[2])):
        axes = panel(figures[0], title)
        assert [bar.get_height() for bar in axes.patches] == pytest.approx(values[::-1])
        assert [label.get_text() for label in axes.get_xticklabels()] == [str(64000 + i) for i in range(6)]
    assert figures[0].get_suptitle() == "2D backgrounds of 6 runs"
    ticks = [panel(figures[0], title).yaxis.get_major_formatter()(0.5) for title in ("hours used", "events used")]
    assert ticks[0] != "500m", "half an hour is no milli-hours"


# --- field -------------------------------------------------------------------------------------------------


def test_round_field_has_no_colour(tmp_path, figures):
    report.plot_backgrounds(tmp_path / "a.png", field())
    images = maps(figures[0])
    assert len(images) == 3
    for image in images:
        assert np.abs(image - 1).max() < 0.02
        assert image.count() > 0.78 * image.size


def test_a_steep_and_jagged_profile_shows_no_rings(tmp_path, figures):
    """Rings that differ by half of their rate, as few events make them: only what varies over angle has a colour."""
    jagged = 1.5 ** ((np.hypot(LON, LAT) + 1e-6) // 0.25 % 2)
    report.plot_backgrounds(tmp_path / "a.png", field(jagged * np.exp(0.1 * LAT)))
    for image in maps(figures[0]):
        assert np.abs(image / (np.exp(0.1 * LAT) / i0(0.1 * np.hypot(LON, LAT))) - 1).max() < 0.01


@pytest.mark.parametrize(("up", "left"), [(LAT, LON), (LON, LAT)], ids=["fov_lat", "fov_lon"])
def test_field_is_bright_where_it_is(tmp_path, figures, up, left):
    """A tilt along one axis, over its mean over angle, which is a Bessel function."""
    tilt = 0.4
    report.plot_backgrounds(tmp_path / "a.png", field(np.exp(tilt * up)))
    expected = np.exp(tilt * up) / i0(tilt * np.hypot(LON, LAT))
    for image in maps(figures[0]):
        assert np.abs(image / expected - 1).max() < 0.03
    panels = [axes for axes in figures[0].axes if axes.get_title().endswith("TeV") and axes.collections]
    mesh = panels[0].collections[0].get_coordinates()
    # rows of the image are fov_lat, and grow upwards; columns are fov_lon, and grow to the right
    np.testing.assert_allclose(mesh[:, 0, 1], FOV)
    np.testing.assert_allclose(mesh[0, :, 0], FOV)
    assert panels[0].get_ylim() == panels[0].get_xlim() == (-2.5, 2.5)
    scale = panels[0].collections[0].norm
    assert scale.vmin * scale.vmax == pytest.approx(1), "as far up as down"
    assert scale.vmax == pytest.approx(np.percentile(1 / expected[LAT**2 + LON**2 < 2.6**2], 98), rel=0.1)
    cuts = {line.get_label(): line.get_ydata() for line in panel(figures[0], "cuts").lines}
    tilted, level = ("along fov_lat", "along fov_lon") if up is LAT else ("along fov_lon", "along fov_lat")
    assert cuts[tilted][20] / cuts[tilted][4] == pytest.approx(np.exp(tilt * (PIXEL[20] - PIXEL[4])))
    np.testing.assert_allclose(cuts[level], cuts[level][::-1])


def test_axes_say_what_is_left_and_right(tmp_path, figures):
    for alignment, lon, lat in (("altaz", "falling azimuth", "the zenith"), ("radec", "falling RA", "north")):
        report.plot_backgrounds(tmp_path / "a.png", field(alignment=alignment))
        axes = figures[-1].axes[0]
        assert axes.get_xlabel() == f"fov_lon [deg]  (towards {lon})"
        assert axes.get_ylabel() == f"fov_lat [deg]  (towards {lat})"
    assert figures[0].get_suptitle() == "3D backgrounds of 4 runs; shown is that of run 64001"


def test_spectra_of_a_field_are_means_over_angle(tmp_path, figures):
    tilt = 0.4
    report.plot_backgrounds(tmp_path / "a.png", field(np.exp(tilt * LAT)))
    lines = panel(figures[0], "spectrum").lines
    assert lines[0].get_label() == "0.00 deg"
    for line in lines:
        offset = float(line.get_label().split()[0])
        expected = np.exp(-0.5 * (offset / 1.3) ** 2) * i0(tilt * offset) * CENTER["energy"] ** -0.7
        np.testing.assert_allclose(line.get_ydata(), expected, rtol=0.03)


def test_run_that_is_shown_has_another_colour(tmp_path, figures):
    report.plot_backgrounds(tmp_path / "a.png", field())
    bars = panel(figures[0], "hours used").patches
    assert [to_hex(bar.get_facecolor()) for bar in bars] == [report.STACKED, report.OWN, *[report.STACKED] * 2]


def test_zeros_and_nan_are_grey_and_leave_the_rest_alone(tmp_path, figures):
    made = field(np.exp(0.4 * LAT))
    holes = made.rate.copy()
    holes[:, 12, 18], holes[:, 5, 12], holes[-1] = 0.0, np.nan, np.nan
    report.plot_backgrounds(tmp_path / "a.png", made)
    report.plot_backgrounds(tmp_path / "a.png", made._replace(rate=holes))
    for whole, image in zip(*map(maps, figures), strict=True):
        new = image.mask & ~whole.mask
        assert np.argwhere(new).tolist() == [[5, 12], [12, 18]]
        # a hole takes its part of the mean of its circle, of 12 pixels and more, with it
        assert np.abs(image / whole - 1).max() < 0.1
    scales = [figure.axes[0].collections[0].norm.vmax for figure in figures]
    assert scales[1] == pytest.approx(scales[0], rel=0.05)
    remarks = [[text.get_text() for text in figure.axes[0].texts] for figure in figures]
    assert remarks == [[], ["grey: zero\nor unknown"]]


# --- averages ----------------------------------------------------------------------------------------------


def test_three_energies_are_where_the_events_are():
    rate = CENTER["energy"][None, :, None] ** -3.0 * np.ones((1, 1, 2))
    counts = CENTER["energy"] ** -3.0 * np.diff(ENERGY)
    shares = np.cumsum(counts) / counts.sum()
    places = averages.three_energies(rate, ENERGY, np.ones(2))
    assert places.tolist() == [0, *np.searchsorted(shares, [0.9, 0.99])]
    steep = np.zeros((1, 15, 1))
    steep[0, [3, 4, 7, 9], 0] = [1e9, 1, 1, 1]
    assert averages.three_energies(steep, ENERGY, np.ones(1)).tolist() == [3, 4, 7], "none twice"
    last = np.zeros((1, 15, 1))
    last[0, [3, 4, 7, 9], 0] = [1e-9, 1e-9, 1e-9, 1]
    assert averages.three_energies(last, ENERGY, np.ones(1)).tolist() == [4, 7, 9]
    assert averages.three_energies(np.full((1, 15, 1), np.nan), ENERGY, np.ones(1)).size == 3


def test_circle_means_of_a_tilted_plane_are_flat():
    """A gradient cancels over every circle, whatever the number of pixels."""
    for n in (1, 2, 3, 8, 25):
        edges = np.linspace(-2, 2, n + 1)
        center = (edges[1:] + edges[:-1]) / 2
        plane = 5 + center[:, None] - 2 * center
        offset, mean = averages.circle_means(plane[None], center)
        np.testing.assert_allclose(mean, 5)
        assert (np.diff(offset) > 0).all()
        assert offset.max() <= np.hypot(*center[[0, 0]]) + 1e-9


def test_mean_of_known_is_weighted():
    assert averages.mean_of_known(np.array([[1.0, np.nan, 4.0], [np.nan] * 3]), [1, 5, 2])[0] == 3
    assert np.isnan(averages.mean_of_known(np.full((2, 3), np.nan))).all()


# --- whatever comes ----------------------------------------------------------------------------------------


def cut(made, **new):
    """The same with the first bins of energy and angle alone."""
    rate = made.rate[..., :1, :1] if isinstance(made, report.RingBackgrounds) else made.rate[:1, 12:14, 12:14]
    return made._replace(rate=rate, energy=ENERGY[:2], **new)


ODD = {
    "zeros": rings(20)._replace(rate=np.zeros((20, 15, 10))),
    "nan": rings(20)._replace(rate=np.full((20, 15, 10), np.nan)),
    "infinite": rings(3)._replace(rate=np.full((3, 15, 10), np.inf)),
    "no run": rings(0),
    "one bin": cut(rings(3), offset=OFFSET[:2]),
    "sparse": rings(30)._replace(rate=np.random.default_rng(1).poisson(0.3, (30, 15, 10))),
    "field of zeros": field(0.0),
    "field of nan": field(np.nan),
    "field of four pixels": cut(field(), fov=FOV[12:15]),
    "two energies": field()._replace(rate=field().rate[:2], energy=ENERGY[:3]),
    "field, no run": field(n=0),
    "hours unknown": field()._replace(hours=np.full(4, np.nan)),
    "sparse field": field()._replace(rate=np.random.default_rng(2).poisson(0.1, (15, 25, 25))),
}


@pytest.mark.parametrize("made", ODD.values(), ids=ODD)
def test_odd_backgrounds_are_drawn_without_a_warning(tmp_path, made):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report.plot_backgrounds(tmp_path / "a.png", made, title="odd")
    assert (tmp_path / "a.png").stat().st_size > 10_000


@pytest.mark.parametrize("made", [rings(30), field(np.exp(0.4 * LAT))], ids=["rings", "field"])
def test_picture_is_a_picture(tmp_path, made):
    """1375 x 858 pixels of many colours, in each quarter; and nothing of pyplot, for a job has no screen."""
    import matplotlib.pyplot as plt

    before, rate = plt.get_fignums(), made.rate.copy()
    report.plot_backgrounds(tmp_path / "a.png", made)
    picture = imread(tmp_path / "a.png")[..., :3]
    assert picture.shape == (858, 1375, 3)
    dark = picture.min(axis=-1) < 0.8
    share = [part.mean() for rows in np.array_split(dark, 2) for part in np.array_split(rows, 2, axis=1)]
    assert min(share) > 0.02
    assert plt.get_fignums() == before
    assert (made.rate == rate).all(), "the caller's array stays as it is"


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (rings(3)._replace(rate=np.ones((3, 10, 15))), r"rate has shape \(3, 10, 15\), its edges say .*15, 10"),
        (rings(3)._replace(rate=np.ones((15, 10))), r"rate has shape \(15, 10\)"),
        (field()._replace(fov=FOV[:-1]), r"its edges say \(15, 24, 24\)"),
        (rings(3)._replace(hours=np.ones(2)), "obs_id, hours and n_events"),
        (field(alignment="galactic"), "alignment must be one of altaz, radec, got 'galactic'"),
    ],
)
def test_what_does_not_belong_together_is_refused(tmp_path, made, message):
    with pytest.raises(ValueError, match=message):
        report.plot_backgrounds(tmp_path / "a.png", made)
    assert not (tmp_path / "a.png").exists()
