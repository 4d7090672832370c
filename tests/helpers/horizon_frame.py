"""Events of simulated runs in gammapy's frame of the horizon."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from astropy.coordinates import AltAz, EarthLocation, SkyCoord
from astropy.table import Table
from astropy.time import Time

SITE = EarthLocation.from_geodetic(-110.952, 31.675, 1268)


def read_events(directory: Path, obs_id: int) -> Table:
    return Table.read(directory / "data" / f"run_{obs_id:06d}.fits.gz", hdu="EVENTS")


def in_horizon_frame(events: Table, frozen: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Energy, fov_lon and fov_lat by astropy and gammapy, of RA, DEC and TIME; or all at the middle of the run."""
    from gammapy.utils.coordinates import FoVAltAzFrame

    meta = events.meta
    time = Time(meta["MJDREFI"], meta["MJDREFF"], format="mjd", scale="utc") + events["TIME"].quantity
    if frozen:
        time = Time(np.full(len(events), Time(meta["DATE-AVG"], scale="utc").mjd), format="mjd", scale="utc")
    horizon = AltAz(obstime=time, location=SITE)
    pointing = SkyCoord(np.full(len(events), meta["RA_PNT"]), meta["DEC_PNT"], unit="deg").transform_to(horizon)
    frame = FoVAltAzFrame(origin=pointing, obstime=time, location=SITE)
    place = SkyCoord(events["RA"], events["DEC"], unit="deg").transform_to(horizon).transform_to(frame)
    return np.asarray(events["ENERGY"]), place.fov_lon.deg, place.fov_lat.deg
