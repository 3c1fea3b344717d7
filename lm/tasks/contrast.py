"""InfoNCE over a whole batch: every anchor picks out what belongs to it among all candidates of all rows (Oord et al. 2018).

S texts of a row, C candidates of a row, N = B C candidates of the batch.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lm.layout import constrain

MASKED = -1e30  # finite, so that an anchor without any negative has a gradient


def unit(x: jax.Array) -> jax.Array:
  """Vectors [..., D] at length 1; a vector of zeros stays one, and gets no gradient."""
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))


def contrast(anchor_BD: jax.Array, other_ND: jax.Array, positive_BN: jax.Array, negative_BN: jax.Array, temperature: float):
  """Loss in nats and whether a positive is the nearest, each [B].

  With scores s = anchor . other / temperature, a positive j of anchor i costs -log(e^s_ij / (e^s_ij + sum of e^s_in over its
  negatives n)): cross-entropy in which other positives do not compete (they do in Khosla et al. 2020). The loss is the mean
  over an anchor's positives, 0 without any.

  positive_BN, negative_BN: bool, of which a candidate may be neither. Each device holds all candidates and its own anchors.
  """
  anchor_BD, other_ND = constrain(anchor_BD, "batch", None), constrain(other_ND, None, None)
  score_BN = jnp.einsum("bd,nd->bn", anchor_BD, other_ND) / temperature
  against_BN = jnp.where(negative_BN, score_BN, MASKED)
  cost_BN = jax.nn.softplus(jax.nn.logsumexp(against_BN, axis=-1, keepdims=True) - score_BN)
  count_B = jnp.sum(positive_BN, axis=-1)
  loss_B = jnp.sum(jnp.where(positive_BN, cost_BN, 0), axis=-1) / jnp.maximum(count_B, 1)
  nearest_B = jnp.max(jnp.where(positive_BN, score_BN, MASKED), axis=-1) >= jnp.max(against_BN, axis=-1)
  return loss_B, (nearest_B & (count_B > 0)).astype(jnp.float32)


def contrast_rows(
  text_BSD: jax.Array, batch: Mapping[str, jax.Array], temperature: float, symmetric: bool
) -> tuple[jax.Array, jax.Array]:
  """`contrast` of the rows of a batch, loss and accuracy [B]; the first of a row's texts asks, the others are candidates.

  batch: weights [B], 0 for rows that are left out; question [B], which text asks; groups [B, C], which candidate each is, 0
  where there is none. Candidates of the group of a row's first one are its positives, wherever they stand, and so are the first
  candidates of rows that ask the same. symmetric: also every first candidate picks out its question, in the mean of both.
  """
  groups_BC, question_B, counted_B = batch["groups"], batch["question"], batch["weights"] > 0
  B, C = groups_BC.shape
  first_BC = jnp.arange(C)[None, :] == 0
  flat = lambda x_BC: jnp.broadcast_to(x_BC, (B, C)).reshape(1, B * C)
  same_BN = flat(groups_BC) == groups_BC[:, :1]
  same_BN |= (flat(question_B[:, None]) == question_B[:, None]) & flat(first_BC)
  there_BN = flat((groups_BC > 0) & counted_B[:, None]) & counted_B[:, None]
  positive_BN, negative_BN = there_BN & same_BN, there_BN & ~same_BN
  asked_BD, other_ND = text_BSD[:, 0], text_BSD[:, 1 : 1 + C].reshape(B * C, -1)
  loss_B, accuracy_B = contrast(asked_BD, other_ND, positive_BN, negative_BN, temperature)
  if symmetric:
    answers = lambda x_BN: x_BN.reshape(B, B, C)[:, :, 0].T
    back_B, _ = contrast(text_BSD[:, 1], asked_BD, answers(positive_BN), answers(negative_BN), temperature)
    loss_B = (loss_B + back_B) / 2
  return loss_B, accuracy_B
