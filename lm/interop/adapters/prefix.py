"""Prefix tuning (Li & Liang 2021): of each virtual token the key and the value of every layer, one behind the other.

peft gives them to the model as a cache. What an MLP computed while training (`prefix_projection`) is kept as it came out.
"""

import numpy as np

from lm.interop.adapters.front import Front


def part(cfg, tensor):
  """[N, 2 L K C] -> keys and values [L, N, K, C]."""
  rows = tensor.reshape(len(tensor), cfg.num_layers, 2, cfg.kv_heads, cfg.channels)
  keys, values = rows.transpose(2, 1, 0, 3, 4)
  return {"key": keys, "value": values}


def join(cfg, leaves):
  """The inverse."""
  both = np.stack([leaves["key"], leaves["value"]])
  return both.transpose(2, 1, 0, 3, 4).reshape(both.shape[2], -1)


def problem(cfg, kind):
  """Gemma's and ModernBERT's windows; the latter reads no cache at all."""
  del kind
  return "lets windows of local layers pass over a prefix, which is seen everywhere here" if "local" in cfg.layer_kinds else ""


def width(cfg):
  """Numbers of a virtual token: keys and values of every layer and head."""
  return 2 * cfg.num_layers * cfg.kv_heads * cfg.channels


FORMAT = Front(
  method="prefix", peft_type="PREFIX_TUNING", needed=("num_virtual_tokens",), only={"num_transformer_submodules": (1,)},
  count="num_prefix", place="backbone/blocks/attention/core", width=width,
  part=part, join=join, problem=problem,
  settings=lambda cfg: {"num_attention_heads": cfg.kv_heads, "token_dim": cfg.kv_heads * cfg.channels},
)  # fmt: skip
