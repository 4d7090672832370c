"""DL3 files and their index files: the only room that knows FITS columns and header cards (no gammapy here)."""
