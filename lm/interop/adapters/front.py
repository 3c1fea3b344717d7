"""Formats of methods that put something in front of the text: one tensor, prompt_embeddings [num_virtual_tokens, width]."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from lm import plug
from lm.config import ConfigError
from lm.interop.adapters.format import ADAPTER, Arrays, Format
from lm.models.transformer_config import TransformerConfig

TENSOR = "prompt_embeddings"


@dataclasses.dataclass(frozen=True)
class Front(Format):
  """A format of one tensor in front of the text.

  count: our option for num_virtual_tokens. place: where the leaves stand that are called `<place>/<method>/<adapter>/<leaf>`.
  width: numbers of a row, in a model. part: our leaves from the tensor; join: the inverse. settings: those of a model that are
  not of every one.
  """

  root: ClassVar[str] = "base_model."
  # peft puts nothing in front of a model without a type.
  task_types: ClassVar[dict[str, str | None]] = Format.task_types | {"mlm": "FEATURE_EXTRACTION"}

  count: str = "num_virtual_tokens"
  place: str = ""
  width: Callable[[TransformerConfig], int] = lambda cfg: cfg.model_dim
  part: Callable[[TransformerConfig, np.ndarray], Arrays] = lambda cfg, tensor: {"embedding": tensor}
  join: Callable[[TransformerConfig, Arrays], np.ndarray] = lambda cfg, leaves: leaves["embedding"]
  settings: Callable[[TransformerConfig], dict[str, Any]] = lambda cfg: {}

  def split(self, found):
    others = {key.removeprefix(self.root): tensor for key, tensor in found.items() if key != TENSOR}
    return {key: tensor for key, tensor in found.items() if key == TENSOR}, others

  def read(self, directory, base, settings, own):
    cfg, num = base.model.cfg, settings["num_virtual_tokens"]
    shape, width = list(own[TENSOR].shape) if own else None, self.width(cfg)
    if shape != [num, width] or own[TENSOR].dtype is None:
      raise ConfigError(f"{directory}: {TENSOR} {shape}; expected are floats {[num, width]}")
    leaves = self.part(cfg, own[TENSOR].read().astype(np.float32))
    method = plug.make("peft", plug.Plug(self.method, ((self.count, num), ("adapter", ADAPTER))))
    return method, {f"{self.place}/{self.method}/{ADAPTER}/{key}": array for key, array in leaves.items()}

  def write(self, trained, family):
    del family
    cfg, method = trained.model.cfg, trained.method
    mark = f"{self.place}/{self.method}/{method.adapter}/"
    leaves = {name.removeprefix(mark): np.asarray(leaf) for name, leaf in trained.params.items() if name.startswith(mark)}
    settings = {"num_virtual_tokens": getattr(method, self.count), "num_transformer_submodules": 1}
    settings |= {"num_layers": cfg.num_layers, "num_attention_heads": cfg.num_heads, "token_dim": cfg.model_dim}
    return {TENSOR: self.join(cfg, leaves)}, settings | self.settings(cfg)
