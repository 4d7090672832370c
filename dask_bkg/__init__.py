"""Background models of gamma-ray telescope archives, on Dask."""
