"""Every attention kernel against the plain reference: values and gradients, interpreted on the CPU."""

import dataclasses
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from lm.models import kernel
from lm.models.attention import Core, attend
from lm.models.kernel import Extra, Kernel, Rows
from lm.models.mask import Mask, in_row, slots
from lm.models.transformer_config import TransformerConfig
from lm.plug import ConfigError

T = 256
BASE = TransformerConfig(num_layers=1, model_dim=32, num_heads=2, ffn_dim=32, max_len=T, causal=True, head_dim=64)
GLOBAL_AND_LOCAL = {"layer_pattern": ("global", "local"), "window": 48, "num_layers": 2}
LOCAL = {"layer_pattern": ("local",), "window": 130}
CASES = [
  {},
  {"causal": False},
  {"attention_softcap": 5.0},
  {"attention_scale": 0.3},
  {"num_heads": 4, "num_kv_heads": 2},
  {"num_heads": 4, "num_kv_heads": 1},
  {"head_dim": 128},
  LOCAL,
  LOCAL | {"causal": False},
  GLOBAL_AND_LOCAL,
  GLOBAL_AND_LOCAL | {"causal": False},
]


def make_case(cfg, batch=1, local=True, dtype=jnp.float32):
  rng = np.random.default_rng(0)
  draw = lambda heads: jnp.asarray(rng.normal(size=(batch, T, heads, cfg.channels)), dtype)
  segments_BT = jnp.asarray([[1] * 100 + [2] * (T - 110) + [0] * 10] * batch)
  mask = in_row(segments_BT, cfg.causal)
  if cfg.window:
    slots_BT = slots(segments_BT)
    mask &= Mask(window=(slots_BT, slots_BT, jnp.int32(cfg.window if local else np.iinfo(np.int32).max)))
  return (draw(cfg.num_heads), draw(cfg.kv_heads), draw(cfg.kv_heads)), mask


def values_and_gradients(function, arrays, mask):
  loss = lambda arrays: jnp.sum(jnp.sin(function(*arrays, mask).astype(jnp.float32)))
  return jax.jit(lambda arrays: (function(*arrays, mask), jax.grad(loss)(arrays)))(arrays)


def make_extra(cfg, num, dtype=jnp.float32):
  """Extra keys that weigh about as much as those of a row, and values."""
  rng = np.random.default_rng(1)
  return Extra(*(jnp.asarray(2 * rng.normal(size=(num, cfg.kv_heads, cfg.channels)), dtype) for _ in range(2)))


def with_extra(function):
  """A function of (q, k, v, extra, mask) of one that takes the extra keys last."""
  return lambda q, k, v, extra, mask: function(q, k, v, mask, extra)


def assert_equals_the_reference(cfg, name, batch=1, local=True, num_extra=0):
  arrays, mask = make_case(cfg, batch, local)
  arrays = (*arrays, make_extra(cfg, num_extra) if num_extra else None)
  core = Core(cfg, Kernel(name, device="cpu", required=True))
  got = values_and_gradients(with_extra(lambda *x: core.apply({}, *x)), arrays, mask)
  reference = with_extra(lambda *x: attend(Rows(*x), cfg.attention_scale, cfg.attention_softcap))
  expected = values_and_gradients(reference, arrays, mask)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), got, expected)


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_splash_equals_the_reference(changes):
  assert_equals_the_reference(dataclasses.replace(BASE, **changes), "splash")


WITH_EXTRA = [{}, CASES[2] | {"causal": False}, CASES[4], CASES[5] | LOCAL, GLOBAL_AND_LOCAL]


@pytest.mark.parametrize("changes", WITH_EXTRA, ids=str)
def test_splash_with_extra_keys_equals_the_reference(changes):
  assert_equals_the_reference(dataclasses.replace(BASE, **changes), "splash", num_extra=5)


def test_extra_keys_are_seen_across_segments_and_windows():
  cfg = dataclasses.replace(BASE, **LOCAL)
  (q, k, v), mask = make_case(cfg)
  extra = make_extra(cfg, 5)
  d_extra = jax.grad(lambda extra: jnp.sum(attend(Rows(q, k, v, mask, extra))[0, [3, 120, 245]]))(extra)
  alone = [attend(Rows(q, k, v, mask))[0, t] - attend(Rows(q, k, v, mask, extra))[0, t] for t in (3, 120, 245)]
  assert all(jnp.abs(moved).max() > 1e-3 for moved in alone)
  assert all(jnp.abs(d).min(axis=(1, 2)).min() > 0 for d in d_extra)


@pytest.mark.parametrize("causal", [True, False])
def test_a_global_layer_of_a_local_pattern_sees_everything(causal):
  assert_equals_the_reference(dataclasses.replace(BASE, **GLOBAL_AND_LOCAL, causal=causal), "splash", local=False)


RULES = (("batch", ("data",)), ("length", "sequence"), ("heads", "tensor"))
MESHES = [
  ({"data": 2}, {}),
  ({"sequence": 2}, GLOBAL_AND_LOCAL),
  ({"sequence": 2}, {"causal": False}),
  ({"tensor": 4}, {"num_heads": 8, "num_kv_heads": 2}),
  ({"data": 2, "sequence": 2, "tensor": 2}, LOCAL | {"num_kv_heads": 1}),
]


def use_mesh(sizes):
  names = ("data", "sequence", "tensor")
  shape = tuple(sizes.get(name, 1) for name in names)
  devices = jax.devices()[: int(np.prod(shape))]
  return jax.set_mesh(jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * 3, devices=devices))


@pytest.mark.parametrize(("sizes", "changes"), MESHES, ids=str)
def test_splash_over_a_mesh_equals_the_reference(sizes, changes):
  with use_mesh(sizes), nn.logical_axis_rules(RULES):
    assert_equals_the_reference(dataclasses.replace(BASE, **changes), "splash", batch=2)


@pytest.mark.parametrize(("sizes", "changes"), MESHES[1:], ids=str)
def test_splash_with_extra_keys_over_a_mesh_equals_the_reference(sizes, changes):
  with use_mesh(sizes), nn.logical_axis_rules(RULES):
    assert_equals_the_reference(dataclasses.replace(BASE, **changes), "splash", batch=2, num_extra=3)


@pytest.mark.parametrize("num_extra", [0, 3, 4])
@pytest.mark.parametrize("changes", [CASES[0], CASES[1], CASES[4], LOCAL, GLOBAL_AND_LOCAL | {"causal": False}], ids=str)
def test_what_cudnn_is_asked_equals_the_reference(changes, num_extra):
  cfg = dataclasses.replace(BASE, **changes)
  arrays, mask = make_case(cfg, batch=2, dtype=jnp.bfloat16)
  arrays = (*arrays, make_extra(cfg, num_extra, jnp.bfloat16) if num_extra else None)
  with use_mesh({"data": 2, "tensor": 2}), nn.logical_axis_rules(RULES):
    core = Core(cfg, Kernel("cudnn", device="cpu", required=True))
    got = values_and_gradients(with_extra(lambda *x: core.apply({}, *x)), arrays, mask)
  exact = jax.tree.map(lambda x: x.astype(jnp.float32), arrays)
  expected = values_and_gradients(with_extra(lambda *x: attend(Rows(*x))), exact, mask)
  close = lambda a, b: np.testing.assert_allclose(a.astype(np.float32), b, rtol=0.05, atol=0.05)
  jax.tree.map(close, jax.tree.leaves(got), jax.tree.leaves(expected))


REFUSED = [
  ("splash", {}, lambda x, mask: (x[:, :100], mask), "100 tokens are not a multiple of 128"),
  ("splash", {}, lambda x, mask: (x, mask.replace(prefix=mask.segments[0] == 1)), "a prefix that earlier tokens see"),
  ("cudnn", {}, lambda x, mask: (x, mask), "not float32"),
  ("cudnn", {"attention_softcap": 5.0}, lambda x, mask: (x.astype(jnp.bfloat16), mask), "no soft cap"),
]


def cut(mask, length):
  return jax.tree.map(lambda x: x[:, :length], mask)


@pytest.mark.parametrize(("name", "changes", "change", "reason"), REFUSED)
def test_a_kernel_that_cannot_is_an_error_by_name_and_the_reference_else(name, changes, change, reason):
  cfg = dataclasses.replace(BASE, **changes)
  arrays, mask = make_case(cfg)
  arrays, mask = [change(x, mask)[0] for x in arrays], change(arrays[0], mask)[1]
  mask = cut(mask, arrays[0].shape[1])
  with pytest.raises(ConfigError, match=f"config.attention='{name}': .*{reason}"):
    Core(cfg, Kernel(name, "cpu", required=True)).apply({}, *arrays, mask)
  got = Core(cfg, Kernel(name, "cpu")).apply({}, *arrays, mask)
  np.testing.assert_array_equal(got, attend(Rows(*arrays, mask), 0.0, cfg.attention_softcap))


def test_rows_that_do_not_divide_over_the_mesh_are_refused():
  arrays, mask = make_case(BASE)
  with use_mesh({"data": 2}), nn.logical_axis_rules(RULES), pytest.raises(ConfigError, match="1 rows do not divide over 2"):
    Core(BASE, Kernel("splash", "cpu", required=True)).apply({}, *arrays, mask)


def test_the_choice_follows_the_device():
  tpu, gpu, cpu = (SimpleNamespace(platform=name, device_kind=name) for name in ("tpu", "gpu", "cpu"))
  assert kernel.choose("auto", tpu) == Kernel("splash", "tpu")
  assert kernel.choose("auto", gpu) == Kernel("cudnn", "gpu")
  assert kernel.choose("auto", cpu) == Kernel("plain", "cpu")
  assert kernel.choose("splash", tpu).required
  assert kernel.choose("plain", tpu).name == "plain"
  for name, device in (("splash", cpu), ("splash", gpu), ("cudnn", tpu)):
    with pytest.raises(ConfigError, match=f"config.attention='{name}': accepted on {device.platform} devices are auto, plain"):
      kernel.choose(name, device)
