"""Mixtures of streams without chance: after any number of rows, every stream is within one row of the sum of its shares.

Weights may change during a run. A stage is a few patterns of rows that repeat, so that any row is found without those
before it, and a run of any length takes no more memory than its stages' periods.
"""

import bisect
import dataclasses
import fractions
import math
from collections.abc import Iterator, Sequence

import numpy as np

from lm.config import ConfigError

MAX_PERIOD = 1 << 20


class Mixture:
  """Which stream each row of the run belongs to.

  stages: (first row, weight of each stream), from row 0 on. Weights (0.75, 0.25) give streams [0 0 1 0] again and again.
  """

  def __init__(self, stages: Sequence[tuple[int, Sequence[float]]]):
    firsts = [first for first, _ in stages]
    assert firsts == sorted({0, *firsts}), f"stages rise from row 0, got {firsts}"
    self._stages = [_Stage.of(first, weights) for first, weights in stages]
    self._patterns = _patterns(self._stages)
    self._firsts = np.array([pattern.first for pattern in self._patterns])

  def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(stream, how many rows of that stream came before) of rows of the run, by number."""
    stream, nth = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
    part = np.searchsorted(self._firsts, rows, side="right") - 1
    for i in np.unique(part):
      mine = part == i
      stream[mine], nth[mine] = self._patterns[i].locate(rows[mine])
    return stream, nth

  def rows_until(self, counts: Sequence[int]) -> int:
    """Rows of the run until the shares of the first stream add up to its count."""
    ends = [*(stage.first for stage in self._stages[1:]), math.inf]
    found = []
    for i, count in enumerate(counts):
      left = fractions.Fraction(count)
      for stage, end in zip(self._stages, ends, strict=True):
        if stage.shares[i] and stage.first + left / stage.shares[i] <= end:
          found.append(math.ceil(stage.first + left / stage.shares[i]))
          break
        left -= 0 if end == math.inf else stage.shares[i] * (end - stage.first)
    return min(found)


@dataclasses.dataclass(frozen=True)
class _Stage:
  """Rows from `first` on. period: rows after which every stream has had a whole number of them."""

  first: int
  shares: tuple[fractions.Fraction, ...]
  period: int

  @classmethod
  def of(cls, first: int, weights: Sequence[float]) -> "_Stage":
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
      raise ConfigError(f"config.streams: weights {tuple(weights)}; accepted are numbers from 0 on, one of them above 0")
    exact = [fractions.Fraction(str(weight)) for weight in weights]
    shares = tuple(weight / sum(exact) for weight in exact)
    period = math.lcm(*(share.denominator for share in shares))
    if period > MAX_PERIOD:
      raise ConfigError(f"config.streams: weights {tuple(weights)} repeat only after {period:,} rows; round them")
    return cls(first, shares, period)


class _Pattern:
  """Rows from `first` on, whose streams are those of `served` again and again. counts: rows of each stream before."""

  def __init__(self, first: int, served: Sequence[int], counts: np.ndarray):
    self.first, self._counts = first, counts
    self._stream = np.array(served, np.int64)
    self._each = np.bincount(self._stream, minlength=len(counts))
    self._before = np.zeros(len(served), np.int64)  # rows of the same stream earlier in the pattern
    for i, each in enumerate(self._each):
      self._before[self._stream == i] = np.arange(each)

  def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    times, place = np.divmod(rows - self.first, len(self._stream))
    stream = self._stream[place]
    return stream, self._counts[stream] + times * self._each[stream] + self._before[place]

  def counts_after(self, times: int) -> np.ndarray:
    """Rows of each stream before the pattern and in so many repetitions."""
    return self._counts + times * self._each


def _patterns(stages: Sequence[_Stage]) -> list[_Pattern]:
  """All rows of the run as patterns, the last of them without an end."""
  found, first, counts = [], 0, np.zeros(len(stages[0].shares), np.int64)
  for served, times in _repeats(stages):
    if served:
      found.append(_Pattern(first, served, counts))
      first, counts = first + times * len(served), found[-1].counts_after(times)
  return found


def _repeats(stages: Sequence[_Stage]) -> Iterator[tuple[list[int], int]]:
  """(streams of rows, how often they come) over the run, the last of them for ever."""
  chairman, row = _Chairman(stages), 0
  for stage, end in zip(stages, [*(stage.first for stage in stages[1:]), math.inf], strict=True):
    served, seen = [], {}
    while row < end:
      if len(served) % stage.period == 0:
        begin = seen.setdefault(chairman.state, len(served))
        if cycle := served[begin:]:  # what is owed is what it was then, so the rows repeat
          yield served[:begin], 1
          if end == math.inf:
            yield cycle, 1
            return
          more = max(int(end) - row - stage.period, 0) // len(cycle)  # in the last period the next stage's weights count too
          yield cycle, 1 + more
          row += more * len(cycle)
          served, seen = [], {}
      if row < end:
        served.append(chairman.serve(row))
        row += 1
    yield served, 1


class _Chairman:
  """Tijdeman's rule for the chairman assignment problem (1980): of the streams that may be served, the first to be due.

  A stream may be served once it is owed 1 / (2n - 2) of a row, and is due before it is owed 1 - 1 / (2n - 2). So none of
  n streams is ever further than that from the sum of its shares, however they change. What is owed is kept in units that
  make everything an exact integer.
  """

  def __init__(self, stages: Sequence[_Stage]):
    n = len(stages[0].shares)
    self._may = math.lcm(*(stage.period for stage in stages))
    self._whole = self._may * (2 * max(n, 2) - 2)
    self._firsts = [stage.first for stage in stages]
    self._earned = [[int(share * self._whole) for share in stage.shares] for stage in stages]
    self._owed = [0] * n

  @property
  def state(self) -> tuple[int, ...]:
    """What is owed to each stream."""
    return tuple(self._owed)

  def serve(self, row: int) -> int:
    """The stream of the next row, whose number it is."""
    stage = bisect.bisect_right(self._firsts, row) - 1
    self._owed = [a + b for a, b in zip(self._owed, self._earned[stage], strict=True)]
    able = [i for i, owed in enumerate(self._owed) if owed >= self._may]
    chosen = able[0] if len(able) == 1 else min(able, key=lambda i: self._due(i, stage, row + 1))
    self._owed[chosen] -= self._whole
    return chosen

  def _due(self, stream: int, stage: int, row: int) -> float:
    """How many rows will have been served when the stream is due, if it gets none; infinity if it never is."""
    left = self._whole - self._may - self._owed[stream]
    for earned, end in zip(self._earned[stage:], [*self._firsts[stage + 1 :], None], strict=True):
      each = earned[stream]
      if each and (end is None or left <= each * (end - row)):
        return row - (-left // each)
      if end is not None:
        left, row = left - each * (end - row), end
    return math.inf
