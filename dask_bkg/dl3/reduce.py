"""One run of an archive to counts and exposure: the task that a Dask worker does ten thousand times.

Eager, picklable, no gammapy.  `reduce_run` is for one run and for notebooks; `reduce_block` is the same for a batch
of runs, in which a bad run is reported and does not take the others with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from dask_bkg import exclusion, fov, kernels, schema
from dask_bkg.dl3.read import RunEvents, RunFile, read_run
from dask_bkg.errors import RunError
from dask_bkg.exclusion import SkyRegions
from dask_bkg.schema import Edges, as_edges


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
        What is excluded, over the whole sky (see `dask_bkg.catalogs.sky_regions`); None excludes nothing.
    method
        ``geometry``: the exposed fraction is the share of the ring's solid angle outside of the exclusion;
        ``event_ratio``: the procedure's ratio of kept to all events, with ``2 pi offset d_offset``.
    reach
        Which regions matter, see `dask_bkg.exclusion.SkyRegions.near`.
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
    """`reduce_run` for a batch of runs, along ``obs_id``.

    A run that cannot be used has no counts, no exposure and its reason in the coordinate ``error`` (empty for the
    others); ``note`` tells what was remarkable about a run that was used.
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
        except Exception as error:  # whatever it is, the other runs go on
            text["error"][i] = f"run {run.obs_id}: unexpected {type(error).__name__}: {error}"
            continue
        for name, value in events.numbers.items():
            numbers[name][i] = value
        text["object"][i], text["note"][i] = events.object, events.note
    coords = {name: ("obs_id", np.asarray(v)) for name, v in {**numbers, **text}.items()}
    obs_id = np.array([run.obs_id for run in runs], dtype=np.int64)
    dims = ("obs_id", *schema.AXES)
    return schema.with_units(
        xr.Dataset(
            {"counts": (dims, counts), "exposure": (dims, exposure)},
            coords={"obs_id": obs_id, **schema.axis_coords(edges), **coords},
        )
    )


def _histograms(
    run: RunFile, edges: Edges, regions: SkyRegions | None, method: str, reach: str
) -> tuple[NDArray, NDArray, RunEvents]:
    """Counts and exposure of a run, and what was read of it."""
    # the document does not look at the times of the events
    events = read_run(run, cut_time=method != "event_ratio")
    counts, exposure = histograms(events, edges, regions, method, reach)
    if not exposure.any():
        raise RunError(f"run {run.obs_id}: the exclusion regions close its whole field: use fewer, or drop the run")
    if not counts.any():
        # no event in the binning is a measurement, unless the pointing is wrong
        ra, dec, offset_max = events.numbers["ra_pnt"], events.numbers["dec_pnt"], edges.offset[-1]
        if not (fov.separation(events.ra, events.dec, ra, dec) < offset_max).any():
            raise RunError(
                f"run {run.obs_id}: none of the {events.energy.size} events of {run.path} lies within {offset_max:g} "
                f"deg of the pointing (RA {ra:.3f}, Dec {dec:.3f}): look at the pointing, or drop the run"
            )
    return counts, exposure, events


def histograms(
    events: RunEvents, edges: Edges, regions: SkyRegions | None, method: str, reach: str
) -> tuple[NDArray, NDArray]:
    """Counts and exposure [s TeV sr] of events that were read, shape ``(energy, offset)``; see `reduce_run`."""
    ra, dec = events.numbers["ra_pnt"], events.numbers["dec_pnt"]
    near = None if regions is None else regions.near(ra, dec, float(edges.offset[-1]), reach)
    if method == "geometry":
        return _by_pixel(events, edges, near)
    if method == "event_ratio":
        return _by_event(events, edges, near)
    raise ValueError(f"method {method!r} of the exposure: accepted are 'geometry' and 'event_ratio'")


def _by_pixel(events: RunEvents, edges: Edges, near: SkyRegions | None) -> tuple[NDArray, NDArray]:
    """Events and solid angle through the same pixels of the field."""
    ra_pnt, dec_pnt = events.numbers["ra_pnt"], events.numbers["dec_pnt"]
    grid = fov.ring_grid(tuple(edges.offset.tolist()))
    pixel = fov.pixel_index(grid, *fov.to_fov(events.ra, events.dec, ra_pnt, dec_pnt))
    ring, fraction = np.where(pixel >= 0, grid.bin[pixel], -1), np.ones(grid.n_bins)
    if near is not None and len(near):
        excluded = exclusion.excluded_pixels(grid, near, ra_pnt, dec_pnt)
        ring[excluded[pixel]] = -1
        fraction = fov.exposed_fraction(grid, excluded)
    counts = kernels.count_events(kernels.digitize(events.energy, edges.energy), ring, *edges.shape)
    return counts, kernels.exposure(events.numbers["ontime"], edges.energy, grid.bin_solid_angle, fraction)


def _by_event(events: RunEvents, edges: Edges, near: SkyRegions | None) -> tuple[NDArray, NDArray]:
    """The procedure's own way: exact offsets, and the ratio of kept to all events."""
    offset = fov.separation(events.ra, events.dec, events.numbers["ra_pnt"], events.numbers["dec_pnt"])
    ring = kernels.digitize(offset, edges.offset)
    kept = np.ones(ring.size, dtype=bool)
    if near is not None:
        kept = ~exclusion.excluded_positions(near, events.ra, events.dec)
    energy = kernels.digitize(events.energy, edges.energy)
    counts = kernels.count_events(energy, np.where(kept, ring, -1), *edges.shape)
    fraction = kernels.event_ratio(ring, kept, edges.shape[1])
    solid_angle = kernels.flat_solid_angle(edges.offset)
    return counts, kernels.exposure(events.numbers["ontime"], edges.energy, solid_angle, fraction)
