"""Hosts that build a store together write the bytes that one would have written, on any kind of shared folder."""

import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from lm.config import ConfigError
from lm.data import columns, encode, parts, store
from lm.data.parts import Hosts
from tests.data.store_test import MANY, Letters, Spell, Texts

ROOT = Path(__file__).parents[2]
KINDS = ["{}", "file://{}", "memory://{}"]  # where the hosts' folder is


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  """The folder where a machine keeps what it fetched; waiting looks and speaks at once.

  What is put into memory:// is there whole or not at all, as in an object store; fsspec's own shows it while it grows.
  """
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
  monkeypatch.setattr(parts, "POLL", 0.01)
  monkeypatch.setattr(parts, "EVERY", 0.0)
  put_file = lambda system, source, target: system.pipe_file(target, Path(source).read_bytes())
  monkeypatch.setattr(MemoryFileSystem, "put_file", put_file)


def build(cache_dir, hosts=None, source=MANY, task=Spell()):  # noqa: B008 - frozen
  return store.build(source, Letters(), task, cache_dir, 1, hosts)


def build_together(cache_dir, count, **changes):
  with ThreadPoolExecutor(count) as pool:
    return list(pool.map(lambda i: build(cache_dir, Hosts(i, count, deadline=30), **changes), range(count)))


def files(folder: Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_hosts_writes_the_same_bytes(kind, count, tmp_path, monkeypatch):
  alone = build(tmp_path / "alone").path
  monkeypatch.setattr(columns, "BLOCK", 50)
  built = build_together(kind.format(tmp_path / "shared"), count)
  assert built == [built[0]] * count
  assert built[0].path.name == alone.name
  assert files(built[0].path) == files(alone)
  assert not list(tmp_path.rglob("*.parts"))
  assert [path.name for path in built[0].path.parent.iterdir()] == [alone.name]


@pytest.mark.parametrize("large", [0, 1500, 2999])
def test_a_large_value_in_one_part_widens_the_store(large, tmp_path):
  source = Texts(tuple("\U0001f600" if i == large else text for i, text in enumerate(MANY.texts)))
  alone, built = build(tmp_path / "alone", source=source), build_together(tmp_path / "shared", 4, source=source)
  assert files(built[0].path) == files(alone.path)
  assert built[3].values("tokens").dtype == np.int32


def test_hosts_without_an_example_or_a_sequence_have_empty_parts(tmp_path):
  class Picky(Spell):
    def prepare(self, example, tok):
      return super().prepare(example, tok) if example["text"] == "cd" else []

  source = Texts(("", "ab", "cd"))
  built = build_together(tmp_path / "shared", 8, source=source, task=Picky())
  assert files(built[0].path) == files(build(tmp_path / "alone", source=source, task=Picky()).path)


def test_no_sequences_at_all_is_one_clear_line(tmp_path):
  source = Texts(("", ""))
  build_part(tmp_path, 1, 2, source)
  with pytest.raises(ConfigError, match="data 'texts', split 'train': no example gives a sequence"):
    build(tmp_path, Hosts(0, 2), source)


def build_part(cache_dir, index, count, source=MANY):
  """What host `index` leaves if it is killed while it waits; returns the place of the store."""
  found = store.find(source, Letters(), Spell(), cache_dir)
  examples = parts.share(len(source), index, count)
  parts.write(encode.encode(source, examples, Letters(), Spell(), 1), found.part(index, count))
  return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
  ("there", "host", "lacking"),
  [
    ([], 0, "no part from host 1, 2 of 3"),
    ([1], 0, "no part from host 2 of 3"),
    ([0], 1, "no part from host 2 of 3"),
    ([0, 2], 1, "host 0 has not joined the parts"),
  ],
)
def test_a_host_that_never_comes_is_named(kind, there, host, lacking, tmp_path, capsys):
  cache_dir = kind.format(tmp_path / "shared")
  for i in there:
    build_part(cache_dir, i, 3)
  with pytest.raises(ConfigError, match=f"config.cache_deadline=0.1: for so many seconds nothing came to .*: {lacking};"):
    build(cache_dir, Hosts(host, 3, deadline=0.1))
  assert f": {lacking}, 0 s\n" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_part_is_used_again_and_no_other(kind, tmp_path, monkeypatch):
  cache_dir = kind.format(tmp_path / "shared")
  found = build_part(cache_dir, 1, 2)
  build_part(cache_dir, 0, 3)  # of a run with another number of hosts
  half = found.part(0, 2)
  with pytest.raises(KeyboardInterrupt), half.making() as folder:
    columns.write([], folder)
    raise KeyboardInterrupt
  spelled = []
  prepare = Spell.prepare
  monkeypatch.setattr(Spell, "prepare", lambda task, example, tok: spelled.append(1) or prepare(task, example, tok))
  build_together(cache_dir, 2)
  assert len(spelled) == 1500
  assert not found.parts.local.exists()
  assert found.missing_parts(3) == [0, 1, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_part_is_written_again(kind, tmp_path):
  cache_dir = kind.format(tmp_path / "shared")
  part = build_part(cache_dir, 1, 2).part(1, 2)
  path = part.local / "tokens.values.npy"
  path.write_bytes(path.read_bytes()[:-1])
  if part.shared != str(part.local):  # its copy here is fetched again, unless what it is a copy of is damaged too
    system, shared = part._system()
    system.pipe_file(f"{shared}/{path.name}", path.read_bytes())
  with pytest.raises(ConfigError, match=r"part 1 of 2 of .*: damaged \(tokens.values.npy\); start again"):
    build(cache_dir, Hosts(0, 2))
  built = build_together(cache_dir, 2)
  assert files(built[0].path) == files(build(tmp_path / "alone").path)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_remote_store_is_copied_once_and_checked(kind, tmp_path, monkeypatch):
  cache_dir = kind.format(tmp_path / "shared")
  first = build(cache_dir)
  whole, path = files(first.path), first.path / "tokens.values.npy"
  assert first.path.parent == tmp_path / "own" / "lm" / "store"
  monkeypatch.delattr(Spell, "prepare")
  path.write_bytes(b"damaged")
  assert files(build(cache_dir).path) == whole
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another_machine"))
  assert files(build(cache_dir).path) == whole
  system, _ = store.find(MANY, Letters(), Spell(), cache_dir)._system()
  monkeypatch.setattr(type(system), "get_file", None)
  assert files(build(cache_dir).path) == whole


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_damaged_remote_store_is_built_again(kind, tmp_path, monkeypatch, capsys):
  cache_dir = kind.format(tmp_path / "shared")
  whole = files(build(cache_dir).path)
  system, path = store.find(MANY, Letters(), Spell(), cache_dir)._system()
  system.pipe_file(f"{path}/size.values.npy", b"damaged")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another_machine"))
  assert files(build(cache_dir).path) == whole
  assert "damaged (size.values.npy); building it again" in capsys.readouterr().out
  assert system.cat_file(f"{path}/size.values.npy") == whole["size.values.npy"]


def test_an_upload_that_breaks_off_leaves_no_store(tmp_path, monkeypatch):
  cache_dir = f"memory://{tmp_path}"
  found = store.find(MANY, Letters(), Spell(), cache_dir)
  system, path = found._system()
  put, names = system.put_file, []

  def put_file(source, target):
    names.append(target.split("/")[-1])
    if len(names) == 5:
      raise KeyboardInterrupt
    put(source, target)

  monkeypatch.setattr(type(system), "put_file", staticmethod(put_file))
  with pytest.raises(KeyboardInterrupt):
    build(cache_dir)
  assert names[-1] == columns.INDEX
  assert not found.exists()
  assert len(system.find(path)) == 4
  monkeypatch.undo()
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
  assert build(cache_dir).num_sequences == 3000


def test_a_folder_of_an_unknown_kind_is_one_clear_line():
  with pytest.raises(ConfigError, match="config.cache_dir=.nowhere://.*: Protocol not known"):
    build("nowhere://bucket")


CODE = """
import sys
from tests.data.parts_test import Hosts, MANY, Spell, build, os, signal

index, cache_dir, how = int(sys.argv[1]), sys.argv[2], sys.argv[3]
prepare = Spell.prepare

def die(task, example, tok):
  if example == MANY[500]:
    os.kill(os.getpid(), signal.SIGKILL)
  return prepare(task, example, tok)

if how == "die":
  Spell.prepare = die
print(build(cache_dir, Hosts(index, 3, 60)).path)
"""


@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_killed_host_carries_on(kind, tmp_path):
  cache_dir = kind.format(tmp_path / "shared")

  def start(index: int, how: str = "live"):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / f"machine{index}")}
    command = [sys.executable, "-c", CODE, str(index), cache_dir, how]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)

  others = [start(1), start(2)]
  killed = start(0, "die")
  assert not killed.communicate(timeout=60)[0]
  assert killed.returncode == -signal.SIGKILL
  folders = [Path(process.communicate(timeout=60)[0].splitlines()[-1]) for process in (start(0), *others)]
  assert [files(folder) for folder in folders] == [files(build(tmp_path / "alone").path)] * 3


DISTRIBUTED = """
import sys

import jax

index, address, cache_dir = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(address, 2, index)
from tests.conftest import make_config, build

run = build.make_run(make_config(cache_dir=cache_dir, cache_deadline=60), jax.local_devices()[:1])
print(jax.process_count(), run.load("causal", "train").store.path)
"""


@pytest.mark.slow
def test_two_processes_of_jax_build_one_store(tmp_path):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"

  def start(index: int):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / f"machine{index}")}
    command = [sys.executable, "-c", DISTRIBUTED, str(index), address, f"file://{tmp_path / 'shared'}"]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

  found = [process.communicate(timeout=120) for process in [start(0), start(1)]]
  folders = [Path(out.splitlines()[-1].removeprefix("2 ")) for out, _ in found]
  assert files(folders[0]) == files(folders[1])
  assert "tokenised data" in found[0][0]
  assert "tokenised data" not in found[1][0]
