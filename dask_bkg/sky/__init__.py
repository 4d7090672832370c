"""The sky around a pointing: field-of-view coordinates, exclusion regions, catalogues, and the horizon.

Positions are ICRS [deg]; ``fov_lon`` grows with decreasing right ascension (or azimuth), ``fov_lat`` with
declination (or altitude), as GADF and gammapy have them.
"""
