"""What runs contribute to: the spectrum of a background, its shape over the field, the level of its night.

A spectrum wants runs that are much alike, a shape wants many events, and the weather is that of the nights around.
So each has runs of its own, found by the same cuts and the same machinery; only the kernel and the hours differ.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from dask_bkg.selection.ranking import SAME_NIGHT, SHAPE_WIDTHS, TIME, widths_of
from dask_bkg.selection.selections import Selection, Selections

SPECTRUM, SHAPE, NIGHT = "spectrum", "shape", "night"


class Contributors(NamedTuple):
    """The runs that contribute to one target.

    Attributes
    ----------
    spectrum
        Those of the spectrum: *the* contributing runs, with their hours and their remarks.
    shape
        Those of the shape over the field; None: the same.
    night
        Those that tell the level of the night; None: nobody is asked.
    """

    spectrum: Selection
    shape: Selection | None = None
    night: Selection | None = None

    @property
    def of_shape(self) -> Selection:
        """The runs of the shape, whichever they are."""
        return self.spectrum if self.shape is None else self.shape


class Contributing(NamedTuple):
    """`Contributors` of some targets, role by role."""

    spectrum: Selections
    shape: Selections | None = None
    night: Selections | None = None

    def of(self, i: int) -> Contributors:
        """Those of the i-th target."""
        return Contributors(*(None if role is None else role.of(i) for role in self))  # type: ignore[arg-type]


def settings_of_roles(settings: Any) -> dict[str, Any]:
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


def _other(settings: Any, **update: Any) -> Any:
    return settings.model_copy(update={"KL_DIV": False, **update})
