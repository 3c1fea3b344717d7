"""A table from one command to a judged model: learns, tells its confusions, writes its worst errors, says what has no data."""

import csv
import json

import numpy as np
import pytest

from lm import evaluate, main, train
from lm.config import ConfigError
from lm.data.sources.memory import Memory
from lm.evals.classification import confusions, matrix, write_errors
from tests.conftest import CACHE, make_run

EVALUATORS = {"classify": "classification", "choose": "choice"}
WORDS = {"1": "bad broken awful", "3": "plain usual fair", "5": "good lovely great"}


def write_reviews(path, count, **own):
  """A table whose label is told by one word."""
  rows = [(f"{words.split()[i % 3]} thing, number {i}", stars) for i in range(count) for stars, words in WORDS.items()]
  with path.open("w", newline="") as file:
    csv.writer(file).writerows([("review", "stars"), *rows[:count]])
  return {"name": "table", "path": str(path), "text": "review", "label": "stars", **own}


def read_errors(workdir):
  with (workdir / "errors.csv").open(newline="") as file:
    return list(csv.DictReader(file))


def test_the_end_of_a_run_tells_confusions_and_writes_errors(tmp_path, capsys):
  data = write_reviews(tmp_path / "x.csv", 120)
  run = make_run("classify", data=data, total_steps=2)
  metrics = train.train(run, tmp_path / "run")["metrics"]
  said = capsys.readouterr().err
  for split in ("validation", "test"):
    line = next(line for line in said.splitlines() if line.startswith(f"{split}: accuracy"))
    for name, words in (("accuracy", "accuracy"), ("macro_f1", "macro F1")):
      value, before = metrics[f"eval/{split}/{name}"], metrics[f"step0/eval/{split}/{name}"]
      majority = metrics[f"baseline/{split}_majority_{name}"]
      assert f"{words} {value:.3f} (majority class {majority:.3f}, step 0 {before:.3f})" in line
  assert said.count("confusion matrix") == 2
  rows = read_errors(tmp_path / "run")
  assert [row["split"] for row in rows] == sorted(row["split"] for row in rows)  # test before validation
  file = list(csv.reader((tmp_path / "x.csv").read_text().splitlines()))
  for split in ("validation", "test"):
    wrong = round((1 - metrics[f"eval/{split}/accuracy"]) * len(run.source("classify", split)))
    mine = [row for row in rows if row["split"] == f"{split} ({wrong} of {wrong} wrong)"]
    assert len(mine) == wrong > 0
    for row in mine:
      assert (row["file"], file[int(row["line"]) - 1]) == (data["path"], [row["text"], row["label"]])
      assert row["prediction"] != row["label"]
      assert float(row["prediction_probability"]) >= float(row["label_probability"]) > 0
    worst = [float(row["label_probability"]) for row in mine]
    assert worst == sorted(worst)
  before = (tmp_path / "run" / "errors.csv").read_bytes()
  evaluate.evaluate_workdir(run, tmp_path / "run")
  again = capsys.readouterr().err
  for split in ("validation", "test"):
    line = next(line for line in said.splitlines() if line.startswith(f"{split}: accuracy"))
    assert line in again
  assert (tmp_path / "run" / "evaluations" / "2" / "errors.csv").read_bytes() == before


@pytest.mark.slow
def test_the_front_door_command_learns(tmp_path, capsys):
  base, data = tmp_path / "base", write_reviews(tmp_path / "x.csv", 150)
  model = {"name": "bert-tiny", "num_layers": 2, "model_dim": 32, "num_heads": 4, "ffn_dim": 64}
  train.train(make_run("mlm", model=model, total_steps=2), base)
  flags = [f"--config.data.{name}={data[name]}" for name in ("path", "text", "label")]
  flags += [f"--config.init_from={base}", "--config.optimizer.learning_rate=0.02", "--config.peft=lora"]
  flags += ["--config.batch_size=8", "--config.total_steps=20 epochs", f"--config.cache_dir={CACHE / 'data'}"]
  assert main.main(["--config=configs/finetune.py", f"--workdir={tmp_path / 'run'}", *flags]) == 0
  said = capsys.readouterr().err
  assert "3 labels in train" in said and "tokens per example" in said
  assert json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]["eval/test/accuracy"] > 0.8


def test_a_table_of_one_class_names_file_and_column(tmp_path):
  (tmp_path / "x.csv").write_text("text,stars\n" + "".join(f"text {i},3\n" for i in range(40)))
  table = {"name": "table", "path": str(tmp_path / "x.csv"), "label": "stars"}
  with pytest.raises(ValueError, match=r"data 'table' with data.label='stars' and data.path='.*x.csv' has only '3'"):
    make_run("classify", data=table)
  with pytest.raises(ValueError, match=r"data 'table' with data.path='.*x.csv' has no labels \(data.label\)"):
    make_run("classify", data={"name": "table", "path": table["path"]})


@pytest.mark.parametrize("count", [2, 4])
def test_an_empty_split_is_said_and_leaves_its_evaluator_out(count, tmp_path, capsys):
  data = write_reviews(tmp_path / "x.csv", count)
  run = make_run("classify", data=data, total_steps=1)
  found = evaluate.make_evaluators(run)
  said = capsys.readouterr().err.splitlines()
  empty = [split for split in ("validation", "test") if not len(run.source("classify", split))]
  assert empty == {2: ["validation", "test"], 4: ["test"]}[count]
  assert set(found) == {"validation", "test"} - set(empty)
  assert len(said) == len(empty)
  for line, split in zip(said, empty, strict=True):
    assert f"its {split} split is empty" in line and f"data.{split}=FILE" in line
  assert train.train(run, tmp_path / "run")["status"] == "finished"


def test_a_matrix_is_aligned_also_under_wide_letters():
  lines = matrix(np.array([[10, 2], [3, 4]]), ["好", "a much longer label"])
  assert lines[1:] == [
    "                    好  a much longer l…",
    "                好  10                 2",
    "  a much longer l…   3                 4",
  ]


def test_commonest_confusions_come_first():
  counts = np.diag([9] * 14)
  counts[2, 5], counts[5, 2], counts[0, 1] = 3, 7, 1
  labels = [f"c{i}" for i in range(14)]
  assert confusions(counts, labels)[1:] == [
    "       7  c5 taken for c2",
    "       3  c2 taken for c5",
    "       1  c0 taken for c1",
  ]


def test_errors_of_a_split_are_replaced_and_those_of_others_kept(tmp_path):
  row = lambda split, text: {"split": split, "row": 0, "text": text}
  long = "line\n" * 50_000
  for split, text in (("validation", "a"), ("test", "b"), ("validation", long)):
    write_errors(tmp_path / "errors.csv", split, [row(split, text)])
  assert [(r["split"], r["text"]) for r in read_errors(tmp_path)] == [("test", "b"), ("validation", long)]
  assert [p.name for p in tmp_path.iterdir()] == ["errors.csv"]


def test_the_baseline_answers_the_commonest_label_of_training(tmp_path):
  rows = lambda labels: "text,label\n" + "".join(f"text {i},{label}\n" for i, label in enumerate(labels))
  (tmp_path / "train.csv").write_text(rows("a" * 9 + "b" * 5))
  (tmp_path / "held_out.csv").write_text(rows("a" + "b" * 7))
  files = {"path": str(tmp_path / "train.csv"), "validation": str(tmp_path / "held_out.csv")}
  run = make_run("classify", data={"name": "table", "label": "label", "test": files["validation"], **files})
  evaluators, state = evaluate.make_evaluators(run), run.init_state()
  run.program.compile([], evaluate.eval_shapes(evaluators))
  found = evaluate.evaluate(evaluators, state.params)
  assert found["baseline/validation_majority_accuracy"] == 1 / 8
  assert found["baseline/validation_majority_macro_f1"] == pytest.approx(2 / 9 / 2)


def without_labels(monkeypatch, wanted):
  """Memory without the label of the examples of which wanted(split, number) says so."""
  given = Memory.__getitem__
  kept = lambda self, i: {n: x for n, x in given(self, i).items() if n != "label" or not wanted(self.split, i)}
  monkeypatch.setattr(Memory, "__getitem__", kept)
  monkeypatch.setattr(
    Memory, "fingerprint", lambda self: f"without {wanted(self.split, 0)} {wanted(self.split, 1)} {self.rows}"
  )


@pytest.mark.parametrize("kind", ["classify", "choose"])
def test_a_split_without_a_label_is_not_measured_and_that_is_said(kind, monkeypatch, tmp_path, capsys):
  without_labels(monkeypatch, lambda split, i: split == "test")
  run = make_run(kind, total_steps=1)
  metrics = train.train(run, tmp_path)["metrics"]
  assert "eval/validation/accuracy" in metrics and not [name for name in metrics if "test" in name]
  assert f"no row of the test split of stream {kind!r} has something to judge by" in capsys.readouterr().err
  named = make_run(kind, evaluators={"mine": {"name": EVALUATORS[kind], "split": "test"}})
  with pytest.raises(ConfigError, match="config.evaluators.mine: no row of the test split"):
    evaluate.make_evaluators(named)


def test_training_rows_without_a_label_are_not_the_commonest_class(monkeypatch, tmp_path):
  without_labels(monkeypatch, lambda split, i: split == "train" and i % 2 == 0)
  metrics = train.train(make_run("classify", total_steps=1), tmp_path)["metrics"]
  assert 0 < metrics["baseline/validation_majority_accuracy"] < 1
