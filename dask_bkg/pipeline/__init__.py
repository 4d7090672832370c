"""A job from its configuration to its files: the steps of `dask_bkg.lazy` put together."""
