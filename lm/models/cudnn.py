"""cuDNN's flash attention on NVIDIA GPUs, through `jax.nn.dot_product_attention`.

What is not plainly causal (segments, windows, prefixes) reaches it as a boolean mask [B, 1, T, S], which all heads share.
Extra keys stand in front of those of the rows there: it gives the log-sum-exp that would let them stand apart, but no
gradient of it. The mask then says what is causal too, so that blocks above the diagonal are not skipped.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from lm.layout import num_shards
from lm.models.kernel import MIXED, Extra, Layout, Rows, spread
from lm.models.transformer_config import TransformerConfig

MAX_CHANNELS = 128  # per head, on every GPU that has flash attention


def refuses(rows: Rows, cfg: TransformerConfig) -> str:
  """Why cuDNN cannot compute this, '' if it can."""
  layout = Layout.ambient()
  _, T, _, C = rows.q_BTHC.shape
  if cfg.attention_softcap:
    return "it has no soft cap"
  if rows.q_BTHC.dtype.itemsize != 2:
    return f"it computes in bfloat16 and float16, not {rows.q_BTHC.dtype}"
  if C % 8 or C > MAX_CHANNELS:
    return f"{C} channels per head are not a multiple of 8 up to {MAX_CHANNELS}"
  if num_shards(layout.length) > 1:
    return "it needs whole rows on a device"
  return f"{T} tokens are an odd number" if T % 2 else layout.refuses(rows)


def attend(rows: Rows, cfg: TransformerConfig, device: str) -> jax.Array:
  """`attention.attend` of whole rows, [B, T, H, C]. device: "cpu" computes the same by XLA."""
  layout = Layout.ambient()
  q_BTHC, k_BSKC, v_BSKC, mask, extra = layout.repeated(rows)
  causal = mask.causal is not None and mask.prefix is None and extra is None
  allowed_BTS = (dataclasses.replace(mask, causal=None) if causal else mask).as_array()
  assert allowed_BTS is not None  # whole rows have segments
  if extra is not None:
    k_BSKC, v_BSKC, allowed_BTS = _in_front(extra, k_BSKC, v_BSKC, allowed_BTS)
  scale = cfg.attention_scale or cfg.channels**-0.5
  implementation = "xla" if device == "cpu" else "cudnn"

  def of_part(q_BTHC, k_BSKC, v_BSKC, allowed_B1TS):
    return jax.nn.dot_product_attention(
      q_BTHC, k_BSKC, v_BSKC, mask=allowed_B1TS, scale=scale, is_causal=causal, implementation=implementation
    )

  in_specs = layout.queries, layout.keys, layout.keys, P(layout.rows)
  mixed_BTHC = spread(of_part, in_specs, layout.queries)(q_BTHC, k_BSKC, v_BSKC, allowed_BTS[:, None])
  return checkpoint_name(mixed_BTHC, MIXED)


def _in_front(extra: Extra, k_BSKC: jax.Array, v_BSKC: jax.Array, allowed_BTS: jax.Array) -> tuple[jax.Array, ...]:
  """Keys, values and mask with the extra keys before those of every row, and one that nobody sees if their number is odd."""
  num, odd = len(extra.k_PKC), len(extra.k_PKC) % 2
  joined = []
  for x_PKC, x_BSKC in zip(extra, (k_BSKC, v_BSKC), strict=True):
    x_PKC = jnp.pad(x_PKC.astype(x_BSKC.dtype), ((0, odd), (0, 0), (0, 0)))
    joined.append(jnp.concatenate([jnp.broadcast_to(x_PKC[None], (len(x_BSKC), *x_PKC.shape)), x_BSKC], axis=1))
  front_BTP = jnp.broadcast_to(jnp.arange(num + odd)[None, None] < num, (*allowed_BTS.shape[:2], num + odd))
  return (*joined, jnp.concatenate([front_BTP, allowed_BTS], axis=2))
