"""Experts against a loop over tokens and choices in float64: outputs, gradients, losses, drops, rows, devices, adapters."""

import dataclasses
import re
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm import config, sharding, tree
from lm.models.moe import Experts, router_sums
from lm.models.transformer_config import TransformerConfig
from lm.optim.muon import muon_dims
from lm.peft.lora import Lora

B, T, D, F, E, k = 8, 12, 16, 8, 4, 2
CFG = TransformerConfig(
  1, D, 2, F, T, True, bias=False, gated=True, activation="silu", num_experts=E, experts_per_token=k, init_stddev=0.5
)
AMPLE = E / k  # a capacity of T slots per expert
LAYOUTS = (
  {"data": 8},
  {"data": 2, "fsdp": 2, "tensor": 2},
  {"data": 2, "expert": 4},
  {"sequence": 2, "tensor": 2, "expert": 2},
)


def make(**changes):
  """(module, boxed parameters, x [B, T, D], real [B, T] with padding behind row 1's seventh token)."""
  module = Experts(dataclasses.replace(CFG, **changes), jnp.float32)
  x_BTD = jax.random.normal(jax.random.key(1), (B, T, D))
  real_BT = jnp.ones((B, T)).at[1, 7:].set(0)
  return module, module.init(jax.random.key(0), x_BTD, real_BT), x_BTD, real_BT


def value(module, params, x_BTD, real_BT):
  return jax.jit(module.apply)(nn.unbox(params), x_BTD, real_BT)


def scalar(y_BTD, sums, real_BT):
  """Reads every real token and both router losses."""
  weight_BTD = np.cos(np.arange(y_BTD.size, dtype=np.float32)).reshape(y_BTD.shape) * real_BT[:, :, None]
  return (y_BTD * weight_BTD).sum() + (sums["balance_B"] + 0.1 * sums["z_B"]).sum()


def gradients(module, params, x_BTD, real_BT):
  """By name; that of the inputs is "x"."""
  loss = lambda params, x_BTD: scalar(*module.apply(params, x_BTD, real_BT), real_BT)
  grads = jax.jit(jax.grad(loss, (0, 1)))(nn.unbox(params), x_BTD)
  return {"x": grads[1]} | tree.flatten(grads[0]["params"])


def reference(cfg, params, x_BTD, real_BT):
  """(y, sums, whether a pair was kept [B, T, k]): tokens of a row in turn, their choices in turn, all in float64."""
  p = {name: np.asarray(x, np.float64) for name, x in tree.flatten(nn.unbox(params)["params"]).items()}
  x_BTD, real_BT = np.asarray(x_BTD, np.float64), np.asarray(real_BT)
  slots = int(np.ceil(T * k / E * cfg.expert_capacity)) if cfg.expert_capacity else T
  y_BTD, kept_BTk = np.zeros_like(x_BTD), np.zeros((B, T, k), bool)
  balance_B, z_B = np.zeros(B), np.zeros(B)
  for b in range(B):
    used, pairs, probs, n = np.zeros(E, int), np.zeros(E), np.zeros(E), 0
    for t in (t for t in range(T) if real_BT[b, t]):
      logits = x_BTD[b, t] @ p["router/kernel"]
      exp = np.exp(logits - logits.max())
      prob = exp / exp.sum()
      chosen = np.argsort(-prob)[:k]
      gates = prob[chosen] / (prob[chosen].sum() if cfg.renormalize_gates else 1)
      for j, e in enumerate(chosen):
        pairs[e] += 1
        if used[e] < slots:
          used[e] += 1
          kept_BTk[b, t, j] = True
          up = x_BTD[b, t] @ p["up/kernel"][e]
          a = x_BTD[b, t] @ p["gate/kernel"][e] if cfg.gated else up
          h = a / (1 + np.exp(-a)) * (up if cfg.gated else 1)
          y_BTD[b, t] += gates[j] * (h @ p["down/kernel"][e])
      probs, n = probs + prob, n + 1
      z_B[b] += (np.log(exp.sum()) + logits.max()) ** 2
    balance_B[b] = n * E * sum(pairs[e] / (n * k) * probs[e] / n for e in range(E))
  return y_BTD, {"balance_B": balance_B, "z_B": z_B}, kept_BTk


@pytest.mark.parametrize(
  "changes",
  [{}, {"expert_capacity": AMPLE}, {"expert_capacity": 0.7}, {"renormalize_gates": False}, {"gated": False}],
  ids=str,
)
def test_outputs_and_sums_are_those_of_a_loop(changes):
  module, params, x_BTD, real_BT = make(**changes)
  y_BTD, sums = value(module, params, x_BTD, real_BT)
  expected, expected_sums, kept_BTk = reference(module.cfg, params, x_BTD, real_BT)
  real = np.asarray(real_BT, bool)
  assert kept_BTk[real].all() == (module.cfg.expert_capacity in (0, AMPLE))
  np.testing.assert_allclose(np.asarray(y_BTD)[real], expected[real], atol=1e-5)
  for name, sums_B in expected_sums.items():
    assert sums[name].dtype == jnp.float32
    np.testing.assert_allclose(sums[name], sums_B, rtol=1e-5)


@pytest.mark.parametrize("capacity", [0.0, AMPLE, 0.7])
def test_gradients_are_those_of_every_expert_for_every_token(capacity):
  module, params, x_BTD, real_BT = make(expert_capacity=capacity)
  kept_BTk = jnp.asarray(reference(module.cfg, params, x_BTD, real_BT)[2], jnp.float32)

  def dense(params, x_BTD, real_BT):
    p = tree.flatten(params["params"])
    logits_BTE = x_BTD @ p["router/kernel"]
    gates_BTk, chosen_BTk = jax.lax.top_k(jax.nn.softmax(logits_BTE), k)
    weights_BTk = gates_BTk / gates_BTk.sum(-1, keepdims=True) * kept_BTk
    h_BTEF = jax.nn.silu(jnp.einsum("btd,edf->btef", x_BTD, p["gate/kernel"]))
    h_BTEF *= jnp.einsum("btd,edf->btef", x_BTD, p["up/kernel"])
    every_BTED = jnp.einsum("btef,efd->bted", h_BTEF, p["down/kernel"])
    y_BTD = jnp.einsum("bted,btke,btk->btd", every_BTED, jax.nn.one_hot(chosen_BTk, E), weights_BTk)
    return y_BTD, router_sums(logits_BTE, chosen_BTk, real_BT)

  found = gradients(module, params, x_BTD, real_BT)
  expected = gradients(types.SimpleNamespace(apply=dense), params, x_BTD, real_BT)
  assert found.keys() == expected.keys() == {"x", *(f"{name}/kernel" for name in ("router", "gate", "up", "down"))}
  for name in found:
    assert np.abs(expected[name]).max() > 0.1
    np.testing.assert_allclose(found[name], expected[name], atol=2e-5, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("capacity", [0.0, 0.7])
def test_gradients_are_finite_differences_of_the_loop(capacity):
  module, params, x_BTD, real_BT = make(expert_capacity=capacity)
  direction = jax.tree.map(lambda x: np.sin(np.arange(x.size)).reshape(x.shape), nn.unbox(params))

  def along(step):
    moved = jax.tree.map(lambda x, d: np.asarray(x, np.float64) + step * d, nn.unbox(params), direction)
    y_BTD, sums, kept_BTk = reference(module.cfg, moved, x_BTD, real_BT)
    return scalar(y_BTD, sums, np.asarray(real_BT)), kept_BTk

  (above, kept_above), (below, kept_below) = along(1e-6), along(-1e-6)
  assert (kept_above == kept_below).all()
  grads = gradients(module, params, x_BTD, real_BT)
  slope = sum((np.asarray(grads[name], np.float64) * d).sum() for name, d in tree.flatten(direction["params"]).items())
  assert slope == pytest.approx((above - below) / 2e-6, rel=1e-4)


def test_ample_capacity_drops_nothing():
  dropless, slots = (make(expert_capacity=capacity) for capacity in (0.0, AMPLE))
  real = np.asarray(dropless[3], bool)
  np.testing.assert_allclose(value(*slots)[0][real], value(*dropless)[0][real], atol=1e-5)
  found = gradients(*slots)
  for name, grad in gradients(*dropless).items():
    np.testing.assert_allclose(found[name], grad, atol=1e-5, rtol=1e-5, err_msg=name)


def test_a_full_expert_drops_later_tokens_and_padding_takes_no_slot():
  module, params, x_BTD, _ = make(expert_capacity=0.7)
  same_BTD = jnp.broadcast_to(x_BTD[:1, :1], x_BTD.shape)  # every token chooses the same two experts, of five slots each
  real_BT = jnp.ones((B, T)).at[:, :3].set(0)
  served = lambda real_BT: np.abs(value(module, params, same_BTD, real_BT)[0][0]).max(-1) > 0
  assert served(jnp.ones((B, T))).tolist() == [True] * 5 + [False] * 7
  assert served(real_BT).tolist() == [False] * 3 + [True] * 5 + [False] * 4


@pytest.mark.parametrize("capacity", [0.0, 0.7])
def test_a_token_reads_neither_other_rows_nor_later_tokens(capacity):
  module, params, x_BTD, real_BT = make(expert_capacity=capacity)
  other_BTD = x_BTD.at[1:].set(-x_BTD[1:]).at[0, 9:].set(7 * x_BTD[0, 9:])
  (y_BTD, sums), (other_y_BTD, other_sums) = (value(module, params, x, real_BT) for x in (x_BTD, other_BTD))
  np.testing.assert_allclose(other_y_BTD[0, :9], y_BTD[0, :9], atol=1e-6)
  assert np.abs(other_y_BTD - y_BTD)[1:].max() > 0.1
  third = value(module, params, x_BTD.at[1:].set(0), real_BT)[1]
  assert all(third[name][0] == sums[name][0] != other_sums[name][0] for name in sums)


def test_padding_adds_nothing_to_sums_and_a_row_of_it_has_zero():
  module, params, x_BTD, real_BT = make()
  noisy_BTD = jnp.where(real_BT[:, :, None] > 0, x_BTD, 100.0)
  expected = value(module, params, x_BTD, real_BT.at[2].set(0))[1]
  found = value(module, params, noisy_BTD, real_BT.at[2].set(0).astype(bool))[1]
  for name in found:
    np.testing.assert_array_equal(found[name], expected[name])
    assert expected[name][2] == 0


def test_balance_is_one_per_token_when_even_and_e_by_k_when_all_choose_alike():
  chosen_BTk = jnp.asarray([[[t % E, (t + 1) % E] for t in range(T)]])
  ones_BT = jnp.ones((1, T))
  assert router_sums(jnp.zeros((1, T, E)), chosen_BTk, ones_BT)["balance_B"] == pytest.approx(T)
  alike_BTE = jnp.broadcast_to(jnp.asarray([50.0, 50.0, 0.0, 0.0]), (1, T, E))
  assert router_sums(alike_BTE, jnp.zeros_like(chosen_BTk).at[..., 1].set(1), ones_BT)["balance_B"] == pytest.approx(T * E / k)


@pytest.mark.parametrize("sizes", LAYOUTS, ids=str)
@pytest.mark.parametrize("capacity", [0.0, 0.7])
def test_eight_devices_give_what_one_gives(capacity, sizes):
  module, boxed, x_BTD, real_BT = make(expert_capacity=capacity)
  expected, expected_grads = value(module, boxed, x_BTD, real_BT), gradients(module, boxed, x_BTD, real_BT)
  mesh = sharding.make_mesh(config.Mesh(**sizes), jax.devices())
  params = jax.device_put(nn.unbox(boxed), sharding.param_shardings(nn.unbox(boxed), sharding.by_name(boxed, mesh), mesh))
  kernel = params["params"]["up"]["kernel"]
  parts = {axis: sizes.get(axis, 1) for axis in sharding.AXES}
  assert kernel.addressable_shards[0].data.shape == (
    E // parts["expert"], D // (parts["fsdp"] * parts["sequence"]), F // parts["tensor"],
  )  # fmt: skip
  with sharding.use(mesh):
    batch = sharding.place((x_BTD, real_BT), mesh)
    (y_BTD, sums), grads = value(module, params, *batch), gradients(module, params, *batch)
  np.testing.assert_allclose(y_BTD, expected[0], atol=1e-5)
  for name in sums:
    np.testing.assert_allclose(sums[name], expected[1][name], rtol=1e-5)
  for name in grads:
    np.testing.assert_allclose(grads[name], expected_grads[name], atol=2e-5, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("capacity", [0.0, 0.7])
def test_tokens_stay_on_their_devices(capacity):
  module, boxed, x_BTD, real_BT = make(expert_capacity=capacity)
  mesh = sharding.make_mesh(config.Mesh(data=8), jax.devices())
  params = jax.device_put(nn.unbox(boxed), sharding.replicated(mesh))
  with sharding.use(mesh):
    batch = sharding.place((x_BTD, real_BT), mesh)
    text = jax.jit(module.apply).lower(params, *batch).compile().as_text()
  assert not [op for op in ("all-gather", "all-to-all", "all-reduce", "collective-permute") if op in text]


@pytest.mark.parametrize("sizes", [{"expert": 4}, {"expert": 2, "tensor": 2}], ids=str)
def test_slots_travel_to_their_experts_and_no_kernel_is_gathered(sizes):
  module, boxed, x_BTD, real_BT = make(expert_capacity=0.7)
  mesh = sharding.make_mesh(config.Mesh(data=1, **sizes), jax.devices()[:4])
  params = jax.device_put(nn.unbox(boxed), tree.unflatten(sharding.by_name(boxed, mesh)))
  with sharding.use(mesh):
    batch = sharding.place((x_BTD, real_BT), mesh)
    text = jax.jit(jax.grad(lambda *arguments: module.apply(*arguments)[0].sum())).lower(params, *batch).compile().as_text()
  assert "all-to-all" in text
  gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather\(", text)
  assert not [shape for shape in gathered if shape.startswith(f"{E},") and shape.count(",") == 2]


def test_a_batch_that_does_not_fill_the_mesh_is_sorted_as_one():
  module, boxed, x_BTD, real_BT = make()
  params = nn.unbox(boxed)
  expected = value(module, params, x_BTD[:3], real_BT[:3])[0]
  with sharding.use(sharding.make_mesh(config.Mesh(data=8), jax.devices())):
    found = value(module, params, x_BTD[:3], real_BT[:3])[0]
  np.testing.assert_allclose(found, expected, atol=1e-6)


class Stack(nn.Module):
  """Two layers of experts as the transformer stacks them: scanned and rematerialised."""

  cfg: TransformerConfig

  @nn.compact
  def __call__(self, x_BTD, real_BT):
    class Block(nn.Module):
      cfg: TransformerConfig

      @nn.compact
      def __call__(self, x_BTD, real_BT):
        y_BTD, sums = Experts(self.cfg, jnp.float32, name="ffn")(x_BTD, real_BT)
        return x_BTD + y_BTD, sums

    scanned = nn.scan(
      nn.remat(Block, prevent_cse=False), variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast,
      length=2, metadata_params={nn.PARTITION_NAME: "layers"},
    )  # fmt: skip
    return scanned(self.cfg, name="blocks")(x_BTD, real_BT)


def make_stack(capacity):
  module = Stack(dataclasses.replace(CFG, expert_capacity=capacity))
  _, _, x_BTD, real_BT = make()
  params = {"backbone": module.init(jax.random.key(0), x_BTD, real_BT)["params"]}
  return module, params, x_BTD, real_BT


@pytest.mark.parametrize("capacity", [0.0, 0.7])
def test_scanned_and_rematerialised_layers_have_the_gradient_of_a_loop(capacity):
  module, params, x_BTD, real_BT = make_stack(capacity)
  raw = nn.unbox(params)["backbone"]

  def loop(variables, x_BTD, real_BT):
    total = {"balance_B": [], "z_B": []}
    for i in range(2):
      layer = jax.tree.map(lambda x: x[i], variables["params"]["blocks"]["ffn"])  # noqa: B023
      y_BTD, sums = Experts(module.cfg, jnp.float32).apply({"params": layer}, x_BTD, real_BT)
      x_BTD, total = x_BTD + y_BTD, {name: [*total[name], sums[name]] for name in total}
    return x_BTD, {name: jnp.stack(values) for name, values in total.items()}

  found = gradients(module, {"params": raw}, x_BTD, real_BT)
  expected = gradients(types.SimpleNamespace(apply=loop), {"params": raw}, x_BTD, real_BT)
  for name in expected:
    np.testing.assert_allclose(found[name], expected[name], atol=2e-4, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("capacity", [0.0, 0.7])
def test_lora_gives_each_expert_its_own_product_and_merges(capacity):
  module, params, x_BTD, real_BT = make_stack(capacity)
  lora = Lora(rank=3, targets="blocks/ffn/.*")
  boxed = lora.attach(params, jax.random.key(1))
  leaves = {name.removeprefix("backbone/blocks/ffn/"): box for name, box in tree.flatten(boxed).items() if "/lora/" in name}
  shapes = {name: (box.value.shape, box.names) for name, box in leaves.items()}
  assert len(shapes) == 8
  assert shapes["down/lora/default/a"] == ((2, E, F, 3), ("layers", "experts", "embed", "rank"))
  assert shapes["up/lora/default/b"] == ((2, E, 3, F), ("layers", "experts", "rank", "mlp"))
  assert shapes["router/lora/default/a"] == ((2, D, 3), ("layers", "embed", "rank"))
  grown = tree.map_named(
    lambda name, x: x + 0.1 * np.cos(np.arange(x.size)).reshape(x.shape) if "/lora/" in name else x, nn.unbox(boxed)
  )
  apply = lambda params: module.apply({"params": params["backbone"]}, x_BTD, real_BT)[0]
  with nn.intercept_methods(lora.intercept):
    tuned = apply(grown)
  assert np.abs(tuned - apply(nn.unbox(params))).max() > 0.1
  np.testing.assert_allclose(tuned, apply(lora.merge(grown)), atol=2e-4, rtol=1e-5)


def test_lora_leaves_experts_alone_by_default():
  with pytest.raises(ValueError, match="matches no linear layer; there are .*blocks/ffn/router"):
    Lora().attach(make_stack(0.0)[1], jax.random.key(1))


def test_muon_orthogonalises_each_expert_alone():
  _, params, _, _ = make_stack(0.0)
  raw = nn.unbox(params)
  together = optax.contrib.scale_by_muon(weight_dimension_numbers=muon_dims(raw, sharding.logical_axes(params)))
  alone = optax.contrib.scale_by_muon(weight_dimension_numbers={"kernel": optax.contrib.MuonDimensionNumbers((0,), (1,))})
  updates, _ = together.update(raw, together.init(raw))
  kernels, whole = raw["backbone"]["blocks"]["ffn"], updates["backbone"]["blocks"]["ffn"]
  for name in ("gate", "up", "down"):
    for layer in range(2):
      for e in range(E):
        one = {"kernel": kernels[name]["kernel"][layer, e]}
        expected, _ = alone.update(one, alone.init(one))
        np.testing.assert_allclose(whole[name]["kernel"][layer, e], expected["kernel"], atol=1e-4)
