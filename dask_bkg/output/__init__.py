"""What a job writes: DL3 files with their background, index files, the results of the job and their provenance."""
