"""The simulated sky: fields, gamma-ray sources, stars; and directions on it.

Directions are unit vectors, shape (..., 3): displacing, rotating and comparing them needs no care near a pole or at
right ascension zero.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.random import Generator, SeedSequence, default_rng
from numpy.typing import ArrayLike, NDArray

from dask_bkg.simulate.truth import Source, Star


class Field(NamedTuple):
    """A field that is observed: name, right ascension and declination [deg]."""

    name: str
    ra: float
    dec: float


TARGETS = (Field("Sim Crab", 83.633, 22.0145), Field("Sim Halo", 150.0, 38.0))
"""Fields with a gamma-ray source, in the middle."""

EMPTY_FIELDS = (Field("Sim Dark 1", 20.0, 30.0), Field("Sim Dark 2", 130.0, 28.0), Field("Sim Dark 3", 225.0, 45.0))
"""Fields without one, far from known ones too."""

_CRAB_FLUX = 3.5e-11  # at 1 TeV [cm-2 s-1 TeV-1]
_BRIGHT, _FAINT = 3, 60  # stars of a field


class Stream(IntEnum):
    """What random numbers are drawn for; each purpose has streams of its own, so that one leaves the others alone."""

    STARS = 0
    TIMES = 1
    CONDITIONS = 2
    BACKGROUND = 3
    LOSSES = 4
    GAMMA_RAYS = 5
    CAMERA = 6
    WEATHER = 7


def random_stream(seed: int, purpose: Stream, number: int) -> Generator:
    """Random numbers for one purpose in one run or field."""
    return default_rng(SeedSequence(seed, spawn_key=(purpose, number)))


def draw_stars(seed: int) -> tuple[Star, ...]:
    """Draw the stars of all fields: three bright ones where they do harm, and the sky's usual faint ones."""
    stars: list[Star] = []
    for number, field in enumerate(TARGETS + EMPTY_FIELDS):
        rng = random_stream(seed, Stream.STARS, number)
        # one star brighter than V = 8 per square degree, a number that grows as 10^(V/2)
        v_mag = np.append(rng.uniform(3.0, 4.9, _BRIGHT), 8 + 2 * np.log10(rng.uniform(0.035, 1.0, _FAINT)))
        # the bright ones leave the source in the middle alone
        distance = np.append(rng.uniform(0.95, 2.4, _BRIGHT), 4.5 * np.sqrt(rng.random(_FAINT)))
        place = displace(to_vector(field.ra, field.dec), distance, rng.uniform(0.0, 2 * np.pi, v_mag.size))
        ra, dec = to_angles(place)
        colour = rng.normal(0.6, 0.4, v_mag.size)
        # rounded as in the star table, so that truth and table hold the same stars
        rows = np.column_stack([ra.round(6), dec.round(6), v_mag.round(2), colour.round(3)]).tolist()
        first = len(stars) + 1
        stars += [Star(a, d, v, c, hip) for hip, (a, d, v, c) in enumerate(rows, start=first)]
    return tuple(stars)


def target_sources(targets: int, crab: float) -> tuple[Source, ...]:
    """Return the sources of the first ``targets`` targets; ``crab`` scales their fluxes."""
    point, halo = TARGETS
    sources = (
        Source(*point, sigma=0.0, flux=_CRAB_FLUX * crab, index=2.5),
        Source(*halo, sigma=0.15, flux=_CRAB_FLUX * crab, index=2.4),
    )
    return sources[:targets]


def to_vector(ra: ArrayLike, dec: ArrayLike) -> NDArray:
    """Unit vectors of angles [deg]."""
    ra, dec = np.deg2rad(ra), np.deg2rad(dec)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


def to_angles(vector: NDArray) -> tuple[NDArray, NDArray]:
    """Longitude in [0, 360) and latitude [deg] of vectors."""
    x, y, z = np.moveaxis(vector, -1, 0)
    return np.rad2deg(np.arctan2(y, x)) % 360.0, np.rad2deg(np.arctan2(z, np.hypot(x, y)))


def tangents(vector: NDArray) -> tuple[NDArray, NDArray]:
    """Unit vectors towards east and north at unit vectors."""
    east = np.stack([-vector[..., 1], vector[..., 0], np.zeros_like(vector[..., 0])], axis=-1)
    east /= np.linalg.norm(east, axis=-1, keepdims=True)
    return east, np.cross(vector, east)


def displace(vector: NDArray, distance: ArrayLike, angle: ArrayLike) -> NDArray:
    """Unit vectors at a distance [deg] and position angle [rad, north to east] from unit vectors."""
    east, north = tangents(vector)
    distance, angle = np.deg2rad(distance)[..., None], np.asarray(angle)[..., None]
    return np.cos(distance) * vector + np.sin(distance) * (np.sin(angle) * east + np.cos(angle) * north)
