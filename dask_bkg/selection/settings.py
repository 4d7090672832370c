"""The part of the ``background_selection`` section of a configuration that selections read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, Self


class SelectionSettings(Protocol):
    """A ``background_selection`` section, `dask_bkg.config.BackgroundSelection`, as far as selections read it.

    Cuts are read by their names (`dask_bkg.selection.cuts`); one that is missing is not set.
    """

    @property
    def ranking(self) -> str:
        """One of `dask_bkg.selection.RANKINGS`."""

    @property
    def hours_wanted(self) -> float:
        """Requested hours (times weights); infinite: all runs that pass."""

    @property
    def kernel(self) -> Mapping[str, float] | None:
        """Widths of the kernel; None: the measured ones."""

    @property
    def wider_shape(self) -> bool:
        """Whether the shape has runs of its own."""

    @property
    def shape_kernel(self) -> Mapping[str, float] | None:
        """Widths of their kernel; None: the measured ones."""

    @property
    def shape_time_request(self) -> float | str:
        """Their hours (times weights), or ``all``."""

    @property
    def night_scale(self) -> float:
        """Time [d] in which the weight of a run falls to 1/e; 0: the normalisation has no runs of its own."""

    @property
    def seasons(self) -> Mapping[str, Any] | None:
        """Seasons by name."""

    def season_range(self, name: str) -> tuple[float, float]:
        """Start and stop of a season [MJD]."""

    def season_of(self, mjd: float) -> str | None:
        """Season of a date [MJD]."""

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """The section with some values changed."""
