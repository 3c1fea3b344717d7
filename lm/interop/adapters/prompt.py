"""Prompt tuning (Lester et al. 2021): the embeddings as they enter the model, where a table's are scaled (Gemma) too."""

from lm.interop.adapters.front import Front


def scale(cfg):
  """What a looked-up embedding is multiplied by, ours of the prompt too."""
  return cfg.model_dim**0.5 if cfg.embed_scaled else 1.0


def problem(cfg, kind):
  """An encoder's classifier reads the first position, which is the prompt's there and the text's here."""
  if cfg.causal or kind != "classifier":
    return ""
  return "classifies what stands first, which is the prompt, where an encoder's [CLS] is read here"


FORMAT = Front(
  method="prompt", peft_type="PROMPT_TUNING", needed=("num_virtual_tokens",), only={"num_transformer_submodules": (1,)},
  place="backbone/embed", problem=problem,
  part=lambda cfg, tensor: {"embedding": tensor / scale(cfg)}, join=lambda cfg, leaves: leaves["embedding"] * scale(cfg),
)  # fmt: skip
