"""Any number of labels for a text or a pair, each decided by itself with a sigmoid."""

import dataclasses

import numpy as np

from lm.config import ConfigError
from lm.models.head_spec import HeadSpec
from lm.shapes import Field
from lm.tasks.text_rows import PLACE, TextRows

BITS = 16  # labels in a stored number
THRESHOLD = 0.5  # probability from which on a label is said


@dataclasses.dataclass(frozen=True)
class Multilabel(TextRows):
  """Classification into labels that do not exclude each other; a row may have none of them.

  `prepare({"text": "ab", "label": ["json", "list"]})` stores tokens [cls sep a b], bits_0 [5] if the two are labels number 0
  and 2, and labelled [1]; an example without "label" stores labelled [0] and has no weight. The loss is the mean of the
  labels' binary cross-entropies.
  """

  labels: tuple[str, ...] = ()  # the label set; empty takes that of the source's training split

  prepare_fields = ("labels", "pair")
  targets = "labels"
  evaluators = (("multilabel", "validation"), ("multilabel", "test"))

  @property
  def head_spec(self) -> HeadSpec:
    return HeadSpec("classifier", num_outputs=len(self.labels))

  @property
  def fields(self) -> dict[str, Field]:
    bits = {f"bits_{i}": Field(()) for i in range(-(-len(self.labels) // BITS))}
    return {"tokens": Field(("T",)), "labelled": Field(()), "place": PLACE, **bits}

  def prepare(self, example, tok):
    labels = example.get("label", [])
    if isinstance(labels, str) or not set(labels) <= set(self.labels):
      unknown = "is one text" if isinstance(labels, str) else f"{sorted(set(labels) - set(self.labels))[0]!r} is unknown"
      raise ConfigError(f"label={labels!r}: {unknown}; accepted is a list of {', '.join(self.labels)[:200]}")
    numbers = [self.labels.index(label) for label in set(labels)]
    packed = (sum(1 << i % BITS for i in numbers if i // BITS == part) for part in range(-(-len(self.labels) // BITS)))
    bits = {f"bits_{part}": np.int32(value) for part, value in enumerate(packed)}
    return [self._columns(example, tok) | {"labelled": np.int32("label" in example)} | bits]

  def corrupt(self, rows, noise, tok, width):
    counted_R = (rows["segment_ids"][:, 0] > 0) & (rows["labelled"] > 0)
    return self._inputs(rows, tok) | {"label": self.unpack(rows), "weights": counted_R.astype(np.float32)}

  def unpack(self, rows):
    """[R, N] fp32, 1 where a row has a label, of columns as `prepare` stores them."""
    bit = lambda i: rows[f"bits_{i // BITS}"] >> i % BITS & 1
    return np.stack([bit(i) for i in range(len(self.labels))], axis=1).astype(np.float32)

  def show_target(self, row):
    return " + ".join(self._names(row["label"])) or "none" if row["weights"] else ""

  def denominators(self, batch):
    return {"loss": batch["weights"].sum()}

  def loss(self, forward, batch, rng):
    return {"loss": forward.binary_loss(self._read(forward, batch, rng), batch["label"], batch["weights"], batch, rng)}

  def predict(self, forward, batch):
    scores_BN = forward.independent_probabilities(self._read(forward, batch, None), batch)
    return {"scores": scores_BN, "label": batch["label"], "weights": batch["weights"]}

  def describe_predictions(self, arrays, tok):
    return [
      {"labels": self._names(scores_N), "scores": dict(zip(self.labels, scores_N.tolist(), strict=True))}
      for scores_N in arrays["scores"]
    ]

  def _names(self, scores_N):
    return [label for label, score in zip(self.labels, scores_N, strict=True) if score >= THRESHOLD]
