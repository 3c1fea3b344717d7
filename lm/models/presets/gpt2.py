"""GPT-2 (Radford et al. 2019): pre-norm decoder, learned positions, tied embedding. Sizes of the released models."""

import dataclasses

from lm.models.family import BLOCKS, Family, Key, conv1d, linear, norm, table
from lm.models.transformer_config import TransformerConfig

_SMALL = TransformerConfig(
  num_layers=12, model_dim=768, num_heads=12, ffn_dim=3072, max_len=1024, causal=True, vocab_size=50257, pooler="none"
)

PRESETS = {
  "gpt2": _SMALL,
  "gpt2-medium": dataclasses.replace(_SMALL, num_layers=24, model_dim=1024, num_heads=16, ffn_dim=4096),
  "gpt2-large": dataclasses.replace(_SMALL, num_layers=36, model_dim=1280, num_heads=20, ffn_dim=5120),
  "gpt2-xl": dataclasses.replace(_SMALL, num_layers=48, model_dim=1600, num_heads=25, ffn_dim=6400),
  # For study, on any tokenizer: Qwen3's block, with which transformers loads it, and an untied head, which win at this size.
  "gpt2-tiny": TransformerConfig(
    num_layers=4, model_dim=192, num_heads=3, ffn_dim=512, max_len=2048, causal=True, norm="rmsnorm", norm_eps=1e-6,
    positions="rotary", activation="silu", gated=True, qk_norm=True, bias=False, tied=False, pooler="none",
  ),
}  # fmt: skip

_LAYER = "h.{layer}."
FAMILIES = (
  Family(
    model_type="gpt2",
    like=_SMALL,
    keys={
      "num_layers": Key("n_layer"),
      "model_dim": Key("n_embd"),
      "num_heads": Key("n_head"),
      "ffn_dim": Key("n_inner", 0),
      "max_len": Key("n_positions"),
      "vocab_size": Key("vocab_size"),
      "norm_eps": Key("layer_norm_epsilon", 1e-5),
      "activation": Key("activation_function", "gelu_new"),
      "dropout_rate": Key("resid_pdrop", 0.1, also=("embd_pdrop", "attn_pdrop")),
      "init_stddev": Key("initializer_range", 0.02),
    },
    weights=(
      *table("backbone/embed", "wte"),
      *table("backbone/position_embed", "wpe"),
      *norm(BLOCKS + "attention_norm", _LAYER + "ln_1"),
      *conv1d(BLOCKS + "attention/query", _LAYER + "attn.c_attn", (0, 3)),
      *conv1d(BLOCKS + "attention/key", _LAYER + "attn.c_attn", (1, 3)),
      *conv1d(BLOCKS + "attention/value", _LAYER + "attn.c_attn", (2, 3)),
      *conv1d(BLOCKS + "attention/out", _LAYER + "attn.c_proj"),
      *norm(BLOCKS + "ffn_norm", _LAYER + "ln_2"),
      *conv1d(BLOCKS + "ffn/up", _LAYER + "mlp.c_fc"),
      *conv1d(BLOCKS + "ffn/down", _LAYER + "mlp.c_proj"),
      *norm("backbone/final_norm", "ln_f"),
    ),
    prefixes=("transformer.", ""),
    classes={"": "GPT2Model", "lm": "GPT2LMHeadModel", "classifier": "GPT2ForSequenceClassification"},
    heads={"lm": (), "classifier": linear("head_classify/out", "score")},
    only={
      "scale_attn_weights": (True,),
      "scale_attn_by_inverse_layer_idx": (False,),
      "reorder_and_upcast_attn": (False,),
      "add_cross_attention": (False,),
      "tie_word_embeddings": (True,),
    },  # fmt: skip
    ignored=(r"h\.\d+\.attn\.(bias|masked_bias)",),  # the causal mask
    copies=(("lm_head.weight", "wte.weight"),),
  ),
)
