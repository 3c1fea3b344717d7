"""Where adapters stand, what they compute, what trains beside them, and that a mesh changes nothing."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm import build, evaluate, plug, train, tree
from lm.config import Plug
from lm.models.cache import make_cache
from lm.models.ffn import Ffn
from lm.models.model import Model
from lm.peft.adapter import SUBLAYERS, Adapter
from tests.conftest import LABELS, SIZES, TEXTS, make_run, shrunk

BIASED = {"name": "gpt2-tiny", **SIZES, "bias": True}


def make_model(name, **changes):
  options = {"vocab_size": 64, **shrunk(name, **changes)}
  cfg = plug.make("model", Plug(options.pop("name"), tuple(options.items())))
  return Model(cfg, (), "float32")


def make_inputs(num_rows=2, length=8):
  tokens = np.random.default_rng(0).integers(1, 64, (num_rows, length)).astype(np.int32)
  positions = np.tile(np.arange(length, dtype=np.int32), (num_rows, 1))
  return {"tokens": tokens, "segment_ids": np.ones_like(tokens), "positions": positions, "row": np.arange(num_rows)}


def attached(model, adapter):
  boxed = adapter.attach(jax.jit(model.init)(jax.random.key(0)), jax.random.key(1))
  return {name: box for name, box in tree.flatten(boxed).items() if "/adapter/" in name}, nn.unbox(boxed)


def grow(params, only="/adapter/"):
  """Up projections are zero at the start: noise in the adapters' leaves."""
  noise = lambda name, x: 0.3 * np.random.default_rng(len(name)).normal(size=x.shape).astype("f4")
  return tree.map_named(lambda name, x: x + noise(name, x) if only in name else x, params)


@pytest.mark.parametrize("kind", SUBLAYERS)
def test_leaves_are_stacked_and_carry_the_name_of_the_adapter(kind):
  boxes, _ = attached(make_model("gpt2-tiny", num_layers=3), Adapter(kind=kind, bottleneck_dim=5, adapter="mine"))
  found = {name.removeprefix("backbone/blocks/"): (box.value.shape, box.names) for name, box in boxes.items()}
  expected = {
    "down/kernel": ((3, 32, 5), ("layers", "embed", "rank")),
    "down/bias": ((3, 5), ("layers", "rank")),
    "up/kernel": ((3, 5, 32), ("layers", "rank", "embed")),
    "up/bias": ((3, 32), ("layers", "embed")),
  }
  assert found == {f"{module}/adapter/mine/{leaf}": value for module in SUBLAYERS[kind] for leaf, value in expected.items()}


def test_an_adapter_stands_behind_the_sublayer_with_a_residual_of_its_own():
  cfg = make_model("gpt2-tiny").cfg
  module = Ffn(cfg, jnp.float32)
  x_BTD = jax.random.normal(jax.random.key(0), (2, 3, 32))
  params = nn.unbox(module.init(jax.random.key(1), x_BTD))["params"]
  rng = np.random.default_rng(0)
  down, up, b, c = (rng.normal(size=shape).astype("f4") for shape in ((32, 4), (4, 32), (4,), (32,)))
  leaves = {"mine": {"down": {"kernel": down, "bias": b}, "up": {"kernel": up, "bias": c}}}
  with nn.intercept_methods(Adapter(activation="relu", adapter="mine").intercept):
    found = module.apply({"params": params | {"adapter": leaves}}, x_BTD)
  y_BTD = np.asarray(module.apply({"params": params}, x_BTD))
  np.testing.assert_allclose(found, y_BTD + np.maximum(y_BTD @ down + b, 0) @ up + c, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2-tiny", "bert-tiny", "mixtral-8x7b", "gemma-2-2b"])
def test_the_model_is_exactly_what_it_was_until_an_adapter_of_any_sublayer_moves(name):
  model, inputs = make_model(name), make_inputs()
  hidden = jax.jit(model.hidden, static_argnames="intercept")
  for kind, sublayers in SUBLAYERS.items():
    adapter = Adapter(kind=kind, bottleneck_dim=4)
    _, params = attached(model, adapter)
    base, begun = hidden(params, inputs), hidden(params, inputs, intercept=adapter.intercept)
    np.testing.assert_array_equal(begun.hidden_BTD, base.hidden_BTD)
    assert begun.router.keys() == base.router.keys()
    for sublayer in sublayers:
      grown = hidden(grow(params, f"{sublayer}/adapter/"), inputs, intercept=adapter.intercept)
      assert np.abs(grown.hidden_BTD - base.hidden_BTD).max() > 1e-2


def test_cached_decoding_reads_the_adapters():
  model, inputs, adapter = make_model("gpt2-tiny"), make_inputs(), Adapter(bottleneck_dim=4)
  params = grow(attached(model, adapter)[1])
  whole = model.hidden(params, inputs, intercept=adapter.intercept).hidden_BTD
  cache, steps = make_cache(model.cfg, 2, 8, jnp.float32), []
  for t in range(8):
    part = {key: value if key == "row" else value[:, t : t + 1] for key, value in inputs.items()}
    out = model.hidden(params, part, intercept=adapter.intercept, cache=cache)
    cache, steps = out.cache, [*steps, out.hidden_BTD]
  np.testing.assert_allclose(jnp.concatenate(steps, 1), whole, atol=1e-4)


def test_norms_train_only_when_they_are_asked_for():
  names = {asked: make_run("classify", peft=f"adapter(train_norms={asked})").program.trainable for asked in (True, False)}
  trains = {asked: {name for name, value in found.items() if value} for asked, found in names.items()}
  norms = {name for name in names[True] if name.startswith("backbone/") and "norm/" in name}
  assert {"backbone/final_norm/scale", "backbone/blocks/ffn_norm/scale"} <= norms
  assert trains[True] - trains[False] == norms
  assert all("/adapter/default/" in name or name.startswith("head_") for name in trains[False])


def test_another_adapter_of_the_same_base_is_frozen():
  assert Adapter(adapter="a").trainable("backbone/blocks/ffn/adapter/a/up/bias")
  assert not Adapter(adapter="a").trainable("backbone/blocks/ffn/adapter/b/up/bias")


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"kind": "hulsby"}, "peft.kind='hulsby': accepted are houlsby, pfeiffer"),
    ({"activation": "tanh"}, "peft.activation='tanh': accepted are gelu, gelu_tanh, relu, relu_squared, silu"),
    ({"bottleneck_dim": 0}, "peft.bottleneck_dim=0: must be at least 1"),
    ({"adapter": "a/b"}, "peft.adapter='a/b': accepted are letters, digits, '_', '.' and '-'"),
  ],
)
def test_bad_options_are_one_line(options, message):
  with pytest.raises(ValueError) as raised:
    Adapter(**options)
  assert str(raised.value) == message


def test_a_workdir_is_evaluated_and_predicts_with_its_adapters_and_is_no_base_of_plain_parameters(tmp_path):
  base, tuned = tmp_path / "base", tmp_path / "tuned"
  train.train(make_run("mlm", total_steps=1), base)
  settings = {"model": None, "tokenizer": "", "total_steps": 3, "eval_every": 3}
  peft = "adapter(kind=pfeiffer, bottleneck_dim=4, train_norms=true)"
  summary = train.train(make_run("classify", init_from=str(base), peft=peft, **settings), tuned)
  found = evaluate.evaluate_workdir(build.load_run(tuned, jax.devices()[:1]), tuned, "last")
  measured = {name: value for name, value in summary["metrics"].items() if name.startswith("eval/validation")}
  assert measured and {name: found["metrics"][name] for name in measured} == pytest.approx(measured, rel=1e-6)
  predicted = lm.load(tuned, devices=jax.devices()[:1]).predict(TEXTS)
  loss = -np.mean([np.log(row["scores"][label]) for row, label in zip(predicted, LABELS, strict=True)])
  assert loss == pytest.approx(measured["eval/validation/loss"], abs=1e-5)
  with pytest.raises(ValueError, match="^peft='adapter': an adapter is not linear and cannot be merged$"):
    make_run("classify", init_from=str(tuned), **settings)


def test_a_mesh_changes_nothing():
  def losses(devices, **settings):
    run = make_run(devices=devices, peft="adapter(bottleneck_dim=4)", model=BIASED, **settings)
    run.program.compile(run.loader.shapes(), [])
    state, found = run.init_state(), []
    for step in range(4):
      state, metrics = run.program.train(state, run.loader.batch(step), run.noise_rng)
      found.append(float(metrics["loss"]))
    return found

  alone = losses(1)
  assert alone[-1] < alone[0] - 1e-3
  np.testing.assert_allclose(losses(8, mesh={"data": 1, "fsdp": 2, "sequence": 2, "tensor": 2}), alone, atol=1e-4)
