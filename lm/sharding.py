"""Sharding is data: a mesh from the config, one table from logical dims to mesh axes, and shardings that follow from both."""

import contextlib
import functools
import math
from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lm import config, tree
from lm.plug import ConfigError
from lm.shapes import split_dims

# From the slowest network to the fastest: `replica` crosses slices of a TPU (DCN), the others stay inside one.
AXES = ("replica", "data", "fsdp", "sequence", "tensor", "expert")
ROWS = ("replica", "data", "fsdp", "expert")  # the axes that the rows of a batch are split over

# Logical dim -> mesh axes; the earlier rule takes an axis first. Of a parameter, `tensor` and `expert` split what is computed
# in parallel, and the model dim is split over every axis that would else hold a copy (ZeRO, Rajbhandari et al. 2020).
RULES = (
  ("experts", ("expert",)),
  ("vocab", ("tensor",)),
  ("heads", ("tensor",)),
  ("mlp", ("tensor",)),
  ("embed", ("fsdp", "sequence", "expert")),
  ("channels", None),
  ("classes", None),
  ("norm", None),
  ("layers", None),
  ("rank", None),
  # Of activations. Between sublayers, norms and residuals split the length over `tensor` too (Korthikanti et al. 2022).
  ("batch", ROWS),
  ("expert_batch", tuple(axis for axis in ROWS if axis != "expert")),  # rows whose tokens are at their experts
  ("length", ("sequence",)),
  ("residual_length", ("sequence", "tensor")),
  ("keys", None),  # all of the row's: attention gathers keys and values over `sequence`
  ("slots", ("sequence",)),  # of experts
  ("activation", None),
  ("reduced", ("tensor",)),  # what experts give, a sum over their hidden units
  ("split_activation", ("sequence", "tensor")),  # of tokens on their way to experts, with whole rows
)


def make_mesh(sizes: config.Mesh, devices: Sequence[jax.Device]) -> jax.sharding.Mesh:
  """The mesh of these devices; -1 takes what the other axes leave. `replica` is outermost, over the slices of a TPU.

  Raises:
    ConfigError: sizes that do not multiply to the number of devices, or a replica axis that the slices do not divide.
  """
  shape = [getattr(sizes, axis) for axis in AXES]
  known = math.prod(size for size in shape if size != -1)
  shape = [len(devices) // known if size == -1 else size for size in shape]
  if math.prod(shape) != len(devices):
    asked = ", ".join(f"{axis}={getattr(sizes, axis)}" for axis in AXES)
    raise ConfigError(f"config.mesh: {asked} does not fit {len(devices)} devices; the sizes must multiply to that number")
  return jax.sharding.Mesh(arrange(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def arrange(shape: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
  """The devices as an array of that shape, neighbours on the torus of a TPU side by side; slices differ in the first index.

  Raises:
    ConfigError: the slices do not divide the first size.
  """
  num_slices = len({getattr(device, "slice_index", 0) for device in devices})
  if shape[0] % num_slices:
    raise ConfigError(f"config.mesh.replica={shape[0]}: must be a multiple of {num_slices}, the slices of these devices")
  inside, between = (shape[0] // num_slices, *shape[1:]), (num_slices, *[1] * len(shape[1:]))
  if num_slices == 1:
    return mesh_utils.create_device_mesh(inside, devices, allow_split_physical_axes=True)
  return mesh_utils.create_hybrid_device_mesh(inside, between, devices, allow_split_physical_axes=True)


@contextlib.contextmanager
def use(mesh: jax.sharding.Mesh) -> Generator[None]:
  """The mesh and the table of rules as what tracing a model reads."""
  with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
    yield


def num_batch_shards(mesh: jax.sharding.Mesh) -> int:
  """Into how many parts the rows of a batch are split."""
  return math.prod(mesh.shape[axis] for axis in ROWS)


def accumulations(batch_size: int, mesh: jax.sharding.Mesh) -> list[int]:
  """What the micro-batches of a step can number: parts of the rows that a device has, the fewest first."""
  rows = batch_size // num_batch_shards(mesh)
  return [n for n in range(1, rows + 1) if rows % n == 0]


def logical_axes(boxed: Any) -> dict[str, tuple[str | None, ...]]:
  """Logical axis names by parameter name, from a boxed (possibly abstract) parameter tree.

  Raises:
    ValueError: a parameter without names, or a name that the table does not know: it would be replicated without a word.
  """
  specs = nn.get_partition_spec(boxed)
  flat = jax.tree_util.tree_leaves_with_path(specs, is_leaf=lambda x: isinstance(x, P))
  axes, plain = {tree.leaf_name(path): tuple(spec) for path, spec in flat}, tree.flatten(nn.unbox(boxed))
  known = {name for name, _ in RULES}
  for name, dims in axes.items():
    if len(dims) != plain[name].ndim:
      raise ValueError(f"parameter {name!r}: has {plain[name].ndim} dims and names {dims} for the sharding rules")
    unknown = {dim for dim in dims if dim is not None} - known
    if unknown:
      raise ValueError(f"parameter {name!r}: no sharding rule for its dims {sorted(unknown)}")
  return axes


class Place(NamedTuple):
  """Where a parameter is. whole: what the table would split and the mesh does not divide, "vocab=50257 by tensor=2"."""

  sharding: NamedSharding
  whole: tuple[str, ...]


def places(boxed: Any, mesh: jax.sharding.Mesh, overrides: Sequence[str] = ()) -> dict[str, Place]:
  """Where each parameter is, by name. overrides: `config.sharding`, whose first match stands before the table.

  Raises:
    ConfigError: an override that matches nothing, is of a dim or axis that is not there, or that the sizes do not fit.
    ValueError: as `logical_axes`.
  """
  axes, plain = logical_axes(boxed), tree.flatten(nn.unbox(boxed))
  rules = [(pattern, (text, found)) for text in overrides for pattern, found in [_parse(text)]]
  chosen = tree.first_match([*rules, (".*", ("", ()))], axes, "config.sharding")
  for text, found in {text: found for _, (text, found) in rules}.items():
    dims = {dim for name in axes if chosen[name][0] == text for dim in axes[name]}
    if lost := [dim for dim, _ in found if dim not in dims]:
      raise ConfigError(f"config.sharding={text!r}: no parameter that it is the first to match has a dim {lost[0]!r}")
  return {name: _place(name, axes[name], plain[name].shape, mesh, *chosen[name]) for name in axes}


def by_name(boxed: Any, mesh: jax.sharding.Mesh) -> dict[str, NamedSharding]:
  """Shardings by parameter name, from a boxed (possibly abstract) parameter tree and the table alone."""
  return {name: place.sharding for name, place in places(boxed, mesh).items()}


def _place(name: str, dims: tuple, shape: tuple[int, ...], mesh: jax.sharding.Mesh, text: str, asked: tuple) -> Place:
  rules, sizes = (*asked, *RULES), dict(mesh.shape)
  found = split_dims(dims, shape, rules, sizes)
  taken, whole = {axis for axes in found for axis in axes}, []
  for dim, size, axes in zip(dims, shape, found, strict=True):
    wanted = next((axes or () for rule, axes in rules if rule == dim), ())
    others = axes if dim in dict(asked) else taken  # what the table would split by an axis, another dim may
    if left := [axis for axis in wanted if axis not in others and sizes[axis] > 1]:
      whole.append(f"{dim}={size} by {left[0]}={sizes[left[0]]}")
      if dim in dict(asked):
        raise ConfigError(f"config.sharding={text!r}: cannot split {whole[-1]} in parameter {name!r}")
  return Place(NamedSharding(mesh, P(*(axes if len(axes) > 1 else axes[0] if axes else None for axes in found))), tuple(whole))


def _parse(text: str) -> tuple[str, tuple[tuple[str, tuple[str, ...]], ...]]:
  """ "backbone/embed/.*: vocab=tensor+fsdp embed=none" -> (pattern, (("vocab", ("tensor", "fsdp")), ("embed", ())))."""
  pattern, _, rest = text.rpartition(":")
  pairs = [part.partition("=") for part in rest.split()]
  found = tuple((dim, () if axes == "none" else tuple(axes.split("+"))) for dim, _, axes in pairs)
  used = [axis for _, axes in found for axis in axes]
  if not pattern or not found or not all(dim and axes for dim, _, axes in pairs):
    raise ConfigError(f"config.sharding={text!r}: expected 'PATTERN: dim=axis dim=axis+axis dim=none'")
  if unknown := [axis for axis in used if axis not in AXES]:
    raise ConfigError(f"config.sharding={text!r}: {unknown[0]!r} is no axis of the mesh; there are {', '.join(AXES)}")
  if twice := [part for part in (*used, *dict(found)) if used.count(part) > 1 or [dim for dim, _ in found].count(part) > 1]:
    raise ConfigError(f"config.sharding={text!r}: {twice[0]!r} stands twice")
  tree.check_pattern(pattern, f"config.sharding={text!r}")
  return pattern.strip(), found


def describe_whole(found: Mapping[str, Place]) -> str:
  """One line of the parameters that the mesh does not divide as the table says, "" without any."""
  by_reason: dict[str, list[str]] = {}
  for name, place in found.items():
    for reason in place.whole:
      by_reason.setdefault(reason, []).append(name)
  parts = (f"{reason} in {', '.join(names)}" for reason, names in by_reason.items())
  return f"not split, since it does not divide: {'; '.join(parts)}" if by_reason else ""


def param_shardings(params: Any, found: Mapping[str, NamedSharding], mesh: jax.sharding.Mesh) -> Any:
  """Shardings of a tree whose leaves are parameters or stand for one (optimizer moments), by name and rank.

  A leaf of the optimizer's state belongs to the parameter whose name ends its path; what is not of its rank, or not divided by
  its devices, is replicated: scalars, sums over rows and columns.
  """
  rest = lambda size, axes: size % math.prod(mesh.shape[axis] for axis in ([axes] if isinstance(axes, str) else axes or ()))
  fits = lambda spec, shape: len(spec) == len(shape) and not any(map(rest, shape, spec))

  def sharding(path, leaf):
    parts = tree.leaf_name(path).split("/")
    names = ("/".join(parts[i:]) for i in range(len(parts)))
    return next((found[name] for name in names if name in found and fits(found[name].spec, leaf.shape)), replicated(mesh))

  return jax.tree_util.tree_map_with_path(sharding, params)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Rows over the axes that split them; along `sequence` and `tensor` every device has its rows whole."""
  return NamedSharding(mesh, P(ROWS))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, P())


@functools.cache
def local_rows(mesh: jax.sharding.Mesh, num_rows: int) -> np.ndarray:
  """The rows of a global batch that the devices of this process hold, rising."""
  parts = batch_sharding(mesh).addressable_devices_indices_map((num_rows,)).values()
  return np.unique(np.concatenate([np.arange(num_rows)[part] for part in parts]))


def place(batch: Any, mesh: jax.sharding.Mesh, num_rows: int | None = None) -> Any:
  """Host arrays to the devices: a global batch, or of one of `num_rows` rows those that `local_rows` says."""
  split = batch_sharding(mesh)
  if split.is_fully_addressable:
    return jax.device_put(batch, split)

  def put(values: np.ndarray) -> jax.Array:
    total = num_rows or len(values)
    held = local_rows(mesh, total) if num_rows else np.arange(total)
    take = lambda index: values[np.searchsorted(held, np.arange(total)[index[0]])][:, *index[1:]]
    return jax.make_array_from_callback((total, *values.shape[1:]), split, take)

  return jax.tree.map(put, batch)
