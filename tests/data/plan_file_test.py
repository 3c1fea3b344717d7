"""A plan is packed once per store and read after that; what decides it has a file of its own, and a damaged one is none."""

import dataclasses

import numpy as np
import pytest

from lm.data import plan, plan_file, store
from lm.data.loader import Rows, StreamData
from lm.data.sources.memory import Memory
from lm.data.tokenizer import Bytes
from lm.tasks.causal import Causal

LENGTHS = np.random.default_rng(0).integers(1, 40, 90)


@pytest.fixture
def packings(monkeypatch):
  """Small windows, and a list that grows with each plan that is packed."""
  found, pack = [], plan.pack
  monkeypatch.setattr(plan, "WINDOW", 50)
  monkeypatch.setattr(plan, "pack", lambda *arguments: found.append(arguments) or pack(*arguments))
  return found


def same(a, b):
  names = [field.name for field in dataclasses.fields(a)]
  return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


def test_the_second_start_packs_nothing(packings, tmp_path):
  made, found = (plan_file.pack(tmp_path, LENGTHS, 32, 0, np.asarray) for _ in range(2))
  assert same(made, found)
  assert made.num_split == found.num_split > 0
  assert len(packings) == 1
  assert [path.name[:5] for path in tmp_path.iterdir()] == ["plan-"]


def test_what_decides_a_plan_has_a_file_of_its_own(packings, tmp_path, monkeypatch):
  longer = lambda lengths_N: np.asarray(lengths_N) + 1
  cases = [(LENGTHS, 32, 0, np.asarray), (LENGTHS, 32, 1, np.asarray), (LENGTHS, 31, 0, np.asarray)]
  cases += [(LENGTHS[::-1], 32, 0, np.asarray), (LENGTHS, 32, 0, longer)]
  for case in cases * 2:
    assert same(plan_file.pack(tmp_path, *case), plan.pack(*case))
  monkeypatch.setattr(plan, "WINDOW", 60)
  plan_file.pack(tmp_path, *cases[0])
  assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("damage", ["cut", "empty", "a bit", "another type", "another length"])
def test_a_damaged_plan_is_packed_again(damage, packings, tmp_path, capsys):
  made = plan_file.pack(tmp_path, LENGTHS, 32, 0, np.asarray)
  [path] = tmp_path.iterdir()
  whole = path.read_bytes()
  if damage in ("cut", "empty", "a bit"):
    path.write_bytes({"cut": whole[:-8], "empty": b"", "a bit": whole[:-1] + bytes([whole[-1] ^ 1])}[damage])
  else:
    np.save(path, np.load(path).astype(np.float64) if damage == "another type" else np.load(path)[:3])
  assert same(plan_file.pack(tmp_path, LENGTHS, 32, 0, np.asarray), made)
  assert len(packings) == 2
  assert capsys.readouterr().out.startswith(f"stored plan {path}: damaged")
  assert path.read_bytes() == whole


def test_a_store_that_cannot_be_written_is_packed_at_every_start(packings, tmp_path, monkeypatch, capsys):
  def refuse(*_):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(plan_file.os, "replace", refuse)
  for _ in range(2):
    plan_file.pack(tmp_path, LENGTHS, 32, 0, np.asarray)
  assert len(packings) == 2
  assert capsys.readouterr().out.count("cannot be written (Permission denied)") == 2
  assert not list(tmp_path.iterdir())


def test_plans_of_one_window_and_of_arrays_in_memory_are_not_kept(packings, tmp_path):
  plan_file.pack(tmp_path, LENGTHS[:50], 32, 0, np.asarray)
  plan_file.pack(None, LENGTHS, 32, 0, np.asarray)
  assert not list(tmp_path.iterdir())


def test_rows_read_the_plan_beside_their_store_and_the_store_stays_whole(packings, tmp_path):
  texts = tuple("x" * (i % 37 + 1) for i in range(90))
  rows = []
  for _ in range(2):
    stored = store.build(Memory(texts=texts), Bytes(), Causal(), tmp_path)
    rows.append(Rows(StreamData("s", "s", Causal(), stored, Bytes()), 32, seed=0))
  assert stored.path is not None
  assert len(list(stored.path.glob("plan-*.npy"))) == len(packings) == 1
  numbers = np.arange(rows[0].plan.num_rows)
  made, found = (each.read(numbers, np.zeros_like(numbers), 32) for each in rows)
  assert all((made[name] == found[name]).all() for name in made)
