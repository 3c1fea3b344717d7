"""Masked language modelling (Devlin et al. 2018), with masks drawn anew in every epoch (RoBERTa)."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from lm.data import corrupt
from lm.models.heads import HeadSpec
from lm.shapes import Field
from lm.tasks.cross_entropy import token_sums
from lm.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Mlm(Task):
  """Hides `mask_rate` of each document's tokens and predicts them.

  `prepare({"text": "abc"})` stores [cls a b c sep]; `corrupt` may give tokens [cls a mask c sep], masked_positions [2],
  labels [b], weights [1], all padded to the same number of predicted positions P.
  """

  mask_rate: float = 0.15  # share of positions to predict
  mask_share: float = 0.8  # of them, how many show the mask token
  random_share: float = 0.1  # of them, how many show a random token; the rest show the token itself

  causal = False
  needs_mask = True
  head = "mlm"

  def __post_init__(self):
    if not 0 < self.mask_rate < 1:
      raise ValueError(f"task.mask_rate={self.mask_rate}: must be between 0 and 1")
    if min(self.mask_share, self.random_share) < 0 or self.mask_share + self.random_share > 1:
      raise ValueError(
        f"task.mask_share={self.mask_share}, task.random_share={self.random_share}: shares of one whole, their sum at most 1"
      )

  @property
  def head_spec(self) -> HeadSpec:
    return HeadSpec("mlm")

  @property
  def fields(self) -> dict[str, Field]:
    return {"tokens": Field(("T",))}

  def prepare(self, example, tok):
    return [{"tokens": np.asarray([tok.cls_id, *tok.encode(example["text"]), tok.sep_id], np.int32)}]

  def target_counts(self, lengths_N):
    return corrupt.num_chosen(lengths_N, self.mask_rate)

  def corrupt(self, rows, noise, tok, width):
    tokens_RT = rows["tokens"]
    eligible_RT = (rows["segment_ids"] > 0) & ~np.isin(tokens_RT, tok.special_ids)
    chosen_RT = corrupt.choose(eligible_RT, rows["segment_ids"], self.mask_rate, noise)
    masked_RT = corrupt.mask_tokens(tokens_RT, chosen_RT, noise, tok, self.mask_share, self.random_share)
    positions_RP, weights_RP, labels_RP = corrupt.gather(chosen_RT, width, tokens_RT)
    return {"tokens": masked_RT, "masked_positions": positions_RP, "labels": labels_RP, "weights": weights_RP}

  def denominators(self, batch):
    weight = jnp.sum(batch["weights"])
    return {"loss": weight, "accuracy": weight}

  def loss(self, forward, batch, rng):
    h_BPD = jnp.take_along_axis(forward(batch, rng), batch["masked_positions"][:, :, None], axis=1)
    return token_sums(forward.head(h_BPD, batch), batch["labels"], batch["weights"])
