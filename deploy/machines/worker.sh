#!/bin/bash
# Worker processes on this machine, for the scheduler of scheduler.sh.
#
#   worker.sh DIRECTORY [PROCESSES] [HOST]
#
# PROCESSES is as many as there are cores; HOST is the name or address by which the others reach this machine.
set -euo pipefail
directory=${1:?usage: worker.sh DIRECTORY [PROCESSES] [HOST]}
source "$directory/environment.sh"
export MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-134217728} MALLOC_MMAP_THRESHOLD_=${MALLOC_MMAP_THRESHOLD_:-33554432}
exec dask worker --scheduler-file "$directory/scheduler.json" --protocol tls --host "${3:-$(hostname)}" \
  --nworkers "${2:-$(nproc)}" --nthreads 1 --local-directory "${TMPDIR:-/tmp}" --death-timeout 120 \
  --no-dashboard --dashboard-address localhost:0
