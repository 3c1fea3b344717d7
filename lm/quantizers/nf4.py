"""NF4 (Dettmers et al. 2023): 4 bits, whose 16 values are quantiles of a normal distribution, which kernels nearly have."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from lm.quantizers.quantizer import Quantizer

# Appendix E of the paper: quantiles of the standard normal in equal steps of probability, 7 below zero and 8 above, divided by
# the largest. tests/quantizers/quantizer_test.py computes them.
VALUES = (
  -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
  -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
  0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Nf4(Quantizer):
  """Two weights to a byte: of each block the first half in the low bits, the second in the high ones."""

  codes_per_byte: ClassVar[int] = 2

  def encode(self, x, scales):
    above = [x > (low + high) / 2 * scales for low, high in zip(VALUES, VALUES[1:], strict=False)]
    return sum(bits.astype(jnp.uint8) for bits in above)

  def decode(self, codes):
    return _choose(codes, VALUES)


def _choose(codes: jax.Array, values: tuple[float, ...]) -> jax.Array:
  """values[codes] by halving them: a TPU would look up element by element."""
  if len(values) == 1:
    return jnp.full(codes.shape, values[0], jnp.float32)
  half = len(values) // 2
  return jnp.where(codes & half > 0, _choose(codes, values[half:]), _choose(codes, values[:half]))
