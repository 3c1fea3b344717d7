"""Lion (Chen et al. 2023): the sign of a momentum; one moment, and updates of one size.

Wants a learning rate 3 to 10 times below AdamW's, and a weight decay as many times above it.
"""

import dataclasses
from typing import Any

import optax

from lm.optim.optimizer import WithMomentum, decayed


@dataclasses.dataclass(frozen=True)
class Lion(WithMomentum):
  """Half of AdamW's state."""

  learning_rate: float = 1e-4  # peak
  weight_decay: float = 1.0  # times the learning rate, of kernels and tables
  b1: float = 0.9  # share of the momentum in what the sign is taken of
  b2: float = 0.99  # decay of the momentum

  def rule(self, schedule, axes):
    moments: dict[str, Any] = dict(b1=self.b1, b2=self.b2, mu_dtype=self.momentum_dtype)
    return optax.lion(schedule, **moments, weight_decay=self.weight_decay, mask=decayed)
