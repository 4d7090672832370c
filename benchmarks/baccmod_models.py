"""Backgrounds by BAccMod, each run's made of the others; the other half of ``bench_baccmod.py``.

    python baccmod_models.py JOB.json OUT_DIR

It runs in an environment of its own, where BAccMod is and this package is not.  What a model is made of is BAccMod's
own work, but that each run is binned once (`_Remembering`): maps of runs add up, so the maps of a left-out set are
sums, and models of the same runs are the same.  Written is one ``NAME.npz`` a model: ``obs_id``, ``energy`` and
``axis`` (edges, TeV and deg) and ``rate`` (s-1 TeV-1 sr-1, shape ``(runs, energy, offset)``, or ``(runs, energy,
fov_lat, fov_lon)`` aligned with the horizon), NaN where BAccMod has NaN; ``outside`` says which runs have a zenith
angle beyond those of the zenith bins.  Each comes ``as it is`` and ``put right``: divided by the ontime, not the
livetime, and the zenith angle held at the outermost bin, not extrapolated.
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

WIDER = {"cos_zenith_binning_parameter_value": 5 * 3600}
MODELS = {
    "radial, zenith interpolation": (RadialAcceptanceMapCreator, True, {}),
    "radial, zenith interpolation, bins of 5 h": (RadialAcceptanceMapCreator, True, WIDER),
    "grid3d": (Grid3DAcceptanceMapCreator, False, {}),
    "grid3d, zenith interpolation": (Grid3DAcceptanceMapCreator, True, {}),
    "grid3d, zenith interpolation, bins of 5 h": (Grid3DAcceptanceMapCreator, True, WIDER),
}
"""Which creator, whether it interpolates in the zenith angle, and what is not its default."""

OPTIONS = {
    RadialAcceptanceMapCreator: {"oversample_map": 10},
    # exclusions turn through the field in steps of half a pixel: ten times as fine would be days
    Grid3DAcceptanceMapCreator: {"oversample_map": 5, "time_resolution": 10 * u.s},
}
WAYS = ("as it is", "put right")


class _Remembering:
    """Bins each run once; with ``right`` its faults that are simple to put right are."""

    regions: dict[int, list]
    right: bool
    parts: dict[int, tuple]
    models: dict[frozenset, Any]
    outside: set[int]

    def _create_base_computation_map(self, observations):
        parts = [self._part(observation) for observation in observations]
        seconds = [part[-1]["ontime" if self.right else "livetime"] for part in parts]
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

    def _apply_model_cos_zenith_interpolated(self, observations, model):
        low, high = np.sort(np.asarray([model.get_zenith().min().value, model.get_zenith().max().value])) * u.deg
        made = {}
        for observation in observations:
            zenith = observation.get_pointing_altaz(observation.tmid).zen
            if not low <= zenith <= high:
                self.outside.add(observation.obs_id)
            made[observation.obs_id] = model.get_interpolated_model(
                np.clip(zenith, low, high) if self.right else zenith
            )
        return made


def creator(kind: type, job: dict, right: bool, parts: dict, options: dict):
    """A creator of BAccMod's on the job's bins."""
    energy = MapAxis.from_energy_edges(job["energy"] * u.TeV, name="energy")
    offset = MapAxis.from_edges(job["offset"] * u.deg, name="offset")
    made = type("Remembering", (_Remembering, kind), {})(energy, offset, **OPTIONS[kind], **options)
    made.right, made.parts, made.models, made.outside = right, parts, {}, set()
    made.regions = {
        int(run): [CircleSkyRegion(SkyCoord(ra, dec, unit="deg"), radius * u.deg) for ra, dec, radius in circles]
        for run, circles in job["regions"].items()
    }
    return made


def open_runs(job: dict) -> list[Observation]:
    """The runs."""
    store = DataStore.from_dir(job["archive"])
    runs = [store.obs(obs_id, required_irf=[]) for obs_id in job["runs"]]
    for run in runs:
        _remember_pointing(run)
    return runs


def _remember_pointing(run: Observation) -> None:
    """Let a run look up its horizontal pointing once for each single time: BAccMod asks for it again and again."""
    look_up, found = run.get_pointing_altaz, {}

    def pointing(time):
        if time.ndim:
            return look_up(time)
        if time.mjd not in found:
            found[time.mjd] = look_up(time)
        return found[time.mjd]

    run.get_pointing_altaz = pointing


def rate_of(irf) -> np.ndarray:
    """Node values; ``fov_lat`` before ``fov_lon``, as everywhere in this package."""
    rate = irf.quantity.to_value(RATE)
    return rate if rate.ndim == 2 else rate.swapaxes(1, 2)


def leave_one_out(made, runs: list[Observation], interpolate: bool) -> np.ndarray:
    """Rates of all runs, each made of the others."""
    rates = []
    for run in runs:
        others = Observations([other for other in runs if other is not run])
        model = made.create_acceptance_map_per_observation(
            Observations([run]),
            zenith_interpolation=interpolate,
            runwise_normalisation=False,
            off_observations=others,
        )
        rates.append(rate_of(model[run.obs_id]))
    return np.array(rates)


def make(name: str, job: dict, runs: list[Observation], parts: dict[type, dict], out: Path) -> None:
    """One model of all runs, both ways, into files."""
    kind, interpolate, options = MODELS[name]
    for way in WAYS:
        start = time.perf_counter()
        made = creator(kind, job, way == "put right", parts.setdefault(kind, {}), options)
        rates = leave_one_out(made, runs, interpolate)
        axis = np.array(job["offset"])
        axis = axis if rates.ndim == 3 else np.concatenate([-axis[:0:-1], axis])
        path = out / f"{name}, {way}.npz"
        outside = np.isin(job["runs"], list(made.outside))
        np.savez(path, obs_id=job["runs"], energy=job["energy"], axis=axis, rate=rates, outside=outside)
        print(f"{path.name}: {len(runs)} runs in {time.perf_counter() - start:.0f} s", flush=True)


def main() -> None:
    job, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    warnings.simplefilter("ignore")
    runs = open_runs(job)
    parts: dict[type, dict] = {}
    for name in job["models"]:
        make(name, job, runs, parts, out)


if __name__ == "__main__":
    main()
