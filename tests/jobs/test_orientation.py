"""Every side of a 3D background on its side: through file, index, DataStore and MapDatasetMaker onto the sky.

The model is exact in what gammapy does with it (its logarithm is linear in each coordinate, as gammapy interpolates),
so that the predicted map can be compared with an integral that no file has gone through.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import AltAz, EarthLocation, SkyCoord
from astropy.io import fits
from astropy.time import Time
from astropy.utils import iers
from gammapy.data import DataStore, Observation
from gammapy.datasets import MapDataset
from gammapy.irf import Background3D, FoVAlignment
from gammapy.makers import MapDatasetMaker
from gammapy.maps import MapAxis, WcsGeom, WcsNDMap
from gammapy.utils.coordinates import FoVAltAzFrame, FoVICRSFrame
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from dask_bkg.binning import FieldEdges
from dask_bkg.dl3.attach import attach_background, reads_reversed, write_background
from dask_bkg.dl3.background import background_table
from dask_bkg.dl3.index import read_datastore, write_index
from dask_bkg.dl3.index_rows import background_rows, linked_rows, placed_rows
from dask_bkg.simulate import simulate_archive

pytestmark = pytest.mark.slow  # whole jobs, or simulations of many skies

OBS_ID = 64001
EDGES = FieldEdges(np.geomspace(0.1, 100, 13), np.round(np.arange(-12.5, 13) * 0.2, 12))
MAP_ENERGY = MapAxis.from_energy_bounds("0.3 TeV", "10 TeV", nbin=3)
INDEX, AWAY = 2.7, 1.4 * u.deg
SASH = {"CREATOR": "SASH FITS::EventListWriter", "HDUVERS": "0.2"}

VERITAS = EarthLocation(lon=-110.952 * u.deg, lat=31.675 * u.deg, height=1268 * u.m)
HESS = EarthLocation(lon=16.5002 * u.deg, lat=-23.2718 * u.deg, height=1835 * u.m)


class Case(NamedTuple):
    """A run: site, pointing [deg], start, and how long it takes [s]."""

    site: EarthLocation
    ra: float
    dec: float
    start: Time
    ontime: float = 1680.0

    @property
    def pointing(self) -> SkyCoord:
        return SkyCoord(self.ra, self.dec, unit="deg")

    def horizon(self, part: float | NDArray) -> AltAz:
        """The pointing after a part of the run."""
        obstime = self.start + np.asarray(part) * self.ontime * u.s
        return self.pointing.transform_to(AltAz(obstime=obstime, location=self.site))


def case_at(site: EarthLocation, ra: float, dec: float, hour_angle: float) -> Case:
    """A run with an hour angle [h] in its middle."""
    day = Time(56250.0, format="mjd", scale="utc")
    wait = ra / 15 + hour_angle - day.sidereal_time("mean", site.lon).hour
    return Case(site, ra, dec, day + (wait % 24) / 1.00273791 * u.h - 840 * u.s)


CASES = {
    "north": case_at(VERITAS, 83.63, 22.01, -2.0),
    "south": case_at(HESS, 228.61, -58.77, 1.5),
    "southern sky from the north": case_at(VERITAS, 40.67, -12.0, -1.0),
    "northern sky from the south": case_at(HESS, 83.63, 22.01, 1.0),
    "meridian, passing south of the zenith": case_at(VERITAS, 83.63, 22.01, 0.0),
    "meridian, passing north of the zenith": case_at(HESS, 187.7, 12.39, 0.1),
    "meridian, below the pole": case_at(VERITAS, 202.0, 80.0, 12.0),
    "RA just above 0": case_at(VERITAS, 0.4, 15.0, 1.0),
    "RA just below 360": case_at(HESS, 359.7, -15.0, -1.0),
    "dec 80": case_at(VERITAS, 105.0, 80.0, -3.0),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture(autouse=True)
def _offline():
    with iers.conf.set_temp("auto_download", False):
        yield


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    directory = tmp_path_factory.mktemp("template")
    simulate_archive(directory, runs=1, events=50, sources=False, stars=False)
    return directory


@pytest.fixture
def place(template, tmp_path, edit_run, run_path):
    """Make the archive of a run: ``place(case, cards)``, with more cards for the header of its events."""

    def make(case, cards=()):
        directory = Path(shutil.copytree(template, tmp_path / "archive"))
        edit_run(run_path(directory, OBS_ID), lambda hdus: move(hdus, case, dict(cards)))
        return directory

    return make


def move(hdus: fits.HDUList, case: Case, cards: dict) -> None:
    """Take a run elsewhere; gammapy has its place and time from the headers of events and good time intervals."""
    reference = Time(hdus["EVENTS"].header["MJDREFI"], format="mjd", scale="utc")
    start = (case.start - reference).to_value("s")
    stop, middle = start + case.ontime, case.horizon(0.5)
    pointing = {"RA_PNT": case.ra, "DEC_PNT": case.dec, "ALT_PNT": middle.alt.deg, "AZ_PNT": middle.az.deg}
    site = {"GEOLON": case.site.lon.deg, "GEOLAT": case.site.lat.deg, "ALTITUDE": case.site.height.to_value("m")}
    times = {"TSTART": start, "TSTOP": stop, "ONTIME": case.ontime}
    hdus["EVENTS"].header.update({**pointing, **site, **times, **cards})
    gti = hdus["GTI"]
    gti.data = gti.data[:1]
    gti.data["START"], gti.data["STOP"] = start, stop


# --- the model, and what it must look like -----------------------------------------------------------------


def slopes(ln_energy: NDArray) -> tuple[NDArray, NDArray]:
    """Growth of ln(rate) along fov_lon and fov_lat [1/deg]: along fov_lon more, and more at high energies."""
    return 0.6 + 0.1 * ln_energy, 0.3 + 0.04 * ln_energy


def model(edges: FieldEdges = EDGES) -> NDArray:
    """Node values [s-1 TeV-1 sr-1], shape (energy, fov_lat, fov_lon)."""
    ln_energy = np.log(edges.energy[1:] * edges.energy[:-1])[:, None, None] / 2
    center = (edges.fov[1:] + edges.fov[:-1]) / 2
    lon, lat = slopes(ln_energy)
    return np.exp(-INDEX * ln_energy + lon * center[None, None, :] + lat * center[None, :, None])


def expected_rate(fov_lon: NDArray, fov_lat: NDArray) -> NDArray:
    """Events [s-1 sr-1] in the energy bins of the map at field positions [deg]: a power law at each."""
    lon, lat = slopes(np.zeros(1))
    lon_e, lat_e = (along - at_one for along, at_one in zip(slopes(np.ones(1)), (lon, lat), strict=True))
    norm = np.exp(lon * fov_lon + lat * fov_lat)
    index = 1 - INDEX + lon_e * fov_lon + lat_e * fov_lat
    edges = MAP_ENERGY.edges.to_value("TeV").reshape(-1, *[1] * np.ndim(fov_lon))
    return norm * (edges[1:] ** index - edges[:-1] ** index) / index


def expected_map(geom: WcsGeom, case: Case, alignment: str) -> NDArray:
    """The direct integral, with the frames of gammapy; that of the horizon averaged over the run."""
    positions = geom.to_image().get_coord().skycoord
    if alignment == "RADEC":
        field = positions.transform_to(FoVICRSFrame(origin=case.pointing.icrs))
        mean = expected_rate(field.fov_lon.deg, field.fov_lat.deg)
    else:
        origin = case.horizon((np.arange(40) + 0.5) / 40)
        frame = FoVAltAzFrame(origin=origin, obstime=origin.obstime, location=case.site)
        field = positions[..., np.newaxis].transform_to(frame)
        mean = expected_rate(field.fov_lon.deg, field.fov_lat.deg).mean(axis=-1)
    return case.ontime * mean * geom.to_image().solid_angle().to_value("sr")


def sides(case: Case, alignment: str) -> list[SkyCoord]:
    """Positions at +fov_lon, +fov_lat, -fov_lat and -fov_lon, where the model falls; those of the horizon by astropy.

    That is towards lower and higher right ascension or azimuth, and towards the north or the zenith and back. Those
    that move on the sky are given at several times, shape ``(times,)``.
    """
    center = case.pointing if alignment == "RADEC" else SkyCoord(case.horizon(np.array([0.2, 0.5, 0.8])))
    return [center.directional_offset_by(angle * u.deg, AWAY).icrs for angle in (270, 0, 180, 90)]


# --- through the files -------------------------------------------------------------------------------------


def attached(archive: Path, out: Path, alignment: str, how: str, obs_id: int = OBS_ID, mirror: bool = True):
    """The observation of a run with the model: attached to a copy, or in a file of its own beside the run."""
    store = read_datastore(archive)
    source = store.location(obs_id, "events").path
    if how == "copy":
        name = attach_background(source, out / "data/run.fits.gz", background_table(model(), EDGES, None, alignment))
        rows, failed = placed_rows(store, [obs_id], lambda obs_id, path: "data/run.fits.gz", without=("bkg",))
        background, data_dirs = ("data", "run.fits.gz", name, "bkg_3d"), []
    else:
        hdu = background_table(model(), EDGES, None, alignment, mirror=mirror and reads_reversed(source))
        name = write_background(out / "bkg/bkg.fits.gz", hdu)
        rows, failed = linked_rows(store, [obs_id], out, without=("bkg",))
        background, data_dirs = ("bkg", "bkg.fits.gz", name, "bkg_3d"), [store.directory, *store.data_dirs]
    assert not failed
    write_index(out, background_rows(rows, {obs_id: background}), store.observations([obs_id]), data_dirs)
    return DataStore.from_dir(out).obs(obs_id)


def predicted(observation: Observation) -> WcsNDMap:
    """The map that gammapy predicts in the field of a run."""
    center = observation.pointing.fixed_icrs
    geom = WcsGeom.create(skydir=center, npix=9, binsz=0.4, proj="TAN", frame="icrs", axes=[MAP_ENERGY])
    maker = MapDatasetMaker(selection=["background"])
    return maker.run(MapDataset.create(geom, name="map"), observation).background


def at_sides(found: WcsNDMap, case: Case, alignment: str) -> NDArray:
    """Values of a map at `sides`, shape ``(sides, times, energy)``."""
    places = [{"skycoord": side.reshape(-1, 1), "energy": MAP_ENERGY.center} for side in sides(case, alignment)]
    return np.array([found.interp_by_coord(place) for place in places])


def check(found: WcsNDMap, case: Case, alignment: str) -> None:
    """The bright side is the bright side, more so at higher energies; and every pixel is right."""
    values = at_sides(found, case, alignment)
    assert (values[:-1] > 1.1 * values[1:]).all()
    assert (np.diff(values[0] / values[-1]) > 0).all()
    assert_allclose(found.data, expected_map(found.geom, case, alignment), rtol=0.01)


@pytest.mark.parametrize("alignment", ["RADEC", "ALTAZ"])
@pytest.mark.parametrize("how", ["copy", "index"])
def test_the_bright_side_is_on_the_bright_side(place, tmp_path, case, how, alignment):
    observation = attached(place(case), tmp_path / "out", alignment, how)
    assert isinstance(observation.bkg, Background3D)
    assert observation.bkg.fov_alignment == FoVAlignment(alignment)
    check(predicted(observation), case, alignment)


@pytest.mark.parametrize("alignment", ["RADEC", "ALTAZ"])
def test_in_a_copy_of_a_run_that_gammapy_mirrors(place, tmp_path, case, alignment):
    observation = attached(place(case, SASH), tmp_path / "out", alignment, "copy")
    assert observation.bkg.fov_alignment == FoVAlignment(alignment)
    check(predicted(observation), case, alignment)


def test_beside_a_run_that_gammapy_mirrors(place, tmp_path, case):
    observation = attached(place(case, SASH), tmp_path / "out", "RADEC", "index")
    assert observation.bkg.fov_alignment == FoVAlignment.REVERSE_LON_RADEC
    check(predicted(observation), case, "RADEC")


@pytest.mark.parametrize("alignment", ["RADEC", "ALTAZ"])
def test_gammapy_still_mirrors_what_is_beside_such_a_run(place, tmp_path, alignment):
    """Or else nothing of this would be needed: it makes RADEC of both, and puts the bright side into the east."""
    case = CASES["north"]
    observation = attached(place(case, SASH), tmp_path / "out", alignment, "index", mirror=False)
    west, north, south, east = at_sides(predicted(observation), case, "RADEC")
    assert (east > north).all()
    assert (north > south).all()
    assert (south > west).all()


@pytest.mark.realdata
@pytest.mark.parametrize(("how", "alignment"), [("copy", "RADEC"), ("copy", "ALTAZ"), ("index", "RADEC")])
@pytest.mark.parametrize("obs_id", [20136, 23523])
def test_real_runs(gammapy_data, tmp_path, obs_id, how, alignment):
    observation = attached(gammapy_data / "hess-dl3-dr1", tmp_path, alignment, how, obs_id)
    center, ontime = observation.pointing.fixed_icrs, observation.observation_time_duration.to_value("s")
    case = Case(HESS, center.ra.deg, center.dec.deg, observation.tstart, ontime)
    check(predicted(observation), case, alignment)
