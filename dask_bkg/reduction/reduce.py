"""One run of an archive to histograms: the task of a Dask worker.

Eager, picklable, no gammapy.  `reduce_run` is for one run and for notebooks; `reduce_block` is the same for a batch
of runs, in which a bad run is reported and does not affect the others; `reduce_views` fills all the histograms of a
run that the run store has, reading its file once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from dask_bkg import schema
from dask_bkg.binning import AXES, Edges, View, as_edges
from dask_bkg.dl3.read import RunEvents, RunFile, read_run
from dask_bkg.errors import RunError
from dask_bkg.reduction.counts import exposure
from dask_bkg.reduction.histograms import count_views, solid_angles
from dask_bkg.reduction.horizon import horizon_of
from dask_bkg.sky import fov
from dask_bkg.sky.exclusion import SkyRegions, exclusion_digest

OUTSIDE_NOTE, OUTSIDE_LIMIT = 0.1, 0.5
"""Share of the events outside of the run store's histograms from which there is a remark, and an error."""


class Reduced(NamedTuple):
    """The content of the run store for one run.

    Attributes
    ----------
    numbers
        Per-run numbers, see `dask_bkg.schema.RUN_NUMBERS`.
    texts
        ``object``, ``telescopes``, ``instrument``, ``note``; ``fingerprint`` of the run and ``exclusion``,
        the digest of the regions that touch its field.
    histograms
        One per view: ``counts`` (energy, offset) and ``exposed_fraction`` (offset,), and where the view has pixels
        ``field_counts`` (energy, fov_lat, fov_lon) and ``field_exposed_fraction`` (fov_lat, fov_lon), in the frame of
        the view.
    """

    numbers: dict[str, float]
    texts: dict[str, str]
    histograms: list[dict[str, NDArray]]


def reduce_run(
    path: str,
    obs_id: int,
    edges: Edges | Mapping[str, ArrayLike],
    regions: SkyRegions | None = None,
    *,
    method: str = "geometry",
    reach: str = "disc",
    hdus: Mapping[str, str] | None = None,
) -> xr.Dataset:
    """Counts and exposure of one run, known sources and bright stars excluded.

    Parameters
    ----------
    path
        DL3 file with an EVENTS and a GTI HDU.
    obs_id
        Run number.
    edges
        Bin edges: ``{"energy": [TeV], "offset": [deg]}``.
    regions
        Exclusion regions of the whole sky (see `dask_bkg.sky.catalogs.sky_regions`); None excludes nothing.
    method
        ``geometry``: the exposed fraction is the share of the solid angle of an offset bin outside of the exclusion;
        ``event_ratio``: the procedure's ratio of kept to all events, with ``2 pi offset d_offset``.
    reach
        Which regions matter, see `dask_bkg.sky.exclusion.SkyRegions.near`.
    hdus
        Names of the HDUs, ``{"events": ..., "gti": ...}``; found by their class if not given.

    Returns
    -------
    dataset
        ``counts`` and ``exposure`` [s TeV sr] with dimensions ``(energy, offset)``, and the run's ontime, livetime,
        pointing and observing conditions as coordinates.

    Raises
    ------
    RunError
        If the run cannot be used; the message names run, file and remedy.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from dask_bkg.simulate import simulate_archive
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     truth = simulate_archive(directory, runs=1, events=1000)
    ...     path = next(str(p) for p in Path(directory).glob("data/*"))
    ...     run = reduce_run(path, 64001, {"energy": [0.1, 1, 10], "offset": [0, 1, 2.5]})
    >>> run.counts.dims
    ('energy', 'offset')
    """
    edges, hdus = as_edges(edges), hdus or {}
    run = RunFile(int(obs_id), str(path), hdus.get("events", ""), "", hdus.get("gti", ""))
    counts, exposure, events = _histograms(run, edges, regions, method, reach)
    return schema.run_dataset(counts, exposure, edges, events.numbers, obs_id=run.obs_id, object=events.object)


def reduce_block(
    runs: Sequence[RunFile], edges: Edges, regions: SkyRegions | None, method: str = "geometry", reach: str = "disc"
) -> xr.Dataset:
    """`reduce_run` for a batch of runs.

    Parameters
    ----------
    runs
        Files of the runs.
    edges, regions, method, reach
        As for `reduce_run`.

    Returns
    -------
    dataset
        ``counts`` and ``exposure`` [s TeV sr], dimensions ``(obs_id, energy, offset)``.  A run that cannot be used
        has no counts, no exposure and the reason in the coordinate ``error`` (empty for the others); ``note`` has
        remarks on a run that was used.
    """
    shape = (len(runs), *edges.shape)
    counts, exposure = np.zeros(shape), np.zeros(shape)
    numbers = {name: np.full(len(runs), np.nan) for name in schema.RUN_NUMBERS}
    text = {name: np.full(len(runs), "", dtype=object) for name in schema.RUN_TEXTS}
    for i, run in enumerate(runs):
        try:
            counts[i], exposure[i], events = _histograms(run, edges, regions, method, reach)
        except RunError as error:
            text["error"][i] = str(error)
            continue
        except Exception as error:  # any other error of one run must not stop the others
            text["error"][i] = f"run {run.obs_id}: unexpected {type(error).__name__}: {error}"
            continue
        for name, value in events.numbers.items():
            numbers[name][i] = value
        for name in ("object", "telescopes", "instrument", "note"):
            text[name][i] = getattr(events, name)
    coords = {name: ("obs_id", np.asarray(v)) for name, v in {**numbers, **text}.items()}
    obs_id = np.array([run.obs_id for run in runs], dtype=np.int64)
    dims = ("obs_id", *AXES)
    return schema.with_units(
        xr.Dataset(
            {"counts": (dims, counts), "exposure": (dims, exposure)},
            coords={"obs_id": obs_id, **schema.axis_coords(edges), **coords},
        )
    )


def reduce_views(run: RunFile, views: Sequence[View], regions: SkyRegions | None = None) -> Reduced:
    """Histograms of one run in several views, its numbers and texts; the file is read once.

    Parameters
    ----------
    run
        File of the run.
    views
        Which histograms are filled, see `dask_bkg.binning.fine_view`.
    regions
        Exclusion regions of the whole sky; None excludes nothing.

    Returns
    -------
    reduced
        Numbers, texts and histograms (shapes in `Reduced`).

    Raises
    ------
    RunError
        If the run cannot be used; the message names run, file and remedy.
    ValueError
        If there is no view.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from dask_bkg.binning import fine_view
    >>> from dask_bkg.simulate import simulate_archive
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     truth = simulate_archive(directory, runs=1, events=1000)
    ...     path = next(str(p) for p in Path(directory).glob("data/*"))
    ...     run = reduce_views(RunFile(64001, path), [fine_view()])
    >>> {name: array.shape for name, array in run.histograms[0].items()}  # doctest: +NORMALIZE_WHITESPACE
    {'counts': (50, 50), 'exposed_fraction': (50,), 'field_counts': (50, 25, 25),
     'field_exposed_fraction': (25, 25)}
    """
    if not views:
        raise ValueError("no view: give at least one, for instance dask_bkg.binning.fine_view()")
    events, near, histograms = _read_and_count(run, views, regions)
    pointing = events.numbers["ra_pnt"], events.numbers["dec_pnt"]
    texts = {name: getattr(events, name) for name in ("object", "telescopes", "instrument", "fingerprint")}
    remarks = events.note, _outside(run, events, views, histograms), _no_horizon(events, views, histograms)
    texts["note"] = "; ".join(filter(None, remarks))
    texts["exclusion"] = exclusion_digest(near, *pointing, max(view.radius for view in views))
    return Reduced(events.numbers, texts, histograms)


def _outside(run: RunFile, events: RunEvents, views: Sequence[View], found: Sequence[Mapping[str, NDArray]]) -> str:
    """A remark on events outside of all bins, empty if they are few; `RunError` if they are most.

    So a wrong unit or pointing is found that no card betrays.
    """
    # most often enough events were counted, and none of them has to be looked at again
    by_pixel = (one for view, one in zip(views, found, strict=True) if view.method != "event_ratio")
    counted = [int(array.sum()) for one in by_pixel for name, array in one.items() if name.endswith("counts")]
    if max(counted, default=0) >= (1 - OUTSIDE_NOTE) * events.energy.size:
        return ""
    low, high = (f(view.edges.energy[i] for view in views) for f, i in ((min, 0), (max, -1)))
    radius = max(view.radius for view in views)
    offset = fov.separation(events.ra, events.dec, events.numbers["ra_pnt"], events.numbers["dec_pnt"])
    energies, places = (events.energy >= low) & (events.energy < high), offset < radius
    n, outside = offset.size, int((~(energies & places)).sum())
    said = (
        f"{outside} of {n} events lie outside of the histograms of the run store ({int((~energies).sum())} outside "
        f"of {low:g}-{high:g} TeV, {int((~places).sum())} farther than {radius:g} deg from the pointing)"
    )
    if outside > OUTSIDE_LIMIT * n:
        raise RunError(
            f"run {run.obs_id}: {said}: check units and pointing of {run.path}, or raise binning.off_max for a "
            "larger field of view"
        )
    return said if outside > OUTSIDE_NOTE * n else ""


def _no_horizon(events: RunEvents, views: Sequence[View], found: Sequence[Mapping[str, NDArray]]) -> str:
    """Why a field that is to be aligned with the horizon has no exposure, empty if it has."""
    if all(
        view.alignment != "altaz" or one["field_exposed_fraction"].any()
        for view, one in zip(views, found, strict=True)
    ):
        return ""
    try:
        horizon_of(events)
    except RunError as error:
        return str(error)
    return ""  # the whole field is excluded


def histograms(
    events: RunEvents, edges: Edges, regions: SkyRegions | None, method: str, reach: str
) -> tuple[NDArray, NDArray]:
    """Counts and exposure [s TeV sr] of the events of a run, shape ``(energy, offset)``; see `reduce_run`."""
    view = View("", edges, method, reach)
    return _counts_and_exposure(events, view, count_views(events, [view], regions)[0])


def _histograms(
    run: RunFile, edges: Edges, regions: SkyRegions | None, method: str, reach: str
) -> tuple[NDArray, NDArray, RunEvents]:
    """Counts and exposure of a run, and its events."""
    view = View("", edges, method, reach)
    events, _, found = _read_and_count(run, [view], regions)
    return *_counts_and_exposure(events, view, found[0]), events


def _counts_and_exposure(events: RunEvents, view: View, found: Mapping[str, NDArray]) -> tuple[NDArray, NDArray]:
    exposed = exposure(
        events.numbers["ontime"], view.edges.energy, solid_angles(view)["solid_angle"], found["exposed_fraction"]
    )
    return found["counts"].astype(float), exposed


def _read_and_count(
    run: RunFile, views: Sequence[View], regions: SkyRegions | None
) -> tuple[RunEvents, SkyRegions | None, list[dict[str, NDArray]]]:
    """Events of a run, the regions near it, and its histograms; `RunError` without exposure or events in it."""
    # the procedure ignores the times of the events
    events = read_run(run, cut_time=any(view.method != "event_ratio" for view in views))
    ra, dec = events.numbers["ra_pnt"], events.numbers["dec_pnt"]
    # one search of the whole sky for all views
    near = None if regions is None else regions.near(ra, dec, max(view.radius for view in views))
    found = count_views(events, views, near)
    if not any(name.endswith("exposed_fraction") and array.any() for one in found for name, array in one.items()):
        raise RunError(f"run {run.obs_id}: its whole field is excluded: use fewer exclusion regions, or drop the run")
    if not any(name.endswith("counts") and array.any() for one in found for name, array in one.items()):
        # a run without events in the energy range is valid, one without events in the field is not
        offset_max = max(view.edges.offset[-1] for view in views)
        if not (fov.separation(events.ra, events.dec, ra, dec) < offset_max).any():
            raise RunError(
                f"run {run.obs_id}: none of the {events.energy.size} events of {run.path} lies within {offset_max:g} "
                f"deg of the pointing (RA {ra:.3f}, Dec {dec:.3f}): check the pointing, or drop the run"
            )
    return events, near, found
