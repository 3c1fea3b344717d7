"""Who a process is, by flags or environment; and that a process alone asks nobody."""

import pytest

from lm import cluster
from lm.cluster import Asked, Cluster
from lm.config import ConfigError
from tests.multihost import processes
from tests.multihost.processes import train_flags

THREE = {"coordinator": "a:80", "num_processes": "4", "process_id": "3"}
JOB = {"JAX_COORDINATOR_ADDRESS": "b:81", "NUM_PROCESSES": "2", "JOB_COMPLETION_INDEX": "1"}
SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "gpu[01-02]", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}


def found(asked=None, **environment):
  member = cluster.find(asked or Asked(), {"JAX_PLATFORMS": "cpu", **environment})
  return member and (member.coordinator, member.count, member.index)


def test_flags_come_before_the_environment_and_nothing_is_one_process():
  assert found(Asked(**THREE), **JOB) == ("a:80", 4, 3)
  assert found(**JOB) == ("b:81", 2, 1)
  assert found(**JOB, PROCESS_ID="0", COORDINATOR_ADDRESS="c:82") == ("c:82", 2, 0)
  assert found() is None
  assert found(NUM_PROCESSES="3", PROCESS_ID="1", SLURM_JOB_ID="7") is None  # a shell in an allocation is no srun


def test_slurm_is_what_jax_detects(monkeypatch):
  for name, value in (SLURM | {"SLURM_LOCALID": "0"}).items():
    monkeypatch.setenv(name, value)
  assert found(**SLURM) == (f"gpu01:{7 + 65535 - 2**12 + 1}", 2, 1)
  monkeypatch.setenv("SLURM_NTASKS", "1")
  assert found(**SLURM) is None


@pytest.mark.parametrize(
  ("changes", "line"),
  [
    ({"num_processes": ""}, "--coordinator=a:80 and --process_id=3: needs --num_processes too"),
    ({"coordinator": "", "process_id": ""}, "--num_processes=4: needs --coordinator and --process_id too"),
    ({"coordinator": "a"}, "--coordinator=a: accepted is HOST:PORT"),
    ({"coordinator": "a:b"}, "--coordinator=a:b: accepted is HOST:PORT"),
    ({"num_processes": "0"}, "--num_processes=0: accepted is the number of processes"),
    ({"process_id": "4"}, "--process_id=4: accepted are 0 to 3, as --num_processes=4"),
    ({"process_id": "-1"}, "--process_id=-1: accepted are 0 to 3"),
  ],
)
def test_half_of_it_is_one_line(changes, line):
  with pytest.raises(ConfigError) as error:
    cluster.find(Asked(**THREE | changes), {})
  assert str(error.value).startswith(line)


def test_half_an_environment_names_its_variables():
  with pytest.raises(ConfigError, match="JAX_COORDINATOR_ADDRESS=b:81 and NUM_PROCESSES=2: needs PROCESS_ID too"):
    found(**{name: value for name, value in JOB.items() if name != "JOB_COMPLETION_INDEX"})


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan"])
def test_a_timeout_is_a_number_of_seconds(value):
  with pytest.raises(ConfigError, match="accepted are seconds"):
    cluster.timeout(Asked(cluster_timeout=value))


def test_a_process_alone_is_its_own_answer():
  alone = Cluster()
  assert alone.agree("anything", {"a": 1}) == [{"a": 1}]
  assert [alone.stops(step, asked) for step, asked in ((3, False), (3, True))] == [False, True]
  assert alone.first and alone.count == 1


def test_a_process_that_never_starts_is_named_by_the_others(tmp_path):
  flags = train_flags(tmp_path)
  started = processes.start([flags, flags, flags], devices=1, timeout=12)
  started[1].kill()
  ended = processes.finish(started)
  assert [process.code for process in ended] == [2, -9, 2]
  for process in (ended[0], ended[2]):
    assert (
      process.error.splitlines()[-1].partition("): ")[2].startswith("--cluster_timeout=12: nothing came from process 1 of 3")
    )
  assert not list(tmp_path.iterdir())
