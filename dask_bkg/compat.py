"""The names of gammapy-tools: a driver script of the procedure runs with another import line.

``get_config``, ``prepare_dataset``, ``run_make_background``, ``BackgroundModelEstimator`` and ``ExclusionFinder``;
the keys of its configuration files are the business of `dask_bkg.config.gammapy_tools`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from gammapy.irf import Background2D
from gammapy.maps import MapAxis
from numpy.typing import NDArray

from dask_bkg import schema
from dask_bkg.background.irf import to_background
from dask_bkg.binning import Edges
from dask_bkg.config import Config, load_config, parse_config
from dask_bkg.config.yaml import default_config, plain
from dask_bkg.dl3.read import RunEvents
from dask_bkg.output.backgrounds import contributing_runs
from dask_bkg.pipeline.prepare import prepare_runs
from dask_bkg.pipeline.run import run_job
from dask_bkg.pipeline.runlists import selection_mark
from dask_bkg.pipeline.single import make_one
from dask_bkg.plan import plan_job
from dask_bkg.reduction.reduce import histograms
from dask_bkg.selection.lists import list_digest, own_lists
from dask_bkg.settings import rate_settings
from dask_bkg.sky import catalogs, exclusion, fov

log = logging.getLogger(__name__)


def get_config() -> dict:
    """A configuration to fill in: every section and key, None where nothing is set.

    Examples
    --------
    >>> config = get_config()
    >>> config["io"]["from_run"] = True
    >>> config["background_selection"]["smooth_sigma"] = 1.0
    """
    return default_config()


def prepare_dataset(config: Mapping[str, Any], overwrite: bool = False) -> dict:
    """Place the runs of a job in ``io.in_dir``, with index files.

    Parameters
    ----------
    config
        Configuration, as `get_config` gives it.
    overwrite
        Copy again what is there already; otherwise whole copies are kept.

    Returns
    -------
    config
        A copy with ``run_selection.runlist`` (the runs that were found) and ``missing_runs`` set; it is also written
        to ``in_dir/config.yaml``, or next to a file of that name that is your own, to ``config.dask_bkg.yaml``.

    Raises
    ------
    ConfigError, ArchiveError
        If the configuration is wrong, the archive cannot be read, or has none of the runs.
    """
    return prepare_runs(parse_config(config), overwrite).explicit


def run_make_background(config: Mapping[str, Any], progress: bool = True) -> dict:
    """Make the backgrounds of the runs of ``io.in_dir`` and write them to ``io.out_dir``.

    Targets are the runs of ``in_dir``, restricted to ``run_selection.runlist``; contributing runs come from
    ``io.search_datastore``, or with ``io.from_run`` each background from the run itself.  An active Dask client is
    used if there is one, else ``config.njobs`` local workers.

    Parameters
    ----------
    config
        Configuration, as `prepare_dataset` returns it.
    progress
        Whether bars are shown.

    Returns
    -------
    config
        A copy; ``run_selection.failed_runs`` holds the runs that could not be used, with their reasons.

    Raises
    ------
    ConfigError, ArchiveError, BackgroundError
        If nothing could be done.
    """
    parsed = parse_config(config)
    done = run_job(parsed, progress=progress)
    for reason in done.failed.values():
        log.warning("%s", reason)
    finished = plain(config)
    section = finished.get("run_selection") or {}
    made = {result.obs_id for result in done.results if result.done}
    earlier = {run: reason for run, reason in (section.get("failed_runs") or {}).items() if int(run) not in made}
    missing = list(dict.fromkeys([*(section.get("missing_runs") or []), *done.missing]))
    finished["run_selection"] = {**section, "missing_runs": missing, "failed_runs": {**earlier, **done.failed}}
    if not parsed.io.from_run:
        _enter_lists(finished, done.config or parsed, contributing_runs(done.results_dir, made))
    return finished


def _enter_lists(finished: dict, config: Config, used: dict[int, list[int]]) -> None:
    """Enter the lists that were used, marked where a job selected them: what the user wrote stays the user's."""
    settings = config.background_selection
    own = own_lists(settings)
    selected = {run: runs for run, runs in used.items() if run not in own}
    marks = {"settings": selection_mark(config), **{str(run): list_digest(r) for run, r in selected.items()}}
    section = finished.get("background_selection") or {}
    finished["background_selection"] = {
        **section, "bkg_runlist": {**selected, **own}, "bkg_runlist_digest": marks
    }  # fmt: skip


def make_background(
    datastore: str | os.PathLike, obs_id: int, config: Mapping[str, Any] | Config | str | os.PathLike | None = None
) -> Background2D:
    """Background of one run of an archive: what ``client.submit`` takes.

    Parameters
    ----------
    datastore
        Directory of the archive: the run and its contributing runs come from there.
    obs_id
        Run number.
    config
        Configuration (dict, YAML file or `dask_bkg.config.Config`); None: the defaults, and the run itself
        (``from_run``).

    Returns
    -------
    background
        `~gammapy.irf.Background2D`.

    Raises
    ------
    RunError
        If the run cannot be used.
    """
    if isinstance(config, (str, os.PathLike)):
        config = load_config(Path(config))
    base_dir = None
    if isinstance(config, Config):
        base_dir, config = config.base_dir, config.explicit
    values = plain(config if config is not None else {"io": {"from_run": True}})
    if (kept := _store_of_job(parse_config(values, base_dir=base_dir), datastore)) is not None:
        values["run_store"] = {**(values.get("run_store") or {}), "path": str(kept)}
    places = {"search_datastore": str(datastore), "in_dir": str(datastore), "out_dir": str(datastore)}
    values["io"] = {**(values.get("io") or {}), **places}
    values["run_selection"] = {"runlist": [int(obs_id)]}
    parsed = parse_config(values, base_dir=base_dir)
    return make_one(plan_job(parsed))


def _store_of_job(config: Config, datastore: str | os.PathLike) -> Path | None:
    """The run store that a job with this configuration has for the same archive; None if it can have none."""
    archive = config.io.search_datastore
    if archive is None or os.path.realpath(archive) != os.path.realpath(datastore) or config.io.results_dir is None:
        return None
    return config.store_path


class BackgroundModelEstimator:
    """Background of a few gammapy observations, added up: the class of the procedure.

    Parameters
    ----------
    energy, offset
        Axes of the background.
    smooth
        Whether the rate is smoothed, by ``smooth_sigma`` offset bins: in the field of view, or with the preset
        ``gammapy-tools`` the procedure's way (`dask_bkg.smooth`).
    smooth_sigma
        Width of the smoothing.
    excluded_sources
        Own circles ``[(ra, dec, radius), ...]`` [deg], in addition to catalogues and stars.
    preset
        ``gammapy-tools`` follows the document formula by formula; None takes the defaults of `dask_bkg`.

    Examples
    --------
    >>> energy = MapAxis.from_energy_bounds("0.1 TeV", "100 TeV", nbin=20, name="energy")
    >>> offset = MapAxis.from_bounds(0, 2.5, nbin=5, unit="deg", name="offset")
    >>> estimator = BackgroundModelEstimator(energy, offset)   # doctest: +SKIP
    >>> estimator.run(observations)                            # doctest: +SKIP
    >>> estimator.background_rate.peek()                       # doctest: +SKIP
    """

    def __init__(
        self,
        energy: MapAxis,
        offset: MapAxis,
        smooth: bool = False,
        smooth_sigma: float = 1.0,
        excluded_sources: Iterable = (),
        preset: str | None = None,
    ):
        self._edges = Edges(energy.edges.to_value("TeV"), offset.edges.to_value("deg"))
        self._config = parse_config(
            {
                "preset": preset,
                "binning": {
                    "off_min": float(self._edges.offset[0]),
                    "off_max": float(self._edges.offset[-1]),
                    "off_bins": self._edges.shape[1],
                },
                "background_selection": {"smooth": bool(smooth), "smooth_sigma": float(smooth_sigma)},
                "exclusion": {"exclude_regions": [list(circle) for circle in excluded_sources]},
            }
        )
        self._regions = catalogs.sky_regions(self._config.exclusion)
        self._sum = schema.run_dataset(np.zeros(self._edges.shape), np.zeros(self._edges.shape), self._edges, {})

    def run(self, observations: Iterable) -> None:
        """Add observations (`gammapy.data.Observations`) to counts and exposure."""
        for observation in observations:
            counts, exposure = self._reduce(observation)
            self._sum["counts"].values += counts
            self._sum["exposure"].values += exposure

    def _reduce(self, observation) -> tuple[NDArray, NDArray]:
        events, pointing = observation.events, observation.pointing.fixed_icrs
        numbers = {
            "ra_pnt": pointing.ra.deg,
            "dec_pnt": pointing.dec.deg,
            "ontime": observation.observation_time_duration.to_value("s"),
        }
        sky, energy = events.radec, events.energy.to_value("TeV")
        read = RunEvents(sky.ra.deg, sky.dec.deg, np.asarray(energy, dtype=float), numbers, "", "")
        settings = self._config
        return histograms(read, self._edges, self._regions, settings.model.exposure, settings.exclusion.reach)

    @property
    def counts(self) -> NDArray:
        """Events that were kept, shape ``(energy, offset)``."""
        return self._sum["counts"].values

    @property
    def exposure(self) -> NDArray:
        """Exposure [s TeV sr], shape ``(energy, offset)``."""
        return self._sum["exposure"].values

    @property
    def background_rate(self) -> Background2D:
        """Background rate of what was added so far."""
        return to_background(self._sum, rate_settings(self._config))


class ExclusionFinder:
    """Known sources and bright stars around a position.

    Spherical distances; the catalogues are those of ``$GAMMAPY_DATA``.

    Parameters
    ----------
    default_exclusion
        Radius around a point source [deg].

    Examples
    --------
    >>> finder = ExclusionFinder()                                       # doctest: +SKIP
    >>> regions, names = finder.find_exclusion(83.63, 22.01, theta=2.5)  # doctest: +SKIP
    """

    def __init__(self, default_exclusion: float = 0.35):
        self.default_exclusion = default_exclusion
        radii = {"default_radius": default_exclusion, "max_radius": max(1.2, default_exclusion)}
        settings = parse_config({"exclusion": radii}).exclusion
        self._star_file = catalogs.find_star_table(settings.star_cat)
        self._sources = catalogs.sky_regions(settings.model_copy(update={"star_mag": -99.0}))

    def find_gamma_sources(self, ra: float, dec: float, theta: float = 2.0) -> Table:
        """GammaCat sources within ``theta`` [deg] of a position: name, ra, dec, radius."""
        return self._near("gammacat", ra, dec, theta)

    def find_hawc_sources(self, ra: float, dec: float, theta: float = 2.0) -> Table:
        """3HWC sources within ``theta`` [deg] of a position: name, ra, dec, radius."""
        return self._near("3hwc", ra, dec, theta)

    def find_stars(self, ra: float, dec: float, theta: float = 2.0, mag_cut: float = 7) -> Table:
        """Stars with V < ``mag_cut`` within ``theta`` [deg] of a position: name, ra, dec, radius."""
        if self._star_file is None:
            return _as_table(exclusion.concat_regions([]))
        stars = catalogs.read_stars(self._star_file, mag_cut, self.default_exclusion)
        return _as_table(stars[fov.separation(stars.ra, stars.dec, ra, dec) < theta])

    def find_exclusion(
        self,
        ra: float,
        dec: float,
        theta: float = 2.0,
        theta_cut: float | None = None,
        mag_cut: float = 7,
        star_theta_cut: float = 0.35,
    ) -> tuple[list[tuple[float, float, float]], list[str]]:
        """Circles to exclude around a position.

        Parameters
        ----------
        ra, dec, theta
            Position and search radius [deg]; centres within it count.
        theta_cut
            Least radius around a source [deg]; ``default_exclusion`` if not given.
        mag_cut, star_theta_cut
            Stars with V below this, and the radius around them [deg].

        Returns
        -------
        regions, names
            ``[(ra, dec, radius), ...]`` [deg] and what they are.
        """
        stars, hawc, gamma = (
            self.find_stars(ra, dec, theta, mag_cut),
            self.find_hawc_sources(ra, dec, theta),
            self.find_gamma_sources(ra, dec, theta),
        )
        stars["radius"] = star_theta_cut
        least = self.default_exclusion if theta_cut is None else theta_cut
        for table in (hawc, gamma):
            table["radius"] = np.maximum(table["radius"], least)
        rows = [row for table in (stars, hawc, gamma) for row in table]
        return [(float(r["ra"]), float(r["dec"]), float(r["radius"])) for r in rows], [str(r["name"]) for r in rows]

    def exclude_events(self, table: Table, ra: float, dec: float, theta: float = 2.0, **kwargs) -> NDArray:
        """Which events of a table (columns RA, DEC [deg]) are kept; arguments as in `find_exclusion`."""
        regions, names = self.find_exclusion(ra, dec, theta, **kwargs)
        circles = np.array(regions, dtype=float).reshape(-1, 3)
        found = exclusion.make_regions(circles[:, 0], circles[:, 1], circles[:, 2], names, "own")
        return ~exclusion.excluded_positions(found, np.asarray(table["RA"]), np.asarray(table["DEC"]))

    def _near(self, kind: str, ra: float, dec: float, theta: float) -> Table:
        sources = self._sources[self._sources.kind == kind]
        return _as_table(sources[fov.separation(sources.ra, sources.dec, ra, dec) < theta])


def _as_table(regions: exclusion.SkyRegions) -> Table:
    return Table({"name": regions.name, "ra": regions.ra, "dec": regions.dec, "radius": regions.radius})
