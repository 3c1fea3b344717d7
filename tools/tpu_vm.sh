#!/usr/bin/env bash
# A run on Cloud TPU VMs, from nothing to nothing. Every command is printed before it runs; --dry_run only prints.
#
#   tools/tpu_vm.sh create  --name=NAME --zone=ZONE --type=v5litepod-16 [--version=...] [--slices=N] [--spot]
#   tools/tpu_vm.sh install --name=NAME --zone=ZONE [--repo=URL] [--commit=SHA]
#   tools/tpu_vm.sh run     --name=NAME --zone=ZONE -- --config=configs/x.py --workdir=gs://BUCKET/RUN
#   tools/tpu_vm.sh logs    --name=NAME --zone=ZONE [--worker=N] [--slice=N]
#   tools/tpu_vm.sh resume  (the flags of create, install and run): until the run has ended, makes preempted machines anew
#   tools/tpu_vm.sh delete  --name=NAME --zone=ZONE
#
# create asks for a queued resource, which serves one slice and several, on demand and spot; --version is a runtime other than
# Google's for the type. install puts one commit on all workers: by default the one checked out here, which must be pushed;
# lm.main refuses hosts of different commits. run starts the same command on every worker of every slice and comes back; jax
# finds the others through the metadata of the machines. A workdir must be in a bucket: workers share no folder, and a
# preempted one keeps nothing. The service account of the machines needs to write there.
#
# Needs gcloud, with a project and a login. Exit codes: those of lm.main for resume, 2 for bad flags.
set -euo pipefail
source "$(dirname "$0")/launcher.bash"

gcloud_tpu() { run gcloud compute tpus "$@" --zone="$zone" "${project[@]}"; }

# The names of the slices: NAME, or NAME-0, NAME-1, ... of several.
nodes() {
  if (( slices == 1 )); then echo "$name"; else for ((i = 0; i < slices; i++)); do echo "$name-$i"; done; fi
}

# A shell command on all workers of all slices at once.
everywhere() {
  local node pids=() pid
  for node in $(nodes); do
    gcloud_tpu tpu-vm ssh "$node" --worker=all --command="$1" &
    pids+=($!)
    [[ -z $dry_run ]] || wait "${pids[-1]}"  # printed in order
  done
  local failed=0
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  return $failed
}

# The runtime of a type.
runtime() {
  case $type in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

create() {
  [[ -n $type ]] || fail "--type: missing, e.g. v5litepod-16"
  local node=(--node-id="$name")
  (( slices == 1 )) || node=(--node-count="$slices" --node-prefix="$name")
  gcloud_tpu queued-resources create "$name" "${node[@]}" --accelerator-type="$type" --runtime-version="${version:-$(runtime)}" \
    "${spot[@]}"
}

# As gcloud says it; MISSING where it says that there is none, UNKNOWN where it could not be asked.
state() {
  local described=(gcloud compute tpus queued-resources describe "$name" --zone="$zone" "${project[@]}")
  "${described[@]}" --format='value(state.state)' 2> /dev/null && return
  [[ $("${described[@]}" 2>&1) == *NOT_FOUND* ]] && echo MISSING || echo UNKNOWN
}

# Whether a request in that state gives no machines any more.
gone() { [[ $1 == FAILED || $1 == SUSPEND* || $1 == MISSING ]]; }

# Returns when the machines are there; false if the request has failed or they were taken away.
wait_until_active() {
  echo "waiting for $name to be ACTIVE"
  [[ -z $dry_run ]] || return 0
  local now
  while now=$(state); [[ $now != ACTIVE ]]; do
    ! gone "$now" || return 1
    sleep "$poll"
  done
}

install() {
  [[ -n $repo ]] || repo=$(git remote get-url origin)
  [[ -n $commit ]] || commit=$(git rev-parse HEAD)
  local get="test -d lm || git clone -q $(printf %q "$repo") lm; cd lm && git fetch -q origin && git checkout -q $commit"
  get+=" && sudo apt-get -qq update && sudo apt-get -qq -y install make python3.11 python3.11-venv"  # the image's is older
  everywhere "$get && make PYTHON=python3.11 ACCEL=tpu .venv/.tpu && .venv/bin/pip install -q --editable '.[gcs]'"
}

# A worker keeps its exit code in run.code, so that `resume` knows whether the run has ended.
start() {
  local command
  make_command .venv/bin/python
  command="cd lm && rm -f run.code && (nohup sh -c $(printf %q "$command; echo \$? > run.code") > run.log 2>&1 < /dev/null &)"
  everywhere "$command"
}

logs() {
  local node=$name
  (( slices == 1 )) || node=$name-$slice
  gcloud_tpu tpu-vm ssh "$node" --worker="$worker" --command="tail -n 100 -F lm/run.log"
}

delete() { gcloud_tpu queued-resources delete "$name" --quiet --force; }

# The exit code of the run, "running", or "" where nothing can be asked.
ended() {
  gcloud compute tpus tpu-vm ssh "$(nodes | head -n 1)" --zone="$zone" "${project[@]}" --worker=0 \
    --command='cat lm/run.code 2>/dev/null || echo running' 2>/dev/null || true
}

# Ends with the run: done, or an error that it would meet again. Stopped by a signal (128 and more) it is started again.
resume() {
  local code now=MISSING
  while true; do
    [[ -n $dry_run ]] || now=$(state)
    if [[ $now != ACTIVE && $now != UNKNOWN ]]; then
      if gone "$now"; then
        delete || true  # there may be none
        create
      fi
      wait_until_active || continue
      { install && start; } || continue
    fi
    [[ -z $dry_run ]] || return 0
    sleep "$poll"
    code=$(ended)
    if [[ $code =~ ^[0-9]+$ ]]; then
      (( code < 128 )) && exit "$code"
      start || true
    fi
  done
}

settings=(name= zone= type= version= slices=1 repo= commit= worker=0 slice=0 poll=60)
project=() spot=()
other() {
  case $1 in
    --project=*) project=("$1") ;;
    --spot) spot=(--spot) ;;
    *) return 1 ;;
  esac
}
read_flags "$@"
[[ -n $name ]] || fail "--name: missing"
[[ -n $zone ]] || fail "--zone: missing"
[[ $slices =~ ^[1-9][0-9]*$ ]] || fail "--slices=$slices: accepted is a number from 1"
case $action in
  create | install | logs | resume | delete) "$action" ;;
  run) start ;;
  *) fail "$action: accepted are create, install, run, logs, resume, delete" ;;
esac
