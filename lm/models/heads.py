"""What stands on the backbone: language-model, masked-language-model and classifier heads. Logits are fp32.

A task asks for a head by a `HeadSpec`; two tasks of one run may share a head of the same name and spec.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lm.models.layers import ACTIVATIONS, Dropout, Linear, Norm, broadcast_to_rank, logical
from lm.models.transformer_config import TransformerConfig


@dataclasses.dataclass(frozen=True)
class HeadSpec:
  """kind: lm, mlm or classifier. num_outputs: classes of a classifier; the vocabulary heads take the model's."""

  kind: str
  num_outputs: int = 0


def _vocab_logits(h: jax.Array, table_VD: jax.Array) -> jax.Array:
  return jnp.einsum("...d,vd->...v", h, table_VD.astype(h.dtype), preferred_element_type=jnp.float32)


class LmHead(nn.Module):
  """Next-token logits [..., V]: the embedding table transposed, or a kernel of its own when untied."""

  cfg: TransformerConfig
  spec: HeadSpec
  dtype: DTypeLike

  @nn.compact
  def __call__(self, h: jax.Array, row_B: jax.Array, table_VD: jax.Array) -> jax.Array:
    if self.cfg.tied:
      return _vocab_logits(h, table_VD)
    out = Linear(
      (self.cfg.vocab_size,), ("embed", "vocab"), bias=False, stddev=self.cfg.init_stddev, dtype=self.dtype, name="out"
    )
    return out(h).astype(jnp.float32)


class MlmHead(nn.Module):
  """BERT's masked-token logits: dense, activation, norm, then the tied table and a bias."""

  cfg: TransformerConfig
  spec: HeadSpec
  dtype: DTypeLike

  @nn.compact
  def __call__(self, h: jax.Array, row_B: jax.Array, table_VD: jax.Array) -> jax.Array:
    cfg = self.cfg
    dense = Linear(
      (cfg.model_dim,), ("embed", "mlp"), bias=cfg.bias, stddev=cfg.init_stddev, dtype=self.dtype, name="transform"
    )
    h = Norm(cfg.norm, cfg.norm_eps, cfg.bias, name="norm")(ACTIVATIONS[cfg.activation](dense(h)))
    zeros = logical(nn.initializers.zeros, ("vocab",))
    bias_V = self.param("bias", zeros, (cfg.vocab_size,))
    if cfg.tied:
      logits = _vocab_logits(h, table_VD)
    else:
      out = Linear((cfg.vocab_size,), ("embed", "vocab"), bias=False, stddev=cfg.init_stddev, dtype=self.dtype, name="out")
      logits = out(h).astype(jnp.float32)
    return logits + broadcast_to_rank(bias_V, logits.ndim)


class ClassifierHead(nn.Module):
  """Class logits [B, N] of one hidden state per row: BERT's pooler (dense, tanh), dropout, linear."""

  cfg: TransformerConfig
  spec: HeadSpec
  dtype: DTypeLike

  @nn.compact
  def __call__(self, h_BD: jax.Array, row_B: jax.Array, table_VD: jax.Array) -> jax.Array:
    cfg = self.cfg
    linear = lambda features, axes, name: Linear((features,), axes, stddev=cfg.init_stddev, dtype=self.dtype, name=name)
    pooled = jnp.tanh(linear(cfg.model_dim, ("embed", "mlp"), "pooler")(h_BD))
    pooled = Dropout(cfg.dropout_rate, name="dropout")(pooled, row_B)
    return linear(self.spec.num_outputs, ("embed", "classes"), "out")(pooled).astype(jnp.float32)


HEADS = {"lm": LmHead, "mlm": MlmHead, "classifier": ClassifierHead}
