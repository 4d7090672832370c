"""The table of a background: gammapy reads it back, in GADF's unit and with its cards."""

from __future__ import annotations

import sys
from subprocess import run

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from gammapy.irf import Background2D, Background3D
from numpy.testing import assert_allclose

from dask_bkg.binning import Edges, FieldEdges
from dask_bkg.dl3.attach import write_background
from dask_bkg.dl3.background import background_table

EDGES = Edges(np.geomspace(0.1, 100, 7), np.linspace(0, 2.5, 6))
FIELD = FieldEdges(EDGES.energy, np.linspace(-2.5, 2.5, 6))


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


# --- pixels of the field -----------------------------------------------------------------------------------


@pytest.mark.parametrize("alignment", ["RADEC", "ALTAZ"])
@pytest.mark.parametrize("shape", [(6, 5), (5, 5), (1, 5), (6, 1), (1, 1)])
def test_a_file_gives_the_same_field_back(tmp_path, shape, alignment):
    """Also where gammapy cannot tell the axes from the shape: it says "Ambiguous", and takes them as they are."""
    edges = FieldEdges(np.geomspace(0.1, 100, shape[0] + 1), np.linspace(-2, 3, shape[1] + 1))
    path = tmp_path / "background.fits"
    write_background(path, background_table(rates(edges), edges, alignment=alignment))
    again = Background3D.read(path, hdu="BACKGROUND")
    assert again.axes.names == ["energy", "fov_lon", "fov_lat"]
    assert_allclose(again.quantity.to_value("s-1 TeV-1 sr-1"), rates(edges).swapaxes(1, 2), rtol=1e-12)
    assert_allclose(again.axes["energy"].edges.to_value("TeV"), edges.energy, rtol=1e-12)
    for axis in ("fov_lon", "fov_lat"):
        assert_allclose(again.axes[axis].edges.to_value("deg"), edges.fov, rtol=1e-12, atol=1e-12)
    assert again.fov_alignment.value == alignment


def test_the_table_of_a_field_has_the_axes_and_cards_of_gadf(tmp_path):
    """GADF: "Recommended axis order: ENERGY, DETX, DETY", and of those the first runs fastest."""
    path = tmp_path / "background.fits"
    write_background(path, background_table(rates(FIELD), FIELD, {"N_RUNS": (3, "runs")}))
    with fits.open(path) as hdus:
        header, columns = hdus[1].header, hdus[1].columns
        assert_allclose(hdus[1].data["BKG"][0][3, 1, 4] * 1e6, rates(FIELD)[4, 3, 1], rtol=1e-12)
        for name, part in (("DETX_LO", FIELD.fov[:-1]), ("DETX_HI", FIELD.fov[1:]), ("DETY_LO", FIELD.fov[:-1])):
            assert_allclose(hdus[1].data[name][0], part)
    assert columns.names == ["ENERG_LO", "ENERG_HI", "DETX_LO", "DETX_HI", "DETY_LO", "DETY_HI", "BKG"]
    assert [columns[name].unit for name in ("ENERG_LO", "DETX_LO", "DETY_HI")] == ["TeV", "deg", "deg"]
    assert columns["BKG"].dim == "(6,5,5)"
    assert u.Unit(columns["BKG"].unit) == u.Unit("s-1 MeV-1 sr-1")
    assert (header["HDUCLAS4"], header["FOVALIGN"], header["N_RUNS"]) == ("BKG_3D", "RADEC", 3)
    assert "MIRRORED" not in header


def test_a_mirrored_field_is_the_same_one_read_from_the_other_side(tmp_path):
    edges = FieldEdges(FIELD.energy, np.array([-2.0, -1.0, 0.0, 2.0]))
    path = tmp_path / "background.fits"
    write_background(path, background_table(rates(edges), edges, mirror=True))
    again = Background3D.read(path, hdu="BACKGROUND")
    assert_allclose(again.axes["fov_lon"].edges.to_value("deg"), [-2, 0, 1, 2], atol=1e-12)
    assert_allclose(again.axes["fov_lat"].edges.to_value("deg"), edges.fov, atol=1e-12)
    lon, lat = np.meshgrid([-1.5, -0.5, 1.0], [-1.5, -0.5, 1.0])
    energy = again.axes["energy"].center[:, None, None]
    found = again.evaluate(energy=energy, fov_lon=-lon * u.deg, fov_lat=lat * u.deg)
    assert_allclose(found.to_value("s-1 TeV-1 sr-1"), rates(edges), rtol=1e-10)
    assert fits.getval(path, "MIRRORED", "BACKGROUND") is True
    assert fits.getval(path, "FOVALIGN", "BACKGROUND") == "RADEC"


def test_alignments_that_cannot_be_written():
    with pytest.raises(ValueError, match="accepted are RADEC and ALTAZ"):
        background_table(rates(FIELD), FIELD, alignment="GALACTIC")
    with pytest.raises(ValueError, match="cannot be written mirrored"):
        background_table(rates(FIELD), FIELD, alignment="ALTAZ", mirror=True)


@pytest.mark.slow
def test_workers_that_write_need_no_gammapy():
    """It takes them seconds to load, and 100 MB."""
    code = "import sys, dask_bkg.output.write, dask_bkg.lazy.runs; sys.exit('gammapy' in sys.modules)"
    assert run([sys.executable, "-c", code], check=False).returncode == 0
