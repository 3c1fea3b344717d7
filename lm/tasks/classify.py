"""Classification of a text: one label per row, read from the [CLS] token, or from the last one of a causal model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lm.models.heads import HeadSpec
from lm.shapes import Field
from lm.tasks.cross_entropy import token_sums
from lm.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Classify(Task):
  """Multi-class classification.

  `prepare({"text": "ab", "label": "json"})`
  stores tokens [cls a b sep] and label [3] if "json" is label number 3. Text longer than a row is cut.
  """

  labels: tuple[str, ...] = ()  # the label set; empty takes that of the source's training split

  packed = False
  prepare_fields = ("labels",)
  evaluators = (("classification", "validation"), ("classification", "test"))
  head = "classify"

  @property
  def head_spec(self) -> HeadSpec:
    return HeadSpec("classifier", num_outputs=len(self.labels))

  @property
  def fields(self) -> dict[str, Field]:
    return {"tokens": Field(("T",)), "label": Field(())}

  def prepare(self, example, tok):
    if example["label"] not in self.labels:
      raise ValueError(f"task.labels: {example['label']!r} is not among the {len(self.labels)} labels")
    tokens = [tok.cls_id, *tok.encode(example["text"]), tok.sep_id]
    return [{"tokens": np.asarray(tokens, np.int32), "label": np.int32(self.labels.index(example["label"]))}]

  def corrupt(self, rows, noise, tok, width):
    weights_R = (rows["segment_ids"][:, 0] > 0).astype(np.float32)
    return {"tokens": rows["tokens"], "label": rows["label"], "weights": weights_R}

  def denominators(self, batch):
    weight = jnp.sum(batch["weights"])
    return {"loss": weight, "accuracy": weight}

  def loss(self, forward, batch, rng):
    return token_sums(self._logits(forward, batch, rng), batch["label"], batch["weights"])

  def predict(self, forward, batch):
    return {"scores": jax.nn.softmax(self._logits(forward, batch, None)), "label": batch["label"], "weights": batch["weights"]}

  def _logits(self, forward, batch, rng):
    h_BTD = forward(batch, rng)
    lengths_B = jnp.sum(batch["segment_ids"] > 0, axis=1)
    read_B = jnp.maximum(lengths_B - 1, 0) if forward.causal else jnp.zeros_like(lengths_B)
    h_BD = jnp.take_along_axis(h_BTD, read_B[:, None, None], axis=1)[:, 0]
    return forward.head(h_BD, batch, rng)
