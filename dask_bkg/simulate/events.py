"""The events of a run: background, what is lost of it at stars, and gamma rays.

All are Poisson processes, drawn from a simpler process of a higher rate and thinned, which is exact: there is no
binning in energy, offset or angle that a test could mistake for a fault of the program it tests.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.integrate import cumulative_trapezoid

from dask_bkg.simulate import camera, response
from dask_bkg.simulate.files import LATITUDE
from dask_bkg.simulate.plan import SIDEREAL
from dask_bkg.simulate.sky import Stream, displace, random_stream, tangents, to_angles, to_vector
from dask_bkg.simulate.truth import SimulatedRun, Source, Star, Truth

STAR_MAGNITUDE, STAR_RADIUS, STAR_LOSS = 5.0, 0.25, 0.4
"""Stars brighter than this V magnitude lose this share of the background within this radius [deg]."""

_GRID = 4001  # points in ln E of the cumulative spectra: 0.2 % of an energy apart


def draw_events(run: SimulatedRun, number: int, truth: Truth, horizon: NDArray) -> dict[str, NDArray]:
    """Draw the event list of a run.

    Parameters
    ----------
    run
        The run, the ``number``-th of the archive.
    number
        Number of its random streams.
    truth
        The archive it belongs to.
    horizon
        Matrix from the sky to (north, east, up) in the middle of the run.

    Returns
    -------
    columns
        Columns of the event list, in the order of time.
    """
    background = _draw_background(run, truth, random_stream(truth.seed, Stream.BACKGROUND, number))
    if not truth.is_round:
        place = _turn_in_camera(run, background, truth, horizon, random_stream(truth.seed, Stream.CAMERA, number))
        background = *background[:-1], place
    kept = ~_lost_at_stars(background[-1], truth.stars, random_stream(truth.seed, Stream.LOSSES, number))
    rng = random_stream(truth.seed, Stream.GAMMA_RAYS, number)
    parts = [tuple(values[kept] for values in background)]
    parts += [_draw_gamma_rays(run, source, truth, rng) for source in truth.sources]
    time, energy, place = (np.concatenate(values) for values in zip(*parts, strict=True))
    order = np.argsort(time)
    time, energy, place = time[order], energy[order], place[order]
    columns = {"EVENT_ID": np.arange(1, time.size + 1), "TIME": time, "ENERGY": energy}
    return columns | _positions(run, time, place, horizon)


def _draw_background(run: SimulatedRun, truth: Truth, rng: Generator) -> tuple[NDArray, NDArray, NDArray]:
    """Draw times, energies and directions of the background, on a camera without edge and then cut."""
    grid = np.geomspace(*response.ENERGY_RANGE, _GRID)
    width = np.deg2rad(response.acceptance_width(grid, run.zenith))
    density = run.norm * run.ontime * truth.spectrum(run, grid) * 2 * np.pi * width**2
    energy = _draw_energies(grid, density, rng)
    offset = response.acceptance_width(energy, run.zenith) * np.sqrt(-2 * np.log1p(-rng.random(energy.size)))
    # the solid angle of a ring on the sphere is sin(R)/R of that on the plane, where the Gaussian was drawn
    chance = response.camera_edge(offset) * np.sinc(offset / 180.0)
    angle = rng.uniform(0.0, 2 * np.pi, energy.size)
    time = _draw_times(run, energy.size, rng)
    kept = rng.random(energy.size) < chance
    place = displace(to_vector(run.ra_pnt, run.dec_pnt), offset[kept], angle[kept])
    return time[kept], energy[kept], place


def _turn_in_camera(
    run: SimulatedRun, background: tuple[NDArray, ...], truth: Truth, horizon: NDArray, rng: Generator
) -> NDArray:
    """Draw the directions anew, at the same offsets, until each is accepted in the camera at its event's own time.

    The shape over the camera is relative to its mean over angle, so offsets, energies and times stay as they are; and
    where it is nearly round, so do most directions.
    """
    time, energy, place = background
    pointing = to_vector(run.ra_pnt, run.dec_pnt)
    slope = np.broadcast_to(truth.slope(run, energy), energy.shape)
    aim = _above_horizon(run, time, np.broadcast_to(pointing, place.shape), horizon)
    offset = np.rad2deg(np.arctan2(np.linalg.norm(np.cross(place, pointing), axis=-1), place @ pointing))
    highest = camera.largest_shape(offset, slope, truth.elongation)
    place, left = place.copy(), np.arange(time.size)
    while left.size:
        lon, lat = _field_position(_above_horizon(run, time[left], place[left], horizon), aim[left])
        wanted = camera.shape(lon, lat, slope[left], truth.elongation)
        left = left[rng.random(left.size) * highest[left] >= wanted]
        place[left] = displace(pointing, offset[left], rng.uniform(0.0, 2 * np.pi, left.size))
    return place


def _lost_at_stars(place: NDArray, stars: tuple[Star, ...], rng: Generator) -> NDArray:
    """Draw which events are lost near bright stars; an event near two of them is lost no more often."""
    bright = [star for star in stars if star.v_mag < STAR_MAGNITUDE]
    near = np.zeros(len(place), dtype=bool)
    for star in bright:
        near |= place @ to_vector(star.ra, star.dec) > np.cos(np.deg2rad(STAR_RADIUS))
    return near & (rng.random(len(place)) < STAR_LOSS)


def _draw_gamma_rays(
    run: SimulatedRun, source: Source, truth: Truth, rng: Generator
) -> tuple[NDArray, NDArray, NDArray]:
    """Draw times, reconstructed energies and directions of gamma rays, as if on the axis and then thinned."""
    pointing = to_vector(run.ra_pnt, run.dec_pnt)
    grid = np.geomspace(*response.ENERGY_TRUE_RANGE, _GRID)
    area = 1e4 * response.effective_area(grid, 0.0, run.zenith, truth.threshold_factor(run))  # cm2, as the flux
    energy = _draw_energies(grid, run.livetime * source.flux * grid**-source.index * area, rng)
    place = _scatter(np.broadcast_to(to_vector(source.ra, source.dec), (energy.size, 3)), source.sigma, rng)
    offset = np.rad2deg(np.arccos(np.clip(place @ pointing, -1.0, 1.0)))
    kept = rng.random(energy.size) < response.acceptance(energy, offset, run.zenith)
    place = _scatter(place, response.PSF_SIGMA, rng)
    energy = energy * np.exp(response.ENERGY_RESOLUTION * rng.standard_normal(energy.size))
    low, high = response.ENERGY_RANGE
    kept &= (energy >= low) & (energy <= high)
    return _draw_times(run, energy.size, rng)[kept], energy[kept], place[kept]


def _draw_energies(grid: NDArray, density: NDArray, rng: Generator) -> NDArray:
    """Draw energies of a Poisson process whose ``density`` per energy is given on a logarithmic grid."""
    expected = cumulative_trapezoid(density * grid, np.log(grid), initial=0.0)
    drawn = rng.uniform(0.0, expected[-1], rng.poisson(expected[-1]))
    return np.exp(np.interp(drawn, expected, np.log(grid)))


def _draw_times(run: SimulatedRun, n: int, rng: Generator) -> NDArray:
    """Draw mission times [s] evenly over the good time intervals."""
    start, stop = np.array(run.gti).T
    elapsed = np.append(0.0, np.cumsum(stop - start))
    drawn = rng.uniform(0.0, elapsed[-1], n)
    piece = np.searchsorted(elapsed, drawn, side="right") - 1
    return start[piece] + drawn - elapsed[piece]


def _scatter(place: NDArray, sigma: float, rng: Generator) -> NDArray:
    """Displace each direction by a two-dimensional Gaussian of width ``sigma`` [deg]."""
    n = len(place)
    return displace(place, sigma * np.sqrt(-2 * np.log1p(-rng.random(n))), rng.uniform(0.0, 2 * np.pi, n))


def _positions(run: SimulatedRun, time: NDArray, place: NDArray, horizon: NDArray) -> dict[str, NDArray]:
    """Columns with the direction of each event: on the sky, above the horizon, in the camera."""
    ra, dec = to_angles(place)
    az, alt = to_angles(_above_horizon(run, time, place, horizon))
    # Xoff grows with falling right ascension, Yoff with declination, as fov_lon and fov_lat of the format
    pointing = to_vector(run.ra_pnt, run.dec_pnt)
    east, north = tangents(pointing)
    x = -np.rad2deg(np.arctan2(place @ east, place @ pointing))
    y = np.rad2deg(np.arcsin(np.clip(place @ north, -1.0, 1.0)))
    return {"RA": ra, "DEC": dec, "ALT": alt, "AZ": az, "Xoff": x, "Yoff": y}


def _above_horizon(run: SimulatedRun, time: NDArray, place: NDArray, horizon: NDArray) -> NDArray:
    """Unit vectors (north, east, up) at the time of each event, of unit vectors on the sky."""
    # from the middle of the run to the event the sky turns about the pole: Rodrigues' formula
    middle = 0.5 * (run.gti[0][0] + run.gti[-1][1])
    turn = np.deg2rad(SIDEREAL / 86400.0 * (time - middle))[:, None]
    lat = np.deg2rad(LATITUDE)
    pole, place_then = np.array([np.cos(lat), 0.0, np.sin(lat)]), place @ horizon.T
    along = (place_then @ pole)[:, None] * pole
    return along + np.cos(turn) * (place_then - along) + np.sin(turn) * np.cross(pole, place_then)


def _field_position(place: NDArray, aim: NDArray) -> tuple[NDArray, NDArray]:
    """``fov_lon`` and ``fov_lat`` [deg] of vectors (north, east, up), each in the field about another."""
    azimuth, zenith = tangents(aim)  # the directions in which they grow
    side, up, along = (np.einsum("ij,ij->i", place, axis) for axis in (azimuth, zenith, aim))
    return -np.rad2deg(np.arctan2(side, along)), np.rad2deg(np.arcsin(np.clip(up, -1.0, 1.0)))
