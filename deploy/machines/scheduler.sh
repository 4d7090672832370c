#!/bin/bash
# A scheduler on this machine, for workers on a few machines that share a directory.
#
#   scheduler.sh DIRECTORY [HOST]
#
# DIRECTORY is on a disk that all machines see; the scheduler's address, and a certificate, go there: who can read them
# can connect, nobody else.  HOST is the name or address by which the others reach this machine.
set -euo pipefail
directory=${1:?usage: scheduler.sh DIRECTORY [HOST]}
umask 077
mkdir -p "$directory"
rm -f "$directory/scheduler.json"
dask-bkg cluster certificate "$directory" > "$directory/environment.sh"
source "$directory/environment.sh"
exec dask scheduler --protocol tls --host "${2:-$(hostname)}" --port 0 --dashboard-address localhost:8787 \
  --scheduler-file "$directory/scheduler.json"
