"""A small DL3 archive with a known background.

Tests, the demonstration and the benchmarks need runs whose background is known: `simulate_archive` writes them, and
`Truth` answers with the rate that was put in.

Every draw is an exact thinning of a Poisson process.  Each run has random streams of its own, one each for the
conditions, the background, its directions in a camera that is not round, the losses at stars and the gamma rays: a
run does not depend on how many others come after it, and an archive without stars or sources holds the same
background events as one with them.

The room is a small house: ``response`` (the instrument), ``camera`` (how it is not round), ``truth`` (what is put
in), ``sky`` (fields, stars, sources), ``files`` (FITS and index), ``plan`` (when and where runs are taken),
``events`` (drawing them).
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from dask_bkg.errors import ArchiveError, ConfigError
from dask_bkg.simulate.camera import ELONGATION_MAX, TILT_MAX
from dask_bkg.simulate.events import STAR_LOSS, STAR_MAGNITUDE, STAR_RADIUS, draw_events
from dask_bkg.simulate.files import DATA_DIR, HDU_INDEX, run_cards, run_path, write_indices, write_run, write_sky
from dask_bkg.simulate.plan import FIRST_OBS_ID, SEASON_NIGHTS, Calendar, plan_runs
from dask_bkg.simulate.response import ENERGY_RANGE
from dask_bkg.simulate.sky import TARGETS, draw_stars, target_sources
from dask_bkg.simulate.truth import TRUTH_FILE, SimulatedRun, Source, Star, Truth

__all__ = [
    "STAR_LOSS",
    "STAR_MAGNITUDE",
    "STAR_RADIUS",
    "SimulatedRun",
    "Source",
    "Star",
    "Truth",
    "simulate_archive",
]


def simulate_archive(
    directory: str | Path,
    runs: int = 20,
    events: float = 10_000,
    seed: int = 0,
    *,
    sources: bool = True,
    stars: bool = True,
    targets: int = 2,
    tilt: float = 0.0,
    tilt_slope: float = 0.0,
    elongation: float = 0.0,
    steepening: float = 0.0,
    mirror_threshold: float = 0.0,
    seasons: int = 2,
    nights: int = SEASON_NIGHTS,
    weather: float = 0.0,
    background_in_files: bool = False,
    overwrite: bool = False,
) -> Truth:
    """Write a DL3 archive with a known background: the same arguments give the same bytes.

    Four of five runs wobble around a target, the fifth is on an empty field.  They are spread over ``seasons`` and
    zenith angles of 5 to 55 deg, run numbers not in the order of time; the background falls with time (the mirrors
    age), its level, its threshold and its width over the field grow with zenith angle.  What else can be planted is
    off unless it is asked for.

    Parameters
    ----------
    directory
        Where to write: new, empty, or with ``overwrite`` an older simulated archive.
    runs
        Number of runs, numbered from 64001.
    events
        Mean number of background events in the whole field of a run of 28 minutes at zenith angle 30 deg.  The
        fluxes of the sources grow with it: 10 000 is one Crab.
    seed
        Seed of all random numbers.
    sources
        Add gamma rays: a point source on the first target, an extended one (sigma 0.15 deg) on the second.
    stars
        Lose 40 % of the background within 0.25 deg of stars brighter than V = 5.
    targets
        1 or 2.
    tilt
        Gradient of ln(background) towards the zenith at 1 TeV, over the sine of the zenith angle [1/deg], from -1
        to 1.
    tilt_slope
        Growth of the tilt with ln E [1/deg]; the tilt must be from -1 to 1 at all energies, 0.05 to 100 TeV.
    elongation
        Growth of ln(background) with fov_lon^2 - fov_lat^2, in the frame of the horizon [1/deg2], from -0.2 to 0.2.
        Tilt and elongation turn with the camera, at each event's own time.  They change the directions of the
        background events alone: the mean of the rate over angle at the same offset, and with it numbers, energies,
        offsets and times of the events, are those of a round camera (less what other events fall on stars).
    steepening
        Growth of the spectral index, 2.7 at a zenith angle of 30 deg, with the airmass, from -1 to 1.
    mirror_threshold
        Power of the muon efficiency with which the threshold of background and effective area falls, from 0 to 3.
    seasons
        Number of seasons, one a year, from 1 to 30.  The muon efficiency falls within each, summers bring part of it
        back, every third one all.
    nights
        Nights of a season in which runs are taken where the field can be seen, from 1; few have several runs each.
    weather
        Scatter of ln(background) from night to night, the same for the runs of a night, from 0 to 1.
    background_in_files
        Write the true background into the files, as a BKG_2D HDU: its mean over angle.
    overwrite
        Replace an older simulated archive.

    Returns
    -------
    truth
        The truth, also written to ``truth.json``.

    Raises
    ------
    ConfigError
        An argument is out of range.
    ArchiveError
        The directory holds something else, or cannot be written.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as directory:
    ...     truth = simulate_archive(directory, runs=2, events=100)
    >>> [run.obs_id for run in truth.runs]
    [64001, 64002]
    """
    planted = {"tilt": tilt, "tilt_slope": tilt_slope, "elongation": elongation, "steepening": steepening,
               "mirror_threshold": mirror_threshold}  # fmt: skip
    calendar = Calendar(seasons, nights, float(weather))
    _check_arguments(runs, events, seed, targets, planted, calendar)
    directory = Path(directory)
    _prepare_directory(directory, overwrite)
    planned, horizons = plan_runs(runs, events, seed, targets, calendar)
    sky = target_sources(targets, events / 10_000) if sources else ()
    numbers = {name: float(value) for name, value in planted.items()}
    truth = Truth(seed, float(events), planned, sky, draw_stars(seed) if stars else (), **numbers)
    truth.write(directory)  # first: an archive that was interrupted is recognised, and can be overwritten
    write_sky(directory, truth)
    cards, counts = run_cards(planned), []
    for number, (run, horizon) in enumerate(zip(planned, horizons, strict=True)):
        columns = draw_events(run, number, truth, horizon)
        write_run(directory, run, cards[number], columns, truth, background_in_files)
        counts.append(len(columns["TIME"]))
    write_indices(directory, planned, cards, counts, background_in_files)
    return truth


def _check_arguments(
    runs: int, events: float, seed: int, targets: int, planted: dict[str, float], calendar: Calendar
) -> None:
    ends = planted["tilt"] + planted["tilt_slope"] * np.log(ENERGY_RANGE)
    for name, value, low, high in (
        ("runs", runs, 1, 99_999 - FIRST_OBS_ID),
        ("targets", targets, 1, len(TARGETS)),
        ("seed", seed, 0, math.inf),
        ("tilt", planted["tilt"], -TILT_MAX, TILT_MAX),
        ("tilt_slope: the tilt at both ends of the energies", ends.min(), -TILT_MAX, TILT_MAX),
        ("tilt_slope: the tilt at both ends of the energies", ends.max(), -TILT_MAX, TILT_MAX),
        ("elongation", planted["elongation"], -ELONGATION_MAX, ELONGATION_MAX),
        ("steepening", planted["steepening"], -1, 1),
        ("mirror_threshold", planted["mirror_threshold"], 0, 3),
        ("seasons", calendar.seasons, 1, 30),
        ("nights", calendar.nights, 1, SEASON_NIGHTS),
        ("weather", calendar.weather, 0, 1),
    ):
        if not low <= value <= high:
            raise ConfigError(f"simulate_archive: {name} must be from {low} to {high}, got {value}")
    if not 0 < events < math.inf:
        raise ConfigError(f"simulate_archive: events must be a positive number, got {events}")


def _prepare_directory(directory: Path, overwrite: bool) -> None:
    """Make the directory, or clear an older archive from it; anything else is left alone, with an error."""
    if directory.is_dir() and any(directory.iterdir()):
        if not (directory / TRUTH_FILE).is_file():
            raise ArchiveError(
                f"{directory} is not empty and is not a simulated archive (no {TRUTH_FILE}); "
                "choose a new or an empty directory"
            )
        old = Truth.read(directory)
        if not overwrite:
            raise ArchiveError(
                f"{directory} is a simulated archive already: pass overwrite=True (--overwrite), or another directory"
            )
        # the index goes first: while the archive is rewritten nothing names files that are gone
        for path in (directory / HDU_INDEX, *(run_path(directory, run.obs_id) for run in old.runs)):
            path.unlink(missing_ok=True)
    try:
        (directory / DATA_DIR).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArchiveError(f"cannot make {directory} ({error}); choose a directory you can write to") from error
