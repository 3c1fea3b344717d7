"""Gemma 3 (2025): sandwich norms with scales from 1, GEGLU, five local layers to one global; and Gemma 2's (2024) soft caps."""

import dataclasses

from lm.models import family
from lm.models.family import BLOCKS, Family, Key, norm
from lm.models.transformer_config import TransformerConfig

_4B = TransformerConfig(
  num_layers=34, model_dim=2560, num_heads=8, num_kv_heads=4, head_dim=256, ffn_dim=10240, max_len=131_072, causal=True,
  vocab_size=262_208, norm="rmsnorm", norm_position="sandwich", norm_eps=1e-6, norm_plus_one=True, embed_scaled=True,
  positions="rotary", rope_base=1_000_000.0, local_rope_base=10_000.0, rope_factor=8.0,
  layer_pattern=(*["local"] * 5, "global"), window=1024, activation="gelu_tanh", gated=True, bias=False, qk_norm=True,
  attention_scale=256**-0.5, pooler="none",
)  # fmt: skip
_GEMMA2_2B = dataclasses.replace(
  _4B, num_layers=26, model_dim=2304, ffn_dim=9216, max_len=8192, vocab_size=256_000, rope_base=10_000.0, local_rope_base=0.0,
  rope_factor=1.0, layer_pattern=("local", "global"), window=4096, qk_norm=False, attention_softcap=50.0, logit_softcap=30.0,
)  # fmt: skip

PRESETS = {
  "gemma-3-1b": dataclasses.replace(
    _4B, num_layers=26, model_dim=1152, num_heads=4, num_kv_heads=1, ffn_dim=6912, max_len=32_768, vocab_size=262_144,
    rope_factor=1.0, window=512,
  ),
  "gemma-3-4b": _4B,
  "gemma-3-12b": dataclasses.replace(_4B, num_layers=48, model_dim=3840, num_heads=16, num_kv_heads=8, ffn_dim=15360),
  "gemma-3-27b": dataclasses.replace(
    _4B, num_layers=62, model_dim=5376, num_heads=32, num_kv_heads=16, head_dim=128, ffn_dim=21504, attention_scale=168**-0.5
  ),
  "gemma-2-2b": _GEMMA2_2B,
}  # fmt: skip

_LAYER = "layers.{layer}."
_GEMMA3 = Family(
  model_type="gemma3_text",
  like=_4B,
  keys=family.DECODER_KEYS
  | {
    "num_heads": Key("num_attention_heads", 8),
    "num_kv_heads": Key("num_key_value_heads", 4),
    "head_dim": Key("head_dim", 256),
    "max_len": Key("max_position_embeddings", 131_072),
    "vocab_size": Key("vocab_size", 262_208),
    "activation": Key("hidden_activation", "gelu_pytorch_tanh"),
    "tied": Key("tie_word_embeddings", True),
    "attention_scale": Key("query_pre_attn_scalar", 256),
    "logit_softcap": Key("final_logit_softcapping", 0.0),
  },
  weights=(
    *family.DECODER_ENDS,
    *family.DECODER_ATTENTION,
    *family.DECODER_FFN,
    *norm(BLOCKS + "attention_norm", _LAYER + "input_layernorm"),
    *norm(BLOCKS + "attention_post_norm", _LAYER + "post_attention_layernorm"),
    *norm(BLOCKS + "ffn_norm", _LAYER + "pre_feedforward_layernorm"),
    *norm(BLOCKS + "ffn_post_norm", _LAYER + "post_feedforward_layernorm"),
  ),
  # The last two are of multimodal files, the older and the newer form.
  prefixes=("model.", "", "language_model.model.", "model.language_model."),
  classes={"": "Gemma3TextModel", "lm": "Gemma3ForCausalLM", "classifier": "Gemma3TextForSequenceClassification"},
  heads=family.DECODER_HEADS,
  only={"attention_bias": (False,), "use_bidirectional_attention": (False,), "attn_logit_softcapping": (None,)},
  window="sliding_window",
  pattern=_4B.layer_pattern,
  period="sliding_window_pattern",
  rope="by_kind",
  rope_base=1_000_000.0,
  copies=(*family.TIED, ("language_model.lm_head.weight", "embed_tokens.weight")),
  ignored=(*family.DECODER_IGNORED, r"(model\.)?(vision_tower|multi_modal_projector)\..*"),
  nested="text_config",
  aliases=("gemma3",),
)

FAMILIES = (
  _GEMMA3,
  dataclasses.replace(
    _GEMMA3,
    model_type="gemma2",
    like=_GEMMA2_2B,
    keys={
      **_GEMMA3.keys,
      "attention_softcap": Key("attn_logit_softcapping", 50.0),
      "logit_softcap": Key("final_logit_softcapping", 30.0),
    },
    prefixes=("model.", ""),
    classes=family.decoder_classes("Gemma2"),
    pattern=_GEMMA2_2B.layer_pattern,
    period="",
    rope="flat",
    rope_base=10_000.0,
    only={name: values for name, values in _GEMMA3.only.items() if name != "attn_logit_softcapping"},
    nested="",
    aliases=(),
  ),
)  # fmt: skip
