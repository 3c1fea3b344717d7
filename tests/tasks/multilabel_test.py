"""Any number of labels per text: what is stored comes back, the loss is the mean of binary ones, unknown labels are told."""

import jax
import numpy as np
import pytest

from lm.config import ConfigError
from lm.data import store
from lm.data.loader import EvalLoader, StreamData
from lm.data.sources.memory import Memory
from lm.data.tokenizer import Bytes
from lm.tasks.multilabel import Multilabel
from tests.conftest import TEXTS, make_run


@pytest.mark.parametrize("count", [2, 16, 17, 40])
def test_any_set_of_labels_is_stored_and_comes_back(count, tmp_path):
  names, rng = [f"label{i:02}" for i in range(count)], np.random.default_rng(count)
  chosen = [np.flatnonzero(rng.random(count) < 0.4) for _ in range(19)] + [np.zeros(0, int), np.arange(count)]
  source = Memory(
    texts=tuple(f"text {i}" for i in range(21)),
    text_labels=tuple("+".join(names[i] for i in rng.permutation(row)) for row in chosen),
    label_separator="+",
  )
  task, tok = Multilabel(source.labels), Bytes()
  assert task.labels == tuple(names)
  stream = StreamData("s", "s", task, store.build(source, tok, task, tmp_path), tok)
  for batch, sequence_B in EvalLoader(stream, batch_size=8, seq_len=16):
    for row, number in enumerate(sequence_B):
      expected = chosen[number].tolist() if number >= 0 else []
      assert np.flatnonzero(batch["s"]["label"][row]).tolist() == expected
      assert batch["s"]["weights"][row] == (number >= 0)


def test_the_loss_is_the_mean_of_the_labels_binary_cross_entropies():
  run = make_run("multilabel")
  (task,) = run.tasks.values()
  objective, batch, params = run.program.spec.objective, run.loader.batch(0), run.init_state().params
  found = jax.device_get(objective.predict(params, batch))
  p, y = found["multilabel/scores"].astype(np.float64), batch["multilabel"]["label"]
  expected = -np.mean(y * np.log(p) + (1 - y) * np.log1p(-p), axis=1).sum()
  assert float(objective.sums(params, batch)["multilabel/loss"]) == pytest.approx(expected, rel=1e-5)
  scores = np.array([[0.5, 0.49] + [0.0] * (len(task.labels) - 2)])
  (said,) = task.describe_predictions({"scores": scores}, run.tokenizer)
  assert said["labels"] == [task.labels[0]]
  assert list(said["scores"]) == list(task.labels)


def test_an_example_without_label_has_no_weight_and_one_of_no_labels_does():
  task = Multilabel(("a", "b"))
  rows = [task.prepare({"text": "x", **label}, Bytes())[0] for label in ({}, {"label": []}, {"label": ["b", "b"]})]
  names = ("labelled", "bits_0")
  stacked = {name: np.array([row[name] for row in rows]) for name in names}
  stacked |= {name: np.ones((3, 3), int) for name in ("tokens", "place", "segment_ids")}
  made = task.corrupt(stacked, None, Bytes(), 3)
  assert made["weights"].tolist() == [0, 1, 1]
  assert made["label"].tolist() == [[0, 0], [0, 0], [0, 1]]


def test_labels_that_training_lacks_and_lists_for_one_label_are_one_line(tmp_path):
  with pytest.raises(ConfigError, match=r"label=\['a', 'c'\]: 'c' is unknown; accepted is a list of a, b"):
    Multilabel(("a", "b")).prepare({"text": "x", "label": ["a", "c"]}, Bytes())
  with pytest.raises(ConfigError, match="label='a': is one text; accepted is a list"):
    Multilabel(("a", "b")).prepare({"text": "x", "label": "a"}, Bytes())
  data = {"name": "memory", "texts": TEXTS[:2], "text_labels": ("a+b", "c"), "label_separator": "+"}
  with pytest.raises(ConfigError, match=r"data 'memory': row 0: task.labels: \['a', 'b'\] is not .*'multilabel' learns lists"):
    make_run("classify", data=data)
