"""What runs contribute to: the spectrum of a background, its shape over the field, the level of its night.

A spectrum wants runs that are much alike, a shape wants many events, and the weather is that of the nights around.
So each has runs of its own, found by the same cuts and the same machinery; only the kernel and the hours differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from dask_bkg.selection.ranking import SAME_NIGHT, SHAPE_WIDTHS, TIME, widths_of
from dask_bkg.selection.selections import Selection, Selections
from dask_bkg.selection.settings import SelectionSettings

S = TypeVar("S", bound=SelectionSettings)

SPECTRUM, SHAPE, NIGHT = "spectrum", "shape", "night"


def of_target(selected: Mapping[str, Selections], row: int) -> dict[str, Selection]:
    """The runs that contribute to one of some targets, by role."""
    return {role: selections.of(row) for role, selections in selected.items()}


def settings_of_roles(settings: S) -> dict[str, S]:
    """The ``background_selection`` section of each role that has runs of its own, the spectrum's first.

    Parameters
    ----------
    settings
        The section as it stands in the configuration.

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
        roles[SHAPE] = _other(settings, rank="conditions", time_request=settings.shape_time_request, kernel=kernel)
    if settings.night_scale > 0:
        kernel = {**widths_of(settings), TIME: settings.night_scale}
        roles[NIGHT] = _other(settings, rank=SAME_NIGHT, time_request="all", kernel=kernel)
    return roles


def _other(settings: S, **update: Any) -> S:
    return settings.model_copy(update={"KL_DIV": False, **update})
