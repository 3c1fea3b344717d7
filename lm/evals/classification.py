"""Accuracy and macro-F1 of a classifier on a split, beside what always answering the commonest class would reach."""

import csv
import dataclasses
import io
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm import files, metrics
from lm.evals.evaluator import SplitEvaluator
from lm.report import read_metrics

MATRIX_CLASSES = 12  # with more, the commonest confusions are told instead of the matrix
NUM_CONFUSIONS = 12
NUM_ERRORS = 50
ERRORS_FILE = "errors.csv"


@dataclasses.dataclass(frozen=True)
class Predictions:
  """One entry per example of the split. sequence_N: its number. scores_NC: the probability of each class."""

  sequence_N: np.ndarray
  label_N: np.ndarray
  scores_NC: np.ndarray

  @property
  def prediction_N(self) -> np.ndarray:
    """The class with the largest probability."""
    return self.scores_NC.argmax(-1)

  def confusion(self) -> np.ndarray:
    """Examples by (label, prediction)."""
    counts = np.zeros((self.scores_NC.shape[1],) * 2, np.int64)
    np.add.at(counts, (self.label_N, self.prediction_N), 1)
    return counts

  def write_worst(self, folder: Path, split: str, describe: Callable[[int, int, int], dict[str, Any]]) -> list[str]:
    """Puts the wrong predictions of highest loss into errors.csv, the worst first, and says so in a line; none if all is right.

    describe: of an example's number, its label and what was predicted, the columns between split and probabilities.
    """
    of_label_N = np.take_along_axis(self.scores_NC, self.label_N[:, None], axis=1)[:, 0]
    wrong = np.flatnonzero(self.prediction_N != self.label_N)
    worst = wrong[np.argsort(of_label_N[wrong], kind="stable")][:NUM_ERRORS]
    rows = []
    for i in worst:
      label, prediction = int(self.label_N[i]), int(self.prediction_N[i])
      rows.append(
        {"split": f"{split} ({len(worst)} of {len(wrong)} wrong)", **describe(int(self.sequence_N[i]), label, prediction)}
        | {"label_probability": f"{of_label_N[i]:.4f}", "prediction_probability": f"{self.scores_NC[i, prediction]:.4f}"}
      )
    if not rows:
      return []
    write_errors(folder / ERRORS_FILE, split, rows)
    return [f"{len(wrong):,} of {len(self.label_N):,} wrong; the {len(rows)} of highest loss: {folder / ERRORS_FILE}"]


@dataclasses.dataclass
class Classification(SplitEvaluator):
  """Yields loss, accuracy, macro_f1, matthews, and baseline/<split>_majority_accuracy (the training split's commonest label).

  Of two labels also f1, that of the second, as GLUE has it for MRPC's "1".

  When the run ends it tells these beside step 0 and the baseline, with the confusion matrix, and writes the 50 errors of the
  highest loss to errors.csv: split with how many there are, file and line (`row`, its number in the split from 0, where the
  source has no files), texts, label, prediction, probability of each.
  """

  def __post_init__(self):
    super().__post_init__()
    self._latest: tuple[dict[str, float], Predictions] | None = None

  headline = "accuracy"

  def __call__(self, params):
    means, arrays = self.predictions(params, "label", "scores")
    found = Predictions(*arrays)
    num_classes = found.scores_NC.shape[1]
    trained_N = np.asarray(self.run.load(self.stream, "train").store.values("label"))
    majority = np.full_like(found.label_N, np.bincount(trained_N[trained_N >= 0], minlength=1).argmax())
    values = means | {
      "macro_f1": metrics.macro_f1(found.label_N, found.prediction_N, num_classes),
      "matthews": metrics.matthews(found.label_N, found.prediction_N, num_classes),
      f"baseline/{self.split}_majority_accuracy": metrics.accuracy(found.label_N, majority),
      f"baseline/{self.split}_majority_macro_f1": metrics.macro_f1(found.label_N, majority, num_classes),
    }
    if num_classes == 2:
      values["f1"] = metrics.f1(found.label_N, found.prediction_N, positive=1)
    self._latest = values, found
    yield from values.items()

  def report(self, workdir, folder):
    assert self._latest is not None, "a run reports after its last evaluation"
    values, found = self._latest
    labels = self.data.task.labels
    curves = read_metrics(workdir)
    parts = []
    for name, words in (("accuracy", "accuracy"), ("macro_f1", "macro F1")):
      majority = values[f"baseline/{self.split}_majority_{name}"]
      beside = [f"majority class {majority:.3f}", *self.before(curves, name)]
      parts.append(f"{words} {values[name]:.3f} ({', '.join(beside)})")
    lines = [f"{self.name}: {', '.join(parts)}"]
    if len(answers := set(found.prediction_N.tolist())) == 1 < len(set(found.label_N.tolist())):
      lines.append(f"every answer is {labels[answers.pop()]!r}: try more steps, or another config.optimizer.learning_rate")
    if errors := found.write_worst(folder, self.name, self._describe):
      lines += matrix(found.confusion(), labels) if len(labels) <= MATRIX_CLASSES else confusions(found.confusion(), labels)
    return "\n".join([*lines, *errors])

  def _describe(self, number: int, label: int, prediction: int) -> dict[str, Any]:
    labels = self.data.task.labels
    return {**self.quote(number), "label": labels[label], "prediction": labels[prediction]}


def matrix(counts: np.ndarray, labels: Sequence[str]) -> list[str]:
  """Lines of a confusion matrix: a row per label, a column per prediction."""
  names = [label if len(label) <= 16 else label[:15] + "…" for label in labels]
  cells = [["", *names], *([name, *map(str, row)] for name, row in zip(names, counts, strict=True))]
  widths = [max(map(_columns, column)) for column in zip(*cells, strict=True)]
  right = lambda cell, width: " " * (width - _columns(cell)) + cell
  lines = ["  ".join(map(right, line, widths)) for line in cells]
  return ["confusion matrix, a row per label, a column per prediction:", *(f"  {line}" for line in lines)]


def _columns(text: str) -> int:
  """Columns of a terminal that a text takes: Chinese characters take two."""
  return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def confusions(counts: np.ndarray, labels: Sequence[str]) -> list[str]:
  """Lines of the commonest wrong answers."""
  wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
  order = np.argsort(-wrong, axis=None, kind="stable")[:NUM_CONFUSIONS]
  pairs = [(*np.unravel_index(place, wrong.shape), int(wrong.flat[place])) for place in order if wrong.flat[place]]
  lines = [f"  {count:>6,}  {labels[truth]} taken for {labels[guess]}" for truth, guess, count in pairs]
  return ["commonest confusions:", *lines]


def write_errors(path: Path, split: str, rows: list[dict[str, Any]]) -> None:
  """Puts the rows of one split into the file that all splits share: test before others. A row's split begins with its name."""
  kept, name = [], lambda row: row["split"].partition(" ")[0]
  if path.is_file():
    csv.field_size_limit(2**31 - 1)  # a text is as long as it is
    kept = [row for row in csv.DictReader(io.StringIO(path.read_bytes().decode(), newline="")) if name(row) != split]
  rows = sorted([*rows, *kept], key=lambda row: not name(row).endswith("test"))
  text = io.StringIO(newline="")
  writer = csv.DictWriter(text, list(dict.fromkeys(column for row in rows for column in row)))
  writer.writeheader()
  writer.writerows(rows)
  files.write(path, text.getvalue().encode())
