"""What a job writes: DL3 files with their background, index files, the results of the job and their provenance.

In: stacks and selections of a batch of targets (`write`), what became of all (`index`, `provenance`).  Out: files
that gammapy opens, and below ``results_dir`` what is known of each background: rate [s-1 TeV-1 sr-1], relative
errors, flags, counts, exposure [s TeV sr], contributing runs.
"""
