"""Eight bits in equal steps from -127 to 127, by the largest magnitude of each block (LLM.int8(), Dettmers et al. 2022)."""

import dataclasses

import jax.numpy as jnp

from lm.quantizers.quantizer import Quantizer

LARGEST = 127


@dataclasses.dataclass(frozen=True)
class Int8(Quantizer):
  """A weight to a byte. Blocks are shorter than the rows of the paper, so that no outliers have to be kept apart."""

  def encode(self, x, scales):
    steps = jnp.round(x / jnp.maximum(scales, 1e-30) * LARGEST)
    return jnp.clip(steps, -LARGEST, LARGEST).astype(jnp.int8)

  def decode(self, codes):
    return codes.astype(jnp.float32) * (1 / LARGEST)
