"""Mixtral (Jiang et al. 2024): Llama's block with eight experts, of which every token reads two."""

from lm.models import family
from lm.models.family import BLOCKS, Family, Key, linear
from lm.models.transformer_config import TransformerConfig

_8X7B = TransformerConfig(
  num_layers=32, model_dim=4096, num_heads=32, num_kv_heads=8, ffn_dim=14336, max_len=32_768, causal=True, vocab_size=32_000,
  norm="rmsnorm", norm_eps=1e-5, positions="rotary", rope_base=1_000_000.0, activation="silu", gated=True, bias=False,
  num_experts=8, experts_per_token=2, balance_weight=0.04, tied=False, pooler="none",
)  # fmt: skip

PRESETS = {"mixtral-8x7b": _8X7B}

_EXPERT = "layers.{layer}.block_sparse_moe.experts.{expert}."
FAMILIES = (
  Family(
    model_type="mixtral",
    like=_8X7B,
    keys={
      **family.DECODER_KEYS,
      "num_kv_heads": Key("num_key_value_heads", 8),
      "norm_eps": Key("rms_norm_eps", 1e-5),
      "num_experts": Key("num_local_experts"),
      "experts_per_token": Key("num_experts_per_tok"),
      "balance_weight": Key("router_aux_loss_coef", 0.001),
    },
    weights=(
      *family.DECODER_ENDS,
      *family.DECODER_NORMS,
      *family.DECODER_ATTENTION,
      *linear(BLOCKS + "ffn/router", "layers.{layer}.block_sparse_moe.gate"),
      *linear(BLOCKS + "ffn/gate", _EXPERT + "w1"),
      *linear(BLOCKS + "ffn/down", _EXPERT + "w2"),
      *linear(BLOCKS + "ffn/up", _EXPERT + "w3"),
    ),
    prefixes=("model.", ""),
    classes=family.decoder_classes("Mixtral"),
    heads=family.DECODER_HEADS,
    only={"sliding_window": (None,)},
    rope="flat",
    rope_base=1_000_000.0,
    copies=family.TIED,
    ignored=family.DECODER_IGNORED,
  ),
)
