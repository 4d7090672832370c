"""Which runs contribute: each cut by itself, the order, the hours, and what is said where no run is left."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from numpy.testing import assert_allclose, assert_array_equal

from dask_bkg import selection
from dask_bkg.config import parse_config
from dask_bkg.errors import ConfigError, RunError

SEASONS = {"winter": ["2020-01-01", "2020-03-31"], "summer": ["2020-06-01", "2020-08-31"]}
WINTER, SPRING, SUMMER = 58880.0, 58960.0, 59030.0  # 2020-02-01, 2020-04-21, 2020-06-30


def settings(**section):
    return parse_config({"background_selection": section}).background_selection


def make_runs(n, **columns):
    """Observing conditions of ``n`` equal runs 1, 2, ...; columns replace what is told."""
    equal = {
        "obs_id": np.arange(1, n + 1),
        "ra_pnt": np.full(n, 150.0),
        "dec_pnt": np.full(n, 40.0),
        "zenith": np.full(n, 30.0),
        "azimuth": np.full(n, 180.0),
        "nsb": np.full(n, 5.0),
        "n_tels": np.full(n, 4.0),
        "time": np.full(n, WINTER),
        "livetime": np.full(n, 1800.0),
    }
    return equal | {name: np.asarray(column, dtype=float) for name, column in columns.items()}


def target_of(**conditions):
    """A target that is none of the runs, unless ``obs_id`` says so."""
    conditions = {"obs_id": 99} | conditions
    return {name: column[0] for name, column in make_runs(1).items()} | conditions


def passed(runs, target=None, **section):
    mask, _ = selection.passing_runs(target or target_of(), runs, settings(**section))
    return runs["obs_id"][mask].tolist()


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
    assert float(selection.azimuth_difference(first, second)) == pytest.approx(expected)


def test_azimuth_difference_is_the_angle_between_directions():
    first, second = np.random.default_rng(0).uniform(0, 360, (2, 500))
    angle = np.rad2deg(np.arccos(np.cos(np.deg2rad(first - second))))
    assert_allclose(selection.azimuth_difference(first, second), angle, atol=1e-6)


def test_airmass_is_one_over_sine_of_the_elevation():
    assert_allclose(selection.airmass([0, 30, 60]), [1, 2 / np.sqrt(3), 2])
    assert_allclose(selection.airmass(90 - 35.0), 1 / np.sin(np.deg2rad(35)))


def test_galactic_latitude_is_astropys():
    rng = np.random.default_rng(1)
    ra, dec = rng.uniform(0, 360, 500), np.rad2deg(np.arcsin(rng.uniform(-1, 1, 500)))
    assert_allclose(selection.galactic_latitude(ra, dec), SkyCoord(ra, dec, unit="deg").galactic.b.deg, atol=1e-4)


def test_without_cuts_every_run_but_the_own_one_passes():
    runs = make_runs(5, zenith=[0, 20, 40, 60, 80], azimuth=[0, 90, 180, 270, 359], n_tels=[1, 2, 3, 4, 4])
    assert passed(runs, target_of(obs_id=3)) == [1, 2, 4, 5]


def test_a_run_without_any_number_passes_where_no_cut_is_set():
    nothing = {name: [np.nan] for name in selection.CONDITIONS}
    assert passed(make_runs(1, **nothing), target_of(**dict.fromkeys(selection.CONDITIONS, np.nan))) == [1]


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
    ],
    ids=lambda value: next(iter(value)),
)
def test_the_largest_difference_is_allowed_itself(section, columns):
    assert passed(make_runs(2, **columns), **section) == [1, 2]


def test_azimuth_is_cut_on_the_circle():
    runs = make_runs(5, azimuth=[330, 345, 5, 50, 180])
    assert passed(runs, target_of(azimuth=355.0), az_diff=45) == [1, 2, 3]
    assert passed(runs, target_of(azimuth=5.0), az_diff=45.5) == [1, 2, 3, 4]


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


def test_several_cuts_are_all_made_and_their_trail_counts_down():
    runs = make_runs(6, zenith=[30, 30, 30, 30, 75, 30], nsb=[5, 5, 5, 9, 5, 5], n_tels=[4, 4, 3, 4, 4, 4])
    mask, left = selection.passing_runs(target_of(obs_id=6), runs, settings(el_min=40, nsb_diff=1, n_tels=4))
    assert runs["obs_id"][mask].tolist() == [1, 2]
    counts = [count for _, count in left]
    assert counts == sorted(counts, reverse=True)
    assert (counts[0], counts[-1]) == (5, 2)
    assert all(any(key in name for name, _ in left) for key in ("el_min", "nsb_diff", "n_tels"))


def test_the_nearest_in_airmass_come_first_and_the_best_match_is_kept():
    runs = make_runs(6, zenith=[30, 45, 31, 20, 30.5, 60])
    chosen = selection.select_runs(target_of(obs_id=1), runs, settings(time_request="all"))
    distance = np.abs(1 / np.cos(np.deg2rad(runs["zenith"])) - 1 / np.cos(np.deg2rad(30)))
    expected = [number for number in np.argsort(distance) + 1 if number != 1]
    assert chosen.obs_id.tolist() == expected
    assert chosen.obs_id[0] == 5


def test_the_own_run_is_left_out_by_its_number_not_by_its_place():
    runs = make_runs(4)
    runs["obs_id"] = np.array([64080, 20136, 64077, 30000])
    chosen = selection.select_runs(target_of(obs_id=64077), runs, settings())
    assert sorted(chosen.obs_id) == [20136, 30000, 64080]


def test_ties_are_broken_by_the_run_number():
    runs = make_runs(4, azimuth=[10, 20, 30, 40])
    runs["obs_id"] = np.array([40, 10, 30, 20])
    assert selection.select_runs(target_of(), runs, settings(time_request=1.0)).obs_id.tolist() == [10, 20]


def test_the_order_of_the_archive_does_not_matter():
    rng = np.random.default_rng(3)
    runs = make_runs(50, zenith=rng.choice([20.0, 30.0, 40.0, 50.0], 50), livetime=rng.uniform(600, 1800, 50))
    order = rng.permutation(50)
    shuffled = {name: column[order] for name, column in runs.items()}
    first, second = (selection.select_runs(target_of(), one, settings(time_request=3)) for one in (runs, shuffled))
    assert_array_equal(first.obs_id, second.obs_id)
    assert first.hours == second.hours


@pytest.mark.parametrize(("request_", "n"), [(1.0, 2), (1.1, 3), (0.2, 1), ("90 min", 3), (2.5, 5)])
def test_runs_are_taken_until_the_hours_are_reached_the_crossing_run_included(request_, n):
    chosen = selection.select_runs(target_of(), make_runs(10), settings(time_request=request_))
    assert len(chosen.obs_id) == n
    assert chosen.hours == pytest.approx(n * 0.5)
    assert chosen.enough


def test_ten_hours_of_twenty_minutes_are_thirty_runs():
    """1/3 h is no binary number: a rounding error must not take a run more, nor say that it is not enough."""
    chosen = selection.select_runs(
        target_of(), make_runs(40, livetime=np.full(40, 1200.0)), settings(time_request=10)
    )
    assert len(chosen.obs_id) == 30
    assert chosen.enough


@pytest.mark.parametrize("minutes", [7, 10, 12, 14, 20, 25, 28])
@pytest.mark.parametrize("n", [3, 6, 7, 11, 29])
def test_hours_that_are_reached_exactly_are_reached(minutes, n):
    runs = make_runs(n + 2, livetime=np.full(n + 2, minutes * 60.0))
    chosen = selection.select_runs(target_of(), runs, settings(time_request=f"{minutes * n} min"))
    assert (len(chosen.obs_id), bool(chosen.enough)) == (n, True)


def test_too_few_hours_are_flagged():
    chosen = selection.select_runs(target_of(), make_runs(4), settings(time_request=10))
    assert (len(chosen.obs_id), chosen.hours, bool(chosen.enough)) == (4, 2.0, False)


def test_all_hours_are_always_enough():
    chosen = selection.select_runs(target_of(), make_runs(4), settings(time_request="all"))
    assert (len(chosen.obs_id), bool(chosen.enough)) == (4, True)


def test_without_ranking_every_run_that_passes_is_taken():
    runs = make_runs(30, zenith=np.linspace(0, 58, 30))
    chosen = selection.select_runs(target_of(obs_id=3), runs, settings(rank="none", time_request=1, el_min=40))
    assert sorted(chosen.obs_id) == [
        number for number in range(1, 31) if number != 3 and runs["zenith"][number - 1] <= 50
    ]
    assert chosen.hours == pytest.approx(0.5 * len(chosen.obs_id))
    assert chosen.enough


def test_a_run_without_elevation_comes_last_and_no_run_is_nan():
    chosen = selection.select_runs(target_of(), make_runs(3, zenith=[np.nan, 60, 31]), settings(time_request="all"))
    assert chosen.obs_id.tolist() == [3, 2, 1]


def test_a_target_without_elevation_has_no_nearest_runs():
    runs = make_runs(4)
    with pytest.raises(RunError, match=r"run 99: .*ALT_PNT or ZEN_PNT: take background_selection\.rank: none"):
        selection.select_runs(target_of(zenith=np.nan), runs, settings(time_request=1))
    chosen = selection.select_runs(target_of(zenith=np.nan), runs, settings(rank="none"))
    assert chosen.obs_id.tolist() == [1, 2, 3, 4]


def test_an_archive_without_elevations_has_no_nearest_runs():
    runs = make_runs(3, zenith=np.full(3, np.nan))
    with pytest.raises(ConfigError, match=r"background_selection\.rank: .*ALT_PNT"):
        selection.check_conditions(runs, settings())
    selection.check_conditions(runs, settings(rank="none"))


def test_no_run_left_names_the_target_and_which_cut_left_how_many():
    runs = make_runs(5, zenith=[30, 30, 70, 70, 70], nsb=[9, 9, 5, 5, 5])
    with pytest.raises(RunError, match=r"99") as caught:
        selection.select_runs(target_of(), runs, settings(el_min=40, nsb_diff=1))
    message = str(caught.value)
    assert "el_min 40 deg: 2" in message
    assert "nsb_diff 1: 0" in message


def test_an_archive_of_the_target_alone_has_no_run():
    with pytest.raises(RunError, match=": 0"):
        selection.select_runs(target_of(obs_id=1), make_runs(1), settings())


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


@pytest.mark.parametrize("key", ["el_diff", "az_diff", "nsb_diff", "time_max", "same_szn"])
def test_a_target_that_lacks_what_a_cut_compares_is_an_error_that_names_it(key):
    value, quantity, card = CUTS[key]
    extra = {"seasons": SEASONS} if key == "same_szn" else {}
    with pytest.raises(RunError, match=f"99.*{key}.*{card}"):
        selection.passing_runs(target_of(**{quantity: np.nan}), make_runs(3), settings(**{key: value}, **extra))


@pytest.mark.parametrize("key", ["el_min", "n_tels", "galactic_latitude_min"])
def test_a_target_need_not_have_what_is_only_asked_of_the_others(key):
    value, quantity, _ = CUTS[key]
    assert passed(make_runs(3), target_of(**{quantity: np.nan}), **{key: value}) == [1, 2, 3]


def test_a_target_outside_of_all_seasons_is_an_error_that_names_its_date():
    with pytest.raises(RunError, match=f"99.*{SPRING:.0f}"):
        selection.passing_runs(target_of(time=SPRING), make_runs(3), settings(same_szn=True, seasons=SEASONS))
