"""Durations: how long and from when, in optimizer steps, from what a config says ("2%", "3 epochs", "10M tokens")."""

import math
import re

from lm.plug import ConfigError

# A number, or stages of (first step, weight): ((0, 3), ("50%", 1)) until half of the run and from there on.
Weight = float | tuple[tuple[int | str, float], ...]


def steps(
  value: int | str,
  setting: str,
  *,
  total_steps: int | None = None,
  batch_size: int | None = None,
  seq_len: int | None = None,
  examples_per_epoch: int | None = None,
) -> int:
  """A duration in optimizer steps, at least 1: 500, "2%" of total_steps, "3 epochs", "10M tokens", "50k examples"."""
  if isinstance(value, int) and not isinstance(value, bool):
    return max(value, 1)
  match = re.fullmatch(r"\s*(\d[\d_]*(?:\.\d*)?(?:e[+-]?\d+)?)\s*([kMB]?)\s*(%|[a-z]+)\s*", str(value), re.ASCII)
  per_step = {
    "%": 100 / total_steps if total_steps else 0,
    "epoch": batch_size / examples_per_epoch if batch_size and examples_per_epoch else 0,
    "token": batch_size * seq_len if batch_size and seq_len else 0,
    "example": batch_size or 0,
    "step": 1,
  }
  each = per_step.get(match[3].removesuffix("s"), 0) if match else 0
  if match is None or not each:
    units = ", ".join(unit if unit == "%" else f"{unit}s" for unit, known in per_step.items() if known)
    raise ConfigError(f"{setting}={value!r}: expected a whole number of steps, or a number with one of the units {units}")
  number = float(match[1].replace("_", "")) * {"": 1, "k": 1e3, "M": 1e6, "B": 1e9}[match[2]]
  if math.isinf(number) or not number:
    raise ConfigError(f"{setting}={value!r}: too {'large' if number else 'small, must be above 0'}")
  return max(math.ceil(number / each - 1e-9), 1)


def stages(setting: str, value: Weight, units: dict[str, int]) -> tuple[tuple[int, float], ...]:
  """(first step, weight) of a weight or of its stages. units: what `steps` needs to read their first steps.

  Raises:
    ConfigError: they do not rise from step 0 to before the last, or a weight is below 0, or all are 0.
  """
  given = value if isinstance(value, tuple) else ((0, value),)
  weights = [weight for _, weight in given]
  if any(not 0 <= weight < math.inf for weight in weights) or not any(weights):
    least = "0 or more, one of them above 0," if isinstance(value, tuple) else "above 0"
    raise ConfigError(f"{setting}={value}: must be {least} and finite")
  found = tuple((steps(first, setting, **units) if first else 0, weight) for first, weight in given)
  firsts, end = [first for first, _ in found], units.get("total_steps", 1)
  if firsts != sorted({0, *firsts}) or firsts[-1] >= end or any(isinstance(first, int) and first < 0 for first, _ in given):
    raise ConfigError(f"{setting}={value}: stages must begin at step 0, rise, and begin before the last of {end} steps")
  return found


def weight_at(found: tuple[tuple[int, float], ...], step: int) -> float:
  """The weight of the stage that a step belongs to."""
  return next(weight for first, weight in reversed(found) if first <= step)
