"""BERT (Devlin et al. 2018): post-norm encoder, learned positions, token types. Sizes of the released models."""

import dataclasses

from lm.models.family import BLOCKS, Family, Key, encoder_classes, linear, norm, table
from lm.models.transformer_config import TransformerConfig

_BASE = TransformerConfig(
  num_layers=12, model_dim=768, num_heads=12, ffn_dim=3072, max_len=512, causal=False, vocab_size=30522,
  norm_position="post", embed_norm="own", norm_eps=1e-12, activation="gelu", token_types=2, dropout_rate=0.1,
)  # fmt: skip
_LARGE = dataclasses.replace(_BASE, num_layers=24, model_dim=1024, num_heads=16, ffn_dim=4096)

PRESETS = {
  "bert-base-uncased": _BASE,
  "bert-large-uncased": _LARGE,
  "bert-base-cased": dataclasses.replace(_BASE, vocab_size=28996),
  "bert-large-cased": dataclasses.replace(_LARGE, vocab_size=28996),
  "bert-base-chinese": dataclasses.replace(_BASE, vocab_size=21128),
  # Wang et al. 2020, of which all-MiniLM-L6-v2 is a sentence encoder.
  "minilm-l6-h384": dataclasses.replace(_BASE, num_layers=6, model_dim=384, ffn_dim=1536),
  # For study, on any tokenizer: the backbone of gpt2-tiny with both directions visible.
  "bert-tiny": TransformerConfig(
    num_layers=4, model_dim=192, num_heads=3, ffn_dim=512, max_len=2048, causal=False, norm="rmsnorm", norm_eps=1e-6,
    positions="rotary", activation="silu", gated=True, qk_norm=True, bias=False,
  ),
}  # fmt: skip

KEYS = {
  "num_layers": Key("num_hidden_layers"),
  "model_dim": Key("hidden_size"),
  "num_heads": Key("num_attention_heads"),
  "ffn_dim": Key("intermediate_size"),
  "max_len": Key("max_position_embeddings"),
  "vocab_size": Key("vocab_size"),
  "norm_eps": Key("layer_norm_eps", 1e-12),
  "activation": Key("hidden_act", "gelu"),
  "token_types": Key("type_vocab_size", 2),
  "dropout_rate": Key("hidden_dropout_prob", 0.1, also=("attention_probs_dropout_prob",)),
  "init_stddev": Key("initializer_range", 0.02),
}
_LAYER = "encoder.layer.{layer}."
WEIGHTS = (
  *table("backbone/embed", "embeddings.word_embeddings"),
  *table("backbone/position_embed", "embeddings.position_embeddings"),
  *table("backbone/token_type_embed", "embeddings.token_type_embeddings"),
  *norm("backbone/embed_norm", "embeddings.LayerNorm"),
  *linear(BLOCKS + "attention/query", _LAYER + "attention.self.query"),
  *linear(BLOCKS + "attention/key", _LAYER + "attention.self.key"),
  *linear(BLOCKS + "attention/value", _LAYER + "attention.self.value"),
  *linear(BLOCKS + "attention/out", _LAYER + "attention.output.dense"),
  *norm(BLOCKS + "attention_norm", _LAYER + "attention.output.LayerNorm"),
  *linear(BLOCKS + "ffn/up", _LAYER + "intermediate.dense"),
  *linear(BLOCKS + "ffn/down", _LAYER + "output.dense"),
  *norm(BLOCKS + "ffn_norm", _LAYER + "output.LayerNorm"),
)
# Heads that read every token.
PLACE_HEADS = {"tagger": linear("head_tag/out", "classifier"), "span": linear("head_span/out", "qa_outputs")}
ONLY = {
  "position_embedding_type": ("absolute",),
  "is_decoder": (False,),
  "add_cross_attention": (False,),
  "tie_word_embeddings": (True,),
}

FAMILIES = (
  Family(
    model_type="bert",
    like=_BASE,
    keys=KEYS,
    weights=(*WEIGHTS, *linear("head_classify/pooler", "pooler.dense")),
    prefixes=("bert.", ""),
    classes=encoder_classes("Bert") | {"chooser": "BertForMultipleChoice"},
    heads={
      "mlm": (
        *linear("head_mlm/transform", "cls.predictions.transform.dense"),
        *norm("head_mlm/norm", "cls.predictions.transform.LayerNorm"),
        *linear("head_mlm", "cls.predictions")[1:],
      ),
      "classifier": linear("head_classify/out", "classifier"),
      **PLACE_HEADS,
    },
    only=ONLY,
    # Next-sentence prediction, which nobody fine-tunes from, and a buffer of old versions.
    ignored=(r"cls\.seq_relationship\..*", r"embeddings\.position_ids"),
    copies=(
      ("cls.predictions.decoder.weight", "embeddings.word_embeddings.weight"),
      ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ),
  ),
)
