"""Multi-head, grouped-query and multi-query attention (Vaswani et al. 2017; Ainslie et al. 2023)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from lm.layout import constrain
from lm.models import cudnn, splash
from lm.models.kernel import MIXED, Extra, Kernel, Rows
from lm.models.layers import Linear, Norm, soft_cap
from lm.models.mask import Mask
from lm.models.rope import Rotation, rotate
from lm.models.transformer_config import TransformerConfig
from lm.plug import ConfigError

MASKED = -1e30  # finite, so that a row that may see nothing gives no nan


def attend(rows: Rows, scale: float = 0.0, cap: float = 0.0) -> jax.Array:
  """Softmax attention, scores in fp32 -> [B, T, H, C]. The plain reference that kernels are tested against.

  scale: of the scores; 0: C ** -0.5. cap: of the scores, by `soft_cap`.

  Heads come first and the division by the softmax's sum comes after the product with the values: on a CPU this took half
  the time of `jax.nn.dot_product_attention`, since only [T, C] is divided instead of [T, S].
  """
  B, T, H, C = rows.q_BTHC.shape
  K = rows.k_BSKC.shape[2]
  q_BKGTC = (rows.q_BTHC * (scale or C**-0.5)).reshape(B, T, K, H // K, C).transpose(0, 2, 3, 1, 4)
  k_BKSC, v_BKSC = rows.k_BSKC.transpose(0, 2, 1, 3), rows.v_BSKC.transpose(0, 2, 1, 3)
  scores = jnp.einsum("bkgtc,bksc->bkgts", q_BKGTC, k_BKSC, preferred_element_type=jnp.float32)
  scores = soft_cap(scores, cap)
  allowed_BTS = rows.mask.as_array()
  if allowed_BTS is not None:
    scores = jnp.where(allowed_BTS[:, None, None, :, :], scores, MASKED)
  top, extra_scores = scores.max(-1, keepdims=True), None
  if rows.extra is not None:
    extra_scores = rows.extra.scores(q_BKGTC, cap)
    top = jnp.maximum(top, extra_scores.max(-1, keepdims=True))
  top = jax.lax.stop_gradient(top)
  weights = jnp.exp(scores - top)
  out = jnp.einsum("bkgts,bksc->bkgtc", weights.astype(v_BKSC.dtype), v_BKSC, preferred_element_type=jnp.float32)
  total = weights.sum(-1, keepdims=True)
  if rows.extra is not None and extra_scores is not None:
    weights = jnp.exp(extra_scores - top)
    out += jnp.einsum("bkgtp,pkc->bkgtc", weights, rows.extra.v_PKC.astype(jnp.float32))
    total += weights.sum(-1, keepdims=True)
  return (out / total).transpose(0, 3, 1, 2, 4).reshape(B, T, H, C).astype(rows.q_BTHC.dtype)


KERNELS = {"splash": splash, "cudnn": cudnn}


class Core(nn.Module):
  """(q, k, v, mask) -> mixed values: a module of its own so that kernels can stand in its place, and extra keys beside.

  Raises:
    ConfigError: the kernel was asked for by name and cannot compute this.
  """

  cfg: TransformerConfig
  kernel: Kernel = Kernel()

  @nn.compact
  def __call__(
    self, q_BTHC: jax.Array, k_BSKC: jax.Array, v_BSKC: jax.Array, mask: Mask, extra: Extra | None = None
  ) -> jax.Array:
    cfg, rows = self.cfg, Rows(q_BTHC, k_BSKC, v_BSKC, mask, extra)
    module = KERNELS.get(self.kernel.name)
    if module is not None and not self.is_initializing():
      reason = module.refuses(rows, cfg)
      if not reason:
        return module.attend(rows, cfg, self.kernel.device)
      if self.kernel.required:
        raise ConfigError(f"config.attention={self.kernel.name!r}: {reason}; accepted here are auto and plain")
    return checkpoint_name(attend(rows, cfg.attention_scale, cfg.attention_softcap), MIXED)


class Attention(nn.Module):
  """Self-attention of one layer; with a cache slice the new keys and values are written at slot `start`.

  kernel: of whole rows; with a cache, a few queries over its slots are always the plain reference's.
  """

  cfg: TransformerConfig
  dtype: DTypeLike
  kernel: Kernel = Kernel()

  @nn.compact
  def __call__(self, x_BTD, by: Rotation | None, mask, cache=None, start=None):
    cfg = self.cfg
    bias = cfg.bias or cfg.qkv_bias
    project = lambda name, heads: Linear(
      (heads, cfg.channels), ("embed", "heads", "channels"), bias=bias, stddev=cfg.init_stddev, dtype=self.dtype, name=name
    )(x_BTD)
    q_BTHC, k_BTKC, v_BTKC = project("query", cfg.num_heads), project("key", cfg.kv_heads), project("value", cfg.kv_heads)
    if cfg.qk_norm:
      per_head = lambda name: Norm("rmsnorm", cfg.norm_eps, offset=float(cfg.norm_plus_one), axis="channels", name=name)
      q_BTHC, k_BTKC = per_head("query_norm")(q_BTHC), per_head("key_norm")(k_BTKC)
    if by is not None:
      q_BTHC, k_BTKC = rotate(q_BTHC, by), rotate(k_BTKC, by)
    # Split first, so that keys and values are gathered, and not the hidden states that all of them would be projected from.
    q_BTHC, k_BTKC, v_BTKC = (constrain(x, "batch", "length", "heads", "channels") for x in (q_BTHC, k_BTKC, v_BTKC))
    if cache is not None and start is not None:
      write = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), start, axis=1)
      k_BTKC, v_BTKC = cache = (write(cache[0], k_BTKC), write(cache[1], v_BTKC))
    kernel = self.kernel if cache is None else Kernel()
    k_BTKC, v_BTKC = (constrain(x, "batch", "keys", "heads", "channels") for x in (k_BTKC, v_BTKC))
    mixed_BTHC = constrain(Core(cfg, kernel, name="core")(q_BTHC, k_BTKC, v_BTKC, mask), "batch", "length", "heads", "channels")
    out = Linear(
      (cfg.model_dim,), ("heads", "channels", "embed"), num_inputs=2, bias=cfg.bias,
      stddev=cfg.init_stddev * (2 * cfg.num_layers) ** -0.5, dtype=self.dtype, name="out",
    )  # fmt: skip
    return out(mixed_BTHC), cache
