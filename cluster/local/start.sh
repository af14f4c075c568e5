#!/usr/bin/env bash
# Several Ray nodes on this one machine: a head that runs no trials, and workers. Each has its own `ray start`.
# Use it to see a search on a real cluster, or to kill a node and watch its trials continue on another. It is not faster
# than `loraxs-search launch SPACE`, which starts one node for itself.
#
# Needs: `ray` on PATH, from an environment with this package: `make env` makes .venv, or `pip install dist/*.whl` puts
# the wheel of `make dist` into one of yours.
#
#     eval "$(cluster/local/start.sh 2 1)"        # 2 workers with 1 CPU each; gives this shell the token
#     loraxs-search launch movie_reviews --address 127.0.0.1:6379
#     cluster/local/stop.sh
#
# Each start makes a new token. Only the token guards the cluster: Ray listens on every network interface of this
# machine, whatever address its nodes have. PORT (6379) is the head's port. LORAXS_CLUSTER (/tmp/loraxs-UID) is the
# folder of the token, the pids and the logs. Keep its path short, because the sockets in it have long names.
set -euo pipefail
umask 077

workers=${1:-2} cpus=${2:-1} port=${PORT:-6379}
folder=${LORAXS_CLUSTER:-/tmp/loraxs-$(id -u)}
address=127.0.0.1:$port

mkdir "$folder" || { echo "hint: a cluster that runs there is ended by cluster/local/stop.sh" >&2; exit 1; }
python3 -c 'import secrets; print(secrets.token_hex(32), end="")' >"$folder/token"

export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/token
export RAY_worker_niceness=0                  # at Ray's 15, any other busy process would starve the trials
export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0   # a host takes no GPU share itself and must see its GPU
export RAY_USAGE_STATS_ENABLED=0
unset RAY_ADDRESS                             # `ray start --head` refuses it

start() {  # start NAME OPTION...: one node in the background, in its own session
  local name=$1
  shift
  # Worker ports 0 are any free ones: Ray's own range would be the same for every node of this machine.
  setsid ray start --block --node-ip-address=127.0.0.1 --temp-dir="$folder/$name" --object-store-memory=200000000 \
    --min-worker-port=0 --max-worker-port=0 "$@" >"$folder/$name.log" 2>&1 </dev/null &
  echo "$!" >"$folder/$name.pid"
}

await() {  # await NAME: until the node says that it runs
  local name=$1
  for _ in {1..120}; do
    grep -qs "Ray runtime started" "$folder/$name.log" && return
    kill -0 "$(<"$folder/$name.pid")" 2>/dev/null || break
    sleep 0.5
  done
  echo "error: node $name did not start:" >&2
  tail -n 20 "$folder/$name.log" >&2
  "$(dirname "$0")/stop.sh" >&2
  exit 1
}

start head --head --port="$port" --num-cpus=0 --include-dashboard=false
await head
for ((i = 1; i <= workers; i++)); do start "worker-$i" --address="$address" --num-cpus="$cpus"; done
for ((i = 1; i <= workers; i++)); do await "worker-$i"; done

echo "a head and $workers workers run at $address; logs, pids and the token are in $folder" >&2
printf 'export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=%q\n' "$RAY_AUTH_TOKEN_PATH"
