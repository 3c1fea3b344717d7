"""Tasks that train nothing: what any model of this house says about a text beside the predictions of its own task."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import ConfigError
from lm.data.store import WINDOW
from lm.shapes import Field
from lm.tasks.causal import Causal
from lm.tasks.cross_entropy import chunked_token_sums
from lm.tasks.task import Task

CHUNK = 128  # positions whose logits exist at a time


@dataclasses.dataclass(frozen=True)
class Score(Causal):
  """-log p in nats of each row's tokens, and how many of them are the likeliest.

  A text of more than `max_len` tokens is split over rows, each read afresh.

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
      return chunked_token_sums(head, None, (h_TD[None], targets_T[None], weights_T[None]), chunk)

    sums = jax.vmap(of_row)(h_BTD, batch["targets"], batch["weights"])
    return {"loss": sums["loss"], "num_likeliest": sums["accuracy"], "num_tokens": batch["weights"].sum(-1)}


@dataclasses.dataclass(frozen=True)
class Continuation(Score):
  """The same of a row's last tokens alone, and of how many of them none is likelier: what is asked of a multiple choice.

  An example is {"context": token ids, "continuation": those that are scored}. Of both together the last `max_len` + 1 are
  read, the front of a longer context is left out.
  """

  @property
  def fields(self):
    return super().fields | {"num_scored": Field(())}

  def prepare(self, example, tok):
    scored = example["continuation"]
    if len(scored) > self.max_len:
      raise ConfigError(f"a continuation of {len(scored)} tokens: the model reads at most {self.max_len}")
    tokens = np.asarray([*example["context"], *scored], np.int32)[-self.max_len - 1 :]
    return [{"tokens": tokens, "num_scored": np.int32(len(scored))}]

  def corrupt(self, rows, noise, tok, width):
    arrays = super().corrupt(rows, noise, tok, width)
    num_left_RT = np.cumsum(arrays["weights"][:, ::-1], axis=1)[:, ::-1]  # from here on
    return arrays | {"weights": arrays["weights"] * (num_left_RT <= rows["num_scored"][:, None])}


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
