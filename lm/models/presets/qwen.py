"""Qwen3 (Yang et al. 2025): Llama's block with normed queries and keys, dense or with experts; Qwen2.5's with biased ones."""

import dataclasses

from lm.models import family
from lm.models.family import BLOCKS, Family, Key, linear
from lm.models.transformer_config import TransformerConfig

_8B = TransformerConfig(
  num_layers=36, model_dim=4096, num_heads=32, num_kv_heads=8, head_dim=128, ffn_dim=12288, max_len=40_960, causal=True,
  vocab_size=151_936, norm="rmsnorm", norm_eps=1e-6, positions="rotary", rope_base=1_000_000.0, activation="silu", gated=True,
  bias=False, qk_norm=True, tied=False, pooler="none",
)  # fmt: skip
_4B = dataclasses.replace(_8B, model_dim=2560, ffn_dim=9728, tied=True)
_30B_A3B = dataclasses.replace(
  _8B, num_layers=48, model_dim=2048, num_kv_heads=4, ffn_dim=768, num_experts=128, experts_per_token=8, balance_weight=0.008
)
_25 = dataclasses.replace(_8B, max_len=32_768, qk_norm=False, qkv_bias=True, tied=True, head_dim=0)

PRESETS = {
  "qwen3-0.6b": dataclasses.replace(_4B, num_layers=28, model_dim=1024, num_heads=16, ffn_dim=3072),
  "qwen3-1.7b": dataclasses.replace(_4B, num_layers=28, model_dim=2048, num_heads=16, ffn_dim=6144),
  "qwen3-4b": _4B,
  "qwen3-8b": _8B,
  "qwen3-14b": dataclasses.replace(_8B, num_layers=40, model_dim=5120, num_heads=40, ffn_dim=17408),
  "qwen3-32b": dataclasses.replace(_8B, num_layers=64, model_dim=5120, num_heads=64, ffn_dim=25600),
  "qwen3-30b-a3b": _30B_A3B,
  "qwen2.5-0.5b": dataclasses.replace(_25, num_layers=24, model_dim=896, num_heads=14, num_kv_heads=2, ffn_dim=4864),
  "qwen2.5-1.5b": dataclasses.replace(_25, num_layers=28, model_dim=1536, num_heads=12, num_kv_heads=2, ffn_dim=8960),
}

_KEYS = {**family.DECODER_KEYS, "head_dim": Key("head_dim", 128)}
_DENSE = (*family.DECODER_ENDS, *family.DECODER_NORMS, *family.DECODER_ATTENTION, *family.DECODER_FFN)
_QWEN3 = Family(
  model_type="qwen3",
  like=_8B,
  keys=_KEYS,
  weights=_DENSE,
  prefixes=("model.", ""),
  classes=family.decoder_classes("Qwen3"),
  heads=family.DECODER_HEADS,
  only={"attention_bias": (False,), "use_sliding_window": (False,)},
  rope="flat",
  copies=family.TIED,
  ignored=family.DECODER_IGNORED,
)
_EXPERT = "layers.{layer}.mlp.experts.{expert}."

FAMILIES = (
  _QWEN3,
  dataclasses.replace(
    _QWEN3,
    model_type="qwen2",
    like=_25,
    keys={name: key for name, key in _KEYS.items() if name != "head_dim"},
    classes=family.decoder_classes("Qwen2"),
    only={"use_sliding_window": (False,)},
  ),
  dataclasses.replace(
    _QWEN3,
    model_type="qwen3_moe",
    like=_30B_A3B,
    keys=_KEYS | {
      "head_dim": Key("head_dim", 0),
      "ffn_dim": Key("moe_intermediate_size"),
      "num_experts": Key("num_experts", alias="num_local_experts"),
      "experts_per_token": Key("num_experts_per_tok"),
      "renormalize_gates": Key("norm_topk_prob", False),
      "balance_weight": Key("router_aux_loss_coef", 0.001),
    },
    weights=(
      *family.DECODER_ENDS, *family.DECODER_NORMS, *family.DECODER_ATTENTION,
      *linear(BLOCKS + "ffn/router", "layers.{layer}.mlp.gate"),
      *linear(BLOCKS + "ffn/gate", _EXPERT + "gate_proj"),
      *linear(BLOCKS + "ffn/up", _EXPERT + "up_proj"),
      *linear(BLOCKS + "ffn/down", _EXPERT + "down_proj"),
    ),
    classes=family.decoder_classes("Qwen3Moe"),
    only={**_QWEN3.only, "decoder_sparse_step": (1,), "mlp_only_layers": ((),)},
  ),
)  # fmt: skip
