"""The values that make one `Transformer` a BERT, a GPT-2 or a Llama. No jax: presets and `lm.config` read it.

A mechanism is a field here; a family is a preset in `lm/models/presets/`, never a branch.
"""

import dataclasses

CHOICES = {
  "norm": ("layernorm", "rmsnorm"),
  "norm_position": ("pre", "post", "sandwich"),
  "embed_norm": ("none", "own", "first"),
  "positions": ("learned", "rotary"),
  "activation": ("gelu", "gelu_tanh", "relu", "relu_squared", "silu"),
  "pooler": ("tanh", "mlm", "none"),
}
# Fields that change nothing of what a trained model computes.
TRAINING_FIELDS = ("dropout_rate", "init_stddev", "balance_weight", "router_z_weight", "expert_capacity")
LAYER_KINDS = ("global", "local")


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
  norm_position: str = "pre"  # of a sublayer: pre (GPT-2), post: after the residual (BERT), sandwich: before and after (Gemma)
  norm_eps: float = 1e-5  # added to the variance
  norm_plus_one: bool = False  # the learned scale counts from 1 (Gemma)
  embed_norm: str = "none"  # none, own (BERT), or first: the first block's, whose output its residual starts from (ModernBERT)
  embed_scaled: bool = False  # the embedding is multiplied by sqrt(model_dim) (Gemma)
  positions: str = "learned"  # learned or rotary
  position_offset: int = 0  # rows at the start of the position table that are not used (RoBERTa has 2)
  rope_base: float = 10_000.0  # wavelength base of rotary positions
  local_rope_base: float = 0.0  # the same in local layers; 0: rope_base
  rope_share: float = 1.0  # of each head's channels, how many rotate
  rope_factor: float = 1.0  # wavelengths of global layers are this many times longer
  rope_original_len: int = 0  # [tokens] only wavelengths that were too long for this length are stretched (Llama 3); 0: all are
  layer_pattern: tuple[str, ...] = ("global",)  # kinds of layers, repeated over the depth: global or local
  window: int = 0  # [tokens] that a local layer sees, its own included, to one side
  activation: str = "gelu_tanh"  # gelu, gelu_tanh, relu, relu_squared or silu
  gated: bool = False  # ffn of two inputs, one through the activation: silu -> SwiGLU, gelu -> GEGLU
  bias: bool = True  # biases of the linear layers and of layernorm
  qkv_bias: bool = False  # biases of query, key and value, whatever `bias` is (Qwen2)
  qk_norm: bool = False  # RMS norm of queries and keys per head
  attention_scale: float = 0.0  # of the scores; 0: head_dim ** -0.5
  attention_softcap: float = 0.0  # scores are bent into -cap..cap by tanh; 0: not
  logit_softcap: float = 0.0  # the same for the logits of the vocabulary
  num_experts: int = 0  # expert feed-forward networks per layer, E; 0: one dense network
  experts_per_token: int = 0  # experts that each token is sent to, k
  expert_capacity: float = 0.0  # slots per expert, as a multiple of an even share of a row's tokens; 0: dropless, as Engine is
  renormalize_gates: bool = True  # the k gates of a token sum to 1
  balance_weight: float = 0.0  # of the load-balance loss (Fedus et al. 2021), computed per row so that it adds over rows
  router_z_weight: float = 0.0  # of the router's z-loss (Zoph et al. 2022)
  token_types: int = 0  # rows of the token-type table (BERT has 2), 0: none
  tied: bool = True  # the output projection is the embedding table
  pooler: str = "tanh"  # between hidden state and classes: tanh (BERT), mlm: as the mlm head (ModernBERT), none (GPT-2, Llama)
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
    if self.positions == "rotary" and (self.rotary_channels % 2 or not 0 < self.rotary_channels <= self.channels):
      raise ValueError(f"model.rope_share={self.rope_share}: of {self.channels} channels, an even number must rotate")
    if not self.layer_pattern or set(self.layer_pattern) - set(LAYER_KINDS):
      raise ValueError(f"model.layer_pattern={self.layer_pattern}: accepted are lists of {' and '.join(LAYER_KINDS)}")
    if ("local" in self.layer_kinds) != (self.window > 0):
      raise ValueError(f"model.window={self.window}: local layers need one, and only they (model.layer_pattern)")
    for name in ("experts_per_token", "expert_capacity", "balance_weight", "router_z_weight"):
      value = getattr(self, name)
      if value < 0 or value and not self.num_experts:
        raise ValueError(f"model.{name}={value}: must not be negative, and 0 without model.num_experts")
    if self.num_experts and (self.bias or not 0 < self.experts_per_token <= self.num_experts):
      raise ValueError(
        f"model.num_experts={self.num_experts}: needs model.bias=False and 1 to {self.num_experts} experts_per_token,"
        f" got {self.experts_per_token}"
      )
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

  @property
  def rotary_channels(self) -> int:
    """Channels per head that rotate."""
    return int(self.channels * self.rope_share)

  @property
  def layer_kinds(self) -> tuple[str, ...]:
    """The kind of every layer: the pattern, repeated."""
    return tuple(self.layer_pattern[i % len(self.layer_pattern)] for i in range(self.num_layers))
