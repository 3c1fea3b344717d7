"""Whether a model prefers the answers that people do: mean loss, accuracy, rewards and their margin on a split of pairs."""

import dataclasses

from lm import metrics
from lm.evals.evaluator import SplitEvaluator


@dataclasses.dataclass
class Preference(SplitEvaluator):
  """Yields the task's mean sums: those of `dpo` are loss, accuracy, margin, chosen_reward, rejected_reward and log_ratio.

  At step 0 a loss against a reference is that of no difference: log 2 = 0.693 for DPO, margin 0, accuracy 0.5.
  """

  headline = "loss"

  def __call__(self, params):
    yield from metrics.divide(*self.means(result for _, result in self.passes(params))).items()
