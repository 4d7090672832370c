"""The sky around a pointing: field-of-view coordinates, exclusion regions, catalogues, and the horizon.

In: ICRS positions [deg], times (MJD, or mission time with its reference), the site of the array.  Out: field
coordinates [deg], masks of field pixels, the direction of the zenith.  ``fov_lon`` grows with decreasing right
ascension (or azimuth) and ``fov_lat`` with declination (or altitude), as GADF and gammapy define them.

``fov`` the tangent frame about a pointing and its pixel grids; ``exclusion`` discs and regions; ``catalogs``
GammaCat, 3HWC, star table and region files read into them; ``horizon`` the zenith in the field, by ERFA (IAU SOFA).
"""
