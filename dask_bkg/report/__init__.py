"""Pictures and tables of what a job made, for people who would rather look than read.

``tables`` (text), ``curves`` (the picture of the demo), ``matrix`` (which runs are alike), ``backgrounds`` (what a
job made).  Everything is drawn from plain arrays, without a display.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "backgrounds": ("FieldBackground", "RingBackgrounds", "plot_backgrounds"),
    "curves": (
        "OWN",
        "STACKED",
        "TRUTH",
        "Curve",
        "Field",
        "plot_curves",
        "plot_demo",
        "plot_field",
        "relative_error",
    ),
    "matrix": ("MATRIX_RUNS", "ORDERED_RUNS", "order_of_likeness", "plot_kl_matrix"),
    "tables": ("SUMMARY_HEADER", "format_table", "summary_rows"),
}

__all__ = sorted(name for names in _HOMES.values() for name in names)


def __getattr__(name: str) -> Any:
    """Names on first use: a table needs no matplotlib, which takes a second to import."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"dask_bkg.report.{home}"), name)
    raise AttributeError(f"module 'dask_bkg.report' has no attribute {name!r}; names are {', '.join(__all__)}")
