"""Classification of a text: one label per row, read from the [CLS] token, or from the last one of a causal model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lm.models.heads import HeadSpec
from lm.shapes import Field
from lm.tasks.cross_entropy import token_sums
from lm.tasks.task import Task

NO_LABEL = -1  # stored where an example has none


@dataclasses.dataclass(frozen=True)
class Classify(Task):
  """Multi-class classification.

  `prepare({"text": "ab", "label": "json"})` stores tokens [cls a b sep] and label [3] if "json" is label number 3;
  {"text": "ab", "text_pair": "c"} stores [cls a b sep c sep] and label [-1], which has no weight. Text longer than a row
  is cut.
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
    if "label" in example and example["label"] not in self.labels:
      raise ValueError(f"task.labels: {example['label']!r} is not among the {len(self.labels)} labels")
    label = self.labels.index(example["label"]) if "label" in example else NO_LABEL
    tokens = [tok.cls_id, *tok.encode(example["text"]), tok.sep_id]
    if "text_pair" in example:
      tokens += [*tok.encode(example["text_pair"]), tok.sep_id]
    return [{"tokens": np.asarray(tokens, np.int32), "label": np.int32(label)}]

  def corrupt(self, rows, noise, tok, width):
    counted_R = (rows["segment_ids"][:, 0] > 0) & (rows["label"] != NO_LABEL)
    labels_R = np.maximum(rows["label"], 0)
    return {"tokens": rows["tokens"], "label": labels_R, "weights": counted_R.astype(np.float32)}

  def denominators(self, batch):
    weight = jnp.sum(batch["weights"])
    return {"loss": weight, "accuracy": weight}

  def loss(self, forward, batch, rng):
    return token_sums(self._logits(forward, batch, rng), batch["label"], batch["weights"])

  def predict(self, forward, batch):
    return {"scores": jax.nn.softmax(self._logits(forward, batch, None)), "label": batch["label"], "weights": batch["weights"]}

  def describe_predictions(self, arrays, tok):
    best_R, scores_RN = arrays["scores"].argmax(-1), arrays["scores"].tolist()
    return [
      {"label": self.labels[best], "scores": dict(zip(self.labels, scores, strict=True))}
      for best, scores in zip(best_R, scores_RN, strict=True)
    ]

  def _logits(self, forward, batch, rng):
    h_BTD = forward(batch, rng)
    lengths_B = jnp.sum(batch["segment_ids"] > 0, axis=1)
    read_B = jnp.maximum(lengths_B - 1, 0) if forward.causal else jnp.zeros_like(lengths_B)
    h_BD = jnp.take_along_axis(h_BTD, read_B[:, None, None], axis=1)[:, 0]
    return forward.head(h_BD, batch, rng)
