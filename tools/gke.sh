#!/usr/bin/env bash
# A run on TPUs of Google Kubernetes Engine, through xpk (pip install xpk). Every command is printed before it runs; --dry_run
# only prints.
#
#   tools/gke.sh create  --cluster=NAME --zone=ZONE --project=P --type=v5litepod-16 [--slices=N] [--spot]
#   tools/gke.sh install --cluster=NAME --zone=ZONE --project=P
#   tools/gke.sh run     --cluster=NAME --zone=ZONE --project=P --type=... [--slices=N] [--restarts=N] --workload=RUN \
#                        -- --config=configs/x.py --workdir=gs://BUCKET/RUN
#   tools/gke.sh logs    --workload=RUN
#   tools/gke.sh resume  (the flags of run)
#   tools/gke.sh delete  --cluster=NAME --zone=ZONE --project=P [--workload=RUN]; without a workload, the cluster
#
# run makes an image of this folder, git included, over --image and starts it as a JobSet on every host; jax finds the hosts
# through what GKE tells each. Kubernetes starts the hosts again after a preemption, --restarts times; lm.main goes on where its
# workdir is. resume does the same by hand: it takes the ended workload away and starts it again. install fetches the
# credentials of a cluster that is there, which logs needs. The workdir must be in a bucket that the cluster may write to.
# GPUs: a JobSet of your own that sets COORDINATOR_ADDRESS and NUM_PROCESSES; each process takes its JOB_COMPLETION_INDEX.
#
# Needs xpk, gcloud, kubectl and docker.
set -euo pipefail
source "$(dirname "$0")/launcher.bash"

needs() {
  local flag
  for flag in "$@"; do [[ -n ${!flag} ]] || fail "--$flag: missing; $action needs it"; done
}

in_cluster() { needs cluster zone project; run xpk "$@" --cluster="$cluster" --zone="$zone" --project="$project"; }

create() {
  needs type
  in_cluster cluster create --tpu-type="$type" --num-slices="$slices" "${capacity[@]}"
}

install() {
  needs cluster zone project
  run gcloud container clusters get-credentials "$cluster" --region="${zone%-*}" --project="$project"
}

start() {
  needs workload type
  local command
  make_command python
  in_cluster workload create --workload="$workload" --tpu-type="$type" --num-slices="$slices" --max-restarts="$restarts" \
    --termination-grace-period-seconds=120 --base-docker-image="$image" --script-dir="$PWD" --command="pip install -q --editable '.[tpu,gcs]' &&$command"
}

logs() {
  needs workload
  run kubectl logs --follow --prefix --max-log-requests=64 --selector="jobset.sigs.k8s.io/jobset-name=$workload"
}

resume() {
  needs workload
  in_cluster workload delete --workload="$workload" --force
  start
}

delete() {
  if [[ -n $workload ]]; then
    in_cluster workload delete --workload="$workload" --force
  else
    in_cluster cluster delete
  fi
}

settings=(cluster= zone= project= type= slices=1 restarts=100 workload= image=python:3.12)
capacity=()
other() { [[ $1 == --spot ]] && capacity=(--spot); }
read_flags "$@"
case $action in
  create | install | logs | resume | delete) "$action" ;;
  run) start ;;
  *) fail "$action: accepted are create, install, run, logs, resume, delete" ;;
esac
