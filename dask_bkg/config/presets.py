"""Presets: defaults under a configuration, by name."""

from __future__ import annotations

from typing import Any

#: The epochs of VERITAS: changes of the array, the cameras and the atmosphere. Both days belong to the epoch.
VERITAS_SEASONS: dict[str, list[str | None]] = {
    "V4": ["2000-01-01", "2009-09-13"],
    "V5": ["2009-09-14", "2012-07-31"],
    "V6_2012_2013a": ["2012-08-01", "2013-03-15"],
    "V6_2012_2013b": ["2013-03-16", "2013-11-16"],
    "V6_2013_2014a": ["2013-11-17", "2014-05-12"],
    "V6_2013_2014b": ["2014-05-13", "2014-11-07"],
    "V6_2014_2015": ["2014-11-08", "2015-07-31"],
    "V6_2015_2016": ["2015-08-01", "2016-07-31"],
    "V6_2016_2017": ["2016-08-01", "2017-07-31"],
    "V6_2017_2018": ["2017-08-01", "2018-07-31"],
    "V6_2018_2019": ["2018-08-01", "2019-11-12"],
    "V6_2019_2020w": ["2019-11-13", "2020-05-07"],
    "V6_2020_2020s": ["2020-05-08", "2020-11-04"],
    "V6_2020_2021w": ["2020-11-05", "2021-04-27"],
    "V6_2021_2021s": ["2021-04-28", "2021-11-16"],
    "V6_2021_2022w": ["2021-11-17", "2022-05-09"],
    # Open: the public table ends in 2025, and a run taken later has to find its epoch too.
    "V6_2022_2022s": ["2022-05-10", None],
}

#: Defaults that replace the models' own, key by key, where the user gave nothing.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "veritas": {
        "background_selection": {"nsb_diff": 0.7, "el_diff": 0.15, "az_diff": 45, "seasons": VERITAS_SEASONS}
    },
    "gammapy-tools": {
        "binning": {"e_min": 0.1, "e_max": 100, "e_bins": 20, "off_bins": 5, "alignment": "radec"},
        "exclusion": {
            "star_mag": 8,
            "star_radius": 0.35,
            "default_radius": 0.35,
            "reach": "centre",
            "extension_rule": "document",
        },
        "background_selection": {"rank": "none", "seasons": VERITAS_SEASONS},
        "model": {
            "exposure": "event_ratio",
            "smooth_method": "to_3d",
            "node_values": "plain",
            "fill": False,
            "divergence": "document",
            "field": "plain",
        },
    },
}
