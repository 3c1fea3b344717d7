"""What a family file is made of: how Hugging Face's config.json becomes a `TransformerConfig`, where every tensor stands.

Data only, read in both directions by lm/interop. No jax. Names on our side are those of the parameter tree, with the layers
stacked in front; `{layer}` and `{expert}` in theirs count what is stacked in ours.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lm.models.transformer_config import TransformerConfig

BLOCKS = "backbone/blocks/"


@dataclasses.dataclass(frozen=True)
class Key:
  """A setting of theirs. default: what a config.json that leaves it out means; None: it must be there.

  alias: another name that is read too. also: others that ours stands for, which are not read, and written alike.
  """

  name: str
  default: Any = None
  alias: str = ""
  also: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Weight:
  """One parameter of ours in their files. transposed: they hold [outputs, inputs]. part (i, n): i-th of n equal parts."""

  name: str
  theirs: str
  transposed: bool = False
  part: tuple[int, int] = (0, 1)


@dataclasses.dataclass(frozen=True)
class Family:
  """One architecture of transformers over our one `Transformer`.

  like: a preset; a field that no key maps is the same in every model of the family. keys: field -> their setting.
  only: settings of theirs that must have one of these values or be absent; others have no counterpart here.
  window: their setting for `window`; pattern: layer kinds where a config.json lists none, period: their setting for its length.
  pooling: their setting for how a classifier reads the hidden states.
  rope: where theirs for rotary positions stand: "flat", or "by_kind" of layer. rope_base: the base where none is said.
  prefixes: what may stand before the backbone's tensors, the first is written. heads: weights by kind of head.
  classes: transformers' class by kind of head, "" for the bare backbone.
  renamed: tensor by its pattern -> what it is called in their files. copies: (tensor, the same one under its own name), of
  which files may hold either or both. ignored: patterns of tensors that are left out.
  nested: the setting under which a multimodal config.json keeps that of its text model. aliases: model types that read alike.
  """

  model_type: str
  like: TransformerConfig
  keys: Mapping[str, Key]
  weights: tuple[Weight, ...]
  prefixes: tuple[str, ...]
  classes: Mapping[str, str]
  heads: Mapping[str, tuple[Weight, ...]]
  only: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
  window: str = ""
  pattern: tuple[str, ...] = ("global",)
  period: str = ""
  rope: str = ""
  rope_base: float = 10_000.0
  pooling: str = ""
  renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
  copies: tuple[tuple[str, str], ...] = ()
  ignored: tuple[str, ...] = ()
  nested: str = ""
  aliases: tuple[str, ...] = ()


def linear(name: str, theirs: str, part: tuple[int, int] = (0, 1)) -> tuple[Weight, ...]:
  """A linear map with its bias, as torch's Linear keeps it."""
  return (
    Weight(f"{name}/kernel", f"{theirs}.weight", transposed=True, part=part),
    Weight(f"{name}/bias", f"{theirs}.bias", part=part),
  )


def conv1d(name: str, theirs: str, part: tuple[int, int] = (0, 1)) -> tuple[Weight, ...]:
  """A linear map as GPT-2 keeps it: [inputs, outputs]."""
  return Weight(f"{name}/kernel", f"{theirs}.weight", part=part), Weight(f"{name}/bias", f"{theirs}.bias", part=part)


def norm(name: str, theirs: str) -> tuple[Weight, ...]:
  """A norm's scale and bias."""
  return Weight(f"{name}/scale", f"{theirs}.weight"), Weight(f"{name}/bias", f"{theirs}.bias")


def table(name: str, theirs: str) -> tuple[Weight, ...]:
  """An embedding table."""
  return (Weight(f"{name}/embedding", f"{theirs}.weight"),)


# What Llama and all that follow it share.
DECODER_KEYS = {
  "num_layers": Key("num_hidden_layers"),
  "model_dim": Key("hidden_size"),
  "num_heads": Key("num_attention_heads"),
  "num_kv_heads": Key("num_key_value_heads", 0),
  "head_dim": Key("head_dim", 0),
  "ffn_dim": Key("intermediate_size"),
  "max_len": Key("max_position_embeddings"),
  "vocab_size": Key("vocab_size"),
  "norm_eps": Key("rms_norm_eps", 1e-6),
  "activation": Key("hidden_act", "silu"),
  "tied": Key("tie_word_embeddings", False),
  "init_stddev": Key("initializer_range", 0.02),
}
_LAYER = "layers.{layer}."
DECODER_ATTENTION = (
  *linear(BLOCKS + "attention/query", _LAYER + "self_attn.q_proj"),
  *linear(BLOCKS + "attention/key", _LAYER + "self_attn.k_proj"),
  *linear(BLOCKS + "attention/value", _LAYER + "self_attn.v_proj"),
  *linear(BLOCKS + "attention/out", _LAYER + "self_attn.o_proj"),
  *norm(BLOCKS + "attention/query_norm", _LAYER + "self_attn.q_norm"),
  *norm(BLOCKS + "attention/key_norm", _LAYER + "self_attn.k_norm"),
)
DECODER_FFN = (
  *linear(BLOCKS + "ffn/gate", _LAYER + "mlp.gate_proj"),
  *linear(BLOCKS + "ffn/up", _LAYER + "mlp.up_proj"),
  *linear(BLOCKS + "ffn/down", _LAYER + "mlp.down_proj"),
)
DECODER_NORMS = (
  *norm(BLOCKS + "attention_norm", _LAYER + "input_layernorm"),
  *norm(BLOCKS + "ffn_norm", _LAYER + "post_attention_layernorm"),
)
DECODER_ENDS = (*table("backbone/embed", "embed_tokens"), *norm("backbone/final_norm", "norm"))
DECODER_HEADS = {
  "lm": linear("head_lm/out", "lm_head"),
  "classifier": linear("head_classify/out", "score"),
}
DECODER_IGNORED = (r".*rotary_emb\.inv_freq",)
TIED = (("lm_head.weight", "embed_tokens.weight"),)


def decoder_classes(name: str) -> dict[str, str]:
  """The classes of a decoder: "Llama" -> LlamaModel, LlamaForCausalLM, LlamaForSequenceClassification."""
  return {"": f"{name}Model", "lm": f"{name}ForCausalLM", "classifier": f"{name}ForSequenceClassification"}


def encoder_classes(name: str) -> dict[str, str]:
  """The classes of an encoder: "Bert" -> BertModel, BertForMaskedLM, BertForSequenceClassification, ..."""
  heads = {
    "mlm": "MaskedLM",
    "classifier": "SequenceClassification",
    "tagger": "TokenClassification",
    "span": "QuestionAnswering",
  }
  return {"": f"{name}Model"} | {kind: f"{name}For{what}" for kind, what in heads.items()}
