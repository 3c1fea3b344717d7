"""The one transformer: embedding, a stack of blocks scanned over layers, final norm.

Parameters of the stack are stacked along a leading dim L, whatever the depth; compile time does not grow with it.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lm.models import mask as masks
from lm.models.attention import Attention
from lm.models.cache import Cache
from lm.models.ffn import Ffn
from lm.models.layers import Dropout, Embed, Norm
from lm.models.transformer_config import TransformerConfig

REMAT = {
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "block": jax.checkpoint_policies.nothing_saveable,
}


class Shared(NamedTuple):
  """What every block of one forward pass reads."""

  positions_BT: jax.Array
  row_B: jax.Array
  mask: masks.Mask
  start: jax.Array | None  # the cache's first free slot


class Block(nn.Module):
  """Attention and feed-forward, each with a norm and a residual."""

  cfg: TransformerConfig
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x_BTD, cache, shared: Shared):
    cfg = self.cfg
    pre = cfg.norm_position == "pre"

    def residual(x, sublayer, name):
      norm = Norm(cfg.norm, cfg.norm_eps, cfg.bias, name=f"{name}_norm")
      y, aux = sublayer(norm(x) if pre else x)
      x = x + Dropout(cfg.dropout_rate, name=f"{name}_dropout")(y, shared.row_B)
      x = nn.with_logical_constraint(x if pre else norm(x), ("batch", "length", "activation"))
      return x, aux

    attention, ffn = Attention(cfg, self.dtype, name="attention"), Ffn(cfg, self.dtype, name="ffn")
    attend = lambda x: attention(x, shared.positions_BT, shared.mask, cache, shared.start)
    x_BTD, cache = residual(x_BTD, attend, "attention")
    x_BTD, _ = residual(x_BTD, lambda x: (ffn(x), None), "ffn")
    return x_BTD, cache


class Transformer(nn.Module):
  """Tokens to hidden states [B, T, D]; with a cache, T new tokens after those it holds."""

  cfg: TransformerConfig
  dtype: DTypeLike = jnp.float32
  remat: str = "none"
  unroll: int = 1  # layers per iteration of the scan; the parameters are stacked whatever it is

  @nn.compact
  def __call__(self, inputs, perturb=None, cache: Cache | None = None) -> tuple[jax.Array, Cache | None]:
    x_BTD = self._embed(inputs, perturb)
    segment_ids_BT = inputs["segment_ids"]
    layer_caches, start = None, None
    if cache is None:
      mask = masks.in_row(segment_ids_BT, self.cfg.causal)
    else:
      assert self.cfg.causal, "only a causal model decodes with a cache"
      cache, mask = _extend(cache, segment_ids_BT)
      layer_caches, start = (cache.k_LBSKC, cache.v_LBSKC), cache.length - segment_ids_BT.shape[1]

    block = Block if self.remat == "none" else nn.remat(Block, prevent_cse=False, policy=REMAT[self.remat])
    blocks = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=(0, nn.broadcast),
      length=self.cfg.num_layers,
      unroll=self.unroll,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )(self.cfg, self.dtype, name="blocks")
    x_BTD, layer_caches = blocks(x_BTD, layer_caches, Shared(inputs["positions"], inputs["row"], mask, start))
    if self.cfg.norm_position == "pre":
      x_BTD = Norm(self.cfg.norm, self.cfg.norm_eps, self.cfg.bias, name="final_norm")(x_BTD)
    if cache is not None:
      cache = cache.replace(k_LBSKC=layer_caches[0], v_LBSKC=layer_caches[1])
    return x_BTD, cache

  def _embed(self, inputs, perturb):
    cfg = self.cfg
    table = lambda rows, axes, name: Embed(rows, cfg.model_dim, axes, cfg.init_stddev, self.dtype, name=name)
    x_BTD = table(cfg.vocab_size, ("vocab", "embed"), "embed")(inputs["tokens"])
    if cfg.positions == "learned":
      x_BTD += table(cfg.max_len, (None, "embed"), "position_embed")(inputs["positions"])
    if cfg.token_types:
      token_types = inputs.get("token_types", jnp.zeros_like(inputs["tokens"]))
      x_BTD += table(cfg.token_types, (None, "embed"), "token_type_embed")(token_types)
    if perturb is not None:
      x_BTD += perturb
    if cfg.norm_position == "post":
      x_BTD = Norm(cfg.norm, cfg.norm_eps, cfg.bias, name="embed_norm")(x_BTD)
    x_BTD = Dropout(cfg.dropout_rate, name="embed_dropout")(x_BTD, inputs["row"])
    return nn.with_logical_constraint(x_BTD, ("batch", "length", "activation"))


def _extend(cache: Cache, segment_ids_BT: jax.Array) -> tuple[Cache, masks.Mask]:
  """The cache with the new tokens' segment ids and length, and the mask from them to all its slots."""
  B, T = segment_ids_BT.shape
  S = cache.segment_ids_BS.shape[1]
  segment_ids_BS = jax.lax.dynamic_update_slice_in_dim(cache.segment_ids_BS, segment_ids_BT, cache.length, axis=1)
  queries_BT = jnp.broadcast_to((cache.length + jnp.arange(T))[None, :], (B, T))
  keys_BS = jnp.broadcast_to(jnp.arange(S)[None, :], (B, S))
  mask = masks.Mask(causal=(queries_BT, keys_BS)) & masks.Mask(segments=(segment_ids_BT, segment_ids_BS))
  return cache.replace(segment_ids_BS=segment_ids_BS, length=cache.length + T), mask
