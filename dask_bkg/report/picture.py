"""The picture of what a job made, from its files."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from dask_bkg import report
from dask_bkg.config import Config
from dask_bkg.dl3.background import read_rate
from dask_bkg.errors import BackgroundError
from dask_bkg.pipeline.run import Summary
from dask_bkg.report.averages import evenly

log = logging.getLogger(__name__)

MOST = 200
"""Most files that are read for a picture: four seconds."""


def draw_backgrounds(summary: Summary, config: Config) -> Path | None:
    """Draw `dask_bkg.report.plot_backgrounds` of a job next to its tables; a failure is logged, and no error.

    Of 2D backgrounds a sample of the runs, of 3D ones the run with the most events.

    Returns
    -------
    path
        The picture; None if there is none.
    """
    done = [result for result in summary.results if result.done]
    if not done:
        return None
    path = summary.picture
    about = [np.array([getattr(r, name) for r in done]) for name in ("obs_id", "hours", "n_events")]
    shown = max(done, key=lambda result: result.n_events)
    binning, energy = config.binning, config.binning.energy_edges
    try:
        if binning.mode == "3d":
            rate, fov = read_rate(shown.output, shown.hdu), binning.fov_edges
            made = report.FieldBackground(rate, energy, fov, binning.alignment, shown.obs_id, *about)
            report.plot_backgrounds(path, made)
        else:
            rates = np.array([read_rate(done[i].output, done[i].hdu) for i in evenly(len(done), MOST)])
            report.plot_backgrounds(path, report.RingBackgrounds(rates, energy, binning.offset_edges, *about))
    except (BackgroundError, OSError, ValueError) as error:
        log.warning("no picture of the backgrounds: %s", error)
        return None
    return path
