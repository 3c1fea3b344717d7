"""SMART (Jiang et al. 2020): predictions should stay where the embedding is pushed a little, the way that changes them most.

Its smoothness-inducing adversarial part; that is also virtual adversarial training (Miyato et al. 2018) of the embedding.
"""

import dataclasses

import jax.numpy as jnp

from lm.regularizers.regularizer import Regularizer


@dataclasses.dataclass(frozen=True)
class Smart(Regularizer):
  """Adds `weight` times the divergence of predictions from those at the pushed embedding. Two passes more for each push."""

  weight: float = 1.0  # of the divergence
  radius: float = 1e-3  # most that any channel of the embedding is pushed by
  noise_stddev: float = 1e-5  # of the normal noise that the push starts from
  step_size: float = 1e-3  # largest change of any channel in one push
  num_pushes: int = 1  # times that the slope is followed

  def __post_init__(self):
    for name in ("weight", "radius", "noise_stddev", "step_size", "num_pushes"):
      if getattr(self, name) <= 0:
        raise ValueError(f"regularizer.{name}={getattr(self, name)}: must be above 0")

  def sums(self, passes, rng):
    # A push of zeros, so that all passes have a residual stream of fp32: rounding to bfloat16 is more than a push.
    plain, read = passes.run(rng, perturb=jnp.zeros(passes.shape))
    apart = {"against": read, "mix": (0.0, 1.0)}
    push_BTD = self.noise_stddev * passes.normal(rng)
    for _ in range(self.num_pushes):
      slope_BTD = passes.slope(push_BTD, rng, **apart)
      largest_B = jnp.abs(slope_BTD).max(axis=(1, 2), keepdims=True)
      pushed_BTD = push_BTD + self.step_size * slope_BTD / jnp.maximum(largest_B, 1e-30)
      push_BTD = jnp.clip(pushed_BTD, -self.radius, self.radius)
    other, _ = passes.run(rng, perturb=push_BTD, **apart)
    return passes.add(plain, other, self.weight)
