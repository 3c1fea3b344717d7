"""Numbers of a table, predicted: correlations and errors agree with the source, and the end of a run tells them."""

import csv

import numpy as np
import pytest

from lm import evaluate, train
from tests.conftest import make_run

WORDS = {"awful": 1.0, "plain": 2.5, "lovely": 4.0}


def write_table(path, count, shift=0.0):
  rows = [(f"{word} thing, number {i}", value + shift + i % 3 / 10) for i in range(count) for word, value in WORDS.items()]
  with path.open("w", newline="") as file:
    csv.writer(file).writerows([("review", "score"), *rows])
  return str(path), np.array([score for _, score in rows])


def make_data(tmp_path):
  train_file, labels = write_table(tmp_path / "train.csv", 40)
  held_out, others = write_table(tmp_path / "held_out.csv", 8, shift=0.5)
  files = {"path": train_file, "validation": held_out, "test": held_out}
  return {"name": "table", "text": "review", "label": "score", "label_type": "number", **files}, labels, others


def test_metrics_are_of_all_rows_and_the_baseline_says_the_training_mean(tmp_path):
  data, labels, others = make_data(tmp_path)
  run = make_run("regress", data=data)
  evaluators, state = evaluate.make_evaluators(run), run.init_state()
  run.program.compile([], evaluate.eval_shapes(evaluators))
  found = evaluate.evaluate(evaluators, state.params)
  assert found["baseline/validation_mean_mse"] == pytest.approx(np.mean((labels.mean() - others) ** 2), rel=1e-6)
  assert found["eval/validation/mse"] == pytest.approx(found["eval/validation/loss"], rel=1e-5)
  assert -1 <= found["eval/validation/pearson"] <= 1


def test_a_run_learns_a_number_tells_it_and_lists_the_largest_errors(tmp_path, capsys):
  data, _, others = make_data(tmp_path)
  optimizer = {"name": "adamw", "learning_rate": 3e-3}
  run = make_run("regress", data=data, total_steps=80, eval_every=80, optimizer=optimizer, batch_size=16)
  metrics = train.train(run, tmp_path / "run")["metrics"]
  assert metrics["eval/test/pearson"] > 0.9
  assert metrics["eval/test/mse"] < metrics["baseline/test_mean_mse"]
  line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("test: pearson"))
  for name in ("pearson", "spearman", "mse"):
    assert f"{name} {metrics[f'eval/test/{name}']:.3f} (" in line
  assert f"training mean {metrics['baseline/test_mean_mse']:.3f}, step 0 {metrics['step0/eval/test/mse']:.3f}" in line
  with (tmp_path / "run" / "errors.csv").open(newline="") as file:
    rows = [row for row in csv.DictReader(file) if row["split"].startswith("test")]
  assert len(rows) == len(others)
  errors = [abs(float(row["label"]) - float(row["prediction"])) for row in rows]
  assert errors == sorted(errors, reverse=True)
  assert np.mean(np.square(errors)) == pytest.approx(metrics["eval/test/mse"], rel=1e-3)
  lines = (tmp_path / "held_out.csv").read_text().splitlines()
  assert all(row["text"] in lines[int(row["line"]) - 1] for row in rows)
