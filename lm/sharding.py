"""Sharding is data: a mesh from the config, one table from logical dims to mesh axes, and shardings that follow from both."""

import contextlib
from collections.abc import Generator, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lm import config, tree

AXES = ("data", "fsdp", "tensor")

# Logical dim -> mesh axes. Rows are split over data and fsdp; of a parameter, fsdp splits the model dim and tensor the other.
RULES = (
  ("batch", ("data", "fsdp")),
  ("length", None),
  ("activation", None),
  ("embed", "fsdp"),
  ("vocab", "tensor"),
  ("heads", "tensor"),
  ("experts", "tensor"),  # before "mlp": of expert kernels, tensor splits the experts
  ("mlp", "tensor"),
  ("channels", None),
  ("classes", None),
  ("norm", None),
  ("layers", None),
  ("rank", None),
)


def make_mesh(sizes: config.Mesh, devices: list[jax.Device]) -> jax.sharding.Mesh:
  """The mesh of these devices; -1 takes what the other axes leave.

  Raises:
    ValueError: sizes that do not multiply to the number of devices.
  """
  shape = [getattr(sizes, axis) for axis in AXES]
  known = int(np.prod([size for size in shape if size != -1]))
  shape = [len(devices) // known if size == -1 else size for size in shape]
  if int(np.prod(shape)) != len(devices):
    asked = ", ".join(f"{axis}={getattr(sizes, axis)}" for axis in AXES)
    raise ValueError(f"config.mesh: {asked} does not fit {len(devices)} devices; the sizes must multiply to that number")
  return jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


@contextlib.contextmanager
def use(mesh: jax.sharding.Mesh) -> Generator[None]:
  """The mesh and the table of rules as what tracing a model reads."""
  with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
    yield


def num_batch_shards(mesh: jax.sharding.Mesh) -> int:
  """Into how many parts the rows of a batch are split."""
  return mesh.shape["data"] * mesh.shape["fsdp"]


def logical_axes(boxed: Any) -> dict[str, tuple[str | None, ...]]:
  """Logical axis names by parameter name, from a boxed (possibly abstract) parameter tree."""
  specs = nn.get_partition_spec(boxed)
  flat = jax.tree_util.tree_leaves_with_path(specs, is_leaf=lambda x: isinstance(x, P))
  return {tree.leaf_name(path): tuple(spec) for path, spec in flat}


def check_rules(axes: Mapping[str, tuple[str | None, ...]]) -> None:
  """Raises ValueError for a logical dim that the table does not know: it would be replicated without a word."""
  known = {name for name, _ in RULES}
  for name, dims in axes.items():
    unknown = {dim for dim in dims if dim is not None} - known
    if unknown:
      raise ValueError(f"parameter {name!r}: no sharding rule for its dims {sorted(unknown)}")


def param_shardings(params: Any, axes: Mapping[str, tuple[str | None, ...]], mesh: jax.sharding.Mesh) -> Any:
  """Shardings of a tree whose leaves are parameters or stand for one (optimizer moments), by name and rank.

  A leaf of the optimizer's state belongs to the parameter whose name ends its path; scalars and the like are replicated.
  A dim that the mesh axis does not divide is replicated.
  """

  def sharding(path, leaf):
    parts = tree.leaf_name(path).split("/")
    names = ("/".join(parts[i:]) for i in range(len(parts)))
    dims = next((axes[name] for name in names if name in axes and len(axes[name]) == leaf.ndim), (None,) * leaf.ndim)
    spec = nn.logical_to_mesh_axes(dims, RULES) or P()
    fits = [
      axis if axis is not None and size % mesh.shape[axis] == 0 else None for axis, size in zip(spec, leaf.shape, strict=True)
    ]
    return NamedSharding(mesh, P(*fits))

  return jax.tree_util.tree_map_with_path(sharding, params)


def by_name(boxed: Any, mesh: jax.sharding.Mesh) -> dict[str, NamedSharding]:
  """Shardings by parameter name, from a boxed (possibly abstract) parameter tree."""
  plain = nn.unbox(boxed)
  return tree.flatten(param_shardings(plain, logical_axes(boxed), mesh))


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Rows over data and fsdp."""
  return NamedSharding(mesh, P(("data", "fsdp")))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, P())


def place(batch: Any, mesh: jax.sharding.Mesh) -> Any:
  """Host arrays of a global batch to the devices."""
  return jax.device_put(batch, batch_sharding(mesh))
