"""Cross-entropy against a head without holding all logits: a scan over chunks of T that computes the gradient with the sum."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from lm.layout import axes_of, num_shards

NO_CLASS = -1e9  # the logit of what is no class of a row, where rows have other classes
LOGIT_BYTES = 2**27  # [bytes] of fp32 logits per device that may exist at a time where no chunk is set
# "loss" and "accuracy", see `token_sums`.
Sums = dict[str, jax.Array]
# (hidden [B, T, D], labels [B, T], weights [B, T]).
Rows = tuple[jax.Array, jax.Array, jax.Array]
# (parameters that it reads, hidden [..., D]) -> logits [..., V].
Head = Callable[[Any, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Softening:
  """What training adds to -log p(label).

  label_smoothing: share of the target that is spread over all V classes (Szegedy et al. 2015). z_loss: weight of the squared
  log of the softmax's normaliser, which keeps logits near 0 (Chowdhery et al. 2022, 1e-4 in PaLM).
  """

  label_smoothing: float = 0.0
  z_loss: float = 0.0


PLAIN = Softening()


def token_sums(logits: jax.Array, labels: jax.Array, weights: jax.Array, softening: Softening = PLAIN) -> Sums:
  """Weighted sums over all positions of -log p(label) in nats, and of correct argmax predictions.

  Args:
    logits: [..., V] fp32, NO_CLASS for what is none. labels: [...] int32. weights: [...], 0 where a position does not count.
    softening: what the loss has beside.
  """
  largest = jax.lax.stop_gradient(logits.max(axis=-1))
  log_normaliser = jnp.log(jnp.exp(logits - largest[..., None]).sum(axis=-1)) + largest
  label_logits = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
  weights = weights.astype(jnp.float32)
  # The label is the prediction where no logit is larger; XLA's argmax takes far longer than its max on a CPU.
  correct = (label_logits >= largest).astype(jnp.float32)
  target = label_logits
  if smoothing := softening.label_smoothing:
    is_class = logits > NO_CLASS
    mean = jnp.sum(jnp.where(is_class, logits, 0), axis=-1) / jnp.maximum(jnp.sum(is_class, axis=-1), 1)
    target = (1 - smoothing) * label_logits + smoothing * mean
  loss = log_normaliser - target
  if softening.z_loss:
    loss += softening.z_loss * jnp.square(log_normaliser)
  return {"loss": jnp.sum(loss * weights), "accuracy": jnp.sum(correct * weights)}


def chunked_token_sums(head: Head, read: Any, rows: Rows, chunk: int | None, softening: Softening = PLAIN) -> Sums:
  """`token_sums(head(read, h), labels, weights, softening)` in chunks of T, so that only [B, chunk, V] logits exist at a time.

  read: parameters of the head. rows: (h, labels, weights). chunk: positions per chunk of h [B, T, D], a divisor of T; 0:
  whole rows up to `LOGIT_BYTES` per device; None: all at once, of any shape. Chunks are of T and not of flattened B * T,
  which would move rows between devices.

  Where it is differentiated, the gradient of the sum is computed with it: logits exist once, not again backwards. It
  flows into h and into what the head reads, not into the weights.
  """
  h, labels, weights = rows
  if chunk == 0:
    chunk = _fitting_chunk(head, read, h)
  if chunk is None or chunk >= labels.shape[1]:
    return token_sums(head(read, h), labels, weights, softening)
  assert h.shape[1] % chunk == 0, f"loss_chunk={chunk} does not divide {h.shape[1]}"
  return _sums(head, h.shape[1] // chunk, softening, read, rows)


def divergence_sum(heads: tuple[Head, Head], read: Any, rows: Rows, chunk: int | None) -> jax.Array:
  """Weighted sum over positions of the mean of KL(p || q) and KL(q || p) in nats, of what two heads predict.

  rows: (h, the other head's h, weights). chunk: as `chunked_token_sums` takes it; logits are computed again backwards.
  """
  h, _, weights = rows
  if chunk == 0:
    chunk = _fitting_chunk(heads[0], read, h)

  @jax.checkpoint
  def of_part(part: Rows) -> jax.Array:
    log_p, log_q = (jax.nn.log_softmax(head(read, x)) for head, x in zip(heads, part, strict=False))
    both = 0.5 * jnp.sum((jnp.exp(log_p) - jnp.exp(log_q)) * (log_p - log_q), axis=-1)
    return jnp.sum(both * part[2].astype(jnp.float32))

  if chunk is None or chunk >= weights.shape[1]:
    return of_part(rows)
  add = lambda total, part: (total + of_part(part), None)
  return jax.lax.scan(add, jnp.zeros(()), _by_chunk(rows, h.shape[1] // chunk))[0]


def chunked_log_probs(head: Head, read: Any, h_BTD: jax.Array, labels_BT: jax.Array, chunk: int) -> jax.Array:
  """log p(label) in nats at each position, [B, T] fp32, from logits that exist for [B, chunk, V] at a time.

  labels: [B, T], or [B, T, N] of N labels at each position, which gives as many values.

  For losses that are no sum over positions, whose gradient is not known before all of them are: logits are computed again
  for it. head, read, chunk: as `chunked_token_sums` takes them, 0 for what fits.
  """

  def of_chunk(read, rows):
    h, labels = rows
    own = labels if labels.ndim == h.ndim else labels[..., None]
    return jnp.take_along_axis(jax.nn.log_softmax(head(read, h)), own, axis=-1).reshape(labels.shape)

  chunk = chunk or _fitting_chunk(head, read, h_BTD)
  B, T = labels_BT.shape[:2]
  if chunk >= T:
    return of_chunk(read, (h_BTD, labels_BT))
  assert T % chunk == 0, f"loss_chunk={chunk} does not divide {T}"
  parts = jax.tree.map(lambda x: x.reshape(B, T // chunk, chunk, *x.shape[2:]).swapaxes(0, 1), (h_BTD, labels_BT))
  again = jax.checkpoint(of_chunk)
  _, found = jax.lax.scan(lambda carry, rows: (carry, again(read, rows)), None, parts)
  return found.swapaxes(0, 1).reshape(labels_BT.shape)


def _fitting_chunk(head: Head, read: Any, h_BTD: jax.Array) -> int:
  """The largest divisor of T whose fp32 logits fit `LOGIT_BYTES` on a device; 1 if none does."""
  B, T, _ = h_BTD.shape
  per_token = 4 * jax.eval_shape(head, read, h_BTD).shape[-1] * B // num_shards(axes_of("batch", B))
  return max(size for size in range(1, T + 1) if T % size == 0 and (size == 1 or size * per_token <= LOGIT_BYTES))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _sums(head: Head, num_chunks: int, softening: Softening, read: Any, rows: Rows) -> Sums:
  body = lambda totals, xs: (jax.tree.map(jnp.add, totals, token_sums(head(read, xs[0]), *xs[1:], softening)), None)
  return jax.lax.scan(body, _zeros(), _by_chunk(rows, num_chunks))[0]


def _sums_forward(head: Head, num_chunks: int, softening: Softening, read: Any, rows: Rows):
  """The sums, and d loss / d (read, h), on each device's rows.

  What the head reads is gathered once, in the type of h, and its gradient reduced once: by GSPMD that would be per chunk.
  """
  h_BTD, labels_BT, weights_BT = rows
  over_rows, over_length, over_model = map(axes_of, ("batch", "length", "embed"), h_BTD.shape)
  axes = (*over_rows, *over_length)
  scattered = tuple(axis for axis in over_model if axis in axes)
  summed = tuple(axis for axis in axes if axis not in scattered)
  num_chunks = math.gcd(num_chunks, h_BTD.shape[1] // num_shards(over_length))
  places = jax.tree.map(lambda x: _place(x, h_BTD.shape[-1], scattered), read)

  def gather(x, place):
    x = x.astype(h_BTD.dtype) if x.ndim > 1 else x
    return jax.lax.all_gather(x, scattered, axis=len(place) - 1, tiled=True) if place else x

  def reduce(grad, x, place):
    over = summed if place else axes
    grad = jax.lax.psum(grad, over) if over else grad
    return (jax.lax.psum_scatter(grad, scattered, scatter_dimension=len(place) - 1, tiled=True) if place else grad).astype(
      x.dtype
    )

  def of_part(read, rows):
    whole = jax.tree.map(gather, read, places)
    zeros = _zeros(), jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), whole)
    add_chunk = functools.partial(_add_chunk, head, softening, whole)
    (sums, grads), d_h = jax.lax.scan(add_chunk, zeros, _by_chunk(rows, num_chunks))
    sums = jax.tree.map(lambda x: jax.lax.psum(x, axes), sums) if axes else sums
    return sums, jax.tree.map(reduce, grads, read, places), d_h.swapaxes(0, 1).reshape(rows[0].shape)

  if axes:
    place = P(over_rows, over_length)
    of_part = jax.shard_map(
      of_part,
      in_specs=(places, (place,) * 3),
      out_specs=(P(), places, place),
      axis_names=set(axes),
      check_vma=False,
    )
  sums, grads, d_h = of_part(read, rows)
  return sums, (grads, d_h, labels_BT, weights_BT)


def _sums_backward(head: Head, num_chunks: int, softening: Softening, saved, cotangents: Sums):
  del head, num_chunks, softening
  grads, d_h, labels_BT, weights_BT = saved
  scale = lambda x: (x * cotangents["loss"]).astype(x.dtype)
  none = np.zeros(labels_BT.shape, jax.dtypes.float0)
  return jax.tree.map(scale, grads), (scale(d_h), none, jnp.zeros_like(weights_BT))


_sums.defvjp(_sums_forward, _sums_backward)


def _zeros() -> Sums:
  return {"loss": jnp.zeros(()), "accuracy": jnp.zeros(())}


def _add_chunk(head: Head, softening: Softening, read: Any, carry: tuple[Sums, Any], rows: Rows):
  """One chunk's sums and gradients, added to those before it, and its d loss / d h."""
  sums, grads = carry
  h, labels, weights = rows
  logits, pull = jax.vjp(head, read, h)
  d_read, d_h = pull(_logit_gradient(logits, labels, weights, softening))
  add = functools.partial(jax.tree.map, jnp.add)
  return (add(sums, token_sums(logits, labels, weights, softening)), add(grads, d_read)), d_h


def _logit_gradient(logits: jax.Array, labels: jax.Array, weights: jax.Array, softening: Softening) -> jax.Array:
  """d loss / d logits of `token_sums`."""
  target = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1) == labels[..., None]
  if smoothing := softening.label_smoothing:
    target = (1 - smoothing) * target + smoothing / logits.shape[-1]
  p = jax.nn.softmax(logits)
  if softening.z_loss:
    p *= 1 + 2 * softening.z_loss * jax.nn.logsumexp(logits, axis=-1, keepdims=True)
  return (p - target) * weights.astype(jnp.float32)[..., None]


def _by_chunk(rows: Rows, num_chunks: int) -> Rows:
  """[B, T, ...] -> [chunks, B, T / chunks, ...]."""
  return jax.tree.map(lambda x: x.reshape(x.shape[0], num_chunks, -1, *x.shape[2:]).swapaxes(0, 1), rows)


def _place(x: jax.Array, model_dim: int, axes: tuple[str, ...]) -> P:
  """The spec of a parameter: its model dim, of matrices, over the axes; the last entry is that dim's."""
  return P(*[None] * x.shape.index(model_dim), axes) if axes and x.ndim > 1 and model_dim in x.shape else P()
