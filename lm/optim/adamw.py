"""Adam with decoupled weight decay (Loshchilov & Hutter 2017)."""

import dataclasses
from typing import Any

import optax

from lm.optim.optimizer import WithMomentum, decayed


@dataclasses.dataclass(frozen=True)
class Adamw(WithMomentum):
  """Adam whose weight decay does not pass through its moments."""

  b1: float = 0.9  # decay of the gradient's mean
  b2: float = 0.95  # decay of its mean square
  eps: float = 1e-8  # added to the root of the mean square

  def rule(self, schedule, axes):
    moments: dict[str, Any] = dict(b1=self.b1, b2=self.b2, eps=self.eps, mu_dtype=self.momentum_dtype)
    return optax.adamw(schedule, **moments, weight_decay=self.weight_decay, mask=decayed)
