"""The page of a validation: one file with all that it needs, for a browser.

This module gathers the values; the page itself is ``templates/validation.html.j2``.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dask_bkg import __version__
from dask_bkg.report import validation_pictures as pictures
from dask_bkg.validation.flags import WRONG, flag_words, worst_first
from dask_bkg.validation.results import Validation
from dask_bkg.validation.summary import ratio

WORST = 40
"""Runs that the page has the numbers of."""

TEMPLATES = Environment(
    loader=PackageLoader("dask_bkg.report"),
    autoescape=True,  # the names of objects come from headers, and may hold anything
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.tests["finite"] = math.isfinite


def make_page(
    validation: Validation,
    summaries: Sequence[Mapping[str, Any]],
    columns: Mapping[str, NDArray],
    comparison: Sequence[Mapping],
) -> str:
    """The page as HTML.

    Parameters
    ----------
    validation
        The validation; with what it is compared with, if there is anything.
    summaries
        Of it and of what it is compared with (`dask_bkg.validation.summarise`).
    columns
        Its runs one by one, arrays of shape ``(runs,)`` (`dask_bkg.validation.run_columns`).
    comparison
        Rows of `dask_bkg.validation.compare`; empty if there is none.
    """
    every = [validation, *([validation.against] if validation.against else [])]
    off_max = float(validation.runs["ring_max"].values[-1])
    return TEMPLATES.get_template("validation.html.j2").render(
        version=__version__,
        validation=validation,
        summary=summaries[0],
        n_wrong=int(((columns["flag"] & WRONG) > 0).sum()),
        comparison=comparison,
        pictures=_pictures(every, summaries, columns),
        fields=[(one.name, _png(pictures.draw_fields(one.sums, one.alignment, off_max))) for one in every],
        worst=[_run(validation, columns, i) for i in worst_first(columns)[:WORST]],
        failed=list(validation.failed.values()),
        most=WORST,
    )


def _pictures(
    every: Sequence[Validation], summaries: Sequence[Mapping[str, Any]], columns: Mapping[str, NDArray]
) -> dict[str, str]:
    """Pictures of all runs as PNG in base64, by name."""
    names = ["this", "against"] if len(every) > 1 else [every[0].name]
    first, *others = [one.runs for one in every]
    figures = {
        "significances": pictures.draw_significances([one.sums for one in every], names, summaries),
        "profiles": pictures.draw_profiles(first, names, others),
        "slopes": pictures.draw_slopes(summaries, names),
        "energies": pictures.draw_energies(summaries, names),
        "runs": pictures.draw_runs(columns),
    }
    return {name: _png(figure) for name, figure in figures.items()}


def _png(figure: Figure) -> str:
    """A picture as PNG in base64."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return base64.b64encode(buffer.getvalue()).decode()


def _run(validation: Validation, columns: Mapping[str, NDArray], i: int) -> dict[str, Any]:
    """The columns of one run, its flags in words, and its counts by energy band."""
    runs = validation.runs.isel(obs_id=i)
    observed, norm = runs["profile"].values.sum(axis=2)
    in_band = runs["energy_band"].values == np.arange(len(observed))[:, None]
    counts, raw = (np.where(in_band, runs[name].values, 0.0).sum(axis=1) for name in ("counts", "predicted"))
    pull = ratio(observed - norm, np.sqrt(norm))
    limits = runs["band_min"].values, runs["band_max"].values
    return {
        **{name: column[i] for name, column in columns.items()},
        "flags": flag_words(int(columns["flag"][i])),
        "bands": list(zip(*limits, observed, raw, ratio(raw, counts), norm, pull, strict=True)),
    }
