"""Mixtures of streams without chance: after any number of rows, every stream is within one row of its share."""

import fractions
import math
from collections.abc import Sequence

import numpy as np

from lm.config import ConfigError

MAX_PERIOD = 1 << 20


class Mixture:
  """Which stream each row of the run belongs to, as a periodic schedule of the weights' common denominator.

  Weights (0.75, 0.25) have period 4, e.g. streams [0 0 1 0].
  """

  def __init__(self, weights: Sequence[float]):
    exact = [fractions.Fraction(str(weight)) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    period = math.lcm(*(share.denominator for share in shares))
    if period > MAX_PERIOD:
      raise ConfigError(f"config.streams: weights {tuple(weights)} repeat only after {period:,} rows; round them")
    self._per_period = np.array([int(share * period) for share in shares])
    self._stream = _schedule(self._per_period, period)
    self._before = np.zeros(period, np.int64)  # rows of the same stream earlier in the period
    for i in range(len(shares)):
      mine = self._stream == i
      self._before[mine] = np.arange(int(mine.sum()))

  def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(stream, how many rows of that stream came before) of rows of the run, by number."""
    period, place = np.divmod(rows, len(self._stream))
    stream = self._stream[place]
    return stream, period * self._per_period[stream] + self._before[place]


def _schedule(counts: np.ndarray, period: int) -> np.ndarray:
  """Tijdeman's rule for the chairman assignment problem (1980): among streams that may be served, the earliest due.

  Stream i's k-th row may come once its share reaches k - 1 + 1 / (2n - 2)-ish, and is due before it falls a row behind.
  """
  n = len(counts)
  if n == 1:
    return np.zeros(period, np.int64)
  slack = 1 / (2 * n - 2)
  share, served = counts / period, np.zeros(n)
  stream = np.empty(period, np.int64)
  for row in range(1, period + 1):
    ahead = share * row - served
    due = np.where(ahead >= slack - 1e-12, (1 - slack - ahead) / share, np.inf)
    stream[row - 1] = i = int(np.argmin(due)) if np.isfinite(due).any() else int(np.argmax(ahead))
    served[i] += 1
  return stream
