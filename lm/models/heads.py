"""What stands on the backbone: heads of language models, masked ones, classifiers, taggers and spans. Logits are fp32.

A task asks for a head by a `HeadSpec`; two tasks of one run may share a head of the same name and spec.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lm.models.head_spec import HeadSpec
from lm.models.layers import ACTIVATIONS, Dropout, Linear, Norm, broadcast_to_rank, contract, logical, soft_cap
from lm.models.transformer_config import TransformerConfig


def _vocab_logits(cfg: TransformerConfig, h: jax.Array, table_VD: jax.Array | None, dtype: DTypeLike) -> jax.Array:
  """Logits [..., V]: the embedding table transposed, or a kernel of the head's own when untied."""
  if cfg.tied:
    assert table_VD is not None
    logits = contract(h, table_VD.astype(h.dtype).T, dtype=h.dtype, result=jnp.float32)
  else:
    out = Linear((cfg.vocab_size,), ("embed", "vocab"), bias=False, stddev=cfg.init_stddev, dtype=dtype, name="out")
    logits = out(h).astype(jnp.float32)
  return soft_cap(logits, cfg.logit_softcap)


def _transform(cfg: TransformerConfig, h: jax.Array, dtype: DTypeLike) -> jax.Array:
  """BERT's and ModernBERT's prediction head before the vocabulary: dense, activation, norm."""
  dense = Linear((cfg.model_dim,), ("embed", "mlp"), bias=cfg.bias, stddev=cfg.init_stddev, dtype=dtype, name="transform")
  return Norm.of(cfg, "norm")(ACTIVATIONS[cfg.activation](dense(h)))


class LmHead(nn.Module):
  """Next-token logits [..., V]."""

  cfg: TransformerConfig
  spec: HeadSpec
  dtype: DTypeLike

  @nn.compact
  def __call__(self, h: jax.Array, row_B: jax.Array, table_VD: jax.Array | None) -> jax.Array:
    return _vocab_logits(self.cfg, h, table_VD, self.dtype)


class MlmHead(nn.Module):
  """Masked-token logits [..., V]: BERT's transform, then the vocabulary and a bias."""

  cfg: TransformerConfig
  spec: HeadSpec
  dtype: DTypeLike

  @nn.compact
  def __call__(self, h: jax.Array, row_B: jax.Array, table_VD: jax.Array | None) -> jax.Array:
    cfg = self.cfg
    h = _transform(cfg, h, self.dtype)
    zeros = logical(nn.initializers.zeros, ("vocab",))
    bias_V = self.param("bias", zeros, (cfg.vocab_size,))
    logits = _vocab_logits(cfg, h, table_VD, self.dtype)
    return logits + broadcast_to_rank(bias_V, logits.ndim)


class ClassifierHead(nn.Module):
  """Class logits [B, N] of one hidden state per row: the pooler, dropout, linear. N = 0 gives what the pooler gives, [B, D]."""

  cfg: TransformerConfig
  spec: HeadSpec
  dtype: DTypeLike
  out: str = "out"  # name of the last layer

  @nn.compact
  def __call__(self, h: jax.Array, row_B: jax.Array, table_VD: jax.Array | None) -> jax.Array:
    cfg = self.cfg
    linear = lambda features, axes, bias, name: Linear(
      (features,), axes, bias=bias, stddev=cfg.init_stddev, dtype=self.dtype, name=name
    )
    pooled = h
    if cfg.pooler == "tanh":
      pooled = jnp.tanh(linear(cfg.model_dim, ("embed", "mlp"), True, "pooler")(h))
    if cfg.pooler == "mlm":
      pooled = _transform(cfg, h, self.dtype)
    if not self.spec.num_outputs:
      return pooled.astype(jnp.float32)
    pooled = Dropout(cfg.dropout_rate, name="dropout")(pooled, row_B)
    return linear(self.spec.num_outputs, ("embed", "classes"), cfg.pooler != "none", self.out)(pooled).astype(jnp.float32)


class ChooserHead(ClassifierHead):
  """Logits [B, N] of N choices, from one hidden state of each, [B, N, D]: a classifier's one output, for a softmax over N."""

  @nn.compact
  def __call__(self, h: jax.Array, row_B: jax.Array, table_VD: jax.Array | None) -> jax.Array:
    return super().__call__(h, row_B, table_VD)[..., 0]


class PairHead(ClassifierHead):
  """BERT's pretraining of the pooler: a classifier whose last layer has a name of its own, so that fine-tuning begins anew."""

  out: str = "pair"


class TaggerHead(nn.Module):
  """Class logits [..., N] of every hidden state: ModernBERT's transform where the model has it, dropout, linear. No pooler."""

  cfg: TransformerConfig
  spec: HeadSpec
  dtype: DTypeLike
  drops: bool = True  # whether there is dropout

  @nn.compact
  def __call__(self, h: jax.Array, row_B: jax.Array, table_VD: jax.Array | None) -> jax.Array:
    cfg = self.cfg
    if cfg.pooler == "mlm":
      h = _transform(cfg, h, self.dtype)
    h = Dropout(cfg.dropout_rate if self.drops else 0.0, name="dropout")(h, row_B)
    out = Linear(
      (self.spec.num_outputs,), ("embed", "classes"), bias=True, stddev=cfg.init_stddev, dtype=self.dtype, name="out"
    )
    return out(h).astype(jnp.float32)


class SpanHead(TaggerHead):
  """How much every token is the start and the end of an answer, [..., 2]: BERT has no dropout before it."""

  drops: bool = False


class SimilarityHead(nn.Module):
  """Scores [B, K - 1] of texts beside the first, from the hidden states [B, K, D] of all: a learned scale times the cosine.

  The scale begins at 20 (a temperature of 0.05). With num_outputs 1 a learned bias, 0 at first, is added.
  """

  cfg: TransformerConfig
  spec: HeadSpec
  dtype: DTypeLike

  @nn.compact
  def __call__(self, h_BKD: jax.Array, row_B: jax.Array, table_VD: jax.Array | None) -> jax.Array:
    h_BKD = h_BKD.astype(jnp.float32)
    unit_BKD = h_BKD * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(h_BKD), axis=-1, keepdims=True), 1e-12))
    cosine_BK = jnp.einsum("bd,bkd->bk", unit_BKD[:, 0], unit_BKD[:, 1:])
    number = lambda name, start: self.param(name, logical(nn.initializers.constant(start), ("classes",)), (1,))[0]
    scores_BK = cosine_BK * jnp.exp(number("log_scale", math.log(20.0)))
    return scores_BK + number("bias", 0.0) if self.spec.num_outputs else scores_BK


HEADS = {
  "lm": LmHead,
  "mlm": MlmHead,
  "classifier": ClassifierHead,
  "chooser": ChooserHead,
  "pair": PairHead,
  "tagger": TaggerHead,
  "span": SpanHead,
  "similarity": SimilarityHead,
}
ROW_HEADS = ("classifier", "pair")  # those that read one hidden state per row
