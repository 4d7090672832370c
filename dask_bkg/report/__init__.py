"""Pictures and tables of what a job made, for people who would rather look than read.

``tables`` (text), ``curves`` (the picture of the demo), ``matrix`` (which runs are alike), ``backgrounds`` (what a
job made).  Everything is drawn from plain arrays, without a display.
"""

from __future__ import annotations

from dask_bkg.report.backgrounds import FieldBackground, RingBackgrounds, plot_backgrounds
from dask_bkg.report.curves import (
    OWN,
    STACKED,
    TRUTH,
    Curve,
    Field,
    plot_curves,
    plot_demo,
    plot_field,
    relative_error,
)
from dask_bkg.report.matrix import MATRIX_RUNS, ORDERED_RUNS, order_of_likeness, plot_kl_matrix
from dask_bkg.report.tables import SUMMARY_HEADER, format_table, summary_rows

__all__ = [
    "MATRIX_RUNS",
    "ORDERED_RUNS",
    "OWN",
    "STACKED",
    "SUMMARY_HEADER",
    "TRUTH",
    "Curve",
    "Field",
    "FieldBackground",
    "RingBackgrounds",
    "format_table",
    "order_of_likeness",
    "plot_backgrounds",
    "plot_curves",
    "plot_demo",
    "plot_field",
    "plot_kl_matrix",
    "relative_error",
    "summary_rows",
]
