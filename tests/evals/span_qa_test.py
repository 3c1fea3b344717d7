"""Answers of a split: SQuAD's two scores against a count by their definition, thresholds, what the end of a run leaves."""

import csv
import json

import numpy as np
import pytest

from lm import evaluate
from lm.evals.span_qa import best_threshold, nearest_sentence, normalize, score
from tests.conftest import TEXTS, make_examples, make_run

WORDS = ("the", "a", "An", "Theatre", "U.S.", "1,000", "well-known", "Rome", "rome", "  ", "'", "an", "São", "?")


def define(said, answers):
  """Exact match and F1 as the papers define them, word by word."""

  def words(answer):
    kept = "".join(char for char in answer.lower() if char not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
    return [word for word in kept.split() if word not in ("a", "an", "the")]

  def f1(ours, theirs):
    if not ours or not theirs:
      return float(ours == theirs)
    left, common = list(theirs), 0
    for word in ours:
      if word in left:
        left.remove(word)
        common += 1
    precision, recall = common / len(ours), common / len(theirs)
    return 2 * precision * recall / (precision + recall) if common else 0.0

  given = [words(answer) for answer in answers if words(answer)] or [[]]
  return max(float(words(said) == other) for other in given), max(f1(words(said), other) for other in given)


def test_scores_are_those_of_the_definition():
  rng = np.random.default_rng(0)
  draw = lambda: " ".join(rng.choice(WORDS, rng.integers(0, 6)))
  cases = [(draw(), [draw() for _ in range(rng.integers(0, 4))]) for _ in range(400)]
  assert {define(*case)[0] for case in cases} == {0.0, 1.0}
  for said, answers in cases:
    assert score(said, answers) == pytest.approx(define(said, answers), abs=1e-12)


@pytest.mark.parametrize(
  ("said", "answers", "expected"),
  [
    ("The Denver Broncos!", ["Denver Broncos", "Broncos"], (1.0, 1.0)),
    ("Denver", ["Denver Broncos"], (0.0, 2 / 3)),
    ("in the year 1973", ["1973", "October 1973"], (0.0, 0.5)),
    ("", [], (1.0, 1.0)),
    ("Rome", [], (0.0, 0.0)),
    ("", ["Rome"], (0.0, 0.0)),
    ("Rome", ["the", "Rome"], (1.0, 1.0)),
  ],
)
def test_known_scores(said, answers, expected):
  assert score(said, answers) == pytest.approx(expected)


def test_answers_are_compared_without_articles_and_punctuation():
  assert normalize("The  U.S. - an\tAthena, (a)  theatre.") == "us athena theatre"
  assert nearest_sentence("Who won the game?", "It rained. The Broncos won a game! The end") == "The Broncos won a game!"


def test_the_best_threshold_is_that_of_trying_all():
  rng = np.random.default_rng(1)
  for _ in range(50):
    above, f1 = rng.integers(-3, 4, 12).astype(float), rng.random((12, 2)).round(1)
    found, threshold = best_threshold(above, f1)
    mean = lambda threshold, above=above, f1=f1: np.where(above > threshold, f1[:, 1], f1[:, 0]).mean()
    assert found == pytest.approx(max(mean(t) for t in np.arange(-5, 5, 0.5)))
    assert mean(threshold) == pytest.approx(found)


def evaluate_fresh(run):
  evaluators, state = evaluate.make_evaluators(run), run.init_state()
  run.program.compile([], evaluate.eval_shapes(evaluators))
  return evaluators, evaluate.evaluate(evaluators, state.params)


def test_the_end_of_a_run_leaves_answers_by_id_and_the_worst_of_them(tmp_path):
  examples = [{**example, "id": f"q{i}"} for i, example in enumerate(make_examples("span_qa", (*TEXTS[:12], "sorry no", "no")))]
  examples.append({name: examples[0][name] for name in ("text", "text_pair")} | {"id": "unknown"})
  run = make_run("span_qa", data={"name": "memory", "rows": tuple(map(json.dumps, examples))})
  evaluators, found = evaluate_fresh(run)
  assert evaluate.best_metric("auto", evaluators) == "eval/validation/f1"
  said = evaluators["validation"].report(tmp_path, tmp_path)
  answers = json.loads((tmp_path / "predictions_validation.json").read_text())
  assert list(answers) == [example["id"] for example in examples]
  scores = [score(answers[e["id"]], [a["text"] for a in e["answers"]]) for e in examples if "answers" in e]
  exact, f1 = np.mean(scores, axis=0)
  assert (found["eval/validation/exact"], found["eval/validation/f1"]) == pytest.approx((exact, f1))
  assert found["eval/validation/f1_answered"] == pytest.approx(np.mean([f for _, f in scores[:12]]))
  assert found["eval/validation/f1_unanswered"] == pytest.approx(np.mean([f for _, f in scores[12:]]))
  assert found["eval/validation/best_f1"] >= max(f1, found["baseline/validation_no_answer_f1"]) - 1e-9
  assert found["baseline/validation_no_answer_f1"] == pytest.approx(2 / 14)
  nearest = [score(nearest_sentence(e["text"], e["text_pair"]), [a["text"] for a in e["answers"]])[1] for e in examples[:14]]
  assert found["baseline/validation_sentence_f1"] == pytest.approx(np.mean(nearest))
  assert f"F1 {f1:.3f} (nearest sentence " in said and "task.null_threshold=" in said
  with (tmp_path / "errors.csv").open(newline="") as file:
    rows = list(csv.DictReader(file))
  wrong = sum(exact < 1 for exact, _ in scores)
  assert f"{wrong:,} of 14 are no exact match" in said and len(rows) == wrong
  assert [float(row["f1"]) for row in rows] == sorted(float(row["f1"]) for row in rows)
  for row in rows:
    example = examples[int(row["row"])]
    assert (row["text"], row["text_pair"], row["prediction"]) == (example["text"], example["text_pair"], answers[example["id"]])
    assert row["answers"] == " | ".join(answer["text"] for answer in example["answers"])


def test_a_run_on_questions_that_all_have_answers_tells_of_those_alone(tmp_path):
  evaluators, found = evaluate_fresh(make_run("span_qa"))
  assert {"eval/test/exact", "eval/test/f1", "eval/test/loss", "baseline/test_sentence_exact"} <= found.keys()
  assert not [name for name in found if "answered" in name or "best" in name]
  assert "null_threshold" not in evaluators["test"].report(tmp_path, tmp_path)


def write_squad(path, articles, answered):
  """Two questions on each of some articles, with or without answers."""
  asked = lambda i, k: (
    {"id": f"q{i}-{k}", "question": f"what {k}?"} | ({"answers": [{"text": "blue", "answer_start": 4}]} if answered else {})
  )
  parts = [{"context": f"the blue sea {i}", "qas": [asked(i, k) for k in range(2)]} for i in range(articles)]
  path.write_text(json.dumps({"data": [{"title": f"{i}", "paragraphs": [part]} for i, part in enumerate(parts)]}))
  return str(path)


def test_questions_that_nobody_answered_are_answered_and_not_judged(tmp_path):
  data = {"name": "squad", "path": write_squad(tmp_path / "a.json", 8, True)}
  data |= {"validation": write_squad(tmp_path / "b.json", 4, True), "test": write_squad(tmp_path / "c.json", 3, False)}
  evaluators, found = evaluate_fresh(make_run("span_qa", data=data))
  assert "eval/validation/f1" in found and not [name for name in found if "test" in name]
  assert evaluators["test"].report(tmp_path, tmp_path).startswith("test: has no answers to judge by")
  assert len(json.loads((tmp_path / "predictions_test.json").read_text())) == 6
