"""What a preset sets, and that its text says so."""

from __future__ import annotations

import re

import pytest

from dask_bkg.config import parse_config, presets
from dask_bkg.config.presets import ABOUT, PRESETS
from dask_bkg.config.yaml import parse_yaml, template


def entries(about: str) -> dict[str, list[str]]:
    """Entries of a text: the option that comes first in each, and the lines below it."""
    found: dict[str, list[str]] = {}
    for line in about.splitlines():
        if option := re.match(r"([a-z_]+\.\w+)", line):
            last = found.setdefault(option[1], [line])
        elif line.startswith("    "):
            last.append(line.strip())
    return found


def test_the_text_of_a_preset_is_its_docstring():
    assert ABOUT["gammapy-tools"].splitlines()[0] == presets.gammapy_tools.__doc__.splitlines()[0]
    assert ABOUT["veritas"].splitlines()[0] == presets.veritas.__doc__.splitlines()[0]
    assert list(ABOUT) == list(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_text_names_every_option_and_its_value(preset):
    heads = " ".join(lines[0] for lines in entries(ABOUT[preset]).values())
    for section, keys in PRESETS[preset].items():
        assert f"{section}." in heads
        for key, value in keys.items():
            word = str(value).lower() if isinstance(value, bool) else value
            said = rf"\b{key}\b" if isinstance(value, dict) else rf"\b{key}: {word}(,| |$)"
            assert re.search(said, heads), f"{section}.{key}: {value}"


def test_the_text_names_the_default_that_a_user_can_go_over_to():
    """A word after *Default:* is the value of the option without the preset."""
    said = 0
    for option, lines in entries(ABOUT["gammapy-tools"]).items():
        section, key = option.split(".")
        word = re.search(r"Default: (\w+),", " ".join(lines))
        if word:
            default = getattr(getattr(parse_config({}), section), key)
            assert word[1] == (str(default).lower() if isinstance(default, bool) else default), option
            said += 1
    assert said == 9


@pytest.mark.parametrize("preset", PRESETS)
def test_the_template_of_a_preset_is_the_preset(preset):
    text = template(preset)
    expected = parse_config({"preset": preset}).effective()
    assert parse_config(parse_yaml(text)).effective() == expected
    # and so it is with the hash of every option taken away
    uncommented = re.sub(r"^(    )?# (?=\w+: )", r"\1", text, flags=re.MULTILINE)
    assert len(uncommented) < len(text) - 100
    assert parse_config(parse_yaml(uncommented)).effective() == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_the_template_of_a_preset_has_its_text(preset):
    comments = [line[2:] for line in template(preset).splitlines() if re.match("# |#$", line)]
    start = comments.index(ABOUT[preset].splitlines()[0])
    assert "\n".join(comments[start:]).startswith(ABOUT[preset])
    assert ABOUT[preset] not in "\n".join(line[2:] for line in template().splitlines())
