"""DoRA (Liu et al. 2024): LoRA on a kernel's direction and a learned magnitude per output, W' = m (W + s A B) / |W + s A B|.

The norm is over inputs. As in section 4.3 of the paper, and in the peft library, no gradient passes through it.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lm.peft.lora import Lora
from lm.peft.peft import at_places

SMALLEST = 1e-30  # norm by which a column of zeros is divided


@dataclasses.dataclass(frozen=True)
class Dora(Lora):
  """LoRA whose kernels have a magnitude of their own, `.../lora/<adapter>/magnitude` [..., 1, outputs]. Biases stay."""

  leaf_dims: ClassVar = {**Lora.leaf_dims, "magnitude": (None, "mlp")}

  def start(self, kernel, rng):
    kernel, leaves = super().start(kernel, rng)
    return kernel, {**leaves, "magnitude": _norms(super().changed(kernel, leaves))}

  def tune(self, y, leaves, args, module):
    product = self.product(leaves, args, module)
    norms = jax.lax.stop_gradient(_norms(super().changed(module.get_variable("params", "kernel"), leaves)))
    norms = checkpoint_name(norms, "norms")  # else they would be computed again from a kernel that is packed (lm.quantizers)
    factor = at_places(leaves["magnitude"] / norms, product, args)
    bias = module.get_variable("params", "bias", jnp.zeros(())).astype(y.dtype).reshape((1,) * (product.ndim - 1) + (-1,))
    return ((y.reshape(product.shape) - bias + product) * factor + bias).reshape(y.shape)

  def changed(self, kernel, leaves):
    """A kernel of any dims with direction and magnitude: [..., inputs, outputs]."""
    directed = super().changed(kernel, leaves)
    return directed * (leaves["magnitude"] / _norms(directed))


def _norms(kernel: jax.Array) -> jax.Array:
  """[..., inputs, outputs] -> [..., 1, outputs]."""
  return jnp.maximum(jnp.linalg.norm(kernel, axis=-2, keepdims=True), SMALLEST)
