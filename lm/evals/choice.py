"""How often the right one of several choices is found on a split, beside always taking the commonest place and guessing."""

import dataclasses
from typing import Any

import numpy as np

from lm import metrics
from lm.evals.classification import Predictions
from lm.evals.evaluator import SplitEvaluator
from lm.report import read_metrics


@dataclasses.dataclass
class Choice(SplitEvaluator):
  """Yields loss, accuracy, and baseline/<split>_majority_accuracy: of the place that is right most often in train.

  When the run ends it tells these beside step 0 and 1 / number of choices, and writes the 50 errors of the highest loss to
  errors.csv: split with how many there are, file and line, context, question, choices, the right one, the one taken, and the
  probability of each.
  """

  def __post_init__(self):
    super().__post_init__()
    self._latest: tuple[dict[str, float], Predictions] | None = None

  headline = "accuracy"

  def __call__(self, params):
    means, arrays = self.predictions(params, "label", "scores")
    found = Predictions(*arrays)
    trained_N = np.asarray(self.run.load(self.stream, "train").store.values("label"))
    commonest = np.bincount(trained_N[trained_N >= 0], minlength=1).argmax()
    values = means | {f"baseline/{self.split}_majority_accuracy": metrics.accuracy(found.label_N, commonest)}
    self._latest = values, found
    yield from values.items()

  def report(self, workdir, folder):
    assert self._latest is not None, "a run reports after its last evaluation"
    values, found = self._latest
    count = found.scores_NC.shape[1]
    beside = [f"commonest place {values[f'baseline/{self.split}_majority_accuracy']:.3f}", f"guessing {1 / count:.3f}"]
    beside += self.before(read_metrics(workdir), "accuracy")
    lines = [f"{self.name}: accuracy {values['accuracy']:.3f} of {count} choices ({', '.join(beside)})"]
    return "\n".join([*lines, *found.write_worst(folder, self.name, self._describe)])

  def _describe(self, number: int, label: int, prediction: int) -> dict[str, Any]:
    example = self.run.source(self.stream, self.split)[number]
    asked = {name: example.get(name, "") for name in ("context", "question")}
    choices = example["choices"]
    shown = {"choices": " | ".join(choices), "label": choices[label], "prediction": choices[prediction]}
    return {**self.locate(number), **asked, **shown}
