"""Linear probing: the backbone is frozen, the heads train."""

import dataclasses

from lm.peft.peft import Peft


@dataclasses.dataclass(frozen=True)
class Head(Peft):
  """Trains the heads only, also one over the vocabulary."""

  def trainable(self, name):
    return name.startswith("head_")
