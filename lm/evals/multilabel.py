"""F1 of labels that do not exclude each other, beside what always saying the commonest one would reach."""

import dataclasses
from typing import Any

import numpy as np

from lm.data.loader import aligned
from lm.evals.classification import ERRORS_FILE, NUM_ERRORS, write_errors
from lm.evals.evaluator import SplitEvaluator
from lm.report import read_metrics
from lm.tasks.multilabel import THRESHOLD

NUM_LABELS = 20  # with more, those of the lowest F1 are told


@dataclasses.dataclass
class Multilabel(SplitEvaluator):
  """Yields loss, accuracy (share of rows with all labels right), micro_f1 (over all labels of all rows), macro_f1 (their mean).

  And baseline/<split>_commonest_micro_f1 and _macro_f1: of always saying the training split's commonest label alone. A label
  that a split neither has nor is said is left out of the mean. When the run ends it tells these and the F1 of every label, and
  writes the 50 rows of the highest loss with a label wrong to errors.csv.
  """

  def __post_init__(self):
    super().__post_init__()
    self._latest: tuple[dict[str, float], tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None

  headline = "micro_f1"

  def __call__(self, params):
    means, (sequence_N, label_NK, scores_NK) = self.predictions(params, "label", "scores")
    label_NK = label_NK > 0
    said_NK, always_NK = scores_NK >= THRESHOLD, np.zeros_like(label_NK)
    always_NK[:, self._commonest()] = True
    micro, macro = f1_scores(label_NK, said_NK)[:2]
    base_micro, base_macro = f1_scores(label_NK, always_NK)[:2]
    values = means | {
      "accuracy": float(np.mean((label_NK == said_NK).all(1))),
      "micro_f1": micro,
      "macro_f1": macro,
      f"baseline/{self.split}_commonest_micro_f1": base_micro,
      f"baseline/{self.split}_commonest_macro_f1": base_macro,
    }
    self._latest = values, (sequence_N, label_NK, scores_NK)
    yield from values.items()

  def _commonest(self) -> int:
    """The number of the label that most training rows have."""
    task, store = self.data.task, self.run.load(self.stream, "train").store
    stored = {name: np.asarray(store.values(name)) for name in task.fields if name.startswith("bits_")}
    return int(task.unpack(stored).sum(0).argmax())

  def report(self, workdir, folder):
    assert self._latest is not None, "a run reports after its last evaluation"
    values, (sequence_N, label_NK, scores_NK) = self._latest
    curves, parts = read_metrics(workdir), []
    for name, words in (("micro_f1", "micro F1"), ("macro_f1", "macro F1")):
      always = values[f"baseline/{self.split}_commonest_{name}"]
      beside = [f"always the commonest {always:.3f}", *self.before(curves, name)]
      parts.append(f"{words} {values[name]:.3f} ({', '.join(beside)})")
    lines = [f"{self.name}: {', '.join(parts)}, all labels right in {values['accuracy']:.3f}"]
    f1_K, said_NK, labels = f1_scores(label_NK, scores_NK >= THRESHOLD)[2], scores_NK >= THRESHOLD, self.data.task.labels
    lowest = np.argsort(np.nan_to_num(f1_K, nan=2.0), kind="stable")[:NUM_LABELS]
    cells = [[labels[k], f"{f1_K[k]:.3f}", f"{said_NK[:, k].sum():,}", f"{label_NK[:, k].sum():,}"] for k in lowest]
    lines += [f"  {line}" for line in aligned([["label", "F1", "said", "there"], *cells]).splitlines()]
    if rows := self._errors(sequence_N, label_NK, scores_NK):
      write_errors(folder / ERRORS_FILE, self.name, rows)
      lines.append(f"the {len(rows)} wrong rows of the highest loss: {folder / ERRORS_FILE}")
    return "\n".join(lines)

  def _errors(self, sequence_N: np.ndarray, label_NK: np.ndarray, scores_NK: np.ndarray) -> list[dict[str, Any]]:
    """The rows with a label wrong, those of the highest loss first."""
    labels = np.asarray(self.data.task.labels)
    said_NK = scores_NK >= THRESHOLD
    loss_N = -np.log(np.maximum(np.where(label_NK, scores_NK, 1 - scores_NK), 1e-9)).mean(1)
    wrong = np.flatnonzero((label_NK != said_NK).any(1))
    worst, rows = wrong[np.argsort(-loss_N[wrong], kind="stable")][:NUM_ERRORS], []
    for i in worst:
      quoted = self.quote(int(sequence_N[i]))
      split, names = f"{self.name} ({len(worst)} of {len(wrong)} wrong)", lambda row: "; ".join(labels[row])
      rows.append({"split": split, **quoted, "label": names(label_NK[i]), "prediction": names(said_NK[i])})
    return rows


def f1_scores(label_NK: np.ndarray, said_NK: np.ndarray) -> tuple[float, float, np.ndarray]:
  """Micro F1, macro F1, and F1 of each label, NaN where it is neither there nor said; 0 where nothing is there or said at all.

  2 right / (said + there), of all labels together, and of each. label_NK, said_NK: bool.
  """
  right_K, total_K = (label_NK & said_NK).sum(0), label_NK.sum(0) + said_NK.sum(0)
  f1_K = np.divide(2.0 * right_K, total_K, out=np.full(len(total_K), np.nan), where=total_K > 0)
  micro = 2.0 * right_K.sum() / max(total_K.sum(), 1)
  return float(micro), float(np.nanmean(f1_K)) if (total_K > 0).any() else 0.0, f1_K
