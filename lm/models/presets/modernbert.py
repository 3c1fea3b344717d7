"""ModernBERT (Warner et al. 2024): pre-norm encoder, rotary positions, GEGLU, two local layers of three, no biases."""

import dataclasses

from lm.models.family import BLOCKS, Family, Key, Weight, encoder_classes, linear, norm, table
from lm.models.transformer_config import TransformerConfig

_BASE = TransformerConfig(
  num_layers=22, model_dim=768, num_heads=12, ffn_dim=1152, max_len=8192, causal=False, vocab_size=50368,
  embed_norm="first", positions="rotary", rope_base=160_000.0, local_rope_base=10_000.0,
  layer_pattern=("global", "local", "local"), window=65, activation="gelu", gated=True, bias=False, pooler="mlm",
)  # fmt: skip

PRESETS = {
  "modernbert-base": _BASE,
  "modernbert-large": dataclasses.replace(_BASE, num_layers=28, model_dim=1024, num_heads=16, ffn_dim=2624),
}

_LAYER = "layers.{layer}."


def _head(name: str) -> tuple[Weight, ...]:
  """Of one text's state or of every token's, it has the same tensors."""
  return (
    *linear(f"head_{name}/transform", "head.dense"),
    *norm(f"head_{name}/norm", "head.norm"),
    *linear(f"head_{name}/out", "classifier"),
  )


FAMILIES = (
  Family(
    model_type="modernbert",
    like=_BASE,
    keys={
      "num_layers": Key("num_hidden_layers"),
      "model_dim": Key("hidden_size"),
      "num_heads": Key("num_attention_heads"),
      "ffn_dim": Key("intermediate_size"),
      "max_len": Key("max_position_embeddings"),
      "vocab_size": Key("vocab_size"),
      "norm_eps": Key("norm_eps", 1e-5),
      "init_stddev": Key("initializer_range", 0.02),
    },
    weights=(
      *table("backbone/embed", "embeddings.tok_embeddings"),
      # The first layer has no norm before its attention: it reads the embedding's, which stands in its place here.
      *norm(BLOCKS + "attention_norm", _LAYER + "attn_norm"),
      *linear(BLOCKS + "attention/query", _LAYER + "attn.Wqkv", (0, 3)),
      *linear(BLOCKS + "attention/key", _LAYER + "attn.Wqkv", (1, 3)),
      *linear(BLOCKS + "attention/value", _LAYER + "attn.Wqkv", (2, 3)),
      *linear(BLOCKS + "attention/out", _LAYER + "attn.Wo"),
      *norm(BLOCKS + "ffn_norm", _LAYER + "mlp_norm"),
      *linear(BLOCKS + "ffn/gate", _LAYER + "mlp.Wi", (0, 2)),
      *linear(BLOCKS + "ffn/up", _LAYER + "mlp.Wi", (1, 2)),
      *linear(BLOCKS + "ffn/down", _LAYER + "mlp.Wo"),
      *norm("backbone/final_norm", "final_norm"),
    ),
    prefixes=("model.", ""),
    classes=encoder_classes("ModernBert"),
    heads={
      "mlm": (
        *linear("head_mlm/transform", "head.dense"),
        *norm("head_mlm/norm", "head.norm"),
        *linear("head_mlm", "decoder")[1:],
      ),
      **{kind: _head(name) for kind, name in (("classifier", "classify"), ("tagger", "tag"), ("span", "span"))},
    },
    only={
      "attention_bias": (False,),
      "mlp_bias": (False,),
      "norm_bias": (False,),
      "classifier_bias": (False,),
      "decoder_bias": (True,),
      "hidden_activation": ("gelu",),  # the heads have an activation of their own
      "classifier_activation": ("gelu",),
      "tie_word_embeddings": (True,),
      "classifier_pooling": ("cls", "mean"),
    },  # fmt: skip
    window="local_attention",
    pattern=_BASE.layer_pattern,
    period="global_attn_every_n_layers",
    rope="by_kind",
    rope_base=160_000.0,
    pooling="classifier_pooling",
    renamed={"layers.0.attn_norm.weight": "embeddings.norm.weight"},
    copies=(("decoder.weight", "embeddings.tok_embeddings.weight"),),
  ),
)
