"""BitFit (Zaken et al. 2021): the biases train, every kernel, table and scale of the backbone is frozen."""

import dataclasses

from lm import tree
from lm.peft.peft import Peft, in_task_head


@dataclasses.dataclass(frozen=True)
class Bitfit(Peft):
  """Trains the biases of linear maps and of norms, and the task's heads beside.

  Raises:
    ValueError: by `attach`, for a backbone without biases.
  """

  def attach(self, params, rng):
    del rng
    if not any(_is_bias(name) for name in tree.flatten(params)):
      raise ValueError("peft='bitfit': the backbone has no biases; accepted is a model with model.bias or model.qkv_bias")
    return params

  def trainable(self, name):
    return in_task_head(name) or _is_bias(name)


def _is_bias(name: str) -> bool:
  return name.startswith("backbone/") and name.endswith("/bias")
