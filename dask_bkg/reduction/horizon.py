"""The field of view of a run, aligned with the horizon, where its file says where the horizon was."""

from __future__ import annotations

import numpy as np

from dask_bkg.dl3.headers import SITE_CARDS
from dask_bkg.dl3.read import RunEvents
from dask_bkg.errors import RunError
from dask_bkg.sky.horizon import HorizonField

ZENITH_TOLERANCE = 10.0
"""Largest difference between the computed zenith angle and that of the header [deg]; a header may have the zenith
angle of the beginning or the end of a run."""

OTHERWISE = ", or set binning.mode: 2d, or binning.alignment: radec with io.from_run"
"""Remedy for a run whose horizon is unknown, for messages."""


def horizon_of(events: RunEvents) -> HorizonField:
    """The field of view of a run that was read, aligned with the horizon.

    Raises
    ------
    RunError
        If time or site of the events is missing in EVENTS, or contradicts the zenith angle there; the message does
        not name the run.

    Examples
    --------
    >>> numbers = {"site_lat": 30.0, "site_height": 1000.0}
    >>> horizon_of(RunEvents(np.zeros(1), np.zeros(1), np.ones(1), numbers, "", ""))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    dask_bkg.errors.RunError: ... EVENTS does not have GEOLON (or OBSGEO-L) and MJDREFI and the column TIME: ...
    """
    numbers, times = events.numbers, events.times
    missing = [cards for name, cards in SITE_CARDS.items() if not np.isfinite(numbers.get(name, np.nan))]
    if times is None or not np.isfinite(times.reference).all():
        missing.append("MJDREFI")
    if times is None or times.events is None:
        missing.append("the column TIME")
    if times is None or missing:
        raise RunError(
            f"no field aligned with the horizon, as EVENTS does not have {' and '.join(missing)}: add what is missing"
            + OTHERWISE
        )
    field, declared = HorizonField(numbers, times), numbers.get("zenith", np.nan)
    computed = float(field.zenith_angle([(times.start[0] + times.stop[-1]) / 2])[0])
    if abs(computed - declared) > ZENITH_TOLERANCE:
        raise RunError(
            f"no field aligned with the horizon, as its zenith angle is {computed:.0f} deg by its times and site, "
            f"but {declared:.0f} deg by ALT_PNT: correct what is wrong (is GEOLON positive to the east?){OTHERWISE}"
        )
    return field
