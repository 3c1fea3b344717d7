#!/usr/bin/env bash
# A run on a SLURM cluster with GPUs. Every command is printed before it runs; --dry_run only prints.
#
#   tools/slurm.sh install
#   tools/slurm.sh run    --name=RUN --nodes=2 --gpus=8 [--time=24:00:00] [--partition=P] [--account=A] \
#                         -- --config=configs/x.py --workdir=DIR
#   tools/slurm.sh logs   --name=RUN
#   tools/slurm.sh resume (the flags of run)
#   tools/slurm.sh delete --name=RUN
#
# run submits one process per GPU (--gpus: of each node); jax finds the others through what srun tells each. 120 seconds before
# the time is over, and when a node is taken away, all processes get SIGTERM: they save, end with 143, and the job queues itself
# again under its own number. resume submits anew what has ended otherwise; the same workdir goes on. The workdir and this folder
# must be on a file system that all nodes see, the workdir may be gs://. Open MPI's mpirun works too, without srun.
#
# Needs sbatch, and make for install.
set -euo pipefail
source "$(dirname "$0")/launcher.bash"

install() { run make ACCEL="$accel" ".venv/.$accel"; }

start() {
  [[ -n $name ]] || fail "--name: missing"
  local command
  make_command .venv/bin/python
  # The batch step's shell passes SIGTERM on, also one that comes before it waits, and waits for the processes to save; what
  # `delete` has marked is not queued again.
  local script="trap 'asked=yes; kill -TERM \$child' TERM; srun --kill-on-bad-exit=0$command & child=\$!"
  script+="; [ -z \"\$asked\" ] || kill -TERM \$child; wait \$child; code=\$?"
  script+="; while kill -0 \$child 2> /dev/null; do wait \$child; code=\$?; done"
  script+="; [ \$code -ne 143 ] || [ -e $name.deleted ] || scontrol requeue \$SLURM_JOB_ID; exit \$code"
  run rm -f "$name.deleted"
  run sbatch --job-name="$name" --nodes="$nodes" --ntasks-per-node="$gpus" --gpus-per-node="$gpus" --time="$time" \
    --requeue --signal=B:TERM@120 --open-mode=append --output="$name.log" "${queue[@]}" --wrap="$script"
}

logs() { [[ -n $name ]] || fail "--name: missing"; run tail -n 100 -F "$name.log"; }

delete() {
  [[ -n $name ]] || fail "--name: missing"
  run touch "$name.deleted"
  run scancel --name="$name" --user="$USER"
}

settings=(name= nodes=1 gpus=8 time=24:00:00 accel=cuda13)
queue=()
other() { [[ $1 == --partition=* || $1 == --account=* ]] && queue+=("$1"); }
read_flags "$@"
[[ -z $name || $name =~ ^[A-Za-z0-9._-]+$ ]] || fail "--name=$name: accepted are letters, digits and . _ -"
case $action in
  install | logs | delete) "$action" ;;
  run | resume) start ;;
  *) fail "$action: accepted are install, run, logs, resume, delete" ;;
esac
