"""The steps from a file or mapping to a `Config`, and what is wrong with one in words."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from dask_bkg.config import gammapy_tools
from dask_bkg.config.models import SECTIONS, BackgroundSelection, Config, Section, unit_of
from dask_bkg.config.presets import PRESETS, VERITAS_SEASONS
from dask_bkg.config.yaml import plain, read_yaml
from dask_bkg.errors import ConfigError

log = logging.getLogger(__name__)

MOST_PROBLEMS, LONGEST = 40, 1000
"""Problems of a configuration that are listed, and characters of one."""


def load_config(path: str | Path) -> Config:
    """Read and validate a YAML file.

    Parameters
    ----------
    path
        The file; its directory becomes ``base_dir`` of the configuration.

    Raises
    ------
    ConfigError
        If the file cannot be read or its content cannot be used; the message lists every problem.
    """
    content = read_yaml(path)
    try:
        return parse_config(content, base_dir=Path(path).parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse_config(mapping: Mapping[str, Any], base_dir: str | Path | None = None) -> Config:
    """Validate a nested dictionary as a whole and return the effective configuration.

    Parameters
    ----------
    mapping
        The configuration, with our keys or those of gammapy-tools. NumPy values, table columns, quantities and paths
        are taken; null is "not set". It is not changed; ``explicit`` of the result is a plain copy of it.
    base_dir
        Directory that relative paths start from, None for the working directory only.

    Raises
    ------
    ConfigError
        With every problem: the key, what is accepted, what was got.

    Examples
    --------
    >>> config = parse_config({"binning": {"e_min": "500 GeV", "e_max": 50}})
    >>> config.binning.e_min, config.binning.e_bins
    (0.5, 20)
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"a configuration must be a table of sections, got {mapping!r:.80}")
    explicit = plain(mapping)
    normalised = gammapy_tools.normalise(explicit)
    config, problems = _validate(_with_defaults(_without_nulls(normalised.own)), normalised.renamed)
    problems = normalised.problems + problems
    if config is None or problems:
        n = len(problems)
        lead = "the configuration cannot be used" + (f", {n} problems" if n > 1 else "")
        problems = [text if len(text) <= LONGEST else f"{text[:LONGEST]}..." for text in problems[:MOST_PROBLEMS]]
        if n > MOST_PROBLEMS:
            problems.append(f"and {n - MOST_PROBLEMS} more")
        raise ConfigError("\n  - ".join([f"{lead}:", *problems]))
    if normalised.without_effect:
        log.warning("accepted from gammapy-tools and without effect here: %s", ", ".join(normalised.without_effect))
    config._explicit = explicit
    config._base_dir = Path(base_dir).absolute() if base_dir is not None else None
    return config


def _without_nulls(own: dict[str, Any]) -> dict[str, Any]:
    """Take away what is not set; an unknown key stays, set or not, to be refused."""
    result = {}
    for name, value in own.items():
        if name in SECTIONS and isinstance(value, dict):
            known = SECTIONS[name].model_fields
            result[name] = {key: item for key, item in value.items() if item is not None or key not in known}
        elif value is not None or name not in Config.model_fields:
            result[name] = value
    return result


def _with_defaults(own: dict[str, Any]) -> dict[str, Any]:
    """Put the preset, and the epochs that ``same_szn`` needs, underneath what was given."""
    preset = own.get("preset")
    result = dict(own)
    for name, defaults in PRESETS.get(preset if isinstance(preset, str) else "", {}).items():
        given = own.get(name, {})
        result[name] = {**defaults, **given} if isinstance(given, dict) else given
    selection = result.get("background_selection")
    if isinstance(selection, dict):
        selection = {key: value for key, value in selection.items() if not _is_switched_off(key, value)}
        result["background_selection"] = selection
        if selection.get("same_szn") is True and "seasons" not in selection:
            # A driver file of gammapy-tools has no table: its epochs, those of VERITAS, are in the program.
            log.warning(
                "background_selection.same_szn: no seasons are given, the VERITAS epochs are used; "
                "for another telescope give a table background_selection.seasons"
            )
            selection["seasons"] = VERITAS_SEASONS
    return result


def _is_switched_off(key: str, value: Any) -> bool:
    """Whether a cut is ``none``: null would be "not set", and leave the preset's."""
    field = BackgroundSelection.model_fields.get(key)
    return field is not None and field.default is None and isinstance(value, str) and value.lower() == "none"


def _validate(own: dict[str, Any], renamed: dict[str, str]) -> tuple[Config | None, list[str]]:
    try:
        return Config.model_validate(own), []
    except ValidationError as error:
        words = [_in_words(problem) for problem in error.errors()]
    # The user must find the key in the file, where it may have its old name.
    for new, old in renamed.items():
        words = [re.sub(rf"^{re.escape(new)}\b", f"{old} ({new})", sentence) for sentence in words]
    return None, words


def _in_words(problem: Any) -> str:
    """Turn a validation error into an instruction: key, accepted values, what was got."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
    got = problem["input"]
    if problem["type"] == "extra_forbidden":
        return _unknown_key([str(part) for part in problem["loc"]])
    if problem["type"] == "model_type":
        keys = ", ".join(_model_at(path.split(".")).model_fields)
        return f"{path}: must be a section with keys ({keys}), got {got!r}"
    if problem["type"] == "value_error":
        # The text of our own converters is complete; a whole section is at fault where two keys contradict.
        whole = _model_at(path.split(".")) is not Config
        return f"{path}{'.' if whole else ': '}{problem['ctx']['error']}"
    if problem["type"] == "bool_type":
        return f"{path}: must be true or false (without quotes), got {got!r}"
    unit = _unit_at(problem["loc"])
    return f"{path}: {problem['msg'].replace('Input should be', 'must be')}{unit}, got {got!r}{unit}"


def _unit_at(loc: tuple[int | str, ...]) -> str:
    """Return the unit of the option at ``loc`` after a blank, empty if it has none."""
    names = [str(part) for part in loc if isinstance(part, str)]
    fields = _model_at(names[:-1]).model_fields if len(names) > 1 else {}
    unit = unit_of(fields[names[-1]]) if names and names[-1] in fields else ""
    return f" {unit}".rstrip()


def _model_at(names: Sequence[str]) -> type[Section]:
    """Return the model of a section, or of a section within it; of the whole for what is none."""
    model: type[Section] = Config
    for name in names:
        field = model.model_fields.get(name)
        kinds = (field.annotation, *get_args(field.annotation)) if field else ()
        model = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), Config)
    return model


def _unknown_key(loc: list[str]) -> str:
    """Refuse a key with the nearest accepted name, or its right section."""
    *section, key = loc
    path = ".".join(loc)
    accepted = list(_model_at(section).model_fields)
    homes = [name for name, model in SECTIONS.items() if key in model.model_fields]
    near = _nearest(key, accepted)
    if near:
        hint = f"did you mean {'.'.join([*section, near])}?"
    elif homes:
        hint = f"it belongs to the section {homes[0]}"
    else:
        hint = f"accepted are {', '.join(accepted)}"
    return f"{path}: unknown key, {hint}"


def _nearest(key: str, accepted: list[str]) -> str | None:
    """Return the accepted name nearest to a misspelt one, whatever the case and the underscores."""
    folded = {name.casefold().replace("_", ""): name for name in accepted}
    matches = difflib.get_close_matches(key.casefold().replace("_", ""), folded, n=1)
    return folded[matches[0]] if matches else None
