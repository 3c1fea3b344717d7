"""Recommendation: rows of history, item and drawn items; losses against float64; items drawn anew in every epoch."""

import collections
import json

import jax
import numpy as np
import pytest

import lm
from lm import convert, train, tree
from lm.config import ConfigError
from lm.data import encode
from lm.data.loader import Loader, StreamData
from lm.data.sources.memory import Memory
from lm.data.store import Store, build
from lm.data.tokenizer import Bytes
from lm.shapes import INPUTS
from lm.tasks.rank import Rank
from tests.conftest import SIZES, TEXTS, make_run

TOK = Bytes()
ITEMS = [f"item{i}" for i in range(7)]
SMALL = {"item_len": 8, "num_negatives": 2}


def source_of(*queries, items=ITEMS):
  rows = [{"item": item} for item in items] + [{"query": q, "positive": items[i % len(items)]} for i, q in enumerate(queries)]
  return Memory(rows=tuple(map(json.dumps, rows)))


def loader_of(tmp_path, *queries, seed=0, batch_size=4, **settings):
  task = Rank(**SMALL | settings)
  source = source_of(*queries)
  stream = StreamData("s", "s", task, build(source, TOK, task, tmp_path), TOK)
  return Loader([stream], batch_size=batch_size, seq_len=48, seed=seed)


def segments(batch, row):
  """The text of each segment."""
  ids, tokens = batch[INPUTS]["segment_ids"][row], batch[INPUTS]["tokens"][row]
  return ["".join(TOK.piece(int(t)) for t in tokens[ids == k]) for k in range(1, ids.max() + 1)]


def test_a_row_has_the_history_the_item_and_drawn_items_each_apart(tmp_path):
  loader = loader_of(tmp_path, "ab", "c", "def", "g")
  assert loader.rows_per_epoch == 4  # items of the catalogue take no row
  batch = loader.batch(0)
  cls, sep = TOK.piece(TOK.cls_id), TOK.piece(TOK.sep_id)
  framed = lambda text: f"{cls}{text}{sep}"
  pairs = {framed(q): framed(ITEMS[i]) for i, q in enumerate(("ab", "c", "def", "g"))}
  for row in range(4):
    history, positive, *drawn = segments(batch, row)
    assert pairs.pop(history) == positive
    assert len(drawn) == 2
    assert set(drawn) <= set(map(framed, ITEMS))
    assert batch["s"]["negative_weights"][row].tolist() == [float(item != positive) for item in drawn]
    ids, positions = batch[INPUTS]["segment_ids"][row], batch[INPUTS]["positions"][row]
    for k in range(1, 5):
      assert positions[ids == k].tolist() == list(range((ids == k).sum()))
    assert not batch[INPUTS]["tokens"][row][ids == 0].any()


def test_items_are_drawn_alike_anew_in_every_epoch_and_by_the_seed(tmp_path):
  queries = [f"q{i}" for i in range(40)]
  drawn = lambda epoch, seed: [
    segments(batch, row)[2:]
    for batch in [loader_of(tmp_path, *queries, seed=seed, batch_size=40).batch(epoch)]
    for row in range(40)
  ]
  first = drawn(0, 0)
  assert drawn(0, 0) == first
  assert drawn(1, 0) != first
  assert drawn(0, 1) != first
  assert any(a != b for a, b in first)
  counts = collections.Counter(item for epoch in range(25) for pair in drawn(epoch, 0) for item in pair)
  assert len(counts) == len(ITEMS)
  expected = 25 * 40 * 2 / len(ITEMS)
  chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
  assert chi_squared < 22.5  # 6 degrees of freedom: exceeded by chance once in a thousand


def test_a_row_that_is_cut_loses_the_end_of_the_history(tmp_path):
  batch = loader_of(tmp_path, "abcdefghij" * 9).batch(0)
  history, positive, *_ = segments(batch, 0)
  assert positive.endswith(TOK.piece(TOK.sep_id)) and "item0" in positive
  text = history.removeprefix(TOK.piece(TOK.cls_id)).removesuffix(TOK.piece(TOK.sep_id))
  assert ("abcdefghij" * 9).startswith(text)
  assert 48 - 4 * 8 - 2 <= len(text) <= 48 - 3 * 8
  assert (batch[INPUTS]["segment_ids"][0] > 0).sum() <= 48


def test_items_are_cut_to_their_length_and_encoded_alike_as_users():
  task = Rank(**SMALL)
  (stored,) = task.prepare({"item": "abcdefghijk"}, TOK)
  assert len(stored["candidate"]) == 8
  assert len(stored["tokens"]) == 0
  alone = task.encode_item("abcdefghijk", TOK)
  assert sorted(alone["tokens"].tolist()) == sorted(stored["candidate"].tolist())


@pytest.mark.parametrize("kind", ["bpr", "pointwise"])
def test_losses_are_those_of_float64(kind):
  run = make_run("rank", task={"name": "rank", "item_len": 10, "num_negatives": 3, "kind": kind})
  state, objective = run.init_state(), run.program.spec.objective
  params, batch = tree.merge(state.params, state.frozen), run.loader.batch(0)
  if kind == "pointwise":
    params["head_rank"]["bias"] = params["head_rank"]["bias"] - 0.3
  h_BTD = np.asarray(jax.jit(lambda: run.program.spec.model.hidden(params, batch[INPUTS]).hidden_BTD)(), np.float64)
  ids = batch[INPUTS]["segment_ids"]
  losses, right = [], []
  for row in range(8):
    user, positive, *drawn = (h_BTD[row][ids[row] == k].mean(0) for k in range(1, 6))
    cosine = lambda x, y: x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    own, others = 20 * cosine(user, positive), np.array([20 * cosine(user, item) for item in drawn])
    w = batch["rank"]["negative_weights"][row]
    if kind == "bpr":
      losses.append((w * np.log1p(np.exp(others - own))).sum() / w.sum())
    else:
      bias = -0.3
      losses.append((np.log1p(np.exp(-own - bias)) + (w * np.log1p(np.exp(others + bias))).sum()) / (1 + w.sum()))
    right.append((w * (own > others)).sum() / w.sum())
  sums = jax.jit(objective.sums)(params, batch)
  assert float(sums["rank/loss"]) == pytest.approx(np.sum(losses), rel=1e-4)
  assert float(sums["rank/accuracy"]) == pytest.approx(np.sum(right), abs=1e-5)
  assert ("bias" in params["head_rank"]) == (kind == "pointwise")


def test_bad_settings_and_examples_are_one_line():
  for settings, words in (
    ({"kind": "hinge"}, "task.kind='hinge': accepted are bpr, pointwise"),
    ({"num_negatives": 0}, "task.num_negatives=0: accepted are 1 to 32"),
    ({"num_negatives": 33}, "task.num_negatives=33: accepted are 1 to 32"),
    ({"item_len": 2}, "task.item_len=2: must be 3 or more"),
    ({"pooling": "max"}, "task.pooling='max': accepted are first, last, mean"),
  ):
    with pytest.raises(ValueError, match=f"^{words}"):
      Rank(**settings)
  with pytest.raises(
    ConfigError, match="config.seq_len=64: with task.num_negatives=4 and task.item_len=32 a row needs 163 tokens"
  ):
    make_run("rank", task="rank")
  with pytest.raises(
    ConfigError, match="positive: not there or empty; a row has query and positive, or an item of the catalogue"
  ):
    Rank().prepare({"query": "a"}, TOK)
  with pytest.raises(
    ConfigError, match=r"needs a catalogue of 2 items or more; .*\(data=interactions\(path=FILE,items_path=FILE\)\)"
  ):
    make_run("rank", data={"name": "memory", "texts": TEXTS})
  with pytest.raises(ValueError, match="config.label_smoothing and config.z_loss: no task of this run has a cross-entropy"):
    train_a_step(make_run("rank", label_smoothing=0.1))


def train_a_step(run):
  run.program.compile(run.loader.shapes(), [])


def test_the_33rd_draw_is_another_than_the_first():
  sequences = [Rank(num_negatives=32).prepare({"item": item}, TOK)[0] for item in ITEMS]
  sequences += Rank(num_negatives=32).prepare({"query": "a", "positive": ITEMS[0]}, TOK)
  task = Rank(num_negatives=32, item_len=8)
  stream = StreamData("s", "s", task, Store(None, encode.collect(sequences)), TOK)
  batch = Loader([stream], batch_size=1, seq_len=300).batch(0)
  assert len(set(segments(batch, 0)[2:])) == len(ITEMS)


def test_a_run_is_exported_as_its_backbone(tmp_path):
  model = {"name": "bert-base-uncased", **SIZES, "vocab_size": 0, "dropout_rate": 0.0}
  train.train(make_run("rank", model=model, total_steps=1, peft="lora"), tmp_path / "run")
  line = convert.export_checkpoint(str(tmp_path / "run"), tmp_path / "out")
  assert "BertModel" in line and "left out: head rank" in line
  ours, theirs = (lm.load(tmp_path / name, devices=jax.devices()[:1]) for name in ("run", "out"))
  np.testing.assert_allclose(ours.embed(["a film"]), theirs.embed(["a film"]), atol=1e-5)
