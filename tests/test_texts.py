"""README, changelog, citation and package data: what they name is there."""

from __future__ import annotations

import ast
import importlib.resources
import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest
import yaml

import dask_bkg
from dask_bkg.cli import main
from dask_bkg.config import parse_config
from dask_bkg.config.yaml import parse_yaml

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = ("README.md", "CHANGELOG.md", "benchmarks/README.md", "deploy/README.md")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
BENCHMARKS = sorted(path.name for path in (ROOT / "benchmarks").glob("*.py"))


def blocks(page: str, language: str) -> list[str]:
    """Code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """Commands of dask-bkg in a page: lines of shell blocks, and code in the text that has an argument."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    inline = re.findall(r"`(dask-bkg [^`]+)`", (ROOT / page).read_text())
    return [line for line in [*lines, *inline] if line.startswith("dask-bkg ")]


# -- README and the other pages ------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md", "deploy/README.md"])
def test_commands_and_their_options_are_there(page):
    found = commands(page)
    assert found
    for line in found:
        command: click.Command = main
        words = shlex.split(line, comments=True)[1:]
        while isinstance(command, click.Group):
            assert words[0] in command.commands, line
            command = command.commands[words.pop(0)]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, line


def test_options_in_the_text_are_there():
    """``--folds`` and the like, which stand alone in a sentence."""
    options = {
        option
        for command in main.commands.values()
        for one in (command.commands.values() if isinstance(command, click.Group) else [command])
        for parameter in one.params
        for option in parameter.opts
    }
    alone = set(re.findall(r"`(--[a-z-]+)", README))
    assert alone
    assert alone <= options


@pytest.mark.parametrize("page", ["README.md", "deploy/README.md"])
def test_yaml_is_a_configuration(page):
    inline = re.findall(r"`(\w+: (?:\{.*?\}|[\w.-]+))`", " ".join((ROOT / page).read_text().split()))
    found = [*blocks(page, "yaml"), *inline]
    assert found
    for text in found:
        content = parse_yaml(text)
        known = set(parse_config({}).effective())
        if set(content) <= known:
            parse_config(content)
        else:
            # the option of a section, alone
            sections = [section for section in parse_config({}).effective().values() if isinstance(section, dict)]
            assert any(set(content) <= set(section) for section in sections), text


def test_options_of_sections_are_there():
    """``io.attach`` and the like."""
    effective = parse_config({}).effective()
    named = re.findall(r"`(\w+)\.(\w+)(?:: \w+)?`", README)
    sections = [(section, key) for section, key in named if section in effective]
    assert sections
    assert all(key in {*effective[section], "3d_bkg"} for section, key in sections)


def test_python_uses_public_names():
    code = "\n".join(blocks("README.md", "python"))
    tree = ast.parse(code)
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "dask_bkg"
    }
    imported = re.search(r"from dask_bkg import ([\w, ]+)", " ".join(README.split()))
    assert used
    assert imported
    assert used | set(imported[1].split(", ")) <= set(dask_bkg.__all__)


def test_the_tree_is_that_of_the_package():
    (tree,) = blocks("README.md", "text")
    named = re.findall(r"(?<= )(\w+/|\w+\.py)(?= )", tree)
    there = [path for path in (ROOT / "dask_bkg").iterdir() if path.is_dir() or path.suffix == ".py"]
    names = {path.name + "/" * path.is_dir() for path in there if not path.name.startswith("__")}
    assert sorted(named) == sorted(names)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    headings = {
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in re.findall(r"^#+ (.*)", text, re.M)
    }
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        if link.startswith("#"):
            assert link[1:] in headings, link
        else:
            assert (ROOT / page).parent.joinpath(link).exists(), link


def test_measured_values_name_scripts_that_are_there():
    """Each script has values, and each name of a script or a test is one."""
    text = (ROOT / "benchmarks" / "README.md").read_text()
    named = set(re.findall(r"\b((?:bench_\w+|hess)\.py)", text))
    assert named == {name for name in BENCHMARKS if name.startswith(("bench_", "hess"))}
    tests = re.findall(r"`(tests/[\w/.]+)`", text)
    assert tests
    assert all((ROOT / path).exists() for path in tests)
    asked = re.findall(r"\| `(\w+\.py)` \|$", README, re.M)
    assert len(asked) == 5
    assert all(list(ROOT.glob(f"benchmarks/{name}")) or list(ROOT.glob(f"tests/**/{name}")) for name in asked)


# -- changelog and citation ----------------------------------------------------------------------------------


def test_the_changelog_has_this_version():
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == "[Unreleased]"
    assert re.fullmatch(rf"\[{re.escape(dask_bkg.__version__)}\] - \d{{4}}-\d\d-\d\d", headings[1])
    parts = set(re.findall(r"^### (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M))
    assert parts <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_citation_has_what_its_format_requires():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["authors"] == PROJECT["project"]["authors"]
    assert citation["type"] == "software"
    for key in ("version", "license", "keywords"):
        assert citation[key] == PROJECT["project"][key], key


# -- package data --------------------------------------------------------------------------------------------


def test_the_package_says_that_it_has_types():
    """In an installed package as well: CI installs it, and does not take this directory."""
    assert importlib.resources.files("dask_bkg").joinpath("py.typed").is_file()


def test_every_file_that_is_no_module_is_package_data():
    data = PROJECT["tool"]["setuptools"]["package-data"]
    named = {
        path
        for package, patterns in data.items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    files = {path for path in (ROOT / "dask_bkg").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    others = {path for path in files if path.suffix != ".py"}
    assert ROOT / "dask_bkg" / "py.typed" in others
    assert others <= named
