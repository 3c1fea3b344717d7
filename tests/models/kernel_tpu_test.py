"""The TPU kernels compile for a TPU, forward and backward, and are there in what was compiled."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lm.models import kernel
from lm.models.attention import Core
from lm.models.mask import Mask, in_row, slots
from tests.models.kernel_test import BASE, GLOBAL_AND_LOCAL, RULES
from tests.models.topology import make_mesh

CASES = [
  ("v5e:2x2", {"head_dim": 64}, 1024, 0),
  ("v5e:2x2", {"head_dim": 128, "num_heads": 4} | GLOBAL_AND_LOCAL, 640, 0),
  ("v5e:2x2", {"head_dim": 256, "causal": False, "attention_softcap": 50.0}, 1024, 0),
  ("v5e:2x2", {"head_dim": 96}, 256, 0),
  ("v6e:2x2", {"head_dim": 128}, 8192, 0),
  ("v6e:2x2", {"head_dim": 128}, 1024, 20),
]


@pytest.mark.parametrize(("topology", "changes", "length", "num_extra"), CASES, ids=str)
def test_splash_compiles_for_a_tpu(topology, changes, length, num_extra):
  cfg = dataclasses.replace(BASE, **changes)
  mesh = make_mesh(topology, (2, 1, 2), ("data", "sequence", "tensor"))
  core = Core(cfg, kernel.choose("splash", mesh.devices.flat[0]))
  place = lambda *spec: NamedSharding(mesh, P(*spec))
  array = lambda heads: jax.ShapeDtypeStruct((2, length, heads, cfg.channels), jnp.bfloat16, sharding=place("data"))
  segments_BT = jax.ShapeDtypeStruct((2, length), jnp.int32, sharding=place("data"))
  window = jax.ShapeDtypeStruct((), jnp.int32, sharding=place())

  def loss(arrays, segments_BT, window):
    mask = in_row(segments_BT, cfg.causal)
    slots_BT = slots(segments_BT)
    mask = mask & Mask(window=(slots_BT, slots_BT, window)) if cfg.window else mask
    q_BTHC, k_BSKC, v_BSKC, extra = arrays
    return core.apply({}, q_BTHC, k_BSKC, v_BSKC, mask, extra).astype(jnp.float32).sum()

  more = jax.ShapeDtypeStruct((num_extra, cfg.kv_heads, cfg.channels), jnp.bfloat16, sharding=place())
  extra = kernel.Extra(more, more) if num_extra else None
  arrays = array(cfg.num_heads), array(cfg.kv_heads), array(cfg.kv_heads), extra
  with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
    text = jax.jit(jax.grad(loss)).lower(arrays, segments_BT, window).compile().as_text()
  assert text.count("tpu_custom_call") >= len(set(cfg.layer_kinds)) * 2
  assert f"[1,{cfg.num_heads // 2},{length},{length}]" not in text  # no scores outside of the kernel
