"""Runs over quantised kernels: they are runs over the rounded base, with every method, on every mesh, and take less memory."""

import functools
import json
import math
import re

import jax
import numpy as np
import pytest

import lm
from lm import build, checkpoint, convert, record, saved, train, tree
from lm.infer.generate import Sampler, generate
from lm.quantizers.quantizer import PACKED
from lm.state import REFERENCE
from tests.conftest import SIZES, TEXTS, make_run, shrunk

NF4, INT8 = "nf4(block=8)", "int8(block=8)"
CUBE = {"data": 2, "fsdp": 2, "tensor": 2}
LORA = "lora(rank=2,targets=.*(query|out|down))"
DENSE = {"name": "bert-tiny", **SIZES, "bias": True, "init_stddev": 0.2}
METHODS = {
  "lora": LORA, "dora": LORA.replace("lora", "dora"), "adalora": "adalora(targets=.*(key|up))", "ia3": "ia3", "bitfit": "bitfit",
  "adapter": "adapter(bottleneck_dim=4)", "prefix": "prefix(num_prefix=3)", "prompt": "prompt(num_virtual_tokens=3)", "head": "head",
  "dropout": "lora(dropout_rate=0.5)",
}  # fmt: skip


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
  (value, slope), (expected, expected_slope) = (
    jax.jit(jax.value_and_grad(functools.partial(loss, each.program.spec.objective)))(params, frozen) for each, frozen in both
  )
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  largest = max(np.abs(x).max() for x in jax.tree.leaves(expected_slope))
  for name, x in tree.flatten(expected_slope).items():
    np.testing.assert_allclose(tree.flatten(slope)[name], x, atol=2e-5 * largest, err_msg=name)
  exact = plain.init_state()
  assert abs(float(jax.jit(functools.partial(loss, plain.program.spec.objective))(params, exact.frozen)) - expected) > 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_a_method_over_quantised_kernels_is_that_over_the_rounded_base(method):
  settings = {"peft": METHODS[method], "model": DENSE, "remat": "dots" if method == "dora" else "none"}
  agrees_with_the_rounded_base(make_run("classify", quantizer=NF4, **settings), make_run("classify", **settings))


@pytest.mark.parametrize(("family", "changes", "remat"), [
  ("mixtral-8x7b", {}, "none"), ("mixtral-8x7b", {"expert_capacity": 8.0}, "block"), ("qwen2.5-0.5b", {}, "full"),
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
  base = {name: x for name, x in tree.flatten(rounded(model.quantizer, state.frozen)).items()}
  np.testing.assert_allclose(tuned, hidden(tree.unflatten(base), batch).hidden_BTD, atol=2e-6)


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
  assert losses[-1] < losses[0]
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


def cost_of(num_layers, **settings):
  """(bytes of arguments, temporary bytes) of a train step."""
  model = {"name": "gpt2-tiny", "num_layers": num_layers, "model_dim": 128, "num_heads": 4, "ffn_dim": 512, "max_len": 64}
  run = make_run("causal", model=model, seq_len=16, batch_size=2, **settings)
  found = run.program.train_step(run.loader.batch(0)).memory_analysis()
  return np.array([found.argument_size_in_bytes, found.temp_size_in_bytes])


@pytest.mark.parametrize("method", ["lora(rank=2)", LORA.replace("lora", "dora")])
@pytest.mark.parametrize("remat", ["none", "dots"])
def test_a_layer_costs_its_codes_and_scales_and_is_never_kept_unpacked(method, remat):
  kernels, outputs = 4 * 128 * 128 + 3 * 128 * 512, 4 * 128 + 2 * 512 + 128
  plain, nf4, int8 = (
    (cost_of(4, peft=method, remat=remat, quantizer=each) - cost_of(2, peft=method, remat=remat, quantizer=each)) / 2
    for each in (None, "nf4(block=32)", "int8(block=32)")
  )
  scales = kernels / 32 + 4 * outputs
  assert plain[0] - nf4[0] == 4 * kernels - (kernels / 2 + scales)
  assert plain[0] - int8[0] == 4 * kernels - (kernels + scales)
  for found in (nf4, int8):
    assert found[1] <= plain[1]  # what the backward pass keeps of a layer
  # Were the kernels kept for the backward pass, a layer would cost at least the smallest matrix of a sublayer more.
  assert nf4[1] < cost_of(3, peft=method, remat=remat)[1] - cost_of(2, peft=method, remat=remat)[1] + 1


def test_the_count_of_parameters_and_flops_is_that_of_the_plain_run():
  plain, packed = (make_run("classify", peft="lora", quantizer=each).program for each in (None, NF4))
  assert packed.num_params == plain.num_params
  assert packed.flops_per_token(64) == plain.flops_per_token(64)


def test_the_reference_of_preferences_is_the_rounded_base():
  model = {"name": "gpt2-tiny", **SIZES, "tied": False}
  settings = {"model": model, "peft": "lora", "optimizer": {"name": "adamw", "learning_rate": 1e-2}}
  run = make_run("dpo", quantizer=NF4, **settings)
  assert {name for name in tree.flatten(run.program.abstract.frozen[REFERENCE])} == {"head_lm/out/kernel"}
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


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
  """Workdirs of a causal and a masked model to start from."""
  folder = tmp_path_factory.mktemp("bases")
  for kind, name in (("mlm", "bert-tiny"), ("causal", "gpt2-tiny")):
    train.train(make_run(kind, total_steps=2, model={"name": name, **SIZES, "init_stddev": 0.2}), folder / kind)
  return folder


def based(kind, base, **settings):
  start = {"model": None, "tokenizer": "", "init_from": str(base), "peft": LORA, "quantizer": NF4, "total_steps": 4}
  return make_run(kind, optimizer={"name": "adamw", "learning_rate": 1e-2}, **start | settings)


def test_it_resumes_bit_by_bit_from_a_checkpoint_of_what_trains(bases, tmp_path):
  settings = {"checkpoint_every": 2}
  whole = train.train(based("classify", bases / "mlm", **settings), tmp_path / "whole")
  stopped = iter([False, False, True])
  train.train(based("classify", bases / "mlm", **settings), tmp_path / "parts", stop=lambda: next(stopped, True))
  again = train.train(based("classify", bases / "mlm", **settings), tmp_path / "parts")
  for name in ("loss_sha256", "params_sha256", "metrics"):
    assert again[name] == whole[name], name
  _, kept = checkpoint.load_params(tmp_path / "whole" / "checkpoints")
  assert all(name.startswith("head_") or "/lora/" in name for name in tree.flatten(kept))
  manifest = record.read_manifest(tmp_path / "whole")
  assert manifest["base"]["sha256"] == record.read_summary(bases / "mlm")["params_sha256"]
  with pytest.raises(ValueError, match="quantizer.name: 'nf4' -> 'int8'|quantizer"):
    train.train(based("classify", bases / "mlm", quantizer=INT8, **settings), tmp_path / "parts")


@pytest.mark.parametrize("method", [LORA, "prefix(num_prefix=3)"])
@pytest.mark.parametrize("has_base", [True, False])
def test_what_it_trained_is_read_back_as_what_it_was(method, has_base, bases, tmp_path):
  run = based("classify", bases / "mlm", peft=method) if has_base else make_run("classify", peft=method, quantizer=NF4, model=DENSE)
  summary = train.train(run, tmp_path / "run")
  path = tmp_path / "run"
  found = lm.load(path, devices=jax.devices()[:1]).predict(TEXTS)
  loss = -np.mean([math.log(row["scores"][text.split()[1]]) for row, text in zip(found, TEXTS, strict=True)])
  assert loss == pytest.approx(summary["metrics"]["eval/validation/loss"], abs=2e-5)
  again = build.load_run(path, jax.devices()[:1])
  start = again.init_state()
  state = checkpoint.restore(
    path / "checkpoints" / str(summary["step"]),
    again.program.abstract_sharded if again.saves_frozen else again.program.abstract_sharded.replace(frozen=start.frozen),
    again.saves_frozen,
  )
  expected = again.program.spec.model.quantizer.unpacked(tree.flatten(tree.merge(state.params, state.frozen)))
  _, flat = saved.load_unmerged(path)
  for name, x in expected.items():
    np.testing.assert_array_equal(flat[name], x, err_msg=name)
  assert not [name for name in flat if f"/{PACKED}/" in name]


def test_its_adapter_is_a_lora_of_the_base_as_it_was_before_rounding(bases, tmp_path):
  targets = "lora(rank=2,alpha=6.0,targets=.*(query|down))"
  model = {"name": "llama-3.2-1b", **SIZES, "num_kv_heads": 2, "head_dim": 8, "vocab_size": 0, "rope_original_len": 32}
  train.train(make_run("causal", model=model, total_steps=1), tmp_path / "base")
  train.train(based("causal", tmp_path / "base", peft=targets), tmp_path / "run")
  convert.export_adapter(str(tmp_path / "run"), tmp_path / "adapter")
  assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LORA"
  (_, base), (_, merged), (_, read) = (saved.load_params(tmp_path / name) for name in ("base", "run", "adapter"))
  _, flat = saved.load_unmerged(tmp_path / "run")
  name = "backbone/blocks/ffn/down"
  product = 3 * flat[f"{name}/lora/default/a"] @ flat[f"{name}/lora/default/b"]
  np.testing.assert_allclose(read[f"{name}/kernel"], base[f"{name}/kernel"] + product, atol=1e-6)
  np.testing.assert_allclose(merged[f"{name}/kernel"], flat[f"{name}/kernel"] + product, atol=1e-6)
  assert 1e-4 < np.abs(flat[f"{name}/kernel"] - base[f"{name}/kernel"]).max()
