"""Adam with decoupled weight decay (Loshchilov & Hutter 2017)."""

import dataclasses

import optax

from lm.optim.optimizer import Optimizer, decayed


@dataclasses.dataclass(frozen=True)
class Adamw(Optimizer):
  """Adam whose weight decay does not pass through its moments."""

  b1: float = 0.9  # decay of the gradient's mean
  b2: float = 0.95  # decay of its mean square
  eps: float = 1e-8  # added to the root of the mean square

  def rule(self, schedule, axes):
    return optax.adamw(schedule, self.b1, self.b2, self.eps, weight_decay=self.weight_decay, mask=decayed)
