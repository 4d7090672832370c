"""The page of a validation: names are escaped wherever they stand, and a value that is missing is an error."""

from __future__ import annotations

import re

import numpy as np
import pytest
from helpers.simulated_validation import FIRST, simulate
from jinja2 import UndefinedError

from dask_bkg.report.validation_page import TEMPLATES, make_page
from dask_bkg.validation import compare, run_columns, summarise

NAME = "<b onclick=\"x\">M 87</b> & 'jet'"


@pytest.fixture(scope="module")
def validation():
    """A validation that is compared with another one; all names in it are `NAME`."""
    validation, other = simulate(4), simulate(4, model=lambda i, mu: 1.1 * mu)
    validation.name, validation.left_out, validation.failed = NAME, NAME, {1: NAME}
    other.name, validation.against = f"against {NAME}", other
    validation.runs["object"] = ("obs_id", np.array([NAME] * 4, dtype=object))
    return validation


@pytest.fixture(scope="module")
def summaries(validation):
    return [summarise(one, draws=10) for one in (validation, validation.against)]


@pytest.fixture(scope="module")
def comparison(validation):
    every = {one.name: one for one in (validation, validation.against)}
    return compare(every, validation.name, draws=10)


@pytest.fixture(scope="module")
def page(validation, summaries, comparison):
    return make_page(validation, summaries, run_columns(validation), comparison)


@pytest.mark.slow
def test_names_are_escaped_once_wherever_they_stand(page):
    escaped = "&lt;b onclick=&#34;x&#34;&gt;M 87&lt;/b&gt; &amp; &#39;jet&#39;"
    assert "<b onclick" not in page
    assert "&amp;lt;" not in page
    # title line and comparison (two names each), left out, two pictures (caption and alt), four runs twice, failed
    assert page.count(escaped) == 2 + 2 + 1 + 2 * 2 + 4 * 2 + 1


def test_the_page_shows_the_numbers_of_the_summary(page, validation, summaries, comparison):
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", page)).replace("\u2212", "-").replace("&plusmn;", "±")
    assert f"4runs, {summaries[0]['events']:_} events".replace("_", " ") in text
    for pair in (comparison[1]["ratio"], *(part["ratio"] for part in (summaries[0], *summaries[0]["bands"]))):
        assert f"{pair['value']:.3f} ± {pair['error']:.3f}" in text
    difference = comparison[1]["raw"]
    assert f"{1e3 * difference['value']:+.2f} ± {1e3 * difference['error']:.2f}" in text
    run = validation.runs.sel(obs_id=FIRST)
    for band, low in enumerate(run["band_min"].values):
        raw = run["predicted"].values[run["energy_band"].values == band].sum()
        observed = run["profile"].values[0, band].sum()
        assert re.search(rf"{low:g} to [\d.]+ TeV {observed:.0f} {raw:.1f} ", text)


def test_a_value_that_is_missing_is_an_error():
    with pytest.raises(UndefinedError, match="'version' is undefined"):
        TEMPLATES.from_string("dask_bkg {{ version }}").render()
