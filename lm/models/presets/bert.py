"""BERT (Devlin et al. 2018): post-norm encoder, learned positions, token types. Sizes of the released models."""

import dataclasses

from lm.models.transformer_config import TransformerConfig

_BASE = TransformerConfig(
  num_layers=12, model_dim=768, num_heads=12, ffn_dim=3072, max_len=512, causal=False, vocab_size=30522,
  norm_position="post", norm_eps=1e-12, activation="gelu", token_types=2, dropout_rate=0.1,
)  # fmt: skip
_LARGE = dataclasses.replace(_BASE, num_layers=24, model_dim=1024, num_heads=16, ffn_dim=4096)

PRESETS = {
  "bert-base-uncased": _BASE,
  "bert-large-uncased": _LARGE,
  "bert-base-cased": dataclasses.replace(_BASE, vocab_size=28996),
  "bert-large-cased": dataclasses.replace(_LARGE, vocab_size=28996),
  "bert-base-chinese": dataclasses.replace(_BASE, vocab_size=21128),
  # For study, on any tokenizer: the backbone of gpt2-tiny with both directions visible.
  "bert-tiny": TransformerConfig(
    num_layers=4, model_dim=192, num_heads=3, ffn_dim=768, max_len=2048, causal=False,
    norm="rmsnorm", positions="rotary", activation="relu_squared", qk_norm=True, bias=False,
  ),
}  # fmt: skip
