"""Metrics as (sum, weight) pairs, divided once at the end; and host metrics over all predictions of a split."""

from collections.abc import Mapping, Sequence

import numpy as np


def divide(sums: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
  """sum / weight by name; a name without weight anywhere is left out."""
  return {name: float(sums[name]) / float(weights[name]) for name in sums if float(weights[name]) > 0}


def add(totals: dict[str, float], parts: Mapping[str, float]) -> None:
  """Adds parts to totals in place, in float64."""
  for name, value in parts.items():
    totals[name] = totals.get(name, 0.0) + float(value)


def accuracy(labels: Sequence[int], predictions: Sequence[int]) -> float:
  """Share of equal entries."""
  return float(np.mean(np.asarray(labels) == np.asarray(predictions)))


def macro_f1(labels: Sequence[int], predictions: Sequence[int], num_classes: int) -> float:
  """Mean over classes of F1 = 2 tp / (2 tp + fp + fn); a class that is neither present nor predicted is left out.

  This is scikit-learn's `f1_score(average="macro")`, whose classes are those of labels and predictions.
  """
  confusion = np.zeros((num_classes, num_classes), np.int64)
  np.add.at(confusion, (np.asarray(labels), np.asarray(predictions)), 1)
  hits = np.diag(confusion)
  total = confusion.sum(0) + confusion.sum(1)
  present = total > 0
  return float(np.mean(2 * hits[present] / total[present])) if present.any() else 0.0
