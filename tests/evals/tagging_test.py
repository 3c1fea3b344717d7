"""Entities of a split: scores against an independent count, words that no row holds, what the end of a run tells."""

import csv
import re

import numpy as np
import pytest

from lm import evaluate, train
from lm.config import ConfigError
from lm.data import tagging
from lm.evals.tagging import Scores, score
from lm.tasks.tag import UNSEEN
from tests.conftest import make_run

NAMES = ("Anna Berg", "Carl", "Rome", "Oslo")


def write_conll(path, count, scheme="bio", words=0):
  """Sentences of a person and a place, of `words` more words."""
  sentences = []
  for i in range(count):
    person, place = NAMES[i % 2].split(), NAMES[2 + i // 2 % 2]
    tokens = [*["well"] * (i % 3), *person, "goes", "to", place, *["now"] * words, "."]
    spans = [("person", i % 3, i % 3 + len(person)), ("place", i % 3 + len(person) + 2, i % 3 + len(person) + 3)]
    tags = tagging.write(spans, len(tokens), scheme)
    sentences.append("".join(f"{token}\t{tag}\n" for token, tag in zip(tokens, tags, strict=True)))
  path.write_text("\n".join(sentences))
  return str(path)


def make_data(tmp_path, **options):
  train_file, held_out = (
    write_conll(tmp_path / "train.conll", 48, **options),
    write_conll(tmp_path / "dev.conll", 12, **options),
  )
  return {"name": "conll", "path": train_file, "validation": held_out, "test": held_out}


def evaluate_fresh(run):
  evaluators, state = evaluate.make_evaluators(run), run.init_state()
  run.program.compile([], evaluate.eval_shapes(evaluators))
  return evaluators, evaluate.evaluate(evaluators, state.params)


def test_an_entity_is_right_where_type_and_both_ends_are():
  there = [[("PER", 0, 2), ("LOC", 3, 4)], [("LOC", 0, 1)], []]
  said = [[("PER", 0, 2), ("LOC", 3, 5)], [("PER", 0, 1)], [("ORG", 0, 1)]]
  found = score(there, said)
  assert found == {"": Scores(1, 4, 3), "LOC": Scores(0, 1, 2), "ORG": Scores(0, 1, 0), "PER": Scores(1, 2, 1)}
  assert (found[""].precision, found[""].recall, found[""].f1) == (1 / 4, 1 / 3, pytest.approx(2 / 7))
  assert (found["ORG"].recall, found["ORG"].f1, score([[]], [[]])[""].f1) == (0, 0, 0)


def test_scores_are_those_of_counting_words_one_by_one():
  rng, kinds = np.random.default_rng(0), ("x", "y")
  tags = lambda: rng.choice(tagging.classes(kinds, "bioes"), 30).tolist()
  there, said = ([tagging.read(tags()) for _ in range(50)] for _ in range(2))
  found = score(there, said)
  for kind in kinds:
    pairs = [(a, b) for theirs, ours in zip(there, said, strict=True) for a in theirs for b in ours if a[0] == kind == b[0]]
    right = sum(a[1] == b[1] and a[2] == b[2] for a, b in pairs)
    num_said, num_there = (sum(span[0] == kind for spans in side for span in spans) for side in (said, there))
    precision, recall = right / num_said, right / num_there
    assert (found[kind].precision, found[kind].recall) == (precision, recall)
    assert found[kind].f1 == pytest.approx(2 * precision * recall / (precision + recall))
  assert found[""].right == found["x"].right + found["y"].right > 0


@pytest.mark.parametrize("scheme", ["bio", "bioes"])
def test_a_run_finds_entities_tells_the_scores_and_lists_what_is_wrong(scheme, tmp_path, capsys):
  data, optimizer = make_data(tmp_path, scheme="bioes"), {"name": "adamw", "learning_rate": 1e-2}
  run = make_run("tag", task={"name": "tag", "scheme": scheme}, data=data, total_steps=60, eval_every=60, optimizer=optimizer)
  metrics = train.train(run, tmp_path / "run")["metrics"]
  assert metrics["eval/test/f1"] > 0.9 > metrics["step0/eval/test/f1"] + 0.5
  assert 0.5 < metrics["baseline/test_all_o_accuracy"] < metrics["eval/test/accuracy"]
  assert metrics["baseline/test_all_o_f1"] == 0
  said = capsys.readouterr().err
  always, before = metrics["baseline/test_all_o_accuracy"], metrics["step0/eval/test/accuracy"]
  assert f"accuracy of tags {metrics['eval/test/accuracy']:.3f} (always O {always:.3f}, step 0 {before:.3f})" in said
  for kind in ("person", "place"):
    line = re.search(rf"  {kind} +[\d.]+ +[\d.]+ +([\d.]+) +12\n", said)
    assert line and float(line[1]) == pytest.approx(metrics[f"eval/test/f1_{kind}"], abs=6e-4)
  assert "were not seen" not in said


def test_errors_name_sentence_and_entities(tmp_path):
  run = make_run("tag", data=make_data(tmp_path))
  evaluators, found = evaluate_fresh(run)
  assert found["eval/validation/f1"] < 0.5
  text = evaluators["validation"].report(tmp_path, tmp_path)
  assert "sentences with the most wrong: " in text
  with (tmp_path / "errors.csv").open(newline="") as file:
    rows = list(csv.DictReader(file))
  assert all(row["file"].endswith("dev.conll") and row["text"].endswith(".") for row in rows)
  assert any("person: Anna Berg" in row["missed"] for row in rows)


def test_a_sentence_in_several_rows_is_judged_as_a_whole(tmp_path):
  data, settings = make_data(tmp_path, words=20), {"total_steps": 80, "eval_every": 80, "batch_size": 16}
  run = make_run("tag", data=data, seq_len=32, optimizer={"name": "adamw", "learning_rate": 1e-2}, **settings)
  store = run.load("tag", "validation").store
  assert store.num_sequences > len(run.source("tag", "validation")) == store.owner_N[-1] + 1
  values = sorted(store.values("word")[store.values("word") > 0].tolist())
  assert values == sorted(i + 1 for k in range(12) for i in range(len(run.source("tag", "validation")[k]["tokens"])))
  metrics = train.train(run, tmp_path / "run")["metrics"]
  assert metrics["eval/test/f1"] > 0.9 > metrics["step0/eval/test/f1"] + 0.5


def test_words_that_are_nothing_to_the_tokenizer_are_counted_and_count_as_o(tmp_path):
  run = make_run("tag", data=make_data(tmp_path))
  evaluators, _ = evaluate_fresh(run)
  task, arrays = run.tasks["tag"], {"tag": np.full((12, 3), UNSEEN)}
  evaluator = evaluators["validation"]
  evaluator.examples = lambda params: ({"loss": 1.0}, arrays)
  found = dict(evaluator(None))
  total = sum(len(run.source("tag", "validation")[i]["tokens"]) for i in range(12))
  line = f"{total:,} of {total:,} words, in 12 sentences, are nothing to the tokenizer and count as O"
  assert line in evaluator.report(tmp_path, tmp_path)
  assert found["recall"] == 0 and found["accuracy"] == found["baseline/validation_all_o_accuracy"]
  assert task.name_tags([UNSEEN, 0]) == ["O", "O"]


def test_strict_entities_keep_the_scheme(tmp_path):
  data = make_data(tmp_path)
  named = {name: {"name": "tagging", "strict": name == "strict"} for name in ("strict", "default")}
  run = make_run("tag", data=data, evaluators=named)
  evaluators, _ = evaluate_fresh(run)
  count = {name: evaluators[name]._scores(evaluators[name]._latest[1])[""] for name in named}
  assert count["strict"].said < count["default"].said
  assert count["strict"].there == count["default"].there == 24
  with pytest.raises(ConfigError, match="strict=True: no effect on task.scheme='plain'"):
    evaluate.make_evaluators(make_run("tag", task={"name": "tag", "scheme": "plain"}, data=data, evaluators=named))


def test_plain_tags_are_judged_by_accuracy(tmp_path):
  run = make_run("tag", task={"name": "tag", "scheme": "plain"}, data=make_data(tmp_path))
  evaluators, found = evaluate_fresh(run)
  assert evaluate.best_metric("auto", evaluators) == "eval/validation/f1"
  assert found["eval/validation/f1"] == pytest.approx(found["eval/validation/accuracy"])
  assert 0.5 < found["baseline/validation_majority_accuracy"] == found["baseline/validation_majority_f1"] < 1
  lines = evaluators["validation"].report(tmp_path, tmp_path).splitlines()
  assert lines[0].startswith("validation: F1 ") and "(always the commonest" in lines[0]
  assert [line.split()[0] for line in lines[1:]][:6] == ["type", "B-person", "B-place", "I-person", "O", "all"]
