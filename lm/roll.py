"""The roll of a run's processes, called before jax.distributed starts: that one ends a process in C++ without a name.

Process 0 listens where its coordinator will, every other process says who it is and waits. When all have come, or the time is
over, each hears the same answer; then the port is free for jax. One JSON line goes each way.
"""

import contextlib
import dataclasses
import json
import selectors
import socket
import sys
import time
from typing import Any

from lm.config import ConfigError

RETRY = 0.2  # seconds between attempts to reach process 0
EVERY = 10.0  # seconds between lines about who is missing
GRACE = 5.0  # seconds that process 0 has to say that the time is over


@dataclasses.dataclass(frozen=True)
class Asked:
  """The flags of a command line; "" where one is not given."""

  coordinator: str = ""
  num_processes: str = ""
  process_id: str = ""
  cluster_timeout: str = ""


@dataclasses.dataclass(frozen=True)
class Member:
  """One process of a run: where process 0 is ("host:port"), how many there are, which this is, and its host's name.

  devices: those of this host that it uses, by number; None: all.
  """

  coordinator: str
  count: int
  index: int
  host: str
  devices: tuple[int, ...] | None = None

  @property
  def address(self) -> tuple[str, int]:
    """Host and port of process 0."""
    host, _, port = self.coordinator.rpartition(":")
    return host.strip("[]"), int(port)


def call(member: Member, timeout: float) -> list[str]:
  """Host names of all processes, by process, once all have come; every process of the run calls this at the same time.

  timeout: seconds until those that came stop to wait.

  Raises:
    ConfigError: it names the processes that did not come, that say another number of processes, or that are there twice.
  """
  deadline = time.monotonic() + timeout
  answer = _Listener(member, deadline).run(timeout) if member.index == 0 else _answer(member, deadline, timeout)
  if "error" in answer:
    raise ConfigError(f"process {member.index} of {member.count} (host {member.host}): {answer['error']}")
  return answer["hosts"]


class _Listener:
  """Process 0's side."""

  def __init__(self, member: Member, deadline: float):
    self._member, self._deadline = member, deadline
    self._came = {0: member.host}
    self._lines: dict[socket.socket, bytes] = {}  # what each connection has sent
    self._ids: dict[socket.socket, int] = {}

  def run(self, timeout: float) -> dict[str, Any]:
    """Waits for all, tells everybody the answer, and returns it."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
      server = socket.create_server(("", self._member.address[1]), family=family, dualstack_ipv6=both, backlog=1024)
    except OSError as error:
      return {"error": f"cannot listen on {self._member.coordinator} ({error.strerror}); another run may have the port"}
    with server, selectors.DefaultSelector() as selector:
      selector.register(server, selectors.EVENT_READ)
      answer = self._wait(selector, server, timeout)
      for connection in list(self._lines):
        with contextlib.suppress(OSError):  # it is gone
          connection.setblocking(True)
          connection.sendall(json.dumps(answer).encode() + b"\n")
        connection.close()
    return answer

  def _wait(self, selector: selectors.BaseSelector, server: socket.socket, timeout: float) -> dict[str, Any]:
    count, said = self._member.count, time.monotonic()
    while len(self._came) < count:
      missing = "nothing came from process " + ", ".join(str(i) for i in range(count) if i not in self._came)
      missing += f" of {count}; here: " + ", ".join(f"{i} ({host})" for i, host in sorted(self._came.items()))
      now = time.monotonic()
      if now > self._deadline:
        return {"error": f"--cluster_timeout={timeout:g}: {missing}"}
      if now - said > EVERY:
        said = now
        print(f"waiting at {self._member.coordinator}: {missing}", file=sys.stderr, flush=True)
      for key, _ in selector.select(0.5):
        wrong = self._accept(selector, server) if key.fileobj is server else self._read(selector, key.fileobj)
        if wrong:
          return {"error": wrong}
    return {"hosts": [self._came[i] for i in range(count)]}

  def _accept(self, selector: selectors.BaseSelector, server: socket.socket) -> str:
    connection, _ = server.accept()
    connection.setblocking(False)
    self._lines[connection] = b""
    selector.register(connection, selectors.EVENT_READ)
    return ""

  def _read(self, selector: selectors.BaseSelector, connection: Any) -> str:
    """Takes what a connection sent; returns what is wrong with the run, if it is. A stranger is sent away."""
    try:
      received = connection.recv(4096)
    except OSError:
      received = b""
    self._lines[connection] += received
    if not received:  # a process that ended, perhaps to come again
      self._came.pop(self._ids.pop(connection, -1), None)
      return self._drop(selector, connection)
    if not self._lines[connection].endswith(b"\n"):
      return ""
    try:
      said = json.loads(self._lines[connection])
      index, count, host = said["index"], said["count"], said["host"]
    except (ValueError, KeyError, TypeError):
      return self._drop(selector, connection)
    if count != self._member.count:
      return f"process {index} (host {host}) says that there are {count} processes, process 0 says {self._member.count}"
    if index in self._came or not 0 < index < count:
      there = f" and on {self._came[index]}" if index in self._came else ""
      return f"process {index} of {count} is on host {host}{there}; each process needs an id of its own, from 0"
    self._ids[connection], self._came[index] = index, host
    return ""

  def _drop(self, selector: selectors.BaseSelector, connection: socket.socket) -> str:
    selector.unregister(connection)
    del self._lines[connection]
    connection.close()
    return ""


def _answer(member: Member, deadline: float, timeout: float) -> dict[str, Any]:
  """The side of all others: says who this is and hears the answer, from the start again if process 0 goes away meanwhile."""
  words = json.dumps({"index": member.index, "count": member.count, "host": member.host}).encode() + b"\n"
  while (left := deadline - time.monotonic()) > 0:
    with contextlib.suppress(OSError):  # not there yet, or gone
      with socket.create_connection(member.address, timeout=left) as connection:
        connection.sendall(words)
        connection.settimeout(deadline - time.monotonic() + GRACE)
        with connection.makefile("rb") as file:
          line = file.readline()
      if line:
        return _read_answer(line, member)
    time.sleep(RETRY)
  return {"error": f"--cluster_timeout={timeout:g}: process 0 did not answer at {member.coordinator}"}


def _read_answer(line: bytes, member: Member) -> dict[str, Any]:
  try:
    return json.loads(line)
  except ValueError:
    return {
      "error": f"{member.coordinator} is no process 0 that waits; an earlier start of this run or another run has the port"
    }
