"""DL3 files and their index files: the one place that knows FITS columns and header cards (no gammapy here).

In: paths of GADF files.  Out: plain columns (positions deg, energies TeV, times s), per-run numbers, and files that
gammapy opens.  What is optional in GADF is derived where it can be, and NaN where it cannot.

Reading: ``read`` events, good time intervals and conditions; ``hdus``, ``headers`` and ``effective_area`` its parts;
``fingerprint`` what the events say, as a digest.  Index files: ``index``, ``index_rows``, ``index_table``.  Writing:
``background`` the HDU, ``attach`` and ``copies`` the files, ``blocks`` and ``creator`` their bytes, ``kl_table``.

Source: Data formats for gamma-ray astronomy (GADF) v0.3.
"""
