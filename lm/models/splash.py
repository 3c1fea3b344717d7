"""Splash attention on TPUs: flash attention over the blocks of the scores that the mask leaves (jax.experimental.pallas).

Scores and softmax are fp32 inside the kernel. Blocks without an allowed pair are skipped: above the diagonal, and outside
of a local layer's window. Attention over extra keys is computed apart and merged by log-sum-exp.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lm.layout import num_shards
from lm.models.kernel import MIXED, Extra, Layout, Rows, spread
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
  q_BTHC, k_BSKC, v_BSKC, mask, extra = layout.repeated(rows)
  made = {kind: _make(rows, cfg, device, window=cfg.window if kind == "local" else 0) for kind in set(cfg.layer_kinds)}
  kernels, specs = ({kind: pair[i] for kind, pair in made.items()} for i in (0, 1))
  assert mask.segments is not None
  is_local = jnp.asarray(False) if mask.window is None else mask.window[2] <= cfg.window

  def of_part(kernels, arrays, segments, is_local, extra):
    arguments = (*(x.transpose(0, 2, 1, 3) for x in arrays), splash.SegmentIds(*segments))
    run = lambda kernel: jax.vmap(kernel) if extra is None else functools.partial(_mix_with_extra, extra, kernel)
    of_kind = {kind: run(kernel) for kind, kernel in kernels.items()}
    if len(of_kind) == 1:
      (only,) = of_kind.values()
      return only(*arguments).transpose(0, 2, 1, 3)
    return jax.lax.cond(is_local, of_kind["local"], of_kind["global"], *arguments).transpose(0, 2, 1, 3)

  of_extra = jax.tree.map(lambda _: layout.extra, extra)
  of_arrays, of_segments = (layout.queries, layout.keys, layout.keys), (P(layout.rows, layout.length), P(layout.rows))
  scaled_BTHC = q_BTHC * (cfg.attention_scale or cfg.channels**-0.5)
  arguments = kernels, (scaled_BTHC, k_BSKC, v_BSKC), mask.segments, is_local, extra
  return spread(of_part, (specs, of_arrays, of_segments, P(), of_extra), layout.queries)(*arguments)


@jax.custom_vjp
def _mix_with_extra(extra: Extra, kernel: splash.SplashAttentionKernel, q_BHTC, k_BKSC, v_BKSC, segments) -> jax.Array:
  """What the kernel mixes of the rows [B, H, T, C], with the extra keys and values merged in."""
  return _mix_forward(extra, kernel, q_BHTC, k_BKSC, v_BKSC, segments)[0]


def _mix_forward(extra, kernel, q_BHTC, k_BKSC, v_BKSC, segments):
  of_rows_BHTC, (rows_lse_BHT,) = jax.vmap(kernel)(q_BHTC, k_BKSC, v_BKSC, segments)
  scores_BHTP = _extra_scores(extra, kernel, q_BHTC)
  lse_BHT = jnp.logaddexp(rows_lse_BHT, jax.nn.logsumexp(scores_BHTP, axis=-1))
  mixed_BHTC = of_rows_BHTC * jnp.exp(rows_lse_BHT - lse_BHT)[..., None]
  mixed_BHTC += _times_values(jnp.exp(scores_BHTP - lse_BHT[..., None]), extra)
  mixed_BHTC = checkpoint_name(mixed_BHTC.astype(q_BHTC.dtype), MIXED)
  lse_BHT = checkpoint_name(lse_BHT, MIXED)
  return mixed_BHTC, (extra, kernel, q_BHTC, k_BKSC, v_BKSC, segments, mixed_BHTC, lse_BHT)


def _mix_backward(saved, d_BHTC):
  """The kernel computes weights anew from scores and log-sum-exp: given those of all keys, its gradients are of the whole.

  So its own backward pass is called, which it does not offer by name: what it gives for its log-sum-exp has no gradient.
  """
  extra, kernel, q_BHTC, k_BKSC, v_BKSC, segments, mixed_BHTC, lse_BHT = saved

  def of_row(arrays, mixed_HTC, lse_HT, d_HTC):
    residuals = *arrays, None, mixed_HTC, lse_HT, kernel.dq_mask_info, kernel.dkv_mask_info
    return splash._splash_attention_bwd(**kernel.kwargs, res=residuals, do=d_HTC)[3:6]

  arrays = q_BHTC, k_BKSC, v_BKSC, segments
  dq_BHTC, dk_BKSC, dv_BKSC = jax.vmap(of_row)(arrays, mixed_BHTC, lse_BHT, d_BHTC)
  d_BHTC = d_BHTC.astype(jnp.float32)
  inner_BHT = jnp.sum(d_BHTC * mixed_BHTC, axis=-1)

  def of_extra(extra, q_BHTC):
    """Its gradient is the softmax's: weight * (d . value - d . mixed), with a log-sum-exp that stays as it is."""
    weights_BHTP = jnp.exp(_extra_scores(extra, kernel, q_BHTC) - lse_BHT[..., None])
    return jnp.sum(_times_values(weights_BHTP, extra) * d_BHTC) - jnp.sum(weights_BHTP.sum(-1) * inner_BHT)

  d_extra, from_extra_BHTC = jax.grad(of_extra, (0, 1))(extra, q_BHTC)
  return d_extra, None, dq_BHTC + from_extra_BHTC, dk_BKSC, dv_BKSC, None


_mix_with_extra.defvjp(_mix_forward, _mix_backward)


def _grouped(x_BHTC: jax.Array, num_groups: int) -> jax.Array:
  """[B, K, G, T, C]"""
  B, H, *rest = x_BHTC.shape
  return x_BHTC.reshape(B, num_groups, H // num_groups, *rest)


def _extra_scores(extra: Extra, kernel: splash.SplashAttentionKernel, q_BHTC: jax.Array) -> jax.Array:
  """[B, H, T, P]"""
  scores = extra.scores(_grouped(q_BHTC, extra.k_PKC.shape[1]), kernel.kwargs["attn_logits_soft_cap"] or 0.0)
  return scores.reshape(*q_BHTC.shape[:3], -1)


def _times_values(weights_BHTP: jax.Array, extra: Extra) -> jax.Array:
  """[B, H, T, C] fp32"""
  weights_BKGTP = _grouped(weights_BHTP, extra.v_PKC.shape[1])
  mixed = jnp.einsum("bkgtp,pkc->bkgtc", weights_BKGTP, extra.v_PKC.astype(jnp.float32))
  return mixed.reshape(*weights_BHTP.shape[:3], -1)


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
    save_residuals=rows.extra is not None,
    residual_checkpoint_name=MIXED if rows.extra is None else None,
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
