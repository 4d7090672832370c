"""The picture that a job leaves beside its tables."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.image import imread

from dask_bkg import report
from dask_bkg.config import parse_config
from dask_bkg.pipeline import run as pipeline
from dask_bkg.report import picture

pytestmark = pytest.mark.slow  # whole jobs, or simulations of many skies


@pytest.fixture
def done(job, four_runs):
    """A finished job and its configuration, with the sections given."""

    def make(**sections):
        config = parse_config(job(four_runs, **sections))
        return pipeline.run_job(config, progress=False), config

    return make


@pytest.fixture
def drawn(monkeypatch):
    """What is given to the picture."""
    seen, draw = [], report.plot_backgrounds
    monkeypatch.setattr(report, "plot_backgrounds", lambda path, made: (seen.append(made), draw(path, made))[1])
    return seen


def test_rings_of_all_runs(done, drawn):
    summary, config = done()
    path = picture.draw_backgrounds(summary, config)
    assert path == summary.results_dir / "backgrounds.png"
    assert min(imread(path).shape[:2]) > 400
    (made,) = drawn
    assert made.rate.shape == (4, 30, 10)
    assert made.obs_id.tolist() == [64001, 64002, 64003, 64004]
    assert made.n_events.tolist() == [result.n_events for result in summary.results]


@pytest.mark.parametrize("io", [{}, {"attach": "index"}], ids=["copy", "index"])
def test_the_field_of_the_run_with_the_most_events(done, drawn, io):
    summary, config = done(binning={"mode": "3d", "fov_bins": 10}, io=io)
    assert picture.draw_backgrounds(summary, config).exists()
    (made,) = drawn
    assert made.rate.shape == (30, 10, 10)
    assert made.n_events[made.obs_id.tolist().index(made.shown)] == made.n_events.max()
    assert made.alignment == "altaz"


def test_of_many_runs_a_sample_is_read(done, drawn, monkeypatch):
    monkeypatch.setattr(picture, "MOST", 2)
    picture.draw_backgrounds(*done())
    assert drawn[0].rate.shape[0] == 2
    assert drawn[0].hours.size == 4


def test_a_picture_that_cannot_be_drawn_is_no_error(done, monkeypatch, caplog):
    summary, config = done()
    for result in summary.results:
        with open(result.output, "wb") as file:
            file.write(b"no FITS")
    assert picture.draw_backgrounds(summary, config) is None
    assert "no picture of the backgrounds" in caplog.text
    assert picture.draw_backgrounds(pipeline.Summary([], summary.results_dir), config) is None
    assert np.isfinite(summary.results[0].hours)
