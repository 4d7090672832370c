#!/bin/bash
# A job on a few machines: a scheduler here, workers by ssh, and the end of all of them when the job is done.
#
#   run.sh "HOST1 HOST2 ..." CONFIG [options of `dask-bkg run`]
#
# The machines share the directory that this is started in, and have dask_bkg where it is here (an environment on the
# shared disk).  WORKERS=4 starts so many processes on each (default: one a core), HERE says this machine's name.
set -euo pipefail
hosts=${1:?usage: run.sh "HOST1 HOST2 ..." CONFIG [options of dask-bkg run]}
config=${2:?usage: run.sh "HOST1 HOST2 ..." CONFIG [options of dask-bkg run]}
shift 2
recipes=$(cd "$(dirname "$0")" && pwd)
umask 077
shared=$(mktemp -d "$PWD/.dask-bkg-XXXX")
started=()
finish() {
  # workers see the end of their scheduler, and end
  kill "${started[@]}" 2>/dev/null || true
  wait || true
  rm -rf "$shared"
}
trap finish EXIT
trap 'exit 143' TERM

"$recipes/scheduler.sh" "$shared" "${HERE:-$(hostname)}" &
started+=($!)
until [ -s "$shared/scheduler.json" ]; do
  kill -0 "${started[0]}" || { echo "the scheduler has not started" >&2; exit 1; }
  sleep 0.2
done
for host in $hosts; do
  # -tt: what runs there ends with the connection
  ssh -tt -o BatchMode=yes "$host" "PATH='$(dirname "$(command -v dask-bkg)")':\$PATH '$recipes/worker.sh' '$shared' '${WORKERS:-}' '$host'" < /dev/null &
  started+=($!)
done
source "$shared/environment.sh"
dask-bkg run "$config" --cluster "$shared/scheduler.json" "$@"
