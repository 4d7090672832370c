"""The picture of the divergences of an archive: its order, from made-up positions, and that it is drawn."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from dask_bkg import report

pytestmark = pytest.mark.slow  # whole jobs, or simulations of many skies


def divergences(place: np.ndarray, skew: float = 0.2) -> np.ndarray:
    """Divergences of runs on a line, larger towards one side."""
    difference = place - place[:, None]
    return difference**2 * (1 + skew * np.sign(difference))


def drawn(monkeypatch) -> list[Figure]:
    """Figures that are saved from now on."""
    figures: list[Figure] = []
    save = Figure.savefig

    def remember(self, *arguments, **settings):
        figures.append(self)
        return save(self, *arguments, **settings)

    monkeypatch.setattr(Figure, "savefig", remember)
    return figures


# --- order -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 40, 700])
def test_runs_on_a_line_are_ordered_along_it(n):
    """From either end; of more than 400 runs groups are, and within them nearly so."""
    place = np.random.default_rng(1).permutation(n).astype(float)
    order = report.order_of_likeness(divergences(place))
    assert sorted(order) == list(range(n))
    steps = np.abs(np.diff(place[order]))
    assert steps.max(initial=1) <= (1 if n <= report.ORDERED_RUNS else 5)


def test_groups_stay_together():
    rng = np.random.default_rng(2)
    group = rng.integers(0, 4, 60)
    order = report.order_of_likeness(divergences(10.0 * group + rng.normal(0, 0.1, 60)))
    assert (np.diff(group[order]) != 0).sum() == 3


def test_what_cannot_be_compared_does_not_disturb_the_order():
    """A run infinitely far from all comes at an end; negative values and the diagonal do not matter."""
    place = np.random.default_rng(3).permutation(20).astype(float)
    kl = divergences(place) - 0.01
    kl[:, 7] = kl[7] = np.inf
    kl[3, 3] = np.nan
    order = report.order_of_likeness(kl)
    assert order[0] == 7 or order[-1] == 7
    others = order[order != 7]
    assert np.abs(np.diff(place[others])).max() <= 2
    assert sorted(report.order_of_likeness(np.full((5, 5), np.inf))) == [0, 1, 2, 3, 4]


# --- picture -----------------------------------------------------------------------------------------------


def test_picture_shows_the_matrix_in_order(tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    place = np.random.default_rng(4).permutation(30).astype(float)
    obs_id = 100 + np.arange(30)
    report.plot_kl_matrix(tmp_path / "kl.png", divergences(place), obs_id, zenith=place)
    matrix, kl_scale, beside, above, zenith_scale = figures[0].axes
    # zenith angles grow downwards and to the right
    by_place = [str(run) for run in obs_id[np.argsort(place)]]
    assert [label.get_text() for label in matrix.get_yticklabels()] == by_place
    assert [label.get_text() for label in matrix.get_xticklabels()] == by_place
    image = matrix.images[0].get_array()
    expected = divergences(np.arange(30.0))
    assert image.mask.sum() == 30
    assert image.compressed() == pytest.approx(expected[~np.eye(30, dtype=bool)])
    assert (beside.images[0].get_array()[:, 0] == np.arange(30)).all()
    assert (above.images[0].get_array()[0] == np.arange(30)).all()
    assert kl_scale.get_ylabel() == "Kullback-Leibler divergence"
    assert zenith_scale.get_ylabel() == "zenith angle [deg]"
    assert matrix.images[0].norm.vmin > 0


def test_picture_is_a_picture(tmp_path):
    path = tmp_path / "kl.png"
    place = np.random.default_rng(5).uniform(0, 10, 50)
    report.plot_kl_matrix(path, divergences(place), np.arange(50), zenith=place)
    picture = imread(path)[..., :3]
    assert picture.shape == (1261, 1352, 3)
    assert len(np.unique((picture * 255).astype(int).reshape(-1, 3), axis=0)) > 200


def test_picture_without_zenith_angles_has_no_strips(tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    report.plot_kl_matrix(tmp_path / "kl.png", divergences(np.arange(5.0)), np.arange(5))
    assert len(figures[0].axes) == 2


def test_large_matrix_is_sampled_evenly_and_labels_can_be_read(tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    monkeypatch.setattr(report.matrix, "MATRIX_RUNS", 300)
    place = np.random.default_rng(6).permutation(1000).astype(float)
    report.plot_kl_matrix(tmp_path / "kl.png", divergences(place), np.arange(1000), zenith=place)
    matrix = figures[0].axes[0]
    assert matrix.images[0].get_array().shape == (300, 300)
    runs = [int(label.get_text()) for label in matrix.get_yticklabels()]
    assert 50 <= len(runs) <= 80
    assert min(runs) < 50
    assert max(runs) > 950


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_runs_are_drawn_too(tmp_path, n):
    report.plot_kl_matrix(tmp_path / "kl.png", divergences(np.arange(float(n))), np.arange(n), np.full(n, np.nan))
    assert (tmp_path / "kl.png").stat().st_size > 10_000


def test_runs_without_a_divergence_are_grey(tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    kl = divergences(np.arange(10.0))
    kl[:, 4] = kl[4] = np.inf
    kl[0, 1] = -0.001
    report.plot_kl_matrix(tmp_path / "kl.png", kl, np.arange(10), zenith=np.arange(10.0))
    matrix = figures[0].axes[0]
    image = matrix.images[0].get_array()
    assert image.mask.sum() == 10 + 18
    assert image.min() > 0
    assert matrix.get_facecolor()[:3] == to_rgb("#d9d9d9")


def test_the_callers_arrays_stay_as_they_are(tmp_path):
    kl = divergences(np.arange(4.0))
    before = kl.copy()
    report.plot_kl_matrix(tmp_path / "kl.png", kl, np.arange(4), zenith=np.arange(4.0))
    assert (kl == before).all()
