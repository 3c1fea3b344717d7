"""Sides of a comparison take turns, A B, B A, ..., so that what else the machine does meets all of them alike."""

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np

from lm.config import ConfigError

Turn = Callable[[int], float]  # number of the round, from 0; -1 is not counted -> seconds


class Other:
  """A process for the other side, which sleeps while ours has its turn, so that neither's threads, memory and settings reach
  the other.
  """

  def __enter__(self) -> "Other":
    self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    return self

  def __exit__(self, *exception: object) -> None:
    self._pool.shutdown()

  def ask(self, function: Callable[..., Any], *args: Any) -> Any:
    """What the function gives there.

    Raises:
      ConfigError: the first line of what goes wrong there, the process's end among it.
    """
    try:
      return self._pool.submit(function, *args).result()
    except ConfigError:
      raise
    except (OSError, RuntimeError, ValueError, LookupError, TypeError) as error:
      raise ConfigError(f"peer: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}") from error


def take_turns(sides: Sequence[Turn], rounds: int) -> list[list[float]]:
  """Seconds [side][round]. Before them, everyone has a turn that is not counted."""
  spent: list[list[float]] = [[] for _ in sides]
  for number in range(-1, rounds):
    for side in range(len(sides))[:: 1 if number % 2 else -1]:
      seconds = sides[side](number)
      if number >= 0:
        spent[side].append(seconds)
  return spent


def figures(seconds: Sequence[float], **amounts: Sequence[float]) -> dict[str, Any]:
  """Of one side: the median seconds of a round, and medians of what it did per second, by name.

  spread: the distance of the quartiles of the seconds, as a share of their median.
  """
  middle = statistics.median(seconds)
  low, high = np.quantile(seconds, [0.25, 0.75])
  rate = lambda done: statistics.median(amount / spent for amount, spent in zip(done, seconds, strict=True))
  rates = {f"{name}_per_sec": round(rate(done), 2) for name, done in amounts.items()}
  return {"seconds": round(middle, 5), "spread": round(float(high - low) / middle, 3), **rates}


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
  """Of their seconds to ours in the same round, above 1 where ours is faster: `ratio` is the median of `ratios`."""
  found = [b / a for a, b in zip(ours, theirs, strict=True)]
  return {"ratio": round(statistics.median(found), 3), "ratios": [round(ratio, 3) for ratio in found]}


def timed(function: Callable[[], Any]) -> float:
  """Seconds of a call."""
  began = time.perf_counter()
  function()
  return time.perf_counter() - began
