"""Background models of gamma-ray telescope archives, on Dask.

The procedure in one screen: `prepare_dataset` places the runs, `run_make_background` makes and writes their
backgrounds. In pieces: `reduce_run` counts the events of one run, `to_background` makes a rate of it, and
`make_background` does both for one run of an archive.
"""

from importlib import import_module
from importlib.metadata import version
from typing import Any

__version__ = version("dask_bkg")

_HOMES = {
    "get_config": "compat",
    "prepare_dataset": "compat",
    "run_make_background": "compat",
    "make_background": "compat",
    "make_client": "cluster.client",
    "BackgroundModelEstimator": "compat",
    "ExclusionFinder": "compat",
    "reduce_run": "reduction.reduce",
    "reduce_runs": "lazy.runs",
    "open_runs": "store.load",
    "open_backgrounds": "output.backgrounds",
    "kl_matrix": "lazy.kl",
    "to_background": "background.irf",
    "smooth": "background.irf",
    "kl_divergence": "similarity.divergence",
    "sky_regions": "sky.catalogs",
    "load_config": "config",
    "parse_config": "config",
    "simulate_archive": "simulate",
    "validate": "validation.run",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Public names on first use: a worker that fills histograms never imports gammapy."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dask_bkg' has no attribute {name!r}; public names are {', '.join(__all__)}")
    return getattr(import_module(f"dask_bkg.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
