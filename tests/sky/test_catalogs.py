"""Catalogues, star tables and region files: what radius each source gets, and what is said where one is missing."""

from __future__ import annotations

import logging

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import ascii as ascii_table
from astropy.table import MaskedColumn, Table
from numpy.testing import assert_allclose, assert_array_equal

from dask_bkg.config import parse_config
from dask_bkg.errors import ConfigError
from dask_bkg.sky import catalogs, exclusion, fov

# name, morphology, sigma [deg] (None: masked), radius by rule "max", radius by rule "document"
GAMMACAT = [
    ("Small Gauss", "gauss", 0.05, 0.35, 0.15),
    ("Large Gauss", "gauss", 0.2, 0.6, 0.6),
    ("Shell", "shell", 0.3, 0.9, 0.9),
    ("Small Shell", "shell", 0.1, 0.35, 0.3),
    ("Giant Shell", "shell", 1.0, 1.2, 3.0),
    ("No Size", "gauss", None, 0.35, 0.35),
    ("NaN Size", "shell", np.nan, 0.35, 0.35),
    ("Nothing Known", "none", None, 0.35, 0.35),
    ("Crab nebula", "point", None, 0.35, 0.35),
]
HWC = [
    ("3HWC J0534+220", 83.63, 22.02, 0.0),
    ("3HWC J0621+382", 95.32, 38.21, 0.5),
    ("3HWC J1908+063", 287.05, 6.39, 2.0),
]


def write_gammacat(path, rows=GAMMACAT):
    """Write a GammaCat of the columns that matter, as FITS with masked floats."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sigma = [row[2] for row in rows]
    table = Table(
        {
            "common_name": [row[0] for row in rows],
            "ra": np.array(10.0 * np.arange(len(rows)), dtype="f4") * u.deg,
            "dec": np.full(len(rows), -5.0, dtype="f4") * u.deg,
            "morph_type": [row[1] for row in rows],
        }
    )
    values = np.array([np.nan if value is None else value for value in sigma], dtype="f4")
    table["morph_sigma"] = MaskedColumn(values, mask=[value is None for value in sigma], unit="deg")
    table.write(path, overwrite=True)
    return path


def write_3hwc(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = Table(rows=HWC, names=["source_name", "ra", "dec", "search_radius"])
    for name in ("ra", "dec", "search_radius"):
        table[name].unit = "deg"
    table.write(path, format="ascii.ecsv", overwrite=True)
    return path


STARS = """10.5 -20.25 1 4.99 0.1
11.5 -20.25 2 5.00 -0.3
# a comment between the stars
12.5\t-21.25\t 3\t 5.01\t-0.019
13.5 -22.25 4 7.99 1.5
14.5 -23.25 5 8.20 1.5
359.9 89.0 6 -1.46 0.0
"""


@pytest.fixture
def star_file(tmp_path):
    path = tmp_path / "stars.dat"
    path.write_text(STARS)
    return path


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A small $GAMMAPY_DATA with all three catalogues."""
    base = tmp_path / "gammapy-data"
    write_gammacat(base / catalogs.CATALOG_FILES["gammacat"])
    write_3hwc(base / catalogs.CATALOG_FILES["3hwc"])
    stars = base / catalogs.STAR_FILE
    stars.parent.mkdir(parents=True)
    stars.write_text("#_RAJ2000 _DEJ2000 HIP Vmag B-V\n" + STARS)
    monkeypatch.setenv("GAMMAPY_DATA", str(base))
    return base


def settings(**exclusion_):
    return parse_config({"exclusion": exclusion_}).exclusion


def of_name(regions, name):
    index = list(regions.name).index(name)
    return regions.radius[index], regions.note[index]


@pytest.mark.parametrize(("rule", "column"), [("max", 3), ("document", 4)])
@pytest.mark.parametrize("row", GAMMACAT, ids=lambda row: row[0])
def test_radius_of_gammacat_sources(tmp_path, rule, column, row):
    regions = catalogs.read_gammacat(write_gammacat(tmp_path / "gammacat.fits.gz"), rule=rule)
    assert of_name(regions, row[0])[0] == pytest.approx(row[column], rel=1e-6)


def test_gammacat_positions_names_and_kind(tmp_path):
    regions = catalogs.read_gammacat(write_gammacat(tmp_path / "gammacat.fits.gz"))
    assert_array_equal(regions.name, [row[0] for row in GAMMACAT])
    assert_allclose(regions.ra, 10.0 * np.arange(len(GAMMACAT)))
    assert_allclose(regions.dec, -5.0)
    assert set(regions.kind) == {"gammacat"}
    assert regions.radius.dtype == float
    assert not any(regions.shape)


def test_gammacat_notes_are_for_missing_sizes_and_cut_radii_only(tmp_path):
    regions = catalogs.read_gammacat(write_gammacat(tmp_path / "gammacat.fits.gz"))
    noted = {name for name, note in zip(regions.name, regions.note, strict=True) if note}
    assert noted == {"No Size", "NaN Size", "Giant Shell"}
    assert "1.2" in of_name(regions, "Giant Shell")[1]


@pytest.mark.parametrize(
    ("default", "largest", "expected"), [(0.2, 1.2, [0.2, 0.6, 1.2]), (0.7, 0.8, [0.7, 0.7, 0.8])]
)
def test_gammacat_default_and_largest_radius_are_used(tmp_path, default, largest, expected):
    path = write_gammacat(tmp_path / "gammacat.fits.gz")
    regions = catalogs.read_gammacat(path, default_radius=default, max_radius=largest)
    names = ["Small Gauss", "Large Gauss", "Giant Shell"]
    assert_allclose([of_name(regions, name)[0] for name in names], expected, rtol=1e-6)


@pytest.mark.parametrize(("rule", "expected"), [("max", [0.35, 0.5, 1.2]), ("document", [0.35, 0.35, 0.35])])
def test_radius_of_3hwc_sources(tmp_path, rule, expected):
    regions = catalogs.read_3hwc(write_3hwc(tmp_path / "3HWC.ecsv"), rule=rule)
    assert_allclose(regions.radius, expected)
    assert_array_equal(regions.name, [row[0] for row in HWC])
    assert_allclose(regions.dec, [row[2] for row in HWC])
    assert set(regions.kind) == {"3hwc"}
    assert_array_equal(regions.note != "", [False, False, rule == "max"])


def test_3hwc_search_radius_below_the_default(tmp_path):
    regions = catalogs.read_3hwc(write_3hwc(tmp_path / "3HWC.ecsv"), default_radius=0.6, max_radius=5.0)
    assert_allclose(regions.radius, [0.6, 0.6, 2.0])


@pytest.mark.parametrize(("mag_max", "numbers"), [(5.0, [1, 6]), (5.005, [1, 2, 6]), (8.0, [1, 2, 3, 4, 6])])
def test_stars_below_the_v_magnitude_from_the_first_line_to_the_last(star_file, mag_max, numbers):
    regions = catalogs.read_stars(star_file, mag_max=mag_max, radius=0.25)
    lines = [line.split() for line in STARS.splitlines() if not line.startswith("#")]
    rows = [lines[number - 1] for number in numbers]
    assert_allclose(regions.ra, [float(row[0]) for row in rows])
    assert_allclose(regions.dec, [float(row[1]) for row in rows])
    assert_array_equal(regions.radius, 0.25)
    assert set(regions.kind) == {"star"}
    assert all(str(number) in name for number, name in zip(numbers, regions.name, strict=True))


def test_stars_are_those_of_astropys_reader(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "stars.dat"
    columns = [
        rng.uniform(0, 360, 500),
        rng.uniform(-90, 90, 500),
        np.arange(500),
        rng.uniform(-1, 9, 500),
        np.zeros(500),
    ]
    np.savetxt(path, np.transpose(columns), fmt="%.6f\t%10.6f\t%6d\t%5.2f\t%6.3f", header="RA DEC HIP Vmag B-V")
    table = ascii_table.read(path, format="no_header", comment="#")
    bright = table[table["col4"] < 6]
    regions = catalogs.read_stars(path, mag_max=6)
    assert_allclose(regions.ra, bright["col1"])
    assert_allclose(regions.dec, bright["col2"])


def test_default_stars_are_v_below_5_at_0_3_deg(data):
    regions = catalogs.sky_regions(settings(catalogs=[]))
    assert_allclose(np.sort(regions.ra), [10.5, 359.9])
    assert_array_equal(regions.radius, 0.3)


@pytest.mark.parametrize("content", ["10.5 -20.25\n", "RA DEC HIP V B-V\n10.5 -20.25 1 4.9 0.1\n", "a,b,c,d,e\n"])
def test_a_star_table_that_is_none_is_an_error_that_names_it(tmp_path, content):
    path = tmp_path / "broken.dat"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"broken\.dat"):
        catalogs.sky_regions(settings(catalogs=[], star_cat=str(path)))


def test_star_table_beside_the_yaml_comes_first(data, tmp_path, monkeypatch):
    base = tmp_path / "job"
    elsewhere = tmp_path / "cwd"
    for directory in (base, elsewhere):
        directory.mkdir()
        (directory / "Hipparcos_MAG8_1997.dat").write_text(STARS)
    monkeypatch.chdir(elsewhere)
    found = catalogs.find_star_table("Hipparcos_MAG8_1997.dat", base)
    assert found.resolve() == base / "Hipparcos_MAG8_1997.dat"


@pytest.mark.parametrize("star_cat", ["own/Hipparcos.dat", "Hipparcos_MAG8_1997.dat"])
def test_star_table_that_is_not_there_falls_back_on_gammapy_data_and_says_so(data, tmp_path, caplog, star_cat):
    with caplog.at_level(logging.INFO):
        catalogs.sky_regions(settings(star_cat=star_cat), tmp_path)
    assert catalogs.find_star_table(star_cat, tmp_path) == data / catalogs.STAR_FILE
    assert star_cat in caplog.text
    assert str(data / catalogs.STAR_FILE) in caplog.text


def test_star_table_named_by_its_whole_path(data, star_file):
    assert catalogs.find_star_table(str(star_file), None) == star_file


def test_star_table_that_is_not_named_is_that_of_gammapy_data(data):
    assert catalogs.find_star_table(None) == data / catalogs.STAR_FILE


def test_star_table_with_a_whole_path_that_is_wrong_is_an_error_though_there_is_another(data, tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.dat") as caught:
        catalogs.sky_regions(settings(star_cat=str(tmp_path / "gone.dat")))
    assert "no $GAMMAPY_DATA" not in str(caught.value)


@pytest.mark.parametrize("star_cat", [None, "Hipparcos_MAG8_1997.dat"])
def test_star_table_that_is_nowhere(tmp_path, monkeypatch, star_cat):
    monkeypatch.delenv("GAMMAPY_DATA", raising=False)
    with pytest.raises(ConfigError, match="gammapy download datasets"):
        catalogs.sky_regions(settings(catalogs=[], star_cat=star_cat), tmp_path)


@pytest.mark.parametrize("star_cat", [None, "Hipparcos_MAG8_1997.dat"])
def test_star_table_that_is_nowhere_can_be_done_without(tmp_path, monkeypatch, star_cat):
    monkeypatch.delenv("GAMMAPY_DATA", raising=False)
    assert len(catalogs.sky_regions(settings(allow_missing_catalogs=True, star_cat=star_cat), tmp_path).ra) == 0


def test_data_file_is_below_gammapy_data_or_none(data, monkeypatch):
    assert catalogs.data_file("catalogs/3HWC.ecsv") == data / "catalogs/3HWC.ecsv"
    assert catalogs.data_file("catalogs/4HWC.ecsv") is None
    monkeypatch.delenv("GAMMAPY_DATA")
    assert catalogs.data_file("catalogs/3HWC.ecsv") is None


def test_sky_regions_are_all_of_them(data):
    regions = catalogs.sky_regions(settings(exclude_regions=[[83.63, 22.01, 0.4], ["12.5", "-30", "0.2 deg"]]))
    kinds = {kind: int(np.sum(regions.kind == kind)) for kind in set(regions.kind)}
    assert kinds == {"gammacat": len(GAMMACAT), "3hwc": len(HWC), "star": 2, "own": 2}
    own = regions.kind == "own"
    assert_allclose(
        np.transpose([regions.ra[own], regions.dec[own], regions.radius[own]]),
        [[83.63, 22.01, 0.4], [12.5, -30, 0.2]],
    )


def test_the_configured_radii_reach_the_catalogues_and_the_stars(data):
    regions = catalogs.sky_regions(settings(default_radius=0.5, max_radius=0.7, star_radius=0.1, star_mag=8))
    assert of_name(regions, "Crab nebula")[0] == 0.5
    assert of_name(regions, "Giant Shell")[0] == 0.7
    assert of_name(regions, "3HWC J0534+220")[0] == 0.5
    stars = regions.kind == "star"
    assert stars.sum() == 5
    assert_array_equal(regions.radius[stars], 0.1)


def test_the_documents_rule_reaches_both_catalogues(data):
    regions = catalogs.sky_regions(parse_config({"preset": "gammapy-tools"}).exclusion)
    assert of_name(regions, "Small Gauss")[0] == pytest.approx(0.15)
    assert of_name(regions, "Giant Shell")[0] == pytest.approx(3.0)
    assert of_name(regions, "3HWC J1908+063")[0] == 0.35
    stars = regions.kind == "star"
    assert stars.sum() == 5  # V < 8, the first line included
    assert_array_equal(regions.radius[stars], 0.35)


def test_a_size_that_is_missing_or_cut_is_noted(data):
    regions = catalogs.sky_regions(settings())
    noted = regions.name[regions.note != ""].tolist()
    assert "No Size" in noted
    assert "Giant Shell" in noted
    assert not any("Crab" in name for name in noted)


@pytest.mark.parametrize("name", ["Crab nebula", "crab nebula", "CRABNEBULA", " Crab  Nebula "])
def test_a_source_is_found_by_name_whatever_its_case_and_blanks(data, name):
    regions = catalogs.sky_regions(settings(exclude_source_name=[[name, 0.77]]))
    mine = regions.radius == 0.77
    assert mine.sum() == 1
    assert (regions.ra[mine][0], regions.dec[mine][0]) == (80.0, -5.0)


def test_a_source_of_3hwc_is_found_too(data):
    regions = catalogs.sky_regions(settings(exclude_source_name=[["3hwc j1908+063", 0.77]]))
    assert regions.ra[regions.radius == 0.77] == pytest.approx(287.05)


@pytest.mark.parametrize("name", ["Krab nebula", "CRAB NEBULAE", "crabnebul"])
def test_an_unknown_source_is_an_error_with_the_nearest_names(data, name):
    with pytest.raises(ConfigError, match=f"(?s){name}.*Crab nebula"):
        catalogs.sky_regions(settings(exclude_source_name=[[name, 0.4]]))


@pytest.mark.parametrize("missing", ["gammacat", "3hwc"])
def test_a_missing_catalogue_says_how_to_get_it(data, missing):
    (data / catalogs.CATALOG_FILES[missing]).unlink()
    with pytest.raises(ConfigError, match=f"(?s)(?=.*gammapy download datasets)(?=.*{missing})"):
        catalogs.sky_regions(settings())


@pytest.mark.parametrize("missing", ["gammacat", "3hwc"])
def test_a_missing_catalogue_that_is_not_wanted_is_not_missed(data, missing):
    (data / catalogs.CATALOG_FILES[missing]).unlink()
    other = {"gammacat": "3hwc", "3hwc": "gammacat"}[missing]
    assert set(catalogs.sky_regions(settings(catalogs=[other])).kind) == {other, "star"}


def test_without_gammapy_data_the_error_names_the_variable(monkeypatch):
    monkeypatch.delenv("GAMMAPY_DATA", raising=False)
    with pytest.raises(ConfigError, match=r"\$GAMMAPY_DATA"):
        catalogs.sky_regions(settings())


def test_allow_missing_catalogs_goes_on_with_a_warning_for_each(monkeypatch, caplog):
    monkeypatch.delenv("GAMMAPY_DATA", raising=False)
    allowed = settings(allow_missing_catalogs=True, exclude_regions=[[10, 20, 0.3]])
    with caplog.at_level(logging.WARNING):
        regions = catalogs.sky_regions(allowed)
    assert_array_equal(regions.kind, ["own"])
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) >= 3


@pytest.mark.parametrize("name", ["gammacat", "3hwc"])
@pytest.mark.parametrize("content", ["noise", "half", "other columns"])
def test_a_broken_catalogue_is_an_error_that_names_the_file(data, name, content):
    path = data / catalogs.CATALOG_FILES[name]
    if content == "other columns":
        formats = {"gammacat": "fits", "3hwc": "ascii.ecsv"}
        Table({"x": [1.0]}).write(path, format=formats[name], overwrite=True)
    else:
        path.write_bytes({"noise": b"no catalogue", "half": path.read_bytes()[:300]}[content])
    with pytest.raises(ConfigError, match=path.name):
        catalogs.sky_regions(settings())


# --- region files: each shape against its definition on the sphere --------------------------------------------------


def offsets(center, sky):
    """Positions in the tangential system of a centre [deg]: to the west (ds9's x) and to the north."""
    frame = sky.transform_to(center.skyoffset_frame())
    lon, lat = frame.lon.wrap_at(180 * u.deg).rad, frame.lat.rad
    return -np.rad2deg(np.tan(lon)), np.rad2deg(np.tan(lat) / np.cos(lon))


def rotated(center, sky, angle):
    x, y = offsets(center, sky)
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    return x * cos + y * sin, -x * sin + y * cos


def in_circle(center, sky):
    return sky.separation(center).deg / 0.6


def in_ellipse(center, sky):
    along, across = rotated(center, sky, 30)
    return np.hypot(along / 0.9, across / 0.3)


def in_box(center, sky):
    along, across = rotated(center, sky, 20)
    return np.maximum(np.abs(along) / 0.8, np.abs(across) / 0.25)


def in_annulus(center, sky):
    distance = sky.separation(center).deg
    return np.maximum(distance / 0.9, 0.4 / np.maximum(distance, 1e-9))


# Text of the region, and a function that is below 1 inside (5 % around 1 are left to the pixels of the projection).
SHAPES = {
    "circle": ("circle({lon},{lat},0.6)", in_circle),
    "ellipse": ("ellipse({lon},{lat},0.9,0.3,30)", in_ellipse),
    "box": ("box({lon},{lat},1.6,0.5,20)", in_box),
    "annulus": ("annulus({lon},{lat},0.4,0.9)", in_annulus),
}
CENTERS = [
    ("fk5", 83.6, 22.0),
    ("icrs", 0.3, -30.0),
    ("icrs", 359.8, 70.0),
    ("icrs", 120.0, 89.0),
    ("galactic", 184.5, -5.8),
]


def region_file(tmp_path, frame, text):
    path = tmp_path / "mine.reg"
    path.write_text(f"# Region file format: DS9 version 4.1\n{frame}\n{text}\n")
    return path


def positions_around(center, radius=1.5, n=4000, seed=0):
    rng = np.random.default_rng(seed)
    return center.directional_offset_by(rng.uniform(0, 360, n) * u.deg, radius * np.sqrt(rng.uniform(size=n)) * u.deg)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("frame", "lon", "lat"), CENTERS)
def test_shape_of_a_region_file_is_that_of_its_definition(tmp_path, name, frame, lon, lat):
    text, inside = SHAPES[name]
    regions = catalogs.read_region_file(region_file(tmp_path, frame, text.format(lon=lon, lat=lat)))
    center = SkyCoord(lon, lat, unit="deg", frame=frame)
    sky = positions_around(center)
    depth = inside(center, sky)
    clear = np.abs(depth - 1) > 0.02
    excluded = exclusion.excluded_positions(regions, sky.icrs.ra.deg, sky.icrs.dec.deg)
    assert_array_equal(excluded[clear], (depth < 1)[clear])
    assert set(regions.kind) == {"file"}


POLYGONS = {
    "plain": [(83.0, 21.6), (84.4, 21.8), (83.9, 22.9)],
    "across RA 0": [(359.2, 40.2), (0.9, 39.9), (0.4, 41.1), (359.7, 41.0)],
    "dec 85": [(10.0, 84.6), (20.0, 84.8), (15.0, 85.5)],
}


def in_polygon(corners, sky):
    """Position inside a convex polygon of great circles: on the same side of all of them."""
    corner = SkyCoord(corners, unit="deg").cartesian.xyz.value.T
    side = np.array(
        [np.cross(a, b) @ sky.cartesian.xyz.value for a, b in zip(corner, np.roll(corner, -1, axis=0), strict=True)]
    )
    return np.all(side > 0, axis=0) | np.all(side < 0, axis=0), np.rad2deg(np.abs(side)).min(axis=0) > 1e-3


@pytest.mark.parametrize("corners", POLYGONS.values(), ids=POLYGONS)
def test_polygon_of_a_region_file_has_great_circles_as_sides(tmp_path, corners):
    text = "polygon(" + ",".join(f"{lon},{lat}" for lon, lat in corners) + ")"
    regions = catalogs.read_region_file(region_file(tmp_path, "icrs", text))
    sky = positions_around(SkyCoord([corners[0]], unit="deg")[0], radius=2.0)
    inside, clear = in_polygon(corners, sky)
    excluded = exclusion.excluded_positions(regions, sky.ra.deg, sky.dec.deg)
    assert inside.sum() > 100
    assert_array_equal(excluded[clear], inside[clear])


@pytest.mark.parametrize("name", SHAPES)
def test_the_bounding_radius_holds_the_shape_and_brings_it_to_the_field(tmp_path, name):
    text, inside = SHAPES[name]
    regions = catalogs.read_region_file(region_file(tmp_path, "icrs", text.format(lon=83.6, lat=22.0)))
    center = SkyCoord(83.6, 22.0, unit="deg")
    sky = positions_around(center)
    farthest = sky.separation(center).deg[inside(center, sky) < 1].max()
    assert farthest <= regions.radius[0] < 1.2 * farthest
    # Its centre is outside of the field of view, its edge inside.
    pointing = center.directional_offset_by(60 * u.deg, (2.5 + farthest - 0.01) * u.deg)
    assert len(regions.near(pointing.ra.deg, pointing.dec.deg, 2.5).ra) == 1


@pytest.mark.parametrize("name", ["ellipse", "box", "annulus"])
@pytest.mark.parametrize("lat", [22.0, 70.0])
def test_pixels_of_a_shape_cover_its_area(tmp_path, name, lat):
    text, _ = SHAPES[name]
    regions = catalogs.read_region_file(region_file(tmp_path, "icrs", text.format(lon=359.9, lat=lat)))
    grid = fov.ring_grid((0.0, 1.25, 2.5))
    excluded = exclusion.excluded_pixels(grid, regions, 0.3, lat + 0.4)
    area = {"ellipse": np.pi * 0.9 * 0.3, "box": 1.6 * 0.5, "annulus": np.pi * (0.9**2 - 0.4**2)}[name]
    assert grid.solid_angle[excluded].sum() == pytest.approx(np.deg2rad(1) ** 2 * area, rel=0.02)


def test_a_region_file_of_several_shapes_keeps_its_order(tmp_path):
    text = "circle(10,20,0.5)\nellipse(30,40,0.9,0.3,30)\ncircle(50,60,30')"
    regions = catalogs.read_region_file(region_file(tmp_path, "icrs", text))
    assert_allclose(regions.ra, [10, 30, 50])
    assert_allclose(regions.radius[[0, 2]], 0.5)
    assert_array_equal(regions.shape == "", [True, False, True])


def test_a_crtf_file_is_read(tmp_path):
    path = tmp_path / "mine.crtf"
    path.write_text("#CRTFv0\ncircle[[83.6deg, 22.0deg], 0.5deg], coord=ICRS\n")
    regions = catalogs.read_region_file(path)
    assert_allclose([regions.ra[0], regions.dec[0], regions.radius[0]], [83.6, 22.0, 0.5])


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        ("icrs", "-circle(83.6,22.0,0.5)"),
        ("image", "circle(100,200,20)"),
        ("icrs", "circle(83.6,22.0"),
        ("icrs", "point(83.6,22.0)"),
        ("icrs", "line(83.6,22.0,84.0,22.5)"),
    ],
    ids=["negative", "pixel coordinates", "broken", "point", "line"],
)
def test_a_region_that_excludes_no_part_of_the_sky_is_refused(tmp_path, frame, text):
    with pytest.raises(ConfigError, match=r"mine\.reg"):
        catalogs.read_region_file(region_file(tmp_path, frame, text))


def test_an_empty_or_unreadable_region_file_is_refused(tmp_path):
    broken = tmp_path / "mine.reg"
    broken.write_bytes(bytes(range(256)))
    with pytest.raises(ConfigError, match=r"mine\.reg"):
        catalogs.read_region_file(broken)
    with pytest.raises(ConfigError, match=r"missing\.reg"):
        catalogs.read_region_file(tmp_path / "missing.reg")


def test_a_region_file_is_sought_beside_the_yaml(data, tmp_path):
    region_file(tmp_path, "icrs", "circle(83.6,22.0,0.5)")
    regions = catalogs.sky_regions(settings(exclude_region_files=["mine.reg"]), tmp_path)
    assert_allclose(regions.radius[regions.kind == "file"], [0.5])


# --- the real catalogues --------------------------------------------------------------------------------------------


@pytest.mark.realdata
def test_westerlund_1_has_no_size_and_gets_the_default_with_a_note(gammapy_data):
    regions = catalogs.read_gammacat(gammapy_data / catalogs.CATALOG_FILES["gammacat"])
    radius, note = of_name(regions, "Westerlund 1")
    assert radius == 0.35
    assert note


@pytest.mark.realdata
def test_no_source_of_the_real_catalogues_is_left_out_or_out_of_bounds(gammapy_data):
    gammacat = catalogs.read_gammacat(gammapy_data / catalogs.CATALOG_FILES["gammacat"])
    hwc = catalogs.read_3hwc(gammapy_data / catalogs.CATALOG_FILES["3hwc"])
    assert (len(gammacat.ra), len(hwc.ra)) == (162, 65)
    for regions in (gammacat, hwc):
        assert ((regions.radius >= 0.35) & (regions.radius <= 1.2)).all()
        assert np.isfinite(regions.ra + regions.dec).all()
    document = catalogs.read_gammacat(gammapy_data / catalogs.CATALOG_FILES["gammacat"], rule="document")
    assert (document.radius < 0.35).sum() == 17  # the count of the field notes


@pytest.mark.realdata
def test_the_whole_real_star_table_is_read(gammapy_data):
    path = gammapy_data / catalogs.STAR_FILE
    assert len(catalogs.read_stars(path, mag_max=99).ra) == 41057
    assert catalogs.read_stars(path, mag_max=8).ra[0] == pytest.approx(0.005024)
