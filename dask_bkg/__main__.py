"""The command line, as ``python -m dask_bkg``."""

from dask_bkg.cli import main

if __name__ == "__main__":
    main()
