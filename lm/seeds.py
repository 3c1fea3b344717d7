"""What a metric's values over seeds say: mean, deviation, and how far the truth may be from them."""

import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np


def describe(values: Mapping[int, float], paired: bool = False) -> dict[str, Any]:
  """The values themselves (by seed), mean, std (n - 1) and interval95: [low, high] by Student's t, as if they were normal.

  paired: they are differences of runs of one seed; bootstrap95 then is what the mean of values drawn from them, with
  replacement, is in 95% of 9,999 draws. That asks for no normal values, and with few seeds it says too little: no mean of
  draws leaves the range of the values, which with three seeds holds the truth three times in four.

  mean is None without a value, the others of fewer than two.
  """
  numbers = list(values.values())
  n = len(numbers)
  found: dict[str, Any] = {
    "values": dict(values),
    "mean": statistics.mean(numbers) if n else None,
    "std": None,
    "interval95": None,
  }
  if paired:
    found["bootstrap95"] = None
  if n < 2:
    return found
  from scipy import special, stats  # which takes most of a second: longer than a sweep file that is wrong should

  found["std"] = statistics.stdev(numbers)
  reach = float(special.stdtrit(n - 1, 0.975)) * found["std"] / n**0.5
  found["interval95"] = [found["mean"] - reach, found["mean"] + reach]
  if paired:
    drawn = stats.bootstrap((numbers,), np.mean, method="percentile", rng=0).confidence_interval
    found["bootstrap95"] = [float(drawn.low), float(drawn.high)]
  return found


def mean_std(found: Mapping[str, Any], sign: str = "") -> str:
  """'0.412 ± 0.010': mean and sample deviation; the mean alone of one value, '-' of none."""
  if found["mean"] is None:
    return "-"
  return f"{found['mean']:{sign}.3f}" + ("" if found["std"] is None else f" ± {found['std']:.3f}")


def spread(found: Mapping[str, Any], sign: str = "") -> str:
  """'0.412 ± 0.010 [0.387, 0.437]': the same and the 95% interval, where there is one."""
  interval = found["interval95"]
  return mean_std(found, sign) + (f" [{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}]" if interval else "")
