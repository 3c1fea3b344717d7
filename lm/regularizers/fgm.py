"""FGM (Miyato et al. 2017): the loss is trained on twice, the second time where the embedding is pushed up its slope."""

import dataclasses

import jax.numpy as jnp

from lm.regularizers.regularizer import Regularizer


@dataclasses.dataclass(frozen=True)
class Fgm(Regularizer):
  """Adds `weight` times the loss at the adversarial embedding. About three times the cost of a step."""

  compares = False

  epsilon: float = 1.0  # length of the push, over all positions and channels of a row
  weight: float = 1.0  # of the adversarial loss

  def __post_init__(self):
    for name in ("epsilon", "weight"):
      if getattr(self, name) <= 0:
        raise ValueError(f"regularizer.{name}={getattr(self, name)}: must be above 0")

  def sums(self, passes, rng):
    plain, _ = passes.run(rng)
    slope_BTD = passes.slope(jnp.zeros(passes.shape), rng)
    length_B = jnp.sqrt(jnp.square(slope_BTD).sum(axis=(1, 2), keepdims=True))
    pushed, _ = passes.run(rng, perturb=self.epsilon * slope_BTD / jnp.maximum(length_B, 1e-30))
    return passes.add(plain, pushed, self.weight)
