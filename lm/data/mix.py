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
    if not all(0 < weight < math.inf for weight in weights):
      raise ConfigError(f"config.streams: weights {tuple(weights)}; each must be a number above 0")
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
  """Tijdeman's rule for the chairman assignment problem (1980): of the streams that may be served, the first to be due.

  A stream may be served once it is owed 1 / (2n - 2) of a row, and is due before it is owed 1 - 1 / (2n - 2). What is
  owed is kept in units of 1 / (period * (2n - 2)) rows, so that everything is an exact integer.
  """
  n = len(counts)
  if n == 1:
    return np.zeros(period, np.int64)
  earned = [int(count) * (2 * n - 2) for count in counts]
  whole, latest = period * (2 * n - 2), period * (2 * n - 3)
  owed, stream = [0] * n, np.empty(period, np.int64)
  for row in range(period):
    owed = [a + b for a, b in zip(owed, earned, strict=True)]
    _, chosen = min(((latest - owed[i]) / earned[i], i) for i in range(n) if owed[i] >= period)
    owed[chosen] -= whole
    stream[row] = chosen
  return stream
