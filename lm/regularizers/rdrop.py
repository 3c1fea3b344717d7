"""R-Drop (Liang et al. 2021): a batch is run twice, and what dropout makes of it the second time should predict the same."""

import dataclasses

import jax

from lm.regularizers.regularizer import Regularizer


@dataclasses.dataclass(frozen=True)
class Rdrop(Regularizer):
  """The mean of both cross-entropies, and `weight` times the mean of the divergence to both sides. Doubles the cost of a step.

  The paper minimises the sum of the cross-entropies and alpha times that mean: its alpha is twice the weight.
  """

  weight: float = 1.0  # of the divergence

  def __post_init__(self):
    if self.weight <= 0:
      raise ValueError(f"regularizer.weight={self.weight}: must be above 0")

  def sums(self, passes, rng):
    first, read = passes.run(rng)
    second, _ = passes.run(jax.random.fold_in(rng, 1), against=read, mix=(1.0, 2 * self.weight))
    return jax.tree.map(lambda a, b: (a + b) / 2, first, second)
