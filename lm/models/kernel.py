"""Which attention kernel computes whole rows, and how it is spread over the mesh. The plain reference is `attention.attend`.

A kernel sees one device's rows and heads: `jax.shard_map` over the ambient mesh, with axes from the table of logical rules.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from lm.layout import axes_of, num_shards
from lm.models.layers import soft_cap
from lm.models.mask import Mask
from lm.plug import ConfigError

# Name, for remat policies that keep it, of what the backward pass needs of attention beside queries, keys and values.
MIXED = "mixed"
FASTEST = {"tpu": "splash", "gpu": "cudnn"}  # by platform; "plain" on every other


@dataclasses.dataclass(frozen=True)
class Kernel:
  """name: plain, splash or cudnn. device: kind of the device, which decides block sizes; "cpu" interprets the kernel.

  required: asked for by name, so that what it cannot compute is an error; else that is computed by the plain reference.
  """

  name: str = "plain"
  device: str = ""
  required: bool = False


def choose(asked: str, device: jax.Device) -> Kernel:
  """The kernel of `config.attention` on that device: "auto" is the fastest one it has.

  Raises:
    ConfigError: a kernel of another platform.
  """
  fastest = FASTEST.get(device.platform, "plain")
  accepted = list(dict.fromkeys(("auto", "plain", fastest)))
  if asked not in accepted:
    raise ConfigError(f"config.attention={asked!r}: accepted on {device.platform} devices are {', '.join(accepted)}")
  return Kernel(fastest if asked == "auto" else asked, device.device_kind, required=asked == fastest != "plain")


class Extra(NamedTuple):
  """P keys and values beside those of the rows, which every query sees whatever the mask says; they stand at no position."""

  k_PKC: jax.Array
  v_PKC: jax.Array

  def scores(self, q_BKGTC: jax.Array, cap: float) -> jax.Array:
    """[B, K, G, T, P] fp32, of queries that are scaled; cap as `attention.attend` takes it."""
    scores = jnp.einsum("bkgtc,pkc->bkgtp", q_BKGTC, self.k_PKC, preferred_element_type=jnp.float32)
    return soft_cap(scores, cap)


class Rows(NamedTuple):
  """What attention computes with: whole rows, of which a mask with `causal` lets every slot see those up to its own."""

  q_BTHC: jax.Array
  k_BSKC: jax.Array
  v_BSKC: jax.Array
  mask: Mask
  extra: Extra | None = None


class Layout(NamedTuple):
  """Mesh axes of the dims of queries [B, T, H, C]. Keys and values are whole in their length on every device."""

  rows: tuple[str, ...]
  length: tuple[str, ...]
  heads: tuple[str, ...]

  @classmethod
  def ambient(cls) -> "Layout":
    """That of the mesh and the rules that a model is traced under; nothing is split without a mesh."""
    return cls(*map(axes_of, ("batch", "length", "heads")))

  def refuses(self, rows: Rows) -> str:
    """Why a kernel cannot run on parts of these arrays, '' if it can."""
    (B, T, H, _), K = rows.q_BTHC.shape, rows.k_BSKC.shape[2]
    for name, size, axes in (("rows", B, self.rows), ("tokens", T, self.length), ("heads", H, self.heads)):
      if size % num_shards(axes):
        return f"{size} {name} do not divide over {num_shards(axes)} devices"
    heads = num_shards(self.heads)
    return f"{K} key heads do not divide over {heads} devices" if K % heads and heads % K else ""

  def repeated(self, rows: Rows) -> Rows:
    """The same with keys and values repeated where there are fewer of their heads than devices, so that each has one."""
    heads, K = num_shards(self.heads), rows.k_BSKC.shape[2]
    if K % heads == 0:
      return rows
    repeat = lambda x: jnp.repeat(x, heads // K, axis=-2)
    extra = jax.tree.map(repeat, rows.extra)
    return rows._replace(k_BSKC=repeat(rows.k_BSKC), v_BSKC=repeat(rows.v_BSKC), extra=extra)

  @property
  def queries(self) -> P:
    """Of [B, T, H, C]."""
    return P(self.rows, self.length, self.heads)

  @property
  def keys(self) -> P:
    """Of [B, S, K, C]."""
    return P(self.rows, None, self.heads)

  @property
  def extra(self) -> P:
    """Of [P, K, C]."""
    return P(None, self.heads)


def spread(function, in_specs: tuple, out_specs: P):
  """The function on each device's part of its arguments; as it is without a mesh."""
  if jax.sharding.get_abstract_mesh().empty:
    return function
  return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)
