"""The table of a background: gammapy reads it back, in GADF's unit and with its cards."""

from __future__ import annotations

import sys
from subprocess import run

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from gammapy.irf import Background2D
from numpy.testing import assert_allclose

from dask_bkg.dl3.attach import write_background
from dask_bkg.dl3.background import background_table
from dask_bkg.schema import Edges

EDGES = Edges(np.geomspace(0.1, 100, 7), np.linspace(0, 2.5, 6))


def rates(edges):
    """Rates that differ in every bin, s-1 TeV-1 sr-1."""
    return np.random.default_rng(1).lognormal(0, 3, edges.shape)


@pytest.mark.parametrize("shape", [(6, 5), (5, 5), (1, 5), (6, 1)])
def test_a_file_gives_the_same_model_back(tmp_path, shape):
    edges = Edges(np.geomspace(0.1, 100, shape[0] + 1), np.linspace(0, 2.5, shape[1] + 1))
    path = tmp_path / "background.fits"
    write_background(path, background_table(rates(edges), edges))
    again = Background2D.read(path, hdu="BACKGROUND")
    assert_allclose(again.quantity.to_value("s-1 TeV-1 sr-1"), rates(edges), rtol=1e-12)
    assert_allclose(again.axes["energy"].edges.to_value("TeV"), edges.energy, rtol=1e-12)
    assert_allclose(again.axes["offset"].edges.to_value("deg"), edges.offset, rtol=1e-12, atol=1e-12)
    assert again.unit == u.Unit("s-1 MeV-1 sr-1")


def test_the_table_is_in_the_unit_and_has_the_cards_of_gadf(tmp_path):
    path = tmp_path / "background.fits"
    write_background(path, background_table(rates(EDGES), EDGES))
    with fits.open(path) as hdus:
        header, columns = hdus[1].header, hdus[1].columns
        assert_allclose(hdus[1].data["BKG"][0].T * 1e6, rates(EDGES), rtol=1e-12)
    cards = {
        "EXTNAME": "BACKGROUND",
        "HDUCLASS": "GADF",
        "HDUVERS": "0.3",
        "HDUCLAS1": "RESPONSE",
        "HDUCLAS2": "BKG",
        "HDUCLAS3": "FULL-ENCLOSURE",
        "HDUCLAS4": "BKG_2D",
        "FOVALIGN": "RADEC",
    }
    assert {key: header.get(key) for key in cards} == cards
    assert set(columns.names) == {"ENERG_LO", "ENERG_HI", "THETA_LO", "THETA_HI", "BKG"}
    assert u.Unit(columns["BKG"].unit) == u.Unit("s-1 MeV-1 sr-1")
    assert (u.Unit(columns["ENERG_LO"].unit), u.Unit(columns["THETA_HI"].unit)) == (u.TeV, u.deg)


def test_more_cards_are_written_with_their_comments():
    cards = {"BKGNRUNS": (12, "runs that contribute"), "CREATOR": ("us", "")}
    header = background_table(rates(EDGES), EDGES, cards).header
    assert header["BKGNRUNS"] == 12
    assert header.comments["BKGNRUNS"] == "runs that contribute"
    assert header["CREATOR"] == "us"


def test_workers_that_write_need_no_gammapy():
    """It takes them seconds to load, and 100 MB."""
    code = "import sys, dask_bkg.products, dask_bkg.lazy.runs; sys.exit('gammapy' in sys.modules)"
    assert run([sys.executable, "-c", code], check=False).returncode == 0
