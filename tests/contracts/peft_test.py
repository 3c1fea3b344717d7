"""What every fine-tuning method must do. Methods are found, not listed."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from lm import plug, tree
from lm.config import Plug
from tests.conftest import EXPERTS, SIZES, make_run, shrunk
from tests.contracts.tasks_test import FAMILIES, start

# Models of one kind each, that have biases: some methods train them, others must fold them back.
MODELS = {
  "encoder": {"name": "bert-tiny", **SIZES, "bias": True},
  "decoder": {"name": "gpt2-tiny", **SIZES, "bias": True},
  "experts": shrunk(EXPERTS, qkv_bias=True, vocab_size=0, dropout_rate=0.0),
}
PRODUCT = [("encoder", "classify"), ("decoder", "classify"), ("experts", "classify"), ("decoder", "sft"), ("experts", "sft")]


def cases(pairs, cover):
  """Every method with every (kind of model, task); those that are not in the cover are slow."""
  of = lambda pair: [] if pair in cover else pytest.mark.slow
  return [pytest.param(method, *pair, marks=of(pair)) for method in plug.names("peft") for pair in pairs]


# Each kind and each task meets every method, in one test or the other. What a method adds knows the task by its rows alone.
TRAINED = cases(PRODUCT, [("decoder", "sft")])
COMPUTED = cases([("encoder", "classify"), ("experts", "classify"), ("decoder", "sft")], PRODUCT[:3])
# A method sees nothing of another task but its rows and its head: by turns one inside the blocks, one in front of the tokens.
OTHERS = [
  pytest.param(
    ("lora", "prefix")[i % 2], "decoder" if plug.find("task", task).causal else "encoder", task, marks=pytest.mark.slow
  )
  for i, task in enumerate(plug.names("task"))
  if task not in ("classify", "sft")
]

# Methods that stand around modules and fold back into their kernels.
FOLDING = [name for name in plug.names("peft") if (peft := plug.make("peft", Plug(name))).intercept and peft.merges]


# Tasks of many segments, in front of each of which a prompt stands.
LONGER = {"choose": {"seq_len": 128}, "rank": {"seq_len": 128}}


def biased_run(task, method, kind="encoder", **settings):
  return make_run(task, model=MODELS[kind], peft=method, **LONGER.get(task, {}), **settings)


def grow(attached, base):
  """Every leaf that the method added and every bias of the backbone, moved by noise; the rest as it is."""

  def move(i, name, x):
    grows = name not in base or name.startswith("backbone/") and name.endswith("/bias")
    return x + 0.05 * jax.random.normal(jax.random.fold_in(jax.random.key(2), i), x.shape) if grows else x

  return tree.unflatten({name: move(i, name, x) for i, (name, x) in enumerate(tree.flatten(attached).items())})


@pytest.mark.parametrize(("method", "kind", "task"), TRAINED + OTHERS)
def test_only_trainable_parameters_move(method, kind, task):
  run = biased_run(task, method, kind)
  run.program.compile(run.loader.shapes(), [])
  state = run.init_state()
  before = {name: np.array(x) for name, x in tree.flatten(tree.merge(state.params, state.frozen)).items()}
  for step in range(3):
    state, _ = run.program.train(state, run.loader.batch(step), run.noise_rng)
  after = tree.flatten(tree.merge(state.params, state.frozen))
  moved = {name for name in before if (before[name] != np.asarray(after[name])).any()}
  assert moved == {name for name, trains in run.program.trainable.items() if trains}


@pytest.mark.parametrize(("method", "kind", "task"), COMPUTED)
def test_identity_at_init_and_merged_equals_unmerged(method, kind, task):
  peft = plug.make("peft", Plug(method))
  run = biased_run(task, method, kind)
  model, batch = run.program.spec.model, run.loader.batch(0)["inputs"]
  boxed = jax.jit(model.init)(jax.random.key(0))
  attached = nn.unbox(peft.attach(boxed, jax.random.key(1)))
  hidden = jax.jit(model.hidden, static_argnames="intercept")
  base = hidden(nn.unbox(boxed), batch).hidden_BTD
  if peft.identity_at_init:
    np.testing.assert_allclose(hidden(attached, batch, intercept=peft.intercept)[0], base, atol=1e-6)
  base_names = tree.flatten(nn.unbox(boxed)).keys()
  grown = grow(attached, base_names)
  expected = hidden(grown, batch, intercept=peft.intercept).hidden_BTD
  if grown_names := tree.flatten(attached).keys() - base_names:
    without = tree.unflatten({name: x for name, x in tree.flatten(grown).items() if name not in grown_names})
    assert np.abs(hidden(without, batch).hidden_BTD - expected).max() > 5e-3, "what the method added does nothing"
  if not peft.merges:
    with pytest.raises(ValueError, match=method):
      peft.merge(grown)
  else:
    merged = hidden(peft.merge(grown), batch).hidden_BTD
    np.testing.assert_allclose(merged, expected, atol=2e-5)
    assert tree.flatten(peft.merge(grown)).keys() == base_names


@pytest.mark.parametrize("method", plug.names("peft"))
def test_seeds_share_one_executable(method):
  assert biased_run("classify", method, seed=1).program is biased_run("classify", method, seed=2).program


def test_frozen_parameters_have_no_optimizer_state():
  full, lora = make_run("classify"), make_run("classify", peft="lora(rank=2)")
  size = lambda run: tree.count(run.program.abstract.opt_state)
  assert size(full) > 2 * full.program.num_params["total"]
  assert size(lora) < 2.1 * lora.program.num_params["trainable"]


def test_bitfit_trains_biases_and_heads_only():
  trainable = biased_run("classify", "bitfit").program.trainable
  assert trainable["backbone/blocks/ffn/up/bias"] and trainable["head_classify/out/kernel"]
  assert {name.rsplit("/", 1)[1] for name, trains in trainable.items() if name.startswith("backbone/") and trains} == {"bias"}


def test_bitfit_refuses_a_model_without_biases():
  with pytest.raises(ValueError, match="^peft='bitfit': the backbone has no biases; accepted is a model with") as raised:
    make_run("classify", peft="bitfit")
  assert "\n" not in str(raised.value)


# One preset of every mechanism that a method meets: biases of queries only, shared keys, experts with and without slots.
@pytest.mark.parametrize("method", FOLDING)
@pytest.mark.parametrize(("family", "changes"), [
  ("qwen2.5-0.5b", {}), ("mixtral-8x7b", {}), ("mixtral-8x7b", {"expert_capacity": 8.0}),
])  # fmt: skip
def test_merged_equals_unmerged_with_every_mechanism(method, family, changes):
  targets = {"lora": "(targets=.*(query|down))", "dora": "(targets=.*(query|up|down))"}.get(method, "")
  model = shrunk(family, vocab_size=0, dropout_rate=0.0, **changes)
  run = make_run("causal", model=model, peft=method + targets)
  peft, model, batch = run.program.spec.peft, run.program.spec.model, run.loader.batch(0)["inputs"]
  boxed = jax.jit(model.init)(jax.random.key(0))
  grown = grow(nn.unbox(peft.attach(boxed, jax.random.key(1))), tree.flatten(nn.unbox(boxed)).keys())
  hidden = jax.jit(model.hidden, static_argnames="intercept")
  real = np.asarray(batch["segment_ids"]) > 0
  expected = np.asarray(hidden(grown, batch, intercept=peft.intercept).hidden_BTD)[real]
  np.testing.assert_allclose(np.asarray(hidden(peft.merge(grown), batch).hidden_BTD)[real], expected, atol=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_lora_trains_on_every_family(family):
  causal = plug.make("model", Plug(family)).causal
  run, _ = start("causal" if causal else "mlm", family, peft="lora")
  run.program.compile(run.loader.shapes(), [])
  state = run.init_state()
  for step in range(2):
    state, _ = run.program.train(state, run.loader.batch(step), run.noise_rng)
  products = {name: np.asarray(x) for name, x in tree.flatten(state.params).items() if name.endswith("/lora/default/b")}
  assert len(products) == 2
  assert all(np.isfinite(b).all() and b.any() for b in products.values())


def test_a_method_that_trains_heads_needs_a_task_with_one():
  with pytest.raises(ValueError, match="config.peft=Head.*: no parameter trains"):
    biased_run("embed", "head")
