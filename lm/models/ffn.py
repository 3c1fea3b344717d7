"""The feed-forward sublayer: two linear maps around an activation, optionally gated (Shazeer 2020)."""

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from lm.layout import constrain
from lm.models.layers import ACTIVATIONS, Linear
from lm.models.transformer_config import TransformerConfig


class Ffn(nn.Module):
  """[B, T, D] -> [B, T, D]."""

  cfg: TransformerConfig
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    cfg = self.cfg
    widen = lambda name: Linear(
      (cfg.ffn_dim,), ("embed", "mlp"), bias=cfg.bias, stddev=cfg.init_stddev, dtype=self.dtype, name=name
    )(x_BTD)
    activate = ACTIVATIONS[cfg.activation]
    h_BTF = activate(widen("gate")) * widen("up") if cfg.gated else activate(widen("up"))
    h_BTF = constrain(h_BTF, "batch", "length", "mlp")
    stddev = cfg.init_stddev * (2 * cfg.num_layers) ** -0.5
    return Linear(
      (cfg.model_dim,), ("mlp", "embed"), bias=cfg.bias, stddev=stddev, dtype=self.dtype, name="down"
    )(h_BTF)  # fmt: skip
