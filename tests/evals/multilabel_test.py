"""F1 of several labels by hand, a table of lists from file to report."""

import csv
import json

import numpy as np
import pytest

from lm import train
from lm.evals.multilabel import f1_scores
from tests.conftest import make_run

WORDS = {"price": "cheap", "food": "tasty", "staff": "friendly"}


def test_micro_and_macro_f1_by_hand():
  label = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
  said = np.array([[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 1, 0]], bool)
  micro, macro, each = f1_scores(label, said)
  assert micro == pytest.approx(2 * 2 / (3 + 4))
  assert macro == pytest.approx((2 / 3 + 1 + 0) / 3)
  np.testing.assert_allclose(each, [2 / 3, 1, 0, np.nan])
  assert f1_scores(np.zeros((2, 3), bool), np.zeros((2, 3), bool))[:2] == (0, 0)


def write_reviews(path, count, lists):
  rows = []
  for i in range(count):
    labels = [label for k, label in enumerate(WORDS) if i >> k & 1]
    rows.append((f"number {i} is {' and '.join(WORDS[label] for label in labels)}", labels))
  if lists:
    path.write_text("".join(json.dumps({"text": text, "topics": labels}) + "\n" for text, labels in rows))
  else:
    with path.open("w", newline="") as file:
      csv.writer(file).writerows([("text", "topics"), *((text, "|".join(labels)) for text, labels in rows)])
  return str(path)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_table_of_lists_is_learned_and_told(suffix, tmp_path, capsys):
  files = {name: write_reviews(tmp_path / f"{name}.{suffix}", 80, suffix == "jsonl") for name in ("path", "validation", "test")}
  data = {"name": "table", "label": "topics", "label_type": "list", **files}
  settings = {"total_steps": 150, "eval_every": 150, "optimizer": {"name": "adamw", "learning_rate": 1e-2}}
  run = make_run("multilabel", data=data, **settings)
  assert run.tasks["multilabel"].labels == ("food", "price", "staff")
  metrics = train.train(run, tmp_path / "run")["metrics"]
  assert metrics["eval/test/micro_f1"] > 0.85 > metrics["baseline/test_commonest_micro_f1"]
  half = 2 * 40 / (80 + 120)  # one label of three is said everywhere and right in half of the rows
  assert metrics["baseline/test_commonest_micro_f1"] == pytest.approx(half)
  assert metrics["baseline/test_commonest_macro_f1"] == pytest.approx(2 * 40 / (80 + 40) / 3)
  said = capsys.readouterr().err
  assert f"micro F1 {metrics['eval/test/micro_f1']:.3f} (always the commonest {half:.3f}, step 0" in said
  assert "3 labels in train: 'price' 40, 'food' 40, 'staff' 40" in run.source("multilabel", "train").describe()
  if metrics["eval/test/accuracy"] < 1:
    with (tmp_path / "run" / "errors.csv").open(newline="") as file:
      rows = [row for row in csv.DictReader(file) if row["split"].startswith("test")]
    assert len(rows) == round((1 - metrics["eval/test/accuracy"]) * 80)
    assert all(row["label"] != row["prediction"] for row in rows)
