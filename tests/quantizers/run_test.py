"""Runs over quantised kernels: they are runs over the rounded base, with every method, on every mesh, and take less memory."""

import functools
import math
import re

import jax
import numpy as np
import pytest

from lm import sharding, tree
from lm.infer.generate import Sampler, generate
from lm.quantizers.quantizer import PACKED
from lm.state import REFERENCE
from tests.conftest import SIZES, make_run, shrunk

slow = pytest.mark.slow
NF4, INT8 = "nf4(block=8)", "int8(block=8)"
CUBE = {"data": 2, "fsdp": 2, "tensor": 2}
LORA = "lora(rank=2,targets=.*(query|out|down))"
DENSE = {"name": "bert-tiny", **SIZES, "bias": True, "init_stddev": 0.2}
METHODS = {"lora": LORA, "dora": LORA.replace("lora", "dora"), "adalora": "adalora(targets=.*(key|up))", "ia3": "ia3"}
METHODS |= {"dropout": "lora(dropout_rate=0.5)", "prefix": "prefix(num_prefix=3)", "prompt": "prompt(num_virtual_tokens=3)"}
METHODS |= {"adapter": "adapter(bottleneck_dim=4)", "bitfit": "bitfit", "head": "head"}
COVER = ("lora", "dora", "ia3", "dropout", "prefix")  # each meets a kernel in another way


def moved(params, scale=0.1):
  """Parameters moved by noise, so that nothing that a method adds is at its start."""
  flat = tree.flatten(params)
  noise = lambda i, x: scale * jax.random.normal(jax.random.fold_in(jax.random.key(7), i), x.shape)
  return tree.unflatten({name: x + noise(i, x) for i, (name, x) in enumerate(flat.items())})


def rounded(quantizer, frozen):
  """Frozen parameters with kernels in place of what they were packed into."""
  return tree.unflatten(quantizer.unpacked(tree.flatten(frozen)))


def agrees_with_the_rounded_base(run, plain):
  """Loss and gradient of a quantised run are those of the plain one whose kernels were rounded."""
  state, quantizer, batch = run.init_state(), run.program.spec.model.quantizer, run.loader.batch(0)
  params = moved(state.params)

  def loss(objective, params, frozen):
    sums = objective.sums(tree.merge(params, frozen), batch)
    return sum(weight * sums[name] for name, weight in objective.coefficients.items())

  both = [(run, state.frozen), (plain, rounded(quantizer, state.frozen))]
  with sharding.use(run.mesh):
    (value, slope), (expected, expected_slope) = (
      jax.jit(jax.value_and_grad(functools.partial(loss, each.program.spec.objective)))(params, frozen) for each, frozen in both
    )
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  largest = max(np.abs(x).max() for x in jax.tree.leaves(expected_slope))
  for name, x in tree.flatten(expected_slope).items():
    np.testing.assert_allclose(tree.flatten(slope)[name], x, atol=2e-5 * largest, err_msg=name)
  exact = plain.init_state()
  assert abs(float(jax.jit(functools.partial(loss, plain.program.spec.objective))(params, exact.frozen)) - expected) > 1e-4


@pytest.mark.parametrize("method", [pytest.param(name, marks=[] if name in COVER else slow) for name in METHODS])
def test_a_method_over_quantised_kernels_is_that_over_the_rounded_base(method):
  settings = {"peft": METHODS[method], "model": DENSE, "remat": "dots" if method == "dora" else "none"}
  agrees_with_the_rounded_base(make_run("classify", quantizer=NF4, **settings), make_run("classify", **settings))


@pytest.mark.parametrize(("family", "changes", "remat"), [
  ("mixtral-8x7b", {}, "none"), pytest.param("mixtral-8x7b", {"expert_capacity": 8.0}, "block", marks=slow),
  ("qwen2.5-0.5b", {}, "full"),
])  # fmt: skip
def test_it_is_so_with_every_mechanism_and_policy(family, changes, remat):
  model = shrunk(family, vocab_size=0, dropout_rate=0.0, init_stddev=0.2, **changes)
  settings = {"peft": LORA, "model": model, "remat": remat}
  agrees_with_the_rounded_base(make_run("causal", quantizer=INT8, **settings), make_run("causal", **settings))


def test_the_start_is_the_model_on_the_rounded_base():
  run = make_run("classify", peft="dora", quantizer=NF4, model=DENSE)
  state, batch, model = run.init_state(), run.loader.batch(0)["inputs"], run.program.spec.model
  hidden = jax.jit(model.hidden, static_argnames="intercept")
  tuned = hidden(tree.merge(state.params, state.frozen), batch, intercept=run.program.spec.peft.intercept).hidden_BTD
  base = rounded(model.quantizer, state.frozen)
  np.testing.assert_allclose(tuned, hidden(base, batch).hidden_BTD, atol=2e-6)


def steps(run, count=4):
  """State and losses of the first steps."""
  run.program.compile(run.loader.shapes(), [])
  state, found = run.init_state(), []
  for step in range(count):
    state, metrics = run.program.train(state, run.loader.batch(step), run.noise_rng)
    found.append(float(metrics["loss"]))
  return state, found


@functools.cache
def reference():
  """The start and the losses of a run on one device."""
  run = make_run("mlm", peft=LORA, quantizer=NF4, model=DENSE)
  before = jax.device_get(run.init_state())
  state, losses = steps(run)
  return before, jax.device_get(state), losses


def test_only_what_trains_moves_and_embeddings_norms_and_heads_keep_their_type():
  before, after, losses = reference()
  assert len(set(losses)) == len(losses)
  jax.tree.map(np.testing.assert_array_equal, after.frozen, before.frozen)
  old, new = (tree.flatten(state.params) for state in (before, after))
  assert all((old[name] != new[name]).any() for name in old)
  packed = {name for name in tree.flatten(before.frozen) if f"/{PACKED}/" in name}
  assert len(packed) == 7 * 3
  assert all(x.dtype == np.float32 for name, x in {**old, **tree.flatten(before.frozen)}.items() if name not in packed)


@pytest.mark.parametrize("settings", [
  {"devices": 8, "mesh": CUBE}, {"devices": 8, "mesh": {"data": 1, "fsdp": 4, "tensor": 2}, "remat": "dots"},
  {"tokens_per_device": 128}, {"remat": "full", "scan_unroll": 2},
], ids=str)  # fmt: skip
def test_losses_are_those_of_one_device_on_a_mesh_in_micro_batches_and_recomputed(settings):
  before, _, losses = reference()
  run = make_run("mlm", peft=LORA, quantizer=NF4, model=DENSE, **settings)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(run.init_state().frozen), before.frozen)
  np.testing.assert_allclose(steps(run)[1], losses, atol=1e-5)


@pytest.mark.parametrize(("quantizer", "codes"), [(NF4, "u8"), (INT8, "s8")])
def test_what_is_split_to_save_memory_is_split_packed_and_travels_packed(quantizer, codes):
  mesh = {"data": 1, "fsdp": 4, "tensor": 2}
  run = make_run("causal", peft="lora(rank=2)", quantizer=quantizer, devices=8, mesh=mesh, model={"name": "gpt2-tiny", **SIZES})
  for name, leaf in tree.flatten(run.program.abstract_sharded.frozen).items():
    if name.endswith("/codes"):
      assert leaf.size // math.prod(leaf.sharding.shard_shape(leaf.shape)) == 8, name
  text = run.program.train_step(run.loader.batch(0)).as_text()
  gathered = re.findall(r"= (\w+)\[([\d,]+)\][^ ]* all-gather(?:-start)?\(", text)
  weights = [math.prod(map(int, dims.split(","))) for kind, dims in gathered if kind == codes]
  assert len(weights) >= 2 * 7  # of seven kernels, forward and backward
  kernels = {(32, 2, 8), (32, 16), (2, 8, 32), (16, 32), (32, 32), (32, 32)}
  assert not [dims for kind, dims in gathered if kind == "f32" and tuple(map(int, dims.split(","))) in kernels]


@functools.cache
def cost_of_a_layer(method, quantizer, remat):
  """(bytes of arguments, temporary bytes) that a layer more adds to a train step."""

  def cost(num_layers):
    model = {"name": "gpt2-tiny", "num_layers": num_layers, "model_dim": 128, "num_heads": 4, "ffn_dim": 512, "max_len": 64}
    run = make_run("causal", model=model, seq_len=16, batch_size=2, peft=method, quantizer=quantizer, remat=remat)
    found = run.program.train_step(run.loader.batch(0)).memory_analysis()
    return np.array([found.argument_size_in_bytes, found.temp_size_in_bytes])

  return (cost(4) - cost(2)) / 2


@pytest.mark.parametrize(("method", "quantizer", "remat"), [
  ("lora", "nf4", "none"), ("lora", "int8", "none"), ("dora", "nf4", "none"), pytest.param("dora", "nf4", "dots", marks=slow),
])  # fmt: skip
def test_a_layer_costs_its_codes_and_scales_and_is_never_kept_unpacked(method, quantizer, remat):
  method = LORA.replace("lora", method)
  kernels, outputs = 4 * 128 * 128 + 3 * 128 * 512, 4 * 128 + 2 * 512 + 128
  plain, packed = (cost_of_a_layer(method, each, remat) for each in (None, f"{quantizer}(block=32)"))
  codes = kernels / 2 if quantizer == "nf4" else kernels
  assert plain[0] - packed[0] == 4 * kernels - (codes + kernels / 32 + 4 * outputs)  # a byte a scale, fp32 for an output
  assert (
    packed[1] <= plain[1] + 4 * 128 * 128 - 1
  )  # what the backward pass keeps, of which nothing is a kernel: not the smallest


def test_the_count_of_parameters_and_flops_is_that_of_the_plain_run():
  plain, packed = (make_run("classify", peft="lora", quantizer=each).program for each in (None, NF4))
  assert packed.num_params == plain.num_params
  assert packed.flops_per_token(64) == plain.flops_per_token(64)


def test_the_reference_of_preferences_is_the_rounded_base():
  model = {"name": "gpt2-tiny", **SIZES, "tied": False}
  settings = {"model": model, "peft": "lora", "optimizer": {"name": "adamw", "learning_rate": 1e-2}}
  run = make_run("dpo", quantizer=NF4, **settings)
  assert not tree.flatten(run.program.abstract.frozen[REFERENCE])
  _, losses = steps(run)
  assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
  assert abs(losses[-1] - math.log(2)) > 1e-4


def test_decoding_with_a_cache_is_the_full_forward():
  run = make_run("causal", peft="lora", quantizer=NF4, model={"name": "gpt2-tiny", **SIZES, "init_stddev": 0.5})
  state, model = run.init_state(), run.program.spec.model
  plain = rounded(model.quantizer, state.frozen)
  texts = [[7, 8, 9], [12]]
  answers = [
    generate(model, tree.merge(state.params, frozen), texts, 3, Sampler(temperature=0, max_new_tokens=8))
    for frozen in (state.frozen, plain)
  ]
  assert answers[0] == answers[1]
