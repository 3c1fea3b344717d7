"""Classification of a text or a pair: one label per row, read from [CLS], the last token, or the mean of all."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from lm.config import ConfigError
from lm.models.head_spec import HeadSpec
from lm.shapes import Field
from lm.tasks.text_rows import PLACE, TextRows

NO_LABEL = -1  # stored where an example has none
BALANCED = "balanced"


@dataclasses.dataclass(frozen=True)
class Classify(TextRows):
  """Multi-class classification.

  `prepare({"text": "ab", "label": "json"})` stores tokens [cls sep a b] and label [3] if "json" is label number 3; an
  example without a label stores [-1], which has no weight.

  With class_weights the loss is the weighted mean over rows, of evaluations too; the accuracy counts rows alike.
  """

  labels: tuple[str, ...] = ()  # the label set; empty takes that of the source's training split
  class_weights: tuple[str, ...] = ()  # of the loss: balanced (all labels alike, over training rows), or spam=5,ham=1

  prepare_fields = ("labels", "pair")
  targets = "labels"
  evaluators = (("classification", "validation"), ("classification", "test"))

  def __post_init__(self):
    super().__post_init__()
    if self.labels and not self.is_to_balance:
      self.weight_by_label()

  @property
  def is_to_balance(self) -> bool:
    """Whether the weights are still to be counted in the training rows."""
    return self.class_weights == (BALANCED,)

  def balanced(self, counts: Mapping[str, int]) -> "Classify":
    """The task with weights by which each label has the same part in the loss of training, 1 in the mean of its rows.

    counts: training rows by label.
    """
    if missing := [label for label in self.labels if not counts.get(label)]:
      raise ConfigError(f"task.class_weights={BALANCED}: no training row has the label {missing[0]!r}")
    total = sum(counts[label] for label in self.labels)
    weights = {label: total / len(self.labels) / counts[label] for label in self.labels}
    return dataclasses.replace(self, class_weights=tuple(f"{label}={weight:.6g}" for label, weight in weights.items()))

  def weight_by_label(self) -> np.ndarray:
    """[N] fp32, 1 where nothing is said.

    Raises:
      ConfigError: an entry that is no label=number, of a label that there is not, or given twice.
    """
    weights: dict[str, float] = {}
    for entry in self.class_weights:
      label, _, text = entry.rpartition("=")
      if label not in self.labels or label in weights:
        what = "is given twice" if label in weights else f"label {label!r} is none of {', '.join(self.labels)[:200]}"
        raise ConfigError(f"task.class_weights={entry!r}: {what}; accepted are {BALANCED}, or label=number")
      weights[label] = _positive(entry, text)
    return np.asarray([weights.get(label, 1.0) for label in self.labels], np.float32)

  @property
  def head_spec(self) -> HeadSpec:
    return HeadSpec("classifier", num_outputs=len(self.labels))

  @property
  def fields(self) -> dict[str, Field]:
    return {"tokens": Field(("T",)), "label": Field(()), "place": PLACE}

  def prepare(self, example, tok):
    if "label" in example and example["label"] not in self.labels:
      several = ", and task 'multilabel' learns lists" if isinstance(example["label"], list) else ""
      raise ConfigError(f"task.labels: {example['label']!r} is not among the {len(self.labels)} labels{several}")
    label = np.int32(self.labels.index(example["label"]) if "label" in example else NO_LABEL)
    return [self._columns(example, tok) | {"label": label}]

  def corrupt(self, rows, noise, tok, width):
    counted_R = (rows["segment_ids"][:, 0] > 0) & (rows["label"] != NO_LABEL)
    found = {"label": np.maximum(rows["label"], 0), "weights": counted_R.astype(np.float32)}
    if self.class_weights:
      found["loss_weights"] = found["weights"] * self.weight_by_label()[found["label"]]
    return self._inputs(rows, tok) | found

  def show_target(self, row):
    return self.labels[row["label"]] if row["weights"] else ""

  def denominators(self, batch):
    return {"loss": batch[self._loss_weights].sum(), "accuracy": batch["weights"].sum()}

  def loss(self, forward, batch, rng):
    found = self._sums(forward, batch, batch["weights"], rng)
    return found | {"loss": self._sums(forward, batch, batch["loss_weights"], rng)["loss"]} if self.class_weights else found

  def predict(self, forward, batch):
    return {"scores": self._probabilities(forward, batch), "label": batch["label"], "weights": batch["weights"]}

  def _sums(self, forward, batch, weights, rng):
    return forward.token_sums(self._read(forward, batch, rng), batch["label"], weights, batch, rng)

  def _probabilities(self, forward, batch):
    return forward.probabilities(self._read(forward, batch, None), batch)

  @property
  def _loss_weights(self) -> str:
    return "loss_weights" if self.class_weights else "weights"

  def describe_predictions(self, arrays, tok):
    best_R, scores_RN = arrays["scores"].argmax(-1), arrays["scores"].tolist()
    return [
      {"label": self.labels[best], "scores": dict(zip(self.labels, scores, strict=True))}
      for best, scores in zip(best_R, scores_RN, strict=True)
    ]


def _positive(entry: str, text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not 0 < value < math.inf:
    raise ConfigError(f"task.class_weights={entry!r}: accepted are label=number with numbers above 0")
  return value
