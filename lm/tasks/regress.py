"""A number for a text or a pair, as how alike two sentences are (STS-B, 0 to 5; Cer et al. 2017), by squared error."""

import dataclasses
import math

import numpy as np

from lm.config import ConfigError
from lm.models.head_spec import HeadSpec
from lm.shapes import Field
from lm.tasks.text_rows import PLACE, TextRows


@dataclasses.dataclass(frozen=True)
class Regress(TextRows):
  """Regression with one output, the number itself.

  `prepare({"text": "ab", "label": "3.8"})` stores tokens [cls sep a b] and label [3.8]; an example without a label stores
  NaN, which has no weight.
  """

  prepare_fields = ("pair",)
  targets = "numbers"
  evaluators = (("regression", "validation"), ("regression", "test"))

  @property
  def head_spec(self) -> HeadSpec:
    return HeadSpec("classifier", num_outputs=1)

  @property
  def fields(self) -> dict[str, Field]:
    return {"tokens": Field(("T",)), "label": Field((), "float32"), "place": PLACE}

  def prepare(self, example, tok):
    return [self._columns(example, tok) | {"label": np.float32(_number(example["label"]) if "label" in example else np.nan)}]

  def corrupt(self, rows, noise, tok, width):
    counted_R = (rows["segment_ids"][:, 0] > 0) & np.isfinite(rows["label"])
    label_R = np.where(counted_R, rows["label"], 0).astype(np.float32)
    return self._inputs(rows, tok) | {"label": label_R, "weights": counted_R.astype(np.float32)}

  def show_target(self, row):
    return f"{row['label']:g}" if row["weights"] else ""

  def denominators(self, batch):
    return {"loss": batch["weights"].sum()}

  def loss(self, forward, batch, rng):
    value_B = forward.head(self._read(forward, batch, rng), batch, rng)[:, 0]
    return {"loss": (batch["weights"] * (value_B - batch["label"]) ** 2).sum()}

  def predict(self, forward, batch):
    value_B = forward.head(self._read(forward, batch, None), batch)[:, 0]
    return {"value": value_B, "label": batch["label"], "weights": batch["weights"]}

  def describe_predictions(self, arrays, tok):
    return [{"value": value} for value in arrays["value"].tolist()]


def _number(label: object) -> float:
  try:
    value = math.nan if isinstance(label, bool) or not isinstance(label, str | int | float | np.number) else float(label)
  except ValueError:
    value = math.nan
  if not math.isfinite(value):
    raise ConfigError(f"label={label!r}: accepted is a finite number, as task 'regress' predicts one")
  return value
