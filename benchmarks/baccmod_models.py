"""Backgrounds by BAccMod, each run's made of the others; the other half of ``bench_baccmod.py``.

    python baccmod_models.py JOB.json OUT_DIR

It runs in an environment of its own, where BAccMod is and this package is not.  What a model is made of is BAccMod's
own work, but that each run is binned once (`_Remembering`): maps of runs add up, so the maps of a left-out set are
sums, and models of the same runs are the same.  Written is one ``NAME.npz`` a model: ``obs_id``, ``energy`` and
``axis`` (edges, TeV and deg) and ``rate`` (s-1 TeV-1 sr-1, shape ``(runs, energy, offset)``, or ``(runs, energy,
fov_lat, fov_lon)`` aligned with the horizon), NaN where BAccMod has NaN; ``outside`` says which runs have a zenith
angle beyond its models'.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from baccmod import Grid3DAcceptanceMapCreator, RadialAcceptanceMapCreator
from gammapy.data import DataStore, Observation, Observations
from gammapy.maps import MapAxis, WcsNDMap
from regions import CircleSkyRegion

RATE = u.Unit("s-1 TeV-1 sr-1")

MODELS = {
    "radial, zenith interpolation": (RadialAcceptanceMapCreator, {"zenith_interpolation": True}),
    "grid3d": (Grid3DAcceptanceMapCreator, {}),
    "grid3d, zenith interpolation": (Grid3DAcceptanceMapCreator, {"zenith_interpolation": True}),
}
OPTIONS = {
    RadialAcceptanceMapCreator: {"oversample_map": 10},
    # exclusions turn through the field in steps of half a pixel: ten times as fine would be days
    Grid3DAcceptanceMapCreator: {"oversample_map": 5, "time_resolution": 10 * u.s},
}


class _Remembering:
    """Bins each run once; ``per`` is ``livetime``, as BAccMod divides, or ``ontime``, which is right."""

    regions: dict[int, list]
    per: str
    parts: dict[int, tuple]
    models: dict[frozenset, Any]

    def _create_base_computation_map(self, observations):
        parts = [self._part(observation) for observation in observations]
        seconds = [part[-1][self.per] for part in parts]
        axis = parts[0][3]
        counts = sum(part[0].astype(float) for part in parts)
        open_time = sum(t * part[1] for t, part in zip(seconds, parts, strict=True))
        total = np.full_like(open_time, sum(seconds))
        geom = self._get_geom(axis)
        cubes = [
            WcsNDMap(geom, np.broadcast_to(image, geom.data_shape).copy(), unit=u.s) for image in (open_time, total)
        ]
        first = WcsNDMap(geom, counts) if parts[0][2] else counts
        return first, *cubes, sum(seconds) * u.s, axis

    def _part(self, observation):
        """Counts, open share of each pixel, whether the counts are a map, energy axis and times of one run."""
        if observation.obs_id not in self.parts:
            self.exclude_regions = self.regions[observation.obs_id]
            counts, exposure, total, _, axis = super()._create_base_computation_map(Observations([observation]))
            is_map = isinstance(counts, WcsNDMap)
            numbers = (counts.data if is_map else counts).astype(np.uint16)
            times = {
                "livetime": observation.observation_live_time_duration.to_value("s"),
                "ontime": observation.observation_time_duration.to_value("s"),
            }
            self.parts[observation.obs_id] = numbers, exposure.data[0] / total.data[0], is_map, axis, times
        return self.parts[observation.obs_id]

    def create_model(self, observations):
        key = frozenset(observation.obs_id for observation in observations)
        if key not in self.models:
            self.models[key] = super().create_model(observations)
        return self.models[key]


def creator(kind: type, job: dict, per: str, parts: dict):
    """A creator of BAccMod's with its defaults, on the job's bins."""
    energy = MapAxis.from_energy_edges(job["energy"] * u.TeV, name="energy")
    offset = MapAxis.from_edges(job["offset"] * u.deg, name="offset")
    made = type("Remembering", (_Remembering, kind), {})(energy, offset, **OPTIONS[kind])
    made.per, made.parts, made.models = per, parts, {}
    made.regions = {
        int(run): [CircleSkyRegion(SkyCoord(ra, dec, unit="deg"), radius * u.deg) for ra, dec, radius in circles]
        for run, circles in job["regions"].items()
    }
    return made


def open_runs(job: dict) -> list[Observation]:
    """The runs; each looks up its horizontal pointing once."""
    store = DataStore.from_dir(job["archive"])
    runs = [store.obs(obs_id, required_irf=[]) for obs_id in job["runs"]]
    for run in runs:
        remembered: dict[float, Any] = {}
        look_up = run.get_pointing_altaz
        run.get_pointing_altaz = lambda t, r=remembered, f=look_up: (
            r[t.mjd]
            if np.ndim(t.mjd) == 0 and t.mjd in r
            else r.setdefault(t.mjd, f(t))
            if np.ndim(t.mjd) == 0
            else f(t)
        )
    return runs


def rate_of(irf) -> np.ndarray:
    """Node values; ``fov_lat`` before ``fov_lon``, as everywhere in this package."""
    rate = irf.quantity.to_value(RATE)
    return rate if rate.ndim == 2 else rate.swapaxes(1, 2)


def leave_one_out(made, runs: list[Observation], others_of: dict[int, list[int]], kwargs: dict) -> tuple:
    """Rates of all runs, and which of them are looked at beyond the zenith angles of the models."""
    rates, outside = [], []
    by_id = {run.obs_id: run for run in runs}
    for run in runs:
        off = Observations([by_id[o] for o in others_of[run.obs_id]])
        model = made.create_acceptance_map_per_observation(
            Observations([run]), off_observations=off, runwise_normalisation=False, **kwargs
        )
        rates.append(rate_of(model[run.obs_id]))
        zeniths = [other.get_pointing_altaz(other.tmid).zen.deg for other in off]
        outside.append(not min(zeniths) <= run.get_pointing_altaz(run.tmid).zen.deg <= max(zeniths))
    return np.array(rates), np.array(outside)


def main() -> None:
    job, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    warnings.simplefilter("ignore")
    runs = open_runs(job)
    others = {int(run): ids for run, ids in job["others"].items()}
    parts: dict[type, dict] = {}
    for name in job["models"]:
        kind, kwargs = MODELS[name]
        for per in job["per"]:
            start = time.perf_counter()
            made = creator(kind, job, per, parts.setdefault(kind, {}))
            rates, outside = leave_one_out(made, runs, others, kwargs)
            axis = np.array(job["offset"])
            axis = axis if rates.ndim == 3 else np.concatenate([-axis[:0:-1], axis])
            energy = np.array(job["energy"])
            path = out / f"{name}, {per}.npz"
            np.savez(path, obs_id=job["runs"], energy=energy, axis=axis, rate=rates, outside=outside)
            print(f"{path.name}: {len(runs)} runs in {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
