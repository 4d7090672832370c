"""How runs are compared."""

from __future__ import annotations

from typing import NamedTuple

METHODS = ("shape", "document")


class ShapeSettings(NamedTuple):
    """How runs are compared.

    Attributes
    ----------
    method
        ``shape`` or ``document``.
    prior
        Events that the prior of a reference is worth.
    min_coverage
        Share of the target's events in bins that a reference covers (`coverage_block`) below which it is ranked last.
    components
        Largest number of principal components of the prior's family; 0: the archive's mean shape for all runs.
    """

    method: str = "shape"
    prior: float = 3000.0
    min_coverage: float = 0.8
    components: int = 4
