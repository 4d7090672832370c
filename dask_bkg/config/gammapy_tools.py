"""The keys of gammapy-tools' driver files, in one table: used, renamed, or accepted and without effect here.

A file that gammapy-tools' users have runs as it is. `normalise` gives the same configuration in our keys; the
dictionary that was read is left alone, so that it can be written back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: Keys that mean the same here.
USED = (
    *(f"io.{key}" for key in ("search_datastore", "in_dir", "out_dir", "results_dir", "from_run")),
    *(f"binning.{key}" for key in ("e_min", "e_max", "e_bins", "off_min", "off_max", "off_bins")),
    "config.njobs",
    *(f"exclusion.{key}" for key in ("star_cat", "exclude_regions", "exclude_source_name", "exclude_source_run")),
    *(f"background_selection.{key}" for key in ("el_min", "el_max", "nsb_diff", "el_diff", "az_diff", "n_tels")),
    *(f"background_selection.{key}" for key in ("time_max", "same_szn", "smooth", "smooth_sigma")),
    *(f"background_selection.{key}" for key in ("time_request", "KL_DIV", "store_KL", "bkg_runlist")),
    *(f"run_selection.{key}" for key in ("runlist", "missing_runs")),
)

#: Keys that have another name or place here.
RENAMED = {
    "io.runlist": "run_selection.runlist",
    "binning.EMin": "binning.e_min",
    "binning.EMax": "binning.e_max",
    "binning.Ebins": "binning.e_bins",
    "binning.OffMin": "binning.off_min",
    "binning.OffMax": "binning.off_max",
    "binning.OffBins": "binning.off_bins",
    "background_selection.n_tel": "background_selection.n_tels",
    "exclusion.exclude_source_pos": "exclusion.exclude_regions",
    "sky_map.on_exclusion_region": "exclusion.default_radius",
}

#: Keys that say what to do with another one: whether ``io.runlist`` is used, and 3D or 2D.
SWITCHES = ("io.from_runlist", "io.3d_bkg")

#: Keys of other steps of gammapy-tools (its analysis, its mimic data); ``*`` is any section, a bare name the top.
WITHOUT_EFFECT = (
    *("source", "spectrum", "lightcurve", "sky_map", "analysis_selection", "results_file", "plot_names"),
    *("*.source_name", "*.pos_from_DL3", "*.source_ra", "*.source_dec", "*.use_name"),
    *("*.coords", "*.coords_galactic", "*.offset_max", "*.use_runlist", "*.questionable"),
    *("*.max_runs", "*.n_runs", "*.bright_sources", "*.n_mimic", "*.scramble_theta"),
    *(f"run_selection.{key}" for key in ("n_tel", "el_min", "el_max", "time_min", "time_max")),
)

#: The table: a key of gammapy-tools, and its name here; None is without effect.
KEYS: dict[str, str | None] = {**{key: key for key in USED}, **RENAMED, **dict.fromkeys(WITHOUT_EFFECT)}


@dataclass
class Normalised:
    """A configuration in our keys, with what happened to the others.

    ``renamed`` gives the key that the user wrote for ours, ``problems`` are sentences for a `ConfigError`, and
    ``mode`` is what ``io.3d_bkg`` says of ``binning.mode``.
    """

    own: dict[str, Any]
    renamed: dict[str, str] = field(default_factory=dict)
    without_effect: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    mode: str | None = None


def normalise(mapping: Mapping[str, Any]) -> Normalised:
    """Translate a configuration that may have keys of gammapy-tools into one with ours only.

    Keys that no table has stay where they are: the models refuse them.

    Parameters
    ----------
    mapping
        A plain nested dictionary (see `dask_bkg.config.yaml.plain`); it is not changed.

    Examples
    --------
    >>> normalise({"binning": {"EMin": 0.2}, "plot_names": "crab"}).own
    {'binning': {'e_min': 0.2}}
    """
    result = Normalised(own={})
    moved: list[tuple[str, str, Any]] = []
    for name, value in mapping.items():
        if not isinstance(value, Mapping):
            _sort_value(result, str(name), value)
        else:
            keys = _apply_switches(result, value) if name == "io" else value
            _sort_section(result, moved, str(name), keys)
    # Last, when every key that has our own name is in its place: the two may contradict.
    if result.mode is not None:
        moved.append(("io.3d_bkg", "binning.mode", result.mode))
    for old, new, value in moved:
        _move(result, old, new, value)
    return result


def _sort_value(result: Normalised, name: str, value: Any) -> None:
    """Place a top-level entry that is not a section."""
    if name not in WITHOUT_EFFECT:
        result.own[name] = value
    elif value is not None:
        result.without_effect.append(name)


def _sort_section(result: Normalised, moved: list, name: str, keys: Mapping) -> None:
    """Place the keys of one section: kept, to be moved, or without effect."""
    own: dict[str, Any] = {}
    ignored = False
    for key, value in keys.items():
        full = f"{name}.{key}"
        if full in RENAMED:
            moved.append((full, RENAMED[full], value))
        elif name in WITHOUT_EFFECT:
            ignored = True
        elif full in WITHOUT_EFFECT or f"*.{key}" in WITHOUT_EFFECT:
            result.without_effect.append(full)
        else:
            own[str(key)] = value
    if name not in WITHOUT_EFFECT:
        result.own[name] = own
    elif ignored:
        result.without_effect.append(name)


def _apply_switches(result: Normalised, io: Mapping) -> dict:
    """Take the two switches out of the io section, and ``runlist`` where its switch is off."""
    left = dict(io)
    switches = {key: left.pop(key, None) for key in ("from_runlist", "3d_bkg")}
    for key, value in switches.items():
        if value is not None and not isinstance(value, bool):
            result.problems.append(f"io.{key}: must be true or false (without quotes), got {value!r}")
    if isinstance(switches["3d_bkg"], bool):
        result.mode = "3d" if switches["3d_bkg"] else "2d"
    if switches["from_runlist"] is False and left.pop("runlist", None) is not None:
        result.without_effect.append("io.runlist")
    return left


def _move(result: Normalised, old: str, new: str, value: Any) -> None:
    """Put the value of a renamed key under its new name; two different values are a problem."""
    section, key = new.split(".")
    if value is None:
        return
    target = result.own.get(section)
    if target is None:
        target = result.own[section] = {}
    if not isinstance(target, dict):
        # Not a section at all: the models refuse it.
        return
    given = target.get(key)
    if given is not None and given != value:
        result.problems.append(
            f"{old} is the old name of {new}, and the two differ ({value!r} and {given!r}): keep one of them"
        )
        return
    if given is None:
        result.renamed[new] = old
    target[key] = value
