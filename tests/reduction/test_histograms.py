"""Several views of one run from one reading: what is a sum of what, and that nothing is lost."""

from __future__ import annotations

import re

import numpy as np
import pytest
from astropy.coordinates import AltAz, SkyCoord
from astropy.io import fits
from astropy.utils import iers
from gammapy.data import EventList
from gammapy.utils.coordinates import FoVAltAzFrame
from numpy.testing import assert_allclose, assert_array_equal

from dask_bkg import schema
from dask_bkg.binning import Edges, field_view, fine_view, is_sum_of, ring_view, sum_index
from dask_bkg.dl3.read import RunFile, read_run
from dask_bkg.errors import RunError
from dask_bkg.reduction import histograms as views
from dask_bkg.reduction import reduce
from dask_bkg.reduction.horizon import horizon_of
from dask_bkg.reduction.reduce import reduce_run, reduce_views, solid_angles
from dask_bkg.sky import fov
from dask_bkg.sky.exclusion import concat_regions, exclusion_digest, make_regions

FINE = fine_view()
HORIZON = field_view(FINE, "altaz")
COARSE = [
    Edges(np.geomspace(0.1, 100, 31), np.linspace(0, 2.5, 11)),
    Edges(np.geomspace(0.1, 100, 16), np.array([0.5, 1.0, 2.0])),  # a hole, wide rings, a smaller field
    Edges(np.logspace(-2, 3, 6), np.linspace(0, 2.4, 9)),
]


@pytest.fixture
def field(archive, run_path):
    """Runs of the archive, and regions around their pointings: discs inside, at the rim, and a polygon."""
    directory, truth = archive
    runs = [RunFile(run.obs_id, str(run_path(directory, run.obs_id))) for run in truth.runs[:5]]
    rng = np.random.default_rng(1)
    parts = []
    for run in truth.runs[:5]:
        lon, lat = rng.uniform(-2.7, 2.7, (2, 12))
        ra, dec = fov.from_fov(lon, lat, run.ra_pnt, run.dec_pnt)
        parts.append(make_regions(ra, dec, rng.uniform(0.2, 0.6, 12), [""] * 12, "own"))
    ra, dec = truth.runs[0].ra_pnt, truth.runs[0].dec_pnt
    box = f"icrs;box({ra + 0.7},{dec + 0.4},1.0,0.4,30)"
    parts.append(make_regions([ra + 0.7], [dec + 0.4], 0.6, ["box"], "file", shape=[box]))
    return runs, concat_regions(parts)


def summed(array: np.ndarray, index: np.ndarray, n: int) -> np.ndarray:
    """Sums over the last axis, by the coarse bin to which each fine one belongs."""
    total = np.zeros((*array.shape[:-1], n))
    np.add.at(total, (..., index[index >= 0]), array[..., index >= 0])
    return total


# --- sums --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edges", COARSE)
def test_fine_rings_add_up_to_the_rings_of_reduce_run(field, edges):
    """Counts to the last event, exposure to rounding."""
    runs, regions = field
    assert is_sum_of(FINE.edges, edges)
    energy, ring = (sum_index(fine, coarse) for fine, coarse in zip(FINE.edges, edges, strict=True))
    omega = solid_angles(FINE)["solid_angle"]
    for run in runs:
        reduced = reduce_views(run, [FINE], regions)
        fine, expected = reduced.histograms[0], reduce_run(run.path, run.obs_id, edges, regions)
        counts = summed(summed(fine["counts"], ring, edges.shape[1]).T, energy, edges.shape[0]).T
        assert_array_equal(counts, expected.counts.values)
        exposed = summed(omega * fine["exposed_fraction"], ring, edges.shape[1])
        exposure = reduced.numbers["ontime"] * np.diff(edges.energy)[:, None] * exposed
        assert_allclose(exposure, expected.exposure.values, rtol=1e-12)
        assert counts.sum() > 500
        assert (fine["exposed_fraction"] < 1).any()


@pytest.mark.parametrize("edges", COARSE)
def test_the_view_of_exact_rings_is_reduce_run(field, edges):
    """Beside the fine view, on whose larger grid it lies, and alone."""
    runs, regions = field
    for reach in ("disc", "centre"):
        view = ring_view(edges, reach=reach)
        for run in runs[:2]:
            expected = reduce_run(run.path, run.obs_id, edges, regions, reach=reach)
            for several, i in (([FINE, view], 1), ([view], 0)):
                found = reduce_views(run, several, regions).histograms[i]
                assert_array_equal(found["counts"], expected.counts.values)
                width = np.diff(edges.energy)[:, None]
                exposure = (
                    float(expected.ontime) * width * solid_angles(view)["solid_angle"] * found["exposed_fraction"]
                )
                assert_allclose(exposure, expected.exposure.values, rtol=1e-13)


def test_the_preset_beside_the_fine_view_is_what_it_is_alone(field):
    """Rings of 0.125 deg on pixels of their own, and event ratios that look at no times."""
    runs, regions = field
    edges = Edges(np.geomspace(0.1, 100, 21), np.linspace(0, 2.5, 21))
    assert not is_sum_of(FINE.edges, edges)
    several = [FINE, ring_view(edges), ring_view(edges, "event_ratio", "centre")]
    for run in runs[:2]:
        together = reduce_views(run, several, regions).histograms
        for view, found in zip(several, together, strict=True):
            alone = reduce_views(run, [view], regions).histograms[0]
            assert found.keys() == alone.keys()
            for name in alone:
                assert_array_equal(found[name], alone[name])
        expected = reduce_run(run.path, run.obs_id, edges, regions, method="event_ratio", reach="centre")
        assert_array_equal(together[2]["counts"], expected.counts.values)
        exposure = solid_angles(several[2])["solid_angle"] * together[2]["exposed_fraction"]
        assert_allclose(float(expected.ontime) * np.diff(edges.energy)[:, None] * exposure, expected.exposure.values)


def test_event_ratios_count_events_outside_of_the_good_time_also_beside_the_fine_view(four_runs, run_path, edit_run):
    path = run_path(four_runs, 64001)
    every = read_run(RunFile(64001, str(path))).energy.size

    def halve(hdus):
        gti = hdus["GTI"].data
        gti["STOP"][0] = (gti["START"][0] + gti["STOP"][0]) / 2
        hdus["GTI"].data = gti[:1]

    edit_run(path, halve)
    run, edges = RunFile(64001, str(path)), Edges(FINE.edges.energy, np.array([0.0, 10.0]))
    views = [FINE, ring_view(edges), ring_view(edges, "event_ratio")]
    reduced = reduce_views(run, views)
    assert reduced.histograms[2]["counts"].sum() == every
    assert reduced.histograms[1]["counts"].sum() == reduced.numbers["n_events"] < 0.7 * every
    assert "left out" in reduced.texts["note"]


# --- field pixels ------------------------------------------------------------------------------------------


def test_field_pixels_hold_every_event_of_the_square_outside_of_the_exclusion(field):
    runs, regions = field
    for run in runs:
        events = read_run(run)
        pointing = events.numbers["ra_pnt"], events.numbers["dec_pnt"]
        lon, lat = fov.to_fov(events.ra, events.dec, *pointing)
        square = (np.abs(lon) < 2.5) & (np.abs(lat) < 2.5)
        everything = reduce_views(run, [FINE]).histograms[0]["field_counts"]
        assert everything.sum() == square.sum()
        edges = np.array(FINE.pixels)
        expected = np.histogramdd(
            (events.energy[square], lat[square], lon[square]), bins=(FINE.edges.energy, edges, edges)
        )[0]
        assert_array_equal(everything, expected)
        # with an exclusion: what is clear of its rim by a pixel of the grid
        near = regions.near(*pointing, 4.0)
        near = near[near.shape == ""]
        distance = np.array(
            [fov.separation(events.ra, events.dec, *each) for each in zip(near.ra, near.dec, strict=True)]
        )
        distance = (distance - near.radius[:, None]).min(axis=0)
        kept = reduce_views(run, [FINE], near).histograms[0]["field_counts"].sum()
        assert (square & (distance > 0.015)).sum() <= kept <= (square & (distance > -0.015)).sum()
        assert kept < everything.sum()


def test_pixels_and_rings_lose_the_same_solid_angle_inside_of_the_circle(field):
    """That of the discs, where they do not overlap and lie wholly in the rings."""
    runs, _ = field
    lon, lat, radius = np.array([[0.0, 1.2, -1.4, 0.1], [0.1, 0.7, -1.1, -1.5], [0.35, 0.5, 0.6, 0.2]])
    omega = solid_angles(FINE)
    cap = 2 * np.pi * (1 - np.cos(np.deg2rad(radius)))
    for run in runs:
        numbers = read_run(run).numbers
        regions = make_regions(
            *fov.from_fov(lon, lat, numbers["ra_pnt"], numbers["dec_pnt"]), radius, [""] * 4, "own"
        )
        found = reduce_views(run, [FINE], regions).histograms[0]
        rings = (omega["solid_angle"] * (1 - found["exposed_fraction"])).sum()
        pixels = (omega["field_solid_angle"] * (1 - found["field_exposed_fraction"])).sum()
        assert pixels == pytest.approx(rings, rel=1e-12)
        assert rings == pytest.approx(cap.sum(), rel=2e-3)
        # fov_lat is the first axis: the second disc closes the pixels around (1.2, 0.7)
        assert found["field_exposed_fraction"][16, 18] == 0
        assert found["field_exposed_fraction"][18, 16] == 1


def test_solid_angles_are_those_of_the_sphere():
    cap = 2 * np.pi * (1 - np.cos(np.deg2rad(2.5)))
    found = solid_angles(FINE)
    assert found["solid_angle"].sum() == pytest.approx(cap, rel=1e-3)
    assert found["field_solid_angle"].sum() == pytest.approx(np.deg2rad(5) * 2 * np.sin(np.deg2rad(2.5)), rel=1e-9)
    assert found["field_solid_angle"].shape == (25, 25)
    ratio = ring_view(COARSE[0], "event_ratio")
    width, center = np.deg2rad(0.25), np.deg2rad((COARSE[0].offset[1:] + COARSE[0].offset[:-1]) / 2)
    assert_allclose(solid_angles(ratio)["solid_angle"], 2 * np.pi * center * width)


# --- a field aligned with the horizon ----------------------------------------------------------------------


def gammapy_place(run: RunFile) -> tuple[np.ndarray, ...]:
    """Field coordinates [deg] and energies [TeV] of the events in the good time, all through gammapy."""
    events = EventList.read(run.path)
    gti, time = fits.getdata(run.path, "GTI"), fits.getdata(run.path, "EVENTS")["TIME"]
    good = ((time[:, None] >= gti["START"]) & (time[:, None] <= gti["STOP"])).any(axis=1)
    events, header = events.select_row_subset(good), events.table.meta
    frame = AltAz(obstime=events.time, location=events.observatory_earth_location)
    origin = SkyCoord(header["RA_PNT"], header["DEC_PNT"], unit="deg").transform_to(frame)
    origin = AltAz(alt=origin.alt, az=origin.az, obstime=frame.obstime, location=frame.location)
    place = events.radec.transform_to(frame)
    place = place.transform_to(FoVAltAzFrame(origin=origin, obstime=frame.obstime, location=frame.location))
    return place.fov_lon.deg, place.fov_lat.deg, events.energy.to_value("TeV")


def assert_counts_are_those_of_gammapy(run: RunFile) -> None:
    found = reduce_views(run, [HORIZON]).histograms[0]
    with iers.conf.set_temp("auto_download", False), iers.conf.set_temp("auto_max_age", None):
        lon, lat, energy = gammapy_place(run)
    edges = np.array(FINE.pixels)
    expected = np.histogramdd((energy, lat, lon), bins=(FINE.edges.energy, edges, edges))[0]
    assert_array_equal(found["field_counts"], expected)
    assert (found["field_exposed_fraction"] == 1).all()
    assert expected.sum() > 1000


def test_counts_of_a_field_aligned_with_the_horizon_are_those_of_gammapy(field):
    """Of a simulated run in UTC, each event through its own AltAz frame."""
    assert_counts_are_those_of_gammapy(field[0][1])


@pytest.mark.realdata
@pytest.mark.slow
def test_counts_of_a_real_run_aligned_with_the_horizon_are_those_of_gammapy(gammapy_data):
    path = sorted(gammapy_data.glob("hess-dl3-dr1/data/*.fits.gz"))[7]
    assert_counts_are_those_of_gammapy(RunFile(1, str(path)))


def test_the_exclusion_is_that_of_the_other_views_and_counts_are_kept(field):
    """What is excluded is decided among the stars: with all of the field in the square the same events are left."""
    runs, regions = field
    wide = tuple(np.round(np.arange(-24, 25) * 0.2, 12).tolist())
    radec, altaz = FINE._replace(pixels=wide), field_view(FINE, "altaz", wide)
    for run in runs:
        events = read_run(run)
        pointing = events.numbers["ra_pnt"], events.numbers["dec_pnt"]
        assert fov.separation(events.ra, events.dec, *pointing).max() < 4.7
        straight, turned = reduce_views(run, [radec, altaz], regions).histograms
        assert_array_equal(straight["field_counts"].sum(axis=(1, 2)), turned["field_counts"].sum(axis=(1, 2)))
        assert 0 < turned["field_counts"].sum() < events.energy.size
        for name in ("counts", "exposed_fraction"):
            assert_array_equal(straight[name], turned[name])
        # where nothing was excluded are all events, elsewhere no more than those
        everything = reduce_views(run, [altaz]).histograms[0]["field_counts"]
        open_ = turned["field_exposed_fraction"] == 1
        assert_array_equal(turned["field_counts"][:, open_], everything[:, open_])
        assert (turned["field_counts"] <= everything).all()
        assert everything[:, open_].sum() > 300
        # and the same solid angle is lost
        omega = solid_angles(altaz)["field_solid_angle"]
        lost = [(omega * (1 - each["field_exposed_fraction"])).sum() for each in (straight, turned)]
        assert lost[1] == pytest.approx(lost[0], rel=2e-3)


def test_a_field_aligned_with_the_horizon_is_the_same_alone_and_beside_others(field):
    runs, regions = field
    several = [FINE, HORIZON, ring_view(COARSE[0]), ring_view(COARSE[0], "event_ratio")]
    for run in runs[:2]:
        together = reduce_views(run, several, regions).histograms
        for view, found in zip(several, together, strict=True):
            alone = reduce_views(run, [view], regions).histograms[0]
            for name in alone:
                assert_array_equal(found[name], alone[name])


def test_a_region_outside_of_the_radec_square_comes_into_the_corner_of_the_other(field):
    """The field of the run is turned by 45 deg or so: the corner is where north, east, south or west was."""
    runs, _ = field
    angle = {run: np.deg2rad(read_run(run).numbers["parallactic"]) for run in runs}
    run = max(runs, key=lambda each: abs(np.sin(2 * angle[each])))
    numbers, q = read_run(run).numbers, angle[run]
    # the corner at the upper left of the camera, 3.3 deg from the centre
    x, y = 3.3 * np.array([-np.cos(q) - np.sin(q), np.cos(q) - np.sin(q)]) / np.sqrt(2)
    assert max(abs(x), abs(y)) > 2.7
    center = fov.from_fov(x, y, numbers["ra_pnt"], numbers["dec_pnt"])
    regions = make_regions([center[0]], [center[1]], 0.15, ["far out"], "own")
    straight, turned = (each["field_exposed_fraction"] for each in reduce_views(run, [FINE, HORIZON], regions)[2])
    assert (straight == 1).all()
    assert (turned < 1).sum() > 2
    assert (turned[:21] == 1).all()
    assert (turned[:, :21] == 1).all()


def without(*cards):
    def change(hdus):
        for hdu in ("EVENTS", "GTI"):
            for card in cards:
                hdus[hdu].header.remove(card, ignore_missing=True)

    return change


def without_times(hdus):
    columns = [column for column in hdus["EVENTS"].columns if column.name != "TIME"]
    hdus["EVENTS"] = fits.BinTableHDU.from_columns(columns, hdus["EVENTS"].header, name="EVENTS")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without("GEOLON"), "does not have GEOLON (or OBSGEO-L): add"),
        (without("GEOLAT", "ALTITUDE"), "does not have GEOLAT (or OBSGEO-B) and ALTITUDE (or OBSGEO-H): add"),
        (without("MJDREFI"), "does not have MJDREFI: add"),
        (without_times, "does not have the column TIME: add"),
        (
            lambda hdus: hdus["EVENTS"].header.set("GEOLON", 110.952),
            "deg by ALT_PNT: correct what is wrong (is GEOLON",
        ),
        (lambda hdus: [hdus[name].header.set("MJDREFI", 10**10) for name in ("EVENTS", "GTI")], "is no date"),
    ],
    ids=["longitude", "latitude and height", "reference", "times", "west", "date"],
)
def test_a_field_is_closed_where_nobody_knows_the_horizon(four_runs, run_path, edit_run, change, told):
    """And all other histograms of the run are what they are."""
    run = RunFile(64001, str(run_path(four_runs, 64001)))
    before = reduce_views(run, [FINE]).histograms[0]
    edit_run(run.path, change)
    with pytest.raises(RunError, match=re.escape(told)):
        horizon_of(read_run(run))
    after, closed = reduce_views(run, [FINE, HORIZON]).histograms
    assert not closed["field_counts"].any()
    assert not closed["field_exposed_fraction"].any()
    if change is not without_times:
        for name, array in before.items():
            assert_array_equal(after[name], array)


# --- what is told ------------------------------------------------------------------------------------------


def test_arrays_have_the_types_and_shapes_of_the_store(field):
    runs, regions = field
    found = reduce_views(runs[0], [FINE, ring_view(COARSE[0])], regions).histograms
    told = [{name: (array.dtype.name, array.shape) for name, array in one.items()} for one in found]
    assert told == [
        {
            "counts": ("uint32", (50, 50)),
            "exposed_fraction": ("float64", (50,)),
            "field_counts": ("uint32", (50, 25, 25)),
            "field_exposed_fraction": ("float64", (25, 25)),
        },
        {"counts": ("uint32", (30, 10)), "exposed_fraction": ("float64", (10,))},
    ]


def test_numbers_and_texts_go_with_the_histograms(field):
    runs, regions = field
    reduced, events = reduce_views(runs[0], [FINE], regions), read_run(runs[0])
    assert reduced.numbers == events.numbers
    pointing = events.numbers["ra_pnt"], events.numbers["dec_pnt"]
    assert reduced.texts == {
        "object": events.object,
        "telescopes": events.telescopes,
        "instrument": events.instrument,
        "note": "",
        "fingerprint": events.fingerprint,
        "exclusion": exclusion_digest(regions, *pointing, 2.5 * np.sqrt(2)),
    }
    assert set(schema.RUN_TEXTS) - {"error"} <= reduced.texts.keys()
    far = concat_regions([regions, make_regions([(pointing[0] + 180) % 360], [0.0], 1.0, ["far"], "own")])
    assert reduce_views(runs[0], [FINE], far).texts == reduced.texts
    assert reduce_views(runs[0], [FINE], None).texts["exclusion"] != reduced.texts["exclusion"]


def test_a_run_is_read_once_and_its_grid_looked_at_once(field, monkeypatch):
    runs, regions = field
    reads, looks = [], []
    for module, name, notes in ((reduce, "read_run", reads), (views.exclusion, "excluded_pixels", looks)):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, _f=original, _n=notes, **k: (_n.append(1), _f(*a, **k))[1])
    reduce_views(runs[0], [FINE, *map(ring_view, COARSE), ring_view(COARSE[0], "event_ratio")], regions)
    assert (len(reads), len(looks)) == (1, 1)


def test_a_closed_field_and_a_wrong_pointing_are_errors(four_runs, run_path, edit_run):
    run = RunFile(64001, str(run_path(four_runs, 64001)))
    everywhere = make_regions([0.0], [0.0], 180.0, ["the sky"], "own")
    with pytest.raises(RunError, match="run 64001: its whole field is excluded"):
        reduce_views(run, [FINE], everywhere)
    edit_run(run.path, lambda hdus: hdus["EVENTS"].header.set("DEC_PNT", -80.0))
    with pytest.raises(RunError, match="check the pointing"):
        reduce_views(run, [FINE])


def test_views_that_cannot_be_made_are_refused(field):
    runs, _ = field
    with pytest.raises(ValueError, match="fine_view"):
        reduce_views(runs[0], [])
    with pytest.raises(ValueError, match="'geometry' and 'event_ratio'"):
        reduce_views(runs[0], [FINE._replace(method="guess")])
    with pytest.raises(ValueError, match="event_ratio"):
        reduce_views(runs[0], [FINE._replace(method="event_ratio")])
