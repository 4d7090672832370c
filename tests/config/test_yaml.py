"""YAML in and out, its traps, the plain dictionary and the generated template."""

from __future__ import annotations

import json
import re
import time
import tracemalloc
from datetime import date
from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
import yaml
from astropy.table import Column, MaskedColumn, Table
from hypothesis import given
from hypothesis import strategies as st

from dask_bkg.config import parse_config
from dask_bkg.config.models import SECTIONS, Config
from dask_bkg.config.yaml import default_config, dump_yaml, parse_yaml, plain, read_yaml, template
from dask_bkg.errors import ConfigError

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False)
    | st.text(max_size=12)
    | st.sampled_from(["1e-9", "020136", "089", "12:30:00", "2009-09-14", "yes", "null", "0x1F", "1_000", ".5", "~"])
)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-9", 1e-9),
        ("1E5", 1e5),
        ("-2.5e+3", -2500.0),
        ("3", 3),
        ("-3", -3),
        ("0", 0),
        ("0.5", 0.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("1_000", 1000),
        ('"020136"', "020136"),
        ("5:34:31", "5:34:31"),
        ("2009-09-14", "2009-09-14"),
        ("100 GeV", "100 GeV"),
        ("yes", True),
        ("~", None),
        ("1e-9 TeV", "1e-9 TeV"),
    ],
)
def test_scalars_mean_what_they_look_like(text, value):
    read = parse_yaml(f"key: {text}")["key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("text", ["020136", "-01", "00", "089", "0_7"])
def test_leading_zero_is_refused_with_line_and_remedy(text):
    with pytest.raises(ConfigError, match=rf"line 3: the number {text} begins with a zero.*in quotes"):
        parse_yaml(f"run_selection:\n  runlist:\n    - {text}\n")


def test_leading_zero_in_a_key_is_refused():
    with pytest.raises(ConfigError, match="write 20136, or"):
        parse_yaml("background_selection: {bkg_runlist: {020136: [1]}}")


def test_leading_zero_of_a_negative_number():
    with pytest.raises(ConfigError, match='write -1, or "-01" in quotes'):
        parse_yaml("binning: {off_min: -01}")


def test_duplicate_key_is_refused_with_its_line():
    with pytest.raises(ConfigError, match="line 3: the key e_min is given twice"):
        parse_yaml("binning:\n  e_min: 0.1\n  e_min: 0.2\n")
    with pytest.raises(ConfigError, match="line 2: the key io is given twice"):
        parse_yaml("io: {}\nio: {}\n")


def test_merge_may_be_overridden():
    content = parse_yaml("a: &base {x: 1, y: 2}\nb: {<<: *base, y: 3}\n")
    assert content["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("io: [1, 2", "line 1"),
        ("io:\n\tin_dir: a\n", "line 2"),
        ("- 1\n- 2\n", "table of sections"),
        ("just text", "table of sections"),
        ("a: 1\n---\nb: 2\n", "document"),
        ("a: !!python/object/apply:os.getcwd []\n", "line 1"),
        ("[1, 2]: 3\n", "table of sections|unhashable|line 1"),
        ("a: \x00", "not valid YAML"),
    ],
)
def test_broken_yaml_is_a_config_error(text, match):
    with pytest.raises(ConfigError, match=match):
        parse_yaml(text, "my.yaml")


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("binning: {e_min: 01}\n")
    with pytest.raises(ConfigError, match=r"my\.yaml, line 1"):
        read_yaml(path)
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)
    path.write_bytes(b"a: \xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(path)


def test_empty_file_is_an_empty_configuration(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("---\n# nothing\n")
    assert read_yaml(path) == {}


@given(st.dictionaries(st.text(max_size=8), TREES, max_size=5))
@pytest.mark.slow
def test_round_trip(tree):
    text = dump_yaml(tree)
    assert parse_yaml(text) == tree
    # Another program's reader must not be misled either.
    assert yaml.safe_load(text) == tree
    assert dump_yaml(parse_yaml(text)) == text


def test_dump_keeps_the_order_and_short_lists_on_a_line():
    text = dump_yaml({"z": {"b": [1, 2], "a": [[1, 2], [3, 4]]}, "a": 1})
    assert text == "z:\n  b: [1, 2]\n  a:\n  - [1, 2]\n  - [3, 4]\na: 1\n"


def test_dump_breaks_long_lists_and_no_texts():
    path, escaped = "/archive" * 20, "\u00e9\x01" * 30 + " 0" * 30
    text = dump_yaml({"io": {"in_dir": path}, "target": escaped, "runlist": list(range(64000, 64100))})
    assert f"  in_dir: {path}\n" in text
    lines = text.splitlines()
    assert lines[3].startswith("runlist: [64000, 64001,")
    assert len(lines) == 3 + 7
    assert max(len(line) for line in lines[3:]) < 120
    assert not [line for line in lines if line != line.rstrip()]
    assert parse_yaml(text)["target"] == yaml.safe_load(text)["target"] == escaped


def test_plain_turns_numpy_astropy_and_paths_into_python():
    table = Table({"OBS_ID": np.array([23523, 23526], dtype=np.int64)})
    given_values = {
        "column": table["OBS_ID"],
        "own column": Column([1, 2], unit="h"),
        "masked": MaskedColumn([1, 2], mask=[False, True]),
        "array": np.arange(3, dtype=">i4"),
        "scalars": (np.int32(1), np.float64(0.5), np.bool_(True), np.str_("a"), np.array(7)),
        "path": Path("a") / "b",
        "range": range(2),
        "day": date(2009, 9, 14),
        "energy": 100 * u.GeV,
        "radii": [0.5, 30] * u.arcmin,
        np.int64(5): {"deep": [np.float32(0.5)]},
    }
    result = plain(given_values)
    assert result == {
        "column": [23523, 23526],
        "own column": [1, 2],
        "masked": [1, None],
        "array": [0, 1, 2],
        "scalars": [1, 0.5, True, "a", 7],
        "path": "a/b",
        "range": [0, 1],
        "day": "2009-09-14",
        "energy": "100.0 GeV",
        "radii": ["0.5 arcmin", "30.0 arcmin"],
        5: {"deep": [0.5]},
    }
    # Nothing of NumPy is left: the plain writers take it.
    json.dumps(result)
    yaml.safe_dump(result)
    assert [type(item) for item in result["scalars"]] == [int, float, bool, str, int]
    assert type(next(reversed(result))) is int


def test_plain_is_a_deep_copy():
    before = {"a": {"b": [1]}}
    copy = plain(before)
    copy["a"]["b"].append(2)
    assert before == {"a": {"b": [1]}}


def test_plain_names_the_key_of_what_it_cannot_take():
    with pytest.raises(ConfigError, match=r"io\.data_dirs\[1\]: must be .* got object"):
        plain({"io": {"data_dirs": ["a", object()]}})


def test_default_config_has_every_key_and_sets_nothing():
    config = default_config()
    assert list(config) == list(Config.model_fields)
    for name, model in SECTIONS.items():
        assert list(config[name]) == list(model.model_fields)
    set_leaves = {
        f"{name}.{key}": value for name in SECTIONS for key, value in config[name].items() if value is not None
    }
    assert set_leaves == {"io.from_run": False, "background_selection.smooth": False}
    assert parse_config(config).effective() == parse_config({}).effective()


def test_default_config_is_new_each_time():
    default_config()["io"]["in_dir"] = "a"
    assert default_config()["io"]["in_dir"] is None


def test_default_config_lets_presets_through():
    config = default_config()
    config["preset"] = "gammapy-tools"
    assert parse_config(config).model.fill is False


def test_template_unchanged_is_the_defaults():
    content = parse_yaml(template())
    assert set(content) == set(SECTIONS)
    assert parse_config(content).effective() == parse_config({}).effective()


def uncommented(text: str) -> str:
    return re.sub(r"^(\s*)# (?=\w+:( |$))", r"\1", text, flags=re.MULTILINE)


def test_template_uncommented_is_every_option_at_its_default():
    content = parse_yaml(uncommented(template()))
    assert list(content) == list(Config.model_fields)
    for name, model in SECTIONS.items():
        assert list(content[name]) == list(model.model_fields), name
    assert parse_config(content).effective() == parse_config({}).effective()


@pytest.mark.parametrize(
    "line",
    [
        r"    # e_min: 0.1 +# \[TeV\] lowest energy",
        r"    # az_diff: null +# \[deg\] largest difference in azimuth",
        r"    # attach: copy +# copy \| index; ",
        r"    # catalogs: \[gammacat, 3hwc\] +# gammacat \| 3hwc; ",
        r"    search_datastore: null +# datastore",
        r"    # path: null +# a zarr directory, may be shared; null is runs\.zarr in io\.results_dir",
        r"    # pixel: 0\.2 +# \[deg\] field pixels of the fine histogram",
        r"    # rank: conditions +# conditions \| kl \| kl-conditions \| likelihood \| .* \| none; what puts",
        r"    # exclude_same_target: false +# no run of the same target contributes",
        r"    # split_every: 8 +# stacks that one task of the tree adds up",
        r"    # block: null +# runs a task where runs meet runs; null goes by the archive",
        r"    # store_KL: false +# write the divergences of each target's candidates to io\.results_dir/kl",
        r"    # divergence: shape +# shape \| document; ",
        r"# cluster: null +# threads, local \(worker processes\), slurm, or a scheduler",
        r"    # lifetime: null +# \[min\] a worker's",
    ],
)
def test_template_shows_default_unit_and_meaning(line):
    assert re.search(f"^{line}", template(), flags=re.MULTILINE)


def test_every_option_has_a_meaning_on_one_line():
    for model in (Config, *SECTIONS.values()):
        for key, option in model.model_fields.items():
            if key not in SECTIONS:
                assert option.description, f"{model.__name__}.{key}"
                assert "\n" not in option.description


# -- what would take for ever, or all memory -----------------------------------------------------------------------

LAUGHS = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGED = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 10)}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, r"line 6: with what aliases \(\*name\) repeat, there are more than 200000 values"),
        (MERGED, r"line 6: with what aliases \(\*name\) repeat, there are more than 200000 values"),
        ("io:\n  a: &a [*a]", r"line 2: the alias \*a stands in what it repeats"),
        ("io: {}\na: " + "[" * 10_000, "line 2: more than 20 tables and lists within each other"),
        ("a: " + "{a: " * 10_000, "line 1: more than 20 tables and lists"),
        ("? " * 10_000, "line 1: more than 20 tables and lists"),
        ("\n".join(" " * i + "a:" for i in range(1000)), "line 20: more than 20 tables and lists"),
        ("\nio:\n  x: " + "9" * 5000, r"line 3: the integer 9999999999\.\.\. has 5000 characters: at most 100"),
        ("\nio: {x: -0x" + "f" * 5000 + "}", r"line 2: the integer -0x.* has 5003 characters: at most 100"),
        ("\n" + "k" * 500 + ": 1", r"line 2: the key k{20}\.\.\. has more than 200 characters"),
        ("a: 1\n" * 200_001, "more than 200000 lines and commas"),
        ("# " + "x" * 4_000_000, "larger than 4 MB"),
    ],
    ids=["laughs", "merged", "itself", "lists", "tables", "keys", "block", "digits", "hex", "key", "lines", "size"],
)
def test_a_file_that_would_need_time_and_memory_is_refused_at_once(tmp_path, text, words):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}.*{words}") as caught:
        read_yaml(path)
    assert time.process_time() - start < 5
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
    assert len(str(caught.value)) < len(str(path)) + 200


def test_what_has_no_end_is_no_configuration():
    with pytest.raises(ConfigError, match="larger than 4 MB"):
        read_yaml("/dev/zero")


def test_aliases_that_repeat_little_are_taken():
    text = "base: &base {e_min: 0.1}\nbinning: {<<: *base, e_max: 10}\nagain: [*base, *base]"
    assert parse_yaml(text)["binning"] == {"e_min": 0.1, "e_max": 10}
    assert parse_yaml(text)["again"] == [{"e_min": 0.1}] * 2


def test_an_error_has_an_end():
    """Many problems, and one with a long value."""
    with pytest.raises(ConfigError, match="1000 problems") as caught:
        parse_config({"io": {f"key{i}": 1 for i in range(1000)}})
    assert str(caught.value).endswith("\n  - and 960 more")
    with pytest.raises(ConfigError, match="cluster: ") as caught:
        parse_config({"cluster": "x" * 100_000})
    assert len(str(caught.value)) < 1200
    with pytest.raises(ConfigError, match=r"binning\.e_min: an integer of 16610 bits"):
        parse_config({"binning": {"e_min": 10**5000}})
