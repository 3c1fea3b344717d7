"""The contract of a quantizer: frozen kernels in few bits, a scale for each block of weights (QLoRA, Dettmers et al. 2023).

A block is of consecutive inputs of one output, and its scale the largest magnitude in it. With double quantisation scales are
8 bits in units of the largest scale of their output. What stands in place of a kernel has its dims, so it is split as that is.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm import tree
from lm.layout import constrain
from lm.plug import ConfigError
from lm.shapes import kernel_dims

PACKED = "packed"  # names what a module has in place of its kernel: {"codes", "scales"}, with double quantisation also "tops"
TOP = 255  # the largest scale of an output, in 8 bits
# What the backward pass may find saved of a module whose kernel is packed: products and what has a name, never the kernel.
SAVED = ("dot_general", "ragged_dot_general", "name")
Boxes = Mapping[str, Any]  # boxed parameters by name
Leaves = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Quantizer:
  """Base of all quantizers; frozen, so that equal models share compiled steps. It is itself the interceptor that unpacks.

  A kernel is unpacked where its module computes, inside the scanned block, and once more for the gradient of what the module
  reads: those of two layers are never whole at the same time. A fine-tuning method around the module sees a plain one.

  Raises:
    ValueError: an option out of its range; by `find`, `targets` that match no kernel, or a block that does not divide one.
  """

  codes_per_byte: ClassVar[int] = 1

  targets: str = ".*(attention/(query|key|value|out)|ffn/(gate|up|down))"  # regular expression on the paths of linear modules
  block: int = 64  # [weights] that share a scale
  double: bool = True  # scales are quantised too, to 8 bits, with a scale for each output

  def __post_init__(self):
    tree.check_pattern(self.targets, "quantizer.targets")
    if self.block < 4 or self.block % 2:
      raise ConfigError(f"quantizer.block={self.block}: must be even and at least 4")

  def encode(self, x: jax.Array, scales: jax.Array) -> jax.Array:
    """Codes, of the shape of x and a byte each. scales: broadcast against x, but for rounding not below its magnitudes."""
    raise NotImplementedError

  def decode(self, codes: jax.Array) -> jax.Array:
    """What codes stand for in units of their scale: fp32 from -1 to 1."""
    raise NotImplementedError

  def find(self, boxes: Boxes) -> list[str]:
    """Names of the kernels to quantise."""
    kernels = [name for name in boxes if name.endswith("/kernel")]
    found = tree.first_match([(f"backbone/(?:{self.targets})/kernel", True), (".*", False)], kernels, "quantizer.targets")
    names = [name for name, chosen in found.items() if chosen]
    for name in names:
      inputs = boxes[name].value.shape[_inputs(boxes[name])[-1]]
      if inputs % self.block:
        raise ConfigError(f"quantizer.block={self.block}: must divide the {inputs} inputs of {name}")
    return names

  def attach(
    self, boxes: Boxes, attach: Callable[[Boxes], dict[str, Any]], trains: Callable[[str], bool]
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    """The boxes with kernels as rounding leaves them, and what a fine-tuning method makes of those, with kernels packed.

    Args:
      attach, trains: of the method.

    Raises:
      ConfigError: as `find`, or a kernel that the method trains or changes.
    """
    packed = {name: self.pack(boxes[name]) for name in self.find(boxes)}
    rounded = {**boxes, **{name: self._round(boxes[name], leaves) for name, leaves in packed.items()}}
    attached = attach(rounded)
    for name, leaves in packed.items():
      if trains(name) or attached.pop(name) is not rounded[name]:
        raise ConfigError(
          f"quantizer={type(self).__name__.lower()!r}: peft trains or changes {name}; accepted are methods that leave it as"
          " it is, such as lora, and quantizer.targets of other kernels"
        )
      attached |= {f"{name.removesuffix('/kernel')}/{PACKED}/{leaf}": box for leaf, box in leaves.items()}
    return rounded, attached

  def rounded(self, boxes: Boxes) -> dict[str, Any]:
    """The boxes with kernels as they are when they were packed."""
    return {**boxes, **{name: self._round(boxes[name], self.pack(boxes[name])) for name in self.find(boxes)}}

  def unpacked(self, flat: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by name, with kernels in place of what they were packed into."""
    found: dict[str, dict[str, Any]] = {}
    for name, leaf in flat.items():
      module, mark, own = name.partition(f"/{PACKED}/")
      if mark:
        found.setdefault(module, {})[own] = leaf
    kept = {name: leaf for name, leaf in flat.items() if f"/{PACKED}/" not in name}
    return kept | {f"{module}/kernel": self.unpack(leaves) for module, leaves in found.items()}

  def pack(self, box: Any) -> dict[str, Any]:
    """A boxed kernel as boxed leaves: codes [..., inputs / codes_per_byte, ...], scales [..., inputs / block, ...], tops."""
    inputs = _inputs(box)
    leaves = _pack(self, box.value, inputs)
    one = lambda names: tuple(None if i in inputs else name for i, name in enumerate(names))
    return {
      name: nn.LogicallyPartitioned(leaf, one(box.names) if name == "tops" else box.names) for name, leaf in leaves.items()
    }

  def unpack(self, leaves: Leaves) -> jax.Array:
    """The kernel, fp32. Its blocks run along the only dim in which codes and scales differ."""
    codes, scales = leaves["codes"], _scales(leaves)
    axis = next(i for i, (many, few) in enumerate(zip(codes.shape, scales.shape, strict=True)) if many != few)
    before, num_blocks, after = codes.shape[:axis], scales.shape[axis], codes.shape[axis + 1 :]
    codes = codes.reshape(*before, num_blocks, -1, *after)
    if self.codes_per_byte == 2:
      codes = jnp.concatenate([codes & 15, codes >> 4], axis + 1)
    return (self.decode(codes) * jnp.expand_dims(scales, axis + 1)).reshape(*before, -1, *after)

  def num_weights(self, name: str, size: int) -> int:
    """How many weights a parameter of that size stands for: scales for none, codes of a byte for one or two."""
    if f"/{PACKED}/" not in name:
      return size
    return size * self.codes_per_byte if name.endswith("/codes") else 0

  def __call__(self, next_fun, args, kwargs, context):
    """Calls a module that has a packed kernel as the plain one that it stands for."""
    module = context.module
    if context.method_name != "__call__" or not module.has_variable("params", PACKED):
      return next_fun(*args, **kwargs)
    own = dict(module.variables["params"])
    packed, alone = own.pop(PACKED), module.clone(parent=None)
    rngs = {"dropout": module.make_rng("dropout")} if module.has_rng("dropout") else None

    def call(packed, own, x):  # interceptors stand around this call too
      kernel = self.unpack({name: _gather(leaf, module.axes) for name, leaf in packed.items()})
      return alone.apply({"params": own | {"kernel": kernel}}, x, *args[1:], rngs=rngs, **kwargs)

    return jax.checkpoint(call, policy=_is_saved)(packed, own, args[0])

  def _round(self, box: Any, packed: Mapping[str, Any]) -> Any:
    return box.replace(value=_unpack(self, {name: leaf.value for name, leaf in packed.items()}))


def is_packed(name: str) -> bool:
  """Whether a parameter is part of a packed kernel, which nothing trains."""
  return f"/{PACKED}/" in name


def _inputs(box: Any) -> tuple[int, ...]:
  return kernel_dims(box.names)[1]


def _is_saved(primitive: Any, *_: Any, **__: Any) -> bool:
  return primitive.name in SAVED


def _gather(leaf: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
  """A leaf whole over the model dim: what devices split only to save memory travels packed. axes: the module's, of a kernel."""
  stacked = ("experts",) * (leaf.ndim - len(axes))
  return constrain(leaf, *stacked, *(None if name == "embed" else name for name in axes))


def _scales(leaves: Leaves) -> jax.Array:
  if "tops" not in leaves:
    return leaves["scales"]
  return leaves["scales"].astype(jnp.float32) * (leaves["tops"] * (1 / TOP))


# Jitted, so that a base which is read without a step is rounded a kernel at a time by one program, and to the same bits.
@functools.partial(jax.jit, static_argnums=(0, 2))
def _pack(quantizer: Quantizer, kernel: jax.Array, inputs: tuple[int, ...]) -> dict[str, jax.Array]:
  axis, shape = inputs[-1], kernel.shape
  blocks = jnp.asarray(kernel, jnp.float32).reshape(*shape[:axis], -1, quantizer.block, *shape[axis + 1 :])
  leaves = {"scales": jnp.abs(blocks).max(axis + 1)}
  if quantizer.double:
    tops = leaves["scales"].max(inputs, keepdims=True)
    leaves = {"scales": jnp.round(leaves["scales"] / jnp.maximum(tops, 1e-30) * TOP).astype(jnp.uint8), "tops": tops}
  codes = quantizer.encode(blocks, jnp.expand_dims(_scales(leaves), axis + 1))
  if quantizer.codes_per_byte == 2:
    first, second = jnp.split(codes, 2, axis + 1)
    codes = first | second << 4
  return {"codes": codes.reshape(*shape[:axis], -1, *shape[axis + 1 :]), **leaves}


_unpack = functools.partial(jax.jit, static_argnums=0)(lambda quantizer, leaves: quantizer.unpack(leaves))
