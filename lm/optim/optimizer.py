"""The contract of an optimizer, over optax, and the learning-rate schedules.

Weight decay falls on kernels and tables; scales and biases are left alone. The learning rate is a function of the
step alone, so that a resumed run needs nothing but the step. Parameters and layers may have a share of it, by which what
any rule gives is multiplied, weight decay included.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lm import duration, tree
from lm.optim.average import Average, Ema
from lm.shapes import depth

SCHEDULES = ("constant", "linear", "cosine", "wsd", "inverse_sqrt")
MOMENTUM_DTYPES = ("float32", "bfloat16")
Axes = Mapping[str, tuple[str | None, ...]]


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """Fields that every optimizer has."""

  learning_rate: float = 1e-3  # peak
  schedule: str = "cosine"  # after warm-up: constant, linear, cosine, inverse_sqrt or wsd: constant, linear in the last fifth
  warmup_steps: int | str = "2%"  # [steps] or a share of total_steps; linear from 0; 0: none
  final_rate: float = 0.0  # share of the peak that the decay reaches behind the last step
  weight_decay: float = 0.1  # times the learning rate, of kernels and tables
  clip_norm: float = 1.0  # of the whole gradient; 0 does not clip
  layer_decay: float = 1.0  # learning rate of a layer over that of the one above; heads have all of it (Clark et al. 2020)
  rates: tuple[str, ...] = ()  # 'PATTERN: FACTOR' for the learning rates of parameters by name; the first match counts
  ema_rate: float = 0.0  # share of the old in a moving average of the weights, which is evaluated and saved; 0: no average

  def __post_init__(self):
    if self.schedule not in SCHEDULES:
      raise ValueError(f"optimizer.schedule={self.schedule!r}: accepted are {', '.join(SCHEDULES)}")
    if self.learning_rate <= 0:
      raise ValueError(f"optimizer.learning_rate={self.learning_rate}: must be above 0")
    for name in ("weight_decay", "clip_norm", "final_rate"):
      if getattr(self, name) < 0:
        raise ValueError(f"optimizer.{name}={getattr(self, name)}: must not be negative")
    if not 0 <= self.ema_rate < 1:
      raise ValueError(f"optimizer.ema_rate={self.ema_rate}: must be at least 0 and below 1")
    if not 0 < self.layer_decay <= 1:
      raise ValueError(f"optimizer.layer_decay={self.layer_decay}: must be above 0 and at most 1")
    for text in self.rates:
      _parse_rate(text)

  def make_schedule(self, total_steps: int) -> optax.Schedule:
    """step -> learning rate, for steps 0 to total_steps - 1."""
    warmup = duration.steps(self.warmup_steps, "optimizer.warmup_steps", total_steps=total_steps)
    if warmup >= total_steps > 1:
      raise ValueError(f"optimizer.warmup_steps={self.warmup_steps!r}: {warmup} steps, but total_steps is {total_steps}")
    peak, rest = self.learning_rate, max(total_steps - warmup, 1)
    end = peak * self.final_rate
    decays = {
      "constant": lambda: optax.constant_schedule(peak),
      "linear": lambda: optax.linear_schedule(peak, end, rest),
      "cosine": lambda: optax.cosine_decay_schedule(peak, rest, self.final_rate),
      "wsd": lambda: optax.join_schedules(
        [optax.constant_schedule(peak), optax.linear_schedule(peak, end, max(rest // 5, 1))], [rest - rest // 5]
      ),
      # The peak at the last step of the warm-up, a half of it at four times that step (Vaswani et al. 2017).
      "inverse_sqrt": lambda: lambda step: peak * jnp.sqrt(warmup / (step + 1 + warmup)),
    }
    # The first step is number 0 and already counts: (step + 1) / warmup of the peak.
    ramp = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([ramp, decays[self.schedule]()], [warmup])

  def make(self, total_steps: int, axes: Axes, num_layers: int) -> "Moves":
    """The optax chain and the average.

    Args:
      axes: logical axis names by name of the parameters that train. num_layers: of the model, L.

    Raises:
      ValueError: a pattern of `rates` that is the first to match none of them.
    """
    schedule = self.make_schedule(total_steps)
    rule = self.rule(schedule, axes)
    if self.rates or self.layer_decay < 1:
      rule = _scaled(rule, self.factors(axes, num_layers))
    chain = optax.chain(_clip(self.clip_norm), rule) if self.clip_norm else rule
    return Moves(chain.init, optax.with_extra_args_support(chain).update, self.make_average(schedule))

  def factors(self, axes: Axes, num_layers: int) -> dict[str, np.ndarray]:
    """What the learning rate is multiplied by, by name of the parameter: a scalar, of stacked leaves a vector [L].

    Layer-wise decay gives layer_decay ** depth, see `lm.shapes.depth`: heads 1, the top layer layer_decay.
    """
    rules = [(_parse_rate(text)[0], text) for text in self.rates]
    chosen = tree.first_match([*rules, (".*", "")], axes, "optimizer.rates")
    if lost := [text for text in self.rates if text not in chosen.values()]:
      raise ValueError(f"optimizer.rates={lost[0]!r}: patterns before it match all of its parameters")
    rate = {text: _parse_rate(text)[1] for text in self.rates} | {"": 1.0}
    return {name: rate[chosen[name]] * np.power(self.layer_decay, depth(name, num_layers)) for name in axes}

  def rule(self, schedule: optax.Schedule, axes: Axes) -> optax.GradientTransformation:
    """The update rule, learning rate and weight decay applied."""
    raise NotImplementedError

  def make_average(self, schedule: optax.Schedule) -> Average:
    """What of the moving weights is evaluated and saved."""
    del schedule
    return Ema(self.ema_rate) if self.ema_rate else Average()


@dataclasses.dataclass(frozen=True)
class WithMomentum(Optimizer):
  """What optimizers with a running mean of the gradient share."""

  momentum_dtype: str = "float32"  # that the mean is kept in: float32, or bfloat16, which halves it

  def __post_init__(self):
    super().__post_init__()
    if self.momentum_dtype not in MOMENTUM_DTYPES:
      raise ValueError(f"optimizer.momentum_dtype={self.momentum_dtype!r}: accepted are {', '.join(MOMENTUM_DTYPES)}")


class Moves(NamedTuple):
  """How parameters move: optax's two functions, `update` taking `counted`, and what of them is read."""

  init: optax.TransformInitFn
  update: optax.TransformUpdateExtraArgsFn
  average: Average


def _clip(limit: float) -> optax.GradientTransformationExtraArgs:
  """Scales the gradient so that its norm is at most `limit`: the norm of `counted` where that part of it is given."""

  def update(updates, state, params=None, *, counted=None, **extra):
    del params, extra
    norm = optax.tree.norm(updates if counted is None else counted)
    # One factor for all, since a product is computed again wherever it is read; a quotient would be stored and read back.
    factor = jnp.where(norm < limit, 1.0, limit / norm)
    return jax.tree.map(lambda x: x * factor.astype(x.dtype), updates), state

  return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _scaled(rule: optax.GradientTransformation, factors: Mapping[str, np.ndarray]) -> optax.GradientTransformationExtraArgs:
  """The rule with its updates multiplied by their parameters' factors; its state is the rule's."""
  rule = optax.with_extra_args_support(rule)

  def scale(path, x):
    factor = factors[tree.leaf_name(path)]
    return x * jnp.asarray(factor.reshape(*factor.shape, *[1] * (x.ndim - factor.ndim)), x.dtype)

  def update(updates, state, params=None, **extra):
    updates, state = rule.update(updates, state, params, **extra)
    return jax.tree_util.tree_map_with_path(scale, updates), state

  return optax.GradientTransformationExtraArgs(rule.init, update)


def _parse_rate(text: str) -> tuple[str, float]:
  """ "backbone/embed/.*: 0.1" -> ("backbone/embed/.*", 0.1)."""
  pattern, _, number = (part.strip() for part in text.rpartition(":"))
  try:
    factor = float(number)
  except ValueError:
    factor = 0.0
  if not pattern or not 0 < factor < float("inf"):
    raise ValueError(f"optimizer.rates={text!r}: expected 'PATTERN: FACTOR' with a factor above 0; peft says what is frozen")
  tree.check_pattern(pattern, f"optimizer.rates={text!r}")
  return pattern, factor


def decayed(params: Any) -> Any:
  """True for leaves that decay: all but scales, magnitudes and biases."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _leaf: tree.leaf_name(path).rsplit("/", 1)[-1] not in ("scale", "magnitude", "bias"), params
  )
