"""The values that make one `Transformer` a BERT, a GPT-2 or a Llama. No jax: presets and `lm.config` read it.

A mechanism is a field here; a family is a preset in `lm/models/presets/`, never a branch.
"""

import dataclasses

CHOICES = {
  "norm": ("layernorm", "rmsnorm"),
  "norm_position": ("pre", "post"),
  "positions": ("learned", "rotary"),
  "activation": ("gelu", "gelu_tanh", "relu", "relu_squared", "silu"),
}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """One transformer. Sizes have no default: a preset states them all."""

  num_layers: int  # blocks, L
  model_dim: int  # channels of the residual stream, D
  num_heads: int  # query heads, H
  ffn_dim: int  # hidden units of the feed-forward sublayer, F
  max_len: int  # [tokens] longest row; the table's length with learned positions
  causal: bool  # position t sees only positions <= t: autoregressive tasks need it, masked ones refuse it
  vocab_size: int = 0  # pieces, V; 0: that of the tokenizer
  num_kv_heads: int = 0  # key and value heads, K; 0: num_heads; fewer is grouped-query attention
  head_dim: int = 0  # channels per head, C; 0: model_dim / num_heads
  norm: str = "layernorm"  # layernorm or rmsnorm
  norm_position: str = "pre"  # pre: before each sublayer with a final norm (GPT); post: after its residual (BERT)
  norm_eps: float = 1e-5  # added to the variance
  positions: str = "learned"  # learned or rotary
  rope_base: float = 10_000.0  # wavelength base of rotary positions
  activation: str = "gelu_tanh"  # gelu, gelu_tanh, relu, relu_squared or silu
  gated: bool = False  # ffn of two inputs, one through the activation: silu -> SwiGLU, gelu -> GEGLU
  bias: bool = True  # biases of the linear layers and of layernorm
  qk_norm: bool = False  # RMS norm of queries and keys per head
  token_types: int = 0  # rows of the token-type table (BERT has 2), 0: none
  tied: bool = True  # the output projection is the embedding table
  dropout_rate: float = 0.0  # after the embedding and each sublayer
  init_stddev: float = 0.02  # of every kernel and table; residual outputs are scaled down by sqrt(2 * num_layers)

  def __post_init__(self):
    for name, accepted in CHOICES.items():
      if getattr(self, name) not in accepted:
        raise ValueError(f"model.{name}={getattr(self, name)!r}: accepted are {', '.join(accepted)}")
    for name in ("num_layers", "model_dim", "num_heads", "ffn_dim", "max_len"):
      if getattr(self, name) < 1:
        raise ValueError(f"model.{name}={getattr(self, name)}: must be at least 1")
    if not self.head_dim and self.model_dim % self.num_heads:
      raise ValueError(f"model.num_heads={self.num_heads}: must divide model.model_dim={self.model_dim}")
    if self.num_heads % self.kv_heads:
      raise ValueError(f"model.num_kv_heads={self.num_kv_heads}: must divide model.num_heads={self.num_heads}")
    if self.positions == "rotary" and self.channels % 2:
      raise ValueError(f"model.head_dim={self.channels}: rotary positions need an even number")
    if not 0 <= self.dropout_rate < 1:
      raise ValueError(f"model.dropout_rate={self.dropout_rate}: must be in [0, 1)")

  @property
  def channels(self) -> int:
    """Channels per head (C)."""
    return self.head_dim or self.model_dim // self.num_heads

  @property
  def kv_heads(self) -> int:
    """Key and value heads (K)."""
    return self.num_kv_heads or self.num_heads
