"""What a task gets of the model: hidden states, logits, and the sums that losses are made of."""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm import tree
from lm.models.model import Intercept, Model
from lm.models.transformer import Output
from lm.state import REFERENCE
from lm.tasks import contrast, cross_entropy
from lm.tasks.cross_entropy import NO_CLASS, PLAIN, Rows, Softening, Sums, chunked_log_probs, chunked_token_sums, divergence_sum

# What the head of a cross-entropy read: hidden states, and the rng of its dropout.
Read = tuple[jax.Array, jax.Array | None]


class Pass(NamedTuple):
  """How a pass over a batch differs from the plain one, for the sake of a regularizer (lm.regularizers).

  perturb: [B, T, D], added to the embedding. against: what cross-entropies of another pass read. mix: in "loss", the weights of
  the cross-entropy and of the divergence of its predictions from those of the other pass.
  """

  perturb: jax.Array | None = None
  against: tuple[Read, ...] = ()
  mix: tuple[float, float] = (1.0, 0.0)


ONCE = Pass()


class Forward:
  """The model of one step as tasks see it: `forward(batch, rng)` gives hidden states, `forward.head(h, batch)` logits.

  What a loss computes from them is here too, so that the module of a task needs no jax.

  Asked twice for the same batch, rng and options, it answers with the same hidden states, so that several tasks over
  one batch cost one pass through the backbone.
  """

  def __init__(
    self,
    model: Model,
    params: dict,
    intercept: Intercept | None = None,
    *,
    loss_chunk: int = 0,
    softening: Softening = PLAIN,
    how: Pass = ONCE,
  ):
    self._model, self._params, self._intercept, self._head = model, params, intercept, ""
    self.loss_chunk = loss_chunk  # positions of T per chunk of head and cross-entropy; 0: by size
    self._softening, self._how = softening, how
    self._seen: dict[tuple, tuple] = {}
    self.read: list[Read] = []  # by cross-entropies, in their order

  @property
  def causal(self) -> bool:
    """Whether a position sees only those before it: then the last one knows the whole text, not the first."""
    return self._model.cfg.causal

  def for_head(self, head: str) -> "Forward":
    """The same forward pass (and its memory), reading another head."""
    other = copy.copy(self)  # what was seen and read is shared
    other._head = head
    return other

  def __call__(self, batch: dict, rng: jax.Array | None = None, *, tuned: bool = True) -> jax.Array:
    """Hidden states [B, T, D].

    tuned=False gives those of the model that the run started from, without gradient: the PEFT method is left out, and what
    trains is what it was then, which the state holds where a task says `needs_reference`.
    """
    return self._output(batch, rng, tuned).hidden_BTD

  def router(self, batch: dict, rng: jax.Array | None = None) -> dict[str, jax.Array]:
    """Sums per row [B] of what the experts' router adds to the loss, by name; {} without experts."""
    return self._output(batch, rng, True).router

  def _output(self, batch, rng, tuned) -> Output:
    arguments = (batch["tokens"], rng)
    key = (*map(id, arguments), tuned)
    if key not in self._seen:
      params, intercept = self._version(tuned)
      perturb = self._how.perturb if tuned else None
      model = self._model if tuned else dataclasses.replace(self._model, tuner=None)
      output = model.hidden(params, batch, rng=rng, intercept=intercept, perturb=perturb)
      self._seen[key] = (output, arguments)  # the arguments are kept so that their ids stay theirs
    return self._seen[key][0]

  def _version(self, tuned: bool) -> tuple[dict, Intercept | None]:
    """Parameters and interceptor of the model as it is, or as the run found it."""
    if tuned:
      return self._params, self._intercept
    own = {name: part for name, part in self._params.items() if name != REFERENCE}
    found = tree.flatten(own) | tree.flatten(self._params.get(REFERENCE, {}))
    return jax.lax.stop_gradient(tree.unflatten(found)), None

  def head(self, h: jax.Array, batch: dict, rng: jax.Array | None = None) -> jax.Array:
    """Logits of this task's head for any hidden states of the batch's rows, in fp32."""
    return self._model.logits(self._params, self._head, h, batch["row"], rng=rng, intercept=self._intercept)

  def probabilities(self, h: jax.Array, batch: dict) -> jax.Array:
    """The softmax of those logits."""
    return jax.nn.softmax(self.head(h, batch))

  def independent_probabilities(self, h: jax.Array, batch: dict) -> jax.Array:
    """The sigmoid of those logits."""
    return jax.nn.sigmoid(self.head(h, batch))

  def binary_loss(self, h: jax.Array, labels: jax.Array, weights: jax.Array, batch: dict, rng=None) -> jax.Array:
    """Sum over rows of the mean binary cross-entropy of the logits, in nats. labels: [..., N], 0 or 1. weights: [...]."""
    logits = self.head(h, batch, rng)
    nats = -(labels * jax.nn.log_sigmoid(logits) + (1 - labels) * jax.nn.log_sigmoid(-logits))
    return jnp.sum(weights * nats.mean(axis=-1))

  def at(self, positions_BP: jax.Array, batch: dict, rng: jax.Array | None = None) -> jax.Array:
    """Hidden states [B, P, D] at some positions of each row."""
    return jnp.take_along_axis(self(batch, rng), positions_BP[:, :, None], axis=1)

  def pooled(self, batch: dict, rng: jax.Array | None, pooling: str) -> jax.Array:
    """One hidden state per row [B, D], as `pool` reads it."""
    return pool(self(batch, rng), batch, pooling)

  def pooled_segments(self, batch: dict, rng: jax.Array | None, pooling: str, num_segments: int) -> jax.Array:
    """One hidden state of each segment of a row, [B, K, D] in fp32 of the segments 1 to K; of one that is not there, any.

    It is read as `pool` does, a segment as a row of its own.
    """
    h_BTD = self(batch, rng).astype(jnp.float32)
    ids_BT, tokens_BT = jnp.asarray(batch["segment_ids"]), batch["tokens"]
    own = lambda k: {"segment_ids": ids_BT, "tokens": jnp.where(ids_BT == k, tokens_BT, -1)}
    return jax.vmap(lambda k: pool(h_BTD, own(k), pooling), out_axes=1)(jnp.arange(1, num_segments + 1))

  unit = staticmethod(contrast.unit)
  contrast = staticmethod(contrast.contrast_rows)

  def token_sums(
    self, h: jax.Array, labels: jax.Array, weights: jax.Array, batch: dict, rng=None, chunk: int | None = None
  ) -> Sums:
    """`cross_entropy.token_sums` of the logits of h, softened where it trains, in chunks as `chunked_token_sums` takes them."""
    return self._cross_entropies(lambda logits: logits, (h, labels, weights), batch, rng, chunk)

  def place_sums(self, h_BTD: jax.Array, places_BN: jax.Array, weights_BN: jax.Array, batch: dict, rng=None) -> Sums:
    """The same of a head whose N outputs each choose one of the row's tokens: the classes are the row's T places."""
    real_BT = (batch["segment_ids"] > 0) & (batch["tokens"] >= 0)
    over_places = lambda logits_BTN: jnp.where(real_BT[:, None, :], logits_BTN.swapaxes(1, 2), NO_CLASS)
    return self._cross_entropies(over_places, (h_BTD, places_BN, weights_BN), batch, rng, None)

  def _cross_entropies(
    self, classes: Callable[[jax.Array], jax.Array], rows: Rows, batch: dict, rng: jax.Array | None, chunk: int | None
  ) -> Sums:
    """classes: the head's logits as those of the classes that labels number, which are the last dim."""
    h, _, weights = rows

    def head_of(rng):
      logits = lambda read, h: self._model.logits(read, self._head, h, batch["row"], rng=rng, intercept=self._intercept)
      return lambda read, h: classes(logits(read, h))

    read = self._model.read_by(self._head, self._params)
    self.read.append((h, rng))
    sums = chunked_token_sums(head_of(rng), read, rows, chunk, self._softening)
    if not self._how.against:
      return sums
    other, other_rng = self._how.against[len(self.read) - 1]
    apart = divergence_sum((head_of(rng), head_of(other_rng)), read, (h, other, weights), chunk)
    own_weight, apart_weight = self._how.mix
    return sums | {"loss": own_weight * sums["loss"] + apart_weight * apart}

  def label_log_probs(self, h_BTD: jax.Array, labels_BT: jax.Array, batch: dict, *, tuned: bool = True) -> jax.Array:
    """log p(label) in nats at each position, [B, T]; tuned=False by the head that the run started from."""
    params, intercept = self._version(tuned)
    head = lambda read, h: self._model.logits(read, self._head, h, batch["row"], intercept=intercept)
    return chunked_log_probs(head, self._model.read_by(self._head, params), h_BTD, labels_BT, self.loss_chunk)

  def choice_scores(self, h_BPD: jax.Array, ids_PN: np.ndarray, batch: dict) -> jax.Array:
    """[B, N] in nats: log p of token ids_PN[p, n] by the head at h[:, p], added over p; -1 is none."""
    head = lambda read, h: self._model.logits(read, self._head, h, batch["row"], intercept=self._intercept)
    labels_BPN = jnp.broadcast_to(jnp.maximum(ids_PN, 0)[None], (len(h_BPD), *ids_PN.shape))
    log_p_BPN = chunked_log_probs(head, self._model.read_by(self._head, self._params), h_BPD, labels_BPN, 0)
    return jnp.sum(jnp.where((ids_PN >= 0)[None], log_p_BPN, 0.0), axis=1)

  @staticmethod
  def choice_sums(scores_BN: jax.Array, labels_B: jax.Array, weights_B: jax.Array) -> Sums:
    """`cross_entropy.token_sums` of scores that no head gives as they are."""
    return cross_entropy.token_sums(scores_BN, labels_B, weights_B)

  @staticmethod
  def softmax(scores: jax.Array) -> jax.Array:
    """Over the last dim."""
    return jax.nn.softmax(scores)

  @staticmethod
  def log_sigmoid(x: jax.Array) -> jax.Array:
    """-log(1 + exp(-x)), of any shape."""
    return jax.nn.log_sigmoid(x)


def pool(h_BTD: jax.Array, inputs: Mapping[str, jax.Array], pooling: str) -> jax.Array:
  """One hidden state per row [B, D]: the first slot's, that of the last token, or the mean over all tokens.

  inputs: tokens and segment_ids [B, T]. Positions that a method fills are no tokens, and the first slot is behind them.
  """
  own_BT = jnp.asarray(inputs["tokens"] >= 0)
  real_BT = (inputs["segment_ids"] > 0) & own_BT
  if pooling == "mean":
    share_BT = (real_BT / jnp.maximum(jnp.sum(real_BT, axis=1, keepdims=True), 1)).astype(h_BTD.dtype)
    return jnp.einsum("btd,bt->bd", h_BTD, share_BT)
  slots_BT = jnp.broadcast_to(jnp.arange(real_BT.shape[1])[None, :], real_BT.shape)
  last_B = jnp.max(jnp.where(real_BT, slots_BT, 0), axis=1)
  read_B = last_B if pooling == "last" else jnp.argmax(real_BT, axis=1)
  return jnp.take_along_axis(h_BTD, read_B[:, None, None], axis=1)[:, 0]
