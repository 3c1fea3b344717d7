"""Full fine-tuning and pretraining: every parameter trains."""

import dataclasses

from lm.peft.peft import Peft


@dataclasses.dataclass(frozen=True)
class Full(Peft):
  """Trains everything."""

  def trainable(self, name):
    return True
