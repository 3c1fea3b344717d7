"""What every task must do: some on every family, all on one of each kind. Tasks and presets are found, not listed."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import plug
from lm.config import parse_plug
from lm.data.store import WINDOW
from lm.shapes import INPUTS
from tests.conftest import FAMILIES, KINDS, TEXTS, TINY, make_config, make_data, make_examples, make_run, shrunk

# Families differ in their blocks, which these four see; other tasks with a loss of their own meet one of each kind. The rest
# change what is on the host alone.
EVERYWHERE = ("causal", "mlm", "classify", "sft")
OWN_LOSS = ("causal", "mlm", "classify", "regress", "tag", "multilabel", "dpo", "span_qa", "choose", "rank", "embed")
OWN_LOSS += ("prompt_classify",)
PAIRS = [
  (task, family)
  for task in plug.names("task")
  for family in (FAMILIES if task in EVERYWHERE else KINDS if task in OWN_LOSS else TINY)
  if plug.find("task", task).causal in (None, plug.preset(family).causal)
]
DECODED = ("causal", "classify", "prefix_lm", "span_corruption", "ul2", "fim", "sft", "dpo", "prompt_classify")
ENCODED = ("mlm", "classify", "sentence_pair", "regress", "tag", "multilabel", "span_qa", "choose", "rank", "embed")
ENCODED += ("prompt_classify",)
COVER = {(task, "gpt2-tiny") for task in DECODED} | {(task, "bert-tiny") for task in ENCODED}
CASES = [pytest.param(*pair, marks=[] if pair in COVER else pytest.mark.slow) for pair in PAIRS]


def start(task, family, **settings):
  model = shrunk(family, vocab_size=0, dropout_rate=0.0)
  run = make_run(task, model=model, **settings)
  return run, jax.jit(lambda rng: nn.unbox(run.program.spec.model.init(rng)))(jax.random.key(0))


def test_every_task_is_covered():
  assert {task for task, _ in COVER} == set(plug.names("task"))
  assert {task for task, _ in PAIRS} == set(plug.names("task"))


@pytest.mark.parametrize(("task", "family"), CASES)
def test_padding_has_no_weight(task, family):
  run, params = start(task, family)
  objective = run.program.spec.objective
  batch, compute = run.loader.batch(0), jax.jit(objective.sums)
  sums = compute(params, batch)
  tokens = np.where(batch[INPUTS]["segment_ids"] > 0, batch[INPUTS]["tokens"], 77)
  changed = {**batch, INPUTS: {**batch[INPUTS], "tokens": tokens}}
  for name, value in compute(params, changed).items():
    np.testing.assert_allclose(value, sums[name], rtol=1e-6)
  for empty in run.loader.shapes():
    assert all(float(value) == 0 for value in objective.denominators(empty).values())
    assert all(float(value) == 0 for value in compute(params, empty).values())


@pytest.mark.parametrize(("task", "family"), CASES)
def test_sums_add_over_rows(task, family):
  run, params = start(task, family)
  objective, batch = run.program.spec.objective, run.loader.batch(0)
  parts = [jax.tree.map(lambda x, s=part: x[s], batch) for part in (slice(0, 3), slice(3, None))]
  compute = jax.jit(objective.sums)
  whole, (first, rest) = compute(params, batch), [compute(params, part) for part in parts]
  if objective.needs_whole_batch:  # then its loss sees that rows are missing
    assert any(not np.isclose(first[name] + rest[name], whole[name], rtol=1e-3) for name in objective.coefficients)
    return
  for name in whole:
    np.testing.assert_allclose(first[name] + rest[name], whole[name], rtol=1e-5)


# To learn takes long, so that of tasks with a head of their own one family of each kind does.
LEARNED = [
  pytest.param(*pair, marks=[] if pair in COVER and pair[0] in OWN_LOSS else pytest.mark.slow)
  for pair in PAIRS
  if pair[0] in ("causal", "mlm") or pair[1] in KINDS
]


@pytest.mark.parametrize(("task", "family"), LEARNED)
def test_a_few_examples_are_learned_by_heart(task, family, tmp_path):
  from lm import train

  settings = {
    "data": make_data(task, TEXTS[:8]),
    "total_steps": 120,
    "optimizer": {"name": "adamw", "learning_rate": 1e-2, "weight_decay": 0.0},
  }
  run, _ = start(task, family, eval_every=120, **settings)
  metrics = train.train(run, tmp_path)["metrics"]
  assert metrics["eval/validation/loss"] < 0.6 * metrics["step0/eval/validation/loss"]


@pytest.mark.parametrize(("task", "family"), CASES)
def test_predictions_are_plain_one_per_row_and_need_no_label(task, family):
  run, params = start(task, family)
  value = next(iter(run.tasks.values()))
  if not value.predicts:
    with pytest.raises(NotImplementedError):
      value.describe_predictions({}, run.tokenizer)
    return
  unlabelled = {
    name: part for name, part in make_examples(task)[0].items() if name not in ("label", "tags", "tokens", "answers")
  }
  prepared = value.prepare(unlabelled, run.tokenizer)
  assert [int(sequence.get(WINDOW, 0)) for sequence in prepared] == list(range(len(prepared)))
  objective, batch = run.program.spec.objective, run.loader.batch(0)
  found = jax.device_get(jax.jit(objective.predict)(params, batch))
  arrays = {name.split("/")[1]: array for name, array in found.items()}
  described = value.describe_predictions(value.join(arrays, np.arange(len(batch[INPUTS]["row"]))), run.tokenizer)
  assert json.loads(json.dumps(described)) == described
  assert len(described) == len(batch[INPUTS]["row"])


def test_an_example_without_label_has_no_weight():
  run, _ = start("classify", "bert-tiny")
  (task,) = run.tasks.values()
  prepare = lambda **example: task.prepare({"text": "a", **example}, run.tokenizer)[0]
  labelled, unlabelled = prepare(label="list"), prepare()
  rows = {name: np.ones((3, 4), int) for name in ("segment_ids", "tokens", "place")}
  rows["label"] = np.asarray([labelled["label"], unlabelled["label"], labelled["label"]])
  assert task.corrupt(rows, None, run.tokenizer, 4)["weights"].tolist() == [1, 0, 1]


def test_training_data_without_labels_is_refused_even_if_the_task_names_them():
  with pytest.raises(ValueError, match="needs labelled examples"):
    make_run("classify", task={"name": "classify", "labels": ["a", "b"]}, data={"name": "memory", "texts": ("x", "y")})


@pytest.mark.parametrize("task", plug.names("task"))
def test_config_round_trips(task):
  from lm import config

  cfg = make_config(task)
  assert config.from_dict(config.to_dict(cfg)) == cfg
  assert hash(cfg) == hash(config.from_dict(config.to_dict(cfg)))


@pytest.mark.parametrize("task", plug.names("task"))
def test_a_task_is_read_back_as_a_checkpoint_keeps_it(task):
  run = make_run(task)
  (kept,), (value,) = json.loads(json.dumps(run.described_tasks)).values(), run.tasks.values()
  assert plug.make("task", parse_plug("task", kept)) == value


def test_mlm_loss_reads_masked_positions_only():
  run, params = start("mlm", "bert-tiny")
  objective, batch = run.program.spec.objective, run.loader.batch(0)
  own = batch["mlm"]
  unmasked = {**batch, "mlm": {**own, "labels": np.where(own["weights"] > 0, own["labels"], 9)}}
  compute = jax.jit(objective.sums)
  assert float(compute(params, unmasked)["mlm/loss"]) == float(compute(params, batch)["mlm/loss"])

  def loss(perturb):
    from lm.tasks.forward import Forward

    forward = Forward(run.program.spec.model, params).for_head("mlm")
    view = {**batch[INPUTS], **own}
    h = forward(view) + perturb
    h_BPD = jnp.take_along_axis(h, own["masked_positions"][:, :, None], axis=1)
    from lm.tasks.cross_entropy import token_sums

    return token_sums(forward.head(h_BPD, view), own["labels"], own["weights"])["loss"]

  grads = np.abs(jax.jit(jax.grad(loss))(jnp.zeros((8, 64, 32)))).sum(-1) > 0
  masked = np.zeros((8, 64), bool)
  for row in range(8):
    masked[row, own["masked_positions"][row][own["weights"][row] > 0]] = True
  np.testing.assert_array_equal(grads, masked)
