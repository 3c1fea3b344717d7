"""Reserved positions: in front of every sequence, and everything else of a batch is what it is without them."""

import dataclasses

import numpy as np
import pytest

from lm.config import ConfigError
from lm.data.loader import EMPTY, EvalLoader, Loader
from lm.data.reserve import columns, reserve, virtual_ids
from lm.shapes import INPUT_FIELDS, INPUTS
from lm.tasks.causal import Causal
from lm.tasks.classify import Classify
from lm.tasks.mlm import Mlm
from lm.tasks.sentence_pair import SentencePair
from tests.conftest import make_run
from tests.data.loader_test import make_stream

NUM = 3


def test_a_row_of_two_segments():
  row = {
    "tokens": [5, 6, 7, 0, 0, 0, 0],
    "segment_ids": [1, 1, 2, 0, 0, 0, 0],
    "positions": [0, 1, 0, 0, 0, 0, 0],
    "prefix": [1, 0, 0, 0, 0, 0, 0],
    "weights": [1, 0.5, 1, 0, 0, 0, 0],
    "masked_positions": [1, 2, 0],
    "labels": [8, 9, 0],
  }
  arrays = {name: np.asarray([values, np.zeros_like(values)]) for name, values in row.items()} | {"label": np.asarray([4, 0])}
  found = reserve(arrays, 2)
  expected = {
    "tokens": [-1, -2, 5, 6, -1, -2, 7],
    "segment_ids": [1, 1, 1, 1, 2, 2, 2],
    "positions": [0, 1, 2, 3, 0, 1, 2],
    "prefix": [1, 1, 1, 0, 0, 0, 0],
    "weights": [0, 0, 1, 0.5, 0, 0, 1],
    "masked_positions": [3, 6, 2],
    "labels": [8, 9, 0],
  }
  assert {name: found[name][0].tolist() for name in expected} == expected
  assert found["label"].tolist() == [4, 0]
  assert not any(found[name][1].any() for name in expected)
  assert all(found[name].dtype == values.dtype for name, values in arrays.items())
  assert columns(arrays["segment_ids"], 2)[0, :3].tolist() == [2, 3, 6]


def test_rows_without_room_are_a_bug():
  ids = np.asarray([[1, 1, 2]])
  with pytest.raises(AssertionError, match="no room for 1"):
    reserve({"tokens": ids, "segment_ids": ids, "positions": 0 * ids}, 1)


def sequences(stream, num_virtual, seq_len):
  """By (first stored sequence, segment) of every row: what stands at its tokens, and how many rows there are."""
  found, rows = {}, 0
  loader = EvalLoader(dataclasses.replace(stream, num_virtual=num_virtual), batch_size=8, seq_len=seq_len)
  for batch, first in loader:
    inputs, own = batch[INPUTS], batch[stream.key]
    arrays = {**{name: inputs[name] for name in INPUT_FIELDS if name in inputs and name != "row"}, **own}
    for row in np.flatnonzero(first != EMPTY):
      rows += 1
      for segment in range(1, inputs["segment_ids"][row].max() + 1):
        at = np.flatnonzero(inputs["segment_ids"][row] == segment)
        front, rest = at[:num_virtual], at[num_virtual:]
        assert inputs["tokens"][row, front].tolist() == virtual_ids(num_virtual).tolist()
        assert (inputs["tokens"][row, rest] >= 0).all()
        assert inputs["positions"][row, at].tolist() == list(range(len(at)))
        assert not any(own[name][row, front].any() for name in ("weights", "targets") if own[name].shape[1:2] == (seq_len,))
        key = tuple(inputs["tokens"][row, rest].tolist())
        found[key] = {name: array[row, rest].tolist() for name, array in arrays.items() if array.shape[1:2] == (seq_len,)}
        found[key].update(positions=None, segment_ids=None)
  return found, rows


TASKS = ["causal", "prefix_lm", "fim", "span_corruption"]


@pytest.mark.parametrize("name", TASKS)
def test_autoregressive_sequences_are_those_without(name, tmp_path):
  task = next(iter(make_run(name).tasks.values()))
  stream = make_stream(task, tmp_path)
  (without, rows), (found, more) = sequences(stream, 0, 96), sequences(stream, NUM, 96)
  assert found == without
  assert len(found) > 20 and more >= rows


def test_a_split_document_has_them_in_front_of_every_piece(tmp_path):
  stream = dataclasses.replace(make_stream(Causal(), tmp_path), num_virtual=8)
  targets = []
  for batch, _ in EvalLoader(stream, batch_size=8, seq_len=16):
    ids, tokens = batch[INPUTS]["segment_ids"], batch[INPUTS]["tokens"]
    assert ((tokens < 0).sum(1) == 8 * ids.max(1)).all()
    targets += batch["main"]["targets"][batch["main"]["weights"] > 0].tolist()
  first = stream.store.offsets("tokens")[:-1]
  stored = np.delete(stream.store.values("tokens"), first)
  assert sorted(targets) == sorted(stored.tolist())


@pytest.mark.parametrize("task", [Mlm(), SentencePair()], ids=lambda task: type(task).__name__)
def test_masks_show_what_they_show_without(task, tmp_path):
  stream = make_stream(task, tmp_path)
  labels = {}
  for num_virtual in (0, NUM):
    reserved, found = dataclasses.replace(stream, num_virtual=num_virtual), []
    for batch, _ in EvalLoader(reserved, batch_size=8, seq_len=96):
      tokens, own = batch[INPUTS]["tokens"], batch["main"]
      there = np.take_along_axis(tokens, own["masked_positions"], axis=1)
      counted = own["weights"] > 0
      assert counted.any() and own["weights"].shape[1] < 96
      assert (there[counted] >= 0).all()
      found += zip(own["labels"][counted].tolist(), there[counted].tolist(), strict=True)
    labels[num_virtual] = sorted(found)
  assert labels[0] == labels[NUM]


def test_a_text_of_a_class_stands_behind_them(tmp_path):
  stream = make_stream(Classify(labels=("a", "b")), tmp_path)
  whole = lambda n: next(iter(EvalLoader(dataclasses.replace(stream, num_virtual=n), batch_size=8, seq_len=64)))[0]
  without, found = whole(0), whole(NUM)
  np.testing.assert_array_equal(found[INPUTS]["tokens"][:, NUM:], without[INPUTS]["tokens"][:, :-NUM])
  assert (found["main"]["label"] == without["main"]["label"]).all() and found["main"]["weights"].all()


def test_shapes_are_declared_and_hosts_read_the_same_rows(tmp_path):
  stream = dataclasses.replace(make_stream(Mlm(), tmp_path), num_virtual=NUM)
  loader = Loader([stream], batch_size=8, seq_len=64)
  (empty,), whole, parts = loader.shapes(), loader.batch(3), [loader.batch(3, slice(at, at + 4)) for at in (0, 4)]
  for key, part in whole.items():
    for name, values in part.items():
      assert (empty[key][name].shape, empty[key][name].dtype) == (values.shape, values.dtype)
      np.testing.assert_array_equal(np.concatenate([each[key][name] for each in parts]), values)


def test_a_row_that_they_fill_is_refused(tmp_path):
  stream = make_stream(Causal(), tmp_path)
  with pytest.raises(ConfigError, match="config.seq_len=16: one token of this task takes 17 positions"):
    EvalLoader(dataclasses.replace(stream, num_virtual=16), batch_size=8, seq_len=16)
