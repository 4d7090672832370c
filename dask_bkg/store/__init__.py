"""The run store (zarr): histograms of runs, which are read from their files once and kept.

In: runs of the user's archive and the views that a job needs.  Out: counts (uint32) and exposed fractions, shape
``(runs, energy, offset)`` or ``(runs, energy, fov_lat, fov_lon)``, and a table of per-run numbers.

``rows`` how a zarr group grows by rows, written ahead in parts by tasks and folded by one process; ``layout`` which
of them a run store has; ``store`` what the driver of a job does with it; ``changes`` which runs are new or have
changed; ``update`` the task that reads them; ``table`` per-run numbers and keys; ``load`` histograms for tasks and
for people (`dask_bkg.open_runs`); ``info`` the text of ``dask-bkg info``; ``check`` whether all of a store
can be read.
"""
