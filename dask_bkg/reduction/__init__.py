"""From the events of a run to its histograms: each file is read once and counted in small field pixels.

In: a DL3 file (`dask_bkg.dl3.read`), bins (`dask_bkg.binning.View`), exclusion regions.  Out: counts, shape
``(energy, offset)`` or ``(energy, fov_lat, fov_lon)``, and the exposed fraction of each offset bin or pixel, 0 to 1.
The exposure of a bin is ontime x energy width x solid angle x exposed fraction [s TeV sr]: per ontime, as GADF
defines the background rate, and the fraction is geometric (solid angle and time outside of the exclusion).

``reduce`` reads and counts a run, or a block of runs; ``histograms`` fills several views with the same events;
``counts`` has the arithmetic; ``horizon`` and ``turning`` are for fields aligned with the horizon, in which the
excluded sky rotates.
"""
