"""The sections of a configuration: every option with its type, unit, default and one line of meaning.

The models hold *effective* values, plain numbers in the declared unit. What may be written for them is the job of
`dask_bkg.config.values`, presets and messages that of `dask_bkg.config`; the template of `dask_bkg.config.yaml` is
generated from here, so a new option is one field and nothing else.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, StrictBool, model_validator
from pydantic.fields import FieldInfo

from dask_bkg.config import values
from dask_bkg.config.values import Circle, Named, Season, Unit
from dask_bkg.errors import ConfigError

TeV = Annotated[float, BeforeValidator(Unit("TeV"))]
Deg = Annotated[float, BeforeValidator(Unit("deg"))]
Days = Annotated[float, BeforeValidator(Unit("d"))]
Mag = Annotated[float, BeforeValidator(Unit("mag"))]
Minutes = Annotated[float, BeforeValidator(Unit("min"))]
Number = Annotated[float, BeforeValidator(Unit(""))]
Whole = Annotated[int, BeforeValidator(values.to_integer)]
PathText = Annotated[str, BeforeValidator(values.to_path)]
PathTexts = Annotated[list[str], BeforeValidator(values.each(values.to_path))]
Circles = Annotated[list[Circle], BeforeValidator(values.to_circles)]
Widths = Annotated[dict[str, float], BeforeValidator(values.to_widths)]
NamedSources = Annotated[list[Named], BeforeValidator(values.to_named)]


def option(default: Any, meaning: str, **limits: Any) -> Any:
    """Declare an option; ``meaning`` is its line in the template."""
    return Field(default, description=meaning, **limits)


def unit_of(field: FieldInfo) -> str:
    """Return the unit of an option, empty if it has none."""
    parts = [field.metadata, *(getattr(part, "__metadata__", ()) for part in get_args(field.annotation))]
    converters = [getattr(item, "func", None) for part in parts for item in part]
    return next((converter.name for converter in converters if isinstance(converter, Unit)), "")


def choices_of(field: FieldInfo) -> list[str]:
    """Return the words that an option accepts, empty if it is not a choice."""
    annotations = [field.annotation, *get_args(field.annotation)]
    return [word for part in annotations for word in get_args(part) if isinstance(word, str)]


class Section(BaseModel):
    """One section of the configuration; a key that is not an option is refused."""

    model_config = ConfigDict(extra="forbid")


class IO(Section):
    """Where the runs are, and where the results go (relative paths: from the working directory)."""

    search_datastore: PathText | None = option(None, "datastore that is searched for contributing runs")
    in_dir: PathText | None = option(None, "datastore of the runs that receive a background")
    out_dir: PathText | None = option(None, "datastore that is written")
    results_dir: PathText | None = option(None, "reports and tables; null is out_dir/results")
    from_run: StrictBool = option(False, "make each background from the run itself, not from other runs")
    attach: Literal["copy", "index"] = option(
        "copy", "whole files with their background, or background files and an index only"
    )
    data_dirs: PathTexts = option([], "directories outside of the archive that an index may point to")

    @model_validator(mode="after")
    def _place_results(self) -> Self:
        if self.results_dir is None and self.out_dir is not None:
            self.results_dir = os.path.join(self.out_dir, "results")
        return self


class Binning(Section):
    """The axes of the background model."""

    e_min: TeV = option(0.1, "lowest energy", gt=0)
    e_max: TeV = option(100.0, "highest energy", gt=0)
    # The validator below fills in the numbers of bins: they are None in a declaration, never in an object.
    e_bins: Whole = option(None, "number of energy bins, logarithmic; null is 10 per decade", ge=2)
    off_min: Deg = option(0.0, "smallest offset from the pointing", ge=0)
    off_max: Deg = option(2.5, "largest offset from the pointing", gt=0, le=20)
    off_bins: Whole = option(None, "number of offset rings, linear; null is rings of 0.25 deg", ge=1, le=250)
    mode: Literal["2d", "3d"] | None = option(
        None, "offset bins, or pixels of the field of view; null is 3d where the files say where the horizon was"
    )
    fov_bins: Whole = option(None, "3d, pixels along each side of the field; null is pixels of 0.2 deg", ge=2, le=200)
    fov_max: Deg = option(2.5, "3d, distance of the sides of the field from the pointing", gt=0, le=20)
    alignment: Literal["altaz", "radec"] = option(
        "altaz", "3d, the field's upper side is towards the zenith, or north"
    )

    @model_validator(mode="after")
    def _check_and_count(self) -> Self:
        if self.e_min >= self.e_max:
            raise ValueError(f"e_min ({self.e_min:g} TeV) must be below binning.e_max ({self.e_max:g} TeV)")
        if self.off_min >= self.off_max:
            raise ValueError(f"off_min ({self.off_min:g} deg) must be below binning.off_max ({self.off_max:g} deg)")
        if self.e_bins is None:
            self.e_bins = max(2, round(10 * math.log10(self.e_max / self.e_min)))
        if self.off_bins is None:
            self.off_bins = max(1, round((self.off_max - self.off_min) / 0.25))
        if self.fov_bins is None:
            self.fov_bins = max(2, round(2 * self.fov_max / 0.2))
        if self.mode == "3d":
            self._check_field()
        return self

    def _check_field(self) -> None:
        """Raise for what a 3D background cannot have."""
        if self.off_min > 0:
            raise ValueError(f"off_min ({self.off_min:g} deg) must be 0 for binning.mode: 3d, which has no hole")
        if self.fov_bins == self.e_bins:
            raise ValueError(
                f"fov_bins and binning.e_bins are both {self.fov_bins}: gammapy guesses the axes of a 3D background "
                "apart by their number of bins, take different ones"
            )

    @property
    def energy_edges(self) -> NDArray[np.float64]:
        """Edges of the energy bins in TeV, logarithmic; shape (e_bins + 1,)."""
        return np.geomspace(self.e_min, self.e_max, self.e_bins + 1)

    @property
    def offset_edges(self) -> NDArray[np.float64]:
        """Edges of the offset rings in deg, linear; shape (off_bins + 1,)."""
        return np.linspace(self.off_min, self.off_max, self.off_bins + 1)

    @property
    def fov_edges(self) -> NDArray[np.float64]:
        """Edges of the field pixels in deg, the same along both sides; shape (fov_bins + 1,)."""
        # multiples of a width, not sums of it: edges are then the nearest floats to those of other binnings
        return np.round((np.arange(self.fov_bins + 1) - self.fov_bins / 2) * self.pixel_width, 12)

    @property
    def pixel_width(self) -> float:
        """Width of a field pixel in deg."""
        return 2 * self.fov_max / self.fov_bins

    @property
    def bin_width(self) -> float:
        """Width in deg of what a background has bins of: a ring, or in 3D a pixel."""
        return self.pixel_width if self.mode == "3d" else self.ring_width

    @property
    def ring_width(self) -> float:
        """Width of an offset ring in deg."""
        return (self.off_max - self.off_min) / self.off_bins


class Execution(Section):
    """How the job runs."""

    njobs: Whole | None = option(None, "number of local workers; null or -1 is one per core", ge=-1)
    block: Whole | None = option(None, "runs a task where runs meet runs; null goes by the archive", ge=1)
    split_every: Whole = option(8, "stacks that one task of the tree adds up", ge=2)

    @model_validator(mode="after")
    def _check_njobs(self) -> Self:
        if self.njobs == 0:
            raise ValueError("njobs must be 1 or more, or null or -1 for one worker per core, got 0")
        return self

    @property
    def n_workers(self) -> int:
        """Number of local workers: ``njobs``, or the cores that this process may use."""
        if self.njobs is not None and self.njobs > 0:
            return self.njobs
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return cores or 1


class Slurm(Section):
    """The batch jobs of cluster: slurm; partition, cores, memory, walltime of one are in Dask's jobqueue.yaml."""

    workers: Whole = option(8, "most worker processes, of one core each", ge=1)
    min_workers: Whole | None = option(None, "fewest; null: workers, always; 0: none where there is no work", ge=0)
    tls: StrictBool = option(True, "encrypt, and refuse all other users (temporary certificates)")
    lifetime: Minutes | None = option(
        None, "a worker's, then another takes its place; null goes by the walltime", gt=0
    )
    wait: Minutes = option(60.0, "longest wait for the first worker", gt=0)
    retries: Whole = option(10, "workers that a task may lose before it is given up", ge=0)

    @model_validator(mode="after")
    def _check_workers(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers ({self.min_workers}) must not be above slurm.workers ({self.workers})")
        return self


class RunStoreSettings(Section):
    """Where the histograms of the runs are kept; how fine those of a new store are (one that is there keeps its)."""

    path: PathText | None = option(None, "a zarr directory, may be shared; null is runs.zarr in io.results_dir")
    bins_per_decade: Whole = option(10, "energy bins of the fine histogram", ge=1, le=100)
    pixel: Deg = option(0.2, "field pixels of the fine histogram", gt=0)
    ring: Deg = option(0.05, "offset rings of the fine histogram", gt=0)
    block: Whole = option(25, "runs that one task reads and writes", ge=1)
    max_file_size: Whole = option(500, "largest file of a run, unpacked [MB]; a larger one is not read", ge=1)

    @property
    def file_limit(self) -> int:
        """``max_file_size`` [bytes]."""
        return self.max_file_size * 1_000_000


class Exclusion(Section):
    """What is cut out of the field of view."""

    star_cat: PathText | None = option(None, "star table, sought next to this file; null is the one of $GAMMAPY_DATA")
    star_mag: Mag = option(5.0, "stars brighter than this are excluded (V)")
    star_radius: Deg = option(0.3, "radius around a star", gt=0)
    default_radius: Deg = option(0.35, "least radius around a catalogue source", gt=0)
    max_radius: Deg = option(1.2, "largest radius around a catalogue source", gt=0)
    catalogs: Annotated[list[Literal["gammacat", "3hwc"]], BeforeValidator(values.to_list)] = option(
        ["gammacat", "3hwc"], "source catalogues"
    )
    allow_missing_catalogs: StrictBool = option(False, "go on without a catalogue that is not there")
    exclude_regions: Circles = option([], "circles [[ra, dec, radius], ...] in deg")
    exclude_source_name: NamedSources = option([], "catalogue sources [[name, radius in deg], ...]")
    exclude_source_run: Circles = option([], "[[ra, dec, radius], ...] in deg where no run contributes")
    exclude_region_files: PathTexts = option([], "files of ds9 regions")
    reach: Literal["disc", "centre"] = option(
        "disc", "a disc that reaches into the field, or a centre within 2.5 deg"
    )
    extension_rule: Literal["max", "document"] = option(
        "max", "not below default_radius, or 3 sigma even when smaller"
    )

    @model_validator(mode="after")
    def _check_radii(self) -> Self:
        if self.default_radius > self.max_radius:
            raise ValueError(
                f"default_radius ({self.default_radius:g} deg) must not be above "
                f"exclusion.max_radius ({self.max_radius:g} deg)"
            )
        return self


class BackgroundSelection(Section):
    """Which runs contribute to a background (null: a cut is not made; none: nor that of the preset)."""

    el_min: Deg | None = option(None, "lowest elevation of a contributing run", ge=0, le=90)
    el_max: Deg | None = option(None, "highest elevation of a contributing run", ge=0, le=90)
    nsb_diff: Number | None = option(None, "largest difference in night-sky background", ge=0)
    el_diff: Number | None = option(None, "largest difference in 1/sin(elevation)", ge=0)
    az_diff: Deg | None = option(None, "largest difference in azimuth, on the circle", ge=0)
    n_tels: Whole | None = option(None, "least number of telescopes", ge=0)
    time_max: Days | None = option(None, "largest distance in time", ge=0)
    same_szn: StrictBool = option(False, "runs of the same season only")
    seasons: Annotated[dict[str, Season], BeforeValidator(values.to_seasons)] | None = option(
        None, "{name: [start, stop]}, ISO dates, both included; stop may be null"
    )
    galactic_latitude_min: Deg | None = option(None, "runs nearer to the galactic plane are left out", ge=0, le=90)
    smooth: StrictBool = option(False, "smooth the background")
    smooth_sigma: Annotated[float | str, BeforeValidator(values.to_sigma)] = option(
        1.0, "width of the smoothing in offset bins (3d, pixels), or an angle ('0.3 deg')"
    )
    time_request: Annotated[float | str, BeforeValidator(values.to_hours)] = option(
        10.0, "hours of contributing runs (times their weights), or 'all'"
    )
    exclude_same_target: StrictBool = option(False, "no run of the same target contributes")
    rank: Literal["conditions", "kl", "kl-conditions", "likelihood", "likelihood-conditions", "elevation", "none"] = (
        option("conditions", "what puts runs first, until time_request, and weights them; none: all that pass")
    )
    kernel: Widths | None = option(
        None, "widths of the kernel of conditions {cos_zenith: ..., e_thres: ...}; null is the measured ones"
    )
    shape_runs: Literal["wider", "same"] | None = option(
        None, "shape over the field from a wider kernel, or the same runs; null is wider under rank: conditions"
    )
    shape_kernel: Widths | None = option(None, "widths of that wider kernel; null is twice as wide, any mirrors")
    shape_time_request: Annotated[float | str, BeforeValidator(values.to_hours)] = option(
        50.0, "hours (times weights) of the runs of the shape, or 'all'"
    )
    night_level: Days | None = option(
        None,
        "level from runs of the nights around, time in which they age; 0: not; null is 1 d under conditions",
        ge=0,
    )
    KL_DIV: StrictBool = option(False, "rank the runs by their Kullback-Leibler divergence (rank: kl)")
    store_KL: StrictBool = option(  # noqa: N815 - gammapy-tools' key
        False, "write the divergences of each target's candidates to io.results_dir/kl"
    )
    outlier_factor: Number = option(
        5.0,
        "runs whose event rate, or energies, are off by more from the median of their instrument are left out; "
        "0: none",
        ge=0,
    )
    instruments: dict[str, list[str]] | None = option(
        None, "names (TELESCOP INSTRUME) that count as one instrument, {name: [...]}; else only equal ones do"
    )
    bkg_runlist: Annotated[dict[int, list[int]], BeforeValidator(values.to_run_table)] | None = option(
        None, "contributing runs given by hand, {run: [run, ...]}"
    )
    bkg_runlist_digest: Annotated[dict[str, str], BeforeValidator(values.to_marks)] | None = option(
        None, "output only, marks the lists of bkg_runlist that a job has selected"
    )

    @model_validator(mode="after")
    def _check_elevations(self) -> Self:
        if self.el_min is not None and self.el_max is not None and self.el_min >= self.el_max:
            raise ValueError(
                f"el_min ({self.el_min:g} deg) must be below background_selection.el_max ({self.el_max:g} deg)"
            )
        return self

    @property
    def ranking(self) -> str:
        """How candidates are ranked: ``rank``, or ``kl`` where ``KL_DIV`` asks for a divergence and it has none."""
        return "kl" if self.KL_DIV and "kl" not in self.rank else self.rank

    @property
    def wider_shape(self) -> bool:
        """Whether the shape over the field has runs of its own."""
        return self.shape_runs == "wider" or (self.shape_runs is None and self.ranking == "conditions")

    @property
    def night_scale(self) -> float:
        """Time in days in which the runs of the nights around age; 0 where they do not count."""
        if self.night_level is not None:
            return self.night_level
        return 1.0 if self.ranking == "conditions" else 0.0

    @property
    def hours_wanted(self) -> float:
        """Hours of contributing runs that are enough; infinite for ``time_request: all``."""
        return math.inf if isinstance(self.time_request, str) else self.time_request

    def sigma_deg(self, binning: Binning) -> float:
        """Return the width of the smoothing in deg; a bare ``smooth_sigma`` counts the rings (3d: pixels)."""
        if isinstance(self.smooth_sigma, str):
            return values.to_number(self.smooth_sigma, "deg")
        return self.smooth_sigma * binning.bin_width

    def season_range(self, name: str) -> tuple[float, float]:
        """Return start and stop (not included, infinite if open) of a season as modified Julian dates."""
        start, stop = (self.seasons or {})[name]
        # The last day counts to its end.
        return values.to_mjd(start), math.inf if stop is None else values.to_mjd(stop) + 1

    def season_of(self, mjd: float) -> str | None:
        """Return the name of the season that holds a modified Julian date, None outside of all."""
        for name in self.seasons or {}:
            start, stop = self.season_range(name)
            if start <= mjd < stop:
                return name
        return None


class RunSelection(Section):
    """The runs that receive a background."""

    runlist: Annotated[list[int] | str | None, BeforeValidator(values.to_runlist)] = option(
        None, "run numbers, or a text file of them; null or all is every run"
    )
    missing_runs: Annotated[list[int], BeforeValidator(values.to_runs)] = option(
        [], "output only, runs that the archive does not have"
    )
    failed_runs: dict[int, str] = option({}, "output only, runs that could not be used and why")


class Modelling(Section):
    """How counts become a rate."""

    exposure: Literal["geometry", "event_ratio"] = option(
        "geometry", "exposed fraction, from the regions or from event counts"
    )
    smooth_method: Literal["field", "adaptive", "spline", "to_3d"] = option(
        "field", "Gaussian in the field, one that grows, a spline in offset, or gammapy's to_3d and to_2d"
    )
    smooth_counts: Number = option(400.0, "adaptive, counts under the Gaussian (smooth_sigma at least)", gt=0)
    smooth_dof: Number = option(4.0, "spline, effective degrees of freedom; 2 is a Gaussian profile", ge=2)
    node_values: Literal["conserving", "plain"] = option(
        "conserving", "interpolated they return the counts, or counts / exposure"
    )
    divergence: Literal["shape", "document"] = option(
        "shape", "KL divergence of shapes, free of statistics, or of rates + 1e-9"
    )
    divergence_prior: Number = option(3000.0, "events that the prior of a run's shape counts for", gt=0)
    min_counts: Whole = option(500, "counts that an energy pool must have for a radial shape of its own", ge=1)
    fill: StrictBool = option(True, "fill sparse and empty bins from their neighbours")
    field: Literal["gradient", "free", "both", "plain"] = option(
        "gradient", "3d, towards the zenith, whatever the counts say, one after the other, or each pixel alone"
    )
    own: Literal["off", "level", "spectrum"] = option(
        "off", "what a run's own counts outside exclusions correct, above its threshold (not held out)"
    )
    own_counts: Number = option(100.0, "own, counts that the other runs are worth", gt=0)
    field_sigma: Deg = option(0.5, "3d, width of the Gaussian of free, if smooth_sigma does not say it", ge=0)

    @model_validator(mode="after")
    def _check_fill(self) -> Self:
        if not self.fill and self.node_values == "conserving":
            raise ValueError(
                "fill: false leaves empty bins, which conserving node values cannot go through: "
                "set model.node_values: plain too, or leave model.fill out"
            )
        return self


class ValidationSettings(Section):
    """How ``dask-bkg validate`` compares backgrounds with the counts of runs that have not contributed to them."""

    off_max: Deg = option(2.0, "field pixels whose centre is nearer to the pointing are compared", gt=0, le=20)
    threshold: Number = option(1.0, "lowest energy, in units of the energy threshold of each run", gt=0)
    bands: Annotated[list[float], BeforeValidator(values.each(Unit("TeV")))] = option(
        [0.1, 0.4, 0.63, 1.0, 3.16, 31.6], "edges of the energy bands of significances, profiles and maps"
    )
    cell: Deg = option(0.5, "width of the cells of the field that significances are made in", gt=0)
    folds: Whole | None = option(None, "leave out every n-th run at a time; null is one run at a time", ge=2)
    exclusion: Exclusion | None = option(
        None, "a section like exclusion, for the counts that are compared; null is that of the job"
    )

    @model_validator(mode="after")
    def _check_bands(self) -> Self:
        if len(self.bands) < 2 or min(self.bands) <= 0 or not (np.diff(self.bands) > 0).all():
            raise ValueError(f"bands must be two or more ascending energies above 0 TeV, got {self.bands}")
        return self


class Config(Section):
    """A whole configuration, effective values; made by `dask_bkg.config.parse_config` or ``load_config``."""

    preset: Literal["veritas", "gammapy-tools"] | None = option(None, "a set of defaults")
    cluster: Annotated[str, BeforeValidator(values.to_cluster)] | None = option(
        None,
        "threads, local (worker processes), slurm, or a scheduler (tcp://host:port, or its file *.json); null: local "
        "where there is enough to do, else threads",
    )
    io: IO = Field(default_factory=IO)
    binning: Binning = Field(default_factory=Binning)
    run_store: RunStoreSettings = Field(default_factory=RunStoreSettings)
    config: Execution = Field(default_factory=Execution)
    slurm: Slurm = Field(default_factory=Slurm)
    exclusion: Exclusion = Field(default_factory=Exclusion)
    background_selection: BackgroundSelection = Field(default_factory=BackgroundSelection)
    run_selection: RunSelection = Field(default_factory=RunSelection)
    model: Modelling = Field(default_factory=Modelling)
    validation: ValidationSettings = Field(default_factory=ValidationSettings)

    _explicit: dict = PrivateAttr(default_factory=dict)
    _base_dir: Path | None = PrivateAttr(default=None)

    @property
    def explicit(self) -> dict:
        """What the user gave, key by key and unchanged, for writing it back."""
        return self._explicit

    @property
    def base_dir(self) -> Path | None:
        """Directory of the file that the configuration was read from, None if there was none."""
        return self._base_dir

    def effective(self) -> dict:
        """Return every option with the value that is used, as plain Python values for YAML or JSON."""
        return _lists(self.model_dump())

    def runs(self) -> list[int] | None:
        """Return the run numbers of ``run_selection.runlist``, None for every run; a text file is read now.

        Raises
        ------
        ConfigError
            If the text file cannot be read, or a line of it is not a run number.
        """
        runlist = self.run_selection.runlist
        return values.read_runs(self._beside(runlist)) if isinstance(runlist, str) else runlist

    def directory(self, name: str) -> Path:
        """Return one of the paths of the ``io`` section, e.g. ``"in_dir"``.

        Raises
        ------
        ConfigError
            If it is not set.
        """
        path = getattr(self.io, name)
        if path is None:
            meaning = IO.model_fields[name].description
            raise ConfigError(f"io.{name} is not set: give a path ({meaning})")
        return Path(path)

    @property
    def store_path(self) -> Path:
        """Where the histograms of the runs are kept."""
        path = self.run_store.path
        if path is None and self.io.results_dir is None:
            raise ConfigError(
                "there is no place for the run store: set run_store.path, or io.out_dir (then results/runs.zarr)"
            )
        return Path(path) if path is not None else self.directory("results_dir") / "runs.zarr"

    def with_cluster(self, cluster: str) -> Self:
        """Return a copy that runs elsewhere: ``threads``, ``local``, ``slurm`` or a scheduler's address or file."""
        try:
            return self.model_copy(update={"cluster": values.to_cluster(cluster)})
        except ValueError as error:
            raise ConfigError(f"cluster: {error}") from error

    def _beside(self, path: str) -> Path:
        """Return ``path`` next to the configuration file if it is there, else as it is."""
        local = (self.base_dir or Path()) / path
        return local if local.exists() else Path(path)


def _lists(value: Any) -> Any:
    """Return a copy in which tuples are lists, as they come back from YAML and JSON."""
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


#: The sections in the order of the file, with their models.
SECTIONS: dict[str, type[Section]] = {
    name: field.annotation
    for name, field in Config.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}
