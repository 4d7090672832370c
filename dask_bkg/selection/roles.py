"""Roles of contributing runs: spectrum of a background, its shape over the field, normalisation of its night.

A spectrum needs runs of nearly the same conditions, a shape needs many events, and the weather is best measured by
the neighbouring nights.  So each has runs of its own, selected by the same cuts; only kernel and hours differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from dask_bkg.selection.ranking import SAME_NIGHT, SHAPE_WIDTHS, TIME, widths_of
from dask_bkg.selection.selections import Selection, Selections
from dask_bkg.selection.settings import SelectionSettings

S = TypeVar("S", bound=SelectionSettings)

SPECTRUM, SHAPE, NIGHT = "spectrum", "shape", "night"


def of_target(selected: Mapping[str, Selections], row: int) -> dict[str, Selection]:
    """The runs that contribute to the target of one row, by role."""
    return {role: selections.of(row) for role, selections in selected.items()}


def settings_of_roles(settings: S) -> dict[str, S]:
    """The ``background_selection`` section of each role that has runs of its own, the spectrum's first.

    Parameters
    ----------
    settings
        The section of the configuration.

    Returns
    -------
    settings
        By role: ``spectrum``; ``shape`` and ``night`` where they have runs of their own.

    Examples
    --------
    >>> from dask_bkg.config import parse_config
    >>> settings = parse_config({}).background_selection
    >>> list(settings_of_roles(settings))
    ['spectrum', 'shape', 'night']
    >>> list(settings_of_roles(settings.model_copy(update={"rank": "kl"})))
    ['spectrum']
    """
    roles = {SPECTRUM: settings}
    if settings.wider_shape:
        kernel = settings.shape_kernel or SHAPE_WIDTHS
        update = {"rank": "conditions", "time_request": settings.shape_time_request, "kernel": kernel}
        roles[SHAPE] = settings.model_copy(update={"KL_DIV": False, **update})
    if settings.night_scale > 0:
        kernel = {**widths_of(settings), TIME: settings.night_scale}
        update = {"rank": SAME_NIGHT, "time_request": "all", "kernel": kernel}
        roles[NIGHT] = settings.model_copy(update={"KL_DIV": False, **update})
    return roles
