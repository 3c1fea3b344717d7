"""Metrics as (sum, weight) pairs, divided once at the end; and host metrics over all predictions of a split."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from lm import chips

# Names of metrics that are better the lower they are.
LOWER = re.compile(r"((^|[/_])(loss|mse|perplexity|bits_per_byte)|(^|/)(balance|z))$")


def divide(sums: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
  """sum / weight by name; a name without weight anywhere is left out."""
  return {name: float(sums[name]) / float(weights[name]) for name in sums if float(weights[name]) > 0}


def add(totals: dict[str, float], parts: Mapping[str, float]) -> None:
  """Adds parts to totals in place, in float64."""
  for name, value in parts.items():
    totals[name] = totals.get(name, 0.0) + float(value)


@dataclasses.dataclass
class Streams:
  """What the streams of a run gave. A rare one is not in every batch, so their means are over the steps since the last line."""

  tokens: dict[str, int]  # by stream, since the start of the run
  sums: dict[str, float] = dataclasses.field(default_factory=dict)  # by '<stream>/<name>', since the last line
  weights: dict[str, float] = dataclasses.field(default_factory=dict)

  def add(self, sums: Mapping[str, float], weights: Mapping[str, float], tokens: Sequence[int]) -> None:
    """One step. tokens: of each stream."""
    add(self.sums, sums)
    add(self.weights, weights)
    for stream, count in zip(self.tokens, tokens, strict=True):
      self.tokens[stream] += count

  def read(self) -> dict[str, float]:
    """'<stream>/<name>' means since this was last asked, and '<stream>/tokens' of the run so far."""
    found = divide(self.sums, self.weights) | {f"{stream}/tokens": count for stream, count in self.tokens.items()}
    self.sums, self.weights = {}, {}
    return found


def is_better(name: str, value: float, than: float) -> bool:
  """Whether a metric's value beats another: lower for losses, errors, perplexity and bits, higher for everything else."""
  return value < than if LOWER.search(name) else value > than


def accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
  """Share of equal entries."""
  return float(np.mean(np.asarray(labels) == np.asarray(predictions)))


def macro_f1(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> float:
  """Mean over classes of F1 = 2 tp / (2 tp + fp + fn); a class that is neither present nor predicted is left out.

  This is scikit-learn's `f1_score(average="macro")`, whose classes are those of labels and predictions.
  """
  confusion = np.zeros((num_classes, num_classes), np.int64)
  np.add.at(confusion, (np.asarray(labels), np.asarray(predictions)), 1)
  hits = np.diag(confusion)
  total = confusion.sum(0) + confusion.sum(1)
  present = total > 0
  return float(np.mean(2 * hits[present] / total[present])) if present.any() else 0.0


def f1(labels: ArrayLike, predictions: ArrayLike, positive: int) -> float:
  """F1 = 2 tp / (2 tp + fp + fn) of one class; 0 where it is neither present nor predicted."""
  true, found = np.asarray(labels) == positive, np.asarray(predictions) == positive
  total = int(true.sum() + found.sum())
  return 2 * int(np.sum(true & found)) / total if total else 0.0


def matthews(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> float:
  """Matthews correlation, -1 to 1, of any number of classes (Gorodkin 2004); 0 where either is the same everywhere.

  Of two classes it is the Pearson correlation of labels and predictions as 0 and 1.
  """
  one_hot = lambda x: np.eye(num_classes)[np.asarray(x)]
  true_NC, found_NC = (x_NC - x_NC.mean(0) for x_NC in (one_hot(labels), one_hot(predictions)))
  scale = np.sqrt(np.sum(true_NC**2) * np.sum(found_NC**2))
  return float(np.clip(np.sum(true_NC * found_NC) / scale, -1, 1)) if scale > 1e-9 else 0.0


def pearson(x: ArrayLike, y: ArrayLike) -> float:
  """Correlation of two series, -1 to 1; 0 where one of them is the same everywhere, which leaves it undefined."""
  x, y = (np.asarray(series, np.float64) for series in (x, y))
  if len(x) == 0 or np.ptp(x) == 0 or np.ptp(y) == 0:
    return 0.0
  x, y = x - x.mean(), y - y.mean()
  return float(np.clip(np.sum(x * y) / np.sqrt(np.sum(x**2) * np.sum(y**2)), -1, 1))


def spearman(x: ArrayLike, y: ArrayLike) -> float:
  """`pearson` of the ranks; equal values share the mean of theirs (Spearman 1904)."""
  return pearson(ranks(x), ranks(y))


def ranks(values: ArrayLike) -> np.ndarray:
  """Ranks from 1, of equal values the mean: [7, 3, 7] -> [2.5, 1, 2.5]."""
  _, place, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
  last = np.cumsum(counts)
  return (last - (counts - 1) / 2)[place]


def ranking(hit_QN: np.ndarray, k: int = 10) -> dict[str, np.ndarray]:
  """Of every question, what its ranking is worth, [Q] by name; each has something that is relevant.

  recall@1, recall@k: the share of what is relevant that stands in the first places. ndcg@k (Järvelin and Kekäläinen 2002):
  the sum of 1 / log2(rank + 1) over it there, divided by the largest possible. mrr@k: 1 / rank of the first one, 0 behind k.
  map: the mean over all that is relevant of the share of relevant ones down to it.

  hit_QN: bool, whether a question's n-th document is relevant.
  """
  num_relevant_Q, rank_N = hit_QN.sum(1), np.arange(1, hit_QN.shape[1] + 1)
  recall = lambda k: hit_QN[:, :k].sum(1) / num_relevant_Q
  discount_K = 1 / np.log2(rank_N[:k] + 1)
  ideal_Q = np.cumsum(discount_K)[np.minimum(num_relevant_Q, len(discount_K)) - 1]
  precision_QN = np.cumsum(hit_QN, axis=1) / rank_N[None, :]
  first_Q = hit_QN.argmax(1) + 1
  return {
    "recall@1": recall(1),
    f"recall@{k}": recall(k),
    f"ndcg@{k}": hit_QN[:, :k] @ discount_K / ideal_Q,
    f"mrr@{k}": np.where(first_Q <= k, 1 / first_Q, 0),
    "map": (precision_QN * hit_QN).sum(1) / num_relevant_Q,
  }


def flops_per_token(active: float, trainable: float, num_layers: int, attention_dim: int, seq_len: int) -> float:
  """Training FLOPs per token by the convention 6 N + 12 L H C T (Chowdhery et al. 2022, appendix B).

  Of the 6, 2 are the forward pass, 2 the gradient of what a layer reads and 2 that of its parameters, which frozen ones do not
  need. The whole table of the embedding counts, and attention as if every token saw every other.

  Args:
    active, trainable: parameters that one token meets, and how many of them train. attention_dim: heads times channels, H C.
  """
  return 4.0 * active + 2.0 * trainable + 12.0 * num_layers * attention_dim * seq_len


def flops_utilisation(tokens_per_sec: float, flops: float, device_kind: str, num_devices: int) -> float | None:
  """Model FLOPs utilisation, 0 to 1; None where the device's peak is not known."""
  chip = chips.find(device_kind)
  return None if chip is None else tokens_per_sec * flops / (chip.peak_flops * num_devices)
