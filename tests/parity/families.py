"""Small random models of every family, as data: which class of transformers, and the fields of its config.

Windows are shorter than the inputs, rotary scaling begins within them and soft caps are low, so that every mechanism
shows; `SEEN` says by which change of the config, and `oracle_test.py` holds it to that.
"""

import dataclasses

VOCAB, PAD, WINDOW, MAX_LEN = 120, 1, 8, 160
LABELS = {0: "low", 1: "middle", 2: "high"}
TAGS = {0: "B-x", 1: "O", 2: "I-x"}


@dataclasses.dataclass(frozen=True)
class Variant:
  """One model: `kind` is mlm, causal, classifier, tagger, span or encoder, which says what its logits are."""

  family: str
  kind: str
  architecture: str  # class of transformers
  config: dict  # fields of its config class

  @property
  def decoder(self) -> bool:
    """Whether a position sees only those before it."""
    return self.family not in ("bert", "roberta", "modernbert")


def _sizes(**fields) -> dict:
  return (
    dict(hidden_size=32, num_attention_heads=4, num_hidden_layers=3, intermediate_size=48, max_position_embeddings=MAX_LEN)
    | fields
  )


BERT = _sizes(type_vocab_size=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
ROBERTA = BERT | dict(type_vocab_size=1, max_position_embeddings=MAX_LEN + 2)  # its positions begin behind pad_token_id
MODERNBERT = _sizes(
  num_hidden_layers=5, local_attention=WINDOW, cls_token_id=2, sep_token_id=3,
  rope_parameters={
    "full_attention": {"rope_type": "default", "rope_theta": 160_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
  },
)  # fmt: skip
GPT2 = dict(
  n_embd=32,
  n_head=4,
  n_layer=3,
  n_positions=MAX_LEN,
  resid_pdrop=0.0,
  embd_pdrop=0.0,
  attn_pdrop=0.0,
  summary_first_dropout=0.0,
)
LLAMA = _sizes(num_key_value_heads=2, head_dim=12)
LLAMA3_ROPE = {
  "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0,
  "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
QWEN = _sizes(num_key_value_heads=2, rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0})
QWEN_MOE = QWEN | dict(head_dim=12, moe_intermediate_size=24, num_experts=6, num_experts_per_tok=2, norm_topk_prob=True)
GEMMA = _sizes(num_key_value_heads=2, head_dim=12, sliding_window=WINDOW)
GEMMA2 = GEMMA | dict(num_hidden_layers=4, query_pre_attn_scalar=20, attn_logit_softcapping=2.0, final_logit_softcapping=1.0)
GEMMA3 = GEMMA | dict(
  num_hidden_layers=8, query_pre_attn_scalar=20,
  rope_parameters={
    "full_attention": {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
  },
)  # fmt: skip
MIXTRAL = _sizes(num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)

VARIANTS = {
  "bert-mlm": Variant("bert", "mlm", "BertForMaskedLM", BERT),
  "bert-classifier": Variant("bert", "classifier", "BertForSequenceClassification", BERT | dict(hidden_act="relu")),
  "bert-tagger": Variant("bert", "tagger", "BertForTokenClassification", BERT),
  "bert-span": Variant("bert", "span", "BertForQuestionAnswering", BERT),
  "bert-pooler": Variant("bert", "encoder", "BertModel", BERT),
  "roberta-mlm": Variant("roberta", "mlm", "RobertaForMaskedLM", ROBERTA),
  "roberta-classifier": Variant("roberta", "classifier", "RobertaForSequenceClassification", ROBERTA),
  "roberta-tagger": Variant("roberta", "tagger", "RobertaForTokenClassification", ROBERTA),
  "roberta-span": Variant("roberta", "span", "RobertaForQuestionAnswering", ROBERTA),
  "modernbert-mlm": Variant("modernbert", "mlm", "ModernBertForMaskedLM", MODERNBERT),
  "modernbert-classifier": Variant("modernbert", "classifier", "ModernBertForSequenceClassification", MODERNBERT),
  "modernbert-mean": Variant(
    "modernbert", "classifier", "ModernBertForSequenceClassification", MODERNBERT | dict(classifier_pooling="mean")
  ),
  "modernbert-tagger": Variant("modernbert", "tagger", "ModernBertForTokenClassification", MODERNBERT),
  "modernbert-span": Variant("modernbert", "span", "ModernBertForQuestionAnswering", MODERNBERT),
  "gpt2-lm": Variant("gpt2", "causal", "GPT2LMHeadModel", GPT2),
  "gpt2-classifier": Variant("gpt2", "classifier", "GPT2ForSequenceClassification", GPT2),
  "llama-untied": Variant("llama", "causal", "LlamaForCausalLM", LLAMA | dict(rope_parameters=LLAMA3_ROPE)),
  "llama-tied": Variant(
    "llama", "causal", "LlamaForCausalLM",
    LLAMA | dict(tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 500_000.0}),
  ),
  "llama-classifier": Variant("llama", "classifier", "LlamaForSequenceClassification", LLAMA),
  "qwen2": Variant("qwen", "causal", "Qwen2ForCausalLM", QWEN),
  "qwen3": Variant("qwen", "causal", "Qwen3ForCausalLM", QWEN | dict(head_dim=12, tie_word_embeddings=True)),
  "qwen3-moe": Variant("qwen", "causal", "Qwen3MoeForCausalLM", QWEN_MOE),
  "gemma2": Variant("gemma", "causal", "Gemma2ForCausalLM", GEMMA2),
  "gemma3": Variant("gemma", "causal", "Gemma3ForCausalLM", GEMMA3),
  "mixtral": Variant("mixtral", "causal", "MixtralForCausalLM", MIXTRAL),
}  # fmt: skip
DECODERS = [name for name, variant in VARIANTS.items() if variant.decoder]
WRITERS = [name for name, variant in VARIANTS.items() if variant.kind == "causal"]
NAMES = {"classifier": LABELS, "tagger": TAGS}  # of the outputs, by kind
LABELLED = [name for name, variant in VARIANTS.items() if variant.kind in NAMES]

# Standard deviation of a table, where the 0.2 of all other weights would make the next token the same whatever came before.
STDDEV = {"gpt2": ("wpe", 2.0), "gemma": ("embed_tokens", 0.05)}

# A key's bias adds the same to all the scores of a query, so the softmax takes it out again; rotary positions change that.
UNSEEN = {"bert": "key.bias", "roberta": "key.bias"}

# A change of the config alone, with the same weights, that must change what comes out by ten times the tolerance: if it did
# not, an import that ignores the field would pass.
SEEN = {
  "bert-mlm": [dict(hidden_act="gelu_new"), dict(layer_norm_eps=0.3), dict(num_attention_heads=2)],
  "roberta-mlm": [dict(pad_token_id=0)],
  "modernbert-mlm": [
    dict(local_attention=2 * WINDOW),
    dict(layer_types=["sliding_attention"] * 5),
    dict(rope_parameters=MODERNBERT["rope_parameters"] | {"full_attention": {"rope_type": "default", "rope_theta": 10_000.0}}),
    dict(rope_parameters=MODERNBERT["rope_parameters"] | {"sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}),
  ],
  "modernbert-mean": [dict(classifier_pooling="cls")],
  "gpt2-lm": [dict(activation_function="relu"), dict(n_head=2)],
  "llama-untied": [dict(rope_parameters=LLAMA3_ROPE | change) for change in (
    {"rope_type": "default"}, {"factor": 4.0}, {"low_freq_factor": 2.0}, {"high_freq_factor": 8.0},
    {"original_max_position_embeddings": 128},
  )],
  "llama-tied": [dict(rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}), dict(rms_norm_eps=0.1)],
  "qwen3-moe": [dict(norm_topk_prob=False), dict(num_experts_per_tok=3)],
  "gemma2": [
    dict(attn_logit_softcapping=None), dict(final_logit_softcapping=None), dict(query_pre_attn_scalar=12),
    dict(sliding_window=2 * WINDOW), dict(layer_types=["full_attention", "sliding_attention"] * 2),
  ],
  "gemma3": [
    dict(rope_parameters=GEMMA3["rope_parameters"] | {"full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0}}),
    dict(rope_parameters=GEMMA3["rope_parameters"] | {"sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}),
    dict(sliding_window=2 * WINDOW), dict(layer_types=["sliding_attention"] * 8), dict(query_pre_attn_scalar=12),
  ],
  "mixtral": [dict(num_experts_per_tok=1)],
}  # fmt: skip

# How configs said the same before transformers 5: fields that were not there, and those that were.
LEGACY = {
  "modernbert-mlm": (
    ("layer_types", "rope_parameters"),
    dict(global_attn_every_n_layers=3, global_rope_theta=160_000.0, local_rope_theta=10_000.0),
  ),
  "llama-untied": (
    ("rope_parameters",),
    dict(rope_theta=10_000.0, rope_scaling={key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"}),
  ),
  "llama-tied": (("rope_parameters",), dict(rope_theta=500_000.0, rope_scaling=None)),
  "qwen3": (("rope_parameters", "layer_types"), dict(rope_theta=1_000_000.0, rope_scaling=None)),
  "gemma2": (("rope_parameters", "layer_types"), dict(rope_theta=10_000.0, cache_implementation="hybrid")),
  "gemma3": (
    ("rope_parameters", "layer_types"),
    dict(
      rope_theta=1_000_000.0, rope_local_base_freq=10_000.0, sliding_window_pattern=6,
      rope_scaling={"rope_type": "linear", "factor": 8.0},
    ),
  ),
  "mixtral": (("rope_parameters",), dict(rope_theta=1_000_000.0)),
}  # fmt: skip

# What is made smaller in the variants kept in tests/golden/parity.
_TINY = dict(
  vocab_size=64, hidden_size=16, num_attention_heads=2, num_hidden_layers=2, intermediate_size=24, max_position_embeddings=64
)  # fmt: skip
_TINY_KV = _TINY | dict(num_key_value_heads=1, head_dim=10, max_position_embeddings=128)
GOLDEN = {
  "bert-mlm": _TINY,
  "bert-classifier": _TINY,
  "bert-pooler": _TINY,
  "roberta-mlm": _TINY | dict(max_position_embeddings=66),
  "modernbert-mlm": _TINY | dict(num_hidden_layers=4, intermediate_size=16),
  "modernbert-mean": _TINY | dict(num_hidden_layers=4, intermediate_size=16),
  "gpt2-lm": dict(vocab_size=64, n_embd=16, n_head=2, n_layer=2, n_inner=24, n_positions=64),
  "llama-untied": _TINY_KV,
  "llama-classifier": _TINY_KV,
  "qwen2": _TINY | dict(num_key_value_heads=1),
  "qwen3-moe": _TINY_KV | dict(moe_intermediate_size=12, num_experts=4),
  "gemma2": _TINY_KV | dict(num_hidden_layers=3),
  "gemma3": _TINY_KV | dict(num_hidden_layers=3, layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
  "mixtral": _TINY | dict(num_key_value_heads=1, num_local_experts=3, intermediate_size=16),
}
