"""Cross-entropy against a head without holding all logits: a scan over chunks of T that recomputes them backwards."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# (hidden [B, T, D], labels [B, T]) and the two sums below.
Sums = dict[str, jax.Array]


def token_sums(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> Sums:
  """Weighted sums over all positions of -log p(label) in nats, and of correct argmax predictions.

  Args:
    logits: [..., V] fp32. labels: [...] int32. weights: [...], 0 where a position does not count.
  """
  largest = jax.lax.stop_gradient(logits.max(axis=-1))
  log_normaliser = jnp.log(jnp.exp(logits - largest[..., None]).sum(axis=-1)) + largest
  label_logits = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
  weights = weights.astype(jnp.float32)
  # The label is the prediction where no logit is larger; XLA's argmax takes far longer than its max on a CPU.
  correct = (label_logits >= largest).astype(jnp.float32)
  return {"loss": jnp.sum((log_normaliser - label_logits) * weights), "accuracy": jnp.sum(correct * weights)}


def chunked_token_sums(
  head: Callable[[jax.Array], jax.Array], h_BTD: jax.Array, labels_BT: jax.Array, weights_BT: jax.Array, chunk: int
) -> Sums:
  """`token_sums(head(h), labels, weights)` in chunks of T, so that only [B, chunk, V] logits exist at a time.

  chunk: positions per chunk, a divisor of T; 0 takes all at once, of any shape. Chunks are of T and not of flattened
  B * T, which would move rows between devices.
  """
  if chunk == 0 or chunk >= labels_BT.shape[1]:
    return token_sums(head(h_BTD), labels_BT, weights_BT)
  B, T = labels_BT.shape
  assert T % chunk == 0, f"loss_chunk={chunk} does not divide {T}"
  by_chunk = lambda x: x.reshape(B, T // chunk, chunk, *x.shape[2:]).swapaxes(0, 1)

  @jax.checkpoint
  def body(totals: Sums, xs):
    h, labels, weights = xs
    return jax.tree.map(jnp.add, totals, token_sums(head(h), labels, weights)), None

  zeros = {"loss": jnp.zeros(()), "accuracy": jnp.zeros(())}
  return jax.lax.scan(body, zeros, (by_chunk(h_BTD), by_chunk(labels_BT), by_chunk(weights_BT)))[0]
