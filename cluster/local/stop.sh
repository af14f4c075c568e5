#!/usr/bin/env bash
# Stops the nodes that start.sh started, and no other Ray on this machine (`ray stop` would stop all of them).
#
# Needs: LORAXS_CLUSTER as it was for start.sh.
#
#     cluster/local/stop.sh
#
# To lose one node: kill -9 "$(cat /tmp/loraxs-UID/worker-1.pid)"
set -euo pipefail

folder=${LORAXS_CLUSTER:-/tmp/loraxs-$(id -u)}
[[ -f $folder/token ]] || { echo "error: no cluster in $folder" >&2; exit 1; }

ours() {  # a pid may have gone to another program since; ours names its folder
  ps -ww -o args= -p "$1" 2>/dev/null | grep -qF -- "--temp-dir=$folder/"
}

for file in "$folder"/worker-*.pid "$folder"/head.pid; do
  [[ -f $file ]] || continue
  pid=$(<"$file")
  ours "$pid" && kill "$pid"
  for _ in {1..60}; do
    ours "$pid" || continue 2
    sleep 0.5
  done
  echo "error: $pid ($(basename "$file" .pid)) did not end within 30 s; its log is in $folder" >&2
  exit 1
done
for _ in {1..20}; do  # a process that outlives its node for a moment may still write a log
  rm -rf "$folder" 2>/dev/null && exit 0
  sleep 0.5
done
rm -rf "$folder"
