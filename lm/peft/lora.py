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

Leaves = Mapping[str, Any]  # of one module: {"a": [..., inputs, rank], "b": [..., rank, outputs]}, layers and experts in front


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

  @property
  def scale(self) -> float:
    """What the product is multiplied by."""
    return self.alpha / self.rank

  def attach(self, params, rng):
    boxes = tree.flatten(params)
    for i, (module, box) in enumerate(find_kernels(boxes, "peft.targets", self.targets).items()):
      stacked, inputs, outputs = kernel_dims(box.names)
      size = lambda dims, shape=box.value.shape: math.prod(shape[d] for d in dims)
      layers = tuple(box.value.shape[d] for d in stacked)
      kernel = box.value.reshape(*layers, size(inputs), size(outputs))
      for name, (leaf, dims) in self.start(kernel, jax.random.fold_in(rng, i)).items():
        boxes[f"{module}/lora/{self.adapter}/{name}"] = nn.LogicallyPartitioned(leaf, (*box.names[: len(layers)], *dims))
    return tree.unflatten(boxes)

  def start(self, kernel: jax.Array, rng: jax.Array) -> dict[str, tuple[jax.Array, tuple[str | None, ...]]]:
    """The first values of a module's leaves, with the names of their last two dims. kernel: [..., inputs, outputs]."""
    *layers, inputs, outputs = kernel.shape
    a = jax.random.normal(rng, (*layers, inputs, self.rank)) * inputs**-0.5
    return {"a": (a, ("embed", "rank")), "b": (jnp.zeros((*layers, self.rank, outputs)), ("rank", "mlp"))}

  def trainable(self, name):
    return name.startswith("head_") or f"/lora/{self.adapter}/" in name

  @property
  def intercept(self):
    return functools.partial(_tune, self)

  def tune(self, y: jax.Array, leaves: Leaves, args: tuple, module: Any) -> jax.Array:
    """What a linear module gives, with its leaves. y: what it gives alone; args: of its `__call__`. Both [..., dims]."""
    return y + self.product(leaves, args, module).reshape(y.shape)

  def product(self, leaves: Leaves, args: tuple, module: Any) -> jax.Array:
    """What the product gives for the module's input: [..., outputs]."""
    x, contract = args if len(args) == 2 else (args[0], jnp.matmul)  # experts are told how to contract: lm/models/moe.py
    x = x.reshape(*x.shape[: x.ndim - module.num_inputs], -1).astype(module.dtype)
    a, b = leaves["a"].astype(x.dtype), leaves["b"].astype(x.dtype)
    return self.scale * contract(contract(x, a), b)

  def changed(self, kernel: jax.Array, leaves: Leaves) -> jax.Array:
    """A kernel of any dims with the product added: [..., inputs, outputs]."""
    a, b = leaves["a"], leaves["b"]
    return kernel.reshape(*a.shape[:-1], b.shape[-1]) + self.scale * (a @ b)

  def leaves(self, flat: Mapping[str, Any]) -> Mapping[str, Leaves]:
    """Leaves of parameters by name, by the path of the module they stand in and their last name."""
    found: dict[str, dict[str, Any]] = {}
    for name, leaf in flat.items():
      module, mark, own = name.partition(f"/lora/{self.adapter}/")
      if mark:
        found.setdefault(module, {})[own] = leaf
    return found

  def merge(self, params):
    flat = tree.flatten(params)
    for module, leaves in self.leaves(flat).items():
      kernel = flat[f"{module}/kernel"]
      flat[f"{module}/kernel"] = self.changed(kernel, leaves).reshape(kernel.shape)
    return tree.unflatten({name: leaf for name, leaf in flat.items() if f"/lora/{self.adapter}/" not in name})


def _tune(lora: Lora, next_fun, args, kwargs, context):
  """Changes the output of a linear module that has the adapter's leaves."""
  y = next_fun(*args, **kwargs)
  module = context.module
  if context.method_name != "__call__" or not module.has_variable("params", "lora"):
    return y
  return lora.tune(y, module.get_variable("params", "lora")[lora.adapter], args, module)
