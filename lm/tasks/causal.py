"""Autoregressive pretraining (GPT): predict every next token of a document, its end included."""

import dataclasses

import numpy as np

from lm.models.head_spec import HeadSpec
from lm.shapes import Field
from lm.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Causal(Task):
  """Next-token prediction over documents packed into rows.

  `prepare({"text": "ab"})` stores tokens [bos a b eos]; a row then holds inputs [bos a b], targets [a b eos] and weights
  [1 1 1]. Every token of a document is predicted exactly once, also where the document is split over rows.
  """

  causal = True
  head = "lm"

  @property
  def head_spec(self) -> HeadSpec:
    return HeadSpec("lm")

  @property
  def fields(self) -> dict[str, Field]:
    return {"tokens": Field(("T",)), "targets": Field(("T",), column="tokens", shift=1)}

  def prepare(self, example, tok):
    return [{"tokens": np.asarray([tok.bos_id, *tok.encode(example["text"]), tok.eos_id], np.int32)}]

  def corrupt(self, rows, noise, tok, width):
    weights_RT = (rows["segment_ids"] > 0).astype(np.float32)
    return {"tokens": rows["tokens"], "targets": rows["targets"], "weights": weights_RT}

  def denominators(self, batch):
    weight = batch["weights"].sum()
    return {"loss": weight, "accuracy": weight}

  def loss(self, forward, batch, rng):
    h_BTD = forward(batch, rng)
    return forward.token_sums(h_BTD, batch["targets"], batch["weights"], batch, chunk=forward.loss_chunk)
