"""Classification of a text or a pair: one label per row, read from [CLS], the last token, or the mean of all."""

import dataclasses

import numpy as np

from lm.config import ConfigError
from lm.models.head_spec import HeadSpec
from lm.shapes import Field
from lm.tasks.text_rows import PLACE, TextRows

NO_LABEL = -1  # stored where an example has none


@dataclasses.dataclass(frozen=True)
class Classify(TextRows):
  """Multi-class classification.

  `prepare({"text": "ab", "label": "json"})` stores tokens [cls sep a b] and label [3] if "json" is label number 3; an
  example without a label stores [-1], which has no weight.
  """

  labels: tuple[str, ...] = ()  # the label set; empty takes that of the source's training split

  prepare_fields = ("labels", "pair")
  targets = "labels"
  evaluators = (("classification", "validation"), ("classification", "test"))

  @property
  def head_spec(self) -> HeadSpec:
    return HeadSpec("classifier", num_outputs=len(self.labels))

  @property
  def fields(self) -> dict[str, Field]:
    return {"tokens": Field(("T",)), "label": Field(()), "place": PLACE}

  def prepare(self, example, tok):
    if "label" in example and example["label"] not in self.labels:
      raise ConfigError(f"task.labels: {example['label']!r} is not among the {len(self.labels)} labels")
    label = np.int32(self.labels.index(example["label"]) if "label" in example else NO_LABEL)
    return [self._columns(example, tok) | {"label": label}]

  def corrupt(self, rows, noise, tok, width):
    counted_R = (rows["segment_ids"][:, 0] > 0) & (rows["label"] != NO_LABEL)
    return self._inputs(rows, tok) | {"label": np.maximum(rows["label"], 0), "weights": counted_R.astype(np.float32)}

  def show_target(self, row):
    return self.labels[row["label"]] if row["weights"] else ""

  def denominators(self, batch):
    weight = batch["weights"].sum()
    return {"loss": weight, "accuracy": weight}

  def loss(self, forward, batch, rng):
    return forward.token_sums(self._read(forward, batch, rng), batch["label"], batch["weights"], batch, rng)

  def predict(self, forward, batch):
    scores_BN = forward.probabilities(self._read(forward, batch, None), batch)
    return {"scores": scores_BN, "label": batch["label"], "weights": batch["weights"]}

  def describe_predictions(self, arrays, tok):
    best_R, scores_RN = arrays["scores"].argmax(-1), arrays["scores"].tolist()
    return [
      {"label": self.labels[best], "scores": dict(zip(self.labels, scores, strict=True))}
      for best, scores in zip(best_R, scores_RN, strict=True)
    ]
