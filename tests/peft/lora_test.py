"""LoRA: its scale, its two ways to start, and noise that belongs to rows."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import checkpoint, convert, saved, train, tree
from lm.peft.lora import Lora
from tests.conftest import SIZES, make_run, shrunk
from tests.contracts.peft_test import biased_run, grow

DROPS = "lora(dropout_rate=0.5,targets=.*(query|out|up))"


def attach(options, seed=0):
  """(run, parameters before and after) of a tiny encoder."""
  run = biased_run("classify", options)
  boxed = jax.jit(run.program.spec.model.init)(jax.random.key(seed))
  return run, nn.unbox(boxed), nn.unbox(run.program.spec.peft.attach(boxed, jax.random.key(1)))


def test_lora_adds_its_product_times_alpha_by_rank():
  leaves = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 4))}
  merged = Lora(rank=2, alpha=6.0).merge({"query": {"kernel": jnp.ones((3, 4)), "lora": {"default": leaves}}})
  np.testing.assert_allclose(merged["query"]["kernel"], 1 + 6 / 2 * 2)


def test_lora_starts_from_other_values_in_every_module():
  boxed = jax.jit(make_run("classify").program.spec.model.init)(jax.random.key(0))
  attention = nn.unbox(Lora().attach(boxed, jax.random.key(1)))["backbone"]["blocks"]["attention"]
  query, value = (attention[name]["lora"]["default"]["a"] for name in ("query", "value"))
  assert query.shape == value.shape and (query != value).all()


def test_the_scale_of_rslora_is_alpha_by_the_root_of_the_rank():
  assert Lora(rank=16, alpha=4.0).scale == 0.25
  assert Lora(rank=16, alpha=4.0, scaling="alpha_over_sqrt_rank").scale == 1.0


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ("rank=0", "peft.rank=0: must be at least 1"),
    ("scaling=sqrt", "peft.scaling='sqrt': accepted are alpha_over_rank, alpha_over_sqrt_rank"),
    ("init=svd", "peft.init='svd': accepted are normal, pissa"),
    ("dropout_rate=1.0", "peft.dropout_rate=1.0: must be 0 or more and below 1"),
    ("init=pissa,rank=33", "peft.rank=33: with peft.init='pissa' at most 32, a side of a kernel"),
  ],
)
def test_a_bad_option_is_one_line(options, words):
  with pytest.raises(ValueError, match=words) as raised:
    biased_run("classify", f"lora({options})")
  assert "\n" not in str(raised.value)


def test_pissa_starts_from_the_principal_part_and_leaves_the_base_as_it_was():
  run, base, attached = attach("lora(init=pissa,rank=3,targets=.*(query|out|down))")
  model, peft, batch = run.program.spec.model, run.program.spec.peft, run.loader.batch(0)["inputs"]
  for module, num_inputs in (("attention/query", 1), ("attention/out", 2), ("ffn/down", 1)):
    name = f"backbone/blocks/{module}"
    before, after = (np.asarray(tree.flatten(params)[f"{name}/kernel"]) for params in (base, attached))
    before, after = (x.reshape(2, np.prod(x.shape[1 : 1 + num_inputs]), -1) for x in (before, after))
    u, s, v = np.linalg.svd(before)
    np.testing.assert_allclose(np.linalg.svd(after)[1][:, : s.shape[1] - 3], s[:, 3:], atol=1e-5)
    a, b = (np.asarray(tree.flatten(attached)[f"{name}/lora/default/{leaf}"]) for leaf in "ab")
    np.testing.assert_allclose(16 / 3 * a @ b, np.einsum("lir,lr,lro->lio", u[:, :, :3], s[:, :3], v[:, :3]), atol=1e-5)
    np.testing.assert_allclose(np.square(a).sum(1), np.square(b).sum(2), rtol=1e-4)  # both have the root of the values
  hidden = jax.jit(model.hidden, static_argnames="intercept")
  expected = hidden(base, batch).hidden_BTD
  np.testing.assert_allclose(hidden(attached, batch, intercept=peft.intercept).hidden_BTD, expected, atol=2e-5)
  for name, leaf in tree.flatten(peft.merge(attached)).items():
    np.testing.assert_allclose(leaf, tree.flatten(base)[name], atol=1e-6)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_what_pissa_trained_is_read_from_its_checkpoint_and_the_base(method, tmp_path):
  train.train(make_run("mlm", total_steps=1), tmp_path / "base")
  fast = {"name": "adamw", "learning_rate": 0.01}
  settings = {"model": None, "tokenizer": "", "init_from": str(tmp_path / "base"), "peft": f"{method}(init=pissa,rank=4)"}
  run = make_run("classify", total_steps=3, optimizer=fast, **settings)
  summary = train.train(run, tmp_path / "run")
  state = checkpoint.restore(
    tmp_path / "run" / "checkpoints" / "3", run.program.abstract_sharded.replace(frozen=run.init_state().frozen), False
  )
  whole = tree.merge(state.params, state.frozen)
  assert tree.sha256(whole) == summary["params_sha256"]
  _, flat = saved.load_params(tmp_path / "run")
  expected = tree.flatten(run.program.spec.peft.merge(whole))
  assert flat.keys() - expected.keys() == {name for name in flat if name.startswith("head_mlm/")}
  for name, leaf in expected.items():
    np.testing.assert_allclose(flat[name], leaf, atol=1e-6, err_msg=name)
  with pytest.raises(ValueError, match="export it without --adapter"):
    convert.export_adapter(str(tmp_path / "run"), tmp_path / "out")


def test_noise_is_of_the_row_and_of_training():
  run, base, attached = attach(DROPS)
  model, batch = run.program.spec.model, dict(run.loader.batch(0)["inputs"])
  params = grow(attached, tree.flatten(base).keys())
  same = batch | {name: np.broadcast_to(x[:1], x.shape) for name, x in batch.items() if name != "row"}
  hidden = jax.jit(model.hidden, static_argnames="intercept")
  of = lambda inputs, peft, **rng: np.asarray(hidden(params, inputs, intercept=peft.intercept, **rng).hidden_BTD)
  drops = run.program.spec.peft
  still = dataclasses.replace(drops, dropout_rate=0.0)
  np.testing.assert_array_equal(of(same, drops), of(same, still))
  np.testing.assert_array_equal(of(same, still, rng=jax.random.key(5)), of(same, still))
  noisy = of(same, drops, rng=jax.random.key(5))
  assert min(np.abs(noisy[i] - noisy[j]).max() for i in range(4) for j in range(i)) > 1e-2
  assert np.abs(noisy - of(same, drops, rng=jax.random.key(6))).max(axis=(1, 2)).min() > 1e-2
  turned = of(same | {"row": batch["row"][::-1].copy()}, drops, rng=jax.random.key(5))
  np.testing.assert_allclose(turned, noisy[::-1], atol=1e-6)


def test_dropout_of_experts_is_refused():
  model = shrunk("mixtral-8x7b", vocab_size=0, dropout_rate=0.0)
  make_run("causal", model=model, peft="lora(dropout_rate=0.1)")
  with pytest.raises(ValueError, match=r"peft.dropout_rate=0.1: peft.targets matches .*ffn/up; accepted for experts is 0"):
    make_run("causal", model=model, peft="lora(dropout_rate=0.1,targets=.*/up)")


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_noise_is_that_of_rows_however_they_are_split(remat):
  losses = {}
  for tokens in (None, 2 * 64):
    model = {"name": "bert-tiny", **SIZES, "dropout_rate": 0.0}
    run = make_run("mlm", model=model, peft=DROPS, tokens_per_device=tokens, remat=remat, total_steps=4)
    run.program.compile(run.loader.shapes(), [])
    state, found = run.init_state(), []
    for step in range(4):
      state, metrics = run.program.train(state, run.loader.batch(step), run.noise_rng)
      found.append(float(metrics["loss"]))
    losses[run.program.spec.accumulation] = found
  assert sorted(losses) == [1, 4]
  np.testing.assert_allclose(losses[4], losses[1], atol=2e-6)


MESHES = ((1, {}), (8, {"data": 2, "fsdp": 2, "tensor": 2}))


def test_pissa_starts_on_a_mesh_as_on_one_device():
  runs = [make_run("classify", devices=n, mesh=mesh, peft="lora(rank=4, init=pissa)") for n, mesh in MESHES]
  alone, split = (
    jax.device_get(tree.flatten(tree.merge(state.params, state.frozen))) for state in (run.init_state() for run in runs)
  )
  for name, value in alone.items():
    np.testing.assert_allclose(split[name], value, atol=1e-6, err_msg=name)
