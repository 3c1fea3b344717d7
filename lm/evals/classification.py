"""Accuracy and macro-F1 of a classifier on a split, beside what always answering the commonest class would reach."""

import dataclasses

import numpy as np

from lm import metrics
from lm.evals.evaluator import SplitEvaluator


@dataclasses.dataclass
class Classification(SplitEvaluator):
  """Yields loss, accuracy, macro_f1, and baseline/<split>_majority_accuracy (the training split's commonest label)."""

  headline = "accuracy"

  def __call__(self, params):
    results, labels, predictions = [], [], []
    for _batch, result in self.passes(params):
      results.append(result)
      own = {name.split("/", 1)[1]: value for name, value in result["predictions"].items()}
      counted = own["weights"] > 0
      labels.append(own["label"][counted])
      predictions.append(own["scores"].argmax(-1)[counted])
    truth, guess = np.concatenate(labels), np.concatenate(predictions)
    num_classes = results[0]["predictions"][f"{self.data.key}/scores"].shape[-1]
    yield from metrics.divide(*self.means(results)).items()
    yield "macro_f1", metrics.macro_f1(truth, guess, num_classes)
    train = self.run.load(self.stream, "train").store.values("label")
    majority = np.full_like(truth, np.bincount(train).argmax())
    yield f"baseline/{self.split}_majority_accuracy", metrics.accuracy(truth, majority)
    yield f"baseline/{self.split}_majority_macro_f1", metrics.macro_f1(truth, majority, num_classes)
