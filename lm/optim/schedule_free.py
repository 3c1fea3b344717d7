"""Schedule-free AdamW (Defazio et al. 2024): an average of the weights takes the place of a decay of the learning rate.

It needs no number of steps: any checkpoint is as good as one at the end of a schedule. What is evaluated and saved is the
average.
"""

import dataclasses

import optax

from lm.optim.average import Weighted
from lm.optim.optimizer import Optimizer, decayed


@dataclasses.dataclass(frozen=True)
class ScheduleFree(Optimizer):
  """AdamW without a mean of gradients; weight decay is that of the point where the gradient is taken."""

  learning_rate: float = 2.5e-3  # after the warm-up, constant
  schedule: str = "constant"  # there is no other
  momentum: float = 0.9  # share of the average in the point where the gradient is taken
  b2: float = 0.999  # decay of the gradient's mean square
  eps: float = 1e-8  # added to the root of the mean square

  def __post_init__(self):
    super().__post_init__()
    if self.schedule != "constant":
      raise ValueError(f"optimizer.schedule={self.schedule!r}: schedule_free has none; leave it 'constant'")
    if self.ema_rate:
      raise ValueError(f"optimizer.ema_rate={self.ema_rate}: schedule_free averages by itself; leave it 0")
    if not 0 <= self.momentum < 1:
      raise ValueError(f"optimizer.momentum={self.momentum}: must be at least 0 and below 1")

  def rule(self, schedule, axes):
    # What Adam is without a mean of gradients.
    scale = optax.scale_by_rms(self.b2, self.eps, eps_in_sqrt=False, bias_correction=True)
    return optax.chain(scale, optax.add_decayed_weights(self.weight_decay, decayed), optax.scale_by_learning_rate(schedule))

  def make_average(self, schedule):
    return Weighted(self.momentum, schedule)
