"""Optimizers and their learning-rate schedules, over optax.

Weight decay falls on kernels and tables; norms' scales and biases are left alone. The learning rate is a function of the
step alone, so that a resumed run needs nothing but the step.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import optax

from lm import duration, tree
from lm.shapes import kernel_dims

SCHEDULES = ("constant", "linear", "cosine", "wsd")
Axes = Mapping[str, tuple[str | None, ...]]


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """Fields that every optimizer has."""

  learning_rate: float = 1e-3  # peak
  schedule: str = "cosine"  # after warm-up: constant, linear or cosine to the end, wsd: constant, then linear in the last fifth
  warmup_steps: int | str = "2%"  # [steps] or a share of total_steps; linear from 0; 0: none
  final_rate: float = 0.0  # share of the peak that the decay reaches behind the last step
  weight_decay: float = 0.1  # times the learning rate, of kernels and tables
  clip_norm: float = 1.0  # of the whole gradient; 0 does not clip

  def __post_init__(self):
    if self.schedule not in SCHEDULES:
      raise ValueError(f"optimizer.schedule={self.schedule!r}: accepted are {', '.join(SCHEDULES)}")
    if self.learning_rate <= 0:
      raise ValueError(f"optimizer.learning_rate={self.learning_rate}: must be above 0")
    for name in ("weight_decay", "clip_norm", "final_rate"):
      if getattr(self, name) < 0:
        raise ValueError(f"optimizer.{name}={getattr(self, name)}: must not be negative")

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
    }
    # The first step is number 0 and already counts: (step + 1) / warmup of the peak.
    ramp = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([ramp, decays[self.schedule]()], [warmup])

  def make(self, total_steps: int, axes: Axes) -> optax.GradientTransformation:
    """The optax chain. axes: logical axis names by parameter name."""
    rule = self.rule(self.make_schedule(total_steps), axes)
    return optax.chain(optax.clip_by_global_norm(self.clip_norm), rule) if self.clip_norm else rule

  def rule(self, schedule: optax.Schedule, axes: Axes) -> optax.GradientTransformation:
    """The update rule, learning rate and weight decay applied."""
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Adamw(Optimizer):
  """Adam with decoupled weight decay (Loshchilov & Hutter 2017)."""

  b1: float = 0.9  # decay of the gradient's mean
  b2: float = 0.95  # decay of its mean square
  eps: float = 1e-8  # added to the root of the mean square

  def rule(self, schedule, axes):
    return optax.adamw(schedule, self.b1, self.b2, self.eps, weight_decay=self.weight_decay, mask=_decayed)


@dataclasses.dataclass(frozen=True)
class Muon(Optimizer):
  """Muon (Jordan et al. 2024) for the kernels of the blocks, AdamW for everything else (tables, norms, heads).

  Each layer and each stack of heads is orthogonalised as one
  matrix [inputs, outputs], whose dims follow from the kernel's logical axis names.
  """

  learning_rate: float = 0.02  # peak, of the blocks' kernels
  adam_learning_rate: float = 3e-3  # peak of the rest, on the same schedule
  momentum: float = 0.95  # of Muon, Nesterov's
  b1: float = 0.9  # of Adam: decay of the gradient's mean
  b2: float = 0.95  # of Adam: decay of its mean square

  def rule(self, schedule, axes):
    scale = self.adam_learning_rate / self.learning_rate
    dims = lambda params: muon_dims(params, axes)
    kernels = optax.contrib.muon(
      schedule, beta=self.momentum, weight_decay=self.weight_decay, muon_weight_dimension_numbers=dims
    )
    # optax's own Adam beside Muon takes no mask, and would let scales and biases decay.
    rest = optax.adamw(
      lambda step: schedule(step) * scale, self.b1, self.b2, weight_decay=self.weight_decay, mask=_decayed, nesterov=True
    )
    is_dims = lambda x: x is None or isinstance(x, optax.contrib.MuonDimensionNumbers)
    labels = lambda params: jax.tree.map(lambda x: "rest" if x is None else "kernels", dims(params), is_leaf=is_dims)
    return optax.partition({"kernels": kernels, "rest": rest}, labels)


@dataclasses.dataclass(frozen=True)
class Sgd(Optimizer):
  """Stochastic gradient descent with momentum; weight decay joins the gradient."""

  momentum: float = 0.9  # decay of the gradient's running sum

  def rule(self, schedule, axes):
    return optax.chain(optax.add_decayed_weights(self.weight_decay, _decayed), optax.sgd(schedule, self.momentum))


def muon_dims(params: Any, axes: Axes) -> Any:
  """MuonDimensionNumbers for the blocks' kernels of two sides, None (Adam) for every other leaf."""

  def dims(path, _leaf):
    name = tree.leaf_name(path)
    if "/blocks/" not in name or not name.endswith("/kernel"):
      return None
    _, inputs, outputs = kernel_dims(axes[name])
    return optax.contrib.MuonDimensionNumbers(inputs, outputs)

  return jax.tree_util.tree_map_with_path(dims, params)


def _decayed(params: Any) -> Any:
  """True for leaves that decay: all but scales and biases."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _leaf: tree.leaf_name(path).rsplit("/", 1)[-1] not in ("scale", "bias"), params
  )
