"""RoBERTa (Liu et al. 2019): BERT without next-sentence prediction, its positions counted from 2. Released sizes."""

import dataclasses

from lm.models.family import Family, encoder_classes, linear, norm
from lm.models.presets import bert
from lm.models.transformer_config import TransformerConfig

_BASE: TransformerConfig = dataclasses.replace(
  bert.PRESETS["bert-base-uncased"], vocab_size=50265, norm_eps=1e-5, token_types=1, position_offset=2
)

PRESETS = {
  "roberta-base": _BASE,
  "roberta-large": dataclasses.replace(_BASE, num_layers=24, model_dim=1024, num_heads=16, ffn_dim=4096),
}

FAMILIES = (
  Family(
    model_type="roberta",
    like=_BASE,
    keys={field: key for field, key in bert.KEYS.items() if field != "activation"},
    weights=bert.WEIGHTS,
    prefixes=("roberta.", ""),
    classes=encoder_classes("Roberta"),
    heads={
      "mlm": (
        *linear("head_mlm/transform", "lm_head.dense"),
        *norm("head_mlm/norm", "lm_head.layer_norm"),
        *linear("head_mlm", "lm_head")[1:],
      ),
      "classifier": (*linear("head_classify/pooler", "classifier.dense"), *linear("head_classify/out", "classifier.out_proj")),
      **bert.PLACE_HEADS,
    },
    # Positions are counted from the padding's id, so that another id is another model.
    # The masked head is always of GELU, whatever the layers have.
    only=bert.ONLY | {"pad_token_id": (1,), "hidden_act": ("gelu",)},
    # The pooler of released files was never trained.
    ignored=(r"pooler\.dense\..*", r"embeddings\.position_ids"),
    copies=(
      ("lm_head.decoder.weight", "embeddings.word_embeddings.weight"),
      ("lm_head.decoder.bias", "lm_head.bias"),
    ),
    aliases=("xlm-roberta", "camembert"),
  ),
)
