"""The contract of a file format of the peft library (Mangrulkar et al. 2022): what every method's has in common.

A directory has adapter_config.json, whose `peft_type` says the method, and adapter_model.safetensors with what the method
trained and the heads that trained beside. Our methods are values here, made by name: this folder imports none of them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lm.interop.tensors import Tensor
from lm.interop.weights import Checkpoint
from lm.models.family import Family
from lm.models.model import Model
from lm.models.transformer_config import TransformerConfig

Settings = Mapping[str, Any]  # of an adapter_config.json
Arrays = dict[str, np.ndarray]
ADAPTER = "default"  # name of the leaves of an adapter that was read


@dataclasses.dataclass(frozen=True)
class Trained:
  """What a run of ours trained. model: with one head. params: all by name, the method's leaves beside those that they change.

  total_steps: of the run.
  """

  model: Model
  params: Mapping[str, Any]
  method: Any
  total_steps: int = 0

  @property
  def kind(self) -> str:
    """Of the head."""
    ((_, spec),) = self.model.heads
    return spec.kind


@dataclasses.dataclass(frozen=True)
class Format:
  """How one method is kept.

  method: its name here. peft_type: there. marks: settings that tell it from other methods of that type. needed: settings that
  must be there. only: settings that change what is computed, and what of them has a counterpart here; false or unset always
  has. problem: what peft does otherwise than we do with a model and a kind of head, "" for nothing.
  root: what stands before the names of the model's tensors. task_types: of the kinds of heads.
  """

  task_types: ClassVar[dict[str, str | None]] = {
    "lm": "CAUSAL_LM", "classifier": "SEQ_CLS", "tagger": "TOKEN_CLS", "span": "QUESTION_ANS", "mlm": None, "chooser": None,
  }  # fmt: skip
  root: ClassVar[str] = "base_model.model."

  method: str
  peft_type: str
  marks: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  needed: tuple[str, ...] = ()
  only: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
  problem: Callable[[TransformerConfig, str], str] = lambda cfg, kind: ""

  def describes(self, settings: Settings) -> bool:
    """Whether an adapter_config.json is of this method."""
    of_type = settings.get("peft_type") == self.peft_type
    return of_type and all((settings.get(name) or False) == value for name, value in self.marks.items())

  def split(self, found: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The tensors of the method, as `read` takes them, and all others by the names of the model's."""
    raise NotImplementedError

  def read(self, directory: Path, base: Checkpoint, settings: Settings, own: Mapping[str, Any]) -> tuple[Any, Arrays]:
    """Our method and its leaves by name.

    Raises:
      ConfigError: tensors that do not fit the base, or what cannot be said here.
    """
    raise NotImplementedError

  def write(self, trained: Trained, family: Family) -> tuple[Arrays, dict[str, Any]]:
    """Tensors by their names in a file, and the settings of the method.

    Raises:
      ConfigError: what peft computes otherwise, or has no place for.
    """
    raise NotImplementedError
