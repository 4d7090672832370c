"""The orientation of the Earth; zenith and field of view are compared with astropy in tests/reduction."""

from __future__ import annotations

import erfa
import numpy as np
import pytest
from astropy.utils import iers

from dask_bkg.sky.horizon import _earth_orientation


def test_the_orientation_of_the_earth_is_the_one_that_astropy_reads():
    """Within the table, over a leap second, and before and after all of its days."""
    days = [*np.random.default_rng(3).uniform(41690, 61400, 300), 57753.999, 57754, 57754.001, 30000, 41684, 90000]
    table = iers.IERS_A.open()
    for day in days:
        utc = erfa.DJM0, float(day)
        ut1_utc, _ = table.ut1_utc(*utc, return_status=True)
        x, y, _ = table.pm_xy(*utc, return_status=True)
        found = _earth_orientation(*utc)
        assert found[0] == pytest.approx(ut1_utc.to_value("s"), abs=1e-9)
        assert found[1:] == pytest.approx((x.to_value("rad"), y.to_value("rad")), abs=1e-13)
