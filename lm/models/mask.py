"""Attention masks as values: what may see what, combined with `&`. Kernels may use the structure, others ask for the array.

Idea: tokamax `ops/attention/base.py`.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp


class Mask(flax.struct.PyTreeNode):
  """Each part is None (allows everything) or a pair (query side [B, T], key side [B, S]).

  causal: slots in the row or cache; a query sees keys in slots up to its own.
  prefix: of keys only [B, S], where `causal` is set: true where all queries see the key, later ones too.
  segments: a query sees keys with the same segment id, so packed documents and padding (id 0) stay apart.
  window: slots as in `causal`, and a number (it may be traced): a query sees keys less than so many slots away.
  """

  causal: tuple[jax.Array, jax.Array] | None = None
  prefix: jax.Array | None = None
  segments: tuple[jax.Array, jax.Array] | None = None
  window: tuple[jax.Array, jax.Array, jax.Array] | None = None

  def __and__(self, other: "Mask") -> "Mask":
    parts = {}
    for name in ("causal", "prefix", "segments", "window"):
      mine, theirs = getattr(self, name), getattr(other, name)
      assert mine is None or theirs is None, f"both masks set {name}"
      parts[name] = theirs if mine is None else mine
    return Mask(**parts)

  def as_array(self) -> jax.Array | None:
    """Boolean [B, T, S], true where the query may see the key; None if everything is allowed."""
    parts = []
    if self.causal is not None:
      before = self.causal[0][:, :, None] >= self.causal[1][:, None, :]
      parts.append(before if self.prefix is None else before | self.prefix[:, None, :])
    if self.segments is not None:
      parts.append(self.segments[0][:, :, None] == self.segments[1][:, None, :])
    if self.window is not None:
      query, key, size = self.window
      parts.append(jnp.abs(query[:, :, None] - key[:, None, :]) < size)
    return functools.reduce(jnp.logical_and, parts) if parts else None


def in_row(segment_ids_BT: jax.Array, causal: bool, prefix_BT: jax.Array | None = None) -> Mask:
  """The mask of whole rows: one segment sees itself; if causal, up to the query's own slot and its prefix.

  Args:
    segment_ids_BT: 0 on padding. [1 1 2 2 0] with causal=True allows (query -> keys): 0->0, 1->01, 2->2, 3->23, 4->4.
    prefix_BT: above 0 in a segment's first part, which all of the segment sees. [1 1 0 1 0] adds 0->1.
  """
  mask = Mask(segments=(segment_ids_BT, segment_ids_BT))
  slots_BT = slots(segment_ids_BT)
  prefix = None if prefix_BT is None else jnp.asarray(prefix_BT > 0)
  return mask & Mask(causal=(slots_BT, slots_BT), prefix=prefix) if causal else mask


def slots(like_BT: jax.Array) -> jax.Array:
  """The slot of every position of whole rows: its place in the row."""
  return jnp.broadcast_to(jnp.arange(like_BT.shape[1])[None, :], like_BT.shape)
