#!/usr/bin/env bash
# Written by: jaxtrain launch tpu experiments/char_lm.py:several_hosts --run /mnt/runs/several-hosts --vm my-tpu --zone us-west4-a --tpu v5e:4x4 --program .venv/bin/jaxtrain --out scripts/tpu_vm.sh

set -euo pipefail
on() { gcloud compute tpus tpu-vm ssh my-tpu --zone=us-west4-a --worker="$1" --command="$2"; }
worker=$(
    cat <<'WORKER'
cd jaxtrain && mkdir -p /mnt/runs/several-hosts/logs
loop='
# The training inherits the lock, so that a second loop cannot start before it has exited.
exec 9>>/tmp/jaxtrain-char-lm-several-hosts.pid && flock -n 9 || { echo "already running on this worker" && exit 1; }
echo $$ >/tmp/jaxtrain-char-lm-several-hosts.pid
meta=http://metadata.google.internal/computeMetadata/v1/instance/attributes
about() { curl -sf -H "Metadata-Flavor: Google" "$meta/$1"; }
first=$(about worker-network-endpoints | cut -d, -f1)
export JAX_COORDINATOR_ADDRESS=${first##*:}:8476 JAX_NUM_PROCESSES=4
export JAX_PROCESS_ID=$(about agent-worker-number)
for ((start = 0; start <= 20; start++)); do
    .venv/bin/jaxtrain train experiments/char_lm.py:several_hosts --run /mnt/runs/several-hosts
    code=$?
    echo "exit code $code of start $start"
    ((code == 75 || code > 128 && code != 130 && code != 141)) || exit $code
done
'
nohup setsid bash -c "$loop" >>/mnt/runs/several-hosts/logs/$HOSTNAME.log 2>&1 </dev/null &
WORKER
)
case "${1:-start}" in
start) on all "$worker" ;;
log) on 0 'cd jaxtrain && tail -n 50 -F /mnt/runs/several-hosts/logs/$HOSTNAME.log' ;;
stop) on all 'kill -TERM -- "-$(cat /tmp/jaxtrain-char-lm-several-hosts.pid)"' ;;
*) echo "bash $0 [start|log|stop]" >&2 && exit 2 ;;
esac
