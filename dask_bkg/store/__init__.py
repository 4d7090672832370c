"""The store of run histograms (zarr): what was reduced once is kept, grows with the archive and is read in blocks."""
