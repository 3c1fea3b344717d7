"""Splash attention on TPUs: flash attention over the blocks of the scores that the mask leaves (jax.experimental.pallas).

Scores and softmax are fp32 inside the kernel. Blocks without an allowed pair are skipped: above the diagonal, and outside
of a local layer's window.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lm.layout import num_shards
from lm.models.kernel import MIXED, Layout, Rows, spread
from lm.models.transformer_config import TransformerConfig

LANES = 128  # of a vector register: blocks are multiples of it


class Blocks(NamedTuple):
  """[tokens] of queries and keys per block; fused: one backward kernel for all gradients instead of two.

  scores: keys whose scores the backward kernel holds at a time. The scores of a block and their gradient, fp32, share 32 MiB
  of vector memory with the tokens' blocks on v6e, where 2048 x 2048 are too many.
  """

  size: int
  fused: bool = False
  scores: int = 1 << 30


# By kind of device. v6e: MaxText's recipe for Llama 3.1 8B; all others: MaxText's default.
BLOCKS = {"TPU v6 lite": Blocks(2048, fused=True, scores=1024)}
DEFAULT = Blocks(512)


def refuses(rows: Rows, cfg: TransformerConfig) -> str:
  """Why splash attention cannot compute this, '' if it can."""
  layout = Layout.ambient()
  if rows.mask.prefix is not None:
    return "a prefix that earlier tokens see makes another mask of every row"
  T, unit = rows.q_BTHC.shape[1], LANES * num_shards(layout.length)
  return f"{T} tokens are not a multiple of {unit}" if T % unit else layout.refuses(rows)


def attend(rows: Rows, cfg: TransformerConfig, device: str) -> jax.Array:
  """`attention.attend` of whole rows, [B, T, H, C]. device: kind of the device."""
  layout = Layout.ambient()
  q_BTHC, k_BSKC, v_BSKC, mask = layout.repeated(rows)
  made = {kind: _make(rows, cfg, device, window=cfg.window if kind == "local" else 0) for kind in set(cfg.layer_kinds)}
  kernels, specs = ({kind: pair[i] for kind, pair in made.items()} for i in (0, 1))
  assert mask.segments is not None
  is_local = jnp.asarray(False) if mask.window is None else mask.window[2] <= cfg.window

  def of_part(kernels, q_BTHC, k_BSKC, v_BSKC, segments, is_local):
    arguments = (*(x.transpose(0, 2, 1, 3) for x in (q_BTHC, k_BSKC, v_BSKC)), splash.SegmentIds(*segments))
    of_kind = {kind: jax.vmap(kernel) for kind, kernel in kernels.items()}
    if len(of_kind) == 1:
      (only,) = of_kind.values()
      return only(*arguments).transpose(0, 2, 1, 3)
    return jax.lax.cond(is_local, of_kind["local"], of_kind["global"], *arguments).transpose(0, 2, 1, 3)

  in_specs = specs, layout.queries, layout.keys, layout.keys, (P(layout.rows, layout.length), P(layout.rows)), P()
  scaled_BTHC = q_BTHC * (cfg.attention_scale or cfg.channels**-0.5)
  return spread(of_part, in_specs, layout.queries)(kernels, scaled_BTHC, k_BSKC, v_BSKC, mask.segments, is_local)


def _make(rows: Rows, cfg: TransformerConfig, device: str, window: int) -> tuple[splash.SplashAttentionKernel, Any]:
  """The kernel of one kind of layer, and how its own arrays, which say what a block of queries reads, lie on the mesh.

  window: [tokens] that the layer sees to one side, its own included; 0: all.
  """
  layout, mesh = Layout.ambient(), jax.sharding.get_abstract_mesh()
  T, shards = rows.q_BTHC.shape[1], num_shards(layout.length)
  causal = rows.mask.causal is not None
  if window:
    one = masks.LocalMask((T, T), (window - 1, 0 if causal else window - 1), 0, shards)
  else:  # without a mask all devices' queries are alike
    one = masks.CausalMask((T, T), 0, shards) if causal else masks.FullMask((T // shards, T))
  alike = isinstance(one, masks.FullMask)
  kernel = splash.make_splash_mha(
    masks.MultiHeadMask([one] * (rows.q_BTHC.shape[2] // num_shards(layout.heads))),
    head_shards=1,
    q_seq_shards=1 if alike else shards,
    block_sizes=_block_sizes(T // shards, T, BLOCKS.get(device, DEFAULT)),
    attn_logits_soft_cap=cfg.attention_softcap or None,
    residual_checkpoint_name=MIXED,
    interpret=device == "cpu",
  )
  return kernel, P() if alike or mesh.empty else kernel.manual_sharding_spec(NamedSharding(mesh, P(None, layout.length)))


def _block_sizes(T: int, S: int, blocks: Blocks) -> splash.BlockSizes:
  """The largest blocks up to the device's that divide the lengths."""
  fit = lambda length, most: max(size for size in range(LANES, min(most, length) + 1, LANES) if length % size == 0)
  of_queries, of_keys = fit(T, blocks.size), fit(S, blocks.size)
  return splash.BlockSizes(
    block_q=of_queries,
    block_kv=of_keys,
    block_q_dkv=of_queries,
    block_kv_dkv=of_keys,
    block_kv_dkv_compute=fit(of_keys, blocks.scores),
    block_q_dq=None if blocks.fused else of_queries,
    block_kv_dq=None if blocks.fused else of_keys,
    use_fused_bwd_kernel=blocks.fused,
  )
