"""Stochastic gradient descent with momentum; weight decay joins the gradient."""

import dataclasses

import optax

from lm.optim.optimizer import WithMomentum, decayed


@dataclasses.dataclass(frozen=True)
class Sgd(WithMomentum):
  """Plain or with heavy-ball momentum."""

  momentum: float = 0.9  # decay of the gradient's running sum

  def rule(self, schedule, axes):
    return optax.chain(
      optax.add_decayed_weights(self.weight_decay, decayed),
      optax.sgd(schedule, self.momentum, accumulator_dtype=self.momentum_dtype),
    )
