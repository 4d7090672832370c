"""Presets: defaults under a configuration, by name.

The docstring of a preset says what its options do, what the default does instead, and why; ``dask-bkg config
--preset NAME`` prints it above the options.
"""

from __future__ import annotations

import inspect
from typing import Any

Defaults = dict[str, dict[str, Any]]

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


def veritas() -> Defaults:
    """The usual cuts of VERITAS on the runs that contribute, and the epochs of its array.

    background_selection.nsb_diff: 0.7
        Largest difference in night-sky background. By default there is no cut.
    background_selection.el_diff: 0.15
        Largest difference in 1/sin(elevation). By default there is no cut.
    background_selection.az_diff: 45
        Largest difference in azimuth, in deg. By default there is no cut.
    background_selection.seasons
        The epochs of VERITAS. With same_szn: true only runs of the epoch of the target contribute.

    The word none takes a cut away, as in el_diff: none.
    """
    return {"background_selection": {"nsb_diff": 0.7, "el_diff": 0.15, "az_diff": 45, "seasons": VERITAS_SEASONS}}


def gammapy_tools() -> Defaults:
    """The original procedure, that of VERITAS' gammapy-tools, formula by formula, but for its mistakes.

    Each entry says what the preset does, what dask_bkg does by default, and why. To go over to the default one step
    at a time, set an option to the value that is named as the default. The measured values are those of
    benchmarks/README.md.

    binning.e_min: 0.1, e_max: 100, e_bins: 20, off_bins: 5
        20 energy bins over 0.1-100 TeV, 5 offset bins of 0.5 deg; 2D, unless io.3d_bkg or binning.mode asks for 3D.
        Default: 10 energy bins a decade, offset bins of 0.25 deg; 3D where the files say where the horizon was.
        Why: an energy bin that is wider than the rise at the threshold cannot describe it.
    exclusion.reach: centre
        Excludes the sources whose centre lies within 2.5 deg of the pointing.
        Default: disc, every disc that reaches into the field.
        Why: a large source outside of the field reaches into it.
    exclusion.extension_rule: document, default_radius: 0.35
        A source that GammaCat lists as extended gets 3 sigma, even where that is less than 0.35 deg; a source of
        3HWC always gets 0.35 deg.
        Default: max, the larger of 3 sigma (3HWC: the search radius of the catalogue) and 0.35 deg, at most 1.2 deg;
        a radius that was cut is reported.
        Why: 17 of 55 extended sources of GammaCat would get less than a point source, and Vela Junior would get
        3 deg, which leaves nothing of a field around it.
    exclusion.star_mag: 8, star_radius: 0.35
        Stars of V < 8 with 0.35 deg.
        Default: V < 5 with 0.3 deg.
        Why: V < 8 leaves a median of 64 % of the field of the 72 H.E.S.S. runs exposed, V < 5 leaves 98 %.
    background_selection.rank: none
        Every run that passes the cuts contributes, with weight 1.
        Default: conditions, the runs under the most similar observing conditions until time_request hours are
        reached, weighted by a Gaussian kernel in these conditions.
        Why: the normalisation of a stack scatters less from run to run: on the H.E.S.S. runs, 10 h for each, by 14 %
        against 23 % with the runs nearest in elevation.
    background_selection.seasons
        The epochs of VERITAS, for same_szn: true. By default there are none.
    model.exposure: event_ratio
        The exposed fraction of an offset bin is its events outside of the exclusion over all of its events; its solid
        angle is 2 pi offset d_offset; events outside of the good time intervals count.
        Default: geometry, the share of the solid angle outside of the regions, on the same pixels through which the
        events are counted; events within the good time intervals alone.
        Why: the ratio of events cancels the exclusion, and an excluded source stays in the rate of its offset bin.
        Ten times the Crab, excluded, changes the rate by +18 to +22 %, and by default not in a single bit. With the
        same pixels for events and solid angle no edge of an offset bin is favoured.
    model.fill: false
        Counts over exposure, zero where nothing was counted.
        Default: true, energies with few counts share the shape over offset, empty energies and offset bins are
        filled, and each such bin has a flag.
        Why: gammapy interpolates ln(rate), and next to a zero its prediction is absurd.
    model.node_values: plain
        Writes the mean of each bin as the rate at its centre.
        Default: conserving, values between which gammapy's interpolation gives the counts back.
        Why: the plain ones predict 0.85 to 0.99 of the counts of single H.E.S.S. runs.
    model.smooth_method: to_3d
        With smooth: true, gammapy's to_3d, a Gaussian filter, gammapy's to_2d.
        Default: field, a Gaussian in the plane of the field on the deviations from a smooth profile, weighted with
        the exposure and averaged over each offset bin; counts are conserved.
        Why: the way through to_3d changes the rate by -4 % in the centre to +30 % in the outermost of ten
        offset bins.
    model.divergence: document
        With KL_DIV: true, the Kullback-Leibler divergence of normalised rates + 1e-9.
        Default: shape, that of shapes at full exposure; what a run has too few events to show is taken from the
        family of shapes of the archive, and the divergence that noise alone makes is subtracted.
        Why: with the floor of 1e-9 a divergence ranks by statistics. Runs of the same true shape with 1k, 3k, 10k
        and 30k events have .197, .073, .030 and .019; by default these differ by a factor of 1.2.
    model.field: plain, binning.alignment: radec
        In 3D counts over exposure of each pixel, aligned with north.
        Default: gradient, the 2D rate of the same runs times a gradient towards the zenith; altaz.
        Why: a pixel has too few events for a spectrum of its own.

    Mistakes that the preset does not repeat: distances on a flat sky (here spherical); elevations in degrees compared
    with radians; differences in azimuth across north; n_tels as an equality (here a minimum); the run of the
    smallest divergence left out; 3D backgrounds with a mirrored longitude and without FOVALIGN (an event at RA 84.4
    of a pointing at RA 83.6 came back at 82.8).
    """
    return {
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
    }


_FUNCTIONS = {"veritas": veritas, "gammapy-tools": gammapy_tools}

#: Defaults that replace the models' own, key by key, where the user gave nothing.
PRESETS: dict[str, Defaults] = {name: preset() for name, preset in _FUNCTIONS.items()}

#: What each preset stands for.
ABOUT: dict[str, str] = {name: inspect.getdoc(preset) or "" for name, preset in _FUNCTIONS.items()}
