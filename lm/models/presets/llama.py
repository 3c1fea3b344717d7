"""Llama 3 to 3.2 (Grattafiori et al. 2024): pre-norm decoder, RMSNorm, SwiGLU, grouped queries, scaled rotary positions.

Llama 2 (Touvron et al. 2023) before it, without grouped queries at 7B, and TinyLlama (Zhang et al. 2024) in its likeness.
"""

import dataclasses

from lm.models import family
from lm.models.family import Family
from lm.models.transformer_config import TransformerConfig

_8B = TransformerConfig(
  num_layers=32, model_dim=4096, num_heads=32, num_kv_heads=8, ffn_dim=14336, max_len=131_072, causal=True, vocab_size=128_256,
  norm="rmsnorm", norm_eps=1e-5, positions="rotary", rope_base=500_000.0, rope_factor=8.0, rope_original_len=8192,
  activation="silu", gated=True, bias=False, tied=False, pooler="none",
)  # fmt: skip
_3B = dataclasses.replace(
  _8B, num_layers=28, model_dim=3072, num_heads=24, ffn_dim=8192, head_dim=128, rope_factor=32.0, tied=True
)
_70B = dataclasses.replace(_8B, num_layers=80, model_dim=8192, num_heads=64, ffn_dim=28672)
_UNSCALED = {"max_len": 8192, "rope_factor": 1.0, "rope_original_len": 0}  # Llama 3 before 3.1
_2_7B = dataclasses.replace(
  _8B, num_kv_heads=0, ffn_dim=11008, max_len=4096, vocab_size=32_000, rope_base=10_000.0, rope_factor=1.0, rope_original_len=0
)

PRESETS = {
  "llama-3.2-1b": dataclasses.replace(_3B, num_layers=16, model_dim=2048, num_heads=32, head_dim=64),
  "llama-3.2-3b": _3B,
  "llama-3.1-8b": _8B,
  "llama-3.1-70b": _70B,
  "tinyllama-1.1b": dataclasses.replace(_2_7B, num_layers=22, model_dim=2048, num_kv_heads=4, ffn_dim=5632, max_len=2048),
  "llama-2-7b": _2_7B,
  "llama-3-8b": dataclasses.replace(_8B, **_UNSCALED),
  "llama-3-70b": dataclasses.replace(_70B, **_UNSCALED),
}

FAMILIES = (
  Family(
    model_type="llama",
    like=_8B,
    keys=family.DECODER_KEYS,
    weights=(*family.DECODER_ENDS, *family.DECODER_NORMS, *family.DECODER_ATTENTION, *family.DECODER_FFN),
    prefixes=("model.", ""),
    classes=family.decoder_classes("Llama"),
    heads=family.DECODER_HEADS,
    only={"attention_bias": (False,), "mlp_bias": (False,), "pretraining_tp": (1,)},
    rope="flat",
    copies=family.TIED,
    ignored=family.DECODER_IGNORED,
  ),
)
