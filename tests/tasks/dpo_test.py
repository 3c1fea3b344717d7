"""Preferences: the losses and gradients of float64, what the reference is under every method, and that margins rise."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import build, evaluate, saved, train, tree
from lm.config import ConfigError
from lm.data.tokenizer import Bytes
from lm.shapes import INPUTS
from lm.state import REFERENCE
from lm.tasks.dpo import Dpo
from tests.conftest import SIZES, TEXTS, make_data, make_run
from tests.data.dialogue_test import talk

B, T, V = 4, 8, 5
PAIR = {"prompt": "Hi", "chosen": "Yes", "rejected": "Certainly not"}
FORMS = [
  {"kind": "sigmoid"},
  {"kind": "sigmoid", "beta": 0.7, "label_smoothing": 0.2},
  {"kind": "sigmoid_norm", "beta": 5.0},
  {"kind": "ipo", "beta": 0.3},
  {"kind": "simpo", "beta": 2.0, "gamma": 1.1},
]


class Logits:
  """Stands in for the model: hidden states are logits [B, T, V], of the tuned model or of the reference."""

  def __init__(self, tuned, reference):
    self.logits = {True: tuned, False: reference}

  def __call__(self, batch, rng, *, tuned=True):
    return self.logits[tuned]

  def label_log_probs(self, h, labels, batch, *, tuned=True):
    return jnp.take_along_axis(jax.nn.log_softmax(h), labels[..., None], -1)[..., 0]

  log_sigmoid = staticmethod(jax.nn.log_sigmoid)


def make_batch():
  """Rows of random answers, the last without weight."""
  rng = np.random.default_rng(1)
  sides = rng.integers(0, 3, (B, T))
  weights = np.asarray([1, 1, 1, 0], np.float32)
  masks = {
    f"{name}_weights": ((sides == i) * weights[:, None]).astype(np.float32) for i, name in enumerate(("chosen", "rejected"))
  }
  logits = [rng.normal(size=(B, T, V)) * 2 for _ in range(2)]
  return logits, {"labels": rng.integers(0, V, (B, T)), "weights": weights, **masks}


def exact(task, tuned, reference, batch):
  """The sums in float64, written down from the papers one pair at a time."""
  log_p = lambda logits, b, t: logits[b, t, batch["labels"][b, t]] - np.log(np.exp(logits[b, t]).sum())
  found = dict.fromkeys(("loss", "accuracy", "margin", "chosen_reward", "rejected_reward", "log_ratio"), 0.0)
  for b in range(B):
    places = {side: np.flatnonzero(batch[f"{side}_weights"][b]) for side in ("chosen", "rejected")}
    if not batch["weights"][b]:
      continue
    policy, before = ({s: sum(log_p(x, b, t) for t in places[s]) for s in places} for x in (tuned, reference))
    size = {s: 1 if task.kind == "sigmoid" else len(places[s]) for s in places}
    ratio = {s: (policy[s] - (before[s] if task.kind != "simpo" else 0)) / size[s] for s in places}
    difference = ratio["chosen"] - ratio["rejected"]
    x, smooth = task.beta * difference - task.gamma, task.label_smoothing
    wrong_way = (1 - smooth) * np.log1p(np.exp(-x)) + smooth * np.log1p(np.exp(x))
    found["loss"] += (difference - 1 / (2 * task.beta)) ** 2 if task.kind == "ipo" else wrong_way
    found["accuracy"] += difference > 0
    found["margin"] += task.beta * difference
    found["chosen_reward"] += task.beta * ratio["chosen"]
    found["rejected_reward"] += task.beta * ratio["rejected"]
    found["log_ratio"] += sum(policy[s] - before[s] for s in places)
  return found


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_sums_and_gradient_are_those_of_float64(form):
  task, ((tuned, reference), batch) = Dpo(**form), make_batch()
  loss = lambda x: task.loss(Logits(x, jnp.asarray(reference, jnp.float32)), jax.tree.map(jnp.asarray, batch), None)
  found, expected = loss(jnp.asarray(tuned, jnp.float32)), exact(task, tuned, reference, batch)
  if task.kind == "simpo":
    expected.pop("log_ratio")
  assert found.keys() == expected.keys() == task.denominators(batch).keys()
  for name, value in found.items():
    np.testing.assert_allclose(value, expected[name], rtol=2e-5, err_msg=name)
  gradient = jax.grad(lambda x: loss(x)["loss"])(jnp.asarray(tuned, jnp.float32))
  numeric = np.zeros_like(tuned)
  for at in np.ndindex(*tuned.shape):
    step = np.zeros_like(tuned)
    step[at] = 1e-5
    up, down = (exact(task, tuned + sign * step, reference, batch)["loss"] for sign in (1, -1))
    numeric[at] = (up - down) / 2e-5
  np.testing.assert_allclose(gradient, numeric, atol=2e-5 * np.abs(numeric).max())
  assert np.abs(numeric).max() > 1e-3


def rows_of(task, seq_len, example=PAIR):
  (stored,) = task.prepare(example, Bytes())
  pads = {name: field.pad for name, field in task.fields.items()}
  kept = {name: values[:seq_len].astype(np.int32) for name, values in stored.items()}
  rows = {name: np.pad(values, (0, seq_len - len(values)), constant_values=pads[name])[None] for name, values in kept.items()}
  return task.corrupt(rows, None, Bytes(), seq_len)


def pieces(ids):
  return "".join(Bytes().piece(int(i)) for i in ids).replace("<0x0A>", "\n").replace("▁", " ")


def test_a_row_is_the_prompt_with_either_answer_apart():
  found = rows_of(Dpo(), 80)
  for side, (name, said) in enumerate((("chosen", "Yes"), ("rejected", "Certainly not")), 1):
    mine = found["segment_ids"][0] == side
    assert pieces(found["tokens"][0][mine]) == f"<s>user:\nHi</s>assistant:\n{said}</s>"
    assert found["positions"][0][mine].tolist() == list(range(mine.sum()))
    assert pieces(found["labels"][0][found[f"{name}_weights"][0] > 0]) == f"{said}</s>"
    assert not found[f"{name}_weights"][0][~mine].any()
  assert found["weights"].tolist() == [1]


def test_answers_are_what_differs_not_what_the_assistant_said_before():
  pair = {"prompt": talk("Hi", "Yo", "Bye"), "chosen": "a", "rejected": talk("", "b", "c", "d")[1:]}
  found = rows_of(Dpo(), 160, pair)
  assert pieces(found["labels"][0][found["chosen_weights"][0] > 0]) == "a</s>"
  assert pieces(found["labels"][0][found["rejected_weights"][0] > 0]) == "b</s>d</s>"


def test_a_row_that_is_cut_keeps_both_and_takes_from_the_longer_answer_first():
  whole = (rows_of(Dpo(), 80)["segment_ids"] > 0).sum()
  shorter = rows_of(Dpo(), whole - 4)
  counts = lambda found, name: found[f"{name}_weights"].sum()
  assert counts(shorter, "chosen") == 4
  assert 0 < counts(shorter, "rejected") < 13
  assert shorter["weights"].tolist() == [1]
  nothing_said = rows_of(Dpo(), 40)
  assert nothing_said["weights"].tolist() == [0]
  assert not nothing_said["chosen_weights"].any()


def test_a_pair_in_one_row_is_worth_what_its_conversations_are_alone():
  run = make_run("dpo", task={"name": "dpo", "kind": "simpo", "beta": 2.0})
  params = run.init_state().params
  model, batch = run.program.spec.model, run.loader.batch(0)
  found = jax.jit(run.program.spec.objective.sums)(params, batch)
  logits = jax.jit(lambda x: model.logits(params, "lm", model.hidden(params, x).hidden_BTD, x["row"]))
  rewards = []
  for row in range(8):
    for side, name in ((1, "chosen"), (2, "rejected")):
      mine = batch[INPUTS]["segment_ids"][row] == side
      n = mine.sum()
      alone = {"tokens": np.zeros((1, 64), np.int32), "segment_ids": (np.arange(64) < n)[None].astype(np.int32)}
      alone["tokens"][0, :n] = batch[INPUTS]["tokens"][row][mine]
      alone |= {"positions": np.arange(64, dtype=np.int32)[None], "row": np.zeros(1, np.int32)}
      log_p = np.asarray(jax.nn.log_softmax(logits(alone)[0]), np.float64)[np.arange(n - 1), alone["tokens"][0, 1:n]]
      said = batch["dpo"][f"{name}_weights"][row][mine][:-1] > 0
      rewards.append(2.0 * log_p[said].mean())
  margins = np.asarray(rewards[::2]) - np.asarray(rewards[1::2])
  np.testing.assert_allclose(found["dpo/chosen_reward"], np.sum(rewards[::2]), rtol=1e-5)
  np.testing.assert_allclose(found["dpo/loss"], np.log1p(np.exp(-margins)).sum(), rtol=1e-5)


METHODS = ["full", "lora", "bitfit", "head"]


def train_steps(run, count=3):
  run.program.compile(run.loader.shapes(), [])
  state, found = run.init_state(), []
  first = jax.tree.map(np.array, state.frozen)
  for step in range(count):
    state, result = run.program.train(state, run.loader.batch(step % 4), run.noise_rng)
    found.append({name: float(value) for name, value in result["sums"].items()} | {"mean": float(result["loss"])})
  return first, state, found


@pytest.mark.parametrize("method", METHODS)
def test_the_reference_is_the_model_the_run_started_from_under_every_method(method):
  """At step 0 the loss is log 2; then it is that of a model which is kept whole beside."""
  model = {"name": "gpt2-tiny", **SIZES, "bias": True, "tied": False}
  run = make_run("dpo", model=model, peft=method, optimizer={"name": "adamw", "learning_rate": 1e-2})
  first, state, found = train_steps(run)
  assert found[0]["mean"] == pytest.approx(math.log(2), abs=1e-6)
  assert abs(found[0]["dpo/log_ratio"]) < 1e-3
  assert abs(found[-1]["dpo/log_ratio"]) > 1e-2
  jax.tree.map(np.testing.assert_array_equal, first, jax.tree.map(np.array, state.frozen))
  copied = set(tree.flatten(first[REFERENCE]))
  assert copied == {name for name, trains in run.program.trainable.items() if trains and "/lora/" not in name}
  assert bool(copied) == (method != "lora")  # beside which the base itself is the reference

  spec, batch = run.program.spec, run.loader.batch(3)
  full = tree.merge(state.params, state.frozen)
  start = {k: v for k, v in full.items() if k != REFERENCE}
  start = tree.unflatten(tree.flatten(start) | tree.flatten(full.get(REFERENCE, {})))
  own, view = batch["dpo"], dict(batch[INPUTS])

  def log_p(params, intercept):
    h = spec.model.hidden(params, view, intercept=intercept).hidden_BTD
    logits = spec.model.logits(params, "lm", h, view["row"], intercept=intercept)
    log_p_BT = jnp.take_along_axis(jax.nn.log_softmax(logits), own["labels"][..., None], -1)[..., 0]
    return [(log_p_BT * own[f"{side}_weights"]).sum(1) for side in ("chosen", "rejected")]

  tuned, before = jax.jit(lambda: (log_p(full, spec.peft.intercept), log_p(start, None)))()
  margin = 0.1 * (tuned[0] - before[0] - tuned[1] + before[1])
  sums = jax.jit(spec.objective.sums)(full, batch)
  np.testing.assert_allclose(sums["dpo/margin"], margin.sum(), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(sums["dpo/loss"], np.log1p(np.exp(-margin)).sum(), rtol=1e-5)


def test_nothing_is_kept_where_nothing_compares():
  run = make_run("dpo", task={"name": "dpo", "kind": "simpo"})
  assert REFERENCE not in run.program.abstract.frozen
  compares = make_run("dpo")
  assert compares.program.num_params == run.program.num_params
  assert compares.program.flops_per_token(64) == pytest.approx(4 / 3 * run.program.flops_per_token(64))


def test_margins_rise_on_eight_examples(tmp_path):
  settings = {"data": make_data("dpo", TEXTS[:8]), "optimizer": {"name": "adamw", "learning_rate": 3e-3}}
  run = make_run("dpo", total_steps=40, eval_every=10, peft="lora(rank=4)", **settings)
  train.train(run, tmp_path)
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  found = [line for line in lines if "eval/validation/margin" in line]
  margins = [line["eval/validation/margin"] for line in found]
  assert margins[0] == pytest.approx(0, abs=1e-5)
  assert margins == sorted(margins)
  assert found[0]["eval/validation/loss"] == pytest.approx(math.log(2), abs=1e-6)
  assert found[-1]["eval/validation/accuracy"] == 1
  assert found[-1]["eval/validation/chosen_reward"] > found[-1]["eval/validation/rejected_reward"]


@pytest.mark.parametrize("peft", ["full", "lora"])
def test_from_a_base_it_resumes_and_is_measured_like_the_run_and_is_a_base_itself(peft, tmp_path):
  base, data = tmp_path / "base", make_data("dpo")
  train.train(make_run("sft", total_steps=5), base)
  settings = {"model": None, "tokenizer": "", "init_from": str(base), "peft": peft, "total_steps": 6, "checkpoint_every": 3}
  whole = train.train(make_run("dpo", data=data, **settings), tmp_path / "whole")
  asked = iter([False] * 3 + [True])
  train.train(make_run("dpo", data=data, **settings), tmp_path / "parts", stop=lambda: next(asked, False))
  again = train.train(make_run("dpo", data=data, **settings), tmp_path / "parts")
  assert again["loss_sha256"] == whole["loss_sha256"]
  assert again["params_sha256"] == whole["params_sha256"]
  measured = evaluate.evaluate_workdir(build.load_run(tmp_path / "whole", jax.devices()[:1]), tmp_path / "whole")["metrics"]
  for name in ("loss", "margin", "log_ratio"):
    assert measured[f"eval/validation/{name}"] == pytest.approx(whole["metrics"][f"eval/validation/{name}"], rel=1e-5)
  assert whole["metrics"]["eval/validation/log_ratio"] != 0
  _, kept = saved.load_params(tmp_path / "whole")
  assert not any(name.startswith(REFERENCE) for name in kept)


def test_without_a_base_the_random_start_is_kept_in_the_checkpoint_and_no_part_of_the_model(tmp_path):
  summary = train.train(make_run("dpo", total_steps=4), tmp_path / "run")
  measured = evaluate.evaluate_workdir(build.load_run(tmp_path / "run", jax.devices()[:1]), tmp_path / "run")["metrics"]
  assert measured["eval/validation/loss"] == pytest.approx(summary["metrics"]["eval/validation/loss"], rel=1e-5)
  again = make_run("dpo", model=None, tokenizer="", init_from=str(tmp_path / "run"), total_steps=2)
  assert again.base.notice == "new: none; left out: none"
  _, state, found = train_steps(again, 1)
  assert found[0]["mean"] == pytest.approx(math.log(2), abs=1e-6)


def test_streams_of_pairs_are_measured_apart_and_together():
  streams = {name: {"task": "dpo", "data": make_data("dpo", TEXTS[i::2])} for i, name in enumerate("ab")}
  run = make_run("dpo", task=None, data=None, streams=streams)
  sums = jax.jit(run.program.spec.objective.sums)(run.init_state().params, run.loader.batch(0))
  assert float(sums["a/loss"]) == pytest.approx(4 * math.log(2))
  for name in ("loss", "margin", "accuracy"):
    np.testing.assert_allclose(sums[f"a/{name}"] + sums[f"b/{name}"], sums[f"a+b/{name}"], rtol=1e-5)


def test_losses_agree_on_a_mesh_and_in_micro_batches():
  runs = [
    make_run("dpo", loss_chunk=16),
    make_run("dpo", tokens_per_device=128),
    make_run("dpo", devices=8, mesh={"data": 2, "fsdp": 2, "tensor": 2}, loss_chunk=16),
  ]
  expected, *others = ([step["mean"] for step in train_steps(run)[2]] for run in runs)
  assert runs[1].program.spec.accumulation == 4
  for losses in others:
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.parametrize(
  ("task", "words"),
  [
    ({"kind": "kto"}, "task.kind='kto': accepted are sigmoid, sigmoid_norm, ipo, simpo"),
    ({"beta": 0.0}, "task.beta=0.0: must be above 0"),
    ({"label_smoothing": 0.5}, "task.label_smoothing=0.5: must be from 0 to less than 0.5"),
    ({"kind": "ipo", "label_smoothing": 0.1}, "label_smoothing=0.1: no effect on kind=ipo"),
    ({"gamma": 0.5}, "task.gamma=0.5: no effect on kind=sigmoid"),
    ({"template": "vicuna"}, "task.template='vicuna': accepted are chatml"),
    ({"template": "own"}, "template='own': the tokenizer has none"),
  ],
)
def test_bad_settings_are_one_line(task, words):
  with pytest.raises(ValueError, match=words):
    make_run("dpo", task={"name": "dpo", **task})


def test_an_example_without_a_preference_is_one_line():
  with pytest.raises(ConfigError, match="has the columns prompt, response; accepted are prompt .*, chosen and rejected"):
    make_run("dpo", data=make_data("sft"))
