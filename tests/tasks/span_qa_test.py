"""Answers in a text: which tokens they are, windows that hold them or not, the best span of all, and what is said of a text."""

import itertools
import json

import flax.linen as nn
import jax
import numpy as np
import pytest

import lm
from lm import train
from lm.config import ConfigError
from lm.data import answers as found_in
from lm.data.tokenizer import Bytes
from lm.shapes import INPUTS
from lm.tasks import span_qa
from lm.tasks.forward import Forward
from lm.tasks.span_qa import SpanQa
from tests.conftest import OPTIONS, SIZES, TEXTS, make_examples, make_run

TEXT = "The Broncos won Super Bowl 50 in Santa Clara, California, on a Sunday."
EXAMPLE = {"text": "Where?", "text_pair": TEXT, "answers": [{"text": "Santa Clara", "start": TEXT.index("Santa")}]}
BOTH = ("span", "none")


class Words(Bytes):
  """A token per word, so that a piece has several characters."""

  def encode_with_offsets(self, text):
    spans, at = [], 0
    for word in text.split():
      start = text.index(word, at)
      at = start + len(word)
      spans.append((start, at))
    return [10 + i for i in range(len(spans))], np.asarray(spans, np.int32).reshape(-1, 2)

  def encode(self, text):
    return self.encode_with_offsets(text)[0]


class TwoSeparators(Bytes):
  pair_separators = 2


def read_back(row, text):
  """The text of the tokens that the answer's places hold, "" at [CLS]."""
  first, last = int(row["first"]), int(row["last"])
  return "" if row["role"][first] == span_qa.NULL else text[row["char_start"][first] : row["char_stop"][last]]


@pytest.mark.parametrize("tok", [Bytes(), TwoSeparators()])
def test_a_row_holds_question_and_text_and_points_at_the_answer(tok):
  (row,) = SpanQa(answers=("span",)).prepare(EXAMPLE, tok)
  front = [tok.cls_id, *tok.encode("Where?"), *[tok.sep_id] * tok.pair_separators]
  assert row["tokens"].tolist() == [*front, *tok.encode(TEXT), tok.sep_id]
  assert row["role"].tolist() == [1, *[2] * (len(front) - 1), *[5] * len(TEXT), 3]
  assert read_back(row, TEXT) == "Santa Clara"
  rows = {name: np.asarray(values)[None] for name, values in row.items() if name != "window"}
  rows["segment_ids"] = np.ones((1, len(row["tokens"])))
  found = SpanQa().corrupt(rows, None, tok, 0)
  types = [0] * len(front) + [1] * (len(TEXT) + 1) if tok.pair_separators == 1 else [0] * len(row["tokens"])
  assert found["token_types"].tolist() == [types]
  assert found["answer_positions"].tolist() == [[len(front) + 33, len(front) + 43]] and found["weights"].tolist() == [1]


def test_an_answer_inside_words_takes_the_words_that_hold_it():
  (row,) = SpanQa(answers=("span",)).prepare({**EXAMPLE, "answers": [{"text": "a Cl", "start": 37}]}, Words())
  assert read_back(row, TEXT) == "Santa Clara,"
  assert found_in.pieces(np.asarray([[0, 3], [3, 8], [9, 12]]), 4, 10) == (1, 2)
  assert found_in.pieces(np.asarray([[0, 3], [3, 3], [4, 8]]), 3, 4) is None


def test_the_answer_that_is_learned_is_the_commonest_of_those_whose_place_is_known():
  a, b, c = ({"text": "x" * n, "start": start} for n, start in ((2, 1), (3, 5), (4, 9)))
  assert found_in.choose([a, b, b]) == (5, 8)
  assert found_in.choose([a, b]) == (1, 3)
  assert found_in.choose([b | {"unsure": True}, b | {"unsure": True}, c]) == (9, 13)
  assert found_in.choose([a | {"unsure": True}]) == (1, 3)


@pytest.mark.parametrize(("room", "stride"), [(20, 0), (30, 7), (40, 23), (64, 0), (128, 0)])
def test_windows_that_hold_all_of_an_answer_point_at_it_and_the_others_have_none(room, stride):
  task, tok = SpanQa(answers=("span",), max_query_length=6, stride=stride).fitted(room), Bytes()
  found = task.prepare(EXAMPLE, tok)
  size, start = room - 9, TEXT.index("Santa")
  assert all(len(row["tokens"]) <= room and row["labelled"] == 1 for row in found)
  for row in found:
    inside = [a for a, role in zip(row["char_start"], row["role"], strict=True) if role >= span_qa.TEXT]
    assert len(inside) == min(size, len(TEXT)) and inside == list(range(inside[0], inside[0] + len(inside)))
    whole = inside[0] <= start and start + len("Santa Clara") <= inside[-1] + 1
    assert read_back(row, TEXT) == ("Santa Clara" if whole else "")
  owned = [int(a) for row in found for a, role in zip(row["char_start"], row["role"], strict=True) if role == span_qa.OWN]
  assert owned == list(range(len(TEXT))), "an answer may begin at every place of one window"


def test_a_question_without_answer_points_at_cls_and_one_that_is_not_answered_has_no_weight():
  none, unknown = {**EXAMPLE, "answers": []}, {name: EXAMPLE[name] for name in ("text", "text_pair")}
  ((row,), (other,)) = (SpanQa(answers=BOTH).prepare(example, Bytes()) for example in (none, unknown))
  assert (row["first"], row["last"], row["labelled"]) == (0, 0, 1)
  assert (other["first"], other["last"], other["labelled"]) == (0, 0, 0)
  with pytest.raises(ConfigError, match="answers: has none, and task.answers=span knows no such question"):
    SpanQa(answers=("span",)).prepare(none, Bytes())


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"answers": ("none",)}, "task.answers=none: accepted are span, and span,none"),
    ({"answers": ("span",), "null_threshold": 1.0}, "task.null_threshold=1.0: no effect, every question"),
    ({"n_best": 0}, "task.n_best=0: must be at least 1"),
    ({"stride": -1}, "task.stride=-1: must be at least 0"),
  ],
)
def test_what_has_no_meaning_is_one_line(options, message):
  with pytest.raises(ConfigError, match=message):
    SpanQa(**options)


def test_a_question_that_leaves_a_row_no_room_is_refused():
  with pytest.raises(ConfigError, match="config.seq_len: rows of 64 tokens have no room for text beside 68 others"):
    make_run("span_qa", task="span_qa")
  with pytest.raises(ConfigError, match="reads two texts per example, data 'memory' gives one text"):
    answers = [{"text": "The", "start": 0}]
    make_run("span_qa", data={"name": "memory", "rows": tuple(json.dumps({"text": t, "answers": answers}) for t in TEXTS)})


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_mean_of_both_cross_entropies_over_the_tokens_of_a_row(smoothing):
  """Against float64, one row after the other; padding is no class."""
  run = make_run("span_qa", label_smoothing=smoothing, model={"name": "bert-tiny", **SIZES, "dropout_rate": 0.0})
  model, params = run.program.spec.model, nn.unbox(run.program.spec.model.init(jax.random.key(1)))
  batch = run.loader.batch(0)
  rng = jax.random.key(0) if smoothing else None
  sums = run.program.spec.objective.sums(params, batch, rng)
  view = {**batch[INPUTS], **batch["span_qa"]}
  logits_BT2 = np.asarray(Forward(model, params).for_head("span").head(model.hidden(params, view).hidden_BTD, view), np.float64)
  loss = right = 0.0
  for row, size in enumerate((view["segment_ids"] > 0).sum(1)):
    for side, place in enumerate(view["answer_positions"][row]):
      logits = logits_BT2[row, :size, side]
      log_p = logits - np.log(np.exp(logits).sum())
      loss -= ((1 - smoothing) * log_p[place] + smoothing * log_p.mean()) / 2
      right += (logits.argmax() == place) / 2
  assert float(sums["span_qa/loss"]) == pytest.approx(loss, rel=1e-5)
  assert float(sums["span_qa/accuracy"]) == right
  assert float(run.program.spec.objective.denominators(batch)["span_qa/loss"]) == len(view["tokens"])


@pytest.mark.parametrize("seed", range(4))
def test_the_best_spans_are_those_of_trying_all(seed):
  rng = np.random.default_rng(seed)
  scores, begins, ends = rng.normal(size=(17, 2)), rng.random(17) < 0.6, rng.random(17) < 0.7
  spans = [(scores[i, 0] + scores[j, 1], i, j) for i in range(17) for j in range(i, min(i + 5, 17)) if begins[i] and ends[j]]
  for count in (1, 7, 1000):
    found = found_in.best_spans(scores, begins, ends, 5, count)
    assert [span[1:] for span in found] == [span[1:] for span in sorted(spans, reverse=True)[:count]]
    np.testing.assert_allclose([span[0] for span in found], sorted((span[0] for span in spans), reverse=True)[:count])
  assert found_in.best_spans(scores, begins & False, ends, 5, 3) == []


@pytest.mark.parametrize("threshold", [0.0, 1e3, -1e3])
def test_windows_are_joined_into_the_best_answer_of_the_text(threshold):
  """Against every span of every window, one by one."""
  task = SpanQa(answers=BOTH, max_query_length=6, n_best=4, null_threshold=threshold).fitted(30)
  rng = np.random.default_rng(5)
  prepared = [task.prepare({"text": "Where?", "text_pair": text}, Bytes()) for text in (TEXT, "a b c")]
  rows = [row for sequences in prepared for row in sequences]
  owner = np.repeat([0, 1], list(map(len, prepared)))
  width = max(len(row["tokens"]) for row in rows)
  pad = lambda values: np.pad(values, [(0, width - len(values)), *[(0, 0)] * (values.ndim - 1)])
  logits = [rng.normal(size=(len(row["tokens"]), 2)).astype(np.float32) for row in rows]
  arrays = {name: np.stack([pad(row[name]) for row in rows]) for name in span_qa.COLUMNS}
  arrays["logits"] = np.stack([*map(pad, logits)])
  described = task.describe_predictions(task.join(arrays, owner), None)
  for example, text in enumerate((TEXT, "a b c")):
    spans, null = {}, np.inf
    for row, scores in (pair for pair, own in zip(zip(rows, logits, strict=True), owner, strict=True) if own == example):
      null = min(null, scores[0].sum())
      for i, j in itertools.product(range(len(row["tokens"])), repeat=2):
        if row["role"][i] == span_qa.OWN and row["role"][j] >= span_qa.TEXT and i <= j < i + 30:
          place = int(row["char_start"][i]), int(row["char_stop"][j])
          spans[place] = max(spans.get(place, -np.inf), scores[i, 0] + scores[j, 1])
    best = sorted(spans, key=spans.get, reverse=True)[:4]
    share = np.exp([*(spans[place] for place in best), null])
    said = described[example]
    assert [(span["start"], span["stop"]) for span in said["n_best"]] == best
    np.testing.assert_allclose([span["score"] for span in said["n_best"]], share[:-1] / share.sum(), rtol=1e-5)
    assert said["no_answer"] == pytest.approx(share[-1] / share.sum(), rel=1e-5)
    is_none = null - spans[best[0]] > threshold
    assert (said["start"], said["stop"]) == ((None, None) if is_none else best[0])
    quoted = task.quote(said, {"text_pair": text})
    assert quoted["answer"] == ("" if is_none else text[slice(*best[0])].strip())
    assert all(text[span["start"] : span["stop"]] == span["text"] for span in quoted["n_best"])


def test_a_run_finds_answers_and_windows_of_long_texts_find_them_too(tmp_path):
  settings = {"optimizer": {"name": "adamw", "learning_rate": 5e-3}, "total_steps": 100, "eval_every": 100, "seq_len": 96}
  metrics = train.train(make_run("span_qa", batch_size=16, **settings), tmp_path)["metrics"]
  assert metrics["eval/validation/f1"] > 0.9 > metrics["step0/eval/validation/f1"] + 0.5
  model = lm.load(tmp_path, devices=jax.devices()[:1])
  rows = make_examples("span_qa", TEXTS[:5])
  found = model.predict([(row["text"], row["text_pair"]) for row in rows], batch_size=2)
  assert sum(said["answer"] == row["answers"][0]["text"] for said, row in zip(found, rows, strict=True)) >= 4
  for said, row in zip(found, rows, strict=True):
    assert row["text_pair"][said["start"] : said["stop"]] == said["answer"] == said["n_best"][0]["text"]
    assert sum(span["score"] for span in said["n_best"]) == pytest.approx(1)
  (empty,) = model.predict([("module?", "")])
  assert (empty["answer"], empty["start"], empty["n_best"]) == ("", None, [])
  (whole,) = model.predict([(rows[1]["text"], "Well then. " * 20 + rows[1]["text_pair"])])  # five windows
  assert 0 <= whole["start"] < whole["stop"] <= 220 + len(rows[1]["text_pair"])


def test_none_is_learned_too(tmp_path):
  texts = (*TEXTS, *("sorry no" for _ in range(12)))
  rows = tuple(map(json.dumps, make_examples("span_qa", texts)))
  settings = {"optimizer": {"name": "adamw", "learning_rate": 5e-3}, "total_steps": 60, "eval_every": 60, "batch_size": 16}
  run = make_run("span_qa", data={"name": "memory", "rows": rows}, task={"name": "span_qa", **OPTIONS["span_qa"]}, **settings)
  assert run.tasks["span_qa"].answers == BOTH
  metrics = train.train(run, tmp_path)["metrics"]
  assert metrics["eval/validation/f1_unanswered"] > 0.9
  assert metrics["baseline/validation_no_answer_f1"] == pytest.approx(12 / 52)
