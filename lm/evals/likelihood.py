"""Mean loss of a split, its perplexity, and for autoregressive tasks bits per byte, which no tokenizer can flatter."""

import dataclasses
import math

import numpy as np

from lm import metrics
from lm.evals.evaluator import SplitEvaluator
from lm.shapes import INPUTS


@dataclasses.dataclass
class Likelihood(SplitEvaluator):
  """Yields the task's mean sums (loss in nats per predicted token, accuracy), perplexity, and bits_per_byte.

  Bits per byte count the UTF-8 bytes that the predicted tokens stand for, and one for each end of a document, as a
  compressor counts its separator. Only tasks with `targets` and without a prefix, which predict every token once, have them.
  """

  headline = "loss"

  def __call__(self, params):
    num_bytes = 0
    token_bytes = self.run.tokenizer.token_bytes.copy()
    token_bytes[self.run.tokenizer.eos_id] = 1

    def results():
      nonlocal num_bytes
      for batch, result in self.passes(params):
        own = batch[self.data.key]
        if "targets" in own and "prefix" not in batch[INPUTS]:
          num_bytes += int(np.sum(token_bytes[own["targets"]] * (own["weights"] > 0)))
        yield result

    sums, weights = self.means(results())
    means = metrics.divide(sums, weights)
    yield from means.items()
    yield "perplexity", math.exp(min(means["loss"], 700.0))
    if num_bytes:
      yield "bits_per_byte", sums["loss"] / math.log(2) / num_bytes
