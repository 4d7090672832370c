"""What a simulated archive is made of, and the background rate that was put in.

The rate is per ontime (dead time does not enter it), with z the zenith angle in the middle of the run:

    B(E, R) = norm(time, z, NSB, weather) x spectrum(E, z, mirrors) x acceptance(E, R, z)

is its mean over angle.  With a tilt or an elongation it is not round about the pointing, but fixed to the camera:

    B(E, fov_lon, fov_lat) = B(E, R) x shape / (mean of the shape over angle at the same offset R)
    shape = exp(sin z x (tilt + tilt_slope x ln E) x fov_lat + elongation x (fov_lon^2 - fov_lat^2))

where ``fov_lat`` grows to the zenith and ``fov_lon`` to falling azimuth, at the time of each event.  The number of
telescopes and the azimuth do not enter.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dask_bkg.errors import ArchiveError, RunError
from dask_bkg.simulate import camera, response

TRUTH_FILE = "truth.json"

_PLANTED = ("tilt", "tilt_slope", "elongation", "steepening", "mirror_threshold")

NOMINAL_ONTIME, NOMINAL_ZENITH = 1680.0, 30.0
"""The run [s, deg] for which the number of events of an archive is given."""

NEW_MIRRORS = 0.85
"""Muon efficiency at which the mirrors are at their nominal level, and the threshold at that of the zenith angle."""

FIRST_SEASON, YEAR = 56201, 365
"""MJD of 1 October 2012, when the first observing season starts; and days from one season to the next."""


@dataclass(frozen=True)
class Source:
    """A gamma-ray source: position and Gaussian ``sigma`` [deg], ``flux`` at 1 TeV [cm-2 s-1 TeV-1], ``index``."""

    name: str
    ra: float
    dec: float
    sigma: float
    flux: float
    index: float

    @property
    def radius(self) -> float:
        """Radius [deg] that holds the source, smeared by the point spread function."""
        return max(0.3, 4.0 * float(np.hypot(self.sigma, response.PSF_SIGMA)))


@dataclass(frozen=True)
class Star:
    """A star: position [deg], V magnitude, colour, number in the table."""

    ra: float
    dec: float
    v_mag: float
    b_v: float
    hip: int


@dataclass(frozen=True)
class SimulatedRun:
    """What is known of one run: times in mission seconds, angles in deg, ``norm`` in s-1 TeV-1 sr-1 at 1 TeV."""

    obs_id: int
    object: str
    ra_obj: float
    dec_obj: float
    ra_pnt: float
    dec_pnt: float
    alt_pnt: float
    az_pnt: float
    gti: tuple[tuple[float, float], ...]
    deadc: float
    nsb: float
    tels: tuple[int, ...]
    muon_efficiency: float
    norm: float

    @property
    def zenith(self) -> float:
        """Zenith angle [deg] in the middle of the run, for which the rate holds."""
        return 90.0 - self.alt_pnt

    @property
    def ontime(self) -> float:
        """Sum of the good time intervals [s]."""
        return sum(stop - start for start, stop in self.gti)

    @property
    def livetime(self) -> float:
        """Ontime less dead time [s]; gamma rays are counted in it."""
        return self.ontime * self.deadc


@dataclass(frozen=True)
class Truth:
    """What was put into a simulated archive.

    Attributes
    ----------
    seed, events
        Arguments of `simulate_archive`.
    runs
        The runs, in the order of ``obs_id``.
    sources, stars
        The gamma-ray sources and the stars of the simulated sky; empty where switched off.
    tilt, tilt_slope, elongation
        How the acceptance differs from a circle [1/deg], [1/deg], [1/deg2]; zero for one that does not.
    steepening
        Change of the spectral index with the airmass, from that at 30 deg.
    mirror_threshold
        Power of the muon efficiency with which the threshold falls.
    """

    seed: int
    events: float
    runs: tuple[SimulatedRun, ...]
    sources: tuple[Source, ...]
    stars: tuple[Star, ...]
    tilt: float = 0.0
    elongation: float = 0.0
    tilt_slope: float = 0.0
    steepening: float = 0.0
    mirror_threshold: float = 0.0

    @property
    def is_round(self) -> bool:
        """Whether the acceptance is a circle."""
        return self.tilt == self.tilt_slope == self.elongation == 0

    def slope(self, run: SimulatedRun, energy: ArrayLike = 1.0) -> NDArray:
        """Gradient of ln(rate) towards the zenith at energies [TeV] of a run [1/deg]; outside the range, at its ends.

        Without a ``tilt_slope`` it is one number.
        """
        sine = math.sin(math.radians(run.zenith))
        if not self.tilt_slope:
            return np.asarray(self.tilt * sine)
        return (self.tilt + self.tilt_slope * np.log(np.clip(energy, *response.ENERGY_RANGE))) * sine

    def threshold_factor(self, run: SimulatedRun) -> float:
        """By how much the threshold of a run is higher than with new mirrors at its zenith angle."""
        return (NEW_MIRRORS / run.muon_efficiency) ** self.mirror_threshold

    def spectrum(self, run: SimulatedRun, energy: ArrayLike) -> NDArray:
        """Background of a run on the axis at energies [TeV] in their range, over its norm."""
        return spectrum(energy, run.zenith, self.steepening, self.threshold_factor(run))

    def run(self, obs_id: int) -> SimulatedRun:
        """Return the run ``obs_id``; `RunError` if it is not in the archive."""
        for run in self.runs:
            if run.obs_id == obs_id:
                return run
        first, last = self.runs[0].obs_id, self.runs[-1].obs_id
        raise RunError(f"run {obs_id} is not in the simulated archive, which holds runs {first} to {last}")

    def rate(self, obs_id: int, energy: ArrayLike, offset: ArrayLike) -> NDArray:
        """Background rate per ontime, mean over angle, away from stars.

        Parameters
        ----------
        obs_id
            Run number.
        energy
            Reconstructed energy [TeV].
        offset
            Offset from the pointing [deg]; broadcasts with ``energy``.

        Returns
        -------
        rate
            Rate [s-1 TeV-1 sr-1], zero outside the energy range and beyond the camera's edge.

        Examples
        --------
        >>> from tempfile import TemporaryDirectory
        >>> from dask_bkg.simulate import simulate_archive
        >>> with TemporaryDirectory() as directory:
        ...     truth = simulate_archive(directory, runs=1, events=100)
        >>> truth.rate(64001, [0.5, 1.0], [[0.0], [1.0]]).shape
        (2, 2)
        """
        run, energy = self.run(obs_id), np.asarray(energy, dtype=float)
        inside = (energy >= response.ENERGY_RANGE[0]) & (energy <= response.ENERGY_RANGE[1])
        clipped = np.clip(energy, *response.ENERGY_RANGE)  # the formula overflows at zero
        shape = self.spectrum(run, clipped) * response.acceptance(clipped, offset, run.zenith)
        return run.norm * np.where(inside, shape, 0.0)

    def mean_rate(self, obs_id: int, energy_edges: ArrayLike, offset_edges: ArrayLike) -> NDArray:
        """Background rate per ontime averaged over bins of energy and solid angle.

        Parameters
        ----------
        obs_id
            Run number.
        energy_edges, offset_edges
            Increasing edges [TeV] and [deg].

        Returns
        -------
        rate
            Mean rates [s-1 TeV-1 sr-1], shape (n_energy, n_offset): times ontime, energy width and solid angle
            they are the expected counts.

        Examples
        --------
        >>> from tempfile import TemporaryDirectory
        >>> from dask_bkg.simulate import simulate_archive
        >>> with TemporaryDirectory() as directory:
        ...     truth = simulate_archive(directory, runs=1, events=100)
        >>> truth.mean_rate(64001, [0.5, 1.0, 2.0], [0.0, 0.25, 0.5]).shape
        (2, 2)
        """
        energy_edges, offset_edges = np.asarray(energy_edges, float), np.asarray(offset_edges, float)
        energy, energy_weight = _energy_quadrature(np.clip(energy_edges, *response.ENERGY_RANGE))
        offset, offset_weight = _offset_quadrature(np.clip(offset_edges, 0.0, response.OFFSET_MAX))
        rate = self.rate(obs_id, energy[:, :, None, None], offset)
        counts = np.einsum("eioj,ei,oj->eo", rate, energy_weight, offset_weight)
        solid_angle = -2 * np.pi * np.diff(np.cos(np.deg2rad(offset_edges)))
        return counts / (np.diff(energy_edges)[:, None] * solid_angle)

    def field_rate(self, obs_id: int, energy: ArrayLike, fov_lon: ArrayLike, fov_lat: ArrayLike) -> NDArray:
        """Background rate per ontime over the field of view as it is aligned with the horizon, away from stars.

        Parameters
        ----------
        obs_id
            Run number.
        energy
            Reconstructed energy [TeV].
        fov_lon, fov_lat
            Field positions [deg], growing to falling azimuth and to the zenith; they broadcast with ``energy``.

        Returns
        -------
        rate
            Rate [s-1 TeV-1 sr-1], zero outside the energy range and beyond the camera's edge.

        Examples
        --------
        >>> from tempfile import TemporaryDirectory
        >>> from dask_bkg.simulate import simulate_archive
        >>> with TemporaryDirectory() as directory:
        ...     truth = simulate_archive(directory, runs=1, events=100, tilt=0.3)
        >>> down, up = truth.field_rate(64001, 1.0, 0.0, [-1.0, 1.0])
        >>> bool(up > down)
        True
        """
        shape = camera.modulation(fov_lon, fov_lat, self.slope(self.run(obs_id), energy), self.elongation)
        return self.rate(obs_id, energy, camera.field_offset(fov_lon, fov_lat)) * shape

    def mean_field_rate(self, obs_id: int, energy_edges: ArrayLike, fov_edges: ArrayLike) -> NDArray:
        """Background rate per ontime averaged over bins of energy and square pixels of the field.

        Parameters
        ----------
        obs_id
            Run number.
        energy_edges
            Increasing edges [TeV].
        fov_edges
            Increasing edges [deg], the same along ``fov_lat`` and ``fov_lon``.

        Returns
        -------
        rate
            Mean rates [s-1 TeV-1 sr-1], shape (n_energy, n_fov_lat, n_fov_lon), axes as for `field_rate`: times
            ontime, energy width and solid angle they are the expected counts.

        Examples
        --------
        >>> from tempfile import TemporaryDirectory
        >>> from dask_bkg.simulate import simulate_archive
        >>> with TemporaryDirectory() as directory:
        ...     truth = simulate_archive(directory, runs=1, events=100, elongation=0.05)
        >>> truth.mean_field_rate(64001, [0.5, 1.0, 2.0], [-1.5, -0.5, 0.5, 1.5]).shape
        (2, 3, 3)
        """
        energy_edges, fov_edges = np.asarray(energy_edges, float), np.asarray(fov_edges, float)
        nodes, weights = _gauss_legendre(fov_edges)
        fov_lat, fov_lon = nodes[:, :, None, None], nodes
        weight = (weights * np.cos(np.deg2rad(nodes)))[:, :, None, None] * weights
        offset, run = camera.field_offset(fov_lon, fov_lat), self.run(obs_id)
        energy, energy_weight = _energy_quadrature(np.clip(energy_edges, *response.ENERGY_RANGE))
        shape = lru_cache(1)(lambda slope: weight * camera.modulation(fov_lon, fov_lat, slope, self.elongation))
        # one energy at a time: all nodes of a fine binning are hundreds of megabytes
        planes = [
            (self.rate(obs_id, node, offset) * shape(float(self.slope(run, node)))).sum(axis=(1, 3))
            for node in energy.ravel()
        ]
        counts = np.einsum("eiyx,ei->eyx", np.reshape(planes, (*energy.shape, *weight.shape[::2])), energy_weight)
        rows = np.rad2deg(np.diff(np.sin(np.deg2rad(fov_edges))))
        return counts / (np.diff(energy_edges)[:, None, None] * rows[:, None] * np.diff(fov_edges))

    def write(self, directory: Path) -> None:
        """Write the truth into ``directory``."""
        # what is not planted is not mentioned: such archives have the bytes that they had before it could be
        data = {key: value for key, value in asdict(self).items() if key not in _PLANTED or value}
        (directory / TRUTH_FILE).write_text(json.dumps(data, indent=1) + "\n")

    @classmethod
    def read(cls, directory: str | Path) -> Truth:
        """Read the truth of the archive in ``directory``; `ArchiveError` if it has none."""
        path = Path(directory) / TRUTH_FILE
        try:
            data = json.loads(path.read_text())
            runs = [r | {"gti": tuple(map(tuple, r["gti"])), "tels": tuple(r["tels"])} for r in data["runs"]]
            return cls(
                seed=data["seed"],
                events=data["events"],
                runs=tuple(SimulatedRun(**run) for run in runs),
                sources=tuple(Source(**source) for source in data["sources"]),
                stars=tuple(Star(**star) for star in data["stars"]),
                **{key: float(data[key]) for key in _PLANTED if key in data},
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArchiveError(
                f"{path} is not the truth of a simulated archive ({error}); give a directory that "
                "simulate_archive has written"
            ) from error


def spectrum(energy: ArrayLike, zenith: float, steepening: float = 0.0, threshold_factor: float = 1.0) -> NDArray:
    """Background on the axis relative to 1 TeV: a log-parabola of index 2.7 at 30 deg, cut at the threshold."""
    energy = np.asarray(energy, dtype=float)
    airmass, nominal = (1.0 / math.cos(math.radians(angle)) for angle in (zenith, NOMINAL_ZENITH))
    index = 2.7 + steepening * (airmass - nominal)
    return energy ** -(index + 0.04 * np.log(energy)) * response.turn_on(energy, zenith, threshold_factor)


def mirror_level(mjd: float) -> float:
    """Light collected by the mirrors: falls within a season; washing in summer brings part of it back.

    Every third summer the mirrors are coated anew.
    """
    season = max(0, int((mjd - FIRST_SEASON) // YEAR))
    return 1.1 * 0.92 ** (season % 3) * float(np.exp(-(mjd - FIRST_SEASON - season * YEAR) / 1500.0))


def run_norm(events: float, zenith: float, mjd: float, nsb: float) -> float:
    """Norm [s-1 TeV-1 sr-1] of a run, where ``events`` are expected under nominal conditions."""
    energy, energy_weight = _energy_quadrature(np.array(response.ENERGY_RANGE))
    offset, offset_weight = _offset_quadrature(np.array([0.0, response.OFFSET_MAX]))
    shape = spectrum(energy[0], NOMINAL_ZENITH)[:, None]
    shape = shape * response.acceptance(energy[0][:, None], offset[0], NOMINAL_ZENITH)
    nominal = events / (NOMINAL_ONTIME * (energy_weight[0] @ shape @ offset_weight[0]))
    area = (np.cos(np.deg2rad(zenith)) / np.cos(np.deg2rad(NOMINAL_ZENITH))) ** -2
    return float(nominal * area * mirror_level(mjd) * (1.0 + 0.04 * (nsb - 6.0)))


def _energy_quadrature(edges: NDArray) -> tuple[NDArray, NDArray]:
    """Nodes [TeV] and weights for integrals over bins of energy, in ln E; shape (n_bins, n_nodes)."""
    nodes, weights = _gauss_legendre(np.log(edges))
    return np.exp(nodes), weights * np.exp(nodes)


def _offset_quadrature(edges: NDArray) -> tuple[NDArray, NDArray]:
    """Nodes [deg] and weights [sr] for integrals over rings of offset; shape (n_bins, n_nodes)."""
    nodes, weights = _gauss_legendre(edges)
    return nodes, weights * np.deg2rad(1.0) * 2 * np.pi * np.sin(np.deg2rad(nodes))


def _gauss_legendre(edges: NDArray) -> tuple[NDArray, NDArray]:
    half = 0.5 * np.diff(edges)[:, None]
    # The turn-on and the edge of the camera need about 8 nodes for one unit of ln E and of degrees: this is exact to
    # 1e-6 for one bin of everything, and keeps arrays small for hundreds of narrow ones.
    nodes, weights = _legendre_rule(4 + math.ceil(16 * half.max()))
    return edges[:-1, None] + half * (1.0 + nodes), half * weights


_legendre_rule = lru_cache(np.polynomial.legendre.leggauss)
