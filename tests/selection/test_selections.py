"""Which runs contribute: each cut by itself, the order, the hours, and what is said where no run is left.

The whole is compared with a plain loop that takes one target at a time and sorts Python lists.
"""

from __future__ import annotations

import math
import tracemalloc
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from numpy.testing import assert_allclose, assert_array_equal

from dask_bkg import selection
from dask_bkg.config import parse_config
from dask_bkg.errors import ConfigError
from dask_bkg.selection import choose_block, cuts, finish, merge, ranking
from dask_bkg.selection.ranking import kernel_distance
from dask_bkg.sky.fov import separation

SEASONS = {"winter": ["2020-01-01", "2020-03-31"], "summer": ["2020-06-01", "2020-08-31"]}
WINTER, SPRING, SUMMER = 58880.0, 58960.0, 59030.0  # 2020-02-01, 2020-04-21, 2020-06-30
RANKS = ("none", "elevation", "kl", "conditions", "kl-conditions")


def settings(**section):
    return parse_config({"background_selection": {"rank": "elevation", **section}}).background_selection


def make_runs(n, **columns):
    """Table of ``n`` equal runs 1, 2, ...; columns replace what is told."""
    equal = {
        "obs_id": np.arange(1, n + 1),
        "object_code": np.full(n, -1),
        "ra_pnt": np.full(n, 150.0),
        "dec_pnt": np.full(n, 40.0),
        "zenith": np.full(n, 30.0),
        "azimuth": np.full(n, 180.0),
        "nsb": np.full(n, 5.0),
        "n_tels": np.full(n, 4.0),
        "time": np.full(n, WINTER),
        "livetime": np.full(n, 1800.0),
        "muon_efficiency": np.full(n, 1.0),
        "e_thres": np.full(n, 0.5),
        "lo_thres": np.full(n, 0.7),
        "aeff_integral": np.full(n, 4e5),
        "ln_e_q25": np.full(n, -0.5),
    }
    return equal | {name: np.asarray(column, dtype=equal[name].dtype) for name, column in columns.items()}


def target_of(**conditions):
    """Table of one target that is none of the runs, unless ``obs_id`` says so."""
    return make_runs(1, **{name: [value] for name, value in ({"obs_id": 99} | conditions).items()})


def select(targets, runs, settings, *, kl=None, poor=None, blocks=1):
    """Selections over several blocks of runs (their number, or the limits between them)."""
    n = runs["obs_id"].size
    limits = np.linspace(0, n, blocks + 1).astype(int) if isinstance(blocks, int) else [0, *blocks, n]
    parts = candidates(targets, runs, settings, limits, kl, poor)
    return finish(targets, merge(parts, settings), settings)


def candidates(targets, runs, settings, limits, kl=None, poor=None):
    """Candidates in each block of runs."""
    parts = []
    for a, b in pairwise(limits):
        block = {name: column[a:b] for name, column in runs.items()}
        pairs = (None if matrix is None else matrix[:, a:b] for matrix in (kl, poor))
        parts.append(choose_block(targets, block, int(a), *pairs, settings))
    return parts


def chosen(runs, target=None, **section):
    """The selection of one target."""
    return select(target or target_of(), runs, settings(**section)).of(0)


def passed(runs, target=None, **section):
    return sorted(chosen(runs, target, rank="none", **section).obs_id.tolist())


def azimuth_difference(first, second):
    """Difference of azimuths [deg] the short way round, 0 to 180."""
    return np.abs((np.asarray(first) - np.asarray(second) + 180.0) % 360.0 - 180.0)


# -- quantities ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (350, 20, 30),
        (20, 350, 30),
        (0, 360, 0),
        (0, 180, 180),
        (90, 271, 179),
        (-10, 10, 20),
        (359.5, 0.5, 1),
        (725, 4, 1),
    ],
)
def test_azimuth_difference_goes_the_short_way_round(first, second, expected):
    assert float(azimuth_difference(first, second)) == pytest.approx(expected)
    runs, target = make_runs(1, azimuth=[float(second)]), target_of(azimuth=float(first))
    assert passed(runs, target, az_diff=min(expected + 1e-9, 180)) == [1]
    assert expected == 0 or passed(runs, target, az_diff=expected - 1e-9) == []


def test_azimuth_difference_is_the_angle_between_directions():
    first, second = np.random.default_rng(0).uniform(0, 360, (2, 500))
    angle = np.rad2deg(np.arccos(np.cos(np.deg2rad(first - second))))
    assert_allclose(azimuth_difference(first, second), angle, atol=1e-6)


def test_airmass_is_one_over_sine_of_the_elevation():
    assert_allclose(ranking.airmass([0, 30, 60]), [1, 2 / np.sqrt(3), 2])
    assert_allclose(ranking.airmass(90 - 35.0), 1 / np.sin(np.deg2rad(35)))


def test_galactic_latitude_is_astropys():
    rng = np.random.default_rng(1)
    ra, dec = rng.uniform(0, 360, 500), np.rad2deg(np.arcsin(rng.uniform(-1, 1, 500)))
    assert_allclose(cuts.galactic_latitude(ra, dec), SkyCoord(ra, dec, unit="deg").galactic.b.deg, atol=1e-4)


# -- cuts, one by one ------------------------------------------------------------------------------------------


def test_without_cuts_every_run_but_the_own_one_passes():
    runs = make_runs(5, zenith=[0, 20, 40, 60, 80], azimuth=[0, 90, 180, 270, 359], n_tels=[1, 2, 3, 4, 4])
    assert passed(runs, target_of(obs_id=3)) == [1, 2, 4, 5]


def test_a_run_without_any_number_passes_where_no_cut_is_set():
    nothing = {name: [np.nan] for name in cuts.CONDITIONS}
    assert passed(make_runs(1, **nothing), target_of(**dict.fromkeys(cuts.CONDITIONS, np.nan))) == [1]


def test_a_table_without_a_column_has_no_run_that_passes_its_cut():
    runs = {name: column for name, column in make_runs(3).items() if name not in ("nsb", "object_code")}
    assert passed(runs) == [1, 2, 3]
    assert passed(runs, nsb_diff=1) == []
    assert passed(runs, target_of(ra_pnt=10), exclude_same_target=True) == [1, 2, 3]


@pytest.mark.parametrize(
    ("section", "columns", "expected"),
    [
        ({"el_min": 50}, {"zenith": [10, 40, 41, 70, np.nan]}, [1, 2]),
        ({"el_max": 50}, {"zenith": [10, 40, 41, 70, np.nan]}, [2, 3, 4]),
        ({"el_min": "50 deg", "el_max": 60}, {"zenith": [10, 30, 35, 40, 41]}, [2, 3, 4]),
        ({"n_tels": 3}, {"n_tels": [2, 3, 4, 5, np.nan]}, [2, 3, 4]),
        ({"nsb_diff": 0.7}, {"nsb": [4.2, 4.4, 5.0, 5.6, 5.8]}, [2, 3, 4]),
        ({"nsb_diff": 0.7}, {"nsb": [5.0, np.nan, 5.0, 5.0, 5.0]}, [1, 3, 4, 5]),
        ({"az_diff": 45}, {"azimuth": [134, 136, 224, 226, np.nan]}, [2, 3]),
        ({"time_max": 30}, {"time": WINTER + np.array([-31, -29, 0, 29, 31])}, [2, 3, 4]),
        ({"time_max": "2 h"}, {"time": WINTER + np.array([-0.1, -0.08, 0, 0.08, 0.1])}, [2, 3, 4]),
        ({"same_szn": True, "seasons": SEASONS}, {"time": [WINTER, SPRING, SUMMER, WINTER + 40, np.nan]}, [1, 4]),
    ],
    ids=["el_min", "el_max", "both", "n_tels", "nsb", "nsb missing", "azimuth", "days", "hours", "season"],
)
def test_a_cut_passes_the_runs_within_it(section, columns, expected):
    assert passed(make_runs(5, **columns), **section) == expected


@pytest.mark.parametrize(
    ("section", "columns"),
    [
        ({"nsb_diff": 0.5}, {"nsb": [4.5, 5.5]}),
        ({"az_diff": 45}, {"azimuth": [135, 225]}),
        ({"time_max": 2}, {"time": [WINTER - 2, WINTER + 2]}),
        ({"nsb_diff": 0}, {"nsb": [5.0, 5.0]}),
        ({"el_diff": 0}, {"zenith": [30.0, 30.0]}),
        ({"el_min": 60}, {"zenith": [30.0, 30.0]}),
        ({"el_max": 60}, {"zenith": [30.0, 30.0]}),
    ],
    ids=lambda value: next(iter(value)),
)
def test_the_largest_difference_is_allowed_itself(section, columns):
    assert passed(make_runs(2, **columns), **section) == [1, 2]


def test_azimuth_is_cut_on_the_circle():
    runs = make_runs(5, azimuth=[330, 345, 5, 50, 180])
    assert passed(runs, target_of(azimuth=355.0), az_diff=45) == [1, 2, 3]
    assert passed(runs, target_of(azimuth=5.0), az_diff=45.5) == [1, 2, 3, 4]
    assert passed(runs, target_of(azimuth=-5.0), az_diff=45) == [1, 2, 3]
    assert passed(runs, target_of(azimuth=725.0), az_diff=180) == [1, 2, 3, 4, 5]


def test_the_azimuth_cut_is_that_of_the_difference():
    rng = np.random.default_rng(9)
    runs = make_runs(300, azimuth=rng.uniform(-90, 400, 300))
    expected = np.flatnonzero(azimuth_difference(runs["azimuth"], 350) <= 60) + 1
    assert passed(runs, target_of(azimuth=350), az_diff=60) == expected.tolist()


def test_el_diff_is_a_difference_of_one_over_sine():
    """Not 1 / sin(el_diff), which lets everything pass: from 1 / sin 60 deg, 0.15 reaches from 81 to 50.1 deg."""
    elevation = np.array([90, 75, 50.3, 49.9, 40])
    runs = make_runs(5, zenith=90 - elevation)
    difference = np.abs(1 / np.sin(np.deg2rad(elevation)) - 1 / np.sin(np.deg2rad(60)))
    assert passed(runs, el_diff=0.15) == (np.flatnonzero(difference < 0.15) + 1).tolist() == [2, 3]


def test_the_elevation_cut_is_monotone():
    runs = make_runs(80, zenith=np.arange(80))
    sizes = [len(passed(runs, target_of(zenith=40.0), el_diff=step)) for step in np.linspace(0.01, 5, 20)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] == 80


@pytest.mark.parametrize("limit", [5, 10, 40])
def test_runs_near_the_galactic_plane_are_left_out(limit):
    rng = np.random.default_rng(2)
    ra, dec = rng.uniform(0, 360, 200), rng.uniform(-80, 80, 200)
    latitude = SkyCoord(ra, dec, unit="deg").galactic.b.deg
    runs = make_runs(200, ra_pnt=ra, dec_pnt=dec)
    assert passed(runs, galactic_latitude_min=limit) == (np.flatnonzero(np.abs(latitude) >= limit) + 1).tolist()


def test_a_target_in_the_plane_takes_runs_outside_of_it():
    assert passed(
        make_runs(2, ra_pnt=[266.4, 150], dec_pnt=[-29, 40]),
        target_of(ra_pnt=266.4, dec_pnt=-29.0),
        galactic_latitude_min=10,
    ) == [2]


def test_the_first_and_the_last_day_belong_to_a_season():
    """2020-01-01 is MJD 58849, 2020-03-31 is MJD 58939."""
    runs = make_runs(4, time=[58848.99, 58849.0, 58939.99, 58940.0])
    assert passed(runs, same_szn=True, seasons=SEASONS) == [2, 3]


def test_excluded_runs_contribute_to_nobody_but_get_a_background():
    runs = make_runs(4) | {"excluded": np.array([False, True, False, True])}
    found = select(runs, runs, settings(rank="none"))
    assert [found.of(i).obs_id.tolist() for i in range(4)] == [[3], [1, 3], [1], [1, 3]]


def test_runs_of_the_same_target_are_left_out_by_its_name():
    runs = make_runs(4, object_code=[7, 8, -1, 7], ra_pnt=[10, 20, 30, 40])
    assert passed(runs, target_of(object_code=7), exclude_same_target=True) == [2, 3]
    assert passed(runs, target_of(object_code=-1), exclude_same_target=True) == [1, 2, 3, 4]
    assert passed(runs, target_of(object_code=7)) == [1, 2, 3, 4]


@pytest.mark.parametrize("dec", [0.0, 45.0, 89.0])
def test_runs_of_the_same_target_are_left_out_by_where_they_point(dec):
    """1.5 deg on the sphere, across RA 0; 1.5 deg itself is the same target."""
    target = SkyCoord(359.9, dec, unit="deg")
    around = [target.directional_offset_by(90 * u.deg, offset * u.deg) for offset in (0, 1, 1.499, 1.501, 3)]
    runs = make_runs(5, ra_pnt=[c.ra.deg for c in around], dec_pnt=[c.dec.deg for c in around])
    assert passed(runs, target_of(ra_pnt=359.9, dec_pnt=dec), exclude_same_target=True) == [4, 5]
    straight = make_runs(2, ra_pnt=[0.0, 0.0], dec_pnt=[1.5, 1.5001])
    assert passed(straight, target_of(ra_pnt=0.0, dec_pnt=0.0), exclude_same_target=True) == [2]


def test_a_run_that_says_neither_name_nor_place_is_of_another_target():
    runs = make_runs(2, ra_pnt=[np.nan, 150.0])
    assert passed(runs, exclude_same_target=True) == [1]


# -- the order and the hours -----------------------------------------------------------------------------------


def test_the_nearest_in_airmass_come_first_and_the_best_match_is_kept():
    runs = make_runs(6, zenith=[30, 45, 31, 20, 30.5, 60])
    found = chosen(runs, target_of(obs_id=1), time_request="all")
    distance = np.abs(1 / np.cos(np.deg2rad(runs["zenith"])) - 1 / np.cos(np.deg2rad(30)))
    assert found.obs_id.tolist() == [number for number in np.argsort(distance) + 1 if number != 1]
    assert found.obs_id[0] == 5
    assert_array_equal(found.score, np.round(distance[found.run], 10))


@pytest.mark.parametrize("rank", RANKS)
def test_the_own_run_never_contributes_although_it_is_the_best_match(rank):
    runs = make_runs(30, zenith=np.linspace(0, 50, 30))
    kl = np.abs(np.subtract.outer(runs["zenith"], runs["zenith"]))
    found = select(runs, runs, settings(rank=rank, time_request=3), kl=kl, blocks=4)
    best = [found.of(i).obs_id[0] - found.of(i).obs_id.dtype.type(i + 1) for i in range(30)]
    assert not any(i + 1 in found.of(i).obs_id for i in range(30))
    # the neighbour at either side is the best match, and it is there
    assert rank == "none" or set(np.abs(best)) == {1}


def test_the_own_run_is_left_out_by_its_number_not_by_its_place():
    runs = make_runs(4, obs_id=[64080, 20136, 64077, 30000])
    assert passed(runs, target_of(obs_id=64077)) == [20136, 30000, 64080]


def test_ties_are_broken_by_the_run_number():
    runs = make_runs(4, obs_id=[40, 10, 30, 20], azimuth=[10, 20, 30, 40])
    assert chosen(runs, time_request=1.0).obs_id.tolist() == [10, 20]


def test_scores_that_differ_by_rounding_are_ties():
    kl = np.array([[0.2 + 3e-11, 0.2, 0.2 - 3e-11, 0.2 + 1.1e-10]])
    found = select(target_of(), make_runs(4), settings(rank="kl", time_request="all"), kl=kl)
    assert found.obs_id.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(("request_", "n"), [(1.0, 2), (1.1, 3), (0.2, 1), ("90 min", 3), (2.5, 5)])
@pytest.mark.parametrize("rank", RANKS[1:])
def test_runs_are_taken_until_the_hours_are_reached_the_crossing_run_included(rank, request_, n):
    kl = np.zeros((1, 10))
    found = select(target_of(), make_runs(10), settings(rank=rank, time_request=request_), kl=kl).of(0)
    assert len(found.obs_id) == n
    assert found.hours == found.livetime == pytest.approx(n * 0.5)
    assert found.enough


@pytest.mark.parametrize("minutes", [7, 10, 12, 14, 20, 25, 28])
@pytest.mark.parametrize("n", [3, 6, 7, 11, 29])
def test_hours_that_are_reached_exactly_are_reached(minutes, n):
    """1/3 h is no binary number: a rounding error must not take a run more, nor say that it is not enough."""
    runs = make_runs(n + 2, livetime=np.full(n + 2, minutes * 60.0))
    found = chosen(runs, time_request=f"{minutes * n} min")
    assert (len(found.obs_id), found.enough) == (n, True)


def test_too_few_hours_are_used_and_flagged():
    found = chosen(make_runs(4), time_request=10)
    assert (len(found.obs_id), found.hours, found.enough, found.reason) == (4, 2.0, False, "")


def test_all_hours_are_always_enough():
    found = chosen(make_runs(4), time_request="all")
    assert (len(found.obs_id), found.enough) == (4, True)


def test_a_run_without_livetime_brings_no_hours():
    found = chosen(make_runs(4, livetime=[np.nan, 1800, 1800, 1800]), time_request=1)
    assert found.obs_id.tolist() == [1, 2, 3]
    assert found.hours == 1.0


def test_without_ranking_every_run_that_passes_is_taken():
    runs = make_runs(30, zenith=np.linspace(0, 58, 30))
    found = chosen(runs, target_of(obs_id=3), rank="none", time_request=1, el_min=40)
    assert found.obs_id.tolist() == [i for i in range(1, 31) if i != 3 and runs["zenith"][i - 1] <= 50]
    assert found.hours == pytest.approx(0.5 * len(found.obs_id))
    assert found.enough


def test_a_run_without_elevation_comes_last():
    assert chosen(make_runs(3, zenith=[np.nan, 60, 31]), time_request="all").obs_id.tolist() == [3, 2, 1]
    assert chosen(make_runs(3, zenith=[np.nan, 60, 31]), time_request=1).obs_id.tolist() == [3, 2]


def test_a_target_without_elevation_takes_all_where_all_are_wanted():
    found = chosen(make_runs(3), target_of(zenith=np.nan), time_request="all")
    assert (found.obs_id.tolist(), found.reason) == ([1, 2, 3], "")


# -- what is said ----------------------------------------------------------------------------------------------


def test_no_run_left_names_the_target_and_which_cut_left_how_many():
    runs = make_runs(5, zenith=[30, 30, 70, 70, 70], nsb=[9, 9, 5, 5, 5])
    for blocks in (1, 2, 5):
        found = select(target_of(), runs, settings(el_min=40, nsb_diff=1), blocks=blocks).of(0)
        assert found.run.size == 0
        assert not found.enough
        assert found.reason == (
            "run 99: no run of the archive passes background_selection (runs left after each cut: other runs: 5, "
            "el_min 40 deg: 2, nsb_diff 1: 0): widen the cut that left none"
        )


def test_the_trail_counts_down_and_names_the_season():
    runs = make_runs(6, zenith=[30, 30, 30, 30, 75, 30], time=[SUMMER] * 5 + [WINTER])
    found = chosen(runs, target_of(obs_id=6), el_min=40, same_szn=True, seasons=SEASONS, exclude_same_target=True)
    assert "other runs: 5, el_min 40 deg: 4, same_szn winter: 0, exclude_same_target: 0" in found.reason


def test_every_cut_is_in_the_trail():
    values = {key: 0 if key not in ("same_szn", "el_max") else True for key in CUTS} | {"el_max": 80}
    values |= {"n_tels": 9, "seasons": SEASONS, "exclude_same_target": True}
    reason = chosen(make_runs(3), **values).reason
    assert all(key in reason for key in (*CUTS, "exclude_same_target"))


def test_a_target_without_any_divergence_says_so():
    kl = np.array([[np.nan, np.nan], [0.1, np.nan]])
    found = select(make_runs(2, obs_id=[8, 9]), make_runs(2), settings(rank="kl"), kl=kl)
    assert found.of(0).reason.endswith(
        "(runs left after each cut: other runs: 2, rank kl: 0): widen the cut that left none"
    )
    assert found.of(1).obs_id.tolist() == [1]


def test_an_archive_of_the_target_alone_has_no_run():
    assert "other runs: 0" in chosen(make_runs(1), target_of(obs_id=1)).reason


def test_an_archive_or_a_block_without_runs_is_no_error():
    for rank in RANKS:
        found = select(make_runs(3), make_runs(0), settings(rank=rank), kl=np.zeros((3, 0)))
        assert [found.of(i).run.size for i in range(3)] == [0, 0, 0]
        assert select(make_runs(0), make_runs(3), settings(rank=rank), kl=np.zeros((0, 3))).reason == []


CUTS = {
    "el_min": (40, "zenith", "ALT_PNT"),
    "el_max": (80, "zenith", "ALT_PNT"),
    "el_diff": (0.15, "zenith", "ALT_PNT"),
    "az_diff": (45, "azimuth", "AZ_PNT"),
    "nsb_diff": (0.7, "nsb", "NSBLEVEL"),
    "n_tels": (3, "n_tels", "N_TELS"),
    "time_max": (30, "time", "TSTART"),
    "same_szn": (True, "time", "TSTART"),
    "galactic_latitude_min": (10, "ra_pnt", "RA_PNT"),
}


@pytest.mark.parametrize("key", CUTS)
def test_a_cut_whose_column_is_missing_everywhere_is_an_error_that_names_both(key):
    value, quantity, card = CUTS[key]
    runs = make_runs(3, **{quantity: np.full(3, np.nan)})
    with pytest.raises(ConfigError, match=f"{key}.*{card}"):
        selection.check_conditions(runs, settings(**{key: value}))
    selection.check_conditions(runs, settings(rank="none"))
    selection.check_conditions(make_runs(3, **{quantity: [np.nan, 1.0, np.nan]}), settings(**{key: value}))


@pytest.mark.parametrize("key", ["el_min", "nsb_diff", "time_max"])
def test_a_cut_that_is_set_to_zero_is_set(key):
    runs = make_runs(3, **{CUTS[key][1]: np.full(3, np.nan)})
    with pytest.raises(ConfigError, match=key):
        selection.check_conditions(runs, settings(**{key: 0}))


@pytest.mark.parametrize("rank", ["elevation", "conditions", "kl-conditions"])
def test_an_archive_without_elevations_cannot_be_ranked_by_them(rank):
    runs = make_runs(3, zenith=np.full(3, np.nan))
    with pytest.raises(ConfigError, match=r"background_selection\.rank: .*ALT_PNT"):
        selection.check_conditions(runs, settings(rank=rank))
    for other in ("none", "kl"):
        selection.check_conditions(runs, settings(rank=other))


def test_an_archive_without_names_and_places_has_no_same_target():
    runs = make_runs(3, ra_pnt=np.full(3, np.nan))
    with pytest.raises(ConfigError, match=r"exclude_same_target.*OBJECT or RA_PNT"):
        selection.check_conditions(runs, settings(exclude_same_target=True))
    selection.check_conditions(runs | {"object_code": np.array([-1, 0, -1])}, settings(exclude_same_target=True))


@pytest.mark.parametrize("key", ["el_diff", "az_diff", "nsb_diff", "time_max", "same_szn"])
def test_a_target_that_lacks_what_a_cut_compares_says_so_and_takes_no_other_with_it(key):
    value, quantity, card = CUTS[key]
    targets = make_runs(3, obs_id=[97, 98, 99])
    targets[quantity][1] = np.nan
    extra = {"seasons": SEASONS} if key == "same_szn" else {}
    found = select(targets, make_runs(3), settings(rank="none", **{key: value}, **extra))
    assert found.of(1).reason.startswith(f"run 98: background_selection.{key} needs {card}")
    assert [found.of(i).run.size for i in range(3)] == [3, 0, 3]
    assert [found.of(i).enough for i in range(3)] == [True, False, True]


@pytest.mark.parametrize("rank", ["elevation", "conditions", "kl-conditions"])
def test_a_target_without_elevation_has_no_nearest_runs(rank):
    targets = make_runs(2, obs_id=[98, 99], zenith=[np.nan, 30])
    found = select(targets, make_runs(4), settings(rank=rank, time_request=1), kl=np.ones((2, 4)))
    assert found.of(0).reason.startswith("run 98: ")
    assert "ALT_PNT or ZEN_PNT: set background_selection.rank: none" in found.of(0).reason
    assert [found.of(i).run.size for i in range(2)] == [0, 2]


@pytest.mark.parametrize("key", ["el_min", "n_tels", "galactic_latitude_min"])
def test_a_target_need_not_have_what_is_only_asked_of_the_others(key):
    value, quantity, _ = CUTS[key]
    assert passed(make_runs(3), target_of(**{quantity: np.nan}), **{key: value}) == [1, 2, 3]


def test_a_target_outside_of_all_seasons_names_its_date():
    reason = chosen(make_runs(3), target_of(time=SPRING), same_szn=True, seasons=SEASONS).reason
    assert reason.startswith(f"run 99: its date (MJD {SPRING:.1f}) lies in none of the seasons winter, summer")


# -- divergence and weights ------------------------------------------------------------------------------------


def test_a_run_that_covers_too_little_comes_last_and_is_flagged_where_it_is_needed():
    kl, poor = np.array([[0.1, 0.2, 0.3, 0.4]]), np.array([[True, False, False, True]])
    for hours, expected, flagged in ((1.0, [2, 3], False), (1.5, [2, 3, 1], True), (9.0, [2, 3, 1, 4], True)):
        found = select(target_of(), make_runs(4), settings(rank="kl", time_request=hours), kl=kl, poor=poor).of(0)
        assert (found.obs_id.tolist(), found.flagged) == (expected, flagged)


def test_weights_are_those_of_the_kernel_and_hours_count_with_them():
    zenith = np.linspace(20, 40, 60)
    found = chosen(make_runs(60, zenith=zenith), rank="conditions", time_request=5)
    weight = np.exp(-(((np.cos(np.deg2rad(zenith)) - np.cos(np.deg2rad(30))) / 0.05) ** 2) / 2)
    order = np.argsort(-weight)
    n = np.searchsorted(np.cumsum(weight[order]) * 0.5, 5) + 1
    assert_array_equal(found.run, order[:n])
    assert_allclose(found.weight, weight[order[:n]])
    assert found.hours == pytest.approx(0.5 * weight[order[:n]].sum())
    assert found.hours >= 5 > found.hours - 0.5 * found.weight[-1]
    assert found.livetime == pytest.approx(0.5 * n)
    assert (found.enough, found.widened) == (True, 1.0)


@pytest.mark.parametrize(("n", "kept"), [(4, 20), (19, 20), (20, 20), (34, 34)])
def test_runs_of_no_weight_are_candidates_only_among_the_twenty_nearest(n, kept):
    """They may count where the kernel is widened; here it is not, and they do not contribute."""
    runs = make_runs(n + 50, e_thres=0.5 * np.exp([0] * n + np.linspace(1, 2, 50).tolist()))
    s = settings(rank="conditions", time_request="all")
    part = choose_block(target_of(), runs, 0, None, None, s)
    assert part.obs_id.tolist() == list(range(1, kept + 1))
    assert finish(target_of(), part, s).obs_id.tolist() == list(range(1, n + 1))


def test_runs_of_no_weight_contribute_where_the_kernel_is_widened():
    found = chosen(make_runs(9, e_thres=0.5 * np.exp([0] + [0.5] * 8)), rank="conditions")
    assert found.obs_id.tolist() == list(range(1, 10))
    assert found.widened > 1


def test_the_kernel_is_widened_by_steps_until_three_runs_count():
    shift = np.array([0.0, 0.3, -0.32, 0.4, 0.5])
    runs = make_runs(5, e_thres=0.5 * np.exp(shift))
    found = chosen(runs, rank="conditions")
    steps = math.log(found.widened) / math.log(1.05)
    assert steps == pytest.approx(round(steps))
    order = np.argsort(np.abs(shift))

    def effective_number(widened):
        weight = np.exp(-((shift / (0.10 * widened)) ** 2) / 2)
        return weight.sum() ** 2 / (weight**2).sum()

    assert effective_number(found.widened) >= 3 > effective_number(found.widened / 1.05)
    assert_allclose(found.weight, np.exp(-((shift[order] / (0.10 * found.widened)) ** 2) / 2))


def test_three_runs_alike_are_not_widened():
    assert chosen(make_runs(3, zenith=[30, 30.5, 30]), rank="conditions").widened == 1


def test_the_kernel_of_two_runs_is_not_widened():
    found = chosen(make_runs(2, e_thres=[0.5, 0.7]), rank="conditions")
    assert found.widened == 1
    assert_allclose(found.weight, [1, np.exp(-((math.log(1.4) / 0.1) ** 2) / 2)])


def test_weights_do_not_vanish_together():
    """A threshold eight times as high is 21 widths away: the weight would be 1e-94."""
    found = chosen(make_runs(4, e_thres=[4.0, 4.0, 4.0, 4.1]), rank="conditions")
    assert 1e-4 <= found.weight[0] < 2.4e-4
    assert found.obs_id.tolist() == [1, 2, 3, 4]
    assert not found.enough


def test_a_target_that_nothing_resembles_at_all_has_a_background_of_its_nearest_runs():
    """50 widths away: the weights themselves are 0 in double precision."""
    with np.errstate(invalid="raise", divide="raise"):
        found = chosen(make_runs(4, e_thres=0.5 * np.exp([5.0, 5.1, 5.4, 9.0])), rank="conditions")
    assert found.obs_id.tolist()[0] == 1
    assert found.weight[0] >= 1e-4
    assert (found.enough, found.reason) == (False, "")


def test_widening_is_bounded_where_it_cannot_reach_three():
    """And runs of no weight are not among those that contribute, however few these are."""
    found = chosen(make_runs(4, e_thres=[0.5, 0.5, 5e3, 5e4]), rank="conditions")
    assert found.widened == pytest.approx(1.05**28)
    assert found.obs_id.tolist() == [1, 2]
    assert found.livetime == 1.0


def test_wider_kernels_need_fewer_runs_for_the_hours():
    """Two near runs and many at 3 widths: widened, these bring the hours sooner than by their own weights."""
    runs = make_runs(30, e_thres=0.5 * np.exp([0, 0] + [0.35] * 28))
    own = math.exp(-(3.5**2) / 2)
    found = chosen(runs, rank="conditions", time_request=1.02)
    assert found.widened > 1
    assert found.hours >= 1.02 > found.hours - 0.5 * found.weight[-1]
    assert len(found.obs_id) < 2 + (1.02 - 1) / (0.5 * own)


# -- the whole against a plain loop ----------------------------------------------------------------------------


def random_table(rng, n, first=1):
    """Conditions with ties and with numbers missing."""
    columns = {
        "ra_pnt": rng.uniform(0, 30, n),
        "dec_pnt": rng.uniform(-10, 10, n),
        "zenith": rng.choice(np.arange(0, 60, 2.5), n),
        "azimuth": rng.choice(np.arange(-20.0, 380, 5), n),
        "nsb": rng.choice(np.arange(3, 8, 0.5), n),
        "n_tels": rng.integers(2, 5, n),
        "time": rng.uniform(58800, 59150, n),
        "livetime": rng.choice([600.0, 1200.0, 1680.0, 1800.0], n),
        "muon_efficiency": rng.normal(1, 0.1, n),
        "e_thres": np.exp(rng.choice(np.arange(-1, 0, 0.1), n)),
        "aeff_integral": np.exp(rng.normal(12, 0.2, n)),
        "ln_e_q25": rng.normal(-0.5, 0.2, n),
    }
    for name, values in columns.items():
        columns[name] = np.where(rng.random(n) < 0.06, np.nan, values)
    numbers = rng.permutation(np.arange(first, first + n))
    return make_runs(n, obs_id=numbers, object_code=rng.integers(-1, 12, n), **columns) | {
        "excluded": rng.random(n) < 0.05
    }


def row_of(table, i):
    return {name: column[i].item() for name, column in table.items()}


def same_target(target, run):
    places = (r[name] for r in (target, run) for name in ("ra_pnt", "dec_pnt"))
    return target["object_code"] == run["object_code"] >= 0 or separation(*places) <= 1.5


def passes(target, run, s):
    """Whether one run passes all cuts of one target."""
    airmasses = (1 / math.cos(math.radians(r["zenith"])) for r in (target, run))
    season = s.season_of(target["time"]) if s.same_szn else None
    return run["obs_id"] != target["obs_id"] and all(
        [
            not run["excluded"],
            s.el_min is None or 90 - run["zenith"] >= s.el_min,
            s.el_max is None or 90 - run["zenith"] <= s.el_max,
            s.n_tels is None or run["n_tels"] >= s.n_tels,
            s.galactic_latitude_min is None
            or abs(cuts.galactic_latitude(run["ra_pnt"], run["dec_pnt"])) >= s.galactic_latitude_min,
            s.el_diff is None or abs(np.subtract(*airmasses)) <= s.el_diff,
            s.az_diff is None or azimuth_difference(run["azimuth"], target["azimuth"]) <= s.az_diff,
            s.nsb_diff is None or abs(run["nsb"] - target["nsb"]) <= s.nsb_diff,
            s.time_max is None or abs(run["time"] - target["time"]) <= s.time_max,
            not s.same_szn or (season is not None and s.season_of(run["time"]) == season),
            not s.exclude_same_target or not same_target(target, run),
        ]
    )


def score_of(target, run, kl, poor, rank):
    """Score and squared distance of one pair; the score is NaN where the run is no candidate."""
    one, other = ({name: np.array([value]) for name, value in r.items()} for r in (target, run))
    found, lack = (part.item() for part in kernel_distance(one, other)) if "conditions" in rank else (0.0, 0)
    if rank == "none":
        return 0.0, found
    if rank == "elevation":
        gap = abs(ranking.airmass(target["zenith"]) - ranking.airmass(run["zenith"]))
        return (1e30 if math.isnan(gap) else gap), found
    return (found + 1e5 * lack if rank == "conditions" else kl + 1e3 * poor), found


def plain_selection(target, runs, kl, poor, s):
    """The runs of one target, ``[(obs_id, weight), ...]``, and the factor of the widening."""
    missing = {"el_diff": "zenith", "az_diff": "azimuth", "nsb_diff": "nsb", "time_max": "time", "same_szn": "time"}
    if any(cuts.is_set(s, key) and math.isnan(target[name]) for key, name in missing.items()):
        return [], 1.0
    wanted = math.inf if s.ranking == "none" else s.hours_wanted
    ranked_by_it = "conditions" in s.ranking or (s.ranking == "elevation" and wanted < math.inf)
    if ranked_by_it and math.isnan(target["zenith"]):
        return [], 1.0
    ranked = []
    for j in range(runs["obs_id"].size):
        run = row_of(runs, j)
        if passes(target, run, s):
            score, d2 = score_of(target, run, kl[j], poor[j], s.ranking)
            if math.isfinite(score):
                hours = 0.0 if math.isnan(run["livetime"]) else run["livetime"] / 3600
                ranked.append((float(np.round(score, 10)), run["obs_id"], d2, hours))
    ranked.sort()
    kept, total = [], 0.0
    for place, (_, number, d2, hours) in enumerate(ranked):
        if total >= wanted - 1e-9:
            break
        light = math.exp(-d2 / 2) < 1e-4
        if not light:
            total += hours * math.exp(-d2 / 2)
        if not light or place < 20:
            kept.append((number, d2, hours))
    steps = 0
    if "conditions" in s.ranking and kept:
        needed = 1 if len(kept) < 3 else min(3, 0.9 * len(kept))
        nearest = min(d2 for _, d2, _ in kept)
        while steps < 28 and effective(kept, nearest, steps) < needed:
            steps += 1
        while math.exp(-nearest / 2 / 1.05 ** (2 * steps)) < 1e-4:
            steps += 1
    result, total = [], 0.0
    for number, d2, hours in kept:
        weight = math.exp(-d2 / 2 / 1.05 ** (2 * steps))
        if total < wanted - 1e-9 and weight >= 1e-4:
            result.append((number, weight))
            total += weight * hours
    return result, 1.05**steps


def effective(kept, nearest, steps):
    weights = [math.exp(-(d2 - nearest) / 2 / 1.05 ** (2 * steps)) for _, d2, _ in kept]
    return sum(weights) ** 2 / sum(w * w for w in weights)


SECTIONS = {
    "no cuts": {"time_request": 6},
    "all": {"time_request": "all", "exclude_same_target": True},
    "cuts of the run": {"time_request": 3, "el_min": 40, "el_max": 85, "n_tels": 3, "galactic_latitude_min": 61},
    "cuts of the pair": {"time_request": 2, "el_diff": 0.2, "az_diff": 100, "nsb_diff": 1.5},
    "times": {"time_request": 3, "time_max": 60, "same_szn": True, "seasons": SEASONS},
}


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.slow
def test_selections_are_those_of_a_plain_loop(rank, name):
    rng = np.random.default_rng(list(SECTIONS).index(name))
    runs = random_table(rng, 130)
    targets = {key: column[:12] for key, column in runs.items()}
    kl, poor = np.round(rng.gamma(2, 0.05, (12, 130)), 2), rng.random((12, 130)) < 0.3
    kl[rng.random(kl.shape) < 0.03] = np.nan
    s = settings(rank=rank, **SECTIONS[name])
    found = select(targets, runs, s, kl=kl, poor=poor, blocks=3)
    sizes = []
    for i in range(12):
        expected, widened = plain_selection(row_of(targets, i), runs, kl[i], poor[i], s)
        one = found.of(i)
        assert one.obs_id.tolist() == [number for number, _ in expected]
        assert_allclose(one.weight, [weight for _, weight in expected], rtol=1e-9)
        assert one.widened == pytest.approx(widened)
        assert_array_equal(runs["obs_id"][one.run], one.obs_id)
        livetime = np.nan_to_num(runs["livetime"][one.run]) / 3600
        assert one.hours == pytest.approx((one.weight * livetime).sum())
        assert one.livetime == pytest.approx(livetime.sum())
        wanted = math.inf if rank == "none" else s.hours_wanted
        assert one.enough == (bool(expected) and (math.isinf(wanted) or one.hours >= wanted - 1e-9))
        assert one.flagged == ("kl" in rank and bool((poor[i][one.run]).any()))
        assert bool(one.reason) == (not expected)
        sizes.append(len(expected))
    assert max(sizes) > 3


# -- blocks ----------------------------------------------------------------------------------------------------


def assert_same(first, second):
    for name, mine, theirs in zip(first._fields, first, second, strict=True):
        assert_array_equal(mine, theirs, err_msg=name, strict=name != "reason")


@pytest.fixture(scope="module")
def many():
    rng = np.random.default_rng(5)
    runs = random_table(rng, 400)
    targets = {key: column[100:160] for key, column in runs.items()}
    return targets, runs, np.round(rng.gamma(2, 0.05, (60, 400)), 2), rng.random((60, 400)) < 0.2


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("blocks", [2, 70, [1, 2, 399], [390]], ids=str)
def test_blocks_of_runs_do_not_matter(many, rank, blocks):
    targets, runs, kl, poor = many
    s = settings(rank=rank, time_request=4, el_min=35)
    whole = select(targets, runs, s, kl=kl, poor=poor)
    assert_same(select(targets, runs, s, kl=kl, poor=poor, blocks=blocks), whole)


@pytest.mark.parametrize("rank", RANKS)
def test_any_tree_of_merges_gives_the_same(many, rank):
    targets, runs, kl, poor = many
    s = settings(rank=rank, time_request=4)
    parts = candidates(targets, runs, s, np.linspace(0, 400, 12).astype(int), kl, poor)
    whole = candidates(targets, runs, s, [0, 400], kl, poor)[0]
    rng = np.random.default_rng(6)
    assert_same(merge(parts, s), whole)
    assert_same(merge([whole], s), whole)
    for _ in range(4):
        level = [parts[i] for i in rng.permutation(len(parts))]
        while len(level) > 1:
            n = rng.integers(2, 5)
            level = [merge(level[i : i + n], s) for i in range(0, len(level), n)]
        assert_same(level[0], whole)


def test_hours_of_runs_without_weight_do_not_decide_what_is_kept():
    """First in divergence come 20 + 20 runs of weight 8e-5; one block alone would reach 1.0005 h with the help of its
    20, which those of the other block, of no livetime, push out of the 20 nearest.
    """
    far = 0.5 * math.exp(0.1 * math.sqrt(-2 * math.log(8e-5)))
    runs = make_runs(44, e_thres=[far] * 40 + [0.5] * 4, livetime=[0.0] * 20 + [1800.0] * 24)
    kl = np.array([[0.1] * 20 + [0.2] * 20 + [0.3, 0.4, 0.5, 0.6]])
    s = settings(rank="kl-conditions", time_request=1.0005)
    whole = select(target_of(), runs, s, kl=kl)
    assert whole.obs_id.tolist() == [41, 42, 43]
    for blocks in ([20], [20, 40], 2):
        assert_same(select(target_of(), runs, s, kl=kl, blocks=blocks), whole)


@pytest.mark.parametrize("rank", RANKS)
def test_blocks_of_targets_do_not_matter(many, rank):
    targets, runs, kl, poor = many
    s = settings(rank=rank, time_request=4, az_diff=90)
    whole = select(targets, runs, s, kl=kl, poor=poor)
    parts = [
        select({key: column[a:b] for key, column in targets.items()}, runs, s, kl=kl[a:b], poor=poor[a:b], blocks=2)
        for a, b in ((0, 1), (1, 40), (40, 40), (40, 60))
    ]
    assert_same(selection.join(parts), whole)


def test_the_order_of_the_archive_does_not_matter(many):
    targets, runs, kl, poor = many
    order = np.random.default_rng(3).permutation(400)
    shuffled = {name: column[order] for name, column in runs.items()}
    for rank in RANKS:
        s = settings(rank=rank, time_request=4)
        first = select(targets, runs, s, kl=kl, poor=poor)
        second = select(targets, shuffled, s, kl=kl[:, order], poor=poor[:, order], blocks=3)
        assert_same(first, second._replace(run=order[second.run]))


def test_chunks_within_a_block_do_not_matter(many, monkeypatch):
    targets, runs, kl, poor = many
    for rank in RANKS:
        s = settings(rank=rank, time_request=4)
        whole = select(targets, runs, s, kl=kl, poor=poor, blocks=2)
        with monkeypatch.context() as patch:
            patch.setattr(selection.candidates, "BLOCK_PAIRS", 700)
            assert_same(select(targets, runs, s, kl=kl, poor=poor, blocks=2), whole)


def test_a_block_keeps_only_what_can_matter():
    rng = np.random.default_rng(7)
    targets, runs, kl = make_runs(50), make_runs(500, obs_id=np.arange(500) + 100), rng.random((50, 500))
    for rank in ("kl", "elevation", "conditions"):
        part = choose_block(targets, runs, 0, kl, None, settings(rank=rank, time_request=10))
        assert np.diff(part.start).tolist() == [20] * 50
        merged = merge([part, part._replace(run=part.run + 500, obs_id=part.obs_id + 500)], settings(time_request=10))
        assert np.diff(merged.start).tolist() == [20] * 50


def test_a_row_of_blocks_stays_small():
    """1000 targets x 20,000 runs, 50 h each, all candidates of all blocks at the same time."""
    rng = np.random.default_rng(8)
    targets, s = make_runs(1000), settings(rank="kl", time_request=50)
    tracemalloc.start()
    parts = []
    for i in range(20):
        runs = make_runs(1000, obs_id=np.arange(1000) + 1000 * (i + 1))
        parts.append(choose_block(targets, runs, 1000 * i, rng.random((1000, 1000)), None, s))
    found = finish(targets, merge(parts, s), s)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.diff(found.start).tolist() == [100] * 1000
    assert peak < 200e6


# -- given selections ------------------------------------------------------------------------------------------


def test_lists_by_hand_keep_their_order_and_count_a_run_once():
    runs = make_runs(5, livetime=[1800, 1800, 3600, np.nan, 1800])
    found = selection.given({3: [5, 3, 99, 5, 4]}, runs)[3]
    assert (found.obs_id.tolist(), found.run.tolist(), found.weight.tolist()) == ([5, 3, 4], [4, 2, 3], [1, 1, 1])
    assert (found.hours, found.livetime, found.enough, found.reason) == (1.5, 1.5, True, "")


def test_a_list_of_runs_that_are_not_there_says_so():
    found = selection.given({7: [98, 99]}, make_runs(3))[7]
    assert found.run.size == 0
    assert "run 7: none of the runs of its background_selection.bkg_runlist" in found.reason


def test_each_run_can_be_made_from_itself():
    runs = make_runs(3)
    found = selection.given({i: [i] for i in (1, 2, 3)}, runs)
    packed = selection.pack([found[i] for i in (1, 2, 3)])
    assert packed.start.tolist() == [0, 1, 2, 3]
    assert packed.run.tolist() == [0, 1, 2]


def test_given_selections_take_the_place_of_those_of_their_targets_alone():
    runs = make_runs(6, zenith=[30, 31, 33, 36, 40, 45])
    found = select(runs, runs, settings(time_request=1))
    given = selection.given({2: [6], 5: [1, 2, 3], 77: [1]}, runs)
    mixed = selection.replace(found, runs["obs_id"], given)
    for i, number in enumerate(range(1, 7)):
        expected = given.get(number) or found.of(i)
        assert_same(mixed.of(i), expected)
    assert selection.replace(found, runs["obs_id"], {77: given[77]}) is found


def test_packed_rows_and_joined_blocks_are_what_they_were(many):
    targets, runs, kl, _ = many
    found = select(targets, runs, settings(rank="kl-conditions", time_request=4, nsb_diff=1), kl=kl)
    assert_same(selection.pack([found.of(i) for i in range(60)]), found)
    assert_same(selection.join([found]), found)
    assert selection.pack([]).start.tolist() == [0]


# -- digest ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "section",
    [
        {"time_request": 11},
        {"rank": "kl"},
        {"rank": "none"},
        {"el_min": 0},
        {"n_tels": 3},
        {"az_diff": 45},
        {"exclude_same_target": True},
        {"same_szn": True, "seasons": SEASONS},
    ],
    ids=str,
)
def test_the_digest_changes_with_what_decides(section):
    assert selection.selection_digest(settings(**section)) != selection.selection_digest(settings())


@pytest.mark.parametrize(
    "section",
    [
        {"smooth": True, "smooth_sigma": 2.0},
        {"bkg_runlist": {1: [2, 3]}},
        {"store_KL": True},
        {"same_szn": False, "seasons": SEASONS},
        {"el_min": None, "time_request": "600 min"},
    ],
    ids=str,
)
def test_the_digest_does_not_change_with_what_does_not(section):
    assert selection.selection_digest(settings(**section)) == selection.selection_digest(settings())


def test_the_digest_is_of_what_is_meant_not_of_how_it_is_written():
    digest = selection.selection_digest
    assert digest(settings(rank="kl")) == digest(settings(rank="none", KL_DIV=True))
    seasons = {"winter": SEASONS["winter"], "summer": ["2020-06-01", None]}
    first, second = (settings(same_szn=True, seasons=table) for table in (SEASONS, seasons))
    assert digest(first) != digest(second)
    assert digest(settings(rank="none", time_request=3)) == digest(settings(rank="none"))


def test_settings_need_not_be_a_model():
    bare = SimpleNamespace(ranking="elevation", hours_wanted=1.0)
    assert select(target_of(), make_runs(4), bare).obs_id.tolist() == [1, 2]
