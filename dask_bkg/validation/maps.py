"""How well a background predicts the counts of a run, by gammapy's own ``MapDatasetMaker``."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dask_bkg.sky.exclusion import SkyRegions, excluded_positions


class Comparison(NamedTuple):
    """Counts that a background predicts, and those that were observed: sums over the same pixels and energies."""

    predicted: float
    observed: int

    @property
    def ratio(self) -> float:
        """Predicted over observed; NaN where nothing was observed."""
        return self.predicted / self.observed if self.observed else float("nan")

    @property
    def error(self) -> float:
        """Statistical error of the ratio, from the observed counts."""
        return self.ratio / np.sqrt(max(self.observed, 1))


def compare_counts(
    observation,
    regions: SkyRegions | None,
    energy_min: float,
    *,
    energy_max: float = 100.0,
    offset_max: float = 2.0,
    bins_per_decade: int = 20,
    pixel: float = 0.05,
) -> Comparison:
    """Predicted and observed counts of an observation, outside of the exclusion.

    Parameters
    ----------
    observation
        `gammapy.data.Observation` with a background.
    regions
        Exclusion regions of the whole sky.
    energy_min, energy_max
        Energy range [TeV]; ``energy_min`` is the threshold of the run.
    offset_max
        Radius of the field [deg].
    bins_per_decade
        Energy bins of the map. gammapy integrates over each with a power law through the rates at its two edges: at
        a threshold, where the spectrum is curved, 10 bins per decade are wrong by 1-2 % for any background.
    pixel
        Pixel of the map [deg].
    """
    from gammapy.datasets import MapDataset
    from gammapy.makers import MapDatasetMaker
    from gammapy.maps import MapAxis, WcsGeom

    n_bins = max(1, round(bins_per_decade * np.log10(energy_max / energy_min)))
    axis = MapAxis.from_energy_bounds(energy_min, energy_max, n_bins, unit="TeV")
    pointing = observation.pointing.fixed_icrs
    geom = WcsGeom.create(skydir=pointing, width=2 * offset_max + 2 * pixel, binsz=pixel, axes=[axis], proj="TAN")
    maker = MapDatasetMaker(selection=["counts", "background"])
    dataset = maker.run(MapDataset.create(geom), observation)
    sky = geom.to_image().get_coord().skycoord
    inside = sky.separation(pointing).deg < offset_max
    if regions is not None:
        near = regions.near(pointing.ra.deg, pointing.dec.deg, offset_max)
        inside &= ~excluded_positions(near, sky.ra.deg, sky.dec.deg)
    return Comparison(
        float(dataset.background.data[:, inside].sum()), round(float(dataset.counts.data[:, inside].sum()))
    )
