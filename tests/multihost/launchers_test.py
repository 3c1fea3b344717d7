"""The launchers print what they run: commands as they should be, nothing run in a dry run, a preempted machine made anew."""

import os
import shlex
import subprocess

import pytest

from tests.multihost.processes import ROOT

LAUNCHERS = sorted(path.name for path in (ROOT / "tools").glob("*.sh"))
TPU = ["--name=run", "--zone=us-a", "--type=v5litepod-16", "--commit=abc", "--repo=https://host/lm.git"]
GKE = ["--cluster=c", "--zone=us-a-b", "--project=p", "--type=v6e-16", "--workload=w"]
SLURM = ["--name=run", "--nodes=2", "--gpus=4", "--partition=long"]
TRAIN = ["--", "--config=configs/tiny.py", "--workdir=gs://bucket/a b"]

# A gcloud that notes what it is asked, and gives the states and exit codes of a file, one after the other.
GCLOUD = """#!/usr/bin/env bash
echo "$*" >> "$NOTES/asked"
case "$*" in
  *describe*|*"cat lm/run.code"*)
    answer=$(head -n 1 "$NOTES/answers"); sed -i 1d "$NOTES/answers"
    case "$answer" in
      503|NOT_FOUND) echo "ERROR: $answer" >&2; exit 1 ;;
      *) echo "$answer" ;;
    esac ;;
esac
"""


def launch(name, *flags, **environment):
  command = ["bash", str(ROOT / "tools" / name), *flags]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment})


def printed(name, *flags):
  """The words of each command that a dry run prints; nothing is there to be run."""
  ended = launch(name, *flags, PATH="/usr/bin:/bin", USER="me")
  assert ended.returncode == 0, ended.stderr
  return [shlex.split(line[2:]) for line in ended.stdout.splitlines() if line.startswith("+ ")]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_each_is_a_script_that_says_what_it_does(name):
  assert subprocess.run(["bash", "-n", ROOT / "tools" / name], check=False).returncode == 0
  assert os.access(ROOT / "tools" / name, os.X_OK)
  assert f"tools/{name} run" in launch(name, "--help").stdout
  assert "set -euo pipefail" in (ROOT / "tools" / name).read_text()


def test_tpu_vms_from_create_to_delete():
  zone = "--zone=us-a"
  queued, ssh = ["gcloud", "compute", "tpus", "queued-resources"], ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "run"]
  (create,) = printed("tpu_vm.sh", "create", *TPU, "--spot", "--dry_run")
  assert create[:4] == queued and create[4:6] == ["create", "run"]
  assert create[6:] == [
    *("--node-id=run", "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot", zone)
  ]
  (create,) = printed("tpu_vm.sh", "create", *TPU, "--slices=2", "--version=x", "--project=p", "--dry_run")
  assert {"--node-count=2", "--node-prefix=run", "--runtime-version=x", "--project=p"} < set(create)
  (install,) = printed("tpu_vm.sh", "install", *TPU, "--dry_run")
  assert install[:7] == [*ssh, "--worker=all"] and "git checkout -q abc" in install[7] and "'.[gcs]'" in install[7]
  (start,) = printed("tpu_vm.sh", "run", *TPU, "--dry_run", *TRAIN)
  assert start[:7] == [*ssh, "--worker=all"] and start[8] == zone
  assert shlex.split(start[7].partition("sh -c ")[2])[0].startswith(" .venv/bin/python -m lm.main --config=configs/tiny.py")
  assert "--workdir=gs://bucket/a\\ b; echo $? > run.code" in shlex.split(start[7].partition("sh -c ")[2])[0]
  both = printed("tpu_vm.sh", "run", *TPU, "--slices=2", "--dry_run", *TRAIN)
  assert [words[5] for words in both] == ["run-0", "run-1"]
  (logs,) = printed("tpu_vm.sh", "logs", *TPU, "--slices=2", "--slice=1", "--worker=3", "--dry_run")
  assert logs[5:8] == ["run-1", "--worker=3", "--command=tail -n 100 -F lm/run.log"]
  (delete,) = printed("tpu_vm.sh", "delete", *TPU, "--dry_run")
  assert delete == [*queued, "delete", "run", "--quiet", "--force", zone]
  again = printed("tpu_vm.sh", "resume", *TPU, "--dry_run", *TRAIN)
  assert [words[4] for words in again] == ["delete", "create", "ssh", "ssh"]


def test_a_preempted_tpu_is_made_anew_until_the_run_has_ended(tmp_path):
  (tmp_path / "gcloud").write_text(GCLOUD)
  (tmp_path / "gcloud").chmod(0o755)
  # Taken away: made anew, waited for, started; stopped by a signal: started again; then it ends.
  answers = ["SUSPENDED", "PROVISIONING", "ACTIVE", "running", "ACTIVE", "143", "ACTIVE", "2"]
  (tmp_path / "answers").write_text("".join(f"{line}\n" for line in answers))
  path = f"{tmp_path}:{os.environ['PATH']}"
  ended = launch("tpu_vm.sh", "resume", *TPU, "--poll=0", *TRAIN, PATH=path, NOTES=str(tmp_path))
  assert ended.returncode == 2, ended.stderr
  asked = (tmp_path / "asked").read_text().splitlines()
  kinds = ["delete run", "create run", "git checkout", "lm.main", "lm.main"]
  assert [kind for line in asked for kind in dict.fromkeys(kinds) if kind in line] == kinds
  assert not (tmp_path / "answers").read_text()


@pytest.mark.parametrize(
  ("answer", "expected"), [("503", []), ("NOT_FOUND", ["delete run", "create run", "git checkout", "lm.main"])]
)
def test_only_a_tpu_that_is_not_there_is_made_anew_and_none_that_could_not_be_asked(answer, expected, tmp_path):
  (tmp_path / "gcloud").write_text(GCLOUD)
  (tmp_path / "gcloud").chmod(0o755)
  answers = [answer, answer, *["ACTIVE"] * bool(expected), "running", "ACTIVE", "2"]  # a failure is asked why
  (tmp_path / "answers").write_text("".join(f"{line}\n" for line in answers))
  path = f"{tmp_path}:{os.environ['PATH']}"
  ended = launch("tpu_vm.sh", "resume", *TPU, "--poll=0", *TRAIN, PATH=path, NOTES=str(tmp_path))
  assert ended.returncode == 2, ended.stderr
  asked = (tmp_path / "asked").read_text().splitlines()
  kinds = ["delete run", "create run", "git checkout", "lm.main"]
  assert [kind for line in asked for kind in kinds if kind in line] == expected


def test_gke_from_create_to_delete():
  where = ["--cluster=c", "--zone=us-a-b", "--project=p"]
  (create,) = printed("gke.sh", "create", *GKE, "--slices=2", "--spot", "--dry_run")
  assert create == ["xpk", "cluster", "create", "--tpu-type=v6e-16", "--num-slices=2", "--spot", *where]
  (install,) = printed("gke.sh", "install", *GKE, "--dry_run")
  assert install == ["gcloud", "container", "clusters", "get-credentials", "c", "--region=us-a", "--project=p"]
  (start,) = printed("gke.sh", "run", *GKE, "--restarts=3", "--dry_run", *TRAIN)
  assert start[:3] == ["xpk", "workload", "create"] and {"--max-restarts=3", "--workload=w", *where} < set(start)
  (command,) = [word for word in start if word.startswith("--command=")]
  assert command.endswith("&& python -m lm.main --config=configs/tiny.py --workdir=gs://bucket/a\\ b")
  (logs,) = printed("gke.sh", "logs", *GKE, "--dry_run")
  assert logs[:2] == ["kubectl", "logs"] and "--selector=jobset.sigs.k8s.io/jobset-name=w" in logs
  delete, again = printed("gke.sh", "resume", *GKE, "--dry_run", *TRAIN)
  assert delete[:3] == ["xpk", "workload", "delete"] and again[:3] == ["xpk", "workload", "create"]
  (delete,) = printed("gke.sh", "delete", *where, "--dry_run")
  assert delete == ["xpk", "cluster", "delete", *where]


def test_slurm_from_install_to_delete():
  (install,) = printed("slurm.sh", "install", "--dry_run")
  assert install == ["make", "ACCEL=cuda13", ".venv/.cuda13"]
  _, start = printed("slurm.sh", "run", *SLURM, "--dry_run", *TRAIN)
  wanted = {"--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--partition=long", "--requeue", "--signal=B:TERM@120"}
  assert start[0] == "sbatch" and wanted < set(start)
  (script,) = [word for word in start if word.startswith("--wrap=")]
  assert "srun --kill-on-bad-exit=0 .venv/bin/python -m lm.main --config=configs/tiny.py" in script
  assert printed("slurm.sh", "resume", *SLURM, "--dry_run", *TRAIN)[1] == start
  assert printed("slurm.sh", "logs", *SLURM, "--dry_run") == [["tail", "-n", "100", "-F", "run.log"]]
  mark, cancel = printed("slurm.sh", "delete", *SLURM, "--dry_run")
  assert mark == ["touch", "run.deleted"] and cancel == ["scancel", "--name=run", "--user=me"]


@pytest.mark.parametrize(("code", "deleted", "requeued"), [(143, False, True), (143, True, False), (0, False, False)])
def test_a_slurm_job_whose_time_is_over_saves_and_queues_itself_again(code, deleted, requeued, tmp_path):
  srun = f'#!/usr/bin/env bash\ntrap "exit {code}" TERM\ntouch started\nwhile true; do sleep 0.05; done\n'
  for name, text in {"srun": srun, "scontrol": '#!/usr/bin/env bash\necho "$*" > requeued\n'}.items():
    (tmp_path / name).write_text(text)
    (tmp_path / name).chmod(0o755)
  script = printed("slurm.sh", "run", *SLURM, "--dry_run", *TRAIN)[1][-1].removeprefix("--wrap=")
  if deleted:
    (tmp_path / "run.deleted").touch()
  env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
  job = subprocess.Popen(["sh", "-c", script], cwd=tmp_path, env=env)
  while not (tmp_path / "started").exists():
    assert job.poll() is None
  job.terminate()
  assert job.wait(timeout=20) == code
  assert (tmp_path / "requeued").exists() == requeued


@pytest.mark.parametrize(
  ("name", "flags", "line"),
  [
    ("tpu_vm.sh", ["create", "--zone=z"], "--name: missing"),
    ("tpu_vm.sh", ["create", "--name=n", "--zone=z"], "--type: missing"),
    ("tpu_vm.sh", ["start", "--name=n", "--zone=z"], "start: accepted are create"),
    ("tpu_vm.sh", ["run", "--name=n", "--zone=z", "--nmae=x"], "--nmae=x: unknown flag"),
    ("tpu_vm.sh", ["run", "--name=n", "--zone=z"], "run: needs the flags of lm.main"),
    ("gke.sh", ["run", "--cluster=c"], "--workload: missing"),
    ("slurm.sh", ["run", "--name=a b", *TRAIN], "--name=a b: accepted are letters"),
    ("slurm.sh", ["run", "--name=a"], "run: needs the flags of lm.main"),
  ],
)
def test_bad_flags_are_one_line(name, flags, line):
  ended = launch(name, *flags)
  assert ended.returncode == 2
  assert ended.stderr.startswith(f"error: {line}")
  assert not ended.stdout
