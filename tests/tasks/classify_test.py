"""Pairs: the layout of BERT, cut like Hugging Face's longest_first at any row length, apart from single texts."""

import dataclasses

import jax
import numpy as np
import pytest

import lm
from lm import build, convert, plug, train
from lm.config import ConfigError
from lm.data import store
from lm.data.loader import EvalLoader, StreamData
from lm.data.tokenizer import Bytes
from lm.models.model import Model
from lm.tasks.classify import Classify
from lm.tasks.forward import Forward
from tests.conftest import LABELS, SIZES, TEXTS, make_config, make_run

PAIRS = [("ab", "xyz"), ("abcdefghij", "x"), ("a", "xyzuvw"), ("abcdefg", "stuvwxyz")]


def write_table(path, pairs=PAIRS * 4):
  path.write_text("\n".join(["a\tb\tlabel", *(f"{a}\t{b}\t{'yn'[i % 2]}" for i, (a, b) in enumerate(pairs))]) + "\n")
  return {"name": "table", "path": str(path), "validation": str(path), "test": str(path), "text": ("a", "b"), "label": "label"}


def read_rows(tmp_path, seq_len):
  """Tokens as pieces, and token types, of every row without its padding."""
  from lm.data.sources.table import Table

  options = write_table(tmp_path / "x.tsv", PAIRS)
  source = Table("test", **{name: value for name, value in options.items() if name != "name"})
  task, tok = Classify(source.labels, pair=True), Bytes()
  stream = StreamData("s", "s", task, store.build(source, tok, task, tmp_path), tok)
  for batch, _ in EvalLoader(stream, batch_size=4, seq_len=seq_len):
    inputs = batch["inputs"]
    assert inputs["token_types"][inputs["segment_ids"] == 0].sum() == 0
    for row, length in enumerate(np.sum(inputs["segment_ids"] > 0, axis=1)):
      yield [tok.piece(i) for i in inputs["tokens"][row, :length].tolist()], inputs["token_types"][row, :length].tolist()


def longest_first(a, b, room):
  """One token after the other off the end of the longer side, off the second where they are equal (transformers)."""
  while len(a) + len(b) > room:
    a, b = (a[:-1], b) if len(a) > len(b) else (a, b[:-1])
  return a, b


@pytest.mark.parametrize("seq_len", [5, 6, 7, 8, 10, 13, 32])
def test_a_pair_is_cut_from_its_longer_side(seq_len, tmp_path):
  for (pieces, token_types), (a, b) in zip(read_rows(tmp_path, seq_len), PAIRS, strict=True):
    a, b = longest_first(a, b, seq_len - 3)
    assert pieces == ["<s>", *a, "</s>", *b, "</s>"]
    assert token_types == [0] * (len(a) + 2) + [1] * (len(b) + 1)


def test_a_single_text_keeps_its_last_special_when_it_is_cut():
  task, tok = Classify(("n", "y")), Bytes()
  (stored,) = task.prepare({"text": "abcdef", "label": "y"}, tok)
  for size in (2, 5, 8):
    cut = {name: stored[name][None, :size] for name in ("tokens", "place")}
    row = task.corrupt({**cut, "label": np.array([1]), "segment_ids": np.ones((1, size))}, None, tok, size)
    assert [tok.piece(i) for i in row["tokens"][0].tolist()] == ["<s>", *"abcdef"[: size - 2], "</s>"]


def test_single_texts_have_no_token_types(tmp_path):
  batch = make_run("classify").loader.batch(0)
  assert batch["inputs"].keys() == {"row", "tokens", "segment_ids", "positions"}
  assert batch["classify"].keys() == {"label", "weights"}


def test_the_model_reads_token_types(tmp_path):
  model = {"name": "bert-base-uncased", "num_layers": 2, "model_dim": 32, "num_heads": 4, "ffn_dim": 64, "vocab_size": 0}
  run = make_run("classify", data=write_table(tmp_path / "x.tsv"), model=model)
  batch, state = run.loader.batch(0), run.init_state()
  assert run.tasks["classify"].pair
  assert batch["inputs"]["token_types"].max() == 1
  inputs, model = batch["inputs"], run.program.spec.model
  hidden = lambda types: np.asarray(model.hidden(state.params, {**inputs, "token_types": types})[0])
  assert np.abs(hidden(inputs["token_types"]) - hidden(0 * inputs["token_types"])).max() > 0.1


def test_pairs_and_documents_share_a_batch(tmp_path):
  from tests.conftest import TEXTS

  streams = {
    "docs": {"task": "mlm", "data": {"name": "memory", "texts": TEXTS}},
    "pairs": {"task": "classify", "data": write_table(tmp_path / "x.tsv")},
  }
  run = make_run("mlm", task=None, data=None, streams=streams)
  batch = run.loader.batch(0)
  of_pairs = batch["pairs"]["weights"] > 0
  assert 0 < of_pairs.sum() < 8
  assert (batch["inputs"]["token_types"].max(axis=1) == of_pairs).all()


def test_a_task_of_single_texts_refuses_pairs_and_the_other_way_round(tmp_path):
  pairs = write_table(tmp_path / "x.tsv")
  with pytest.raises(ConfigError, match="'mlm' reads one text per example, data 'table' gives two texts"):
    make_run("mlm", data=pairs)
  with pytest.raises(ConfigError, match="'classify' reads two texts per example, data 'table' gives one text"):
    make_run("classify", task={"name": "classify", "pair": True}, data={**pairs, "text": ("a",)})


def test_what_is_read_does_not_depend_on_padding_and_differs_by_pooling():
  found = {}
  for pooling in ("first", "last", "mean"):
    run = make_run("classify", task={"name": "classify", "pooling": pooling})
    state, batch = run.init_state(), run.loader.batch(0)
    longer = {**batch, "inputs": {k: np.pad(x, ((0, 0), (0, 32))[: x.ndim]) for k, x in batch["inputs"].items() if k != "row"}}
    longer["inputs"]["row"] = batch["inputs"]["row"]
    scores = [np.asarray(run.program.spec.objective.predict(state.params, b)["classify/scores"]) for b in (batch, longer)]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-6)
    found[pooling] = scores[0]
  assert len({scores.tobytes() for scores in found.values()}) == 3
  with pytest.raises(ValueError, match="task.pooling='max': accepted are first, last, mean"):
    Classify(pooling="max")


@pytest.mark.parametrize("causal", [True, False])
def test_a_causal_model_is_read_at_the_last_token_and_others_at_the_first(causal):
  class Places(Forward):  # whose hidden state says where it stands
    def __call__(self, batch, rng):
      return np.broadcast_to(np.eye(6), (3, 6, 6))

    def head(self, h, batch, rng=None):
      return h

  places = Places(Model(dataclasses.replace(plug.preset("bert-tiny"), causal=causal), ()), {})
  segment_ids = (np.arange(6)[None, :] < np.array([[6], [4], [1]])).astype(int)
  batch = {"tokens": segment_ids, "segment_ids": segment_ids, "label": None, "weights": None}
  found = Classify(tuple("abcdef")).predict(places, batch)
  assert found["scores"].argmax(-1).tolist() == ([5, 3, 0] if causal else [0, 0, 0])


def test_class_weights_weigh_the_loss_and_not_the_accuracy():
  plain, weighted = (
    make_run("classify", task={"name": "classify", "class_weights": weights}) for weights in ((), ("list=4", "queue=0.5"))
  )
  params, batch = plain.init_state().params, weighted.loader.batch(0)
  by_row = [
    {
      name: float(x)
      for name, x in plain.program.spec.objective.sums(params, jax.tree.map(lambda x, r=r: x[r : r + 1], batch)).items()
    }
    for r in range(8)
  ]
  labels = [weighted.tasks["classify"].labels[i] for i in batch["classify"]["label"]]
  weights = [{"list": 4.0, "queue": 0.5}.get(label, 1.0) for label in labels]
  assert len(set(weights)) == 3
  found = weighted.program.spec.objective.sums(params, batch)
  assert float(found["classify/loss"]) == pytest.approx(
    sum(w * row["classify/loss"] for w, row in zip(weights, by_row, strict=True))
  )
  assert float(found["classify/accuracy"]) == sum(row["classify/accuracy"] for row in by_row)
  denominators = weighted.program.spec.objective.denominators(batch)
  assert (float(denominators["classify/loss"]), float(denominators["classify/accuracy"])) == (sum(weights), 8)


def test_balanced_weights_are_counted_in_the_training_rows_and_kept(tmp_path):
  rows = [f"text {i},{'a' if i % 10 else 'b=c'}" for i in range(40)]
  (tmp_path / "x.csv").write_text("\n".join(["text,label", *rows]) + "\n")
  files = {"path": str(tmp_path / "x.csv"), "validation": str(tmp_path / "x.csv"), "test": str(tmp_path / "x.csv")}
  task = {"name": "classify", "class_weights": "balanced"}
  run = make_run("classify", task=task, data={"name": "table", "label": "label", **files})
  (task,) = run.tasks.values()
  np.testing.assert_allclose(task.weight_by_label(), [40 / 2 / 36, 40 / 2 / 4], rtol=1e-5)
  assert run.described_tasks["classify"]["class_weights"] == task.class_weights == ("a=0.555556", "b=c=5")
  assert sum(task.weight_by_label() * [36, 4]) == pytest.approx(40)


@pytest.mark.parametrize(
  ("weights", "message"),
  [
    (("c=1",), "task.class_weights='c=1': label 'c' is none of a, b; accepted are balanced, or label=number"),
    (("balance",), "task.class_weights='balance': label '' is none of a, b"),
    (("a=1", "a=2"), "task.class_weights='a=2': is given twice"),
    (("a=0",), "task.class_weights='a=0': accepted are label=number with numbers above 0"),
    (("a=nan",), "task.class_weights='a=nan': accepted are"),
    (("a=many",), "task.class_weights='a=many': accepted are"),
  ],
)
def test_bad_class_weights_are_one_line(weights, message):
  with pytest.raises(ConfigError, match=message):
    Classify(("a", "b"), class_weights=weights)
  with pytest.raises(ConfigError, match="balanced: no training row has the label 'b'"):
    Classify(("a", "b"), class_weights=("balanced",)).balanced({"a": 3})


def test_two_label_sets_train_in_one_run_each_with_a_head_of_its_own(tmp_path):
  first = {"name": "memory", "texts": TEXTS, "text_labels": LABELS}
  second = first | {"text_labels": tuple("ab"[len(text) % 2] for text in TEXTS)}
  streams = {"noun": {"task": "classify", "data": first}, "odd": {"task": "classify(head_name=odd)", "data": second}}
  model = {"name": "bert-base-uncased", **SIZES, "vocab_size": 0}
  settings = {
    "task": None,
    "data": None,
    "model": model,
    "total_steps": 60,
    "optimizer": {"name": "adamw", "learning_rate": 1e-2},
  }
  metrics = train.train(make_run("classify", streams=streams, **settings), tmp_path)["metrics"]
  for name in streams:
    assert metrics[f"eval/{name}_validation/loss"] < 0.9 * metrics[f"step0/eval/{name}_validation/loss"]
  model = lm.load(tmp_path, devices=jax.devices()[:1])
  assert set(model.predict(TEXTS[:2], task="odd")[0]["scores"]) == {"a", "b"}
  assert len(model.predict(TEXTS[:2], task="noun")[0]["scores"]) == 5
  with pytest.raises(
    ConfigError, match=r"head 'odd' has a name of its own \(task.head_name\), which transformers has no place"
  ):
    convert.export_checkpoint(str(tmp_path), tmp_path / "exported")
  streams["odd"]["task"] = "classify"
  with pytest.raises(ConfigError, match="both read head 'classify' but of different shape; task.head_name gives one its own"):
    make_run("classify", streams=streams, **settings)


def test_an_outline_of_a_run_with_balanced_classes_needs_no_data():
  task = {"name": "classify", "labels": ("neg", "pos"), "class_weights": ("balanced",)}
  outline = build.make_outline(make_config("classify", task=task), jax.devices()[:1])
  assert outline.total_steps == 10 and outline.batches
