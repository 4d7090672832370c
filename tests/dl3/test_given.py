"""Backgrounds that runs have already: in whatever units and order of axes, as gammapy reads them."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from gammapy.data import DataStore

from dask_bkg.binning import Edges, FieldEdges
from dask_bkg.dl3.attach import attach_background
from dask_bkg.dl3.background import background_table
from dask_bkg.dl3.creator import MIRRORED
from dask_bkg.dl3.given import read_given
from dask_bkg.dl3.index import read_datastore, write_index
from dask_bkg.errors import RunError

FIRST = 64001
RINGS = Edges(np.geomspace(0.1, 10, 5), np.linspace(0, 2.5, 4))
FIELD = FieldEdges(np.geomspace(0.1, 10, 5), np.linspace(-2.5, 2.5, 8))


@pytest.fixture
def attached(four_runs, run_path):
    """Attach a background to the first run and name it in the index: ``attached(hdu)``."""

    def attach(hdu):
        path, kind = run_path(four_runs, FIRST), "bkg_3d" if "DETX_LO" in hdu.columns.names else "bkg_2d"
        attach_background(path, path, hdu)
        store = read_datastore(four_runs)
        table = store.hdu.copy()
        if not (table["HDU_TYPE"][table["OBS_ID"] == FIRST] == "bkg").any():
            row = dict(zip(table.colnames, table[table["OBS_ID"] == FIRST][0], strict=True))
            table.add_row({**row, "HDU_TYPE": "bkg", "HDU_CLASS": kind, "HDU_NAME": "BACKGROUND"})
        write_index(four_runs, table, store.obs)
        return read_datastore(four_runs)

    return attach


def rates(edges) -> np.ndarray:
    return np.random.default_rng(1).uniform(1, 2, edges.shape)


def test_rings_and_fields_come_back(attached, four_runs):
    for edges, alignment in ((RINGS, "radec"), (FIELD, "altaz")):
        rate = rates(edges)
        given = read_given(attached(background_table(rate, edges, alignment=alignment.upper())), FIRST)
        np.testing.assert_allclose(given.rate, rate, rtol=1e-12)
        assert given.alignment == alignment
        np.testing.assert_allclose(given.axes[-1], edges[1])
        assert given.tiny == pytest.approx(np.finfo(float).tiny * 1e6)


def test_an_older_order_of_axes_and_other_units(attached, four_runs):
    """As files of H.E.S.S. have it: energy slowest; single precision; a rate per TeV; a unit that nobody knows."""
    rate = rates(FIELD)
    hdu = background_table(rate, FIELD)
    for unit, factor in (("s-1 TeV-1 sr-1", 1.0), ("1/s/MeV/sr", 1e6), ("cows", 1e6), ("", 1e6)):
        values = rate.swapaxes(1, 2)[np.newaxis].astype(np.float32)
        axes = [column for column in hdu.columns if column.name != "BKG"]
        columns = [fits.Column(c.name, c.format, c.unit, array=hdu.data[c.name]) for c in axes]
        dim = str(values.shape[:0:-1]).replace(" ", "")
        columns.append(fits.Column("BKG", f"{rate.size}E", unit, dim=dim, array=values))
        other = fits.BinTableHDU.from_columns(columns)
        other.header["FOVALIGN"] = "RADEC"
        given = read_given(attached(other), FIRST)
        np.testing.assert_allclose(given.rate, factor * rate, rtol=1e-6)
        assert given.tiny == pytest.approx(factor * float(np.finfo(np.float32).tiny))


def test_a_mirrored_run_is_read_as_gammapy_does(attached, four_runs, edit_run, run_path):
    rate = rates(FIELD)
    store = attached(background_table(rate, FIELD))
    edit_run(run_path(four_runs, FIRST), lambda hdus: hdus["EVENTS"].header.update(MIRRORED))
    assert DataStore.from_dir(four_runs).obs(FIRST).bkg.fov_alignment == "REVERSE_LON_RADEC"
    np.testing.assert_allclose(read_given(store, FIRST).rate, rate[..., ::-1], rtol=1e-12)


@pytest.mark.parametrize(("column", "unit"), [("BKG", "m"), ("THETA_LO", "Crab"), ("ENERG_LO", "deg")])
def test_units_of_something_else_are_refused_by_name(attached, four_runs, column, unit):
    hdu = background_table(rates(RINGS), RINGS)
    hdu.columns[column].unit = unit
    with pytest.raises(RunError, match=rf"BACKGROUND .*column {column} is in the unit '{unit}'.*correct it"):
        read_given(attached(hdu), FIRST)


def test_what_is_missing_is_told(attached, four_runs, edit_run, run_path):
    with pytest.raises(RunError, match=r"has no row of type 'bkg'"):
        read_given(read_datastore(four_runs), FIRST)
    store = attached(background_table(rates(RINGS), RINGS))

    def shorten(hdus):
        hdus["BACKGROUND"].columns["THETA_HI"].name = "THETA_TOP"

    edit_run(run_path(four_runs, FIRST), shorten)
    with pytest.raises(RunError, match="has no column THETA_HI"):
        read_given(store, FIRST)
