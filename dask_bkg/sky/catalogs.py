"""The catalogues of sources and stars and the user's region files, read into one `SkyRegions` table.

``$GAMMAPY_DATA`` is where ``gammapy download datasets`` puts GammaCat, 3HWC and the Hipparcos star table.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray

from dask_bkg.errors import ConfigError
from dask_bkg.sky.exclusion import SkyRegions, center_of, concat_regions, make_regions

log = logging.getLogger(__name__)


class ExclusionSettings(Protocol):
    """An ``exclusion`` section, `dask_bkg.config.Exclusion`, as far as the regions depend on it."""

    star_cat: str | None
    star_mag: float
    star_radius: float
    default_radius: float
    max_radius: float
    allow_missing_catalogs: bool
    exclude_regions: list[tuple[float, float, float]]
    exclude_source_name: list[tuple[str, float]]
    exclude_region_files: list[str]

    @property
    def catalogs(self) -> Sequence[str]:
        """``gammacat``, ``3hwc``."""

    @property
    def extension_rule(self) -> str:
        """``max`` or ``document``."""


CATALOG_FILES = {"gammacat": "catalogs/gammacat/gammacat.fits.gz", "3hwc": "catalogs/3HWC.ecsv"}
STAR_FILE = "veritas/crab-point-like-ED/Hipparcos_MAG8_1997.dat"
GET_DATA = "get it with `gammapy download datasets` and set $GAMMAPY_DATA to its directory"


def data_file(relative: str) -> Path | None:
    """A file below ``$GAMMAPY_DATA``, or None if the variable or the file is missing."""
    base = os.environ.get("GAMMAPY_DATA")
    path = Path(base, relative) if base else None
    return path if path is not None and path.is_file() else None


def read_gammacat(
    path: str | Path, default_radius: float = 0.35, max_radius: float = 1.2, rule: str = "max"
) -> SkyRegions:
    """Discs around the sources of GammaCat.

    Parameters
    ----------
    path
        ``gammacat.fits.gz``.
    default_radius
        Radius of a point source [deg], and of a source without a size.
    max_radius
        Largest radius [deg]; a larger one is reduced to it, with a note.
    rule
        ``max``: an extended source (morphology gauss or shell) gets the larger of the default and 3 sigma;
        ``document``: 3 sigma even where that is smaller, and no largest radius.
    """
    table = Table.read(path)
    extended = np.isin(np.char.strip(np.asarray(table["morph_type"], dtype=str)), ["gauss", "shell"])
    size: NDArray = 3 * np.ma.filled(np.ma.asarray(table["morph_sigma"], dtype=float), np.nan)
    has_size = extended & np.isfinite(size)
    notes = np.where(extended & ~has_size, "extended, but without a size in the catalogue", "")
    if rule == "document":
        radius = np.where(has_size, size, default_radius)
    else:
        radius = np.where(has_size, np.fmax(size, default_radius), default_radius)
        radius, notes = _cap(radius, notes, max_radius)
    names = np.char.strip(np.asarray(table["common_name"], dtype=str))
    return make_regions(table["ra"], table["dec"], radius, names, "gammacat", notes)


def read_3hwc(
    path: str | Path, default_radius: float = 0.35, max_radius: float = 1.2, rule: str = "max"
) -> SkyRegions:
    """Discs around the sources of 3HWC.

    The radius is the larger of the catalogue's ``search_radius`` and the default (``rule="max"``), or always the
    default (``rule="document"``).  Arguments as in `read_gammacat`.
    """
    table = Table.read(path, format="ascii.ecsv")
    notes = np.full(len(table), "", dtype="U60")
    radius = np.full(len(table), default_radius)
    if rule != "document":
        radius = np.fmax(np.asarray(table["search_radius"], dtype=float), default_radius)
        radius, notes = _cap(radius, notes, max_radius)
    return make_regions(table["ra"], table["dec"], radius, np.asarray(table["source_name"], dtype=str), "3hwc", notes)


def _cap(radius: NDArray, notes: NDArray, max_radius: float) -> tuple[NDArray, NDArray]:
    cut = radius > max_radius
    text = [f"radius reduced from {r:.2f} to {max_radius:.2f} deg (exclusion.max_radius)" for r in radius]
    return np.minimum(radius, max_radius), np.where(cut, text, notes)


def read_stars(path: str | Path, mag_max: float = 5.0, radius: float = 0.3) -> SkyRegions:
    """Discs around the bright stars of a table.

    Parameters
    ----------
    path
        Text table with columns RA [deg], Dec [deg], Hipparcos number, V magnitude and B-V (``#`` comments).
    mag_max
        Stars with a V magnitude below this are excluded.
    radius
        Radius of the discs [deg].

    Raises
    ------
    ConfigError
        If the file is no such table, or empty.
    """
    try:
        ra, dec, number, mag = np.loadtxt(path, usecols=(0, 1, 2, 3), unpack=True, ndmin=2, comments="#")
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"exclusion.star_cat: {path} is not a table of RA, Dec [deg], number, V magnitude ({error})"
        ) from error
    if ra.size == 0:
        raise ConfigError(f"exclusion.star_cat: {path} has no stars: get it again, or leave star_cat out")
    bright = mag < mag_max
    names = [f"HIP {n:.0f} (V={m:.1f})" for n, m in zip(number[bright], mag[bright], strict=True)]
    return make_regions(ra[bright], dec[bright], radius, names, "star")


def read_region_file(path: str | Path) -> SkyRegions:
    """Regions of a ds9, CRTF or FITS region file in sky coordinates (what the ``regions`` package reads).

    Circles become plain discs; ellipses, rectangles, polygons and annuli keep their shape.

    Raises
    ------
    ConfigError
        If the file cannot be read, has no regions, or one of another kind.
    """
    from regions import Regions

    kind = {".crtf": "crtf", ".fits": "fits"}.get(Path(path).suffix.lower(), "ds9")
    try:
        found = list(Regions.read(path, format=kind))
    except Exception as error:  # the package raises many kinds
        raise ConfigError(f"exclusion.exclude_region_files: cannot read {path}: {error}") from error
    if not found:
        raise ConfigError(f"exclusion.exclude_region_files: {path} has no regions that could be read")
    return concat_regions(_region(region, i, Path(path)) for i, region in enumerate(found, 1))


def _region(region, number: int, path: Path) -> SkyRegions:
    from regions import CircleSkyRegion, Regions

    where = f"exclusion.exclude_region_files: region {number} of {path}"
    if region.meta.get("include") in (False, "-"):
        raise ConfigError(f"{where} is a negative region (a '-' before it), which is not supported: remove it")
    try:
        center, radius = center_of(region), _bounding_radius(region)
    except AttributeError:
        raise ConfigError(
            f"{where} is a {type(region).__name__}; accepted are circle, ellipse, box, polygon and annulus "
            "in sky coordinates (fk5, icrs, galactic)"
        ) from None
    name = region.meta.get("text") or region.meta.get("label") or f"{path.name} #{number}"
    shape = "" if isinstance(region, CircleSkyRegion) else Regions([region]).serialize(format="ds9", precision=10)
    return make_regions([center.ra.deg], [center.dec.deg], [radius], [name], "file", shape=[shape])


def _bounding_radius(region) -> float:
    """Radius [deg] of a disc around the centre that contains the region."""
    if hasattr(region, "vertices"):
        return float(region.vertices.icrs.separation(center_of(region)).deg.max())
    for name in ("outer_radius", "radius"):
        if hasattr(region, name):
            return float(getattr(region, name).to_value("deg"))
    width = getattr(region, "outer_width", None) or region.width
    height = getattr(region, "outer_height", None) or region.height
    return float(np.hypot(width.to_value("deg"), height.to_value("deg")) / 2)


def find_star_table(star_cat: str | None, base_dir: Path | None = None) -> Path | None:
    """Path of the star table: as given, next to the YAML file, or that of ``$GAMMAPY_DATA``; None if there is none.

    Raises
    ------
    ConfigError
        If an absolute path was given, and there is no file.
    """
    named = next_to(star_cat, base_dir) if star_cat else None
    if named is not None and named.is_file():
        return named
    if named is not None and named.is_absolute():
        raise ConfigError(f"exclusion.star_cat: there is no file {named}: correct the path, or leave star_cat out")
    return data_file(STAR_FILE)


def sky_regions(settings: ExclusionSettings, base_dir: Path | None = None) -> SkyRegions:
    """All exclusion regions of a configuration, over the whole sky.

    Parameters
    ----------
    settings
        The ``exclusion`` section of a `dask_bkg.config.Config`.
    base_dir
        Directory of the YAML file, in which relative paths are searched first.

    Raises
    ------
    ConfigError
        If a catalogue, a file or a named source is missing (unless ``allow_missing_catalogs``).
    """
    parts = [table for name in settings.catalogs if (table := _read_catalog(name, settings)) is not None]
    stars = _read_star_table(settings, base_dir)
    ra, dec, radius = np.array(settings.exclude_regions, dtype=float).reshape(-1, 3).T
    own = make_regions(ra, dec, radius, [f"own circle {i + 1}" for i in range(ra.size)], "own")
    named = [_named_source(name, radius, parts) for name, radius in settings.exclude_source_name]
    files = [read_region_file(next_to(path, base_dir)) for path in settings.exclude_region_files]
    return concat_regions([*parts, *([stars] if stars is not None else []), own, *named, *files])


def next_to(path: str, base_dir: Path | None) -> Path:
    """A file next to the configuration if it exists, else the path as given."""
    near = (base_dir or Path()) / Path(path).expanduser()
    return near if near.is_file() else Path(path).expanduser()


def _read_catalog(name: str, settings: ExclusionSettings) -> SkyRegions | None:
    path = data_file(CATALOG_FILES[name])
    if path is None:
        _missing(settings, f"exclusion.catalogs: no {name} at $GAMMAPY_DATA/{CATALOG_FILES[name]}")
        return None
    read = {"gammacat": read_gammacat, "3hwc": read_3hwc}[name]
    try:
        return read(path, settings.default_radius, settings.max_radius, settings.extension_rule)
    except Exception as error:  # astropy's readers raise many kinds
        raise ConfigError(f"exclusion.catalogs: {path} cannot be read as {name} ({error}): {GET_DATA}") from error


def _read_star_table(settings: ExclusionSettings, base_dir: Path | None) -> SkyRegions | None:
    named, path = settings.star_cat, find_star_table(settings.star_cat, base_dir)
    if path is None:
        where = f"no file {named} (next to the configuration, or in the current directory), and " if named else ""
        _missing(settings, f"exclusion.star_cat: {where}no star table at $GAMMAPY_DATA/{STAR_FILE}")
        return None
    if named and path == data_file(STAR_FILE):
        log.warning("exclusion.star_cat: no file %s, reading stars from %s", named, path)
    else:
        log.info("reading stars from %s", path)
    return read_stars(path, settings.star_mag, settings.star_radius)


def _missing(settings: ExclusionSettings, what: str) -> None:
    if not settings.allow_missing_catalogs:
        raise ConfigError(f"{what}: {GET_DATA}, or set exclusion.allow_missing_catalogs: true to go on without it")
    log.warning("%s: going on without it (exclusion.allow_missing_catalogs)", what)


def _named_source(name: str, radius: float, catalogs: list[SkyRegions]) -> SkyRegions:
    """A disc around a source of a catalogue; upper and lower case and blanks do not matter."""
    import difflib

    sources = concat_regions(catalogs)
    if len(sources) == 0:
        raise ConfigError(
            f"exclusion.exclude_source_name: {name!r} is searched in the catalogues, but none of exclusion.catalogs "
            "was read; exclusion.exclude_regions takes [ra, dec, radius] instead"
        )
    keys = np.char.lower(np.char.replace(sources.name, " ", ""))
    found = np.flatnonzero(keys == name.lower().replace(" ", ""))
    if found.size == 0:
        lower = {str(source).lower(): str(source) for source in sources.name}
        near = [lower[key] for key in difflib.get_close_matches(name.lower(), list(lower), n=3, cutoff=0.5)]
        raise ConfigError(
            f"exclusion.exclude_source_name: no source {name!r} in GammaCat (common names) or 3HWC"
            + (f"; the nearest names are {', '.join(near)}" if near else "")
            + "; exclusion.exclude_regions takes [ra, dec, radius] instead"
        )
    one = sources[found[:1]]
    return replace(one, radius=np.array([radius]), kind=np.array(["own"], dtype="U8"), note=np.array([""]))


def catalog_files(settings: ExclusionSettings, base_dir: Path | None = None) -> dict[str, dict[str, str]]:
    """Path (``file``) and ``sha256`` of each file that the exclusion was read from, by name."""
    files: dict[str, Path | None] = {name: data_file(CATALOG_FILES[name]) for name in settings.catalogs}
    files["stars"] = find_star_table(settings.star_cat, base_dir)
    files |= {path: next_to(path, base_dir) for path in settings.exclude_region_files}
    return {
        name: {"file": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for name, path in files.items()
        if path is not None and path.is_file()
    }
