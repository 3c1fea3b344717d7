"""LoRA (Hu et al. 2021): a low-rank product beside a frozen kernel, y = x W + s x A B.

The scale s is alpha / rank, or alpha / sqrt(rank) (rsLoRA, Kalajdzievski 2023), with which updates do not shrink as ranks grow.
PiSSA (Meng et al. 2024) starts from the kernel's principal part: the product is that, and the frozen kernel what remains.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm import tree
from lm.models.layers import contract, drop
from lm.models.transformer import Transformer
from lm.peft.peft import Around, Peft, find_kernels, in_task_head
from lm.shapes import kernel_dims

SCALINGS = {"alpha_over_rank": lambda rank: 1 / rank, "alpha_over_sqrt_rank": lambda rank: rank**-0.5}
STARTS = ("normal", "pissa")
Leaves = Mapping[str, Any]  # of one module: {"a": [..., inputs, rank], "b": [..., rank, outputs]}, layers and experts in front


@dataclasses.dataclass(frozen=True)
class LowRank(Peft):
  """What methods with a product a b beside each kernel share; trains their leaves and the task's heads.

  Each layer and each expert has its own product. The leaves stand under the adapter's name (`.../query/lora/<adapter>/a`), so
  that several adapters can share a base.

  Raises:
    ValueError: by `attach`, where `targets` matches no linear module, or experts while `dropout_rate` is set: their inputs are
      sorted by expert, and noise belongs to the rows of a batch.
  """

  # Logical names of the last two dims of each leaf.
  leaf_dims: ClassVar[dict[str, tuple[str | None, str]]] = {"a": ("embed", "rank"), "b": ("rank", "mlp")}

  alpha: float = 16.0  # what the product is multiplied by, before it is divided by its rank
  targets: str = ".*attention/(query|value)"  # regular expression on the paths of linear modules
  adapter: str = "default"  # name of the leaves
  dropout_rate: float = 0.0  # of what the product reads, while training

  def __post_init__(self):
    if not 0 <= self.dropout_rate < 1:
      raise ValueError(f"peft.dropout_rate={self.dropout_rate}: must be 0 or more and below 1")

  @property
  def scale(self) -> float:
    """What the product is multiplied by."""
    raise NotImplementedError

  def start(self, kernel: jax.Array, rng: jax.Array) -> tuple[jax.Array, Leaves]:
    """What the kernel [..., inputs, outputs] becomes, and the first values of its leaves."""
    raise NotImplementedError

  def attach(self, params, rng):
    boxes = tree.flatten(params)
    for i, (module, box) in enumerate(find_kernels(boxes, "peft.targets", self.targets).items()):
      stacked, inputs, outputs = kernel_dims(box.names)
      if self.dropout_rate and "experts" in box.names[: len(stacked)]:
        raise ValueError(f"peft.dropout_rate={self.dropout_rate}: peft.targets matches {module}; accepted for experts is 0")
      shape = box.value.shape
      sizes = [math.prod(shape[dim] for dim in dims) for dims in (inputs, outputs)]
      kernel = box.value.reshape(*shape[: len(stacked)], *sizes)
      kept, leaves = self.start(kernel, jax.random.fold_in(rng, i))
      if kept is not kernel:  # a box that stays the same says that the method leaves the base as it is
        boxes[f"{module}/kernel"] = box.replace(value=kept.reshape(shape))
      for name, leaf in leaves.items():
        dims = (*box.names[: len(stacked)], *self.leaf_dims[name])
        boxes[f"{module}/lora/{self.adapter}/{name}"] = nn.LogicallyPartitioned(leaf, dims)
    return tree.unflatten(boxes)

  def trainable(self, name):
    return in_task_head(name) or f"/lora/{self.adapter}/" in name

  @property
  def intercept(self):
    return Around(_tune_rows, self) if self.dropout_rate else Around(_tune, (self, None))

  def tune(self, y: jax.Array, leaves: Leaves, args: tuple, module: Any) -> jax.Array:
    """What a linear module gives, with its leaves.

    Args:
      y: what it gives alone. args: of its `__call__`, as the product reads them.
    """
    return y + self.product(leaves, args, module).reshape(y.shape)

  def product(self, leaves: Leaves, args: tuple, module: Any) -> jax.Array:
    """What the product gives for the module's input: [..., outputs]."""
    by = functools.partial(contract, dtype=module.dtype)
    x, multiply = args if len(args) == 2 else (args[0], by)  # experts are told how to contract: lm/models/moe.py
    x = x.reshape(*x.shape[: x.ndim - module.num_inputs], -1).astype(module.dtype)
    a, b = self.factors(leaves)
    return self.scale * multiply(multiply(x, a.astype(x.dtype)), b.astype(x.dtype))

  def factors(self, leaves: Leaves) -> tuple[jax.Array, jax.Array]:
    """[..., inputs, rank] and [..., rank, outputs], whose product it is."""
    return leaves["a"], leaves["b"]

  def changed(self, kernel: jax.Array, leaves: Leaves) -> jax.Array:
    """A kernel of any dims with the product added: [..., inputs, outputs]."""
    a, b = self.factors(leaves)
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
      if (kernel := flat.get(f"{module}/kernel")) is not None:
        flat[f"{module}/kernel"] = self.changed(kernel, leaves).reshape(kernel.shape)
    return tree.unflatten({name: leaf for name, leaf in flat.items() if f"/lora/{self.adapter}/" not in name})


@dataclasses.dataclass(frozen=True)
class Lora(LowRank):
  """A product of fixed rank beside the kernels of the modules whose path matches `targets`.

  With init "pissa" the kernel that the base keeps is what remains of it, so the model without the method is not the base.
  """

  rank: int = 8  # inner dim of the product, r
  scaling: str = "alpha_over_rank"  # of the product: alpha_over_rank, or alpha_over_sqrt_rank (rsLoRA), which suits high ranks
  init: str = "normal"  # what it starts from: normal (a; b is zero), or pissa: the largest singular values of the kernel

  def __post_init__(self):
    super().__post_init__()
    if self.rank < 1:
      raise ValueError(f"peft.rank={self.rank}: must be at least 1")
    for name, accepted in (("scaling", SCALINGS), ("init", STARTS)):
      if getattr(self, name) not in accepted:
        raise ValueError(f"peft.{name}={getattr(self, name)!r}: accepted are {', '.join(accepted)}")

  @property
  def scale(self):
    return self.alpha * SCALINGS[self.scaling](self.rank)

  def start(self, kernel, rng):
    *layers, inputs, outputs = kernel.shape
    if self.init == "pissa":
      return self._start_from_principal(kernel)
    a = jax.random.normal(rng, (*layers, inputs, self.rank)) * inputs**-0.5
    return kernel, {"a": a, "b": jnp.zeros((*layers, self.rank, outputs))}

  def _start_from_principal(self, kernel: jax.Array) -> tuple[jax.Array, Leaves]:
    """The same for PiSSA: s a b is the best approximation of that rank, and the kernel what remains.

    It is the same kernel wherever the singular values differ, though the signs and turns of singular vectors are not.
    """
    if self.rank > min(kernel.shape[-2:]):
      raise ValueError(f"peft.rank={self.rank}: with peft.init='pissa' at most {min(kernel.shape[-2:])}, a side of a kernel")
    # One matrix at a time: a batch hung on 8 fake CPU devices of two busy cores, in 7 of 8 runs (jaxlib 0.10.2).
    matrices = kernel.reshape(-1, *kernel.shape[-2:])
    parts = jax.lax.map(functools.partial(jnp.linalg.svd, full_matrices=False), matrices)
    u, s, v = (part.reshape(*kernel.shape[:-2], *part.shape[1:]) for part in parts)
    root = jnp.sqrt(s[..., : self.rank] / self.scale)
    a, b = u[..., : self.rank] * root[..., None, :], root[..., :, None] * v[..., : self.rank, :]
    return kernel - self.scale * jnp.matmul(a, b, precision="highest"), {"a": a, "b": b}


def _tune(bound: tuple[LowRank, jax.Array | None], next_fun, args, kwargs, context):
  """Changes the output of a linear module that has the adapter's leaves. bound: the method, and row_B of what modules read."""
  (method, row_B), module = bound, context.module
  y = next_fun(*args, **kwargs)
  if context.method_name != "__call__" or not module.has_variable("params", "lora"):
    return y
  if row_B is not None and module.has_rng("dropout"):
    args = (drop(method.dropout_rate, module.make_rng("dropout"), args[0], row_B), *args[1:])
  return method.tune(y, module.get_variable("params", "lora")[method.adapter], args, module)


def _tune_rows(method: LowRank, next_fun, args, kwargs, context):
  """Enters `_tune` inside the backbone, which is told the numbers of the rows: linear modules are not."""
  if not isinstance(context.module, Transformer) or context.method_name != "__call__":
    return next_fun(*args, **kwargs)
  with nn.intercept_methods(Around(_tune, (method, args[0]["row"]))):
    return next_fun(*args, **kwargs)
