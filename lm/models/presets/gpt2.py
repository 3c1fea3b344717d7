"""GPT-2 (Radford et al. 2019): pre-norm decoder, learned positions, tied embedding. Sizes of the released models."""

import dataclasses

from lm.models.transformer_config import TransformerConfig

_SMALL = TransformerConfig(
  num_layers=12, model_dim=768, num_heads=12, ffn_dim=3072, max_len=1024, causal=True, vocab_size=50257
)

PRESETS = {
  "gpt2": _SMALL,
  "gpt2-medium": dataclasses.replace(_SMALL, num_layers=24, model_dim=1024, num_heads=16, ffn_dim=4096),
  "gpt2-large": dataclasses.replace(_SMALL, num_layers=36, model_dim=1280, num_heads=20, ffn_dim=5120),
  "gpt2-xl": dataclasses.replace(_SMALL, num_layers=48, model_dim=1600, num_heads=25, ffn_dim=6400),
  # For study, on any tokenizer: rotary positions, RMSNorm and an untied head, which win at this size.
  "gpt2-tiny": TransformerConfig(
    num_layers=4, model_dim=192, num_heads=3, ffn_dim=768, max_len=2048, causal=True,
    norm="rmsnorm", positions="rotary", activation="relu_squared", qk_norm=True, bias=False, tied=False,
  ),
}  # fmt: skip
