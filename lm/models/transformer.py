"""The one transformer: embedding, a stack of blocks scanned over layers, final norm.

Parameters of the stack are stacked along a leading dim L, whatever the depth; compile time does not grow with it.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from lm.layout import constrain
from lm.models import mask as masks
from lm.models import rope
from lm.models.attention import Attention
from lm.models.cache import Cache
from lm.models.ffn import Ffn
from lm.models.kernel import MIXED, Kernel
from lm.models.layers import Dropout, Embed, Norm
from lm.models.moe import Experts
from lm.models.transformer_config import TransformerConfig

# What the backward pass finds saved of each block; what it does not find, it computes again.
REMAT = {
  "dots": jax.checkpoint_policies.save_from_both_policies(  # what matrix products with parameters give, and attention
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable, jax.checkpoint_policies.save_only_these_names(MIXED)
  ),
  "block": jax.checkpoint_policies.save_only_these_names(MIXED),  # its input, and what attention mixed
  "full": jax.checkpoint_policies.nothing_saveable,  # its input
  "offload": jax.checkpoint_policies.save_and_offload_only_these_names(  # its input, in the host's memory
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=["block_input"],
    offload_src="device",
    offload_dst="pinned_host",
  ),
}
# The dims of hidden states: what a sublayer reads, and what is between sublayers, where norms, dropout and residuals treat
# each position alone (Korthikanti et al. 2022). To the first, devices along `tensor` gather; back, they reduce and scatter.
GATHERED = ("batch", "length", "activation")
RESIDUAL = ("batch", "residual_length", "activation")


class Output(NamedTuple):
  """hidden_BTD: after the final norm. router: of experts, sums per row [B] averaged over layers. inputs_LBTD: of the blocks."""

  hidden_BTD: jax.Array
  cache: Cache | None
  router: dict[str, jax.Array]
  inputs_LBTD: jax.Array | None


class Shared(NamedTuple):
  """What every block of one forward pass reads."""

  row_B: jax.Array
  real_BT: jax.Array  # false on padding
  mask: masks.Mask  # of a global layer
  slots: tuple[jax.Array, jax.Array]  # of queries [B, T] and keys [B, S]
  rotations: rope.Rotation | None  # of each kind of layer, stacked
  start: jax.Array | None  # the cache's first free slot


class Layer(NamedTuple):
  """What blocks differ in, as data: the stack has one layout of parameters, whatever the pattern. [L], scalar in a block."""

  kind: jax.Array | None  # index into the rotations
  window: jax.Array | None  # slots that the layer sees to one side
  first: jax.Array | None


class LayerOut(NamedTuple):
  """What a block gives beside its output; stacked to [L, ...] by the scan."""

  cache: tuple[jax.Array, jax.Array] | None
  router: dict[str, jax.Array]  # of experts: sums per row, see lm/models/moe.py
  input_BTD: jax.Array | None


class Block(nn.Module):
  """Attention and feed-forward, each with one or two norms and a residual."""

  cfg: TransformerConfig
  dtype: DTypeLike
  keep_inputs: bool
  kernel: Kernel

  @nn.compact
  def __call__(self, x_BTD, cache, layer: Layer, shared: Shared):
    cfg = self.cfg
    x_BTD = checkpoint_name(x_BTD, "block_input")
    router: dict[str, jax.Array] = {}
    mask = shared.mask
    if layer.window is not None:
      mask &= masks.Mask(window=(*shared.slots, layer.window))
    by = shared.rotations
    if by is not None:
      by = jax.tree.map(lambda x: x[0 if layer.kind is None else layer.kind], by)

    before = Norm.of(cfg, "attention_norm")
    normed = x_BTD if cfg.norm_position == "post" else before(x_BTD)
    if layer.first is not None:  # the residual of the first block starts from its norm
      x_BTD = jnp.where(layer.first, normed, x_BTD)
    entered = x_BTD if self.keep_inputs else None
    attention = Attention(cfg, self.dtype, self.kernel, name="attention")
    y_BTD, cache = attention(constrain(normed, *GATHERED), by, mask, cache, shared.start)
    x_BTD = self._add(x_BTD, y_BTD, "attention", before, shared.row_B)

    before = Norm.of(cfg, "ffn_norm")
    normed = x_BTD if cfg.norm_position == "post" else before(x_BTD)
    if cfg.num_experts:
      y_BTD, router = Experts(cfg, self.dtype, name="ffn")(normed, shared.real_BT)
    else:
      y_BTD = Ffn(cfg, self.dtype, name="ffn")(constrain(normed, *GATHERED))
    x_BTD = self._add(x_BTD, y_BTD, "ffn", before, shared.row_B)
    return x_BTD, LayerOut(cache, router, entered)

  def _add(self, x_BTD, y_BTD, name: str, norm: Norm, row_B):
    """The residual, with the norm where its position says."""
    y_BTD = constrain(y_BTD, *RESIDUAL)
    if self.cfg.norm_position == "sandwich":
      y_BTD = Norm.of(self.cfg, f"{name}_post_norm")(y_BTD)
    x_BTD = x_BTD + Dropout(self.cfg.dropout_rate, name=f"{name}_dropout")(y_BTD, row_B)
    x_BTD = norm(x_BTD) if self.cfg.norm_position == "post" else x_BTD
    return constrain(x_BTD, *RESIDUAL)


class Transformer(nn.Module):
  """Tokens to hidden states [B, T, D]; with a cache, T new tokens after those it holds."""

  cfg: TransformerConfig
  dtype: DTypeLike = jnp.float32
  remat: str = "none"
  unroll: int = 1  # layers per iteration of the scan; the parameters are stacked whatever it is
  kernel: Kernel = Kernel()  # of attention
  stacked: bool = True  # parameters and caches of the layers; if not, each by itself, as `Model.apart` gives them

  @nn.compact
  def __call__(self, inputs, perturb=None, cache: Cache | None = None, keep_inputs: bool = False) -> Output:
    cfg = self.cfg
    x_BTD = self._embed(inputs, perturb)
    segment_ids_BT = inputs["segment_ids"]
    layer_caches, start = None, None
    if cache is None:
      mask = masks.in_row(segment_ids_BT, cfg.causal, inputs.get("prefix"))
      slots_BT = masks.slots(segment_ids_BT)
      slots = slots_BT, slots_BT
    else:
      assert cfg.causal, "only a causal model decodes with a cache"
      cache, mask, slots = _extend(cache, segment_ids_BT, inputs.get("prefix"))
      layer_caches, start = (cache.k_LBSKC, cache.v_LBSKC), cache.length - segment_ids_BT.shape[1]
    shared = Shared(inputs["row"], jnp.asarray(segment_ids_BT > 0), mask, slots, _rotations(cfg, inputs["positions"]), start)

    block = Block if self.remat == "none" else nn.remat(Block, prevent_cse=False, policy=REMAT[self.remat])
    stack = self._scan(block, keep_inputs) if self.stacked else self._chain(block, keep_inputs)
    x_BTD, outs = stack(x_BTD, layer_caches, _layers(cfg), shared)
    if cfg.norm_position != "post":
      x_BTD = Norm.of(cfg, "final_norm")(x_BTD)
    if cache is not None:
      cache = cache.replace(k_LBSKC=outs.cache[0], v_LBSKC=outs.cache[1])
    router = {name: sums_LB.mean(0) for name, sums_LB in outs.router.items()}
    return Output(constrain(x_BTD, *GATHERED), cache, router, outs.input_BTD)

  def _scan(self, block, keep_inputs: bool):
    return nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=(0, 0, nn.broadcast),
      length=self.cfg.num_layers,
      unroll=self.unroll,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )(self.cfg, self.dtype, keep_inputs, self.kernel, name="blocks")

  def _chain(self, block, keep_inputs: bool):
    """The same of layers that are apart: nothing is copied out of a stack, nor a cache into one."""

    def run(x_BTD, caches, layers: Layer, shared: Shared):
      outs = []
      for i in range(self.cfg.num_layers):
        own = block(self.cfg, self.dtype, keep_inputs, self.kernel, name=f"blocks_{i}")
        cache = None if caches is None else (caches[0][i], caches[1][i])
        x_BTD, out = own(x_BTD, cache, jax.tree.map(lambda x, i=i: x[i], layers), shared)
        outs.append(out)
      rest = jax.tree.map(lambda *each: jnp.stack(each), *(out._replace(cache=None) for out in outs))
      return x_BTD, rest._replace(cache=None if caches is None else tuple(zip(*(out.cache for out in outs), strict=True)))

    return run

  def _embed(self, inputs, perturb):
    cfg = self.cfg
    table = lambda rows, axes, name: Embed(rows, cfg.model_dim, axes, cfg.init_stddev, self.dtype, name=name)
    x_BTD = table(cfg.vocab_size, ("vocab", "embed"), "embed")(inputs["tokens"])
    if cfg.embed_scaled:
      x_BTD *= jnp.asarray(cfg.model_dim**0.5, x_BTD.dtype)
    if cfg.positions == "learned":
      rows = cfg.max_len + cfg.position_offset
      x_BTD += table(rows, (None, "embed"), "position_embed")(inputs["positions"] + cfg.position_offset)
    if cfg.token_types:
      token_types = inputs.get("token_types", jnp.zeros_like(inputs["tokens"]))
      x_BTD += table(cfg.token_types, (None, "embed"), "token_type_embed")(token_types)
    if perturb is not None:
      x_BTD += perturb
    if cfg.embed_norm == "own":
      x_BTD = Norm.of(cfg, "embed_norm")(x_BTD)
    x_BTD = Dropout(cfg.dropout_rate, name="embed_dropout")(x_BTD, inputs["row"])
    return constrain(x_BTD, *RESIDUAL)


def _layers(cfg: TransformerConfig) -> Layer:
  """What the blocks differ in; None for what they do not."""
  kinds = cfg.layer_kinds
  distinct = sorted(set(kinds))
  everything = np.iinfo(np.int32).max
  return Layer(
    kind=jnp.asarray([distinct.index(kind) for kind in kinds], jnp.int32) if len(distinct) > 1 else None,
    window=jnp.asarray([cfg.window if kind == "local" else everything for kind in kinds], jnp.int32) if cfg.window else None,
    first=jnp.arange(cfg.num_layers) == 0 if cfg.embed_norm == "first" else None,
  )


def _rotations(cfg: TransformerConfig, positions_BT: jax.Array) -> rope.Rotation | None:
  if cfg.positions != "rotary":
    return None
  by_kind = [rope.rotation(positions_BT, rope.frequencies(cfg, kind)) for kind in sorted(set(cfg.layer_kinds))]
  return jax.tree.map(lambda *x: jnp.stack(x), *by_kind)


def _extend(
  cache: Cache, segment_ids_BT: jax.Array, prefix_BT: jax.Array | None
) -> tuple[Cache, masks.Mask, tuple[jax.Array, jax.Array]]:
  """The cache with the new tokens' segment ids and length, the mask from them to all its slots, and the slots of both.

  prefix_BT: as `masks.in_row` takes it, of the new tokens: those before them are seen anyway.
  """
  B, T = segment_ids_BT.shape
  S = cache.segment_ids_BS.shape[1]
  write = lambda old_BS, new_BT: jax.lax.dynamic_update_slice_in_dim(old_BS, new_BT, cache.length, axis=1)
  segment_ids_BS = write(cache.segment_ids_BS, segment_ids_BT)
  prefix_BS = None if prefix_BT is None else write(jnp.zeros((B, S), bool), prefix_BT > 0)
  queries_BT = jnp.broadcast_to((cache.length + jnp.arange(T))[None, :], (B, T))
  keys_BS = jnp.broadcast_to(jnp.arange(S)[None, :], (B, S))
  mask = masks.Mask(causal=(queries_BT, keys_BS), prefix=prefix_BS) & masks.Mask(segments=(segment_ids_BT, segment_ids_BS))
  return cache.replace(segment_ids_BS=segment_ids_BS, length=cache.length + T), mask, (queries_BT, keys_BS)
