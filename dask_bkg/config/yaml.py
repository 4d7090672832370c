"""Configurations as files: YAML in and out without its traps, the plain dictionary, the commented template."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dask_bkg.config.models import SECTIONS, Config, Section, choices_of, unit_of
from dask_bkg.config.presets import ABOUT, PRESETS
from dask_bkg.errors import ConfigError

#: What a number looks like. YAML 1.1 takes 1e-9 for a text (it has no dot), 010 for 8 and 12:30 for 750.
_INTEGER = re.compile(r"[-+]?[0-9][0-9_]*$")
_FLOAT = re.compile(
    r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
)
_OWN_RULES = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"}
_NUMBER_STARTS = list("-+.0123456789")


class _Loader(yaml.SafeLoader):
    """A safe YAML loader that refuses what YAML would silently misread."""

    # Dates stay texts: they are the same then in YAML and in JSON.
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, rule) for tag, rule in rules if tag not in _OWN_RULES]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Refuse a leading zero (octal to YAML, decimal to an observer)."""
        text = node.value.replace("_", "")
        if re.match(r"[-+]?0[0-9]", text):
            short = text.lstrip("+0") or "0"
            raise yaml.constructor.ConstructorError(
                problem=f"the number {node.value} begins with a zero, which YAML reads as octal: "
                f'write {short}, or "{node.value}" in quotes',
                problem_mark=node.start_mark,
            )
        return int(text)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse a key that is given twice; YAML would keep the last one."""
        seen = set()
        for key_node, _ in node.value:
            # A merge (<<) may be overridden, that is what it is for.
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key} is given twice: keep one of them", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """A safe YAML writer: no anchors, short lists on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_list(dumper: yaml.SafeDumper, items: list) -> yaml.SequenceNode:
    nested = any(isinstance(item, (list, dict)) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=not nested)


for _reader_or_writer in (_Loader, _Dumper):
    # The writer keeps YAML's own rules too, and so quotes a text that any reader would take for a number.
    _reader_or_writer.add_implicit_resolver("tag:yaml.org,2002:int", _INTEGER, _NUMBER_STARTS)
    _reader_or_writer.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, _NUMBER_STARTS)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Dumper.add_representer(list, _represent_list)


def read_yaml(path: str | Path) -> dict:
    """Read a YAML file into a plain nested dictionary; an empty file is an empty one.

    Raises
    ------
    ConfigError
        If the file cannot be read, is not YAML, is not a table of keys, gives a key twice, or holds an integer with
        a leading zero; with the line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a YAML file ({error})") from error
    return parse_yaml(text, source=str(path))


def parse_yaml(text: str, source: str = "configuration") -> dict:
    """Read YAML text as `read_yaml` does; ``source`` names it in errors.

    Examples
    --------
    >>> parse_yaml("binning: {e_min: 1e-1}")
    {'binning': {'e_min': 0.1}}
    """
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{source}{line}: {error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{source}: not valid YAML ({error})") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{source}: must be a table of sections (io:, binning:, ...), got {content!r:.80}")
    return content


def dump_yaml(mapping: Mapping) -> str:
    """Write a nested dictionary as YAML text; `parse_yaml` returns the plain copy of it.

    Examples
    --------
    >>> print(dump_yaml({"run_selection": {"runlist": np.array([64080, 64081])}}), end="")
    run_selection:
      runlist: [64080, 64081]
    """
    return yaml.dump(plain(mapping), Dumper=_Dumper, sort_keys=False, width=110)


def plain(mapping: Any) -> Any:
    """Return a deep copy of dicts, lists, texts, bools and numbers only.

    NumPy scalars and arrays, table columns, paths, dates and quantities are turned into those.

    Raises
    ------
    ConfigError
        If a value is something else; with its key.

    Examples
    --------
    >>> plain({"runs": (np.int64(3),), "out_dir": Path("a")})
    {'runs': [3], 'out_dir': 'a'}
    """
    return _plain(mapping, "")


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        return {_key(key): _plain(item, f"{where}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, date):
        return value.isoformat()
    # A quantity first: it is an array as well, and would lose its unit.
    if hasattr(value, "to_value") and hasattr(value, "unit"):
        numbers = np.asarray(value.value, dtype=float)
        return [f"{x!r} {value.unit}" for x in numbers.tolist()] if numbers.ndim else f"{numbers!s} {value.unit}"
    if isinstance(value, np.generic) or hasattr(value, "tolist"):
        return _plain(value.tolist(), where)
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        return [_plain(item, f"{where}[{number}]") for number, item in enumerate(value)]
    raise ConfigError(
        f"{where or 'the configuration'}: must be a number, a text, true or false, a list or a table, "
        f"got {type(value).__name__} {value!r:.80}"
    )


def _key(key: Any) -> Any:
    return key.item() if isinstance(key, np.generic) else key


def with_absolute_paths(values: Mapping, base_dir: str | Path | None) -> dict:
    """Return a plain copy for a file elsewhere: what lies beside the configuration's own file gets its whole path.

    Those are ``exclusion.star_cat``, ``exclusion.exclude_region_files``, the same of ``validation.exclusion``, and a
    text file ``run_selection.runlist``.

    Examples
    --------
    >>> with_absolute_paths({"exclusion": {"star_cat": "stars.dat"}}, None)
    {'exclusion': {'star_cat': 'stars.dat'}}
    """
    copy = plain(values)

    def whole(item: Any) -> Any:
        found = Path(base_dir or "", item).absolute() if base_dir and isinstance(item, str) and item else None
        return str(found) if found is not None and found.is_file() else item

    scored = (copy.get("validation") or {}).get("exclusion")
    places: list[tuple[dict | None, str]] = [
        (copy.get("exclusion"), "star_cat"),
        (copy.get("exclusion"), "exclude_region_files"),
        (scored, "star_cat"),
        (scored, "exclude_region_files"),
        (copy.get("run_selection"), "runlist"),
    ]
    for section, key in places:
        value = section.get(key) if section else None
        if section is None or value is None:
            continue
        if isinstance(value, str):
            section[key] = whole(value)
        elif isinstance(value, list):
            section[key] = [whole(item) for item in value]
    return copy


def default_config() -> dict:
    """Return a nested dictionary with every section and key, null (not set) where nothing is decided.

    Only the two switches ``io.from_run`` and ``background_selection.smooth`` are false. Assign what you want and
    pass it on; it is validated as a whole then.

    Examples
    --------
    >>> config = default_config()
    >>> config["io"]["from_run"] = True
    >>> config["binning"]["e_min"] is None
    True
    """
    config: dict[str, Any] = {
        name: dict.fromkeys(SECTIONS[name].model_fields) if name in SECTIONS else None for name in Config.model_fields
    }
    config["io"]["from_run"] = config["background_selection"]["smooth"] = False
    return config


_HEADER = """\
# Configuration of dask_bkg. Every option is here with its default, its [unit] and its meaning:
# take away the leading hash of a line to set it. null is "not set": a value given here wins over the preset,
# the preset over the default. Numbers are in the unit shown, texts may have another one ("100 GeV", "600 min").
"""

#: The options that every job needs stand uncommented in the template.
_LIVE = ("io.search_datastore", "io.in_dir", "io.out_dir")


def template(preset: str | None = None) -> str:
    """Return a YAML file with every option commented out, with its default, unit and meaning.

    Parameters
    ----------
    preset
        A name in `dask_bkg.config.presets.PRESETS`: the file has it set, says in comments what it stands for, and
        shows its defaults.

    Examples
    --------
    >>> "    # e_min: 0.1" in template()
    True
    >>> "    # star_mag: 8 " in template("gammapy-tools")
    True
    """
    chosen: dict[str, Any] = PRESETS[preset] if preset else {}
    about = ["", f"PRESET {preset}", "", *ABOUT[preset].splitlines()] if preset else []
    top = [name for name in Config.model_fields if name not in SECTIONS]
    options = [_template_line("", name, Config, {"preset": preset}) for name in top]
    parts = [_HEADER.rstrip("\n"), *(f"# {line}".rstrip() for line in about), "", *options]
    for name, model in SECTIONS.items():
        lines = [_template_line(name, key, model, chosen.get(name, {})) for key in model.model_fields]
        parts += ["", f"# {model.__doc__}", f"{name}:", *lines]
    return "\n".join(parts) + "\n"


def _template_line(section: str, key: str, model: type[Section], chosen: Mapping[str, Any]) -> str:
    """Return the line of one option: indent, comment sign, key, default, [unit], choices, meaning."""
    option = model.model_fields[key]
    value = chosen.get(key, option.default)
    default = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=1000)
    live = f"{section}.{key}" in _LIVE or (key == "preset" and value is not None)
    line = f"{'    ' if section else ''}{'' if live else '# '}{key}: {default.splitlines()[0]}"
    unit = f"[{unit_of(option)}] " if unit_of(option) else ""
    choices = f"{' | '.join(choices_of(option))}; " if choices_of(option) else ""
    return f"{line:<42} # {unit}{choices}{option.description}"
