"""The run that receives a background: its files, where it pointed, and the frame of its field."""

from __future__ import annotations

from typing import NamedTuple

from dask_bkg.background.field import FieldSettings
from dask_bkg.binning import FieldEdges


class Sight(NamedTuple):
    """Pointing, site and time of a run, from which follows how its field is turned between horizon and sky.

    Attributes
    ----------
    zenith
        Zenith angle [deg].
    ra, dec, site_lon, site_lat
        Pointing and place of the array [deg].
    time, ontime
        Middle of the run [MJD] and sum of its good time intervals [s].
    """

    zenith: float
    ra: float
    dec: float
    site_lon: float
    site_lat: float
    time: float
    ontime: float


class Target(NamedTuple):
    """A run that receives a background.

    Attributes
    ----------
    obs_id
        Run number.
    source, output
        Paths of the file that is copied, and of the file that is written.
    threshold
        Energy threshold that the obs-index gives [TeV], NaN if it does not.
    sight
        Pointing, site and time, in a job of 3D backgrounds once the run store is up to date; else None.
    """

    obs_id: int
    source: str
    output: str
    threshold: float = float("nan")
    sight: Sight | None = None


class FieldPlan(NamedTuple):
    """What a job of 3D backgrounds needs in addition to one of 2D backgrounds.

    Attributes
    ----------
    edges
        Energies and pixels of the field.
    settings
        How the rate varies over the field.
    counted, written
        Frame in which events are counted and runs are stacked, and that of the background: ``radec`` or ``altaz``.
        What is stacked for RADEC is the camera's field, aligned with the horizon; it is turned to the sky at the end.
    """

    edges: FieldEdges
    settings: FieldSettings
    counted: str
    written: str
