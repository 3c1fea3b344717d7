"""Where activations live: logical dims to axes of the ambient mesh, by the rules that `lm.sharding.use` sets."""

import math

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec as P

from lm.shapes import split_dims


def constrain(x: jax.Array, *dims: str | None) -> jax.Array:
  """x, split over the mesh as its dims say; a size that the axes do not divide is split over fewer, as one decoding step is."""
  rules, sizes = nn.get_logical_axis_rules(), jax.sharding.get_abstract_mesh().shape
  if not rules or not sizes:
    return x
  return jax.lax.with_sharding_constraint(x, P(*(axes or None for axes in split_dims(dims, x.shape, rules, sizes))))


def axes_of(dim: str, size: int = 0) -> tuple[str, ...]:
  """The axes of the ambient mesh that a dim of that size, or of one that all divide, is split over; () without a mesh."""
  return split_dims((dim,), (size,), nn.get_logical_axis_rules(), jax.sharding.get_abstract_mesh().shape)[0]


def platform() -> str:
  """Of the ambient mesh's devices, also of those that are only compiled for: cpu, gpu or tpu; "" without a mesh."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device else ""


def rounded(size: int, dim: str) -> int:
  """The size that a dim needs for all its axes to split it."""
  parts = num_shards(axes_of(dim))
  return -(-size // parts) * parts


def num_shards(axes: tuple[str, ...]) -> int:
  """Parts that these axes of the ambient mesh make together."""
  return math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in axes)
