"""LoRA (Hu et al. 2021): a low-rank product beside a frozen kernel, y = x W + (alpha / rank) x A B."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm import tree
from lm.peft.peft import Peft, find_kernels
from lm.shapes import kernel_dims


@dataclasses.dataclass(frozen=True)
class Lora(Peft):
  """Adapts the kernels of the modules whose path matches `targets`, and trains the heads beside.

  Each layer and each expert has its own product. The leaves stand under the adapter's name (`.../query/lora/<adapter>/a`), so
  that several adapters can share a base.
  """

  rank: int = 8  # inner dim of the product, r
  alpha: float = 16.0  # the product is scaled by alpha / rank
  targets: str = ".*attention/(query|value)"  # regular expression on the paths of linear modules
  adapter: str = "default"  # name of the leaves

  def __post_init__(self):
    if self.rank < 1:
      raise ValueError(f"peft.rank={self.rank}: must be at least 1")

  def attach(self, params, rng):
    boxes = tree.flatten(params)
    for i, (module, box) in enumerate(find_kernels(boxes, "peft.targets", self.targets).items()):
      stacked, inputs, outputs = kernel_dims(box.names)
      sizes = lambda dims, shape=box.value.shape: tuple(shape[d] for d in dims)
      layers = sizes(stacked)
      in_size = math.prod(sizes(inputs))
      a = jax.random.normal(jax.random.fold_in(rng, i), (*layers, in_size, self.rank)) * in_size**-0.5
      b = jnp.zeros((*layers, self.rank, math.prod(sizes(outputs))))
      stack = box.names[: len(layers)]
      boxes[f"{module}/lora/{self.adapter}/a"] = nn.LogicallyPartitioned(a, (*stack, "embed", "rank"))
      boxes[f"{module}/lora/{self.adapter}/b"] = nn.LogicallyPartitioned(b, (*stack, "rank", "mlp"))
    return tree.unflatten(boxes)

  def trainable(self, name):
    return name.startswith("head_") or f"/lora/{self.adapter}/" in name

  @property
  def intercept(self):
    return functools.partial(_add_product, self)

  def products(self, flat: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """(a [..., inputs, rank], b [..., rank, outputs]) of parameters by name, by the path of the module they stand in."""
    mark = f"/lora/{self.adapter}/"
    modules = [name.removesuffix(f"{mark}a") for name in flat if name.endswith(f"{mark}a")]
    return {module: (flat[f"{module}{mark}a"], flat[f"{module}{mark}b"]) for module in modules}

  def merge(self, params):
    flat = tree.flatten(params)
    for module, (a, b) in self.products(flat).items():
      kernel = flat[f"{module}/kernel"]
      flat[f"{module}/kernel"] = kernel + self.alpha / self.rank * (a @ b).reshape(kernel.shape)
    return tree.unflatten({name: leaf for name, leaf in flat.items() if f"/lora/{self.adapter}/" not in name})


def _add_product(lora: Lora, next_fun, args, kwargs, context):
  """Adds the low-rank product to the output of a linear module that has the adapter's leaves."""
  y = next_fun(*args, **kwargs)
  module = context.module
  if context.method_name != "__call__" or not module.has_variable("params", "lora"):
    return y
  leaves = module.get_variable("params", "lora")[lora.adapter]
  x, contract = args if len(args) == 2 else (args[0], jnp.matmul)  # experts are told how to contract: lm/models/moe.py
  x = x.reshape(*x.shape[: x.ndim - module.num_inputs], -1)
  product = contract(contract(x, leaves["a"].astype(y.dtype)), leaves["b"].astype(y.dtype))
  return y + lora.alpha / lora.rank * product.reshape(y.shape)
