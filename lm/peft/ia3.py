"""(IA)^3 (Liu et al. 2022): learned vectors scale keys, values and what the feed-forward's last map reads."""

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp

from lm import tree
from lm.peft.peft import Around, Peft, at_places, find_kernels, in_task_head
from lm.shapes import kernel_dims


@dataclasses.dataclass(frozen=True)
class Ia3(Peft):
  """Scales outputs of the modules that `targets` matches and inputs of those that `feedforward` matches; trains new heads.

  The leaves `.../ia3/<adapter>/scale` start at one: [..., 1, outputs] or [..., inputs, 1], which is also how they differ, with
  layers and experts in front. A scaled output is that with its bias.

  Raises:
    ValueError: by `attach`, for a pattern that matches no linear module, or a module that both match.
  """

  targets: str = ".*attention/(key|value)"  # regular expression on the paths of linear modules whose output is scaled
  feedforward: str = ".*ffn/down"  # the same of those whose input is scaled; empty: of none
  adapter: str = "default"  # name of the leaves

  def attach(self, params, rng):
    del rng
    boxes = tree.flatten(params)
    scaled_out = find_kernels(boxes, "peft.targets", self.targets)
    scaled_in = find_kernels(boxes, "peft.feedforward", self.feedforward) if self.feedforward else {}
    if both := scaled_out.keys() & scaled_in.keys():
      raise ValueError(f"peft.feedforward={self.feedforward!r}: matches {', '.join(sorted(both))}, as does peft.targets")
    for module, box in (scaled_out | scaled_in).items():
      stacked, inputs, outputs = kernel_dims(box.names)
      size = math.prod(box.value.shape[dim] for dim in (inputs if module in scaled_in else outputs))
      layers = tuple(box.value.shape[dim] for dim in stacked)
      shape, names = ((size, 1), ("mlp", None)) if module in scaled_in else ((1, size), (None, "mlp"))
      ones = nn.LogicallyPartitioned(jnp.ones((*layers, *shape)), (*box.names[: len(layers)], *names))
      boxes[f"{module}/ia3/{self.adapter}/scale"] = ones
    return tree.unflatten(boxes)

  def trainable(self, name):
    return in_task_head(name) or f"/ia3/{self.adapter}/" in name

  @property
  def intercept(self):
    return Around(_scale, self.adapter)

  def merge(self, params):
    flat = tree.flatten(params)
    mark = f"/ia3/{self.adapter}/scale"
    scales = {name.removesuffix(mark): flat.pop(name) for name in list(flat) if name.endswith(mark)}
    for module, scale in scales.items():
      kernel, bias = flat.get(f"{module}/kernel"), flat.get(f"{module}/bias")
      *stacked, inputs, outputs = scale.shape
      if kernel is not None:
        matrix = kernel.reshape(*stacked, *((inputs, -1) if outputs == 1 else (-1, outputs)))
        flat[f"{module}/kernel"] = (matrix * scale).reshape(kernel.shape)
      if bias is not None and outputs > 1:
        flat[f"{module}/bias"] = bias * scale.reshape(bias.shape)
    return tree.unflatten(flat)


def _scale(adapter: str, next_fun, args, kwargs, context):
  """Scales what a linear module that has the adapter's leaf reads or gives."""
  module = context.module
  if context.method_name != "__call__" or not module.has_variable("params", "ia3"):
    return next_fun(*args, **kwargs)
  scale = module.get_variable("params", "ia3")[adapter]["scale"]
  x = args[0].reshape(*args[0].shape[: args[0].ndim - module.num_inputs], -1).astype(module.dtype)
  factor = at_places(scale, x, args)
  if scale.shape[-1] == 1:
    return next_fun((x * factor).reshape(args[0].shape), *args[1:], **kwargs)
  y = next_fun(*args, **kwargs)
  return (y.reshape(*x.shape[:-1], -1) * factor).reshape(y.shape)
