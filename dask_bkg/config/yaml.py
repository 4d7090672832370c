"""Configurations as files: YAML in and out without its traps, the plain dictionary, the commented template."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from datetime import date
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.emitter import Emitter
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import Node, ScalarNode, SequenceNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import implicit_resolvers

from dask_bkg.config.models import SECTIONS, Config, Section, choices_of, unit_of
from dask_bkg.config.presets import ABOUT, PRESETS
from dask_bkg.errors import ConfigError

MOST_BYTES = 4_000_000
"""Size of a file: twenty times the one of a job of 20,000 runs that are named one by one."""

MOST_VALUES = 200_000
"""Values of a file (at most half a minute of reading), those of an alias counted wherever it stands."""

DEEPEST = 20
"""Tables and lists within each other; no option has more than four."""

MOST_DIGITS, MOST_BITS, LONGEST_KEY = 100, 330, 200
"""Characters and bits of an integer, and characters of a key."""


class _Composer(Composer):
    """Bounds what a file becomes, while it is read: aliases of aliases make billions of values of ten lines."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader)
        self._values = self._level = 0
        self._sizes = dict[str, int]()

    def compose_node(self, parent: Any, index: Any) -> Any:
        event, before = self.parser.peek_event(), self._values
        alias = isinstance(event, AliasEvent)
        if alias and event.anchor in self.anchors and event.anchor not in self._sizes:
            raise self._refused(f"the alias *{event.anchor} stands in what it repeats: write the values out", event)
        self._values += self._sizes.get(event.anchor, 1) if alias else 1
        if self._values > MOST_VALUES:
            problem = (
                f"with what aliases (*name) repeat, there are more than {MOST_VALUES} values: write less of them"
            )
            raise self._refused(problem, event)
        if self._level == DEEPEST:
            raise self._refused(
                f"more than {DEEPEST} tables and lists within each other: no option has so many", event
            )
        self._level += 1
        node = super().compose_node(parent, index)
        self._level -= 1
        if event.anchor is not None and not alias:
            self._sizes[event.anchor] = self._values - before
        return node

    @staticmethod
    def _refused(problem: str, event: Any) -> ComposerError:
        return ComposerError(problem=problem, problem_mark=event.start_mark)


class _Constructor(SafeConstructor):
    """Plain values by YAML 1.2, but for what PyYAML, and so gammapy-tools, reads otherwise (YAML 1.1)."""

    def construct_yaml_int(self, node: ScalarNode) -> int:
        """Refuse a leading zero, octal in YAML 1.1 and decimal in YAML 1.2, and what has too many digits."""
        if (n := len(node.value)) > MOST_DIGITS:
            problem = f"the integer {node.value[:10]}... has {n} characters: at most {MOST_DIGITS} are accepted"
            raise ConstructorError(problem=problem, problem_mark=node.start_mark)
        number = super().construct_yaml_int(node)
        if re.match("[-+]?0[0-9_]", node.value):
            problem = f'the number {node.value} begins with a zero: write {number}, or "{node.value}" in quotes'
            raise ConstructorError(problem=problem, problem_mark=node.start_mark)
        return number

    def construct_yaml_str(self, node: ScalarNode) -> str | bool:
        """Take yes, no, on, off without quotes for booleans."""
        is_bool = node.style is None and re.fullmatch("yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF", node.value)
        return self.construct_yaml_bool(node) if is_bool else node.value

    def check_mapping_key(self, node: Node, key_node: Node, mapping: dict, key: Any, value: Any) -> bool:
        """Refuse a key that is given twice (ruamel.yaml's own error prints both values, whole sections too)."""
        if len(str(key)) > LONGEST_KEY:
            problem = f"the key {key!s:.20}... has more than {LONGEST_KEY} characters: no option is so long"
            raise ConstructorError(problem=problem, problem_mark=key_node.start_mark)
        if key in mapping or isinstance(key, tuple):
            problem = "is given twice: keep one of them" if key in mapping else "must be a word or a number"
            raise ConstructorError(problem=f"the key {key} {problem}", problem_mark=key_node.start_mark)
        return True


_Constructor.add_default_constructor("int")
_Constructor.add_default_constructor("str")
# Dates stay texts: they are the same then in YAML and in JSON.
_Constructor.add_default_constructor("timestamp", "construct_yaml_str")


class _Representer(SafeRepresenter):
    """Short lists on one line; texts and numbers that YAML 1.1 and 1.2 read alike."""

    def represent_sequence(self, tag: str, sequence: list, flow_style: bool | None = None) -> SequenceNode:
        nested = any(isinstance(item, (list, dict)) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=not nested)

    def represent_scalar(self, tag: str, value: str, style: str | None = None, anchor: Any = None) -> ScalarNode:
        if tag.endswith(":str") and any(rule.match(value) for _, _, rule, _ in implicit_resolvers):
            style = "'"
        elif tag.endswith(":float") and "." not in value:
            value = value.replace("e", ".0e")
        return super().represent_scalar(tag, value, style, anchor)


class _Emitter(Emitter):
    """Line breaks between the items of a long list only.

    Within a long text ruamel.yaml 0.18 and 0.19 break where they must not: after the key of a path, and in double
    quotes such that the text is another one when it is read.
    """

    def expect_scalar(self) -> None:
        width, self.best_width = self.best_width, sys.maxsize
        super().expect_scalar()
        self.best_width = width


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor, yaml.Representer, yaml.Emitter = _Constructor, _Representer, _Emitter
    yaml.Composer = _Composer
    yaml.default_flow_style = yaml.allow_unicode = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # annotated as None
    yaml.width = 110
    return yaml


def read_yaml(path: str | Path) -> dict:
    """Read a YAML file into a plain nested dictionary; an empty file is an empty one.

    Raises
    ------
    ConfigError
        If the file cannot be read, is not YAML, is not a table of keys, gives a key twice, holds an integer with a
        leading zero, or has more bytes, values, levels or digits than a configuration; with the line.
    """
    try:
        with open(path, "rb") as stream:
            content = stream.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ConfigError(f"{path}: is larger than {MOST_BYTES // 10**6} MB: is it the right file?")
        if content.count(b"\n") + content.count(b",") > MOST_VALUES:
            raise ConfigError(f"{path}: has more than {MOST_VALUES} lines and commas: is it the right file?")
        text = content.decode("utf-8-sig")
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
        content = _yaml().load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{source}{line}: {error.problem or error.context}") from error
    except (YAMLError, RecursionError, ValueError, LookupError) as error:
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
    text = StringIO()
    _yaml().dump(plain(mapping), text)
    return text.getvalue()


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
        keys = (key.item() if isinstance(key, np.generic) else key for key in value)
        return {
            key: _plain(item, f"{where}.{key}".lstrip(".")) for key, item in zip(keys, value.values(), strict=True)
        }
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
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise ConfigError(f"{where}: an integer of {value.bit_length()} bits: at most {MOST_BITS} are accepted")
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        return [_plain(item, f"{where}[{number}]") for number, item in enumerate(value)]
    raise ConfigError(
        f"{where or 'the configuration'}: must be a number, a text, true or false, a list or a table, "
        f"got {type(value).__name__} {value!r:.80}"
    )


def with_absolute_paths(values: Mapping, base_dir: str | Path | None) -> dict:
    """Return a plain copy for a file elsewhere: what lies next to the configuration's own file gets its whole path.

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
    live = f"{section}.{key}" in _LIVE or (key == "preset" and value is not None)
    # a table of seasons has its line too: JSON is YAML on one line
    default = f"{key}: {json.dumps(value)}" if isinstance(value, Mapping) else dump_yaml({key: value}).rstrip()
    line = f"{'    ' if section else ''}{'' if live else '# '}{default}"
    unit = f"[{unit_of(option)}] " if unit_of(option) else ""
    choices = f"{' | '.join(choices_of(option))}; " if choices_of(option) else ""
    return f"{line:<42} # {unit}{choices}{option.description}"
