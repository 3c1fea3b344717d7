"""Tasks that train nothing: what any model of this house says about a text beside the predictions of its own task."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.store import WINDOW
from lm.shapes import Field
from lm.tasks.causal import Causal
from lm.tasks.cross_entropy import chunked_token_sums
from lm.tasks.task import Task

CHUNK = 128  # positions whose logits exist at a time


@dataclasses.dataclass(frozen=True)
class Score(Causal):
  """-log p in nats of each row's tokens. A text of more than `max_len` tokens is split over rows, each read afresh.

  With max_len 2, `prepare({"text": "abc"})` gives tokens [bos a b] and [b c eos]: every token after bos once.
  """

  max_len: int

  packed = False

  def prepare(self, example, tok):
    tokens = super().prepare(example, tok)[0]["tokens"]
    starts = range(0, len(tokens) - 1, self.max_len)
    return [{"tokens": tokens[start : start + self.max_len + 1], WINDOW: np.int32(i)} for i, start in enumerate(starts)]

  def predict(self, forward, batch):
    h_BTD = forward(batch)
    chunk = math.gcd(h_BTD.shape[1], CHUNK)

    def of_row(h_TD, targets_T, weights_T):
      head = lambda read, h: forward.head(h, batch)
      return chunked_token_sums(head, None, (h_TD[None], targets_T[None], weights_T[None]), chunk)["loss"]

    loss_B = jax.vmap(of_row)(h_BTD, batch["targets"], batch["weights"])
    return {"loss": loss_B, "num_tokens": batch["weights"].sum(-1)}


@dataclasses.dataclass(frozen=True)
class TokenMean(Task):
  """Mean of the last hidden states over a text's tokens without specials, fp32; zeros for a text without tokens.

  Since specials do not count, a causal model is read alike: its last token sees nothing that the others depend on.
  """

  packed = False
  head = ""  # reads none

  @property
  def fields(self):
    return {"tokens": Field(("T",))}

  def prepare(self, example, tok):
    return [{"tokens": np.asarray([tok.cls_id, *tok.encode(example["text"]), tok.sep_id], np.int32)}]

  def corrupt(self, rows, noise, tok, width):
    counted_RT = (rows["segment_ids"] > 0) & ~np.isin(rows["tokens"], tok.special_ids)
    return {"tokens": rows["tokens"], "weights": counted_RT.astype(np.float32)}

  def predict(self, forward, batch):
    weights_BT = batch["weights"]
    total_BD = jnp.einsum("btd,bt->bd", forward(batch).astype(jnp.float32), weights_BT)
    return {"embedding": total_BD / jnp.maximum(weights_BT.sum(-1, keepdims=True), 1)}
