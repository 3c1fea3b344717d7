"""The roll of a run's processes: all hear the names of all, or one line that says who is missing."""

import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lm import roll
from lm.config import ConfigError
from lm.roll import Member
from tests.multihost.processes import free_port


def members(count, port=None):
  where = f"localhost:{port or free_port()}"
  return [Member(where, count, i, f"host{i}") for i in range(count)]


def call(some, timeout=20.0):
  """What each process hears: the names, or the line of its error."""

  def one(member):
    try:
      return roll.call(member, timeout)
    except ConfigError as error:
      return str(error)

  with ThreadPoolExecutor(len(some)) as pool:
    return list(pool.map(one, some))


def test_all_hear_the_names_in_order_whoever_comes_first():
  processes = members(3)
  assert call(processes[::-1]) == [["host0", "host1", "host2"]] * 3
  assert call(members(1)) == [["host0"]]


def test_who_does_not_come_is_named_to_all_that_did():
  lines = call([*members(4)[:2]], 0.7)
  here = "--cluster_timeout=0.7: nothing came from process 2, 3 of 4; here: 0 (host0), 1 (host1)"
  assert lines == [f"process {i} of 4 (host host{i}): {here}" for i in range(2)]


def test_without_process_0_the_others_say_so():
  process = members(2)[1]
  (line,) = call([process], 0.5)
  assert line.endswith(f"--cluster_timeout=0.5: process 0 did not answer at {process.coordinator}")


def test_ids_and_numbers_that_do_not_fit_are_told_to_all():
  first, second, _ = members(3)
  twin = Member(first.coordinator, 3, 1, "twin")
  lines = call([first, second, twin])
  assert len({line.partition("): ")[2] for line in lines}) == 1
  assert "process 1 of 3 is on host" in lines[0] and "host1" in lines[0] and "twin" in lines[0]
  first, _ = members(2)
  lines = call([first, Member(first.coordinator, 3, 2, "other")])
  assert [line.partition("): ")[2] for line in lines] == [
    "process 2 (host other) says that there are 3 processes, process 0 says 2"
  ] * 2


def test_a_process_that_dies_and_comes_again_and_a_stranger_do_no_harm():
  first, second = members(2)
  found: list = []
  waiting = threading.Thread(target=lambda: found.extend(call([first])))
  waiting.start()
  for words in (b"GET / HTTP/1.1\r\n\r\n", b'{"index": 1, "count": 2, "host": "dead"}', b"[]\n"):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
      with contextlib.suppress(ConnectionRefusedError), socket.create_connection(first.address) as connection:
        connection.sendall(words)
        break
  assert call([second]) == [["host0", "host1"]]
  waiting.join()
  assert found == [["host0", "host1"]]


def test_a_port_that_is_taken_is_one_line():
  with socket.create_server(("", 0)) as taken:
    (line,) = call([members(2, taken.getsockname()[1])[0]])
  assert "cannot listen on localhost" in line


def test_something_else_at_the_port_is_no_process_0():
  with socket.create_server(("localhost", 0)) as other:

    def answer():
      connection, _ = other.accept()
      connection.recv(100)
      connection.sendall(b"\0\0\x12\4\0")
      connection.close()

    threading.Thread(target=answer).start()
    (line,) = call([members(2, other.getsockname()[1])[1]])
  assert "is no process 0 that waits" in line


@pytest.mark.parametrize("coordinator", ["[::1]:80", "::1:80"])
def test_addresses_of_version_6(coordinator):
  assert Member(coordinator, 1, 0, "").address == ("::1", 80)
