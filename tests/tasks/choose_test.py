"""Multiple choice: rows as BERT reads them, a choice in a row is worth what it is alone, and what is cut is the context."""

import csv
import json

import jax
import numpy as np
import pytest

import lm
from lm import predict, train, tree
from lm.config import ConfigError
from lm.data.loader import EvalLoader
from lm.data.tokenizer import Bytes
from lm.shapes import INPUTS
from lm.tasks.choose import Choose
from tests.conftest import SIZES, TEXTS, make_examples, make_run

TASK = Choose(choices=("A", "B"))
EXAMPLE = {"context": "abcd", "question": "why", "choices": ["x", "yz"], "label": "B"}
TOK = Bytes()


def rows_of(task, seq_len, example=EXAMPLE, tok=TOK):
  (stored,) = task.prepare(example, tok)
  pads = {name: field.pad for name, field in task.fields.items() if field.dims}
  size = min(seq_len, len(stored["tokens"]))
  rows = {
    n: np.pad(stored[n][:size], (0, seq_len - size), constant_values=pad)[None].astype(np.int32) for n, pad in pads.items()
  }
  rows |= {"label": stored["label"][None], "segment_ids": (np.arange(seq_len) < size)[None].astype(np.int32)}
  return task.corrupt(rows, None, tok, seq_len)


def segments(found, tok=TOK):
  """The pieces of each segment."""
  ids, tokens = found["segment_ids"][0], found["tokens"][0]
  return ["".join(tok.piece(int(i)) for i in tokens[ids == k]).replace("▁", " ") for k in range(1, ids.max() + 1)]


def test_a_row_has_each_choice_beside_context_and_question():
  found, cls, sep = rows_of(TASK, 40), TOK.piece(TOK.cls_id), TOK.piece(TOK.sep_id)
  assert segments(found) == [f"{cls}abcd{sep}why x{sep}", f"{cls}abcd{sep}why yz{sep}"]
  assert found["token_types"][0].tolist() == [0] * 6 + [1] * 6 + [0] * 6 + [1] * 7 + [0] * 15
  assert found["positions"][0].tolist() == [*range(12), *range(13), *[0] * 15]
  assert (found["label"].tolist(), found["weights"].tolist()) == ([1], [1])
  assert TASK.show_target({name: values[0] for name, values in found.items()}) == "B"


def test_without_a_context_the_question_stands_in_front_and_two_separators_have_no_types():
  cls, sep = TOK.piece(TOK.cls_id), TOK.piece(TOK.sep_id)
  for name in ("context", "question"):
    assert segments(rows_of(TASK, 40, {name: "abcd", "choices": ["x", "yz"]})) == [
      f"{cls}abcd{sep}x{sep}",
      f"{cls}abcd{sep}yz{sep}",
    ]

  class Two(Bytes):
    pair_separators = 2

  found = rows_of(TASK, 40, tok=Two())
  assert segments(found)[0] == f"{cls}abcd{sep}{sep}why x{sep}"
  assert not found["token_types"].any()


@pytest.mark.parametrize("seq_len", range(8, 26))
def test_a_row_of_any_length_keeps_all_choices_and_the_context_loses_its_end_first(seq_len):
  cls, sep = TOK.piece(TOK.cls_id), TOK.piece(TOK.sep_id)
  TASK.check(TOK, seq_len)
  found = segments(rows_of(TASK, seq_len))
  assert len(found) == 2
  for segment, choice in zip(found, ("x", "yz"), strict=True):
    context, said = segment.removeprefix(cls).split(sep)[:2]
    assert "abcd".startswith(context)
    assert said in (whole := f"why {choice}") or len(context) == 0
    assert not context or said == whole
  assert seq_len < 25 or found[1] == f"{cls}abcd{sep}why yz{sep}"


def test_an_example_without_label_has_no_weight():
  assert rows_of(TASK, 40, {**EXAMPLE, "label": None})["weights"].tolist() == [0]


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"choices": ["x"]}, r"choices: 1 where every example has 2 \(task.choices=\('A', 'B'\)\)"),
    ({"choices": "xy"}, "choices: no list where every example has 2"),
    ({"label": "C"}, "label='C': is none of task.choices, A, B"),
    ({"context": "", "question": None}, "a row has neither context nor question"),
  ],
)
def test_a_bad_example_is_one_line(change, words):
  with pytest.raises(ConfigError, match=f"^{words}"):
    TASK.prepare(EXAMPLE | change, TOK)


def test_bad_settings_are_one_line():
  with pytest.raises(ValueError, match="task.pooling='max': accepted are first, last, mean"):
    Choose(pooling="max")
  with pytest.raises(ValueError, match=r"task.choices=\('A', 'A'\): a name stands twice"):
    Choose(choices=("A", "A"))
  with pytest.raises(ConfigError, match="config.seq_len=7: a row holds 2 choices, which take 8 tokens or more"):
    TASK.check(TOK, 7)
  with pytest.raises(ConfigError, match=r"needs examples of 2 choices or more; data 'memory' .* \(data=choices\(path=FILE\)\)"):
    make_run("choose", data={"name": "memory", "texts": TEXTS})
  rows = tuple(json.dumps(row) for row in (EXAMPLE | {"label": "0"}, EXAMPLE | {"choices": ["x", "y", "z"], "label": "0"}))
  with pytest.raises(ConfigError, match="^data 'memory': row 1: choices: 3 where every example has 2"):
    make_run("choose", data={"name": "memory", "rows": rows})


@pytest.mark.parametrize(("pooling", "peft"), [("first", "full"), ("last", "full"), ("mean", "prompt")])
def test_a_choice_in_a_row_is_worth_what_it_is_alone(pooling, peft):
  """Also with positions that a method fills in front of each."""
  peft = {"name": peft, "num_virtual_tokens": 3} if peft == "prompt" else peft
  run = make_run("choose", task={"name": "choose", "pooling": pooling}, seq_len=96, peft=peft)
  state, spec = run.init_state(), run.program.spec
  params, batch = tree.merge(state.params, state.frozen), run.loader.batch(0)
  found = jax.device_get(jax.jit(spec.objective.predict)(params, batch))["choose/scores"]
  alone = {name: np.zeros((24, 96), np.int32) for name in ("tokens", "segment_ids", "positions", "token_types")}
  for i, (row, choice) in enumerate(np.ndindex(8, 3)):
    mine = batch[INPUTS]["segment_ids"][row] == choice + 1
    for name in ("tokens", "positions", "token_types"):
      alone[name][i, : mine.sum()] = batch[INPUTS][name][row][mine]
    alone["segment_ids"][i, : mine.sum()] = 1
  alone["row"] = np.arange(24, dtype=np.int32)
  own = (alone["segment_ids"] > 0) & (alone["tokens"] >= 0)
  pick = {"first": lambda h, mine: h[mine][0], "last": lambda h, mine: h[mine][-1], "mean": lambda h, mine: h[mine].mean(0)}
  h_BTD = np.asarray(jax.jit(lambda: spec.model.hidden(params, alone, intercept=spec.peft.intercept).hidden_BTD)())
  read = np.stack([pick[pooling](h, mine) for h, mine in zip(h_BTD, own, strict=True)]).reshape(8, 3, -1)
  logits = jax.jit(lambda: spec.model.logits(params, "classify", read, alone["row"][:8], intercept=spec.peft.intercept))()
  np.testing.assert_allclose(found, jax.nn.softmax(logits), atol=1e-5)


def test_the_loss_is_the_cross_entropy_of_the_choices():
  run = make_run("choose")
  objective, batch, params = run.program.spec.objective, run.loader.batch(0), run.init_state().params
  p_BN = jax.device_get(jax.jit(objective.predict)(params, batch))["choose/scores"].astype(np.float64)
  label_B = batch["choose"]["label"]
  sums = jax.jit(objective.sums)(params, batch)
  assert float(sums["choose/loss"]) == pytest.approx(-np.log(p_BN[np.arange(8), label_B]).sum(), rel=1e-5)
  assert float(sums["choose/accuracy"]) == (p_BN.argmax(1) == label_B).sum()
  described = next(iter(run.tasks.values())).describe_predictions({"scores": p_BN}, TOK)
  assert [d["label"] for d in described] == [str(i) for i in p_BN.argmax(1)]


@pytest.mark.parametrize("setting", [{"label_smoothing": 0.1}, {"regularizer": "rdrop"}])
def test_what_softens_cross_entropies_softens_this_one(setting):
  model = {"name": "bert-tiny", **SIZES, "dropout_rate": 0.1}
  runs = [make_run("choose", model=model, **changes) for changes in ({}, setting)]
  losses = [
    float(
      jax.jit(run.program.spec.objective.sums)(run.init_state().params, run.loader.batch(0), jax.random.key(1))["choose/loss"]
    )
    for run in runs
  ]
  assert losses[0] != pytest.approx(losses[1], rel=1e-4)


def test_a_loaded_run_chooses(tmp_path):
  run = make_run("choose", total_steps=1, seq_len=256, model={"name": "bert-tiny", **SIZES, "max_len": 256})
  train.train(run, tmp_path / "run")
  model, examples = lm.load(tmp_path / "run", devices=jax.devices()[:1]), make_examples("choose")[:8]
  found = model.predict(examples)
  assert [set(row["scores"]) for row in found] == [{"0", "1", "2"}] * 8
  state = jax.device_get(model.params)
  expected = jax.device_get(jax.jit(run.program.spec.objective.predict)(state, next(iter(evaluation(run)))[0]))["choose/scores"]
  np.testing.assert_allclose([list(row["scores"].values()) for row in found], expected, atol=1e-5)
  with pytest.raises(ConfigError, match="predict: the run's task reads rows with columns, expected a list of those, got"):
    model.predict(["a text"])
  with pytest.raises(ConfigError, match="--mode=predict: reads texts, and the run's task 'choose' rows of several columns"):
    (tmp_path / "a.txt").write_text("a text\n")
    predict.predict_file(model, tmp_path / "a.txt", tmp_path / "b.jsonl")


def evaluation(run):
  """Batches of the examples in their order."""
  return EvalLoader(run.load("choose", "validation"), batch_size=8, seq_len=256)


def test_a_run_tells_accuracy_beside_baselines_and_writes_errors(tmp_path, capsys):
  run = make_run("choose", total_steps=2)
  metrics = train.train(run, tmp_path)["metrics"]
  labels = [example["label"] for example in make_examples("choose")]
  commonest = np.bincount(labels).max() / len(labels)
  assert metrics["baseline/validation_majority_accuracy"] == pytest.approx(commonest)
  found, before = (metrics[f"{step}eval/validation/accuracy"] for step in ("", "step0/"))
  beside = f"commonest place {commonest:.3f}, guessing 0.333, step 0 {before:.3f}"
  assert f"validation: accuracy {found:.3f} of 3 choices ({beside})" in capsys.readouterr().err
  with (tmp_path / "errors.csv").open(newline="") as file:
    rows = [row for row in csv.DictReader(file) if row["split"].startswith("validation")]
  wrong = round((1 - metrics["eval/validation/accuracy"]) * len(labels))
  assert len(rows) == wrong > 0
  for row in rows:
    example = make_examples("choose")[int(row["row"])]
    assert row["context"] == example["context"]
    assert row["choices"] == " | ".join(example["choices"])
    assert row["label"] == example["choices"][example["label"]]
    assert row["prediction"] in example["choices"]
    assert float(row["prediction_probability"]) >= float(row["label_probability"])
