"""How well numbers are predicted on a split: correlation and squared error, beside always saying the training mean."""

import dataclasses
from typing import Any

import numpy as np

from lm import metrics
from lm.evals.classification import ERRORS_FILE, NUM_ERRORS, write_errors
from lm.evals.evaluator import SplitEvaluator
from lm.report import read_metrics


@dataclasses.dataclass
class Regression(SplitEvaluator):
  """Yields loss, mse, pearson, spearman, and baseline/<split>_mean_mse (the mean of the training split's labels).

  A correlation with something that is the same everywhere is 0. When the run ends it tells these beside step 0, and writes
  the 50 rows of the largest error to errors.csv as `Classification` does.
  """

  def __post_init__(self):
    super().__post_init__()
    self._latest: tuple[dict[str, float], tuple[np.ndarray, ...]] | None = None

  headline = "pearson"

  def __call__(self, params):
    means, (sequence_N, *found) = self.predictions(params, "label", "value")
    label_N, value_N = (part.astype(np.float64) for part in found)
    mean = np.nanmean(self.run.load(self.stream, "train").store.values("label"), dtype=np.float64)
    values = means | {
      "mse": float(np.mean((value_N - label_N) ** 2)),
      "pearson": metrics.pearson(label_N, value_N),
      "spearman": metrics.spearman(label_N, value_N),
      f"baseline/{self.split}_mean_mse": float(np.mean((mean - label_N) ** 2)),
    }
    self._latest = values, (sequence_N, label_N, value_N)
    yield from values.items()

  def report(self, workdir, folder):
    assert self._latest is not None, "a run reports after its last evaluation"
    values, found = self._latest
    curves, parts = read_metrics(workdir), []
    for name in ("pearson", "spearman", "mse"):
      beside = [f"training mean {values[f'baseline/{self.split}_mean_mse']:.3f}"] if name == "mse" else []
      beside += self.before(curves, name)
      parts.append(f"{name} {values[name]:.3f}" + (f" ({', '.join(beside)})" if beside else ""))
    lines = [f"{self.name}: {', '.join(parts)}"]
    if rows := self._errors(*found):
      write_errors(folder / ERRORS_FILE, self.name, rows)
      lines.append(f"the {len(rows)} of the largest error: {folder / ERRORS_FILE}")
    return "\n".join(lines)

  def _errors(self, sequence_N: np.ndarray, label_N: np.ndarray, value_N: np.ndarray) -> list[dict[str, Any]]:
    """The rows of the largest error, the worst first."""
    worst, rows = np.argsort(-np.abs(value_N - label_N), kind="stable")[:NUM_ERRORS], []
    for i in worst:
      quoted = self.quote(int(sequence_N[i]))
      split = f"{self.name} ({len(worst)} of {len(label_N)})"
      rows.append({"split": split, **quoted, "label": f"{label_N[i]:g}", "prediction": f"{value_N[i]:.4f}"})
    return rows
