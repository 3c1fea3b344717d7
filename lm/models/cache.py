"""The key-value cache of autoregressive decoding: an explicit value that goes into a forward pass and comes out longer."""

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lm.models.transformer_config import TransformerConfig


class Cache(flax.struct.PyTreeNode):
  """Keys and values of all layers for S slots; slots from `length` on are empty (segment id 0).

  A model whose layers are apart (`Model.apart`) takes and gives tuples of L arrays [B, S, K, C] in place of the stacks.
  """

  k_LBSKC: jax.Array | tuple[jax.Array, ...]
  v_LBSKC: jax.Array | tuple[jax.Array, ...]
  segment_ids_BS: jax.Array
  length: jax.Array  # int32 scalar


def make_cache(cfg: TransformerConfig, batch_size: int, num_slots: int, dtype: DTypeLike) -> Cache:
  """An empty cache."""
  shape = (cfg.num_layers, batch_size, num_slots, cfg.kv_heads, cfg.channels)
  return Cache(
    k_LBSKC=jnp.zeros(shape, dtype),
    v_LBSKC=jnp.zeros(shape, dtype),
    segment_ids_BS=jnp.zeros((batch_size, num_slots), jnp.int32),
    length=jnp.zeros((), jnp.int32),
  )
