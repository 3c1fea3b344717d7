"""How often the right one of several choices is found on a split, beside always taking the commonest place and guessing."""

import dataclasses
from typing import Any

import numpy as np

from lm import metrics
from lm.evals.classification import ERRORS_FILE, NUM_ERRORS, Predictions, write_errors
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
    if rows := self._errors(found):
      write_errors(folder / ERRORS_FILE, self.name, rows)
      wrong = int(np.sum(found.prediction_N != found.label_N))
      lines.append(f"{wrong:,} of {len(found.label_N):,} wrong; the {len(rows)} of highest loss: {folder / ERRORS_FILE}")
    return "\n".join(lines)

  def _errors(self, found: Predictions) -> list[dict[str, Any]]:
    """The wrong choices of highest loss, the worst first."""
    source = self.run.source(self.stream, self.split)
    of_label_N = np.take_along_axis(found.scores_NC, found.label_N[:, None], axis=1)[:, 0]
    wrong = np.flatnonzero(found.prediction_N != found.label_N)
    worst = wrong[np.argsort(of_label_N[wrong], kind="stable")][:NUM_ERRORS]
    split, rows = f"{self.name} ({len(worst)} of {len(wrong)} wrong)", []
    for i in worst:
      number, taken = int(found.sequence_N[i]), found.prediction_N[i]
      example = source[number]
      rows.append(
        {"split": split, **self.locate(number)}
        | {name: example.get(name, "") for name in ("context", "question")}
        | {"choices": " | ".join(example["choices"])}
        | {"label": example["choices"][found.label_N[i]], "prediction": example["choices"][taken]}
        | {"label_probability": f"{of_label_N[i]:.4f}", "prediction_probability": f"{found.scores_NC[i, taken]:.4f}"}
      )
    return rows
