"""From the events of a run to its histograms: each file is read once, counted through small field pixels.

In: a DL3 file (`dask_bkg.dl3.read`), the bins (`dask_bkg.binning.View`) and the exclusion regions.  Out: counts per
bin and exposed fraction, and with them the exposure, ontime x energy width x exposed solid angle [s TeV sr].
"""
