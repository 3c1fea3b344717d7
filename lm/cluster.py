"""Several processes as one run: who they are, what they agree on, and one end for all. A process alone asks nobody.

What a process is told of the others comes from flags, from the environment, or from what jax knows of a TPU VM, GKE, SLURM and
Open MPI. Agreement goes through the key-value store of jax's coordinator: no device is asked, so it also holds before a mesh
exists.
"""

import contextlib
import itertools
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Generator, Mapping
from typing import Any

from lm import device, roll
from lm.config import ConfigError
from lm.roll import Asked, Member

TIMEOUT = 300.0  # seconds that processes wait for each other to come, and to agree
POLL = 1.0  # seconds between looks whether another process has failed
FAREWELL = 10.0  # seconds that a process that failed waits for the others to hear of it
# A signal at step s stops all at s + 2: no process is further, since it has read the metrics of the step before the last, which
# needed all of them.
AHEAD = 2


def find(asked: Asked, environment: Mapping[str, str] = os.environ) -> Member | None:
  """This process among those of its run, by flags, else by the environment, else by jax's detection; None if it is alone.

  Raises:
    ConfigError: only some of what is needed is given, or it is no address and no number.
  """
  flags = {f"--{name}": getattr(asked, name) for name in ("coordinator", "num_processes", "process_id")}
  if any(flags.values()):
    return _member(flags)
  coordinator = _first(environment, "COORDINATOR_ADDRESS", "JAX_COORDINATOR_ADDRESS")
  if coordinator[1]:
    count = _first(environment, "NUM_PROCESSES", "JAX_NUM_PROCESSES")
    index = _first(environment, "PROCESS_ID", "JAX_PROCESS_ID", "JOB_COMPLETION_INDEX")
    return _member(dict((coordinator, count, index)))
  method = _detection(environment)
  return _detect(method) if method else None


def timeout(asked: Asked) -> float:
  """Seconds that processes wait for each other.

  Raises:
    ConfigError: not a positive number.
  """
  try:
    seconds = float(asked.cluster_timeout or TIMEOUT)
  except ValueError:
    seconds = 0.0
  if not seconds > 0:
    raise ConfigError(f"--cluster_timeout={asked.cluster_timeout}: accepted are seconds, more than 0")
  return seconds


def _first(environment: Mapping[str, str], *names: str) -> tuple[str, str]:
  """(name, value) of the first variable that is set; the first name where none is."""
  return next(((name, environment[name]) for name in names if environment.get(name)), (names[0], ""))


def _member(given: Mapping[str, str]) -> Member:
  """given: setting -> value of the coordinator, the number of processes and this one's, in this order."""
  missing = [name for name, value in given.items() if not value]
  if missing:
    there = " and ".join(f"{name}={value}" for name, value in given.items() if value)
    raise ConfigError(f"{there}: needs {' and '.join(missing)} too; all three together make several processes one run")
  (where, coordinator), (total, count), (which, index) = given.items()
  host, _, port = coordinator.rpartition(":")
  if not host or not port.isdecimal():
    raise ConfigError(f"{where}={coordinator}: accepted is HOST:PORT of process 0")
  if not count.isdecimal() or int(count) < 1:
    raise ConfigError(f"{total}={count}: accepted is the number of processes")
  if not index.isdecimal() or int(index) >= int(count):
    raise ConfigError(f"{which}={index}: accepted are 0 to {int(count) - 1}, as {total}={count}")
  return Member(coordinator, int(count), int(index), socket.gethostname())


def _detection(environment: Mapping[str, str]) -> str:
  """jax's name of the cluster that this machine belongs to, "" for none."""
  if environment.get("JAX_PLATFORMS") != "cpu" and device.find_accelerator() == "tpu":
    on_gke = any(name in environment for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"))
    return "gketpu" if on_gke else "gcetpu"
  if "SLURM_PROCID" in environment:
    return "slurm"
  return "ompi" if "OMPI_COMM_WORLD_SIZE" in environment else ""


def _detect(method: str) -> Member | None:
  from jax._src.clusters import ClusterEnv  # jax.distributed.initialize would not say what it found

  detect = ClusterEnv.auto_detect_unset_distributed_params
  try:
    coordinator, count, index, devices = detect(None, None, None, None, method, int(TIMEOUT))
  except (RuntimeError, OSError, ValueError, KeyError) as error:
    raise ConfigError(f"{method}: jax cannot find the processes of this run ({error}); give --coordinator") from error
  if coordinator is None or count is None or index is None or count == 1:
    return None
  return Member(coordinator, count, index, socket.gethostname(), None if devices is None else tuple(devices))


class Cluster:
  """The processes of a run, by the names of their hosts, and which of them this is. Alone, every question is its answer."""

  def __init__(self, index: int = 0, hosts: tuple[str, ...] = ("",), seconds: float = TIMEOUT, client: Any = None):
    self.index, self.hosts = index, hosts
    self._seconds, self._client = seconds, client
    self._calls = itertools.count()  # every process asks the same questions in the same order
    self._over = threading.Event()

  @property
  def count(self) -> int:
    """How many processes there are."""
    return len(self.hosts)

  @property
  def first(self) -> bool:
    """Whether this is the process that writes the records and talks."""
    return self.index == 0

  def name(self, index: int) -> str:
    """ "process 1 (host b)", for lines about it."""
    return f"process {index} (host {self.hosts[index]})"

  def agree(self, what: str, value: Any) -> list[Any]:
    """The JSON values of all processes, by process, once all have given theirs: also the point where they meet.

    Raises:
      ConfigError: some did not come in time; it names them.
    """
    if self.count == 1:
      return [value]
    from jax.errors import JaxRuntimeError

    key = f"lm/{next(self._calls)}/{what}"
    self._client.key_value_set(f"{key}/each/{self.index}", json.dumps(value))
    try:
      if self.first:
        found = [self._client.blocking_key_value_get(f"{key}/each/{i}", self._milliseconds) for i in range(self.count)]
        self._client.key_value_set(f"{key}/all", json.dumps(found))
      return list(map(json.loads, json.loads(self._client.blocking_key_value_get(f"{key}/all", self._milliseconds))))
    except JaxRuntimeError as error:
      came = {int(name.rpartition("/")[2]) for name, _ in self._client.key_value_dir_get(f"{key}/each")}
      missing = ", ".join(self.name(i) for i in range(self.count) if i not in came)
      raise ConfigError(f"--cluster_timeout={self._seconds:g}: {missing or self.name(0)} did not come to '{what}'") from error

  def stops(self, step: int, asked: bool) -> bool:
    """Whether all processes stop before this step, because one of them was asked to, two steps ago at the latest."""
    if self.count == 1:
      return asked
    if asked and self._try_get("lm/stop") is None:
      self._set("lm/stop", str(step + AHEAD))
    at = self._try_get("lm/stop")
    return at is not None and step >= int(at)

  def end(self, code: int, line: str) -> None:
    """Ends this process, and soon all others, which say the line of the one that failed."""
    self._over.set()
    self._set("lm/failed", json.dumps([self.index, code, line]))
    self._set(f"lm/heard/{self.index}", "")
    deadline = time.monotonic() + FAREWELL
    while self.first and len(self._client.key_value_dir_get("lm/heard")) < self.count and time.monotonic() < deadline:
      time.sleep(0.05)  # with this process the store goes
    _exit(code)

  def watch(self) -> None:
    """In a thread: ends this process when another one has failed, since it may wait for that one in a computation for ever."""
    while not self._over.wait(POLL):
      failed = self._try_get("lm/failed")
      if failed is not None and not self._over.is_set():
        index, code, line = json.loads(failed)
        print(f"error: {self.name(index)} failed: {line}", file=sys.stderr, flush=True)
        self.end(code, line)

  def leave(self) -> None:
    """Ends the watch; the others may go on."""
    self._over.set()

  @property
  def _milliseconds(self) -> int:
    return int(self._seconds * 1000)

  def _set(self, key: str, value: str) -> None:
    """Unless another process was first, or the store is gone."""
    from jax.errors import JaxRuntimeError

    with contextlib.suppress(JaxRuntimeError):
      self._client.key_value_set(key, value)

  def _try_get(self, key: str) -> str | None:
    from jax.errors import JaxRuntimeError

    try:
      return self._client.key_value_try_get(key)
    except JaxRuntimeError:  # not set; a store that is gone ends the process by itself
      return None


_here = Cluster()


def here() -> Cluster:
  """The cluster that this process has joined; one of itself alone if it has not."""
  return _here


@contextlib.contextmanager
def joined(asked: Asked) -> Generator[Cluster]:
  """Makes this process one of its run's before jax asks for devices; any error in it ends all of them.

  Only process 0 writes to standard output.

  Raises:
    ConfigError: as `find` and `roll.call`.
  """
  global _here
  seconds, member = timeout(asked), find(asked)
  if member is None:
    if asked.cluster_timeout:
      raise ConfigError("--cluster_timeout: has no effect on one process alone; give --coordinator")
    yield _here
    return
  here = _here = Cluster(member.index, tuple(roll.call(member, seconds)), seconds, _start(member, seconds))
  threading.Thread(target=here.watch, daemon=True).start()
  with contextlib.ExitStack() as stack:
    if not here.first:
      stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
    stack.push(_end_all)
    yield here
    here.leave()


def _start(member: Member, seconds: float) -> Any:
  """Starts jax.distributed and returns its client of the key-value store, for which jax has no public name."""
  import jax
  from jax._src import distributed

  jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is ours: see `stops`
  jax.distributed.initialize(
    member.coordinator,
    member.count,
    member.index,
    member.devices,
    cluster_detection_method="deactivate",
    initialization_timeout=int(seconds) + 1,
  )
  return distributed.global_state.client


def _end_all(_kind: Any, error: BaseException | None, _trace: Any) -> bool:
  """What the end of a process by an exception means for the others."""
  if error is None:
    return False
  if isinstance(error, ValueError | FloatingPointError):
    line = str(error)
    print(f"error: {line}", file=sys.stderr)
  else:
    line = f"{type(error).__name__}: {error}".splitlines()[0]
    traceback.print_exception(error)
  here().end(2 if isinstance(error, ValueError) else 1, line)
  return False


def _exit(code: int) -> None:
  """At once: the usual end of an interpreter would wait for the other processes."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
