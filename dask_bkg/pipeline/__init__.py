"""A job from its configuration to its files: the steps of `dask_bkg.lazy` put together.

In: a `dask_bkg.config.Config`.  Out: DL3 files with backgrounds, index files, results.  In the order of a job:
``prepare`` places the runs of interest; ``update`` brings the run store up to date; ``tables`` says which runs take
part, ``runlists`` which of them the user has chosen by hand; ``memory`` estimates what a worker needs; ``graph``
leads from the store to the files; ``run`` does all of it.  Apart from that: ``single`` makes one background in a
notebook, ``kl`` writes divergences.
"""
