"""`dask-bkg validate`: exit statuses, files, and a page that needs nothing else."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from astropy.table import Table
from click.testing import CliRunner
from helpers.simulated_validation import FIRST, simulate

from dask_bkg.cli import main
from dask_bkg.config.yaml import dump_yaml
from dask_bkg.report.validation_files import write_validation
from dask_bkg.validation import summarise

pytestmark = pytest.mark.slow  # whole jobs, or simulations of many skies


def call(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments), "--no-progress"])


@pytest.fixture
def yaml_file(job, four_runs, tmp_path):
    """Write a configuration of stacks of four runs: ``yaml_file(name, section={...})``."""

    def write(name="job.yaml", **sections):
        path = tmp_path / name
        path.write_text(
            dump_yaml(job(four_runs, **{**sections, "io": {"from_run": False, **sections.get("io", {})}}))
        )
        return path

    return write


class Page(HTMLParser):
    """Anchors, links, pictures and whatever a page would have to load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids, self.links, self.images, self.loads, self.open = set(), [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        told = dict(attrs)
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)
        if "id" in told:
            self.ids.add(told["id"])
        if tag == "a":
            self.links.append(told["href"])
        if tag == "img":
            self.images.append(told["src"])
        if tag in ("script", "link", "iframe"):
            self.loads.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_it_tells_and_writes(yaml_file, tmp_path):
    result = call("validate", yaml_file())
    assert result.exit_code == 0, result.output
    directory = tmp_path / "out" / "results" / "validation"
    assert "4 runs, " in result.output
    assert "backgrounds made without the run" in result.output
    assert f"page: {directory / 'validation.html'}" in result.output
    told = json.loads((directory / "validation.json").read_text())
    assert told["validation"]["runs"] == 4
    assert told["against"] is None
    table = Table.read(directory / "validation.ecsv")
    assert table["obs_id"].tolist() == [64001, 64002, 64003, 64004]
    assert table["threshold"].unit == "TeV"
    assert sum(table["events"]) == told["validation"]["events"]


def test_against_a_configuration_and_a_directory(yaml_file, tmp_path):
    first = yaml_file()
    assert call("run", first).exit_code == 0
    out = tmp_path / "elsewhere"
    for against, name in ((yaml_file("other.yaml", binning={"mode": "3d"}), "other"), (tmp_path / "out", "out")):
        result = call("validate", first, "--against", against, "--out", out)
        assert result.exit_code == 0, result.output
        told = json.loads((out / "validation.json").read_text())
        assert [row["name"] for row in told["comparison"]] == ["job", name]
        assert name in result.output
    assert told["comparison"][1]["norm"]["value"] == pytest.approx(0, abs=1e-9)


def test_folds_and_targets(yaml_file, tmp_path):
    result = call("validate", yaml_file(), "--folds", 2)
    assert result.exit_code == 0, result.output
    assert "without its fold (2)" in result.output
    assert call("validate", yaml_file(), "--folds", 1).exit_code == 2


def test_some_runs_that_fail_are_status_3(yaml_file, four_runs, run_path):
    run_path(four_runs, 64002).write_bytes(b"no FITS file")
    result = call("validate", yaml_file())
    assert result.exit_code == 3, result.output
    assert "1 runs could not be used" in result.stderr
    assert "64002" in result.stderr


def test_nothing_to_be_done_is_status_1(yaml_file, tmp_path):
    result = call("validate", yaml_file(validation={"threshold": 1e6}))
    assert result.exit_code == 1
    assert "no run could be validated" in result.stderr
    assert call("validate", yaml_file(), "--against", tmp_path).exit_code == 1
    assert call("validate", yaml_file(), "--against", tmp_path / "absent").exit_code == 2


def test_a_run_from_itself_is_told_to_be_none(yaml_file, tmp_path):
    result = call("validate", yaml_file(io={"from_run": True}))
    assert result.exit_code == 0, result.output
    assert "NOT HELD OUT" in result.output
    page = (tmp_path / "out" / "results" / "validation" / "validation.html").read_text()
    assert "Not held out" in page


# -- the page --------------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_else(tmp_path):
    done = simulate(60, model=lambda i, mu: mu * (1.3 if i == 7 else 1.0))
    done.name, done.failed = "a <b>name</b>", {1: "run 1: its <file> is lost"}
    done.against = simulate(60)
    done.against.name = "other"
    text = write_validation(done, tmp_path)
    html = (tmp_path / "validation.html").read_text()
    page = Page(html)
    assert page.open == []
    assert page.loads == []
    assert not re.search(r"(src|href)=\"(?!data:|#)", html)
    assert "http" not in html.replace("https://", "http://").split("<body>")[0]
    assert len(page.images) == 7
    for image in page.images:
        assert base64.b64decode(image.split(",")[1]).startswith(b"\x89PNG")
    assert "a &lt;b&gt;name" in html
    assert "its &lt;file&gt; is lost" in html
    # the worst one first, and each link leads to numbers
    assert page.links[0] == f"#run-{FIRST + 7}"
    assert {link.removeprefix("#") for link in page.links} <= page.ids
    assert len(page.links) == 40
    assert "The 20 other runs" in html
    assert "1 look wrong" in text


def test_runs_without_a_target_or_a_band_without_events_are_drawn(tmp_path):
    done = simulate(3)
    done.runs["object"] = ("obs_id", np.array(["", "", ""], dtype=object))
    write_validation(done, tmp_path)
    assert "no target" in (tmp_path / "validation.html").read_text()
    # a number that is none is null in JSON
    assert "NaN" not in (tmp_path / "validation.json").read_text()


def test_one_run_has_no_error_over_targets(tmp_path):
    done = simulate(1)
    text = write_validation(done, tmp_path)
    assert "1 runs" in text
    assert np.isnan(summarise(done)["ratio"]["error"])
    assert json.loads((tmp_path / "validation.json").read_text())["validation"]["ratio"]["error"] is None
