"""From the histograms of a field of view to a rate over the field: the radial rate times a modulation.

An acceptance is not a circle: it tilts towards the zenith, it has spots, and two telescopes stretch it.  The radial
rate (`dask_bkg.rate`) has the statistics of whole rings; what the pixels tell is only how they differ from it.  So
the mean over angle of the rate that is made here is the radial one, of the same runs.

Pure arrays: energies TeV, angles deg, exposure s TeV sr, rates s-1 TeV-1 sr-1; axes ``energy``, then ``ring`` (of
offset) or ``fov_lat``, ``fov_lon``.  Stacks of several runs are ALTAZ: ``fov_lat`` is the component towards the
zenith.  `turn_to_radec` makes a RADEC rate of the finished one.

Measured on the 72 runs of H.E.S.S. DL3 DR1 (score of ``science.md`` against the radial rate of the same stack, 1e-3
nats an event above each run's threshold): MEASURED_TABLE
"""

from dask_bkg.modulation.estimate import (
    FIELD_FLAGS,
    FIELD_POOLED,
    PIXEL_UNSEEN,
    SHAPES,
    FieldSettings,
    Histogram,
    estimate_field,
)
from dask_bkg.modulation.shapes import Tilt, fit_tilt, free_modulation, upwards
from dask_bkg.modulation.turning import turn, turn_to_radec

__all__ = [
    "FIELD_FLAGS",
    "FIELD_POOLED",
    "PIXEL_UNSEEN",
    "SHAPES",
    "FieldSettings",
    "Histogram",
    "Tilt",
    "estimate_field",
    "fit_tilt",
    "free_modulation",
    "turn",
    "turn_to_radec",
    "upwards",
]
